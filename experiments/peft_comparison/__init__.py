"""Which parameter-efficient method at which price, on one task and one small model."""

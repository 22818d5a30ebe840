"""What few bits cost a small model."""

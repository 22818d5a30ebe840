"""A laboratory for adapting, compressing, aligning and deploying transformers in JAX."""

"""A small T5 learns to translate from nothing."""

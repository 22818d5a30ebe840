"""Data: tokenizers, chat templates, sources, row formats, packing and the input pipeline."""

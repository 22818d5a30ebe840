"""The building blocks of transformers: pure functions and small modules, blind to methods."""

"""The losses of `experiments/preference` on a public set of preferences."""

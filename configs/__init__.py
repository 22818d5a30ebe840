"""One file a run; each tells its differences from `base`."""

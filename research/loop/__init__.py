"""One training loop for every model, adapter and objective."""

"""What losses of preferences do to a model that writes sums, told by verified answers."""

"""The peers' sides of the benchmarks; each runs in its own virtual environment."""

"""Sweeps: many runs of `research.train` from one description, on one machine or on many.

A description, `experiments/NAME/sweep.py`, is written in these words.
"""

from launch.description import Choice, LogUniform, Random, Search, Sweep, Uniform

__all__ = ["Choice", "LogUniform", "Random", "Search", "Sweep", "Uniform"]

"""Rounding by what a model's projections read."""

from research.calibration.compress import Plan, plan
from research.calibration.methods import AWQ, GPTQ, METHODS, Nearest, SmoothQuant
from research.calibration.rounding import quantize

__all__ = ["AWQ", "GPTQ", "METHODS", "Nearest", "Plan", "SmoothQuant", "plan", "quantize"]

"""Losses of arrays; they never see parameters."""

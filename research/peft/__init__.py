"""Parameter-efficient methods: pytrees bound at a model's taps."""

from research.peft.adapter import Adapter, sites, trainable_paths
from research.peft.attach import attach, merge
from research.peft.interchange import load, obstacle, save
from research.peft.residual import plain, residual, starts

__all__ = [
  "Adapter",
  "attach",
  "load",
  "merge",
  "obstacle",
  "plain",
  "residual",
  "save",
  "sites",
  "starts",
  "trainable_paths",
]

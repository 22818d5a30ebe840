"""Parameter-efficient methods: pytrees bound at a model's taps."""

from research.peft.adalora import penalty
from research.peft.adapter import (
  Adapter,
  materialize,
  offset,
  sites,
  trainable_paths,
  virtual_ids,
)
from research.peft.attach import attach, merge, require_mergeable
from research.peft.eva import begin, waiting
from research.peft.interchange import load, obstacle, save
from research.peft.ranks import allocation
from research.peft.residual import plain, residual, starts
from research.peft.saved import install, with_saved

__all__ = [
  "Adapter",
  "allocation",
  "attach",
  "begin",
  "install",
  "load",
  "materialize",
  "merge",
  "obstacle",
  "offset",
  "penalty",
  "plain",
  "require_mergeable",
  "residual",
  "save",
  "sites",
  "starts",
  "trainable_paths",
  "virtual_ids",
  "waiting",
  "with_saved",
]

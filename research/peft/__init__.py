"""Parameter-efficient methods: pytrees bound at a model's taps."""

from research.peft.adapter import (
  Adapter,
  materialize,
  offset,
  sites,
  trainable_paths,
  virtual_ids,
)
from research.peft.attach import attach, merge, require_mergeable
from research.peft.combine import combine
from research.peft.interchange import load, obstacle, save
from research.peft.residual import plain, residual, starts

__all__ = [
  "Adapter",
  "attach",
  "combine",
  "load",
  "materialize",
  "merge",
  "obstacle",
  "offset",
  "plain",
  "require_mergeable",
  "residual",
  "save",
  "sites",
  "starts",
  "trainable_paths",
  "virtual_ids",
]

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
from research.peft.interchange import has_place, load, save

__all__ = [
  "Adapter",
  "attach",
  "has_place",
  "load",
  "materialize",
  "merge",
  "offset",
  "require_mergeable",
  "save",
  "sites",
  "trainable_paths",
  "virtual_ids",
]

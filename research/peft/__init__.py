"""Parameter-efficient methods: pytrees bound at a model's taps."""

from research.peft.adalora import penalty
from research.peft.adapter import (
  Adapter,
  materialize,
  moved,
  offset,
  sites,
  trainable_paths,
  virtual_ids,
)
from research.peft.attach import attach, tasks
from research.peft.bank import Bank, bank
from research.peft.banked import Banked, banks, route, taken
from research.peft.combine import combine
from research.peft.compose import stacked
from research.peft.eva import begin, waiting
from research.peft.interchange import load, obstacle, save
from research.peft.merge import covered, merge, merged, require_mergeable, unmerge
from research.peft.prefix import prefill
from research.peft.ranks import allocation
from research.peft.residual import plain, residual, starts
from research.peft.saved import install, with_saved

__all__ = [
  "Adapter",
  "Bank",
  "Banked",
  "allocation",
  "attach",
  "bank",
  "banks",
  "begin",
  "combine",
  "covered",
  "install",
  "load",
  "materialize",
  "merge",
  "merged",
  "moved",
  "obstacle",
  "offset",
  "penalty",
  "plain",
  "prefill",
  "require_mergeable",
  "residual",
  "route",
  "save",
  "sites",
  "stacked",
  "starts",
  "taken",
  "tasks",
  "trainable_paths",
  "unmerge",
  "virtual_ids",
  "waiting",
  "with_saved",
]

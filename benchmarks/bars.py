"""The bars: which figures the table has, and what of them is required or aimed at."""

from __future__ import annotations

import dataclasses
from typing import Literal

Measure = Literal[
  "tokens_per_second",
  "items_per_second",
  "peak_bytes",
  "compile_seconds",
  "startup_seconds",
  "pause_share",
]


@dataclasses.dataclass(frozen=True)
class Bar:
  """A row of the table: `measure` of a work, as a ratio to `peer` or, without one, itself.

  `required` and `aim` are lower limits for rates a second, upper limits for the rest, and for rates
  that are a `cost`: how many times longer the peer takes. A row with neither is there for
  information.
  """

  work: str
  peer: str | None
  measure: Measure
  required: float | None
  aim: float | None
  cost: bool = False

  @property
  def more_is_better(self) -> bool:
    return self.measure.endswith("_per_second") and not self.cost

  def verdict(self, value: float) -> str:
    """Which of the limits `value` keeps; empty where there are none."""
    if self.aim is not None and self._keeps(value, self.aim):
      return "aim met"
    if self.required is not None:
      return "met" if self._keeps(value, self.required) else "missed"
    return "" if self.aim is None else "aim missed"

  def _keeps(self, value: float, limit: float) -> bool:
    return value >= limit if self.more_is_better else value <= limit


BARS = (
  Bar("lora_step", "torch", "tokens_per_second", 1.4, None),
  Bar("lora_step", "compile", "tokens_per_second", None, 1.0),
  Bar("lora_step", "tunix", "tokens_per_second", 3.0, 4.0),
  Bar("lora_step_large", "torch", "tokens_per_second", None, None),
  Bar("lora_step_large", "compile", "tokens_per_second", None, None),
  Bar("lora_step_large", "torch", "peak_bytes", None, None),
  Bar("sft", "trl", "tokens_per_second", 2.5, 4.0),
  Bar("sft", "trl_grouped", "tokens_per_second", None, None),
  Bar("sft", "trl_padding_free", "tokens_per_second", None, None),
  Bar("dpo_step", "trl", "tokens_per_second", 1.8, None),
  Bar("dpo_kept", "trl", "tokens_per_second", 2.5, None),
  Bar("dpo_kept", "trl_kept", "tokens_per_second", None, None),
  Bar("generation", "torch", "tokens_per_second", 1.2, 1.6),
  Bar("generation_eight", "torch", "tokens_per_second", 1.1, None),
  Bar("generation_one", "torch", "tokens_per_second", 0.9, 1.1),
  Bar("continuous", "static", "tokens_per_second", 1.5, None),
  Bar("speculative", "plain", "tokens_per_second", 1.0, None),
  Bar("harness", "hf", "items_per_second", 1.5, None),
  Bar("encode", "torch", "items_per_second", 1.2, None),
  Bar("encoder_step", "torch", "tokens_per_second", 1.2, None),
  Bar("methods", "bare", "tokens_per_second", 0.8, None),
  Bar("methods", "dora", "tokens_per_second", 1.5, None, cost=True),
  *(
    Bar("methods", name, "tokens_per_second", 1.0, None, cost=True)
    for name in ("ia3", "norms", "prompt", "prefix")
  ),
  # 1.4 times the student's step and the teacher's forward pass, and 1.05 times the step alone.
  Bar("distillation_step", "apart", "tokens_per_second", 1 / 1.4, None),
  Bar("distillation_kept", "alone", "tokens_per_second", 1 / 1.05, None),
  Bar("int8_step", "bfloat16", "tokens_per_second", 1.15, None),
  Bar("int8_step", "forward", "tokens_per_second", None, None),
  Bar("w8a8_forward", "outliers", "tokens_per_second", None, None),
  Bar("w8a8_forward", "bfloat16", "tokens_per_second", 1.0, 1.5),
  Bar("methods_peft", "peft_dora", "tokens_per_second", None, None, cost=True),
  Bar("lora_step", "torch", "peak_bytes", 0.9, 0.6),
  Bar("lora_step", None, "compile_seconds", 30.0, 15.0),
  Bar("input", "step", "tokens_per_second", 20.0, None),
  Bar("depth", "layers_30", "compile_seconds", 1.3, None),
  Bar("checkpoint", None, "pause_share", 0.05, None),
  Bar("startup", None, "startup_seconds", 20.0, 10.0),
)

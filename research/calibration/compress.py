"""What a config says of parameters in few bits: rules, a method, text to calibrate by."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax.numpy as jnp

from research.calibration import budget
from research.calibration.methods import METHODS, Method
from research.calibration.rounding import quantize
from research.core import config as config_lib
from research.data import pipeline

Tree = Any
_BATCH = 8  # rows that go through a layer together, at most
_MEASURED = 16  # rows by which choices are measured, of as many batches as have them


@dataclasses.dataclass(frozen=True)
class Plan:
  """How a model's parameters are rounded.

  rules: see `research.quant.schemes`; open ones have a list of kinds (`calibration.budget`).
  batches: to calibrate by; none for a method that is not.
  dtype: of activations while that is done.
  keep: a directory for layers that are done, or None.
  bits: a parameter of open rules may take, scales included; 0 without such rules.
  """

  rules: budget.Rules
  method: Method
  batches: Sequence[Mapping[str, Any]]
  dtype: str
  keep: Path | None
  bits: float

  def candidates(self) -> Sequence[budget.Rules]:
    """`rules`, or what may become of open ones; see `calibration.budget.candidates`."""
    return budget.candidates(self.rules) if self.bits else [self.rules]

  def settled(self, model: Any, params: Tree, told: Callable[[budget.Option], object]) -> Plan:
    """With the kinds chosen that open rules leave open, by what each costs the loss.

    told: see `calibration.budget.options`.

    Raises:
      ConfigError: a rule matches nothing, or what it matches cannot be held so.
      ValueError: no choice keeps within `bits`.
    """
    if not self.bits:
      return self
    model = model.clone(dtype=jnp.dtype(self.dtype))
    with config_lib.blaming("quantize"):
      found = budget.options(model, params, self.rules, self._measured(), told)
    chosen = budget.choose(found, budget.bytes_of(params, self.rules, self.bits))
    return dataclasses.replace(self, rules=budget.closed(self.rules, params, chosen), bits=0)

  def _measured(self):
    rows = len(self.batches[0]["tokens"])
    return self.batches[: -(-_MEASURED // rows)]

  def apply(self, model: Any, params: Tree, told: Callable[[int, int], None]) -> Tree:
    """`params` in few bits; errors and `told`: see `calibration.quantize`."""
    model = model.clone(dtype=jnp.dtype(self.dtype))
    return quantize(model, params, self.rules, self.method, self.batches, keep=self.keep, told=told)


def plan(config: config_lib.Config, tokenizer: Any) -> Plan:
  """What `quantize`, `method`, `calibration` and `directory` describe (configs/base_export.py).

  Raises:
    ConfigError: one of them cannot be; the message names it.
  """
  with config_lib.blaming("method"):
    method = config_lib.call(METHODS, config.method)
  rules = [rule.take() for rule in config.quantize]
  section, batches = config.calibration, []
  with config_lib.blaming("quantize"):
    is_open = bool(budget.open_rules(rules))
  has_ranges = any(rule.get("range", "row") != "row" for rule in rules)
  if is_open != bool(config.bits):
    raise config_lib.ConfigError(
      "config.bits: how many a parameter may take where a rule of config.quantize has several kinds"
      if is_open
      else "config.bits is for rules of config.quantize that have several kinds, and none has"
    )
  if method.calibrated or is_open or has_ranges:
    if not section.source:
      who = "the choice of kinds" if is_open else "the range of activations"
      who = config.method.name if method.calibrated else who
      raise config_lib.ConfigError(
        f"config.calibration.source: {who} is calibrated by text; name one, as in"
        ' {"name": "text", "path": ...}'
      )
    with config_lib.blaming("calibration"):
      batches = _batches(section, tokenizer, config.seed)
  else:
    if section.source:
      raise config_lib.ConfigError(
        f"config.calibration.source: {config.method.name} reads no text; leave it empty"
      )
    section.take()
  keep = Path(config.directory) if config.directory else None
  return Plan(rules, method, batches, section.dtype, keep, config.bits)


def _batches(section, tokenizer, seed):
  """The first rows of the data, whole batches of them."""
  if section.rows < 1:
    raise ValueError(f"rows is {section.rows}; it is at least 1")
  size = math.gcd(section.rows, _BATCH)
  found = pipeline.train_batches(section, tokenizer, batch_size=size, seed=seed)
  return [next(found) for _ in range(section.rows // size)]

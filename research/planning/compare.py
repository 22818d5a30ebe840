"""Techniques for one model, its data and machine on one table, and which to take by what rules."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

from research.core import config as config_lib
from research.core import matrix, tree
from research.planning import estimate, outline, report
from research.planning.estimate import Plan

_LORA = {"target": "layers/.*_proj/kernel", "name": "lora", "rank": 16, "alpha": 32}
_NF4 = {"target": "layers/.*_proj/kernel", "kind": "nf4", "group": 64, "scales": "double"}
_FULL: dict[str, Any] = {"adapters": (), "quantize": (), "trainable": ("all",)}
_ADAPTED: dict[str, Any] = {"quantize": (), "trainable": ("adapters",)}

# What each changes in the config.
TECHNIQUES: dict[str, Callable[[config_lib.Config], dict[str, Any]]] = {
  "full": lambda config: _FULL,
  "lora": lambda config: {**_ADAPTED, "adapters": (_LORA,)},
  "qlora": lambda config: {**_ADAPTED, "adapters": (_LORA,), "quantize": (_NF4,)},
  "adapters": lambda config: {**_ADAPTED, "adapters": ({"name": "bottleneck"},)},
  "distillation": lambda config: {
    **_FULL,
    "model.student": {"name": "sliced", "layers": _half(config)},
    "teacher.source": config.model.source,
    "objective": {
      "name": "distillation",
      "divergence": {"name": "forward_kl"},
      "chunk_tokens": config.objective.get("chunk_tokens", 256),
    },
  },
}


@dataclasses.dataclass(frozen=True)
class Row:
  """A technique and its plan.

  deployed: bytes of what is loaded to use the result, in two bytes a number where it is not in few
    bits. left: of those, what each task has of its own.
  """

  name: str
  plan: Plan
  deployed: float
  left: float


@dataclasses.dataclass(frozen=True)
class Needs:
  """What a technique is chosen for.

  tasks: that one base is to serve. deployed: bytes that may be loaded, or None. budget: dollars, or
    None. reasoning: the tasks are hard for the model as it is.
  """

  tasks: int = 1
  deployed: float | None = None
  budget: float | None = None
  reasoning: bool = False


def rows(config: config_lib.Config, topology: str, devices: Sequence[Any]) -> list[Row]:
  """The plan of each of `TECHNIQUES`, on the data and the mesh of `config`.

  Raises:
    ConfigError: the config's objective is not "causal", or its model has no source.
  """
  if config.objective.name != "causal" or not config.model.source:
    raise config_lib.ConfigError(
      "techniques are compared on a config of the objective 'causal' and a model.source"
    )
  found = []
  for name, changes in TECHNIQUES.items():
    changed = outline.changed(config, changes(config))
    plan = estimate.make(changed, topology, devices)
    variables = outline.problem(outline.without_numbers(changed)).variables
    whole = _bytes(variables["params"])
    own = _bytes(variables["adapters"])
    found.append(Row(name, plan, whole + own, own or whole))
  return found


def _bytes(variables: Any) -> float:
  """As it is kept: two bytes a number, and what is in few bits as it is."""
  flat = matrix.flatten(variables)
  return float(
    sum(tree.nbytes(leaf) if matrix.is_matrix(leaf) else 2 * leaf.size for leaf in flat.values())
  )


def _half(config: config_lib.Config) -> int:
  """Half of the layers of the model."""
  learner = outline.problem(outline.changed(config, {**_FULL, "objective": {"name": "causal"}}))
  return max(1, learner.model.config.num_layers // 2)


def recommend(
  found: Sequence[Row], needs: Needs, price: float | None = None, tokens: float | None = None
) -> tuple[str | None, list[str]]:
  """The technique to take, None if none is left, and the rules that decided, with their numbers.

  In this order: what does not fit is out; what is too large to be deployed; with several tasks what
  leaves a whole model for each; what costs more than the budget. Of the rest it is the one that
  trains most numbers where tasks are hard, and otherwise the one with the most tokens a second.
  """
  left, why = list(found), []

  def keep(test: Callable[[Row], bool], told: Callable[[Row], str]) -> None:
    for row in [row for row in left if not test(row)]:
      left.remove(row)
      why.append(f"{row.name} is out: {told(row)}")

  keep(lambda row: row.plan.fits, lambda row: f"it does not fit ({row.plan.why})")
  if (most := needs.deployed) is not None:
    keep(
      lambda row: row.deployed <= most,
      lambda row: f"deployed it has {row.deployed / 1e9:.2f} GB, of {most / 1e9:.2f} allowed",
    )
  if needs.tasks > 1:
    keep(
      lambda row: row.left < row.deployed,
      lambda row: f"{needs.tasks} tasks are {needs.tasks} models of {row.left / 1e9:.2f} GB",
    )
  if (budget := needs.budget) is not None and price and tokens:
    keep(
      lambda row: row.plan.dollars(price, tokens) <= budget,
      lambda row: f"it costs ${row.plan.dollars(price, tokens):,.0f} of ${budget:,.0f}",
    )
  if not left:
    return None, why
  if needs.reasoning:
    best = max(left, key=lambda row: row.plan.trained)
    why.append(f"{best.name} trains the most of what is left: {best.plan.trained:,} numbers")
  else:
    best = max(left, key=lambda row: row.plan.tokens_per_second)
    rate = best.plan.tokens_per_second
    why.append(f"{best.name} is the fastest of what is left: {rate:,.0f} tokens/s")
  return best.name, why


def text(found: Sequence[Row], price: float | None, tokens: float | None) -> str:
  """The table."""
  head = ["technique", "trains", "GiB", "fits", "tokens/s", "utilisation", "GB used", "of a task"]
  head += ["days"] if tokens else []
  head += ["$"] if tokens and price else []
  lines = [head]
  for row in found:
    plan = row.plan
    fits = "yes" if plan.fits else "no"
    line = [row.name, f"{plan.trained:,}", f"{plan.total / 2**30:.1f}", fits]
    line += [f"{plan.tokens_per_second:,.0f}", f"{plan.utilisation:.1%}"] if plan.fits else ["", ""]
    line += [f"{row.deployed / 1e9:.2f}", f"{row.left / 1e9:.3f}"]
    if tokens:
      line.append(f"{plan.days(tokens):.2f}" if plan.fits else "")
      if price:
        line.append(f"{plan.dollars(price, tokens):,.0f}" if plan.fits else "")
    lines.append(line)
  return report.table(lines)

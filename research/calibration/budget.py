"""Which parameters get how many bits, where bytes are given: by what rounding each alone costs.

The rise of the loss by rounding several is taken for the sum of the rises by each. That is what
makes the choice an exact one: a knapsack with one item of each kind.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from research.core import config, matrix, tree
from research.losses import cross_entropy
from research.quant import policy
from research.quant.qarray import quantize as round_to_nearest
from research.quant.scheme import Scheme

Tree = Any
Rules = Sequence[Mapping[str, Any]]


@dataclasses.dataclass(frozen=True)
class Option:
  """One of the kinds of a rule.

  rule: its number. scheme: with that kind.
  nats: by which the mean loss of a token rises. bytes: that all parameters of the rule take.
  """

  rule: int
  scheme: Scheme
  nats: float
  bytes: int


def open_rules(rules: Rules) -> dict[int, list[Scheme]]:
  """The schemes of rules whose `kind` is a list of kinds, by the rule's number.

  Raises:
    ValueError: there is no such scheme.
  """
  found = {}
  for number, rule in enumerate(rules):
    if isinstance(rule.get("kind"), (list, tuple)):
      how = {key: value for key, value in rule.items() if key not in ("target", "kind")}
      found[number] = [
        config.call({"scheme": Scheme}, {"name": "scheme", "kind": kind, **how})
        for kind in rule["kind"]
      ]
  return found


def options(
  model: Any,
  params: Tree,
  rules: Rules,
  batches: Iterable[Mapping[str, Any]],
  told: Callable[[Option], object] = lambda option: None,
) -> list[Option]:
  """What each kind of each open rule costs by itself, rounded to nearest, the rest as it is.

  Args:
    model: a decoder.
    rules: see `research.quant.schemes`; a parameter is the first rule's that matches it.
    batches: by which the loss is measured, see docs/architecture.md.
    told: called with each option.

  Raises:
    ValueError: a rule matches nothing, or a scheme does not fit.
  """
  flat = matrix.flatten(params)
  paths = _paths(flat, rules)
  dense = {path: leaf.astype(model.dtype) for path, leaf in flat.items()}
  batches = list(batches)

  @jax.jit
  def sums(params, batch):
    variables = {"params": params}
    hidden = model.apply(
      variables, batch["tokens"], batch["positions"], batch["segments"], method="hidden"
    )

    def head(variables, hidden):
      return model.apply(variables, hidden, method="head")

    losses = cross_entropy.of_tokens(head, variables, hidden, batch["targets"])
    return jnp.sum(losses * batch["weights"]), jnp.sum(batch["weights"])

  def loss(flat):
    found = [jax.device_get(sums(tree.unflatten(flat), batch)) for batch in batches]
    return sum(float(total) for total, _ in found) / sum(float(weight) for _, weight in found)

  before, made = loss(dense), []
  for number, schemes in open_rules(rules).items():
    for scheme in schemes:
      held = {}
      for path in paths[number]:
        scheme.require_fits(flat[path].shape[policy.axis_of(path)], path)
        held[path] = round_to_nearest(flat[path], scheme, policy.axis_of(path))
      acting = {path: each.astype(model.dtype) for path, each in held.items()}
      made.append(Option(number, scheme, loss(dense | acting) - before, tree.nbytes(held)))
      told(made[-1])
  return made


def _paths(flat, rules):
  """The paths of each rule's parameters, by its number."""
  matrices = [path for path in flat if policy.is_quantizable(path)]
  numbered = [(rule["target"], number) for number, rule in enumerate(rules)]
  found: dict[int, list[str]] = {}
  for path, number in tree.first_match(numbered, matrices).items():
    found.setdefault(number, []).append(path)
  return found


def choose(found: Sequence[Option], budget: float) -> dict[int, Option]:
  """An option of each rule, at most `budget` bytes in all, whose rises of the loss add up to least.

  Raises:
    ValueError: even the smallest take more.
  """
  # What is worth going on with: more bytes only for a smaller rise.
  best: list[tuple[int, float, tuple[Option, ...]]] = [(0, 0.0, ())]
  for number in dict.fromkeys(option.rule for option in found):
    own = [option for option in found if option.rule == number]
    longer = sorted(
      ((size + o.bytes, nats + o.nats, (*taken, o)) for size, nats, taken in best for o in own),
      key=lambda each: each[:2],
    )
    best, least = [], float("inf")
    for each in longer:
      if each[1] < least:
        best.append(each)
        least = each[1]
  within = [each for each in best if each[0] <= budget]
  if not within:
    raise ValueError(
      f"the fewest bits of all rules take {best[0][0]:,} bytes, and {budget:,.0f} are given; give"
      " more, or kinds of fewer bits"
    )
  return {option.rule: option for option in within[-1][2]}


def bytes_of(params: Tree, rules: Rules, bits: float) -> float:
  """What `bits` a parameter are in bytes, of the parameters of open rules."""
  flat = matrix.flatten(params)
  paths, numbers = _paths(flat, rules), open_rules(rules)
  return sum(flat[path].size for number in numbers for path in paths[number]) * bits / 8


def closed(rules: Rules, chosen: Mapping[int, Option]) -> list[dict[str, Any]]:
  """`rules`, the open ones with the kind that was chosen."""
  return [
    {**rule, "kind": chosen[number].scheme.kind} if number in chosen else dict(rule)
    for number, rule in enumerate(rules)
  ]

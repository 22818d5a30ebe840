"""Which parameters get how many bits, where bytes are given: by what rounding each alone costs.

The rise of the loss by rounding several is taken for the sum of the rises by each. That is what
makes the choice an exact one: a knapsack with one kind of each item. An item is a rule, or what a
rule that says `"each": "layer"` has in one layer.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from research.calibration.walk import Walk
from research.core import config, matrix, tree
from research.losses import cross_entropy
from research.quant import policy
from research.quant.policy import LAYERS
from research.quant.qarray import quantize as round_to_nearest
from research.quant.scheme import Scheme

Tree = Any
Rules = Sequence[Mapping[str, Any]]


@dataclasses.dataclass(frozen=True)
class Option:
  """One of the kinds of an item.

  rule: its number. layer: the number of the item's layer, from 0; None if it is the whole rule.
  scheme: with that kind.
  nats: by which the mean loss of a token rises. bytes: that all parameters of the item take.
  """

  rule: int
  layer: int | None
  scheme: Scheme
  nats: float
  bytes: int


@dataclasses.dataclass(frozen=True)
class _Item:
  """Parameters that get one kind.

  at: by path, the numbers of layers; none for what is in no layer.
  """

  rule: int
  layer: int | None
  at: dict[str, tuple[int, ...]]

  @property
  def outside(self) -> list[str]:
    """The paths that are in no layer."""
    return [path for path, layers in self.at.items() if not layers]

  @property
  def first(self) -> int:
    """The layer from which on the model computes something else."""
    return 0 if self.outside else min(min(layers) for layers in self.at.values())


def open_rules(rules: Rules) -> dict[int, list[Scheme]]:
  """The schemes of rules whose `kind` is a list of kinds, by the rule's number.

  Raises:
    ValueError: there is no such scheme, or no kind, or `each` is not "layer" or of a rule with one
      kind.
  """
  found = {}
  for number, rule in enumerate(rules):
    is_open = isinstance(rule.get("kind"), (list, tuple))
    if "each" in rule and not (is_open and rule["each"] == "layer"):
      raise ValueError(
        f"each: {rule['each']!r} of a rule: it is 'layer', where there are several kinds to choose"
        " from for each layer"
      )
    if is_open and not rule["kind"]:
      raise ValueError("kind: a rule has an empty list of kinds; give some to choose from, or one")
    if is_open:
      how = {key: value for key, value in rule.items() if key not in ("target", "kind", "each")}
      found[number] = [
        config.call({"scheme": Scheme}, {"name": "scheme", "kind": kind, **how})
        for kind in rule["kind"]
      ]
  return found


def candidates(rules: Rules) -> list[list[dict[str, Any]]]:
  """Rules as they may be chosen: each kind of each open rule, beside the first of all others.

  Those are few, and a format that has one scheme for all, or no place for some kind, cannot hold
  all of them. None without open rules.
  """
  kinds = {number: [s.kind for s in found] for number, found in open_rules(rules).items()}
  plain = [{key: value for key, value in rule.items() if key != "each"} for rule in rules]
  first = [
    {**rule, "kind": kinds[number][0]} if number in kinds else rule
    for number, rule in enumerate(plain)
  ]
  return [
    [*first[:number], {**first[number], "kind": kind}, *first[number + 1 :]]
    for number, own in kinds.items()
    for kind in own
  ]


def options(
  model: Any,
  params: Tree,
  rules: Rules,
  batches: Iterable[Mapping[str, Any]],
  told: Callable[[Option], object] = lambda option: None,
) -> list[Option]:
  """What each kind of each item costs by itself, rounded to nearest, the rest as it is.

  Layers before an item's first are run once for all items.

  Args:
    model: a decoder.
    rules: see `research.quant.schemes`; a layer's parameter is the first rule's that matches it.
    batches: by which the loss is measured, see docs/architecture.md.
    told: called with each option.

  Raises:
    ValueError: a rule matches nothing, a scheme does not fit, or it is no decoder.
  """
  flat, batches = matrix.flatten(params), list(batches)
  items, kinds = _items(flat, rules), open_rules(rules)
  for item in items:
    for path in item.at:
      for scheme in kinds[item.rule]:
        policy.require_fits(path, flat[path], scheme)
  dense = {path: leaf.astype(model.dtype) for path, leaf in flat.items()}
  walk = Walk(model, tree.unflatten(dense), batches)

  def loss(ahead, outside, at, scheme):
    """With the parameters of the layers in `at` rounded, and what those take in bytes."""
    size = 0
    while not ahead.done:
      layer = matrix.flatten(ahead.params())
      for path, layers in at.items():
        if ahead.number in layers:
          held = round_to_nearest(flat[path][ahead.number], scheme)
          size += tree.nbytes(held)
          layer[path.removeprefix(LAYERS)] = held.astype(model.dtype)
      ahead.advance(tree.unflatten(layer))
    rest = {path: leaf for path, leaf in outside.items() if not path.startswith(LAYERS)}
    pairs = zip(ahead.hidden, batches, strict=True)
    found = [jax.device_get(_sums(model, tree.unflatten(rest), x, dict(b))) for x, b in pairs]
    return sum(float(total) for total, _ in found) / sum(float(weight) for _, weight in found), size

  before, _ = loss(walk.branch(), dense, {}, None)
  made = []
  for item in sorted(items, key=lambda item: item.first):
    while walk.number < item.first:
      walk.advance(walk.params())
    for scheme in kinds[item.rule]:
      held = {p: round_to_nearest(flat[p], scheme, policy.axis_of(p)) for p in item.outside}
      acting = dense | {path: each.astype(model.dtype) for path, each in held.items()}
      ahead = Walk(model, tree.unflatten(acting), batches) if held else walk.branch()
      after, size = loss(ahead, acting, item.at, scheme)
      made.append(Option(item.rule, item.layer, scheme, after - before, size + tree.nbytes(held)))
      told(made[-1])
  return made


@partial(jax.jit, static_argnums=0)
def _sums(model, params, x, batch):
  """The losses of tokens behind the last layer, weighted and added up, and the sum of weights."""
  variables = {"params": params}
  hidden = model.apply(variables, x, method=lambda model, x: model.final_norm(x))

  def head(variables, hidden):
    return model.apply(variables, hidden, method="head")

  losses = cross_entropy.of_tokens(head, variables, hidden, batch["targets"])
  return jnp.sum(losses * batch["weights"]), jnp.sum(batch["weights"])


def _items(params, rules):
  """What open rules leave to choose, of the parameters or their shapes by path."""
  taken = policy.ruled(rules, tree.unflatten(params))
  found = []
  for number in open_rules(rules):
    at = {
      path: tuple(i for i, own in enumerate(numbers) if own == number and path.startswith(LAYERS))
      for path, numbers in taken.items()
      if number in numbers
    }
    if not at:
      raise ValueError(f"rule {rules[number]['target']!r} matches what rules before it have taken")
    whole = _Item(number, None, at)
    if rules[number].get("each") != "layer":
      found.append(whole)
      continue
    if whole.outside:
      raise ValueError(f"each 'layer' is for what layers have, which {whole.outside[0]!r} is not")
    for layer in sorted(set().union(*at.values())):
      own = {path: (layer,) for path, layers in at.items() if layer in layers}
      found.append(_Item(number, layer, own))
  return found


def choose(found: Sequence[Option], budget: float) -> list[Option]:
  """An option of each item, at most `budget` bytes in all, whose rises of the loss add up to least.

  Raises:
    ValueError: even the smallest take more.
  """
  items: dict[tuple[int, int | None], list[Option]] = {}
  for option in found:
    items.setdefault((option.rule, option.layer), []).append(option)
  # What is worth going on with: more bytes only for a smaller rise. Choices are chains of pairs.
  best: list[tuple[int, float, Any]] = [(0, 0.0, None)]
  for own in items.values():
    longer = sorted(
      ((size + o.bytes, nats + o.nats, (o, taken)) for size, nats, taken in best for o in own),
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
  chosen, taken = [], within[-1][2]
  while taken is not None:
    option, taken = taken
    chosen.append(option)
  return chosen[::-1]


def bytes_of(params: Tree, rules: Rules, bits: float) -> float:
  """What `bits` a parameter are in bytes, of the parameters of open rules."""
  flat = matrix.flatten(params)
  count = 0
  for item in _items(flat, rules):
    for path, layers in item.at.items():
      count += flat[path].size * len(layers) // flat[path].shape[0] if layers else flat[path].size
  return count * bits / 8


def closed(rules: Rules, params: Tree, chosen: Sequence[Option]) -> list[dict[str, Any]]:
  """`rules`, the open ones with the kinds that were chosen: one a kind, where layers differ."""
  at = {(item.rule, item.layer): item.at for item in _items(matrix.flatten(params), rules)}
  found = []
  for number, rule in enumerate(rules):
    own = [option for option in chosen if option.rule == number]
    if [option.layer for option in own] in ([], [None]):
      found.append({**rule, "kind": own[0].scheme.kind} if own else dict(rule))
      continue
    layers: dict[tuple[str, str], list[str]] = {}
    for option in own:
      inside = "|".join(re.escape(p.removeprefix(LAYERS)) for p in at[number, option.layer])
      layers.setdefault((option.scheme.kind, inside), []).append(str(option.layer))
    rest = {key: value for key, value in rule.items() if key != "each"}
    for (kind, inside), numbers in layers.items():
      target = f"{LAYERS}({'|'.join(numbers)})/({inside})"
      found.append({**rest, "target": target, "kind": kind})
  return found

"""Summands of a distillation that compare what goes on inside: hidden states and attention.

B batch, S sequence, T keys, D student's and E teacher's width, H student's and G teacher's heads.

Hidden states are numbered as transformers numbers them: 0 is what the first layer is given, the
number of layers the output of the last norm. Layers are numbered from 0.
"""

from __future__ import annotations

import dataclasses
import zlib
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp

from research.core import config, rng
from research.losses import attention as attention_losses
from research.losses import features as feature_losses
from research.models.watch import Watched

if TYPE_CHECKING:
  from research.objectives.distillation import Lesson

Pair = tuple[int, int]


@dataclasses.dataclass(frozen=True)
class Summand:
  """A comparison of pairs `(student's, teacher's)`, whose mean is what it adds to a token's loss.

  weight: what it is multiplied by.
  compare: `(student, teacher, pair, projection, weights [B, S]) -> the sum over tokens`.
  projection: the shape `[D, E]` of what is learnt for each pair, or None.
  inside: whether it reads attention, or else hidden states.
  """

  name: str
  weight: float
  pairs: tuple[Pair, ...]
  compare: Callable[[Watched, Watched, Pair, Any, jax.Array], jax.Array]
  projection: tuple[int, int] | None
  inside: bool

  def __call__(
    self, student: Watched, teacher: Watched, learnt: Mapping[str, Any], weights: jax.Array
  ) -> jax.Array:
    """The sum over tokens, times their weights, of the mean over pairs."""
    projections = learnt.get("projections", {}).get(self.name, {})
    found = [
      self.compare(student, teacher, pair, projections.get(_key(pair)), weights)
      for pair in self.pairs
    ]
    return sum(found, jnp.zeros(())) / len(found)


def build(
  features: Sequence[Mapping[str, Any]], attention: Sequence[Mapping[str, Any]], lesson: Lesson
) -> tuple[Summand, ...]:
  """The summands that sections `{"name": ..., "weight": ..., "layers": ...}` describe.

  Raises:
    ConfigError: a section is wrong, or there are two of a name.
    ValueError: layers or heads cannot be mapped.
  """
  found = [config.call(_FEATURES, section, lesson=lesson) for section in features]
  found += [config.call(_ATTENTION, section, lesson=lesson) for section in attention]
  names = [summand.name for summand in found]
  for name in names:
    if names.count(name) > 1:
      raise config.ConfigError(f"config.objective has two summands {name!r}; give one its layers")
  return tuple(found)


def initial(summands: Sequence[Summand], seed: int) -> dict[str, Any]:
  """What is learnt beside the student: projections, float32 `[D, E]`, normal over `sqrt(D)`."""
  found: dict[str, Any] = {}
  for summand in summands:
    if summand.projection is None:
      continue
    key = jax.random.fold_in(rng.root(seed, "objective"), zlib.crc32(summand.name.encode()))
    for number, pair in enumerate(summand.pairs):
      drawn = jax.random.normal(jax.random.fold_in(key, number), summand.projection)
      found.setdefault(summand.name, {})[_key(pair)] = drawn * summand.projection[0] ** -0.5
  return {"projections": found} if found else {}


def _key(pair: Pair) -> str:
  return f"{pair[0]}_{pair[1]}"


def _hidden(
  name: str, *, lesson: Lesson, weight: float = 1.0, layers: Sequence[Sequence[int]] | None = None
) -> Summand:
  """Hidden states; by default the student's of every layer, with the teacher's as far along."""
  ours, theirs = lesson.student.config, lesson.teacher.config
  count, other = ours.num_layers, theirs.num_layers
  if layers is None:
    if other < count:
      raise ValueError(
        f"{name}: the teacher's {other} layers are too few for the student's layer {other + 1} of"
        f" {count}; choose pairs in 'layers'"
      )
    layers = [(number, round(number * other / count)) for number in range(1, count + 1)]
  widths = (ours.hidden_size, theirs.hidden_size)

  def compare(student, teacher, pair, projection, weights):
    x, y = student.hidden(pair[0]), teacher.hidden(pair[1])
    if name == "linear_cka":
      return feature_losses.linear_cka(x, y, weights) * weights.sum()
    return jnp.sum(feature_losses.FEATURES[name](x, y, projection) * weights)

  projection = None if name == "linear_cka" or widths[0] == widths[1] else widths
  pairs = _pairs(name, layers, "hidden state", count + 1, other + 1)
  return Summand(name, weight, pairs, compare, projection, inside=False)


def _map(
  name: str,
  *,
  lesson: Lesson,
  weight: float = 1.0,
  layers: Sequence[Sequence[int]] | None = None,
  heads: Sequence[int] | None = None,
) -> Summand:
  """Attention maps; heads: the teacher's for each of the student's, see `map_heads`."""
  ours, theirs = lesson.student.config, lesson.teacher.config
  for whose, shape in (("student", ours), ("teacher", theirs)):
    if shape.positions == "alibi":
      raise ValueError(f"{name}: the {whose}'s scores have a bias by distance, which is not told")
  mapped = partial(attention_losses.map_heads, heads=ours.num_heads, chosen=heads)
  jax.eval_shape(mapped, jax.ShapeDtypeStruct((1, theirs.num_heads, 1, 1), jnp.float32))
  loss = {
    "map_kl": attention_losses.map_kl,
    "score_mean_squared": attention_losses.score_mean_squared,
  }[name]

  def compare(student, teacher, pair, projection, weights):
    del projection
    (x, seen), (y, also) = student.scores(pair[0]), teacher.scores(pair[1])
    return jnp.sum(loss(x, mapped(y), seen & also) * weights)

  pairs = _pairs(name, layers or _last(lesson), "layer", ours.num_layers, theirs.num_layers)
  return Summand(name, weight, pairs, compare, None, inside=True)


def _relation(
  kind: str,
  *,
  lesson: Lesson,
  weight: float = 1.0,
  layers: Sequence[Sequence[int]] | None = None,
  heads: int | None = None,
) -> Summand:
  """Relations of queries, keys or values; heads: R, by default as many as the student has."""
  name = RELATIONS[kind]
  ours, theirs = lesson.student.config, lesson.teacher.config
  counts = [c.num_heads if kind == "queries" else c.num_kv_heads for c in (ours, theirs)]
  parts = counts[0] if heads is None else heads
  widths = counts[0] * ours.head_size, counts[1] * theirs.head_size
  loss = partial(attention_losses.relation_kl, heads=parts)
  x, y = (jax.ShapeDtypeStruct((1, 1, width), jnp.float32) for width in widths)
  jax.eval_shape(loss, x, y, jax.ShapeDtypeStruct((1, 1, 1), bool))

  def compare(student, teacher, pair, projection, weights):
    del projection
    x, seen = student.side_by_side(kind, pair[0])
    y, also = teacher.side_by_side(kind, pair[1])
    return jnp.sum(loss(x, y, seen & also) * weights)

  pairs = _pairs(name, layers or _last(lesson), "layer", ours.num_layers, theirs.num_layers)
  return Summand(name, weight, pairs, compare, None, inside=True)


def _last(lesson: Lesson) -> list[Pair]:
  """Of attention the last layers alone, as MiniLM has it (arXiv:2002.10957)."""
  return [(lesson.student.config.num_layers - 1, lesson.teacher.config.num_layers - 1)]


def _pairs(
  name: str, layers: Sequence[Sequence[int]], what: str, ours: int, theirs: int
) -> tuple[Pair, ...]:
  """`layers` as pairs.

  Raises:
    ValueError: there is none, one is no pair, or one of the models has no such layer.
  """
  if not layers or any(isinstance(pair, int) or len(pair) != 2 for pair in layers):
    raise ValueError(f"{name}: layers are pairs (student's, teacher's), not {layers}")
  for pair in layers:
    for whose, number, count in zip(("student", "teacher"), pair, (ours, theirs), strict=True):
      if not 0 <= number < count:
        raise ValueError(f"{name}: the {whose} has no {what} {number}; it has 0 to {count - 1}")
  pairs = tuple((first, second) for first, second in layers)
  if len(set(pairs)) < len(pairs):
    raise ValueError(f"{name}: a pair is there twice in {layers}")
  return pairs


RELATIONS = {"queries": "query_relation", "keys": "key_relation", "values": "value_relation"}
_FEATURES = {name: partial(_hidden, name) for name in (*feature_losses.FEATURES, "linear_cka")}
_ATTENTION = {name: partial(_map, name) for name in ("map_kl", "score_mean_squared")} | {
  name: partial(_relation, kind) for kind, name in RELATIONS.items()
}

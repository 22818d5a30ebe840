"""One token at a time: the steps that whole batches and streams share.

B rows, V vocabulary.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from research import peft, quant
from research.core import rng
from research.core import tree as trees
from research.generation import checks
from research.generation.samplers import Sampler, Seen
from research.models import Cache, Decoder, EncoderDecoder
from research.models.unrolled import Layers, unroll

Model = Decoder | EncoderDecoder
Kind = TypeVar("Kind", bound=Model)


def prepare(model: Kind, variables: Any, unrolled: bool | None) -> tuple[Kind, Any]:
  """Model and variables in the form in which decoding is fastest, with the same results.

  Args:
    unrolled: an array a layer (`research.models.unrolled`); by default on CPUs. Encoder-decoders
      stay as they are.
  """

  def cast(path, leaf):
    # What a product would cast at every token is cast once; in few bits it is no array.
    whole = re.fullmatch(r".*/(kernel|embedding)(/each/\d+)?", path)
    return leaf.astype(model.dtype) if whole else leaf

  params = quant.hold(variables["params"])  # what trains on a grid, too, is rounded once
  variables = {**variables, "params": trees.map_with_path(cast, params)}
  unrolled = jax.default_backend() == "cpu" if unrolled is None else unrolled
  if unrolled and isinstance(model, Decoder):
    turned: Any = unroll(model, variables)
    return turned
  return model, variables


def led(
  model: Model, variables: Any, prompts: Sequence[Sequence[int]], room: Sequence[int] | int
) -> list[list[int]]:
  """Prompts as the model reads them: after the virtual tokens of its adapters.

  Args:
    room: new tokens, of each prompt or of all.

  Raises:
    ValueError: the model cannot take one of them and as many new tokens.
  """
  lead, before = ahead(variables)
  each = [room] * len(prompts) if isinstance(room, int) else room
  for i, (prompt, most) in enumerate(zip(prompts, each, strict=True)):
    checks.prompt(model, prompt, most, f"prompt {i}", before=before)
  return [[*lead, *prompt] for prompt in prompts]


def ahead(variables: Any) -> tuple[list[int], int]:
  """What adapters put ahead of a document: virtual tokens, and how many positions in all."""
  adapters = variables.get("adapters", {})
  lead = peft.virtual_ids(adapters)
  return lead, len(lead) + peft.offset(adapters)


def slots(variables: Any, which: Sequence[int] | None, prompts: int) -> np.ndarray | None:
  """The slot of each prompt's adapter in the bank that `variables` hold, None without a bank.

  Where `which` is None, a bank may have been told one row, which stands for all.

  Raises:
    ValueError: there is a bank and nobody says which of it acts, or the other way round; or
      `which` has another length, or slots that the bank has not.
  """
  banks = peft.banks(variables.get("adapters", {}))
  if which is None:
    if any(bank.which is None or bank.which.shape[1:] != (1,) for bank in banks):
      raise ValueError("the adapters are a bank; say which of them by Bank.select, of one row")
    return None
  if not banks:
    raise ValueError("which adapter each prompt takes is of a bank, and there is none")
  if len(which) != prompts:
    raise ValueError(f"there are {len(which)} adapters' slots for {prompts} prompts")
  found = np.asarray(which, np.int32)
  if found.size and not -1 <= found.min() <= found.max() < banks[0].slots:
    raise ValueError(f"slots are -1, for no adapter, to {banks[0].slots - 1}; not {list(which)}")
  return found


def route(variables: Any, which: np.ndarray | None, prompts: np.ndarray) -> Any:
  """`variables`, as `prepare` gives them, whose bank is told of these rows of prompts.

  Args:
    which: what `slots` gave; without it `variables` are as they are.
    prompts: the number of each row's prompt, -1 for none.
  """
  if which is None:
    return variables
  rows = np.where(prompts < 0, -1, which[prompts])

  def told(node):
    if not isinstance(node, peft.Banked):
      return node
    if isinstance(node.scale, Layers):
      return node.replace(which=Layers((rows,) * len(node.scale.each)))
    return peft.route(node, rows)

  adapters = jax.tree.map(
    told, variables["adapters"], is_leaf=lambda node: isinstance(node, peft.Banked)
  )
  return {**variables, "adapters": adapters}


def own_prompt(
  model: Model, tokens: jax.Array, positions: jax.Array
) -> tuple[jax.Array, jax.Array]:
  """What a decoder reads before it writes, and where: the prompt, or after a source its start."""
  if isinstance(model, Decoder):
    return tokens, positions
  start = jnp.full((tokens.shape[0], 1), model.config.start_id, jnp.int32)
  return start, jnp.zeros_like(start)


def begin(
  model: Model, variables: Any, tokens: jax.Array, positions: jax.Array
) -> tuple[Cache, jax.Array, jax.Array]:
  """Reads prompts `[B, P]` -> a full cache, logits `[B, V]` and positions `[B]` of what follows.

  To an encoder-decoder they are sources.

  positions: int32 `[B, P]`, -1 at padding, which is on the left.
  """
  own, places = own_prompt(model, tokens, positions)
  if isinstance(model, Decoder):
    cache, source = model.init_cache(*own.shape), {}
  else:
    cache = model.init_cache(*own.shape, source_slots=tokens.shape[1])
    source = {"source_tokens": tokens, "source_segments": (positions >= 0).astype(jnp.int32)}
  cache, logits = advance(model, variables, cache, own, places, **source)
  return cache, logits, places[:, -1] + 1


def advance(
  model: Model,
  variables: Any,
  cache: Cache,
  tokens: jax.Array,
  positions: jax.Array,
  **source: Any,
) -> tuple[Cache, jax.Array]:
  """Puts `tokens [B, S]` into the cache -> the cache, and logits `[B, V]` after the last.

  positions: int32 `[B, S]`, -1 at padding.
  source: what an encoder-decoder's first call reads, see `EncoderDecoder.hidden`.
  """
  hidden: Any
  hidden, cache = model.apply(  # type: ignore[assignment]
    variables, tokens, positions, cache=cache, method="hidden", **source
  )
  logits: Any = model.apply(variables, hidden[:, -1], method="head")
  return cache, logits


def row_keys(seed: int, prompts: jax.Array, samples: jax.Array) -> jax.Array:
  """A random key a row, which knows nothing of the batch it is in.

  Args:
    prompts, samples: int32 `[B]`: the prompt's number, and the sample's among its prompt's.
  """
  root = rng.root(seed, "generation")
  return jax.vmap(lambda i, j: jax.random.fold_in(jax.random.fold_in(root, i), j))(prompts, samples)


def sample_keys(seed: int, prompts: jax.Array, first_sample: jax.Array, samples: int) -> jax.Array:
  """`row_keys` of rows `[R * samples]`, those of a prompt one after the other.

  Args:
    prompts, first_sample: int32 `[R]`: the prompt's number, and that of its first sample.
  """
  number = jnp.repeat(first_sample, samples) + jnp.tile(jnp.arange(samples), len(prompts))
  return row_keys(seed, jnp.repeat(prompts, samples), number)


def draw(
  sampler: Sampler,
  logits: jax.Array,
  keys: jax.Array,
  step: jax.Array | int,
  seen: Seen | None,
) -> tuple[jax.Array, jax.Array, Seen | None]:
  """The `step`-th new token of each row `[B]`, and its log-probability by `logits` themselves.

  Args:
    step: one number, or one a row `[B]`.
    seen: the tokens before it, for a sampler that penalizes; comes back with the new ones.
  """
  steps = jnp.broadcast_to(jnp.asarray(step, jnp.int32), keys.shape)
  token = sampler(logits, jax.vmap(jax.random.fold_in)(keys, steps), seen)
  if seen is not None:
    seen = seen.add(token)
  return token, log_prob(logits, token), seen


def log_prob(logits: jax.Array, tokens: jax.Array) -> jax.Array:
  """Of `tokens [...]` by `logits [..., V]`."""
  best = jnp.max(logits, axis=-1, keepdims=True)
  total = jnp.log(jnp.sum(jnp.exp(logits - best), axis=-1))
  chosen = jnp.take_along_axis(logits, tokens[..., None], axis=-1) - best
  return chosen[..., 0] - total


def is_any(tokens: jax.Array, ids: tuple[int, ...]) -> jax.Array:
  """Whether each of `tokens [...]` is one of `ids`."""
  return jnp.any(tokens[..., None] == jnp.asarray(ids, jnp.int32), axis=-1)

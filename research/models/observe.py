"""Forward passes that watch what projections read.

An observer is a pytree bound at a site, as an adapter is, in a collection of its own that the pass
may change (`research.nn.tap`).
"""

from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any

import jax

from research.core import matrix, tree
from research.models.encoder import Encoder
from research.models.encoder_decoder import EncoderDecoder
from research.nn.tap import OBSERVERS

Tree = Any


def watched(
  model: Any,
  variables: Tree,
  paths: Iterable[str],
  batches: Iterable[Mapping[str, Any]],
  observer: Callable[[tuple[int, ...], int], Any],
) -> dict[str, Any]:
  """What observers have seen of what the kernels at `paths` read over `batches`, padding left out.

  Args:
    model: a decoder or an encoder, with stacks of layers.
    variables: what it takes.
    paths: of kernels of its layers.
    batches: see docs/architecture.md.
    observer: `(stack, inputs)`, the shape of a stack of layers and how many inputs a kernel has,
      makes one that has seen nothing.

  Raises:
    ValueError: the model is an encoder-decoder, or a kernel is none of its layers'.
  """
  if isinstance(model, EncoderDecoder):
    raise ValueError("inputs are measured of decoders and encoders, not of an encoder-decoder")
  flat = matrix.flatten(variables["params"])
  found = {}
  for path in paths:
    if not path.startswith("layers/") or flat[path].ndim != 3:
      raise ValueError(f"inputs are measured at projections of layers, which {path!r} is not")
    found[path] = observer(flat[path].shape[:1], flat[path].shape[1])
  # A loop over the layers compiles fastest, for the few batches there are.
  model = model.clone(unroll=1)
  kinds = tuple({type(node) for node in found.values()})
  for batch in batches:
    ready = {path: seen.expecting(batch["segments"] > 0) for path, seen in found.items()}
    seen = _pass(model, variables, tree.unflatten(ready), dict(batch))
    found = dict(tree.flatten(seen, is_leaf=lambda node: isinstance(node, kinds)))
  return found


@partial(jax.jit, static_argnums=0, donate_argnums=2)
def _pass(model, variables, observers, batch):
  key = "types" if isinstance(model, Encoder) else "prefix"
  _, changed = model.apply(
    {**variables, OBSERVERS: observers},
    batch["tokens"],
    batch["positions"],
    batch["segments"],
    method="hidden",
    mutable=[OBSERVERS],
    **{key: batch.get(key)},
  )
  return changed[OBSERVERS]

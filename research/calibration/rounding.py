"""Rounding a whole model, a layer at a time."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from research.calibration.methods import Method, require_seen
from research.calibration.walk import Walk, require_decoder
from research.core import matrix, tree
from research.core.matrix import is_matrix
from research.io import safetensors
from research.quant import files, policy
from research.quant.mixed import Mixed, is_mixed
from research.quant.policy import LAYERS
from research.quant.qarray import quantize as round_to_nearest

Tree = Any


def quantize(
  model: Any,
  params: Tree,
  rules: policy.Rules,
  method: Method,
  batches: Iterable[Mapping[str, Any]] = (),
  *,
  keep: Path | None = None,
  told: Callable[[int, int], None] = lambda layer, layers: None,
) -> Tree:
  """`params` in few bits; each layer by what it reads from layers that are already.

  What is no projection of a layer (the table of tokens, the head) is rounded to nearest.

  Args:
    model: a decoder; for a method that is not calibrated, any.
    params: finite.
    rules: see `research.quant.schemes`.
    method: of `METHODS`; whichever it is, activations get the ranges that schemes name.
    batches: to calibrate by, see docs/architecture.md.
    keep: a directory for layers that are done; the same call with it goes on after the last one.
    told: called with a layer's number, from 1, and how many there are, when it is done.

  Raises:
    ValueError: as `research.quant.quantize`, or calibration cannot be done or sees too few tokens,
      or `keep` has layers of another call.
  """
  chosen = policy.schemes(rules, params)
  flat = matrix.flatten(params)
  for path in chosen:
    policy.require_finite(path, flat[path])
  inside = {p.removeprefix(LAYERS): s for p, s in chosen.items() if p.startswith(LAYERS)}
  outside = {path: scheme for path, scheme in chosen.items() if not path.startswith(LAYERS)}
  for path, scheme in outside.items():
    policy.require_no_range(path, scheme)
  found = dict(flat)
  own = [scheme for choice in inside.values() for scheme in policy.distinct(choice)]
  calibrated = method.calibrated or any(scheme.is_static for scheme in own)
  if calibrated:  # of other models no path would be inside
    require_decoder(model)
  if not calibrated:
    # Every layer at once: there is nothing that one tells of the next.
    layer = {p.removeprefix(LAYERS): leaf for p, leaf in flat.items() if p.startswith(LAYERS)}
    layers = method(model.config, layer, inside, {})
    found |= {f"{LAYERS}{path}": leaf for path, leaf in layers.items()}
  elif inside:
    batches = list(batches)
    walk = Walk(model, params, batches)
    mark = _mark(model, flat, chosen, method, batches)
    each = [
      matrix.flatten(_layer(walk, policy.of_layer(inside, number), method, keep, mark, told))
      for number in range(model.config.num_layers)
    ]
    for path in each[0]:
      leaves = tuple(layer[path] for layer in each)
      differ = isinstance(inside.get(path), tuple) or is_mixed(flat[f"{LAYERS}{path}"])
      found[f"{LAYERS}{path}"] = Mixed(leaves) if differ else jax.tree.map(_stacked, *leaves)
  for path, scheme in outside.items():
    found[path] = round_to_nearest(flat[path], scheme, policy.axis_of(path))
  return tree.unflatten(found)


def _stacked(*leaves):
  return jnp.stack(leaves)


def _layer(walk, schemes, method, keep, mark, told):
  """The layer ahead in few bits, from `keep` if it is there; the walk is past it afterwards."""
  file = keep and keep / f"layer_{walk.number:03d}.safetensors"
  if file and file.exists():
    params = _read(file, mark)
  else:
    layer = walk.params()
    seen = walk.moments(layer) if method.calibrated and schemes else {}
    _require_tokens(seen, schemes)
    rounded = method(walk.config, matrix.flatten(layer), schemes, seen)
    params = tree.unflatten(_with_ranges(walk, rounded, schemes))
    if file:
      _write(file, params, mark)
  walk.advance(params)
  told(walk.number, walk.config.num_layers)
  return params


def _with_ranges(walk, params, schemes):
  """A layer's parameters, by path, with scales of activations where schemes have one.

  Of what is read in the layer as it is rounded, while rows still have scales of their own.
  """
  static = [path for path, scheme in schemes.items() if scheme.is_static]
  if not static:
    return params
  seen = walk.magnitudes(tree.unflatten(params))
  return params | {
    path: params[path].replace(inputs=require_seen(seen, path).scale(schemes[path]))
    for path in static
  }


def _require_tokens(seen, schemes):
  """Raises ValueError if fewer tokens were seen than a calibrated projection has inputs."""
  for path in schemes:
    if path in seen and seen[path].count < seen[path].total.shape[-1]:
      raise ValueError(
        f"calibration data has {int(seen[path].count):,} tokens, and {path!r}"
        f" {seen[path].total.shape[-1]:,} inputs; give at least as many, better ten times"
      )


def _mark(model, flat, schemes, method, batches):
  """What tells one call from another: the model, parameters' sums, schemes, method and text."""
  sums = {
    path: float(jnp.sum(jnp.abs(leaf.astype(jnp.float32))))
    for path, leaf in flat.items()
    if not is_matrix(leaf)
  }
  text = hashlib.sha256()
  for batch in batches:
    text.update(np.asarray(batch["tokens"]).tobytes())
  how = {path: str(scheme) for path, scheme in schemes.items()}
  of = [str(model.config), str(jnp.dtype(model.dtype))]
  told = json.dumps([of, sums, how, str(method), text.hexdigest()])
  return hashlib.sha256(told.encode()).hexdigest()


def _write(file, params, mark):
  arrays, held = files.to_arrays(params)
  file.parent.mkdir(parents=True, exist_ok=True)
  safetensors.write(file, arrays, {"held": json.dumps(held), "of": mark})


def _read(file, mark):
  told = safetensors.metadata(file)
  if told["of"] != mark:
    raise ValueError(
      f"{file} is of another model, type of activations, rule, method or text; it is in the way"
    )
  return files.from_arrays(safetensors.read(file), json.loads(told["held"]))

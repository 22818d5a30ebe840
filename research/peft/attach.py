"""Binding methods to parameters by rules, and folding them back in."""

import zlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax

from research.core import config, tree
from research.peft import dora, embedding, ia3, lora, vera
from research.peft.adapter import Adapter, sites

Tree = Any

METHODS: dict[str, Callable[..., Adapter]] = {
  "dora": dora.init,
  "embedding_lora": embedding.init,
  "ia3": ia3.init,
  "lora": lora.init,
  "vera": vera.init,
}


def attach(rules: Sequence[Mapping[str, Any]], params: Tree, rng: jax.Array) -> Tree:
  """New adapters for `params`.

  Args:
    rules: mappings with `target`, a regular expression of whole parameter paths, `name`, a
      key of `METHODS`, and the method's own arguments. A path takes the first rule that
      matches it.
    params: the base's parameters; their shapes are enough for methods that do not begin from the
      numbers.
    rng: each adapter's key is folded from it by path, so that it does not depend on the
      other rules.

  Raises:
    ValueError: a rule matches nothing, names no known method, or has an unknown argument.
  """
  flat = tree.flatten(params)
  found = tree.first_match([(rule["target"], rule) for rule in rules], flat)
  adapters = {}
  for path, rule in found.items():
    section = {key: value for key, value in rule.items() if key != "target"}
    key = jax.random.fold_in(rng, zlib.crc32(path.encode()))
    adapters[path] = config.call(METHODS, section, path=path, kernel=flat[path], rng=key)
  return tree.unflatten(adapters)


def merge(params: Tree, adapters: Tree) -> Tree:
  """`params` with every adapter folded into its kernel, and the bias beside it.

  Raises:
    ValueError: an adapter's method cannot be merged, or its site is not in `params`, or is a table
      that is the head, too, which the adapter leaves as it is.
  """
  flat = tree.flatten(params)
  for path, adapter in sites(adapters):
    if path not in flat:
      raise ValueError(f"adapter at {path!r} has no parameter{tree.nearest(path, flat)}")
    if path == embedding.PATH and "lm_head/kernel" not in flat:
      raise ValueError(f"{path!r} is the head, too: what changes it as a table cannot be merged")
    flat[path] = adapter.merge(flat[path])
    bias = f"{path.rpartition('/')[0]}/bias"
    if bias in flat:
      flat[bias] = adapter.merge_bias(flat[bias])
  return tree.unflatten(flat)

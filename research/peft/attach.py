"""Binding methods to parameters and other sites by rules, and folding them back in."""

import zlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax

from research.core import config, tree
from research.peft import (
  adalora,
  bottleneck,
  dora,
  embedding,
  ia3,
  lora,
  p_tuning,
  prefix,
  prompt,
  tokens,
  vera,
)
from research.peft.adapter import Adapter, sites

Tree = Any

# Methods that change the product of a kernel; `init(path, kernel, rng, ...) -> adapter`.
METHODS: dict[str, Callable[..., Adapter]] = {
  "adalora": adalora.init,
  "dora": dora.init,
  "embedding_lora": embedding.init,
  "ia3": ia3.init,
  "lora": lora.init,
  "vera": vera.init,
}

# Methods that act elsewhere in the model: where they can, and
# `init(path, params, rng, tokenizer, ...) -> {path: adapter}` for one of these sites.
SITES: dict[str, Callable[[Mapping[str, Any]], list[str]]] = {
  "bottleneck": bottleneck.sites,
  "prefix": prefix.sites,
  "prompt": prompt.sites,
  "p_tuning": prompt.sites,
  "trainable_tokens": tokens.sites,
}
AT_SITES: dict[str, Callable[..., dict[str, Adapter]]] = {
  "bottleneck": bottleneck.init,
  "prefix": prefix.init,
  "prompt": prompt.init,
  "p_tuning": p_tuning.init,
  "trainable_tokens": tokens.init,
}


def attach(
  rules: Sequence[Mapping[str, Any]], params: Tree, rng: jax.Array, tokenizer: Any = None
) -> Tree:
  """New adapters for `params`.

  Args:
    rules: mappings with `target`, a regular expression of whole paths, `name`, a key of `METHODS`
      or of `SITES`, and the method's own arguments. The paths are those of parameters, or the
      method's sites, of which it takes all without a target. A path takes the first rule that
      matches it.
    params: the base's parameters; their shapes are enough for methods that do not begin from the
      numbers.
    rng: each adapter's key is folded from it by path, so that it does not depend on the
      other rules.
    tokenizer: the model's, for methods that begin with a text.

  Raises:
    ValueError: a rule matches nothing, names no known method, or has an unknown argument; or the
      model has no place for the method.
  """
  flat = tree.flatten(params)
  at_kernels = [rule for rule in rules if rule.get("name") not in SITES]
  adapters: dict[str, Adapter] = {}
  for path, rule in tree.first_match([(_target(rule), rule) for rule in at_kernels], flat).items():
    adapters[path] = _call(rule, path, rng, kernel=flat[path])
  for rule in rules:
    if rule.get("name") in SITES:
      possible = SITES[rule["name"]](flat)
      for path in tree.first_match([(rule.get("target", ".*"), rule)], possible):
        if path not in adapters:
          adapters |= _call(rule, path, rng, params=flat, tokenizer=tokenizer)
  return tree.unflatten(adapters)


def _target(rule: Mapping[str, Any]) -> str:
  if "target" not in rule:
    name = rule.get("name")
    raise ValueError(
      f"a rule of {name!r} has no target, a regular expression of parameters' paths"
      f"{tree.nearest(str(name), SITES)}"
    )
  return rule["target"]


def _call(rule, path, rng, **extra):
  section = {key: value for key, value in rule.items() if key != "target"}
  key = jax.random.fold_in(rng, zlib.crc32(path.encode()))
  return config.call({**METHODS, **AT_SITES}, section, path=path, rng=key, **extra)


def merge(params: Tree, adapters: Tree) -> Tree:
  """`params` with every adapter folded into its kernel, and the bias beside it.

  Raises:
    ValueError: an adapter's method cannot be merged, or its site is not in `params`, or is a table
      that is the head, too, which the adapter leaves as it is.
  """
  require_mergeable(adapters)
  flat = tree.flatten(params)
  for path, adapter in sites(adapters):
    if path not in flat:
      raise ValueError(f"adapter at {path!r} has no parameter{tree.nearest(path, flat)}")
    if isinstance(adapter, embedding.EmbeddingLoRA) and "lm_head/kernel" not in flat:
      raise ValueError(f"{path!r} is the head, too: what changes it as a table cannot be merged")
    flat[path] = adapter.merge(flat[path])
    bias = f"{path.rpartition('/')[0]}/bias"
    if bias in flat:
      flat[bias] = adapter.merge_bias(flat[bias])
  return tree.unflatten(flat)


def require_mergeable(adapters: Tree) -> None:
  """Raises ValueError if there is an adapter whose method is no change of a kernel."""
  for path, adapter in sites(adapters):
    if type(adapter).merge is Adapter.merge:
      raise ValueError(
        f"the {type(adapter).__name__} at {path!r} is no change of a kernel and cannot be merged"
      )

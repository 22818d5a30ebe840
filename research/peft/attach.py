"""Binding methods to parameters and other sites by rules."""

import re
import zlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax

from research.core import config, matrix, tree
from research.peft import (
  adalora,
  banked,
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
from research.peft.adapter import Adapter

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
      matches it. A rule of LoRA with `each_task`, names, makes one an name, in a bank's slots.
    params: the base's parameters; their shapes are enough for methods that do not begin from the
      numbers.
    rng: each adapter's key is folded from it by path, so that it does not depend on the
      other rules.
    tokenizer: the model's, for methods that begin with a text.

  Raises:
    ValueError: a rule matches nothing, names no known method, or has an unknown argument; or the
      model has no place for the method.
  """
  flat = matrix.flatten(params)
  at_kernels = [rule for rule in rules if rule.get("name") not in SITES]
  adapters: dict[str, Adapter] = {}
  for path, rule in tree.first_match([(_target(rule), rule) for rule in at_kernels], flat).items():
    adapters[path] = _at_kernel(rule, path, rng, flat[path])
  for rule in rules:
    if rule.get("name") in SITES:
      possible = SITES[rule["name"]](flat)
      for path in tree.first_match([(rule.get("target", ".*"), rule)], possible):
        if path not in adapters:
          adapters |= _call(rule, path, rng, params=flat, tokenizer=tokenizer)
  return tree.unflatten(adapters)


def tasks(rules: Sequence[Mapping[str, Any]]) -> tuple[str, ...]:
  """The names that `each_task` has in all rules that have it, which are those of the slots.

  Raises:
    ValueError: rules have different names, or a name is twice there or could name no directory.
  """
  found = {tuple(rule["each_task"]) for rule in rules if "each_task" in rule}
  if len(found) > 1:
    told = " and ".join(str(list(names)) for names in sorted(found))
    raise ValueError(f"rules have adapters for each_task of {told}; a run has one list of tasks")
  names = found.pop() if found else ()
  if len(set(names)) != len(names):
    raise ValueError(f"each_task names a task twice: {', '.join(names)}")
  for name in names:
    if not re.fullmatch(r"\w[\w.-]*", name):
      raise ValueError(f"each_task names {name!r}, of which no directory can be made")
  return names


def _at_kernel(rule, path, rng, kernel):
  if "each_task" not in rule:
    return _call(rule, path, rng, kernel=kernel)
  own = {key: value for key, value in rule.items() if key != "each_task"}
  if own.get("name") != "lora" or own.get("start"):
    raise ValueError(f"each_task is for plain lora, not for {dict(own)}")
  banked.require_place(path)
  keys = [jax.random.fold_in(rng, zlib.crc32(name.encode())) for name in tasks([rule])]
  return banked.together([_call(own, path, key, kernel=kernel) for key in keys])


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

"""One run of the comparison: a method at a rate, from a seed.

The task is the quickstart's: sums and products of small numbers, scored by the last number of the
answer. Of the held-out problems the first `VALIDATION` choose a method's rate, and the others tell
its accuracy.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from configs import base, quickstart

VALIDATION = 100
TEST = 200

_ALL = "layers/.*_proj/kernel"
_ATTENTION = "layers/attention/._proj/kernel"
_TEXT = {"init": "text", "text": "Work the problem out, and say the answer as a number."}
_LORA_RATES = (3e-4, 1e-3, 3e-3)


@dataclasses.dataclass(frozen=True)
class Method:
  """What trains, and the rates that it is tried at.

  rule: of adapters; empty: none.
  """

  rates: tuple[float, ...]
  rule: dict[str, Any] = dataclasses.field(default_factory=dict)
  trainable: tuple[str, ...] = ("adapters",)


def _lora(rank: int, alpha: float, target: str = _ALL, **more: Any) -> Method:
  rule = {"name": "lora", "target": target, "rank": rank, "alpha": alpha}
  return Method(_LORA_RATES, rule | more)


METHODS = {
  "full": Method((3e-5, 1e-4, 3e-4), trainable=("all",)),
  "lora r16": _lora(16, 32),
  "lora r4": _lora(4, 8),
  "lora r64": _lora(64, 128),
  "lora r16 alpha 8": _lora(16, 8),
  "lora r16 alpha 128": _lora(16, 128),
  "lora r16 attention": _lora(16, 32, _ATTENTION),
  "pissa r16": _lora(16, 16, start="pissa"),
  "dora r16": Method(_LORA_RATES, {"name": "dora", "target": _ALL, "rank": 16, "alpha": 32}),
  "vera r256": Method((3e-3, 1e-2, 3e-2), {"name": "vera", "target": _ALL, "rank": 256}),
  "ia3": Method(
    (3e-3, 1e-2, 3e-2),
    {"name": "ia3", "target": r"layers/(attention/[kv]|mlp/down)_proj/kernel"},
  ),
  "bottleneck 32": Method(_LORA_RATES, {"name": "bottleneck", "size": 32}),
  "prefix 20": Method((3e-3, 1e-2, 3e-2), {"name": "prefix", "tokens": 20}),
  "prefix 20 text": Method((1e-3, 3e-3, 1e-2), {"name": "prefix", "tokens": 20, **_TEXT}),
  "prompt 20": Method((1e-2, 3e-2, 1e-1), {"name": "prompt", "tokens": 20, "init": "vocabulary"}),
  "norms": Method((1e-3, 3e-3, 1e-2), trainable=(".*norm/scale",)),
}


def get_config(method: str, rate: float, seed: int, directory: str, steps: int):
  """The run of `method` at `rate` from `seed`, without evaluations: `run` does them."""
  chosen = METHODS[method]
  config = quickstart.get_config().unlock()
  config.directory = directory
  config.seed = seed
  config.adapters = (chosen.rule,) if chosen.rule else ()
  config.trainable = chosen.trainable
  config.optimizer.learning_rate = rate
  config.train.steps = steps
  config.eval = base.get_config().eval
  config.log.tensorboard = False
  return config.lock()


def evaluated(text: str) -> list[dict[str, Any]]:
  """The evaluators' sections: held-out problems, the same ones for all runs, and a file's text."""
  data = {"name": "reasoning_gym", "tasks": quickstart.TASKS, "split": "test", "seed": 1}
  data["size"] = VALIDATION + TEST
  return [
    {"name": "verifiable", "data": data, "max_new_tokens": 64},
    {"name": "perplexity", "data": {"name": "text", "path": text}, "label": "text"},
  ]

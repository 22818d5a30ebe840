"""SmolLM2-135M-Instruct answers sums and products by strategies of `research.reasoning`.

  python -m research.evaluate --config=experiments/reasoning/config.py:vote

measures one of `STRATEGIES` on held-out problems; `:vote/train` on problems for training, from
whose right answers rows to train on are made. README.md has the question and other commands.
"""

from typing import Any

from configs import base
from configs.quickstart import TASKS
from research.core import tree

MODEL = "smollm2-135m-instruct"
SIZE = 200  # problems
NEW_TOKENS = 96  # of an answer
BATCH_SIZE = 64
DRAWN = {"name": "sample", "temperature": 0.7}
SHOTS = "experiments/reasoning/shots.jsonl"  # of problems that nobody asks

# How problems are put: by exemplars (Wei et al.), or by an instruction alone (Kojima et al.).
CHAIN = {
  "name": "chain_of_thought",
  "instruction": "",
  "shots": {"name": "jsonl", "path": SHOTS},
}
ZERO_SHOT = {"name": "chain_of_thought"}

VOTE = "vote"  # whose first answers are the votes of fewer
VOTES = (1, 2, 4, 8, 16)

STATE = {
  "name": "verdict",
  "question": "Are the steps so far right? Answer Yes or No.",
}
TREE = {
  "name": "tree_of_thoughts",
  "separator": ". ",
  "thought_tokens": 32,
  "proposals": 3,
  "judge": STATE,
}

STRATEGIES: dict[str, dict[str, Any]] = {
  "plain": {"prompting": {"name": "plain"}, "strategy": {"name": "plain"}},
  "zero-shot chain": {"prompting": ZERO_SHOT, "strategy": {"name": "plain"}},
  "chain": {"strategy": {"name": "plain"}},
  VOTE: {"strategy": {"name": "self_consistency", "samples": max(VOTES)}, "sampler": DRAWN},
  "vote of 8 by likelihood": {
    "strategy": {"name": "self_consistency", "samples": 8, "weights": {"name": "likelihood"}},
    "sampler": DRAWN,
  },
  "best of 8 by likelihood": {
    "strategy": {"name": "best_of_n", "samples": 8, "judge": {"name": "likelihood"}},
    "sampler": DRAWN,
  },
  "best of 8 by verdict": {
    "strategy": {"name": "best_of_n", "samples": 8, "judge": {"name": "verdict"}},
    "sampler": DRAWN,
  },
  "breadth-first tree": {
    "strategy": {**TREE, "search": {"name": "breadth", "beam": 2, "depth": 3}},
    "sampler": DRAWN,
  },
  "depth-first tree": {
    "strategy": {**TREE, "search": {"name": "depth", "threshold": 0.5, "depth": 3}},
    "sampler": DRAWN,
  },
  "critique": {"strategy": {"name": "critique", "rounds": 2}},
}


def evaluator(name: str, size: int = SIZE, split: str = "test") -> dict[str, Any]:
  """The section of a strategy.

  Raises:
    ValueError: there is no strategy of that name, or no such split.
  """
  if name not in STRATEGIES:
    raise ValueError(
      f"there is no strategy {name!r}{tree.nearest(name, STRATEGIES)}; "
      f"there are {', '.join(STRATEGIES)}"
    )
  return {
    "name": "verifiable",
    "label": name,
    "data": {"name": "reasoning_gym", "tasks": TASKS, "size": size, "seed": 1, "split": split},
    "prompting": CHAIN,
    "max_new_tokens": NEW_TOKENS,
    "batch_size": BATCH_SIZE,
    **STRATEGIES[name],
  }


def get_config(argument: str = VOTE):
  """The measurement of `NAME`, or of `NAME/train`."""
  name, _, split = argument.partition("/")
  config = base.get_config()
  config.model.source = MODEL
  config.eval.evaluators = (evaluator(name, split=split or "test"),)
  return config

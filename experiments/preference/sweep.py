"""Losses of preferences, and DPO's beta, by seeds: see README.md."""

import launch
from experiments.preference.config import DATA, LENGTH, held_out

BETAS = (0.03, 0.3, 1.0)  # beside DPO's 0.1


def get_sweep():
  """The losses, DPO at other betas and a reward model, three seeds each; see README.md."""
  betas = {f"dpo_beta_{beta}": _pairs(name="sigmoid", beta=beta) for beta in BETAS}
  return launch.Sweep(
    config=f"experiments/preference/config.py:{DATA}",
    points={**losses(DATA), **betas, "reward_model": reward_model(DATA)},
    metrics=(
      "eval/arithmetic/accuracy",
      "eval/pairs/accuracy",
      "eval/pairs/accuracy_per_token",
      "eval/pairs/kl",
      "eval/arithmetic/length",
    ),
    seeds=(0, 1, 2),
    baseline="dpo",
  )


def losses(data):
  """A point a loss, all on the pairs in the directory `data`."""
  return {
    "dpo": {},
    "ipo": _pairs(name="ipo", beta=0.1),
    "kto": {
      "objective": {"name": "kto", "beta": 0.1, "reference": "base"},
      "data.train.source.path": f"{data}/judged.jsonl",
      "train.batch_size": 8,  # answers: those of four pairs
    },
    "orpo": _pairs(name="orpo", beta=0.1),
    "simpo": _pairs(name="simpo", beta=2.0, gamma=0.5),
    "supervised": _pairs(name="sft"),
  }


def _pairs(**loss):
  return {"objective": {"name": "preference", "loss": loss}}


def reward_model(data):
  """The point of a reward model, whose accuracy on held-out pairs is told where others' is."""
  return {
    "model.head": {"name": "score"},
    "objective": {"name": "reward"},
    "eval.evaluators": (
      {"name": "reward", "label": "pairs", "data": held_out(data), "length": LENGTH},
    ),
  }

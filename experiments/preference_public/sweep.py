"""The losses of `experiments/preference` on public pairs: see its README.md."""

import launch
from experiments.preference import sweep

DATA = "runs/data/preference_public"


def get_sweep():
  """The losses and a reward model, three seeds each."""
  return launch.Sweep(
    config=f"experiments/preference/config.py:{DATA}",
    points={**sweep.losses(DATA), "reward_model": sweep.reward_model(DATA)},
    metrics=sweep.get_sweep().metrics,
    seeds=(0, 1, 2),
    baseline="dpo",
  )

"""Ranks by alphas by targets by rates: see README.md."""

import launch

TARGETS = {"attention": "layers/attention/._proj/kernel", "all": "layers/.*_proj/kernel"}
RANKS = (4, 16, 64)
ALPHAS = (1, 4)  # times the rank
RATES = (3e-4, 1e-3, 3e-3)


def name_of(target: str, rank: int, times: int) -> str:
  """An adapter's in the sweep's table."""
  return f"{target} rank {rank} alpha {times * rank}"


def _lora(target: str, rank: int, times: int):
  return ({"target": target, "name": "lora", "rank": rank, "alpha": times * rank},)


def get_sweep():
  """Twelve adapters, each at three rates, so that none is told at a rate that suits another."""
  return launch.Sweep(
    config="experiments/learning_rates/config.py",
    grid={
      "adapters": {
        name_of(name, rank, times): _lora(target, rank, times)
        for name, target in TARGETS.items()
        for rank in RANKS
        for times in ALPHAS
      },
      "optimizer.learning_rate": RATES,
    },
    metrics=("eval/held_out/loss",),
    seeds=(0, 1),
    x="optimizer.learning_rate",
  )

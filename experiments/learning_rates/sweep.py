"""Rates by schedules by seeds: see README.md."""

import launch


def get_sweep():
  """Three rates by three schedules, three seeds each."""
  return launch.Sweep(
    config="experiments/learning_rates/config.py",
    grid={
      "optimizer.learning_rate": (1e-3, 4e-3, 1.6e-2),
      "optimizer.schedule": {
        "constant": {"name": "constant"},
        "warmup_cosine": {"name": "warmup_cosine", "warmup_fraction": 0.1},
        "three_phase": {"name": "three_phase"},
      },
    },
    metrics=("eval/held_out/loss", "skipped_updates"),
    seeds=(0, 1, 2),
    baseline={"optimizer.schedule": "constant"},
    x="optimizer.learning_rate",
  )

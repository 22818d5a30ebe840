"""Ways of distillation by seeds: see README.md."""

import launch
from experiments.distillation.config import DATA, STEPS, TEACHER

LOGITS = {"name": "distillation", "divergence": {"name": "forward_kl"}}
ASSISTANT_LAYERS = 22  # between the teacher's 30 and the student's 15


def get_sweep():
  """Nine ways of teaching, three seeds each; see README.md."""
  taught = {"teacher.source": TEACHER}
  return launch.Sweep(
    config="experiments/distillation/config.py",
    points={
      "cross_entropy": {},
      "logits": {**taught, "objective": LOGITS},
      "mixed": {**taught, "objective": {**LOGITS, "share": 0.5}},
      "annealed": {
        **taught,
        "objective": {**LOGITS, "temperature": {"name": "linear", "start": 4.0}},
      },
      "features": {**taught, "objective": {**LOGITS, "features": ({"name": "normalized"},)}},
      "attention": {
        **taught,
        "objective": {**LOGITS, "attention": ({"name": "map_kl"}, {"name": "value_relation"})},
      },
      "sequence": {"data.train.source.path": f"{DATA}/written.jsonl"},
      "on_policy": {
        **taught,
        "objective": LOGITS,
        "train.on_policy": {"share": 0.25, "max_new_tokens": 128},
      },
      "progressive": {**taught, "objective": LOGITS, "stages": _stages()},
    },
    metrics=("eval/perplexity/nll_per_token", "eval/perplexity/perplexity", "useful_tokens"),
    seeds=(0, 1, 2),
    baseline="cross_entropy",
  )


def _stages():
  """An assistant, and then the student, whom the assistant teaches: half the steps each."""
  assistant = {"name": "sliced", "layers": ASSISTANT_LAYERS}
  return (
    {"name": "assistant", "model.student": assistant, "train.steps": STEPS // 2},
    {
      "name": "student",
      "model.student": {"name": "sliced", "layers": 15},
      "teacher.source": "stages/assistant",
      "train.steps": STEPS - STEPS // 2,
    },
  )

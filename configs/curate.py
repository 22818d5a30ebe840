"""Problems in prose without repetitions, without what a test asks, and without what is unlikely.

python -m research.curate --config=configs/curate.py
"""

from configs import base_curate

TASKS = ("family_relationships", "syllogism", "leg_counting", "time_intervals", "number_sorting")


def get_config():
  config = base_curate.get_config()
  # Problems that need no file, so that this runs anywhere; put your own rows here,
  # {"name": "jsonl", "path": "mine.jsonl"}.
  problems = {"name": "reasoning_gym", "tasks": tuple({"name": name} for name in TASKS)}
  config.source = {**problems, "size": 600}
  config.steps = (
    {"name": "exact_duplicates"},
    {"name": "near_duplicates"},
    # A problem is shorter than the pages that Gopher's rules are for.
    {"name": "quality", "min_words": 5, "min_stop_words": 1, "min_alphabetic": None},
    {
      "name": "contamination",
      "evaluation": ({**problems, "size": 200, "seed": 1, "split": "test"},),
      # Problems of a task are told in the same words.
      "common": 5,
    },
    {"name": "length", "maximum": 2000},
    {"name": "perplexity", "model": "smollm2-135m-instruct", "length": 256},
    {"name": "column", "column": "perplexity", "percentiles": (0, 90)},
  )
  config.output = "runs/curate/problems.jsonl"
  return config

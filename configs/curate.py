"""Problems that were put together without care: each once, none of the test's, none too unlikely.

  python -m research.curate --config=configs/curate.py

What is left is runs/curate/problems.jsonl, with a perplexity a row, by which a curriculum can go.

On two CPU cores, shared with other work: 1 min 53 s, nearly all of it SmolLM2's. Of 1,300 problems
942 are left: 191 were there before, 117 are a whole problem of the test's, and of the other 992 the
twentieth with the highest perplexity goes, above 52. Of the test's 200 problems 105 were found, the
100 that had slipped in among them. The other 5 show what words cannot tell: without its sign
"4 - 0" is "4 + 0".
"""

from configs import base_curate, quickstart


def get_config():
  config = base_curate.get_config()
  # The quickstart's problems, drawn twice, and some of its test's among them. They need no file, so
  # that this runs anywhere; put your own rows here, {"name": "jsonl", "path": "mine.jsonl"}.
  problems = {"name": "reasoning_gym", "tasks": quickstart.TASKS}
  test = {**problems, "size": 200, "seed": 1, "split": "test"}
  drawn = ({**problems, "size": 600}, {**problems, "size": 600, "seed": 2}, {**test, "size": 100})
  config.source = {"name": "mixture", "sources": drawn}
  config.steps = (
    {"name": "exact_duplicates"},
    # A problem is shorter than the pages that Gopher's rules are for.
    {
      "name": "quality",
      "min_words": 5,
      "min_stop_words": 1,
      "min_mean_length": None,
      "min_alphabetic": None,
    },
    # Problems are told in the same words: whole ones are looked for.
    {
      "name": "contamination",
      "evaluation": (test,),
      "n": 1000,
    },
    {"name": "length", "maximum": 2000},
    {"name": "perplexity", "model": "smollm2-135m-instruct"},
    {"name": "column", "column": "perplexity", "percentiles": (0, 95)},
  )
  config.output = "runs/curate/problems.jsonl"
  return config

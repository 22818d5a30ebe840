"""The defaults of `research.curate`, told once, and what its steps are.

A file starts from these and tells its differences, as those of runs do from configs/base.py. The
config is locked: a key that is not here is an error.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
  """Everything but what is curated, how, and where it goes."""
  config = ConfigDict()
  # As in configs/base.py.
  config.compilation_cache = ""

  # What research.data.sources reads: {"name": "jsonl", "path": ...} and the like; rows of any kind.
  # A row's texts (text, prompt, messages and the other columns of research.data.texts) are looked
  # at together; personal data are looked for in all that it holds.
  config.source = ConfigDict()

  # What is done, in this order: sections with the name of a step of research.curation.STEPS, which
  # explain their keys.
  #   {"name": "exact_duplicates"}
  #   {"name": "near_duplicates", "threshold": 0.8, "n": 5, "best": ""}         MinHash
  #   {"name": "quality", "min_words": 50, ...}, {"name": "repetition", ...}    Gopher's rules
  #   {"name": "language", "keep": ("en",), "probability": 0.5}
  #   {"name": "personal_data", "action": "mask"}
  #   {"name": "word_list", "path": "words.txt", "most": 0}
  #   {"name": "contamination", "evaluation": ({source}, ...), "n": 13}
  #   {"name": "length", "minimum": 1, "maximum": 2000, "unit": "characters"}
  #   {"name": "perplexity", "model": "smollm2-135m-instruct"}                  adds a column
  #   {"name": "classifier", "model": "MODEL", "label": "toxic", "most": 0.5}   or "least"
  #   {"name": "column", "column": "perplexity", "percentiles": (0, 60)}        goes by one
  # A rule that is None is left out. Cheap steps first: what they take away costs nothing later.
  config.steps = ()

  # A file NAME.jsonl.
  config.output = ""
  # How many examples of each rule the table shows; the report has five.
  config.examples = 1

  config.lock()
  return config

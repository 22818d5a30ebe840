"""Curation: which rows of a source are worth training on, step by step, and why others are not."""

from research.curation.classifier import Classifier
from research.curation.contamination import Contamination
from research.curation.duplicates import ExactDuplicates, NearDuplicates
from research.curation.language import Language
from research.curation.limits import Column, Length, WordList
from research.curation.perplexity import Perplexity
from research.curation.personal import PersonalData
from research.curation.quality import Quality
from research.curation.repetition import Repetition
from research.curation.run import Report, curate, table
from research.curation.step import Step

# What a section of `config.steps` may be called; its other keys are the step's fields.
STEPS: dict[str, type[Step]] = {
  "exact_duplicates": ExactDuplicates,
  "near_duplicates": NearDuplicates,
  "quality": Quality,
  "repetition": Repetition,
  "language": Language,
  "personal_data": PersonalData,
  "word_list": WordList,
  "contamination": Contamination,
  "perplexity": Perplexity,
  "classifier": Classifier,
  "column": Column,
  "length": Length,
}

__all__ = ["STEPS", "Report", "Step", "curate", "table"]

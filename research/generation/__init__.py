"""Text from a model: samplers, batches of prompts in one compiled loop, and streams."""

from research.generation.beam import beam_search
from research.generation.continuous import Request, serve
from research.generation.contrastive import contrastive_search
from research.generation.draft import Draft, drop_layers
from research.generation.engine import Completion, generate
from research.generation.judge import Judgement, judge
from research.generation.samplers import SAMPLERS, Sampler
from research.generation.score import Choice, choose, score
from research.generation.speculative import Speculation, speculate
from research.generation.stop import StopStrings
from research.generation.stream import Stream

__all__ = [
  "SAMPLERS",
  "Choice",
  "Completion",
  "Draft",
  "Judgement",
  "Request",
  "Sampler",
  "Speculation",
  "StopStrings",
  "Stream",
  "beam_search",
  "choose",
  "contrastive_search",
  "drop_layers",
  "generate",
  "judge",
  "score",
  "serve",
  "speculate",
]

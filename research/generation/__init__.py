"""Text from a model: samplers, batches of prompts in one compiled loop, and streams."""

from research.generation.beam import beam_search
from research.generation.continuous import Request, serve
from research.generation.engine import Completion, generate
from research.generation.samplers import SAMPLERS, Sampler
from research.generation.score import Choice, choose, score
from research.generation.stop import StopStrings
from research.generation.stream import Stream

__all__ = [
  "SAMPLERS",
  "Choice",
  "Completion",
  "Request",
  "Sampler",
  "StopStrings",
  "Stream",
  "beam_search",
  "choose",
  "generate",
  "score",
  "serve",
]

"""Whole models, their configs, and the checkpoints of the families they come from."""

from research.models.config import DecoderConfig
from research.models.decoder import Cache, Decoder
from research.models.encoder_decoder import CrossCache, EncoderDecoder
from research.models.encoder_decoder_config import EncoderDecoderConfig
from research.models.initialize import initialize
from research.models.load import build, load, save

__all__ = [
  "Cache",
  "CrossCache",
  "Decoder",
  "DecoderConfig",
  "EncoderDecoder",
  "EncoderDecoderConfig",
  "build",
  "initialize",
  "load",
  "save",
]

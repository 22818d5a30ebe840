"""Whole models, their configs, and the checkpoints of the families they come from."""

from research.models.cache import Cache
from research.models.config import DecoderConfig, EncoderConfig
from research.models.decoder import Decoder
from research.models.embeddings import embed
from research.models.encoder import Encoder
from research.models.encoder_decoder import CrossCache, EncoderDecoder
from research.models.encoder_decoder_config import EncoderDecoderConfig
from research.models.formats import export
from research.models.initialize import initialize
from research.models.load import build, invent, load, save, save_quantized
from research.models.observe import watched
from research.models.save_gguf import save_gguf
from research.models.stretch import stretched

__all__ = [
  "Cache",
  "CrossCache",
  "Decoder",
  "DecoderConfig",
  "Encoder",
  "EncoderConfig",
  "EncoderDecoder",
  "EncoderDecoderConfig",
  "build",
  "embed",
  "export",
  "initialize",
  "invent",
  "load",
  "save",
  "save_gguf",
  "save_quantized",
  "stretched",
  "watched",
]

"""Models in and out: Hugging Face directories, GGUF files, named models."""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from research.core import tree
from research.data.tokenizer import Tokenizer
from research.io import gguf, safetensors
from research.models import families, named, quantized, scored
from research.models.config import DecoderConfig, EncoderConfig, StackConfig
from research.models.decoder import Decoder
from research.models.encoder import Encoder
from research.models.encoder_decoder import EncoderDecoder
from research.models.encoder_decoder_config import EncoderDecoderConfig
from research.models.families import weights
from research.models.initialize import initialize

Tree = Any
Model = Decoder | Encoder | EncoderDecoder

# The kind of model that a kind of config describes.
MODELS: dict[type[StackConfig], type[Any]] = {
  DecoderConfig: Decoder,
  EncoderConfig: Encoder,
  EncoderDecoderConfig: EncoderDecoder,
}


def load(source: str | Path, *, dtype: Any = jnp.float32, param_dtype: Any = None, **options):
  """`(model, params, tokenizer)` of a checkpoint.

  Args:
    source: a Hugging Face directory, a GGUF file, or a name of `research.models.named`.
    dtype: the type of activations and of products' operands.
    param_dtype: the type of parameters, by default `dtype`.
    options: further fields of the model (`remat`, `unroll`).

  Kernels that a directory holds in few bits are `QArray`s, or `Mixed`s where layers differ; those
  of a GGUF file are arrays.

  Raises:
    ValueError: the architecture or the way of quantization is unknown, or tensors are missing, left
      over or misshapen.
    FileNotFoundError: there is no such file, directory or name.
  """
  path = _path(source)
  param_dtype = np.dtype(dtype if param_dtype is None else param_dtype)
  opened = _open_directory(path) if path.is_dir() else _open_gguf(path)
  config, table, tensors, ignore, tokenizer = opened
  model = MODELS[type(config)](config, dtype=dtype, **options)
  shapes = _shapes(model)
  held: dict[str, Any] = {}
  if settings := _quantization(path):
    held, table, tensors = quantized.read(settings, table, tensors, shapes, param_dtype)
    shapes = {key: shape for key, shape in shapes.items() if key not in held}
  flat = weights.load(table, tensors, shapes, dtype=param_dtype, ignore=ignore)
  arrays = {key: jnp.asarray(value) for key, value in flat.items()}
  return model, tree.unflatten(arrays | held), tokenizer


def invent(source: str | Path, *, dtype: Any = jnp.float32, param_dtype: Any = None, **options):
  """`load` with random numbers, and without a tokenizer: only the shape of the source is read.

  Under `jax.eval_shape` it costs nothing, whatever the size.

  Args:
    source: a Hugging Face directory, of which `config.json` is enough, a GGUF file, or a name of
      `research.models.named`.
    dtype, param_dtype, options: see `load`.

  Raises:
    ValueError: as `load`; or the directory's parameters are in few bits.
    FileNotFoundError: as `load`.
  """
  path = Path(source)
  if not path.exists() and str(source) in named.SHAPES:
    config: StackConfig = read_config(named.SHAPES[str(source)])
  else:
    path = _path(source)
    if _quantization(path):
      raise ValueError(f"{source} is in few bits; plan from the model that it was made of")
    config = _read_directory(path) if path.is_dir() else _open_gguf(path)[0]
  model = MODELS[type(config)](config, dtype=dtype, **options)
  params = initialize(model, jax.random.key(0))
  kind = dtype if param_dtype is None else param_dtype
  return model, jax.tree.map(lambda leaf: leaf.astype(kind), params), None


def _path(source):
  """Where a source lies, brought here if it is a name."""
  path = Path(source)
  if not path.exists():
    if path.suffix or "/" in str(source):
      raise FileNotFoundError(f"no model at {str(source)!r}")
    path = named.fetch(str(source))
  return path


def save(
  directory: str | Path, model: Model, params: Tree, tokenizer: Tokenizer | None = None
) -> None:
  """Writes a Hugging Face directory that `transformers` loads."""
  names = families.find(model.config.family).weights(model.config)
  tensors = weights.save(scored.table(model.config, names), jax.device_get(params))
  dtype = str(params["embed"]["embedding"].dtype)
  _write_directory(Path(directory), model, tensors, tokenizer, {"dtype": dtype})


def save_quantized(
  directory: str | Path,
  model: Model,
  params: Tree,
  tokenizer: Tokenizer | None = None,
  *,
  method: str = quantized.OURS,
  dtype: str = "float32",
) -> None:
  """Writes a Hugging Face directory of parameters of which some are in few bits.

  Args and errors: see `quantized.write`.
  """
  tensors, settings, header = quantized.write(model.config, params, method, dtype)
  more = {"dtype": dtype, "quantization_config": settings}
  _write_directory(Path(directory), model, tensors, tokenizer, more, header)


def _write_directory(directory, model, tensors, tokenizer, more, header=None):
  directory.mkdir(parents=True, exist_ok=True)
  config = families.find(model.config.family).write_config(model.config)
  config = scored.written(model.config, config) | more
  config["torch_dtype"] = config["dtype"]
  if tokenizer is not None:
    eos = list(tokenizer.eos_ids)
    pad = config.get("pad_token_id")  # which a family may tell itself, where positions depend on it
    config |= {
      "bos_token_id": tokenizer.bos_id,
      "eos_token_id": eos[0] if len(eos) == 1 else eos or None,
      "pad_token_id": tokenizer.pad_id if pad is None else pad,
    }
    tokenizer.save(directory)
  safetensors.write_sharded(directory, tensors, header=header)
  (directory / "config.json").write_text(json.dumps(config, indent=2) + "\n")


def build(hf_config: Mapping[str, Any], *, dtype: Any = jnp.float32, **options) -> Model:
  """A model of the shape that a Hugging Face `config.json` describes, without weights."""
  config = read_config(hf_config)
  return MODELS[type(config)](config, dtype=dtype, **options)


def read_config(hf_config: Mapping[str, Any]) -> StackConfig:
  """The model's shape from the contents of a `config.json`.

  Raises:
    ValueError: no family has that `model_type`, or it lacks a key.
  """
  if "model_type" not in hf_config:
    raise ValueError("config.json has no model_type")
  family = families.find(hf_config["model_type"])
  try:
    return family.read_config(hf_config)
  except KeyError as error:
    raise ValueError(f"config.json of a {family.NAME} lacks {error.args[0]!r}") from None


def _shapes(model: Model) -> dict[str, tuple[int, ...]]:
  token = jax.ShapeDtypeStruct((1, 1), jnp.int32)
  variables = jax.eval_shape(model.init, jax.random.key(0), token)
  return {path: leaf.shape for path, leaf in tree.flatten(variables["params"]).items()}


def _read_directory(path):
  """The config of a directory's model."""
  file = path / "config.json"
  if not file.exists():
    raise FileNotFoundError(f"{path} has no config.json; a model directory needs one")
  hf = json.loads(file.read_text())
  return scored.read(read_config(hf), hf)


def _open_directory(path):
  config = _read_directory(path)
  family = families.find(config.family)
  tensors = safetensors.read(path)
  for pattern, name in getattr(family, "RENAMED", ()):
    tensors = {re.sub(pattern, name, key): tensors[key] for key in tensors}
  prefix = f"{family.weights(config)[0].name.split('.')[0]}."
  ours = _quantization(path).get("quant_method") == quantized.OURS  # whose names are our paths
  if not ours and not any(name.startswith(prefix) for name in tensors):
    # Checkpoints of the bare backbone leave the prefix out.
    tensors = {prefix + name: tensors[name] for name in tensors}
  if hasattr(family, "complete"):
    config = family.complete(config, tensors)
  ignore = list(family.IGNORED)
  if isinstance(config, DecoderConfig) and (config.tied_head or config.head):
    ignore.append(r"lm_head\.weight")  # a copy of the embedding, which some tools store
  # Weights alone are a model too; whatever needs text says so when the tokenizer is None.
  has_tokenizer = any(path.glob("tokenizer*"))
  tokenizer = Tokenizer.from_directory(path) if has_tokenizer else None
  return config, scored.table(config, family.weights(config)), tensors, ignore, tokenizer


def _quantization(path):
  """The `quantization_config` of a directory, empty where it has none."""
  if not path.is_dir():
    return {}
  return json.loads((path / "config.json").read_text()).get("quantization_config") or {}


def _open_gguf(path):
  file = gguf.read(path)
  architecture = file.metadata.get("general.architecture", "")
  family = families.find(architecture, families.GGUF_FAMILIES)
  config = family.gguf_config(file.metadata, file.tensors)
  tokenizer = Tokenizer.from_gguf(file.metadata)
  return config, family.gguf_weights(config), file.tensors, family.IGNORED, tokenizer

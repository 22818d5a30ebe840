"""What stands on a model: of encoders, predictions of hidden tokens, and classes of documents and
tokens; of decoders a score.

B batch, S sequence, D model, V vocabulary, C classes.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from research.core import config as config_lib
from research.core import tree
from research.models.config import DecoderConfig, EncoderConfig
from research.nn.linear import Linear
from research.nn.mlp import ACTIVATIONS
from research.nn.norm import Norm

if TYPE_CHECKING:
  from research.models.decoder import Decoder
  from research.models.encoder import Encoder

Tree = Any


class MaskedHead(nn.Module):
  """Logits of the vocabulary: a projection, a norm, the embeddings' table and a bias.

  Devlin et al. 2018 (BERT), as released.
  """

  config: EncoderConfig

  @nn.compact
  def __call__(self, hidden: jax.Array, embed: Any) -> jax.Array:
    """`hidden [..., D]` -> float32 `[..., V]`; embed: the `Embed` of the tokens."""
    c = self.config
    x = Linear(c.hidden_size, use_bias=True, name="transform")(hidden)
    x = Norm(c.norm, c.norm_eps, name="norm")(ACTIVATIONS[c.activation](x))
    bias = self.param("bias", nn.initializers.zeros, (c.vocab_size,))
    return embed.attend(x) + bias.astype(jnp.float32)


class Classifier(nn.Module):
  """Logits of classes; a "sequence" head's are meant at a document's first token.

  With an activation, `tanh` or one of `ACTIVATIONS`, there is a projection before the last one.
  """

  classes: int
  activation: str | None = None

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """`[..., D]` -> float32 `[..., C]`."""
    if self.activation is not None:
      x = Linear(x.shape[-1], use_bias=True, name="dense")(x)
      x = jnp.tanh(x) if self.activation == "tanh" else ACTIVATIONS[self.activation](x)
    return Linear(self.classes, use_bias=True, name="out")(x).astype(jnp.float32)


def masked() -> dict[str, Any]:
  """Predicts hidden tokens."""
  return {"head": "masked", "labels": (), "pooling": "first"}


def sequence(labels: Any, pooling: str = "first") -> dict[str, Any]:
  """Tells the class of a document.

  Args:
    labels: names of the classes, or their number.
    pooling: see `EncoderConfig`. transformers' classes of these families know "first" alone: of a
      model with "mean" they read the weights and not the pooling.
  """
  return {"head": "sequence", "labels": _names(labels), "pooling": pooling}


def token(labels: Any) -> dict[str, Any]:
  """Tells the class of each token. labels: names of the classes, or their number."""
  return {"head": "token", "labels": _names(labels), "pooling": "first"}


SECTIONS: dict[str, Callable[..., dict[str, Any]]] = {
  "masked": masked,
  "sequence": sequence,
  "token": token,
}


def score() -> dict[str, Any]:
  """A number for a text, at its last token, of a decoder."""
  return {"head": "score"}


def attach(
  model: Encoder | Decoder, params: Tree, section: Mapping[str, Any], rng: jax.Array
) -> tuple[Encoder | Decoder, Tree, frozenset[str]]:
  """The encoder or decoder with the head that a config's section asks for.

  A head that it has and that is like it is kept; another is left out, and what is missing is
  initialized as if in pre-training.

  Args:
    section: `{"name": "sequence", "labels": ["negative", "positive"]}`, a key of `SECTIONS` and
      that one's arguments; for decoders `{"name": "score"}`.

  Returns:
    The model, its parameters, and the paths of those that are new.

  Raises:
    ValueError: the section is wrong, or the model is neither.
  """
  if isinstance(model.config, DecoderConfig):
    if section.get("name") in SECTIONS:
      raise ValueError(
        f"the head {section['name']!r} is for encoders, not a {model.config.family}, which takes"
        " 'score'"
      )
    wanted = config_lib.call({"score": score}, section)
  elif isinstance(model.config, EncoderConfig):
    wanted = config_lib.call(SECTIONS, section)
    wanted["pooler"] = wanted["head"] == "sequence" and model.config.dense is None
  else:
    raise ValueError(f"no head {section.get('name')!r} goes on a {model.config.family}")
  changed = model.clone(config=dataclasses.replace(model.config, **wanted))
  token = jnp.zeros((1, 1), jnp.int32)
  have = tree.flatten(params)
  shapes = tree.flatten(jax.eval_shape(changed.init, rng, token)["params"])
  fits = {path for path in shapes if path in have and have[path].shape == shapes[path].shape}
  if model.config.head != wanted["head"]:
    fits = {path for path in fits if not path.startswith("classifier/out/")}
  fresh = frozenset(shapes) - fits

  def new(key: jax.Array) -> dict[str, jax.Array]:
    made = tree.flatten(changed.init(key, token)["params"])
    return {path: made[path] for path in fresh}

  have |= jax.jit(new)(rng)
  return changed, tree.unflatten({path: have[path] for path in shapes}), fresh


def _names(labels: Any) -> tuple[str, ...]:
  """Names as they are; those of a number are as transformers makes them.

  Raises:
    ValueError: there are fewer than two classes, or two of one name.
  """
  names = [f"LABEL_{i}" for i in range(labels)] if isinstance(labels, int) else list(labels)
  if len(set(names)) < max(2, len(names)):
    raise ValueError(f"labels are two or more different classes, not {labels!r}")
  return tuple(names)

"""P-tuning: virtual tokens whose embeddings a network makes while they train.

Liu et al. 2021, arXiv:2103.10385, with the network of PEFT's prompt encoder: three layers and ReLU
in place of the paper's LSTM, for which PEFT's authors recommend it.

T virtual tokens, D model, H hidden size.
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct

from research.core.products import matmul
from research.peft.adapter import Adapter
from research.peft.prefix import linear
from research.peft.prompt import Prompt


@struct.dataclass
class EncodedPrompt(Prompt):
  """The virtual tokens that a network has made."""


@struct.dataclass
class PromptEncoder(Adapter):
  """The network and what it reads; what is kept is the prompt."""

  embedding: jax.Array  # [T, D]
  kernel_in: jax.Array  # [D, H]
  bias_in: jax.Array  # [H]
  kernel_inner: jax.Array  # [H, H]
  bias_inner: jax.Array  # [H]
  kernel_out: jax.Array  # [H, D]
  bias_out: jax.Array  # [D]

  def __call__(self, value, **_):
    raise TypeError("a PromptEncoder acts as the prompt that peft.materialize makes of it")

  def materialize(self) -> EncodedPrompt:
    """The last layer of the network for each virtual token, in float32."""
    x = jax.nn.relu(matmul(self.embedding, self.kernel_in, (1, 0)) + self.bias_in)
    x = jax.nn.relu(matmul(x, self.kernel_inner, (1, 0)) + self.bias_inner)
    return EncodedPrompt(matmul(x, self.kernel_out, (1, 0)) + self.bias_out)

  @property
  def virtual_tokens(self) -> int:
    return self.embedding.shape[0]


def init(
  path: str,
  params: Mapping[str, Any],
  rng: jax.Array,
  tokenizer: Any,
  *,
  tokens: int = 20,
  hidden_size: int = 0,
  encoder: str = "mlp",
) -> dict[str, Adapter]:
  """A random network, as PEFT's.

  Args:
    path: `SITE`.
    params: the base's, flat.
    rng: key of the numbers.
    tokenizer: not used.
    tokens: T.
    hidden_size: H, by default D.
    encoder: "mlp".

  Raises:
    ValueError: T is below 1, or the encoder is another one.
  """
  del tokenizer
  if tokens < 1 or hidden_size < 0:
    raise ValueError(f"P-tuning has 1 virtual token or more, not {tokens}, and hidden_size >= 0")
  if encoder != "mlp":
    raise ValueError(f"P-tuning's encoder is 'mlp' here; there is no {encoder!r}")
  size = params["embed/embedding"].shape[1]
  hidden = hidden_size or size
  noise, *rngs = jax.random.split(rng, 4)
  layers = zip(rngs, (size, hidden, hidden), (hidden, hidden, size), strict=True)
  parts = [part for key, own, out in layers for part in linear(key, own, out)]
  embedding = jax.random.normal(noise, (tokens, size), jnp.float32)
  return {path: PromptEncoder(embedding, *parts)}

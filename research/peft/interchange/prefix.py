"""Prefix tuning as PEFT writes it: `prompt_embeddings [T, L*2*N*K]`.

Sizes other than T are left for PEFT to take from the model's config: heads are told by no
parameter's shape.
"""

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np

from research.core import matrix, tree
from research.peft import prefix
from research.peft.adapter import materialize, sites
from research.peft.interchange import virtual
from research.peft.interchange.modules import Modules

Tree = Any


def write(adapters: Tree, modules: Modules) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
  """The config's keys and the tensor of a prefix, of one in training as what it is made into."""
  del modules
  (found,) = [a for _, a in sites(materialize(adapters)) if isinstance(a, prefix.Prefix)]
  flat = np.asarray(prefix.to_flat(found), np.float32)
  return {**virtual.config(len(flat)), "prefix_projection": False}, {virtual.TENSOR: flat}


def read(
  config: Mapping[str, Any], tensors: dict[str, np.ndarray], params: Tree, modules: Modules
) -> Tree:
  """The prefix of a config and its tensors, for the base `params`.

  Raises:
    ValueError: the config asks for what we cannot honour, or the tensor does not fit `params`.
  """
  del modules
  flat = matrix.flatten(params)
  (site,) = prefix.sites(flat)
  layers, _, size = flat["layers/attention/k_proj/kernel"].shape
  shape = f"the keys and values of {layers} layers, each of {size}"
  found = virtual.tensor(config, tensors, layers * 2 * size, shape)
  return tree.unflatten(
    {
      site: prefix.from_flat(jnp.asarray(found), layers),
      prefix.OFFSET: prefix.Offset(found.shape[0]),
    }
  )

"""Prompt tuning and P-tuning as PEFT writes them: `prompt_embeddings [T, D]`.

Of P-tuning that is what the network has made; the network itself is in no file.
"""

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np

from research.core import matrix, tree
from research.peft.adapter import materialize, sites
from research.peft.interchange import virtual
from research.peft.interchange.modules import Modules
from research.peft.p_tuning import EncodedPrompt
from research.peft.prompt import SITE, Prompt
from research.peft.prompt import sites as places

Tree = Any


def write(adapters: Tree, modules: Modules) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
  """The config's keys and the tensor of virtual tokens."""
  del modules
  ((_, found),) = sites(materialize(adapters))
  flat = np.asarray(found.embedding, np.float32)  # type: ignore[attr-defined]
  if isinstance(found, EncodedPrompt):
    how = {"encoder_reparameterization_type": "MLP"}
  else:
    how = {"prompt_tuning_init": "RANDOM"}
  config = {**virtual.config(len(flat)), "token_dim": flat.shape[1], **how}
  return config, {virtual.TENSOR: flat}


def read(
  config: Mapping[str, Any], tensors: dict[str, np.ndarray], params: Tree, modules: Modules
) -> Tree:
  """The virtual tokens of a config and its tensors, for the base `params`.

  Raises:
    ValueError: the config asks for what we cannot honour, or the tensor does not fit `params`.
  """
  del modules
  flat = matrix.flatten(params)
  places(flat)
  size = flat["embed/embedding"].shape[1]
  found = jnp.asarray(virtual.tensor(config, tensors, size, f"embeddings of {size}"))
  kind = EncodedPrompt if config["peft_type"] == "P_TUNING" else Prompt
  return tree.unflatten({SITE: kind(found)})

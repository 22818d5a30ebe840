"""A tiny llama that is known by its config.json alone, and configs that plan it."""

import json
from importlib import util

import pytest

from configs import base
from research.core.config import Config

SHAPE = {
  "model_type": "llama",
  "vocab_size": 512,
  "hidden_size": 256,
  "intermediate_size": 512,
  "num_hidden_layers": 3,
  "num_attention_heads": 2,
  "num_key_value_heads": 1,
  "max_position_embeddings": 512,
  "rms_norm_eps": 1e-5,
  "rope_theta": 10000.0,
  "tie_word_embeddings": False,
}
LORA = ({"target": "layers/.*_proj/kernel", "name": "lora", "rank": 4},)


@pytest.fixture(scope="session")
def model_directory(tmp_path_factory):
  directory = tmp_path_factory.mktemp("model")
  (directory / "config.json").write_text(json.dumps(SHAPE))
  return directory


@pytest.fixture(scope="session")
def config_of(model_directory):
  """`(changes by dotted key) -> Config` of LoRA on the tiny model."""

  def make(changes=None):
    config = base.get_config().unlock()
    config.model.source = str(model_directory)
    config.adapters = LORA
    config.data.train.source = {"name": "jsonl", "path": "nowhere.jsonl"}
    config.data.train.length = 256
    config.train.batch_size = 8
    config.mesh = {"data": 1, "fsdp": -1, "tensor": 1, "sequence": 1}
    for key, value in (changes or {}).items():
      *parents, name = key.split(".")
      section = config
      for parent in parents:
        section = section[parent]
      section[name] = value
    return Config(config.to_dict())

  return make


@pytest.fixture(scope="session")
def devices():
  """`(topology) -> devices`."""
  if util.find_spec("libtpu") is None:
    pytest.skip("libtpu is not installed: pip install 'research[plan]'")
  from research.planning import topology

  return topology.devices

"""GGUF files of tiny random models, with llama.cpp's names and conventions, against the models."""

import gguf
import jax
import numpy as np
import pytest
import torch
import transformers

from research import models

ARCHITECTURES = {
  "llama": ("Llama", {}),
  "qwen2": ("Qwen2", {}),
  "qwen3": ("Qwen3", {"head_dim": 12, "tie_word_embeddings": True}),
  "gemma2": (
    "Gemma2",
    {"head_dim": 12, "sliding_window": 5, "query_pre_attn_scalar": 12}
    | {"attn_logit_softcapping": 4.0, "final_logit_softcapping": 6.0},
  ),
  "gemma3": (
    "Gemma3Text",
    {"head_dim": 12, "sliding_window": 5, "query_pre_attn_scalar": 12, "num_hidden_layers": 7}
    | {
      "rope_parameters": {
        "full_attention": {"rope_type": "linear", "rope_theta": 1e6, "factor": 8.0},
        "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
      }
    },
  ),
}


def _model(family, changes):
  shape = {
    "vocab_size": 97,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "rms_norm_eps": 1e-5,
    "pad_token_id": 0,
    "attn_implementation": "eager",
  }
  torch.manual_seed(0)
  config = getattr(transformers, f"{family}Config")(**shape | changes)
  theirs = getattr(transformers, f"{family.removesuffix('Text')}ForCausalLM")(config).eval()
  for parameter in theirs.parameters():
    torch.nn.init.normal_(parameter, std=0.2)
  return theirs


def _write(path, architecture, theirs):
  """As llama.cpp's converter does."""
  c = theirs.config
  gemma = architecture.startswith("gemma")
  writer = gguf.GGUFWriter(path, architecture)
  writer.add_block_count(c.num_hidden_layers)
  writer.add_context_length(c.max_position_embeddings)
  writer.add_embedding_length(c.hidden_size)
  writer.add_feed_forward_length(c.intermediate_size)
  writer.add_head_count(c.num_attention_heads)
  writer.add_head_count_kv(c.num_key_value_heads)
  writer.add_layer_norm_rms_eps(c.rms_norm_eps)
  if architecture == "llama":
    writer.add_rope_dimension_count(c.hidden_size // c.num_attention_heads)
  if gemma or architecture == "qwen3":
    writer.add_key_length(c.head_dim)
    writer.add_value_length(c.head_dim)
  if gemma:
    writer.add_sliding_window(c.sliding_window)
  if architecture == "gemma2":
    writer.add_attn_logit_softcapping(c.attn_logit_softcapping)
    writer.add_final_logit_softcapping(c.final_logit_softcapping)
  if architecture == "gemma3":
    rope = c.rope_parameters["full_attention"]
    writer.add_rope_freq_base(rope["rope_theta"])
    writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
    writer.add_rope_scaling_factor(rope["factor"])
  else:
    writer.add_rope_freq_base(c.rope_parameters["rope_theta"])
  writer.add_tokenizer_model("gpt2")
  writer.add_token_list(["a", "b", "ab", *(f"<{i}>" for i in range(c.vocab_size - 3))])
  writer.add_token_merges(["a b"])

  names = {name: number for number, name in gguf.MODEL_ARCH_NAMES.items()}
  names = gguf.get_tensor_name_map(names[architecture], c.num_hidden_layers)
  for name, parameter in theirs.named_parameters():
    value = parameter.detach().numpy()
    if architecture == "llama" and name.endswith(("q_proj.weight", "k_proj.weight")):
      heads = c.num_attention_heads if "q_proj" in name else c.num_key_value_heads
      halves = value.reshape(heads, 2, -1, value.shape[-1])
      value = halves.swapaxes(1, 2).reshape(value.shape)
    if gemma and name.endswith("norm.weight"):
      value = value + 1
    writer.add_tensor(names.get_name(name, (".weight", ".bias")), np.ascontiguousarray(value))
  writer.write_header_to_file()
  writer.write_kv_data_to_file()
  writer.write_tensors_to_file()
  writer.close()


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_logits_agree(tmp_path, architecture):
  theirs = _model(*ARCHITECTURES[architecture])
  path = tmp_path / "x.gguf"
  _write(path, architecture, theirs)
  model, params, _ = models.load(path)
  tokens = np.random.default_rng(0).integers(0, 97, (2, 16)).astype(np.int32)
  with torch.no_grad():
    expected = theirs(torch.tensor(tokens.astype(np.int64))).logits.numpy()
  ours = jax.jit(model.apply)({"params": params}, tokens)
  np.testing.assert_allclose(ours, expected, atol=1e-4)

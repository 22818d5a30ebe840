"""Writes what is beside it: adapters by the package `adapters`, and the logits of models with them.

It needs a transformers of another version than ours; so what it made is kept here.

  pip install adapters==1.3.0 torch
  python tests/peft/adapterhub/make.py
"""

from pathlib import Path

import adapters
import numpy as np
import safetensors.torch
import torch
import transformers
from adapters import BnConfig

HERE = Path(__file__).parent
LLAMA = transformers.LlamaConfig(
  vocab_size=32,
  hidden_size=16,
  intermediate_size=24,
  num_hidden_layers=2,
  num_attention_heads=2,
  max_position_embeddings=32,
)
GPT2 = transformers.GPT2Config(vocab_size=32, n_embd=16, n_layer=2, n_head=2, n_positions=32)
COMMON = {"ln_after": False, "reduction_factor": 4}
CASES = {
  "houlsby": {"mh_adapter": True, "non_linearity": "swish", "original_ln_before": False},
  "pfeiffer": {"mh_adapter": False, "non_linearity": "relu", "original_ln_before": True},
  "normed": {"mh_adapter": True, "non_linearity": "gelu", "original_ln_before": True}
  | {"ln_before": True, "scaling": 2.0},
  "parallel": {"mh_adapter": False, "non_linearity": "tanh", "original_ln_before": False}
  | {"is_parallel": True, "scaling": 4.0},
}


def fill(tensors, scale):
  """Numbers that a test can make again: by the order of the names."""
  for number, name in enumerate(sorted(tensors)):
    values = np.random.default_rng(number).normal(size=tuple(tensors[name].shape)) * scale
    tensors[name].data.copy_(torch.tensor(values, dtype=torch.float32))


def main():
  """Every case of every family."""
  for family, config in (("llama", LLAMA), ("gpt2", GPT2)):
    for case, told in CASES.items():
      model = transformers.AutoModelForCausalLM.from_config(config)
      base = dict(model.named_parameters())
      fill(base, 0.3)
      model.eval()
      tokens = torch.tensor([[3, 1, 4, 1, 5, 9, 2, 6]])
      with torch.no_grad():
        plain = model(tokens).logits
      adapters.init(model)
      model.add_adapter("adapter", config=BnConfig(output_adapter=True, **COMMON, **told))
      model.set_active_adapters("adapter")
      fill({n: p for n, p in model.named_parameters() if ".adapters." in n}, 0.5)
      directory = HERE / f"{family}_{case}"
      # Not as safetensors, since the package cannot for a norm, which it has under two names.
      model.save_adapter(str(directory), "adapter", with_head=False, use_safetensors=False)
      saved = torch.load(directory / "pytorch_adapter.bin")
      whole = {name: value.clone() for name, value in saved.items()}
      safetensors.torch.save_file(whole, directory / "adapter.safetensors")
      for file in directory.glob("*.bin"):
        file.unlink()
      (directory / "head_config.json").unlink(missing_ok=True)
      with torch.no_grad():
        logits = model(tokens).logits
      assert (logits - plain).abs().max() > 0.1  # they act
      np.save(directory / "logits.npy", logits.numpy())


if __name__ == "__main__":
  main()

"""Rewrites a llama GGUF file as a Hugging Face directory: weights, tokenizer, chat template."""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument("gguf", type=Path)
  parser.add_argument("directory", type=Path)
  parser.add_argument("--dtype", choices=("bfloat16", "float32"), required=True)
  args = parser.parse_args()
  source = {"pretrained_model_name_or_path": args.gguf.parent, "gguf_file": args.gguf.name}
  # Unless told otherwise, transformers may keep the weights in the file's blocks.
  model = AutoModelForCausalLM.from_pretrained(
    **source, dtype=getattr(torch, args.dtype), quantization_config=GgufConfig(dequantize=True)
  )
  model.save_pretrained(args.directory)
  AutoTokenizer.from_pretrained(**source).save_pretrained(args.directory)


if __name__ == "__main__":
  main()

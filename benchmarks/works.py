"""The benchmarks: what each is, who takes part in it, and for how many steps."""

from __future__ import annotations

import dataclasses
from typing import Literal

from benchmarks.workloads import STEP_BATCH, STEP_TOKENS


@dataclasses.dataclass(frozen=True)
class Side:
  """One worker of a benchmark.

  environment: a peer environment, or None for the interpreter that runs the benchmarks.
  model: what it loads: SmolLM2 as `gguf` or as a Hugging Face directory in that type, or the
    directory of MiniLM, `encoder`.
  """

  name: str
  module: str
  arguments: tuple[str, ...]
  environment: str | None
  model: Literal["gguf", "bfloat16", "float32", "encoder"]
  warmup: int
  steps: int


@dataclasses.dataclass(frozen=True)
class Work:
  """The same work for our side and every peer.

  compares_methods: the sides train different parameters, and that is the point.
  devices: what all its sides can run on, of `worker.DEVICES`.
  """

  name: str
  title: str
  ours: Side
  peers: tuple[Side, ...] = ()
  needs_gsm8k: bool = False
  compares_methods: bool = False
  devices: tuple[str, ...] = ("cpu",)


def _ours(
  module: str,
  *arguments: str,
  warmup: int = 2,
  steps: int = 8,
  name: str = "ours",
  model: Literal["gguf", "encoder"] = "gguf",
) -> Side:
  """Our own side; by another name ours in another way, as the peer of what is measured."""
  return Side(name, f"benchmarks.{module}", arguments, None, model, warmup, steps)


def _peer(
  name: str,
  module: str,
  *arguments: str,
  environment: str = "torch",
  model: Literal["bfloat16", "float32", "encoder"] = "bfloat16",
  warmup: int = 2,
  steps: int = 8,
) -> Side:
  return Side(name, f"benchmarks.peers.{module}", arguments, environment, model, warmup, steps)


def _lora_step(
  name: str, rows: int, length: int, *more: Side, devices: tuple[str, ...] = ("cpu",)
) -> Work:
  """The step of LoRA beside PEFT's, plain and compiled, and `more` peers."""
  shape = (f"--rows={rows}", f"--length={length}")
  return Work(
    name,
    f"LoRA step, rank 16, {rows}x{length} tokens",
    _ours("ours_train", "lora_step", *shape),
    (
      _peer("torch", "lora_transformers", *shape),
      _peer("compile", "lora_transformers", "--compile", *shape, warmup=3),
      *more,
    ),
    devices=devices,
  )


def _generation(name: str, batch: int, dtype: Literal["bfloat16", "float32"]) -> Work:
  """Generation beside that of transformers in `dtype`, which is its faster one at that batch."""
  rows = f"--batch={batch}"
  peer = _peer(
    "torch", "generate_transformers", rows, f"--dtype={dtype}", model=dtype, warmup=1, steps=3
  )
  return Work(
    name,
    f"generation, batch {batch}, 64 + 128 tokens",
    _ours("ours_generate", rows, warmup=1, steps=3),
    (peer,),
    devices=("cpu", "gpu"),
  )


WORKS = {
  work.name: work
  for work in (
    _lora_step(
      "lora_step",
      STEP_BATCH,
      STEP_TOKENS,
      _peer("tunix", "lora_tunix", environment="tunix", model="float32", steps=4),
    ),
    _lora_step("lora_step_large", 16, 1024, devices=("gpu",)),
    Work(
      "sft",
      "fine-tuning on GSM8K, useful tokens",
      _ours("ours_train", "sft"),
      (
        _peer("trl", "sft_trl", "--layout=padded", environment="trl"),
        _peer("trl_grouped", "sft_trl", "--layout=grouped", environment="trl"),
        _peer("trl_padding_free", "sft_trl", "--layout=padding_free", environment="trl"),
      ),
      needs_gsm8k=True,
    ),
    Work(
      "dpo_step",
      "DPO step of LoRA, rank 16, 4 pairs of 256 tokens",
      _ours("ours_train", "dpo_step"),
      (_peer("trl", "dpo_trl", environment="trl"),),
    ),
    Work(
      "dpo_kept",
      "DPO step of LoRA, rank 16, 4 pairs of 256 tokens, kept references",
      _ours("ours_train", "dpo_step", "--kept"),
      (
        # Beside the peer's step with a reference, too.
        _peer("trl", "dpo_trl", environment="trl"),
        _peer("trl_kept", "dpo_trl", "--kept", environment="trl"),
      ),
    ),
    _generation("generation", 32, "bfloat16"),
    _generation("generation_eight", 8, "bfloat16"),
    _generation("generation_one", 1, "float32"),
    Work(
      "continuous",
      "a queue of unequal requests, 16 rows",
      _ours("ours_queue", "--rows=continuous", warmup=1, steps=1),
      (_ours("ours_queue", "--rows=static", name="static", warmup=1, steps=1),),
    ),
    Work(
      "speculative",
      "generation with a draft of some of its layers, batch 1",
      _ours("ours_speculative", "--draft", warmup=1, steps=3),
      (_ours("ours_speculative", name="plain", warmup=1, steps=3),),
    ),
    Work(
      "harness",
      "lm-evaluation-harness, 100 multiple choices",
      _ours("ours_harness", warmup=1, steps=2),
      (_peer("hf", "harness_hf", environment="harness", warmup=1, steps=2),),
    ),
    Work(
      "encode",
      "sentence embeddings of MiniLM, 256 texts",
      _ours("ours_encode", model="encoder"),
      (_peer("torch", "encoder", "encode", model="encoder"),),
    ),
    Work(
      "encoder_step",
      "LoRA step of MiniLM, rank 16, 32x128 tokens",
      _ours("ours_train", "encoder_step", model="encoder"),
      (_peer("torch", "encoder", "step", model="encoder"),),
    ),
    Work(
      "methods",
      "a LoRA step beside other methods'",
      _ours("ours_train", "lora_step", steps=6),
      tuple(
        _ours("ours_train", "lora_step", f"--method={name}", name=name, steps=6)
        for name in ("bare", "dora", "ia3", "norms", "prompt", "prefix")
      ),
      compares_methods=True,
    ),
    Work(
      "distillation_step",
      "distillation of 15 of 30 layers, 4x256 tokens",
      _ours("ours_train", "distillation_step", steps=6),
      (_ours("ours_train", "distillation_step", "--teacher=apart", name="apart", steps=6),),
    ),
    Work(
      "distillation_kept",
      "the same from kept logits",
      _ours("ours_train", "distillation_step", "--teacher=kept", steps=6),
      (_ours("ours_train", "distillation_step", "--teacher=none", name="alone", steps=6),),
    ),
    Work(
      "int8_step",
      "a LoRA step on a base of int8 products",
      _ours("ours_train", "lora_step", "--method=int8", steps=6),
      (
        _ours("ours_train", "lora_step", name="bfloat16", steps=6),
        _ours("ours_train", "lora_step", "--method=int8_forward", name="forward", steps=6),
      ),
    ),
    Work(
      "w8a8_forward",
      "forward pass in W8A8, 4x512 tokens",
      _ours("ours_forward", "--quantize=int8_forward"),
      (
        _ours("ours_forward", name="bfloat16"),
        _ours("ours_forward", "--quantize=int8_outliers", name="outliers"),
      ),
    ),
    Work(
      "methods_peft",
      "PEFT's LoRA step beside its DoRA's",
      _peer("ours", "lora_transformers", steps=6),
      (_peer("peft_dora", "lora_transformers", "--dora", steps=6),),
      compares_methods=True,
    ),
    Work(
      "input",
      "the data pipeline alone, GSM8K",
      _ours("ours_input", warmup=0, steps=800),  # several windows, and tokenizing the first
      (_ours("ours_train", "sft", name="step", steps=6),),
      needs_gsm8k=True,
      compares_methods=True,
    ),
    Work(
      "depth",
      "the LoRA step of 120 layers, one loop",
      _ours("ours_depth", "--layers=120", warmup=0, steps=1),
      (_ours("ours_depth", "--layers=30", name="layers_30", warmup=0, steps=1),),
      compares_methods=True,
    ),
    Work(
      "checkpoint",
      "how long the loop waits for a checkpoint of 1.6 GB",
      _ours("ours_checkpoint", warmup=1, steps=3),
    ),
    Work(
      "startup",
      "start to the end of the first step, second run",
      _ours("startup", warmup=1, steps=1),
    ),
  )
}

PEERS = tuple(dict.fromkeys(peer.name for work in WORKS.values() for peer in work.peers))

"""The benchmarks: who takes part in each, for how many steps, and the bars."""

from __future__ import annotations

import dataclasses
from typing import Literal

from benchmarks.workloads import STEP_BATCH, STEP_TOKENS

Measure = Literal[
  "tokens_per_second",
  "items_per_second",
  "peak_bytes",
  "compile_seconds",
  "startup_seconds",
  "pause_share",
]


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


@dataclasses.dataclass(frozen=True)
class Bar:
  """A row of the table: `measure` of a work, as a ratio to `peer` or, without one, itself.

  `required` and `aim` are lower limits for rates a second, upper limits for the rest, and for rates
  that are a `cost`: how many times longer the peer takes. A row with neither is there for
  information.
  """

  work: str
  peer: str | None
  measure: Measure
  required: float | None
  aim: float | None
  cost: bool = False

  @property
  def more_is_better(self) -> bool:
    return self.measure.endswith("_per_second") and not self.cost

  def verdict(self, value: float) -> str:
    """Which of the limits `value` keeps; empty where there are none."""
    if self.aim is not None and self._keeps(value, self.aim):
      return "aim met"
    if self.required is not None:
      return "met" if self._keeps(value, self.required) else "missed"
    return "" if self.aim is None else "aim missed"

  def _keeps(self, value: float, limit: float) -> bool:
    return value >= limit if self.more_is_better else value <= limit


def _ours(
  module: str, *arguments: str, warmup: int, steps: int, model: Literal["gguf", "encoder"] = "gguf"
) -> Side:
  return Side("ours", f"benchmarks.{module}", arguments, None, model, warmup, steps)


def _peer(
  name: str, module: str, *arguments: str, environment: str, model: str, warmup: int, steps: int
) -> Side:
  return Side(name, f"benchmarks.peers.{module}", arguments, environment, model, warmup, steps)


def _encoder(work: str) -> Side:
  return _peer("torch", "encoder", work, environment="torch", model="encoder", warmup=2, steps=8)


def _ourselves(name: str, module: str, *arguments: str, warmup: int, steps: int) -> Side:
  """Ours in another way, as the peer of what is measured."""
  return Side(name, f"benchmarks.{module}", arguments, None, "gguf", warmup, steps)


WORKS = {
  work.name: work
  for work in (
    *(
      Work(
        name,
        f"LoRA step, rank 16, {rows}x{length} tokens",
        _ours("ours_train", "lora_step", *shape, warmup=2, steps=8),
        (
          _peer(
            "torch",
            "lora_transformers",
            *shape,
            environment="torch",
            model="bfloat16",
            warmup=2,
            steps=8,
          ),
          _peer(
            "compile",
            "lora_transformers",
            "--compile",
            *shape,
            environment="torch",
            model="bfloat16",
            warmup=3,
            steps=8,
          ),
          *more,
        ),
        devices=devices,
      )
      for name, rows, length, more, devices in (
        (
          "lora_step",
          STEP_BATCH,
          STEP_TOKENS,
          (_peer("tunix", "lora_tunix", environment="tunix", model="float32", warmup=2, steps=4),),
          ("cpu",),
        ),
        ("lora_step_large", 16, 1024, (), ("gpu",)),
      )
      for shape in ((f"--rows={rows}", f"--length={length}"),)
    ),
    Work(
      "sft",
      "fine-tuning on GSM8K, useful tokens",
      _ours("ours_train", "sft", warmup=2, steps=8),
      tuple(
        _peer(
          name,
          "sft_trl",
          f"--layout={layout}",
          environment="trl",
          model="bfloat16",
          warmup=2,
          steps=8,
        )
        for name, layout in (
          ("trl", "padded"),
          ("trl_grouped", "grouped"),
          ("trl_padding_free", "padding_free"),
        )
      ),
      needs_gsm8k=True,
    ),
    *(
      Work(
        name,
        f"DPO step of LoRA, rank 16, 4 pairs of 256 tokens{', kept references' * len(kept)}",
        _ours("ours_train", "dpo_step", *kept, warmup=2, steps=8),
        tuple(
          _peer(
            peer,
            "dpo_trl",
            *arguments,
            environment="trl",
            model="bfloat16",
            warmup=2,
            steps=8,
          )
          for peer, arguments in peers
        ),
      )
      for name, kept, peers in (
        ("dpo_step", (), (("trl", ()),)),
        # Beside the peer's step with a reference, too.
        ("dpo_kept", ("--kept",), (("trl", ()), ("trl_kept", ("--kept",)))),
      )
    ),
    Work(
      "generation",
      "generation, batch 32, 64 + 128 tokens",
      _ours("ours_generate", "--batch=32", warmup=1, steps=3),
      (
        _peer(
          "torch",
          "generate_transformers",
          "--batch=32",
          "--dtype=bfloat16",
          environment="torch",
          model="bfloat16",
          warmup=1,
          steps=3,
        ),
      ),
      devices=("cpu", "gpu"),
    ),
    Work(
      "generation_eight",
      "generation, batch 8, 64 + 128 tokens",
      _ours("ours_generate", "--batch=8", warmup=1, steps=3),
      (
        _peer(
          "torch",
          "generate_transformers",
          "--batch=8",
          "--dtype=bfloat16",
          environment="torch",
          model="bfloat16",
          warmup=1,
          steps=3,
        ),
      ),
      devices=("cpu", "gpu"),
    ),
    Work(
      "generation_one",
      "generation, batch 1, 64 + 128 tokens",
      _ours("ours_generate", "--batch=1", warmup=1, steps=3),
      (
        _peer(
          "torch",
          "generate_transformers",
          "--batch=1",
          "--dtype=float32",
          environment="torch",
          model="float32",
          warmup=1,
          steps=3,
        ),
      ),
      devices=("cpu", "gpu"),
    ),
    Work(
      "continuous",
      "a queue of unequal requests, 16 rows",
      _ours("ours_queue", "--rows=continuous", warmup=1, steps=1),
      (_ourselves("static", "ours_queue", "--rows=static", warmup=1, steps=1),),
    ),
    Work(
      "speculative",
      "generation with a draft of some of its layers, batch 1",
      _ours("ours_speculative", "--draft", warmup=1, steps=3),
      (_ourselves("plain", "ours_speculative", warmup=1, steps=3),),
    ),
    Work(
      "harness",
      "lm-evaluation-harness, 100 multiple choices",
      _ours("ours_harness", warmup=1, steps=2),
      (_peer("hf", "harness_hf", environment="harness", model="bfloat16", warmup=1, steps=2),),
    ),
    Work(
      "encode",
      "sentence embeddings of MiniLM, 256 texts",
      _ours("ours_encode", model="encoder", warmup=2, steps=8),
      (
        _peer(
          "torch", "encoder", "encode", environment="torch", model="encoder", warmup=2, steps=8
        ),
      ),
    ),
    Work(
      "encoder_step",
      "LoRA step of MiniLM, rank 16, 32x128 tokens",
      _ours("ours_train", "encoder_step", model="encoder", warmup=2, steps=8),
      (_encoder("step"),),
    ),
    Work(
      "methods",
      "a LoRA step beside other methods'",
      _ours("ours_train", "lora_step", warmup=2, steps=6),
      tuple(
        _ourselves(name, "ours_train", "lora_step", f"--method={name}", warmup=2, steps=6)
        for name in ("bare", "dora", "ia3", "norms", "prompt", "prefix")
      ),
      compares_methods=True,
    ),
    Work(
      "int8_step",
      "a LoRA step on a base of int8 products",
      _ours("ours_train", "lora_step", "--method=int8", warmup=2, steps=6),
      (
        _ourselves("bfloat16", "ours_train", "lora_step", warmup=2, steps=6),
        _ourselves(
          "forward", "ours_train", "lora_step", "--method=int8_forward", warmup=2, steps=6
        ),
      ),
    ),
    Work(
      "w8a8_forward",
      "forward pass in W8A8, 4x512 tokens",
      _ours("ours_forward", "--quantize=int8_forward", warmup=2, steps=8),
      (
        _ourselves("bfloat16", "ours_forward", warmup=2, steps=8),
        _ourselves("outliers", "ours_forward", "--quantize=int8_outliers", warmup=2, steps=8),
      ),
    ),
    Work(
      "methods_peft",
      "PEFT's LoRA step beside its DoRA's",
      _peer("ours", "lora_transformers", environment="torch", model="bfloat16", warmup=2, steps=6),
      (
        _peer(
          "peft_dora",
          "lora_transformers",
          "--dora",
          environment="torch",
          model="bfloat16",
          warmup=2,
          steps=6,
        ),
      ),
      compares_methods=True,
    ),
    Work(
      "input",
      "the data pipeline alone, GSM8K",
      _ours("ours_input", warmup=0, steps=800),  # several windows, and tokenizing the first
      (_ourselves("step", "ours_train", "sft", warmup=2, steps=6),),
      needs_gsm8k=True,
      compares_methods=True,
    ),
    Work(
      "depth",
      "the LoRA step of 120 layers, one loop",
      _ours("ours_depth", "--layers=120", warmup=0, steps=1),
      (_ourselves("layers_30", "ours_depth", "--layers=30", warmup=0, steps=1),),
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

BARS = (
  Bar("lora_step", "torch", "tokens_per_second", 1.4, None),
  Bar("lora_step", "compile", "tokens_per_second", None, 1.0),
  Bar("lora_step", "tunix", "tokens_per_second", 3.0, 4.0),
  Bar("lora_step_large", "torch", "tokens_per_second", None, None),
  Bar("lora_step_large", "compile", "tokens_per_second", None, None),
  Bar("lora_step_large", "torch", "peak_bytes", None, None),
  Bar("sft", "trl", "tokens_per_second", 2.5, 4.0),
  Bar("sft", "trl_grouped", "tokens_per_second", None, None),
  Bar("sft", "trl_padding_free", "tokens_per_second", None, None),
  Bar("dpo_step", "trl", "tokens_per_second", 1.8, None),
  Bar("dpo_kept", "trl", "tokens_per_second", 2.5, None),
  Bar("dpo_kept", "trl_kept", "tokens_per_second", None, None),
  Bar("generation", "torch", "tokens_per_second", 1.2, 1.6),
  Bar("generation_eight", "torch", "tokens_per_second", 1.1, None),
  Bar("generation_one", "torch", "tokens_per_second", 0.9, 1.1),
  Bar("continuous", "static", "tokens_per_second", 1.5, None),
  Bar("speculative", "plain", "tokens_per_second", 1.0, None),
  Bar("harness", "hf", "items_per_second", 1.5, None),
  Bar("encode", "torch", "items_per_second", 1.2, None),
  Bar("encoder_step", "torch", "tokens_per_second", 1.2, None),
  Bar("methods", "bare", "tokens_per_second", 0.8, None),
  Bar("methods", "dora", "tokens_per_second", 1.5, None, cost=True),
  *(
    Bar("methods", name, "tokens_per_second", 1.0, None, cost=True)
    for name in ("ia3", "norms", "prompt", "prefix")
  ),
  Bar("int8_step", "bfloat16", "tokens_per_second", 1.15, None),
  Bar("int8_step", "forward", "tokens_per_second", None, None),
  Bar("w8a8_forward", "outliers", "tokens_per_second", None, None),
  Bar("w8a8_forward", "bfloat16", "tokens_per_second", 1.0, 1.5),
  Bar("methods_peft", "peft_dora", "tokens_per_second", None, None, cost=True),
  Bar("lora_step", "torch", "peak_bytes", 0.9, 0.6),
  Bar("lora_step", None, "compile_seconds", 30.0, 15.0),
  Bar("input", "step", "tokens_per_second", 20.0, None),
  Bar("depth", "layers_30", "compile_seconds", 1.3, None),
  Bar("checkpoint", None, "pause_share", 0.05, None),
  Bar("startup", None, "startup_seconds", 20.0, 10.0),
)

"""Greedy generation of transformers with its key/value cache, in one precision."""

from __future__ import annotations

import torch
from transformers import AutoModelForCausalLM

from benchmarks import worker, workloads


def main() -> None:
  """Generates again and again and prints the figures as a line of JSON."""
  parser = worker.parser(__doc__)
  parser.add_argument("--dtype", choices=("bfloat16", "float32"), required=True)
  parser.add_argument("--batch", type=int, required=True, help="prompts generated together")
  args = parser.parse_args()
  model = AutoModelForCausalLM.from_pretrained(
    args.model, dtype=getattr(torch, args.dtype), attn_implementation="sdpa"
  ).eval()
  device = {"cpu": "cpu", "gpu": "cuda"}[args.device]
  model.to(device)
  # Nothing ends a completion, so that both sides generate all tokens asked for.
  model.generation_config.eos_token_id = None
  tokens = workloads.random_tokens(args.batch, workloads.PROMPT_TOKENS)
  prompts = torch.from_numpy(tokens).long().to(device)
  mask = torch.ones_like(prompts)
  outputs = []

  def step() -> None:
    with torch.inference_mode():
      outputs.append(
        model.generate(
          prompts,
          attention_mask=mask,
          max_new_tokens=workloads.NEW_TOKENS,
          do_sample=False,
        ).cpu()
      )

  seconds = worker.time_steps(step, warmup=args.warmup, steps=args.steps)
  shape = (args.batch, workloads.PROMPT_TOKENS + workloads.NEW_TOKENS)
  if outputs[-1].shape != shape:
    raise RuntimeError(f"generated {tuple(outputs[-1].shape)}, asked for {shape}")
  peak = {"peak_bytes": torch.cuda.max_memory_allocated()} if device == "cuda" else {}
  worker.report(
    ("torch", "transformers"),
    **peak,
    tokens_per_second=worker.median_rate(seconds, args.batch * workloads.NEW_TOKENS),
    seconds=seconds,
    completion=outputs[-1][0, workloads.PROMPT_TOKENS :].tolist(),
  )


if __name__ == "__main__":
  main()

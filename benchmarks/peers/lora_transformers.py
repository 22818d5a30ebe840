"""The LoRA step of transformers and PEFT: bfloat16 throughout, eager or under torch.compile."""

from __future__ import annotations

import peft
import torch
import torch.nn.functional as F

from benchmarks import worker, workloads
from benchmarks.peers import lora_peft


def main() -> None:
  """Trains on one batch again and again and prints the figures as a line of JSON."""
  parser = worker.parser(__doc__)
  parser.add_argument("--compile", action="store_true", help="run the loss under torch.compile")
  parser.add_argument("--rows", type=int, default=workloads.STEP_BATCH)
  parser.add_argument("--length", type=int, default=workloads.STEP_TOKENS, help="of a row")
  parser.add_argument("--dora", action="store_true", help="DoRA in place of LoRA")
  args = parser.parse_args()
  base, adapter = lora_peft.load_base(args.model), lora_peft.lora(use_dora=args.dora)
  # By default PEFT holds adapters in float32, which adds two casts and a slow dot to each layer.
  model = peft.get_peft_model(base, adapter, autocast_adapter_dtype=False)
  device = {"cpu": "cpu", "gpu": "cuda"}[args.device]
  model.to(device)
  trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
  optimizer = torch.optim.AdamW(trained, lr=workloads.LEARNING_RATE, weight_decay=0.0, fused=True)
  tokens = torch.from_numpy(workloads.random_tokens(args.rows, args.length)).long().to(device)
  targets = tokens.roll(-1, dims=1)
  targets[:, -1] = -100

  def loss_of(tokens: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    # Passing `labels` instead would copy the logits to float32 first.
    logits = model(input_ids=tokens, use_cache=False).logits
    return F.cross_entropy(logits.flatten(0, 1), targets.flatten())

  forward = torch.compile(loss_of) if args.compile else loss_of
  losses = []

  def step() -> None:
    loss = forward(tokens, targets)
    loss.backward()
    torch.nn.utils.clip_grad_norm_(trained, workloads.MAX_GRADIENT_NORM)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    losses.append(loss.item())

  seconds = worker.time_steps(step, warmup=args.warmup, steps=args.steps)
  peak = {"peak_bytes": torch.cuda.max_memory_allocated()} if device == "cuda" else {}
  worker.report(
    ("torch", "transformers", "peft"),
    **peak,
    tokens_per_second=worker.median_rate(seconds, tokens.numel()),
    seconds=seconds,
    first_loss=losses[0],
    trainable=sum(parameter.numel() for parameter in trained),
  )


if __name__ == "__main__":
  main()

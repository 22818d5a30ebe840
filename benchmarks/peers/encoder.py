"""MiniLM of transformers, bfloat16: sentence embeddings, and the LoRA step of PEFT."""

from __future__ import annotations

from typing import Any

import peft
import torch
import torch.nn.functional as F
from transformers import AutoModel, AutoModelForSequenceClassification, AutoTokenizer

from benchmarks import worker, workloads

_BATCH = 32  # texts, as sentence-transformers has it by default


def encode(args: Any) -> dict[str, Any]:
  """Texts sorted by length, each batch padded to its longest, means of unit length."""
  tokenizer = AutoTokenizer.from_pretrained(args.model)
  model = AutoModel.from_pretrained(
    args.model, dtype=torch.bfloat16, attn_implementation="sdpa"
  ).eval()
  texts = workloads.texts()
  order = sorted(range(len(texts)), key=lambda i: -len(texts[i]))
  vectors = torch.zeros(len(texts), model.config.hidden_size)

  @torch.inference_mode()
  def step() -> None:
    for at in range(0, len(order), _BATCH):
      chosen = order[at : at + _BATCH]
      batch = tokenizer(
        [texts[i] for i in chosen],
        padding=True,
        truncation=True,
        max_length=256,
        return_tensors="pt",
      )
      hidden = model(**batch).last_hidden_state.float()
      mask = batch["attention_mask"][..., None].float()
      vectors[chosen] = F.normalize((hidden * mask).sum(1) / mask.sum(1), dim=-1)

  seconds = worker.time_steps(step, warmup=args.warmup, steps=args.steps)
  return {
    "items_per_second": worker.median_rate(seconds, len(texts)),
    "seconds": seconds,
    "first_vector": vectors[0, :4].tolist(),
  }


def step(args: Any) -> dict[str, Any]:
  """LoRA at all projections of the layers, with a new classifier, on the same batch again."""
  torch.manual_seed(0)
  base = AutoModelForSequenceClassification.from_pretrained(
    args.model, num_labels=2, dtype=torch.bfloat16, attn_implementation="sdpa"
  )
  config = peft.LoraConfig(
    r=workloads.LORA_RANK,
    lora_alpha=workloads.LORA_ALPHA,
    target_modules=list(workloads.ENCODER_MODULES),
    task_type="SEQ_CLS",
  )
  model = peft.get_peft_model(base, config, autocast_adapter_dtype=False)
  trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
  optimizer = torch.optim.AdamW(trained, lr=workloads.LEARNING_RATE, weight_decay=0.0, fused=True)
  tokens, labels = (torch.from_numpy(array).long() for array in workloads.encoder_rows())
  losses = []

  def advance() -> None:
    loss = F.cross_entropy(model(input_ids=tokens).logits, labels)
    loss.backward()
    torch.nn.utils.clip_grad_norm_(trained, workloads.MAX_GRADIENT_NORM)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    losses.append(loss.item())

  seconds = worker.time_steps(advance, warmup=args.warmup, steps=args.steps)
  return {
    "tokens_per_second": worker.median_rate(seconds, tokens.numel()),
    "seconds": seconds,
    "first_loss": losses[0],
    "trainable": sum(parameter.numel() for parameter in trained),
  }


def main() -> None:
  """Runs one of the two works and prints its figures as a line of JSON."""
  parser = worker.parser(__doc__)
  parser.add_argument("work", choices=("encode", "step"))
  args = parser.parse_args()
  measured = {"encode": encode, "step": step}[args.work](args)
  worker.report(("torch", "transformers", "peft"), **measured)


if __name__ == "__main__":
  main()

"""The LoRA step of Tunix: its llama, Qwix's LoRA and the compiled step of its PeftTrainer."""

from __future__ import annotations

import json

import jax
import jax.numpy as jnp
import optax
import qwix
from flax import nnx
from tunix.models.llama3 import model as llama
from tunix.models.llama3 import params as llama_params
from tunix.sft import peft_trainer

from benchmarks import worker, workloads


def main() -> None:
  parser = worker.parser(__doc__)
  # On CPU the float32 step is the faster: XLA's dots with a bfloat16 result are slower still.
  parser.add_argument("--dtype", choices=("bfloat16", "float32"), default="float32")
  args = parser.parse_args()
  published = json.loads((args.model / "config.json").read_text())
  config = llama.ModelConfig(
    num_layers=published["num_hidden_layers"],
    vocab_size=published["vocab_size"],
    embed_dim=published["hidden_size"],
    hidden_dim=published["intermediate_size"],
    num_heads=published["num_attention_heads"],
    head_dim=published["head_dim"],
    num_kv_heads=published["num_key_value_heads"],
    rope_theta=int(published["rope_parameters"]["rope_theta"]),
    norm_eps=published["rms_norm_eps"],
    weight_tying=True,
  )
  base = llama_params.create_model_from_safe_tensors(
    str(args.model), config, dtype=jnp.dtype(args.dtype)
  )
  provider = qwix.LoraProvider(
    module_path=f".*({'|'.join(workloads.LORA_MODULES)})",
    rank=workloads.LORA_RANK,
    alpha=workloads.LORA_ALPHA,
  )
  model = qwix.apply_lora_to_model(base, provider, **base.get_model_input(), rngs=nnx.Rngs(0))
  trainable = sum(leaf.size for leaf in jax.tree.leaves(nnx.state(model, nnx.LoRAParam)))
  optimizer = optax.chain(
    optax.clip_by_global_norm(workloads.MAX_GRADIENT_NORM),
    optax.adamw(workloads.LEARNING_RATE, weight_decay=0.0),
  )
  trainer = peft_trainer.PeftTrainer(
    model, optimizer, peft_trainer.TrainingConfig(eval_every_n_steps=10**9)
  )
  tokens = workloads.random_tokens(workloads.STEP_BATCH, workloads.STEP_TOKENS)
  batch, length = tokens.shape
  trainer = trainer.with_gen_model_input_fn(
    lambda x: {
      "input_tokens": x.input_tokens,
      "input_mask": x.input_mask,
      "positions": jnp.broadcast_to(jnp.arange(length), (batch, length)),
      "attention_mask": jnp.broadcast_to(
        jnp.tril(jnp.ones((length, length), bool)), (batch, length, length)
      ),
    }
  )
  example = peft_trainer.TrainingInput(
    input_tokens=jnp.asarray(tokens), input_mask=jnp.ones((batch, length), jnp.float32)
  )
  losses = []
  # `PeftTrainer.train` runs this same function, with the graph cached, inside a loop that
  # also logs and checkpoints; the step alone is what we compare.
  train_step, _ = trainer.jit_train_and_eval_step(cache_nnx_graph=True)

  def step() -> None:
    loss, _, _ = train_step(example)
    losses.append(float(loss))
    jax.block_until_ready(nnx.state(trainer.model, nnx.LoRAParam))

  seconds = worker.time_steps(step, warmup=args.warmup, steps=args.steps)
  worker.report(
    ("jax", "flax", "qwix", "google-tunix"),
    tokens_per_second=worker.median_rate(seconds, tokens.size),
    seconds=seconds,
    first_loss=losses[0],
    trainable=trainable,
  )


if __name__ == "__main__":
  main()

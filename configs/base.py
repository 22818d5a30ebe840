"""The defaults of every run, told once.

A run's file starts from these and tells its differences:

  from configs import base

  def get_config():
    config = base.get_config()
    config.directory = "runs/mine"
    config.model.source = "smollm2-135m-instruct"
    ...
    return config

The config is locked: a key that is not here is an error. A section with a `name` chooses a
component, and its other keys are that component's arguments; replace such a section as a whole.
Sections of several keys are explained in functions of their own.
Durations end in `_steps`, `_tokens`, `_examples` or `_fraction`; 0 means never where it can.
"""

from ml_collections import ConfigDict, FieldReference


def get_config() -> ConfigDict:
  """Everything but what to train on what, which only a run can say."""
  config = ConfigDict()
  config.seed = 0
  # Where the run lives. The same command with the same directory goes on with the run in it.
  config.directory = ""
  # Compiled programs are kept here between runs; "" is jax/ in $RESEARCH_CACHE or
  # ~/.cache/research, "off" keeps none.
  config.compilation_cache = ""

  config.model = _model()

  # Rules {"target": path regex, "name": method, ...}; a parameter takes the first that matches.
  # research.peft has the methods, with their arguments: at kernels lora, dora, vera, ia3, adalora
  # and embedding_lora; elsewhere prefix, prompt, p_tuning, bottleneck and trainable_tokens, which
  # need no target. A lora's "start" is "pissa", "olora", "eva", or "loftq" on a base in few bits.
  # With "each_task": ("math", "chat") in a rule of lora, each of a mixture's tasks has its own.
  config.adapters = ()
  # What of the base is held in few bits (QLoRA and its like): rules {"target": path regex, "kind":
  # "nf4", "group": 64, "scales": "double"}, as research.quant.Scheme has them; kind "none" leaves a
  # parameter as it is, and a parameter takes the first rule that matches it. "layers/(0|29)/.*" are
  # two layers, which may be held in another way than the rest if they do not train.
  config.quantize = ()
  # What the optimizer changes: "adapters", "all", or regexes of parameters' paths (".*/bias"), also
  # beside "adapters".
  config.trainable = ("adapters",)

  config.teacher = _teacher()

  # One of research.objectives, with its arguments: {"name": "causal", "weighting": {"name":
  # "uncertainty"}} learns how much each task of a mixture counts, "router_balance": 0.01 evens out
  # the use of experts.
  # {"name": "distillation", "divergence": {"name": "forward_kl"}, "share": 0.5, "temperature":
  # {"name": "linear", "start": 4.0}} learns from `teacher`.
  # {"name": "preference", "loss": {"name": "sigmoid", "beta": 0.1}, "reference": "base"} is DPO:
  # research.losses.preference has the losses, and the reference is the model without its adapters
  # ("base"), a copy of it as the run begins ("copy"), or what that said of the data, found before
  # the first step ("kept"); "kto" and "reward" are beside it.
  # {"name": "policy", "loss": {"name": "clipped"}, "average": "answers", "kl": 0.04} is GRPO, by
  # what `train.rollout` writes; with "critic": {} and the advantage "gae" it is PPO.
  config.objective = ConfigDict({"name": "causal"})

  config.data = _data()
  config.optimizer = _optimizer()
  config.train = _train()

  # Several runs, each from what the last one left (research.loop.stages): {"name": "student",
  # "model.student": {...}, "teacher.source": "stages/assistant", "train.steps": 500} tells its name
  # and its differences from this config. Where the last one left an adapter, that is merged first:
  # {"name": "sft"}, {"name": "dpo", "objective": {...}, ...}. A reward's "run" may be
  # "stages/NAME", too. Empty: one run.
  config.stages = ()

  config.eval = _eval()
  config.checkpoint = _checkpoint()

  # Devices along each axis (research.core.sharding); one may be -1, which takes what is left.
  config.mesh = ConfigDict({"data": -1, "fsdp": 1, "tensor": 1, "sequence": 1})

  config.log = _log()

  config.lock()
  return config


def _model() -> ConfigDict:
  """The model, before adapters and rounding."""
  model = ConfigDict()
  # A Hugging Face directory, a GGUF file, or a name that research.models knows.
  model.source = ""
  # Or, to train from random weights, a shape in place of a source: a dict as of a Hugging Face
  # `config.json`, without `vocab_size` the tokenizer's; and a tokenizer's directory
  # (`python -m research.prepare --tokenizer` trains one).
  model.shape = ConfigDict()
  model.tokenizer = ""
  # A smaller model made of the source (research.models.students): {"name": "sliced", "layers": 15}
  # keeps so many of its layers, "heads" and "mlp_size" of each layer; "fresh" has that shape and
  # random weights. Empty: the source itself.
  model.student = ConfigDict()
  # The type of activations, of products' operands and of what is frozen; what trains is float32.
  model.dtype = "bfloat16"
  # What of a layer the backward pass computes again, to save memory: False nothing, "products" all
  # but projections and attention, "attention" all but attention, True everything.
  model.remat = FieldReference(False, field_type=object)
  # "splash" is JAX's kernel for TPUs and "cudnn" that of NVIDIA's GPUs, which hold no scores of
  # whole rows, "xla" plain products, and "auto" the kernel of the device where shapes allow it.
  model.attention = "auto"
  # Layers in one iteration of the compiled loop; 0: all of them on a CPU, one elsewhere.
  model.unroll = 0
  # What stands on an encoder: {"name": "sequence", "labels": 2}, "token" or "masked"
  # (research.models.heads); a head that the checkpoint lacks is new and trains. On a decoder:
  # {"name": "score"}, for rewards. Empty: its own.
  model.head = ConfigDict()
  return model


def _teacher() -> ConfigDict:
  """What the objective "distillation" learns from."""
  teacher = ConfigDict()
  # As `model.source`; "base" is the run's own base without adapters, of which there is no second
  # copy. Empty: nothing.
  teacher.source = ""
  # An adapter of that source, in PEFT's format.
  teacher.adapter = ""
  # Or, in place of both, the directory of a complete run.
  teacher.run = ""
  # The type of its parameters and activations; "": the student's.
  teacher.dtype = ""
  # What of it is held in few bits: rules as in `quantize` above.
  teacher.quantize = ()
  # How many likeliest tokens to keep of it on disk, asked once before the run, in place of running
  # it beside the student: for a constant temperature, and logits alone. 0: it runs.
  teacher.keep_tokens = 0
  return teacher


def _data() -> ConfigDict:
  """What is trained on, and what is held out."""
  data = ConfigDict()
  data.train = ConfigDict()
  # What research.data.sources reads: {"name": "jsonl", "path": ...} and the like.
  data.train.source = ConfigDict()
  # Tokens in a row.
  data.train.length = 512
  # For an encoder-decoder, `length` is that of a row's sources and this one of its targets, start
  # tokens included; 0: `length`.
  data.train.target_length = 0
  # "best_fit" puts several documents in a row, none of which sees another; "none" puts one, padded
  # to the nearest of `buckets` or to `length`.
  data.train.packing = "best_fit"
  data.train.buckets = ()
  # Loss on completions and assistant turns only, or on all tokens.
  data.train.completion_only = True
  # "drop" (and count) or "stop".
  data.train.on_bad_row = "drop"
  # "drop", "truncate", "split" or "stop"; of preferences "truncate" leaves out the end of answers,
  # "truncate_start" the beginning of prompts.
  data.train.on_long_row = "truncate"
  data.train.shuffle = True
  # A problem made of each document (research.data.denoising), anew each epoch; empty: none.
  data.train.corruption = ConfigDict()
  # Examples that are packed together.
  data.train.window = 1024
  # What changes over the run (research.data.curriculum): {"name": "competence", "by": "length"}
  # begins with the easiest rows, {"name": "phases", "phases": ({"until": 0.3, "length": 128},
  # {"until": 1.0})} has other lengths of rows, weights of a mixture or shares of easy rows in parts
  # of the run. Empty: all rows from the first step on.
  data.train.curriculum = ConfigDict()
  # Held-out rows on which the objective is measured, a section like `train`; empty: none.
  data.eval = ConfigDict()
  return data


def _optimizer() -> ConfigDict:
  """AdamW, and what its rate and its gradients go by."""
  optimizer = ConfigDict()
  optimizer.learning_rate = 1e-4
  # One of research.optim.schedules, with its arguments.
  optimizer.schedule = ConfigDict({"name": "warmup_cosine", "warmup_fraction": 0.03})
  optimizer.b1 = 0.9
  optimizer.b2 = 0.999
  optimizer.eps = 1e-8
  optimizer.weight_decay = 0.0
  # Rules (path regex, whether it decays), first match wins; empty: matrices decay, and biases,
  # norms and embeddings do not.
  optimizer.weight_decay_mask = ()
  # How many times the learning rate that of LoRA's b is (LoRA+, 16 in its paper); 0: once.
  optimizer.lora_plus_ratio = 0.0
  # The most that the norm of all gradients may be; 0: no limit.
  optimizer.clip_norm = 1.0
  # An update whose gradient is not finite is skipped; after so many in a row the run stops.
  optimizer.max_nonfinite_steps = 5
  return optimizer


def _train() -> ConfigDict:
  """Steps, the rows of each, and what else they do."""
  train = ConfigDict()
  train.steps = 1000
  # Rows in an update, over all devices and slices; of preferences pairs, or judged answers; of a
  # policy prompts.
  train.batch_size = 16
  # Slices of the batch that are taken one after the other, to save memory.
  train.accumulate_steps = 1
  # A distillation's student writes answers itself, {"share": 0.5, "max_new_tokens": 128,
  # "temperature": 1.0}, after the prompts of a share of the batches (research.loop.on_policy).
  train.on_policy = ConfigDict()
  # What the objective "policy" learns from, {"samples": 8, "max_new_tokens": 256, "rewards":
  # ({"name": "scorer", "scorer": "last_number"},), "advantage": {"name": "group"}}: answers that
  # the model writes to the data's prompts (research.loop.policy_answers), and how good they are
  # (research.loop.rewards: scorer, pattern, length, consistency, model, judge).
  train.rollout = ConfigDict()
  # What trains on a grid (`quantize`) trains as it is for so many steps first.
  train.round_after_steps = 0
  # Where activations are rounded by one scale (a rule's `range`), it is measured on so many batches
  # as rounding begins.
  train.range_batches = 8
  # Learning where to start from, by tasks of a mixture (research.loop.meta); empty: none.
  train.meta = ConfigDict()
  return train


def _eval() -> ConfigDict:
  """When the model is measured, and by what."""
  evaluation = ConfigDict()
  # Evaluations come before the first step, after the last and every so many between; 0: none.
  evaluation.every_steps = 0
  # Sections {"name": ..., ...} of research.evals.
  evaluation.evaluators = ()
  return evaluation


def _checkpoint() -> ConfigDict:
  """What is saved of a run on its way."""
  checkpoint = ConfigDict()
  # A killed run loses at most so many steps; 0: only the last step is saved.
  checkpoint.every_steps = 100
  checkpoint.keep_last = 2
  # How many more to keep, of those at an evaluation, by `best_metric`
  # ("eval/held_out/loss").
  checkpoint.keep_best = 0
  checkpoint.best_metric = ""
  # "max" or "min".
  checkpoint.best_mode = "max"
  return checkpoint


def _log() -> ConfigDict:
  """What is told of a run on its way."""
  log = ConfigDict()
  # Steps between points in TensorBoard, and between lines where there is no terminal.
  log.every_steps = 10
  log.tensorboard = True
  # Whether the gradient norm of each layer is told, and of what is outside of layers.
  log.gradients = False
  # The first and the last of the steps, from 1, that JAX's profiler traces into `profile/`, for
  # TensorBoard's XProf and for Perfetto: (10, 12); (): none. The first step compiles.
  log.profile = ()
  # FLOP/s of all devices that utilisation is a share of; 0: from a table, or measured.
  log.peak_flops = 0.0
  return log

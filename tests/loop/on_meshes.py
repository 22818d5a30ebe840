"""Takes a step of each method on meshes of eight devices, and says what came out: for `test_mesh`.

Run in a process of its own, in a directory with `model/`, `rows.jsonl` and `pairs.jsonl`; writes
`found.json`: by method and mesh the largest difference from one device, and the collectives of the
compiled step.
"""

import json
import re
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from configs import base
from research import models, peft
from research.core import sharding, tree
from research.core.config import Config
from research.data import pipeline
from research.evals import perplexity
from research.generation import generate
from research.loop import eva, problem, ranges, result, state, step
from research.loop import learner as learner_lib
from research.optim import build

KERNELS = "layers/.*_proj/kernel"
LORA = ({"target": KERNELS, "name": "lora", "rank": 2},)
NF4 = ({"target": KERNELS, "kind": "nf4", "group": 2},)
BY_LAYER = ({"target": "layers/1/mlp/.*", "kind": "none"}, *NF4)
AXES = sharding.MESH_AXES
COLLECTIVE = re.compile(
  r" = (.*?) (all-reduce|all-gather|all-to-all|reduce-scatter|collective-permute)(?:-start)?\("
)


def config(method):
  """A step's, in float32."""
  made = base.get_config()
  made.model.source = "model"
  made.model.dtype = "float32"
  made.model.unroll = 1
  made.data.train.source = {"name": "jsonl", "path": "rows.jsonl", "cache": "cache"}
  made.data.train.length = 32
  made.data.train.window = 64
  made.train.batch_size = 8
  made.train.steps = 2
  made.adapters = LORA
  if method == "eva":
    made.adapters = ({**LORA[0], "start": "eva", "batches": 2, "rho": 2.0},)
  if method == "full":
    made.adapters, made.trainable = (), ("all",)
  if method in ("qlora", "by_layer"):
    made.quantize = NF4 if method == "qlora" else BY_LAYER
  if method == "ranged":
    w8a8 = {"kind": "int8", "activations": "int8", "range": "average"}
    made.quantize = ({"target": KERNELS, **w8a8},)
    made.adapters, made.trainable = (), ("all",)
  if method == "dpo":
    made.data.train.source.path = "pairs.jsonl"
    made.data.train.packing = "none"
    made.objective = {"name": "preference", "loss": {"name": "sigmoid"}, "reference": "base"}
  if method == "distillation":
    made.teacher.source = "model"
    made.objective = {"name": "distillation"}
    made.model.student = {"name": "sliced", "layers": 1}
    made.adapters, made.trainable = (), ("all",)
  return Config(made.to_dict())


def steps(method):
  """A function of a mesh that takes the first step there: gradients and loss, and its program."""
  made = config(method)
  task = problem.assemble(made)
  trainable, frozen = tree.partition(task.variables, task.trains)
  optimizer, schedule = build.build(made.optimizer, trainable, made.train.steps)
  run = step.make_step(
    task.model,
    task.objective,
    optimizer,
    schedule,
    accumulate_steps=1,
    seed=0,
    rows_per_example=task.rows_per_example,
  )
  batch = next(task.batches)

  def take(mesh):
    places = sharding.shardings(mesh, state.abstract(trainable, optimizer))
    held = jax.device_put(frozen, sharding.shardings(mesh, frozen))
    rows = sharding.place(batch, mesh)
    start = state.create(trainable, optimizer, mesh)
    jitted = jax.jit(run, out_shardings=(places, sharding.replicated(mesh)))
    with jax.set_mesh(mesh):
      compiled = jitted.lower(start, held, rows).compile()
    after, metrics = compiled(start, held, rows)
    # The first moments are the clipped gradient, but for a factor.
    found = {p: v for p, v in tree.flatten(after.opt_state).items() if "/mu/" in p}
    return jax.device_get((found, metrics["sums"], metrics["gradient_norm"])), compiled.as_text()

  return take


def difference(found, expected):
  """The largest of any leaf, relative to the largest number of that leaf."""
  worst = 0.0
  for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
    scale = max(float(np.abs(b).max()), 1e-6)
    worst = max(worst, float(np.abs(np.asarray(a) - b).max()) / scale)
  return worst


def collectives(program):
  """Each one's kind and the shapes of its results: `[["all-reduce", ["f32[16,8]", ...]], ...]`."""
  return [
    [kind, re.findall(r"\w+\[[\d,]*\]", shapes)] for shapes, kind in COLLECTIVE.findall(program)
  ]


def writing():
  """A function of a mesh, or None, that generates greedily there: the tokens."""
  model, params, tokenizer = models.load("model", dtype=jnp.float32)
  prompts = [tokenizer.encode(text) for text in ("1 and", "22 and 3", "a", "99 is")] * 2

  def write(mesh):
    variables = {"params": params}
    if mesh is None:
      found = generate(model, variables, prompts, max_new_tokens=8, eos_ids=[])
    else:
      held = jax.device_put(variables, sharding.shardings(mesh, variables))
      with jax.set_mesh(mesh):
        found = generate(model, held, prompts, max_new_tokens=8, eos_ids=[])
    return [completion.tokens for completion in found]

  return write


def begins(mesh):
  """How far adapters that begin by batches on a mesh are from those that do on one device."""
  made = config("eva")
  learner = learner_lib.build(made)
  rows = {"batch_size": 8, "seed": 0, "shard_index": 0, "shard_count": 1}
  batches = pipeline.train_batches(made.data.train, learner.tokenizer, **rows)
  one = jax.sharding.Mesh(np.array(jax.devices()[:1]).reshape(1, 1, 1, 1), AXES)
  ours, theirs = (
    dict(peft.sites(eva.begun(learner.model, learner.variables, batches, where)))
    for where in (mesh, one)
  )
  ranks = [[node.ranks for node in each.values()] for each in (ours, theirs)]
  return {"ranks": ranks, "difference": difference(ours, theirs)}


def measures(mesh):
  """How far scales of activations from batches on a mesh are from one device's, placed there."""
  made = config("ranged")
  task = problem.assemble(made)
  trainable, frozen = tree.partition(task.variables, task.trains)
  optimizer, _ = build.build(made.optimizer, trainable, made.train.steps)
  one = jax.sharding.Mesh(np.array(jax.devices()[:1]).reshape(1, 1, 1, 1), AXES)

  def scales(where):
    start = state.create(trainable, optimizer, where).trainable
    held = jax.device_put(frozen, sharding.shardings(where, frozen))
    with jax.set_mesh(where):
      found = ranges.found(task.model, tree.combine(start, held), task.batches, 2, where)
      placed = tree.flatten(ranges.placed(start, found))
    return {path: leaf for path, leaf in placed.items() if path.endswith("/inputs")}

  ours, theirs = scales(mesh), scales(one)
  spread = all(leaf.sharding.mesh == mesh for leaf in ours.values())
  return {"count": len(ours), "spread": spread, "difference": difference(ours, theirs)}


def judges(mesh):
  """The share of one device's arithmetic that each device of a mesh has in judging 8 rows."""
  model, params, _ = models.load("model", dtype=jnp.float32)
  model = model.clone(unroll=1)
  rows = [np.zeros((8, 32), np.int32)] * 3

  def work(variables):
    lowered = perplexity.token_losses.lower(model, variables, *rows)
    return lowered.compile().cost_analysis()["flops"]

  alone = work({"params": params})
  with jax.set_mesh(mesh):
    spread = jax.device_put({"params": params}, sharding.shardings(mesh, {"params": params}))
    return {"share": work(spread) / alone}


def exports(mesh):
  """What a model leaves that lies on a mesh, its norms trained and its LoRAs merged.

  `live`: bytes of JAX's arrays that are new when files are written, by `whole`, those of the model.
  `same`: the files are those of a merge on one device.
  """
  made = Config(config("lora").to_dict() | {"trainable": ("layers/.*norm/scale",)})
  learner = learner_lib.build(made)
  grown = jax.tree.map(lambda leaf: leaf + 0.1, learner.variables["adapters"])
  variables = {**learner.variables, "adapters": grown}
  spread = jax.device_put(variables, sharding.shardings(mesh, variables))
  live, save = [], models.save

  def told(*args):
    live.append(sum(array.nbytes for array in jax.live_arrays() if id(array) not in known))
    save(*args)

  export = result.exporter("model", learner, {}, None)
  models.save = told
  with jax.set_mesh(mesh):
    host = sharding.fetched(spread)
    known = {id(array): array for array in jax.live_arrays()}  # views of shards among them
    with sharding.on_host():
      export(Path("exported"), host)
  models.save = save
  merged = peft.merge(variables["params"], grown)
  models.save("expected", learner.model, merged, learner.tokenizer)
  files = [sorted(Path(name).iterdir()) for name in ("exported/model", "expected")]
  same = [a.read_bytes() == b.read_bytes() for a, b in zip(*files, strict=True)]
  return {"live": live, "whole": tree.nbytes(merged), "same": all(same) and len(same) > 2}


APART = {"eva": begins, "exported": exports, "perplexity": judges, "ranged": measures}


def main():
  """Everything that the arguments, `METHOD:DATA,FSDP,TENSOR,SEQUENCE`, ask for."""
  found = {}
  made = {}
  for asked in sys.argv[1:]:
    method, _, shape = asked.partition(":")
    sizes = dict(zip(AXES, map(int, shape.split(",")), strict=True))
    if method == "generation":
      if method not in made:
        made[method] = writing()
      found[asked] = {"same": made[method](sharding.make_mesh(sizes)) == made[method](None)}
      continue
    if method in APART:
      found[asked] = APART[method](sharding.make_mesh(sizes))
      continue
    if method not in made:
      take = steps(method)
      one = jax.sharding.Mesh(np.array(jax.devices()[:1]).reshape(1, 1, 1, 1), AXES)
      made[method] = take, take(one)[0]
    take, expected = made[method]
    values, program = take(sharding.make_mesh(sizes))
    found[asked] = {
      "difference": difference(values, expected),
      "collectives": collectives(program),
    }
  Path("found.json").write_text(json.dumps(found))


if __name__ == "__main__":
  main()

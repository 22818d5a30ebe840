"""EVA: what projections read, against recorded inputs, and what comes of it, against PEFT's."""

import jax
import numpy as np
import peft as hf_peft
import pytest
import torch
import transformers
from peft.tuners.lora.config import EvaConfig

from research import models, peft
from research.core import tree
from research.core.moments import Moments
from research.data import packing
from research.data.examples import Example
from research.models import families
from research.peft import eva

KEY = jax.random.key(0)
RANK = 8
RULE = {"target": "layers/.*_proj/kernel", "name": "lora", "rank": RANK, "alpha": 4, "start": "eva"}
RNG = np.random.default_rng(0)
LENGTHS = [24, 17, 21, 24, 12, 24]
DOCUMENTS = [RNG.integers(0, 61, n).astype(np.int32) for n in LENGTHS]


def _batch(documents):
  examples = [[Example(tokens, np.ones(len(tokens), bool))] for tokens in documents]
  return packing.assemble(examples, max(LENGTHS), 0)


BATCHES = [_batch(DOCUMENTS[:3]), _batch(DOCUMENTS[3:])]


@pytest.fixture(scope="module")
def base(tmp_path_factory):
  """A directory, the model, its parameters, and the moments of `BATCHES` at all projections."""
  torch.manual_seed(0)
  config = transformers.LlamaConfig(
    vocab_size=61,
    hidden_size=32,
    intermediate_size=32,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
  )
  theirs = transformers.LlamaForCausalLM(config)
  for parameter in theirs.parameters():
    torch.nn.init.normal_(parameter, std=0.2)
  directory = tmp_path_factory.mktemp("llama")
  theirs.save_pretrained(directory)
  model, params, _ = models.load(directory)
  paths = [path for path in tree.flatten(params) if path.endswith("_proj/kernel")]
  return (
    directory,
    model,
    params,
    models.watched(model, {"params": params}, paths, BATCHES, Moments.none),
  )


def _modules(model):
  return {
    path: name
    for path, (name, _) in families.find(model.config.family).modules(model.config).items()
  }


def _theirs(directory):
  return transformers.AutoModelForCausalLM.from_pretrained(directory).eval()


def _inputs():
  """All documents as one padded batch, as PEFT takes it."""
  batch = _batch(DOCUMENTS)
  mask = torch.tensor((batch["segments"] > 0).astype(np.int64))
  return {"input_ids": torch.tensor(batch["tokens"].astype(np.int64)), "attention_mask": mask}


def test_moments_are_those_of_recorded_inputs(base):
  directory, model, _, moments = base
  theirs, recorded, inputs = _theirs(directory), {}, _inputs()
  for path in moments:
    for layer in range(2):
      theirs.get_submodule(_modules(model)[path].format(layer)).register_forward_hook(
        lambda module, args, out, key=(path, layer): recorded.update({key: args[0].numpy()})
      )
  with torch.no_grad():
    theirs(**inputs)
  real = inputs["attention_mask"].numpy() > 0
  for (path, layer), x in recorded.items():
    rows = x[real].astype(np.float64)
    seen = moments[path]
    assert seen.count[layer] == sum(LENGTHS)
    scale = np.abs(rows.T @ rows).max()
    np.testing.assert_allclose(seen.products[layer], rows.T @ rows, atol=1e-5 * scale)
    _, values, vectors = np.linalg.svd(rows - rows.mean(0))
    directions, shares = eva.principal(seen.covariance(layer), RANK)
    np.testing.assert_allclose(shares, (values**2 / (values**2).sum())[:RANK], atol=1e-5)
    near = np.abs(np.sum(directions.T * vectors[:RANK], axis=1))
    np.testing.assert_allclose(near, 1, atol=1e-3)


def test_ranks_and_directions_are_those_of_peft(base):
  directory, model, params, moments = base
  adapters = peft.begin(peft.attach([RULE], params, KEY), moments)
  config = hf_peft.LoraConfig(
    r=RANK,
    lora_alpha=4,
    target_modules="all-linear",
    init_lora_weights="eva",
    eva_config=EvaConfig(rho=2.0),
    task_type="CAUSAL_LM",
  )
  theirs = hf_peft.get_peft_model(_theirs(directory), config)
  hf_peft.initialize_lora_eva_weights(theirs, [_inputs()], show_progress_bar=False)
  ranks = {"ours": [], "theirs": []}
  for path, node in peft.sites(adapters):
    for layer in range(2):
      module = theirs.get_submodule(f"base_model.model.{_modules(model)[path].format(layer)}")
      wanted = module.lora_A["default"].weight.detach().numpy()
      ranks["ours"].append(node.ranks[layer])
      ranks["theirs"].append(len(wanted))
      own = np.asarray(node.a[layer])
      np.testing.assert_allclose(own[:, node.ranks[layer] :], 0)
      # Of directions that both have, the angles between the spaces of all but the last.
      both = min(len(wanted), node.ranks[layer]) - 1
      cosines = np.linalg.svd(wanted[:both] @ own[:, : both + 1])[1]
      assert cosines.min() > 0.99, (path, layer, cosines)
      assert float(node.scale[layer]) == pytest.approx(module.scaling["default"])
  # Projections of the same input tie, and whichever is last gets what is left.
  assert sum(ranks["ours"]) == sum(ranks["theirs"]) == 14 * RANK
  assert np.abs(np.subtract(ranks["ours"], ranks["theirs"])).max() <= 1
  assert len(set(ranks["ours"])) > 2


def test_it_changes_nothing_at_first_and_is_the_same_each_time(base):
  _, model, params, moments = base
  apply = jax.jit(model.clone(unroll=1).apply)
  new = peft.attach([RULE | {"rho": 3.0}], params, KEY)
  assert set(peft.waiting(new)) == set(moments)
  adapters, again = peft.begin(new, moments), peft.begin(new, moments)
  assert not peft.waiting(adapters) and peft.trainable_paths(adapters) == peft.trainable_paths(new)
  tokens = BATCHES[0]["tokens"]
  np.testing.assert_array_equal(
    apply({"params": params, "adapters": adapters}, tokens), apply({"params": params}, tokens)
  )
  jax.tree.map(np.testing.assert_array_equal, adapters, again)


def test_ranks_go_where_most_is_explained():
  shares = {
    "x": [np.array([0.9, 0.05, 0.03]), np.array([0.4, 0.3, 0.2])],
    "y": [np.array([0.5, 0.49, 0.01])],
  }
  assert eva.redistribute({"x": (2, 2), "y": (2,)}, shares) == {"x": (1, 3), "y": (2,)}


def test_a_layer_of_no_rank_has_no_adapter(base):
  _, _, params, moments = base
  rule = RULE | {"target": "layers/mlp/up_proj/kernel", "rank": 1, "rho": 2.0}
  ((_, node),) = peft.sites(peft.begin(peft.attach([rule], params, KEY), moments))
  assert sorted(node.ranks) in ([0, 2], [1, 1])
  np.testing.assert_array_equal(node.scale > 0, np.array(node.ranks) > 0)


@pytest.mark.parametrize(
  ("change", "told"),
  [
    ({"rho": 0.5}, "rho 0.5 and batches 8 of EVA start at 1"),
    ({"start": "", "rho": 2.0}, "rho at .*: for the start 'eva', not for ''"),
    ({"start": "ewa"}, "start 'ewa' is unknown; did you mean 'eva'"),
    ({"target": "lm_head/kernel"}, "EVA is for projections of layers, which 'lm_head/kernel'"),
  ],
)
def test_rules_that_cannot_be(base, change, told):
  with pytest.raises(ValueError, match=told):
    peft.attach([RULE | change], base[2], KEY)


def test_inputs_that_were_not_measured(base):
  _, model, params, moments = base
  with pytest.raises(ValueError, match="begins by what it reads, and that was not measured"):
    peft.begin(peft.attach([RULE], params, KEY), {})
  with pytest.raises(ValueError, match="which 'lm_head/kernel' is not"):
    models.watched(model, {"params": params}, ["lm_head/kernel"], BATCHES, Moments.none)

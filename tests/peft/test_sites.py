"""Methods at prompts, tables, keys and values and after sub-layers: one test over all, and PEFT.

Documents are of several lengths, so that what is packed, padded or cached would show.
"""

import copy
import json
import types
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import peft as hf_peft
import pytest
import torch
import transformers
from safetensors.numpy import load_file

from research import models, objectives, peft
from research.core import tree
from research.data import packing
from research.data.examples import Example
from research.loop import state as state_lib
from research.loop import step as step_lib
from research.models import families
from research.models.unrolled import unroll, unstack
from research.optim import schedules
from research.peft.bottleneck import Bottleneck
from research.peft.interchange import adapterhub
from research.peft.p_tuning import EncodedPrompt
from research.peft.prefix import Prefix
from research.peft.prompt import Prompt

KEY = jax.random.key(0)
LLAMA = {
  "model_type": "llama",
  "vocab_size": 61,
  "hidden_size": 32,
  "intermediate_size": 48,
  "num_hidden_layers": 2,
  "num_attention_heads": 4,
  "num_key_value_heads": 2,
  "max_position_embeddings": 64,
}
GPT2 = {
  "model_type": "gpt2",
  "vocab_size": 61,
  "n_embd": 32,
  "n_layer": 2,
  "n_head": 4,
  "n_positions": 64,
}
LORA = {"target": "layers/.*_proj/kernel", "name": "lora", "rank": 2}
ADALORA = {"target": "layers/.*_proj/kernel", "name": "adalora", "init_r": 3, "target_r": 2}
ADALORA["orth_reg_weight"] = 0.0  # which is no part of the objective
PREFIX = {"name": "prefix", "tokens": 5}
AFTER_MLP = {"name": "bottleneck", "target": "layers/mlp_out", "size": 4}
# Rules, and the family that they are tried on.
METHODS = {
  "after both": ([{"name": "bottleneck", "size": 4, "activation": "gelu"}], "llama"),
  "parallel": ([AFTER_MLP | {"reads": "input", "scale": 4.0, "layer_norm": True}], "gpt2"),
  "projected prefix": ([PREFIX | {"projection": True, "hidden_size": 6}], "gpt2"),
  "p-tuning": ([{"name": "p_tuning", "tokens": 5, "hidden_size": 7}], "llama"),
  "prefix and lora": ([LORA, PREFIX], "llama"),
  "adalora and tokens": ([ADALORA, {"name": "trainable_tokens", "tokens": [9, 2, 50]}], "gpt2"),
}
DOCUMENTS = [list(range(1, 8)), [9, 3, 9], list(range(40, 52)), [60, 2, 2, 58]]
ROWS, LENGTH = 4, 40


def _theirs(name):
  """A random model of transformers', whose numbers matter."""
  torch.manual_seed(0)
  model = transformers.AutoModelForCausalLM.from_config(
    transformers.AutoConfig.for_model(**{"llama": LLAMA, "gpt2": GPT2}[name])
  )
  for parameter in model.parameters():
    torch.nn.init.normal_(parameter, std=0.2)
  return model.eval()


@pytest.fixture(scope="module")
def bases(tmp_path_factory):
  """By family: a directory, the model and its parameters."""
  found = {}
  for name in ("llama", "gpt2"):
    directory = tmp_path_factory.mktemp(name)
    _theirs(name).save_pretrained(directory)
    found[name] = (directory, *models.load(directory)[:2])
  return found


def _trained(adapters):
  """As after training: nothing that may differ from zero is zero."""
  trained = peft.trainable_paths(adapters)

  def change(path, leaf):
    if path not in trained:
      return leaf
    key = jax.random.fold_in(KEY, sum(map(ord, path)))
    return leaf + 0.2 * jax.random.normal(key, leaf.shape)

  return tree.map_with_path(change, adapters)


def _batch(documents, adapters, rows):
  """The documents with virtual tokens in front, in so many of `ROWS` rows."""
  count = len(peft.virtual_ids(adapters))
  examples = [
    Example(np.array(tokens, np.int32), np.ones(len(tokens), bool)).led_by(count)
    for tokens in documents
  ]
  placed = [examples[i::rows] for i in range(rows)]
  return packing.assemble(placed + [[]] * (ROWS - rows), LENGTH, 0)


@pytest.fixture(scope="module", params=METHODS)
def method(request, bases):
  """The model, its variables, and a compiled `(adapters, batch) -> logits [B, S, V]`."""
  rules, family = METHODS[request.param]
  _, model, params = bases[family]
  adapters = _trained(peft.attach(rules, params, KEY))

  @jax.jit
  def forward(adapters, batch):
    variables = peft.materialize({"params": params, "adapters": adapters})
    return model.apply(variables, batch["tokens"], batch["positions"], batch["segments"])

  return model, {"params": params, "adapters": adapters}, forward


def _by_document(logits, batch):
  """Of each document in order of its first real token: the logits at its real tokens."""
  found = {}
  for r in range(ROWS):
    for number in range(1, batch["segments"][r].max() + 1):
      here = (batch["segments"][r] == number) & (batch["tokens"][r] >= 0)
      found[tuple(batch["tokens"][r][here])] = np.asarray(logits[r])[here]
  return found


def _plain(method, documents):
  """The logits `[S, V]` after every token of each document, a document a row."""
  _, variables, forward = method
  batch = _batch(documents, variables["adapters"], len(documents))
  found = _by_document(forward(variables["adapters"], batch), batch)
  return [found[tuple(tokens)] for tokens in documents]


def test_packed_is_one_by_one(method):
  _, variables, forward = method
  packed = _batch(DOCUMENTS, variables["adapters"], 2)
  assert packed["segments"].max() == 2
  got = _by_document(forward(variables["adapters"], packed), packed)
  for tokens, expected in zip(DOCUMENTS, _plain(method, DOCUMENTS), strict=True):
    np.testing.assert_allclose(got[tuple(tokens)], expected, atol=2e-5)


def test_through_the_cache_is_the_whole_row(method):
  """A prompt at once and the rest token by token; every way to write is in tests/generation."""
  model, variables, _ = method
  model, variables = unroll(model, peft.materialize(variables))
  lead = peft.virtual_ids(variables["adapters"])
  tokens = jnp.array([[*lead, *DOCUMENTS[2]]])
  read = jax.jit(lambda v, tokens, cache: model.apply(v, tokens, cache=cache))
  size = len(lead) + 9
  logits, cache = read(variables, tokens[:, :size], model.init_cache(1, tokens.shape[1]))
  found = [logits[0, len(lead) :]]
  for at in range(size, tokens.shape[1]):
    logits, cache = read(variables, tokens[:, at : at + 1], cache)
    found.append(logits[0])
  np.testing.assert_allclose(np.concatenate(found), _plain(method, [DOCUMENTS[2]])[0], atol=5e-5)


def _loss(model, variables, batch):
  total, weight, _ = objectives.causal()(model, peft.materialize(variables), batch, None, None)
  return total / weight


@pytest.fixture(scope="module")
def slopes(method):
  """`(model, variables) -> (loss, gradients)` of adapters, flat; and those of an array a layer."""
  model, variables, _ = method
  batch = _batch(DOCUMENTS, variables["adapters"], 4)

  @partial(jax.jit, static_argnums=0)
  def take(model, variables):
    def loss(adapters):
      return _loss(model, {**variables, "adapters": adapters}, batch)

    found, gradients = jax.value_and_grad(loss)(variables["adapters"])
    return found, tree.flatten(gradients)

  return take, take(model, unstack(variables))


def test_gradients_are_alike_in_all_forms_of_the_model(method, slopes):
  """A compiled loop over layers, activations computed again, and an array a layer."""
  model, variables, _ = method
  take, (expected_loss, expected) = slopes
  loss, found = take(model.clone(unroll=1, remat=True), variables)
  np.testing.assert_allclose(loss, expected_loss, rtol=1e-5)
  for path in peft.trainable_paths(variables["adapters"]):
    scale = np.abs(expected[path]).max()
    assert scale > 0, path
    np.testing.assert_allclose(found[path], expected[path], atol=1e-4 * scale, err_msg=path)


def test_a_step_in_slices_is_the_whole_gradient_in_the_adapter_alone(method, slopes):
  model, variables, _ = method
  trained = peft.trainable_paths(variables["adapters"])
  trainable, frozen = tree.partition(
    variables, lambda path, _: path.removeprefix("adapters/") in trained
  )
  optimizer = optax.named_chain(("descent", optax.scale(-1.0)))
  step = step_lib.make_step(
    model, objectives.causal(), optimizer, schedules.linear(1.0, 10), accumulate_steps=2, seed=0
  )
  state = state_lib._initial(trainable, optimizer)
  batch = _batch(DOCUMENTS, variables["adapters"], 4)
  before, after = (
    tree.flatten(values) for values in (trainable, jax.jit(step)(state, frozen, batch)[0].trainable)
  )
  assert {path.removeprefix("adapters/") for path in after} == trained
  for path in trained:
    slope = slopes[1][1][path]
    change = before[f"adapters/{path}"] - after[f"adapters/{path}"]
    atol = 2e-4 * np.abs(slope).max() + 1e-6
    np.testing.assert_allclose(change, slope, atol=atol, err_msg=path)


def test_bfloat16_is_the_same_up_to_rounding(method, slopes):
  model, variables, _ = method
  take, (expected_loss, expected) = slopes
  params = jax.tree.map(lambda x: x.astype(jnp.bfloat16), variables["params"])
  loss, found = take(model.clone(dtype=jnp.bfloat16), {**variables, "params": params})
  np.testing.assert_allclose(loss, expected_loss, rtol=0.05)
  for path in peft.trainable_paths(variables["adapters"]):
    one, two = (np.asarray(x[path], np.float64).ravel() for x in (expected, found))
    assert found[path].dtype == jnp.float32
    assert one @ two > 0.9 * np.linalg.norm(one) * np.linalg.norm(two), path


@pytest.mark.parametrize("name", ["after both", "parallel"])
def test_a_new_bottleneck_changes_no_bit(bases, name):
  rules, family = METHODS[name]
  _, model, params = bases[family]
  adapters = peft.attach(rules, params, KEY)
  apply, tokens = jax.jit(model.apply), jnp.array([DOCUMENTS[2]])
  before, after = (apply({"params": params, "adapters": a}, tokens) for a in ({}, adapters))
  np.testing.assert_array_equal(before, after)


@pytest.mark.parametrize("reads", ["output", "input", "sum", "stream"])
def test_a_bottleneck_is_what_its_equation_says(reads):
  rng = np.random.default_rng(0)
  shapes = {"down": (6, 3), "bias_down": 3, "up": (3, 6), "bias_up": 6}
  shapes |= {"scale_norm": 6, "bias_norm": 6}
  arrays = {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}
  value, x, stream = rng.normal(size=(3, 2, 5, 6)).astype(np.float32)
  z = {"output": value, "input": x, "sum": value + stream, "stream": stream}[reads]
  z = torch.nn.functional.layer_norm(
    torch.tensor(z), (6,), *(torch.tensor(arrays[n]) for n in ("scale_norm", "bias_norm"))
  ).numpy()
  low = np.tanh(z @ arrays["down"] + arrays["bias_down"])
  expected = value + 2.5 * (low @ arrays["up"] + arrays["bias_up"])
  made = Bottleneck(**arrays, reads=reads, activation="tanh", scale=2.5)
  np.testing.assert_allclose(made(value, x=x, stream=stream), expected, atol=1e-5)


def test_a_bottleneck_drops_in_training_and_keeps_the_mean():
  arrays = {"down": jnp.ones((1, 1)), "bias_down": jnp.zeros(1)}
  arrays |= {"up": jnp.ones((1, 1)), "bias_up": jnp.zeros(1), "scale_norm": None, "bias_norm": None}
  made = Bottleneck(**arrays, dropout=0.25)
  value = jnp.ones((1, 4096, 1))
  np.testing.assert_array_equal(made(value, x=value, stream=value), 2 * value)
  out = made(value, x=value, stream=value, rng=KEY)
  assert out.mean() == pytest.approx(2.0, abs=0.05) and out.std() > 0.3


# PEFT

TOKENS = np.random.default_rng(0).integers(0, 61, (2, 10)).astype(np.int32)
CONFIGS = {
  "prefix": (
    PREFIX,
    hf_peft.PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=5),
  ),
  "projected prefix": (
    PREFIX | {"projection": True, "hidden_size": 6},
    hf_peft.PrefixTuningConfig(
      task_type="CAUSAL_LM", num_virtual_tokens=5, prefix_projection=True, encoder_hidden_size=6
    ),
  ),
  "prompt": (
    {"name": "prompt", "tokens": 5},
    hf_peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=5),
  ),
  "p-tuning": (
    {"name": "p_tuning", "tokens": 5, "hidden_size": 7},
    hf_peft.PromptEncoderConfig(task_type="CAUSAL_LM", num_virtual_tokens=5, encoder_hidden_size=7),
  ),
}


def _modules(model):
  return families.find(model.config.family).modules(model.config)


@pytest.fixture(scope="module")
def apply():
  """`(model, params, adapters) -> logits` of `TOKENS` after their virtual tokens."""
  # A loop over the layers compiles in half the time.
  program = jax.jit(
    lambda model, v, tokens: model.clone(unroll=1).apply(v, tokens), static_argnums=0
  )

  def run(model, params, adapters):
    lead = np.tile(np.array(peft.virtual_ids(adapters), np.int32), (2, 1))
    tokens = np.concatenate([lead, TOKENS], axis=1)
    return program(model, {"params": params, "adapters": peft.materialize(adapters)}, tokens)

  return run


def _logits(theirs):
  with torch.no_grad():
    return theirs(torch.tensor(TOKENS.astype(np.int64))).logits.numpy()


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_peft_both_ways(bases, apply, tmp_path, family, name):
  directory, model, params = bases[family]
  rule, config = CONFIGS[name]
  ours = _trained(peft.attach([rule], params, KEY))
  peft.save(tmp_path / "ours", ours, _modules(model), base_model=str(directory))
  base = transformers.AutoModelForCausalLM.from_pretrained(directory)
  read = hf_peft.PeftModel.from_pretrained(base, tmp_path / "ours").eval()
  expected = apply(model, params, ours)
  np.testing.assert_allclose(_logits(read), expected, atol=1e-4)
  assert np.abs(expected[:, -10:] - apply(model, params, {})).max() > 0.1

  base = transformers.AutoModelForCausalLM.from_pretrained(directory)
  theirs = hf_peft.get_peft_model(base, copy.deepcopy(config)).eval()
  count = sum(tree.flatten(ours)[path].size for path in peft.trainable_paths(ours))
  assert theirs.get_nb_trainable_parameters()[0] == count
  theirs.save_pretrained(tmp_path / "theirs")
  loaded = peft.load(tmp_path / "theirs", params, _modules(model))
  np.testing.assert_allclose(apply(model, params, loaded), _logits(theirs), atol=1e-4)

  peft.save(tmp_path / "again", loaded, _modules(model))
  again = peft.load(tmp_path / "again", params, _modules(model))
  jax.tree.map(np.testing.assert_array_equal, again, loaded)
  kinds = {
    "prefix": Prefix,
    "projected prefix": Prefix,
    "prompt": Prompt,
    "p-tuning": EncodedPrompt,
  }
  assert kinds[name] in {type(adapter) for _, adapter in peft.sites(again)}


def test_the_loss_after_virtual_tokens_is_that_of_peft(bases, tmp_path):
  """Which counts the first real token, that the last virtual one predicts."""
  directory, model, params = bases["llama"]
  adapters = _trained(peft.attach([{"name": "prompt", "tokens": 5}], params, KEY))
  peft.save(tmp_path, adapters, _modules(model))
  base = transformers.AutoModelForCausalLM.from_pretrained(directory)
  theirs = hf_peft.PeftModel.from_pretrained(base, tmp_path).eval()
  tokens = torch.tensor(TOKENS.astype(np.int64))
  batch = _batch(TOKENS, adapters, 2)
  assert batch["weights"].sum() == TOKENS.size
  variables = {"params": params, "adapters": adapters}
  loss = jax.jit(lambda v: _loss(model.clone(unroll=1), v, batch))(variables)
  with torch.no_grad():
    expected = theirs(tokens, labels=tokens).loss.item()
  np.testing.assert_allclose(loss, expected, rtol=1e-5)


@pytest.mark.parametrize(
  ("change", "message"),
  [
    ({"num_transformer_submodules": 2}, "num_transformer_submodules=2 cannot be honoured"),
    ({"modules_to_save": ["lm_head"]}, "modules_to_save"),
    ({"num_virtual_tokens": 4}, "4 virtual tokens, and the keys and values of 2 layers"),
  ],
)
def test_configs_that_cannot_be_honoured(bases, tmp_path, change, message):
  _, model, params = bases["llama"]
  peft.save(tmp_path, peft.attach([PREFIX], params, KEY), _modules(model))
  file = tmp_path / "adapter_config.json"
  file.write_text(json.dumps(json.loads(file.read_text()) | change))
  with pytest.raises(ValueError, match=message):
    peft.load(tmp_path, params, _modules(model))


def test_adapters_of_another_base(bases, tmp_path):
  _, model, params = bases["llama"]
  other = bases["gpt2"][2]
  for rule in (PREFIX, {"name": "prompt"}):
    peft.save(tmp_path, peft.attach([rule], params, KEY), _modules(model))
    fewer = {**params, "embed": {"embedding": params["embed"]["embedding"][:, :16]}}
    with pytest.raises(ValueError, match=r"prompt_embeddings is \("):
      peft.load(tmp_path, other if rule is PREFIX else fewer, _modules(model))


# AdapterHub


@pytest.mark.parametrize("family", ["llama", "gpt2"])
@pytest.mark.parametrize("reads", ["output", "sum", "stream", "input"])
def test_bottlenecks_come_back_from_files(bases, tmp_path, family, reads):
  _, model, params = bases[family]
  rule = {"name": "bottleneck", "size": 5, "reads": reads, "layer_norm": True, "activation": "silu"}
  adapters = _trained(peft.attach([rule | {"scale": 2.0, "dropout": 0.1}], params, KEY))
  peft.save(tmp_path, adapters, _modules(model))
  assert (tmp_path / adapterhub.FILE).exists() == (reads != "input")
  again = peft.load(tmp_path, params, _modules(model))
  assert jax.tree.structure(again) == jax.tree.structure(adapters)
  jax.tree.map(np.testing.assert_array_equal, again, adapters)


HUB = Path(__file__).parent / "adapterhub"


@pytest.mark.parametrize("case", ["houlsby", "pfeiffer", "normed", "parallel"])
@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_what_adapterhub_wrote(tmp_path, family, case):
  """Its files and its models' logits are beside `adapterhub/make.py`, which made them."""
  shape = {"vocab_size": 32, "tie_word_embeddings": family == "gpt2"}
  if family == "llama":
    shape |= {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2}
    shape |= {"num_attention_heads": 2, "max_position_embeddings": 32}
  else:
    shape |= {"n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 32}
  theirs = transformers.AutoModelForCausalLM.from_config(
    transformers.AutoConfig.for_model(family, **shape)
  )
  tensors = dict(theirs.named_parameters())
  for number, name in enumerate(sorted(tensors)):
    values = np.random.default_rng(number).normal(size=tuple(tensors[name].shape)) * 0.3
    tensors[name].data.copy_(torch.tensor(values, dtype=torch.float32))
  theirs.save_pretrained(tmp_path)
  model, params, _ = models.load(tmp_path)
  directory = HUB / f"{family}_{case}"
  adapters = peft.load(directory, params, _modules(model))
  tokens = jnp.array([[3, 1, 4, 1, 5, 9, 2, 6]])
  logits = model.apply({"params": params, "adapters": adapters}, tokens)
  expected = np.load(directory / "logits.npy")
  np.testing.assert_allclose(logits, expected, rtol=1e-4, atol=1e-4 * np.abs(expected).max())
  # And what we would write is what they wrote.
  config, ours = adapterhub.write(adapters, _modules(model))
  told = json.loads((directory / "adapter_config.json").read_text())
  assert config["config"].items() <= told["config"].items()
  written = load_file(directory / adapterhub.FILE)
  assert ours.keys() == written.keys()
  for name, value in ours.items():
    np.testing.assert_array_equal(value, written[name], err_msg=name)


def test_adapterhubs_names_and_numbers(bases):
  """As of its package, by whose sources they were checked; its width is `int(D // factor)`."""
  _, model, params = bases["llama"]
  rules = [{"name": "bottleneck", "target": "layers/mlp_out", "size": 5, "layer_norm": True}]
  config, tensors = adapterhub.write(peft.attach(rules, params, KEY), _modules(model))
  at = "model.layers.1.output_adapters.adapters.adapter"
  assert {name for name in tensors if name.startswith("model.layers.1")} == {
    f"{at}.{name}.{part}"
    for name in ("adapter_down.0", "adapter_down.1", "adapter_up", "adapter_norm_before")
    for part in ("weight", "bias")
  }
  assert tensors[f"{at}.adapter_down.1.weight"].shape == (5, 32)
  assert tensors[f"{at}.adapter_up.weight"].shape == (32, 5)
  method = config["config"]
  assert int(32 // method["reduction_factor"]) == 5
  assert (method["mh_adapter"], method["output_adapter"]) == (False, True)
  with pytest.raises(ValueError, match="inv_adapter='nice' cannot be honoured"):
    changed = config | {"config": method | {"inv_adapter": "nice"}}
    adapterhub.read(changed, tensors, params, _modules(model))
  with pytest.raises(ValueError, match="of no layer of the model: model.layers.1"):
    short = jax.tree.map(lambda leaf: leaf[:1] if leaf.ndim == 3 else leaf, params)
    adapterhub.read(config, tensors, short, _modules(model))


# A prefix that begins with tokens


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_a_prefix_of_a_text_is_that_text_in_front(bases, family):
  _, model, params = bases[family]
  rule = {"name": "prefix", "tokens": 7, "init": "text", "text": "said again"}
  said = types.SimpleNamespace(encode=lambda text: [5, 17, 11, 3, 23])
  begun = peft.attach([rule], params, KEY, said)
  own = jnp.asarray([[2, 4, 9, 9]])
  with pytest.raises(ValueError, match="call peft.prefill first"):
    model.apply({"params": params, "adapters": begun}, own)
  adapters = peft.prefill(begun, model, params)
  found = jax.jit(model.apply)({"params": params, "adapters": adapters}, own)
  whole = jnp.asarray([[5, 17, 11, 3, 23, 5, 17, 2, 4, 9, 9]])
  expected = jax.jit(model.apply)({"params": params}, whole)[:, 7:]
  np.testing.assert_allclose(found, expected, atol=1e-4)
  assert peft.prefill(adapters, model, params) is adapters


# What cannot be


def test_rules_that_cannot_be(bases):
  params = bases["llama"][2]
  for rule, message in (
    ({"name": "prefix", "target": "layers/attention/kv2"}, r"matches none.*attention/kv'"),
    ({"name": "prefix", "tokens": 0}, "1 virtual token or more"),
    ({"name": "prefix", "projection": True, "init": "vocabulary"}, "not for a prefix that a net"),
    ({"name": "prefix", "hidden_size": 3}, "set projection=True"),
    ({"name": "prefx"}, "has no target.*did you mean 'prefix'"),
    ({"name": "prompt", "tokns": 3}, "did you mean 'tokens'"),
    ({"name": "prompt", "init": "vocab"}, "did you mean 'vocabulary'"),
    ({"name": "prompt", "init": "text"}, "a text goes with init 'text'"),
    ({"name": "prompt", "init": "text", "text": "hi"}, "needs the model's tokenizer"),
    ({"name": "p_tuning", "encoder": "lstm"}, "there is no 'lstm'"),
    ({"name": "bottleneck", "size": 0}, "1 or more"),
    ({"name": "bottleneck", "reads": "inputs"}, "did you mean 'input'"),
    ({"name": "bottleneck", "activation": "selu"}, "is none of relu, gelu"),
    ({"name": "prefx", "target": ".*kernel"}, "did you mean 'prefix'"),
  ):
    with pytest.raises(ValueError, match=message):
      peft.attach([rule], params, KEY)
  shapes = jax.eval_shape(lambda: params)
  with pytest.raises(ValueError, match="needs the embeddings, not their shapes"):
    peft.attach([{"name": "prompt", "init": "vocabulary"}], shapes, KEY)
  with pytest.raises(ValueError, match="Prefix at 'layers/attention/kv' is no change of a kernel"):
    peft.merge(params, peft.attach([PREFIX], params, KEY))
  with pytest.raises(TypeError, match=r"peft\.materialize"):
    adapters = peft.attach([{"name": "p_tuning"}], params, KEY)
    bases["llama"][1].apply({"params": params, "adapters": adapters}, jnp.zeros((1, 2), jnp.int32))


@pytest.mark.parametrize(
  ("config", "kind"),
  [
    (
      {"model_type": "bert", "vocab_size": 9, "hidden_size": 8, "num_hidden_layers": 1}
      | {"num_attention_heads": 2, "intermediate_size": 8, "max_position_embeddings": 8},
      "an encoder",
    ),
    (
      {"model_type": "t5", "vocab_size": 9, "d_model": 8, "d_kv": 4, "d_ff": 8, "num_layers": 1}
      | {"num_heads": 2, "decoder_start_token_id": 0},
      "an encoder-decoder",
    ),
  ],
)
def test_other_models_take_bottlenecks_alone(config, kind):
  model = models.build(config)
  tokens = jnp.zeros((1, 3), jnp.int32)
  params = jax.jit(model.init)(KEY, tokens)["params"]
  for name in ("prefix", "prompt", "p_tuning"):
    with pytest.raises(ValueError, match=f"is for decoders, and this model is {kind}$"):
      peft.attach([{"name": name}], params, KEY)
  adapters = peft.attach([{"name": "bottleneck", "size": 2}], params, KEY)
  assert [p.rpartition("/")[2] for p, _ in peft.sites(adapters)].count("mlp_out") == 1 + (
    kind == "an encoder-decoder"
  )
  source = {"source_tokens": tokens} if kind == "an encoder-decoder" else {}
  before, after = (
    model.apply({"params": params, "adapters": a}, tokens, method="hidden", **source)
    for a in (adapters, _trained(adapters))
  )
  assert np.abs(after - before).max() > 1e-3


def test_a_prompt_begins_with_words(bases, byte_tokenizer):
  params = {**bases["llama"][2], "embed": {"embedding": jax.random.normal(KEY, (258, 32))}}
  table = params["embed"]["embedding"]

  def embeddings(**rule):
    adapters = peft.attach([{"name": "prompt", "tokens": 5, **rule}], params, KEY, byte_tokenizer)
    return adapters["embed"]["prompt"].embedding

  words = byte_tokenizer.encode("abc")
  np.testing.assert_array_equal(
    embeddings(init="text", text="abc"), table[jnp.array((words * 5)[:5])]
  )
  drawn = embeddings(init="vocabulary")
  assert all(any(np.array_equal(row, known) for known in table) for row in drawn)
  assert len({row.tobytes() for row in np.asarray(drawn)}) > 1

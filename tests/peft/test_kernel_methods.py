"""DoRA, VeRA, IA3, AdaLoRA and LoRA: against PEFT, plain forms and in every way to run."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import peft as hf_peft
import pytest
import torch
import transformers
from safetensors.numpy import load_file, save_file

from research import models, peft
from research.core import tree
from research.models import families
from research.models.unrolled import unroll, unstack
from research.peft import dora

KEY = jax.random.key(0)
TOKENS = np.random.default_rng(0).integers(0, 61, (2, 10)).astype(np.int32)
LLAMA = {
  "vocab_size": 61,
  "hidden_size": 32,
  "intermediate_size": 48,
  "num_hidden_layers": 2,
  "num_attention_heads": 4,
  "num_key_value_heads": 2,
}
GPT2 = {"vocab_size": 61, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64}
ALL = "layers/.*_proj/kernel"
# GPT-2 fuses queries, keys and values, at which PEFT has one VeRA.
APART = "layers/(attention/o|mlp/(up|down))_proj/kernel"

# Rules and PEFT's config of the same, of all layers and of the second alone.
CASES = {
  "llama-embedding": (
    {"target": "embed/embedding", "name": "embedding_lora", "rank": 4, "alpha": 8},
    hf_peft.LoraConfig(r=4, lora_alpha=8, target_modules=["embed_tokens"]),
    hf_peft.LoraConfig(r=4, target_modules=["embed_tokens", "layers.1.mlp.up_proj"]),
  ),
  "gpt2-embedding": (  # whose head is the table
    {"target": "embed/embedding", "name": "embedding_lora", "rank": 4, "rank_stabilized": True},
    hf_peft.LoraConfig(r=4, use_rslora=True, target_modules=["wte"]),
    None,
  ),
  "llama-dora": (
    {"target": ALL, "name": "dora", "rank": 4, "rank_pattern": {"layers/1/mlp/.*": 2}},
    hf_peft.LoraConfig(
      use_dora=True,
      r=4,
      lora_alpha=8,
      target_modules="all-linear",
      rank_pattern={r".*\.1\.mlp\..*": 2},
    ),
    hf_peft.LoraConfig(
      use_dora=True, target_modules=["q_proj", "down_proj"], layers_to_transform=[1]
    ),
  ),
  "gpt2-dora": (
    {"target": ALL, "name": "dora", "rank": 4, "rank_stabilized": True},
    None,  # three adapters where PEFT has one
    hf_peft.LoraConfig(use_dora=True, r=3, target_modules=["c_attn"], layers_to_transform=[1]),
  ),
  "llama-vera": (
    {"target": ALL, "name": "vera", "rank": 40},
    hf_peft.VeraConfig(r=40, target_modules="all-linear"),
    hf_peft.VeraConfig(r=8, target_modules=["q_proj", "down_proj"], layers_to_transform=[1]),
  ),
  "gpt2-vera": (
    {"target": APART, "name": "vera", "rank": 8},
    hf_peft.VeraConfig(r=8, target_modules=["c_fc", "c_proj"]),
    hf_peft.VeraConfig(r=8, target_modules=["c_attn", "c_fc"], layers_to_transform=[1]),
  ),
  "llama-ia3": (
    {"target": "layers/(attention/[kv]|mlp/down)_proj/kernel", "name": "ia3"},
    hf_peft.IA3Config(),
    hf_peft.IA3Config(
      target_modules=["layers.1.self_attn.q_proj", "layers.1.mlp.up_proj"],
      feedforward_modules=["layers.1.mlp.up_proj"],
    ),
  ),
  "gpt2-ia3": (
    {"target": "layers/(attention/[qkv]|mlp/down)_proj/kernel", "name": "ia3"},
    hf_peft.IA3Config(),
    hf_peft.IA3Config(
      target_modules=["h.1.attn.c_proj", "h.1.attn.c_attn"],
      feedforward_modules=["h.1.attn.c_proj"],
    ),
  ),
  "llama-adalora": (
    {"target": ALL, "name": "adalora", "init_r": 6, "target_r": 2, "alpha": 5},
    hf_peft.AdaLoraConfig(
      init_r=6, target_r=2, lora_alpha=5, total_step=9, target_modules="all-linear"
    ),
    hf_peft.AdaLoraConfig(
      init_r=3, total_step=9, target_modules=["q_proj", "down_proj"], layers_to_transform=[1]
    ),
  ),
  "gpt2-adalora": (
    {"target": ALL, "name": "adalora", "init_r": 4, "target_r": 2},
    None,  # three adapters where PEFT has one
    hf_peft.AdaLoraConfig(
      init_r=3, total_step=9, target_modules=["c_attn", "c_fc"], layers_to_transform=[1]
    ),
  ),
}


def _make(name):
  if name == "llama":
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(**LLAMA))
  return transformers.GPT2LMHeadModel(transformers.GPT2Config(**GPT2))


@pytest.fixture(scope="module")
def bases(tmp_path_factory):
  """name -> directory, model, params, compiled `apply`."""
  found = {}
  for name in ("llama", "gpt2"):
    torch.manual_seed(0)
    theirs = _make(name)
    for parameter in theirs.parameters():
      torch.nn.init.normal_(parameter, std=0.2)
    directory = tmp_path_factory.mktemp(name)
    theirs.save_pretrained(directory)
    model, params, _ = models.load(directory)
    # A loop over the layers compiles in half the time.
    found[name] = directory, model, params, jax.jit(model.clone(unroll=1).apply)
  return found


@pytest.fixture(params=CASES)
def case(request, bases):
  """The base of a case, its rule and PEFT's configs."""
  return *bases[request.param.split("-")[0]], *CASES[request.param]


def _modules(model):
  return families.find(model.config.family).modules(model.config)


def _trained(adapters):
  """As after training: every field that trains is another, where ranks leave it room."""
  trains = peft.trainable_paths(adapters)
  flat = tree.flatten(adapters)
  keys = dict(zip(sorted(flat), jax.random.split(KEY, len(flat)), strict=True))

  def change(path, leaf):
    if path not in trains:
      return leaf
    return leaf + 0.2 * jax.random.normal(keys[path], leaf.shape) * _room(path, flat)

  return tree.map_with_path(change, adapters)


def _room(path, flat):
  """1 where a factor may differ from zero; the columns of `a` tell, which begin so."""
  site, _, field = path.rpartition("/")
  if field not in ("a", "b") or site.startswith("embed/"):
    return 1
  live = (flat[f"{site}/a"] != 0).any(-2)  # [..., R]
  return live[..., None, :] if field == "a" else live[..., None]


def _theirs(base, adapter=None):
  theirs = transformers.AutoModelForCausalLM.from_pretrained(base)
  return hf_peft.PeftModel.from_pretrained(theirs, adapter).eval() if adapter else theirs


def _logits(theirs):
  with torch.no_grad():
    return theirs(torch.tensor(TOKENS.astype(np.int64))).logits.numpy()


def _count(adapters):
  flat = tree.flatten(adapters)
  return sum(flat[path].size for path in peft.trainable_paths(adapters))


def _near(got, want, tolerance):
  """Differences as a share of the largest of `want`."""
  np.testing.assert_allclose(got, want, rtol=0, atol=tolerance * np.abs(want).max())


def test_peft_reads_ours(case, tmp_path):
  directory, model, params, apply, rule, config, _ = case
  new = peft.attach([rule], params, KEY)
  # Bits: a new adapter is the base.
  np.testing.assert_array_equal(
    apply({"params": params, "adapters": new}, TOKENS), apply({"params": params}, TOKENS)
  )
  if config:
    counted = hf_peft.get_peft_model(_theirs(directory), config)
    # A rank below its stack's is held by zeros.
    missing = 0
    for _, adapter in peft.sites(new):
      if hasattr(adapter, "ranks"):
        each = adapter.a.shape[-2] + adapter.b.shape[-1]
        missing += sum(max(adapter.ranks) - rank for rank in adapter.ranks) * each
    assert _count(new) - missing == counted.get_nb_trainable_parameters()[0]
  adapters = _trained(new)
  peft.save(tmp_path, adapters, _modules(model), base_model=str(directory))
  ours = apply({"params": params, "adapters": adapters}, TOKENS)
  assert np.abs(ours - apply({"params": params}, TOKENS)).max() > 0.05
  np.testing.assert_allclose(ours, _logits(_theirs(directory, tmp_path)), atol=1e-4)


@pytest.mark.parametrize("some", [False, True])
def test_ours_reads_peft(case, tmp_path, some):
  directory, model, params, apply, _, config, of_some = case
  config = of_some if some else config
  if not config:
    pytest.skip("PEFT has no such adapter")
  torch.manual_seed(1)
  theirs = hf_peft.get_peft_model(_theirs(directory), config).eval()
  for parameter in theirs.parameters():
    if parameter.requires_grad:
      parameter.data += 0.2 * torch.randn_like(parameter)
  theirs.save_pretrained(tmp_path / "theirs")
  modules = _modules(model)
  adapters = peft.load(tmp_path / "theirs", params, modules)
  ours = apply({"params": params, "adapters": adapters}, TOKENS)
  np.testing.assert_allclose(ours, _logits(theirs), atol=1e-4)
  if "lm_head" in params or "embed" not in adapters:
    merged = apply({"params": peft.merge(params, adapters)}, TOKENS)
    _near(ours, merged, 1e-5)
  else:
    with pytest.raises(ValueError, match="'embed/embedding' is the head, too"):
      peft.merge(params, adapters)
  if not peft.obstacle(adapters, modules):
    peft.save(tmp_path / "ours", adapters, modules)
    np.testing.assert_allclose(ours, _logits(_theirs(directory, tmp_path / "ours")), atol=1e-4)
  else:
    assert "vera" in str(config.peft_type).lower()


# A method a site, so that one program has them all.
MIXED = [
  {"target": "embed/embedding", "name": "embedding_lora", "rank": 3},
  {
    "target": "layers/attention/q_proj/kernel",
    "name": "dora",
    "rank": 4,
    "rank_pattern": {"layers/0/.*": 2},
  },
  {"target": "layers/attention/k_proj/kernel", "name": "vera", "rank": 8},
  {"target": "layers/attention/v_proj/kernel", "name": "ia3"},
  {"target": "layers/attention/o_proj/kernel", "name": "lora", "rank": 4, "freeze_a": True},
  {"target": "layers/mlp/up_proj/kernel", "name": "adalora", "init_r": 4, "target_r": 2},
  {"target": "layers/mlp/down_proj/kernel", "name": "ia3"},
]


@pytest.fixture(scope="module")
def mixed(bases):
  """A model with biases, parameters, trained adapters of each method, and its logits."""
  _, model, params, apply = bases["gpt2"]
  adapters = _trained(peft.attach(MIXED, params, KEY))
  logits = np.asarray(apply({"params": params, "adapters": adapters}, TOKENS))
  return model, params, adapters, logits


def _plainly(params, adapters):
  """The adapted kernels and biases by the methods' definitions, a line each."""
  flat = dict(tree.flatten(params))
  for path, v in peft.sites(adapters):
    kernel = flat[path]
    match type(v).__name__:
      case "LoRA":
        flat[path] = kernel + v.scale[:, None, None] * v.a @ v.b
      case "AdaLoRA":
        flat[path] = kernel + v.scale[:, None, None] * (v.a * v.e[:, None, :]) @ v.b
      case "DoRA":
        new = kernel + v.scale[:, None, None] * v.a @ v.b
        norm = jax.lax.stop_gradient(jnp.linalg.norm(new, axis=1, keepdims=True))
        flat[path] = v.magnitude[:, None] * new / norm
      case "VeRA":
        flat[path] = kernel + (v.a * v.lambda_d[:, None]) @ v.b * v.lambda_b[:, None]
      case "IA3" if "down" in path:
        flat[path] = v.scale[:, :, None] * kernel
      case "IA3":
        flat[path] = v.scale[:, None] * kernel
        bias = path.replace("kernel", "bias")
        flat[bias] = v.scale * flat[bias]
  return tree.unflatten(flat)


def _loss(logits):
  return jnp.mean(jax.nn.log_softmax(logits)[..., 7] ** 2)


def test_functions_and_gradients_are_those_of_the_definitions(mixed):
  model, params, adapters, _ = mixed
  flat, structure = tree.flatten(adapters), jax.tree.structure(adapters)
  trains = peft.trainable_paths(adapters)
  fixed = {path: leaf for path, leaf in flat.items() if path not in trains}

  def build(values):
    return jax.tree.unflatten(structure, [{**fixed, **values}[path] for path in flat])

  def through_taps(values):
    return _loss(model.apply({"params": params, "adapters": build(values)}, TOKENS))

  def plainly(values):
    adapters = build(values)
    table, layers = adapters["embed"], {"layers": adapters["layers"]}
    merged = _plainly(params, layers)
    return _loss(model.apply({"params": merged, "adapters": {"embed": table}}, TOKENS))

  values = {path: flat[path] for path in trains}
  got, grads = jax.jit(jax.value_and_grad(through_taps))(values)
  want, expected = jax.jit(jax.value_and_grad(plainly))(values)
  np.testing.assert_allclose(got, want, rtol=1e-5)
  for path, grad in expected.items():
    assert np.abs(grad).max() > 1e-6, path
    _near(grads[path], grad, 1e-4)
  fields = {path.rsplit("/", 1)[1] for path in trains if "q_proj" in path}
  assert fields == {"a", "b", "magnitude"}
  assert {p.rsplit("/", 1)[1] for p in trains if "k_proj" in p} == {"lambda_b", "lambda_d"}
  assert {p.rsplit("/", 1)[1] for p in trains if "o_proj" in p} == {"b"}
  assert {p.rsplit("/", 1)[1] for p in trains if "v_proj" in p} == {"scale"}
  assert {p.rsplit("/", 1)[1] for p in trains if "up_proj" in p} == {"a", "b", "e"}


def test_merged_it_is_the_same_function(bases, mixed):
  _, _, _, apply = bases["gpt2"]
  _, params, adapters, _ = mixed
  adapters = {"layers": adapters["layers"]}  # the table is the head, too
  logits = apply({"params": params, "adapters": adapters}, TOKENS)
  _near(apply({"params": peft.merge(params, adapters)}, TOKENS), logits, 1e-5)


def _scan(model, variables):
  model = models.Decoder(model.config, unroll=1)
  return jax.jit(model.apply)(variables, TOKENS)


def _remat_and_unstacked(model, variables):
  model = models.Decoder(model.config, remat=True)
  return jax.jit(model.apply)(unstack(variables), TOKENS)


def _packed(model, variables):
  """Both rows in one, as two documents."""
  length = TOKENS.shape[1]
  positions = jnp.tile(jnp.arange(length), 2)[None]
  segments = jnp.repeat(jnp.arange(2) + 1, length)[None]
  out = jax.jit(model.apply)(variables, TOKENS.reshape(1, -1), positions, segments)
  return out.reshape(2, length, -1)


def _through_cache(model, variables):
  """7 tokens at once, then one by one."""
  model, variables = unroll(model, variables)
  apply = jax.jit(lambda tokens, cache: model.apply(variables, tokens, cache=cache))
  out, cache = apply(TOKENS[:, :7], model.init_cache(2, 10))
  found = [out]
  for i in range(7, 10):
    out, cache = apply(TOKENS[:, i : i + 1], cache)
    found.append(out)
  return jnp.concatenate(found, axis=1)


@pytest.mark.parametrize("way", [_scan, _remat_and_unstacked, _packed, _through_cache])
def test_every_way_to_run_is_the_same(mixed, way):
  model, params, adapters, logits = mixed
  _near(way(model, {"params": params, "adapters": adapters}), logits, 2e-5)


def test_remat_has_the_same_gradients(mixed):
  model, params, adapters, _ = mixed

  def gradients(model):
    loss = lambda a: _loss(model.apply({"params": params, "adapters": a}, TOKENS))  # noqa: E731
    return tree.flatten(jax.jit(jax.grad(loss))(adapters))

  got, want = gradients(models.Decoder(model.config, remat="products", unroll=1)), gradients(model)
  for path in peft.trainable_paths(adapters):
    _near(got[path], want[path], 1e-4)


def test_bfloat16(mixed):
  """As near as rounding lets it be, through stacks and through transposed kernels."""
  model, params, adapters, logits = mixed
  half = models.Decoder(model.config, jnp.bfloat16)
  params = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), params)
  variables = {"params": params, "adapters": adapters}
  whole = jax.jit(half.apply)(variables, TOKENS)
  _near(whole, logits, 0.05)
  _near(_through_cache(half, variables), whole, 0.03)


def test_a_column_of_zeros_has_no_direction():
  kernel = jnp.ones((3, 4)).at[:, 1].set(0)
  adapter = dora.init("kernel", kernel, KEY, rank=2)
  out = adapter(jnp.ones((2, 4)), x=jnp.ones((2, 3)), kernel=kernel)
  assert np.isfinite(out).all()


@pytest.mark.parametrize("name", ["lora", "dora", "vera", "ia3", "adalora"])
def test_sites_that_cannot_be(bases, name):
  _, _, params, _ = bases["gpt2"]
  with pytest.raises(ValueError, match=r"needs a matrix, .*'layers/mlp_norm/scale' \(2, 32\)"):
    peft.attach([{"target": "layers/mlp_norm/scale", "name": name}], params, KEY)
  with pytest.raises(ValueError, match="needs a matrix, .*'positions/embedding'"):
    peft.attach([{"target": "positions/.*", "name": name}], params, KEY)
  if name == "lora":
    return
  experts = {"layers": {"mlp": {"experts": {"up_proj": {"kernel": jnp.ones((2, 3, 4, 5))}}}}}
  with pytest.raises(ValueError, match="is not for the experts of a mixture"):
    peft.attach([{"target": ".*", "name": name}], experts, KEY)


def test_what_begins_from_numbers_needs_them(bases):
  shapes = jax.eval_shape(lambda: bases["gpt2"][2])
  peft.attach([MIXED[2], MIXED[3]], shapes, KEY)
  for rule in (MIXED[1], MIXED[4] | {"start": "olora"}):
    with pytest.raises(ValueError, match="begins from the numbers"):
      peft.attach([rule], shapes, KEY)


@pytest.mark.parametrize(
  ("rules", "told"),
  [
    (MIXED, "adapters of one method; these are"),
    ([MIXED[4], MIXED[1]], "LoRA, as at .*o_proj.*, or DoRA, as at .*q_proj.*, not both"),
    ([MIXED[1]], "DoRA at all of 'transformer.h.{}.attn.c_attn' or none"),
    ([MIXED[2]], "one VeRA for all of 'transformer.h.{}.attn.c_attn'"),
    ([MIXED[3] | {"feedforward": True}], "one vector of inputs for all of"),
    ([MIXED[4] | {"start": "pissa"}], "a part of its base; research.peft.plain"),
  ],
)
def test_what_peft_has_no_place_for(bases, tmp_path, rules, told):
  _, model, params, _ = bases["gpt2"]
  adapters = peft.attach(rules, params, KEY)
  with pytest.raises(ValueError, match=told):
    peft.save(tmp_path, adapters, _modules(model))
  assert not list(tmp_path.iterdir())


def test_files_that_cannot_be(bases, tmp_path):
  _, model, params, _ = bases["llama"]
  rule = {"target": ALL, "name": "vera", "rank": 8}
  peft.save(tmp_path, peft.attach([rule], params, KEY), _modules(model))
  file = tmp_path / "adapter_model.safetensors"
  whole = load_file(file)
  save_file({k: v for k, v in whole.items() if "vera_A" not in k}, file)
  with pytest.raises(ValueError, match="no vera_A and vera_B"):
    peft.load(tmp_path, params, _modules(model))
  lacking = "base_model.model.model.layers.1.mlp.up_proj.vera_lambda_b"
  save_file({k: v for k, v in whole.items() if k != lacking}, file)
  with pytest.raises(ValueError, match=r"no vera_lambda_b of 'model\.layers\.1\.mlp\.up_proj'"):
    peft.load(tmp_path, params, _modules(model))
  config = json.loads((tmp_path / "adapter_config.json").read_text())
  (tmp_path / "adapter_config.json").write_text(json.dumps(config | {"bias": "vera_only"}))
  with pytest.raises(ValueError, match="bias='vera_only' cannot be honoured"):
    peft.load(tmp_path, params, _modules(model))

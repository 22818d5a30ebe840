"""Encoders and their heads against `transformers`, float32, tiny and random; and MiniLM itself."""

import jax
import jax.numpy as jnp
import numpy as np
import peft as peft_lib
import pytest
import torch
import transformers

from research import models, peft
from research.core import tree
from research.io import safetensors
from research.models import families, heads, unrolled

LENGTH = 12
FAMILIES = {"bert": "Bert", "roberta": "Roberta", "distilbert": "DistilBert"}
KINDS = ("Model", "ForMaskedLM", "ForSequenceClassification", "ForTokenClassification")


def _theirs(family, kind):
  if family == "distilbert":
    shape = {"dim": 32, "hidden_dim": 48, "n_layers": 2, "n_heads": 4}
  else:
    shape = {
      "hidden_size": 32,
      "intermediate_size": 48,
      "num_hidden_layers": 2,
      "num_attention_heads": 4,
    }
  config = getattr(transformers, f"{FAMILIES[family]}Config")(
    vocab_size=97, max_position_embeddings=40, num_labels=3, **shape
  )
  torch.manual_seed(0)
  model = getattr(transformers, f"{FAMILIES[family]}{kind}")(config).eval()
  for parameter in model.parameters():  # the default init would hide most of what can go wrong
    torch.nn.init.normal_(parameter, std=0.2)
  return model


class Pair:
  """Their model and ours, compiled once: `apply(tokens, positions, segments, types)`."""

  def __init__(self, family, kind, directory):
    self.theirs = _theirs(family, kind)
    self.theirs.save_pretrained(directory)
    self.model, self.params, _ = models.load(directory)
    self.family, self.kind = family, kind

    self.apply = jax.jit(self._apply)

  def _apply(self, *batch):
    """Hidden states, and what stands on them; the pooler is for the first token."""
    variables = {"params": self.params}
    hidden = self.model.apply(variables, *batch, method="hidden")
    if self.kind != "Model":
      return hidden, self.model.apply(variables, hidden, method="head")
    if not self.model.config.pooler:
      return hidden, None
    return hidden, self.model.apply(variables, hidden[:, 0], method="pooled")

  def reference(self, tokens, mask, types=None):
    """Their hidden states, and the logits or the pooler's output."""
    inputs = {
      "input_ids": torch.tensor(tokens.astype(np.int64)),
      "attention_mask": torch.tensor(mask),
    }
    if types is not None and self.family == "bert":
      inputs["token_type_ids"] = torch.tensor(types.astype(np.int64))
    with torch.no_grad():
      out = self.theirs(**inputs, output_hidden_states=True)
    hidden = out.hidden_states[-1].numpy()
    found = out.get("pooler_output") if self.kind == "Model" else out.logits
    return hidden, None if found is None else found.numpy()


@pytest.fixture(scope="module", params=[(f, k) for f in FAMILIES for k in KINDS], ids="".join)
def pair(request, tmp_path_factory):
  return Pair(*request.param, tmp_path_factory.mktemp("model"))


def _batch(seed=0):
  """Tokens, positions, segments and types; the second row is padded by 4."""
  rng = np.random.default_rng(seed)
  tokens = rng.integers(5, 97, (2, LENGTH)).astype(np.int32)
  segments = np.ones_like(tokens)
  segments[1, -4:] = 0
  tokens = np.where(segments, tokens, 1)  # RoBERTa's padding, by which it counts positions
  positions = np.broadcast_to(np.arange(LENGTH, dtype=np.int32), tokens.shape)
  return tokens, positions, segments, rng.integers(0, 2, tokens.shape).astype(np.int32)


def _types(pair, types):
  return types if pair.family == "bert" else np.zeros_like(types)


def test_hidden_states_and_logits_agree(pair):
  tokens, positions, segments, types = _batch()
  types = _types(pair, types)
  hidden, out = pair.apply(tokens, positions, segments, types)
  want_hidden, want = pair.reference(tokens, segments, types)
  real = segments == 1
  np.testing.assert_allclose(np.asarray(hidden)[real], want_hidden[real], atol=1e-4)
  if want is None:
    assert not pair.model.config.pooler
  elif want.ndim == 2 and pair.kind != "Model":  # one a row: ours is at the first token
    np.testing.assert_allclose(out[:, 0], want, atol=1e-4)
  elif want.ndim == 2:
    np.testing.assert_allclose(out, want, atol=1e-4)
  else:
    np.testing.assert_allclose(np.asarray(out)[real], want[real], atol=1e-4)


def test_packed_documents_do_not_see_each_other(pair):
  tokens, _, _, types = _batch(1)
  types = _types(pair, types)
  sizes = (5, 4, 3)
  segments = np.repeat([1, 2, 3], sizes)[None].repeat(2, axis=0).astype(np.int32)
  positions = np.concatenate([np.arange(n) for n in sizes])[None].repeat(2, axis=0)
  hidden, _ = pair.apply(tokens, positions.astype(np.int32), segments, types)
  start = 0
  for size in sizes:
    part = np.s_[:1, start : start + size]
    alone, _ = pair.reference(tokens[part], np.ones((1, size), np.int64), types[part])
    np.testing.assert_allclose(hidden[part], alone, atol=1e-4)
    start += size


def test_saved_directory_is_loaded_by_transformers(pair, tmp_path):
  models.save(tmp_path, pair.model, pair.params)
  again = type(pair.theirs).from_pretrained(tmp_path).eval()
  ours, theirs = again.state_dict(), pair.theirs.state_dict()
  assert ours.keys() == theirs.keys()
  for name, tensor in theirs.items():
    np.testing.assert_array_equal(ours[name].numpy(), tensor.numpy(), err_msg=name)
  model, back, _ = models.load(tmp_path)
  assert model.config == pair.model.config
  jax.tree.map(np.testing.assert_array_equal, pair.params, back)


@pytest.fixture(scope="module")
def classifier(tmp_path_factory):
  return Pair("bert", "ForSequenceClassification", tmp_path_factory.mktemp("classifier"))


def test_gradients_agree(classifier, tmp_path):
  """Post-norm blocks, the pooler and the embeddings' norm against torch's derivatives."""
  model = classifier.model.clone(remat="products")
  tokens, positions, segments, types = _batch()

  def loss(params):
    hidden = model.apply({"params": params}, tokens, positions, segments, types, method="hidden")
    out = model.apply({"params": params}, hidden[:, 0], method="head")
    return jnp.mean(out**2)

  gradients = jax.jit(jax.grad(loss))(classifier.params)
  theirs = classifier.theirs
  theirs.zero_grad()
  wide = (torch.tensor(np.asarray(x, np.int64)) for x in (tokens, segments, types))
  (theirs(*wide).logits ** 2).mean().backward()
  models.save(tmp_path, classifier.model, gradients)
  ours = safetensors.read(tmp_path)
  named = {name: p.grad.numpy() for name, p in theirs.named_parameters()}
  assert set(named) == set(ours)
  for name, gradient in named.items():
    got = np.array(ours[name])
    if name.endswith("word_embeddings.weight"):
      gradient[0] = got[0]  # torch gives padding's row no gradient
    np.testing.assert_allclose(got, gradient, rtol=1e-3, atol=1e-5, err_msg=name)


def test_old_norm_names_buffers_and_a_next_sentence_head(tmp_path):
  theirs = _theirs("bert", "ForPreTraining")
  theirs.config.architectures = ["BertForMaskedLM"]  # as the first checkpoints say
  theirs.save_pretrained(tmp_path)
  tensors = {
    name.replace("LayerNorm.weight", "LayerNorm.gamma").replace(
      "LayerNorm.bias", "LayerNorm.beta"
    ): np.array(value)
    for name, value in safetensors.read(tmp_path).items()
  }
  tensors["bert.embeddings.position_ids"] = np.arange(40)[None]
  safetensors.write(tmp_path / "model.safetensors", tensors)
  config = (tmp_path / "config.json").read_text().replace("BertForPreTraining", "BertForMaskedLM")
  (tmp_path / "config.json").write_text(config)
  model, params, _ = models.load(tmp_path)
  assert model.config.head == "masked" and model.config.pooler
  flat = tree.flatten(params)
  state = theirs.state_dict()
  np.testing.assert_array_equal(flat["embed_norm/scale"], state["bert.embeddings.LayerNorm.weight"])
  np.testing.assert_array_equal(flat["pooler/kernel"], state["bert.pooler.dense.weight"].T)


def test_a_missing_head_is_new_and_the_rest_stays(classifier):
  rng = jax.random.key(0)
  same, params, fresh = heads.attach(
    classifier.model, classifier.params, {"name": "sequence", "labels": ["a", "b", "c"]}, rng
  )
  assert not fresh and same.config.labels == ("a", "b", "c")
  jax.tree.map(np.testing.assert_array_equal, params, classifier.params)
  more, params, fresh = heads.attach(
    classifier.model, classifier.params, {"name": "sequence", "labels": 5}, rng
  )
  assert fresh == {"classifier/out/kernel", "classifier/out/bias"}
  assert params["classifier"]["out"]["kernel"].shape == (32, 5)
  assert params["pooler"] is not None and more.config.labels[4] == "LABEL_4"
  hidden, params, fresh = heads.attach(classifier.model, classifier.params, {"name": "masked"}, rng)
  assert all(path.startswith("masked_head/") for path in fresh) and len(fresh) == 5
  assert "classifier" not in params and hidden.config.head == "masked"
  _, _, fresh = heads.attach(
    classifier.model, classifier.params, {"name": "token", "labels": 3}, rng
  )
  assert fresh == {"classifier/out/kernel", "classifier/out/bias"}  # another meaning


def test_a_head_by_mean_reads_all_tokens_of_its_document(classifier, tmp_path):
  section = {"name": "sequence", "labels": 3, "pooling": "mean"}
  rng = jax.random.key(0)
  model, params, _ = heads.attach(classifier.model, classifier.params, section, rng)
  models.save(tmp_path, model, params)
  model, params, _ = models.load(tmp_path)
  tokens = np.array([[5, 6, 7, 8, 9, 0]], np.int32)
  segments = np.array([[1, 1, 2, 2, 2, 0]], np.int32)
  positions = np.array([[0, 1, 0, 1, 2, 0]], np.int32)
  variables = {"params": params}
  found = model.apply(variables, tokens, positions, segments)
  hidden = classifier.model.apply(variables, tokens, positions, segments, method="hidden")
  for first, after in ((0, 2), (2, 5)):
    expected = model.apply(variables, hidden[:, first:after].mean(axis=1), method="head")
    np.testing.assert_allclose(found[:, first], expected, rtol=1e-5, atol=1e-6)


def test_what_cannot_be_is_told(classifier):
  def attach(model=classifier.model, **section):
    heads.attach(model, classifier.params, section, jax.random.key(0))

  with pytest.raises(ValueError, match="did you mean 'sequence'"):
    attach(name="sequenze", labels=2)
  with pytest.raises(ValueError, match="pooling 'max' is unknown"):
    attach(name="sequence", labels=2, pooling="max")
  with pytest.raises(ValueError, match="two or more different classes, not 1"):
    attach(name="token", labels=1)
  llama = {"model_type": "llama", "vocab_size": 9, "hidden_size": 8, "intermediate_size": 8}
  llama |= {"num_hidden_layers": 1, "num_attention_heads": 1}
  with pytest.raises(ValueError, match="is for encoders, not a llama"):
    attach(models.build(llama), name="masked")
  bare = {"model_type": "bert", "vocab_size": 9, "hidden_size": 8, "intermediate_size": 8}
  bare |= {"num_hidden_layers": 1, "num_attention_heads": 1}
  with pytest.raises(ValueError, match="this bert has no head; config.model.head"):
    models.build(bare).head(jnp.zeros((1, 8)))
  with pytest.raises(ValueError, match="position_embedding_type='relative_key' is not supported"):
    models.build(bare | {"position_embedding_type": "relative_key"})


def test_lora_is_bound_and_travels_to_peft_and_back(classifier, tmp_path):
  rules = [{"target": "layers/.*_proj/kernel", "name": "lora", "rank": 2, "alpha": 4}]
  adapters = peft.attach(rules, classifier.params, jax.random.key(1))
  fill = lambda x: x + 0.1 * jax.random.normal(jax.random.key(2), x.shape)  # noqa: E731
  adapters = tree.map_with_path(lambda p, x: x if p.endswith("/scale") else fill(x), adapters)
  modules = families.find("bert").modules(classifier.model.config)
  peft.save(tmp_path, adapters, modules, task_type=classifier.model.config.task_type)
  tokens, positions, segments, types = _batch()

  @jax.jit
  def both(adapters):
    # As they are, and as training on a CPU holds them.
    variables = {"params": classifier.params, "adapters": adapters}
    arranged = unrolled.unstack(variables)
    batch = (tokens, positions, segments, types)
    return classifier.model.apply(variables, *batch), classifier.model.apply(arranged, *batch)

  ours, arranged = both(adapters)
  np.testing.assert_allclose(arranged, ours, atol=1e-5)
  wrapped = peft_lib.PeftModel.from_pretrained(_theirs("bert", classifier.kind), tmp_path).eval()
  with torch.no_grad():
    wide = (torch.tensor(np.asarray(x, np.int64)) for x in (tokens, segments, types))
    want = wrapped(*wide).logits.numpy()
  np.testing.assert_allclose(ours[:, 0], want, atol=1e-4)
  assert np.abs(want - classifier.reference(tokens, segments, types)[1]).max() > 1e-2
  back = peft.load(tmp_path, classifier.params, modules)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), adapters, back)


TEXTS = ["A man is eating food.", "Ein Mann isst, GERN!", "", "so " * 300]


def test_minilm_sentence_embeddings(minilm_path):
  model, params, tokenizer = models.load(minilm_path)
  variables = {"params": params}
  means = models.embed(model, variables, tokenizer, TEXTS, length=128, normalized=False)
  reader = transformers.AutoTokenizer.from_pretrained(minilm_path)
  theirs = transformers.AutoModel.from_pretrained(minilm_path).eval()
  inputs = reader(TEXTS, padding=True, truncation=True, max_length=128, return_tensors="pt")
  with torch.no_grad():
    hidden = theirs(**inputs).last_hidden_state
  mask = inputs["attention_mask"][..., None].float()
  want = (hidden * mask).sum(1) / mask.sum(1)
  np.testing.assert_allclose(means, want.numpy(), atol=1e-5)
  # In batches of like length, and of unit length.
  ours = models.embed(model, variables, tokenizer, TEXTS[:3], batch_size=2, length=16)
  np.testing.assert_allclose(ours, torch.nn.functional.normalize(want)[:3].numpy(), atol=1e-5)
  with pytest.raises(ValueError, match="length 513 is not within 2 and the model's 512"):
    models.embed(model, variables, tokenizer, TEXTS, length=513)

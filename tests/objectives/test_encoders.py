"""Objectives of encoders against the losses of `transformers`, and InfoNCE as it is written."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers

from research import models, objectives, peft

SHAPE = {
  "vocab_size": 37,
  "hidden_size": 16,
  "intermediate_size": 24,
  "num_hidden_layers": 2,
  "num_attention_heads": 2,
  "max_position_embeddings": 24,
  "num_labels": 4,
}
SIZES = (5, 3, 4)  # documents of a row


def _pair(kind, directory):
  torch.manual_seed(0)
  theirs = getattr(transformers, f"Bert{kind}")(transformers.BertConfig(**SHAPE)).eval()
  for parameter in theirs.parameters():
    torch.nn.init.normal_(parameter, std=0.2)
  theirs.save_pretrained(directory)
  model, params, _ = models.load(directory)
  rules = [{"target": "layers/.*_proj/kernel", "name": "lora", "rank": 2}]
  adapters = peft.attach(rules, params, jax.random.key(0))  # which change nothing yet
  return theirs, model, {"params": params, "adapters": adapters}


def _batch(where, classes):
  """Two rows of packed documents, and what is predicted where."""
  rng = np.random.default_rng(0)
  segments = np.repeat([1, 2, 3], SIZES)[None].repeat(2, axis=0).astype(np.int32)
  segments[1, -4:] = 0
  positions = np.concatenate([np.arange(n) for n in SIZES])[None].repeat(2, axis=0)
  weights = where(rng, positions) * (segments > 0)
  return {
    "tokens": rng.integers(1, 37, (2, 12)).astype(np.int32),
    "types": rng.integers(0, 2, (2, 12)).astype(np.int32),
    "labels": rng.integers(0, classes, (2, 12)).astype(np.int32),
    "weights": weights.astype(np.float32),
    "segments": segments,
    "positions": positions.astype(np.int32),
  }


def _documents(batch):
  for r, row in enumerate(batch["segments"]):
    for number in range(1, row.max() + 1):
      yield {name: torch.tensor(rows[r][row == number]) for name, rows in batch.items()}


@pytest.mark.parametrize(
  ("name", "kind", "classes", "where"),
  [
    ("masked", "ForMaskedLM", 37, lambda rng, at: rng.random(at.shape) < 0.5),
    ("classification", "ForTokenClassification", 4, lambda rng, at: rng.random(at.shape) < 0.5),
    ("classification", "ForSequenceClassification", 4, lambda rng, at: at == 0),
  ],
)
def test_packed_rows_have_the_loss_of_their_documents(name, kind, classes, where, tmp_path):
  theirs, model, variables = _pair(kind, tmp_path)
  batch = _batch(where, classes)
  total = right = 0.0
  for one in _documents(batch):
    with torch.no_grad():
      out = theirs(one["tokens"][None].long(), token_type_ids=one["types"][None].long())
    logits = out.logits if out.logits.ndim == 3 else out.logits[:, None].repeat(1, 12, 1)
    logits, at = logits[0, : len(one["tokens"])], one["weights"] > 0
    losses = torch.nn.functional.cross_entropy(
      logits[at], one["labels"][at].long(), reduction="sum"
    )
    total += float(losses)
    right += float((logits.argmax(-1) == one["labels"])[at].sum())
  loss = objectives.build({"name": name, "chunk_tokens": 7})
  ours, weight, metrics = jax.jit(lambda v: loss(model, v, batch, None, 0))(variables)
  np.testing.assert_allclose(ours, total, rtol=1e-5)
  assert weight == batch["weights"].sum() and metrics["accuracy"] == (right, weight)


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
  return _pair("Model", tmp_path_factory.mktemp("encoder"))


def _pairs():
  """Three examples and an empty row; the second has no negative."""
  batch = {name: np.zeros((4, 12), np.int32) for name in ("tokens", "roles", "positions")}
  batch["weights"] = np.zeros((4, 12), np.float32)
  rng = np.random.default_rng(1)
  for r, sizes in enumerate([(4, 3, 5), (5, 4), (2, 3, 4)]):
    end = sum(sizes)
    batch["tokens"][r, :end] = rng.integers(1, 37, end)
    batch["roles"][r, :end] = np.repeat(np.arange(len(sizes)) + 1, sizes)
    batch["positions"][r, :end] = np.concatenate([np.arange(n) for n in sizes])
    batch["weights"][r, 0] = 1
  return batch | {"segments": batch["roles"]}


def test_embedding_is_the_cross_entropy_of_cosines(encoder):
  theirs, model, variables = encoder
  batch = _pairs()

  def vector(r, role):
    ids = torch.tensor(batch["tokens"][r][batch["roles"][r] == role]).long()
    return theirs(ids[None]).last_hidden_state[0].mean(0)

  with torch.no_grad():
    anchors = torch.stack([vector(r, 1) for r in range(3)])
    others = torch.stack([*(vector(r, 2) for r in range(3)), vector(0, 3), vector(2, 3)])
    scores = torch.nn.functional.cosine_similarity(anchors[:, None], others[None], dim=-1) / 0.05
    want = torch.nn.functional.cross_entropy(scores, torch.arange(3), reduction="sum")
  loss = objectives.build({"name": "embedding"})

  def ours(params):
    total, weight, metrics = loss(model, variables | {"params": params}, batch, None, 0)
    return total, (weight, metrics)

  ours = jax.jit(jax.value_and_grad(ours, has_aux=True))
  (total, (weight, metrics)), gradient = ours(variables["params"])
  np.testing.assert_allclose(total, want, rtol=1e-4)
  assert weight == 3
  assert float(metrics["accuracy"][0]) == int((scores.argmax(1) == torch.arange(3)).sum())
  # An empty row has no vector, and no gradient that is not a number.
  assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradient))
  assert float(jnp.abs(gradient["embed"]["embedding"]).max()) > 0


def test_objectives_say_what_they_need(encoder):
  _, model, variables = encoder
  batch = _batch(lambda rng, at: at == 0, 4)
  llama = {**SHAPE, "model_type": "llama"}

  def loss(name, batch=batch, model=model, **settings):
    return objectives.build({"name": name, **settings})(model, variables, batch, None, 0)

  with pytest.raises(ValueError, match="'masked' needs config.model.head = {'name': 'masked'"):
    loss("masked")
  with pytest.raises(ValueError, match="'sequence', ...} or {'name': 'token', ...}; the model's"):
    loss("classification")
  with pytest.raises(ValueError, match="'embedding' needs rows of anchor and positive; .* labels"):
    loss("embedding")
  with pytest.raises(ValueError, match="'causal' trains decoders, not a bert"):
    loss("causal")
  with pytest.raises(ValueError, match="'causal' needs rows of text without a label; .* labels"):
    loss("causal", model=models.build(llama))
  with pytest.raises(ValueError, match="'masked' trains encoders, not a llama"):
    loss("masked", model=models.build(llama))
  with pytest.raises(ValueError, match="temperature is above 0"):
    loss("embedding", temperature=0)
  with pytest.raises(ValueError, match="no metrics of tasks"):
    objectives.build({"name": "embedding"}, ("a", "b"))

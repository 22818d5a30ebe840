"""Losses of pairs, their gradients and metrics against TRL's trainers, given log-probabilities.

TRL's loss methods are called with a stand-in for the trainer that has the attributes they read.
"""

import os
from collections import defaultdict
from types import SimpleNamespace

os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from trl.experimental.cpo.cpo_trainer import CPOTrainer
from trl.experimental.orpo.orpo_trainer import ORPOTrainer
from trl.trainer.dpo_trainer import DPOTrainer

from research.core.config import ConfigError
from research.losses import pairs as pairing
from research.losses import preference

RNG = np.random.default_rng(0)
ROWS, LENGTH = 10, 7  # five pairs
LOG_PROBS = -RNG.exponential(size=(ROWS, LENGTH)).astype(np.float32)
LENGTHS = RNG.integers(1, LENGTH, ROWS)
COUNTED = (np.arange(LENGTH) < LENGTHS[:, None]).astype(np.float32)
REFERENCE = (LOG_PROBS * COUNTED).sum(1) + RNG.normal(size=ROWS).astype(np.float32)
DIVERGED = ("sigmoid", "sigmoid_norm", "hinge", "ipo", "robust", "exo_pair", "discopop")
OTHERS = ("forward_kl", "js_divergence", "alpha_divergence")

# What is asked of us, and whether log-probabilities are length-desensitized.
SECTIONS = {
  "sigmoid": {"name": "sigmoid", "beta": 0.3},
  "sigmoid_norm": {"name": "sigmoid_norm", "beta": 2.0},
  "hinge": {"name": "hinge", "beta": 0.3},
  "ipo": {"name": "ipo", "beta": 0.3},
  "robust": {"name": "robust", "beta": 0.3, "label_smoothing": 0.2},
  "exo_pair": {"name": "exo_pair", "beta": 0.3, "label_smoothing": 0.01},
  "nca_pair": {"name": "nca_pair", "beta": 0.3},
  "bco_pair": {"name": "bco_pair", "beta": 0.3},
  "sppo_hard": {"name": "sppo_hard", "beta": 0.3},
  "aot": {"name": "aot", "beta": 0.3, "label_smoothing": 0.1},
  "aot_unpaired": {"name": "aot_unpaired", "beta": 0.3, "label_smoothing": 0.1},
  "apo_zero": {"name": "apo_zero", "beta": 0.3},
  "apo_down": {"name": "apo_down", "beta": 0.3},
  "discopop": {"name": "discopop", "beta": 0.3, "discopop_tau": 0.4},
  "mixture": {
    "name": "mixture",
    "parts": (
      {"name": "sigmoid", "beta": 0.3, "weight": 0.8},
      {"name": "sft", "weight": 0.5},
      {"name": "bco_pair", "beta": 0.3},
    ),
  },
}
SECTIONS |= {
  f"{name} {f}": SECTIONS[name] | {"f_divergence": f, "f_alpha": 0.7}
  for name in DIVERGED
  for f in OTHERS
}
ALONE = {
  "orpo": {"name": "orpo", "beta": 0.3},
  "cpo": {"name": "cpo", "beta": 0.3, "alpha": 0.5, "label_smoothing": 0.1},
  "simpo": {"name": "simpo", "beta": 2.5, "gamma": 0.8, "label_smoothing": 0.1},
}
DESENSITIZED = 0.4


def ours_of(loss, log_probs, ld_alpha):
  pairs = pairing.gather(log_probs, COUNTED, REFERENCE, ld_alpha=ld_alpha)
  return jnp.sum(loss(pairs) * pairs.weights) / pairs.weights.sum(), loss.metrics(pairs)


@pytest.fixture(scope="module")
def found():
  """`name -> ((loss, metrics), gradient)` of all sections, compiled as one program."""
  asked = {name: (section, None) for name, section in (SECTIONS | ALONE).items()}
  asked |= {
    f"{name} desensitized": (SECTIONS[name], DESENSITIZED) for name in ("sigmoid", "ipo", "mixture")
  }

  @jax.jit
  def every(log_probs):
    return {
      name: jax.value_and_grad(
        lambda x, section=section, ld=ld: ours_of(preference.build(section), x, ld), has_aux=True
      )(log_probs)
      for name, (section, ld) in asked.items()
    }

  return every(jnp.asarray(LOG_PROBS))


ONE_PROCESS = SimpleNamespace(device="cpu", gather=lambda x: x, gather_for_metrics=lambda x: x)


def dpo_in_trl(section, ld_alpha=None):
  """The loss, its gradient of each token and the metrics, by `DPOTrainer._compute_loss`."""
  parts = section.get("parts", (section,))
  metrics = defaultdict(list)
  trainer = SimpleNamespace(
    model=SimpleNamespace(training=True),
    accelerator=ONE_PROCESS,
    args=SimpleNamespace(discopop_tau=section.get("discopop_tau")),
    aux_loss_enabled=False,
    use_weighting=False,
    precompute_ref_logps=True,
    ld_alpha=ld_alpha,
    beta=parts[0]["beta"],
    label_smoothing=section.get("label_smoothing", 0.0),
    f_divergence_type=section.get("f_divergence", "reverse_kl"),
    f_alpha_divergence_coef=section.get("f_alpha", 0.5),
    loss_types=[part["name"] for part in parts],
    loss_weights=[part.get("weight", 1.0) for part in parts],
    _metrics={"train": metrics},
    _total_train_tokens=0,
    _tp_size=1,
  )
  leaf = torch.tensor(LOG_PROBS, requires_grad=True)
  counted = torch.tensor(COUNTED)
  nothing = torch.zeros_like(counted)
  answers = SimpleNamespace(
    log_probs=leaf * counted, entropy=nothing, mean_logits=nothing, is_top1=nothing.bool()
  )
  before = torch.zeros(ROWS, 1)  # the prompt's one token
  inputs = {
    "completion_mask": torch.cat([before, counted], 1).long(),
    "input_ids": torch.zeros(ROWS, LENGTH + 1, dtype=torch.long),
    "attention_mask": torch.ones(ROWS, LENGTH + 1),
    "ref_chosen_logps": torch.tensor(REFERENCE[: ROWS // 2]),
    "ref_rejected_logps": torch.tensor(REFERENCE[ROWS // 2 :]),
  }
  loss = DPOTrainer._compute_loss(trainer, lambda **_: answers, inputs, False)
  loss.backward()
  return loss.item(), leaf.grad.numpy(), {name: values[-1] for name, values in metrics.items()}


def agree(ours, theirs):
  (loss, metrics), gradient = ours
  want, want_gradient, want_metrics = theirs
  np.testing.assert_allclose(loss, want, rtol=1e-5, atol=1e-5)
  np.testing.assert_allclose(gradient, want_gradient, rtol=1e-5, atol=1e-5)
  assert np.abs(want_gradient).max() > 1e-3
  assert len(metrics) == 6
  for name, (total, weight) in metrics.items():
    np.testing.assert_allclose(total / weight, want_metrics[name], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", SECTIONS)
def test_a_reference(found, name):
  agree(found[name], dpo_in_trl(SECTIONS[name]))


@pytest.mark.parametrize("name", ["sigmoid", "ipo", "mixture"])
def test_length_desensitized(found, name):
  agree(found[f"{name} desensitized"], dpo_in_trl(SECTIONS[name], DESENSITIZED))


def alone_in_trl(section, trainer_class, averaged, **attributes):
  """The same by `get_batch_loss_metrics` of the trainers that need no reference."""
  leaf = torch.tensor(LOG_PROBS, requires_grad=True)
  counted = torch.tensor(COUNTED)
  sums = (leaf * counted).sum(1)
  if averaged:
    sums = sums / counted.sum(1)
  chosen, rejected = sums.chunk(2)
  half = ROWS // 2
  imitated = -(leaf * counted)[:half].sum() / counted[:half].sum()
  nothing = torch.zeros(1)
  trainer = SimpleNamespace(
    accelerator=ONE_PROCESS,
    aux_loss_enabled=False,
    beta=section["beta"],
    concatenated_forward=lambda *_: (chosen, rejected, nothing, nothing, imitated),
    **attributes,
  )
  for method in ("cpo_loss", "odds_ratio_loss"):
    if hasattr(trainer_class, method):
      setattr(trainer, method, lambda *args, m=method: getattr(trainer_class, m)(trainer, *args))
  loss, metrics = trainer_class.get_batch_loss_metrics(trainer, None, {})
  loss.backward()
  return loss.item(), leaf.grad.numpy(), metrics


def test_orpo(found):
  agree(found["orpo"], alone_in_trl(ALONE["orpo"], ORPOTrainer, True))


def test_cpo(found):
  attributes = {"loss_type": "sigmoid", "alpha": 0.0, "cpo_alpha": 0.5, "label_smoothing": 0.1}
  agree(found["cpo"], alone_in_trl(ALONE["cpo"], CPOTrainer, False, **attributes))


def test_simpo(found):
  attributes = {"loss_type": "simpo", "alpha": 0.0, "cpo_alpha": 0.0, "label_smoothing": 0.1}
  agree(
    found["simpo"],
    alone_in_trl(ALONE["simpo"], CPOTrainer, True, simpo_gamma=0.8, **attributes),
  )


def made_of(chosen, rejected, reference_chosen, reference_rejected, weights=None):
  """Pairs of completions of four tokens each."""
  chosen, rejected = jnp.asarray(chosen, jnp.float32), jnp.asarray(rejected, jnp.float32)
  four = jnp.full(chosen.shape, 4.0)
  weights = jnp.ones(chosen.shape) if weights is None else jnp.asarray(weights)
  references = (jnp.asarray(x, jnp.float32) for x in (reference_chosen, reference_rejected))
  return pairing.Pairs(chosen, rejected, four, four, chosen, four, weights, *references)


@pytest.mark.parametrize("name", sorted(set(SECTIONS) & set(preference.LOSSES) - {"mixture"}))
def test_rows_without_a_pair_change_nothing(name):
  loss = preference.build(SECTIONS[name])
  values = RNG.normal(size=(4, 3)).astype(np.float32) - 3
  padded = np.concatenate([values, [[-50], [-30], [-40], [9]]], axis=1)[:, [0, 3, 1, 2]]
  some = loss(made_of(*padded, [1.0, 0.0, 1.0, 1.0]))
  np.testing.assert_allclose(some[np.array([0, 2, 3])], loss(made_of(*values)), rtol=1e-6)


LOGS = st.floats(-20, 0, width=32)


@settings(max_examples=50, deadline=None)
@given(LOGS, LOGS, LOGS, LOGS, st.floats(0.05, 2))
def test_ipo_is_0_at_its_optimum_and_nowhere_below(chosen, rejected, other, another, beta):
  loss = preference.build({"name": "ipo", "beta": beta})
  assert loss(made_of([chosen], [rejected], [other], [another]))[0] >= 0
  best = rejected - another + other + 4 * (1 / (2 * beta))  # a margin of 1 / (2 beta) a token
  found = loss(made_of([best], [rejected], [other], [another]))[0]
  assert found < 1e-8 * (1 + best**2)


@settings(max_examples=50, deadline=None)
@given(LOGS, LOGS, LOGS, LOGS)
def test_symmetries(chosen, rejected, other, another):
  def value(name, *logs, **more):
    return float(preference.build({"name": name} | more)(made_of(*([x] for x in logs)))[0])

  pair, turned = (chosen, rejected, other, another), (rejected, chosen, another, other)
  # Probabilities of either order sum to 1.
  total = np.exp(-value("sigmoid", *pair)) + np.exp(-value("sigmoid", *turned))
  np.testing.assert_allclose(total, 1, rtol=1e-5)
  # Half of both orders is what robust makes of it, whatever share is flipped.
  mean = (value("sigmoid", *pair) + value("sigmoid", *turned)) / 2
  robust = [value("robust", *each, label_smoothing=0.3) for each in (pair, turned)]
  np.testing.assert_allclose(np.mean(robust), mean, rtol=1e-4, atol=1e-5)
  # One pair alone is its own rank: AOT is DPO.
  np.testing.assert_allclose(value("aot", *pair), value("sigmoid", *pair), rtol=1e-4, atol=1e-5)
  # At alpha 1 the alpha-divergence is the reverse KL.
  near = value("sigmoid", *pair, f_divergence="alpha_divergence", f_alpha=1.0)
  np.testing.assert_allclose(near, value("sigmoid", *pair), rtol=1e-6)


def test_a_policy_at_its_reference():
  """Where DPO starts: log 2, and no reward."""
  pairs = made_of([-3.0, -5.0], [-4.0, -1.0], [-3.0, -5.0], [-4.0, -1.0])
  loss = preference.build({"name": "sigmoid"})
  np.testing.assert_allclose(loss(pairs), np.log(2), rtol=1e-6)
  assert loss.metrics(pairs)["rewards/accuracies"] == (0, 2)


def test_certain_completions_have_finite_odds():
  loss = preference.build({"name": "orpo"})

  def total(chosen):
    return loss(made_of(chosen, [-90.0, 0.0], [0.0, 0.0], [0.0, 0.0])).sum()

  value, gradient = jax.value_and_grad(total)(jnp.array([0.0, -90.0]))
  assert np.isfinite(value) and np.isfinite(gradient).all()


@pytest.mark.parametrize(
  ("section", "message"),
  [
    ({"name": "sigmoyd"}, "did you mean 'sigmoid'"),
    ({"name": "sigmoid", "label_smoothing": 0.1}, "sigmoid takes no 'label_smoothing'"),
    ({"name": "bco_pair", "f_divergence": "forward_kl"}, "bco_pair takes no 'f_divergence'"),
    ({"name": "hinge", "f_divergence": "foward_kl"}, "did you mean 'forward_kl'"),
    ({"name": "robust", "label_smoothing": 0.5}, "below 0.5, not 0.5"),
    ({"name": "exo_pair", "label_smoothing": 0.0}, "needs a label_smoothing above 0"),
    ({"name": "ipo", "beta": 0.0}, "beta is 0.0; it is above 0"),
    ({"name": "discopop", "discopop_tau": 0.0}, "discopop_tau is 0.0"),
    ({"name": "mixture", "parts": ()}, "a mixture needs parts"),
    ({"name": "mixture", "parts": ({"name": "orpo", "prompts": True},)}, "leave 'prompts' out"),
  ],
)
def test_mistakes(section, message):
  with pytest.raises(ValueError, match=message):
    preference.build(section)


def test_mistakes_of_pairs():
  assert issubclass(ConfigError, ValueError)
  with pytest.raises(ValueError, match="the pairs have none"):
    preference.build({"name": "sigmoid"})(pairing.gather(LOG_PROBS, COUNTED))
  assert not preference.build(ALONE["simpo"]).reference

"""Curricula on sources in memory: which rows a step may draw, in which rows, and on resuming."""

import inspect
import itertools
import json
import math
from types import SimpleNamespace

import grain
import numpy as np
import pytest

from research.core import config as config_lib
from research.data import curriculum, pipeline, sources, stream
from research.data.examples import Report

ROWS = 30


class NumberTokenizer:
  """Reads a text of numbers as these tokens, and ends it with token 1."""

  vocab_size = 10**6
  eos_ids = (1,)
  bos_id = None
  pad_id = 0
  chat_template = None

  def encode(self, text, add_special=True):
    del add_special
    return [int(word) for word in text.split()]


class Memory:
  """Document `i` has 1 to `longest - 1` tokens, which all are `first + i`, and a score."""

  name = "memory"

  def __init__(self, rows=ROWS, longest=12, first=100, scored=True):
    self.fingerprint = f"{rows}/{longest}/{first}"
    self.report = Report()
    rng = np.random.default_rng(first)
    self.lengths = rng.integers(1, longest, rows)
    self.scores = rng.permutation(rows)
    self._first, self._scored = first, scored

  def __len__(self):
    return len(self.lengths)

  def origin(self, index):
    return index + 1000

  def __getitem__(self, index):
    row = {"text": " ".join([str(self._first + index)] * self.lengths[index])}
    return row | ({"score": int(self.scores[index])} if self._scored else {})


@pytest.fixture(autouse=True)
def memory(monkeypatch):
  def build(**kwargs):
    return Memory(**kwargs)

  build.__signature__ = inspect.signature(Memory)
  monkeypatch.setitem(sources.SOURCES, "memory", build)


BASE = {
  "source": {"name": "memory"},
  "target_length": 0,
  "length": 16,
  "packing": "none",
  "buckets": (),
  "completion_only": True,
  "corruption": {},
  "on_bad_row": "drop",
  "on_long_row": "truncate",
  "shuffle": True,
  "window": 8,
}
MIXTURE = {
  "name": "mixture",
  "sources": [{"name": "memory"}, {"name": "memory", "rows": 7, "first": 500}],
  "weights": [1, 1],
}
HALVES = {"name": "phases", "phases": ({"until": 0.5, "length": 8}, {"until": 1})}
WEIGHTS = {
  "name": "phases",
  "phases": (
    {"until": 0.25, "weights": (1, 0)},
    {"until": 0.75, "weights": (1, 3)},
    {"until": 1.0, "weights": (0, 1), "length": 8},
  ),
}
EASY = {"name": "competence", "by": "length", "start": 0.2, "until": 0.5, "updates": 3}
PLANS = {
  "lengths": {"curriculum": HALVES},
  "lengths, packed": {"curriculum": HALVES, "packing": "best_fit"},
  "lengths, packed in one window": {"curriculum": HALVES, "packing": "best_fit", "window": 100},
  "lengths of what is split": {
    "curriculum": HALVES,
    "packing": "best_fit",
    "on_long_row": "split",
    "source": {"name": "memory", "longest": 40},
  },
  "weights": {"curriculum": WEIGHTS, "source": MIXTURE},
  "weights, packed": {"curriculum": WEIGHTS, "source": MIXTURE, "packing": "best_fit"},
  "shares": {"curriculum": EASY},
  "shares in order": {"curriculum": EASY, "shuffle": False},
  "shares, packed": {"curriculum": EASY, "packing": "best_fit", "window": 100},
  "shares of problems": {"curriculum": EASY, "corruption": {"name": "prefix"}},
}
STEPS = 12


def train(batch_size=3, seed=0, shard=(0, 1), steps=STEPS, **changes):
  given = {**BASE, **changes}
  given["curriculum"] = config_lib.Config(given.get("curriculum", {}), "data.train.curriculum")
  return pipeline.train_batches(
    SimpleNamespace(**given),
    NumberTokenizer(),
    batch_size=batch_size,
    seed=seed,
    shard_index=shard[0],
    shard_count=shard[1],
    steps=steps,
  )


def documents(batch):
  """The number of each document of the batch, in order of row and segment."""
  found = []
  for tokens, segments in zip(batch["tokens"], batch["segments"], strict=True):
    found += [int(tokens[segments == n][0]) for n in range(1, segments.max() + 1)]
  return found


def drawn(batches, steps=STEPS):
  """The documents of each step."""
  return [documents(batch) for batch in itertools.islice(batches, steps)]


def assert_same(first, second):
  assert first.keys() == second.keys()
  for key, array in first.items():
    np.testing.assert_array_equal(array, second[key], err_msg=key)


@pytest.mark.parametrize("plan", PLANS)
def test_resumes_exactly_at_every_step(plan):
  whole, resumed = train(**PLANS[plan]), train(**PLANS[plan])
  states, batches = [json.dumps(whole.get_state())], []
  for _ in range(STEPS + 2):  # beyond the run, the last phase goes on
    batches.append(next(whole))
    states.append(json.dumps(whole.get_state()))
  # A place is exact from wherever it is set, an earlier one or a later one.
  for at in [*range(0, STEPS + 1, 2), *range(1, STEPS + 1, 2)]:
    resumed.set_state(json.loads(states[at]))
    assert json.dumps(resumed.get_state()) == states[at]
    for expected in batches[at : at + 2]:
      assert_same(next(resumed), expected)
  whole.close()
  resumed.close()


@pytest.mark.parametrize("plan", ["lengths, packed", "weights", "shares"])
def test_hosts_share_the_batch_of_one(plan):
  whole = train(batch_size=4, **PLANS[plan])
  shares = [train(batch_size=4, shard=(host, 2), **PLANS[plan]) for host in range(2)]
  for _ in range(STEPS):
    batch = next(whole)
    for host, share in enumerate(shares):
      assert_same({key: array[host::2] for key, array in batch.items()}, next(share))


@pytest.mark.parametrize("by, descending", [("length", False), ("length", True), ("score", True)])
def test_steps_draw_from_the_easiest_rows_alone(by, descending):
  source = Memory()
  values = source.scores if by == "score" else 4 * source.lengths
  order = sorted(range(ROWS), key=lambda i: (-values[i] if descending else values[i], i))
  given = [{"until": 0.25, "share": 0.1}, {"until": 0.5, "share": 0.5}, {"until": 1}]
  plan = {"name": "phases", "phases": given, "by": by, "descending": descending}
  found = drawn(train(curriculum=plan, window=100, steps=40, on_long_row="drop"), 40)
  for start, stop, count in ((0, 10, 3), (10, 20, 15), (20, 40, 30)):
    documents = [document - 100 for step in found[start:stop] for document in step]
    # All of them, each as often as the others: 30 and 60 rows are whole epochs.
    assert set(documents) == set(order[:count])
    assert set(np.bincount(documents)[sorted(order[:count])]) == {len(documents) // count}
  assert found != drawn(train(curriculum=plan, window=100, steps=40, seed=1), 40)
  in_order = drawn(train(curriculum=plan, shuffle=False, steps=40), 40)
  assert sum(in_order[10:15], []) == [100 + number for number in order[:15]]


def test_what_goes_on_goes_on_in_its_order():
  # Ten steps of three rows are an epoch, and phases cut it in two.
  plain = drawn(train(shuffle=False), 20)
  phases = [{"until": 0.25, "length": 8}, {"until": 0.35}, {"until": 1, "length": 12}]
  plan = {"name": "phases", "phases": phases}
  assert drawn(train(curriculum=plan, shuffle=False, steps=20), 20) == plain
  shuffled = drawn(train(curriculum=plan, window=100, steps=20), 20)
  assert (
    sorted(sum(shuffled[:10], [])) == sorted(sum(shuffled[10:], [])) == sorted(sum(plain[:10], []))
  )
  # As one phase it is as without a curriculum.
  alone = {"name": "phases", "phases": [{"until": 1}]}
  for packing in ("none", "best_fit"):
    assert drawn(train(curriculum=alone, packing=packing)) == drawn(train(packing=packing))


@pytest.mark.parametrize("window", [8, 100])
def test_packed_phases_leave_nearly_nothing_out(window):
  phases = [{"until": n / 4, "length": 12 + n} for n in range(1, 5)]
  batches = train(
    curriculum={"name": "phases", "phases": phases}, packing="best_fit", window=window, batch_size=1
  )
  counts = np.bincount([d - 100 for step in drawn(batches) for d in step], minlength=ROWS)
  # A dozen rows hold most of an epoch; nothing comes twice before the rest.
  assert counts.max() == 1 and 12 < counts.sum() <= ROWS
  after = [document - 100 for step in drawn(batches, 40) for document in step]
  missed = set(range(ROWS)) - set(np.flatnonzero(counts)) - set(after[: ROWS - counts.sum()])
  assert len(missed) <= 2


def test_each_phase_has_its_length():
  batches = train(**PLANS["lengths, packed"], steps=9)
  shapes = [next(batches)["tokens"].shape for _ in range(10)]
  assert shapes == [(3, 8)] * 4 + [(3, 16)] * 6  # round(4.5) is 4
  buckets = train(**PLANS["lengths"], buckets=(4, 12))
  widths = [next(buckets)["tokens"].shape[1] for _ in range(STEPS)]
  assert {*widths[:6]} <= {4, 8} and {*widths[6:]} <= {4, 12, 16} and max(widths[6:]) > 8


def test_mixtures_change_and_parts_keep_their_order():
  found = drawn(train(**PLANS["weights"], steps=16, shuffle=False), 16)
  ordered = [document for step in found for document in step]
  first = [document for document in ordered if document < 500]
  second = [document for document in ordered if document >= 500]
  at = {part: [sum((d < 500) == part for d in step) for step in found] for part in (True, False)}
  assert sum(at[True][:4]) == 12 and sum(at[True][4:12]) == 6 and sum(at[True][12:]) == 0
  assert first == [100 + n for n in range(18)]
  assert second == [500 + n % 7 for n in range(18 + 12)]


def test_rows_drawn_of_each_part():
  weights, counts = (3, 1, 2.5), [0, 0, 0]
  parts = [grain.MapDataset.source([part] * 1000) for part in range(3)]
  mixed = grain.MapDataset.mix(parts, weights)
  for count in range(100):
    assert stream.drawn(weights, count) == counts
    counts[mixed[count]] += 1
  assert stream.drawn([2], 5) == [5]


def test_problems_are_made_anew_in_each_order():
  batches = train(**PLANS["shares of problems"], steps=60)
  seen = {}
  for batch in itertools.islice(batches, 60):
    for tokens, segments, prefix in zip(
      batch["tokens"], batch["segments"], batch["prefix"], strict=True
    ):
      seen.setdefault(int(tokens[0]), []).append(int(prefix.max()) if segments.max() else 0)
  easy = min(seen, key=lambda number: Memory().lengths[number - 100])
  assert len(seen[easy]) > 5
  assert any(len(set(prefixes)) > 1 for prefixes in seen.values())


def test_competence_grows_by_the_pace():
  plan = {"name": "competence", "by": "score", "start": 0.1, "until": 0.5, "updates": 4}
  for pace, power in (("linear", 1), ("root", 2)):
    built = curriculum.build({**plan, "pace": pace}, 80)
    assert [phase.stop for phase in built.phases] == [10, 20, 30, 40, 80]
    expected = [(n / 4 * (1 - 0.1**power) + 0.1**power) ** (1 / power) for n in range(5)]
    np.testing.assert_allclose([phase.share for phase in built.phases], expected)
    assert [phase.order for phase in built.phases] == [0, 1, 2, 3, 4]
  # A run that is shorter than the updates has fewer.
  short = curriculum.build({**plan, "updates": 40}, 10)
  assert [phase.stop for phase in short.phases] == [1, 2, 3, 4, 5, 10]
  # Of a run that is too short for any the first step has the easiest rows.
  for steps, until in ((2, 0.1), (100, 0.001)):
    least = curriculum.build({**plan, "until": until}, steps)
    assert [(phase.stop, phase.share) for phase in least.phases] == [(1, 0.1), (steps, 1)]
  assert curriculum.build({}, None) is None
  assert math.isclose(
    curriculum.build({**plan, "until": 1}, 80).phases[-1].share, 0.868, abs_tol=1e-3
  )


def test_where_it_is():
  batches = train(**PLANS["weights"])
  assert batches.figures(0) == {
    "curriculum/phase": 1,
    "curriculum/weight_0": 1,
    "curriculum/weight_1": 0,
  }
  assert batches.figures(3)["curriculum/weight_1"] == 0.75
  assert batches.figures(11)["curriculum/length"] == 8 == batches.figures(99)["curriculum/length"]
  assert train(**PLANS["shares"]).figures(0) == {"curriculum/phase": 1, "curriculum/share": 0.2}
  assert train().figures(0) == {}
  assert train(**PLANS["lengths"]).description().endswith("shorter ones have fewer tokens")
  told = train(**PLANS["shares"]).description().splitlines()
  assert told[1] == "a curriculum of 4 phases, by length, which end at steps 2, 4, 6, 12"


def phased(*phases, **more):
  return {"curriculum": {"name": "phases", "phases": phases, **more}}


WRONG = {
  "end at 1, the end of the run, the last one at 0.9": phased({"until": 0.9}),
  "end at 1, the end of the run, and there are none": phased(),
  "phases.1.: until 0.5 of 12 steps is step 6, and the phase begins at step 6": phased(
    {"until": 0.5}, {"until": 0.5}, {"until": 1}
  ),
  "takes no 'lenght'; did you mean 'length'": phased({"until": 1, "lenght": 4}),
  "needs until": phased({"length": 4}),
  "a share is above 0 and at most 1, not 2": phased({"until": 1, "share": 2}),
  "weights are 0 or more": phased({"until": 1, "weights": (0, 0)}),
  "and only there; by is ''": phased({"until": 1, "share": 0.5}),
  "and only there; by is 'score'": phased({"until": 1}, by="score"),
  "its length, 17, is not from 2 to data.length, 16": phased({"until": 1, "length": 17}),
  "weights of 2 parts, and memory is 1": phased({"until": 1, "weights": (1, 2)}),
  "row 1000 is without a number: column 'scores' .*did you mean 'score'": phased(
    {"until": 0.5, "share": 0.5}, {"until": 1}, by="scores"
  ),
  "pace is one of linear, root, not 'roots'": {"curriculum": {**EASY, "pace": "roots"}},
  "a start above 0": {"curriculum": {**EASY, "start": 0}},
  "there are competence, phases": {"curriculum": {"name": "competences"}},
  "a competence takes a run of 2 steps or more, not of 1": {"curriculum": EASY, "steps": 1},
  "here are none; leave it empty": {"curriculum": EASY, "steps": None},
}


@pytest.mark.parametrize("told", WRONG)
def test_what_cannot_be(told):
  with pytest.raises(ValueError, match=told):
    train(**WRONG[told])


def test_a_place_in_another_curriculum_is_none():
  state = train(**PLANS["shares"]).get_state()
  for other in ({}, {"curriculum": {**EASY, "updates": 4}}, {**PLANS["shares"], "steps": 13}):
    with pytest.raises(ValueError, match="of other data: curriculum was"):
      train(**other).set_state(state)


def test_rows_that_have_one_length():
  with pytest.raises(ValueError, match="phase 1 of the curriculum: lengths change for documents"):
    pipeline.train_batches(
      SimpleNamespace(**BASE, curriculum=HALVES),
      NumberTokenizer(),
      batch_size=2,
      seed=0,
      steps=STEPS,
      answers="pairs",
    )


def test_evaluation_reads_all_rows():
  section = SimpleNamespace(**BASE, curriculum=EASY)
  batches = pipeline.eval_batches(section, NumberTokenizer(), batch_size=4)
  assert sorted(d for batch in batches for d in documents(batch)) == [100 + n for n in range(ROWS)]

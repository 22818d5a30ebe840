"""The pipeline on sources in memory, whose every document can be told by its tokens."""

import collections
import inspect
import itertools
import json
from types import SimpleNamespace

import ml_collections
import numpy as np
import pytest

from research.data import pipeline, sources
from research.data.examples import BadRow, Report


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
  """`rows` documents; document `i` has 2 to `longest` tokens, all of which tell `i`."""

  def __init__(self, rows=30, longest=12, bad=(), first=1, broken=()):
    self.name = f"memory{first}"
    self.fingerprint = f"{rows}/{longest}/{bad}/{first}/{broken}"
    self.report = Report()
    self.read = []
    self._rows, self._bad, self._first, self._broken = rows, bad, first, broken
    self._lengths = np.random.default_rng(first).integers(1, longest, rows)

  def __len__(self):
    return self._rows

  def origin(self, index):
    return index + 100

  def __getitem__(self, index):
    self.read.append(index)
    if index in self._broken:
      raise BadRow("not UTF-8", "column 'text'")
    if index in self._bad:
      return {"txt": "1"}
    return {"text": " ".join([str(10 * (self._first + index))] * self._lengths[index])}


@pytest.fixture(autouse=True)
def memory(monkeypatch):
  built = []

  def build(**kwargs):
    built.append(Memory(**kwargs))
    return built[-1]

  build.__signature__ = inspect.signature(Memory)
  monkeypatch.setitem(sources.SOURCES, "memory", build)
  return built


BASE = {
  "source": {"name": "memory"},
  "target_length": 0,
  "length": 16,
  "packing": "best_fit",
  "buckets": (),
  "completion_only": True,
  "corruption": {},
  "on_bad_row": "drop",
  "on_long_row": "drop",
  "shuffle": True,
  "window": 8,
}
MIXTURE = {
  "name": "mixture",
  "sources": [{"name": "memory"}, {"name": "memory", "rows": 7, "first": 1000}],
  "weights": [2, 1],
}
SPANS = {"name": "spans", "sentinels": 8}
PLANS = {
  "packed in small windows": {},
  "packed in one window": {"window": 100},
  "packed in order": {"shuffle": False},
  "bad rows": {"source": {"name": "memory", "bad": (3, 4, 5, 29)}},
  "split": {"source": {"name": "memory", "longest": 50}, "on_long_row": "split"},
  "padded": {"packing": "none", "buckets": (4, 8)},
  "padded in one window": {"packing": "none", "buckets": (4, 8), "window": 100},
  "padded and split": {
    "packing": "none",
    "source": {"name": "memory", "longest": 50},
    "on_long_row": "split",
  },
  "mixture": {"source": MIXTURE},
  "tasks": {"source": {**MIXTURE, "tasks": ["small", "large"]}, "packing": "none"},
  "prefixes": {"corruption": {"name": "prefix"}},
  "spans": {"corruption": SPANS, "source": {"name": "memory", "longest": 50}, "packing": "none"},
  "spans of split rows": {
    "corruption": SPANS,
    "source": {"name": "memory", "longest": 50},
    "on_long_row": "split",
  },
}


def config_of(**changes):
  return SimpleNamespace(**{**BASE, **changes})


def train(batch_size=3, seed=0, shard=(0, 1), rows_per_task=0, **changes):
  return pipeline.train_batches(
    config_of(**changes),
    NumberTokenizer(),
    batch_size=batch_size,
    seed=seed,
    rows_per_task=rows_per_task,
    shard_index=shard[0],
    shard_count=shard[1],
  )


def evaluate(batch_size=4, **changes):
  return pipeline.eval_batches(config_of(**changes), NumberTokenizer(), batch_size=batch_size)


def documents(batch):
  """The number of each document of the batch, in order of row and segment."""
  found = []
  for tokens, segments in zip(batch["tokens"], batch["segments"], strict=True):
    for number in range(1, segments.max() + 1):
      found.append(int(tokens[segments == number][0]))
  return found


def stream_of(batches, count):
  return list(itertools.islice((d for batch in batches for d in documents(batch)), count))


def assert_same(first, second):
  assert first.keys() == second.keys()
  for key, array in first.items():
    np.testing.assert_array_equal(array, second[key], err_msg=key)


@pytest.mark.parametrize("plan", PLANS)
def test_resumes_exactly_at_every_position(plan):
  whole = train(**PLANS[plan])
  states, batches = [json.dumps(whole.get_state())], []
  for _ in range(16):
    batches.append(next(whole))
    states.append(json.dumps(whole.get_state()))
  assert max(map(len, states)) < 1000
  for at, state in enumerate(states[:-2]):
    resumed = train(**PLANS[plan])
    if at % 2:
      next(resumed)  # A place is exact from wherever it is set.
    resumed.set_state(json.loads(state))
    assert json.dumps(resumed.get_state()) == state
    for expected in batches[at : at + 2]:
      assert_same(next(resumed), expected)
    resumed.close()
  whole.close()


@pytest.mark.parametrize("plan", [name for name in PLANS if "split" not in name])
@pytest.mark.parametrize("hosts", [2, 3])
def test_hosts_share_the_batch_of_one(plan, hosts):
  whole = train(batch_size=6, **PLANS[plan])
  shares = [train(batch_size=6, shard=(h, hosts), **PLANS[plan]) for h in range(hosts)]
  for _ in range(10):
    batch = next(whole)
    for h, share in enumerate(shares):
      assert_same({key: array[h::hosts] for key, array in batch.items()}, next(share))


@pytest.mark.parametrize("plan", ["packed in small windows", "packed in one window", "padded"])
def test_every_epoch_holds_every_document_once(plan):
  epochs = stream_of(train(**PLANS[plan]), 90)
  if plan == "padded":  # Its windows are whole batches; three epochs are 30 of them.
    assert sorted(epochs) == sorted([10 * (1 + i) for i in range(30)] * 3)
    return
  for start in (0, 30, 60):
    assert sorted(epochs[start : start + 30]) == [10 * (1 + i) for i in range(30)]
  assert epochs[:30] != epochs[30:60] != epochs[60:]


def test_padded_epochs_that_are_no_whole_batches():
  # Batches of seven, epochs of 30: the windows end with the first whole batch after an
  # epoch's end, which are 35 documents and then 28, to 63.
  drawn = np.array(stream_of(train(batch_size=7, packing="none", window=100), 63)) // 10 - 1
  first, both = np.bincount(drawn[:35]), np.bincount(drawn)
  assert (len(first), first.min(), first.max()) == (30, 1, 2)
  assert (len(both), both.min(), both.max()) == (30, 2, 3)


def test_order_is_a_function_of_the_seed():
  first, again, other = (stream_of(train(seed=seed), 30) for seed in (1, 1, 2))
  assert first == again != other
  in_order = stream_of(train(shuffle=False, packing="none"), 60)
  assert in_order == [10 * (1 + i) for i in range(30)] * 2


def test_batches_are_those_of_the_contract():
  batch = next(train(packing="none", shuffle=False, buckets=(4, 8)))
  lengths = np.random.default_rng(1).integers(1, 12, 30)[:3]
  width = next(b for b in (4, 8, 16) if b > lengths.max())
  for r, n in enumerate(lengths):
    document = [10 * (1 + r)] * n + [1]
    pad = [0] * (width - n - 1)
    assert batch["tokens"][r].tolist() == document + pad
    assert batch["targets"][r].tolist() == document[1:] + [0] + pad
    assert batch["weights"][r].tolist() == [1] * n + [0] + pad
    assert batch["segments"][r].tolist() == [1] * (n + 1) + pad
    assert batch["positions"][r].tolist() == list(range(n + 1)) + pad


def test_padding_keeps_to_the_buckets_and_saves_padding():
  def share(**changes):
    batches = list(itertools.islice(train(packing="none", window=100, **changes), 10))
    assert {batch["tokens"].shape[1] for batch in batches} <= {*changes["buckets"], 16}
    return np.concatenate([batch["segments"].ravel() == 0 for batch in batches]).mean()

  assert share(buckets=(4, 8, 12)) < share(buckets=()) - 0.2


def test_mixture_keeps_its_weights():
  drawn = stream_of(train(source=MIXTURE, window=37), 37 * 8)
  assert sum(d >= 10_000 for d in drawn) == 98  # a third, rounded down
  # The seven are drawn again and again, each as often as the others.
  counts = np.bincount([d // 10 - 1000 for d in drawn if d >= 10_000])
  assert counts.max() - counts.min() <= 1


@pytest.mark.parametrize("plan", [name for name in PLANS if "corruption" not in PLANS[name]])
@pytest.mark.parametrize("batch_size", [1, 4, 64])
def test_evaluation_reads_everything_once(plan, batch_size):
  batches = evaluate(batch_size, **PLANS[plan])
  once = list(batches)
  assert {batch["tokens"].shape[0] for batch in once} == {batch_size}
  found = sorted(d for batch in once for d in documents(batch))
  tokenized = sources.build({**BASE, **PLANS[plan]}["source"])
  texts = [tokenized[i].get("text") for i in range(len(tokenized))]
  numbers = sorted(int(text.split()[0]) for text in texts if text)
  assert sorted(set(found)) == numbers
  if "split" not in plan:
    assert found == numbers
  # Every token but a document's first is a target once, split or not.
  weight = sum(batch["weights"].sum() for batch in once)
  assert weight == sum(len(text.split()) for text in texts if text)
  empty = [not batch["segments"].any(axis=1).all() for batch in once]
  assert not any(empty[:-1])
  for first, second in zip(once, batches, strict=True):
    assert_same(first, second)


def test_every_token_tells_its_task():
  plan = {"source": {**MIXTURE, "tasks": ["small", "large"]}}
  for batches in (train(**plan), evaluate(**plan)):
    assert batches.tasks == ("small", "large")
    for batch in itertools.islice(batches, 8):
      for tokens, segments, task in zip(
        batch["tokens"], batch["segments"], batch["task"], strict=True
      ):
        assert not task[segments == 0].any()
        for number in range(1, segments.max() + 1):
          at = segments == number
          assert set(task[at].tolist()) == {int(tokens[at][0] >= 10_000)}
  assert "task" not in next(train(source=MIXTURE)) and train().tasks == ()


def problems(batches, epochs, rows=30):
  """For each document its problem in each epoch: tokens and length of the prefix."""
  found = {}
  while sum(map(len, found.values())) < epochs * rows:
    batch = next(batches)
    for tokens, segments, prefix in zip(
      batch["tokens"], batch["segments"], batch["prefix"], strict=True
    ):
      for number in range(1, segments.max() + 1):
        at = segments == number
        (length,) = set(prefix[at].tolist())
        found.setdefault(tokens[at][0], []).append((tokens[at].tolist(), length))
  return {number: once[:epochs] for number, once in found.items()}


def test_corruption_is_a_function_of_seed_epoch_and_row():
  plan = {"corruption": {"name": "prefix"}, "source": {"name": "memory", "longest": 16}}
  first = problems(train(**plan), 2)
  # The order, the windows and the batches have no part in it.
  assert problems(train(**plan, shuffle=False), 2) == first
  assert problems(train(**plan, window=100, batch_size=6, packing="none"), 2) == first
  other = problems(train(**plan, seed=1), 2)
  long = [number for number, (once, _) in first.items() if len(once[0]) > 3]
  again = [number for number in long if first[number][0] == first[number][1]]
  seeds = [number for number in long if first[number][0] == other[number][0]]
  assert len(again) < len(long) / 2 and len(seeds) < len(long) / 2
  once, again = (list(evaluate(**plan)) for _ in range(2))
  for a, b in zip(once, again, strict=True):
    assert_same(a, b)


def test_corrupted_rows_fit_and_learn_their_solutions():
  plan = {"corruption": SPANS, "source": {"name": "memory", "longest": 50}, "packing": "none"}
  batches = train(**plan, on_long_row="split")
  for batch in itertools.islice(batches, 30):
    assert batch["tokens"].shape[1] == 16
    for r, prefix in enumerate(batch["prefix"].max(axis=1)):
      used = np.count_nonzero(batch["segments"][r])
      tokens = batch["tokens"][r, :used]
      assert tokens[prefix] == 10**6 - 1 and tokens[-1] == 1
      learnt = (np.arange(16) >= prefix - 1) & (np.arange(16) < used - 1)
      np.testing.assert_array_equal(batch["weights"][r] > 0, learnt)
  lengths = np.random.default_rng(1).integers(1, 50, 30)
  short = train(**plan)
  stream_of(short, 60)
  assert short.report.count("dropped, too short to corrupt") == (lengths < 2).sum()
  state = train(**plan).get_state()
  with pytest.raises(ValueError, match="other data: corruption was {'name': 'spans'.*, is {}"):
    train(**{**plan, "corruption": {}}).set_state(state)


def test_bad_and_long_rows_are_counted_once_with_their_index():
  source = {"name": "memory", "bad": (3, 9), "broken": (5,), "longest": 30}
  batches = train(source=source, window=100)
  lengths = np.random.default_rng(1).integers(1, 30, 30)
  long = [i for i in range(30) if lengths[i] + 1 > 16 and i not in (3, 5, 9)]
  stream_of(batches, 200)
  counted = {entry["reason"]: [i for i, _ in entry["rows"]] for entry in batches.report.to_json()}
  assert counted == {
    "dropped, without its columns": [103, 109],
    "dropped, not UTF-8": [105],
    "dropped, longer than 16 tokens": [i + 100 for i in long],
  }


def test_truncated_rows_are_counted_and_kept():
  batches = evaluate(
    source={"name": "memory", "longest": 30}, on_long_row="truncate", packing="none"
  )
  lengths = np.random.default_rng(1).integers(1, 30, 30) + 1
  assert sorted(int((b > 0).sum()) for batch in batches for b in batch["segments"] if b.any()) == (
    sorted(np.minimum(lengths, 16).tolist())
  )
  assert batches.report.count("truncated to 16 tokens") == (lengths > 16).sum() > 0


@pytest.mark.parametrize(
  ("changes", "message"),
  [
    (
      {"source": {"name": "memory", "bad": (3,)}, "on_bad_row": "stop"},
      r"memory1 row 103 is without its columns: .*did you mean 'text'\? \(data.on_bad_row='drop'",
    ),
    (
      {"source": {"name": "memory", "broken": (3,)}, "on_bad_row": "stop"},
      r"memory1 row 103 is not UTF-8: column 'text' \(data.on_bad_row='drop'",
    ),
    (
      {"source": {"name": "memory", "longest": 40}, "on_long_row": "stop"},
      r"memory1 row 1\d\d is longer than 16 tokens: it has \d+ \(data.on_long_row='drop'",
    ),
  ],
)
def test_stop_stops(changes, message):
  with pytest.raises(ValueError, match=message):
    train(window=100, **changes).description()
  with pytest.raises(ValueError, match=message):  # From the thread, when it gets there.
    stream_of(train(window=1, **changes), 100)
  with pytest.raises(ValueError, match=message):
    list(evaluate(**changes))


@pytest.mark.parametrize("read", [lambda c: next(train(**c)), lambda c: list(evaluate(**c))])
def test_data_without_one_usable_row(read):
  with pytest.raises(ValueError, match="none of 5 rows can be used\nmemory1: 5 rows dropped, with"):
    read({"source": {"name": "memory", "rows": 5, "bad": tuple(range(5))}})


def test_rows_lost_in_preparation_are_in_the_report(tmp_path):
  path = tmp_path / "a.jsonl"
  path.write_text('{"text": "3 4"}\n{\n{"text": "5 6"}\n')
  source = {"name": "jsonl", "path": str(path), "cache": str(tmp_path / "cache")}
  batches = train(source=source)
  assert batches.report.count("not JSON") == 1
  assert sorted(stream_of(batches, 2)) == [3, 5]
  with pytest.raises(ValueError, match=r"1 row not JSON .*\(data.on_bad_row='drop'"):
    train(source=source, on_bad_row="stop")


def test_memory_is_bounded_by_the_window(memory):
  batches = train(source={"name": "memory", "rows": 5000}, window=8)
  assert "5,000 rows; a window of 8 has" in batches.description()
  assert len(memory[0].read) == 8


def test_data_that_fits_the_window_is_tokenized_once(memory):
  stream_of(train(window=30), 200)
  assert len(memory[0].read) == 30


def test_description():
  batches = train(window=100, packing="none", buckets=(8,))
  tokens = int(np.random.default_rng(1).integers(1, 12, 30).sum()) + 30
  slots = sum(next(batches)["tokens"].size for _ in range(10))
  assert batches.description() == (
    f"memory1: 30 rows; a window of 30 has {tokens} tokens, padded to 8, 16 with "
    f"{1 - tokens / slots:.1%} padding"
  )


def test_a_state_of_other_data_is_refused():
  state = train().get_state()
  with pytest.raises(ValueError, match="other data: length was 16, is 12$"):
    train(length=12).set_state(state)
  with pytest.raises(ValueError, match="source was '30/12.*', is '9/12.*'"):
    train(source={"name": "memory", "rows": 9}).set_state(state)


@pytest.mark.parametrize(
  ("changes", "message"),
  [
    ({"packing": "bestfit"}, "data.packing 'bestfit' is none of .*did you mean 'best_fit'"),
    ({"on_bad_row": "skip"}, "data.on_bad_row 'skip'"),
    ({"on_long_row": "trunc"}, "did you mean 'truncate'"),
    ({"length": 1}, "data.length is at least 2"),
    ({"buckets": (8, 32)}, r"data.buckets \(8, 32\) are not all from 2 to 16"),
    ({"shard": (2, 2)}, "shard 2 of 2"),
    ({"shard": (0, 2)}, "the count divides the batch"),
  ],
)
def test_refuses(changes, message):
  with pytest.raises(ValueError, match=message):
    train(**changes)


def test_reads_a_config_dict():
  config = ml_collections.ConfigDict(BASE)
  batches = pipeline.train_batches(config, NumberTokenizer(), batch_size=3, seed=0)
  assert_same(next(batches), next(train()))


@pytest.mark.parametrize("packing", ["best_fit", "none"])
def test_rows_by_task(packing):
  source = {**MIXTURE, "tasks": ["small", "large"]}
  settings = {"source": source, "packing": packing, "batch_size": 6, "rows_per_task": 3}
  whole, seen, tasks = train(**settings), [], set()
  states = []
  for _ in range(30):
    states.append(json.dumps(whole.get_state()))
    batch = next(whole)
    seen.append(batch)
    for group in (slice(0, 3), slice(3, 6)):
      real = batch["segments"][group] > 0
      found = {*batch["task"][group][real].tolist()}
      assert len(found) == 1
      tasks |= found
      numbers = np.unique(batch["tokens"][group][real] // 10)
      assert (numbers[numbers > 0] >= 1000).all() == (found == {1})
  assert tasks == {0, 1}
  # Nothing is lost: one epoch of the smaller part is in the stream whole.
  assert {10 * (1000 + i) for i in range(7)} <= {d for batch in seen for d in documents(batch)}
  resumed = train(**settings)
  resumed.set_state(json.loads(states[7]))
  assert_same(next(resumed), seen[7])
  # Each host has whole groups, and all hosts together the batch.
  hosts = [train(**settings, shard=(i, 2)) for i in range(2)]
  for batch in seen[:3]:
    parts = [next(host) for host in hosts]
    together = {name: np.concatenate([part[name] for part in parts]) for name in batch}
    assert_same(together, batch)
  for batches in (whole, resumed, *hosts):
    batches.close()


def test_rows_by_task_need_tasks_and_whole_groups():
  with pytest.raises(ValueError, match="need a mixture of tasks; memory1 is one"):
    train(rows_per_task=3)
  with pytest.raises(ValueError, match="batch_size is a multiple of 8"):
    train(source=MIXTURE, rows_per_task=4, batch_size=4, shard=(0, 2))


@pytest.mark.parametrize("packing", ["best_fit", "none"])
def test_virtual_tokens_lead_every_document_and_predict_its_first(packing):
  """Beside that there is what a pipeline with so much shorter rows would give."""
  rows = {"source": {"name": "memory", "longest": 30}, "on_long_row": "truncate"}
  shape = {"batch_size": 4, "seed": 0, "shard_index": 0, "shard_count": 1}
  led = pipeline.train_batches(
    config_of(length=16, packing=packing, window=100, **rows),
    NumberTokenizer(),
    virtual_tokens=3,
    **shape,
  )
  plain = pipeline.train_batches(
    config_of(length=13, packing="none", window=100, **rows), NumberTokenizer(), **shape
  )

  def learnt(batches, lead):
    found = collections.Counter()
    for batch in itertools.islice(batches, 30 if packing == "best_fit" else 8):
      numbered = [(row, n) for row, own in enumerate(batch["segments"]) for n in set(own) if n]
      for r, number in numbered:
        here = batch["segments"][r] == number
        tokens, targets = (batch[name][r][here] for name in ("tokens", "targets"))
        assert tokens[:lead].tolist() == [-1, -2, -3][:lead]
        assert (tokens[lead:] >= 0).all() and (targets >= 0).all()
        assert batch["positions"][r][here].tolist() == list(range(here.sum()))
        weights = batch["weights"][r][here]
        if lead:
          assert weights[:lead].tolist() == [0, 0, 1] and targets[lead - 1] == tokens[lead]
        weights, targets = weights[lead:], targets[lead:]
        found[tuple(tokens[lead:]), tuple(targets[weights > 0])] += 1
    return found

  one, two = learnt(led, 3), learnt(plain, 0)
  assert max(len(tokens) for tokens, _ in one) == 13
  assert set(one) == set(two) and len(one) > 20
  assert led.get_state()["settings"]["virtual_tokens"] == 3
  with pytest.raises(ValueError, match="the saved place in the data is of other data"):
    led.set_state(plain.get_state())
  with pytest.raises(ValueError, match="leaves no room beside 15 virtual tokens"):
    pipeline.train_batches(config_of(), NumberTokenizer(), virtual_tokens=15, **shape)


def test_virtual_tokens_see_a_prefix_and_are_seen_by_it():
  batches = pipeline.eval_batches(
    config_of(corruption={"name": "prefix"}), NumberTokenizer(), batch_size=2, virtual_tokens=4
  )
  plain = pipeline.eval_batches(
    config_of(length=12, corruption={"name": "prefix"}), NumberTokenizer(), batch_size=2
  )

  def prefixes(batches, lead):
    return {
      (int(batch["tokens"][r][i + lead]), int(batch["prefix"][r][i]) - lead)
      for batch in batches
      for r, i in zip(*np.nonzero((batch["positions"] == 0) & (batch["segments"] > 0)), strict=True)
    }

  assert prefixes(batches, 4) == prefixes(plain, 0)

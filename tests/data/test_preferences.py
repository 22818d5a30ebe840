"""Rows of judged answers: tokens, prompts, what is refused, and how batches hold them."""

import json
from types import SimpleNamespace

import numpy as np
import pytest

from research.data import pipeline, preferences
from research.data.examples import BadRow

CONFIG = {
  "length": 24,
  "target_length": 0,
  "packing": "none",
  "buckets": (12,),
  "completion_only": True,
  "corruption": {},
  "on_bad_row": "drop",
  "on_long_row": "drop",
  "shuffle": True,
  "window": 16,
}
USER = {"role": "user", "content": "q"}


def said(text):
  return [{"role": "assistant", "content": text}]


def spelled(example, tokenizer):
  """Prompt and answer of one row, as text."""
  start = preferences.prompt_length(example)
  decode = lambda ids: tokenizer.backend.decode(ids.tolist(), skip_special_tokens=False)  # noqa: E731
  return decode(example.tokens[:start]), decode(example.tokens[start:])


@pytest.mark.parametrize(
  ("row", "prompt", "chosen", "rejected"),
  [
    ({"prompt": "a", "chosen": " b", "rejected": " c"}, "a", " b<eos>", " c<eos>"),
    # Answers that begin alike still begin behind the prompt.
    ({"prompt": "a", "chosen": "bx", "rejected": "by"}, "a", "bx<eos>", "by<eos>"),
    # Whole texts: their common beginning, less a space that goes with the next word.
    ({"chosen": "a bc", "rejected": "a d"}, "a", " bc<eos>", " d<eos>"),
    ({"chosen": "abcd", "rejected": "abc"}, "ab", "cd<eos>", "c<eos>"),
    (
      {"prompt": [USER], "chosen": said("b"), "rejected": said("c")},
      "user: q<eos>",
      "assistant: b<eos>",
      "assistant: c<eos>",
    ),
    (
      {"chosen": [USER, *said("b")], "rejected": [USER, *said("c")]},
      "user: q<eos>",
      "assistant: b<eos>",
      "assistant: c<eos>",
    ),
  ],
)
def test_pairs(byte_tokenizer, row, prompt, chosen, rejected):
  pair = preferences.tokenize_pair({**row, "margin": 1.5, "other": 0}, byte_tokenizer)
  assert spelled(pair, byte_tokenizer) == (prompt, chosen)
  assert spelled(pair.rival, byte_tokenizer) == (prompt, rejected)
  assert pair.told == pair.rival.told == {"margin": 1.5}


def test_judged(byte_tokenizer):
  row = {"prompt": "a", "completion": " b", "label": False}
  example = preferences.tokenize_judged(row, byte_tokenizer)
  assert spelled(example, byte_tokenizer) == ("a", " b<eos>")
  assert example.told == {"label": 0.0} and example.rival is None


@pytest.mark.parametrize(
  ("row", "reason"),
  [
    ({"prompt": "a", "chosen": "b"}, r"no 'rejected' in \['chosen', 'prompt'\]"),
    ({"prompt": "a", "choosen": "b", "rejected": "c"}, "did you mean 'choosen'"),
    ({"prompt": "a", "chosen": "b", "rejected": "b"}, "two answers are equal: both are 'b'"),
    ({"prompt": "a", "chosen": "b", "rejected": "b<eos>"}, "equal: they are the same tokens"),
    ({"prompt": "a", "chosen": " ", "rejected": "b"}, "empty answer: column 'chosen'"),
    ({"prompt": [USER], "chosen": said(""), "rejected": said("b")}, "empty answer"),
    ({"prompt": "a", "chosen": said("b"), "rejected": "c"}, "one is a string, one messages"),
    ({"prompt": "a", "chosen": said("b"), "rejected": said("c")}, "a string, its answers are"),
    ({"prompt": "a", "chosen": "ab", "rejected": "ac"}, "repeat the prompt: .*: drop 'prompt'"),
    (
      {"prompt": [USER], "chosen": [USER, *said("b")], "rejected": [USER, *said("c")]},
      "repeat the prompt",
    ),
    ({"prompt": said("b"), "chosen": [USER], "rejected": said("c")}, "seem to be swapped"),
    ({"prompt": [USER], "chosen": [USER | {"content": "r"}], "rejected": said("c")}, "swapped"),
    ({"chosen": [USER, *said("b")], "rejected": said("c")}, "without a prompt"),
    ({"prompt": 3, "chosen": "b", "rejected": "c"}, "'prompt' is not a list of messages"),
    ({"prompt": "a", "chosen": "b", "rejected": "c", "margin": "x"}, "'margin' holds 'x'"),
  ],
)
def test_pairs_that_cannot_be(byte_tokenizer, row, reason):
  with pytest.raises(BadRow, match=reason):
    preferences.tokenize_pair(row, byte_tokenizer)


@pytest.mark.parametrize(
  ("row", "reason"),
  [
    ({"prompt": "a", "completion": "b"}, "no 'label'"),
    ({"prompt": "a", "completion": "b", "label": "yes"}, "'label' holds 'yes'"),
    ({"prompt": "a", "completion": "", "label": True}, "empty answer"),
  ],
)
def test_judged_rows_that_cannot_be(byte_tokenizer, row, reason):
  with pytest.raises(BadRow, match=reason):
    preferences.tokenize_judged(row, byte_tokenizer)


def test_long_rows(byte_tokenizer):
  pair = preferences.tokenize_pair(
    {"prompt": "abcdef", "chosen": "ghijkl", "rejected": "mn"}, byte_tokenizer
  )
  assert preferences.fit(pair, 13, "drop") is pair
  with pytest.raises(BadRow, match="longer than 12 tokens: it has 13"):
    preferences.fit(pair, 12, "drop")
  end = preferences.fit(pair, 9, "truncate")
  assert spelled(end, byte_tokenizer) == ("abcdef", "ghi")
  assert spelled(end.rival, byte_tokenizer) == ("abcdef", "mn<eos>")
  start = preferences.fit(pair, 9, "truncate_start")
  assert spelled(start, byte_tokenizer) == ("ef", "ghijkl<eos>")
  assert spelled(start.rival, byte_tokenizer) == ("abcdef", "mn<eos>")
  with pytest.raises(BadRow, match="a prompt that fills 6 tokens"):
    preferences.fit(pair, 6, "truncate")
  with pytest.raises(BadRow, match="an answer has 7"):
    preferences.fit(pair, 7, "truncate_start")
  alike = preferences.tokenize_pair(
    {"prompt": "ab", "chosen": "cdx", "rejected": "cdy"}, byte_tokenizer
  )
  with pytest.raises(BadRow, match="equal: they are within 4 tokens"):
    preferences.fit(alike, 4, "truncate")


@pytest.fixture(scope="module")
def rows():
  """Pairs of all lengths, the same answers judged, and rows that are bad."""
  rng = np.random.default_rng(0)
  text = lambda most: "".join(rng.choice(list("abcdefgh"), rng.integers(1, most)))  # noqa: E731
  pairs = [
    {"prompt": text(9), "chosen": "x" + text(9), "rejected": "y" + text(9), "margin": i}
    for i in range(21)
  ]
  pairs[4]["rejected"] = pairs[4]["chosen"]
  pairs[7]["prompt"] = "z" * 30
  judged = [
    {"prompt": row["prompt"], "completion": row["chosen"], "label": i % 2 == 0}
    for i, row in enumerate(pairs)
  ]
  return {"pairs": pairs, "judged": judged}


def _config(tmp_path, rows, **changes):
  (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
  source = {"name": "jsonl", "path": str(tmp_path / "rows.jsonl"), "cache": str(tmp_path / "cache")}
  return SimpleNamespace(**{**CONFIG, "source": source, **changes})


def _texts(batch, tokenizer, r):
  """Prompt and answer of a row of a batch: what is learnt is the answer."""
  size = int((batch["segments"][r] > 0).sum())
  tokens, weights = batch["tokens"][r][:size], batch["weights"][r][: size - 1]
  np.testing.assert_array_equal(tokens[1:], batch["targets"][r][: size - 1])
  start = 1 + int(np.argmax(weights))
  assert weights.tolist() == [0.0] * (start - 1) + [1.0] * (size - start)
  return tokenizer.decode(tokens[:start]), tokenizer.decode(tokens[start:-1])


def test_batches_of_pairs(tmp_path, rows, byte_tokenizer):
  config = _config(tmp_path, rows["pairs"])
  batches = pipeline.eval_batches(config, byte_tokenizer, batch_size=3, answers="pairs")
  found = {}
  for batch in batches:
    assert batch["tokens"].shape in ((6, 12), (6, 24))
    for r in range(0, 6, 2):
      number, other = batch["row"][r : r + 2]
      assert number == other
      if number < 0:
        assert not batch["weights"][r : r + 2].any()
        continue
      assert batch["margin"][r] == batch["margin"][r + 1] == number
      found[int(number)] = [_texts(batch, byte_tokenizer, r + i) for i in range(2)]
  usable = {i: row for i, row in enumerate(rows["pairs"]) if i not in (4, 7)}
  assert found == {
    i: [(row["prompt"], row["chosen"]), (row["prompt"], row["rejected"])]
    for i, row in usable.items()
  }
  told = str(batches.report)
  assert "dropped, whose two answers are equal (row 4)" in told
  assert "dropped, longer than 24 tokens (row 7)" in told


def test_judged_answers_meet_the_prompt_of_their_neighbour(tmp_path, rows, byte_tokenizer):
  config = _config(tmp_path, rows["judged"])
  batches = list(pipeline.eval_batches(config, byte_tokenizer, batch_size=4, answers="judged"))
  lone = 0
  for batch in batches:
    own = [_texts(batch, byte_tokenizer, r) for r in range(0, 8, 2) if batch["row"][r] >= 0]
    labels = [row % 2 == 0 for row in batch["row"][::2] if row >= 0]
    assert batch["label"][::2][: len(labels)].tolist() == labels
    if len(own) == 1:  # the last batch: no other answer is there
      lone += 1
      assert batch["row"][1] == -1 and not batch["weights"][1].any()
      continue
    for i, (prompt, _) in enumerate(own):
      mixed = _texts(batch, byte_tokenizer, 2 * i + 1)
      assert mixed[0] == prompt
      # The last token, EOS, is left out of texts; what was cut to a row has lost its end.
      assert own[i - 1][1].startswith(mixed[1][: 23 - len(prompt)])
  assert lone <= 1


@pytest.mark.parametrize("kind", ["pairs", "judged"])
def test_training_goes_on_where_it_was_and_hosts_have_whole_examples(
  tmp_path, rows, byte_tokenizer, kind
):
  config = _config(tmp_path, rows[kind])

  def train(shard=0, count=1):
    return pipeline.train_batches(
      config,
      byte_tokenizer,
      batch_size=4,
      seed=0,
      answers=kind,
      virtual_tokens=2,
      shard_index=shard,
      shard_count=count,
    )

  whole, again, *hosts = train(), train(), train(0, 2), train(1, 2)
  seen = [next(whole) for _ in range(3)]
  again.set_state(whole.get_state())
  for a, b in ((next(whole), next(again)) for _ in range(3)):
    assert all(np.array_equal(a[name], b[name]) for name in a)
  for batch in seen:
    assert len({int(row) for row in batch["row"]}) == 4  # no row twice
    np.testing.assert_array_equal(batch["tokens"][:, :2], [[-1, -2]] * 8)
    parts = [next(host) for host in hosts]
    for name in batch:
      np.testing.assert_array_equal(np.concatenate([p[name] for p in parts]), batch[name])


@pytest.mark.parametrize(
  ("changes", "message"),
  [
    ({"packing": "best_fit"}, "need data.packing='none'"),
    ({"on_long_row": "split"}, "'truncate_start'"),
    ({"completion_only": False}, "the answers count"),
  ],
)
def test_settings_that_cannot_be(tmp_path, rows, byte_tokenizer, changes, message):
  config = _config(tmp_path, rows["pairs"], **changes)
  with pytest.raises(ValueError, match=message):
    pipeline.eval_batches(config, byte_tokenizer, batch_size=3, answers="pairs")


def test_what_is_for_preferences_alone(tmp_path, rows, byte_tokenizer):
  config = _config(tmp_path, rows["pairs"], on_long_row="truncate_start")
  with pytest.raises(ValueError, match="'truncate_start' is for rows about answers"):
    pipeline.eval_batches(config, byte_tokenizer, batch_size=3)
  config = _config(tmp_path, rows["judged"])
  with pytest.raises(ValueError, match="batch_size is at least 2"):
    pipeline.eval_batches(config, byte_tokenizer, batch_size=1, answers="judged")
  config = _config(tmp_path, rows["pairs"])
  with pytest.raises(ValueError, match="objectives 'preference' and 'reward'"):
    next(iter(pipeline.eval_batches(config, byte_tokenizer, batch_size=3)))

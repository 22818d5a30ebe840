"""Facts hidden in a text: where they stand, and how answers are read."""

import re

import pytest

from research import generation
from research.evals import bootstrap, build, needle

TEXT = " ".join(f"Sentence {'abcdefgh'[i % 8] * (1 + i % 5)} of the tale." for i in range(40))
FACT = re.compile(r"The special number of (\w+) is ([0-9]{5})\.")


@pytest.fixture(scope="module")
def section(tmp_path_factory):
  root = tmp_path_factory.mktemp("needle")
  (root / "text.txt").write_text(TEXT)
  data = {"name": "text", "path": str(root / "text.txt"), "cache": str(root / "cache")}
  return {"name": "needle", "data": data, "lengths": (400, 800), "depths": (0.0, 0.5, 1.0)}


@pytest.fixture
def asked(monkeypatch, tokenizer):
  """`asked(section, answer)`: prompts, and the result where `answer(prompt)` is written."""

  def ask(section, answer):
    seen = []

    def generate(model, variables, prompts, *, progress, **_):
      progress(len(prompts))
      seen.extend(tokenizer.decode(prompt) for prompt in prompts)
      return [
        generation.Completion(i, 0, tokenizer.encode(answer(text)), [], True)
        for i, text in enumerate(seen)
      ]

    monkeypatch.setattr(needle.generation, "generate", generate)
    return seen, build([section])[0](None, None, tokenizer)

  return ask


def test_cells(section, asked):
  """A model that reads the first half of what it is given alone."""

  def answer(prompt):
    found = FACT.search(prompt[: len(prompt) // 2])
    return f" {int(found[2]):,}. And then 12 more." if found else " unknown"

  prompts, result = asked({**section, "size": 2}, answer)
  assert len(prompts) == 12 == result.metrics["problems"]
  for prompt, record in zip(prompts, result.records, strict=True):
    length, depth = record["length"], record["depth"]
    assert length - 40 < len(prompt) <= length  # a token a byte; a sentence is shorter than 40
    city, number = FACT.search(prompt).groups()
    assert prompt.endswith(f"\n\nThe special number of {city} is")
    assert record["answers"] == [number]
    hay = prompt[: prompt.rindex("\n\n")]
    place = hay.index("The special") / (len(hay) - len(FACT.search(hay)[0]))
    assert place == pytest.approx(depth, abs=0.06)
    assert record["correct"] == (depth == 0.0) or depth == 0.5
  assert len({re.search("Sentence .*?[.]", prompt)[0] for prompt in prompts}) > 3
  for length in (400, 800):
    assert result.metrics[f"accuracy/{length}/0"] == 1
    assert result.metrics[f"accuracy/{length}/1"] == 0
    assert result.intervals[f"accuracy/{length}/1"] == bootstrap.wilson(0, 2)
  right = sum(record["correct"] for record in result.records)
  assert result.metrics["accuracy"] == result.metrics["found"] == right / 12
  assert [cell["problems"] for cell in result.tables["cells"]] == [2] * 6

  again, _ = asked({**section, "size": 2}, answer)
  assert again == prompts
  other, _ = asked({**section, "size": 2, "seed": 1}, answer)
  assert not set(other) & set(prompts)


def test_several_needles_in_a_chat(section, asked):
  def answer(prompt):
    found = [number for _, number in FACT.findall(prompt)]
    return ", ".join(found if "Sentence a" in prompt[:60] else found[::-1])

  section = {**section, "size": 3, "needles": 3, "chat": True, "lengths": (700,)}
  prompts, result = asked(section, answer)
  assert result.metrics["found"] == 1 and 0 < result.metrics["accuracy"] < 1
  for prompt, record in zip(prompts, result.records, strict=True):
    cities = [city for city, _ in FACT.findall(prompt)]
    assert f"numbers of {cities[0]}, {cities[1]} and {cities[2]}? Answer" in prompt
    assert prompt.startswith("[user]") and prompt.endswith("[assistant]")
    assert record["correct"] == ("Sentence a" in prompt[:60])


def test_distractors_are_facts_that_nobody_asks_for(section, asked):
  def answer(prompt):
    numbers = dict(FACT.findall(prompt))
    city = re.search(r"special number of (\w+) is$", prompt)[1]
    return numbers[city] if "Sentence a" in prompt[:60] else min(numbers.values())

  section = {**section, "size": 4, "needles": 4, "asked": 1, "lengths": (800,)}
  prompts, result = asked(section, answer)
  places, rivals = set(), set()
  for prompt, record in zip(prompts, result.records, strict=True):
    city = re.search(r"special number of (\w+) is$", prompt)[1]
    facts = FACT.findall(prompt)
    assert len(dict(facts)) == 4 and record["answers"] == [dict(facts)[city]]
    hay = prompt[: prompt.rindex("\n\n")].replace(f"The special number of {city}", "!")
    hay = re.sub(r" is [0-9]{5}\.", "", hay.replace("The special number of ", ""))
    assert hay.index("!") / len(hay) == pytest.approx(record["depth"], abs=0.06)
    places.add([name for name, _ in facts].index(city))
    rivals |= {prompt.index(f"of {name} is") // 200 for name, _ in facts if name != city}
    assert record["asked"] == 1 and record["found"] == record["correct"]
  assert len(places) > 2 and rivals == {0, 1, 2, 3}  # before the one asked for, and behind it
  assert 0 < result.metrics["found"] == result.metrics["accuracy"] < 1
  # All are asked for unless it is told.
  same, _ = asked({**section, "asked": 4}, lambda prompt: "")
  assert asked({**section, "asked": None}, lambda prompt: "")[0] == same


def test_numbers():
  assert needle.numbers("12,345, 67890; 1,23 and 7") == ["12345", "67890", "1", "23", "7"]


def test_a_text_without_sentences(section, asked, tmp_path):
  """A table has no end; its words are as good a haystack, but not a single word."""
  (tmp_path / "table.txt").write_text("| cell of it " * 300)
  data = {**section["data"], "path": str(tmp_path / "table.txt")}
  prompts, _ = asked({**section, "data": data, "size": 1}, lambda prompt: "")
  assert all(length - 80 < len(p) for p, length in zip(prompts, [400] * 3 + [800] * 3, strict=True))
  (tmp_path / "table.txt").write_text("x" * 900)
  with pytest.raises(ValueError, match="since the text goes on with 901 that have no space"):
    asked({**section, "data": {**data, "cache": str(tmp_path / "new")}}, lambda prompt: "")


def test_with_a_model(section, model, variables, tokenizer):
  with pytest.raises(ValueError, match="more than the length 50"):
    build([{**section, "lengths": (50,)}])[0](model, variables, tokenizer)
  with pytest.raises(ValueError, match="exceeds the model's 96 positions"):
    build([section])[0](model, variables, tokenizer)
  (evaluator,) = build([{**section, "lengths": (88,), "size": 1, "max_new_tokens": 4}])
  assert evaluator(model, variables, tokenizer).metrics["problems"] == 3
  for wrong in (
    {"depths": (1.5,)},
    {"lengths": ()},
    {"depths": (0.5, 0.5)},
    {"size": 0},
    {"needles": 99},
    {"needles": 2, "asked": 3},
    {"asked": 0},
  ):
    with pytest.raises(ValueError, match="needle: "):
      build([{**section, **wrong}])

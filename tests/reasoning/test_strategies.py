"""Every strategy through a real model: what it draws, what it chooses, what it counts."""

import dataclasses
import json
import math

import jax
import numpy as np
import pytest
import tokenizers

from research import generation, models, reasoning
from research.core.config import ConfigError
from research.data.tokenizer import Tokenizer
from research.reasoning.session import Request

SAMPLER = generation.Sampler(temperature=1.0)
TREE = {
  "name": "tree_of_thoughts",
  "proposals": 3,
  "thought_tokens": 4,
  "judge": {"name": "verdict", "marks": {"a": 1.0, "b": 0.5, "no": 0.0}},
}
SECTIONS = {
  "plain": {"name": "plain"},
  "self_consistency": {"name": "self_consistency", "samples": 3},
  "weighted": {"name": "self_consistency", "samples": 3, "weights": {"name": "likelihood"}},
  "best_of_n": {"name": "best_of_n", "samples": 3},
  "breadth": {**TREE, "search": {"name": "breadth", "beam": 2, "depth": 2}},
  "depth": {**TREE, "search": {"name": "depth", "threshold": 0.3, "depth": 2}},
  "critique": {"name": "critique", "rounds": 2, "nothing": "e"},
}


@pytest.fixture(scope="module")
def answer(session, asks, reader):
  """`answer(section, asks=asks, **settings)` -> outcomes; kept, since nothing in them changes."""
  kept = {}

  def call(section, told=asks, **settings):
    key = json.dumps([section, [ask.problem for ask in told], settings])
    if key not in kept:
      kept[key] = reasoning.build(section, SAMPLER)(session(**settings), told, reader)
    return kept[key]

  return call


def told(outcome):
  """What of an outcome has to be equal, log-probabilities apart."""
  samples = [(each.text, each.value, each.tokens, each.finished) for each in outcome.samples]
  return outcome.answer.text, samples, outcome.cost, outcome.agreement


@pytest.mark.parametrize("name", SECTIONS)
def test_a_problem_does_not_depend_on_its_batch(answer, asks, name):
  """One at a time, and beside another second problem, the others find the same."""
  whole = answer(SECTIONS[name])
  alone = answer(SECTIONS[name], batch_size=3)
  beside = answer(SECTIONS[name], [asks[0], asks[2], asks[2]])
  assert [told(each) for each in whole] == [told(each) for each in alone]
  assert [told(whole[i]) for i in (0, 2)] == [told(beside[i]) for i in (0, 2)]
  for a, b in zip(whole, alone, strict=True):
    np.testing.assert_allclose(a.answer.log_probs, b.answer.log_probs, atol=1e-4)
    assert json.loads(json.dumps(a.trace)) == a.trace
    assert a.answer in a.samples


def test_draws_go_by_the_problem_and_the_stage(session, asks):
  """As where other problems are done already, and where a problem has several states."""
  requests = [Request(i, ask) for i, ask in enumerate(asks)]

  def texts(requests, stage="x"):
    return [[each.text for each in row] for row in session().write(requests, stage=stage)]

  whole = texts(requests)
  assert texts(requests[2:]) == whole[2:]
  assert texts([requests[1], requests[0]]) == [whole[1], whole[0]]
  moved = [dataclasses.replace(requests[0], problem=2)]
  assert texts(moved) != whole[:1]
  assert texts([dataclasses.replace(moved[0], problem=1, number=2)]) == texts(moved)
  assert texts(requests, stage="y") != whole


def test_one_sample_is_the_plain_answer_bit_for_bit(answer, asks, toy, byte_tokenizer):
  plain = answer(SECTIONS["plain"])
  alone = answer({"name": "self_consistency", "samples": 1})
  written = generation.generate(
    *toy,
    [ask.ids(byte_tokenizer) for ask in asks],
    SAMPLER,
    max_new_tokens=8,
    eos_ids=byte_tokenizer.eos_ids,
  )
  for one, other, own in zip(plain, alone, written, strict=True):
    assert one.answer == other.answer
    assert one.answer.text == byte_tokenizer.decode(own.tokens)
    assert one.answer.log_probs == tuple(own.log_probs)
    assert (one.answer.tokens, one.answer.finished) == (len(own.tokens), own.finished)
  several = answer(SECTIONS["self_consistency"])
  assert [each.samples[0].text for each in several] == [each.answer.text for each in plain]


def test_costs_of_samples(answer, asks, byte_tokenizer):
  """A prompt is read once for the samples that share a batch."""
  prompts = [len(ask.ids(byte_tokenizer)) for ask in asks]
  for batch_size, passes in ((32, 1), (2, 2)):
    found = answer(SECTIONS["self_consistency"], batch_size=batch_size)
    assert [each.cost.read for each in found] == [passes * length for length in prompts]
    assert [each.cost.calls for each in found] == [1, 1, 1]
    assert [e.cost.written for e in found] == [sum(s.tokens for s in e.samples) for e in found]


@pytest.mark.parametrize("name", SECTIONS)
def test_costs_add_up_to_what_the_model_did(monkeypatch, session, asks, reader, name):
  """Over all problems: what generation was given and gave, and no more."""
  told = {"read": 0, "written": 0, "turns": 0}
  generate, choose = generation.generate, generation.choose

  def generating(model, variables, prompts, *args, **settings):
    found = generate(model, variables, prompts, *args, **settings)
    told["read"] += sum(map(len, prompts))
    told["written"] += sum(len(each.tokens) for each in found)
    told["turns"] += 1
    return found

  def choosing(model, variables, prompts, choices, **settings):
    told["read"] += sum(len(prompt) - 1 for prompt in prompts)
    told["read"] += sum(len(choice) for some in choices for choice in some)
    told["turns"] += 1
    return choose(model, variables, prompts, choices, **settings)

  monkeypatch.setattr(generation, "generate", generating)
  monkeypatch.setattr(generation, "choose", choosing)
  costs = [each.cost for each in reasoning.build(SECTIONS[name], SAMPLER)(session(), asks, reader)]
  assert sum(cost.read for cost in costs) == told["read"]
  assert sum(cost.written for cost in costs) == told["written"]
  assert max(cost.calls for cost in costs) == told["turns"]


def test_votes_by_hand(answer):
  for outcome in answer({"name": "self_consistency", "samples": 6}):
    values = [each.value for each in outcome.samples]
    voters = [each for each in outcome.samples if each.finished and each.value is not None]
    votes = [each.value for each in voters or outcome.samples if each.value is not None]
    best = max(votes, key=votes.count)  # the first of those with most
    assert outcome.answer == outcome.samples[outcome.trace["chosen"]]
    assert outcome.answer.value == best
    assert outcome.agreement == values.count(best) / 6


def test_likelihood_is_the_mean_of_a_token(answer):
  section = {"name": "best_of_n", "samples": 3, "judge": {"name": "likelihood"}}
  for outcome, weighted in zip(answer(section), answer(SECTIONS["weighted"]), strict=True):
    expected = [math.exp(np.mean(each.log_probs)) for each in outcome.samples]
    np.testing.assert_allclose(outcome.trace["values"], expected, rtol=1e-6)
    assert outcome.answer == outcome.samples[int(np.argmax(expected))]
    assert outcome.cost.calls == 1
    assert weighted.trace["weights"] == outcome.trace["values"]


def test_verdict_is_the_share_of_its_word(answer, asks, toy, byte_tokenizer):
  """By a whole forward pass over the conversation."""
  model, variables = toy
  forward = jax.jit(lambda tokens: jax.nn.log_softmax(model.apply(variables, tokens)))
  question = reasoning.JUDGES["verdict"]().question
  for ask, outcome in zip(asks, answer(SECTIONS["best_of_n"]), strict=True):
    read = outcome.cost.read - len(ask.ids(byte_tokenizer))
    for sample, value in zip(outcome.samples, outcome.trace["values"], strict=True):
      prompt = ask.then(sample.text, question).ids(byte_tokenizer)
      sums = []
      for word in ("Yes", "No"):
        ids = byte_tokenizer.encode(word)
        row = np.zeros((1, 256), np.int32)
        row[0, : len(prompt + ids)] = prompt + ids
        log_probs = forward(row)[0]
        places = range(len(prompt) - 1, len(prompt) - 1 + len(ids))
        sums.append(sum(float(log_probs[i, j]) for i, j in zip(places, ids, strict=True)))
      assert value == pytest.approx(1 / (1 + math.exp(sums[1] - sums[0])), abs=1e-4)
      read -= len(prompt) - 1 + len("Yes") + len("No")
    assert read == 0
    assert outcome.cost.calls == 2
    assert outcome.answer == outcome.samples[int(np.argmax(outcome.trace["values"]))]


def test_equal_questions_of_a_problem_are_one(session, asks, byte_tokenizer):
  bound = session()
  requests = [
    Request(0, asks[0]),
    Request(2, asks[2]),
    Request(0, asks[0], "x"),
    Request(0, asks[0]),
  ]
  first, other, third, again = bound.choose(requests, ["a", "bc"])
  assert first == again != third
  assert [sum(shares) for shares in (first, other, third)] == pytest.approx([1, 1, 1])
  length = len(asks[0].ids(byte_tokenizer))
  assert bound.costs[0].read == (length - 1 + 3) + (length + 1 - 1 + 3)
  assert bound.costs[0].calls == 1


@pytest.mark.parametrize("name", ["breadth", "depth"])
def test_a_tree_hangs_together(answer, name):
  section, turns = SECTIONS[name], 0
  for outcome in answer(section):
    nodes = outcome.trace["nodes"]
    assert (nodes[0]["parent"], nodes[0]["depth"]) == (-1, 0)
    for at, node in enumerate(nodes[1:], 1):
      assert node["parent"] < at
      assert node["depth"] == nodes[node["parent"]]["depth"] + 1 <= 2
      assert node["complete"] or node["text"]
      assert not nodes[node["parent"]]["complete"]
      assert 0 <= node["value"] <= 1
    expanded = {node["parent"] for node in nodes[1:]}
    children = [[n["text"] for n in nodes if n["parent"] == at] for at in expanded]
    assert all(1 <= len(own) <= 3 and len({*own}) == len(own) for own in children)
    path, at = "", outcome.trace["chosen"]
    complete = nodes[at]["complete"]
    while at >= 0:
      path, at = nodes[at]["text"] + path, nodes[at]["parent"]
    assert outcome.answer.text.startswith(path)
    assert (outcome.answer.text == path) or not complete
    turns = max(turns, outcome.cost.calls)
  assert turns == 2 * 2 + 1  # thoughts and values of two steps, and the end


class Scripted:
  """`generate` that gives texts by what a prompt's last words are, and notes the prompts."""

  def __init__(self, tokenizer, answers):
    self.tokenizer, self.answers, self.prompts = tokenizer, answers, []

  def __call__(self, model, variables, prompts, sampler, **settings):
    found = []
    for i, prompt in enumerate(prompts):
      asked = self.tokenizer.decode(prompt)
      self.prompts.append(asked)
      said = next(text for end, text in self.answers.items() if asked.endswith(end))
      tokens = [*self.tokenizer.encode(said), *self.tokenizer.eos_ids]
      found.append(generation.Completion(i, 0, tokens, [0.0] * len(tokens), True))
    return found


def test_rounds_of_critique(monkeypatch, byte_tokenizer, reader):
  """The second problem's critique finds nothing at once, the first one's after a revision."""
  first, second = reasoning.PROMPTS["plain"]()(["1 + 1 =", "2 + 2 ="])
  script = Scripted(
    byte_tokenizer,
    {
      "1 + 1 =": "three",
      "2 + 2 =": "four",
      "three\n\nWrong?\n": "It is not three.",
      "two\n\nWrong?\n": "There are No Mistakes.",
      "four\n\nWrong?\n": "no mistakes",
      "Again!\n": "two",
    },
  )
  monkeypatch.setattr(generation, "generate", script)
  session = reasoning.Session(None, {}, byte_tokenizer, SAMPLER, max_new_tokens=99)
  section = {"name": "critique", "rounds": 5, "critique": "Wrong?", "revise": "Again!"}
  one, two = reasoning.build(section, SAMPLER)(session, [first, second], reader)
  assert [each.text for each in one.samples] == ["three", "two"]
  assert (one.answer.text, two.answer.text, two.samples) == ("two", "four", [two.answer])
  assert [each["found"] for each in one.trace["rounds"]] == [True, False]
  assert two.trace == {
    "requests": {"critique": "Wrong?", "revise": "Again!"},
    "rounds": [{"critique": "no mistakes", "found": False, "unfinished": 0}],
  }
  conversation = "1 + 1 =three\n\nWrong?\nIt is not three.\n\nAgain!\n"
  assert conversation in script.prompts
  assert (one.cost.calls, two.cost.calls) == (4, 2)
  own = [p for p in script.prompts if p.startswith("2")]
  assert two.cost.read == sum(map(len, own))
  assert two.cost.written == len("four") + len("no mistakes") + 2


@pytest.mark.parametrize(
  ("section", "error", "message"),
  [
    ({"name": "self_consistancy"}, ConfigError, "did you mean 'self_consistency'"),
    ({"name": "best_of_n", "samples": 0}, ValueError, "samples is 0"),
    ({"name": "best_of_n", "judge": {"name": "verdicts"}}, ConfigError, "did you mean 'verdict'"),
    ({"name": "self_consistency", "weights": {"nam": "x"}}, ConfigError, "has no 'name'"),
    ({**TREE, "separator": ""}, ValueError, "the separator of thoughts is empty"),
    ({**TREE, "search": {"name": "breadth", "width": 2}}, ConfigError, "takes no 'width'"),
    ({**TREE, "judge": {"name": "verdict", "marks": {"a": 2, "b": 0}}}, ValueError, "0 to 1"),
    ({"name": "critique", "rounds": 0}, ValueError, "rounds is 0"),
  ],
)
def test_mistakes(section, error, message):
  with pytest.raises(error, match=message):
    reasoning.build(section, SAMPLER)


@pytest.fixture(scope="module")
def metaspace():
  """Words with the space ahead of them as tokens; a decoder drops that where a text begins."""
  words = ["\u2581one", "\u2581So", "\u2581it", "\u2581is.", "\u2581Then", "<eos>"]
  backend = tokenizers.Tokenizer(
    tokenizers.models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<eos>")
  )
  backend.pre_tokenizer = tokenizers.pre_tokenizers.Metaspace()
  backend.decoder = tokenizers.decoders.Metaspace()
  backend.add_special_tokens(["<eos>"])
  return Tokenizer(backend, {"eos_token": "<eos>"}, (), None)


def test_a_begun_answer_keeps_its_spaces(monkeypatch, asks, metaspace):
  assert metaspace.decode([2, 3]) == "it is."
  wrote = generation.Completion(0, 0, [2, 3, 4, 5], [0.0] * 4, True)
  monkeypatch.setattr(generation, "generate", lambda *args, **settings: [wrote])
  session = reasoning.Session(None, {}, metaspace, SAMPLER, max_new_tokens=4)
  begun = Request(0, reasoning.Ask("one", "one", begin="So"))
  for request, stop, text in (
    (begun, "", " it is. Then"),
    (begun, "is.", " it "),
    (Request(0, asks[0]), "", "it is. Then"),
  ):
    ((found,),) = session.write([request], stop=stop)
    assert (found.text, found.stop, found.ended) == (text, stop, True)


def test_the_next_thought_has_the_space_between(monkeypatch, metaspace, reader):
  """The token that completes ". " is of the next thought, and drawn anew with it."""
  prompts = []
  wrote = [([2, 3, 4], [-1.0, -2.0, -9.0]), ([4, 5], [-0.5, -0.25])]

  def generate(model, variables, asked, *args, **settings):
    prompts.append(asked)
    return [generation.Completion(0, 0, *wrote[len(prompts) - 1], True)]

  monkeypatch.setattr(generation, "generate", generate)
  session = reasoning.Session(None, {}, metaspace, SAMPLER, max_new_tokens=4)
  section = {"name": "tree_of_thoughts", "proposals": 1, "separator": ". "}
  section |= {"judge": {"name": "likelihood"}}
  asks = [reasoning.Ask("one", "one ", begin="So")]
  (found,) = reasoning.build(section, SAMPLER)(session, asks, reader)
  assert [metaspace.decode(asked) for (asked,) in prompts] == ["one So", "one So it is."]
  assert found.answer.text == "So it is. Then"
  assert (found.answer.tokens, found.answer.log_probs) == (4, (-1.0, -2.0, -0.5, -0.25))
  assert [node["value"] for node in found.trace["nodes"][1:]] == [math.exp(-1.5), math.exp(-0.375)]
  assert found.cost.written == 5


def test_an_encoder_decoder_does_not_go_on_with_an_answer(byte_tokenizer):
  shape = {"model_type": "t5", "vocab_size": 258, "d_model": 8, "d_kv": 4, "d_ff": 8}
  model = models.build({**shape, "num_layers": 1, "num_heads": 2, "decoder_start_token_id": 0})
  session = reasoning.Session(model, {}, byte_tokenizer, SAMPLER, max_new_tokens=2)
  with pytest.raises(ValueError, match="going on with a begun answer is for decoders"):
    session.write([Request(0, reasoning.Ask("1", "1", begin="So"))])


def test_equal_draws_are_refused():
  with pytest.raises(ValueError, match="draws 8 completions of a prompt, which would be equal"):
    reasoning.build({"name": "self_consistency"}, generation.Sampler())
  reasoning.build({"name": "self_consistency", "samples": 1}, generation.Sampler())

"""Right critiques and revisions as rows, by hand, and what of them is learnt."""

import json

import pytest

from research.data import critiques, formats

CHAT = [{"role": "user", "content": "3 + 4?"}]
REQUESTS = {"critique": "Wrong?", "revise": "Again!"}


def answer(text, correct, cut=0):
  return {"completion": text, "correct": correct, "unfinished": cut}


def critique(text, found, cut=0):
  return {"critique": text, "found": found, "unfinished": cut}


def record(name, prompt, samples, rounds):
  trace = {"requests": REQUESTS, "rounds": rounds}
  return {"id": name, "prompt": prompt, "samples": samples, "trace": trace}


def report(*records):
  return {"results": [{"records": list(records)}]}


def assistant(text):
  return {"role": "assistant", "content": text}


def user(text):
  return {"role": "user", "content": text}


WRONG, RIGHT = answer(" It is 8.", 0), answer("It is 7.\n", 1)
MENDED = record("0:a", CHAT, [WRONG, RIGHT], [critique(" 3 + 4 is 7.", True)])
CONFIRMED = record("1:b", "2 + 2 =", [answer(" 4", 1)], [critique("no mistakes", False)])
# A right answer that was given up, a wrong one that nothing was found in, and one that stayed so.
USELESS = [
  record("2:c", CHAT, [RIGHT, WRONG], [critique("It is 8.", True)]),
  record("3:d", CHAT, [WRONG], [critique("no mistakes", False)]),
  record("4:e", CHAT, [WRONG, WRONG], [critique("It is 9.", True)]),
]
FIRST = [*CHAT, assistant("It is 8."), user("Wrong?")]
ROWS = [
  {"prompt": FIRST, "completion": [assistant("3 + 4 is 7.")]},
  {
    "prompt": [*FIRST, assistant("3 + 4 is 7."), user("Again!")],
    "completion": [assistant("It is 7.")],
  },
  {"prompt": "2 + 2 = 4\n\nWrong?\n", "completion": "no mistakes"},
]


def test_what_was_mended_and_what_was_right():
  kept = critiques.right(report(MENDED, *USELESS, CONFIRMED), 4)
  assert kept == critiques.Kept(ROWS, corrected=1, confirmed=1, problems=5, without=3)


def test_a_mended_text_goes_on_as_it_was_written():
  own = record("0", "2 + 2 =", [answer(" 5", 0), answer(" 4", 1)], [critique("It is 4.", True)])
  assert critiques.right(report(own), 4).rows == [
    {"prompt": "2 + 2 = 5\n\nWrong?\n", "completion": "It is 4."},
    {"prompt": "2 + 2 = 5\n\nWrong?\nIt is 4.\n\nAgain!\n", "completion": " 4"},
  ]


def test_every_round_counts_and_sees_its_own_answer_alone():
  """Two rounds that mend nothing and mend it, and a third that lets it stand."""
  samples = [answer("9", 0), answer("8", 0), answer("7", 1)]
  rounds = [critique("no, 8", True), critique("no, 7", True), critique("no mistakes", False)]
  own = record("0", CHAT, samples, rounds)
  kept = critiques.right(report(own), 4)
  prompts = [row["prompt"][1]["content"] for row in kept.rows]
  said = [row["completion"][0]["content"] for row in kept.rows]
  assert list(zip(prompts, said, strict=True)) == [
    ("8", "no, 7"),
    ("8", "7"),
    ("7", "no mistakes"),
  ]
  assert (kept.corrected, kept.confirmed) == (1, 1)
  assert critiques.right(report(own), 1).rows == kept.rows[:2]
  # Another evaluator that found the same, and one more.
  again = record("0", CHAT, [RIGHT], [critique("no mistakes", False)])
  several = critiques.right(report(own, own, again), 4)
  assert several.rows[:3] == kept.rows and len(several.rows) == 4 and several.problems == 1


@pytest.mark.parametrize(
  "own",
  [
    record("0", CHAT, [answer("8", 0, cut=1), RIGHT], [critique("3 + 4 is 7.", True)]),
    record("0", CHAT, [WRONG, answer("7", 1, cut=1)], [critique("3 + 4 is 7.", True)]),
    record("0", CHAT, [WRONG, RIGHT], [critique("3 + 4 is", True, cut=1)]),
    record("0", CHAT, [WRONG, RIGHT], [critique(" \n", True)]),
    record("0", CHAT, [answer("7", 1, cut=1)], [critique("no mistakes", False)]),
  ],
)
def test_what_was_cut_off_or_says_nothing_is_left_out(own):
  kept = critiques.right(report(MENDED, own), 4)
  assert (kept.rows, kept.problems, kept.without) == (ROWS[:2], 2, 1)


@pytest.mark.parametrize(
  ("given", "most", "message"),
  [
    ({"name": "x"}, 4, "not the file of an evaluation"),
    (report({"id": "0", "samples": [RIGHT]}), 4, r"no evaluator kept critiques: .*\{'name': 'crit"),
    (report({"id": "0", "samples": [RIGHT], "trace": {"chosen": 0}}), 4, "no evaluator kept crit"),
    (report(*USELESS), 4, "none of 3 problems has a wrong answer that was corrected, or a right"),
    (report(MENDED), 0, "keep at least 1"),
  ],
)
def test_mistakes(given, most, message):
  with pytest.raises(ValueError, match=message):
    critiques.right(given, most)


def test_the_wrong_answer_and_the_requests_are_not_learnt(byte_tokenizer):
  learnt = []
  for row in critiques.right(report(MENDED, CONFIRMED), 4).rows:
    example = formats.tokenize(json.loads(json.dumps(row)), byte_tokenizer, completion_only=True)
    ids = example.tokens[example.weights_mask].tolist()
    learnt.append(byte_tokenizer.decode(ids, skip_special=False))
  # This template has no header of an answer to be written, so that it is learnt, too.
  assert learnt == [
    f"{text}<eos>" for text in ("assistant: 3 + 4 is 7.", "assistant: It is 7.", "no mistakes")
  ]

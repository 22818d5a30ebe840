"""How problems are put, by hand."""

import json

import pytest

from research.reasoning.prompts import Ask, ChainOfThought, Plain

CHAT = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "3 + 4?"}]
SHOTS = [
  {"question": "1 + 1?", "reasoning": "One and one.", "answer": 2},
  {"question": "2 + 3?", "reasoning": "Two and three.", "answer": 5},
]


@pytest.fixture
def shots(tmp_path):
  def write(rows):
    path = tmp_path / "shots.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return {"name": "jsonl", "path": str(path), "cache": str(tmp_path / "cache")}

  return write


def test_plain_is_the_problem(byte_tokenizer):
  chat, text = Plain()([CHAT, "3 + 4 ="])
  assert (chat.prompt, chat.begin, text.prompt) == (CHAT, "", "3 + 4 =")
  assert byte_tokenizer.decode(text.ids(byte_tokenizer)) == "3 + 4 ="
  assert byte_tokenizer.decode(text.ids(byte_tokenizer, " 7")) == "3 + 4 = 7"
  told = byte_tokenizer.decode(chat.ids(byte_tokenizer, "7"), False)
  assert told == "system: Be brief.<eos>user: 3 + 4?<eos>7"


def test_a_text_begins_with_bos_once(framing_tokenizer):
  for text in ("3 + 4 =", "<bos>3 + 4 ="):
    ids = Ask(text, text).ids(framing_tokenizer, " 7")
    assert framing_tokenizer.decode(ids, False) == "<bos>3 + 4 = 7"


def test_instruction_and_begin():
  (chat,) = ChainOfThought("Think.", begin="First,")([CHAT])
  assert chat.prompt == [CHAT[0], {"role": "user", "content": "3 + 4?\n\nThink."}]
  assert (chat.begin, chat.problem) == ("First,", CHAT)
  (text,) = ChainOfThought("Think.")(["3 + 4 ="])
  assert text.prompt == "Think.\n\n3 + 4 ="
  (bare,) = ChainOfThought("", begin="First,")(["3 + 4 ="])
  assert bare.prompt == "3 + 4 ="


def test_begin_is_read_behind_the_prompt(byte_tokenizer):
  (chat,) = ChainOfThought("", begin="First,")([CHAT[1:]])
  assert byte_tokenizer.decode(chat.ids(byte_tokenizer), False) == "user: 3 + 4?<eos>First,"


def test_shots_are_turns_ahead_of_the_problem(shots):
  chat, text = ChainOfThought("Think.", shots=shots(SHOTS))([CHAT, "3 + 4 ="])
  assert [(m["role"], m["content"]) for m in chat.prompt] == [
    ("system", "Be brief."),
    ("user", "1 + 1?\n\nThink."),
    ("assistant", "One and one. The answer is 2."),
    ("user", "2 + 3?\n\nThink."),
    ("assistant", "Two and three. The answer is 5."),
    ("user", "3 + 4?\n\nThink."),
  ]
  assert text.prompt == (
    "Think.\n\n1 + 1?\nOne and one. The answer is 2.\n\n"
    "2 + 3?\nTwo and three. The answer is 5.\n\n3 + 4 ="
  )
  (other,) = ChainOfThought("", shots=shots(SHOTS[:1]), shown="<answer>{answer}</answer>")([CHAT])
  assert other.prompt[2]["content"] == "<answer>2</answer>"


def test_conversations_go_on():
  chat = Ask(CHAT, CHAT).then("8.", "Sure?")
  assert chat.prompt[2:] == [
    {"role": "assistant", "content": "8."},
    {"role": "user", "content": "Sure?"},
  ]
  assert Ask("3 + 4 =", "3 + 4 =").then(" 8.", "Sure?").prompt == "3 + 4 = 8.\n\nSure?\n"


def test_mistakes(shots):
  with pytest.raises(ValueError, match="takes an instruction, a begin or shots"):
    ChainOfThought("")
  rows = [SHOTS[0], {"question": "1?", "reason": "", "answer": 1}]
  with pytest.raises(ValueError, match="row 1, an exemplar, has no 'reasoning'"):
    ChainOfThought(shots=shots(rows))([CHAT])
  with pytest.raises(ValueError, match="asks for 'resoning', which no row has"):
    ChainOfThought(shots=shots(SHOTS), shown="{resoning}")([CHAT])

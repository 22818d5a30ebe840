"""What personal data look like, and what does not."""

import json

import pytest

from research.curation.personal import PersonalData, luhn

FOUND = {
  "email": ["jo.doe+x@mail.example.co.uk"],
  # Numbers that issuers publish for tests.
  "card": ["4111 1111 1111 1111", "378282246310005"],
  "ip": ["192.168.0.1", "2001:db8:85a3:0:0:8a2e:370:7334", "fe80:1:2::1", "fe80::1", "2a00::beef"],
  "phone": ["+49 30 901820", "+1 (415) 555-2671", "(0171) 555 1234", "415-555-2671"],
}
NOT = [
  "4111 1111 1111 1112",  # no check digit
  "999.1.1.1",
  "12:30:45",
  "a ratio of 1:2:3",
  "x[1::2], y[::2]",
  "map :: Face -> Dead::Beef",
  "std::vector::iterator",
  "2021-11-12 10",
  "3.14159265358979",
  "a@b",
  "1,234,567,890 people",
]


@pytest.mark.parametrize("kind", FOUND)
def test_is_masked_and_named(kind, judged):
  step = PersonalData()
  for found in FOUND[kind]:
    row = {"prompt": f"Write to {found}, please.", "completion": "Yes", "id": 3}
    assert step.changed(row) == {**row, "prompt": f"Write to <{kind}>, please."}
    assert step.masked(found) == f"<{kind}>"
    ledger = judged(step, [row])
    assert not ledger.dropped.any() and list(ledger.rules) == [f"masked {kind}"]
    assert ledger.rules[f"masked {kind}"]["examples"][0]["detail"] == found
    assert judged(PersonalData(action="drop"), [row]).dropped.all()
    others = [other for other in FOUND if other != kind]
    assert PersonalData(kinds=others, action="drop").changed(row) == row


@pytest.mark.parametrize("text", NOT)
def test_is_left(text, judged):
  assert PersonalData().masked(text) == text
  assert not judged(PersonalData(), [text]).rules


def test_parentheses_around_a_number_stay():
  assert PersonalData().masked("Call (+49 30 901820).") == "Call (<phone>)."
  assert PersonalData().masked("+1 (415) 555-2671") == "<phone>"


def test_luhn():
  assert luhn("79927398713") and not luhn("79927398710")


def test_all_strings_of_a_row_are_masked(judged):
  """Also what no step reads as a text: an answer, a call, what a template was filled with."""
  call = {"type": "function", "function": {"name": "write", "arguments": '{"to": "a@b.de"}'}}
  row = {
    "prompt": "Mr. X is",
    "x": "a@b.de",
    "tokens": ["mail", "a@b.de"],
    "answer": {"all": ["a@b.de", 3]},
    "messages": [
      {"role": "assistant", "content": "", "reasoning_content": "a@b.de", "tool_calls": [call]}
    ],
  }
  masked = PersonalData().changed(row)
  assert masked == json.loads(json.dumps(row).replace("a@b.de", "<email>"))
  ledger = judged(PersonalData(action="drop"), [{"prompt": "who", "answer": "a@b.de"}, masked])
  assert ledger.dropped.tolist() == [True, False]
  (rule,) = ledger.rules.values()
  assert rule["examples"][0]["detail"] == "a@b.de"


def test_messages_are_masked_within(judged):
  row = {"messages": [{"role": "user", "content": "I am a@b.de"}, {"role": "assistant"}]}
  masked = PersonalData(placeholder="[{kind}]").changed(row)
  assert masked["messages"][0] == {"role": "user", "content": "I am [email]"}
  assert masked["messages"][1] == {"role": "assistant"}


def test_what_cannot_be():
  with pytest.raises(ValueError, match="did you mean 'email'"):
    PersonalData(kinds=("mail",))
  with pytest.raises(ValueError, match="'mask' or 'drop'"):
    PersonalData(action="hide")

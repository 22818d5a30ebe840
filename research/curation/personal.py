"""Personal data in texts, found by their form: masked, or their rows dropped.

Forms are not meanings: a version number of four parts is an address, and a name is nothing. What is
found is what is easily abused if a model learns it by heart.
"""

from __future__ import annotations

import dataclasses
import ipaddress
import re
from collections.abc import Callable, Sequence

from research.core import tree
from research.curation.step import Ledger, Rows, Step
from research.data import texts
from research.data.source import Row

_EMAIL = re.compile(r"(?<![\w.+-])[\w.+-]+@(?:[\w-]+\.)+[A-Za-z]{2,}(?![\w-])")
_CARD = re.compile(r"(?<![\w.-])\d(?:[ -]?\d){12,18}(?![\w-])")
_PHONE = re.compile(
  r"(?<![\w.+-])(?:"
  r"\+\d{1,3}(?:[ .-]?(?:\(\d{1,5}\)|\d{1,5})){2,6}"  # a country's code, and groups
  r"|\(\d{2,5}\)[ .-]?\d{3,5}(?:[ .-]?\d{2,5}){1,2}"  # an area in parentheses
  r"|\d{3}([ .-])\d{3}\1\d{4}"  # North American
  r")(?![\w-])"
)
_IPV4 = re.compile(r"(?<![\w.])\d{1,3}(?:\.\d{1,3}){3}(?![\w]|\.\d)")
# Of two colons alone an address has a first group of four, with a digit: others look like slices
# (x[1::2]) and names (A::B). That leaves out ::1, which is nobody's but one's own.
_IPV6 = re.compile(
  r"(?<![\w:.])(?:"
  r"(?:[0-9A-Fa-f]{0,4}:){3,7}[0-9A-Fa-f]{0,4}"
  r"|(?=[A-Fa-f]*\d)[0-9A-Fa-f]{4}::[0-9A-Fa-f]{1,4}"
  r")(?![\w:])"
)


def luhn(number: str) -> bool:
  """Whether the digits of a number end with their check digit (ISO/IEC 7812-1)."""
  digits = [int(digit) for digit in number if digit.isdigit()]
  doubled = [2 * digit - 9 * (digit > 4) for digit in digits[-2::-2]]
  return (sum(digits[-1::-2]) + sum(doubled)) % 10 == 0


def _is_phone(number: str) -> bool:
  return 8 <= sum(map(str.isdigit, number)) <= 15  # E.164 has at most 15


def _is_address(text: str) -> bool:
  try:
    ipaddress.ip_address(text)
  except ValueError:
    return False
  return True


# kind -> its form, and what is asked of a match; in the order in which they are looked for, so that
# no part of one is taken for another.
KINDS: dict[str, tuple[re.Pattern[str], Callable[[str], bool]]] = {
  "email": (_EMAIL, lambda text: True),
  "card": (_CARD, luhn),
  "ip": (re.compile(f"{_IPV4.pattern}|{_IPV6.pattern}"), _is_address),
  "phone": (_PHONE, _is_phone),
}


@dataclasses.dataclass(frozen=True)
class PersonalData(Step):
  """E-mail addresses, card numbers (by Luhn's check digit), IP addresses and phone numbers.

  They are looked for in every string of a row, in all columns: what another step does not read as a
  text may be what a template or a chat template writes.

  kinds: of `KINDS`.
  action: "mask" writes `placeholder` in their place, "drop" takes the rows away.
  placeholder: {kind} in it is the kind.
  """

  kinds: Sequence[str] = tuple(KINDS)
  action: str = "mask"
  placeholder: str = "<{kind}>"

  def __post_init__(self) -> None:
    for kind in self.kinds:
      if kind not in KINDS:
        raise ValueError(
          f"there is no personal data of kind {kind!r}{tree.nearest(kind, KINDS)}; known:"
          f" {', '.join(KINDS)}"
        )
    if self.action not in ("mask", "drop"):
      raise ValueError(f"personal_data.action is 'mask' or 'drop', not {self.action!r}")

  def judge(self, rows: Rows, ledger: Ledger) -> None:
    act = ledger.drop if self.action == "drop" else ledger.told
    for position in rows.positions("personal data"):
      text = "\n\n".join(texts.strings(rows[position]))
      for kind, found in self._found(text):
        act(position, f"{'has' if self.action == 'drop' else 'masked'} {kind}", found, text)
        if self.action == "drop":
          break

  def changed(self, row: Row) -> Row:
    return texts.changed(row, self.masked) if self.action == "mask" else row

  def masked(self, text: str) -> str:
    """The text with placeholders."""
    for kind in self._kinds():
      text = replaced(text, kind, self.placeholder.replace("{kind}", kind))
    return text

  def _found(self, text: str) -> list[tuple[str, str]]:
    """The kinds that a text has, each with what was found first."""
    found = []
    for kind in self._kinds():
      form, holds = KINDS[kind]
      first = next((match[0] for match in form.finditer(text) if holds(match[0])), None)
      if first is not None:
        found.append((kind, first))
        text = replaced(text, kind, " ")
    return found

  def _kinds(self) -> list[str]:
    return [kind for kind in KINDS if kind in self.kinds]


def replaced(text: str, kind: str, told: str) -> str:
  """The text with `told` in place of all that is of a kind."""
  form, holds = KINDS[kind]

  def one(match: re.Match[str]) -> str:
    return told if holds(match[0]) else match[0]

  return form.sub(one, text)

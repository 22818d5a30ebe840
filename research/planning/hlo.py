"""What a compiled TPU program does, read off its text: cycles, bytes, collectives; loops counted.

XLA's own `cost_analysis` counts the body of a loop once. Here each computation counts as often as
it runs: a loop's body by the constant that its condition compares with, a conditional as the
dearest of its branches.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Iterator, Mapping

_BYTES = {
  "pred": 1, "s4": 0.5, "u4": 0.5, "s8": 1, "u8": 1, "s16": 2, "u16": 2, "bf16": 2, "f16": 2,
  "s32": 4, "u32": 4, "f32": 4, "s64": 8, "u64": 8, "f64": 8, "c64": 8,
}  # fmt: skip
_HEADER = re.compile(r"(?:ENTRY )?%?([\w.\-]+) \(.*\) -> .*\{")
_INSTRUCTION = re.compile(
  r"\s+(?:ROOT )?%?([\w.\-]+) = (\((?:[^()]|\((?:[^()]|\([^()]*\))*\))*\)|\S+) ([\w\-]+)\((.*)"
)
_ARRAY = re.compile(r"\b([a-z]+\d*(?:e\dm\d\w*)?)\[([\d,]*)\](?:\{[^}]*?(S\(\d\))?\})?")
_UNKNOWN = 2.0**62  # from which on a count of cycles stands for none
# Names of modules within `op_name`, and what they are told as; the first counts.
_PARTS = (
  (r"layers/(cross_)?attention/[qkvo]_proj", "attention's projections"),
  (r"splash|layers/(cross_)?attention/", "attention"),
  (r"layers/mlp/", "feed-forward"),
  (r"lm_head|head\b|/cond/", "head and loss"),
  (r"layers/|norm", "norms and sums of layers"),
)
COLLECTIVES = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")
# What moves nothing by itself.
_FREE = {
  "parameter", "get-tuple-element", "bitcast", "tuple", "constant", "while", "conditional", "call",
  "copy-done", "after-all", "partition-id", "optimization-barrier",
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Instruction:
  """A line of a computation. rest: its operands and attributes, as text."""

  name: str
  type: str
  op: str
  rest: str

  def operands(self) -> list[str]:
    """The names of its operands."""
    depth, end = 1, 0
    for end, letter in enumerate(self.rest):  # noqa: B007
      depth += (letter == "(") - (letter == ")")
      if not depth:
        break
    return re.findall(r"%([\w.\-]+)", self.rest[:end])

  def called(self, key: str) -> list[str]:
    """The computations that the attribute `key` names."""
    found = re.search(rf"{key}=(?:\{{([^}}]*)\}}|%?([\w.\-]+))", self.rest)
    return re.findall(r"[\w.\-]+", found[1] or found[2]) if found else []

  def part(self) -> str:
    """The part of a model that it belongs to, by the modules' names."""
    found = re.search(r'op_name="([^"]*)"', self.rest)
    name = found[1] if found else ""
    return next((part for pattern, part in _PARTS if re.search(pattern, name)), "other")

  def cycles(self) -> float:
    """The compiler's estimate, 0 where it has none."""
    found = re.search(r'"estimated_cycles":"(\d+)"', self.rest)
    return float(found[1]) if found and float(found[1]) < _UNKNOWN else 0.0


@dataclasses.dataclass(frozen=True)
class Tally:
  """What a program, or a part of it, does on one device.

  cycles: the compiler's estimates, of what has one; parts: by the part of the model that they are
    spent on.
  bytes: read from and written to HBM.
  sent: bytes that each kind of collective sends, by ring algorithms.
  """

  cycles: float = 0.0
  bytes: float = 0.0
  sent: Mapping[str, float] = dataclasses.field(default_factory=dict)
  parts: Mapping[str, float] = dataclasses.field(default_factory=dict)

  def __add__(self, other: Tally) -> Tally:
    return Tally(
      self.cycles + other.cycles,
      self.bytes + other.bytes,
      _sums(self.sent, other.sent),
      _sums(self.parts, other.parts),
    )

  def times(self, count: int) -> Tally:
    """`count` of it."""
    sent, parts = (
      {key: count * value for key, value in each.items()} for each in (self.sent, self.parts)
    )
    return Tally(count * self.cycles, count * self.bytes, sent, parts)


def _sums(a: Mapping[str, float], b: Mapping[str, float]) -> dict[str, float]:
  return {key: a.get(key, 0.0) + b.get(key, 0.0) for key in {**a, **b}}


class Program:
  """A compiled program by its text (`jax.stages.Compiled.as_text`).

  unread: what `tally` could not read off it, and took for something.
  """

  def __init__(self, text: str):
    self.unread: set[str] = set()
    self._computations: dict[str, list[Instruction]] = {}
    self._entry = ""
    current: list[Instruction] = []
    for line in text.splitlines():
      if header := _HEADER.match(line):
        current = self._computations[header[1]] = []
        self._entry = header[1] if line.startswith("ENTRY") else self._entry
      elif found := _INSTRUCTION.match(line):
        current.append(Instruction(*found.groups()))

  def tally(self) -> Tally:
    """What the whole program does."""
    return self._of(self._entry)

  def _of(self, name: str) -> Tally:
    lines = self._computations[name]
    types = {line.name: line.type for line in lines}
    total, seen = Tally(), set()
    for line in lines:
      if line.op == "while":
        total += self._of(line.called("body")[0]).times(self._trips(line))
      elif line.op == "conditional":
        branches = line.called("branch_computations") or [
          *line.called("true_computation"),
          *line.called("false_computation"),
        ]
        total += max(map(self._of, branches), key=lambda tally: tally.cycles)
      elif line.op == "call":
        total += self._of(line.called("to_apply")[0])
      elif line.op not in _FREE:
        parts = {line.part(): line.cycles()} if line.cycles() else {}
        total += Tally(line.cycles(), self._moved(line, types), parts=parts)
      for collective in self._collectives(line):
        # A collective that runs beside other work is told again in every step of it.
        channel = re.search(r"channel_id=(\d+)", collective.rest)
        if channel is None or channel[1] not in seen:
          seen.add(channel[1] if channel else collective.name)
          kind = collective.op.removesuffix("-start")
          moved = 0.0 if collective is line else 2 * _size(collective.type, everywhere=True)
          total += Tally(bytes=moved, sent={kind: self._sent(collective)})
    return total

  def _collectives(self, line: Instruction) -> Iterator[Instruction]:
    if line.op.removesuffix("-start") in COLLECTIVES:
      yield line
    elif line.op in ("fusion", "async-start"):
      for name in line.called("calls"):
        for inner in self._computations[name]:
          yield from self._collectives(inner)

  def _trips(self, loop: Instruction) -> int:
    (condition,) = loop.called("condition")
    lines = list(self._computations[condition])
    for line in list(lines):
      for name in line.called("calls"):
        lines += self._computations[name]
    found = [re.match(r"(\d+)\)", line.rest) for line in lines if line.op == "constant"]
    trips = [int(match[1]) for match in found if match]
    if not trips:
      self.unread.add(f"how often the loop {loop.name} runs (once)")
    return max(trips, default=1)

  def _sent(self, line: Instruction) -> float:
    """Bytes that a device sends, by a ring (Patarasuk and Yuan 2009)."""
    size = _size(line.type, everywhere=True)
    if line.op.endswith("-start") and line.op != "all-reduce-start":
      # The type tells operands and results.
      size = max(_size(part, everywhere=True) for part in re.findall(r"\w+\[[\d,]*\]", line.type))
    kind = line.op.removesuffix("-start")
    if kind == "collective-permute":
      return size
    count = _group(line.rest)
    if count is None:
      self.unread.add(f"how many devices take part in {line.name} (two)")
      count = 2
    if kind == "reduce-scatter":
      return (count - 1) * size
    share = (count - 1) / count
    return 2 * share * size if kind == "all-reduce" else share * size

  def _moved(self, line: Instruction, types: Mapping[str, str]) -> float:
    """Bytes between HBM and the core."""
    result, operands = _size(line.type), line.operands()
    if line.op == "copy-start":  # its type tells the copy, the source and a flag
      return _size(line.type)
    sizes = [_size(types.get(name, "")) for name in operands]
    if line.op == "fusion":
      (called,) = line.called("calls")
      return self._touched(called, result, sizes)
    if line.op in ("dynamic-slice", "slice", "gather"):
      return 2 * result
    if line.op == "dynamic-update-slice":
      return 2 * sizes[1]
    return result + sum(sizes)

  def _touched(self, name: str, result: float, sizes: list[float]) -> float:
    """Of a fusion: operands that are only sliced, or written to a slice, count as the slices."""
    lines = self._computations[name]
    total, passing = 0.0, set()
    if any(line.op in COLLECTIVES for line in lines):
      # What is on its way goes through the fusions that run beside it, and is counted once (`_of`).
      result, passing = _made(lines), {*COLLECTIVES, "custom-call"}
    for line in lines:
      if line.op != "parameter":
        continue
      whole = sizes[int(line.rest.split(")")[0])]
      users = [user for user in lines if line.name in user.operands()]
      if passing and all(user.op in passing for user in users):
        continue
      if users and all(user.op == "dynamic-slice" for user in users):
        total += min(whole, sum(_size(user.type, everywhere=True) for user in users))
      elif users and all(
        user.op == "dynamic-update-slice" and user.operands()[0] == line.name for user in users
      ):
        result -= whole  # written in place
        total += 2 * sum(_size(_type(lines, user.operands()[1]), everywhere=True) for user in users)
      else:
        total += whole
    return total + max(result, 0.0)


def _made(lines: list[Instruction]) -> float:
  """Bytes of the results of a fusion that it computes, and does not hand on."""
  root = lines[-1]
  made = {line.name: line for line in lines}
  parts = [made[name] for name in root.operands()] if root.op == "tuple" else [root]
  handed = (*COLLECTIVES, "custom-call", "get-tuple-element", "parameter")
  return sum(_size(line.type) for line in parts if line.op not in handed)


def _type(lines: list[Instruction], name: str) -> str:
  return next((line.type for line in lines if line.name == name), "")


def _size(text: str, everywhere: bool = False) -> float:
  """Bytes of the arrays of a type; those in fast memory only if `everywhere`."""
  total = 0.0
  for kind, axes, space in _ARRAY.findall(text):
    if everywhere or not space:
      width = _BYTES.get(kind, 1 if kind.startswith("f8") else 0)
      total += width * math.prod(int(axis) for axis in axes.split(",") if axis)
  return total


def _group(rest: str) -> int | None:
  """How many devices take part together, None where the text does not tell."""
  if found := re.search(r"replica_groups=mesh\[([^\]]*)\][^{]*\{([^}]*)\}", rest):
    sizes = dict(re.findall(r"'(\w+)'=(\d+)", found[1]))
    return math.prod(int(sizes[axis]) for axis in re.findall(r"'(\w+)'", found[2]))
  if found := re.search(r"replica_groups=\[\d+,(\d+)\]", rest):
    return int(found[1])
  if found := re.search(r"replica_groups=\{\{([\d,]*)\}", rest):
    return len(found[1].split(","))
  return None

"""What a teacher would say of the tokens of prepared data, kept on disk as ArrayRecord.

A directory `teacher-HASH` holds a record a row of the source, in the order of its parts: of each
token that is learnt the K likeliest in its place, int32, and their log-probabilities, float16. It
is written in files of `FILE_ROWS` rows, each renamed when it is whole, so that writing goes on
after the last of them.

T tokens of an example, M those of a row that predict one that is learnt.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import grain
import numpy as np
import tqdm
from array_record.python import array_record_module

from research.data.examples import Example

FILE_ROWS = 1024
_SUMMARY = "kept.json"

# Examples -> of each, in order, `(ids [T, K], log-probabilities [T, K])`
Ask = Callable[[Sequence[Example]], Sequence[tuple[np.ndarray, np.ndarray]]]
Rows = Sequence[Sequence[tuple[Example, ...]]]  # of each part, the examples of each row


class Kept:
  """Reads a directory that `write` has written.

  count: K.
  """

  def __init__(self, directory: Path):
    summary = json.loads((directory / _SUMMARY).read_text())
    self.count: int = summary["count"]
    sizes = summary["rows"]
    self._starts = [sum(sizes[:part]) for part in range(len(sizes))]
    self._records = grain.sources.ArrayRecordDataSource(_files(directory, sum(sizes)))

  def of(self, part: int, index: int, examples: tuple[Example, ...]) -> tuple[Example, ...]:
    """The examples of row `index` of a part, each with its `kept`; 0 where nothing is learnt."""
    if not examples:
      return examples
    ids, log_probs = _decoded(self._records[self._starts[part] + index], self.count)
    found, start = [], 0
    for example in examples:
      at = _learnt(example)
      end = start + int(at.sum())
      shape = (len(example), self.count)
      own = np.zeros(shape, ids.dtype), np.zeros(shape, log_probs.dtype)
      for array, told in zip(own, (ids, log_probs), strict=True):
        array[at] = told[start:end]
      found.append(dataclasses.replace(example, kept=own))
      start = end
    return tuple(found)


def is_whole(directory: Path) -> bool:
  """Whether `write` came to its end there."""
  return (directory / _SUMMARY).exists()


def write(directory: Path, parts: Rows, count: int, ask: Ask) -> None:
  """Asks for every row that is not in `directory` yet, and finishes it.

  Args:
    parts: all rows of the data, by part.
    count: K.
    ask: what tells of some examples.
  """
  directory.mkdir(parents=True, exist_ok=True)
  sizes = [len(part) for part in parts]
  places = [(part, index) for part, size in enumerate(sizes) for index in range(size)]
  with tqdm.tqdm(total=len(places), desc="asking the teacher", unit=" rows", delay=2) as bar:
    for number, file in enumerate(_files(directory, len(places))):
      here = places[number * FILE_ROWS : (number + 1) * FILE_ROWS]
      if not Path(file).exists():
        _write_file(Path(file), _records([parts[p][i] for p, i in here], ask, count))
      bar.update(len(here))
  scratch = (directory / _SUMMARY).with_suffix(".incomplete")
  scratch.write_text(json.dumps({"count": count, "rows": sizes}))
  scratch.replace(directory / _SUMMARY)  # whole where others wait for it


def _records(rows: Sequence[tuple[Example, ...]], ask: Ask, count: int) -> Iterator[bytes]:
  """The record of each row; the teacher is asked once for all."""
  told = iter(ask([example for examples in rows for example in examples]))
  for examples in rows:
    chosen = [[x[_learnt(example)] for x in next(told)] for example in examples]
    ids = [np.zeros((0, count), np.int32), *(np.asarray(x, np.int32) for x, _ in chosen)]
    logs = [np.zeros((0, count), np.float16), *(np.asarray(x, np.float16) for _, x in chosen)]
    yield np.concatenate(ids).tobytes() + np.concatenate(logs).tobytes()


def _write_file(file: Path, records: Iterator[bytes]) -> None:
  scratch = file.with_suffix(".incomplete")
  writer = array_record_module.ArrayRecordWriter(str(scratch), "group_size:1")
  for record in records:
    writer.write(record)
  writer.close()
  scratch.replace(file)


def _files(directory: Path, rows: int) -> list[str]:
  count = -(-rows // FILE_ROWS)
  return [str(directory / f"{number:05}-of-{count:05}.array_record") for number in range(count)]


def _decoded(record: bytes, count: int) -> tuple[np.ndarray, np.ndarray]:
  size = len(record) // (6 * count) * count  # numbers of 4 bytes, and as many of 2
  ids = np.frombuffer(record, np.int32, size)
  logs = np.frombuffer(record, np.float16, size, offset=4 * size)
  return ids.reshape(-1, count), logs.reshape(-1, count)


def _learnt(example: Example) -> np.ndarray:
  """bool `[T]`: the tokens whose next one is learnt."""
  return np.append(example.weights_mask[1:], False)

"""What a run learns from beside its data: a model, as `config.teacher` names it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

from research import peft, quant
from research.core import config as config_lib
from research.core import matrix
from research.loop import subject as subjects
from research.loop.learner import Learner
from research.loop.subject import Subject

BASE = "base"  # the source that is the run's own base


@dataclasses.dataclass(frozen=True)
class Teacher:
  """A model that is a constant of the run.

  variables: `{"params": ..., "adapters": ...}`; None if it is the learner's own base without its
    adapters, of which there is no second copy.
  """

  name: str
  model: Any
  variables: dict[str, Any] | None

  def note(self) -> str:
    """What a person should know of it, in a line."""
    if self.variables is None:
      return "the teacher is the base without adapters"
    params = self.variables["params"]
    held = quant.size(params).held / 1e6
    return f"the teacher is {self.name}: {matrix.count(params):,} parameters in {held:,.1f} MB"


def build(
  config: config_lib.Config,
  learner: Learner,
  load: Callable[[str, str], Subject] = subjects.load_model,
) -> Teacher | None:
  """What `config.teacher` describes, or None where it describes nothing.

  Args:
    load: opens a source in a type; what it gives may lack a tokenizer, which is then not compared.

  Raises:
    ConfigError: it cannot be, or does not share the learner's vocabulary.
  """
  with config_lib.blaming("teacher"):
    section = config.teacher
    source, adapter, run = section.source, section.adapter, section.run
    dtype, rules = section.dtype or config.model.dtype, section.quantize
    if source and run:
      raise ValueError("give either source, a model, or run, a run's directory")
    if adapter and not source:
      raise ValueError("an adapter is of a source, which is not given")
    if source == BASE:
      return _own_base(learner, bool(adapter or section.dtype or rules))
    if not source and not run:
      if section.dtype or rules:
        raise ValueError("dtype and quantize are of a teacher, and there is no source and no run")
      return None
    found = subjects.load_run(Path(run), dtype) if run else load(source, dtype)
    if adapter:
      found = subjects.with_adapter(found, Path(adapter))
    found = subjects.require_one(found)
    if found.tokenizer is not None:
      _require_same_tokens(learner.tokenizer, found.tokenizer, found.name)
    adapters = peft.materialize(found.variables.get("adapters", {}))
    for whose, bound in (("teacher", adapters), ("student", learner.variables["adapters"])):
      if peft.virtual_ids(bound):
        raise ValueError(
          f"the {whose}'s adapters put virtual tokens in rows, which both would read"
        )
    params = quant.quantize(found.variables["params"], rules)
    model = found.model.clone(unroll=config.model.unroll, attention=config.model.attention)
    return Teacher(found.name, model, {"params": params, "adapters": adapters})


def _own_base(learner: Learner, changed: bool) -> Teacher:
  if changed:
    raise ValueError("the base as a teacher is as it is: it takes no adapter, dtype or quantize")
  if why := learner.base_obstacle():
    raise ValueError(f"'base' is the model without adapters, and {why}; name another teacher")
  return Teacher(BASE, learner.model, None)


def _require_same_tokens(ours: Any, theirs: Any, name: str) -> None:
  """Raises ValueError if a token of one is not the same text in the other."""
  first, second = ours.backend.get_vocab(), theirs.backend.get_vocab()
  if first == second:
    return
  other = next(iter(sorted(first.items() ^ second.items())))
  raise ValueError(
    f"{name} has a vocabulary of {len(second):,} tokens and the student another of {len(first):,}"
    f" ({other[0]!r} is not the same in both): what they say of a token can be compared in one"
    " vocabulary only; text that the teacher wrote (research.generate) can be learnt in any"
  )

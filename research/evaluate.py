"""Measures a model, an adapter or a run, and the difference between two.

  python -m research.evaluate --model=smollm2-135m-instruct --perplexity=book.txt
  python -m research.evaluate --model=smollm2-135m-instruct --reasoning-gym=chain_sum,products
  python -m research.evaluate --model=smollm2-135m-instruct --tasks=hellaswag,arc_easy --limit=200
  python -m research.evaluate --run=runs/quickstart --compare=base
  python -m research.evaluate --model=MODEL --config=configs/quickstart.py --compare=saved.json
  python -m research.evaluate --config=configs/diagnostics.py --plots=plots

What is measured is the `eval.evaluators` of a config, or what the flags name; a run without
either is measured by its own config's. Figures go to the terminal with 95 % intervals, and with
every item to a JSON file, which --compare reads. A difference is the first minus the second, with
a paired bootstrap interval over the items whose value both have. What was measured is saved before
anything else is measured, drawn or compared, and told where that fails. Keys of the config can be
set as in training: --config.KEY=VALUE.

Exit codes: 0 done, 2 something asked for cannot be.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from research.core import cache, command
from research.core import config as config_lib
from research.loop import subject as subject_lib


def main(argv: Sequence[str] | None = None) -> int:
  """Runs the command with these arguments (by default the process's), and returns its code."""
  args = _arguments(list(sys.argv[1:] if argv is None else argv))
  return command.run(lambda: _evaluate(args), traceback=args.traceback)


def _arguments(argv: list[str]) -> argparse.Namespace:
  parser = command.parser("research.evaluate", __doc__)
  subject_lib.add_arguments(parser, "what is measured")
  parser.add_argument(
    "--compare",
    metavar="OTHER",
    help="a second one on the same items: 'base' (the model without its adapter), an adapter, a "
    "model, a run, or the JSON file of an earlier evaluation",
  )
  measures = parser.add_argument_group("by what")
  measures.add_argument(
    "--config", type=Path, metavar="FILE", help="a config file with eval.evaluators"
  )
  measures.add_argument(
    "--perplexity",
    action="append",
    default=[],
    metavar="FILE",
    help="perplexity of a text, or of the `text` of a JSONL file's rows; may be repeated",
  )
  measures.add_argument(
    "--problems",
    action="append",
    default=[],
    metavar="FILE",
    help="accuracy on a JSONL file with `prompt` or `messages` and `answer`; may be repeated",
  )
  measures.add_argument(
    "--reasoning-gym", metavar="TASKS", help="accuracy on held-out problems of these, by commas"
  )
  measures.add_argument(
    "--size", type=int, default=200, metavar="N", help="problems of --reasoning-gym (200)"
  )
  measures.add_argument(
    "--scorer", default="last_number", help="of problems: last_number, exact or reasoning_gym"
  )
  measures.add_argument(
    "--max-new-tokens", type=int, default=256, metavar="N", help="of an answer (256)"
  )
  harness = parser.add_argument_group("by lm-evaluation-harness (the extra 'harness')")
  harness.add_argument(
    "--tasks",
    metavar="TASKS",
    help="names of its tasks and groups, YAML files of tasks, directories of these; by commas",
  )
  harness.add_argument("--fewshot", type=int, metavar="N", help="examples (what each task says)")
  harness.add_argument("--limit", type=int, metavar="N", help="documents a task (all)")
  harness.add_argument("--chat-template", action="store_true", help="prompts are messages")
  harness.add_argument(
    "--unsafe-code",
    action="store_true",
    help="executes code that the model writes, without a sandbox, where a task judges by that "
    "(humaneval, mbpp)",
  )
  harness.add_argument("--batch-size", type=int, default=32, metavar="N", help="rows (32)")
  harness.add_argument("--answers", default="", metavar="FILE", help="keeps them between calls")
  parser.add_argument(
    "--output", type=Path, metavar="FILE", help="the JSON file (evaluation.json of --run)"
  )
  parser.add_argument(
    "--plots",
    type=Path,
    metavar="DIR",
    help="writes a PNG there of each table that results have: reliability, heads of attention, "
    "needles, lengths",
  )
  parser.add_argument("--traceback", action="store_true", help="on an error, where it was found")
  args, rest = parser.parse_known_args(argv)
  for argument in rest:
    if not argument.startswith("--config."):
      parser.error(f"unknown argument {argument}")
  if rest and not args.config:
    parser.error(f"{rest[0]} needs --config=FILE")
  if args.run and (args.model or args.adapter):
    parser.error("--run names its model and adapter itself; leave --model and --adapter out")
  if not (args.run or args.model or args.config):
    parser.error("what is to be measured? give --model, --run or --config")
  args.overrides = rest
  return args


def _evaluate(args: argparse.Namespace) -> int:
  config = _config(args)
  # Imported when the command line is known to be good: JAX takes a second or two.
  from research import evals

  cache.keep_compiled()
  evaluators = evals.build(_sections(args, config))
  if not evaluators:
    raise config_lib.ConfigError(
      "nothing to measure: give --perplexity, --problems, --reasoning-gym, --tasks, or a --config "
      "with eval.evaluators"
    )
  if args.plots:
    evals.plots.pyplot()  # Before anything is measured, what is missing is told.
  subject = _subject(args, config)
  # Before anything is measured, so that what is wrong is told early, and before a report takes the
  # place of the earlier one that it is compared with.
  other = _other(args.compare, subject, args.dtype) if args.compare else None
  output = args.output or (args.run / "evaluation.json" if args.run else None)
  report = _Report(output, {"name": subject.name})
  results = _measure(evaluators, subject, report, report.found)
  _tell(subject.name, results, output)
  if args.plots:
    files = evals.plots.draw(results, args.plots)
    print("".join(f"saved {file}\n" for file in files) or "no result has anything to plot\n")
  if other:
    second = report.found["compared"] = {"name": other.name}
    if isinstance(other, _Saved):
      others = other.results
      second["results"] = [result.to_json() for result in others]
      report.save()
    else:
      others = _measure(evaluators, other, report, second)
    differences = _differences(results, others)
    report.found["differences"] = [dataclasses.asdict(difference) for difference in differences]
    report.save()
    told = evals.comparison_table(differences)
    print(f"first: {subject.name}\nsecond: {other.name}\n\n{told}\n")
  return 0


@dataclasses.dataclass
class _Report:
  """What is known so far, and the file that holds it, if there is one."""

  output: Path | None
  found: dict[str, Any]

  def save(self) -> None:
    from research.io.checkpoint import write_json

    if self.output:
      self.output.parent.mkdir(parents=True, exist_ok=True)
      write_json(self.output, self.found)


def _tell(name: str, results: Sequence[Any], output: Path | None) -> None:
  from research import evals

  print(f"{name}\n\n{evals.table(results)}\n")
  for result in results:
    for sample in result.samples:
      print(f"{sample}\n")
  if output:
    print(f"saved {output}\n")


def _config(args: argparse.Namespace) -> config_lib.Config | None:
  """The config of `--config`, else the run's own, else None."""
  if args.config:
    return config_lib.from_command_line([f"--config={args.config}", *args.overrides])
  return subject_lib.run_config(args.run) if args.run else None


def _sections(args: argparse.Namespace, config: config_lib.Config | None) -> list[Any]:
  """The sections of the evaluators that the flags ask for, or else those of the config."""
  sections: list[dict[str, Any]] = []
  for file in args.perplexity:
    label = "perplexity" if len(args.perplexity) == 1 else f"perplexity {file}"
    sections.append({"name": "perplexity", "data": _file_source(file), "label": label})
  scoring = {"name": "verifiable", "scorer": args.scorer, "max_new_tokens": args.max_new_tokens}
  for file in args.problems:
    sections.append({**scoring, "data": {"name": "jsonl", "path": file}, "label": file})
  if args.reasoning_gym:
    tasks = [{"name": task} for task in args.reasoning_gym.split(",")]
    data = {"name": "reasoning_gym", "tasks": tasks, "size": args.size, "split": "test"}
    sections.append({**scoring, "data": data, "label": "reasoning_gym"})
  if args.tasks:
    sections.append(
      {
        "name": "harness",
        "tasks": args.tasks.split(","),
        "num_fewshot": args.fewshot,
        "limit": args.limit,
        "chat_template": args.chat_template,
        "batch_size": args.batch_size,
        "cache": args.answers,
        "unsafe_code": args.unsafe_code,
      }
    )
  if sections or config is None:
    return sections
  return list(config.eval.evaluators)


def _file_source(file: str) -> dict[str, Any]:
  return {"name": "jsonl" if file.endswith(".jsonl") else "text", "path": file}


def _subject(args: argparse.Namespace, config: config_lib.Config | None) -> subject_lib.Subject:
  if args.run:
    return subject_lib.require_one(subject_lib.load_run(args.run, args.dtype))
  source, dtype = args.model, args.dtype or "bfloat16"
  if config is not None:
    source, dtype = source or config.model.source, args.dtype or config.model.dtype
  subject = subject_lib.load_model(source, dtype)
  return subject_lib.require_one(subject_lib.with_adapters(subject, args.adapter))


class _Saved(NamedTuple):
  """An earlier evaluation."""

  name: str
  results: list[Any]


def _other(
  what: str, first: subject_lib.Subject, dtype: str | None
) -> subject_lib.Subject | _Saved:
  """What `--compare` names."""
  from research import evals

  path = Path(what)
  if what == "base":
    if first.name == first.base:
      raise ValueError(f"{first.name} is the base; compare it to something else")
    if not first.base:
      raise ValueError(f"{first.name} was trained from random weights and has no base")
    return subject_lib.load_model(first.base, first.model.dtype)
  if path.is_file() and path.suffix == ".json":
    saved = json.loads(path.read_text())
    if "results" not in saved or "name" not in saved:
      raise ValueError(f"{path} is not the file of an evaluation")
    results = [evals.Result.from_json(result) for result in saved["results"]]
    return _Saved(f"{saved['name']} ({path})", results)
  if (path / "adapter_config.json").is_file():
    return subject_lib.with_adapter(first, path)
  if (path / "config.json").is_file() and subject_lib.is_run_config(
    json.loads((path / "config.json").read_text())
  ):
    return subject_lib.load_run(path, dtype)
  return subject_lib.load_model(what, dtype or first.model.dtype)


def _measure(
  evaluators: Sequence[Any], subject: subject_lib.Subject, report: _Report, part: dict[str, Any]
) -> list[Any]:
  """What evaluators find, each kept at once as one of the `results` in `part` of the report.

  What one finds may have taken hours, and the next may lack a file: then what there is is told.
  """
  results: list[Any] = []
  try:
    for evaluator in evaluators:
      results.append(evaluator(subject.model, subject.variables, subject.tokenizer))
      part.setdefault("results", []).append(results[-1].to_json())
      report.save()
  finally:
    if 0 < len(results) < len(evaluators):
      _tell(subject.name, results, report.output)
  return results


def _differences(results: Sequence[Any], others: Sequence[Any]) -> list[Any]:
  from research import evals

  found = {other.name: other for other in others}
  differences = []
  for result in results:
    if result.name not in found:
      raise ValueError(
        f"the other evaluation has no {result.name!r}, only {', '.join(map(repr, found))}"
      )
    differences += evals.compare(result, found[result.name])
  return differences


if __name__ == "__main__":
  sys.exit(main())

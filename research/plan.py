"""Tells what a run would need and take, without its weights, its data or its machine.

  python -m research.plan --config=configs/NAME.py --topology=v5p:4x4x4 [--config.KEY=VALUE ...]

The training step of the config is compiled for that many TPU chips, on any machine (with the
package libtpu: pip install 'research[plan]'): memory of each device by kind, whether it fits, FLOPs
and bytes, the compiler's estimate of time, tokens/s and model FLOPs utilisation. Topologies are
v4:AxBxC, v5e:AxB, v5p:AxBxC, v6e:AxB and 7x:AxBxC. With --topology=local a few steps are run on the
devices that are here, with random weights and rows, and measured.

  --price=DOLLARS    of a chip and hour: tokens a dollar
  --tokens=NUMBER    to be trained on, such as 1e9: days, and dollars with a price
  --json=FILE        the same for machines
  --search           the mesh, recomputation and batch with the most tokens a second that fit
  --compare          full fine-tuning, LoRA, QLoRA, adapters and distillation into half the layers
                     on one table, for the config's model and data, and which to take, by
                     --budget=DOLLARS (with --price and --tokens), --tasks=NUMBER that one base is
                     to serve, --deploy=GB that may be loaded in use, and --reasoning: tasks are
                     hard. Each technique takes minutes to compile.
  --help             this text

Exit codes: 0 it fits, 1 it does not, 2 the config cannot be or there is no such topology.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from research.core import command
from research.core import config as config_lib


def main(argv: Sequence[str] | None = None) -> int:
  """Runs the command with these arguments (by default the process's), and returns its code."""
  argv = list(sys.argv[1:] if argv is None else argv)
  if "--help" in argv or "-h" in argv:
    print((__doc__ or "").strip())
    return 0
  return command.run(lambda: _plan(argv), {ValueError: 2})


def _plan(argv: list[str]) -> int:
  args, rest = _arguments(argv)
  config = config_lib.from_command_line(rest)
  if args.topology == "local":
    return _local(config, args)
  # To plan for a TPU is not to use one that is here.
  os.environ["JAX_PLATFORMS"] = "cpu"
  from research.planning import estimate, report, topology

  devices = topology.devices(args.topology)
  if args.compare:
    return _compare(config, args, devices)
  if args.search:
    from research.planning import search

    changes, plan = search.search(config, args.topology, devices)
    print("\nbest:", *(f"--config.{key}={value}" for key, value in changes.items()), "\n")
  else:
    plan = estimate.make(config, args.topology, devices)
  print(report.text(plan, args.price, args.tokens))
  if args.json:
    args.json.write_text(json.dumps(report.record(plan, args.price, args.tokens), indent=1) + "\n")
  return 0 if plan.fits else 1


def _compare(config: config_lib.Config, args: argparse.Namespace, devices: Sequence[Any]) -> int:
  """Tells the table of techniques and the recommendation."""
  from research.planning import compare, report

  found = compare.rows(config, args.topology, devices)
  deployed = args.deploy and args.deploy * 1e9
  needs = compare.Needs(args.tasks, deployed, args.budget, args.reasoning)
  best, why = compare.recommend(found, needs, args.price, args.tokens)
  print(compare.text(found, args.price, args.tokens))
  print(f"\nrecommended: {best or 'none of them'}", *why, sep="\n- ")
  if args.json:
    record: dict[str, Any] = {"recommended": best, "why": why}
    for row in found:
      record[row.name] = report.record(row.plan, args.price, args.tokens)
    args.json.write_text(json.dumps(record, indent=1) + "\n")
  return 0 if best else 1


def _local(config: config_lib.Config, args: argparse.Namespace) -> int:
  """Measures on the devices that are here."""
  from research.planning import local

  if args.price or args.tokens or args.search or args.compare:
    raise ValueError("--price, --tokens, --search and --compare are for a topology")
  measured = local.measure(config)
  print(measured.text())
  if args.json:
    args.json.write_text(json.dumps(measured.record(), indent=1) + "\n")
  return 0


class _Parser(argparse.ArgumentParser):
  """Tells a mistake as other commands do."""

  def error(self, message: str) -> None:  # type: ignore[override]
    raise ValueError(message)


def _arguments(argv: list[str]) -> tuple[argparse.Namespace, list[str]]:
  """What is asked of the plan, and the rest, which is the config's."""
  parser = _Parser(add_help=False, allow_abbrev=False)
  parser.add_argument("--topology", required=True)
  parser.add_argument("--price", type=float)
  parser.add_argument("--tokens", type=float)
  parser.add_argument("--json", type=Path)
  parser.add_argument("--search", action="store_true")
  parser.add_argument("--compare", action="store_true")
  parser.add_argument("--budget", type=float)
  parser.add_argument("--tasks", type=int, default=1)
  parser.add_argument("--deploy", type=float)
  parser.add_argument("--reasoning", action="store_true")
  args, rest = parser.parse_known_args(argv)
  for name in ("price", "tokens", "budget", "tasks", "deploy"):
    if getattr(args, name) is not None and getattr(args, name) <= 0:
      raise ValueError(f"--{name} is {getattr(args, name)}, and should be above 0")
  if args.search and args.compare:
    raise ValueError("give either --search or --compare")
  if not args.compare and (args.budget or args.tasks > 1 or args.deploy or args.reasoning):
    raise ValueError("--budget, --tasks, --deploy and --reasoning are for --compare")
  if args.budget and not (args.price and args.tokens):
    raise ValueError("--budget needs --price and --tokens")
  return args, rest


if __name__ == "__main__":
  sys.exit(main())

"""What is recommended of plans, and what a search takes: by plans that are made up."""

import dataclasses
import re

import pytest

from research.core import chips
from research.core.config import ConfigError
from research.nn import remat
from research.planning import compare, estimate, report, search
from research.planning.compare import Needs, Row
from research.planning.estimate import Plan

PEAK = 4 * 197e12
PLAN = Plan(
  topology="v5e:2x2",
  chip=chips.CHIPS[1],
  devices=4,
  mesh={"data": 1, "fsdp": 4, "tensor": 1, "sequence": 1},
  memory={"parameters": 1e9},
  total=1e9,
  limit=16e9,
  fits=True,
  why="",
  tokens=1000,
  trained=100,
  parameters=1000,
  model_flops=PEAK * 0.5,
  program_flops=PEAK * 0.6,
  bytes=819e9 * 0.1,
  sent={"all-gather": 200e9 * 0.2},
  compute_seconds=1.0,
  collective_seconds=0.2,
  parts={"attention": 0.3, "feed-forward": 0.7},
  replicated=0.0,
  unread=(),
  compile_seconds=1.0,
)


def _row(name, deployed, left, **changes):
  return Row(name, dataclasses.replace(PLAN, **changes), deployed, left)


ROWS = [
  _row("full", 16e9, 16e9, fits=False, why="Used 20G of 16G", trained=1000),
  _row("lora", 16.1e9, 0.1e9, compute_seconds=0.8),
  _row("qlora", 4.6e9, 0.1e9, compute_seconds=1.6),
  _row("distillation", 8e9, 8e9, compute_seconds=0.5, trained=500),
]
HOUR = {"price": 1.0, "tokens": 3600 * 1000.0}  # of four chips, at a second a step


@pytest.mark.parametrize(
  ("needs", "best", "reasons"),
  [
    (Needs(), "distillation", ["full is out: it does not fit (Used 20G of 16G)", "2,000 tokens/s"]),
    (Needs(reasoning=True), "distillation", ["trains the most of what is left: 500"]),
    (Needs(tasks=3), "lora", ["distillation is out: 3 tasks are 3 models of 8.00 GB", "1,250"]),
    (Needs(tasks=3, deployed=5e9), "qlora", ["lora is out: deployed it has 16.10 GB, of 5.00"]),
    (Needs(tasks=2, budget=3.9), "lora", ["qlora is out: it costs $6 of $4"]),
    (Needs(budget=0.5), None, ["lora is out: it costs $3 of $0"]),
  ],
)
def test_rules_cite_what_decided(needs, best, reasons):
  found, why = compare.recommend(ROWS, needs, **HOUR)
  assert found == best
  for reason in reasons:
    assert any(reason in line for line in why), why


def test_what_could_not_be_read_is_in_the_text():
  plan = dataclasses.replace(PLAN, unread=("how often the loop while.7 runs (once)",))
  assert "does not tell how often the loop while.7 runs (once)" in report.text(plan)


def test_figures_of_a_plan():
  assert PLAN.seconds == 1 and PLAN.tokens_per_second == 1000
  assert PLAN.utilisation == pytest.approx(0.5)
  assert PLAN.serial_utilisation == pytest.approx(0.5 / 1.2)
  assert PLAN.dollars(2.0, 3600 * 1000) == pytest.approx(8)
  assert PLAN.days(86400 * 1000) == pytest.approx(1)
  two_a_chip = dataclasses.replace(PLAN, chip=PLAN.chip._replace(per_chip=2))
  assert two_a_chip.dollars(2.0, 3600 * 1000) == pytest.approx(4)


@pytest.mark.parametrize(
  ("changes", "told"),
  [
    ({"collective_seconds": 2.0}, "the interconnect, with all-gather"),
    ({"program_flops": PEAK * 0.8}, "recomputation"),
    ({"bytes": 819e9}, "memory's bandwidth"),
    ({}, "most of the time in feed-forward"),
  ],
)
def test_bottlenecks_are_named(changes, told):
  assert told in dataclasses.replace(PLAN, **changes).bottleneck()


def test_every_technique_is_a_run(config_of, monkeypatch):
  planned = []
  monkeypatch.setattr(
    estimate, "make", lambda config, topology, devices: planned.append(config) or PLAN
  )
  found = compare.rows(config_of(), "v5e:2x2", [])
  sizes = {row.name: (row.deployed, row.left) for row in found}
  model = sizes["full"][0]
  assert sizes["full"] == (model, model)
  assert model < sizes["lora"][0] < 1.1 * model and sizes["lora"][1] < 0.1 * model
  assert sizes["qlora"][0] < 0.7 * model and sizes["qlora"][1] == sizes["lora"][1]
  assert 0.3 * model < sizes["distillation"][0] < 0.7 * model  # one layer of three
  assert [config.objective.name for config in planned] == ["causal"] * 4 + ["distillation"]
  lines = compare.text(found, 1.0, 1e9).splitlines()
  assert lines[0].split()[0] == "technique" and len(lines) == 6 and "50.0%" in lines[1]
  with pytest.raises(ConfigError, match="objective 'causal'"):
    compare.rows(config_of({"objective": {"name": "kto"}}), "v5e:2x2", [])


def test_a_search_takes_what_fits_and_pays(config_of, monkeypatch):
  """Room for 8 rows, 16 with a policy or 32 recomputed; `tensor` is slower, more rows faster."""

  def make(config, topology, devices, quickly=False):
    rows, again = config.train.batch_size, remat.CHOICES.index(config.model.remat)
    asked.append((rows, config.model.remat))
    work = PEAK * (1 + rows / 8) * (1 + again / 10) * config.mesh.tensor**0.1
    fits = rows <= (8, 16, 16, 32)[again]
    return dataclasses.replace(PLAN, fits=fits, tokens=100 * rows, program_flops=work)

  monkeypatch.setattr(estimate, "make", make)
  said, asked = [], []
  changes, plan = search.search(config_of(), "v5e:2x2", [None] * 4, said.append)
  mesh = {"mesh.data": 1, "mesh.fsdp": 4, "mesh.tensor": 1, "mesh.sequence": 1}
  # 32 rows are (5 * 1.3) / (3 * 1.1) times the work of 16 rows, for twice as many: too little gain.
  assert changes == {**mesh, "train.batch_size": 16, "model.remat": "products"}
  more = [(32, choice) for choice in remat.CHOICES[1:]]
  assert asked == [(8, False)] * 3 + [(16, False), (16, "products"), *more, (16, "products")]
  assert plan.tokens == 1600
  assert any(re.search(r"tensor=2.*tokens/s", line) for line in said)
  assert any(re.search(r"remat=True, batch_size=32.*tokens/s", line) for line in said)
  monkeypatch.setattr(estimate, "make", lambda *a, **k: dataclasses.replace(PLAN, fits=False))
  with pytest.raises(ConfigError, match="make it smaller"):
    search.search(config_of(), "v5e:2x2", [None] * 4, said.append)

"""The table of what few bits cost, and the run that one of its rows is of."""

import itertools
import math

import jax.numpy as jnp
import pytest

from experiments.quantization import __main__ as experiment
from experiments.quantization import mixed, rounded, training
from experiments.quantization.config import RUNS, VARIANTS
from research import quant


def test_what_is_written_is_that_of_its_row():
  row = VARIANTS["int3 g64 trained"]
  config = training.get_config("int3_training")
  assert f"{config.directory}/model" == f"{RUNS}/{row.written}"
  assert tuple(config.quantize) == row.rules == VARIANTS[row.than].rules
  assert rounded.get_config("int4").output == f"{RUNS}/{VARIANTS['int4 g64 gptq passes'].written}"
  for kind, name in (("int4", "int4 g64 gptq"), ("nf4", "nf4 gptq")):
    config, trained = rounded.get_config(kind), training.get_config(f"{kind}_scales")
    assert tuple(config.quantize) == VARIANTS[rounded.KINDS[kind][0]].rules
    assert trained.model.source == config.output
    assert f"{trained.directory}/model" == f"{RUNS}/{VARIANTS[f'{name} scales'].written}"
  for kind, items in itertools.product(mixed.KINDS, mixed.ITEMS):
    row = VARIANTS[f"{kind} bytes {items.replace('_', ' ')}"]
    config = mixed.get_config(f"{kind}_{items}")
    assert config.output == f"{RUNS}/{row.written}"
    (rule,) = VARIANTS[row.than].rules
    kernel = {"layers": {"mlp": {"up_proj": {"kernel": jnp.ones((2, 64, 8))}}}}
    held = quant.quantize(kernel, [{**rule, "target": ".*"}])
    assert quant.size(held).held == 2 * 64 * 8 * config.bits / 8
  for module in (training, mixed, rounded):
    with pytest.raises(ValueError, match="no (run |search )?'int5'"):
      module.get_config("int5")


def test_the_table_tells_what_is_taken_away():
  def row(name, nats, size):
    records = [{"nll": 10 * nats, "tokens": 10}] * 2
    metrics = {"perplexity": math.exp(nats)}
    return {"name": name, "records": records, "metrics": metrics, "bytes": size, "dense": 100}

  nats = [math.log(x) for x in (10, 20, 15)]
  names = (experiment.BASE, "int3 g64 nearest", "int3 g64 trained")
  rows = [row(name, x, size) for name, x, size in zip(names, nats, (100, 20, 20), strict=True)]
  base, nearest, trained = experiment.table(rows).splitlines()[2:]
  assert base.split("|")[2:4] == [" 10.000 ", "  "]
  assert nearest.split("|")[2:5] == [" 20.000 ", " +100.00% ", " +100.00% to +100.00% "]
  assert nearest.split("|")[5:7] == [" 0.200 ", "  "]
  assert trained.split("|")[3] == " +50.00% " and trained.split("|")[6] == " 50% "


def test_a_run_that_is_not_complete_is_left_out(monkeypatch, tmp_path):
  monkeypatch.chdir(tmp_path)
  told = experiment.obstacle("int3 g64 trained")
  assert "config=experiments/quantization/training.py:int3_training" in told
  assert "config=experiments/quantization/rounded.py:int4" in experiment.obstacle(
    "int4 g64 gptq passes"
  )
  (tmp_path / RUNS / VARIANTS["int3 g64 trained"].written).mkdir(parents=True)
  assert not experiment.obstacle("int3 g64 trained") and not experiment.obstacle(experiment.BASE)


def test_mistakes(capsys, monkeypatch):
  flags = ["quantization", "--text=x", "--calibration=y", "--variants=int5"]
  monkeypatch.setattr("sys.argv", flags)
  with pytest.raises(SystemExit):
    experiment.main()
  assert "there is no variant 'int5'" in capsys.readouterr().err

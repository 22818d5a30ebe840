"""The benchmarks' own sides run on a toy model; what they measure is no test's business."""

import json
import sys
import types

import jax
import pytest

from benchmarks import ours_checkpoint, ours_depth, ours_input, ours_train, run, workloads
from benchmarks.bars import BARS
from benchmarks.works import WORKS
from research import models

LLAMA = {
  "model_type": "llama",
  "vocab_size": workloads.VOCABULARY,
  "hidden_size": 32,
  "intermediate_size": 64,
  "num_hidden_layers": 2,
  "num_attention_heads": 2,
  "num_key_value_heads": 1,
}


@pytest.fixture(scope="module")
def toy(tmp_path_factory, byte_tokenizer):
  directory = tmp_path_factory.mktemp("toy") / "model"
  model = models.build(LLAMA)
  models.save(directory, model, models.initialize(model, jax.random.key(0)), byte_tokenizer)
  return directory


@pytest.mark.parametrize("method", ["lora", "prompt"])
def test_the_lora_step_trains(toy, monkeypatch, method):
  monkeypatch.setattr(workloads, "LEARNING_RATE", 0.1)  # of which a warm-up's first steps have some
  shape = {"rows": 4, "length": 32, "device": "cpu"}
  args = types.SimpleNamespace(model=toy, method=method, warmup=1, steps=2, **shape)
  measured, training = ours_train.lora_step(args)
  assert len(measured["seconds"]) == 2
  assert measured["tokens_per_second"] > 0
  assert training.compile_seconds > 0
  assert training.losses[-1] < training.losses[0]


def test_each_bar_is_of_a_work_and_a_peer_that_there_are():
  for bar in BARS:  # the table leaves out a bar of what was not measured
    peers = {peer.name for peer in WORKS[bar.work].peers}
    assert bar.peer is None or bar.peer in peers, bar


def test_a_work_for_another_device_is_refused(monkeypatch, capsys):
  monkeypatch.setattr(sys, "argv", ["run", "lora_step", "--device=gpu"])
  with pytest.raises(SystemExit):
    run.main()
  assert "lora_step is not for --device=gpu; lora_step_large, generation" in capsys.readouterr().err


@pytest.mark.parametrize("kept", [False, True])
def test_the_dpo_step_trains(toy, monkeypatch, kept):
  monkeypatch.setattr(workloads, "STEP_TOKENS", 16)
  monkeypatch.setattr(workloads, "PAIR_PROMPT_TOKENS", 8)
  monkeypatch.setattr(workloads, "LEARNING_RATE", 0.1)
  args = types.SimpleNamespace(model=toy, kept=kept, warmup=1, steps=2)
  measured, training = ours_train.dpo_step(args)
  assert len(measured["seconds"]) == 2
  assert training.losses[-1] < training.losses[0]


@pytest.mark.parametrize(
  ("module", "measure", "arguments"),
  [
    (ours_depth, "compile_seconds", ["--layers=3"]),
    (ours_checkpoint, "pause_share", []),
    (ours_input, "tokens_per_second", ["--gsm8k=gsm8k.jsonl"]),
  ],
)
def test_workers_print_their_measure(
  toy, tmp_path, monkeypatch, capsys, module, measure, arguments
):
  row = {"question": "1 and 1?", "answer": "2"}
  (tmp_path / "gsm8k.jsonl").write_text(f"{json.dumps(row)}\n" * 100)
  monkeypatch.chdir(tmp_path)
  monkeypatch.setattr(workloads, "STEP_TOKENS", 16)
  flags = [f"--model={toy}", "--warmup=0", "--steps=2", *arguments]
  monkeypatch.setattr(sys, "argv", ["worker", *flags])
  module.main()
  found = json.loads(capsys.readouterr().out.splitlines()[-1])
  assert found[measure] > 0

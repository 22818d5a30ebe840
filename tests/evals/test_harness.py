"""lm-evaluation-harness's tasks on our model, against its own model of the same weights."""

import json
import os
import re

import jax
import jax.numpy as jnp
import pytest

from research import evals, evaluate, models

pytest.importorskip("lm_eval", reason="lm_eval is not installed (the extra 'harness')")

LLAMA = {
  "model_type": "llama",
  "vocab_size": 258,
  "hidden_size": 32,
  "intermediate_size": 48,
  "num_hidden_layers": 2,
  "num_attention_heads": 2,
  "max_position_embeddings": 96,
}

QUESTIONS = [
  {"question": "two and two", "choices": ["four", "five", "a house by the sea"], "answer": 0},
  {"question": "the sky is", "choices": ["green", "blue", "x"], "answer": 1},
  {
    "question": "a longer question, which says little",
    "choices": ["no", "yes", "why"],
    "answer": 2,
  },
  {"question": "b", "choices": ["c", "d", "e"], "answer": 0},
]
# The second is longer than the model's positions: it is read in windows.
TEXTS = [{"text": "Once upon a time."}, {"text": "All work and no play. " * 9}, {"text": "x"}]

TASKS = {
  "tiny_choice": {
    "output_type": "multiple_choice",
    "doc_to_text": "{{question}}",
    "doc_to_choice": "{{choices}}",
    "doc_to_target": "{{answer}}",
    "metric_list": [{"metric": "acc"}, {"metric": "acc_norm"}],
  },
  "tiny_text": {
    "output_type": "loglikelihood_rolling",
    "doc_to_text": "",
    "doc_to_target": "{{text}}",
    "metric_list": [{"metric": "word_perplexity"}, {"metric": "bits_per_byte"}],
  },
  "tiny_writing": {
    "output_type": "generate_until",
    "doc_to_text": "{{question}}",
    "doc_to_target": "{{choices[answer]}}",
    "generation_kwargs": {"until": ["e", "\n"], "max_gen_toks": 12},
    "metric_list": [{"metric": "exact_match"}],
  },
}


@pytest.fixture(scope="module")
def subject(tmp_path_factory, byte_tokenizer):
  """A directory, and the model, variables and tokenizer in it."""
  directory = tmp_path_factory.mktemp("harness_model")
  model = models.build(LLAMA)
  params = jax.jit(model.init)(jax.random.key(0), jnp.zeros((1, 1), jnp.int32))["params"]
  params = jax.tree.map(lambda x: x * 5 if x.ndim > 1 else x, params)
  models.save(directory, model, params, byte_tokenizer)
  return directory, (model, {"params": params}, byte_tokenizer)


@pytest.fixture(scope="module")
def tasks(tmp_path_factory):
  """A directory with a file a task, and their data."""
  root = tmp_path_factory.mktemp("harness_tasks")
  for name, rows in (("questions", QUESTIONS), ("texts", TEXTS)):
    (root / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
  for name, task in TASKS.items():
    data = root / ("texts.jsonl" if name == "tiny_text" else "questions.jsonl")
    # JSON is YAML.
    (root / f"{name}.yaml").write_text(
      json.dumps(
        {
          "task": name,
          "dataset_path": "json",
          "dataset_kwargs": {
            "data_files": {"validation": str(data)}, "cache_dir": str(root / "cache")
          },
          "validation_split": "validation",
          **task,
        }
      )
    )  # fmt: skip
  return root


@pytest.fixture(scope="module")
def result(subject, tasks):
  return evals.build([{"name": "harness", "tasks": [str(tasks)], "batch_size": 5}])[0](*subject[1])


def test_figures_and_answers_are_those_of_the_harness(subject, tasks, result):
  """To 1e-3, as it runs its own model; likelihoods and completions item by item."""
  from lm_eval import evaluator
  from lm_eval.models.huggingface import HFLM

  theirs = evaluator.simple_evaluate(
    HFLM(pretrained=str(subject[0]), dtype="float32", device="cpu", batch_size=2),
    tasks=[str(tasks / f"{name}.yaml") for name in TASKS],
  )
  figures = {
    f"{task}/{key.removesuffix(',none')}": value
    for task, found in theirs["results"].items()
    for key, value in found.items()
    if key.endswith(",none") and "stderr" not in key
  }
  found = {name: value for name, value in result.metrics.items() if name != "documents"}
  assert found.keys() == figures.keys() and len(found) == 5
  assert found == pytest.approx(figures, rel=1e-3)
  ours = {(record["task"], record["document"]): record["answer"] for record in result.records}
  for task, samples in theirs["samples"].items():
    for sample in samples:
      answer, expected = ours[task, sample["doc_id"]], sample["filtered_resps"]
      if task == "tiny_choice":
        assert [a[1] for a in answer] == [e[1] for e in expected]
        answer, expected = ([value for value, _ in each] for each in (answer, expected))
      if task != "tiny_writing":
        answer, expected = pytest.approx(answer, rel=1e-3), expected
      assert expected == answer
  assert result.metrics["documents"] == 11
  assert set(result.means) == {
    "tiny_choice/acc", "tiny_choice/acc_norm", "tiny_writing/exact_match"
  }  # fmt: skip


def test_results_compare_item_by_item(result):
  for difference in evals.compare(result, evals.Result.from_json(result.to_json())):
    assert difference.difference == 0 and difference.interval == (0, 0)


def test_the_command(subject, tasks, result, tmp_path, monkeypatch):
  monkeypatch.setenv("RESEARCH_CACHE", str(tmp_path / "cache"))
  saved = tmp_path / "found.json"
  arguments = [f"--model={subject[0]}", "--dtype=float32", "--batch-size=5", f"--output={saved}"]
  assert evaluate.main([*arguments, f"--tasks={tasks}"]) == 0
  (found,) = json.loads(saved.read_text())["results"]
  assert found["metrics"] == pytest.approx(result.metrics)


def test_cache_answers_what_was_asked_before(subject, tasks, tmp_path):
  model, variables, tokenizer = subject[1]
  section = {"name": "harness", "tasks": [str(tasks / "tiny_choice.yaml")], "batch_size": 5}
  section["cache"] = str(tmp_path / "answers")
  (evaluator,) = evals.build([section])
  first = evaluator(model, variables, tokenizer)
  assert evaluator(model, {}, tokenizer).records == first.records  # without weights to ask


def test_several_processes_keep_no_answers(monkeypatch):
  monkeypatch.setattr(jax, "process_count", lambda: 2)
  evals.build([{"name": "harness", "tasks": ["x"]}])
  with pytest.raises(ValueError, match="kept by a single process; leave out `cache`"):
    evals.build([{"name": "harness", "tasks": ["x"], "cache": "answers"}])


def test_chat_template_shows_messages(subject, tasks):
  from research.evals.harness_model import HarnessModel

  lm = HarnessModel(*subject[1])
  messages = [{"role": "user", "content": "hello"}]
  assert lm.apply_chat_template(messages) == "user: hello<eos>"
  messages.append({"role": "assistant", "content": "I say"})
  assert lm.apply_chat_template(messages, False) == "user: hello<eos>assistant: I say"


def test_tasks_that_there_are_not(subject, tmp_path, monkeypatch):
  with pytest.raises(ValueError, match="tasks is empty"):
    evals.Harness([])(*subject[1])
  with pytest.raises(ValueError, match="holds no YAML file"):
    evals.Harness([str(tmp_path)])(*subject[1])

  class Manager:
    """As the harness's own, which takes seconds to read all its tasks."""

    all_tasks = ["hellaswag", "winogrande"]

    def __init__(self, include_defaults):
      assert include_defaults

    def match_tasks(self, names):
      return [name for name in self.all_tasks if name in names]

  monkeypatch.setattr("lm_eval.tasks.TaskManager", Manager)
  with pytest.raises(ValueError, match="no task 'hellaswagg'.*hellaswag"):
    evals.Harness(["hellaswagg"])(*subject[1])


@pytest.fixture
def task_of(tasks, tmp_path):
  """`task_of(code, **more) -> file`, a task of one question judged by `judged.right` of `code`."""

  def write(code, **more):
    (tmp_path / "judged.py").write_text(code)
    task = json.loads((tasks / "tiny_writing.yaml").read_text())
    file = tmp_path / "judged.yaml"
    told = json.dumps({**task, "task": "judged", **more}).replace(
      '"RIGHT"', "!function judged.right"
    )
    file.write_text(told)
    return str(file)

  return write


def test_written_code_is_executed_only_where_that_is_allowed(
  subject, task_of, tmp_path, monkeypatch, capsys
):
  monkeypatch.delenv("HF_ALLOW_CODE_EVAL", raising=False)
  judging = "def right(doc, results):\n  return {'exact_match': 1.0}\n"
  # As the metric of HumanEval, which asks the environment where the task is read.
  asking = """
import os
if os.environ.get("HF_ALLOW_CODE_EVAL") != "1":
  raise ValueError("The metric executes code.\\nSet HF_ALLOW_CODE_EVAL=1.")
"""
  refused = r"^harness: a task executes code .* unsafe_code=True \(--unsafe-code\), .*harm$"
  task = task_of(judging, process_results="RIGHT", unsafe_code=True)
  with pytest.raises(ValueError, match=refused):
    evals.Harness([task], limit=1)(*subject[1])
  task = task_of(asking + judging, process_results="RIGHT", unsafe_code=True)
  with pytest.raises(ValueError, match=refused):
    evals.Harness([task], limit=1)(*subject[1])
  monkeypatch.setenv("RESEARCH_CACHE", str(tmp_path / "cache"))
  arguments = [f"--model={subject[0]}", "--dtype=float32", f"--tasks={task}", "--limit=1"]
  assert evaluate.main([*arguments, "--unsafe-code"]) == 0
  assert re.search("judged/exact_match +1.0000", capsys.readouterr().out)
  assert "HF_ALLOW_CODE_EVAL" not in os.environ


def test_a_package_that_a_task_lacks(subject, task_of):
  task = task_of("import no_such_package\n", process_results="RIGHT")
  with pytest.raises(ValueError, match="^harness: a task needs a package: .*'no_such_package'"):
    evals.Harness([task], limit=1)(*subject[1])


def test_what_a_task_cannot_ask_for():
  from research.evals.harness_model import _asked

  with pytest.raises(ValueError, match="'num_beams'"):
    _asked({"until": [], "max_gen_toks": 3, "do_sample": False, "num_beams": 2})
  sampler, until, count = _asked(
    {"until": ["a", ""], "max_gen_toks": 3, "do_sample": True, "temperature": 0.5, "top_p": 0.9}
  )
  assert (sampler.temperature, sampler.top_p, until, count) == (0.5, 0.9, ("a",), 3)

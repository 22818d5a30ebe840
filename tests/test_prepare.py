"""The command `python -m research.prepare`, in process and as racing processes."""

import json
import subprocess
import sys

import pytest

from research import prepare
from research.data import sources

GOOD = '{"prompt": "a", "completion": "b"}\n{"prompt": "c", "completion": "d"}\n'


def test_prepares_once_and_tells_what_is_there(tmp_path, capsys):
  path = tmp_path / "talks.jsonl"
  path.write_text(GOOD + '{"answer": "e"}\n{"prompt"\n')
  args = ["--path", str(path), "--cache", str(tmp_path / "cache"), "--name", "mine"]
  assert prepare.main(args) == 0
  first = capsys.readouterr().out
  assert prepare.main(args) == 0
  second = capsys.readouterr().out
  (directory,) = (tmp_path / "cache").iterdir()
  assert directory.name.startswith("mine-")
  lines = first.splitlines()
  assert lines[:3] == [
    f"prepared: {directory}",
    "rows: 3",
    "columns in 2 of them: completion, prompt",
  ]
  assert lines[3].startswith("columns in 1 of them: answer (not for training: columns ['answer']")
  assert lines[4] == "bad rows: 1"
  assert lines[5].startswith(f"{path}: 1 row not JSON (row 3): ")
  assert second == first.replace("prepared:", "already there:")


def test_text_files_and_errors(tmp_path, capsys):
  path = tmp_path / "book.txt"
  path.write_text("one\n\ntwo\n")
  args = ["--path", str(path), "--cache", str(tmp_path / "cache")]
  assert prepare.main([*args, "--split-by", "paragraph"]) == 0
  assert "rows: 2\n" in capsys.readouterr().out
  assert prepare.main([*args, "--format", "jsonl"]) == 1
  error = capsys.readouterr().err
  assert error.startswith(f"error: {path} has no usable row; ")
  assert prepare.main(["--path", str(tmp_path / "none.txt")]) == 1
  assert capsys.readouterr().err == f"error: no data file at {tmp_path / 'none.txt'}\n"


def test_right_answers_of_an_evaluation(tmp_path, capsys):
  prompt = [{"role": "user", "content": "1 + 1?"}]
  samples = [
    {"completion": text, "correct": int("2" in text), "unfinished": 0} for text in ("3", "2.", "2")
  ]
  records = [
    {"id": "0", "prompt": prompt, "samples": samples},
    {"id": "1", "prompt": prompt, "samples": samples[:1]},
  ]
  (tmp_path / "evaluation.json").write_text(json.dumps({"results": [{"records": records}]}))
  target = tmp_path / "new" / "right.jsonl"
  args = ["--path", str(tmp_path / "evaluation.json"), "--cache", str(tmp_path / "cache")]
  assert prepare.main([*args, "--chains", str(target), "--per-problem", "1"]) == 0
  lines = capsys.readouterr().out.splitlines()
  assert lines[:2] == [f"right answers: 1 of 2 problems in {target}", "problems without one: 1"]
  assert lines[3:5] == ["rows: 1", "columns in 1 of them: messages"]
  source = sources.build({"name": "jsonl", "path": str(target), "cache": str(tmp_path / "cache")})
  assert source[0] == {"messages": [*prompt, {"role": "assistant", "content": "2."}]}
  assert prepare.main([*args, "--chains", str(target), "--per-problem", "0"]) == 1
  assert capsys.readouterr().err == "error: 0 answers a problem are none; keep at least 1\n"
  assert prepare.main(["--path", str(target), "--chains", str(tmp_path / "x.jsonl")]) == 1
  assert "has no 'results'" in capsys.readouterr().err
  target.write_text(GOOD)
  assert prepare.main(["--path", str(target), "--chains", str(tmp_path / "x.jsonl")]) == 1
  assert "right.jsonl is not the file of an evaluation: Extra data" in capsys.readouterr().err


def test_right_critiques_of_an_evaluation(tmp_path, capsys):
  samples = [{"completion": text, "correct": int(text == "2"), "unfinished": 0} for text in "32"]
  trace = {
    "requests": {"critique": "Wrong?", "revise": "Again!"},
    "rounds": [{"critique": "It is 2.", "found": True, "unfinished": 0}],
  }
  record = {"id": "0", "prompt": "1 + 1 =", "samples": samples, "trace": trace}
  file = tmp_path / "evaluation.json"
  file.write_text(json.dumps({"results": [{"records": [record]}]}))
  target, cache = tmp_path / "critiques.jsonl", str(tmp_path / "cache")
  args = ["--path", str(file), "--cache", cache, "--critiques", str(target)]
  assert prepare.main(args) == 0
  lines = capsys.readouterr().out.splitlines()
  assert lines[:2] == [
    f"corrected: 1, confirmed: 0, of 1 problems, as 2 rows in {target}",
    "problems without one: 0",
  ]
  assert lines[3:5] == ["rows: 2", "columns in 2 of them: completion, prompt"]
  source = sources.build({"name": "jsonl", "path": str(target), "cache": cache})
  assert source[0] == {"prompt": "1 + 1 =3\n\nWrong?\n", "completion": "It is 2."}
  with pytest.raises(SystemExit):
    prepare.main([*args, "--chains", str(target)])
  assert "--chains: not allowed with argument --critiques" in capsys.readouterr().err
  file.write_text(json.dumps({"results": [{"records": [record | {"trace": {}}]}]}))
  assert prepare.main(args) == 1
  assert capsys.readouterr().err.startswith("error: no evaluator kept critiques: give 'verifiable'")


def test_racing_processes_leave_one_good_directory(tmp_path):
  path = tmp_path / "talks.jsonl"
  path.write_text(GOOD * 500)
  command = [sys.executable, "-m", "research.prepare", "--path", str(path), "--cache"]
  processes = [
    subprocess.Popen([*command, str(tmp_path / "cache")], stdout=subprocess.PIPE, text=True)
    for _ in range(2)
  ]
  outputs = [process.communicate()[0] for process in processes]
  assert [process.returncode for process in processes] == [0, 0]
  (directory,) = (tmp_path / "cache").iterdir()
  assert all(f": {directory}\nrows: 1,000\n" in output for output in outputs)
  source = sources.build({"name": "jsonl", "path": str(path), "cache": str(tmp_path / "cache")})
  assert len(source) == 1000 and source[999] == {"prompt": "c", "completion": "d"}

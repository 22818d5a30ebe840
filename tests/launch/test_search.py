"""Optuna's search: asked once, journaled, gone on with, and told of failures."""

import json

import pytest

optuna = pytest.importorskip("optuna")

TEXT = """metrics=('eval/sums/accuracy',), seeds=(0, 1), search=launch.Search(
  {{'rate': launch.LogUniform(1.0, 100.0), 'does': launch.Choice({{'well': 'end', 'ill': 'nan'}})}},
  trials={trials}, goal='max', seed=5)"""


def _overrides(root):
  """What each trial's config said."""
  files = sorted(root.glob("trial_*/seed_0/config.json"))
  return [{k: json.loads(f.read_text())[k] for k in ("rate", "does")} for f in files]


def test_a_search_goes_on_where_it_was(world, command):
  code, out, err = command(TEXT.format(trials=4))
  assert code == 0, err
  root = world / "runs" / "study"
  first = _overrides(root)
  assert len(first) == 4 and out.count("complete ") == 8
  assert all(1.0 <= each["rate"] <= 100.0 for each in first)
  assert len({each["rate"] for each in first}) == 4
  code, out, _ = command(TEXT.format(trials=7))
  assert code == 0 and out.count("complete ") == 6
  both = _overrides(root)
  assert both[:4] == first and len({each["rate"] for each in both}) == 7
  report = (root / "REPORT.md").read_text()
  assert "| trial_006 |" in report and "14 complete" in report
  # The sampler knows the mean over seeds, of those trials whose values are numbers.
  storage = optuna.storages.JournalStorage(
    optuna.storages.journal.JournalFileBackend(str(root / "search.journal"))
  )
  study = optuna.load_study(study_name="sweep", storage=storage)
  for trial, told in zip(study.trials, both, strict=True):
    assert {"well": "end", "ill": "nan"}[trial.params["does"]] == told["does"]
    if told["does"] == "end":
      assert trial.value == pytest.approx(told["rate"] * 10 + 0.5, abs=1e-9)
    else:
      assert trial.state == optuna.trial.TrialState.FAIL
  best = max(told["rate"] for told in both if told["does"] == "end")
  assert f"Best trial: trial_{[t['rate'] for t in both].index(best):03d}." in report


@pytest.mark.parametrize("lost", [0, 1])
def test_trials_that_were_left_open_are_run_before_new_ones(world, command, lost):
  assert command(TEXT.format(trials=2))[0] == 0
  root = world / "runs" / "study"
  before = _overrides(root)
  # As after a power cut: the journal ends while the second trial runs.
  journal = root / "search.journal"
  lines = journal.read_text().splitlines(keepends=True)
  told = [
    i
    for i, line in enumerate(lines)
    if '"state"' in line and '"trial_id":1' in line.replace(" ", "")
  ]
  journal.write_text("".join(lines[: told[-1]]))
  if lost:
    (root / "trial_001" / "seed_1" / "results.json").unlink()
  code, out, _ = command(TEXT.format(trials=3))
  assert code == 0 and out.count("complete ") == 2 + lost
  assert _overrides(root)[:2] == before and len(_overrides(root)) == 3


def test_to_ask_how_it_stands_begins_no_search(world, command):
  for flag, told in (("--list", ""), ("--dry_run", "# and the trials of the search, up to 4")):
    code, out, err = command(TEXT.format(trials=4), flag)
    assert code == 0 and told in out and not (world / "runs").exists(), err


def test_a_journal_of_another_search_is_refused(command):
  assert command(TEXT.format(trials=1))[0] == 0
  code, _, err = command(TEXT.format(trials=1).replace("100.0", "10.0"))
  assert code == 2 and "the journal is of a search in another space" in err
  code, _, err = command(TEXT.format(trials=1).replace("'max'", "'most'"))
  assert code == 2 and "goal is 'max' or 'min', not 'most'" in err

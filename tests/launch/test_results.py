"""The figures of a report against scipy's, and the files that hold them."""

import csv
import dataclasses
import math
import re

import numpy as np
import pytest
from scipy import stats

from launch import results, sweep

METRIC = "eval/sums/accuracy"


def test_means_and_intervals_are_scipys():
  values = [0.31, 0.44, 0.35, 0.52]
  found = results.mean(values)
  expected = stats.ttest_1samp(values, 0).confidence_interval(0.95)
  assert found.value == pytest.approx(np.mean(values), abs=1e-12)
  assert found.interval == pytest.approx(tuple(expected), abs=1e-12)
  assert found.count == 4 and found.not_finite == 0


def test_one_seed_has_no_interval_and_no_seed_no_mean():
  assert results.mean([2.0]) == results.Mean(2.0, None, 1)
  none = results.mean([math.nan, math.inf])
  assert math.isnan(none.value) and none.interval is None
  assert (none.count, none.not_finite) == (0, 2)
  others = results.mean([1.0, 3.0])
  assert results.mean([1.0, math.nan, 3.0]) == dataclasses.replace(others, not_finite=1)


# What the trainer finds is rate * 10 + seed, where it does not do otherwise.
SWEEP = f"""metrics=({METRIC!r}, 'seconds'), seeds=(0, 1, 4), baseline='low', x='rate', points={{
  'low': {{'rate': 1.0}}, 'high': {{'rate': 3.5}},
  'nan': {{'rate': 4.0, 'does': 'nan'}}, 'fails': {{'rate': 5.0, 'does': 'fail'}}}}"""


@pytest.fixture(scope="module")
def study(tmp_path_factory, make_world, describe):
  """The directory of a sweep that was run, one of whose differences is not the same for all."""
  with pytest.MonkeyPatch.context() as patch:
    root = make_world(tmp_path_factory.mktemp("results"), patch) / "runs" / "study"
    describe(SWEEP)
    assert sweep.main(["--experiment=study", "--parallel=4", "--tries=1"]) == 1
    file = root / "high" / "seed_4" / "results.json"
    file.write_text(file.read_text().replace("39.0", "40.5"))
    assert sweep.main(["--experiment=study", "--report"]) == 1
  return root


def test_the_report_has_every_point_with_what_is_known_of_it(study):
  lines = (study / "results.csv").read_text().splitlines()
  rows = {row["point"]: row for row in csv.DictReader(lines) if row["metric"] == METRIC}
  low, high = [10.0, 11.0, 14.0], [35.0, 36.0, 40.5]
  for name, values in (("low", low), ("high", high)):
    ends = stats.ttest_1samp(values, 0).confidence_interval(0.95)
    assert float(rows[name]["mean"]) == pytest.approx(np.mean(values), abs=1e-9)
    assert float(rows[name]["low"]) == pytest.approx(ends.low, abs=1e-9)
    assert float(rows[name]["high"]) == pytest.approx(ends.high, abs=1e-9)
  paired = stats.ttest_rel(high, low)
  ends = paired.confidence_interval(0.95)
  assert float(rows["high"]["difference"]) == pytest.approx(25.5, abs=1e-9)
  assert float(rows["high"]["difference_low"]) == pytest.approx(ends.low, abs=1e-9)
  assert float(rows["high"]["difference_high"]) == pytest.approx(ends.high, abs=1e-9)
  # Of items each is 25 more, in the evaluations that were left as they were.
  assert float(rows["high"]["items_low"]) == float(rows["high"]["items_high"]) == 25.0
  assert rows["low"]["against"] == "" and rows["nan"]["mean"] == ""
  assert (rows["nan"]["not_finite"], rows["nan"]["failed"]) == ("3", "0")
  assert (rows["fails"]["failed"], rows["fails"]["incomplete"]) == ("3", "3")
  report = (study / "REPORT.md").read_text()
  assert "9 complete, 3 failed" in report
  low_line, high_line, nan_line, fails_line = re.findall(
    r"^\| (?:low|high|nan|fails) \|.*", report, re.MULTILINE
  )[:4]
  assert low_line == "| low | 3 | 11.67 | [6.496, 16.84] |  |  |  |  |  |"
  assert "| low | +25.5 | [+23.35, +27.65] | [+25, +25] |" in high_line
  assert "3 of 3 not finite" in nan_line and "3 of 3 failed" in fails_line
  assert "| fails/seed_4 | 1 | RuntimeError: no such luck |" in report
  assert "| nan | rate = 4, does = nan |" in report


def test_runs_are_told_one_by_one(study):
  rows = list(csv.DictReader((study / "runs.csv").read_text().splitlines()))
  assert len(rows) == 12
  found = {(row["point"], row["seed"]): row for row in rows}
  assert float(found["high", "4"][METRIC]) == 40.5 and found["high", "4"]["state"] == "complete"
  assert math.isnan(float(found["nan", "0"][METRIC]))
  assert found["fails", "1"]["error"] == "RuntimeError: no such luck"
  assert found["fails", "1"][METRIC] == "" and found["fails", "1"]["attempts"] == "1"


def test_the_page_holds_all_and_needs_nothing(study):
  page = (study / "report.html").read_text()
  assert not re.search(r"<script|https?://|<link", page)
  (source,) = re.findall(r'src="([^"]{40})', page)
  assert source.startswith("data:image/png;base64,iVBORw0KGgo")  # a PNG's first bytes
  for cell in ("[+23.35, +27.65]", "RuntimeError: no such luck", "3 of 3 failed"):
    assert f"<td>{cell}</td>" in page or cell in page
  assert page.count("<table>") == 4 and (study / "plot.png").stat().st_size > 5000


def test_a_sweep_along_an_axis_is_drawn_and_compared_along_it(world, command):
  text = """metrics=('loss',), seeds=(0,), x='rate', baseline={'shape': 'flat'}, grid={
    'rate': (1.0, 30.0), 'shape': {'flat': {'name': 'flat'}, 'deep': {'name': 'deep'}}}"""
  assert command(text, "--parallel=2")[0] == 0
  report = (world / "runs" / "study" / "REPORT.md").read_text()
  assert (
    "| rate=30.0,shape=deep | 1 | -300 |  | rate=30.0,shape=flat | +0 |  | one seed: no" in report
  )
  code, _, err = command(text.replace("x='rate'", "x='does'"), "--report")
  assert code == 2 and "x is 'does', which no point sets to a number" in err

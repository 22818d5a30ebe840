"""Plots show the numbers of their tables."""

import sys

import pytest

from research.evals import Result, plots

pytest.importorskip("matplotlib")

TABLES = {
  "reliability": [
    {"from": 0.0, "to": 0.5, "confidence": 0.4, "accuracy": 0.3, "count": 3},
    {"from": 0.5, "to": 1.0, "confidence": 0.0, "accuracy": 0.0, "count": 0},
  ],
  "heads": [
    {"layer": i, "head": j, "relative_entropy": 0.1 * (i + j)} for i in (0, 1) for j in (0, 1, 2)
  ],
  "cells": [
    {"length": 512, "depth": 0.0, "right": 2, "problems": 4},
    {"length": 1024, "depth": 0.0, "right": 4, "problems": 4},
  ],
  "lengths": [
    {"length": 128, "perplexity": 9.0, "low": 8.0, "high": 10.0, "beyond": 0},
    {"length": 256, "perplexity": 7.0, "low": 6.0, "high": 8.0, "beyond": 1},
  ],
  "positions": [{"from": 2, "to": 4, "nll": 3.0}, {"from": 4, "to": 7, "nll": 2.0}],
}


def axis_of(name):
  drawn, axis = plots.pyplot().subplots()
  plots.PLOTS[name](axis, TABLES[name])
  plots.pyplot().close(drawn)
  return axis


def test_a_file_a_table(tmp_path):
  results = [
    Result("a/b.txt", {}, [], {}, tables=TABLES),
    Result("plain", {"loss": 1.0}, [], {}, tables={"unknown": []}),
  ]
  files = plots.draw(results, tmp_path / "new")
  assert [file.name for file in files] == [f"a%2Fb.txt-{name}.png" for name in TABLES]
  assert all(file.read_bytes().startswith(b"\x89PNG") for file in files)


def test_without_matplotlib(monkeypatch):
  monkeypatch.setitem(sys.modules, "matplotlib", None)
  with pytest.raises(ValueError, match=r"a plot needs matplotlib .*research\[diagnostics\]"):
    plots.pyplot()


def test_numbers():
  (bar,) = axis_of("reliability").patches  # an empty bin has none
  assert (bar.get_height(), bar.get_width()) == (0.3, 0.5)
  assert axis_of("heads").images[0].get_array()[1, 2] == pytest.approx(0.3)
  cells = axis_of("cells")
  assert cells.images[0].get_array().tolist() == [[0.5, 1.0]]
  assert [text.get_text() for text in cells.texts] == ["2/4", "4/4"]
  line, near, far = axis_of("lengths").lines
  assert line.get_ydata().tolist() == [9, 7]
  assert (near.get_xdata().tolist(), far.get_xdata().tolist()) == ([128], [256])
  (stairs,) = axis_of("positions").patches
  assert stairs.get_data().values.tolist() == [3, 2]
  assert stairs.get_data().edges.tolist() == [2, 4, 7]

"""Plots of what results have tables of: a PNG a table."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np

from research.evals.result import Result

Rows = Sequence[Mapping[str, Any]]


def pyplot() -> Any:
  """matplotlib's, which draws into files.

  Raises:
    ValueError: matplotlib is missing.
  """
  try:
    import matplotlib
  except ImportError as error:
    raise ValueError(
      f"a plot needs matplotlib ({error}); pip install 'research[diagnostics]'"
    ) from error
  matplotlib.use("Agg")
  from matplotlib import pyplot

  return pyplot


def draw(results: Sequence[Result], directory: Path) -> list[Path]:
  """Writes `LABEL-TABLE.png` for each table that there is a plot of, and returns the files.

  Raises:
    ValueError: matplotlib is missing.
  """
  files = []
  plotting = pyplot()
  for result in results:
    for name, rows in result.tables.items():
      if name not in PLOTS:
        continue
      drawn, axis = plotting.subplots(figsize=(6.5, 4.5), layout="constrained")
      try:
        PLOTS[name](axis, rows)
        axis.set_title(result.name)
        directory.mkdir(parents=True, exist_ok=True)
        # A label may be the path of a file.
        files.append(directory / f"{quote(result.name, safe=' ')}-{name}.png")
        drawn.savefig(files[-1], dpi=120)
      finally:
        plotting.close(drawn)
  return files


def _reliability(axis: Any, rows: Rows) -> None:
  """Accuracy over confidence, a bar a bin, with its share of all tokens above."""
  rows = [row for row in rows if row["count"]]
  total = sum(row["count"] for row in rows)
  width = [row["to"] - row["from"] for row in rows]
  middle = [(row["to"] + row["from"]) / 2 for row in rows]
  axis.bar(middle, [row["accuracy"] for row in rows], width, edgecolor="white", label="accuracy")
  axis.plot([row["confidence"] for row in rows], [row["accuracy"] for row in rows], "k.")
  axis.plot([0, 1], [0, 1], "--", color="gray", label="as right as sure")
  for x, row in zip(middle, rows, strict=True):
    share = f"{row['count'] / total:.0%}"
    axis.annotate(share, (x, row["accuracy"]), ha="center", va="bottom", fontsize=7)
  axis.set(xlabel="confidence", ylabel="accuracy", xlim=(0, 1), ylim=(0, 1.05))
  axis.legend(loc="upper left")


def _heads(axis: Any, rows: Rows) -> None:
  """Relative entropy of attention, a square a head."""
  shape = (max(row["layer"] for row in rows) + 1, max(row["head"] for row in rows) + 1)
  found = np.full(shape, np.nan)
  for row in rows:
    found[row["layer"], row["head"]] = row["relative_entropy"]
  image = axis.imshow(found, vmin=0, vmax=1, aspect="auto", origin="lower")
  axis.figure.colorbar(image, label="entropy by the most possible")
  axis.set(xlabel="head", ylabel="layer")


def _cells(axis: Any, rows: Rows) -> None:
  """Accuracy of needles, a square a cell."""
  lengths = sorted({row["length"] for row in rows})
  depths = sorted({row["depth"] for row in rows})
  found = np.full((len(depths), len(lengths)), np.nan)
  for row in rows:
    place = depths.index(row["depth"]), lengths.index(row["length"])
    found[place] = row["right"] / row["problems"]
    axis.text(place[1], place[0], f"{row['right']}/{row['problems']}", ha="center", va="center")
  image = axis.imshow(found, vmin=0, vmax=1, aspect="auto", cmap="RdYlGn")
  axis.figure.colorbar(image, label="accuracy")
  axis.set_xticks(range(len(lengths)), lengths)
  axis.set_yticks(range(len(depths)), [f"{depth:g}" for depth in depths])
  axis.set(xlabel="tokens", ylabel="depth of the needle")


def _lengths(axis: Any, rows: Rows) -> None:
  """Perplexity over the length of rows; a cross is beyond the model's positions."""
  at = [row["length"] for row in rows]
  figures = [row["perplexity"] for row in rows]
  axis.plot(at, figures, "-", color="tab:blue")
  for marker, beyond, label in (("o", 0, None), ("x", 1, "beyond the model's positions")):
    own = [row for row in rows if row["beyond"] == beyond]
    if own:
      x, y = [row["length"] for row in own], [row["perplexity"] for row in own]
      axis.plot(x, y, marker, color="tab:blue", label=label)
      if label:
        axis.legend()
  if all("low" in row for row in rows):
    low, high = [row["low"] for row in rows], [row["high"] for row in rows]
    axis.fill_between(at, low, high, alpha=0.2)
  axis.set_xscale("log", base=2)
  axis.set_xticks(at, [str(length) for length in at])
  axis.set(xlabel="tokens shown", ylabel="perplexity of the last tokens")


def _positions(axis: Any, rows: Rows) -> None:
  """Nats over the number of tokens before."""
  edges = [rows[0]["from"], *(row["to"] for row in rows)]
  axis.stairs([row["nll"] for row in rows], edges)
  axis.set_xscale("log", base=2)
  axis.set(xlabel="tokens before", ylabel="nats a token")


PLOTS: dict[str, Callable[[Any, Rows], None]] = {
  "reliability": _reliability,
  "heads": _heads,
  "cells": _cells,
  "lengths": _lengths,
  "positions": _positions,
}

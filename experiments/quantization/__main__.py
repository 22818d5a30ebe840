"""Holds a model in few bits in many ways, and measures what each costs: perplexity and bytes.

  python -m experiments.quantization --text=wikitext2_valid.txt --calibration=speeches.txt
  python -m experiments.quantization --text=... --calibration=... --variants "int8,nf4"
  python -m experiments.quantization --text=... --caches

Perplexity is of the text's first 160,000 bytes; methods are calibrated by another text. A variant
that is complete is not done again. Table and plot are of what is complete. With --caches it is keys
and values that are held in few bits, of windows of 2,048 and 4,096 tokens.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from experiments.quantization.config import (
  CACHE_LENGTHS,
  CACHES,
  CALIBRATION_LENGTH,
  CALIBRATION_ROWS,
  COMMANDS,
  EVALUATION_BYTES,
  MODEL,
  RUNS,
  VARIANTS,
  Variant,
)
from research import calibration, evals, models, quant
from research.core import cache, matrix, tree
from research.evals import bootstrap
from research.io.checkpoint import write_json

BASE = "bfloat16"
BATCH = 8


def main() -> int:
  """Measures what is missing, and tells what is there."""
  args = _arguments()
  args.directory.mkdir(parents=True, exist_ok=True)
  cache.keep_compiled()
  text = args.directory / "text.txt"
  text.write_bytes(args.text.read_bytes()[:EVALUATION_BYTES].decode(errors="ignore").encode())
  model, params, tokenizer = models.load(MODEL, dtype="bfloat16", param_dtype="float32")
  if args.caches:
    print(_caches(args.directory, text, model, params, tokenizer))
    return 0
  evaluator = _perplexity(text, CALIBRATION_LENGTH, 64)
  batches = _batches(args.calibration, tokenizer)
  rows: list[dict[str, Any]] = []
  for name in (BASE, *args.variants):
    if why := obstacle(name):
      print(f"{name} is left out: {why}")
      continue
    file = args.directory / f"{name.replace(' ', '_')}.json"
    if not file.exists():
      started = time.perf_counter()
      held = params if name == BASE else _held(model, params, VARIANTS[name], batches, name)
      seconds = time.perf_counter() - started
      size, dense = quant.size(held["layers"]).held, 2 * matrix.count(held["layers"])
      # The same numbers, and faster than to make them of codes for every batch; products of
      # integers are others.
      integers = name in VARIANTS and VARIANTS[name].multiplies_integers
      acting = held if integers else quant.dequantize(held)
      result = evaluator(model, {"params": acting}, tokenizer)
      found = {"bytes": size, "dense": dense, "seconds": seconds}
      write_json(file, {**found, **result.to_json()})
    rows.append(json.loads(file.read_text()) | {"name": name})
    (args.directory / "table.md").write_text(table(rows))
    plot(rows, args.directory / "plot.png")
  print(table(rows))
  return 0


def obstacle(name: str) -> str:
  """Why the variant cannot be measured yet, or nothing."""
  written = VARIANTS[name].written if name in VARIANTS else ""
  if not written or Path(RUNS, written).is_dir():
    return ""
  return f"{RUNS}/{written} is not there yet: {COMMANDS[written.partition('/')[0]]}"


def _perplexity(text: Path, length: int, context: int, cache: Any = None) -> Any:
  data = {"name": "text", "path": str(text)}
  section = {"name": "perplexity", "data": data, "length": length, "context": context}
  (evaluator,) = evals.build([section | ({"cache": cache} if cache else {})])
  return evaluator


def _caches(directory: Path, text: Path, model: Any, params: Any, tokenizer: Any) -> str:
  """Measures the caches that are missing, and tells of all."""
  variables = {"params": tree.map_with_path(lambda _, leaf: leaf.astype("bfloat16"), params)}
  lines = [
    "| cache | tokens of a window | perplexity | above bfloat16 | 95 % | bytes of a token, share |",
    "| --- | --- | --- | --- | --- | --- |",
  ]
  for length in CACHE_LENGTHS:
    rows: list[dict[str, Any]] = []
    for name, scheme in {BASE: {}, **CACHES}.items():
      file = directory / f"cache_{name}_{length}.json"
      if not file.exists():
        evaluator = _perplexity(text, length, length // 4, scheme)
        result = evaluator(model, variables, tokenizer)
        write_json(file, {"bytes": _cache_bytes(model, scheme, length), **result.to_json()})
      rows.append(json.loads(file.read_text()))
      above, (low, high) = excess(rows[-1], rows[0])
      told = f"{above:+.2%} | {low:+.2%} to {high:+.2%}" if scheme else " | "
      share = rows[-1]["bytes"] / rows[0]["bytes"]
      figure = rows[-1]["metrics"]["perplexity"]
      lines.append(f"| {name} | {length} | {figure:.3f} | {told} | {share:.3f} |")
      (directory / "caches.md").write_text("\n".join(lines) + "\n")
  return "\n".join(lines) + "\n"


def _cache_bytes(model: Any, scheme: dict[str, Any], slots: int) -> int:
  """Of a row with so many slots, the window of recent tokens included."""

  def made() -> Any:
    cache = model.init_cache(1, slots)
    return cache.compress(quant.CacheScheme(**scheme), 1, slots) if scheme else cache

  return tree.nbytes(jax.eval_shape(made).layers)


def _held(model: Any, params: Any, variant: Variant, batches: Sequence[Any], name: str) -> Any:
  if variant.written:
    return models.load(Path(RUNS, variant.written), dtype="bfloat16")[1]

  def told(layer: int, layers: int) -> None:
    print(f"{name}: layer {layer} of {layers}", end="\r" if layer < layers else "\n", flush=True)

  return calibration.quantize(model, params, variant.rules, variant.method, batches, told=told)


def _batches(texts: Sequence[Path], tokenizer: Any) -> list[dict[str, np.ndarray]]:
  """Stretches of the calibration texts, as many of each, from all over them."""
  rng, rows = np.random.default_rng(0), []
  for path in texts:
    tokens = np.asarray(tokenizer.encode(path.read_text(), add_special=False), np.int32)
    stretches = len(tokens) // CALIBRATION_LENGTH
    wanted = CALIBRATION_ROWS // len(texts)
    if stretches < wanted:
      raise SystemExit(f"{path} has {len(tokens):,} tokens, not {wanted * CALIBRATION_LENGTH:,}")
    cut = tokens[: stretches * CALIBRATION_LENGTH].reshape(stretches, -1)
    rows += list(cut[rng.choice(stretches, wanted, replace=False)])
  order = rng.permutation(len(rows))
  batches = []
  for at in range(0, len(rows), BATCH):
    found = np.stack([rows[i] for i in order[at : at + BATCH]])
    positions = np.broadcast_to(np.arange(CALIBRATION_LENGTH, dtype=np.int32), found.shape)
    batches.append({"tokens": found, "positions": positions, "segments": np.ones_like(found)})
  return batches


def excess(row: dict[str, Any], dense: dict[str, Any]) -> tuple[float, tuple[float, float]]:
  """By which share perplexity is above the base's, with a 95 % interval paired over windows."""
  pairs = [
    (a["nll"] - b["nll"], a["tokens"])
    for a, b in zip(row["records"], dense["records"], strict=True)
  ]
  nats, tokens = (np.asarray(part, np.float64) for part in zip(*pairs, strict=True))
  low, high = bootstrap.interval(nats, tokens)
  return math.expm1(nats.sum() / tokens.sum()), (math.expm1(low), math.expm1(high))


def table(rows: Sequence[dict[str, Any]]) -> str:
  """Markdown: a row a variant."""
  dense, by_name = rows[0], {row["name"]: row for row in rows}
  lines = [
    "| held as | perplexity | above bfloat16 | 95 % | bytes of layers, share | excess taken away |",
    "| --- | --- | --- | --- | --- | --- |",
  ]
  for row in rows:
    above, (low, high) = excess(row, dense)
    than = VARIANTS[row["name"]].than if row["name"] in VARIANTS else ""
    less = ""
    if than in by_name:
      less = f"{1 - above / excess(by_name[than], dense)[0]:.0%}"
    share = 1 if row["name"] == BASE else row["bytes"] / row["dense"]
    told = f"{above:+.2%} | {low:+.2%} to {high:+.2%}" if row is not dense else " | "
    figure = row["metrics"]["perplexity"]
    lines.append(f"| {row['name']} | {figure:.3f} | {told} | {share:.3f} | {less} |")
  return "\n".join(lines) + "\n"


def plot(rows: Sequence[dict[str, Any]], path: Path) -> None:
  """Perplexity above the base's against bytes."""
  import matplotlib

  matplotlib.use("agg")
  from matplotlib import pyplot

  figure, axes = pyplot.subplots(figsize=(7, 4.5))
  for row in rows[1:]:
    above, (low, high) = excess(row, rows[0])
    size = row["bytes"] / row["dense"]
    axes.errorbar(size, above, yerr=[[above - low], [high - above]], fmt="o", capsize=3)
    axes.annotate(row["name"], (size, above), xytext=(5, 3), textcoords="offset points", fontsize=7)
  axes.set(
    xlabel="bytes of layers, share of bfloat16's",
    ylabel="perplexity above bfloat16's",
    yscale="symlog",
  )
  figure.tight_layout()
  figure.savefig(path, dpi=120)
  pyplot.close(figure)


def _arguments() -> argparse.Namespace:
  summary, _, more = (__doc__ or "").partition("\n")
  parser = argparse.ArgumentParser(
    prog="python -m experiments.quantization",
    description=summary,
    epilog=more,
    formatter_class=argparse.RawDescriptionHelpFormatter,
  )
  parser.add_argument(
    "--text", required=True, type=Path, help="what is predicted, as of WikiText-2"
  )
  parser.add_argument(
    "--calibration",
    default=[],
    type=Path,
    action="append",
    help="other texts, of 66,000 tokens together; may be repeated",
  )
  parser.add_argument("--caches", action="store_true", help="measure caches, and not parameters")
  parser.add_argument("--directory", type=Path, default=Path("runs/quantization"))
  parser.add_argument(
    "--variants",
    type=lambda names: [name.strip() for name in names.split(",")],
    default=list(VARIANTS),
    help=f"which of {', '.join(VARIANTS)}; by default all",
  )
  args = parser.parse_args()
  if bool(args.calibration) == args.caches:
    parser.error("give --calibration, or --caches, which need none")
  for name in args.variants:
    if name not in VARIANTS:
      parser.error(f"there is no variant {name!r}; there are {', '.join(VARIANTS)}")
  return args


if __name__ == "__main__":
  raise SystemExit(main())

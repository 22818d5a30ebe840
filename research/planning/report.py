"""A plan as text for people and as a record for machines."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from research.loop.program import REPLICATED_AT_MOST
from research.planning.estimate import Plan

GOOD = 0.5  # utilisation from which on no bottleneck is named
ASSUMPTIONS = (
  "rows are full, and every step is as long as the compiler estimates: no waiting for data,"
  " evaluation or checkpoints",
  "cycles are those that the compiler expects of each fusion, times the trips of its loops; splash"
  " attention is counted as if no block were skipped, at the peak's rate, what else has no estimate"
  " as nothing",
  "collectives run beside the rest, over all links of a chip",
  "model FLOPs are those that training needs (Chowdhery et al. 2022, appendix B), without"
  " recomputation",
)


def record(plan: Plan, price: float | None = None, tokens: float | None = None) -> dict[str, Any]:
  """What `text` tells, for JSON; seconds, bytes a device and FLOPs of all devices."""
  found = dataclasses.asdict(plan)
  found["chip"] = plan.chip.kind
  if not plan.fits:
    return found
  found |= {
    "seconds": plan.seconds,
    "tokens_per_second": plan.tokens_per_second,
    "utilisation": plan.utilisation,
    "serial_utilisation": plan.serial_utilisation,
    "bottleneck": plan.bottleneck(),
    "assumptions": list(ASSUMPTIONS),
  }
  if price:
    found["tokens_per_dollar"] = 1 / plan.dollars(price, 1)
  if tokens:
    found["days"] = plan.days(tokens)
    if price:
      found["dollars"] = plan.dollars(price, tokens)
  return found


def text(plan: Plan, price: float | None = None, tokens: float | None = None) -> str:
  """Lines for a terminal.

  Args:
    price: dollars a chip and hour. tokens: that are to be trained on.
  """
  mesh = ", ".join(f"{axis}={size}" for axis, size in plan.mesh.items() if size > 1) or "one device"
  lines = [
    f"{plan.topology}: {plan.devices} devices of {plan.chip.kind}; mesh {mesh}",
    f"{plan.parameters:,} parameters, of which {plan.trained:,} train;"
    f" {plan.tokens:,} tokens a step",
    "",
    "memory of each device, GiB",
    *(f"  {kind:<14}{size / 2**30:9.3f}" for kind, size in plan.memory.items() if size),
    f"  {'in all':<14}{plan.total / 2**30:9.3f} of {plan.limit / 2**30:.0f}",
    "fits" if plan.fits else f"does not fit: {plan.why}",
  ]
  if plan.replicated > REPLICATED_AT_MOST:
    lines.append(f"{plan.replicated:.1%} of the parameters' bytes are whole on every device")
  if not plan.fits:
    return "\n".join(lines)
  sent = ", ".join(f"{kind} {size / 1e9:.2f}" for kind, size in plan.sent.items() if size > 5e6)
  ratio = plan.program_flops / plan.model_flops
  lines += [
    "",
    f"a step        {plan.seconds:9.3f} s: computing {plan.compute_seconds:.3f} s, and beside that"
    f" collectives of {plan.collective_seconds:.3f} s",
    f"FLOPs         {plan.model_flops:9.3g} of the model, {ratio:.2f} times that in the program",
    f"bytes         {plan.bytes / 1e9:9.1f} GB through each device's HBM"
    + (f"; GB sent: {sent}" if sent else ""),
    f"tokens/s      {plan.tokens_per_second:9,.0f}",
    f"utilisation   {plan.utilisation:9.1%} ({plan.serial_utilisation:.1%} with collectives apart)",
    "cycles        " + ", ".join(f"{part} {share:.0%}" for part, share in _largest(plan.parts)),
  ]
  if plan.utilisation < GOOD:
    lines.append(f"bottleneck    {plan.bottleneck()}")
  if price:
    lines.append(f"tokens/$      {1 / plan.dollars(price, 1):9,.0f} at ${price:g} a chip and hour")
  if tokens:
    cost = f", ${plan.dollars(price, tokens):,.0f}" if price else ""
    lines.append(f"{tokens:.3g} tokens  {plan.days(tokens):.2f} days{cost}")
  lines += ["", "taken for granted:", *(f"- {line}" for line in ASSUMPTIONS)]
  lines += [f"- the program's text does not tell {each}" for each in plan.unread]
  return "\n".join(lines)


def table(rows: Sequence[Sequence[str]]) -> str:
  """Columns as wide as their widest cell, the first to the left and others to the right."""
  widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
  lines = []
  for row in rows:
    cells = [
      cell.rjust(width) if i else cell.ljust(width)
      for i, (cell, width) in enumerate(zip(row, widths, strict=True))
    ]
    lines.append("  ".join(cells).rstrip())
  return "\n".join(lines)


def _largest(parts: dict[str, float]) -> list[tuple[str, float]]:
  return sorted(parts.items(), key=lambda pair: -pair[1])[:5]

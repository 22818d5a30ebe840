"""Names of a run where only small letters, digits and hyphens are allowed."""

from __future__ import annotations

import hashlib
import re

from launch.runs import Run

# Pods are called NAME-slice-0-HOST-abcde and have 63 characters at most; hosts have four digits.
LONGEST = 63 - len("-slice-0-1000-abcde")
# RFC 1035, which JobSets, queued resources and TPU nodes ask for: it begins with a letter.
PATTERN = r"[a-z]([-a-z0-9]*[a-z0-9])?"


def of_run(run: Run) -> str:
  """A name that begins like the run's own, and ends in a digest of its directory."""
  digest = hashlib.sha256(str(run.directory).encode()).hexdigest()[:8]
  return f"{label(run.name, LONGEST - 9)}-{digest}"


def label(text: str, longest: int = 63) -> str:
  """The text as such a name."""
  name = re.sub(r"[^a-z0-9]+", "-", text.lower())[:longest].strip("-")
  return name if re.fullmatch(PATTERN, name) else f"s-{name}"[:longest].strip("-")

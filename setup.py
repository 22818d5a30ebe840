"""Installs `research`, `configs` and `launch`.

Extras: quickstart, curation, harness, translation, summaries, diagnostics, sweeps, slurm, ray, gke,
plan, test, lint.
"""

from setuptools import find_packages, setup

CORE = [
  "absl-py>=2.1",
  "flax>=0.10",
  "gguf>=0.17",
  "grain>=0.2.10",
  "importlib_resources>=6",
  "jax>=0.10",
  "jinja2>=3.1",
  "ml_collections>=1.0",
  "numpy>=2",
  "optax>=0.2.4",
  "orbax-checkpoint>=0.11",
  "safetensors>=0.5",
  "scipy>=1.13",
  "tensorboardX>=2.6",
  "tensorflow-datasets>=4.9.7",
  "tokenizers>=0.21",
  "tqdm>=4.66",
]
QUICKSTART = ["reasoning-gym>=0.1.20"]
CURATION = ["datasketch>=1.6", "py3langid>=0.3"]
HARNESS = ["lm_eval[ifeval]>=0.4.13"]
TRANSLATION = ["matplotlib>=3.9", "sacrebleu>=2.4"]
SUMMARIES = ["rouge-score>=0.1.2"]
DIAGNOSTICS = ["matplotlib>=3.9"]
SWEEPS = ["matplotlib>=3.9", "optuna>=4"]
SLURM = ["submitit>=1.5"]
RAY = ["ray>=2.40"]
GKE = ["jsonschema>=4.20", "pyyaml>=6"]
PLAN = ["jax[tpu]>=0.10; platform_machine == 'x86_64'"]  # the libtpu that JAX names
LINT = ["mypy==2.4.1", "ruff==0.17.6"]

setup(
  name="research",
  version="0.1.0",
  description="A JAX/Flax laboratory for adapting, compressing and deploying transformers",
  python_requires=">=3.11",
  packages=find_packages(include=["research", "research.*", "configs", "launch", "launch.*"]),
  install_requires=CORE,
  extras_require={
    "quickstart": QUICKSTART,
    "curation": CURATION,
    "harness": HARNESS,
    "translation": TRANSLATION,
    "summaries": SUMMARIES,
    "diagnostics": DIAGNOSTICS,
    "sweeps": SWEEPS,
    "slurm": SLURM,
    "ray": RAY,
    "gke": GKE,
    "plan": PLAN,
    "lint": LINT,
    "test": [
      *QUICKSTART,
      *CURATION,
      *HARNESS,
      *TRANSLATION,
      *SUMMARIES,
      *DIAGNOSTICS,
      *SWEEPS,
      *SLURM,
      *GKE,
      *PLAN,
      *LINT,
      "bert-score>=0.3.13",
      "bitsandbytes>=0.49",
      "hypothesis>=6",
      "peft>=0.18",
      "pytest>=8",
      "pytest-xdist>=3.5",
      "qwix>=0.1.8",
      "torch==2.13.0",
      "torchao>=0.18",
      "transformers>=5",
      "trl>=1.16",
    ],
  },
)

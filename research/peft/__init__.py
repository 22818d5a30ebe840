"""Parameter-efficient methods: pytrees bound at a model's taps."""

from research.peft.adapter import Adapter, sites, trainable_paths
from research.peft.attach import attach, merge
from research.peft.interchange import load, save

__all__ = ["Adapter", "attach", "load", "merge", "save", "sites", "trainable_paths"]

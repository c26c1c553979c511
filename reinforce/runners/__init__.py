"""Which shards, where, how often: builds on this machine or on a Ray cluster."""

from .command import build, run_plan
from .local import run_local
from .summary import BuildSummary, describe

__all__ = ["BuildSummary", "build", "describe", "run_local", "run_plan"]

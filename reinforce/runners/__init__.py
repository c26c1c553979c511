"""Which shards, where, how often: builds on this machine or on a Ray cluster, and what they would take."""

from .command import build, plan_build, run_plan
from .extrapolation import Forecast
from .forecast import describe_forecast
from .local import run_local
from .summary import BuildSummary, describe

__all__ = [
    "BuildSummary",
    "Forecast",
    "build",
    "describe",
    "describe_forecast",
    "plan_build",
    "run_local",
    "run_plan",
]

"""The runner: takes queued rollouts, plays them, and writes down what came out."""

from coterie.runner.attempts import RunnerStatistics
from coterie.runner.embedded import Isolation, Runner

__all__ = ["Isolation", "Runner", "RunnerStatistics"]

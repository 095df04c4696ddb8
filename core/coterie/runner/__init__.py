"""The runner: takes queued rollouts, plays them, and writes down what came out."""

from coterie.runner.attempts import Ended, RunnerStatistics
from coterie.runner.embedded import Isolation, Runner

__all__ = ["Ended", "Isolation", "Runner", "RunnerStatistics"]

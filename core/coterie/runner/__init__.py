"""The runner: takes queued rollouts, plays them, and writes down what came out."""

from coterie.runner.embedded import Isolation, Runner, RunnerStatistics

__all__ = ["Isolation", "Runner", "RunnerStatistics"]

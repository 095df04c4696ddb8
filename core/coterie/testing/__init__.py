"""Parts for tests of agents and plugins: a model server with written answers, and a place that collects spans."""

from coterie.testing.scripted_model import Fault, ReceivedRequest, Reply, ScriptedModel, toy_text, toy_tokens
from coterie.testing.sink import ListSink, scope_for_test

__all__ = [
    "Fault",
    "ListSink",
    "ReceivedRequest",
    "Reply",
    "ScriptedModel",
    "scope_for_test",
    "toy_text",
    "toy_tokens",
]

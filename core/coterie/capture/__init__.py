"""Capture: every LLM call that leaves this process is recorded as it really went over the wire.

``instrument()`` hooks the OpenAI SDK and all installed plugins; ``uninstrument()`` restores everything. A fault of ours is
logged once and the user's call goes on without us.
"""

from coterie.capture.switch import instrument, uninstrument

__all__ = ["instrument", "uninstrument"]

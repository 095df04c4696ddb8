"""Other people's traces: spans of OpenInference, OpenTelemetry's GenAI packages, openllmetry and AutoGen as ours.

``translate`` gives the spans our own attributes; episodes are built from what it gives. ``read_traces`` reads a file of
exported spans.
"""

from coterie.foreign.files import TraceFormatError, read_spans, read_traces
from coterie.foreign.translation import translate

__all__ = ["TraceFormatError", "read_spans", "read_traces", "translate"]

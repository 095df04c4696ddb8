"""Coverage-guided fuzzing of the OTLP decoder, by hand: ``pip install atheris && python tests/server/fuzz_otlp.py``.

Options of libFuzzer go behind it, such as ``-max_total_time=600``. It ends at the first input that the decoder neither takes
nor refuses.
"""

from __future__ import annotations

import sys
import tempfile
from base64 import b64encode
from contextlib import suppress
from pathlib import Path

import atheris
from google.protobuf.json_format import MessageToJson
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, ArrayValue, KeyValue, KeyValueList

with atheris.instrument_imports(include=["coterie_server.otlp"]):
    from coterie_server.otlp.json_form import to_protobuf
    from coterie_server.otlp.spans import DecodeError, read_spans
    from coterie_server.refusals import Refused


def one_input(data: bytes) -> None:
    """Odd inputs are JSON, even ones protobuf."""
    with suppress(DecodeError, Refused):
        read_spans(to_protobuf(data[1:]) if data[:1] and data[0] % 2 else data[1:])


def seeds(folder: Path) -> None:
    """Whole messages to begin with: no chance finds one in time."""
    values = [AnyValue(string_value="x"), AnyValue(int_value=7), AnyValue(double_value=0.5), AnyValue(bytes_value=b"b")]
    values += [AnyValue(array_value=ArrayValue(values=[one] * 3)) for one in values]
    values += [AnyValue(kvlist_value=KeyValueList(values=[KeyValue(key="k", value=values[-1])]))]
    request = ExportTraceServiceRequest()
    of_resource = request.resource_spans.add()
    of_resource.resource.attributes.add(key="coterie.rollout.id", value=values[0])
    span = of_resource.scope_spans.add().spans.add(trace_id=b"t" * 16, span_id=b"s" * 8, start_time_unix_nano=1, kind=3)
    span.attributes.extend(KeyValue(key=f"a{at}", value=value) for at, value in enumerate(values))
    span.events.add(name="e").attributes.extend(span.attributes)
    span.links.add(trace_id=b"t" * 16, span_id=b"s" * 8)
    (folder / "protobuf").write_bytes(b"\0" + request.SerializeToString())
    told = MessageToJson(request).replace(b64encode(b"t" * 16).decode(), "74" * 16)
    (folder / "json").write_bytes(b"\1" + told.replace(b64encode(b"s" * 8).decode(), "73" * 8).encode())


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as corpus:
        seeds(Path(corpus))
        atheris.Setup([*sys.argv, corpus], one_input)
        atheris.Fuzz()

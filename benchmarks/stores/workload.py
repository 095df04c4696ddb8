"""The spans that every store is given: as LLM calls leave them, the same from the same seed."""

from __future__ import annotations

import random
import string
from typing import Any


class Workload:
    """Makes spans as plain mappings; each store's adapter makes its own kind of them.

    A span has 2.8 kB of JSON: eight texts (0.9 kB together), 128 prompt token ids, 64 response token ids.
    """

    def __init__(self, seed: int = 0, distinct: int | None = None) -> None:
        """``distinct``: so many different contents, used in turn, where making them would take longest."""
        self._draw = random.Random(seed)
        self._text = "".join(self._draw.choices(string.ascii_lowercase + "    ", k=20_000))
        self._made = 0
        self._kept = None if distinct is None else [self._attributes() for _ in range(distinct)]

    def span(self, rollout_id: str, attempt_id: str, number: int) -> dict[str, Any]:
        """The next span, the ``number``-th of its attempt."""
        self._made += 1
        start = 1_700_000_000_000_000_000 + self._made * 1_000_000
        return {
            "rollout_id": rollout_id,
            "attempt_id": attempt_id,
            "sequence_id": number,
            "trace_id": f"{self._made:032x}",
            "span_id": f"{self._made:016x}",
            "name": ("openai.chat.completion", "tool.call", "annotation")[self._made % 3],
            "start_ns": start,
            "end_ns": start + 500_000_000,
            "attributes": self._attributes() if self._kept is None else self._kept[self._made % len(self._kept)],
        }

    def _attributes(self) -> dict[str, Any]:
        return {
            "gen_ai.system": "openai",
            "gen_ai.request.model": "qwen2.5-7b",
            "gen_ai.response.id": f"chatcmpl-{self._made}",
            "gen_ai.prompt.0.role": "system",
            "gen_ai.prompt.0.content": self._some_text(300),
            "gen_ai.prompt.1.role": "user",
            "gen_ai.prompt.1.content": self._some_text(300),
            "gen_ai.completion.0.content": self._some_text(250),
            "prompt_token_ids": [self._draw.randrange(150_000) for _ in range(128)],
            "response_token_ids": [self._draw.randrange(150_000) for _ in range(64)],
        }

    def _some_text(self, length: int) -> str:
        start = self._draw.randrange(len(self._text) - length)
        return self._text[start : start + length]


def otlp_body(spans: list[dict[str, Any]], prefix: str) -> bytes:
    """Spans as the body of an OTLP request, their rollout and attempt as attributes of the resource."""
    from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
    from opentelemetry.proto.common.v1.common_pb2 import AnyValue, ArrayValue, KeyValue

    def any_value(value: object) -> AnyValue:
        if isinstance(value, int):
            return AnyValue(int_value=value)
        if isinstance(value, list):
            return AnyValue(array_value=ArrayValue(values=[any_value(entry) for entry in value]))
        return AnyValue(string_value=str(value))

    def key_values(attributes: dict[str, Any]) -> list[KeyValue]:
        return [KeyValue(key=key, value=any_value(value)) for key, value in attributes.items()]

    request = ExportTraceServiceRequest()
    dot = "." if prefix == "coterie" else "_"
    by_attempt: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for span in spans:
        by_attempt.setdefault((span["rollout_id"], span["attempt_id"]), []).append(span)
    for (rollout_id, attempt_id), some in by_attempt.items():
        of_resource = request.resource_spans.add()
        ids = {f"{prefix}.rollout{dot}id": rollout_id, f"{prefix}.attempt{dot}id": attempt_id}
        of_resource.resource.attributes.extend(key_values(ids))
        of_scope = of_resource.scope_spans.add()
        for span in some:
            one = of_scope.spans.add(
                trace_id=bytes.fromhex(span["trace_id"]),
                span_id=bytes.fromhex(span["span_id"]),
                name=span["name"],
                start_time_unix_nano=span["start_ns"],
                end_time_unix_nano=span["end_ns"],
            )
            one.attributes.extend(key_values(span["attributes"]))
            one.attributes.extend(key_values({f"{prefix}.span_sequence_id": span["sequence_id"]}))
    return request.SerializeToString()

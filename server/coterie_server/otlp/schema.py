"""OTLP's messages, and the same once more with arrays left as they came.

A list of token ids is, in OTLP, a message an element. Reading thousands of them one by one in Python takes longer than all
else that is done with a span. So the request is parsed with ``array_value`` declared as bytes, and a list of integers is
then read from these bytes as *one* message: what stands one after another on the wire merges, by protobuf's own rules, into
one message, and where a field is declared as repeated, all its values are kept.
"""

from __future__ import annotations

from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2
from opentelemetry.proto.common.v1 import common_pb2
from opentelemetry.proto.resource.v1 import resource_pb2
from opentelemetry.proto.trace.v1 import trace_pb2

_Field = descriptor_pb2.FieldDescriptorProto
_ITEMS = "coterie/items.proto"


def _pool() -> Any:
    pool = descriptor_pool.DescriptorPool()
    for module in (common_pb2, resource_pb2, trace_pb2, trace_service_pb2):
        file = descriptor_pb2.FileDescriptorProto()
        module.DESCRIPTOR.CopyToProto(file)
        for message in file.message_type:
            if message.name == "AnyValue":
                (array,) = [field for field in message.field if field.name == "array_value"]
                array.type = _Field.TYPE_BYTES
                array.ClearField("type_name")
        pool.Add(file)
    items = descriptor_pb2.FileDescriptorProto(name=_ITEMS, package="coterie", syntax="proto2")
    merged = items.message_type.add(name="Items")
    for name, kind in (("int_value", _Field.TYPE_INT64), ("double_value", _Field.TYPE_DOUBLE)):
        (number,) = [field.number for field in common_pb2.AnyValue.DESCRIPTOR.fields if field.name == name]
        merged.field.add(name=name, number=number, type=kind, label=_Field.LABEL_REPEATED)
    array_of = items.message_type.add(name="Array")
    array_of.field.add(
        name="values", number=1, type=_Field.TYPE_MESSAGE, type_name=".coterie.Items", label=_Field.LABEL_OPTIONAL
    )
    pool.Add(items)
    return pool


def _message(pool: Any, name: str) -> Any:
    return message_factory.GetMessageClass(pool.FindMessageTypeByName(name))


_POOL = _pool()
Request: Any = _message(_POOL, "opentelemetry.proto.collector.trace.v1.ExportTraceServiceRequest")
"""``ExportTraceServiceRequest`` whose ``array_value`` fields are the bytes of an ``ArrayValue``."""
Numbers: Any = _message(_POOL, "coterie.Array")
"""An ``ArrayValue`` whose elements are merged: ``values.int_value`` and ``values.double_value`` are lists."""

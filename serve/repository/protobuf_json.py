"""Protobuf messages as the JSON that Triton's HTTP endpoints and Python models see."""

from __future__ import annotations

from typing import Any

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.json_format import MessageToDict
from google.protobuf.message import Message

_INTEGERS_OF_64_BITS = (FieldDescriptor.CPPTYPE_INT64, FieldDescriptor.CPPTYPE_UINT64)


def as_json(message: Message) -> dict[str, Any]:
    """A message in the form Triton's HTTP endpoints give: the .proto's field names, enum names, fields at their default
    included, messages that are not set left out, and 64-bit integers as numbers (protobuf's own JSON has strings).
    """
    tree = MessageToDict(message, preserving_proto_field_name=True, always_print_fields_with_no_presence=True)
    return _with_numbers(tree, message.DESCRIPTOR)


def _with_numbers(tree: dict[str, Any], descriptor: Any) -> dict[str, Any]:
    return {name: _field(value, descriptor.fields_by_name[name]) for name, value in tree.items()}


def _field(value: Any, field: Any) -> Any:
    if field.message_type is not None and field.message_type.GetOptions().map_entry:
        value_field = field.message_type.fields_by_name["value"]
        return {key: _single(item, value_field) for key, item in value.items()}
    return [_single(item, field) for item in value] if isinstance(value, list) else _single(value, field)


def _single(value: Any, field: Any) -> Any:
    if field.message_type is not None:
        return _with_numbers(value, field.message_type)
    return int(value) if field.cpp_type in _INTEGERS_OF_64_BITS else value

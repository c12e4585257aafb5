"""The JSON schema of the next step: a reply, or calls of the offered tools. Pure.

`{"next_step": {"reply": "text"}}` or `{"next_step": {"tool_calls": [{"name": "f", "arguments": {...}}, ...]}}`
"""

import copy
from collections.abc import Iterator
from typing import Any

from mini_assistant.models.base import ChatRequest
from mini_assistant.models.tool_calling.offer import Offer

_DEFINITIONS = ("$defs", "definitions")
# An object can be described by these without `type`.
_OBJECT_KEYS = ("properties", "$ref", "allOf", "anyOf", "oneOf")


def next_step_format(request: ChatRequest, offer: Offer) -> dict[str, Any]:
    """The response format that lets a model write nothing but a next step.

    It is strict when all of the request's own schemas in it are. Their definitions become definitions of the whole.
    """
    root = _Root()
    calls = [
        _object({"name": {"type": "string", "enum": [tool.name]}, "arguments": root.embed_parameters(tool.parameters)})
        for tool in offer.tools
    ]
    step: dict[str, Any] = _object({"tool_calls": _list_of_calls(calls, offer)})
    is_strict = all(tool.strict for tool in offer.tools) and not root.has_replaced
    if not offer.is_demanded:
        reply, is_reply_strict = _reply(request.response_format, root)
        is_strict = is_strict and is_reply_strict
        step = {"anyOf": [_object({"reply": reply}), step]}
    schema = _object({"next_step": step})
    if root.definitions:
        schema["$defs"] = root.definitions
    return {"type": "json_schema", "json_schema": {"name": "next_step", "schema": schema, "strict": is_strict}}


def object_schema(parameters: dict[str, Any]) -> dict[str, Any]:
    """The parameters of a tool as the schema of an object; any object when they are no such schema."""
    kind: object = parameters.get("type")
    if kind == "object":
        return parameters
    if kind is None and any(key in parameters for key in _OBJECT_KEYS):
        return parameters if "$ref" in parameters else {"type": "object", **parameters}
    return {"type": "object"}


def reply_schema_or_none(response_format: dict[str, Any] | None) -> dict[str, Any] | None:
    """The schema that a run's own format demands of a reply; None when the reply is text."""
    kind = None if response_format is None else response_format.get("type")
    if response_format is None or kind not in ("json_schema", "json_object"):
        return None
    named: object = response_format.get("json_schema")
    schema: object = named.get("schema") if isinstance(named, dict) else None  # pyright: ignore[reportUnknownMemberType, reportUnknownVariableType]
    return schema if isinstance(schema, dict) else {"type": "object"}  # pyright: ignore[reportUnknownVariableType]


def _reply(response_format: dict[str, Any] | None, root: "_Root") -> tuple[dict[str, Any], bool]:
    """What a reply must be, and whether that is strict."""
    schema = reply_schema_or_none(response_format)
    if response_format is None or schema is None:
        return {"type": "string"}, True
    named: dict[str, Any] = response_format.get("json_schema") or {}
    return root.embed(schema), named.get("strict") is True


def _list_of_calls(calls: list[dict[str, Any]], offer: Offer) -> dict[str, Any]:
    limit = {"maxItems": 1} if offer.calls_max == 1 else {}
    return {"type": "array", "minItems": 1, **limit, "items": {"anyOf": calls}}


def _object(properties: dict[str, Any]) -> dict[str, Any]:
    return {"type": "object", "properties": properties, "required": list(properties), "additionalProperties": False}


class _Root:
    """The schema around others. Their definitions move here under names of its own, and what refers to them is changed.

    has_replaced: one of them was no schema of an object.
    """

    def __init__(self) -> None:
        self.definitions: dict[str, Any] = {}
        self.has_replaced = False

    def embed_parameters(self, parameters: dict[str, Any]) -> dict[str, Any]:
        """The parameters of a tool in the form in which they can stand anywhere in this schema."""
        schema = object_schema(parameters)
        self.has_replaced = self.has_replaced or schema is not parameters
        return self.embed(schema)

    def embed(self, schema: dict[str, Any]) -> dict[str, Any]:
        """A schema in the form in which it can stand anywhere in this one."""
        definitions = _definitions_by_reference(schema)
        names = {reference: f"d{len(self.definitions) + at}" for at, reference in enumerate(definitions)}
        whole_name = f"d{len(self.definitions) + len(names)}"
        changes = {found: _changed(found, names, whole_name) for found in _references(schema)}
        self.definitions |= {names[found]: _with_references(definition, changes) for found, definition in definitions.items()}
        own = _with_references({key: value for key, value in schema.items() if key not in ("$schema", *_DEFINITIONS)}, changes)
        if all(changed.split("/")[:3] != ["#", "$defs", whole_name] for changed in changes.values()):
            return own
        self.definitions[whole_name] = own  # it refers to itself, or to a place within itself
        return {"$ref": f"#/$defs/{whole_name}"}


def _definitions_by_reference(schema: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key in _DEFINITIONS:
        definitions: dict[str, Any] = schema[key] if isinstance(schema.get(key), dict) else {}
        found |= {f"#/{key}/{name.replace('~', '~0').replace('/', '~1')}": definition for name, definition in definitions.items()}
    return found


def _changed(reference: str, names: dict[str, str], whole_name: str) -> str:
    head = "/".join(reference.split("/")[:3])
    if head in names:
        return f"#/$defs/{names[head]}{reference[len(head) :]}"
    is_local = reference == "#" or reference.startswith("#/")
    return f"#/$defs/{whole_name}{reference[1:]}" if is_local else reference


def _references(schema: dict[str, Any]) -> set[str]:
    return {place["$ref"] for place in _places(schema) if isinstance(place, dict) and isinstance(place.get("$ref"), str)}


def _with_references(schema: Any, changes: dict[str, str]) -> Any:
    """A copy of a schema with other references."""
    holder: list[Any] = [schema]
    for place in _places(holder):  # it goes on to what stands in a place by then: to the copies
        if isinstance(place, list):
            place[:] = map(_copied, place)
            continue
        for key, value in place.items():
            place[key] = changes[value] if key == "$ref" and isinstance(value, str) else _copied(value)
    return holder[0]


def _copied(value: Any) -> Any:
    return copy.copy(value) if isinstance(value, dict | list) else value  # pyright: ignore[reportUnknownArgumentType, reportUnknownVariableType]


def _places(schema: dict[str, Any] | list[Any]) -> Iterator[dict[str, Any] | list[Any]]:
    """All objects and lists in a schema, the outer ones first. No recursion: clients nest as deeply as they like."""
    waiting: list[dict[str, Any] | list[Any]] = [schema]
    while waiting:
        place = waiting.pop()
        yield place
        waiting += [value for value in (place.values() if isinstance(place, dict) else place) if isinstance(value, dict | list)]

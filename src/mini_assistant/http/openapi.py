"""`/openapi.json`, made from the route table, so that it cannot say anything else than what is served."""

import re
from collections.abc import Sequence
from typing import Any

import msgspec

from mini_assistant import __version__
from mini_assistant.http.error_response import ErrorEnvelope
from mini_assistant.http.routing import Request, Route

_BINARY = "application/octet-stream"
_BYTES = {"type": "string", "contentMediaType": _BINARY}
_REF = "#/components/schemas/{name}"
_ERRORS = {
    "400": "The request is wrong, or does not fit the state of the object",
    "401": "The key is missing or wrong",
    "403": "The key may not do this, or the server answers only calls from its own machine",
    "404": "The object does not exist",
    "413": "The body is too large",
    "429": "The project has used up what it may",
}


def openapi_document(routes: Sequence[Route]) -> bytes:
    """The OpenAPI 3.1 document of the routes, as JSON."""
    named: list[type] = [ErrorEnvelope]
    for route in routes:
        named += [kind for kind in (route.body, route.answer) if kind is not None and kind not in named]
    # Written out where they are used, and not as schemas of their own.
    inlined = [kind for route in routes for kind in (route.query, route.form) if kind is not None]
    schemas, components = msgspec.json.schema_components([*named, *inlined], ref_template=_REF)
    reference = dict(zip([*named, *inlined], schemas, strict=True))
    paths: dict[str, dict[str, Any]] = {}
    for route in routes:
        paths.setdefault(route.path, {})[route.method.lower()] = _operation(route, reference, components)
    for kind in inlined:
        components.pop(_name_of(reference[kind]), None)
    return msgspec.json.encode(
        {
            "openapi": "3.1.0",
            "info": {
                "title": "mini-assistant",
                "version": __version__,
                "description": "The OpenAI Assistants API v2, self-hosted.",
            },
            "servers": [{"url": "/v1"}],
            "security": [{"key": []}],
            "paths": paths,
            "components": {"schemas": components, "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}}},
        }
    )


def _operation(route: Route, reference: dict[Any, Any], components: dict[str, Any]) -> dict[str, Any]:
    operation: dict[str, Any] = {
        "operationId": route.name,
        "summary": route.summary,
        "tags": [route.path.strip("/").split("/")[0]],
        "parameters": [*_path_parameters(route.path), *_query_parameters(route, reference, components), *_header_parameters(route)],
        "responses": {"200": {"description": "OK", "content": _content(route, reference)}},
    }
    if route.body is not None:
        content = {"application/json": {"schema": reference[route.body]}}
        operation["requestBody"] = {"required": not route.body_optional, "content": content}
    if route.form is not None:
        operation["requestBody"] = {
            "required": True,
            "content": _form_content(components[_name_of(reference[route.form])], route.file_field),
        }
    if route.public:
        operation["security"] = []
    error = {"application/json": {"schema": reference[ErrorEnvelope]}}
    for status, description in _ERRORS.items():
        operation["responses"][status] = {"description": description, "content": error}
    if route.downloads:
        operation["responses"] |= _download_responses(error)
    return operation


def _content(route: Route, reference: dict[Any, Any]) -> dict[str, Any]:
    content: dict[str, Any] = {}
    if route.answer is not None:
        content["text/plain" if route.answer is str else "application/json"] = {"schema": reference[route.answer]}
    if route.streams:
        content["text/event-stream"] = {"schema": {"type": "string"}}
    if route.downloads:
        content[_BINARY] = {"schema": _BYTES}
    return content


def _name_of(reference: dict[str, Any]) -> str:
    """The name of a schema, which is longer than that of its type where two have the same."""
    return reference["$ref"].rpartition("/")[2]


def _form_content(fields: dict[str, Any], file_field: str) -> dict[str, Any]:
    """The fields of a form, with its file first."""
    schema = {
        **fields,
        "properties": {file_field: _BYTES, **fields["properties"]},
        "required": [file_field, *fields["required"]],
    }
    # In a form, objects are written as `name[member]`.
    encoding = {name: {"style": "deepObject", "explode": True} for name, kind in fields["properties"].items() if "anyOf" in kind}
    return {"multipart/form-data": {"schema": schema, **({"encoding": encoding} if encoding else {})}}


def _download_responses(error: dict[str, Any]) -> dict[str, Any]:
    return {
        "206": {"description": "The part that `Range` asks for", "content": {_BINARY: {"schema": _BYTES}}},
        "304": {"description": "The bytes are those that `If-None-Match` names"},
        "416": {"description": "There are no bytes in the range", "content": error},
    }


def _path_parameters(path: str) -> list[dict[str, Any]]:
    names = re.findall(r"{(\w+)}", path)
    return [{"name": name, "in": "path", "required": True, "schema": {"type": "string"}} for name in names]


def _query_parameters(route: Route, reference: dict[Any, Any], components: dict[str, Any]) -> list[dict[str, Any]]:
    if route.query is None:
        return []
    parameters: list[dict[str, Any]] = []
    for name, schema in components[_name_of(reference[route.query])]["properties"].items():
        is_list = schema.get("type") == "array"
        parameters.append({"name": f"{name}[]" if is_list else name, "in": "query", "required": False, "schema": _given(schema)})
    return parameters


def _given(schema: dict[str, Any]) -> dict[str, Any]:
    """The schema of a parameter that is given: null stands for absent, which a query cannot say."""
    kinds = [kind for kind in schema.get("anyOf", []) if kind != {"type": "null"}]
    return kinds[0] if len(kinds) == 1 else schema


def _header_parameters(route: Route) -> list[dict[str, Any]]:
    text = {"type": "string"}
    parameters: list[dict[str, Any]] = []
    if route.method == "POST" and route.form is None:
        parameters.append({"name": "Idempotency-Key", "in": "header", "required": False, "schema": {**text, "maxLength": 255}})
    names = ["Last-Event-ID"] if route.name == "streamRunEvents" else ["Range", "If-Range", "If-None-Match"] if route.downloads else []
    parameters += [{"name": name, "in": "header", "required": False, "schema": text} for name in names]
    return parameters


def openapi_route(routes: Sequence[Route]) -> Route:
    """The route that serves the document of `routes`; it is made when somebody first asks."""
    made: list[bytes] = []

    async def get_openapi(_request: Request[None, None]) -> bytes:
        if not made:
            made.append(openapi_document(routes))
        return made[0]

    return Route(
        method="GET",
        path="/openapi.json",
        name="getOpenapi",
        summary="This document",
        call=get_openapi,
        answer=None,
        public=True,
    )

"""`/openapi.json`, made from the route table, so that it cannot say anything else than what is served."""

import re
from collections.abc import Sequence
from typing import Any

import msgspec

from mini_assistant import __version__
from mini_assistant.http.error_response import ErrorEnvelope
from mini_assistant.http.routing import Request, Route

_REF = "#/components/schemas/{name}"
_ERRORS = {
    "400": "The request is wrong, or does not fit the state of the object",
    "401": "The key is missing or wrong",
    "404": "The object does not exist",
    "413": "The body is too large",
}


def openapi_document(routes: Sequence[Route]) -> bytes:
    """The OpenAPI 3.1 document of the routes, as JSON."""
    named: list[type] = [ErrorEnvelope]
    for route in routes:
        named += [kind for kind in (route.body, route.answer) if kind is not None and kind not in named]
    queries = [route.query for route in routes if route.query is not None]
    schemas, components = msgspec.json.schema_components([*named, *queries], ref_template=_REF)
    reference = dict(zip([*named, *queries], schemas, strict=True))
    paths: dict[str, dict[str, Any]] = {}
    for route in routes:
        paths.setdefault(route.path, {})[route.method.lower()] = _operation(route, reference, components)
    for query in queries:
        components.pop(query.__name__, None)
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
        "parameters": [*_path_parameters(route.path), *_query_parameters(route, components), *_header_parameters(route)],
        "responses": {"200": {"description": "OK", "content": _content(route, reference)}},
    }
    if route.body is not None:
        content = {"application/json": {"schema": reference[route.body]}}
        operation["requestBody"] = {"required": not route.body_optional, "content": content}
    if route.public:
        operation["security"] = []
    error = {"application/json": {"schema": reference[ErrorEnvelope]}}
    for status, description in _ERRORS.items():
        operation["responses"][status] = {"description": description, "content": error}
    return operation


def _content(route: Route, reference: dict[Any, Any]) -> dict[str, Any]:
    content: dict[str, Any] = {}
    if route.answer is not None:
        content["application/json"] = {"schema": reference[route.answer]}
    if route.streams:
        content["text/event-stream"] = {"schema": {"type": "string"}}
    return content


def _path_parameters(path: str) -> list[dict[str, Any]]:
    names = re.findall(r"{(\w+)}", path)
    return [{"name": name, "in": "path", "required": True, "schema": {"type": "string"}} for name in names]


def _query_parameters(route: Route, components: dict[str, Any]) -> list[dict[str, Any]]:
    if route.query is None:
        return []
    parameters: list[dict[str, Any]] = []
    for name, schema in components[route.query.__name__]["properties"].items():
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
    if route.method == "POST":
        parameters.append({"name": "Idempotency-Key", "in": "header", "required": False, "schema": {**text, "maxLength": 255}})
    if route.name == "streamRunEvents":
        parameters.append({"name": "Last-Event-ID", "in": "header", "required": False, "schema": text})
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

"""Typed routes: a table of method, path, types and function, from which requests are served and `/openapi.json` is made."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

import msgspec

from mini_assistant.db.base import Bound
from mini_assistant.errors import InvalidRequest
from mini_assistant.events.base import Position
from mini_assistant.http.idempotency import IdempotentCall
from mini_assistant.services import Services

Body = TypeVar("Body", covariant=True)
Query = TypeVar("Query", covariant=True)

_PREFIX_OF_ID = {"assistant_id": "asst_", "thread_id": "thread_", "message_id": "msg_", "run_id": "run_", "step_id": "step_"}


@dataclass(frozen=True, slots=True)
class RunStream:
    """An answer that is a stream of a run's events.

    after: where it begins; a delta counts within its attempt. last_seq: number of the run's last event so far.
    resumable: whether frames carry ids. is_over: whether the run has stopped there.
    """

    run_id: str
    after: Position
    last_seq: int
    attempt: int = 0
    resumable: bool = False
    is_over: bool = False


Answer = bytes | str | RunStream
"""What a route gives back: JSON text, or a stream."""


class Request(msgspec.Struct, Generic[Body, Query]):
    """A request that has passed authentication and validation."""

    services: Services
    project_id: str
    path: dict[str, str]
    body: Body
    query: Query
    last_event_id: str | None = None
    idempotent_call: IdempotentCall | None = None

    def remember(self, answer: str, *, run_id: str | None = None, after_seq: int | None = None) -> list[Bound]:
        """Statements that keep the answer for a repeat with the same `Idempotency-Key`; none without the header.

        They belong into the list that makes the change itself. run_id, after_seq: where a streamed answer begins.
        """
        if self.idempotent_call is None:
            return []
        return [self.idempotent_call.statement(self.services.now(), answer, run_id, after_seq)]


@dataclass(frozen=True, kw_only=True)
class Route:
    """One operation of the API.

    body, query: structs, None when the operation takes none. body_optional: an empty body stands for `{}`.
    streams: whether `"stream": true` in the body, or the route itself, answers with events. public: served without a key.
    """

    method: str
    path: str
    name: str
    summary: str
    call: Callable[[Request[Any, Any]], Awaitable[Answer]]
    answer: Any
    body: type[msgspec.Struct] | None = None
    query: type[msgspec.Struct] | None = None
    body_optional: bool = False
    streams: bool = False
    public: bool = False
    tag: str = ""


@dataclass
class _Node:
    literal: dict[str, "_Node"] = field(default_factory=dict[str, "_Node"])
    parameter: "_Node | None" = None
    routes: dict[str, tuple[Route, tuple[str, ...]]] = field(default_factory=dict[str, tuple[Route, tuple[str, ...]]])


class RouteTable:
    """Finds the route of a path by walking its segments; literal segments win over parameters."""

    def __init__(self, routes: list[Route]) -> None:
        self._root = _Node()
        for route in routes:
            node, names = self._root, list[str]()
            for segment in route.path.strip("/").split("/"):
                if segment.startswith("{"):
                    names.append(segment[1:-1])
                    node.parameter = node.parameter or _Node()
                    node = node.parameter
                else:
                    node = node.literal.setdefault(segment, _Node())
            node.routes[route.method] = (route, tuple(names))

    def find(self, method: str, path: str) -> tuple[Route | None, dict[str, str], bool]:
        """The route, its path parameters, and whether the path is known at all (with another method)."""
        node, values = self._root, list[str]()
        for segment in path[1:].split("/"):
            below = node.literal.get(segment)
            if below is None:
                below = node.parameter
                if below is None or not segment:
                    return None, {}, False
                values.append(segment)
            node = below
        found = node.routes.get(method)
        if found is None:
            return None, {}, bool(node.routes)
        route, names = found
        return route, dict(zip(names, values)), True  # noqa: B905 - as many as there are parameters on the way here


def check_path_ids(path: dict[str, str]) -> None:
    """Raise InvalidRequest when an id in the path has the wrong shape. Source: behaviour §1.4."""
    for name in path:
        if not path[name].startswith(_PREFIX_OF_ID[name]):
            check_id(name, path[name])


def check_id(name: str, value: str) -> None:
    """Raise InvalidRequest when the id of the field `name` has the wrong prefix."""
    prefix = _PREFIX_OF_ID[name]
    if not value.startswith(prefix):
        raise InvalidRequest(
            f"Invalid '{name}': '{value[:100]}'. Expected an ID that begins with '{prefix[:-1]}'.", param=name, code="invalid_value"
        )

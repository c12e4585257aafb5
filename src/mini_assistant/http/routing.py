"""Typed routes: a table of method, path, types and function, from which requests are served and `/openapi.json` is made."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, Generic, NamedTuple, TypeVar

import msgspec

from mini_assistant.db.base import Bound
from mini_assistant.errors import InvalidRequest
from mini_assistant.events.base import Position
from mini_assistant.http.idempotency import IdempotentCall
from mini_assistant.projects.audit import audit_entry
from mini_assistant.services import Services

Body = TypeVar("Body", covariant=True)
Query = TypeVar("Query", covariant=True)

# Other ids may look like anything: what is not there is not found.
_PREFIX_OF_ID = {
    "assistant_id": "asst_",
    "thread_id": "thread_",
    "message_id": "msg_",
    "run_id": "run_",
    "step_id": "step_",
    "vector_store_id": "vs_",
    "batch_id": "vsfb_",
}


@dataclass(frozen=True, slots=True)
class RunStream:
    """An answer that is a stream of a run's events.

    after: where it begins; a delta counts within its attempt. last_seq: number of the run's last event so far.
    resumable: whether frames carry ids. is_over: whether the run has stopped there. shows_passages: whether steps that have ended are
    told with the passages that their searches have found.
    """

    run_id: str
    after: Position
    last_seq: int
    attempt: int = 0
    resumable: bool = False
    is_over: bool = False
    shows_passages: bool = False


@dataclass(frozen=True, slots=True)
class Download:
    """An answer that is the bytes of a blob. sha256: lower-case hex. filename: what the client should call it."""

    blob_key: str
    size_bytes: int
    sha256: str
    filename: str


@dataclass(frozen=True, slots=True)
class Page:
    """An answer for browsers, with its own headers. etag: a browser that names it has the page already; empty: nobody is to keep it."""

    status: int
    headers: list[tuple[bytes, bytes]]
    content: bytes
    etag: bytes = b""


Answer = bytes | str | RunStream | Download | Page
"""What a route gives back: JSON text, a stream, bytes, or a page."""


class Request(msgspec.Struct, Generic[Body, Query]):
    """A request that has passed authentication and validation."""

    services: Services
    project_id: str
    path: dict[str, str]
    body: Body
    query: Query
    last_event_id: str | None = None
    idempotent_call: IdempotentCall | None = None
    # Who asks, as in `audit_log.actor`; and what the answer's `x-request-id` says.
    actor: str = "nobody"
    request_id: str | None = None
    traceparent: str | None = None

    def audit(self, action: str, object_id: str) -> Bound:
        """A line of the audit log, for the list that makes the change itself. action: such as `thread.deleted`."""
        now = self.services.now()
        return audit_entry(self.project_id, now, action, object_id, actor=self.actor, request_id=self.request_id)

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
    form: the fields of a multipart body, whose file is the part `file_field`; the function then gets a MultipartForm as its body.
    downloads: whether it answers with bytes.
    streams: whether `"stream": true` in the body, or the route itself, answers with events. public: served without a key.
    polled: whether SDKs ask again and again until the object has come to an end. takes_rest: whether the id is all that is left of the
    path: names of models have slashes. scope: what a key must be allowed; empty: `read` for GET, else `write`.
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
    form: type[msgspec.Struct] | None = None
    file_field: str = "file"
    downloads: bool = False
    streams: bool = False
    public: bool = False
    polled: bool = False
    takes_rest: bool = False
    scope: str = ""
    tag: str = ""

    @property
    def needed_scope(self) -> str:
        """What a key must be allowed: `read`, `write` or `admin`."""
        return self.scope or ("read" if self.method == "GET" else "write")


class _Path(NamedTuple):
    """The routes of one path, by method, and the names of its parameters."""

    names: tuple[str, ...]
    routes: dict[str, Route]


class RouteTable:
    """Finds the route of a path. In every path words and ids take turns, so its words and its length say which it is.

    A path that is words alone (`/threads/runs`) wins over one that would take a word for an id.
    """

    def __init__(self, routes: list[Route]) -> None:
        self._without_ids: dict[str, _Path] = {}
        self._with_ids: dict[tuple[object, ...], _Path] = {}
        self._with_rest: dict[str, _Path] = {}
        for route in routes:
            segments = route.path.split("/")
            names = tuple(segment[1:-1] for segment in segments if segment.startswith("{"))
            if not names:
                known = self._without_ids.setdefault(route.path, _Path((), {}))
            else:
                assert len(names) == len(segments[2::2]), f"words and ids do not take turns in {route.path}"
                known = self._with_ids.setdefault((len(segments), *segments[1::2]), _Path(names, {}))
            known.routes[route.method] = route
            if route.takes_rest:
                assert len(segments) == 3, f"{route.path} is not a word and an id"
                self._with_rest[segments[1]] = known

    def find(self, method: str, path: str) -> tuple[Route | None, dict[str, str], bool]:
        """The route, its path parameters, and whether the path is known at all (with another method)."""
        known, ids = self._without_ids.get(path), ()
        if known is None:
            segments = path.split("/")
            ids = segments[2::2]
            known = self._with_ids.get((len(segments), *segments[1::2]))
            if known is None and len(segments) > 3:
                known, ids = self._with_rest.get(segments[1]), ["/".join(segments[2:])]
            if known is None or "" in ids:
                return None, {}, False
        return known.routes.get(method), dict(zip(known.names, ids)), True  # noqa: B905 - there are as many of both


def check_path_ids(path: dict[str, str]) -> None:
    """Raise InvalidRequest when an id in the path has the wrong shape. Source: behaviour §1.4."""
    for name, value in path.items():
        if not value.startswith(_PREFIX_OF_ID.get(name, "")):
            check_id(name, value)


def check_id(name: str, value: str) -> None:
    """Raise InvalidRequest when the id of the field `name` has the wrong prefix."""
    prefix = _PREFIX_OF_ID[name]
    if not value.startswith(prefix):
        raise InvalidRequest(
            f"Invalid '{name}': '{value[:100]}'. Expected an ID that begins with '{prefix[:-1]}'.", param=name, code="invalid_value"
        )

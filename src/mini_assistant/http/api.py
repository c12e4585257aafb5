"""The ASGI application of the API: from the bytes of a request to the bytes of an answer, in one straight line.

Errors of every kind end here, in the OpenAI envelope. What is not HTTP (lifespan, websockets) goes to the outer application.
"""

import asyncio
import contextlib
import logging
import math
import time
from typing import Any

import msgspec

from mini_assistant import logs
from mini_assistant.db.base import UniqueViolation
from mini_assistant.errors import AppError, BackendError, InvalidRequest, LimitReached, MethodNotAllowed, NotFound, TooLarge
from mini_assistant.events.base import Position
from mini_assistant.http.auth import NOBODY, Authenticator, check_scope
from mini_assistant.http.connection import ABORT
from mini_assistant.http.cors import Cors
from mini_assistant.http.download import OpenedDownload, open_download, send_download
from mini_assistant.http.error_response import SERVER_ERROR, envelope, error_of, unavailable
from mini_assistant.http.idempotency import IdempotentCall
from mini_assistant.http.multipart import MultipartForm
from mini_assistant.http.routing import Answer, Download, Page, Request, Route, RouteTable, RunStream, check_path_ids
from mini_assistant.http.sse import OpenedStream, Receive, Send, client_has_left, open_run_stream, send_run_stream
from mini_assistant.http.validation import decode_body, decode_query
from mini_assistant.ids import new_request_id
from mini_assistant.metrics import REQUESTS, STREAMS_OPEN
from mini_assistant.projects.limits import RequestLimits
from mini_assistant.runs.replay import last_seq
from mini_assistant.services import Services

log = logging.getLogger("mini_assistant.http")

_VERSION = (b"openai-version", b"2020-10-01")
_JSON = (b"content-type", b"application/json")
_TEXT = (b"content-type", b"text/plain; charset=utf-8")
# No browser may take an answer for a page or a script, nor any cache keep what was meant for one caller.
_GUARDS = ((b"x-content-type-options", b"nosniff"), (b"cache-control", b"no-store"))
_STREAM_HEADERS = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),
    _GUARDS[0],
]
# Official SDKs poll again after this long; an embedded run is usually done by then.
_POLL_HEADER = (b"openai-poll-after-ms", b"500")
_LINGER_SECONDS = 5.0


class ClientLeft(Exception):
    """The client closed the connection before its body was whole; nobody waits for an answer."""


class _Exchange(msgspec.Struct):
    """One request while it is being answered."""

    scope: dict[str, Any]
    receive: Receive
    headers: dict[bytes, bytes]
    request_id: str
    started: float
    is_polled: bool = False
    is_text: bool = False
    has_form: bool = False
    # Of the body: what has come so far, and how long that was waited for.
    body_bytes: int = 0
    body_seconds: float = 0.0
    # The name of the route, empty until it is known; and what every answer says beside its own headers.
    route: str = ""
    project_id: str = ""
    extra_headers: list[tuple[bytes, bytes]] = []


class Api:
    """Serves routes under `/v1` and without the prefix."""

    def __init__(self, services: Services, routes: list[Route]) -> None:
        self._services = services
        self._settings = services.settings
        self._authenticator = Authenticator(services)
        self._limits = RequestLimits(services)
        self._cors = Cors(services.settings)
        self._routes = RouteTable(routes)
        self._decoders = {route.body: msgspec.json.Decoder(route.body) for route in routes if route.body is not None}

    async def __call__(self, scope: dict[str, Any], receive: Receive, send: Send) -> None:
        """Answer one HTTP request."""
        exchange = _Exchange(scope, receive, dict(scope["headers"]), new_request_id(), time.perf_counter())
        logs.request_id.set(exchange.request_id)
        if b"origin" in exchange.headers:
            exchange.extra_headers += self._cors.headers(exchange.headers[b"origin"])
            preflight = self._cors.preflight_or_none(scope["method"], exchange.headers)
            if preflight is not None:
                await send({"type": "http.response.start", "status": 204, "headers": preflight})
                await send({"type": "http.response.body", "body": b""})
                return
        status = 200
        try:
            answer = await self._answer(exchange)
            if isinstance(answer, str):
                body = answer.encode()
            elif isinstance(answer, RunStream):
                await self._stream(await open_run_stream(self._services, answer), exchange, send)
                return
            elif isinstance(answer, Download):
                await self._download(await open_download(self._services.blobs, answer, exchange.headers), exchange, send)
                return
            elif isinstance(answer, Page):
                await self._page(answer, exchange, send)
                return
            else:
                body = answer
        except ClientLeft:
            return
        except AppError as exc:
            status, body = exc.status, envelope(error_of(exc), has_detail=_is_about_files(scope["path"]))
            if isinstance(exc, LimitReached):
                exchange.extra_headers += _waiting_headers(exc)
        except BackendError as exc:
            log.error("request %s: %s", exchange.request_id, exc.message)
            status, body = 503, envelope(unavailable(exc), has_detail=_is_about_files(scope["path"]))
        except Exception:
            log.exception("request %s: unexpected error", exchange.request_id)
            status, body = 500, envelope(SERVER_ERROR, has_detail=_is_about_files(scope["path"]))
        elapsed_ms = self._count(exchange, status)
        await send({"type": "http.response.start", "status": status, "headers": _json_headers(exchange, status, body, elapsed_ms)})
        if status == 413 and exchange.has_form:
            await send({"type": "http.response.body", "body": body, "more_body": True})
            await _take_the_rest(exchange)
            body = b""
        await send({"type": "http.response.body", "body": body})
        self._record(exchange, status)

    def _count(self, exchange: _Exchange, status: int) -> int:
        """Count a request whose answer begins now; returns the milliseconds until then."""
        elapsed_seconds = time.perf_counter() - exchange.started
        REQUESTS.count(exchange.route, status, elapsed_seconds)
        return int(elapsed_seconds * 1000)

    def _record(self, exchange: _Exchange, status: int) -> None:
        """Tell the log of a request that was answered."""
        if self._settings.request_log:
            elapsed_ms = int((time.perf_counter() - exchange.started) * 1000)
            scope = exchange.scope
            log.info("%s %s %d %dms %s", scope["method"], scope["path"], status, elapsed_ms, exchange.request_id)

    async def _stream(self, opened: OpenedStream, exchange: _Exchange, send: Send) -> None:
        headers = [*_STREAM_HEADERS, *_answer_headers(exchange, self._count(exchange, 200))]
        STREAMS_OPEN.inc()
        try:
            await send({"type": "http.response.start", "status": 200, "headers": headers})
            if not await send_run_stream(self._services, opened, exchange.receive, send) and ABORT in exchange.scope["state"]:
                exchange.scope["state"][ABORT]()
        except Exception:
            log.exception("request %s: the stream broke", exchange.request_id)
        finally:
            opened.subscription.close()
            STREAMS_OPEN.dec()
        self._record(exchange, 200)

    async def _download(self, opened: OpenedDownload, exchange: _Exchange, send: Send) -> None:
        headers = [*opened.headers, *_answer_headers(exchange, self._count(exchange, opened.status))]
        is_whole = False
        try:
            await send({"type": "http.response.start", "status": opened.status, "headers": headers})
            is_whole = await send_download(opened, exchange.receive, send, self._settings.stream_write_timeout_seconds)
        except BackendError as exc:
            log.error("request %s: %s", exchange.request_id, exc.message)
        finally:
            # The client was promised more bytes than it has got, and must not take what follows on the connection for them.
            if not is_whole and ABORT in exchange.scope["state"]:
                exchange.scope["state"][ABORT]()
                await client_has_left(exchange.receive)
        self._record(exchange, opened.status)

    async def _page(self, page: Page, exchange: _Exchange, send: Send) -> None:
        is_known = bool(page.etag) and page.etag in exchange.headers.get(b"if-none-match", b"")
        status, body = (304, b"") if is_known else (page.status, page.content)
        headers = [*page.headers, *_answer_headers(exchange, self._count(exchange, status))]
        if not is_known:
            headers.append((b"content-length", b"%d" % len(body)))
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": body})
        self._record(exchange, status)

    async def _answer(self, exchange: _Exchange) -> Answer:
        scope, headers = exchange.scope, exchange.headers
        method, path = scope["method"], scope["path"]
        if path.startswith("/v1/"):
            path = path[3:]
        route, parameters, is_known_path = self._routes.find(method, path)
        caller = NOBODY if route is not None and route.public else await self._authenticator.caller_of(headers, path)
        if route is None:
            if is_known_path:
                raise MethodNotAllowed(f"Not allowed to {method} on {scope['path'][:200]}.", code="method_not_supported")
            raise NotFound(f"Invalid URL ({method} {scope['path'][:200]})")
        exchange.route, exchange.project_id = route.name, caller.project_id
        logs.project_id.set(caller.project_id)
        if not route.public:
            check_scope(caller, route.needed_scope)
            admission = await self._limits.admit(caller.project_id)
            exchange.extra_headers += admission.headers
            if admission.refusal is not None:
                raise admission.refusal
        check_path_ids(parameters)
        exchange.is_polled, exchange.is_text = route.polled, route.answer is str

        if headers.get(b"transfer-encoding", b"chunked").lower() != b"chunked":
            raise InvalidRequest("Bodies are taken as they are, or in chunks: no other Transfer-Encoding.", code="invalid_http")
        query = None if route.query is None else decode_query(route.query, scope["query_string"])
        raw, body = b"", None
        if route.body is not None:
            raw = await self._read_body(exchange)
            body = decode_body(self._decoders[route.body], b"{}" if route.body_optional and not raw else raw)
        elif route.form is not None:
            body = self._form(exchange, route.file_field)
        request: Request[Any, Any] = Request(self._services, caller.project_id, parameters, body, query)
        request.actor, request.request_id = caller.actor, exchange.request_id
        if b"traceparent" in headers:
            request.traceparent = headers[b"traceparent"].decode("latin-1")
        if b"last-event-id" in headers:
            request.last_event_id = headers[b"last-event-id"].decode("latin-1")
        if b"idempotency-key" in headers and method == "POST" and route.form is None:
            key = headers[b"idempotency-key"].decode("latin-1")
            request.idempotent_call = IdempotentCall.of(caller.project_id, key, path.encode("utf-8", "replace") + b"\n" + raw)
            return await self._answer_once(route, request, request.idempotent_call)
        return await route.call(request)

    async def _answer_once(self, route: Route, request: Request[Any, Any], call: IdempotentCall) -> Answer:
        """Answer a request that carries an `Idempotency-Key`: the first time by doing it, then with what was answered."""
        kept = await call.kept_answer_or_none(self._services.db)
        if kept is None:
            try:
                return await route.call(request)
            except (UniqueViolation, AppError):
                # A repeat at the same moment was faster, which this one meets as a broken index or as a changed state.
                kept = await call.kept_answer_or_none(self._services.db)
                if kept is None:
                    raise
        if kept.run_id is not None and kept.after_seq is not None and getattr(request.body, "stream", None):
            latest = await last_seq(self._services, kept.run_id)
            shows_passages = bool(getattr(request.query, "include", None))
            return RunStream(kept.run_id, Position(kept.after_seq), last_seq=latest, shows_passages=shows_passages)
        return kept.body

    def _form(self, exchange: _Exchange, file_field: str) -> MultipartForm:
        exchange.has_form = True
        is_whole = False

        async def receive() -> bytes | None:
            nonlocal is_whole
            if is_whole:
                return None
            message = await self._receive(exchange)
            is_whole = not message.get("more_body")
            return message["body"]

        return MultipartForm(exchange.headers, file_field, receive)

    async def _read_body(self, exchange: _Exchange) -> bytes:
        """The whole body. Raises TooLarge as soon as it is known to be, and InvalidRequest when it stops arriving."""
        limit = self._settings.body_bytes_max
        declared = exchange.headers.get(b"content-length", b"")
        if declared.isdigit() and int(declared) > limit:
            raise _too_large(limit)
        pieces: list[bytes] = []
        size_bytes, is_whole = 0, False
        while not is_whole:
            message = await self._receive(exchange)
            pieces.append(message["body"])
            size_bytes += len(message["body"])
            if size_bytes > limit:
                raise _too_large(limit)
            is_whole = not message.get("more_body")
        return b"".join(pieces)

    async def _receive(self, exchange: _Exchange) -> dict[str, Any]:
        settings, began = self._settings, time.perf_counter()
        timeout_seconds = settings.body_timeout_seconds
        if settings.body_bytes_per_second_min:
            # Slow at the beginning is slow as a pause is; after that a body that drips would hold its connection for ever.
            earned_seconds = exchange.body_bytes / settings.body_bytes_per_second_min
            timeout_seconds = min(timeout_seconds, timeout_seconds + earned_seconds - exchange.body_seconds)
        try:
            async with asyncio.timeout(timeout_seconds):
                message = await exchange.receive()
        except TimeoutError as exc:
            raise InvalidRequest("The body of your request did not arrive in time.", code="body_timeout") from exc
        exchange.body_seconds += time.perf_counter() - began
        exchange.body_bytes += len(message.get("body", b""))
        if message["type"] == "http.disconnect":
            raise ClientLeft
        return message


async def _take_the_rest(exchange: _Exchange) -> None:
    """Read on for a moment: most clients look for an answer when all is sent, and lose it when the connection is closed before."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(_LINGER_SECONDS):
            while (await exchange.receive()).get("more_body"):
                pass


def _is_about_files(path: str) -> bool:
    return path.removeprefix("/v1").startswith("/files")


def _answer_headers(exchange: _Exchange, elapsed_ms: int) -> list[tuple[bytes, bytes]]:
    return [
        _VERSION,
        (b"x-request-id", exchange.request_id.encode()),
        (b"openai-processing-ms", b"%d" % elapsed_ms),
        *exchange.extra_headers,
    ]


def _waiting_headers(refusal: LimitReached) -> list[tuple[bytes, bytes]]:
    """When a refused request may be tried again. SDKs wait for `retry-after-ms`, and others for whole seconds. Source: behaviour §1.10."""
    seconds = refusal.retry_after_seconds
    if seconds is None:
        return []
    return [(b"retry-after", b"%d" % math.ceil(seconds)), (b"retry-after-ms", b"%d" % math.ceil(seconds * 1000))]


def _json_headers(exchange: _Exchange, status: int, body: bytes, elapsed_ms: int) -> list[tuple[bytes, bytes]]:
    headers = _answer_headers(exchange, elapsed_ms)
    headers += (*_GUARDS, _TEXT if exchange.is_text and status == 200 else _JSON, (b"content-length", b"%d" % len(body)))
    if exchange.is_polled:
        headers.append(_POLL_HEADER)
    if status >= 400:
        is_worth_retrying = status == 503 or any(name == b"retry-after" for name, _ in exchange.extra_headers)
        # The rest of a refused body would be read as the next request's beginning; and a repeat helps only where time does.
        headers.append((b"connection", b"close") if status == 413 else (b"x-should-retry", b"true" if is_worth_retrying else b"false"))
    return headers


def _too_large(limit: int) -> TooLarge:
    return TooLarge(f"The body of your request is larger than {limit} bytes, the most that this server takes.", code="body_too_large")

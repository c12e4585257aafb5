"""What becomes of a run when its model's endpoint fails, in every way that was thought of. Source of the ends: docs/models.md.

Each row of the table is a whole run: worker, database, provider and a real connection to a server that behaves so. Afterwards nothing may
be left: no connection that the provider still holds, none that the server still sees, and no task.
"""

import asyncio
import contextlib
import dataclasses
import email.utils
import gzip
import re
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import msgspec
import pytest

from mini_assistant.app import open_services
from mini_assistant.models.script import (
    Cut,
    ErrorFrame,
    Finish,
    Frames,
    Raw,
    Reasoning,
    Respond,
    Rule,
    Script,
    Stall,
    Text,
    Wait,
)
from mini_assistant.models.scripted import ScriptedEndpoint
from mini_assistant.services import Services
from mini_assistant.settings import Settings
from tests.component.test_worker import (
    TERMINAL,
    create_run,
    event_names,
    messages_of,
    steps_of,
    text_of,
    until,
    until_status,
    working,
)

KEY = "sk-test-0123456789abcdef"
# Long enough for a loaded machine wherever the end is not about time.
PATIENT = {"model_connect_timeout_seconds": 10.0, "model_first_token_timeout_seconds": 20.0, "model_chunk_timeout_seconds": 20.0}
IMPATIENT = {"model_first_token_timeout_seconds": 0.3, "model_chunk_timeout_seconds": 0.3}
IMPATIENT_LATER = {"model_chunk_timeout_seconds": 0.3}
ONE_RETRY = {"model_retries_max": 1}
SHORT_LIFE = {"run_expiry_seconds": 1}


@dataclasses.dataclass
class Served:
    """A server at work. requests: how many it has had; connections: how many are open."""

    base_url: str
    requests: Callable[[], int]
    connections: Callable[[], int]
    streams: Callable[[], int]


Serve = Callable[[], AbstractAsyncContextManager[Served]]


# --- servers that misbehave -----------------------------------------------------------------------------------------------------


def scripted(*steps: Any, then_well: bool = False) -> Serve:
    """The scripted endpoint. then_well: it misbehaves once."""

    @asynccontextmanager
    async def serve() -> AsyncIterator[Served]:
        async with ScriptedEndpoint(Script([Rule(list(steps), times=1 if then_well else None)])) as endpoint:
            yield Served(
                endpoint.base_url, lambda: len(endpoint.requests), lambda: endpoint.open_connections, lambda: endpoint.open_streams
            )

    return serve


def raw(*parts: bytes | float, for_ever: tuple[bytes | float, ...] = (), stays: bool = False) -> Serve:
    """A server that answers each connection's first request with the bytes, pausing where there is a number.

    for_ever: what it repeats after that until the client leaves. stays: whether it keeps the connection after the last byte.
    """

    @asynccontextmanager
    async def serve() -> AsyncIterator[Served]:
        requests = connections = 0

        async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            nonlocal requests, connections
            connections += 1
            try:
                await reader.readuntil(b"\r\n\r\n")
                requests += 1
                await send(writer, parts)
                while for_ever:
                    await send(writer, for_ever)
                while stays and await reader.read(65536):
                    pass
            except (ConnectionError, asyncio.IncompleteReadError):
                pass  # the client has seen enough
            finally:
                connections -= 1
                writer.close()

        server = await asyncio.start_server(answer, "127.0.0.1", 0)
        async with server:
            port = server.sockets[0].getsockname()[1]
            yield Served(f"http://127.0.0.1:{port}/v1", lambda: requests, lambda: connections, lambda: 0)

    return serve


async def send(writer: asyncio.StreamWriter, parts: tuple[bytes | float, ...]) -> None:
    for part in parts:
        if isinstance(part, bytes):
            writer.write(part)
            await writer.drain()
        else:
            await asyncio.sleep(part)


@asynccontextmanager
async def nobody_listens() -> AsyncIterator[Served]:
    with socket.socket() as closed:  # bound and not listening, so that nobody else takes the port
        closed.bind(("127.0.0.1", 0))
        yield Served(f"http://127.0.0.1:{closed.getsockname()[1]}/v1", lambda: 0, lambda: 0, lambda: 0)


@asynccontextmanager
async def nobody_accepts() -> AsyncIterator[Served]:
    with socket.socket() as full, contextlib.ExitStack() as waiting:
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        for _ in range(4):  # they fill the queue of connections
            client = waiting.enter_context(socket.socket())
            client.setblocking(False)
            client.connect_ex(full.getsockname())
        yield Served(f"http://127.0.0.1:{full.getsockname()[1]}/v1", lambda: 0, lambda: 0, lambda: 0)


def head(content_type: str = "text/event-stream", **headers: str) -> bytes:
    more = "".join(f"{name.replace('_', '-')}: {value}\r\n" for name, value in headers.items())
    return f"HTTP/1.1 200 OK\r\nContent-Type: {content_type}\r\n{more}\r\n".encode()


def piece(text: str, field: str = "content") -> bytes:
    return b"data: " + msgspec.json.encode({"choices": [{"delta": {field: text}}]}) + b"\n\n"


HEAD = head()
HALF = piece("Half")
WHOLE = b'data: {"choices":[{"delta":{"content":"All"},"finish_reason":"stop"}]}\n\n'
USAGE = b'data: {"choices":[],"usage":{"prompt_tokens":70,"completion_tokens":7}}\n\n'
DONE = b"data: [DONE]\n\n"
SMILE = piece("\U0001f600")
EMPTY_PIECE = b'data: {"choices":[{"delta":{"role":"assistant","content":""}}]}\n\n'
THOUGHT = piece("Hm. ", "reasoning_content")
ROOM = 0.05  # so that the parts around it arrive in reads of their own


def bytes_of(answer: bytes) -> list[bytes | float]:
    return [part for at in range(len(answer)) for part in (answer[at : at + 1], 0.001)]


# --- the table ------------------------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Row:
    """A server, and how a run that asks it ends.

    error: the code of `last_error`. says: what its message contains. told: the text of the message that there is; None for no message.
    is_beginning: there may be more of it. cut_short: why the message is incomplete. reason: of `incomplete_details`. asked: how often the
    server was asked.
    """

    serve: Serve
    status: str = "failed"
    error: str | None = None
    says: str = ""
    told: str | None = None
    cut_short: str | None = None
    reason: str | None = None
    asked: int = 1
    is_beginning: bool = False
    settings: dict[str, Any] = dataclasses.field(default_factory=dict)


def fails(serve: Serve, says: str, *, error: str = "server_error", told: str | None = None, asked: int = 1, **settings: Any) -> Row:
    cut_short = None if told is None else "run_failed"
    return Row(serve, "failed", error, says, told, cut_short, asked=asked, settings=settings)


def completes(serve: Serve, told: str, *, asked: int = 1, **settings: Any) -> Row:
    return Row(serve, "completed", told=told, asked=asked, settings=settings)


def expires(serve: Serve, told: str | None = None, **settings: Any) -> Row:
    cut_short = None if told is None else "run_expired"
    return Row(serve, "expired", told=told, cut_short=cut_short, is_beginning=True, settings={**SHORT_LIFE, **settings})


def status(number: int, message: str = "Later", headers: dict[str, str] | None = None, *, then_well: bool = False, **fields: Any) -> Serve:
    body = {"error": {"message": f"{message} {KEY}", **fields}}
    return scripted(Respond(number, body, headers or {}), then_well=then_well)


PAST = email.utils.formatdate(0, usegmt=True)
REPLY = "You said: Hello"
CONTEXT = "maximum context length is 4096 tokens"
CUT_OFF = "cut off before its end"

ROWS: dict[str, Row] = {
    # too many requests
    "429": fails(status(429), "limits the rate", error="rate_limit_exceeded", asked=2, **ONE_RETRY),
    "429-retry-after-seconds": completes(status(429, headers={"Retry-After": "0"}, then_well=True), REPLY, asked=2, **ONE_RETRY),
    "429-retry-after-ms": completes(status(429, headers={"retry-after-ms": "20"}, then_well=True), REPLY, asked=2, **ONE_RETRY),
    "429-retry-after-date": completes(status(429, headers={"Retry-After": PAST}, then_well=True), REPLY, asked=2, **ONE_RETRY),
    "429-retry-after-nonsense": completes(status(429, headers={"Retry-After": "nan"}, then_well=True), REPLY, asked=2, **ONE_RETRY),
    "429-retry-after-an-hour": fails(
        status(429, headers={"Retry-After": "3600"}), "limits the rate", error="rate_limit_exceeded", **ONE_RETRY
    ),
    "429-retry-after-longer-than-the-run": expires(status(429, headers={"Retry-After": "25"}), **ONE_RETRY),
    "429-quota": fails(status(429, code="insufficient_quota"), "limits the rate", error="rate_limit_exceeded", **ONE_RETRY),
    # the server is not well
    "500": fails(status(500), "HTTP 500", asked=2, **ONE_RETRY),
    "502": fails(scripted(Respond(502, "<html>Bad gateway</html>", content_type="text/html")), "HTTP 502", asked=2, **ONE_RETRY),
    "503": fails(status(503, headers={"Retry-After": "0"}), "HTTP 503", asked=2, **ONE_RETRY),
    "504": fails(status(504), "HTTP 504", asked=2, **ONE_RETRY),
    "529": fails(status(529), "HTTP 529", asked=2, **ONE_RETRY),
    "500-once": completes(status(500, then_well=True), REPLY, asked=2, **ONE_RETRY),
    "529-once": completes(status(529, then_well=True), REPLY, asked=2, **ONE_RETRY),
    # the request is refused
    "400-context": fails(status(400, CONTEXT, code="context_length_exceeded"), CONTEXT, error="invalid_prompt", **ONE_RETRY),
    "413": fails(status(413), "HTTP 413", error="invalid_prompt", **ONE_RETRY),
    "422": fails(status(422), "HTTP 422", error="invalid_prompt", **ONE_RETRY),
    "401": fails(status(401), "refused the key", **ONE_RETRY),
    "404": fails(status(404), "does not know the model", **ONE_RETRY),
    "500-never": fails(status(500, "image input is not supported"), "did not accept", error="invalid_prompt", **ONE_RETRY),
    # no connection
    "refused": fails(nobody_listens, "cannot be reached", asked=0, **ONE_RETRY),
    "connect-timeout": fails(nobody_accepts, "no connection within 0.2 s", asked=0, model_connect_timeout_seconds=0.2),
    "closed-at-once": fails(raw(), "cannot be reached", asked=2, **ONE_RETRY),
    "no-http": fails(raw(b"SSH-2.0-OpenSSH_9.2\r\n"), "cannot be reached"),
    "endless-header": fails(raw(b"HTTP/1.1 200 OK\r\nX: ", for_ever=(b"x" * 10_000,)), "cannot be reached"),
    # silence
    "no-headers": fails(raw(stays=True), "did not begin to answer", **IMPATIENT),
    "endless-continue": fails(raw(for_ever=(b"HTTP/1.1 100 Continue\r\n\r\n", 0.01)), "did not begin to answer", **IMPATIENT),
    "no-first-token": fails(scripted(Stall()), "did not begin to answer", asked=2, **ONE_RETRY, **IMPATIENT),
    "no-body": fails(raw(HEAD, stays=True), "did not begin to answer", **IMPATIENT),
    "no-next-token": fails(scripted(Text("Half"), Stall()), "stopped sending", told="Half", **IMPATIENT_LATER),
    "half-an-event": fails(raw(HEAD, HALF, ROOM, HALF[:20], stays=True), "stopped sending", told="Half", **IMPATIENT_LATER),
    "no-end": completes(raw(HEAD, WHOLE, stays=True), "All", **IMPATIENT_LATER),
    "endless-comments": fails(raw(HEAD, for_ever=(b": ping\n\n", 0.01)), "did not begin to answer", **IMPATIENT),
    "endless-comments-later": fails(raw(HEAD, HALF, for_ever=(b": ping\n\n", 0.01)), "stopped sending", told="Half", **IMPATIENT_LATER),
    "endless-empty-pieces": fails(raw(HEAD, HALF, for_ever=(EMPTY_PIECE, 0.01)), "stopped sending", told="Half", **IMPATIENT_LATER),
    # slow, but alive
    "slow-tokens": completes(scripted(Text(["tick "], repeat=8, delay_seconds=0.1)), "tick " * 8, model_chunk_timeout_seconds=0.7),
    "slow-bytes": completes(raw(HEAD, *bytes_of(HALF + WHOLE + DONE)), "HalfAll"),
    "slow-thoughts": completes(raw(HEAD, *[THOUGHT, 0.1] * 8, WHOLE), "All", model_first_token_timeout_seconds=0.7),
    "slow-for-ever": expires(scripted(Text(["tick "], repeat=400, delay_seconds=0.05)), "tick ", run_expiry_seconds=2),
    "thoughts-for-ever": expires(raw(HEAD, for_ever=(THOUGHT, 0.01))),
    "waits-for-ever": expires(scripted(Stall())),
    # reasoning
    "thoughts": completes(raw(HEAD, THOUGHT, ROOM, THOUGHT + WHOLE), "All"),
    "thoughts-in-tags": completes(raw(HEAD, piece("<thi"), ROOM, piece("nk>Hm.</think>\n\n"), WHOLE), "All"),
    "thoughts-in-tags-alone": completes(scripted(Text("<think>Hm. All")), ""),
    # broken off
    "cut-before-the-first-event": fails(scripted(Cut()), CUT_OFF, asked=2, **ONE_RETRY),
    "cut-once-before-the-first-event": completes(scripted(Cut(), then_well=True), REPLY, asked=2, **ONE_RETRY),
    "cut-once-inside-the-reasoning": completes(
        scripted(Reasoning("Let me see"), Wait(ROOM), Cut(), then_well=True), REPLY, asked=2, **ONE_RETRY
    ),
    "cut-inside-an-event": fails(raw(HEAD, HALF, ROOM, HALF[:20]), CUT_OFF, told="Half", **ONE_RETRY),
    "cut-after-an-event": fails(scripted(Text("Half"), Wait(ROOM), Cut()), CUT_OFF, told="Half", **ONE_RETRY),
    "cut-inside-a-character": fails(raw(HEAD, HALF, ROOM, SMILE[: SMILE.index(b"\xf0") + 2]), CUT_OFF, told="Half", **ONE_RETRY),
    "cut-after-the-reason": completes(raw(HEAD, HALF, WHOLE), "HalfAll"),
    "cut-inside-the-length": fails(raw(head(Content_Length="5000"), HALF), CUT_OFF, told="Half"),
    "cut-inside-a-chunk": fails(raw(head(Transfer_Encoding="chunked"), b"1000\r\n", HALF), CUT_OFF, told="Half"),
    # aiohttp keeps this fault to itself, so that it shows as silence.
    "wrong-chunk-size": fails(
        raw(head(Transfer_Encoding="chunked"), b"%x\r\n%b\r\n" % (len(HALF), HALF), ROOM, b"oops\r\n"),
        "stopped sending",
        told="Half",
        **IMPATIENT_LATER,
    ),
    "no-reason": fails(scripted(Text("Half"), Finish(None, done=False)), CUT_OFF, told="Half"),
    "done-without-reason": fails(scripted(Text("Half"), Finish(None)), CUT_OFF, told="Half"),
    "empty": fails(raw(HEAD), CUT_OFF),
    # error frames
    "error-frame": fails(scripted(Text("Half"), ErrorFrame("Overloaded")), "Overloaded", told="Half", **ONE_RETRY),
    "error-frame-first": completes(scripted(ErrorFrame("Overloaded"), then_well=True), REPLY, asked=2, **ONE_RETRY),
    "error-frame-429": fails(scripted(ErrorFrame("Slow down", 429)), "Slow down", error="rate_limit_exceeded", asked=2, **ONE_RETRY),
    "error-frame-context": fails(scripted(ErrorFrame(CONTEXT, "context_length_exceeded")), CONTEXT, error="invalid_prompt", **ONE_RETRY),
    "error-frame-text": fails(scripted(Frames([{"error": "No GPU"}])), "No GPU"),
    "error-with-200": fails(scripted(Respond(200, {"error": {"message": "No GPU"}})), "No GPU"),
    # nonsense
    "no-json": fails(scripted(Text("Half"), Raw("data: {oops\n\n")), "no JSON", told="Half"),
    "wrong-types": fails(scripted(Frames([{"choices": "none"}])), "no piece of a chat completion"),
    "zero-bytes": fails(raw(HEAD, b"data: \0\0\0\n\n"), "no JSON"),
    "nested-without-end": fails(raw(HEAD, b"data: " + b"[" * 1_000_000 + b"\n\n"), "no piece of a chat completion"),
    "huge-line": fails(raw(HEAD, for_ever=(b"x" * 100_000,)), "too long"),
    "huge-piece": fails(raw(HEAD, piece("x" * 2_000_000)), "longer than", answer_characters_max=1000),
    "endless-answer": Row(
        raw(HEAD, for_ever=(HALF,)),
        error="server_error",
        says="longer than",
        told="Half",
        cut_short="run_failed",
        is_beginning=True,
        settings={"answer_characters_max": 10_000},
    ),
    "endless-thoughts": fails(raw(HEAD, for_ever=(piece("x" * 50_000, "reasoning_content"),)), "characters of reasoning"),
    "endless-thoughts-in-tags": fails(raw(HEAD, piece("<think>"), for_ever=(piece("x" * 50_000),)), "reasoning is longer than"),
    "html": fails(raw(head("text/html"), b"<html>Sign in</html>"), "text/html instead of an answer"),
    "plain-text": fails(raw(head("text/plain"), WHOLE), "text/plain instead of an answer"),
    "events-as-json": fails(raw(head("application/json"), WHOLE), "no chat completion"),
    "endless-json": fails(raw(head("application/json"), for_ever=(b" " * 1_000_000,)), "too long"),
    "compressed": fails(raw(head(Content_Encoding="gzip"), gzip.compress(WHOLE)), "compressed"),
    "204": fails(raw(b"HTTP/1.1 204 No Content\r\n\r\n"), "HTTP 204"),
    **{
        f"redirect-{code}": fails(scripted(Respond(code, "", {"Location": "/v1/chat/completions"})), "redirects", **ONE_RETRY)
        for code in (301, 302, 303, 307, 308)
    },
    # odd ends
    "length": Row(
        scripted(Text("Half"), Finish("length")), "incomplete", told="Half", cut_short="max_tokens", reason="max_completion_tokens"
    ),
    "content-filter": Row(scripted(Text("Half"), Finish("content_filter")), "completed", told="Half", cut_short="content_filter"),
    "finish-error": fails(scripted(Text("Half"), Finish("error")), "'error'", told="Half"),
    "done-twice": completes(raw(HEAD, WHOLE, DONE, DONE), "All"),
    "more-after-done": completes(raw(HEAD, WHOLE, DONE + HALF + b"data: {oops\n\n", stays=True), "All"),
    "usage-after-done": completes(raw(HEAD, WHOLE, DONE, USAGE), "All"),
    "usage-before-done": completes(raw(HEAD, WHOLE, USAGE, DONE), "All"),
    "no-content-type": completes(raw(b"HTTP/1.1 200 OK\r\n\r\n", WHOLE, DONE), "All"),
}


@pytest.fixture
async def nothing_left_behind() -> AsyncIterator[None]:
    before = asyncio.all_tasks()
    yield
    for _ in range(1000):  # the tasks of connections that were closed just now end within a few rounds of the loop
        await asyncio.sleep(0)
    assert asyncio.all_tasks() - before == {asyncio.current_task()} - before


def settings_for(folder: Path, base_url: str, **more: Any) -> Settings:
    general = {"model_retries_max": 0, "sweep_interval_seconds": 0.05, "sandbox": "none", **PATIENT}
    return Settings(data_dir=folder, openai_base_url=base_url, openai_api_key=KEY, **{**general, **more})


def connections_in_use(services: Services) -> int:
    """Connections that providers have taken out of their pools and not given back."""
    connectors = [provider._session.client().connector for provider in services.models._providers.values()]  # type: ignore[attr-defined]
    return sum(len(connector._acquired) for connector in connectors)


@pytest.mark.parametrize("name", ROWS)
async def test_how_a_run_ends(name: str, tmp_path: Path, nothing_left_behind: None) -> None:
    row = ROWS[name]
    async with row.serve() as served:
        await check_run(row, served, tmp_path)


async def check_run(row: Row, served: Served, folder: Path) -> None:
    """One run at the server: how it ends, and that nothing of it is left."""
    async with open_services(settings_for(folder, served.base_url, **row.settings)) as services, asyncio.timeout(60):
        async with working(services):
            run = (await until_status(services, await create_run(services), *TERMINAL)).run
            await until(lambda: is_zero(served.streams))
            assert connections_in_use(services) == 0
        messages, steps = await messages_of(services, run), await steps_of(services, run)
        assert (await event_names(services, run))[-1] == f"run.{row.status}"
    async with asyncio.timeout(10):
        await until(lambda: is_zero(served.connections))
    assert served.requests() == row.asked
    assert run.status == row.status, run.last_error
    assert (run.last_error.code if run.last_error else None) == row.error
    assert (run.incomplete_details.reason if run.incomplete_details else None) == row.reason
    check_last_error(run.last_error.message if run.last_error else "", row.says)
    if row.told is None:
        assert (messages, steps) == ([], [])
        return
    [message], [step] = messages, steps
    # How much there is of an answer without end, or of one that was reset, nobody knows.
    assert text_of(message) == row.told or (row.is_beginning and text_of(message).startswith(row.told))
    assert (message.incomplete_details.reason if message.incomplete_details else None) == row.cut_short
    assert message.status == ("incomplete" if row.cut_short else "completed")
    assert step.step.status == (row.status if row.status in ("failed", "expired") else "completed")


async def is_zero(count: Callable[[], int]) -> bool:
    return count() == 0


def check_last_error(message: str, says: str) -> None:
    assert says in message
    assert KEY not in message
    assert "Traceback" not in message
    assert "\n" not in message
    assert len(message) < 400
    assert message.startswith("The ") or not message


# --- llmock ---------------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def llmock(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A stand-in for providers that other people wrote, as a process; gives its address."""
    log = tmp_path_factory.mktemp("llmock") / "log"
    program = Path(sys.executable).parent / "llmock"
    with log.open("wb") as output:
        process = subprocess.Popen([program, "serve", "--port", "0"], stdout=output, stderr=output)
    try:
        deadline = time.monotonic() + 60
        while (found := re.search(r"running on (http://[\d.:]+)", log.read_text())) is None:
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.05)
        yield found[1]
    finally:
        process.kill()
        process.wait(10)


HELLO = {"type": "reply", "text": "Hello, all is well.", "times": None}


def fault(kind: str, after_chunks: int, **more: Any) -> dict[str, Any]:
    return {"type": "stream_fault", "kind": kind, "after_chunks": after_chunks, **more}


def failure(number: int, times: int | None = 1, **more: Any) -> dict[str, Any]:
    return {"type": "fail", "status": number, "times": times, **more}


LLMOCK_ROWS: dict[str, tuple[list[dict[str, Any]], Row]] = {
    "well": ([HELLO], completes(nobody_listens, HELLO["text"])),
    "429-once": ([failure(429, retry_after=0.1), HELLO], completes(nobody_listens, HELLO["text"], asked=2, **ONE_RETRY)),
    "429": ([failure(429, None, retry_after=0.1)], fails(nobody_listens, "limits", error="rate_limit_exceeded", asked=2, **ONE_RETRY)),
    "500-once": ([failure(500), HELLO], completes(nobody_listens, HELLO["text"], asked=2, **ONE_RETRY)),
    "503-twice": ([failure(503, 2), HELLO], completes(nobody_listens, HELLO["text"], asked=3, model_retries_max=2)),
    "529": ([failure(529, None)], fails(nobody_listens, "HTTP 529", asked=2, **ONE_RETRY)),
    "400": ([failure(400)], fails(nobody_listens, "HTTP 400", error="invalid_prompt", **ONE_RETRY)),
    "401": ([failure(401)], fails(nobody_listens, "refused the key", **ONE_RETRY)),
    "404": ([failure(404)], fails(nobody_listens, "does not know the model", **ONE_RETRY)),
    "delay": ([{"type": "delay", "seconds": 1.5}], fails(nobody_listens, "did not begin", **IMPATIENT)),
    "slow-first-token": ([{"type": "slow_first_token", "seconds": 30}], fails(nobody_listens, "did not begin", **IMPATIENT)),
    "disconnect-at-once": ([fault("disconnect", 0), HELLO], completes(nobody_listens, HELLO["text"], asked=2, **ONE_RETRY)),
    # A connection that is reset takes with it what had arrived last.
    "disconnect": (
        [fault("disconnect", 4), HELLO],
        dataclasses.replace(fails(nobody_listens, CUT_OFF, told="Hello, ", **ONE_RETRY), is_beginning=True),
    ),
    "truncate-at-once": ([fault("truncate", 0), HELLO], completes(nobody_listens, HELLO["text"], asked=2, **ONE_RETRY)),
    "truncate": ([fault("truncate", 3), HELLO], fails(nobody_listens, CUT_OFF, told="Hello, all ", **ONE_RETRY)),
    "stall": (
        [fault("stall", 3, stall_seconds=30), HELLO],
        fails(nobody_listens, "stopped sending", told="Hello, all ", **IMPATIENT_LATER),
    ),
    "malformed": ([fault("malformed", 3), HELLO], fails(nobody_listens, "no JSON", told="Hello, all ", **ONE_RETRY)),
}
# What llmock blames a client for that cannot be otherwise: an answer of which a part has been told is not asked for once more.
EXPECTED_FINDINGS = {"truncate": {"truncated_stream_accepted"}, "disconnect": {"gave_up"}, "malformed": {"malformed_chunk_ignored"}}


@pytest.mark.parametrize("name", LLMOCK_ROWS)
async def test_how_a_run_ends_with_llmock(name: str, tmp_path: Path, llmock: str, nothing_left_behind: None) -> None:
    behaviors, row = LLMOCK_ROWS[name]
    async with aiohttp.ClientSession(llmock, raise_for_status=True) as control:
        await (await control.post("/_llmock/reset")).read()
        await (await control.post("/_llmock/scenario", json={"behaviors": behaviors})).read()
        served = Served(f"{llmock}/v1", lambda: row.asked, lambda: 0, lambda: 0)
        await check_run(row, served, tmp_path)
        requests = await (await control.get("/_llmock/requests")).json()
        verdict = await (await control.get("/_llmock/verdict")).json()
    assert requests["count"] == row.asked
    assert {finding["code"] for finding in verdict["findings"]} == EXPECTED_FINDINGS.get(name, set())

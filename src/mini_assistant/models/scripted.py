"""An OpenAI-compatible endpoint that answers by a script: for tests, benchmarks and demonstrations without a model.

In process: `async with ScriptedEndpoint(Script([...])) as endpoint: endpoint.base_url`. By itself:
`python -m mini_assistant.models.scripted --port 0 [--script FILE.json]` prints its base URL in one line when it is
ready and ends on SIGTERM. The language of scripts, and the reply without a rule, are described in `script.py`.

It keeps to the limits and choices of a request: `max_tokens` and `max_completion_tokens` count pieces,
`stream: false` answers one JSON completion, and a conversation whose tool calls and results do not match is refused
with 400, as the hosted API did. With the `abilities` of a script it is an endpoint that can do less, and refuses or
overlooks the rest.

`/v1/embeddings` and `/v1/rerank` are answered too, by the words of the texts: see `scripted_retrieval.py`.
"""

import argparse
import asyncio
import signal
import sys
from collections import deque
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Self

import msgspec
import uvloop
from aiohttp import web

from mini_assistant.models.script import (
    Cut,
    ErrorFrame,
    Finish,
    Frames,
    Raw,
    Reasoning,
    Refusal,
    Respond,
    Rule,
    Script,
    Stall,
    Step,
    Text,
    ToolCalls,
    Wait,
    default_steps,
    message_text,
    words,
)
from mini_assistant.models.scripted_emulation import told_or_none
from mini_assistant.models.scripted_retrieval import embedding_answer, rerank_answer

_REQUEST_BYTES_MAX = 64 * 1024 * 1024
_REQUESTS_KEPT_MAX = 1000
_WRITE_BYTES_MAX = 64 * 1024


class Playback:
    """One answer, encoded ahead: what is sent after which pause, and how it ends."""

    def __init__(self, request: dict[str, Any], steps: Iterable[Step]) -> None:
        self.frames: list[tuple[float, bytes]] = []
        self.ending: Cut | Stall | None = None
        self._model: str = request.get("model", "")
        options: dict[str, Any] = request.get("stream_options") or {}
        self._usage_asked: bool = options.get("include_usage", False)
        self._pieces_left: int = request.get("max_completion_tokens") or request.get("max_tokens") or sys.maxsize
        self._prompt_tokens = sum(len(words(message_text(message))) for message in request["messages"])
        self._completion_tokens = 0
        self._calls = 0
        self._text: dict[str, str] = {}
        self._tool_calls: list[dict[str, Any]] = []
        self._finish_reason: str | None = None
        self._pause_seconds = 0.0
        self._append_delta({"role": "assistant", "content": ""})
        for step in steps:
            self._append(step)
            if self.ending is not None or self._finish_reason is not None or isinstance(step, Finish | ErrorFrame):
                return
        self._append(Finish("tool_calls" if self._calls else "stop"))

    def completion(self) -> bytes:
        """The same answer as one JSON completion."""
        message: dict[str, Any] = {"role": "assistant", "content": None, **self._text}
        if self._tool_calls:
            message["tool_calls"] = self._tool_calls
        choice = {"index": 0, "message": message, "finish_reason": self._finish_reason}
        body = {"id": "chatcmpl-scripted", "object": "chat.completion", "created": 0, "model": self._model}
        return msgspec.json.encode({**body, "choices": [choice], "usage": self._usage()})

    def _append(self, step: Step) -> None:
        match step:
            case Text():
                pieces = words(step.text) if isinstance(step.text, str) else step.text
                self._append_pieces("content", pieces * step.repeat, step.delay_seconds)
            case Refusal():
                self._append_pieces("refusal", words(step.text), 0.0)
            case Reasoning():
                self._append_pieces("reasoning_content", words(step.text), 0.0)
            case ToolCalls():
                self._append_calls(step)
            case Wait():
                self._pause_seconds += step.seconds
            case Frames():
                for frame in step.frames:
                    self._send(_event(frame))
            case Raw():
                self._send(step.text.encode())
            case ErrorFrame():
                self._send(_event({"error": {"message": step.message, "type": "server_error", "code": step.code}}))
            case Cut() | Stall():
                self.ending = step
            case Finish():
                self._append_finish(step)
            case Respond():
                raise ValueError("A `respond` step cannot be joined with others.")

    def _append_pieces(self, field: str, pieces: list[str], delay_seconds: float) -> None:
        for piece in pieces:
            if self._pieces_left == 0:
                self._append_finish(Finish("length"))
                return
            self._pieces_left -= 1
            self._completion_tokens += 1
            self._text[field] = self._text.get(field, "") + piece
            self._pause_seconds += delay_seconds
            self._append_delta({field: piece})

    def _append_calls(self, step: ToolCalls) -> None:
        for call in step.calls:
            call_id = call.id or f"call_scripted_{self._calls}"
            function = {"name": call.name, "arguments": call.arguments}
            self._tool_calls.append({"id": call_id, "type": "function", "function": function})
            size = -(-len(call.arguments) // step.pieces) or 1
            pieces = [call.arguments[at : at + size] for at in range(0, len(call.arguments), size)]
            opening = {"index": self._calls, "id": call_id, "type": "function", "function": {"name": call.name, "arguments": ""}}
            self._append_delta({"tool_calls": [opening]})
            for piece in pieces:
                self._pause_seconds += step.delay_seconds
                self._append_delta({"tool_calls": [{"index": self._calls, "function": {"arguments": piece}}]})
            self._calls += 1
            self._completion_tokens += 1 + len(pieces)

    def _append_finish(self, step: Finish) -> None:
        self._finish_reason = step.reason
        if step.reason is not None:
            with_usage = {"usage": self._usage()} if step.usage == "with_finish" else {}
            self._append_delta({}, finish_reason=step.reason, **with_usage)
        if step.usage == "as_asked" and self._usage_asked:
            self._send(_event({**self._chunk(), "choices": [], "usage": self._usage()}))
        if step.done:
            self._send(b"data: [DONE]\n\n")

    def _append_delta(self, delta: dict[str, Any], *, finish_reason: str | None = None, **more: Any) -> None:
        choice = {"index": 0, "delta": delta, "finish_reason": finish_reason}
        self._send(_event({**self._chunk(), "choices": [choice], **more}))

    def _send(self, frame: bytes) -> None:
        self.frames.append((self._pause_seconds, frame))
        self._pause_seconds = 0.0

    def _chunk(self) -> dict[str, Any]:
        return {"id": "chatcmpl-scripted", "object": "chat.completion.chunk", "created": 0, "model": self._model}

    def _usage(self) -> dict[str, int]:
        prompt, completion = self._prompt_tokens, self._completion_tokens
        return {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}


def _event(frame: dict[str, Any]) -> bytes:
    return b"data: " + msgspec.json.encode(frame) + b"\n\n"


class ScriptedEndpoint:
    """The endpoint. `script` may be replaced while it runs.

    port: 0 takes a free one. `requests` holds the newest decoded bodies of POST /chat/completions, `headers` their
    headers; `open_streams` counts answers that are being sent.
    """

    def __init__(self, script: Script | None = None, *, port: int = 0) -> None:
        self.script = script or Script()
        self.base_url = ""
        self.requests: deque[dict[str, Any]] = deque(maxlen=_REQUESTS_KEPT_MAX)
        self.headers: deque[dict[str, str]] = deque(maxlen=_REQUESTS_KEPT_MAX)
        self.open_streams = 0
        self._port = port
        self._answered: dict[Rule, int] = {}
        self._waiting: list[asyncio.Future[None]] = []
        application = web.Application(client_max_size=_REQUEST_BYTES_MAX)
        application.router.add_post("/v1/chat/completions", self._complete)
        application.router.add_get("/v1/models", self._list_models)
        application.router.add_post("/v1/embeddings", _embed)
        application.router.add_post("/v1/rerank", _rerank)
        # A handler is cancelled when its client leaves, which is how a stalled answer ends.
        self._runner = web.AppRunner(application, access_log=None, handler_cancellation=True, shutdown_timeout=0.1)

    async def __aenter__(self) -> Self:
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", self._port)
        await site.start()
        self.base_url = f"http://127.0.0.1:{self._runner.addresses[0][1]}/v1"
        return self

    async def __aexit__(self, *_exc_info: object) -> None:
        await self._runner.cleanup()

    @property
    def open_connections(self) -> int:
        """Connections that clients hold open, in use or not."""
        server = self._runner.server
        return 0 if server is None else len(server.connections)

    async def wait_for_streams(self, count: int) -> None:
        """Wait until exactly this many answers are being sent."""
        while self.open_streams != count:
            changed = asyncio.get_running_loop().create_future()
            self._waiting.append(changed)
            await changed

    async def _list_models(self, _request: web.Request) -> web.Response:
        return web.json_response({"object": "list", "data": [{"id": "scripted", "object": "model", "created": 0, "owned_by": "script"}]})

    async def _complete(self, http_request: web.Request) -> web.StreamResponse:
        request: dict[str, Any] = msgspec.json.decode(await http_request.read())
        self.requests.append(request)
        self.headers.append(dict(http_request.headers))
        problem = _conversation_problem(request["messages"])
        if problem is not None:
            error = {"message": problem, "type": "invalid_request_error", "param": "messages", "code": None}
            return web.json_response({"error": error}, status=400)
        refused = self.script.abilities.refusal_or_none(request)
        if refused is not None:
            return web.json_response(refused.body, status=refused.status)
        request = self.script.abilities.heeded(request)
        told = told_or_none(request)
        rule = self._rule_for(request)
        steps = default_steps(request if told is None else {**request, **told.fields}) if rule is None else rule.steps
        if steps and isinstance(steps[0], Respond):
            return _whole_response(steps[0])
        steps = steps if told is None else told.written(steps)
        playback = Playback(request, steps)
        if not request.get("stream") or (rule is not None and not rule.streams):
            return web.Response(body=playback.completion(), content_type="application/json")
        return await self._stream(http_request, playback)

    def _rule_for(self, request: dict[str, Any]) -> Rule | None:
        for rule in self.script.rules:
            earlier = self._answered.get(rule, 0)
            if rule.matches(request, earlier):
                self._answered[rule] = earlier + 1
                return rule
        return None

    async def _stream(self, http_request: web.Request, playback: Playback) -> web.StreamResponse:
        self._count_stream(1)
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        try:
            await response.prepare(http_request)
            await _play(response, playback.frames)
            if isinstance(playback.ending, Cut) and http_request.transport is not None:
                http_request.transport.close()
            if playback.ending is not None:
                await asyncio.Event().wait()  # ended by cancellation, once the connection is gone
        except ConnectionResetError:
            pass  # the client has left while a frame was being written
        finally:
            self._count_stream(-1)
        return response

    def _count_stream(self, change: int) -> None:
        self.open_streams += change
        for changed in self._waiting:
            if not changed.done():
                changed.set_result(None)
        self._waiting.clear()


async def _embed(http_request: web.Request) -> web.Response:
    return web.json_response(embedding_answer(msgspec.json.decode(await http_request.read())))


async def _rerank(http_request: web.Request) -> web.Response:
    return web.json_response(rerank_answer(msgspec.json.decode(await http_request.read())))


async def _play(response: web.StreamResponse, frames: list[tuple[float, bytes]]) -> None:
    """Send the frames on time; those without a pause between them go out in one write."""
    loop = asyncio.get_running_loop()
    due = loop.time()
    ready: list[bytes] = []
    ready_bytes = 0
    for pause_seconds, frame in frames:
        if ready and (pause_seconds or ready_bytes > _WRITE_BYTES_MAX):
            await response.write(b"".join(ready))
            ready.clear()
            ready_bytes = 0
        if pause_seconds:
            due += pause_seconds
            await asyncio.sleep(due - loop.time())
        ready.append(frame)
        ready_bytes += len(frame)
    if ready:
        await response.write(b"".join(ready))


def _whole_response(step: Respond) -> web.Response:
    body = step.body.encode() if isinstance(step.body, str) else msgspec.json.encode(step.body)
    return web.Response(status=step.status, body=body, headers={"Content-Type": step.content_type, **step.headers})


def _conversation_problem(messages: list[dict[str, Any]]) -> str | None:
    """Why the hosted API would refuse these messages: each tool call needs its result right after it, and no other."""
    pending: list[str] = []
    for message in messages:
        if message.get("role") == "tool":
            if message.get("tool_call_id") not in pending:
                return "messages with role 'tool' must be a response to a preceding message with 'tool_calls'."
            pending.remove(message["tool_call_id"])
            continue
        if pending:
            break
        calls: list[dict[str, Any]] = message.get("tool_calls") or []
        pending = [call["id"] for call in calls]
    if pending:
        return f"An assistant message with 'tool_calls' must be followed by tool messages for: {', '.join(pending)}."
    return None


async def _serve(port: int, script: Script) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    async with ScriptedEndpoint(script, port=port) as endpoint:
        sys.stdout.write(endpoint.base_url + "\n")
        sys.stdout.flush()
        await stop.wait()


def main() -> None:
    """Run the endpoint from the command line."""
    parser = argparse.ArgumentParser(prog="python -m mini_assistant.models.scripted", description="A chat endpoint that follows a script.")
    parser.add_argument("--port", type=int, default=0, help="port to listen on; 0 takes a free one")
    parser.add_argument("--script", type=Path, help="JSON file with the rules")
    arguments = parser.parse_args()
    script = msgspec.json.decode(arguments.script.read_bytes(), type=Script) if arguments.script else Script()
    uvloop.run(_serve(arguments.port, script))


if __name__ == "__main__":
    main()

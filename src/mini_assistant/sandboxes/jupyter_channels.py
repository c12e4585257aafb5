"""The connection to one kernel: sends code and collects what the kernel says about it, in Jupyter's messaging protocol as JSON.

Everything that arrives is hostile: what is no message is ignored, what belongs to no pending request too, and the amount is bounded.
"""

import asyncio
import contextlib
import json
import secrets
import socket
from collections.abc import Callable
from typing import Any, Protocol, TypeVar

import aiohttp
import msgspec

# After its reply a kernel has only its last outputs to send.
_OUTPUT_TIMEOUT_SECONDS = 2.0
_SEND_TIMEOUT_SECONDS = 30.0
_PROTOCOL_VERSION = "5.3"

T = TypeVar("T")


class KernelGone(Exception):
    """The kernel died, or the connection to it broke. The message is a sentence for the model and the user.

    is_restarting: the gateway is starting another interpreter in its place.
    """

    def __init__(self, message: str, *, is_restarting: bool = False) -> None:
        super().__init__(message)
        self.is_restarting = is_restarting


class _Header(msgspec.Struct):
    msg_id: str = ""
    msg_type: str = ""


class Message(msgspec.Struct):
    """What a kernel says. content: not decoded yet."""

    channel: str = ""
    header: _Header = msgspec.field(default_factory=_Header)
    parent_header: _Header = msgspec.field(default_factory=_Header)
    content: msgspec.Raw = msgspec.Raw(b"{}")


class ValueOf(msgspec.Struct):
    """The value of an expression, or a part of an output. text: its `repr`; png: base64."""

    text: str = msgspec.field(name="text/plain", default="")
    png: str = msgspec.field(name="image/png", default="")


class _Expression(msgspec.Struct):
    status: str = ""
    data: ValueOf = msgspec.field(default_factory=ValueOf)


class Reply(msgspec.Struct):
    """How a request ended. status: "ok", "error" or "aborted". ename, evalue: what was raised. expressions: by the name given to them."""

    status: str = ""
    ename: str = ""
    evalue: str = ""
    expressions: dict[str, _Expression] = msgspec.field(name="user_expressions", default_factory=dict[str, _Expression])


class _Status(msgspec.Struct):
    execution_state: str = ""


class Code(msgspec.Struct, frozen=True):
    """What a kernel is to execute. is_silent: it is none of the model's calls. expression: evaluated afterwards, empty for none."""

    code: str = ""
    is_silent: bool = False
    expression: str = ""


EXPRESSION = "answer"
"""The name of the expression in `Reply.expressions`."""


class _Open(Protocol):
    async def __call__(self, session_id: str) -> aiohttp.ClientWebSocketResponse: ...


class _Pending:
    def __init__(self, on_message: Callable[[Message], None]) -> None:
        self.id = secrets.token_hex(16)
        self.on_message = on_message
        self.reply: asyncio.Future[Reply] = asyncio.get_running_loop().create_future()
        self.idle: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def fail(self, gone: KernelGone) -> None:
        """End what is waited for."""
        for future in (self.reply, self.idle):
            if not future.done():
                future.set_exception(gone)
                future.exception()  # looked at: there may be nobody who waits any more


class Channels:
    """open: makes the connection. request_bytes_max: what may arrive for one request, or between two."""

    def __init__(self, open_connection: _Open, request_bytes_max: int) -> None:
        self._open = open_connection
        self._request_bytes_max = request_bytes_max
        self._session_id = secrets.token_hex(16)
        self._connection: aiohttp.ClientWebSocketResponse | None = None
        self._reading: asyncio.Task[None] | None = None
        self._pending: _Pending | None = None
        self._received_bytes = 0
        self._gone: KernelGone | None = None

    async def open(self) -> None:
        """Connect. Raises SandboxUnavailable. A connection that there was is closed before."""
        await self.close()
        self._gone = None
        self._received_bytes = 0
        self._connection = await self._open(self._session_id)
        self._reading = asyncio.create_task(self._read(self._connection))

    @property
    def is_connected(self) -> bool:
        """Whether the kernel can be asked."""
        return self._connection is not None and not self._connection.closed and self._gone is None

    async def execute(self, code: Code, on_message: Callable[[Message], None]) -> Reply:
        """Let the kernel execute code; on_message gets what it puts out. One at a time. Raises KernelGone."""
        if self._connection is None or self._gone is not None:
            raise self._gone or KernelGone("There is no connection to the kernel.")
        pending = self._pending = _Pending(on_message)
        self._received_bytes = 0
        try:
            await self._send(self._connection, pending.id, code)
            reply = await pending.reply
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_OUTPUT_TIMEOUT_SECONDS):
                    await pending.idle
            return reply
        finally:
            self._pending = None

    async def close(self) -> None:
        """Close the connection; what is pending ends with KernelGone."""
        self._end(KernelGone("The connection to the kernel was closed."))
        if self._reading is not None:
            self._reading.cancel()
            await asyncio.wait([self._reading])
            self._reading = None
        if self._connection is not None:
            await self._connection.close()
            self._connection = None

    async def _send(self, connection: aiohttp.ClientWebSocketResponse, message_id: str, code: Code) -> None:
        content: dict[str, Any] = {
            "code": code.code,
            "silent": code.is_silent,
            "store_history": not code.is_silent,
            "user_expressions": {EXPRESSION: code.expression} if code.expression else {},
            "allow_stdin": False,
            "stop_on_error": False,
        }
        header = {
            "msg_id": message_id,
            "msg_type": "execute_request",
            "username": "",
            "session": self._session_id,
            "version": _PROTOCOL_VERSION,
        }
        message: dict[str, Any] = {"channel": "shell", "header": header, "parent_header": {}, "metadata": {}, "content": content}
        try:
            async with asyncio.timeout(_SEND_TIMEOUT_SECONDS):
                await connection.send_str(json.dumps(message))
        except (TimeoutError, aiohttp.ClientError, OSError) as exc:
            raise KernelGone("The connection to the kernel broke.") from exc

    async def _read(self, connection: aiohttp.ClientWebSocketResponse) -> None:
        try:
            _acknowledge_at_once(connection)
            # `receive` does not raise: what goes wrong comes as a message of another type.
            while (frame := await connection.receive()).type in (aiohttp.WSMsgType.TEXT, aiohttp.WSMsgType.BINARY):
                _acknowledge_at_once(connection)
                self._received_bytes += len(frame.data)
                if self._received_bytes > self._request_bytes_max:
                    self._end(KernelGone("The kernel sent more than a session may."))
                    break
                # Binary ones have buffers of widgets, which are of no use here.
                if frame.type == aiohttp.WSMsgType.TEXT and (message := _decoded(frame.data)) is not None:
                    self._take(message)
        finally:
            self._end(KernelGone("The connection to the kernel broke."))
        await connection.close()

    def _take(self, message: Message) -> None:
        kind, pending = message.header.msg_type, self._pending
        is_mine = pending is not None and message.parent_header.msg_id == pending.id
        if kind == "status" and message.channel == "iopub":
            status = decoded_content(message, _Status)
            if status is None:
                return
            if status.execution_state in ("dead", "restarting"):
                is_restarting = status.execution_state == "restarting"
                self._end(KernelGone("The Python interpreter ended by itself.", is_restarting=is_restarting))
            elif status.execution_state == "idle" and pending is not None and is_mine and not pending.idle.done():
                pending.idle.set_result(None)
        elif kind == "execute_reply" and message.channel == "shell":
            reply = decoded_content(message, Reply)
            if pending is not None and is_mine and reply is not None and not pending.reply.done():
                pending.reply.set_result(reply)
        # Threads that code started go on after its call; what they put out then is of this session as well.
        elif pending is not None and message.channel == "iopub" and (is_mine or kind in ("stream", "display_data")):
            pending.on_message(message)

    def _end(self, gone: KernelGone) -> None:
        self._gone = self._gone or gone
        if self._pending is not None:
            self._pending.fail(self._gone)


def decoded_content(message: Message, kind: type[T]) -> T | None:
    """What a message says, None when it is not of this kind."""
    try:
        return msgspec.json.decode(message.content, type=kind)
    except msgspec.DecodeError:
        return None


def _decoded(text: str) -> Message | None:
    try:
        return msgspec.json.decode(text, type=Message)
    except msgspec.DecodeError:
        return None


def _acknowledge_at_once(connection: aiohttp.ClientWebSocketResponse) -> None:
    """Tornado waits for this before it sends its next small message, and else it would come 40 ms later. Linux forgets it after a while."""
    with contextlib.suppress(AttributeError, OSError):
        connection.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK, 1)

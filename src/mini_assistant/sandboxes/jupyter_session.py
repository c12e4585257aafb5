"""One kernel on a gateway as a session: its calls, its limits of time, and its files.

Gateways have no route for files, so the kernel itself is asked for them, by calls that the model does not see. A kernel whose variables
are lost still has its files, so it is restarted, and asked for nothing else from then on.
"""

import asyncio
import base64
import contextlib
import json
import logging
import re
import secrets
from collections.abc import AsyncGenerator, AsyncIterable, Callable
from pathlib import Path
from typing import Any

import msgspec

from mini_assistant.errors import SandboxFileMissing, SandboxFull, SandboxUnavailable
from mini_assistant.sandboxes.base import DATA_DIRECTORY, FILE_NAME_BYTES_MAX, Execution, Outcome, Output, SandboxFile
from mini_assistant.sandboxes.jupyter_channels import EXPRESSION, Channels, Code, KernelGone, Message, Reply
from mini_assistant.sandboxes.jupyter_gateway import Gateway
from mini_assistant.sandboxes.jupyter_output import CallOutput
from mini_assistant.settings import Settings

_KERNEL_SOURCE = Path(__file__).with_name("jupyter_kernel.py")
_KERNEL_MODULE = "mini_assistant_kernel"
_WARM_MODULES = ["numpy", "pandas", "matplotlib.pyplot"]
_WARM_TIMEOUT_SECONDS = 60.0
_ORDER_TIMEOUT_SECONDS = 15.0
# A kernel that answers each order just in time must not hold up the server for ever.
_FILE_TIMEOUT_SECONDS = 120.0
_GRACE_SECONDS = 2.0
_KILL_TIMEOUT_SECONDS = 10.0
_CLOSE_TIMEOUT_SECONDS = 15.0
# Of a file, in one message; the servers take at most 10 MiB.
_PIECE_BYTES = 1024 * 1024
_MESSAGE_BYTES_MIN = 4 * 1024 * 1024
_DEPTH_MAX = 32
_VERSION_CHARACTERS_MAX = 200
_BASE64_TEXT = re.compile(r"'([A-Za-z0-9+/=]*)'")

_log = logging.getLogger(__name__)


class _Answer(msgspec.Struct):
    """The head of what the kernel answers to an order. error: empty when it was done."""

    error: str = ""
    files: list[tuple[str, int, str]] = msgspec.field(default_factory=list[tuple[str, int, str]])
    is_empty: bool = False
    is_writable: bool = False


class FolderNotEmpty(SandboxUnavailable):
    """Somebody else's files are where a session's should be."""


class JupyterSession:
    """A `SandboxSession`. on_close: called once, when the kernel has been ended. `start` must be called first."""

    def __init__(self, gateway: Gateway, kernel_id: str, settings: Settings, on_close: Callable[[], None]) -> None:
        self._gateway = gateway
        self._kernel_id = kernel_id
        self._settings = settings
        self._on_close = on_close
        image_bytes = settings.sandbox_image_bytes_max * 4 // 3
        self._message_bytes_max = max(_MESSAGE_BYTES_MIN, image_bytes + _PIECE_BYTES)
        request_bytes_max = (settings.sandbox_images_max + 1) * image_bytes + 16 * (settings.sandbox_log_bytes_max + _PIECE_BYTES)
        self._channels = Channels(self._open_channels, request_bytes_max)
        # A kernel does one thing after the other.
        self._turn = asyncio.Lock()
        self._stop: asyncio.Event | None = None
        self._is_lost = False
        self._needs_restart = False
        # The gateway does so by itself, and does not take a request for the same well.
        self._is_restarting = False
        self._is_closed = False
        self._is_deleted = False
        # Whether what lies in the folder is of this session.
        self._has_folder = False

    @property
    def is_lost(self) -> bool:
        return self._is_lost

    async def start(self, *, is_warm: bool) -> None:
        """Set the kernel up. Raises FolderNotEmpty and SandboxUnavailable; the session has to be closed then too."""
        async with self._turn:
            answer = await self._set_up()
            if not answer.is_empty:
                raise FolderNotEmpty(f"{DATA_DIRECTORY} of the gateway at {self._gateway.name} is not empty: it is in use, or was.")
            if not answer.is_writable:
                raise SandboxUnavailable(f"Code on the gateway at {self._gateway.name} cannot write to {DATA_DIRECTORY}.")
            self._has_folder = True
            if is_warm:
                await self._asked({"do": "warm_up", "modules": _WARM_MODULES}, timeout_seconds=_WARM_TIMEOUT_SECONDS)

    # ---- code

    async def execute(self, code: str, on_output: Callable[[Output], None]) -> Execution:
        async with self._turn:
            if self._is_lost:
                raise SandboxUnavailable("The session is lost.")
            if not self._channels.is_connected:
                await self._reconnect()
            stop = self._stop = asyncio.Event()
            output = CallOutput(self._settings, on_output)
            call = asyncio.create_task(self._channels.execute(Code(code), output.take))
            stopping = asyncio.create_task(stop.wait())
            try:
                await asyncio.wait(
                    [call, stopping], timeout=self._settings.sandbox_call_timeout_seconds, return_when=asyncio.FIRST_COMPLETED
                )
                if call.done():
                    return self._ended(call)
                if stop.is_set():
                    return await self._stopped(call, "cancelled", "")
                seconds = self._settings.sandbox_call_timeout_seconds
                return await self._stopped(call, "timeout", f"The code was stopped: it ran longer than {seconds:g} seconds.")
            except asyncio.CancelledError:
                self._lose()
                raise
            finally:
                self._stop = None
                stopping.cancel()
                call.cancel()
                await asyncio.wait([call, stopping])

    async def interrupt(self) -> None:
        if self._stop is not None:
            self._stop.set()

    def _ended(self, call: asyncio.Task[Reply]) -> Execution:
        try:
            reply = call.result()
        except KernelGone as gone:
            self._lose()
            self._is_restarting = gone.is_restarting
            return Execution("cancelled" if self._is_closed else "crashed", str(gone), is_lost=True)
        return Execution(_outcome(reply))

    async def _stopped(self, call: asyncio.Task[Reply], outcome: Outcome, detail: str) -> Execution:
        """Interrupt the code, and where that does not help, kill the interpreter."""
        with contextlib.suppress(SandboxUnavailable, TimeoutError):
            async with asyncio.timeout(_GRACE_SECONDS):
                await self._gateway.interrupt_kernel(self._kernel_id)
                await asyncio.wait([call])
        if call.done() and call.exception() is None:
            return Execution(outcome, detail)
        self._lose()
        with contextlib.suppress(SandboxUnavailable, TimeoutError):
            async with asyncio.timeout(_KILL_TIMEOUT_SECONDS):
                await self._restart()
        return Execution(outcome, detail, is_lost=True)

    def _lose(self) -> None:
        self._is_lost = True
        self._needs_restart = True

    # ---- files

    async def put_file(self, name: str, pieces: AsyncIterable[bytes]) -> None:
        if self._is_lost:
            raise SandboxUnavailable("The session is lost.")
        if not _is_file_name(name):
            raise SandboxFull(f"The sandbox can have no file of the name {name[:FILE_NAME_BYTES_MAX]!r}.")
        files = await self.list_files()
        if len(files) + len(name.split("/")) > self._settings.sandbox_files_max:
            raise SandboxFull(f"The sandbox has its {self._settings.sandbox_files_max} files already.")
        free_bytes = self._settings.sandbox_disk_bytes_max - sum(file.size_bytes for file in files)
        unfinished = f".unfinished-{secrets.token_hex(8)}"
        try:
            await self._write(unfinished, pieces, free_bytes)
            await self._done({"do": "finish", "unfinished": unfinished, "name": name})
        except BaseException:
            with contextlib.suppress(SandboxUnavailable):
                await self._order({"do": "drop", "unfinished": unfinished})
            raise

    async def _write(self, unfinished: str, pieces: AsyncIterable[bytes], free_bytes: int) -> None:
        waiting = bytearray()
        await self._done({"do": "append", "unfinished": unfinished})
        async for piece in pieces:
            free_bytes -= len(piece)
            if free_bytes < 0:
                raise SandboxFull("The file does not fit into the sandbox.")
            waiting += piece
            while len(waiting) >= _PIECE_BYTES:
                await self._done({"do": "append", "unfinished": unfinished}, bytes(waiting[:_PIECE_BYTES]))
                del waiting[:_PIECE_BYTES]
        if waiting:
            await self._done({"do": "append", "unfinished": unfinished}, bytes(waiting))

    async def _done(self, order: dict[str, Any], data: bytes = b"") -> None:
        answer, _ = await self._order(order, data)
        if answer.error:
            raise SandboxFull(f"The file cannot be written in the sandbox: {answer.error[:200]}.")

    async def list_files(self) -> list[SandboxFile]:
        try:
            answer, _ = await self._order({"do": "list", "entries_max": 4 * self._settings.sandbox_files_max})
        except SandboxUnavailable as exc:
            # With the kernel its container may be gone, and the files too.
            _log.warning("The files of a session cannot be listed: %s", exc)
            self._lose()
            return []
        files = {name: SandboxFile(name, size, version) for name, size, version in answer.files if _is_file(name, size, version)}
        return sorted(files.values())[: self._settings.sandbox_files_max]

    async def read_file(self, name: str) -> AsyncGenerator[bytes]:
        if not _is_file_name(name):
            raise SandboxFileMissing(f"There is no file {name[:FILE_NAME_BYTES_MAX]!r} in the sandbox.")
        position, waited_seconds = 0, 0.0
        clock = asyncio.get_running_loop().time
        while position < self._settings.sandbox_disk_bytes_max:
            size = min(_PIECE_BYTES, self._settings.sandbox_disk_bytes_max - position)
            asked_at = clock()
            try:
                answer, piece = await self._order({"do": "read", "name": name, "start": position, "size": size})
            except SandboxUnavailable as exc:
                raise SandboxFileMissing(f"The file {name!r} in the sandbox cannot be read: {exc}") from exc
            waited_seconds += clock() - asked_at
            if answer.error or len(piece) > size or waited_seconds > _FILE_TIMEOUT_SECONDS:
                raise SandboxFileMissing(f"There is no file {name!r} in the sandbox.")
            if piece:
                yield piece
            position += len(piece)
            if len(piece) < size:
                return

    # ---- the kernel

    async def close(self) -> None:
        if self._is_closed:
            return
        self._is_closed = True
        self._is_lost = True
        try:
            if self._turn.locked():
                # A kernel that is busy would not listen. Its call ends with the connection.
                self._needs_restart = True
                await self._channels.close()
            if self._has_folder:
                with contextlib.suppress(SandboxUnavailable, TimeoutError):
                    async with asyncio.timeout(_CLOSE_TIMEOUT_SECONDS):
                        await self._order({"do": "clear"})
        finally:
            self._is_deleted = True
            await self._delete_kernel()

    async def _delete_kernel(self) -> None:
        try:
            await self._channels.close()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_CLOSE_TIMEOUT_SECONDS):
                    await self._gateway.delete_kernel(self._kernel_id)
        except SandboxUnavailable as exc:
            _log.warning("A kernel cannot be ended: %s", exc)
        finally:
            await self._gateway.close()
            self._on_close()

    async def _open_channels(self, session_id: str) -> Any:
        return await self._gateway.open_channels(self._kernel_id, session_id, self._message_bytes_max)

    async def _reconnect(self) -> None:
        """The connection broke while nobody used it; the kernel may live."""
        try:
            await self._channels.open()
            await self._asked({"do": "list", "entries_max": 1})
        except SandboxUnavailable:
            self._lose()
            raise

    async def _restart(self) -> None:
        await self._channels.close()
        is_restarting, self._is_restarting = self._is_restarting, False
        if not is_restarting:
            await self._gateway.restart_kernel(self._kernel_id)
        await self._set_up()
        self._needs_restart = False

    async def _set_up(self) -> _Answer:
        await self._channels.open()
        module = f"__import__('types').ModuleType('{_KERNEL_MODULE}')"
        source = await asyncio.to_thread(_KERNEL_SOURCE.read_text, encoding="utf-8")
        # Not by executed code: that would leave its names among those of the model's.
        await self._evaluated(f"exec({source!r}, __import__('sys').modules.setdefault('{_KERNEL_MODULE}', {module}).__dict__)")
        answer, _ = await self._asked({"do": "set_up"})
        if answer.error:
            raise SandboxUnavailable(f"{DATA_DIRECTORY} of the gateway at {self._gateway.name} cannot be used: {answer.error[:200]}.")
        return answer

    async def _order(self, order: dict[str, Any], data: bytes = b"") -> tuple[_Answer, bytes]:
        """What the kernel answers. Raises SandboxUnavailable when it does not answer; the session is lost then."""
        async with self._turn:
            if self._is_deleted:
                raise SandboxUnavailable("The session is closed.")
            try:
                if self._needs_restart:
                    await self._restart()
                elif not self._channels.is_connected:
                    await self._channels.open()
                return await self._asked(order, data)
            except SandboxUnavailable:
                self._lose()
                raise

    async def _asked(self, order: dict[str, Any], data: bytes = b"", *, timeout_seconds: float | None = None) -> tuple[_Answer, bytes]:
        encoded = base64.b64encode(json.dumps({**order, "folder": DATA_DIRECTORY}).encode() + b"\n" + data).decode()
        text = await self._evaluated(f"__import__('{_KERNEL_MODULE}').answer('{encoded}')", timeout_seconds)
        try:
            quoted = _BASE64_TEXT.fullmatch(text)
            answer, _, content = base64.b64decode(quoted[1] if quoted else "", validate=True).partition(b"\n")
            return msgspec.json.decode(answer, type=_Answer), content
        except (ValueError, msgspec.DecodeError) as exc:
            raise SandboxUnavailable("The kernel gave an answer that is none.") from exc

    async def _evaluated(self, expression: str, timeout_seconds: float | None = None) -> str:
        """The `repr` of an expression in the kernel."""
        try:
            async with asyncio.timeout(timeout_seconds or _ORDER_TIMEOUT_SECONDS):
                reply = await self._channels.execute(Code(is_silent=True, expression=expression), _ignore)
        except (KernelGone, TimeoutError) as exc:
            raise SandboxUnavailable(str(exc) or "The kernel did not answer in time.", retryable=True) from exc
        value = reply.expressions.get(EXPRESSION)
        return value.data.text if value is not None else ""


def _ignore(_message: Message) -> None:
    """Nobody sees what is put out now."""


def _outcome(reply: Reply) -> Outcome:
    if reply.status == "ok":
        return "ok"
    if reply.ename == "MemoryError":
        return "memory"
    if reply.ename == "OSError" and reply.evalue.startswith(("[Errno 28]", "[Errno 122]")):
        return "disk_limit"
    return "error"


def _is_file(name: str, size: int, version: str) -> bool:
    return _is_file_name(name) and size >= 0 and len(version) <= _VERSION_CHARACTERS_MAX


def _is_file_name(name: str) -> bool:
    try:
        parts = name.encode().split(b"/")
    except UnicodeEncodeError:
        return False
    is_path = len(parts) <= _DEPTH_MAX and not {b"", b".", b".."} & set(parts)
    return is_path and all(len(part) <= FILE_NAME_BYTES_MAX and b"\0" not in part for part in parts)

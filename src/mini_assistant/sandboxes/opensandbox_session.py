"""One session of OpenSandbox: an interpreter and its files, reached through execd inside of the sandbox.

execd hands code to a Jupyter kernel. It starts a kernel that has died again without a word, so the session remembers the process of its
own and asks for it: before each call, and every second while code is silent.
"""

import asyncio
import contextlib
import logging
import tempfile
from collections.abc import AsyncGenerator, AsyncIterable, Awaitable, Callable
from typing import IO, Literal, Self

import msgspec

from mini_assistant.errors import SandboxFileMissing, SandboxFull, SandboxUnavailable
from mini_assistant.sandboxes.base import DATA_DIRECTORY, FILE_NAME_BYTES_MAX, Execution, Outcome, Output, SandboxFile
from mini_assistant.sandboxes.opensandbox_http import (
    AnswerLate,
    ContextRecord,
    Endpoint,
    FileRecord,
    RequestRefused,
    Upload,
    checked_id,
)
from mini_assistant.sandboxes.opensandbox_stream import CallOutput, CallStream
from mini_assistant.settings import Settings

DOLLAR_VARIABLE = "MINI_ASSISTANT_DOLLAR"
"""A variable of the sandbox whose value is `$`. execd replaces variables in paths and knows no other way to write that letter."""

# execd passes on what the last expression of a cell shows, and nothing else that is shown. It ends its stream a moment after it has seen
# the reply to the cell, an error, or a shown value with the number of the cell; what comes later is lost, or is told with the next call.
# So all that is shown goes the way of a last expression, no value has a number, figures come before an error, and output before the reply.
_SETUP = f"""
def _prepare():
    import os, sys, time, warnings
    from IPython import get_ipython
    shell = get_ipython()
    hook = shell.displayhook
    hook.write_output_prompt = lambda: None
    def publish(data, metadata=None, **_):
        hook.start_displayhook()
        hook.write_format_data(data, metadata or {{}})
        hook.finish_displayhook()
    shell.display_pub.publish = publish
    show_error, is_flushing = shell._showtraceback, []
    def show_figures_and_error(*error):
        inline = sys.modules.get("matplotlib_inline.backend_inline")
        if inline is not None and not is_flushing:
            is_flushing.append(True)
            try:
                inline.flush_figures()
            finally:
                is_flushing.clear()
        show_error(*error)
    shell._showtraceback = show_figures_and_error
    def wait_for_output(_):
        sys.stdout.flush()
        sys.stderr.flush()
        time.sleep(0.1)
    shell.events.register("post_run_cell", wait_for_output)
    # One stream, so that what is written to both keeps its order.
    sys.stderr = sys.stdout
    # After an error a kernel refuses what has come meanwhile, and execd waits for ever then.
    shell.kernel._abort_queues = lambda *_: None
    # IPython's own end the kernel and not only the code.
    shell.user_ns["exit"] = shell.user_ns["quit"] = sys.exit
    warnings.filterwarnings("ignore", "To exit: use")
    os.chdir({DATA_DIRECTORY!r})
    print(os.getpid())
_prepare()
del _prepare
"""
_WARM_UP = """
def _load():
    import importlib
    for name in ("numpy", "pandas", "matplotlib.pyplot"):
        try:
            importlib.import_module(name)
        except ImportError:
            pass
_load()
del _load
"""
_LOOK_INTERVAL_SECONDS = 1.0
# Between an interrupt and the end of what does not listen to it.
_GRACE_SECONDS = 2.0
_KILL_TIMEOUT_SECONDS = 15.0
_TRANSFER_TIMEOUT_SECONDS = 300.0
_LISTING_BYTES_FREE = 64 * 1024
_LISTING_BYTES_PER_FILE = 2048
_PATH_BYTES_MAX = 4096
_SPOOLED_BYTES_MAX = 1024 * 1024
_SEND_BYTES = 256 * 1024
_BOUNDARY = "mini-assistant-4f1d0c6e9a7b"

_log = logging.getLogger(__name__)


class OpenSandboxSession:
    """A `SandboxSession`. execd: where its sandbox is reached. end: ends the sandbox, and may be called twice."""

    def __init__(self, execd: Endpoint, settings: Settings, end: Callable[[], Awaitable[None]]) -> None:
        self._execd = execd
        self._settings = settings
        self._end = end
        self._context_id = ""
        self._process_id = 0
        self._kills_for_memory = 0
        self._call: _Call | None = None
        self._is_lost = False

    @classmethod
    async def start(cls, execd: Endpoint, settings: Settings, end: Callable[[], Awaitable[None]]) -> Self:
        """A session with its interpreter and its folder; the caller limits the time. Raises SandboxUnavailable."""
        session = cls(execd, settings, end)
        await execd.call("POST", "/directories", body={DATA_DIRECTORY: {"mode": 777}})
        answer = await execd.call("POST", "/code/context", body={"language": "python"}, timeout_seconds=_TRANSFER_TIMEOUT_SECONDS)
        session._context_id = checked_id(execd.decoded(answer, ContextRecord).id, "an interpreter")
        told: list[str] = []
        stream = await session._read(_SETUP, CallOutput(settings, lambda output: told.append(getattr(output, "text", ""))))
        process_id = "".join(told).strip()
        if not process_id.isdecimal() or len(process_id) > 10:
            raise SandboxUnavailable(f"The interpreter of the sandbox cannot be prepared: {stream.error_name or 'it says nothing'}.")
        session._process_id = int(process_id)
        session._kills_for_memory = await session._count_kills_for_memory()
        return session

    @property
    def is_lost(self) -> bool:
        """As `SandboxSession.is_lost`."""
        return self._is_lost

    def lose(self) -> None:
        """The sandbox is gone."""
        self._is_lost = True

    async def warm_up(self) -> None:
        """Load the large libraries, those that the image has. Raises SandboxUnavailable when that takes too long or too much."""
        execution = await self.execute(_WARM_UP, lambda _: None)
        if execution.is_lost:
            raise SandboxUnavailable(f"The libraries in the sandbox cannot be loaded: {execution.outcome}.")

    # ---- code --------------------------------------------------------------------------------------------------------------------------

    async def execute(self, code: str, on_output: Callable[[Output], None]) -> Execution:
        """As `SandboxSession.execute`."""
        self._raise_if_lost()
        call = self._call = _Call(CallOutput(self._settings, on_output))
        reading: asyncio.Task[CallStream] | None = None
        try:
            if not await self._is_interpreter_alive():
                self._is_lost = True
                raise SandboxUnavailable("The interpreter of the sandbox has ended.")
            if not code.strip():  # which execd refuses
                return Execution("ok")
            reading = asyncio.create_task(self._read(code, call.output))
            return await self._ending(reading, await self._stop(reading, call))
        except BaseException:
            # Nobody knows what the interpreter is doing now.
            self._is_lost = True
            raise
        finally:
            self._call = None
            if reading is not None:
                await _ended(reading)

    async def interrupt(self) -> None:
        """As `SandboxSession.interrupt`."""
        if self._call is not None:
            self._call.is_cancelled.set()

    async def _read(self, code: str, output: CallOutput) -> CallStream:
        """Run code and pass its output on. Raises SandboxUnavailable when the stream breaks off."""
        stream = CallStream(self._settings, output)
        body = {"context": {"id": self._context_id, "language": "python"}, "code": code.encode("utf-8", "replace").decode()}
        async with self._execd.open("POST", "/code", body=body) as pieces:
            # The end of the stream is the end of the code. The event for it may come much earlier: execd takes the first message of the
            # kernel for it that says idle, which may answer something else.
            async for piece in pieces:
                stream.feed(piece)
        if stream.failure is not None or not stream.has_ended:
            raise SandboxUnavailable(f"The sandbox broke off its output{': ' if stream.failure else ''}{stream.failure or ''}.")
        return stream

    async def _stop(self, reading: "asyncio.Task[CallStream]", call: "_Call") -> Literal["timeout", "cancelled", "crashed"] | None:
        """Wait until the code ends, and tell why it has to; None when it has ended by itself."""
        loop = asyncio.get_running_loop()
        end = loop.time() + self._settings.sandbox_call_timeout_seconds
        cancelled = asyncio.create_task(call.is_cancelled.wait())
        try:
            while True:
                left = end - loop.time()
                await asyncio.wait([reading, cancelled], timeout=min(left, _LOOK_INTERVAL_SECONDS), return_when=asyncio.FIRST_COMPLETED)
                if reading.done():
                    return None
                if cancelled.done():
                    return "cancelled"
                if loop.time() >= end:
                    return "timeout"
                if not await self._is_interpreter_alive():
                    return "crashed"
        finally:
            cancelled.cancel()

    async def _ending(self, reading: "asyncio.Task[CallStream]", stopped: Literal["timeout", "cancelled", "crashed"] | None) -> Execution:
        if stopped in ("timeout", "cancelled"):
            with contextlib.suppress(SandboxUnavailable):
                await self._execd.call("DELETE", "/code", query=[("id", self._context_id)], timeout_seconds=_GRACE_SECONDS)
            await asyncio.wait([reading], timeout=_GRACE_SECONDS)
            if not reading.done() or reading.exception() is not None:
                await self._kill_interpreter()
            detail = f"The code was stopped after {self._settings.sandbox_call_timeout_seconds:g} seconds." if stopped == "timeout" else ""
            return Execution(stopped, detail, is_lost=self._is_lost)
        if stopped == "crashed" or isinstance(reading.exception(), SandboxUnavailable):
            return await self._crash()
        return await self._outcome(reading.result())

    async def _crash(self) -> Execution:
        await self._kill_interpreter()
        if await self._count_kills_for_memory() > self._kills_for_memory:
            return Execution("memory", "The code took more memory than it may.", is_lost=True)
        return Execution("crashed", "The interpreter ended.", is_lost=True)

    async def _outcome(self, stream: CallStream) -> Execution:
        """What came of code that has ended by itself."""
        outcome: Outcome = "ok" if stream.error_name in (None, "SystemExit") else "error"
        if stream.error_name == "MemoryError":
            outcome = "memory"
        if stream.error_name == "OSError" and stream.error_value.startswith("[Errno 28]"):
            outcome = "disk_limit"
        try:
            files = await self._all_files()
        except SandboxUnavailable:
            return Execution(outcome) if await self._is_interpreter_alive() else await self._crash()
        used_bytes = sum(file.size_bytes for file in files)
        if used_bytes > self._settings.sandbox_disk_bytes_max or len(files) > self._settings.sandbox_files_max:
            return Execution("disk_limit", f"There are more files in {DATA_DIRECTORY} than there may be, or they are too large.")
        return Execution(outcome)

    async def _kill_interpreter(self) -> None:
        """End the interpreter, and keep the files."""
        self._is_lost = True
        try:
            await self._execd.call("DELETE", f"/code/contexts/{self._context_id}", timeout_seconds=_KILL_TIMEOUT_SECONDS)
        except SandboxUnavailable as exc:
            _log.warning("An interpreter could not be ended; it ends with its sandbox. %s", exc.message)

    async def _is_interpreter_alive(self) -> bool:
        try:
            await self._execd.call("GET", "/files/info", query=[("path", f"/proc/{self._process_id}")])
        except AnswerLate:
            return True  # the sandbox is busy
        except SandboxUnavailable:
            return False
        return True

    async def _count_kills_for_memory(self) -> int:
        """How often the system has ended a process of the sandbox because it took too much; 0 where that is not told."""
        query = [("path", "/sys/fs/cgroup/memory.events"), ("offset", "1"), ("limit", "20")]
        try:
            lines = (await self._execd.call("GET", "/files/download", query=query)).split(b"\n")
        except SandboxUnavailable:
            return 0
        counts = [line.removeprefix(b"oom_kill ") for line in lines if line.startswith(b"oom_kill ")]
        return int(counts[0]) if counts and counts[0].isdigit() and len(counts[0]) < 10 else 0

    # ---- files -------------------------------------------------------------------------------------------------------------------------

    async def put_file(self, name: str, pieces: AsyncIterable[bytes]) -> None:
        """As `SandboxSession.put_file`."""
        self._raise_if_lost()
        if not _is_file_name(name):
            raise SandboxFull(f"No file can have the name {name[:100]!r}.")
        free_bytes = await self._free_bytes(name)
        # The size has to be known before the first byte is sent, and what does not fit is never sent.
        with tempfile.SpooledTemporaryFile(_SPOOLED_BYTES_MAX) as spool:
            size_bytes = await _spooled(pieces, spool, free_bytes)
            await self._remove_links(name)
            await self._upload(name, spool, size_bytes)

    async def _free_bytes(self, name: str) -> int:
        files = await self.list_files()
        others = [file for file in files if file.name != name]
        if len(others) >= self._settings.sandbox_files_max:
            raise SandboxFull(f"A session has at most {self._settings.sandbox_files_max} files.")
        return self._settings.sandbox_disk_bytes_max - sum(file.size_bytes for file in others)

    async def _upload(self, name: str, spool: IO[bytes], size_bytes: int) -> None:
        metadata = msgspec.json.encode({"path": _remote_path(name), "mode": 666})
        before = (
            f'--{_BOUNDARY}\r\nContent-Disposition: form-data; name="metadata"; filename="metadata"\r\n'
            "Content-Type: application/json\r\n\r\n"
        ).encode() + metadata
        before += (
            f'\r\n--{_BOUNDARY}\r\nContent-Disposition: form-data; name="file"; filename="file"\r\n'
            "Content-Type: application/octet-stream\r\n\r\n"
        ).encode()
        after = f"\r\n--{_BOUNDARY}--\r\n".encode()

        async def body() -> AsyncGenerator[bytes]:
            yield before
            spool.seek(0)
            while piece := await asyncio.to_thread(spool.read, _SEND_BYTES):
                yield piece
            yield after

        upload = Upload(f"multipart/form-data; boundary={_BOUNDARY}", len(before) + size_bytes + len(after), body())
        try:
            await self._execd.call("POST", "/files/upload", upload=upload, timeout_seconds=_TRANSFER_TIMEOUT_SECONDS)
        except SandboxUnavailable as exc:
            with contextlib.suppress(SandboxUnavailable):
                await self._execd.call("DELETE", "/files", query=[("path", _remote_path(name))])
            if "no space left" in exc.message.lower():
                raise SandboxFull("There is no space left in the sandbox.") from exc
            raise

    async def list_files(self) -> list[SandboxFile]:
        """As `SandboxSession.list_files`. Raises SandboxUnavailable when the sandbox is gone."""
        return (await self._all_files())[: self._settings.sandbox_files_max]

    async def _all_files(self) -> list[SandboxFile]:
        """Those that execd tells of, as far as that is of a sensible length."""
        bytes_max = _LISTING_BYTES_FREE + _LISTING_BYTES_PER_FILE * self._settings.sandbox_files_max
        try:
            answer = await self._execd.call("GET", "/files/search", query=[("path", DATA_DIRECTORY)], answer_bytes_max=bytes_max)
        except RequestRefused as exc:
            if exc.status != 404:
                raise
            await self._execd.call("GET", "/ping")
            return []  # it is the folder that is gone, not the sandbox
        if len(answer) == bytes_max:
            answer = answer[: answer.rfind(b"},") + 1] + b"]"
        found: dict[str, SandboxFile] = {}
        for record in self._execd.decoded(answer, list[FileRecord]):
            name = record.path.removeprefix(f"{DATA_DIRECTORY}/")
            # A letter that stands for bytes which are no UTF-8 is no part of a real name.
            if record.type == "file" and name != record.path and record.size >= 0 and _is_file_name(name) and "\ufffd" not in name:
                found[name] = SandboxFile(name, record.size, f"{record.size}-{record.modified_at[:40]}")
        return sorted(found.values())

    async def read_file(self, name: str) -> AsyncGenerator[bytes]:
        """As `SandboxSession.read_file`."""
        await self._raise_if_no_regular_file(name)
        left = self._settings.sandbox_disk_bytes_max
        try:
            async with (
                asyncio.timeout(_TRANSFER_TIMEOUT_SECONDS),
                self._execd.open("GET", "/files/download", query=[("path", _remote_path(name))]) as pieces,
            ):
                async for piece in pieces:
                    yield piece[:left]
                    left -= len(piece)
                    if left <= 0:
                        return
        except TimeoutError:
            raise SandboxUnavailable("The sandbox was too slow with a file.", retryable=True) from None
        except RequestRefused as exc:
            raise SandboxFileMissing(f"There is no file {name!r} any more.") from exc

    async def _raise_if_no_regular_file(self, name: str) -> None:
        missing = SandboxFileMissing(f"There is no file {name[:100]!r}.")
        if not _is_file_name(name):
            raise missing
        paths = _remote_paths(name)
        try:
            answer = await self._execd.call("GET", "/files/info", query=[("path", path) for path in paths])
        except RequestRefused as exc:
            raise missing from exc
        records = self._execd.decoded(answer, dict[str, FileRecord])
        kinds = [records[path].type if path in records else "" for path in paths]
        if kinds != ["directory"] * (len(paths) - 1) + ["file"]:
            raise missing

    async def _remove_links(self, name: str) -> None:
        """Remove a link or the like in the place of a file, so that the file is not written to where it points.

        Raises SandboxFull when there is no way to that place, as where a folder of it is a link.
        """
        paths = _remote_paths(name)
        for path in paths:
            try:
                answer = await self._execd.call("GET", "/files/info", query=[("path", path)])
            except RequestRefused:
                return
            record = self._execd.decoded(answer, dict[str, FileRecord]).get(path)
            kind = record.type if record is not None else ""
            if (kind != "directory" and path != paths[-1]) or (kind == "directory" and path == paths[-1]):
                raise SandboxFull(f"There is no place for a file {name[:100]!r}.")
            if kind not in ("file", "directory"):
                await self._execd.call("DELETE", "/directories", query=[("path", path)])

    # ---- its end -----------------------------------------------------------------------------------------------------------------------

    async def close(self) -> None:
        """As `SandboxSession.close`."""
        self._is_lost = True
        await self._end()

    def _raise_if_lost(self) -> None:
        if self._is_lost:
            raise SandboxUnavailable("The session is lost.")


class _Call:
    """Code that is running."""

    def __init__(self, output: CallOutput) -> None:
        self.output = output
        self.is_cancelled = asyncio.Event()


async def _ended(reading: "asyncio.Task[CallStream]") -> None:
    """End the reading of a stream, and look at how it has ended, which nobody else may have done."""
    reading.cancel()
    await asyncio.wait([reading])
    if not reading.cancelled():
        reading.exception()


def _is_file_name(name: str) -> bool:
    """Whether it is a path in the folder and nothing else."""
    try:
        parts = name.encode().split(b"/")
    except UnicodeEncodeError:
        return False
    return len(name) <= _PATH_BYTES_MAX and all(
        part not in (b"", b".", b"..") and len(part) <= FILE_NAME_BYTES_MAX and b"\0" not in part for part in parts
    )


def _remote_path(name: str) -> str:
    return f"{DATA_DIRECTORY}/{name}".replace("$", f"${{{DOLLAR_VARIABLE}}}")


def _remote_paths(name: str) -> list[str]:
    """The folders that a file is in, from the outermost, and the file."""
    parts = name.split("/")
    return [_remote_path("/".join(parts[: count + 1])) for count in range(len(parts))]


async def _spooled(pieces: AsyncIterable[bytes], spool: IO[bytes], bytes_max: int) -> int:
    """Write pieces to a file of this machine; gives their size. Raises SandboxFull."""
    size_bytes = 0
    waiting = bytearray()
    async for piece in pieces:
        size_bytes += len(piece)
        if size_bytes > bytes_max:
            raise SandboxFull("The file does not fit into the sandbox.")
        waiting += piece
        if len(waiting) >= _SEND_BYTES:
            await asyncio.to_thread(spool.write, bytes(waiting))
            waiting.clear()
    spool.write(waiting)
    return size_bytes

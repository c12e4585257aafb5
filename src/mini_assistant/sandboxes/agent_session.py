"""The host's side of a session whose interpreter runs guest/agent.py: of the backends process, wasm and unsafe.

Owns the pipes to the agent and the descriptor of the data folder. Nothing that comes out of a pipe is trusted: lines are bounded, an
answer counts only for the call that is pending, and everything else is dropped. One loop reads all sessions; no session has a thread.
"""

import asyncio
import codecs
import contextlib
import json
import os
import secrets
from collections.abc import AsyncGenerator, AsyncIterable, Callable, Generator, Iterator
from pathlib import Path
from typing import Literal, NamedTuple

import msgspec

from mini_assistant.errors import SandboxUnavailable
from mini_assistant.sandboxes import data_files
from mini_assistant.sandboxes.base import Execution, Image, Logs, Outcome, Output, SandboxFile
from mini_assistant.settings import Settings

AGENT_PROGRAM = Path(__file__).parent / "guest" / "agent.py"
"""What the interpreter runs, with three arguments: where it reads requests, where it writes answers (descriptors or paths), its folder."""

MATPLOTLIB_BACKEND = "module://sandbox_figures"
"""What MPLBACKEND has to be where the agent runs."""

INTERRUPT_GRACE_SECONDS = 2.0
"""How long code may take to end after it has been interrupted."""

_TICK_SECONDS = 0.1
_WARM_TIMEOUT_SECONDS = 120.0
_REAP_TIMEOUT_SECONDS = 5.0
_READ_BYTES = 64 * 1024
# What a pipe can hold at most, so what was written before something else was is read by then.
_PIPE_BYTES_MAX = 1024 * 1024
_LINE_BYTES_FREE = 1024
# How much may come in a call: so many of the longest lines beyond its figures, and so many lines at all.
_SPARE_LINES = 16
_LINES_MAX = 2000
_EXIT_WAIT_SECONDS = 0.5
_FLOOD_PAUSE_SECONDS = 0.005
_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_IS_GONE = "The session is gone; its variables are lost."
# Errors of code that stand for a limit.
_LIMITS: dict[str, Outcome] = {
    "MemoryError": "memory",
    "OSError:ENOSPC": "disk_limit",
    "OSError:EDQUOT": "disk_limit",
    "OSError:EFBIG": "disk_limit",
}


class Launched(NamedTuple):
    """A started agent, and what its backend knows to do with it.

    requests, answers, logs: descriptors of this side of its pipes, logs being its standard output and error. data: a descriptor of the
    folder of its files. can_interrupt: whether it heeds the request to interrupt. kill: ends every process of the session, and may be
    called again. over_limit: looked at every 100 ms while code runs, and when the interpreter is gone; which limit the session is over.
    dispose: drops folders and the like after all processes have ended; called once, in a thread.
    """

    process: asyncio.subprocess.Process
    requests: int
    answers: int
    logs: int
    data: int
    can_interrupt: bool
    kill: Callable[[], None]
    over_limit: Callable[[], Outcome | None]
    dispose: Callable[[], None]


class _Answer(msgspec.Struct):
    """A line from the agent. png: written as base64."""

    id: str
    event: Literal["ready", "image", "done"]
    png: bytes = b""
    error: str | None = None


class _Call:
    """What is pending: a request with what has come of it so far."""

    def __init__(self, key: str, images_max: int) -> None:
        self.key = key
        self.ended: asyncio.Future[Execution] = asyncio.get_running_loop().create_future()
        self.images_left = images_max
        self.has_left_out_images = False
        # Why it is being stopped, and when the patience with it ends.
        self.stopped_for: Outcome | None = None
        self.kill_at = float("inf")
        self._outputs: list[Output] = []

    def add(self, output: Output) -> None:
        self._outputs.append(output)

    def take_outputs(self) -> list[Output]:
        taken, self._outputs = self._outputs, []
        return taken

    def end(self, execution: Execution) -> None:
        if not self.ended.done():
            self.ended.set_result(execution)


class AgentSession:
    """A `SandboxSession`. Made around a started agent, whose descriptors it owns from then on; `start` comes first."""

    def __init__(self, launched: Launched, settings: Settings) -> None:
        self._launched = launched
        self._timeout_seconds = settings.sandbox_call_timeout_seconds
        self._image_bytes_max = settings.sandbox_image_bytes_max
        self._images_max = settings.sandbox_images_max
        self._data_limits = data_files.DataLimits(settings.sandbox_disk_bytes_max, settings.sandbox_files_max)
        self._loop = asyncio.get_running_loop()
        self._logs = _LogText(settings.sandbox_log_bytes_max)
        self._lines = _BoundedLines(settings.sandbox_image_bytes_max * 4 // 3 + _LINE_BYTES_FREE)
        self._unsent = bytearray()
        self._call: _Call | None = None
        self._is_lost = False
        self._is_closed = False
        for descriptor in (launched.requests, launched.answers, launched.logs):
            os.set_blocking(descriptor, False)
        self._loop.add_reader(launched.answers, self._read_answers)
        self._reads_logs = False
        self._has_ended_logs = False
        self._read_logs_on()
        self._exit = asyncio.create_task(launched.process.wait())
        self._exit.add_done_callback(self._on_exit)

    @property
    def is_lost(self) -> bool:
        """As `SandboxSession.is_lost`."""
        return self._is_lost

    async def start(self, timeout_seconds: float) -> None:
        """Wait until the agent is ready. Raises SandboxUnavailable, with what it said, when it is not in time; it is closed then."""
        await self._prepare("", None, timeout_seconds)

    async def warm(self) -> None:
        """Load numpy, pandas and matplotlib as far as they are there. Raises SandboxUnavailable as `start` does."""
        await self._prepare(secrets.token_hex(8), {"do": "warm"}, _WARM_TIMEOUT_SECONDS)

    async def _prepare(self, key: str, request: dict[str, str] | None, timeout_seconds: float) -> None:
        said: list[str] = []
        try:
            execution = await self._finish(
                _Call(key, 0), request, timeout_seconds, lambda output: said.append(output.text if isinstance(output, Logs) else "")
            )
            if self._is_lost or execution.outcome != "ok":
                raise SandboxUnavailable(f"Python does not start in the sandbox. {execution.detail} {''.join(said)[-500:]}".strip())
        except BaseException:
            await self.close()
            raise

    async def put_file(self, name: str, pieces: AsyncIterable[bytes]) -> None:
        """As `SandboxSession.put_file`."""
        self._raise_if_lost()
        with self._data_folder() as folder:
            await data_files.write_file(folder, name, pieces, self._data_limits)

    async def list_files(self) -> list[SandboxFile]:
        """As `SandboxSession.list_files`."""
        with self._data_folder() as folder:
            return await data_files.in_thread(lambda: data_files.list_files(folder, self._data_limits.entries_max))

    async def read_file(self, name: str) -> AsyncGenerator[bytes]:
        """As `SandboxSession.read_file`."""
        with self._data_folder() as folder:
            async with contextlib.aclosing(data_files.read_file(folder, name, self._data_limits.bytes_max)) as pieces:
                async for piece in pieces:
                    yield piece

    async def execute(self, code: str, on_output: Callable[[Output], None]) -> Execution:
        """As `SandboxSession.execute`. on_output is called between two steps of the caller's task; what it raises is raised here."""
        self._raise_if_lost()
        call = _Call(secrets.token_hex(8), self._images_max)
        return await self._finish(call, {"do": "execute", "code": code}, self._timeout_seconds, on_output)

    async def interrupt(self) -> None:
        """As `SandboxSession.interrupt`."""
        if self._call is not None and not self._call.ended.done():
            self._stop(self._call, "cancelled")

    async def close(self) -> None:
        """As `SandboxSession.close`."""
        self._lose("cancelled", "The session was closed.")
        if self._is_closed:
            return
        self._is_closed = True
        os.close(self._launched.data)
        await self._reap()
        await asyncio.shield(self._loop.run_in_executor(None, self._launched.dispose))

    # ---- calls ---------------------------------------------------------------------------------------------------------------------

    def _raise_if_lost(self) -> None:
        if self._is_lost:
            raise SandboxUnavailable(_IS_GONE)

    async def _finish(
        self, call: _Call, request: dict[str, str] | None, timeout_seconds: float, on_output: Callable[[Output], None]
    ) -> Execution:
        """Send a request and wait until it has come to its end, whichever."""
        assert self._call is None, "a session runs one call at a time"
        self._call = call
        self._lines.begin_call(self._images_max)
        self._read_logs_on()
        try:
            if request is not None:
                self._send({"id": call.key, **request})
            return await self._watch(call, timeout_seconds, on_output)
        except BaseException:
            self._lose("cancelled")  # nobody waits for the code any more
            raise
        finally:
            self._call = None

    async def _watch(self, call: _Call, timeout_seconds: float, on_output: Callable[[Output], None]) -> Execution:
        deadline = self._loop.time() + timeout_seconds
        while not call.ended.done():
            await asyncio.wait([call.ended], timeout=_TICK_SECONDS)
            self._take_logs(call)
            for output in call.take_outputs():
                on_output(output)
            over = self._launched.over_limit() if not self._is_lost else None
            if over is not None:
                self._lose(over)
            elif self._loop.time() >= call.kill_at:
                self._lose(call.stopped_for or "timeout")
            elif self._loop.time() >= deadline and call.stopped_for is None and not call.ended.done():
                self._stop(call, "timeout")
        self._take_logs(call, is_last=True)
        for output in call.take_outputs():
            on_output(output)
        if self._is_lost:
            await self._reap()
        return self._described(call.ended.result(), timeout_seconds)

    def _stop(self, call: _Call, reason: Outcome) -> None:
        if call.stopped_for is None:
            call.stopped_for = reason
            call.kill_at = self._loop.time() + INTERRUPT_GRACE_SECONDS
            if self._launched.can_interrupt:
                self._send({"id": call.key, "do": "interrupt"})
            else:
                self._lose(reason)

    def _described(self, execution: Execution, timeout_seconds: float) -> Execution:
        """The execution with a sentence about it, unless it has one or needs none."""
        detail = (
            execution.detail
            or {
                "ok": "",
                "error": "",
                "timeout": f"The code was stopped: it ran longer than {timeout_seconds:g} seconds.",
                "memory": "The code took more memory than it may.",
                "disk_limit": f"The code wrote more than {self._data_limits.bytes_max} bytes or {self._data_limits.entries_max} files.",
                "crashed": "The Python interpreter ended unexpectedly.",
                "cancelled": "The code was stopped.",
            }[execution.outcome]
        )
        return Execution(execution.outcome, detail, self._is_lost)

    def _lose(self, outcome: Outcome, detail: str = "") -> None:
        """Kill what there is of the session; the pending call ends this way. Its files stay."""
        if self._is_lost:
            return
        self._is_lost = True
        self._launched.kill()
        self._drain_logs()
        self._loop.remove_reader(self._launched.answers)
        self._loop.remove_reader(self._launched.logs)
        self._loop.remove_writer(self._launched.requests)
        for descriptor in (self._launched.requests, self._launched.answers, self._launched.logs):
            os.close(descriptor)
        self._unsent.clear()
        if self._call is not None:
            self._call.end(Execution(outcome, detail))

    def _on_exit(self, exit_: asyncio.Task[int]) -> None:
        if self._is_lost or exit_.cancelled():
            return
        self._read_answers()  # what it said last
        status = exit_.result()
        number = -status if status < 0 else status - 128
        self._lose_interpreter(f" It was ended by signal {number}." if number > 0 else "")

    def _lose_interpreter(self, how: str = "") -> None:
        over = self._launched.over_limit() if not self._is_lost else None
        stopped_for = self._call.stopped_for if self._call is not None else None
        if over is not None or stopped_for is not None:
            self._lose(over or stopped_for or "crashed")
        else:
            self._lose("crashed", f"The Python interpreter ended unexpectedly.{how}")

    async def _reap(self) -> None:
        """Wait for the end of a process that was killed; one that the system keeps for longer is left to it."""
        await asyncio.wait([self._exit], timeout=_REAP_TIMEOUT_SECONDS)
        if not self._exit.done():
            self._exit.cancel()

    @contextlib.contextmanager
    def _data_folder(self) -> Generator[int]:
        """A descriptor of the data folder of its own: `close` may come while a thread works with it."""
        if self._is_closed:
            raise SandboxUnavailable(_IS_GONE)
        folder = os.dup(self._launched.data)
        try:
            yield folder
        finally:
            os.close(folder)

    # ---- pipes ---------------------------------------------------------------------------------------------------------------------

    def _send(self, request: dict[str, str]) -> None:
        # By json: it can write any text, also what is no proper Unicode.
        self._unsent += json.dumps(request).encode() + b"\n"
        self._write()

    def _write(self) -> None:
        try:
            del self._unsent[: os.write(self._launched.requests, self._unsent)]
        except BlockingIOError:
            pass
        except OSError:
            self._unsent.clear()  # its end will be noticed by its answers
        if self._unsent:
            self._loop.add_writer(self._launched.requests, self._write)
        else:
            self._loop.remove_writer(self._launched.requests)

    def _read_answers(self) -> None:
        block = _read_or_none(self._launched.answers)
        if block == b"":
            # The interpreter is ending, or has closed its side: how it ended is known in a moment.
            self._loop.remove_reader(self._launched.answers)
            self._loop.call_later(_EXIT_WAIT_SECONDS, self._lose_interpreter)
            return
        for line in self._lines.split(block or b""):
            self._take_answer(line)
        if self._lines.is_flooded:
            self._lose("crashed", "The code disturbed the interpreter.")

    def _take_answer(self, line: bytes | None) -> None:
        """line: None for one that was too long."""
        call = self._call
        if call is None or call.ended.done():
            return
        if line is None:
            self._leave_out_image(call)
            self._send({"id": call.key, "do": "go_on"})
            return
        try:
            answer = msgspec.json.decode(line, type=_Answer)
        except (msgspec.DecodeError, ValueError, RecursionError):
            return
        if answer.id != call.key:
            return
        if answer.event == "image":
            self._take_image(call, answer.png)
            self._send({"id": call.key, "do": "go_on"})
            return
        self._drain_logs()
        if call.stopped_for is not None:
            call.end(Execution(call.stopped_for))
        else:
            call.end(Execution("ok" if answer.error is None else _LIMITS.get(answer.error, "error")))

    def _take_image(self, call: _Call, png: bytes) -> None:
        if not png.startswith(_PNG_SIGNATURE):
            return
        if call.images_left == 0 or len(png) > self._image_bytes_max:
            self._leave_out_image(call)
            return
        call.images_left -= 1
        self._drain_logs()
        self._take_logs(call)
        call.add(Image(png))

    def _leave_out_image(self, call: _Call) -> None:
        """Say so, once in a call."""
        if not call.has_left_out_images:
            call.has_left_out_images = True
            self._drain_logs()
            self._take_logs(call)
            limit = f"{self._images_max} figures of at most {self._image_bytes_max} bytes"
            call.add(Logs(f"[A figure was left out: a call can show {limit}.]\n"))

    # ---- logs ----------------------------------------------------------------------------------------------------------------------

    def _read_logs_on(self) -> None:
        if not (self._reads_logs or self._has_ended_logs or self._is_lost):
            self._reads_logs = True
            self._loop.add_reader(self._launched.logs, self._read_logs)

    def _read_logs(self) -> None:
        block = _read_or_none(self._launched.logs)
        if block is None:
            return
        self._logs.add(block)
        self._has_ended_logs = not block
        # Between two calls somebody may print for ever; the code waits then, and the next call reads on.
        is_enough = self._call is None and self._logs.is_enough_between_calls
        if self._has_ended_logs or is_enough or self._logs.is_cut:
            self._reads_logs = False
            self._loop.remove_reader(self._launched.logs)
        if self._logs.is_cut and not is_enough:
            # What is dropped is worth little of the server's time.
            self._loop.call_later(_FLOOD_PAUSE_SECONDS, self._read_logs_on)

    def _drain_logs(self) -> None:
        """Read what is in the pipe by now: what was printed before an answer comes before it."""
        left = _PIPE_BYTES_MAX
        while left > 0 and (block := _read_or_none(self._launched.logs)):
            left -= len(block)
            self._logs.add(block)

    def _take_logs(self, call: _Call, *, is_last: bool = False) -> None:
        text = self._logs.end_call() if is_last else self._logs.take()
        if text:
            call.add(Logs(text))


class _LogText:
    """The bytes of a log pipe as text: decoded, bounded for each call, and without the character that no database takes.

    What comes between two calls counts for the next one.
    """

    def __init__(self, bytes_max: int) -> None:
        self._bytes_max = bytes_max
        self._bytes_left = bytes_max
        self.is_cut = False
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._text: list[str] = []

    @property
    def is_enough_between_calls(self) -> bool:
        """Whether half of what the next call can have is there already."""
        return self._bytes_left < self._bytes_max // 2

    def add(self, block: bytes) -> None:
        kept = block[: self._bytes_left]
        self._bytes_left -= len(kept)
        if kept:
            self._text.append(self._decoder.decode(kept).replace("\0", "\ufffd"))
        if len(kept) < len(block) and not self.is_cut:
            self.is_cut = True
            self._decoder.reset()  # the half of a character

    def take(self) -> str:
        text = "".join(self._text)
        self._text.clear()
        return text

    def end_call(self) -> str:
        """The rest of a call's text; says when something is missing."""
        text = self.take() + self._decoder.decode(b"", final=True)
        if self.is_cut:
            text += f"\n[The output goes on; only {self._bytes_max} bytes of a call are kept.]\n"
        self._decoder.reset()
        self._bytes_left = self._bytes_max
        self.is_cut = False
        return text


class _BoundedLines:
    """Splits blocks into lines, and keeps no more of one than it may have."""

    def __init__(self, line_bytes_max: int) -> None:
        self._line_bytes_max = line_bytes_max
        self._bytes_left = line_bytes_max
        self._lines_left = _LINES_MAX
        self._line = bytearray()
        self._is_too_long = False

    @property
    def is_flooded(self) -> bool:
        """Whether more came than any agent writes in a call."""
        return self._bytes_left < 0 or self._lines_left < 0

    def begin_call(self, images_max: int) -> None:
        self._bytes_left = self._line_bytes_max * (images_max + _SPARE_LINES)
        self._lines_left = _LINES_MAX

    def split(self, block: bytes) -> Iterator[bytes | None]:
        """The lines that end in a block; None stands for one that is too long, as soon as it is."""
        self._bytes_left -= len(block)
        *ended, rest = block.split(b"\n")
        self._lines_left -= len(ended)
        if self.is_flooded:
            return
        for part in ended:
            self._line += part
            if not self._is_too_long:
                yield bytes(self._line) if len(self._line) <= self._line_bytes_max else None
            self._line.clear()
            self._is_too_long = False
        self._line += rest
        if self._is_too_long or len(self._line) > self._line_bytes_max:
            self._line.clear()
            if not self._is_too_long:
                self._is_too_long = True
                yield None


def _read_or_none(descriptor: int) -> bytes | None:
    """What is in a pipe; None when nothing is, empty when it has ended."""
    try:
        return os.read(descriptor, _READ_BYTES)
    except BlockingIOError:
        return None
    except OSError:
        return b""

"""Parses documents in processes of their own, under limits: nothing that is in a file can stop, slow or grow the server.

Owns those processes: starts them when they are needed, keeps them for the next files, and ends them. This process itself loads no
library that parses.
"""

import asyncio
import contextlib
import logging
import math
import os
import signal
import sys
from asyncio.subprocess import PIPE, Process
from typing import Self

import msgspec

from mini_assistant.errors import BackendError
from mini_assistant.settings import Settings
from mini_assistant.vector_stores.parsers.base import ParsedDocument, ParseFailed
from mini_assistant.vector_stores.parsers.document_text import invalid_file, too_large, unsupported_file
from mini_assistant.vector_stores.parsers.file_types import Kind, kind_of_or_none
from mini_assistant.vector_stores.parsers.orders import EXIT_BY_SIGNAL, FRAME_HEADER, ParseAnswer, ParseLimits, ParseOrder, Refused

_PROGRAM = "mini_assistant.vector_stores.parsers.program"
_START_TIMEOUT_SECONDS = 60.0
# Text has 4 characters a token or so; white space and rules of dashes have more.
_CHARACTERS_PER_TOKEN_MAX = 16
_ANSWER_BYTES_PER_CHARACTER_MAX = 5
_ANSWER_BYTES_FREE = 1024 * 1024
_READ_BYTES = 1024 * 1024
# The whole environment of the program: the server's own has secrets in it. Short-lived processes gain nothing from giving memory back,
# and PDFium asks for it page by page: with this it takes a third less time. Only glibc reads it.
_ENVIRONMENT = {
    "MALLOC_MMAP_THRESHOLD_": str(32 * 1024 * 1024),
    "MALLOC_TOP_PAD_": str(16 * 1024 * 1024),
    "MALLOC_TRIM_THRESHOLD_": str(128 * 1024 * 1024),
}
_LOG_CHARACTERS_KEPT = 500
# What the process of a file is ended by when it has used up its CPU time, and what the system does to the largest when memory is short.
_OUT_OF_TIME, _OUT_OF_MEMORY = EXIT_BY_SIGNAL + signal.SIGXCPU, EXIT_BY_SIGNAL + signal.SIGKILL

_log = logging.getLogger(__name__)


class ParserProcesses:
    """A `DocumentParser`. As many files are parsed at a time as are ingested; the others wait."""

    def __init__(self, settings: Settings) -> None:
        self._timeout_seconds = settings.parse_timeout_seconds
        self._limits = _limits(settings)
        self._slots_count = settings.ingest_concurrency_max
        self._slots = asyncio.Semaphore(self._slots_count)
        self._idle: list[_ParserProcess] = []
        self._running: set[_ParserProcess] = set()
        self._is_closed = False

    async def parse(self, path: str, filename: str) -> ParsedDocument:
        """As `DocumentParser.parse`. Raises BackendError when no parser can be started, or the server is stopping."""
        kind = kind_of_or_none(filename)
        if kind is None:
            raise unsupported_file()
        async with self._slots:
            answer = await self._answer(path, kind)
        if isinstance(answer, Refused):
            raise ParseFailed(answer.code, answer.message)
        return answer.document

    async def close(self) -> None:
        """As `DocumentParser.close`. Files that are being parsed break off."""
        self._is_closed = True
        for process in self._running:
            process.kill()
        while self._idle:
            await self._end(self._idle.pop())
        for _ in range(self._slots_count):  # what was being parsed ends its own process
            await self._slots.acquire()
        for _ in range(self._slots_count):
            self._slots.release()

    async def _answer(self, path: str, kind: Kind) -> ParseAnswer:
        # An idle program can end at any time, of itself too. Then the file is not to blame, and gets another one.
        for _ in range(2):
            process = await self._take()
            try:
                async with asyncio.timeout(self._timeout_seconds):
                    answer = await process.parse(ParseOrder(os.fsencode(path), kind, self._limits))
            except TimeoutError:
                await self._end(process)
                raise invalid_file(f"It took longer than {self._timeout_seconds:g} seconds.") from None
            except BaseException:
                await self._end(process)
                raise
            if answer is not None and not self._is_closed:
                self._idle.append(process)
                return answer
            status = await process.exit_status()
            await self._end(process)
            self._raise_if_closed()
            if status > 0:
                raise await _failure(process, status)
        raise invalid_file("It made the parser stop.")

    async def _take(self) -> "_ParserProcess":
        """A program that is ready: one that has just parsed another file, or a new one."""
        self._raise_if_closed()
        while self._idle:
            process = self._idle.pop()
            if process.is_alive:
                return process
            await self._end(process)
        process = await _ParserProcess.start()
        self._running.add(process)
        if self._is_closed:
            await self._end(process)
        self._raise_if_closed()
        return process

    def _raise_if_closed(self) -> None:
        if self._is_closed:
            raise BackendError("The server is stopping.", retryable=True)

    async def _end(self, process: "_ParserProcess") -> None:
        self._running.discard(process)
        await process.close()


def _limits(settings: Settings) -> ParseLimits:
    return ParseLimits(
        memory_bytes_max=settings.parse_memory_bytes_max,
        cpu_seconds_max=math.ceil(settings.parse_timeout_seconds) + 1,
        characters_max=settings.file_tokens_max * _CHARACTERS_PER_TOKEN_MAX,
        tokens_max=settings.file_tokens_max,
    )


async def _failure(process: "_ParserProcess", status: int) -> ParseFailed:
    """Why a file has no answer. What the owner need not know is logged."""
    _log.warning("A file could not be parsed: its process ended with status %d. %s", status, await process.last_words())
    if status == _OUT_OF_TIME:
        return invalid_file("It took too long.")
    if status == _OUT_OF_MEMORY:
        return too_large()
    return invalid_file("It is damaged, or made in an unusual way.")


class _ParserProcess:
    """One life of the program, with the pipes to it."""

    def __init__(self, process: Process) -> None:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stderr is not None
        self._process = process
        self._orders = process.stdin
        self._answers = process.stdout
        self._log = process.stderr
        self._log_tail = ""
        self._reading_log = asyncio.create_task(self._read_log())

    @classmethod
    async def start(cls) -> Self:
        """Start the program and wait until it is ready. Raises BackendError; then no process is left."""
        # A session of its own: the whole group can be killed, and Ctrl-C does not reach it.
        process = cls(
            await asyncio.create_subprocess_exec(
                sys.executable,
                "-P",
                "-m",
                _PROGRAM,
                stdin=PIPE,
                stdout=PIPE,
                stderr=PIPE,
                env=_ENVIRONMENT,
                start_new_session=True,
                limit=_READ_BYTES,
            )
        )
        try:
            async with asyncio.timeout(_START_TIMEOUT_SECONDS):
                if await process._frame_or_none(0) is None:
                    raise BackendError(f"The document parser cannot be started. {await process.last_words()}".strip())
        except TimeoutError:
            await process.close()
            raise BackendError("The document parser did not start in time.", retryable=True) from None
        except BaseException:
            await process.close()
            raise
        return process

    @property
    def is_alive(self) -> bool:
        return self._process.returncode is None

    async def parse(self, order: ParseOrder) -> ParseAnswer | None:
        """The answer to an order; None when the program has ended instead."""
        encoded = msgspec.msgpack.encode(order)
        try:
            self._orders.write(FRAME_HEADER.pack(len(encoded)) + encoded)
            await self._orders.drain()
        except ConnectionError:
            return None
        frame = await self._frame_or_none(_ANSWER_BYTES_FREE + _ANSWER_BYTES_PER_CHARACTER_MAX * order.limits.characters_max)
        return None if frame is None else msgspec.msgpack.decode(frame, type=ParseAnswer)

    async def exit_status(self) -> int:
        """The exit status of a program that has ended its output; negative when a signal ended it."""
        return await self._process.wait()

    async def last_words(self) -> str:
        """The end of what a program that has ended wrote on its standard error."""
        await asyncio.wait([self._reading_log])
        return self._log_tail.strip()

    def kill(self) -> None:
        """Kill the program with all that it has started, if it is still there."""
        if self._process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)

    async def close(self) -> None:
        """Kill the program, and wait until it is reaped and its pipes are closed."""
        self.kill()
        self._orders.close()
        while await self._answers.read(_READ_BYTES):  # a pipe with something in it stays open
            pass
        await self._process.wait()
        await asyncio.wait([self._reading_log])

    async def _frame_or_none(self, bytes_max: int) -> bytes | None:
        """The next frame; None when the output ends. Raises ParseFailed for a longer one, which no parser writes."""
        try:
            (length,) = FRAME_HEADER.unpack(await self._answers.readexactly(FRAME_HEADER.size))
            if length > bytes_max:
                raise too_large()
            return await self._answers.readexactly(length)
        except (asyncio.IncompleteReadError, ConnectionError):
            return None

    async def _read_log(self) -> None:
        while block := await self._log.read(4096):
            self._log_tail = (self._log_tail + block.decode("utf-8", "replace"))[-_LOG_CHARACTERS_KEPT:]

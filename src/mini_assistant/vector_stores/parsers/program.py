"""The program that parses: `python -m mini_assistant.vector_stores.parsers.program`.

Only process.py starts it. It loads the parsers once, says so with an empty frame, and then reads one `ParseOrder` after the other from
its standard input. Each file is parsed in a fork of its own, which sets its limits, answers and ends: what a file breaks, takes or
learns is gone with it, and the next one waits for no start. The program ends when its input does, when nobody asks for a while, and
when a fork did not end well; its exit status then says how.
"""

import ctypes
import gc
import os
import resource
import select
import signal
import sys
import traceback
from collections.abc import Callable

import msgspec

from mini_assistant.models.tokens import tokenizer
from mini_assistant.vector_stores.parsers.base import ParsedDocument, ParseFailed
from mini_assistant.vector_stores.parsers.doc import parse_doc
from mini_assistant.vector_stores.parsers.document_text import too_large
from mini_assistant.vector_stores.parsers.docx import parse_docx
from mini_assistant.vector_stores.parsers.file_types import Kind
from mini_assistant.vector_stores.parsers.html import parse_html
from mini_assistant.vector_stores.parsers.orders import EXIT_BY_SIGNAL, FRAME_HEADER, ParseAnswer, Parsed, ParseLimits, ParseOrder, Refused
from mini_assistant.vector_stores.parsers.pdf import parse_pdf
from mini_assistant.vector_stores.parsers.pptx import parse_pptx
from mini_assistant.vector_stores.parsers.text import parse_text

_PARSERS: dict[Kind, Callable[[str, int], ParsedDocument]] = {
    "text": parse_text,
    "html": parse_html,
    "pdf": parse_pdf,
    "docx": parse_docx,
    "pptx": parse_pptx,
    "doc": parse_doc,
}
_IDLE_SECONDS = 60.0
_OPEN_FILES_MAX = 32
_PR_SET_PDEATHSIG = 1
_INPUT, _OUTPUT = 0, 1


def main() -> int:
    """Parse until the input ends. Returns the exit status."""
    _end_with_parent()
    gc.freeze()  # what is loaded stays, and is shared with the forks
    _write_frame(b"")
    while order := _next_order_or_none():
        child = os.fork()
        if child == 0:
            _parse_and_exit(order)
        _, status = os.waitpid(child, 0)
        code = os.waitstatus_to_exitcode(status)
        if code != 0:
            return code if code > 0 else EXIT_BY_SIGNAL - code
    return 0


def _end_with_parent() -> None:
    """Let Linux end this process together with the one that started it."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def _next_order_or_none() -> ParseOrder | None:
    if not select.select([_INPUT], [], [], _IDLE_SECONDS)[0]:
        return None
    header = _read(FRAME_HEADER.size)
    if not header:
        return None
    return msgspec.msgpack.decode(_read(FRAME_HEADER.unpack(header)[0]), type=ParseOrder)


def _read(count: int) -> bytes:
    """So many bytes of the input; empty when it has ended."""
    found = bytearray()
    while len(found) < count:
        block = os.read(_INPUT, count - len(found))
        if not block:
            return b""
        found += block
    return bytes(found)


def _write_frame(frame: bytes) -> None:
    left = memoryview(FRAME_HEADER.pack(len(frame)) + frame)
    while left:
        left = left[os.write(_OUTPUT, left) :]


def _parse_and_exit(order: ParseOrder) -> None:
    """Parse a file in this fork. What goes wrong in an unforeseen way is told on standard error, and by the exit status."""
    status = 1
    try:
        _end_with_parent()
        _set_limits(order.limits)
        frame = msgspec.msgpack.encode(_answer(order))
        _write_frame(frame)
        status = 0
    except BaseException as exc:
        traceback.print_exception(exc)
        sys.stderr.flush()
        raise
    finally:
        os._exit(status)


def _set_limits(limits: ParseLimits) -> None:
    """Bound this process. A system that does not know one of the limits, or has a lower one, keeps its own."""
    space = _address_space_bytes() + limits.memory_bytes_max
    cpu_seconds = limits.cpu_seconds_max
    for kind, soft, hard in (
        (resource.RLIMIT_AS, space, space),
        (resource.RLIMIT_CPU, cpu_seconds, cpu_seconds + 1),
        (resource.RLIMIT_FSIZE, 0, 0),
        (resource.RLIMIT_CORE, 0, 0),
        (resource.RLIMIT_NOFILE, _OPEN_FILES_MAX, _OPEN_FILES_MAX),
        (resource.RLIMIT_NPROC, 0, 0),
    ):
        try:
            resource.setrlimit(kind, (soft, hard))
        except (ValueError, OSError):
            continue


def _address_space_bytes() -> int:
    try:
        with open("/proc/self/statm", encoding="ascii") as file:
            return int(file.read().split()[0]) * resource.getpagesize()
    except OSError:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def _answer(order: ParseOrder) -> ParseAnswer:
    try:
        document = _PARSERS[order.kind](os.fsdecode(order.path), order.limits.characters_max)
        _check_tokens(document.text, order.limits.tokens_max)
    except ParseFailed as exc:
        return Refused(exc.code, exc.message)
    except MemoryError:
        failed = too_large()
        return Refused(failed.code, failed.message)
    return Parsed(document)


def _check_tokens(text: str, tokens_max: int) -> None:
    """Raises ParseFailed for a text of more tokens. A token is a byte at least, so only long texts are counted."""
    if len(text) <= tokens_max and (text.isascii() or len(text.encode()) <= tokens_max):
        return
    if tokenizer().count(text) > tokens_max:
        raise too_large()


if __name__ == "__main__":
    sys.exit(main())

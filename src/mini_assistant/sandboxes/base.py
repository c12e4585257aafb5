"""The seam to sandboxes: places where code that a model wrote runs, away from the server and from other threads.

A session is one Python interpreter that keeps its state between calls, and a folder of files that its code finds as `/mnt/data`. Code,
its output and its files are hostile: a backend takes nothing that a session says for more than what it is about, its own output.
Source: behaviour §8.
"""

from collections.abc import AsyncIterable, AsyncIterator, Callable
from typing import Literal, NamedTuple, Protocol

import msgspec

DATA_DIRECTORY = "/mnt/data"
"""Where code finds its files."""

FILE_NAME_BYTES_MAX = 255
"""Longest part of a path in `DATA_DIRECTORY`, in UTF-8."""


class Logs(msgspec.Struct, frozen=True):
    """What code wrote to its standard output and error, in its order: a piece of text, never empty."""

    text: str


class Image(msgspec.Struct, frozen=True):
    """A figure that code showed. data: a PNG."""

    data: bytes


Output = Logs | Image

Outcome = Literal["ok", "error", "timeout", "memory", "disk_limit", "crashed", "cancelled"]
"""How code came to its end.

ok, error: it ran to its end or raised; the traceback is in the logs. timeout: it was stopped. memory, disk_limit: it took more than it
may, in bytes or in files. crashed: the interpreter is gone, by itself or by a signal. cancelled: `SandboxSession.interrupt` was called.
"""


class Execution(msgspec.Struct, frozen=True):
    """What came of one call.

    detail: a sentence for the model and the user, empty when the logs say all. is_lost: variables and imports are gone, and the session
    takes no more code; its files can still be read.
    """

    outcome: Outcome
    detail: str = ""
    is_lost: bool = False


class SandboxFile(NamedTuple):
    """A regular file of a session.

    name: its path in `DATA_DIRECTORY` with `/`, such as `plots/a.png`. version: changes with its bytes and says nothing else.
    """

    name: str
    size_bytes: int
    version: str


class SandboxSession(Protocol):
    """One interpreter with its files. One call at a time; `interrupt` and `close` may come in between."""

    @property
    def is_lost(self) -> bool:
        """Whether it can run no more code."""
        ...

    async def put_file(self, name: str, pieces: AsyncIterable[bytes]) -> None:
        """Write a file, replacing one of this name; folders in its path are made.

        Raises SandboxFull when it does not fit, with nothing of it left, and SandboxUnavailable when the session is lost.
        """
        ...

    async def list_files(self) -> list[SandboxFile]:
        """Its regular files, by name, at most the limit of files; links and what has no UTF-8 name are left out. Also when it is lost."""
        ...

    def read_file(self, name: str) -> AsyncIterator[bytes]:
        """The bytes of a file, at most so many as the session may have. Also when it is lost.

        Raises SandboxFileMissing for what is no regular file (any more), wherever links may point.
        """
        ...

    async def execute(self, code: str, on_output: Callable[[Output], None]) -> Execution:
        """Run code and tell what it puts out, in its order and while it runs; figures at the latest when it ends.

        A bare last expression is shown. Logs and figures beyond the limits are left out, which the logs say. Never raises for what the
        code does; raises SandboxUnavailable when the session was lost before.
        """
        ...

    async def interrupt(self) -> None:
        """Stop the code that is running; `execute` then ends with `cancelled`. Nothing happens when none is running."""
        ...

    async def close(self) -> None:
        """End all its processes and drop its files. May be called twice."""
        ...


class Sandbox(Protocol):
    """A backend."""

    @property
    def name(self) -> str:
        """As in the setting `sandbox`."""
        ...

    async def check(self) -> str:
        """One line about it, after a session has been started and tried. Raises SandboxUnavailable with what is missing."""
        ...

    async def create_session(self, *, is_warm: bool = False) -> SandboxSession:
        """A fresh session. is_warm: with numpy, pandas and matplotlib loaded, which takes longer and makes the first call fast.

        Raises SandboxUnavailable.
        """
        ...

    async def close(self) -> None:
        """End every session."""
        ...

"""Connections to PostgreSQL: how they are opened, awaited while the server restarts, and shared by reads.

The errors of the driver are put into words here; none of them leaves the folder.
"""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, Protocol, cast
from urllib.parse import urlsplit

import asyncpg

from mini_assistant.errors import StoreUnavailable

# Longest wait for an answer to one statement; a server that has gone without a word is noticed by it.
_COMMAND_SECONDS = 60.0
# Statements that PostgreSQL keeps planned for each connection; the stores have about 150.
_PREPARED_MAX = 512
_CLOSE_SECONDS = 5.0
_FIRST_PAUSE_SECONDS = 0.05
_PAUSE_SECONDS_MAX = 0.5

_SESSION = {
    "application_name": "mini-assistant",
    "timezone": "UTC",
    # Compiling costs more than any of these statements takes.
    "jit": "off",
    # A process that stands still in the middle of a list holds up the others no longer than this.
    "idle_in_transaction_session_timeout": "30s",
}

_CUT_OFF = (
    asyncpg.PostgresConnectionError,
    asyncpg.AdminShutdownError,
    asyncpg.CrashShutdownError,
    asyncpg.CannotConnectNowError,
    asyncpg.InternalClientError,  # the server's last words came while nobody asked it anything
    OSError,
)
_MAY_PASS = (*_CUT_OFF, asyncpg.TooManyConnectionsError)

FAILURES = (asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError, OSError)
"""Whatever the driver raises for a statement; a wait that was too long (TimeoutError) is an OSError too."""


class Connection(Protocol):
    """What is used of `asyncpg.Connection`."""

    async def fetch(self, query: str, *args: Any) -> list[Any]:
        """Run a statement and return its rows."""
        ...

    async def execute(self, query: str) -> str:
        """Run a text that may have several statements and has no parameters."""
        ...

    async def executemany(self, command: str, args: list[tuple[Any, ...]]) -> None:
        """Run a statement for each of a list of parameters, in one round trip: all of them or none."""
        ...

    def is_closed(self) -> bool:
        """Whether it cannot be used any more."""
        ...

    def is_in_transaction(self) -> bool:
        """Whether a transaction is open, be it a failed one."""
        ...

    async def close(self, *, timeout: float | None = None) -> None:
        """Say goodbye and close it."""
        ...

    def terminate(self) -> None:
        """Close it without a word."""
        ...


_connect = cast("Callable[..., Awaitable[Connection]]", asyncpg.connect)  # pyright: ignore[reportUnknownMemberType]


class Address:
    """Where the database is and how to get in. Its text has no password and may be shown."""

    def __init__(self, url: str, wait_seconds: float) -> None:
        """url: postgresql://user:password@host:port/name, or postgres://…. wait_seconds: longest wait for a connection, and for a lock."""
        self._url = url
        self.wait_seconds = wait_seconds
        try:
            parts = urlsplit(url)
            self._text = f"{parts.hostname or 'localhost'}:{parts.port or 5432}{parts.path}"
        except ValueError:
            self._text = "the database of database_url"

    def __str__(self) -> str:
        return self._text

    async def connect(self, timeout_seconds: float, *, read_only: bool = False) -> Connection:
        """One try. Raises StoreUnavailable, which is `retryable` when the server may take the next one."""
        session = {**_SESSION, "lock_timeout": f"{self.wait_seconds * 1000:.0f}ms"}
        if read_only:
            session["default_transaction_read_only"] = "on"
        try:
            return await _connect(
                self._url,
                timeout=timeout_seconds,
                command_timeout=_COMMAND_SECONDS,
                statement_cache_size=_PREPARED_MAX,
                max_cached_statement_lifetime=0,
                max_cacheable_statement_size=0,
                server_settings=session,
            )
        except TimeoutError as exc:
            raise StoreUnavailable(f"PostgreSQL at {self} does not answer.", retryable=True) from exc
        except FAILURES as exc:
            raise StoreUnavailable(f"PostgreSQL at {self} cannot be reached: {reason(exc)}.", retryable=isinstance(exc, _MAY_PASS)) from exc
        except ValueError:
            # The reason would show what it could not read, which may be a part of the password; so would the chain of causes.
            raise StoreUnavailable("database_url is not an address like postgresql://user:password@host:5432/name.") from None

    async def connect_in_time(self, *, read_only: bool = False) -> Connection:
        """Try until the server takes it. Raises StoreUnavailable when it did not within `wait_seconds`, or never will."""
        pauses = Pauses(self.wait_seconds)
        while True:
            try:
                return await self.connect(pauses.seconds_left(), read_only=read_only)
            except StoreUnavailable as exc:
                if not exc.retryable or not await pauses.next():
                    raise


class Pauses:
    """Growing pauses between tries, all in all not longer than a limit."""

    def __init__(self, limit_seconds: float) -> None:
        self._now = asyncio.get_running_loop().time
        self._until = self._now() + limit_seconds
        self._seconds = _FIRST_PAUSE_SECONDS

    def seconds_left(self) -> float:
        """What is left of the limit, and never too little to try at all."""
        return max(self._until - self._now(), 0.1)

    async def next(self) -> bool:
        """Pause. False, at once, when the time is over."""
        left = self._until - self._now()
        if left <= 0:
            return False
        await asyncio.sleep(min(self._seconds, left))
        self._seconds = min(self._seconds * 2, _PAUSE_SECONDS_MAX)
        return True


def reason(exc: BaseException) -> str:
    """What the driver says, in one line, without the values of the statement."""
    if isinstance(exc, asyncpg.DataError) and exc.__cause__ is not None:
        exc = exc.__cause__  # the driver itself refused a value, and would show it
    if isinstance(exc, TimeoutError):
        return "it took too long"
    # Not str(exc): that of PostgreSQL goes on with the values in question.
    text = str(exc.args[0]) if isinstance(exc, asyncpg.PostgresError) and exc.args else str(exc)
    return " ".join(text.split()).rstrip(".") or type(exc).__name__


def is_cut_off(connection: Connection, exc: BaseException) -> bool:
    """Whether a failure took the connection with it, so that another one may do better."""
    return connection.is_closed() or (isinstance(exc, _CUT_OFF) and not isinstance(exc, TimeoutError))


async def say_goodbye(connection: Connection) -> None:
    """Close a connection in order, and without it when that takes too long."""
    try:
        await connection.close(timeout=_CLOSE_SECONDS)
    except FAILURES:
        connection.terminate()


class ReadConnections:
    """At most `connections_max` connections that cannot write, opened when they are needed.

    The driver's own pool asks the server to forget the session after every use, which doubles the cost of a read; here nothing is
    ever set in a session.
    """

    def __init__(self, address: Address, connections_max: int) -> None:
        self._address = address
        self._connections_max = connections_max
        self._free = asyncio.Semaphore(connections_max)
        self._idle: list[Connection] = []

    async def fetch(self, text: str, parameters: tuple[Any, ...]) -> list[Any]:
        """The rows of a statement. One that is cut off is tried once more. Raises StoreUnavailable, or what the driver raises."""
        await self._take_turn()
        try:
            connection = await self._open_one()
            try:
                return await self._fetch_with(connection, text, parameters)
            except FAILURES as exc:
                if isinstance(exc, TimeoutError) or not is_cut_off(connection, exc):
                    raise
            # A new one: those that are idle may be as lost.
            return await self._fetch_with(await self._address.connect_in_time(read_only=True), text, parameters)
        finally:
            self._free.release()

    async def _fetch_with(self, connection: Connection, text: str, parameters: tuple[Any, ...]) -> list[Any]:
        try:
            rows = await connection.fetch(text, *parameters)
        except BaseException as exc:
            if isinstance(exc, asyncpg.PostgresError) and not is_cut_off(connection, exc):
                self._idle.append(connection)
            else:
                connection.terminate()  # the statement may still be going on in it
            raise
        self._idle.append(connection)
        return rows

    async def _open_one(self) -> Connection:
        while self._idle:
            connection = self._idle.pop()
            if not connection.is_closed():
                return connection
        return await self._address.connect_in_time(read_only=True)

    async def _take_turn(self) -> None:
        if not self._free.locked():
            await self._free.acquire()  # at once
            return
        try:
            async with asyncio.timeout(self._address.wait_seconds):
                await self._free.acquire()
        except TimeoutError as exc:
            raise StoreUnavailable(f"All connections to PostgreSQL at {self._address} are in use.") from exc

    async def close(self) -> None:
        """Wait for the reads that have begun, then close all connections."""
        for _ in range(self._connections_max):
            await self._free.acquire()
        for connection in self._idle:
            await say_goodbye(connection)
        self._idle.clear()
        for _ in range(self._connections_max):
            self._free.release()

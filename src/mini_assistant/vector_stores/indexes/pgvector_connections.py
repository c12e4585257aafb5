"""Connections of the pgvector index to its PostgreSQL: a few, apart from those of the rows, with the settings that searches need.

The only place where the driver's exceptions are seen: they leave as `StoreUnavailable`.
"""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, TypeAlias, TypeVar, cast

import asyncpg

from mini_assistant.errors import StoreUnavailable

_CONNECTIONS_MAX = 4
_PAUSE_SECONDS = 0.05
# How many passages a search of a graph looks at before it takes the best, and when it gives up looking for such as a filter lets through.
_BREADTH = 400
_VISITED_PASSAGES_MAX = 100_000
_SETTINGS = {
    "application_name": "mini-assistant index",
    "hnsw.ef_search": str(_BREADTH),
    # All that is found is scored anew, so its order does not matter.
    "hnsw.iterative_scan": "relaxed_order",
    "hnsw.max_scan_tuples": str(_VISITED_PASSAGES_MAX),
    # The index of one store serves a statement only when the plan is made for this store.
    "plan_cache_mode": "force_custom_plan",
    "jit": "off",
}

Connection: TypeAlias = Any
"""A connection of asyncpg, which has no types."""

_create_pool = cast("Callable[..., Awaitable[Any]]", asyncpg.create_pool)  # pyright: ignore[reportUnknownMemberType]
_Result = TypeVar("_Result")

_LOST = (
    OSError,
    asyncpg.InterfaceError,
    asyncpg.PostgresConnectionError,
    asyncpg.CannotConnectNowError,
    asyncpg.TooManyConnectionsError,
    asyncpg.AdminShutdownError,
    asyncpg.CrashShutdownError,
    asyncpg.InternalClientError,
)
_FAILURES = (asyncpg.PostgresError, *_LOST)


class Connections:
    """A pool that is filled when it is used."""

    def __init__(self, url: str, *, wait_seconds: float) -> None:
        """wait_seconds: the longest wait for a connection, also for a server that is just being started again."""
        self._url = url
        self._wait_seconds = wait_seconds
        self._pool: Any = None

    async def open(self) -> None:
        """Make the pool; nothing is connected yet. Raises StoreUnavailable for an address that cannot be read."""
        try:
            self._pool = await _create_pool(
                self._url, min_size=0, max_size=_CONNECTIONS_MAX, server_settings=_SETTINGS, timeout=self._wait_seconds, reset=_keep
            )
        except ValueError:
            # The reason would show what it could not read, which may be a part of the password; so would the chain of causes.
            raise StoreUnavailable("database_url is not an address like postgresql://user:password@host:5432/name.") from None
        except _FAILURES as exc:
            raise _unavailable(exc) from exc

    async def read(self, text: str, *parameters: object) -> list[tuple[Any, ...]]:
        """The rows of a statement. It is tried again when the connection is lost. Raises StoreUnavailable."""
        deadline = asyncio.get_running_loop().time() + self._wait_seconds
        while True:
            try:
                async with self._acquired() as connection:
                    return [tuple(row) for row in await connection.fetch(text, *parameters)]
            except _LOST as exc:
                if asyncio.get_running_loop().time() > deadline:
                    raise _unavailable(exc) from exc
            except _FAILURES as exc:
                raise _unavailable(exc) from exc
            await asyncio.sleep(_PAUSE_SECONDS)

    async def run(self, work: Callable[[Connection], Awaitable[_Result]]) -> _Result:
        """Do something on one connection, once. Raises StoreUnavailable."""
        try:
            async with self._acquired() as connection:
                return await work(connection)
        except _FAILURES as exc:
            raise _unavailable(exc) from exc

    def _acquired(self) -> Any:
        if self._pool is None:
            raise StoreUnavailable("The index is closed.")
        return self._pool.acquire(timeout=self._wait_seconds)

    async def close(self) -> None:
        """End the connections, and what is running on them."""
        if self._pool is not None:
            self._pool.terminate()
            self._pool = None


async def _keep(connection: Connection) -> None:
    """Nothing is left on a connection that the next one would have to take away; saves a round trip for each search."""


def _unavailable(exc: Exception) -> StoreUnavailable:
    # Not str(exc): that of PostgreSQL goes on with the values in question.
    said = str(exc.args[0]) if isinstance(exc, asyncpg.PostgresError) and exc.args else str(exc)
    reason = "it does not answer in time" if isinstance(exc, TimeoutError) else " ".join(said.split()).rstrip(".") or type(exc).__name__
    return StoreUnavailable(f"The index in PostgreSQL cannot be used: {reason}.", retryable=isinstance(exc, _LOST))

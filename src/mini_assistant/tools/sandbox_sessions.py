"""The sessions of a server's sandbox, by thread: made when a thread first runs code, kept while it goes on, ended when nobody needs them.

A thread has one session, and its calls use it one after the other. It is closed when it was idle for long, and earlier when another
thread needs the room or its own is deleted. A few sessions without a thread are kept ready. Called by `tools/code_interpreter.py`.
"""

import asyncio
import contextlib
import logging
from collections.abc import AsyncGenerator, Coroutine
from dataclasses import dataclass, field
from typing import Any, Protocol

from mini_assistant.errors import BackendError, SandboxUnavailable
from mini_assistant.metrics import SANDBOX_SESSIONS
from mini_assistant.sandboxes.base import Sandbox, SandboxSession

# Only a broken backend takes longer. The room of its session is free after that.
_CLOSE_TIMEOUT_SECONDS = 30.0
# Threads that are remembered because their session has ended without their knowing it.
_UNAWARE_THREADS_MAX = 10_000

log = logging.getLogger("mini_assistant.tools")


class SessionSettings(Protocol):
    """What this module reads of the server's `Settings`."""

    @property
    def sandbox_idle_seconds(self) -> float: ...

    @property
    def sandbox_sessions_max(self) -> int: ...

    @property
    def sandbox_pool_sessions(self) -> int: ...


@dataclass(slots=True)
class KeptSession:
    """A thread's session, and what is known of it.

    has_lost_state: the thread had another session before this one, and the model has not been told that its variables are gone.
    names: where the uploaded files lie in the data directory, by file id. refused: why others could not be copied, by file id.
    versions: of its files as the last call left them, by name; None before the first. is_given_up: it is to be dropped though it may
    still be there. is_loss_told: the model knows that it is lost.
    """

    session: SandboxSession
    has_lost_state: bool = False
    names: dict[str, str] = field(default_factory=dict[str, str])
    refused: dict[str, str] = field(default_factory=dict[str, str])
    versions: dict[str, str] | None = None
    is_given_up: bool = False
    is_loss_told: bool = False

    @property
    def is_usable(self) -> bool:
        """Whether it can run code."""
        return not (self.is_given_up or self.session.is_lost)


_Key = tuple[str, str]  # project and thread: a thread's id alone says nothing about who may use its session


class _Place:
    """What a thread has: its session, and the calls that use it or wait for it."""

    def __init__(self) -> None:
        self.lock = asyncio.Lock()
        self.kept: KeptSession | None = None
        self.calls_count = 0
        self.idle_since = 0.0
        self.closing: asyncio.TimerHandle | None = None


class SandboxSessions:
    """The sessions of one process, at most `sandbox_sessions_max` with those that are kept ready."""

    def __init__(self, sandbox: Sandbox, settings: SessionSettings) -> None:
        self._sandbox = sandbox
        self._settings = settings
        self._places: dict[_Key, _Place] = {}
        self._ready: list[SandboxSession] = []
        # Sessions that there are, that are being started, and that are being closed.
        self._count = 0
        self._changed = asyncio.Event()
        # Threads whose session has ended without their knowing it, oldest first.
        self._unaware: dict[_Key, None] = {}
        self._is_expected = False
        self._is_failing = False
        self._filling: asyncio.Task[None] | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._is_closed = False

    @property
    def sandbox_name(self) -> str:
        """As in the setting `sandbox`."""
        return self._sandbox.name

    def expect(self) -> None:
        """Say that code may be run soon: from now on sessions are kept ready. They are started in the background."""
        self._is_expected = True
        self._fill_pool()

    @contextlib.asynccontextmanager
    async def use(self, project_id: str, thread_id: str) -> AsyncGenerator[KeptSession]:
        """The thread's session, for one call; the next call of the thread waits. One that is lost then is dropped.

        Waits for room while all sessions are used, without a limit of its own. Raises SandboxUnavailable when none can be had.
        """
        key = (project_id, thread_id)
        place = self._places.setdefault(key, _Place())
        place.calls_count += 1
        if place.closing is not None:
            place.closing.cancel()
        try:
            async with place.lock:
                kept = await self._usable_session(key, place)
                try:
                    yield kept
                finally:
                    if place.kept is kept and not kept.is_usable:
                        self._drop(key, place)
        finally:
            place.calls_count -= 1
            if place.calls_count == 0:
                self._let_rest(key, place)

    def threads(self) -> list[tuple[str, str]]:
        """Project and id of the threads that have a session, or wait for one."""
        return list(self._places)

    def forget(self, project_id: str, thread_id: str) -> None:
        """The thread is gone: end its session, at once or when the call that uses it has ended."""
        key = (project_id, thread_id)
        place = self._places.get(key)
        if place is not None and place.kept is not None:
            place.kept.is_given_up = place.kept.is_loss_told = True
            if place.calls_count == 0:
                self._end_idle(key)
        self._unaware.pop(key, None)

    async def close(self) -> None:
        """End all sessions, and the sandbox."""
        self._is_closed = True
        if self._filling is not None:
            self._filling.cancel()
        for key, place in self._places.items():
            if place.closing is not None:
                place.closing.cancel()
            if place.kept is not None:
                self._drop(key, place)
        while self._ready:
            self._end(self._ready.pop())
        self._changed.set()
        while self._tasks:
            await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._sandbox.close()

    # ---- the session of a thread

    async def _usable_session(self, key: _Key, place: _Place) -> KeptSession:
        if place.kept is not None and not place.kept.is_usable:
            self._drop(key, place)
        if place.kept is None:
            session = await self._take_session()
            place.kept = KeptSession(session, has_lost_state=key in self._unaware)
            self._unaware.pop(key, None)
        return place.kept

    def _drop(self, key: _Key, place: _Place) -> asyncio.Task[None]:
        """End the session of a thread, which is told by its next session."""
        assert place.kept is not None
        if not place.kept.is_loss_told:
            self._unaware[key] = None
            if len(self._unaware) > _UNAWARE_THREADS_MAX:
                del self._unaware[next(iter(self._unaware))]
        session, place.kept = place.kept.session, None
        return self._end(session)

    def _let_rest(self, key: _Key, place: _Place) -> None:
        """The last call of a thread has ended for now."""
        if place.kept is None:
            del self._places[key]
        else:
            loop = asyncio.get_running_loop()
            place.idle_since = loop.time()
            place.closing = loop.call_later(self._settings.sandbox_idle_seconds, self._end_idle, key)
        self._changed.set()

    def _end_idle(self, key: _Key) -> asyncio.Task[None]:
        place = self._places.pop(key)
        if place.closing is not None:
            place.closing.cancel()
        return self._drop(key, place)

    # ---- room for sessions

    async def _take_session(self) -> SandboxSession:
        """One that is ready or a new one; an idle one makes room for it."""
        while not self._is_closed:
            if self._ready:
                session = self._ready.pop(0)
                if session.is_lost:
                    self._end(session)
                    continue
                self._fill_pool()
                return session
            if self._count < self._settings.sandbox_sessions_max:
                return await self._create_session(is_warm=False)
            idle = [(place.idle_since, key) for key, place in self._places.items() if place.calls_count == 0]
            if idle:
                await asyncio.wait([self._end_idle(min(idle)[1])])
            else:  # nothing is awaited between looking and waiting, so no change is missed
                self._changed.clear()
                await self._changed.wait()
        raise _stopping()

    async def _create_session(self, *, is_warm: bool) -> SandboxSession:
        self._count += 1
        SANDBOX_SESSIONS.inc()
        try:
            session = await self._sandbox.create_session(is_warm=is_warm)
        except BaseException:
            self._count -= 1
            SANDBOX_SESSIONS.dec()
            self._changed.set()
            raise
        if self._is_closed:
            self._end(session)
            raise _stopping()
        return session

    def _end(self, session: SandboxSession) -> asyncio.Task[None]:
        """Close a session in the background. Its room is free when it is gone."""
        return self._start(self._close_session(session))

    async def _close_session(self, session: SandboxSession) -> None:
        try:
            async with asyncio.timeout(_CLOSE_TIMEOUT_SECONDS):
                await session.close()
        except (BackendError, TimeoutError) as exc:
            log.warning("A session of the sandbox could not be closed: %s", exc)
        finally:
            self._count -= 1
            SANDBOX_SESSIONS.dec()
            self._changed.set()
            self._fill_pool()

    # ---- sessions that are kept ready

    def _fill_pool(self) -> None:
        is_filling = self._filling is not None and not self._filling.done()
        if self._is_expected and self._has_room_in_pool and not is_filling:
            self._filling = self._start(self._add_to_pool())

    @property
    def _has_room_in_pool(self) -> bool:
        has_room = self._count < self._settings.sandbox_sessions_max
        return has_room and len(self._ready) < self._settings.sandbox_pool_sessions and not self._is_closed

    async def _add_to_pool(self) -> None:
        """Start sessions until the pool is full or one cannot be had; then whoever needs one tries again, and gets the reason."""
        while self._has_room_in_pool:
            try:
                session = await self._create_session(is_warm=True)
            except BackendError as exc:
                if not self._is_failing and not self._is_closed:
                    log.warning("No session of the sandbox can be kept ready: %s", exc.message)
                self._is_failing = True
                return
            self._is_failing = False
            self._ready.append(session)
            self._changed.set()

    def _start(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task


def _stopping() -> SandboxUnavailable:
    return SandboxUnavailable("The server is stopping.", retryable=True)

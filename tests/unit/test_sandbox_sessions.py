"""The registry of sessions, over a sandbox without processes: who gets which session, how many there are, and when they end."""

import asyncio
import logging
from collections.abc import AsyncIterable, AsyncIterator, Callable
from dataclasses import dataclass

import pytest

from mini_assistant.errors import SandboxUnavailable
from mini_assistant.sandboxes.base import Execution, Output, SandboxFile
from mini_assistant.tools.sandbox_sessions import KeptSession, SandboxSessions

LONG = 3600.0
SOON = 0.05


@dataclass
class Limits:
    """The settings that the registry reads."""

    sandbox_idle_seconds: float = LONG
    sandbox_sessions_max: int = 20
    sandbox_pool_sessions: int = 0


class FakeSession:
    """A session that does nothing and notes when it is closed."""

    def __init__(self, number: int, sandbox: "FakeSandbox", *, is_warm: bool) -> None:
        self.number = number
        self.is_warm = is_warm
        self.is_lost = False
        self.is_closed = False
        self._sandbox = sandbox

    async def put_file(self, name: str, pieces: AsyncIterable[bytes]) -> None:
        """Not used."""

    async def list_files(self) -> list[SandboxFile]:
        return []

    async def read_file(self, name: str) -> AsyncIterator[bytes]:
        yield b""

    async def execute(self, code: str, on_output: Callable[[Output], None]) -> Execution:
        return Execution("ok")

    async def interrupt(self) -> None:
        """Nothing runs."""

    async def close(self) -> None:
        await self._sandbox.may_close.wait()
        self.is_closed = True
        if self._sandbox.fails_to_close:
            raise SandboxUnavailable("The gateway does not answer.")


class FakeSandbox:
    """A sandbox whose sessions begin, end and fail as a test wants it."""

    name = "fake"

    def __init__(self) -> None:
        self.sessions: list[FakeSession] = []
        self.most_alive = 0
        self.tries = 0
        self.failure: SandboxUnavailable | None = None
        self.fails_to_close = False
        self.may_start = asyncio.Event()
        self.may_close = asyncio.Event()
        self.is_closed = False
        self.may_start.set()
        self.may_close.set()

    @property
    def alive(self) -> list[FakeSession]:
        return [session for session in self.sessions if not session.is_closed]

    async def check(self) -> str:
        return "fake"

    async def create_session(self, *, is_warm: bool = False) -> FakeSession:
        self.tries += 1
        await self.may_start.wait()
        await asyncio.sleep(0)
        if self.failure is not None:
            raise self.failure
        session = FakeSession(len(self.sessions), self, is_warm=is_warm)
        self.sessions.append(session)
        self.most_alive = max(self.most_alive, len(self.alive))
        return session

    async def close(self) -> None:
        self.is_closed = True


@pytest.fixture
def sandbox() -> FakeSandbox:
    return FakeSandbox()


def registry(sandbox: FakeSandbox, **limits: float) -> SandboxSessions:
    return SandboxSessions(sandbox, Limits(**limits))  # type: ignore[arg-type]


async def used(sessions: SandboxSessions, thread: str = "thread_a", project: str = "p") -> FakeSession:
    """The session that a call of the thread gets."""
    async with sessions.use(project, thread) as kept:
        return fake(kept)


def fake(kept: KeptSession) -> FakeSession:
    assert isinstance(kept.session, FakeSession)
    return kept.session


async def settle() -> None:
    """Let everything that can go on go on."""
    for _ in range(20):
        await asyncio.sleep(0)


async def until(is_so: Callable[[], bool]) -> None:
    async with asyncio.timeout(5):
        while not is_so():  # noqa: ASYNC110 - what is waited for is a timer
            await asyncio.sleep(0.005)


class Busy:
    """A call that uses a session until it is told to end."""

    def __init__(self, sessions: SandboxSessions, thread: str) -> None:
        self.session: FakeSession | None = None
        self._may_end = asyncio.Event()
        self.task = asyncio.create_task(self._use(sessions, thread))

    async def _use(self, sessions: SandboxSessions, thread: str) -> None:
        async with sessions.use("p", thread) as kept:
            self.session = fake(kept)
            await self._may_end.wait()

    async def end(self) -> None:
        self._may_end.set()
        await self.task


# ---- whose session it is


async def test_a_thread_keeps_its_session_and_shares_it_with_nobody(sandbox: FakeSandbox) -> None:
    sessions = registry(sandbox)
    first = await used(sessions)
    assert await used(sessions) is first
    assert await used(sessions, "thread_b") is not first
    assert await used(sessions, "thread_a", "other project") is not first
    assert await used(sessions) is first
    await sessions.close()
    assert sandbox.alive == []
    assert sandbox.is_closed


async def test_calls_of_a_thread_come_one_after_the_other_in_their_order(sandbox: FakeSandbox) -> None:
    sessions = registry(sandbox)
    calls = [Busy(sessions, "thread_a") for _ in range(3)]
    other = Busy(sessions, "thread_b")
    await settle()
    assert [call.session is not None for call in calls] == [True, False, False]
    assert other.session is not None, "another thread does not wait"
    await calls[0].end()
    await settle()
    assert [call.session is not None for call in calls] == [True, True, False]
    for call in (*calls[1:], other):
        await call.end()
    assert len(sandbox.sessions) == 2
    await sessions.close()


async def test_a_call_that_stops_waiting_leaves_nothing_behind(sandbox: FakeSandbox) -> None:
    sessions = registry(sandbox)
    busy = Busy(sessions, "thread_a")
    await settle()
    waiting = Busy(sessions, "thread_a")
    await settle()
    waiting.task.cancel()
    await asyncio.gather(waiting.task, return_exceptions=True)
    await busy.end()
    assert await used(sessions) is busy.session
    await sessions.close()


async def test_a_lost_session_is_replaced_and_the_next_call_knows_it_once(sandbox: FakeSandbox) -> None:
    sessions = registry(sandbox)
    first = await used(sessions)
    first.is_lost = True  # of itself, while nobody looks
    async with sessions.use("p", "thread_a") as kept:
        assert fake(kept) is not first
        assert kept.has_lost_state
        kept.has_lost_state = False  # the model has been told
    async with sessions.use("p", "thread_a") as kept:
        assert not kept.has_lost_state
    await settle()
    assert first.is_closed
    await sessions.close()


@pytest.mark.parametrize("is_told", [True, False])
async def test_a_session_that_is_lost_in_a_call_is_dropped(sandbox: FakeSandbox, is_told: bool) -> None:
    sessions = registry(sandbox)
    async with sessions.use("p", "thread_a") as kept:
        first = fake(kept)
        first.is_lost = True
        kept.is_loss_told = is_told
    async with sessions.use("p", "thread_a") as kept:
        assert fake(kept) is not first
        assert kept.has_lost_state is not is_told
        assert kept.names == {}, "what is known of the old session's files is not taken over"
    await sessions.close()


async def test_a_session_that_is_given_up_is_dropped_also_when_the_call_breaks(sandbox: FakeSandbox) -> None:
    sessions = registry(sandbox)

    async def break_down() -> None:
        async with sessions.use("p", "thread_a") as kept:
            kept.is_given_up = True
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await break_down()
    assert await used(sessions) is sandbox.sessions[1]
    assert sandbox.sessions[0].is_closed
    await sessions.close()


async def test_a_session_that_cannot_be_had_is_told_and_tried_again_by_the_next_call(sandbox: FakeSandbox) -> None:
    sessions = registry(sandbox, sandbox_sessions_max=1)
    sandbox.failure = SandboxUnavailable("bubblewrap is missing.")
    for _ in range(3):
        with pytest.raises(SandboxUnavailable, match="bubblewrap is missing"):
            await used(sessions)
    sandbox.failure = None
    assert not (await used(sessions)).is_warm
    await sessions.close()


# ---- how long it stays


async def test_an_idle_session_is_closed_and_a_used_one_is_not(sandbox: FakeSandbox) -> None:
    sessions = registry(sandbox, sandbox_idle_seconds=SOON)
    busy = Busy(sessions, "thread_busy")
    idle = await used(sessions, "thread_idle")
    await until(lambda: idle.is_closed)
    await asyncio.sleep(SOON)
    assert busy.session is not None
    assert not busy.session.is_closed
    await busy.end()
    async with sessions.use("p", "thread_idle") as kept:
        assert kept.has_lost_state
    await until(lambda: not sandbox.alive)
    await sessions.close()


async def test_use_puts_the_end_of_a_session_off(sandbox: FakeSandbox) -> None:
    sessions = registry(sandbox, sandbox_idle_seconds=0.2)
    first = await used(sessions)
    for _ in range(10):
        await asyncio.sleep(0.05)
        assert await used(sessions) is first
    await sessions.close()


# ---- how many there are


async def test_the_session_that_was_idle_longest_makes_room(sandbox: FakeSandbox) -> None:
    sessions = registry(sandbox, sandbox_sessions_max=3)
    by_thread = {name: await used(sessions, name) for name in ("one", "two", "three")}
    await used(sessions, "one")
    await used(sessions, "four")
    assert [name for name, session in by_thread.items() if session.is_closed] == ["two"]
    async with sessions.use("p", "two") as kept:
        assert kept.has_lost_state
    assert by_thread["three"].is_closed
    assert not by_thread["one"].is_closed
    assert sandbox.most_alive == 3
    await sessions.close()


async def test_when_all_are_busy_a_thread_waits_for_room(sandbox: FakeSandbox) -> None:
    sessions = registry(sandbox, sandbox_sessions_max=2)
    busy = [Busy(sessions, name) for name in ("one", "two")]
    waiting = [Busy(sessions, name) for name in ("three", "four", "five")]
    await settle()
    assert [call.session is not None for call in (*busy, *waiting)] == [True, True, False, False, False]
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(SOON):
            await used(sessions, "six")
    for call in (*busy, *waiting):
        await settle()
        await call.end()
    assert sandbox.most_alive == 2
    assert len(sandbox.sessions) == 5
    await sessions.close()


async def test_one_room_costs_one_session_however_long_it_takes_to_close(sandbox: FakeSandbox) -> None:
    sessions = registry(sandbox, sandbox_sessions_max=3)
    for name in ("one", "two", "three"):
        await used(sessions, name)
    sandbox.may_close.clear()
    coming = Busy(sessions, "four")
    await settle()
    for name in ("two", "three"):  # others come to rest meanwhile
        await used(sessions, name)
    await settle()
    sandbox.may_close.set()
    await settle()
    await coming.end()
    assert [session.is_closed for session in sandbox.sessions] == [True, False, False, False]
    await sessions.close()


async def test_a_backend_that_cannot_close_costs_no_room(sandbox: FakeSandbox, caplog: pytest.LogCaptureFixture) -> None:
    sessions = registry(sandbox, sandbox_sessions_max=1)
    sandbox.fails_to_close = True
    for name in ("one", "two", "three"):
        await used(sessions, name)
    assert "could not be closed" in caplog.text
    await sessions.close()


async def test_many_threads_at_a_time_never_have_more_sessions_than_allowed(sandbox: FakeSandbox) -> None:
    sessions = registry(sandbox, sandbox_sessions_max=4, sandbox_pool_sessions=2)
    sessions.expect()

    async def call(number: int) -> None:
        async with sessions.use("p", f"thread_{number % 13}") as kept:
            assert not fake(kept).is_closed
            await asyncio.sleep(0.001 * (number % 3))
            assert not fake(kept).is_closed
            fake(kept).is_lost = number % 7 == 0

    await asyncio.gather(*(call(number) for number in range(200)))
    assert sandbox.most_alive <= 4
    await sessions.close()
    assert sandbox.alive == []


# ---- sessions that are kept ready


async def test_warm_sessions_are_kept_ready_once_code_is_expected(sandbox: FakeSandbox) -> None:
    sessions = registry(sandbox, sandbox_pool_sessions=2)
    await settle()
    assert sandbox.sessions == []
    sessions.expect()
    await settle()
    assert [session.is_warm for session in sandbox.sessions] == [True, True]
    sessions.expect()
    first = await used(sessions)
    assert first is sandbox.sessions[0]
    await settle()
    assert len(sandbox.alive) == 3, "another one has taken its place"
    assert await used(sessions) is first
    await sessions.close()
    assert sandbox.alive == []


async def test_a_ready_session_that_was_lost_is_not_given_to_anybody(sandbox: FakeSandbox) -> None:
    sessions = registry(sandbox, sandbox_pool_sessions=1)
    sessions.expect()
    await settle()
    sandbox.sessions[0].is_lost = True
    async with sessions.use("p", "thread_a") as kept:
        assert fake(kept) is not sandbox.sessions[0]
        assert not kept.has_lost_state, "it was nobody's"
    await settle()
    assert sandbox.sessions[0].is_closed
    await sessions.close()


async def test_who_comes_before_the_first_one_is_ready_does_not_wait_for_it(sandbox: FakeSandbox) -> None:
    sessions = registry(sandbox, sandbox_pool_sessions=1)
    sandbox.may_start.clear()
    sessions.expect()
    await settle()
    coming = Busy(sessions, "thread_a")
    await settle()
    assert sandbox.tries == 2
    sandbox.may_start.set()
    await settle()
    await coming.end()
    await sessions.close()


async def test_the_pool_takes_no_room_from_threads(sandbox: FakeSandbox) -> None:
    sessions = registry(sandbox, sandbox_sessions_max=1, sandbox_pool_sessions=5)
    sessions.expect()
    await settle()
    assert len(sandbox.sessions) == 1
    first = await used(sessions)
    assert first is sandbox.sessions[0]
    await settle()
    assert sandbox.alive == [first]
    await sessions.close()


async def test_a_pool_that_cannot_be_filled_is_logged_once_and_not_tried_in_a_loop(
    sandbox: FakeSandbox, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    sessions = registry(sandbox, sandbox_pool_sessions=3)
    sandbox.failure = SandboxUnavailable("bubblewrap is missing.")
    for _ in range(3):
        sessions.expect()
        await settle()
    assert sandbox.tries == 3
    assert caplog.text.count("bubblewrap is missing") == 1
    sandbox.failure = None
    sessions.expect()
    await settle()
    assert len(sandbox.alive) == 3
    await sessions.close()


# ---- the end


async def test_after_the_end_there_is_no_session(sandbox: FakeSandbox) -> None:
    sessions = registry(sandbox, sandbox_sessions_max=1, sandbox_pool_sessions=1)
    busy = Busy(sessions, "thread_a")
    waiting = Busy(sessions, "thread_b")
    await settle()
    await sessions.close()
    with pytest.raises(SandboxUnavailable, match="stopping"):
        await waiting.task
    await busy.end()
    with pytest.raises(SandboxUnavailable, match="stopping"):
        await used(sessions)
    sessions.expect()
    await settle()
    assert sandbox.alive == []
    assert sandbox.tries == 1
    await sessions.close()


async def test_a_session_that_starts_while_all_ends_is_ended_too(sandbox: FakeSandbox) -> None:
    sessions = registry(sandbox)
    sandbox.may_start.clear()
    coming = Busy(sessions, "thread_a")
    await settle()
    await sessions.close()
    sandbox.may_start.set()
    with pytest.raises(SandboxUnavailable, match="stopping"):
        await coming.task
    await settle()
    assert [session.is_closed for session in sandbox.sessions] == [True]


async def test_a_start_that_nobody_waits_for_gives_its_room_back(sandbox: FakeSandbox) -> None:
    sessions = registry(sandbox, sandbox_sessions_max=1)
    sandbox.may_start.clear()
    coming = Busy(sessions, "thread_a")
    await settle()
    coming.task.cancel()
    await asyncio.gather(coming.task, return_exceptions=True)
    sandbox.may_start.set()
    assert await used(sessions, "thread_b") is sandbox.sessions[0]
    await sessions.close()


# ---- threads that are deleted


async def test_a_deleted_thread_s_idle_session_ends_at_once(sandbox: FakeSandbox) -> None:
    sessions = registry(sandbox)
    await used(sessions, "gone")
    kept = await used(sessions, "kept")
    assert set(sessions.threads()) == {("p", "gone"), ("p", "kept")}
    sessions.forget("other", "kept")
    sessions.forget("p", "gone")
    sessions.forget("p", "never seen")
    await settle()
    assert sandbox.alive == [kept]
    assert sessions.threads() == [("p", "kept")]
    await sessions.close()


async def test_a_deleted_thread_s_busy_session_ends_with_its_call(sandbox: FakeSandbox) -> None:
    sessions = registry(sandbox)
    call = Busy(sessions, "gone")
    await settle()
    sessions.forget("p", "gone")
    await settle()
    assert len(sandbox.alive) == 1
    await call.end()
    await settle()
    assert sandbox.alive == []
    assert sessions.threads() == []
    await sessions.close()

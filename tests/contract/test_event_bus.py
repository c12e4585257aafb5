"""What every bus behind `events/base.EventBus` has to hold: order, resuming, slow readers, and attempts that were given up."""

import asyncio
import itertools
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mini_assistant.events.base import ALL_PARTS, START, EventBus, Position, PositionLost, StreamEvent, Subscription
from mini_assistant.events.local import LocalEventBus
from mini_assistant.events.postgres import PostgresEventBus
from mini_assistant.runs.events import MessageDeltas

RUN = "run_1"
DELTA = "thread.message.delta"

MakeBus = Callable[..., Awaitable[EventBus]]


class Buses:
    """Opens buses of one implementation, and stops them at the end. database_url: where those of a cluster meet; else empty."""

    def __init__(self, database_url: str) -> None:
        self._database_url = database_url
        self._opened: list[PostgresEventBus] = []

    async def make(
        self, *, ring_bytes_max: int = 1_000_000, memory_bytes_max: int = 1_000_000, retention_seconds: float = 300.0
    ) -> EventBus:
        if not self._database_url:
            return LocalEventBus(ring_bytes_max=ring_bytes_max, memory_bytes_max=memory_bytes_max, retention_seconds=retention_seconds)
        bus = PostgresEventBus(
            self._database_url,
            ring_bytes_max=ring_bytes_max,
            memory_bytes_max=memory_bytes_max,
            retention_seconds=retention_seconds,
            flush_interval_seconds=0.001,
            poll_interval_seconds=60.0,  # these runs have no rows
            wait_seconds=10.0,
        )
        await bus.open()
        self._opened.append(bus)
        return bus

    async def stop(self) -> None:
        for bus in self._opened:
            await bus.stop()


def _database_url(request: pytest.FixtureRequest, implementation: str) -> str:
    return request.getfixturevalue("postgres_url") if implementation == "postgres" else ""


IMPLEMENTATIONS = ("local", "postgres")

_numbers = itertools.count()


@pytest.fixture(params=IMPLEMENTATIONS)
def database_url(request: pytest.FixtureRequest) -> str:
    return _database_url(request, request.param)


@pytest.fixture
async def make_bus(database_url: str) -> AsyncIterator[MakeBus]:
    buses = Buses(database_url)
    async with asyncio.timeout(60):
        yield buses.make
        await buses.stop()


@pytest.fixture
async def bus(make_bus: MakeBus) -> EventBus:
    return await make_bus()


def row(seq: int, name: str = "thread.run.queued") -> tuple[int, str, bytes]:
    return seq, name, b'{"seq":%d}' % seq


async def attach(bus: EventBus, after: Position = START, *, attempt: int = 1, last_seq: int = 0, run: str = RUN) -> Subscription:
    return await bus.subscribe(run, after, attempt, last_seq)


async def places(reader: Subscription) -> list[tuple[int, int]]:
    """What is there now, without waiting."""
    reader.nudge()
    return [(event.seq, event.part) for event in await reader.next()]


async def test_rows_and_deltas_come_in_their_order_with_their_attempt(bus: EventBus) -> None:
    bus.publish(RUN, 1, [row(1), row(2)])
    bus.publish_delta(RUN, 1, DELTA, b"a")
    bus.publish_delta(RUN, 1, DELTA, b"b")
    bus.publish(RUN, 2, [row(3)])
    bus.publish_delta(RUN, 2, DELTA, b"c")
    reader = await attach(bus)
    events = await reader.next()
    assert [(event.seq, event.part, event.attempt) for event in events] == [
        (1, 0, 1),
        (2, 0, 1),
        (2, 1, 1),
        (2, 2, 1),
        (3, 0, 2),
        (3, 1, 2),
    ]
    assert events[3] == StreamEvent(2, 2, 1, DELTA, b"b")


async def test_a_waiting_reader_is_woken_and_each_reader_has_its_own_pace(bus: EventBus) -> None:
    slow, quick = await attach(bus), await attach(bus)
    waiting = asyncio.create_task(quick.next())
    await asyncio.sleep(0)
    assert not waiting.done()
    bus.publish(RUN, 1, [row(1)])
    assert [event.seq for event in await waiting] == [1]
    bus.publish(RUN, 1, [row(2)])
    assert await places(quick) == [(2, 0)]
    assert await places(slow) == [(1, 0), (2, 0)]


async def test_runs_do_not_mix(bus: EventBus) -> None:
    one, other = await attach(bus), await attach(bus, run="run_2")
    bus.publish("run_2", 1, [row(1)])
    bus.publish_delta(RUN, 1, DELTA, b"of the first run")
    assert await places(other) == [(1, 0)]
    assert await places(one) == [(0, 1)]


async def test_nudge_ends_the_waiting_now_or_when_it_begins(bus: EventBus) -> None:
    reader = await attach(bus)
    waiting = asyncio.create_task(reader.next())
    await asyncio.sleep(0)
    reader.nudge()
    assert list(await waiting) == []
    reader.nudge()
    assert list(await reader.next()) == []
    waiting = asyncio.create_task(reader.next())
    await asyncio.sleep(0.01)
    assert not waiting.done(), "a nudge counts once"
    waiting.cancel()


@pytest.mark.parametrize(
    ("after", "rest"),
    [
        (Position(0), [(1, 0), (2, 0), (2, 1), (2, 2), (3, 0)]),
        (Position(1), [(2, 0), (2, 1), (2, 2), (3, 0)]),
        (Position(2), [(2, 1), (2, 2), (3, 0)]),
        (Position(2, 1), [(2, 2), (3, 0)]),
        (Position(2, 2), [(3, 0)]),
        (Position(2, ALL_PARTS), [(3, 0)]),
        (Position(3), []),
    ],
)
async def test_reading_begins_exactly_after_a_position(bus: EventBus, after: Position, rest: list[tuple[int, int]]) -> None:
    bus.publish(RUN, 1, [row(1), row(2)])
    bus.publish_delta(RUN, 1, DELTA, b"a")
    bus.publish_delta(RUN, 1, DELTA, b"b")
    bus.publish(RUN, 1, [row(3)])
    assert await places(await attach(bus, after, last_seq=3)) == rest


async def test_what_came_before_the_bus_is_told_from_rows(bus: EventBus) -> None:
    reader = await attach(bus, last_seq=5)
    assert reader.first_seq == 6
    bus.publish(RUN, 1, [row(6)])
    assert await places(reader) == [(6, 0)]


async def test_a_row_that_a_reader_knows_from_the_database_is_not_given_again(bus: EventBus) -> None:
    """Its commit was seen by a read before it was published."""
    reader = await attach(bus, last_seq=6)
    bus.publish(RUN, 1, [row(6), row(7)])
    assert reader.first_seq == 7
    assert await places(reader) == [(7, 0)]
    bus.publish_delta(RUN, 1, DELTA, b"a")
    assert await places(reader) == [(7, 1)]


@pytest.mark.parametrize("after", [Position(2, 9), Position(3, 1), Position(2, 1)])
async def test_a_delta_that_is_not_known_cannot_be_resumed(bus: EventBus, after: Position) -> None:
    bus.publish(RUN, 1, [row(1), row(2)])
    bus.publish_delta(RUN, 1, DELTA, b"a")
    attempt = 2 if after == (2, 1) else 1  # the same place in another attempt said something else
    with pytest.raises(PositionLost):
        await attach(bus, after, attempt=attempt, last_seq=2)


async def test_a_new_attempt_takes_back_the_deltas_behind_the_last_row(bus: EventBus) -> None:
    bus.publish(RUN, 1, [row(1)])
    before, unread = await attach(bus), await attach(bus)
    bus.publish_delta(RUN, 1, DELTA, b"a")
    at_start = await attach(bus, Position(1), last_seq=1)
    assert await places(before) == [(1, 0), (1, 1)]
    bus.begin_attempt(RUN, 2, 1)
    bus.publish_delta(RUN, 2, DELTA, b"b")
    with pytest.raises(PositionLost):
        await before.next()
    for reader in (unread, at_start):
        assert [event for event in await reader.next() if event.part] == [StreamEvent(1, 1, 2, DELTA, b"b")]


async def test_a_new_attempt_leaves_what_rows_have_settled(bus: EventBus) -> None:
    reader = await attach(bus)
    bus.publish(RUN, 1, [row(1)])
    bus.publish_delta(RUN, 1, DELTA, b"a")
    bus.publish(RUN, 1, [row(2)])
    assert await places(reader) == [(1, 0), (1, 1), (2, 0)]
    bus.begin_attempt(RUN, 2, 2)
    bus.publish(RUN, 2, [row(3)])
    assert await places(reader) == [(3, 0)]


async def test_a_reader_that_came_and_went_costs_later_readers_nothing(bus: EventBus) -> None:
    """A worker goes on with a run of an earlier process: its first deltas have no row before them."""
    bus.begin_attempt(RUN, 2, 7)
    (await attach(bus, last_seq=7)).close()
    bus.publish_delta(RUN, 2, DELTA, b"a")
    reader = await attach(bus, last_seq=7)
    bus.publish_delta(RUN, 2, DELTA, b"b")
    assert await places(reader) == [(7, 1), (7, 2)]


async def test_close_may_be_called_twice_and_spares_the_others(bus: EventBus) -> None:
    one, other = await attach(bus), await attach(bus)
    one.close()
    one.close()
    bus.publish(RUN, 1, [row(1)])
    assert await places(other) == [(1, 0)]


async def test_a_deleted_run_ends_its_readers(bus: EventBus) -> None:
    bus.publish(RUN, 1, [row(1)])
    reader, waiting = await attach(bus), await attach(bus, Position(1), last_seq=1)
    task = asyncio.create_task(waiting.next())
    await asyncio.sleep(0)
    bus.forget(RUN)
    bus.forget(RUN)
    with pytest.raises(PositionLost):
        await task
    with pytest.raises(PositionLost):
        await reader.next()
    bus.publish_delta(RUN, 1, DELTA, b"its worker has not heard of it yet")


async def test_a_server_that_stops_ends_its_readers_who_may_attach_again(bus: EventBus) -> None:
    bus.publish(RUN, 1, [row(1)])
    waiting = await attach(bus, Position(1), last_seq=1)
    task = asyncio.create_task(waiting.next())
    await asyncio.sleep(0)
    bus.close()
    with pytest.raises(PositionLost, match="stopping"):
        await task
    assert [event.seq for event in await (await attach(bus)).next()] == [1]


@pytest.mark.parametrize("limits", [{"retention_seconds": 0.0}, {"memory_bytes_max": 0}])
async def test_stopped_runs_are_dropped_and_told_from_rows(make_bus: MakeBus, limits: dict[str, float]) -> None:
    bus = await make_bus(**limits)
    for run, stop in (
        ("run_done", "thread.run.completed"),
        ("run_waits", "thread.run.requires_action"),
        ("run_goes_on", "thread.run.queued"),
    ):
        bus.publish(run, 1, [row(1), row(2, stop)])
    bus.publish("run_watched", 1, [row(1, "thread.run.completed")])
    watcher = await attach(bus, run="run_watched")
    await asyncio.sleep(0.001)
    bus.prune()
    assert (await attach(bus, run="run_done", last_seq=2)).first_seq == 3
    assert (await attach(bus, run="run_waits", last_seq=2)).first_seq == 3
    assert (await attach(bus, run="run_goes_on", last_seq=2)).first_seq == 1
    assert await places(watcher) == [(1, 0)]


async def test_a_run_that_was_continued_is_kept(make_bus: MakeBus) -> None:
    bus = await make_bus(retention_seconds=0.0)
    bus.publish(RUN, 1, [row(1, "thread.run.requires_action")])
    bus.publish(RUN, 1, [row(2, "thread.run.queued")])
    await asyncio.sleep(0.001)
    bus.prune()
    assert (await attach(bus, last_seq=2)).first_seq == 1


# --- full rings ---------------------------------------------------------------------------------------------------------------


def text_of(events: list[StreamEvent]) -> str:
    return "".join(msgspec.json.decode(event.data)["delta"]["content"][0]["text"]["value"] for event in events if event.part)


async def test_readers_that_keep_up_are_never_lost_in_a_full_ring(make_bus: MakeBus) -> None:
    """An answer many times larger than the ring, written in batches; the reader comes after each batch."""
    bus, deltas = await make_bus(ring_bytes_max=4096), MessageDeltas("msg_1")
    bus.publish(RUN, 1, [row(1, "thread.run.step.created"), row(2)])
    reader, idle = await attach(bus), await attach(bus)
    read = list(await reader.next())
    pieces = [f"word{number} " for number in range(2000)]
    for start in range(0, len(pieces), 8):
        for piece in pieces[start : start + 8]:
            bus.publish_delta(RUN, 1, DELTA, deltas.text(0, piece))
        read += await reader.next()
    assert text_of(read) == "".join(pieces)
    with pytest.raises(PositionLost):
        await idle.next()
    late = await attach(bus)
    assert text_of(list(await late.next())) == "".join(pieces)


async def test_readers_that_keep_up_are_not_lost_between_steps(make_bus: MakeBus) -> None:
    """The end of one step and the beginning of the next come in one list, while the ring is full."""
    bus, deltas = await make_bus(ring_bytes_max=4096), MessageDeltas("msg_1")
    bus.publish(RUN, 1, [row(1, "thread.run.step.created")])
    reader = await attach(bus)
    read = list(await reader.next())
    seq = 1
    for _ in range(20):
        for _ in range(40):
            bus.publish_delta(RUN, 1, DELTA, deltas.text(0, "x" * 100))
            read += await reader.next()
        bus.publish(RUN, 1, [row(seq + 1, "thread.run.step.completed"), row(seq + 2, "thread.run.step.created")])
        seq += 2
        read += await reader.next()
    assert text_of(read) == "x" * 100 * 40 * 20
    assert [event.seq for event in read if not event.part] == list(range(1, seq + 1))
    assert (await attach(bus)).first_seq > 1, "finished steps are told from rows"


async def test_a_full_ring_is_shrunk_in_time_that_grows_with_its_text(make_bus: MakeBus) -> None:
    """Its text alone is larger than the ring: merging it again with each delta would take minutes."""
    bus, deltas = await make_bus(ring_bytes_max=4096), MessageDeltas("msg_1")
    bus.publish(RUN, 1, [row(1, "thread.run.step.created")])
    started = asyncio.get_running_loop().time()
    for _ in range(10_000):
        bus.publish_delta(RUN, 1, DELTA, deltas.text(0, "twenty letters of it"))
    assert asyncio.get_running_loop().time() - started < 5.0
    assert len(text_of(list(await (await attach(bus)).next()))) == 200_000


async def test_a_merged_delta_cannot_be_resumed_from_its_middle(make_bus: MakeBus) -> None:
    bus, deltas = await make_bus(ring_bytes_max=4096), MessageDeltas("msg_1")
    bus.publish(RUN, 1, [row(1, "thread.run.step.created")])
    for _ in range(100):
        bus.publish_delta(RUN, 1, DELTA, deltas.text(0, "x"))
    [merged] = [event for event in await (await attach(bus)).next() if event.part][:1]
    assert merged.part > 1
    with pytest.raises(PositionLost):
        await attach(bus, Position(1, merged.part - 1), last_seq=1)
    rest = list(await (await attach(bus, Position(1, merged.part), last_seq=1)).next())
    assert len(text_of(rest)) == 100 - merged.part


async def test_rows_between_deltas_stay_where_they_are_in_a_full_ring(make_bus: MakeBus) -> None:
    """A run that is being cancelled tells of it between two pieces of its answer."""
    bus, deltas = await make_bus(ring_bytes_max=4096), MessageDeltas("msg_1")
    bus.publish(RUN, 1, [row(1, "thread.run.step.created")])
    for number in range(60):
        bus.publish_delta(RUN, 1, DELTA, deltas.text(0, "x"))
        if number in (5, 9):
            bus.publish(RUN, 1, [row(2 if number == 5 else 3, "thread.run.cancelling")])
    events = list(await (await attach(bus)).next())
    assert text_of(events) == "x" * 60
    assert [event.seq for event in events if not event.part] == [1, 2, 3]
    assert [(event.seq, event.part) for event in events] == sorted((event.seq, event.part) for event in events)


class _Story:
    """A run as it is told to a bus, and what a reader who attaches late gets from rows and bus together."""

    def __init__(self, bus: EventBus, run: str) -> None:
        self.bus, self.run = bus, run
        self.rows: list[StreamEvent] = []
        self.texts: dict[str, str] = {}
        self.attempt = 1
        self._deltas: MessageDeltas | None = None
        self._name = ""

    def tell(self, *names: str) -> None:
        data = msgspec.json.encode({"of": self._name})
        first = len(self.rows) + 1
        self.rows += [StreamEvent(first + place, 0, self.attempt, name, data) for place, name in enumerate(names)]
        self.bus.publish(self.run, self.attempt, [(event.seq, event.name, event.data) for event in self.rows[first - 1 :]])

    def begin_step(self) -> None:
        ends = ["thread.run.step.completed"] if self._name else []
        self._name = f"msg_{len(self.texts)}"
        self.texts[self._name] = ""
        self._deltas = MessageDeltas(self._name)
        self.tell(*ends, "thread.run.step.created", "thread.run.step.in_progress")

    def write(self, text: str) -> None:
        if self._deltas is not None:
            self.texts[self._name] += text
            self.bus.publish_delta(self.run, self.attempt, DELTA, self._deltas.text(0, text))

    def take_over(self) -> None:
        self.attempt += 1
        if self._name:
            self.texts[self._name] = ""
            self._deltas = MessageDeltas(self._name)
        self.bus.begin_attempt(self.run, self.attempt, len(self.rows))

    async def attach(self) -> "_LateReader":
        subscription = await attach(self.bus, last_seq=len(self.rows), run=self.run)
        steps_told = [row for row in self.rows[: subscription.first_seq - 1] if row.name == "thread.run.step.completed"]
        texts = dict(list(self.texts.items())[: len(steps_told)])
        return _LateReader(subscription, [row.seq for row in self.rows[: subscription.first_seq - 1]], texts)


class _LateReader:
    def __init__(self, subscription: Subscription, seqs: list[int], texts: dict[str, str]) -> None:
        self.subscription, self.seqs, self.texts = subscription, seqs, texts

    async def read(self) -> None:
        self.subscription.nudge()
        for event in await self.subscription.next():
            if event.part:
                delta: dict[str, Any] = msgspec.json.decode(event.data)
                value = delta["delta"]["content"][0]["text"]["value"]
                self.texts[delta["id"]] = self.texts.get(delta["id"], "") + value
            else:
                self.seqs.append(event.seq)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@given(seed=st.integers(0, 2**32), ring_bytes_max=st.sampled_from([4096, 6000, 1_000_000]))
# Each example has a run of its own.
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_whoever_attaches_from_the_start_whenever_gets_the_whole_story(
    request: pytest.FixtureRequest, implementation: str, seed: int, ring_bytes_max: int
) -> None:
    database_url = _database_url(request, implementation)

    async def tell(buses: Buses) -> None:
        pick = random.Random(seed)
        story = _Story(await buses.make(ring_bytes_max=ring_bytes_max), f"run_{next(_numbers)}")
        story.tell("thread.run.created", "thread.run.queued")
        readers: list[tuple[_LateReader, int]] = []
        for _ in range(pick.randrange(20, 400)):
            action = pick.choices(
                [story.begin_step, story.take_over, story.attach, lambda: story.write("ab" * pick.randrange(30))], [2, 1, 2, 60]
            )[0]
            reader = action()
            if reader is not None:
                reader = await reader
                readers.append((reader, pick.choice([1, 7, 10_000])))
            for known, every in readers:
                if pick.randrange(every) == 0:
                    await _read_or_leave(known)
        for reader in [*(reader for reader, _ in readers), await story.attach()]:
            await _read_or_leave(reader)
            if reader.seqs:
                assert reader.seqs == list(range(1, len(story.rows) + 1))
                assert {name: text for name, text in reader.texts.items() if text} == {n: t for n, t in story.texts.items() if t}

    async def tell_and_stop() -> None:
        buses = Buses(database_url)
        try:
            await tell(buses)
        finally:
            await buses.stop()

    asyncio.run(tell_and_stop())


async def _read_or_leave(reader: _LateReader) -> None:
    try:
        await reader.read()
    except PositionLost:
        reader.seqs = []

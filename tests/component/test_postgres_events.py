"""Several processes' buses on one database: what a reader gets in another process is what it gets where the run is written."""

import asyncio
import random
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any

import asyncpg
import pytest

from mini_assistant.db.migrations import migrate_postgres
from mini_assistant.errors import StoreUnavailable
from mini_assistant.events.base import START, Position, PositionLost, StreamEvent, Subscription
from mini_assistant.events.postgres import PostgresEventBus
from mini_assistant.events.shared_log import _SHARE, Outbox
from mini_assistant.events.shared_rings import ATTEMPT, PIECES_LOST, Entry
from tests.postgres_server import running_postgres

RUN = "run_1"
DELTA = "thread.message.delta"
CANCELLING = "thread.run.cancelling"


class Cluster:
    """A database, and the buses of processes that share it. Rows are written as the stores do: first the commit, then the telling."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.buses: list[PostgresEventBus] = []
        self.rows: asyncpg.Connection

    async def open(self) -> None:
        self.rows = await asyncpg.connect(self.url)
        await self.rows.execute("INSERT INTO threads (id, project_id, created_at, body) VALUES ('thread_1', 'default', 1, '{}')")

    async def process(self, **changes: Any) -> PostgresEventBus:
        limits: dict[str, Any] = {"ring_bytes_max": 50_000_000, "memory_bytes_max": 1_000_000, "retention_seconds": 300.0}
        times: dict[str, Any] = {"flush_interval_seconds": 0.002, "poll_interval_seconds": 30.0, "wait_seconds": 10.0}
        bus = PostgresEventBus(self.url, **{**limits, **times, **changes})
        await bus.open()
        self.buses.append(bus)
        return bus

    async def stop(self) -> None:
        for bus in self.buses:
            await bus.stop()
        await self.rows.close()

    async def add_run(self, run: str = RUN) -> None:
        await self.rows.execute(
            "INSERT INTO runs (id, project_id, created_at, body, thread_id, status, expires_at, version, attempt, lease_until)"
            " VALUES ($1, 'default', 1, '{}', 'thread_1', 'completed', 0, 0, 0, 0)",
            run,
        )
        await self.rows.execute("UPDATE runs SET status = 'in_progress' WHERE id = $1 AND $1 = 'run_1'", run)

    async def commit(self, *names: str, attempt: int = 1, run: str = RUN) -> list[tuple[int, str, bytes]]:
        """Write rows of events and tell nobody."""
        version = await self.rows.fetchval("SELECT version FROM runs WHERE id = $1", run)
        told = [(version + place, name, b'{"n":%d}' % (version + place)) for place, name in enumerate(names, start=1)]
        async with self.rows.transaction():
            await self.rows.executemany(
                "INSERT INTO run_events (run_id, seq, attempt, name, data) VALUES ($1, $2, $3, $4, $5)",
                [(run, seq, attempt, name, data.decode()) for seq, name, data in told],
            )
            await self.rows.execute(
                "UPDATE runs SET version = version + $2, attempt = greatest(attempt, $3) WHERE id = $1", run, len(told), attempt
            )
        return told

    async def write(self, bus: PostgresEventBus, *names: str, attempt: int = 1, run: str = RUN) -> None:
        bus.publish(run, attempt, await self.commit(*names, attempt=attempt, run=run))


@pytest.fixture
async def cluster(postgres_url: str) -> AsyncIterator[Cluster]:
    cluster = Cluster(postgres_url)
    async with asyncio.timeout(60):
        await cluster.open()
        await cluster.add_run()
        yield cluster
        await cluster.stop()


async def attach(bus: PostgresEventBus, after: Position = START, *, attempt: int = 1, last_seq: int = 0, run: str = RUN) -> Subscription:
    return await bus.subscribe(run, after, attempt, last_seq)


async def read_until(reader: Subscription, is_enough: Callable[[Sequence[StreamEvent]], bool]) -> list[StreamEvent]:
    events: list[StreamEvent] = []
    while not is_enough(events):
        events += await reader.next()
    return events


async def read(reader: Subscription, count: int) -> list[StreamEvent]:
    return await read_until(reader, lambda events: len(events) >= count)


def places(events: Sequence[StreamEvent]) -> list[tuple[int, int]]:
    return [(event.seq, event.part) for event in events]


def text(events: Sequence[StreamEvent]) -> str:
    return b"".join(event.data for event in events if event.part).decode()


async def wait_for_log(cluster: Cluster, is_so: Callable[[int], bool]) -> None:
    """Wait until the number of entries in the log is as it should be."""
    while not is_so(await cluster.rows.fetchval("SELECT count(*) FROM shared_events")):  # noqa: ASYNC110 - another process writes it
        await asyncio.sleep(0.005)


async def test_readers_elsewhere_get_the_same_events_at_the_same_positions(cluster: Cluster) -> None:
    replica, worker, other = await cluster.process(), await cluster.process(), await cluster.process()
    await cluster.write(replica, "thread.run.created", "thread.run.queued")
    readers = [await attach(bus) for bus in (replica, worker, other)]
    await cluster.write(worker, "thread.run.in_progress")
    for number in range(100):
        worker.publish_delta(RUN, 1, DELTA, b"%d " % number)
        if number % 10 == 0:
            await asyncio.sleep(0.001)
    await cluster.write(worker, "thread.run.completed")
    streams = [await read(reader, 104) for reader in readers]
    assert places(streams[0]) == [(1, 0), (2, 0), (3, 0), *[(3, part) for part in range(1, 101)], (4, 0)]
    assert streams[0] == streams[2]
    assert streams[1] == streams[0]


async def test_the_first_reader_in_the_middle_of_a_message_gets_its_pieces_from_the_log(cluster: Cluster) -> None:
    worker, replica = await cluster.process(), await cluster.process()
    await cluster.write(worker, "thread.run.in_progress", "thread.message.created")
    worker.publish_delta(RUN, 1, DELTA, b"of an open ")
    worker.publish_delta(RUN, 1, DELTA, b"answer")
    near = await attach(worker, last_seq=2)
    told = await attach(replica, last_seq=2)
    pieces = await read(told, 2)
    assert (told.first_seq, text(pieces)) == (3, "of an open answer")
    worker.publish_delta(RUN, 1, DELTA, b".")
    await cluster.write(worker, "thread.message.completed")
    assert places(await read(told, 2)) == [(2, 3), (3, 0)]
    assert places(await read(near, 6))[-2:] == [(2, 3), (3, 0)]
    late = await attach(replica, last_seq=3)
    told.close()
    late.close()
    after_it = await attach(replica, last_seq=3)
    assert after_it.first_seq == 4, "what rows have settled is told from rows"


async def test_reading_goes_on_behind_an_exact_delta_in_another_process(cluster: Cluster) -> None:
    worker, replica, other = await cluster.process(), await cluster.process(), await cluster.process()
    await cluster.write(worker, "thread.run.in_progress")
    reader = await attach(replica, last_seq=1)
    for piece in (b"a", b"b", b"c"):
        worker.publish_delta(RUN, 1, DELTA, piece)
    await read(reader, 3)
    resumed = await attach(other, Position(1, 2), last_seq=1)
    assert places(await read(resumed, 1)) == [(1, 3)]
    resumed.close()
    await cluster.write(worker, "thread.message.completed", "thread.message.created")
    worker.publish_delta(RUN, 1, DELTA, b"d")
    await read(reader, 3)
    resumed = await attach(other, Position(1, 2), last_seq=3)
    assert places(await read(resumed, 4)) == [(1, 3), (2, 0), (3, 0), (3, 1)]
    for after, attempt in ((Position(1, 2), 2), (Position(1, 9), 1), (Position(3, 2), 1)):
        with pytest.raises(PositionLost):
            await attach(other, after, attempt=attempt, last_seq=3)


async def test_a_new_attempt_takes_back_what_the_lost_one_wrote_and_refuses_its_worker(cluster: Cluster) -> None:
    lost, second, replica = await cluster.process(), await cluster.process(), await cluster.process()
    await cluster.write(lost, "thread.run.in_progress")
    has_read, unread, near = await attach(replica), await attach(replica), await attach(lost)
    lost.publish_delta(RUN, 1, DELTA, b"old")
    await read(has_read, 2)
    await read(near, 2)
    second.begin_attempt(RUN, 2, 1)
    second.publish_delta(RUN, 2, DELTA, b"new")
    for reader in (has_read, near):
        with pytest.raises(PositionLost):
            await reader.next()
    events = await read_until(unread, lambda events: "new" in text(events))
    lost.publish_delta(RUN, 1, DELTA, b"of a worker that wakes up")
    await cluster.write(second, "thread.run.completed", attempt=2)
    events += await read_until(unread, lambda events: bool(events))
    assert [(event.seq, event.part, event.attempt) for event in events] == [(1, 0, 1), (1, 1, 2), (2, 0, 2)]
    assert text(events) == "new"


async def test_an_old_worker_that_has_not_heard_of_the_new_one_is_not_read(cluster: Cluster) -> None:
    """It tells after the new attempt has begun: whoever attaches finds both in the log."""
    lost, second, replica = await cluster.process(), await cluster.process(), await cluster.process()
    await cluster.write(lost, "thread.run.in_progress")
    lost.publish_delta(RUN, 1, DELTA, b"old")
    witness = await attach(replica)
    await read(witness, 2)
    second.begin_attempt(RUN, 2, 1)
    second.publish_delta(RUN, 2, DELTA, b"new")
    with pytest.raises(PositionLost):
        await witness.next()
    lost.publish_delta(RUN, 1, DELTA, b"older")
    await cluster.write(lost, "thread.unrelated", run=await other_run(cluster))
    for bus in (replica, second, lost):
        assert text(await read(await attach(bus, last_seq=1), 1)) in ("new",)


async def other_run(cluster: Cluster) -> str:
    await cluster.add_run("run_2")
    return "run_2"


async def test_a_delta_that_comes_after_another_process_told_of_a_cancel_is_kept_in_order(cluster: Cluster) -> None:
    worker, replica, other = await cluster.process(), await cluster.process(), await cluster.process()
    await cluster.write(worker, "thread.run.in_progress")
    readers = [await attach(bus) for bus in (replica, other)]
    worker.publish_delta(RUN, 1, DELTA, b"a")
    for reader in readers:
        await read(reader, 2)
    told = await cluster.commit(CANCELLING)
    replica.publish(RUN, 1, told)
    worker.publish_delta(RUN, 1, DELTA, b"b")  # its position is before that row, and nobody has told it
    near = await attach(worker)
    worker.publish_delta(RUN, 1, DELTA, b"c")
    await cluster.write(worker, "thread.message.incomplete", "thread.run.cancelled")
    for events in [*[await read(reader, 5) for reader in readers], (await read(near, 7))[2:]]:
        assert text(events) == "bc"
        assert [event.seq for event in events if not event.part] == [2, 3, 4]
        assert places(events) == sorted(places(events))
    late = await attach(other, Position(1), last_seq=1)
    assert "bc" in text(await read(late, 6))


async def test_the_place_of_a_cancel_among_the_pieces_is_not_resumed(cluster: Cluster) -> None:
    worker, replica = await cluster.process(), await cluster.process()
    await cluster.write(worker, "thread.run.in_progress")
    reader = await attach(replica)
    worker.publish_delta(RUN, 1, DELTA, b"a")
    await cluster.write(replica, CANCELLING)
    await read(reader, 3)
    with pytest.raises(PositionLost):
        await attach(replica, Position(2), last_seq=2)


async def test_a_first_reader_during_a_cancel_gets_the_whole_open_message(cluster: Cluster) -> None:
    worker, replica = await cluster.process(), await cluster.process()
    await cluster.write(worker, "thread.run.in_progress")
    worker.publish_delta(RUN, 1, DELTA, b"a")
    await cluster.write(replica, CANCELLING)
    worker.publish_delta(RUN, 1, DELTA, b"b")
    reader = await attach(replica, last_seq=2)
    assert reader.first_seq == 2
    events = await read(reader, 3)
    assert (text(events), [event.seq for event in events if not event.part]) == ("ab", [2])


async def test_rows_that_died_with_their_process_are_found_by_the_poll(cluster: Cluster) -> None:
    worker, replica = await cluster.process(), await cluster.process(poll_interval_seconds=0.05)
    await cluster.write(worker, "thread.run.in_progress")
    has_read, unread = await attach(replica), await attach(replica, Position(1), last_seq=1)
    await read(has_read, 1)
    worker.publish_delta(RUN, 1, DELTA, b"a")
    await read(has_read, 1)
    await cluster.commit("thread.message.incomplete", "thread.run.failed")
    with pytest.raises(PositionLost):
        await has_read.next()
    assert places(await read(unread, 2)) == [(2, 0), (3, 0)]
    assert places(await read(await attach(replica, Position(1), last_seq=1), 2)) == [(2, 0), (3, 0)]


async def test_a_gap_before_a_later_row_is_filled_from_rows_at_once(cluster: Cluster) -> None:
    replica, worker = await cluster.process(), await cluster.process()
    await cluster.write(replica, "thread.run.created")
    reader = await attach(replica)
    await cluster.commit("thread.run.queued", "thread.run.in_progress")
    await cluster.write(worker, "thread.run.completed")
    assert places(await read(reader, 4)) == [(1, 0), (2, 0), (3, 0), (4, 0)]
    await cluster.commit("thread.run.queued")
    replica.publish(RUN, 1, await cluster.commit(CANCELLING))
    assert places(await read(reader, 2)) == [(5, 0), (6, 0)]


async def test_a_deleted_run_ends_readers_everywhere(cluster: Cluster) -> None:
    replica, other, polling = await cluster.process(), await cluster.process(), await cluster.process(poll_interval_seconds=0.05)
    await cluster.write(replica, "thread.run.created")
    readers = [await attach(bus, Position(1), last_seq=1) for bus in (replica, other)]
    replica.forget(RUN)
    for reader in readers:
        with pytest.raises(PositionLost, match="deleted"):
            await reader.next()
    run = await other_run(cluster)
    reader = await attach(polling, run=run)
    await cluster.rows.execute("DELETE FROM runs WHERE id = $1", run)
    with pytest.raises(PositionLost, match="deleted"):
        await reader.next()


async def test_a_slow_reader_costs_nobody_anything_and_many_attach_at_once(cluster: Cluster) -> None:
    worker, replica = await cluster.process(), await cluster.process(ring_bytes_max=4096)
    await cluster.write(worker, "thread.run.in_progress")
    quick, slow = await attach(replica), await attach(replica)
    events: list[StreamEvent] = []
    for number in range(300):
        worker.publish_delta(RUN, 1, "thread.unmerged" + str(number % 2), b"x" * 50)
        if number == 100:
            attaching = [asyncio.create_task(attach(replica if many % 2 else worker, last_seq=1)) for many in range(20)]
        if number % 5 == 0:
            events += await quick.next()
    await cluster.write(worker, "thread.run.completed")
    events += await read_until(quick, lambda more: bool(more) and more[-1].seq == 2)
    assert len(text(events)) == 300 * 50
    for reader in await asyncio.gather(*attaching):
        assert len(text(await read_until(reader, lambda more: bool(more) and more[-1].seq == 2))) == 300 * 50
    slow.close()


async def test_attaching_while_much_is_told_misses_nothing(cluster: Cluster) -> None:
    worker, replica, other = await cluster.process(), await cluster.process(), await cluster.process()
    await cluster.write(worker, "thread.run.in_progress")
    readers: list[Subscription] = []

    async def come_and_go(bus: PostgresEventBus) -> None:
        for _ in range(30):
            readers.append(reader := await attach(bus, last_seq=1))
            (await attach(bus, last_seq=1)).close()
            await asyncio.sleep(0)
            if len(readers) % 3 == 0:
                readers.remove(reader)
                reader.close()

    comers = [asyncio.create_task(come_and_go(bus)) for bus in (replica, other, worker)]
    count = 0
    while not all(task.done() for task in comers):
        worker.publish_delta(RUN, 1, DELTA, b"%d " % count)
        count += 1
        await asyncio.sleep(0)
    await asyncio.gather(*comers)
    await cluster.write(worker, "thread.run.completed")
    whole = "".join(f"{number} " for number in range(count))
    for reader in readers:
        assert text(await read_until(reader, lambda events: bool(events) and events[-1].seq == 2)) == whole


async def test_what_is_committed_late_is_not_passed_by(cluster: Cluster) -> None:
    """One process has numbered its entry and not committed it; another one's comes behind it, and waits for that."""
    worker, replica = await cluster.process(), await cluster.process()
    await cluster.write(worker, "thread.run.in_progress")
    reader = await attach(replica, last_seq=1)
    late, soon = await asyncpg.connect(cluster.url), await asyncpg.connect(cluster.url)
    opened = late.transaction()
    await opened.start()
    await share_delta(late, 1, b"late ")
    sharing = asyncio.create_task(share_delta(soon, 2, b"soon "))
    is_blocked = "SELECT count(*) FROM pg_locks WHERE NOT granted"
    while not sharing.done() and not await cluster.rows.fetchval(is_blocked):  # noqa: ASYNC110 - it has no event of its own
        await asyncio.sleep(0.005)
    await opened.commit()
    await sharing
    await cluster.write(worker, "thread.run.completed")
    assert text(await read_until(reader, lambda events: bool(events) and events[-1].seq == 2)) == "late soon "
    for connection in (late, soon):
        await connection.close()


async def share_delta(connection: asyncpg.Connection, part: int, data: bytes) -> None:
    """Tell of a delta of the run as a process does."""
    await connection.execute(_SHARE, [RUN], [1], [1], [part], [DELTA], [data], [RUN])


async def test_what_rows_have_settled_is_deleted_from_the_log_and_open_pieces_are_kept(cluster: Cluster) -> None:
    worker, replica = await cluster.process(), await cluster.process()
    await cluster.write(worker, "thread.run.in_progress")
    worker.publish_delta(RUN, 1, DELTA, b"settled")
    await cluster.write(worker, "thread.message.completed", "thread.message.created")
    worker.publish_delta(RUN, 1, DELTA, b"open")
    gone = await other_run(cluster)
    await cluster.write(worker, "thread.run.created", run=gone)
    await cluster.rows.execute("DELETE FROM runs WHERE id = $1", gone)
    await read(await attach(replica), 5)
    await wait_for_log(cluster, lambda count: count >= 6)
    replica.prune()
    await cluster.write(replica, "thread.unrelated", run=await other_run(cluster))
    await cluster.rows.execute(
        "UPDATE shared_events SET written_at = written_at - interval '31 seconds' WHERE run_id <> 'run_2' OR seq = 1"
    )
    replica.prune()
    await wait_for_log(cluster, lambda count: count == 2)
    kept = await cluster.rows.fetch("SELECT seq, part FROM shared_events ORDER BY n")
    assert [tuple(row) for row in kept] == [(3, 0), (3, 1)]
    third = await cluster.process()
    assert text(await read(await attach(third, last_seq=3), 1)) == "open"


async def test_telling_goes_on_while_postgresql_is_away_and_after_its_crash() -> None:
    with running_postgres() as server:
        migrate_postgres(server.url())
        cluster = Cluster(server.url())
        async with asyncio.timeout(90):
            await cluster.open()
            await cluster.add_run()
            worker, replica = await cluster.process(), await cluster.process(poll_interval_seconds=0.1)
            await cluster.write(worker, "thread.run.in_progress")
            open_reader, at_end = await attach(replica), await attach(replica)
            worker.publish_delta(RUN, 1, DELTA, b"a")
            await read(open_reader, 2)
            await asyncio.to_thread(server.kill)
            worker.publish_delta(RUN, 1, DELTA, b"b")
            with pytest.raises(StoreUnavailable):
                await attach(replica, run="run_9")
            await asyncio.to_thread(server.start)
            with pytest.raises(PositionLost):
                await read_until(open_reader, lambda events: False)
            cluster.rows = await asyncpg.connect(cluster.url)
            await cluster.write(worker, "thread.message.completed", "thread.run.completed")
            events = await read_until(at_end, lambda events: bool(events) and events[-1].seq == 3)
            assert [event.seq for event in events if not event.part] == [1, 2, 3]
            again = await attach(replica, Position(1), last_seq=1)
            assert [event.seq for event in await read_until(again, lambda e: bool(e) and e[-1].seq == 3) if not event.part] == [2, 3]
            await cluster.stop()


def test_what_cannot_be_sent_is_bounded_and_pieces_go_first() -> None:
    outbox = Outbox(bytes_max=20_000)
    outbox.put([Entry(RUN, 1, 1, 0, "thread.run.in_progress", b"row")])
    for part in range(1, 1000):
        outbox.put([Entry(RUN, 1, 1, part, DELTA, b"x" * 100)])
    kept = outbox.of_run(RUN)
    assert (kept[0].data, kept[1].name) == (b"row", PIECES_LOST)
    assert sum(len(entry.data) + 120 for entry in kept) <= 20_000
    outbox.put([Entry(RUN, 2, 1, 0, ATTEMPT, b""), *[Entry(RUN, 2, seq, 0, "thread.run.queued", b"x" * 1000) for seq in range(100)]])
    assert ATTEMPT in [entry.name for entry in outbox.of_run(RUN)]
    assert sum(len(entry.data) + 120 for entry in outbox.of_run(RUN)) <= 20_000


async def test_pieces_that_were_given_up_are_not_missing_in_silence(cluster: Cluster) -> None:
    worker, replica = await cluster.process(), await cluster.process()
    await cluster.write(worker, "thread.run.in_progress", "thread.message.created")
    has_read, unread = await attach(replica), await attach(replica)
    worker.publish_delta(RUN, 1, DELTA, b"a")
    await read(has_read, 3)
    worker._log.outbox.put([Entry(RUN, 1, 2, 2, PIECES_LOST, b"")])
    with pytest.raises(PositionLost):
        await has_read.next()
    late = await attach(replica, last_seq=2)
    await cluster.write(worker, "thread.message.completed")
    assert places(await read(late, 3)) == [(1, 0), (2, 0), (3, 0)]
    assert places(await read(unread, 3)) == [(1, 0), (2, 0), (3, 0)]


# --- random stories -----------------------------------------------------------------------------------------------------------


class _Reader:
    """A client. Messages that had ended before its first live event are told from rows."""

    def __init__(self, subscription: Subscription, ended: dict[int, str]) -> None:
        self.subscription = subscription
        self.seqs = list(range(1, subscription.first_seq))
        self.texts = {seq: whole for seq, whole in ended.items() if seq < subscription.first_seq}
        self._open = ""
        self.is_lost = False

    async def read(self) -> None:
        try:
            for event in await self.subscription.next():
                if event.part:
                    self._open += event.data.decode()
                else:
                    self.seqs.append(event.seq)
                    if event.name == "thread.message.completed":
                        self.texts[event.seq] = self._open
                    if event.name != CANCELLING:
                        self._open = ""
        except PositionLost:
            self.is_lost = True


async def _tell_story(cluster: Cluster, buses: list[PostgresEventBus], pick: random.Random, run: str, readers: list[_Reader]) -> None:
    worker, attempt, open_text, ended, seq = buses[0], 1, "", dict[int, str](), 1
    await cluster.write(worker, "thread.run.in_progress", run=run)
    for _ in range(pick.randrange(20, 120)):
        action = pick.choices(["delta", "row", "cancel", "take over", "attach", "leave", "pause"], [60, 8, 2, 1, 8, 3, 10])[0]
        if action == "delta":
            piece = f"{pick.randrange(10**6)},"
            open_text += piece
            worker.publish_delta(run, attempt, DELTA, piece.encode())
        elif action == "row":
            seq += 1
            ended[seq], open_text = open_text, ""
            await cluster.write(worker, "thread.message.completed", attempt=attempt, run=run)
        elif action == "cancel":
            seq += 1
            await cluster.write(pick.choice(buses), CANCELLING, attempt=attempt, run=run)
        elif action == "take over" and await cluster.rows.fetchval(
            "SELECT name <> $2 FROM run_events WHERE run_id = $1 AND seq = $3", run, CANCELLING, seq
        ):
            worker, open_text, attempt = pick.choice(buses), "", attempt + 1
            await cluster.rows.execute("UPDATE runs SET attempt = $2 WHERE id = $1", run, attempt)
            worker.begin_attempt(run, attempt, seq)
        elif action == "attach":
            readers.append(_Reader(await attach(pick.choice(buses), last_seq=seq, run=run), ended))
        elif action == "leave" and readers:
            readers.pop(pick.randrange(len(readers))).subscription.close()
        elif action == "pause":
            await asyncio.sleep(pick.choice([0, 0.001, 0.005]))
        for reader in readers:
            if pick.randrange(5) == 0 and not reader.is_lost:
                reader.subscription.nudge()
                await reader.read()
    ended[seq + 1] = open_text
    await cluster.write(worker, "thread.message.completed", "thread.run.completed", attempt=attempt, run=run)
    readers.append(_Reader(await attach(buses[-1], last_seq=seq, run=run), ended))
    for reader in readers:
        while not reader.is_lost and reader.seqs[-1:] != [seq + 2]:
            await reader.read()
        if not reader.is_lost:
            assert reader.seqs == list(range(1, seq + 3))
            assert reader.texts == ended
    assert not readers[-1].is_lost


@pytest.mark.parametrize("seed", range(12))
async def test_whoever_attaches_wherever_gets_the_whole_story(cluster: Cluster, seed: int) -> None:
    pick = random.Random(seed)
    buses = [await cluster.process() for _ in range(3)]
    for number in range(12):
        run, readers = f"run_of_story_{number}", list[_Reader]()
        await cluster.add_run(run)
        try:
            async with asyncio.timeout(20):
                await _tell_story(cluster, buses, pick, run, readers)
        except (AssertionError, TimeoutError) as exc:
            raise AssertionError(f"story {number} of seed {seed}") from exc

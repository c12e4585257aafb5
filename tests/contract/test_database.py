"""What every database behind `db/base.Database` has to hold: lists that apply whole or not at all, guards, order and durability."""

import asyncio
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest
import sqlalchemy as sa

from mini_assistant.db.base import Bound, Database, GuardFailed, Query, UniqueViolation
from mini_assistant.db.postgres import PostgresDatabase
from mini_assistant.db.sqlite import SqliteDatabase
from mini_assistant.db.tables import messages, runs, threads
from mini_assistant.errors import StoreUnavailable

OpenDatabase = Callable[[], Awaitable[Database]]

insert_thread = Query.insert_into(threads)
insert_run = Query.insert_into(runs)
insert_message = Query.insert_into(messages)
select_thread = Query(sa.select(threads.c.body).where(threads.c.id == sa.bindparam("thread_id")))
select_ids = Query(sa.select(threads.c.id).order_by(threads.c.seq))
count_threads = Query(sa.select(sa.func.count()).select_from(threads))
count_messages = Query(sa.select(sa.func.count()).select_from(messages))
delete_thread = Query(sa.delete(threads).where(threads.c.id == sa.bindparam("thread_id")).returning(threads.c.id))
replace_body = Query(
    sa.update(threads)
    .where(threads.c.id == sa.bindparam("thread_id"), threads.c.body == sa.bindparam("seen"))
    .values(body=sa.bindparam("new"))
    .returning(threads.c.id)
)


def thread(name: str, body: str = "{}") -> Bound:
    return insert_thread(id=name, project_id="p", created_at=1, body=body)


def run(name: str, thread_id: str, status: str = "queued") -> Bound:
    return insert_run(
        id=name,
        project_id="p",
        created_at=1,
        body="{}",
        thread_id=thread_id,
        status=status,
        expires_at=2,
        version=0,
        attempt=0,
        lease_owner=None,
        lease_until=0.0,
        ended_at=None,
        provider=None,
        traceparent=None,
    )


async def _open_sqlite(path: str) -> Database:
    database = SqliteDatabase(Path(path))
    await database.open()
    return database


async def _open_postgres(url: str) -> Database:
    database = PostgresDatabase(url, connections_max=4, wait_seconds=10)
    await database.open()
    return database


IMPLEMENTATIONS: dict[str, Callable[[str], Awaitable[Database]]] = {"sqlite": _open_sqlite, "postgres": _open_postgres}


@pytest.fixture(params=IMPLEMENTATIONS)
async def open_database(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[OpenDatabase]:
    """Opens the same rows again and again; what is left open is closed at the end."""
    opened: list[Database] = []
    place = request.getfixturevalue("postgres_url") if request.param == "postgres" else str(tmp_path / "contract.sqlite3")

    async def open_it() -> Database:
        opened.append(await IMPLEMENTATIONS[request.param](place))
        return opened[-1]

    async with asyncio.timeout(30):
        yield open_it
        for database in opened:
            await database.close()


@pytest.fixture
async def db(open_database: OpenDatabase) -> Database:
    return await open_database()


async def ids(db: Database) -> list[str]:
    return [row[0] for row in await db.read(select_ids())]


async def test_a_list_yields_the_rows_of_each_statement(db: Database) -> None:
    written = await db.write([thread("thread_1", "a"), replace_body(thread_id="thread_1", seen="a", new="b"), count_threads()])
    assert written == [[], [("thread_1",)], [(1,)]]


async def test_an_answered_write_is_seen_by_the_next_read(db: Database) -> None:
    for number in range(50):
        await db.write([thread(f"thread_{number}")])
        assert await db.read(count_threads()) == [(number + 1,)]


async def test_a_read_cannot_write(db: Database) -> None:
    with pytest.raises(StoreUnavailable):
        await db.read(thread("thread_1"))
    assert await ids(db) == []


async def test_a_failed_guard_undoes_the_whole_list_and_names_itself(db: Database) -> None:
    guard = replace_body.guard("unchanged", thread_id="thread_1", seen="x", new="y")
    with pytest.raises(GuardFailed) as caught:
        await db.write([thread("thread_1", "a"), guard, thread("thread_2")])
    assert caught.value.guard == "unchanged"
    assert await ids(db) == []


async def test_a_broken_unique_index_undoes_the_whole_list_and_names_the_index(db: Database) -> None:
    await db.write([thread("thread_1"), run("run_1", "thread_1")])
    with pytest.raises(UniqueViolation) as caught:
        await db.write([thread("thread_2"), run("run_2", "thread_1")])
    assert "runs.thread_id" in caught.value.index
    with pytest.raises(UniqueViolation) as caught:
        await db.write([thread("thread_2"), thread("thread_1")])
    assert "threads.id" in caught.value.index
    assert await ids(db) == ["thread_1"]


async def test_one_thread_takes_many_runs_that_have_ended_and_one_that_is_active(db: Database) -> None:
    ended = [run(f"run_{status}", "thread_1", status) for status in ("completed", "incomplete", "failed", "cancelled", "expired")]
    await db.write([thread("thread_1"), *ended, run("run_active", "thread_1", "requires_action")])
    for status in ("queued", "in_progress", "requires_action", "cancelling"):
        with pytest.raises(UniqueViolation):
            await db.write([run(f"run_{status}_2", "thread_1", status)])


async def test_a_row_without_its_parent_is_refused_and_children_go_with_their_parent(db: Database) -> None:
    def message(name: str, thread_id: str) -> Bound:
        return insert_message(id=name, project_id="p", created_at=1, body="{}", thread_id=thread_id, run_id=None, role="user")

    with pytest.raises(StoreUnavailable):
        await db.write([message("msg_1", "thread_unknown")])
    await db.write([thread("thread_1"), message("msg_1", "thread_1"), message("msg_2", "thread_1")])
    await db.write([delete_thread(thread_id="thread_1")])
    assert await db.read(count_messages()) == [(0,)]


async def test_values_that_no_row_can_hold_are_refused_and_the_database_goes_on(db: Database) -> None:
    for body in ("\ud800", 2**70):
        with pytest.raises(StoreUnavailable):
            await db.write([thread("thread_0"), thread("thread_1", body)])  # type: ignore[arg-type]
        with pytest.raises(StoreUnavailable):
            await db.read(select_thread(thread_id=body))
    await db.write([thread("thread_2", "ü 😀 \u2028")])
    assert await db.read(select_thread(thread_id="thread_2")) == [("ü 😀 \u2028",)]
    assert await ids(db) == ["thread_2"]


async def test_an_id_that_no_row_can_have_is_found_nowhere(db: Database) -> None:
    """Clients send what they like, a NUL too."""
    await db.write([thread("thread_1", "a")])
    assert await db.read(select_thread(thread_id="thread_1\x00")) == []
    with pytest.raises(GuardFailed) as caught:
        await db.write([thread("thread_2"), replace_body.guard("unchanged", thread_id="thread_1\x00", seen="a", new="b")])
    assert caught.value.guard == "unchanged"
    assert await ids(db) == ["thread_1"]
    assert await db.read(select_thread(thread_id="thread_1")) == [("a",)]


async def test_a_failing_list_leaves_its_neighbours_alone(db: Database) -> None:
    """Written at the same time, so that they meet in one group commit: every third fails, each in another way."""
    await db.write([thread("thread_taken")])
    failing = [
        [thread("thread_undone_1"), replace_body.guard("unchanged", thread_id="thread_taken", seen="?", new="!")],
        [thread("thread_undone_2"), thread("thread_taken")],
        [thread("thread_undone_3"), run("run_1", "thread_unknown")],
        [thread("thread_undone_4", "\ud800")],
    ]
    lists = [failing[number // 3 % 4] if number % 3 == 0 else [thread(f"thread_{number}")] for number in range(300)]
    outcomes = await asyncio.gather(*(db.write(statements) for statements in lists), return_exceptions=True)
    kinds = [type(outcome) for outcome in outcomes]
    expected = [GuardFailed, UniqueViolation, StoreUnavailable, StoreUnavailable]
    assert kinds == [expected[number // 3 % 4] if number % 3 == 0 else list for number in range(300)]
    assert await ids(db) == ["thread_taken", *(f"thread_{number}" for number in range(300) if number % 3)]


async def test_of_two_guarded_writes_exactly_one_wins(db: Database) -> None:
    await db.write([thread("thread_1", "0")])
    guards = [replace_body.guard("unchanged", thread_id="thread_1", seen="0", new=str(number)) for number in range(1, 101)]
    outcomes = await asyncio.gather(*(db.write([guard]) for guard in guards), return_exceptions=True)
    winners = [number for number, outcome in enumerate(outcomes, start=1) if not isinstance(outcome, Exception)]
    assert len(winners) == 1
    assert await db.read(select_thread(thread_id="thread_1")) == [(str(winners[0]),)]


async def test_on_commit_runs_in_the_order_of_the_commits_before_the_answer_and_only_on_success(db: Database) -> None:
    told: list[str] = []
    answered: list[str] = []

    async def write(name: str, statements: list[Bound]) -> None:
        try:
            await db.write(statements, lambda: told.append(name))
        except GuardFailed:
            return
        assert name in told, "the events of a write are published before it is answered"
        answered.append(name)

    bad = replace_body.guard("unchanged", thread_id="thread_?", seen="", new="")
    names = [f"thread_{number}" for number in range(200)]
    await asyncio.gather(*(write(name, [thread(name)] if number % 7 else [thread(name), bad]) for number, name in enumerate(names)))
    assert told == answered == [name for number, name in enumerate(names) if number % 7]
    assert await ids(db) == told, "rows are numbered in the order in which their events were told"


async def test_on_commit_runs_for_a_caller_that_was_cancelled(db: Database) -> None:
    committed = asyncio.Event()
    writing = asyncio.create_task(db.write([thread("thread_1")], committed.set))
    await asyncio.sleep(0)  # it is handed in now
    writing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await writing
    await committed.wait()
    assert await ids(db) == ["thread_1"]


async def test_an_on_commit_that_breaks_does_not_leave_others_without_an_answer(db: Database) -> None:
    def break_down() -> None:
        raise RuntimeError("a reader's fault")

    problems: list[object] = []
    asyncio.get_running_loop().set_exception_handler(lambda _loop, context: problems.append(context.get("exception")))
    async with asyncio.timeout(5):
        await asyncio.gather(*(db.write([thread(f"thread_{n}")], break_down if n == 3 else None) for n in range(20)))
    assert [str(problem) for problem in problems] == ["a reader's fault"], "it is reported, once"
    assert len(await ids(db)) == 20


async def test_concurrent_writers_and_readers_never_see_half_a_list(db: Database) -> None:
    """Each list moves one unit between two rows; whoever reads at whatever time finds the same sum."""
    pick, total = random.Random(7), Query(sa.select(sa.func.sum(sa.cast(threads.c.body, sa.Integer))))
    move = Query(
        sa.update(threads)
        .where(threads.c.id == sa.bindparam("thread_id"))
        .values(body=sa.cast(sa.cast(threads.c.body, sa.Integer) + sa.bindparam("units", type_=sa.Integer), sa.Text))
    )
    await db.write([thread(f"thread_{number}", "100") for number in range(5)])

    async def transfer() -> None:
        first, second = pick.sample(range(5), 2)
        await db.write([move(thread_id=f"thread_{first}", units=-1), move(thread_id=f"thread_{second}", units=1)])

    async def audit() -> None:
        assert await db.read(total()) == [(500,)]

    await asyncio.gather(*(transfer() if number % 2 else audit() for number in range(400)))
    await audit()


async def test_what_was_written_is_there_when_it_is_opened_again(open_database: OpenDatabase) -> None:
    first = await open_database()
    await first.write([thread("thread_1", "kept")])
    await first.close()
    second = await open_database()
    assert await second.read(select_thread(thread_id="thread_1")) == [("kept",)]


async def test_close_finishes_what_was_handed_in_and_then_refuses(open_database: OpenDatabase) -> None:
    database = await open_database()
    writing = [asyncio.create_task(database.write([thread(f"thread_{number}")])) for number in range(50)]
    reading = asyncio.ensure_future(database.read(count_threads()))
    await asyncio.sleep(0)  # they are handed in now
    await database.close()
    assert [await write for write in writing] == [[[]]] * 50
    await reading
    async with asyncio.timeout(5):
        with pytest.raises(StoreUnavailable):
            await database.read(count_threads())
        with pytest.raises(StoreUnavailable):
            await database.write([thread("thread_late")])
    assert len(await ids(await open_database())) == 50


async def test_check_says_something_while_the_database_is_in_use(db: Database) -> None:
    await db.write([thread("thread_1")])
    assert await db.check()
    await db.write([thread("thread_2")])
    assert await ids(db) == ["thread_1", "thread_2"]

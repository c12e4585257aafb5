"""PostgreSQL as the database of a cluster: what the contract does not say. Restarts, locks of others, migrations, and its words."""

import asyncio
import importlib
import itertools
import pkgutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any

import asyncpg
import psycopg
import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext

import mini_assistant
from mini_assistant.clock import DatabaseClock
from mini_assistant.db.base import Bound, GuardFailed, Query
from mini_assistant.db.migrations import HEAD, MigrationFailed, migrate_postgres
from mini_assistant.db.postgres import DIALECT, PostgresDatabase
from mini_assistant.db.postgres_writer import unique_columns
from mini_assistant.db.tables import code_file_owners, metadata, threads
from mini_assistant.errors import StoreUnavailable
from mini_assistant.pagination import Listing, _Shape
from mini_assistant.runs.claims import FairOrder
from tests.postgres_server import PostgresServer, running_postgres

insert_thread = Query.insert_into(threads)
count_threads = Query(sa.select(sa.func.count()).select_from(threads))
select_threads = Query(sa.select(threads.c.id))
set_body = Query(
    sa.update(threads).where(threads.c.id == sa.bindparam("thread_id")).values(body=sa.bindparam("new")).returning(threads.c.id)
)


def thread(name: str, body: str = "{}") -> Bound:
    return insert_thread(id=name, project_id="p", created_at=1, body=body)


async def opened(url: str, *, connections_max: int = 4, wait_seconds: float = 20) -> PostgresDatabase:
    database = PostgresDatabase(url, connections_max=connections_max, wait_seconds=wait_seconds)
    await database.open()
    return database


# ---- statements and tables ---------------------------------------------------------------------------------------------------------


def queries_in(value: object, seen: set[int]) -> Iterator[Query]:
    """All statements that an object of the package holds, however deep."""
    if id(value) in seen:
        return
    seen.add(id(value))
    if isinstance(value, Query):
        yield value
        return
    if isinstance(value, Listing):
        for ascending, after, before in itertools.product((True, False), repeat=3):
            yield value._query(_Shape(is_ascending=ascending, has_after=after, has_before=before, filters=()))
    if isinstance(value, dict):
        parts: list[Any] = list(value.values())
    elif isinstance(value, list | tuple | set | frozenset):
        parts = list(value)
    elif type(value).__module__.startswith("mini_assistant.") and not isinstance(value, type):
        parts = list(getattr(value, "__dict__", {}).values())
    else:
        return
    for part in parts:
        yield from queries_in(part, seen)


def all_queries() -> list[Query]:
    seen: set[int] = set()
    found = list(queries_in(FairOrder(1, {"one": 1, "two": 2}), seen))
    for module in pkgutil.walk_packages(mini_assistant.__path__, "mini_assistant."):
        if any(part in module.name for part in ("__main__", ".guest", ".migrations.")):
            continue
        for value in vars(importlib.import_module(module.name)).values():
            found.extend(queries_in(value, seen))
    return found


async def test_postgres_understands_every_statement_of_the_program(postgres_url: str) -> None:
    queries = all_queries()
    assert len(queries) > 150
    connection = await asyncpg.connect(postgres_url)
    try:
        refused = []
        for query in queries:
            compiled = query.compiled(DIALECT)
            try:
                await connection.prepare(compiled.text)
            except asyncpg.PostgresError as exc:
                refused.append((str(exc), compiled.text))
        assert refused == []
    finally:
        await connection.close()


def test_migrations_make_the_tables_that_the_program_uses(postgres: PostgresServer, postgres_url: str) -> None:
    engine = sa.create_engine(postgres_url.replace("postgresql://", "postgresql+psycopg://"))

    def is_ours(name: str | None, kind: str, _parent: object) -> bool:
        return kind != "table" or name in metadata.tables

    with engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True, "include_name": is_ours})
        assert compare_metadata(context, metadata) == []
    engine.dispose()


def test_migrations_make_the_same_indexes_and_keys_as_the_tables(postgres: PostgresServer, postgres_url: str) -> None:
    """What a comparison of types does not see: conditions of partial indexes, cascades."""
    created_url = postgres.create_database("created_from_tables")
    engine = sa.create_engine(created_url.replace("postgresql://", "postgresql+psycopg://"))
    metadata.create_all(engine)
    engine.dispose()

    def shape_of(url: str) -> set[tuple[Any, ...]]:
        with psycopg.connect(url) as connection:
            indexes = connection.execute("SELECT tablename, indexname, indexdef FROM pg_indexes WHERE schemaname = 'public'").fetchall()
            keys = connection.execute("SELECT conrelid::regclass::text, conname, pg_get_constraintdef(oid) FROM pg_constraint").fetchall()
        return {row for row in (*indexes, *keys) if row[0] in metadata.tables}

    try:
        assert shape_of(postgres_url) == shape_of(created_url)
    finally:
        postgres.drop_database("created_from_tables")


def test_unique_indexes_are_named_as_in_sqlite(postgres: PostgresServer, postgres_url: str) -> None:
    rows = postgres.execute(
        "SELECT i.relname, t.relname, (SELECT array_agg(a.attname ORDER BY k.place) FROM unnest(x.indkey::int[]) WITH ORDINALITY"
        " k(number, place) JOIN pg_attribute a ON a.attrelid = t.oid AND a.attnum = k.number)"
        " FROM pg_index x JOIN pg_class i ON i.oid = x.indexrelid JOIN pg_class t ON t.oid = x.indrelid"
        " WHERE x.indisunique AND t.relnamespace = 'public'::regnamespace",
        database=postgres_url.rpartition("/")[2],
    )
    in_catalog = {index: ", ".join(f"{table}.{column}" for column in columns) for index, table, columns in rows if table in metadata.tables}
    assert unique_columns() == in_catalog
    assert unique_columns()["runs_one_active_per_thread"] == "runs.thread_id"


# ---- migrations --------------------------------------------------------------------------------------------------------------------


def revision_of(url: str) -> Any:
    with psycopg.connect(url) as connection:
        return connection.execute("SELECT version_num FROM alembic_version").fetchall()


def set_revision(url: str, revision: str) -> None:
    with psycopg.connect(url) as connection:
        connection.execute("UPDATE alembic_version SET version_num = %s", (revision,))


def test_several_processes_may_migrate_at_a_time(postgres: PostgresServer) -> None:
    url = postgres.create_database("migrated_by_many")
    try:
        code = "import sys; from mini_assistant.db.migrations import migrate_postgres; migrate_postgres(sys.argv[1])"
        processes = [subprocess.Popen([sys.executable, "-c", code, url], stderr=subprocess.PIPE, text=True) for _ in range(4)]
        told = [process.communicate(timeout=60)[1] for process in processes]
        assert [process.returncode for process in processes] == [0] * 4, told
        assert revision_of(url) == [(HEAD,)]
    finally:
        postgres.drop_database("migrated_by_many")


def test_migrating_a_database_of_a_newer_version_is_refused(postgres_url: str) -> None:
    set_revision(postgres_url, "9999")
    with pytest.raises(MigrationFailed, match=r"does not know.*9999"):
        migrate_postgres(postgres_url)
    assert revision_of(postgres_url) == [("9999",)]


def test_migrating_says_why_it_cannot(postgres: PostgresServer, free_port: int) -> None:
    with pytest.raises(MigrationFailed, match="refused"):
        migrate_postgres(f"postgresql://someone:secret-word@127.0.0.1:{free_port}/rows")
    with pytest.raises(MigrationFailed, match="does not exist"):
        migrate_postgres(postgres.url("no_such_database"))
    for address in ("postgresql://someone:secret/word@127.0.0.1/rows", "postgres://someone:secret-word@127.0.0.1:port/rows"):
        with pytest.raises(MigrationFailed) as caught:
            migrate_postgres(address)
        assert "secret" not in str(caught.value)


async def test_a_server_does_not_migrate_by_itself(postgres: PostgresServer, postgres_url: str) -> None:
    database = PostgresDatabase(postgres_url, connections_max=1, wait_seconds=10)
    set_revision(postgres_url, "0002")
    with pytest.raises(StoreUnavailable, match=r"older version \(0002.*run `mini-assistant migrate`"):
        await database.open()
    with pytest.raises(StoreUnavailable, match="older version"):
        await database.check()
    assert revision_of(postgres_url) == [("0002",)]
    set_revision(postgres_url, "another program's")
    with pytest.raises(StoreUnavailable, match="another program"):
        await database.open()
    empty = postgres.create_database("empty")
    with pytest.raises(StoreUnavailable, match="no tables yet; run `mini-assistant migrate`"):
        await PostgresDatabase(empty, connections_max=1, wait_seconds=10).open()
    postgres.drop_database("empty")


async def test_an_old_server_starts_beside_a_migrated_database(postgres_url: str) -> None:
    set_revision(postgres_url, "9999")
    database = await opened(postgres_url.replace("postgresql://", "postgres://"))
    await database.write([thread("thread_1")])
    assert await database.read(count_threads()) == [(1,)]
    assert "PostgreSQL 1" in await database.check()
    await database.close()


# ---- connections -------------------------------------------------------------------------------------------------------------------


@pytest.fixture
def free_port() -> Iterator[int]:
    """A port of loopback where nobody listens, and nobody else can before the test ends."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound, never listening: whoever connects is refused
        yield taken.getsockname()[1]


async def test_a_server_that_is_not_there_is_named_without_its_password(free_port: int) -> None:
    database = PostgresDatabase(f"postgresql://someone:secret-word@127.0.0.1:{free_port}/rows", connections_max=1, wait_seconds=0.3)
    for call in (database.open, database.check):
        with pytest.raises(StoreUnavailable, match=f"127.0.0.1:{free_port}/rows cannot be reached") as caught:
            await call()
        assert "secret" not in str(caught.value)
    with pytest.raises(StoreUnavailable, match="closed"):
        await database.read(count_threads())
    await database.close()


@pytest.mark.parametrize("address", ["postgresql://someone:secret/word@127.0.0.1/rows", "postgresql://someone:x@127.0.0.1:secret/rows"])
async def test_an_address_that_cannot_be_read_is_not_shown(address: str) -> None:
    with pytest.raises(StoreUnavailable) as caught:
        await PostgresDatabase(address, connections_max=1, wait_seconds=0.3).open()
    assert "secret" not in str(caught.value)


async def test_a_wrong_password_is_told_at_once_and_not_shown() -> None:
    with running_postgres() as server:
        server.execute("CREATE ROLE someone LOGIN PASSWORD 'right-word'")
        file = server.execute("SHOW hba_file")[0][0]
        rules = "SELECT 'host all someone 127.0.0.1/32 scram-sha-256' UNION ALL SELECT 'host all all 127.0.0.1/32 trust' ORDER BY 1 DESC"
        server.execute(f"COPY ({rules}) TO '{file}'")
        server.execute("SELECT pg_reload_conf()")
        async with asyncio.timeout(30):  # the settings are read again soon, not at once
            while True:
                address = f"postgresql://someone:secret-word@127.0.0.1:{server.port}/postgres"
                with pytest.raises(StoreUnavailable) as caught:
                    await PostgresDatabase(address, connections_max=1, wait_seconds=3600).open()
                assert "secret" not in str(caught.value)
                if "password authentication failed" in str(caught.value):
                    break
        with pytest.raises(MigrationFailed, match="password authentication failed") as refused:
            await asyncio.to_thread(migrate_postgres, address)
        assert "secret" not in str(refused.value)


async def test_more_reads_than_connections_wait_for_their_turn(postgres_url: str) -> None:
    database = await opened(postgres_url, connections_max=2)
    await database.write([thread("thread_1")])
    reads = [asyncio.ensure_future(database.read(count_threads())) for _ in range(100)]
    await asyncio.sleep(0)
    for read in reads[::3]:
        read.cancel()
    outcomes = await asyncio.gather(*reads, return_exceptions=True)
    assert all(outcome == [(1,)] for number, outcome in enumerate(outcomes) if number % 3)
    assert await asyncio.gather(*(database.read(count_threads()) for _ in range(100))) == [[(1,)]] * 100
    await database.close()


@pytest.mark.parametrize("end", ["stop", "kill"])
async def test_what_was_answered_outlives_a_restart_under_load_and_nothing_is_there_by_half(end: str) -> None:
    with running_postgres() as server:
        url = server.create_database("rows")
        await asyncio.to_thread(migrate_postgres, url)
        database = await opened(url, wait_seconds=30)
        answered: set[str] = set()
        unknown: set[str] = set()
        goes_on = True
        numbers = itertools.count()

        async def write() -> None:
            while goes_on:
                name = f"thread_{next(numbers)}"
                try:
                    await database.write([thread(f"{name}_a"), count_threads(), thread(f"{name}_b")])
                    answered.add(name)
                except StoreUnavailable:
                    unknown.add(name)

        async def read() -> None:
            while goes_on:
                rows = await database.read(count_threads())  # no read fails: it waits for the server
                assert rows[0][0] % 2 == 0

        tasks = [asyncio.create_task(work()) for work in (*[write] * 8, *[read] * 8)]

        async def until_more_are_answered() -> None:
            seen = len(answered)
            while len(answered) < seen + 50:
                assert not [task for task in tasks if task.done()]
                await asyncio.sleep(0.01)

        async with asyncio.timeout(60):
            for _ in range(2):
                await until_more_are_answered()
                await asyncio.to_thread(getattr(server, end))
                await asyncio.sleep(0.2)
                await asyncio.to_thread(server.start)
            await until_more_are_answered()
            goes_on = False
            await asyncio.gather(*tasks)
            there = {row[0] for row in await database.read(select_threads())}
            await database.close()
    assert {f"{name}_{half}" for name in answered for half in "ab"} <= there
    for name in unknown:
        assert (f"{name}_a" in there) == (f"{name}_b" in there)
    assert {name.rpartition("_")[0] for name in there} <= answered | unknown


async def test_writes_and_reads_are_refused_when_the_server_stays_away_and_go_on_when_it_is_back() -> None:
    with running_postgres() as server:
        url = server.create_database("rows")
        await asyncio.to_thread(migrate_postgres, url)
        database = await opened(url, wait_seconds=0.5)
        await database.write([thread("thread_1")])
        await asyncio.to_thread(server.stop)
        outcomes = await asyncio.gather(
            *(database.write([thread(f"thread_{number}")]) for number in range(2, 300)),
            *(database.read(count_threads()) for _ in range(4)),
            return_exceptions=True,
        )
        assert {type(outcome) for outcome in outcomes} == {StoreUnavailable}
        await asyncio.to_thread(server.start)
        assert await database.write([thread("thread_x")]) == [[]]
        assert sorted(await database.read(select_threads())) == [("thread_1",), ("thread_x",)]
        await asyncio.to_thread(server.stop)
        await database.close()


# ---- several processes -------------------------------------------------------------------------------------------------------------


async def test_lists_that_lock_each_other_out_are_repeated(postgres_url: str) -> None:
    databases = [await opened(postgres_url) for _ in range(3)]
    names = [f"thread_{number}" for number in range(6)]
    await databases[0].write([thread(name, "0") for name in names])
    add = Query(
        sa.update(threads)
        .where(threads.c.id == sa.bindparam("thread_id"))
        .values(body=sa.cast(sa.cast(threads.c.body, sa.Integer) + 1, sa.Text))
        .returning(threads.c.id)
    )
    lists = [list(order) for order in itertools.islice(itertools.permutations(names), 0, 720, 9)]
    written = await asyncio.gather(
        *(databases[number % 3].write([add(thread_id=name) for name in order]) for number, order in enumerate(lists))
    )
    assert len(written) == 80
    assert await databases[0].read(Query(sa.select(threads.c.body).distinct())()) == [("80",)]
    for database in databases:
        await database.close()


async def test_a_list_that_postgres_undoes_for_a_deadlock_is_repeated(postgres_url: str) -> None:
    database = await opened(postgres_url)
    await database.write([thread("thread_a"), thread("thread_b")])
    other = await asyncpg.connect(postgres_url)
    await other.execute("SET deadlock_timeout = '30s'")  # it looks later than the list, which so is the one to be undone
    await other.execute("BEGIN; UPDATE threads SET body = 'theirs' WHERE id = 'thread_b'")
    write = asyncio.create_task(database.write([set_body(thread_id="thread_a", new="ours"), set_body(thread_id="thread_b", new="ours")]))
    while not await other.fetchval("SELECT count(*) FROM pg_locks WHERE NOT granted"):  # noqa: ASYNC110 - the server tells nobody
        await asyncio.sleep(0)
    await other.execute("UPDATE threads SET body = 'theirs' WHERE id = 'thread_a'")
    assert not write.done(), "they wait for each other, so this went on because the list was undone"
    await other.execute("COMMIT")
    assert await write == [[("thread_a",)], [("thread_b",)]]
    assert await database.read(Query(sa.select(threads.c.body).distinct())()) == [("ours",)]
    await other.close()
    await database.close()


async def test_a_lock_of_another_process_refuses_one_list_and_not_its_neighbours(postgres_url: str) -> None:
    database = await opened(postgres_url, wait_seconds=1)
    await database.write([thread("thread_locked")])
    other = await asyncpg.connect(postgres_url)
    await other.execute("BEGIN; UPDATE threads SET body = 'theirs'")
    outcomes = await asyncio.gather(
        database.write([thread("thread_0"), set_body(thread_id="thread_locked", new="ours")]),
        *(database.write([thread(f"thread_{number}")]) for number in range(1, 5)),
        return_exceptions=True,
    )
    assert isinstance(outcomes[0], StoreUnavailable)
    assert outcomes[1:] == [[[]]] * 4
    await other.execute("COMMIT")
    await other.close()
    assert await database.write([set_body(thread_id="thread_locked", new="ours")]) == [[("thread_locked",)]]
    assert await database.read(count_threads()) == [(5,)]
    await database.close()


async def test_insert_unless_it_exists_by_two_processes_holds_for_both(postgres_url: str) -> None:
    columns = code_file_owners.c
    there = sa.exists().where(columns.file_id == sa.bindparam("of_file"))
    note = Query(
        sa.insert(code_file_owners).from_select(
            ["file_id", "owner_id", "project_id"],
            sa.select(sa.bindparam("of_file", type_=sa.Text), sa.literal("o", sa.Text), sa.literal("p", sa.Text)).where(~there),
        )
    )
    databases = [await opened(postgres_url) for _ in range(2)]
    other = await asyncpg.connect(postgres_url)
    for number in range(20):  # the other's row is there, but not committed, when the list is tried first
        await other.execute(f"BEGIN; INSERT INTO code_file_owners VALUES ('file_{number}', 'o', 'p')")
        writes = [asyncio.create_task(database.write([note(of_file=f"file_{number}")])) for database in databases]
        await asyncio.sleep(0.01)
        await other.execute("COMMIT")
        await asyncio.gather(*writes)
    assert await other.fetchval("SELECT count(*) FROM code_file_owners") == 20
    await other.close()
    for database in databases:
        await database.close()


async def test_what_nobody_waits_for_is_written_in_order_too(postgres_url: str) -> None:
    database = await opened(postgres_url)
    writes = [database.write([thread(f"thread_{number:03}")], durable=number % 5 == 0) for number in range(100)]
    await asyncio.gather(*writes)
    await database.write([thread("thread_100")], durable=False)
    with pytest.raises(GuardFailed):
        await database.write([thread("thread_101"), set_body.guard("there", thread_id="thread_x", new="")], durable=False)
    rows = await database.read(Query(sa.select(threads.c.id).order_by(threads.c.seq))())
    assert rows == [(f"thread_{number:03}",) for number in range(101)]
    await database.close()


async def test_a_value_of_a_wrong_kind_refuses_its_list_and_not_its_neighbours(postgres_url: str) -> None:
    database = await opened(postgres_url)
    wrong: list[Any] = [5, ["a"], {"a": 1}, object(), b"bytes"]
    outcomes = await asyncio.gather(
        *(database.write([thread(f"thread_{number}", body)]) for number, body in enumerate(wrong)),
        *(database.write([thread(f"thread_right_{number}")]) for number in range(5)),
        return_exceptions=True,
    )
    assert [type(outcome) for outcome in outcomes] == [StoreUnavailable] * 5 + [list] * 5
    with pytest.raises(StoreUnavailable):
        await database.write([thread("thread_x", wrong[3])])
    assert await database.read(count_threads()) == [(5,)]
    await database.close()


async def test_processes_agree_on_the_time_of_the_database(postgres_url: str) -> None:
    database = await opened(postgres_url)
    offset = await database.clock_offset_seconds()
    assert abs(offset) < 60, "this machine and its database read the same clock"
    await database.close()
    clock = DatabaseClock()
    clock.set_offset(3600.0)
    assert clock.now() > time.time() + 3000

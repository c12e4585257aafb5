"""The queue of many processes on a real PostgreSQL: several on one database, cut connections, killed servers and killed workers."""

import asyncio
import contextlib
import logging
import re
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import psycopg
import pytest
from procrastinate.schema import SchemaManager

from mini_assistant.errors import StoreUnavailable
from mini_assistant.queue import procrastinate as module
from mini_assistant.queue.base import TaskKind
from mini_assistant.queue.procrastinate import ProcrastinateQueue
from mini_assistant.queue.procrastinate_schema import apply_schema
from tests.postgres_server import PostgresServer, running_postgres

BOTH: tuple[TaskKind, ...] = ("run", "ingest")

DIES_WITH_A_JOB = """
import asyncio, os, signal, sys
from mini_assistant.queue.procrastinate import ProcrastinateQueue

async def main():
    queue = ProcrastinateQueue(sys.argv[1], kinds=["run"], wait_seconds=20)
    queue._waiting["run"].put_nowait = lambda _: os.kill(os.getpid(), signal.SIGKILL)  # a job has been fetched, and not finished
    await queue.open()
    await asyncio.sleep(60)

asyncio.run(main())
"""


@contextlib.asynccontextmanager
async def opened(url: str, kinds: tuple[TaskKind, ...] = BOTH) -> AsyncIterator[ProcrastinateQueue]:
    queue = ProcrastinateQueue(url, kinds=kinds, wait_seconds=20)
    await queue.open()
    try:
        yield queue
    finally:
        await queue.close()


@contextlib.contextmanager
def own_server() -> Iterator[PostgresServer]:
    with running_postgres() as server:
        apply_schema(server.url())
        yield server


@pytest.fixture
def url(postgres_url: str) -> str:
    apply_schema(postgres_url)
    return postgres_url


def select(url: str, statement: str) -> list[tuple[object, ...]]:
    with psycopg.connect(url, autocommit=True, options="-c search_path=procrastinate") as connection:
        cursor = connection.execute(statement.encode())
        return cursor.fetchall() if cursor.description else []


async def until_equal(url: str, statement: str, value: object) -> None:
    """Wait until a statement's only value is this one."""
    async with asyncio.timeout(30):
        while await asyncio.to_thread(select, url, statement) != [(value,)]:  # noqa: ASYNC110 - a database is asked
            await asyncio.sleep(0.05)


JOBS = "SELECT count(*) FROM procrastinate_jobs"
CONNECTIONS = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"


async def take(queue: ProcrastinateQueue, into: list[str], kind: TaskKind = "run") -> None:
    while True:
        into.append(await queue.get(kind))


# ---- several processes -------------------------------------------------------------------------------------------------------------


async def test_each_id_goes_to_one_of_those_that_work_on_its_kind(url: str) -> None:
    async with opened(url, ()) as api, opened(url) as one, opened(url, ("run",)) as two, opened(url, ("ingest",)) as three:
        first, second, ingests = [], [], []
        takers = [asyncio.create_task(take(queue, ids)) for queue, ids in ((one, first), (two, second))]
        takers += [asyncio.create_task(take(queue, ingests, "ingest")) for queue in (one, three)]
        number = 0
        async with asyncio.timeout(30):
            while number < 200 or not first or not second:
                api.put("run", f"run_{number}")
                if number % 10 == 0:
                    api.put("ingest", str(number))
                    await asyncio.sleep(0.002)
                number += 1
            while len(first) + len(second) < number or len(ingests) < number / 10:  # noqa: ASYNC110 - of two lists
                await asyncio.sleep(0.01)
        await until_equal(url, JOBS, 0)
        for taker in takers:
            taker.cancel()
        await asyncio.gather(*takers, return_exceptions=True)

    assert sorted(first + second) == sorted(f"run_{put}" for put in range(number))
    assert sorted(ingests, key=int) == [str(put) for put in range(0, number, 10)]


async def test_what_is_for_all_goes_to_all_that_work_on_its_kind(url: str) -> None:
    async with opened(url, ()) as api, opened(url) as one, opened(url, ("run",)) as two, opened(url, ("ingest",)) as three:
        api.put("run", "run_1", to_all=True)
        one.put("run", "run_2", to_all=True)
        async with asyncio.timeout(20):
            assert {await one.get("run"), await one.get("run")} == {"run_1", "run_2"}
            assert {await two.get("run"), await two.get("run")} == {"run_1", "run_2"}
            three.put("ingest", "7", to_all=True)
            assert await three.get("ingest") == "7"
            assert await one.get("ingest") == "7"
        with pytest.raises(KeyError):
            await two.get("ingest")
        assert select(url, JOBS) == [(0,)]


async def test_ids_wait_for_a_process_that_works_on_them(url: str) -> None:
    early = ProcrastinateQueue(url, kinds=(), wait_seconds=20)
    early.put("run", "run_0")
    await early.open()
    early.put("run", "run_1")
    early.put("run", "run_1")
    await early.close()
    async with opened(url, ()) as api:
        assert re.fullmatch(r"procrastinate \d+\.\d+\.\d+, 2 waiting", await api.check())

    async with opened(url) as worker, asyncio.timeout(20):
        assert [await worker.get("run"), await worker.get("run")] == ["run_0", "run_1"]


async def test_a_closed_queue_leaves_no_connection(url: str) -> None:
    async with opened(url) as queue, asyncio.timeout(20):
        queue.put("run", "run_1")
        assert await queue.get("run") == "run_1"
        assert select(url, CONNECTIONS) != [(0,)]
    await until_equal(url, CONNECTIONS, 0)
    assert select(url, "SELECT count(*) FROM procrastinate_workers") == [(0,)]


# ---- what breaks -------------------------------------------------------------------------------------------------------------------


async def test_cut_connections_are_made_again(url: str) -> None:
    async with opened(url, ()) as api, opened(url) as worker, asyncio.timeout(40):
        select(url, f"SELECT pg_terminate_backend(pid) FROM ({CONNECTIONS.replace('count(*)', 'pid')}) AS others")
        for number in range(20):
            api.put("run", f"run_{number}")
        assert {await worker.get("run") for _ in range(20)} == {f"run_{number}" for number in range(20)}


async def test_what_is_put_while_postgres_is_away_comes_later(caplog: pytest.LogCaptureFixture) -> None:
    with own_server() as server:
        async with opened(server.url(), ()) as api, opened(server.url()) as worker, asyncio.timeout(55):
            api.put("run", "run_before")
            assert await worker.get("run") == "run_before"
            server.kill()
            for number in range(50):
                api.put("run", f"run_{number}")
            with pytest.raises(StoreUnavailable):
                await api.check()
            await asyncio.to_thread(server.start)
            came = {await worker.get("run") for _ in range(50)}
            assert came - {"run_before"} <= {f"run_{number}" for number in range(50)}
            heard = asyncio.create_task(worker.get("ingest"))
            while not heard.done():
                api.put("ingest", "7", to_all=True)
                await asyncio.sleep(0.1)
            assert await heard == "7"
    warnings = [record for record in caplog.records if record.levelno >= logging.WARNING and record.name.startswith("mini_assistant")]
    assert 1 <= len(warnings) <= 4


async def test_the_last_ids_are_kept_while_postgres_is_away(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr(module, "_PENDING_MAX", 100)
    with own_server() as server:
        async with opened(server.url(), ()) as api, asyncio.timeout(55):
            server.kill()
            for number in range(1000):
                api.put("run", f"run_{number}")
                if number % 100 == 0:
                    await asyncio.sleep(0.01)
            await asyncio.to_thread(server.start)
            await until_equal(server.url(), JOBS, 100)
    assert [record.message for record in caplog.records if "left to the sweepers" in record.message] == [
        "More than 100 tasks wait to be put into the queue: the oldest are left to the sweepers."
    ]


async def test_a_queue_closes_while_postgres_is_away() -> None:
    with own_server() as server:
        queue = ProcrastinateQueue(server.url(), kinds=BOTH, wait_seconds=20)
        await queue.open()
        queue.put("run", "run_1")
        server.kill()
        queue.put("run", "run_2")
        async with asyncio.timeout(40):
            await queue.close()


async def test_a_killed_worker_leaves_no_job_behind(url: str) -> None:
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", DIES_WITH_A_JOB, url)
    try:
        async with opened(url, ()) as api:
            api.put("run", "run_1")
            async with asyncio.timeout(30):
                await process.wait()
            assert select(url, "SELECT status::text FROM procrastinate_jobs") == [("doing",)]
            await api.clean()
            assert select(url, JOBS) == [(1,)]  # the worker may still be there

            select(url, "UPDATE procrastinate_workers SET last_heartbeat = now() - interval '31 s'")
            await api.clean()
            assert select(url, JOBS) == [(0,)]
            assert select(url, "SELECT count(*) FROM procrastinate_workers") == [(0,)]
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


async def test_a_worker_that_was_thought_dead_works_again(url: str) -> None:
    async with opened(url, ()) as api, opened(url) as worker, asyncio.timeout(40):
        await until_equal(url, "SELECT count(*) FROM procrastinate_workers", 1)
        select(url, "DELETE FROM procrastinate_workers")
        api.put("run", "run_1")
        assert await worker.get("run") == "run_1"


async def test_what_nobody_comes_for_is_removed(url: str) -> None:
    async with opened(url, ()) as api:
        api.put("run", "run_1")
        await until_equal(url, JOBS, 1)
        await api.clean()
        assert select(url, JOBS) == [(1,)]
        select(url, "UPDATE procrastinate_events SET at = now() - interval '61 min'")
        await api.clean()
        assert select(url, JOBS) == [(0,)]


async def test_it_says_at_the_start_that_postgres_is_away() -> None:
    queue = ProcrastinateQueue("postgresql://someone:geheim@127.0.0.1:1/name", kinds=BOTH, wait_seconds=0.5)
    with pytest.raises(StoreUnavailable, match="does not answer") as raised:
        await queue.open()
    assert "geheim" not in raised.value.message


async def test_it_says_at_the_start_that_tables_are_missing(postgres_url: str) -> None:
    queue = ProcrastinateQueue(postgres_url, kinds=BOTH, wait_seconds=20)
    with pytest.raises(StoreUnavailable, match="mini-assistant migrate"):
        await queue.open()
    await until_equal(postgres_url, CONNECTIONS, 0)


# ---- its tables --------------------------------------------------------------------------------------------------------------------

TABLES = "SELECT count(*) FROM pg_tables WHERE tablename LIKE 'procrastinate%' AND schemaname = "


async def test_tables_are_made_once_by_many_and_apart_from_ours(postgres_url: str) -> None:
    await asyncio.gather(*(asyncio.to_thread(apply_schema, postgres_url) for _ in range(5)))

    assert select(postgres_url, f"{TABLES} 'procrastinate'") == [(4,)]
    assert select(postgres_url, f"{TABLES} 'public'") == [(0,)]
    apply_schema(postgres_url)


def make_tables_of_version_2(url: str) -> None:
    files = sorted(Path(SchemaManager.get_migrations_path()).glob("*.sql"))
    old = [file for file in files if file.name < "03."]
    assert 0 < len(old) < len(files)
    select(url, "CREATE SCHEMA procrastinate")
    for file in old:
        select(url, file.read_text(encoding="utf-8"))
    select(url, f"COMMENT ON SCHEMA procrastinate IS '{old[-1].name}'")


async def test_tables_of_an_older_version_are_brought_up_to_date(postgres_url: str) -> None:
    make_tables_of_version_2(postgres_url)
    apply_schema(postgres_url)

    async with opened(postgres_url) as queue, asyncio.timeout(20):
        queue.put("run", "run_1")
        assert await queue.get("run") == "run_1"


def test_it_says_that_tables_cannot_be_made() -> None:
    with pytest.raises(StoreUnavailable) as raised:
        apply_schema("postgresql://someone:geheim@127.0.0.1:1/name")
    assert "geheim" not in raised.value.message

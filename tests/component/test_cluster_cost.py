"""What processes of a cluster must not do for each other: wake those that read nothing, look through the whole log, look for jobs twice."""

import asyncio
from typing import Any

import asyncpg
import pytest
from procrastinate import PsycopgConnector
from procrastinate.sql import queries

from mini_assistant.events.base import Position
from mini_assistant.events.postgres import PostgresEventBus
from mini_assistant.queue.procrastinate import ProcrastinateQueue
from mini_assistant.queue.procrastinate_schema import apply_schema
from tests.postgres_server import PostgresServer


def bus_to(url: str, flush_interval_seconds: float = 0.01) -> PostgresEventBus:
    return PostgresEventBus(
        url,
        ring_bytes_max=1_000_000,
        memory_bytes_max=1_000_000,
        retention_seconds=60,
        flush_interval_seconds=flush_interval_seconds,
        poll_interval_seconds=60,
        wait_seconds=5,
    )


async def heard_channels(bus: PostgresEventBus) -> list[str]:
    async with bus._log.reading() as reader:
        return [row[0] for row in await reader._connection.fetch("SELECT pg_listening_channels()")]


async def test_only_a_process_that_reads_is_woken_by_what_others_tell(postgres_url: str) -> None:
    bus = bus_to(postgres_url)
    await bus.open()
    try:
        async with asyncio.timeout(20):
            bus.publish("run_1", 1, [(1, "thread.run.created", b"{}")])
            assert await heard_channels(bus) == []
            await bus.subscribe("run_1", Position(0), 1, 1)
            assert await heard_channels(bus) == ["mini_assistant_events"]
            # And on the next connection, when this one is cut off.
            async with bus._log.reading() as reader:
                reader._connection.terminate()
            assert await heard_channels(bus) == ["mini_assistant_events"]
    finally:
        await bus.stop()


async def test_the_end_of_a_run_does_not_wait_for_the_next_batch(postgres_url: str) -> None:
    writer, other = bus_to(postgres_url, flush_interval_seconds=3600), bus_to(postgres_url)
    await writer.open()
    await other.open()
    try:
        async with asyncio.timeout(20):
            reader = await other.subscribe("run_1", Position(0), 1, 0)
            writer.publish("run_1", 1, [(1, "thread.run.created", b"{}")])
            assert (await reader.next())[-1].name == "thread.run.created"
            writer.publish("run_1", 1, [(2, "thread.run.completed", b"{}")])
            assert (await reader.next())[-1].name == "thread.run.completed"
    finally:
        await other.stop()
        await writer.stop()


async def test_the_log_is_read_by_its_index_although_it_was_empty_when_it_was_planned(postgres: PostgresServer, postgres_url: str) -> None:
    bus = bus_to(postgres_url)
    await bus.open()
    try:
        async with asyncio.timeout(30), bus._log.reading() as reader:
            for _ in range(8):  # the sixth and later ones use the plan that is kept
                await reader.new_entries({"run_1": 0, "run_2": 0})
            connection = await asyncpg.connect(postgres_url)
            await connection.execute(
                "INSERT INTO shared_events (run_id, attempt, seq, part, name, data)"
                " SELECT 'run_' || number % 500, 1, number, 0, 'x', '' FROM generate_series(1, 20000) AS number"
            )
            await reader.new_entries({"run_1": 0, "run_2": 0})
            await reader._connection.execute("SELECT pg_stat_force_next_flush()")
            read = await connection.fetchval("SELECT seq_tup_read FROM pg_stat_user_tables WHERE relname = 'shared_events'")
            await connection.close()
            assert read == 0
    finally:
        await bus.stop()


async def test_a_job_that_comes_while_a_worker_looks_for_one_is_found_at_once(postgres_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mini_assistant.queue.procrastinate._POLL_INTERVAL_SECONDS", 3600.0)
    has_found_nothing, may_go_on, really_ask = asyncio.Event(), asyncio.Event(), PsycopgConnector.execute_query_one_async

    async def ask(self: PsycopgConnector, query: str, **arguments: Any) -> dict[str, Any]:
        answer = await really_ask(self, query, **arguments)
        if answer.get("is_there") is False:
            has_found_nothing.set()
            await may_go_on.wait()
        return answer

    monkeypatch.setattr(PsycopgConnector, "execute_query_one_async", ask)
    apply_schema(postgres_url)
    queue = ProcrastinateQueue(postgres_url, kinds=("run",), wait_seconds=5)
    await queue.open()
    try:
        async with asyncio.timeout(20):
            await has_found_nothing.wait()  # the answer is there, and the worker has not seen it yet
            queue.put("run", "run_1")
            queue.put("run", "for all", to_all=True)  # told of on the same connection, after the job
            assert await queue.get("run") == "for all"
            may_go_on.set()
            assert await queue.get("run") == "run_1"
    finally:
        may_go_on.set()
        await queue.close()


async def test_a_worker_that_finds_no_job_does_not_ask_for_one(postgres_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    really_ask = PsycopgConnector.execute_query_one_async

    async def ask(self: PsycopgConnector, query: str, **arguments: Any) -> dict[str, Any]:
        asked.append(query)
        return await really_ask(self, query, **arguments)

    apply_schema(postgres_url)
    queues = [ProcrastinateQueue(postgres_url, kinds=("run",), wait_seconds=5) for _ in range(4)]
    for queue in queues:
        await queue.open()
    monkeypatch.setattr(PsycopgConnector, "execute_query_one_async", ask)
    try:
        async with asyncio.timeout(20):
            for number in range(20):
                queues[0].put("run", f"run_{number}")
                getting = [asyncio.create_task(queue.get("run")) for queue in queues]
                done, waiting = await asyncio.wait(getting, return_when=asyncio.FIRST_COMPLETED)
                assert [task.result() for task in done] == [f"run_{number}"]
                for task in waiting:
                    task.cancel()
    finally:
        for queue in queues:
            await queue.close()
    taken = sum(query == queries["fetch_job"] for query in asked)
    assert 20 <= taken <= 60  # four workers were told of each: without a look before, at least 80

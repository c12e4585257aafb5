"""The order of files that wait to be ingested: projects and stores take turns."""

import asyncio

import pytest

from mini_assistant.vector_stores.ingest_backlog import IngestBacklog
from mini_assistant.vector_stores.ingest_tasks import IngestTask


def backlog_of(*tasks: tuple[int, str, str]) -> IngestBacklog:
    backlog = IngestBacklog()
    for seq, project_id, vector_store_id in tasks:
        backlog.add(IngestTask(seq, project_id, vector_store_id))
    return backlog


async def taken(backlog: IngestBacklog, count: int) -> list[int]:
    return [(await asyncio.wait_for(backlog.take(), 1)).seq for _ in range(count)]


async def test_files_of_one_store_come_in_their_order() -> None:
    assert await taken(backlog_of((1, "p", "a"), (2, "p", "a"), (3, "p", "a")), 3) == [1, 2, 3]


async def test_a_store_with_many_files_does_not_hold_up_another() -> None:
    many = [(number, "p", "large") for number in range(2000)]
    backlog = backlog_of(*many, (5000, "p", "small"), (5001, "p", "small"))

    assert await taken(backlog, 5) == [0, 5000, 1, 5001, 2]


async def test_a_project_with_many_stores_does_not_hold_up_another() -> None:
    many = [(number, "busy", f"store-{number}") for number in range(100)]
    backlog = backlog_of(*many, (5000, "quiet", "only"), (5001, "quiet", "only"))

    assert await taken(backlog, 5) == [0, 5000, 1, 5001, 2]


async def test_a_task_waits_once() -> None:
    backlog = backlog_of((1, "p", "a"), (1, "p", "a"))

    assert await taken(backlog, 1) == [1]
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(backlog.take(), 0.02)


async def test_who_waits_is_woken_once_for_each_task() -> None:
    backlog = backlog_of()
    waiting = [asyncio.create_task(backlog.take()) for _ in range(2)]
    await asyncio.sleep(0)
    backlog.add(IngestTask(1, "p", "a"))
    done, pending = await asyncio.wait(waiting, timeout=0.05)

    assert len(done) == 1
    backlog.add(IngestTask(2, "p", "a"))
    assert {task.seq for task in await asyncio.gather(*done, *pending)} == {1, 2}

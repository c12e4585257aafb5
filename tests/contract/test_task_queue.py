"""What every queue behind `queue/base.TaskQueue` has to hold: ids come out as they were put in, to whoever waits."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager

import pytest

from mini_assistant.queue.base import TaskQueue
from mini_assistant.queue.local import LocalTaskQueue
from mini_assistant.queue.procrastinate import ProcrastinateQueue
from mini_assistant.queue.procrastinate_schema import apply_schema


@contextlib.asynccontextmanager
async def local_queue(_: pytest.FixtureRequest) -> AsyncIterator[TaskQueue]:
    yield LocalTaskQueue()


@contextlib.asynccontextmanager
async def procrastinate_queue(request: pytest.FixtureRequest) -> AsyncIterator[TaskQueue]:
    url = request.getfixturevalue("postgres_url")
    apply_schema(url)
    queue = ProcrastinateQueue(url, kinds=("run", "ingest"), wait_seconds=20)
    await queue.open()
    try:
        yield queue
    finally:
        await queue.close()


IMPLEMENTATIONS: dict[str, Callable[[pytest.FixtureRequest], AbstractAsyncContextManager[TaskQueue]]] = {
    "local": local_queue,
    "procrastinate": procrastinate_queue,
}


@pytest.fixture(params=IMPLEMENTATIONS)
async def queue(request: pytest.FixtureRequest) -> AsyncIterator[TaskQueue]:
    async with IMPLEMENTATIONS[request.param](request) as queue, asyncio.timeout(30):
        yield queue


async def test_runs_come_in_their_order(queue: TaskQueue) -> None:
    for number in range(100):
        queue.put("run", f"run_{number}")
    assert [await queue.get("run") for _ in range(100)] == [f"run_{number}" for number in range(100)]


async def test_get_waits_for_a_run(queue: TaskQueue) -> None:
    waiting = asyncio.create_task(queue.get("run"))
    await asyncio.sleep(0.01)
    assert not waiting.done()
    queue.put("run", "run_1")
    assert await waiting == "run_1"


async def test_a_run_may_be_offered_twice(queue: TaskQueue) -> None:
    queue.put("run", "run_1")
    queue.put("run", "run_1")
    assert await queue.get("run") == "run_1"


async def test_a_run_is_told_again_to_who_has_it_already(queue: TaskQueue) -> None:
    for _ in range(3):
        queue.put("run", "run_1")
        assert await queue.get("run") == "run_1"


async def test_a_waiting_worker_that_is_stopped_takes_no_run_with_it(queue: TaskQueue) -> None:
    waiting = asyncio.create_task(queue.get("run"))
    await asyncio.sleep(0)
    waiting.cancel()
    queue.put("run", "run_1")
    await asyncio.gather(waiting, return_exceptions=True)
    async with asyncio.timeout(5):
        assert await queue.get("run") == "run_1"


async def test_each_of_several_workers_gets_other_runs(queue: TaskQueue) -> None:
    waiting = [asyncio.create_task(queue.get("run")) for _ in range(10)]
    await asyncio.sleep(0)
    for number in range(10):
        queue.put("run", f"run_{number}")
    assert sorted(await asyncio.gather(*waiting)) == [f"run_{number}" for number in range(10)]


async def test_kinds_do_not_mix(queue: TaskQueue) -> None:
    queue.put("ingest", "1")
    queue.put("run", "run_1")
    assert await queue.get("run") == "run_1"
    assert await queue.get("ingest") == "1"


async def test_what_is_for_all_comes_to_the_only_worker_once(queue: TaskQueue) -> None:
    queue.put("run", "run_1", to_all=True)
    assert await queue.get("run") == "run_1"
    queue.put("run", "run_2", to_all=True)
    assert await queue.get("run") == "run_2"


async def test_kinds_do_not_mix_when_it_is_for_all(queue: TaskQueue) -> None:
    queue.put("ingest", "1", to_all=True)
    queue.put("run", "run_1", to_all=True)
    queue.put("run", "run_2", to_all=True)
    assert [await queue.get("run"), await queue.get("run")] == ["run_1", "run_2"]
    assert await queue.get("ingest") == "1"

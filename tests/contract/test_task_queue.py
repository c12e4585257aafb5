"""What every queue behind `queue/base.TaskQueue` has to hold: ids come out as they were put in, to whoever waits."""

import asyncio
from collections.abc import Callable

import pytest

from mini_assistant.queue.base import TaskQueue
from mini_assistant.queue.local import LocalTaskQueue

IMPLEMENTATIONS: dict[str, Callable[[], TaskQueue]] = {"local": LocalTaskQueue}


@pytest.fixture(params=IMPLEMENTATIONS)
async def queue(request: pytest.FixtureRequest) -> TaskQueue:
    return IMPLEMENTATIONS[request.param]()


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

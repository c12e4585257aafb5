"""A cluster of real processes around a real PostgreSQL, and everything that can happen to it.

After each fault: what was acknowledged is there unchanged, no finished step runs again, no message or step is there twice, and every run
comes to its end (`Conversation.check`). Figures are printed, not asserted.
"""

import asyncio
import contextlib
import os
import random
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path

import aiohttp
import openai
import pytest

from mini_assistant.models.script import Rule, Script, Text
from mini_assistant.models.scripted import ScriptedEndpoint
from tests.crash.cluster import LEASE_SECONDS, SWEEP_SECONDS, Cluster
from tests.crash.conversations import KINDS, SCRIPT, Conversation, texts_of
from tests.postgres_server import PostgresServer, running_postgres
from tests.s3_server import ACCESS_KEY_ID, SECRET_ACCESS_KEY, running_s3
from tests.server_process import ServerProcess, WorkerProcess

LONG = Text([f"word{number} " for number in range(40)], delay_seconds=0.05)
LONG_RULE = Rule([LONG], contains="long")


@pytest.fixture(scope="module")
def own_postgres() -> Iterator[PostgresServer]:
    with running_postgres() as server:
        yield server


@pytest.fixture
async def endpoint() -> AsyncIterator[ScriptedEndpoint]:
    async with ScriptedEndpoint(Script([LONG_RULE, *SCRIPT.rules])) as endpoint:
        yield endpoint


@pytest.fixture
def cluster(own_postgres: PostgresServer, tmp_path: Path, endpoint: ScriptedEndpoint) -> Cluster:
    return Cluster(own_postgres, tmp_path / "data", {"OPENAI_BASE_URL": endpoint.base_url})


def _seed() -> int:
    """Another one each time; a failing one is given back by CRASH_SEED."""
    seed = int(os.environ.get("CRASH_SEED") or time.time_ns() % 1_000_000)
    print(f"CRASH_SEED={seed}")
    return seed


def client(server: ServerProcess) -> openai.AsyncOpenAI:
    return openai.AsyncOpenAI(base_url=f"{server.address}/v1", api_key="test-key", max_retries=0, timeout=30)


async def long_run(cluster: Cluster) -> tuple[str, str]:
    """A run whose answer takes two seconds; gives the ids of its thread and of itself once it is being written."""
    assistant = await cluster.post("/assistants", {"model": "scripted"})
    thread = await cluster.post("/threads", {"messages": [{"role": "user", "content": "a long answer"}]})
    run = await cluster.post(f"/threads/{thread['id']}/runs", {"assistant_id": assistant["id"]})
    await until(lambda: has_begun(cluster, thread["id"]))
    return thread["id"], run["id"]


async def has_begun(cluster: Cluster, thread_id: str) -> bool:
    return len((await cluster.get(f"/threads/{thread_id}/messages"))["data"]) == 2


async def until(condition: Callable[[], Awaitable[bool]], seconds: float = 30.0) -> float:
    """Wait for something that has no event of its own; gives how long it took."""
    started = time.monotonic()
    while not await condition():
        assert time.monotonic() - started < seconds, "it did not come in time"
        await asyncio.sleep(0.02)
    return time.monotonic() - started


async def ended_as(cluster: Cluster, thread_id: str, run_id: str, status: str) -> bool:
    run = await cluster.get(f"/threads/{thread_id}/runs/{run_id}")
    assert run["status"] in ("queued", "in_progress", "cancelling", status), run
    return run["status"] == status


async def answers_of(cluster: Cluster, thread_id: str) -> list[str]:
    messages = (await cluster.get(f"/threads/{thread_id}/messages?order=asc"))["data"]
    return [texts_of(message) for message in messages if message["role"] == "assistant"]


async def carried_on(cluster: Cluster, count: int, meanwhile: Awaitable[object], first: int = 0) -> list[Conversation]:
    """Conversations of all kinds side by side while something happens; each is whole in the end."""
    several = [Conversation(cluster, KINDS[number % len(KINDS)], number) for number in range(first, first + count)]
    async with asyncio.timeout(60), asyncio.TaskGroup() as group:
        for conversation in several:
            group.create_task(conversation.carry_on())
        await meanwhile
    for conversation in several:
        await conversation.check()
    await cluster.check_settled()
    return several


async def test_a_run_is_made_executed_streamed_continued_and_cancelled_by_different_processes(cluster: Cluster) -> None:
    async with cluster.with_processes(servers=2, workers=2):
        await carried_on(cluster, 6, asyncio.sleep(0))

        # Streamed by the SDK from the replica that made it, and attached to from the other one in the middle of its answer.
        first, second = cluster.servers
        async with client(first) as sdk:
            assistant = await sdk.beta.assistants.create(model="scripted")
            thread = await sdk.beta.threads.create(messages=[{"role": "user", "content": "a long answer"}])
            async with sdk.beta.threads.runs.stream(thread_id=thread.id, assistant_id=assistant.id) as stream:
                run, pieces = None, 0
                attached: asyncio.Task[list[tuple[str, str, dict]]] | None = None
                async for event in stream:
                    if event.event == "thread.run.created":
                        run = event.data
                    pieces += event.event == "thread.message.delta"
                    if pieces == 5 and attached is None:
                        assert run is not None
                        cluster.servers = [second]
                        attached = asyncio.create_task(cluster.events(f"/threads/{thread.id}/runs/{run.id}/events"))
                final = await stream.get_final_messages()
                assert pieces == len(LONG.text), "every piece was told as it came"
        assert attached is not None
        told = await attached
        text = "".join(data["delta"]["content"][0]["text"]["value"] for _, name, data in told if name == "thread.message.delta")
        assert text == final[0].content[0].text.value == "".join(LONG.text)  # type: ignore[union-attr]

        # Cancelled on a replica while a worker writes the answer.
        thread_id, run_id = await long_run(cluster)
        assert (await cluster.post(f"/threads/{thread_id}/runs/{run_id}/cancel", {}))["status"] == "cancelling"
        took = await until(lambda: ended_as(cluster, thread_id, run_id, "cancelled"), seconds=LEASE_SECONDS)
        print(f"cancelled after {took:.2f} s")


async def test_a_worker_is_killed_in_the_middle_of_runs(cluster: Cluster) -> None:
    async with cluster.with_processes(servers=1, workers=2):
        thread_id, run_id = await long_run(cluster)

        async def kill_one_after_the_other() -> None:
            for _ in range(2):
                await cluster.add_worker()
                await cluster.kill(cluster.workers[0])
                await asyncio.sleep(0.3)

        await carried_on(cluster, 6, kill_one_after_the_other())
        took = await until(lambda: ended_as(cluster, thread_id, run_id, "completed"))
        print(f"the long run completed {took:.2f} s after the kills; lease {LEASE_SECONDS} s, sweep {SWEEP_SECONDS} s, answer 2 s")
        assert await answers_of(cluster, thread_id) == ["".join(LONG.text)]


async def test_a_replica_is_killed_in_the_middle_of_a_stream(cluster: Cluster) -> None:
    """The client attaches to another one, behind what it has read, and has every piece once."""
    async with cluster.with_processes(servers=2, workers=1):
        first, second = cluster.servers
        thread_id, run_id = await long_run(cluster)
        path = f"/v1/threads/{thread_id}/runs/{run_id}/events"
        session = cluster._session
        assert session is not None
        read: dict[str, bytes] = {}
        last_id = ""
        with contextlib.suppress(aiohttp.ClientError):
            async with session.get(first.address + path) as stream:
                async for event_id, name, data in frames_of(stream):
                    if name == "thread.message.delta":
                        read[event_id] = data
                    last_id = event_id
                    if len(read) == 8:
                        await cluster.kill(first)
        assert len(read) < len(LONG.text)
        async with session.get(second.address + path, headers={"Last-Event-ID": last_id}) as stream:
            async for event_id, name, data in frames_of(stream):
                assert event_id not in read
                if name == "thread.message.delta":
                    read[event_id] = data
        assert len(read) == len(LONG.text)
        assert all(f'"word{number} "'.encode() in data for number, data in enumerate(read.values()))
        assert await answers_of(cluster, thread_id) == ["".join(LONG.text)]


async def frames_of(stream) -> AsyncIterator[tuple[str, str, bytes]]:  # type: ignore[no-untyped-def]
    """The events of a stream with ids: (id, name, data), without the last frame."""
    waiting = b""
    async for piece in stream.content.iter_any():
        waiting += piece
        while b"\n\n" in waiting:
            frame, _, waiting = waiting.partition(b"\n\n")
            fields = dict(line.split(b": ", 1) for line in frame.splitlines() if not line.startswith(b":"))
            if b"id" in fields:
                yield fields[b"id"].decode(), fields[b"event"].decode(), fields[b"data"]


@pytest.mark.parametrize("way", ["stop", "kill"])
async def test_postgresql_is_restarted_under_load(cluster: Cluster, own_postgres: PostgresServer, way: str) -> None:
    async with cluster.with_processes(servers=2, workers=2):
        thread_id, run_id = await long_run(cluster)

        async def restart() -> None:
            await asyncio.sleep(0.4)
            cluster.is_up.clear()
            await asyncio.to_thread(own_postgres.stop if way == "stop" else own_postgres.kill)
            await asyncio.sleep(0.5)
            await asyncio.to_thread(own_postgres.start)
            cluster.is_up.set()

        started = time.monotonic()
        await carried_on(cluster, 8, restart())
        print(f"all conversations whole {time.monotonic() - started:.2f} s after the load began")
        await until(lambda: ended_as(cluster, thread_id, run_id, "completed"))
        assert await answers_of(cluster, thread_id) == ["".join(LONG.text)]


async def test_a_frozen_worker_wakes_up_after_its_lease(cluster: Cluster, endpoint: ScriptedEndpoint) -> None:
    """Another one has gone on with its run; what it writes then is refused."""
    async with cluster.with_processes(servers=1, workers=1):
        frozen = cluster.workers[0]
        thread_id, run_id = await long_run(cluster)
        frozen.freeze()
        await cluster.add_worker()
        took = await until(lambda: ended_as(cluster, thread_id, run_id, "completed"))
        print(f"completed by another worker {took:.2f} s after the freeze; lease {LEASE_SECONDS} s, sweep {SWEEP_SECONDS} s")
        path = f"/threads/{thread_id}/runs/{run_id}"
        before = [await cluster.get(path), await cluster.get(f"{path}/steps"), await cluster.get(f"/threads/{thread_id}/messages")]
        frozen.thaw()
        await carried_on(cluster, 4, asyncio.sleep(1))
        assert [await cluster.get(path), await cluster.get(f"{path}/steps"), await cluster.get(f"/threads/{thread_id}/messages")] == before
        assert await answers_of(cluster, thread_id) == ["".join(LONG.text)]


class SkewedWorker(WorkerProcess):
    """A worker on a machine whose clock is five seconds ahead."""

    arguments = ("-c", "import runpy, sys, time; real = time.time; time.time = lambda: real() + 5; sys.argv[0] = 'mini-assistant'; "
                 "runpy.run_module('mini_assistant', run_name='__main__')", "worker", "--probe-port", "0")  # fmt: skip


class SlowServer(ServerProcess):
    """A replica on a machine whose clock is five seconds behind."""

    arguments = ("-c", SkewedWorker.arguments[1].replace("+ 5", "- 5"), "serve", "--port", "0")


async def test_clocks_that_differ_by_ten_seconds(cluster: Cluster) -> None:
    """Messages come in their order, leases hold, and times on the wire do not jump, whichever process writes them."""
    async with cluster.with_processes(servers=1, workers=1):
        await cluster.add_worker(SkewedWorker(cluster._data_dir, cluster.environment))
        await cluster.add_server(SlowServer(cluster._data_dir, cluster.environment))
        several = await carried_on(cluster, 12, asyncio.sleep(0))
        for conversation in several:
            messages = (await cluster.get(conversation.path("/messages?order=asc")))["data"]
            assert all(abs(message["created_at"] - time.time()) < 60 for message in messages)
            assert conversation.run is not None
            assert conversation.run["created_at"] <= conversation.run["started_at"] <= conversation.run["completed_at"]
            assert conversation.run["started_at"] - conversation.run["created_at"] < 4


@pytest.mark.heavy
async def test_rolling_restart_loses_no_run(cluster: Cluster) -> None:
    """Every process is stopped in order and replaced, one after the other; with time to drain, runs end where they were."""
    cluster.environment["MINI_ASSISTANT_DRAIN_SECONDS"] = "10"
    async with cluster.with_processes(servers=2, workers=2):
        thread_id, run_id = await long_run(cluster)

        async def restart_all() -> None:
            for processes, add in ((cluster.workers, cluster.add_worker), (cluster.servers, cluster.add_server)):
                for process in list(processes):
                    await add()
                    processes.remove(process)
                    assert await asyncio.to_thread(process.stop) == 0

        await carried_on(cluster, 6, restart_all())
        await until(lambda: ended_as(cluster, thread_id, run_id, "completed"))
        events = await cluster.events(f"/threads/{thread_id}/runs/{run_id}/events")
        assert {event_id.split("-")[0] for event_id, _, _ in events} <= {"0", "1"}, "the worker that had it brought it to its end"


async def test_a_worker_without_time_to_drain_hands_its_run_over(cluster: Cluster) -> None:
    async with cluster.with_processes(servers=1, workers=1):
        thread_id, run_id = await long_run(cluster)
        await cluster.add_worker()
        stopped = cluster.workers.pop(0)
        assert await asyncio.to_thread(stopped.stop) == 0
        took = await until(lambda: ended_as(cluster, thread_id, run_id, "completed"))
        print(f"completed by another worker {took:.2f} s after the stop; its answer takes 2 s")
        assert await answers_of(cluster, thread_id) == ["".join(LONG.text)]


async def test_workers_are_killed_in_the_middle_of_ingests(cluster: Cluster) -> None:
    """Every file is searchable once, and the store counts right."""
    async with cluster.with_processes(servers=2, workers=2):
        texts = [f"The zebra{number} says that nothing of it is lost. " * 400 for number in range(8)]
        async with client(cluster.servers[0]) as sdk:
            files = [await sdk.files.create(file=(f"{n}.txt", text.encode()), purpose="assistants") for n, text in enumerate(texts)]
            store = await sdk.vector_stores.create(file_ids=[file.id for file in files])
        for _ in range(3):
            await asyncio.sleep(0.3)
            await cluster.add_worker()
            await cluster.kill(cluster.workers[0])

        async def is_done() -> bool:
            return (await cluster.get(f"/vector_stores/{store.id}"))["file_counts"]["in_progress"] == 0

        took = await until(is_done, seconds=60)
        print(f"all ingested {took:.2f} s after the last kill; lease {LEASE_SECONDS} s, sweep {SWEEP_SECONDS} s")
        found = await cluster.get(f"/vector_stores/{store.id}")
        assert found["file_counts"] == {"in_progress": 0, "completed": 8, "failed": 0, "cancelled": 0, "total": 8}
        listed = (await cluster.get(f"/vector_stores/{store.id}/files"))["data"]
        assert sum(file["usage_bytes"] for file in listed) == found["usage_bytes"]
        assert len({file["usage_bytes"] for file in listed}) == 1, "each has the passages of one ingest"
        for number, file in enumerate(files):
            hits = await cluster.post(f"/vector_stores/{store.id}/search", {"query": f"zebra{number}", "max_num_results": 50})
            assert hits["data"][0]["file_id"] == file.id


@pytest.mark.heavy
async def test_s3_fails_and_comes_back(own_postgres: PostgresServer, tmp_path: Path, endpoint: ScriptedEndpoint) -> None:
    """Uploads and downloads are told so, runs without files go on, ingests wait, and nothing is half there."""
    with running_s3() as s3:
        s3.make_bucket("files")
        environment = {
            "OPENAI_BASE_URL": endpoint.base_url,
            "MINI_ASSISTANT_BLOBS_URL": "s3://files/blobs",
            "MINI_ASSISTANT_S3_ENDPOINT_URL": s3.url,
            "MINI_ASSISTANT_S3_ACCESS_KEY_ID": ACCESS_KEY_ID,
            "MINI_ASSISTANT_S3_SECRET_ACCESS_KEY": SECRET_ACCESS_KEY,
            "MINI_ASSISTANT_INGEST_ATTEMPTS_MAX": "20",
        }
        cluster = Cluster(own_postgres, tmp_path / "data", environment)
        async with cluster.with_processes(servers=2, workers=1), client(cluster.servers[0]) as sdk:
            kept = await sdk.files.create(file=("kept.txt", b"kept " * 1000), purpose="assistants")
            s3.kill()
            for call in (sdk.files.create(file=("lost.txt", b"lost " * 1000), purpose="assistants"), sdk.files.content(kept.id)):
                with pytest.raises(openai.APIError):
                    await call
            store = await sdk.vector_stores.create(file_ids=[kept.id])
            await carried_on(cluster, 3, asyncio.sleep(0))
            await asyncio.to_thread(s3.start)

            async def is_ingested() -> bool:
                return (await cluster.get(f"/vector_stores/{store.id}"))["file_counts"]["completed"] == 1

            print(f"ingested {await until(is_ingested, seconds=60):.2f} s after S3 came back")
            assert [file.id async for file in sdk.files.list()] == [kept.id]
            assert (await sdk.files.content(kept.id)).content == b"kept " * 1000
            assert len([key for key in s3.keys("files") if key.startswith("blobs/")]) == 1


@pytest.mark.heavy
async def test_everything_at_random(cluster: Cluster, own_postgres: PostgresServer) -> None:
    """Minutes of load under kills, freezes and restarts in random order; SOAK_SECONDS says how long."""
    pick, until_time = random.Random(_seed()), time.monotonic() + float(os.environ.get("SOAK_SECONDS") or 300)
    done: dict[str, int] = {}

    async def one_fault() -> None:
        fault = pick.choice(["kill worker", "kill server", "freeze worker", "restart postgres", "kill postgres", "nothing"])
        done[fault] = done.get(fault, 0) + 1
        await asyncio.sleep(pick.random())
        if fault == "kill worker":
            await cluster.kill(pick.choice(cluster.workers))
            await cluster.add_worker()
        elif fault == "kill server":
            await cluster.add_server()
            await cluster.kill(cluster.servers[0])
        elif fault == "freeze worker":
            frozen = pick.choice(cluster.workers)
            frozen.freeze()
            await asyncio.sleep(LEASE_SECONDS * 1.5)
            frozen.thaw()
        elif fault.endswith("postgres"):
            cluster.is_up.clear()
            await asyncio.to_thread(own_postgres.kill if fault == "kill postgres" else own_postgres.stop)
            await asyncio.to_thread(own_postgres.start)
            cluster.is_up.set()

    async with cluster.with_processes(servers=2, workers=3):
        first = 0
        while time.monotonic() < until_time:
            await carried_on(cluster, 8, one_fault(), first)
            first += 8
    print(f"{first} conversations on {sys.platform}; {done}")
    assert first >= 8

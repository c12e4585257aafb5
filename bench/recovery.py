"""How long a cluster takes to go on after a worker, a replica or PostgreSQL was ended."""

import asyncio
import contextlib
import tempfile
import time
from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
import msgspec

from bench import cluster, machine
from bench.endpoint import TOKENS_PER_SECOND
from bench.machine import Postgres
from bench.report import Row, at_most, information, median
from bench.scale import Scale

LEASE_SECONDS = 2.0
SWEEP_SECONDS = 0.3
_TIMES = 3
_RUN_SECONDS = 3.0
_SOME_FRAMES = 8
_CLIENTS = 4
_LOOK_SECONDS = 0.01
_TIMEOUT = aiohttp.ClientTimeout(total=30)


async def rows(scale: Scale) -> AsyncIterator[Row]:
    """A row for each of the three."""
    with tempfile.TemporaryDirectory() as folder, machine.postgres() as database, machine.paced_endpoint() as endpoint:
        told = {
            **cluster.environment(database.url, endpoint.address),
            "MINI_ASSISTANT_LEASE_SECONDS": str(LEASE_SECONDS),
            "MINI_ASSISTANT_SWEEP_INTERVAL_SECONDS": str(SWEEP_SECONDS),
        }
        times = min(_TIMES, scale.rounds)
        async with aiohttp.ClientSession(timeout=_TIMEOUT) as session:
            trial = _Trial(session, Path(folder), told)
            yield await trial.worker_killed(times)
            yield await trial.replica_killed(times)
            yield await trial.postgres_restarted(database, times)


class _Trial:
    """A client, and processes that it ends."""

    def __init__(self, session: aiohttp.ClientSession, folder: Path, told: dict[str, str]) -> None:
        self._session, self._folder, self._told = session, folder, told

    async def worker_killed(self, times: int) -> Row:
        """While it executes the only run; the next worker is there when it dies."""
        waits: list[float] = []
        with machine.replica(self._folder, self._told) as replica, contextlib.ExitStack() as workers:
            working = workers.enter_context(machine.worker(self._folder, self._told))
            body = await self._run_body(replica.address, int(_RUN_SECONDS * TOKENS_PER_SECOND))
            for _ in range(times):
                path = await self._started_run(replica.address, body)
                await self._until_in(replica.address + path, b'"status":"in_progress"')
                following = workers.enter_context(machine.worker(self._folder, self._told))
                working.kill()
                killed, working = time.perf_counter(), following
                await self._until_in(replica.address + path, b'"status":"completed"')
                waits.append(time.perf_counter() - killed - _RUN_SECONDS)
        what = f"recovery: worker killed, slowest of {times}"
        bound = f"lease {LEASE_SECONDS:g} s + sweep {SWEEP_SECONDS:g} s"
        return at_most(what, max(waits), LEASE_SECONDS + SWEEP_SECONDS, unit=" s", bound=bound)

    async def replica_killed(self, times: int) -> Row:
        """While it streams a run; the client attaches to the other one, behind what it has read."""
        waits: list[float] = []
        undisturbed: list[float] = []
        with machine.replica(self._folder, self._told) as other, machine.worker(self._folder, self._told):
            body = await self._run_body(other.address, int(_RUN_SECONDS * TOKENS_PER_SECOND))
            for _ in range(times):
                with machine.replica(self._folder, self._told) as replica:
                    path, last_id = await self._started_run(replica.address, body) + "/events", b""
                    undisturbed.append(await self._attach_seconds(other.address + path, b""))
                    with contextlib.suppress(aiohttp.ClientError):
                        async with self._session.get(replica.address + path) as stream:
                            count = 0
                            async for frame in _frames(stream):
                                last_id, count = _id_of(frame) or last_id, count + 1
                                if count == _SOME_FRAMES:
                                    killed = time.perf_counter()
                                    replica.kill()
                    await self._attach_seconds(other.address + path, last_id)
                    waits.append(time.perf_counter() - killed)
        bound = f"attaching at leisure {median(undisturbed) * 1000:.0f} ms"
        return information("recovery: replica killed, next event", f"{median(waits) * 1000:.0f} ms", bound)

    async def postgres_restarted(self, database: Postgres, times: int) -> Row:
        """While runs are made, executed and streamed."""
        waits: list[float] = []
        away: list[float] = []
        with machine.replica(self._folder, self._told) as replica, machine.worker(self._folder, self._told):
            body = await self._run_body(replica.address, TOKENS_PER_SECOND // 10)
            completed = asyncio.Event()
            clients = [asyncio.create_task(self._run_always(replica.address, body, completed)) for _ in range(_CLIENTS)]
            try:
                for _ in range(times):
                    await _next(completed)
                    away.append(await asyncio.to_thread(database.restart))
                    back = time.perf_counter()
                    await _next(completed)
                    waits.append(time.perf_counter() - back)
            finally:
                for client in clients:
                    client.cancel()
                await asyncio.gather(*clients, return_exceptions=True)
        what, bound = "recovery: PostgreSQL restarted, next run", f"away for {median(away):.2f} s"
        return information(what, f"{median(waits):.2f} s, slowest {max(waits):.2f} s", bound)

    async def _run_body(self, address: str, tokens: int) -> dict[str, object]:
        """The body of a request for a run of so many tokens."""
        async with self._session.post(f"{address}/v1/assistants", json={"model": f"paced-{tokens}"}) as answer:
            assistant = msgspec.json.decode(await answer.read())
        return {"assistant_id": assistant["id"], "thread": {"messages": [{"role": "user", "content": "Hello"}]}}

    async def _started_run(self, address: str, body: dict[str, object]) -> str:
        """Make a run; returns its path."""
        async with self._session.post(f"{address}/v1/threads/runs", json=body) as answer:
            run = msgspec.json.decode(await answer.read())
        return f"/v1/threads/{run['thread_id']}/runs/{run['id']}"

    async def _until_in(self, url: str, text: bytes) -> None:
        """Read an object until it says so."""
        async with asyncio.timeout(_TIMEOUT.total):
            while True:
                async with self._session.get(url) as answer:
                    if text in await answer.read():
                        return
                await asyncio.sleep(_LOOK_SECONDS)

    async def _attach_seconds(self, url: str, last_id: bytes) -> float:
        """How long it takes to attach to a run, until its first event behind `last_id`."""
        began = time.perf_counter()
        async with self._session.get(url, headers={"Last-Event-ID": last_id.decode()} if last_id else {}) as stream:
            async for frame in _frames(stream):
                if _id_of(frame):
                    return time.perf_counter() - began
        raise RuntimeError("the stream has no events")

    async def _run_always(self, address: str, body: dict[str, object], completed: asyncio.Event) -> None:
        """Stream one run after the other, whatever becomes of them, and tell of those that are completed."""
        while True:
            try:
                async with self._session.post(f"{address}/v1/threads/runs", json={**body, "stream": True}) as answer:
                    if b"event: thread.run.completed" in await answer.read():
                        completed.set()
            except (aiohttp.ClientError, TimeoutError):
                await asyncio.sleep(0.01)


async def _next(completed: asyncio.Event) -> None:
    completed.clear()
    async with asyncio.timeout(_TIMEOUT.total):
        await completed.wait()


async def _frames(stream: aiohttp.ClientResponse) -> AsyncIterator[bytes]:
    waiting = b""
    async for piece in stream.content.iter_any():
        waiting += piece
        while b"\n\n" in waiting:
            frame, _, waiting = waiting.partition(b"\n\n")
            yield frame


def _id_of(frame: bytes) -> bytes:
    return next((line[4:] for line in frame.splitlines() if line.startswith(b"id: ")), b"")

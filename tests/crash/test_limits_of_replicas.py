"""The limits of a project when several replicas are asked at once: processes of their own around a real PostgreSQL."""

import asyncio
import itertools
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from pathlib import Path

import aiohttp
import pytest

from mini_assistant.models.scripted import ScriptedEndpoint
from tests.crash.cluster import Cluster
from tests.postgres_server import PostgresServer

REQUESTS_PER_MINUTE = 600
SECONDS = 4.0
CLIENTS = 16


def replicas(postgres: PostgresServer, folder: Path, endpoint: ScriptedEndpoint, **limits: int) -> Cluster:
    told = {f"MINI_ASSISTANT_PROJECT_{name.upper()}": str(value) for name, value in limits.items()}
    return Cluster(postgres, folder, {"OPENAI_BASE_URL": endpoint.base_url, **told})


async def statuses_at_once(
    cluster: Cluster, count: int, send: Callable[[aiohttp.ClientSession, str], Awaitable[int]]
) -> tuple[Counter[int], float]:
    """Send so many requests to the replicas in turn, all at once; the statuses, and how many seconds it took."""
    async with asyncio.timeout(60), aiohttp.ClientSession() as http:
        began = time.monotonic()
        seen = Counter(await asyncio.gather(*(send(http, cluster.next_server().address + "/v1") for _ in range(count))))
        return seen, time.monotonic() - began


async def test_requests_of_a_minute_hold_over_replicas_that_are_hammered(
    postgres: PostgresServer, tmp_path: Path, endpoint: ScriptedEndpoint
) -> None:
    cluster = replicas(postgres, tmp_path, endpoint, requests_per_minute_max=REQUESTS_PER_MINUTE)
    seen: Counter[int] = Counter()

    async def hammer(http: aiohttp.ClientSession, until: float) -> None:
        while time.monotonic() < until:
            async with http.get(cluster.next_server().address + "/v1/assistants") as answer:
                await answer.read()
                seen[answer.status] += 1

    async with cluster.with_processes(servers=2, workers=0), asyncio.timeout(60), aiohttp.ClientSession() as http:
        began = time.monotonic()
        await asyncio.gather(*(hammer(http, began + SECONDS) for _ in range(CLIENTS)))
        took = time.monotonic() - began
    assert set(seen) == {200, 429}
    assert seen[429] > 100, "they were asked for more than there is"
    print(f"{seen[200]} of {sum(seen.values())} requests in {took:.1f} s, {REQUESTS_PER_MINUTE} a minute")
    assert seen[200] <= REQUESTS_PER_MINUTE + took * REQUESTS_PER_MINUTE / 60 + 1
    assert seen[200] >= 0.9 * (REQUESTS_PER_MINUTE + SECONDS * REQUESTS_PER_MINUTE / 60)


@pytest.mark.parametrize(("limit", "allowed"), [("runs_per_minute_max", 5), ("runs_waiting_max", 7)])
async def test_runs_are_counted_exactly_over_replicas(
    limit: str, allowed: int, postgres: PostgresServer, tmp_path: Path, endpoint: ScriptedEndpoint
) -> None:
    cluster = replicas(postgres, tmp_path, endpoint, **{limit: allowed})
    async with cluster.with_processes(servers=2, workers=0):
        assistant = await cluster.post("/assistants", {"model": "scripted", "instructions": "Answer."})

        async def create(http: aiohttp.ClientSession, address: str) -> int:
            async with http.post(f"{address}/threads/runs", json={"assistant_id": assistant["id"]}) as answer:
                if answer.status == 429:
                    assert 0 < int(answer.headers["retry-after-ms"]) <= 12_000
                    assert (await answer.json())["error"]["type"] == "requests"
                return answer.status

        seen, took = await statuses_at_once(cluster, 40, create)
    rows = postgres.execute("SELECT count(*) FROM runs", cluster.database)
    assert rows == [(seen[200],)]
    assert seen[200] + seen[429] == 40
    came_back = int(took * allowed / 60) + 1 if limit == "runs_per_minute_max" and took > 60 / allowed else 0
    assert allowed <= seen[200] <= allowed + came_back


async def test_storage_is_not_exceeded_over_replicas(postgres: PostgresServer, tmp_path: Path, endpoint: ScriptedEndpoint) -> None:
    cluster = replicas(postgres, tmp_path, endpoint, storage_bytes_max=10_000)
    numbers = itertools.count()

    async def upload(http: aiohttp.ClientSession, address: str) -> int:
        form = aiohttp.FormData({"purpose": "assistants"})
        form.add_field("file", b"x" * 3000, filename=f"{next(numbers)}.txt")
        async with http.post(f"{address}/files", data=form) as answer:
            return answer.status

    async with cluster.with_processes(servers=2, workers=0):
        seen, _ = await statuses_at_once(cluster, 24, upload)
    assert seen == {200: 3, 429: 21}

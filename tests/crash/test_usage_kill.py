"""kill -9 of workers in the middle of runs: every turn that a step tells of is counted, once, and so is every run."""

import asyncio
import json
import os
import random
import time
from collections import Counter
from pathlib import Path

import pytest
import sqlalchemy as sa

from mini_assistant.app import open_services
from mini_assistant.db.base import Database, Query
from mini_assistant.db.tables import run_steps, runs, usage_entries
from mini_assistant.models.scripted import ScriptedEndpoint
from mini_assistant.projects.usage import get_days, roll_up_usage
from mini_assistant.settings import Settings
from tests.crash.cluster import Cluster
from tests.crash.conversations import KINDS, SCRIPT, TERMINAL, Conversation
from tests.postgres_server import PostgresServer

WORKERS = 3

_steps = Query(sa.select(run_steps.c.usage, run_steps.c.body))
_attempts = Query(sa.select(runs.c.attempt, sa.func.count()).group_by(runs.c.attempt))
_statuses = Query(sa.select(runs.c.status))
_entries_count = Query(sa.select(sa.func.count()).select_from(usage_entries))


async def counted(db: Database) -> Counter[str]:
    """What the days say."""
    found = Counter[str]()
    for day in await get_days(db, "2000-01-01", "2100-01-01", limit=1000):
        found.update(prompt=day.prompt_tokens, completion=day.completion_tokens, calls=day.tool_calls, runs=day.runs)
    return found


async def told(db: Database) -> Counter[str]:
    """What the rows of runs and steps say."""
    found = Counter(runs=sum(status in TERMINAL for (status,) in await db.read(_statuses())))
    for usage, body in await db.read(_steps()):
        spent, step = json.loads(usage or "{}"), json.loads(body)
        ended_calls = step["step_details"].get("tool_calls", []) if step["status"] != "in_progress" else []
        found.update(prompt=spent.get("prompt_tokens", 0), completion=spent.get("completion_tokens", 0), calls=len(ended_calls))
    return found


def _seed() -> int:
    """Another one each time; a failing one is given back by CRASH_SEED."""
    seed = int(os.environ.get("CRASH_SEED") or time.time_ns() % 1_000_000)
    print(f"CRASH_SEED={seed}")
    return seed


@pytest.mark.heavy
async def test_usage_is_what_steps_and_runs_say_whenever_workers_are_killed(postgres: PostgresServer, tmp_path: Path) -> None:
    pick, is_over = random.Random(_seed()), asyncio.Event()
    async with ScriptedEndpoint(SCRIPT) as endpoint:
        cluster = Cluster(postgres, tmp_path / "data", {"OPENAI_BASE_URL": endpoint.base_url})
        settings = Settings(data_dir=tmp_path, database_url=cluster.environment["MINI_ASSISTANT_DATABASE_URL"], sandbox="none")
        conversations = [Conversation(cluster, KINDS[number % len(KINDS)], number) for number in range(6)]

        async def kill() -> None:
            for _ in range(WORKERS - 1):
                await asyncio.sleep(pick.uniform(0.1, 0.5))
                await cluster.kill(cluster.workers[0])

        async def roll_up(db: Database) -> None:
            while not is_over.is_set():
                await roll_up_usage(db)
                await asyncio.sleep(0.01)

        async with asyncio.timeout(100), open_services(settings, ()) as services, cluster.with_processes(servers=1, workers=WORKERS):
            sweeping = [asyncio.create_task(roll_up(services.db)) for _ in range(2)]
            async with asyncio.TaskGroup() as group:
                for conversation in conversations:
                    group.create_task(conversation.carry_on())
                group.create_task(kill())
            is_over.set()
            await asyncio.gather(*sweeping)
            await roll_up_usage(services.db)
            assert await services.db.read(_entries_count()) == [(0,)]
            usage = await counted(services.db)
            assert usage == await told(services.db)
            print("attempts:", await services.db.read(_attempts()))
            assert (usage["runs"] >= len(conversations), usage["calls"] > 0, usage["prompt"] > 0) == (True, True, True)

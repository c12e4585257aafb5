"""kill -9 at any moment: what was acknowledged is there, runs go on and end, and nothing is done twice."""

import asyncio
import os
import random
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from mini_assistant.models.scripted import ScriptedEndpoint
from tests.crash.conversations import KINDS, SCRIPT, Conversation, KilledServer, Kind
from tests.server_process import ServerProcess

# A server that is killed over and over gets little done in between: runs must not expire meanwhile.
ENVIRONMENT = {"MINI_ASSISTANT_RUN_EXPIRY_SECONDS": "3600", "MINI_ASSISTANT_LOG_LEVEL": "error"}


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[KilledServer]:
    async with ScriptedEndpoint(SCRIPT) as endpoint:
        server = KilledServer(tmp_path / "data", {**ENVIRONMENT, "OPENAI_BASE_URL": endpoint.base_url})
        async with server.running():
            yield server


def _seed() -> int:
    """Another one each time; a failing one is given back by CRASH_SEED."""
    seed = int(os.environ.get("CRASH_SEED") or time.time_ns() % 1_000_000)
    print(f"CRASH_SEED={seed}")
    return seed


async def kill_now_and_then(server: KilledServer, pick: random.Random, kills: int, side_by_side: int) -> None:
    """Conversations of all kinds, several at a time, under `kills` kills; some of them come while the server is recovering."""
    number = 0
    while kills > 0:
        batch = [Conversation(server, KINDS[(number + place) % len(KINDS)], number + place) for place in range(side_by_side)]
        number += side_by_side
        async with asyncio.TaskGroup() as group:
            for conversation in batch:
                group.create_task(conversation.carry_on())
            for _ in range(min(kills, pick.choice([1, 2, 3]))):
                await asyncio.sleep(pick.choice([0.0, 0.1, 0.3, 0.6]) * pick.random() + 0.02)
                await server.kill_and_restart()
                kills -= 1
        for conversation in batch:
            await conversation.check()
    await server.check_settled()


async def test_six_kills(server: KilledServer) -> None:
    await kill_now_and_then(server, random.Random(_seed()), kills=6, side_by_side=5)


@pytest.mark.heavy
async def test_many_kills(server: KilledServer) -> None:
    await kill_now_and_then(server, random.Random(_seed()), kills=int(os.environ.get("CRASH_KILLS") or 60), side_by_side=6)


@pytest.mark.heavy
@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
async def test_every_moment_of_a_run(server: KilledServer, kind: Kind) -> None:
    """A kill 40 ms further into the same run each time."""
    for place in range(20):
        conversation = Conversation(server, kind, place)
        async with asyncio.TaskGroup() as group:
            group.create_task(conversation.carry_on())
            await asyncio.sleep(0.04 * place)
            await server.kill_and_restart()
        await conversation.check()


@pytest.mark.parametrize("kills", [pytest.param(2, id="twice"), pytest.param(25, id="often", marks=pytest.mark.heavy)])
def test_a_kill_during_the_first_start(tmp_path: Path, kills: int) -> None:
    """While the tables are being made, or a little before or after."""
    pick = random.Random(_seed())
    for number in range(kills):
        data_dir = tmp_path / str(number)
        environment = {**ENVIRONMENT, "OPENAI_BASE_URL": "http://127.0.0.1:9/v1"}
        _kill_while_starting(data_dir, environment, pick.uniform(0.0, 0.05))
        server = ServerProcess(data_dir, environment)
        server.start()
        assert server.stop() == 0


def _kill_while_starting(data_dir: Path, environment: dict[str, str], seconds: float) -> None:
    """Kill a server some time after the file of its database has appeared."""
    command = [sys.executable, "-m", "mini_assistant", "serve", "--port", "0", "--data-dir", str(data_dir)]
    with subprocess.Popen(command, env={**os.environ, **environment}, stdout=subprocess.DEVNULL) as process:
        while not (data_dir / "mini-assistant.sqlite3").exists():
            assert process.poll() is None, "it ended by itself"
            time.sleep(0.001)
        time.sleep(seconds)
        process.kill()

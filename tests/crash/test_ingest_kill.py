"""kill -9 in the middle of an ingest: every file is ingested in the end, whole and once, and all counters are right."""

import asyncio
import os
import random
import time
from pathlib import Path

import pytest

from mini_assistant.app import open_services
from mini_assistant.services import Services
from mini_assistant.settings import Settings
from mini_assistant.vector_stores.search import SearchOptions, search_stores
from tests.crash.cluster import Cluster
from tests.postgres_server import PostgresServer
from tests.server_process import ServerProcess
from tests.vector_store_rows import PROJECT, attach, file_row, insert_file, insert_store, passage_texts, store_row

# One at a time and in small passages, so that a kill finds files in every state.
ENVIRONMENT = {
    "MINI_ASSISTANT_LOG_LEVEL": "error",
    "MINI_ASSISTANT_INGEST_CONCURRENCY_MAX": "2",
    "OPENAI_BASE_URL": "http://127.0.0.1:9/v1",
}


def _seed() -> int:
    """Another one each time; a failing one is given back by CRASH_SEED."""
    seed = int(os.environ.get("CRASH_SEED") or time.time_ns() % 1_000_000)
    print(f"CRASH_SEED={seed}")
    return seed


def content_of(number: int) -> str:
    """A text of some dozen passages with a word that no other file has."""
    sentence = f"Sentence {{}} of the file on zebra{number} says that nothing of it is lost and nothing is there twice. "
    return "".join(sentence.format(place) for place in range(150 + 40 * (number % 5)))


async def attach_files(data_dir: Path, stores: int, files_each: int) -> dict[str, dict[int, str]]:
    """Stores with files that wait, put in before any server runs: by store, the text of each row."""
    waiting: dict[str, dict[int, str]] = {}
    async with open_services(Settings(data_dir=data_dir, openai_base_url=ENVIRONMENT["OPENAI_BASE_URL"])) as services:
        for _ in range(stores):
            store_id = await insert_store(services)
            texts = [content_of(len(waiting) * files_each + place) for place in range(files_each)]
            rows = [
                await attach(services, store_id, await insert_file(services, text, "text.txt"), chunk_tokens_max=100, overlap_tokens=0)
                for text in texts
            ]
            waiting[store_id] = dict(zip(rows, texts, strict=True))
    return waiting


async def check(services: Services, waiting: dict[str, dict[int, str]]) -> None:
    """Everything is there, whole and once, and can be found."""
    for store_id, texts in waiting.items():
        usage_bytes = 0
        for seq, text in texts.items():
            row = await file_row(services, seq)
            assert row is not None
            assert (row["status"], row["body"]["last_error"], row["lease_owner"]) == ("completed", None, None)
            assert "".join(await passage_texts(services, seq)) == text
            assert row["summary"]
            usage_bytes += row["body"]["usage_bytes"]
            word = next(word for word in text.split() if word.startswith("zebra"))
            [found] = await search_stores(services, PROJECT, [store_id], [word], SearchOptions(limit=1))
            assert (found.file_id, word in found.passage.text) == (row["body"]["id"], True)
        store = await store_row(services, store_id)
        assert (store["in_progress"], store["completed"], store["failed"]) == (0, len(texts), 0)
        assert store["usage_bytes"] == usage_bytes


async def is_settled(data_dir: Path, waiting: dict[str, dict[int, str]]) -> bool:
    async with open_services(Settings(data_dir=data_dir, openai_base_url=ENVIRONMENT["OPENAI_BASE_URL"])) as services:
        rows = [await file_row(services, seq) for texts in waiting.values() for seq in texts]
        if any(row is None or row["status"] == "in_progress" for row in rows):
            return False
        await check(services, waiting)
    return True


async def kill_while_ingesting(data_dir: Path, pick: random.Random, kills: int, stores: int, files_each: int) -> int:
    """Returns after how many kills all was done."""
    waiting = await attach_files(data_dir, stores, files_each)
    server = ServerProcess(data_dir, ENVIRONMENT)
    for number in range(kills):
        server.start()
        time.sleep(pick.uniform(0.0, 0.4))  # noqa: ASYNC251 - nothing else goes on here
        server.kill()
        if number % 5 == 4 and await is_settled(data_dir, waiting):
            return number + 1
    server.start()
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        time.sleep(1)  # noqa: ASYNC251
        server.kill()
        if await is_settled(data_dir, waiting):
            server.start()
            server.stop()
            assert copies_in(data_dir) == set(), "a start deletes what kills have left behind"
            return kills
        server.start()
    server.kill()
    raise AssertionError("the files are not ingested after a minute")


def copies_in(data_dir: Path) -> set[Path]:
    """What processes have copied of blobs, to parse it."""
    return set((data_dir / "ingest").glob("*"))


async def test_four_kills(tmp_path: Path) -> None:
    await kill_while_ingesting(tmp_path / "data", random.Random(_seed()), kills=4, stores=2, files_each=6)


@pytest.mark.heavy
async def test_many_kills(tmp_path: Path) -> None:
    """Until enough kills have come while there was something to ingest."""
    pick, kills = random.Random(_seed()), 0
    while kills < int(os.environ.get("CRASH_KILLS") or 60):
        kills += await kill_while_ingesting(tmp_path / f"data-{kills}", pick, kills=20, stores=4, files_each=25)


async def test_a_starting_worker_deletes_copies_of_dead_processes_and_leaves_those_of_living_ones(
    postgres: PostgresServer, tmp_path: Path
) -> None:
    """Three workers on one machine share a folder. One stands still in the middle of a file, and one is killed there."""
    cluster = Cluster(postgres, tmp_path, ENVIRONMENT)
    settings = Settings(data_dir=tmp_path, database_url=cluster.environment["MINI_ASSISTANT_DATABASE_URL"], sandbox="none")
    async with asyncio.timeout(120), open_services(settings, ()) as services, cluster.with_processes(servers=0, workers=0):
        living = await cluster.add_worker()
        waiting, of_living = await frozen_with_copies(services, tmp_path, living, set(), first=0)
        dead = await cluster.add_worker()
        more, of_dead = await frozen_with_copies(services, tmp_path, dead, of_living, first=100)
        waiting |= more
        await cluster.kill(dead)

        await cluster.add_worker()
        while of_dead & copies_in(tmp_path):  # noqa: ASYNC110 - other processes delete them
            await asyncio.sleep(0.005)
        assert of_living <= copies_in(tmp_path)
        living.thaw()
        while copies_in(tmp_path) or not await are_completed(services, waiting):  # noqa: ASYNC110
            await asyncio.sleep(0.05)
        await check(services, waiting)


async def frozen_with_copies(
    services: Services, data_dir: Path, worker: ServerProcess, known: set[Path], *, first: int
) -> tuple[dict[str, dict[int, str]], set[Path]]:
    """Give a worker files until it stands still in the middle of one; returns what was attached, and its copies beside the known ones."""
    waiting: dict[str, dict[int, str]] = {}
    while True:
        waiting |= await attach_one(services, content_of(first + len(waiting)))
        await until_copies(data_dir, known)
        worker.freeze()
        if copies := copies_in(data_dir) - known:
            return waiting, copies
        worker.thaw()  # it had just ended with the file


async def attach_one(services: Services, text: str) -> dict[str, dict[int, str]]:
    """A store with one file that waits, and the queue told of it."""
    store_id = await insert_store(services)
    seq = await attach(services, store_id, await insert_file(services, text, "text.txt"), chunk_tokens_max=100, overlap_tokens=0)
    services.queue.put("ingest", str(seq))
    return {store_id: {seq: text}}


async def until_copies(data_dir: Path, known: set[Path]) -> set[Path]:
    """Wait until there are other copies than these; returns them."""
    while not (found := copies_in(data_dir) - known):  # noqa: ASYNC110 - another process makes them
        await asyncio.sleep(0.001)
    return found


async def are_completed(services: Services, waiting: dict[str, dict[int, str]]) -> bool:
    rows = [await file_row(services, seq) for texts in waiting.values() for seq in texts]
    return all(row is not None and row["status"] == "completed" for row in rows)

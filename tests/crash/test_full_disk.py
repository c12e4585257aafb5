"""A disk that is really full, under the embedded server, under PostgreSQL, and under a worker of a cluster.

While it is full, writes are refused in words and reads go on. After it has room again, without a restart where the server lived on: what
was acknowledged is there unchanged, no finished step has run again, nothing is there twice, and every run comes to its end
(`Conversation.check`). Figures are printed, not asserted.
"""

import asyncio
import contextlib
import io
import os
import random
import shutil
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path

import aiohttp
import msgspec
import openai
import psycopg
import pytest

from mini_assistant.app import DATABASE_FILE
from mini_assistant.models.script import Rule, Script, Text
from mini_assistant.models.scripted import ScriptedEndpoint
from tests.crash.cluster import LEASE_SECONDS, SWEEP_SECONDS, Cluster
from tests.crash.conversations import KINDS, SCRIPT, Conversation, Json, KilledServer, ServerGone, check_story, texts_of
from tests.crash.small_disk import SmallDisk, SmallDiskServer, SmallDiskWorker, small_disk, why_no_small_disk
from tests.postgres_server import _USER, PostgresServer, _make_user, why_no_postgres  # pyright: ignore[reportPrivateUsage]

MEBIBYTE = 1024 * 1024
ENVIRONMENT = {
    "MINI_ASSISTANT_LOG_LEVEL": "error",
    "MINI_ASSISTANT_LEASE_SECONDS": str(LEASE_SECONDS),
    "MINI_ASSISTANT_SWEEP_INTERVAL_SECONDS": str(SWEEP_SECONDS),
    "MINI_ASSISTANT_RUN_EXPIRY_SECONDS": "3600",
    "MINI_ASSISTANT_INGEST_ATTEMPTS_MAX": "20",
    "MINI_ASSISTANT_SANDBOX": "none",
}
UNAVAILABLE = {
    "message": "The server cannot use its storage at the moment. Please try again.",
    "type": "server_error",
    "param": None,
    "code": "unavailable",
}
INTERNAL = {"code": "server_error", "message": "An internal error occurred."}
LONG = Text([f"word{number} " for number in range(40)], delay_seconds=0.05)
# Enough to let everybody meet the full disk: leases run out, and sweeps find nothing that they could take.
FULL_SECONDS = LEASE_SECONDS + 3 * SWEEP_SECONDS


@pytest.fixture(autouse=True)
def can_have_a_small_disk() -> None:
    if reason := why_no_small_disk():
        pytest.skip(reason)


@pytest.fixture
async def endpoint() -> AsyncIterator[ScriptedEndpoint]:
    async with ScriptedEndpoint(Script([Rule([LONG], contains="a long answer"), *SCRIPT.rules])) as endpoint:
        yield endpoint


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[SmallDisk]:
    with small_disk(tmp_path / "disk", 24 * MEBIBYTE) as disk:
        yield disk


class Embedded(KilledServer):
    """An embedded server on a small disk. A write that is refused is one without an answer: its client looks again, and later."""

    def __init__(self, disk: SmallDisk, environment: dict[str, str], errors: Path) -> None:
        super().__init__(disk.folder / "data", environment)
        self.disk, self.data = disk, disk.inside / "data"
        self.refused = 0
        self.process = self._process = SmallDiskServer(disk, disk.folder / "data", environment, errors)

    async def _call(self, method: str, path: str, body: Json | None) -> Json:
        status, answer = await self.ask(method, path, body)
        if status == 503:
            assert answer["error"] == UNAVAILABLE
            self.refused += 1
            raise ServerGone
        assert status == 200, f"{method} {path}: {status} {answer}"
        return answer

    async def ask(self, method: str, path: str, body: Json | None = None) -> tuple[int, Json]:
        """Status and body of an answer, whatever they are."""
        assert self._session is not None
        try:
            async with self._session.request(method, f"{self.process.address}/v1{path}", json=body) as answer:
                return answer.status, msgspec.json.decode(await answer.read())
        except aiohttp.ClientError as exc:
            raise ServerGone from exc

    async def upload(self, content: bytes) -> tuple[int, Json]:
        """Upload a file; status and body of the answer."""
        assert self._session is not None
        form = aiohttp.FormData({"purpose": "assistants"})
        form.add_field("file", io.BytesIO(content), filename="text.txt")
        async with self._session.post(self.process.address + "/v1/files", data=form) as answer:
            return answer.status, msgspec.json.decode(await answer.read())

    def blobs(self) -> list[str]:
        """The files below the folder of blobs, whole or not."""
        return sorted(path.name for path in (self.data / "blobs").rglob("*") if path.is_file())

    async def check_threads(self) -> None:
        """What was refused has not been written: there are the threads that were acknowledged, and no others."""
        listed: list[str] = []
        after = ""
        while page := (await self.get(f"/threads?limit=100{after}"))["data"]:
            listed += [thread["id"] for thread in page]
            after = f"&after={listed[-1]}"
        acknowledged = {path.split("/")[2] for path in self._settled if path.startswith("/threads/")}
        assert sorted(listed) == sorted(acknowledged)

    async def write_until_refused(self) -> None:
        """Use up what the database has put by, until it has no room for another row."""
        async with asyncio.timeout(20):
            while True:
                status, answer = await self.ask("POST", "/threads", {"metadata": {str(number): "x" * 500 for number in range(16)}})
                if status == 503:
                    assert answer["error"] == UNAVAILABLE
                    return
                assert status == 200, answer
                self.settle(f"/threads/{answer['id']}", answer)
                self.disk.fill()


@pytest.fixture
async def server(disk: SmallDisk, endpoint: ScriptedEndpoint, tmp_path: Path) -> AsyncIterator[Embedded]:
    server = Embedded(disk, {**ENVIRONMENT, "OPENAI_BASE_URL": endpoint.base_url}, tmp_path / "errors")
    async with server.running():
        yield server


async def until(condition: Callable[[], Awaitable[bool]], seconds: float = 30.0) -> float:
    """Wait for something that has no event of its own; gives how long it took."""
    started = time.monotonic()
    while not await condition():
        assert time.monotonic() - started < seconds, "it did not come in time"
        await asyncio.sleep(0.02)
    return time.monotonic() - started


async def carried_on(server: KilledServer, count: int, fault: Callable[[], Awaitable[object]], first: int = 0) -> float:
    """Conversations of all kinds side by side while something happens; each is whole in the end.

    Gives how long after the fault all of them have ended.
    """
    several = [Conversation(server, KINDS[number % len(KINDS)], number) for number in range(first, first + count)]
    async with asyncio.timeout(90):
        async with asyncio.TaskGroup() as group:
            for conversation in several:
                group.create_task(conversation.carry_on())
            await fault()
            freed_at = time.monotonic()
        took = time.monotonic() - freed_at
        for conversation in several:
            await conversation.check()
        await server.check_settled()
    return took


# --- the embedded server ----------------------------------------------------------------------------------------------------------


async def test_an_embedded_server_lives_through_a_full_disk(server: Embedded) -> None:
    """Refused and readable while the disk is full, and whole without a restart as soon as it is not."""
    status, kept = await server.upload(b"kept " * 1000)
    assert status == 200
    blobs = server.blobs()

    async def fill_and_free() -> None:
        await asyncio.sleep(0.3)
        server.is_up.clear()
        server.disk.fill()
        await server.write_until_refused()
        await server.check_settled()
        assert (await server.ask("GET", "/threads?limit=5"))[0] == 200
        assert (await server.ask("GET", "/../health"))[0] == 200, "it can be read, and would not be better for a restart"
        assert await server.upload(b"lost " * 600_000) == (503, {"error": UNAVAILABLE, "detail": detail()})
        assert server.blobs() == blobs
        await asyncio.sleep(FULL_SECONDS)
        await server.check_settled()
        server.disk.free()
        server.is_up.set()

    took = await carried_on(server, 9, fill_and_free)
    print(f"all whole {took:.2f} s after there was room; lease {LEASE_SECONDS} s, sweep {SWEEP_SECONDS} s")
    await server.check_threads()
    assert [file["id"] for file in (await server.get("/files"))["data"]] == [kept["id"]]
    await carried_on(server, 3, lambda: asyncio.sleep(0), first=9)
    assert (await server.upload(b"new " * 600_000))[0] == 200
    assert server.blobs() != blobs
    assert not [name for name in server.blobs() if name.endswith(".part")]


def detail() -> Json:
    return {"message": UNAVAILABLE["message"], "code": "unavailable"}


async def test_a_stream_is_told_of_an_answer_that_could_not_be_kept(server: Embedded) -> None:
    """The answer is written again when there is room. Whoever had heard of the first one is told so, and hears the second one whole."""
    assistant = await server.post("/assistants", {"model": "scripted"})
    thread = await server.post("/threads", {"messages": [{"role": "user", "content": "a long answer"}]})
    path = f"/threads/{thread['id']}"
    run_path = f"{path}/runs/{(await server.post(f'{path}/runs', {'assistant_id': assistant['id']}))['id']}"
    listening = asyncio.create_task(server.events(f"{run_path}/events"))

    async def has_begun() -> bool:
        return len((await server.get(f"{path}/messages"))["data"]) == 2

    await until(has_begun)
    server.disk.fill()
    await server.write_until_refused()
    await asyncio.sleep(FULL_SECONDS)
    assert (await server.get(run_path))["status"] == "in_progress"
    server.disk.free()
    async with asyncio.timeout(30):
        _, name, last = (await listening)[-1]
        assert (name, last["code"]) == ("error", "stream_interrupted")
        told = await server.events(f"{run_path}/events")
    run = await server.get(run_path)
    assert run["status"] == "completed"
    steps = (await server.get(f"{run_path}/steps"))["data"]
    answer, _ = (await server.get(f"{path}/messages"))["data"]
    assert texts_of(answer) == "".join(LONG.text)
    check_story(told, run, steps, [answer])


@pytest.mark.parametrize("leave_bytes", [0, 64 * 1024, 1200 * 1024])
async def test_an_upload_that_does_not_fit_leaves_nothing(server: Embedded, leave_bytes: int) -> None:
    """No row, no unfinished file, and no blob that nobody has; the room that it had taken is there again."""
    blobs = server.blobs()
    server.disk.fill(leave_bytes)
    for _ in range(3):
        assert (await server.upload(b"lost " * 600_000))[0] == 503
        assert server.blobs() == blobs
    assert (await server.get("/files"))["data"] == []
    server.disk.free()
    assert (await server.upload(b"kept " * 600_000))[0] == 200
    assert len(server.blobs()) == 1


@pytest.mark.heavy
async def test_a_file_is_ingested_when_there_is_room(server: Embedded) -> None:
    """What was to be ingested is neither lost nor failed for a disk that was full for a while."""
    texts = [f"The zebra{number} says that nothing of it is lost. " * 200 for number in range(3)]
    files = [(await server.upload(text.encode()))[1] for text in texts]
    store = await server.post("/vector_stores", {"file_ids": [file["id"] for file in files]})
    server.disk.fill()
    await server.write_until_refused()
    await asyncio.sleep(FULL_SECONDS)
    server.disk.free()

    async def is_done() -> bool:
        return (await server.get(f"/vector_stores/{store['id']}"))["file_counts"]["in_progress"] == 0

    print(f"all ingested {await until(is_done):.2f} s after there was room")
    assert (await server.get(f"/vector_stores/{store['id']}"))["file_counts"]["completed"] == 3
    for number, file in enumerate(files):
        found = await server.post(f"/vector_stores/{store['id']}/search", {"query": f"zebra{number}"})
        assert found["data"][0]["file_id"] == file["id"]
    assert list((server.data / "ingest").glob("*")) == []


async def test_check_says_that_the_disk_is_full(server: Embedded) -> None:
    server.disk.fill()
    await server.write_until_refused()
    command = [*server.disk.enter, sys.executable, "-m", "mini_assistant", "check", "--data-dir", str(server.disk.folder / "data")]
    ended = await asyncio.to_thread(
        subprocess.run, command, env={**os.environ, **server.process.environment}, capture_output=True, text=True, timeout=60
    )
    assert ended.returncode == 1
    assert f"files: {server.disk.folder / 'data' / 'blobs'} cannot be used: No space left on device.\n" in ended.stdout
    assert server.blobs() == []


async def test_a_blob_whose_row_does_not_fit_is_not_forgotten(server: Embedded, tmp_path: Path) -> None:
    """The last room goes to bytes whose row is then refused: the upload is refused, and the reservation of its blob tells of them."""
    server.disk.fill()
    await server.write_until_refused()
    statuses: list[int] = []
    for less in range(4, 16):
        server.disk.free()
        room = 256 * 1024
        server.disk.fill(leave_bytes=room)
        statuses.append((await server.upload(b"x" * (room - less * 1024)))[0])
    server.disk.free()
    assert (await server.upload(b"kept"))[0] == 200
    files = (await server.get("/files?limit=100"))["data"]
    assert len(files) == statuses.count(200) + 1
    for name in (DATABASE_FILE, DATABASE_FILE + "-wal"):
        shutil.copyfile(server.data / name, tmp_path / name)
    with contextlib.closing(sqlite3.connect(tmp_path / DATABASE_FILE)) as rows:
        claimed = {key for (key,) in rows.execute("SELECT blob_key FROM files")}
        reserved = {key for (key,) in rows.execute("SELECT blob_key FROM unneeded_blobs")}
    print(f"{statuses.count(503)} refused, {len(set(server.blobs()) - claimed)} of them left bytes for the sweeper")
    assert claimed <= set(server.blobs()) <= claimed | reserved


@pytest.mark.heavy
async def test_an_embedded_server_is_killed_while_the_disk_is_full(server: Embedded) -> None:
    """A start on a full disk succeeds, or says what is wrong; with room again it goes on from what was acknowledged."""
    starts: list[str] = []

    async def fill_kill_and_free() -> None:
        await asyncio.sleep(0.3)
        server.is_up.clear()
        server.disk.fill()
        await server.write_until_refused()
        for _ in range(3):
            server.process.kill()
            server.disk.fill()
            starts.append(await start_on_full_disk(server))
        server.process.kill()
        server.disk.free()
        await asyncio.to_thread(server.process.start)
        await server.check_settled()
        server.is_up.set()

    took = await carried_on(server, 9, fill_kill_and_free)
    print(f"started on a full disk: {starts}; all whole {took:.2f} s after the start with room")


@pytest.mark.heavy
async def test_the_disk_is_full_now_and_then(server: Embedded) -> None:
    """At random moments, for random times, with a little room left or none; now and then the server is killed meanwhile."""
    seed = int(os.environ.get("CRASH_SEED") or time.time_ns() % 1_000_000)
    print(f"CRASH_SEED={seed}")
    pick = random.Random(seed)

    async def fill_for_a_while() -> None:
        await asyncio.sleep(pick.random() * 0.4)
        server.is_up.clear()
        server.disk.fill(leave_bytes=pick.choice([0, 0, 8, 16, 64]) * 1024)
        if pick.random() < 0.7:
            await server.write_until_refused()
        await asyncio.sleep(pick.random() * FULL_SECONDS)
        is_killed = pick.random() < 0.3
        if is_killed:
            server.process.kill()
        server.disk.free()
        if is_killed:
            await asyncio.to_thread(server.process.start)
        await server.check_settled()
        server.is_up.set()

    longest = 0.0
    for place in range(int(os.environ.get("CRASH_FILLS") or 30)):
        longest = max(longest, await carried_on(server, 6, fill_for_a_while, first=6 * place))
    print(f"{server.refused} calls of conversations refused; longest time until all was whole after there was room: {longest:.2f} s")
    assert server.refused


async def start_on_full_disk(server: Embedded) -> str:
    """What came of it."""
    try:
        await asyncio.to_thread(server.process.start)
    except RuntimeError:
        assert server.process.errors.startswith("mini-assistant: "), server.process.errors
        assert "full" in server.process.errors
        assert len(server.process.errors.splitlines()) == 1, server.process.errors
        return server.process.errors.strip()
    await server.check_settled()
    return "it is ready"


# --- a cluster ---------------------------------------------------------------------------------------------------------------------


@pytest.fixture
def small_postgres() -> Iterator[tuple[PostgresServer, SmallDisk]]:
    """A PostgreSQL whose rows and log share a small disk."""
    if reason := why_no_postgres():
        pytest.skip(reason)
    if os.geteuid() == 0:
        _make_user(_USER)
    user = _USER if os.geteuid() == 0 else None
    # Not in a folder of pytest's, which are closed to that user.
    with tempfile.TemporaryDirectory(prefix="postgres-") as folder, small_disk(Path(folder), 160 * MEBIBYTE, user) as disk:
        server = PostgresServer(disk.inside)
        server.start()
        try:
            yield server, disk
        finally:
            server.stop()


def cluster_on(postgres: PostgresServer, data_dir: Path, endpoint: ScriptedEndpoint, **environment: str) -> Cluster:
    return Cluster(postgres, data_dir, {"OPENAI_BASE_URL": endpoint.base_url, "MINI_ASSISTANT_INGEST_ATTEMPTS_MAX": "20", **environment})


async def post_until_refused(cluster: Cluster, disk: SmallDisk) -> None:
    """Use up the pages that PostgreSQL has put by; what is acknowledged meanwhile is remembered."""
    async with asyncio.timeout(30):
        with contextlib.suppress(ServerGone):
            while True:
                thread = await cluster.post("/threads", {"metadata": {str(number): os.urandom(250).hex() for number in range(16)}})
                cluster.settle(f"/threads/{thread['id']}", thread)
                disk.fill()


@pytest.mark.heavy
async def test_postgresql_has_no_room_for_rows(
    small_postgres: tuple[PostgresServer, SmallDisk], endpoint: ScriptedEndpoint, tmp_path: Path
) -> None:
    """It refuses what needs new pages and lives on; so do the servers and the workers, and reads."""
    postgres, disk = small_postgres
    cluster = cluster_on(postgres, tmp_path / "data", endpoint)

    async def fill_and_free() -> None:
        await asyncio.sleep(0.5)
        cluster.is_up.clear()
        disk.fill()
        await post_until_refused(cluster, disk)
        await cluster.check_settled()
        await asyncio.sleep(FULL_SECONDS)
        await cluster.check_settled()
        disk.free()
        cluster.is_up.set()

    async with cluster.with_processes(servers=2, workers=2):
        took = await carried_on(cluster, 9, fill_and_free)
        print(f"all whole {took:.2f} s after there was room; lease {LEASE_SECONDS} s, sweep {SWEEP_SECONDS} s")
        await carried_on(cluster, 3, lambda: asyncio.sleep(0), first=9)


@pytest.mark.heavy
async def test_postgresql_has_no_room_for_its_log(
    small_postgres: tuple[PostgresServer, SmallDisk], endpoint: ScriptedEndpoint, tmp_path: Path
) -> None:
    """It ends itself and cannot start; servers and workers wait for it, and go on when it has been started again with room."""
    postgres, disk = small_postgres
    cluster = cluster_on(postgres, tmp_path / "data", endpoint, MINI_ASSISTANT_DATABASE_WAIT_SECONDS="1")

    async def fill_and_free() -> None:
        await asyncio.sleep(0.5)
        cluster.is_up.clear()
        disk.fill()
        await post_until_refused(cluster, disk)
        switches = await asyncio.to_thread(switch_log_until_it_ends, postgres)
        with pytest.raises(ServerGone):
            await cluster.get("/threads?limit=1")
        with pytest.raises(RuntimeError):
            await asyncio.to_thread(postgres.start)
        await asyncio.sleep(FULL_SECONDS)
        disk.free()
        await asyncio.to_thread(postgres.start)
        await cluster.check_settled()
        cluster.is_up.set()
        print(f"PostgreSQL ended after {switches} new segments of its log")

    async with cluster.with_processes(servers=2, workers=2):
        took = await carried_on(cluster, 9, fill_and_free)
        print(f"all whole {took:.2f} s after the start with room; lease {LEASE_SECONDS} s, sweep {SWEEP_SECONDS} s")
        await carried_on(cluster, 3, lambda: asyncio.sleep(0), first=9)


def switch_log_until_it_ends(postgres: PostgresServer) -> int:
    """Let it begin one segment of its log after the other, until it cannot even recover; returns for how many it had room."""
    process = postgres._process  # pyright: ignore[reportPrivateUsage]
    assert process is not None
    switches, deadline = 0, time.monotonic() + 30
    while process.poll() is None:
        assert time.monotonic() < deadline, "it lives on"
        try:
            postgres.execute("SELECT pg_switch_wal()")
            postgres.execute("SELECT pg_logical_emit_message(true, 'filler', 'x')")
            switches += 1
        except psycopg.OperationalError:
            time.sleep(0.05)
    return switches


@pytest.mark.parametrize("attempts_max", [20, 1], ids=["for a while", "for too long"])
@pytest.mark.heavy
async def test_a_worker_has_no_room_for_copies(
    small_postgres: tuple[PostgresServer, SmallDisk], endpoint: ScriptedEndpoint, tmp_path: Path, attempts_max: int
) -> None:
    """Its files wait until there is room, or fail with a reason when that takes too long; runs go on meanwhile."""
    data_dir = tmp_path / "data"
    with small_disk(tmp_path / "disk", 4 * MEBIBYTE) as disk:
        (disk.inside / "copies").mkdir()
        data_dir.mkdir()
        (data_dir / "ingest").symlink_to(disk.folder / "copies")
        cluster = cluster_on(small_postgres[0], data_dir, endpoint, MINI_ASSISTANT_INGEST_ATTEMPTS_MAX=str(attempts_max))
        async with cluster.with_processes(servers=1, workers=0):
            await cluster.add_worker(SmallDiskWorker(disk, data_dir, cluster.environment, tmp_path / "errors"))
            disk.fill()
            files = [await upload(cluster, f"The zebra{number} is not lost. " * 3000) for number in range(3)]
            store = await cluster.post("/vector_stores", {"file_ids": files})
            await carried_on(cluster, 3, lambda: asyncio.sleep(FULL_SECONDS))
            rows = (await cluster.get(f"/vector_stores/{store['id']}/files"))["data"]
            if attempts_max == 1:
                assert [(row["status"], row["last_error"]) for row in rows] == [("failed", INTERNAL)] * 3
            else:
                assert [row["status"] for row in rows] == ["in_progress"] * 3
            disk.free()
            if attempts_max == 1:
                store = await cluster.post("/vector_stores", {"file_ids": files})

            async def is_done() -> bool:
                return (await cluster.get(f"/vector_stores/{store['id']}"))["file_counts"]["in_progress"] == 0

            print(f"all ingested {await until(is_done):.2f} s after there was room")
            assert (await cluster.get(f"/vector_stores/{store['id']}"))["file_counts"]["completed"] == 3
            assert list((disk.inside / "copies").iterdir()) == []


async def upload(cluster: Cluster, text: str) -> str:
    async with openai.AsyncOpenAI(base_url=f"{cluster.next_server().address}/v1", api_key="test-key", max_retries=0) as sdk:
        return (await sdk.files.create(file=("text.txt", text.encode()), purpose="assistants")).id

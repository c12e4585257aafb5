"""A power cut, a full disk, a second server, a folder that cannot be written: nothing answered is lost, and errors say what is wrong."""

import asyncio
import contextlib
import os
import re
import resource
import shutil
import sqlite3
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import sqlalchemy as sa

from mini_assistant.db.base import Query
from mini_assistant.db.sqlite import SqliteDatabase
from mini_assistant.models.script import Rule, Script, Text, Wait
from mini_assistant.models.scripted import ScriptedEndpoint
from tests.server_process import ServerProcess, _line_with, _started  # pyright: ignore[reportPrivateUsage]

DATABASE = "mini-assistant.sqlite3"
NO_MODEL = {"OPENAI_BASE_URL": "http://127.0.0.1:9/v1", "MINI_ASSISTANT_LOG_LEVEL": "error"}


@contextlib.contextmanager
def running(server: ServerProcess) -> Iterator[ServerProcess]:
    server.start()
    try:
        yield server
    except BaseException:
        server.kill()
        raise
    assert server.stop() == 0


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """One for all tests that do it no lasting harm."""
    with running(ServerProcess(tmp_path_factory.mktemp("server") / "data", NO_MODEL)) as server:
        yield server


@contextlib.asynccontextmanager
async def client(address: str) -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession(base_url=address + "/v1/", timeout=aiohttp.ClientTimeout(total=20)) as session:
        yield session


async def create_thread(session: aiohttp.ClientSession, text: str = "x") -> tuple[int, dict[str, Any]]:
    async with session.post("threads", json={"metadata": {"text": text}}) as answer:
        return answer.status, await answer.json()


async def list_threads(session: aiohttp.ClientSession) -> list[str]:
    async with session.get("threads", params={"limit": "100", "order": "asc"}) as answer:
        return [thread["id"] for thread in (await answer.json())["data"]]


def command(*arguments: str, data_dir: Path, before: str = "") -> subprocess.CompletedProcess[str]:
    """Run the program to its end. before: Python that the process executes first, once everything is imported."""
    imports = "import sys, mini_assistant.command_line.server_commands, mini_assistant.__main__ as program"
    code = f"{imports}\n{before}\nsys.exit(program.main(sys.argv[1:]))"
    return subprocess.run(
        [sys.executable, "-c", code, *arguments, "--data-dir", str(data_dir)],
        env={**os.environ, **NO_MODEL},
        capture_output=True,
        text=True,
        timeout=40,
    )


# --- a power cut ----------------------------------------------------------------------------------------------------------------


async def test_the_live_connections_sync_every_commit(tmp_path: Path) -> None:
    database = SqliteDatabase(tmp_path / "rows.sqlite3")
    await database.open()
    for pragma, expected in (("synchronous", 2), ("journal_mode", "wal"), ("foreign_keys", 1)):
        statement = Query(sa.text(f"PRAGMA {pragma}"))
        assert await database.write([statement()]) == [[(expected,)]]
        assert await database.read(statement()) == [(expected,)]
    await database.close()


@dataclass
class Syscall:
    """A finished call of the server: its name, its first argument with the path of the file, and the rest."""

    name: str
    file: str
    rest: str


def syscalls(trace: str) -> list[Syscall]:
    """The calls of a trace in the order in which they ended; those that were interrupted by another thread are put together."""
    answer: list[Syscall] = []
    begun: dict[str, str] = {}
    for line in trace.splitlines():
        thread, _, text = line.partition(" ")
        text = text.strip()
        if text.endswith("<unfinished ...>"):
            begun[thread] = text.removesuffix("<unfinished ...>")
            continue
        if resumed := re.match(r"<\.\.\. \w+ resumed>", text):
            text = begun.pop(thread) + text[resumed.end() :]
        if call := re.match(r"(\w+)\(\d+<(.*?)>(.*)", text):
            answer.append(Syscall(*call.groups()))
    return answer


def unsynced_answers(calls: Sequence[Syscall]) -> tuple[int, int]:
    """How many POSTs were answered, and how many of them while something of the log had not been synced, or nothing had been written."""
    answered = unsynced = 0
    is_written = is_synced = False
    for call in calls:
        is_log = call.file.endswith(DATABASE + "-wal")
        if is_log and call.name.startswith("pwrite"):
            is_written, is_synced = True, False
        elif is_log and call.name in ("fsync", "fdatasync"):
            is_synced = True
        elif "HTTP/1.1 200" in call.rest:
            answered += 1
            unsynced += not (is_written and is_synced)
            is_written = is_synced = False
    return answered, unsynced


class TracedServer(ServerProcess):
    """A server whose writes and syncs are recorded."""

    def __init__(self, data_dir: Path, trace: Path, before: str) -> None:
        super().__init__(data_dir, NO_MODEL)
        self._trace, self._before = trace, before

    def start(self) -> None:
        watched = "trace=fsync,fdatasync,pwrite64,pwritev,pwritev2,write,writev,sendto,sendmsg"
        # -D: the tracer is the child, so that signals reach the server.
        strace = ["strace", "-D", "-f", "-y", "-s", "40", "-o", str(self._trace), "-e", watched]
        code = f"import sys, mini_assistant.__main__ as program\n{self._before}\nsys.exit(program.main(sys.argv[1:]))"
        serve = [sys.executable, "-c", code, "serve", "--port", "0", "--data-dir", str(self.data_dir)]
        self._process = _started([*strace, *serve], self.environment)
        self.address = _line_with(self._process, "is ready at ").rsplit(" ", 1)[1].removesuffix("/v1")


WITHOUT_SYNC = """
import sqlite3
class Unsynced(sqlite3.Connection):
    def execute(self, text, *parameters):
        return super().execute("PRAGMA synchronous = OFF" if text.startswith("PRAGMA synchronous") else text, *parameters)
connect = sqlite3.connect
sqlite3.connect = lambda *arguments, **options: connect(*arguments, factory=Unsynced, **options)
"""


def _can_trace(folder: Path) -> bool:
    if shutil.which("strace") is None:
        return False
    return subprocess.run(["strace", "-o", folder / "probe", "true"], capture_output=True, timeout=20, check=False).returncode == 0


@pytest.mark.parametrize("before", ["", WITHOUT_SYNC], ids=["as it is", "without sync"])
async def test_an_answered_write_has_been_synced(tmp_path: Path, before: str) -> None:
    """Seen from the kernel: between the last write to the log and the answer there is a sync. Switching it off is noticed."""
    if not _can_trace(tmp_path):
        pytest.skip("needs strace, and the right to use it")
    with running(TracedServer(tmp_path / "data", tmp_path / "trace", before)) as server:
        async with client(server.address) as session:
            for _ in range(20):
                assert (await create_thread(session))[0] == 200
    answered, unsynced = unsynced_answers(syscalls((tmp_path / "trace").read_text(errors="replace")))
    assert answered == 20
    assert unsynced == (20 if before else 0)


async def test_a_copy_of_the_files_at_any_moment_holds_every_answered_write(server: ServerProcess, tmp_path: Path) -> None:
    """Copied while nothing is being written. What follows the answered writes in the log may be torn."""
    async with client(server.address) as session:
        for round_number in range(5):
            known = [(await create_thread(session))[1]["id"] for _ in range(5)]
            copy = tmp_path / f"copy{round_number}"
            copy.mkdir()
            (copy / (DATABASE + "-wal")).write_bytes((server.data_dir / (DATABASE + "-wal")).read_bytes() + os.urandom(5000))
            shutil.copy(server.data_dir / DATABASE, copy)
            database = SqliteDatabase(copy / DATABASE)
            await database.open()
            rows = await database.read(Query(sa.text("SELECT id FROM threads"))())
            assert set(known) <= {row[0] for row in rows}
            assert await database.check()
            await database.close()


# --- a full disk ----------------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def full_disk(server: ServerProcess) -> Iterator[None]:
    """No file of the server can grow any more: what a full disk is to a database."""
    log = server.data_dir / (DATABASE + "-wal")
    _, hard = resource.prlimit(server.pid, resource.RLIMIT_FSIZE)
    resource.prlimit(server.pid, resource.RLIMIT_FSIZE, (log.stat().st_size, hard))
    try:
        yield
    finally:
        resource.prlimit(server.pid, resource.RLIMIT_FSIZE, (hard, hard))


async def test_a_full_disk_is_told_and_the_server_goes_on_when_there_is_room(server: ServerProcess) -> None:
    async with client(server.address) as session:
        await create_thread(session)
        known = await list_threads(session)
        with full_disk(server):
            refused = await asyncio.gather(*(create_thread(session, "x" * 500) for _ in range(20)))
            for status, body in refused:
                assert status == 503
                assert body["error"] == {
                    "message": "The server cannot use its storage at the moment. Please try again.",
                    "type": "server_error",
                    "param": None,
                    "code": "unavailable",
                }
            assert await list_threads(session) == known, "reading goes on, and shows nothing of what was refused"
            async with session.get("/health") as answer:
                assert answer.status == 200
        accepted = await asyncio.gather(*(create_thread(session, "x" * 500) for _ in range(20)))
        assert [status for status, _ in accepted] == [200] * 20
        assert sorted(await list_threads(session)) == sorted([*known, *(body["id"] for _, body in accepted)])


async def test_a_run_that_met_a_full_disk_is_finished_later(tmp_path: Path) -> None:
    settings = {"MINI_ASSISTANT_LEASE_SECONDS": "0.5", "MINI_ASSISTANT_SWEEP_INTERVAL_SECONDS": "0.1"}
    async with ScriptedEndpoint(Script([Rule([Wait(0.3), Text("All is well.")])])) as endpoint:
        environment = {**NO_MODEL, **settings, "OPENAI_BASE_URL": endpoint.base_url}
        with running(ServerProcess(tmp_path / "data", environment)) as server:
            async with client(server.address) as session:
                run = await create_run(session)
                await endpoint.wait_for_streams(1)
                with full_disk(server):
                    await endpoint.wait_for_streams(0)
                    await asyncio.sleep(0.5)
                path = f"threads/{run['thread_id']}"
                while run["status"] not in ("completed", "failed", "expired"):
                    await asyncio.sleep(0.05)
                    run = await get(session, f"{path}/runs/{run['id']}")
                assert run["status"] == "completed"
                messages = (await get(session, f"{path}/messages"))["data"]
                assert [message["content"][0]["text"]["value"] for message in messages] == ["All is well.", "Hello"]


async def create_run(session: aiohttp.ClientSession) -> dict[str, Any]:
    async with session.post("assistants", json={"model": "m"}) as answer:
        assistant = await answer.json()
    body = {"assistant_id": assistant["id"], "thread": {"messages": [{"role": "user", "content": "Hello"}]}}
    async with session.post("threads/runs", json=body) as answer:
        return await answer.json()


async def get(session: aiohttp.ClientSession, path: str) -> dict[str, Any]:
    async with session.get(path) as answer:
        assert answer.status == 200
        return await answer.json()


def test_a_server_that_cannot_write_from_the_start_says_so(tmp_path: Path) -> None:
    nothing = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (4096, resource.RLIM_INFINITY))"
    ended = command("serve", "--port", "0", data_dir=tmp_path / "data", before=nothing)
    assert ended.returncode == 1
    assert re.fullmatch(r"mini-assistant: .*mini-assistant\.sqlite3 cannot be opened: .*(disk|full).*\.\n", ended.stderr), ended.stderr
    with running(ServerProcess(tmp_path / "data", NO_MODEL)):
        pass


# --- other servers, other users -------------------------------------------------------------------------------------------------


async def test_a_second_server_on_the_same_folder_is_refused(server: ServerProcess) -> None:
    ended = await asyncio.to_thread(command, "serve", "--port", "0", data_dir=server.data_dir)
    assert ended.returncode == 1
    assert ended.stderr == f"mini-assistant: {server.data_dir / DATABASE} is in use by another server.\n"
    assert "ready" not in ended.stdout
    async with client(server.address) as session:
        assert (await create_thread(session))[0] == 200, "the first one is not disturbed"


async def test_check_works_beside_a_running_server(server: ServerProcess) -> None:
    async with client(server.address) as session:
        known = (await create_thread(session))[1]["id"]
        ended = await asyncio.to_thread(command, "check", data_dir=server.data_dir)
        assert f"database: ok (SQLite {sqlite3.sqlite_version}, {server.data_dir / DATABASE})" in ended.stdout
        assert (await create_thread(session))[0] == 200
        assert known in await list_threads(session)


def test_a_folder_that_cannot_be_written_is_refused() -> None:
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        data_dir = Path(folder) / "data"
        data_dir.mkdir(mode=0o555)
        # Nothing is forbidden to root, so that it becomes nobody first.
        as_nobody = "import os\nif os.getuid() == 0: os.setgid(65534); os.setuid(65534)"
        ended = command("serve", "--port", "0", data_dir=data_dir, before=as_nobody)
    assert ended.returncode == 1
    assert ended.stderr == f"mini-assistant: {data_dir / DATABASE} cannot be used: Permission denied.\n"

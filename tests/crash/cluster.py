"""Servers and workers as processes around one PostgreSQL, and clients that reach any of them; what they acknowledge is remembered.

It offers conversations what `KilledServer` offers: here every call goes to another replica.
"""

import asyncio
import contextlib
import itertools
from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
import msgspec

from mini_assistant.db.migrations import migrate_postgres
from mini_assistant.queue.procrastinate_schema import apply_schema
from tests.crash.conversations import Json, KilledServer, ServerGone
from tests.postgres_server import PostgresServer
from tests.server_process import ServerProcess, WorkerProcess

LEASE_SECONDS = 2.0
SWEEP_SECONDS = 0.3
ENVIRONMENT = {
    "MINI_ASSISTANT_LOG_LEVEL": "error",
    "MINI_ASSISTANT_LEASE_SECONDS": str(LEASE_SECONDS),
    "MINI_ASSISTANT_SWEEP_INTERVAL_SECONDS": str(SWEEP_SECONDS),
    "MINI_ASSISTANT_EVENT_POLL_INTERVAL_SECONDS": "0.3",
    "MINI_ASSISTANT_RUN_EXPIRY_SECONDS": "3600",
    "MINI_ASSISTANT_WORKERS": "none",
    "MINI_ASSISTANT_SANDBOX": "none",
}
_GONE_STATUSES = (502, 503)
_names = itertools.count()


class Cluster(KilledServer):
    """Replicas and workers; `servers` and `workers` may be killed, frozen and started by a test."""

    def __init__(self, postgres: PostgresServer, data_dir: Path, environment: dict[str, str]) -> None:
        self.postgres, self._data_dir = postgres, data_dir
        self.database = f"cluster_{next(_names)}"
        url = postgres.create_database(self.database)
        migrate_postgres(url)
        apply_schema(url)
        self.environment = {**ENVIRONMENT, "MINI_ASSISTANT_DATABASE_URL": url, **environment}
        self.servers: list[ServerProcess] = []
        self.workers: list[ServerProcess] = []
        self._turn = itertools.count()
        self._started: list[ServerProcess] = []
        super().__init__(data_dir, self.environment)

    @contextlib.asynccontextmanager
    async def with_processes(self, servers: int, workers: int) -> AsyncIterator["Cluster"]:
        """So many of both, all of them ended in the end."""
        async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=30)) as self._session:
            try:
                await asyncio.gather(*(self.add_server() for _ in range(servers)), *(self.add_worker() for _ in range(workers)))
                self.is_up.set()
                yield self
            finally:
                for process in self._started:
                    if process.is_running:
                        process.thaw()
                        await asyncio.to_thread(process.kill)

    async def add_server(self, process: ServerProcess | None = None) -> ServerProcess:
        """Start one more replica."""
        process = process or ServerProcess(self._data_dir, self.environment)
        self._started.append(process)
        await asyncio.to_thread(process.start)
        self.servers.append(process)
        return process

    async def add_worker(self, process: ServerProcess | None = None) -> ServerProcess:
        """Start one more worker."""
        process = process or WorkerProcess(self._data_dir, self.environment)
        self._started.append(process)
        await asyncio.to_thread(process.start)
        self.workers.append(process)
        return process

    async def kill(self, process: ServerProcess) -> None:
        """End a replica or worker without a word."""
        for processes in (self.servers, self.workers):
            if process in processes:
                processes.remove(process)
        await asyncio.to_thread(process.kill)

    def next_server(self) -> ServerProcess:
        """The replicas in turn."""
        return self.servers[next(self._turn) % len(self.servers)]

    async def _call(self, method: str, path: str, body: Json | None) -> Json:
        assert self._session is not None
        try:
            async with self._session.request(method, self.next_server().address + "/v1" + path, json=body) as answer:
                text = await answer.text()
        except (aiohttp.ClientError, ConnectionError) as exc:
            raise ServerGone from exc
        if answer.status in _GONE_STATUSES:
            raise ServerGone(text)
        assert answer.status == 200, f"{method} {path}: {answer.status} {text}"
        return msgspec.json.decode(text)

    async def events(self, path: str) -> list[tuple[str, str, Json]]:
        assert self._session is not None
        async with self._session.get(self.next_server().address + "/v1" + path) as answer:
            frames = (await answer.text()).split("\n\n")
        told = [dict(line.split(": ", 1) for line in frame.splitlines() if not line.startswith(":")) for frame in frames if frame]
        assert told[-1]["event"] == "done", told[-1]
        return [(event.get("id", ""), event["event"], msgspec.json.decode(event["data"])) for event in told[:-1]]

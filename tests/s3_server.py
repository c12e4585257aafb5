"""A real S3 server of the tests' own: SeaweedFS on free ports of loopback, in a temporary folder, ended by its id.

It checks the signatures of signed requests, which is what the blob store sends. Requests without one may do all, so that tests can look
into a bucket in plain HTTP.
"""

import contextlib
import itertools
import json
import os
import shutil
import signal
import socket
import subprocess
import sysconfig
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from xml.etree import ElementTree

import pytest

ACCESS_KEY_ID = "key-of-tests"
SECRET_ACCESS_KEY = "secret-of-tests"
_START_SECONDS = 60.0
_ANSWER_SECONDS = 30.0
_IDENTITIES = {
    "identities": [
        {"name": "tests", "credentials": [{"accessKey": ACCESS_KEY_ID, "secretKey": SECRET_ACCESS_KEY}], "actions": ["Admin"]},
        {"name": "anonymous", "actions": ["Admin"]},
    ]
}
# Its parts listen on ports of their own; those that are not asked for would take fixed ones.
_PORTS = ("master.port", "volume.port", "filer.port", "s3.port")


class S3Server:
    """An S3 server. It may be killed and started again on the same port, with the same buckets."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        (folder / "config.json").write_text(json.dumps(_IDENTITIES))
        names = [name for port in _PORTS for name in (port, f"{port}.grpc")]
        ports = dict(zip(names, _free_ports(len(names)), strict=True))
        self.port = ports["s3.port"]
        self.url = f"http://127.0.0.1:{self.port}"
        self._options = {
            "dir": folder,
            "ip": "127.0.0.1",
            "ip.bind": "127.0.0.1",
            "filer": "true",
            "filer.localSocket": folder / "filer.sock",
            "master.electionTimeout": "1s",  # 10 s else, at each start but the first
            "master.heartbeatInterval": "100ms",
            "master.telemetry": "false",
            "master.volumeSizeLimitMB": 512,
            "s3": "true",
            "s3.autoCreateBucket": "false",
            "s3.config": folder / "config.json",
            "s3.iam": "false",
            "s3.localSocket": folder / "s3.sock",
            "s3.port.iceberg": 0,
            "s3.port.lance": 0,
            "volume.max": 10_000,  # each bucket takes several
            "volume.minFreeSpacePercent": 0,
            **ports,
        }
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it and wait until it takes bytes. Raises RuntimeError when it does not in time."""
        with (self._folder / "log").open("ab") as log:
            self._process = subprocess.Popen(
                [_program(), "server", *(f"-{name}={value}" for name, value in self._options.items())],
                stdout=log,
                stderr=log,
                cwd=self._folder,
            )
        deadline = time.monotonic() + _START_SECONDS
        while True:
            try:
                self.make_bucket("answers")
                self._request("PUT", "answers/one", b"1")
                return
            except OSError as exc:
                if self._process.poll() is not None or time.monotonic() > deadline:
                    said = (self._folder / "log").read_text(errors="replace")[-2000:]
                    raise RuntimeError(f"the S3 server does not answer: {exc}\n{said}") from exc
                time.sleep(0.1)

    def kill(self) -> None:
        """End it as a crash would: in the middle of whatever it does."""
        if self._process is not None and self._process.poll() is None:
            self._process.send_signal(signal.SIGKILL)
            self._process.wait(timeout=30)

    def make_bucket(self, name: str) -> None:
        """Make a bucket; one that is there already stays as it is."""
        try:
            self._request("PUT", name)
        except urllib.error.HTTPError as exc:
            if exc.code != 409:
                raise

    def drop_bucket(self, name: str) -> None:
        """Drop a bucket with all that is in it."""
        self._request("DELETE", name)

    def keys(self, bucket: str) -> list[str]:
        """The names of all objects in a bucket, sorted."""
        return sorted(_texts(self._request("GET", f"{bucket}?list-type=2"), "Contents", "Key"))

    def get(self, bucket: str, key: str) -> bytes:
        """The bytes of an object."""
        return self._request("GET", f"{bucket}/{key}")

    def put(self, bucket: str, key: str, content: bytes) -> None:
        """Keep an object."""
        self._request("PUT", f"{bucket}/{key}", content)

    def uploads(self, bucket: str) -> list[str]:
        """The names of objects whose upload in parts has begun, and has neither been completed nor aborted."""
        return _texts(self._request("GET", f"{bucket}?uploads"), "Upload", "Key")

    def _request(self, method: str, path: str, body: bytes | None = None) -> bytes:
        request = urllib.request.Request(f"{self.url}/{path}", body, method=method)
        with urllib.request.urlopen(request, timeout=_ANSWER_SECONDS) as answer:
            return answer.read()


def _texts(document: bytes, element: str, field: str) -> list[str]:
    """The text of `field` in each `element` of an XML answer, whatever their namespace is."""
    return [found.findtext(f"{{*}}{field}", "") for found in ElementTree.fromstring(document).iter() if found.tag.endswith(element)]


def _program() -> Path:
    return Path(sysconfig.get_path("scripts")) / "weed"


def _free_ports(count: int) -> list[int]:
    """Ports that nobody has now; held together, so that none comes twice."""
    with contextlib.ExitStack() as held:
        probes = [held.enter_context(socket.socket()) for _ in range(count)]
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [probe.getsockname()[1] for probe in probes]


@contextlib.contextmanager
def running_s3() -> Iterator[S3Server]:
    """An S3 server of its own for a test that kills it."""
    if not os.access(_program(), os.X_OK):
        pytest.skip("the tests' S3 server is not installed")
    folder = Path(tempfile.mkdtemp(prefix="s3-"))
    server = S3Server(folder)
    try:
        server.start()
        yield server
    finally:
        server.kill()
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="session")
def s3() -> Iterator[S3Server]:
    """One S3 server for all tests of this process."""
    with running_s3() as server:
        yield server


_numbers = itertools.count()


@pytest.fixture
def s3_bucket(s3: S3Server) -> Iterator[str]:
    """The name of a new, empty bucket that nobody else uses."""
    name = f"test-{next(_numbers)}"
    s3.make_bucket(name)
    yield name
    s3.drop_bucket(name)

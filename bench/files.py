"""Large files: how much memory the server takes while one goes in and out, and how fast, beside a plain hashed file."""

import asyncio
import hashlib
import os
import tempfile
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import msgspec

from bench import machine
from bench.machine import Process
from bench.report import Row, at_most, information
from bench.scale import FULL, Scale

MEMORY_TARGET_MB = 32.0
_MB = 1_000_000
_FULL_BYTES = 512 * _MB
_QUICK_BYTES = 64 * _MB
_WARM_UP_BYTES = 4 * _MB
_PIECE = os.urandom(_MB)
_BOUNDARY = "bench-7d1e"


async def rows(scale: Scale) -> AsyncIterator[Row]:
    """Upload and download one file."""
    size_bytes = _FULL_BYTES if scale.rounds >= FULL.rounds else _QUICK_BYTES
    name = f"{size_bytes // _MB} MB"
    with (
        tempfile.TemporaryDirectory() as folder,
        machine.paced_endpoint() as endpoint,
        machine.server(Path(folder) / "data", endpoint.address) as server,
    ):
        await _download(server.address, (await _upload(server.address, _WARM_UP_BYTES))["id"])
        before_bytes = _status_bytes(server, "VmRSS")
        began = time.perf_counter()
        file = await _upload(server.address, size_bytes)
        upload_seconds = time.perf_counter() - began
        grown_mb = (_status_bytes(server, "VmHWM") - before_bytes) / _MB
        yield at_most(f"{name} upload, growth of memory", grown_mb, MEMORY_TARGET_MB, unit=" MB", bound="none")
        bound = f"{size_bytes / _plain_write_seconds(Path(folder) / 'plain', size_bytes) / _MB:.0f} MB/s, plain hashed file"
        yield information(f"{name} upload", f"{size_bytes / upload_seconds / _MB:.0f} MB/s", bound)
        began = time.perf_counter()
        received_bytes = await _download(server.address, file["id"])
        download_seconds = time.perf_counter() - began
        if received_bytes != size_bytes:
            raise RuntimeError(f"{received_bytes} of {size_bytes} bytes came back")
        grown_mb = (_status_bytes(server, "VmHWM") - before_bytes) / _MB
        yield at_most(f"{name} download, growth of memory", grown_mb, MEMORY_TARGET_MB, unit=" MB", bound="none")
        bound = f"{size_bytes / _plain_read_seconds(Path(folder) / 'plain') / _MB:.0f} MB/s, plain file"
        yield information(f"{name} download", f"{size_bytes / download_seconds / _MB:.0f} MB/s", bound)


async def _upload(address: str, size_bytes: int) -> Any:
    head, tail = _form()
    url = urlsplit(address)
    reader, writer = await asyncio.open_connection(url.hostname, url.port)
    try:
        length = len(head) + size_bytes + len(tail)
        writer.write(
            b"POST /v1/files HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\ncontent-length: %d\r\n"
            b"content-type: multipart/form-data; boundary=%b\r\n\r\n%b" % (length, _BOUNDARY.encode(), head)
        )
        for _ in range(size_bytes // len(_PIECE)):
            writer.write(_PIECE)
            await writer.drain()
        writer.write(tail)
        answer = await reader.read()
        if not answer.startswith(b"HTTP/1.1 200"):
            raise RuntimeError(f"unexpected answer: {answer[:1000]!r}")
        return msgspec.json.decode(answer.partition(b"\r\n\r\n")[2])
    finally:
        writer.close()
        await writer.wait_closed()


def _form() -> tuple[bytes, bytes]:
    """What stands before and behind the bytes of the file."""
    line = f'--{_BOUNDARY}\r\nContent-Disposition: form-data; name="purpose"\r\n\r\nassistants\r\n--{_BOUNDARY}\r\n'
    head = line + 'Content-Disposition: form-data; name="file"; filename="bench.bin"\r\n\r\n'
    return head.encode(), f"\r\n--{_BOUNDARY}--\r\n".encode()


async def _download(address: str, file_id: str) -> int:
    """Returns how many bytes came."""
    url = urlsplit(address)
    reader, writer = await asyncio.open_connection(url.hostname, url.port)
    try:
        writer.write(f"GET /v1/files/{file_id}/content HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n".encode())
        head = await reader.readuntil(b"\r\n\r\n")
        if not head.startswith(b"HTTP/1.1 200"):
            raise RuntimeError(f"unexpected answer: {head!r}")
        received_bytes = 0
        while data := await reader.read(_MB):
            received_bytes += len(data)
        return received_bytes
    finally:
        writer.close()
        await writer.wait_closed()


def _status_bytes(process: Process, name: str) -> int:
    """A figure of the kernel about a process: `VmRSS` now, `VmHWM` at its highest."""
    for line in Path(f"/proc/{process.pid}/status").read_text().splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"the kernel gives no {name}")


def _plain_write_seconds(path: Path, size_bytes: int) -> float:
    """Hash and write the same bytes, in one thread and without a server."""
    began = time.perf_counter()
    sha256, md5 = hashlib.sha256(), hashlib.md5()
    with path.open("wb") as file:
        for _ in range(size_bytes // len(_PIECE)):
            sha256.update(_PIECE)
            md5.update(_PIECE)
            file.write(_PIECE)
        file.flush()
        os.fsync(file.fileno())
    return time.perf_counter() - began


def _plain_read_seconds(path: Path) -> float:
    began = time.perf_counter()
    with path.open("rb") as file:
        while file.read(_MB):
            pass
    return time.perf_counter() - began

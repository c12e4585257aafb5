"""What limits cost: the CPU of admitting a request, and what a project at ten times its limit does to another one's requests."""

import asyncio
import tempfile
import time
from collections.abc import AsyncIterator
from pathlib import Path
from urllib.parse import urlsplit

from bench import machine
from bench.client import connect, request
from bench.report import Row, at_most, information, median, percentile
from bench.scale import Scale
from mini_assistant.app import open_services
from mini_assistant.clock import ManualClock
from mini_assistant.http.auth import Authenticator, check_scope
from mini_assistant.projects.buckets import Bucket
from mini_assistant.projects.keys import insert_key, new_key
from mini_assistant.projects.limits import RequestLimits
from mini_assistant.services import Services
from mini_assistant.settings import ProjectSettings, Settings

TARGET_US = 20.0
NOISE_TARGET = 1.1
_QUIET, _NOISY = "quiet", "noisy"
_QUIET_PER_MINUTE = 60_000
_NOISY_PER_MINUTE = 1200
_NOISE = 10
_CALLS_PER_ROUND_SECOND = 20_000
_ASKED_PER_ROUND = 400
_CONNECTIONS = 8
_CONFIG = f"""
[projects.{_QUIET}]
requests_per_minute_max = {_QUIET_PER_MINUTE * 10}
[projects.{_NOISY}]
requests_per_minute_max = {_NOISY_PER_MINUTE}
"""


async def rows(scale: Scale) -> AsyncIterator[Row]:
    """The CPU of an admission, and the noisy neighbour."""
    with tempfile.TemporaryDirectory() as folder:
        yield await _admission(Path(folder), scale)
    with tempfile.TemporaryDirectory() as folder:
        async for row in _neighbours(Path(folder), scale):
            yield row


def _settings(folder: Path) -> Settings:
    limited = {_QUIET: ProjectSettings(requests_per_minute_max=_QUIET_PER_MINUTE)}
    return Settings(data_dir=folder, openai_base_url="http://127.0.0.1:1/v1", sandbox="none", key_cache_seconds=3600.0, projects=limited)


async def _key(services: Services, project_id: str) -> str:
    made = new_key(project_id, ("read", "write"), services.now())
    await services.db.write(insert_key(made.record))
    return made.key


# --- one request ----------------------------------------------------------------------------------------------------------------


async def _admission(folder: Path, scale: Scale) -> Row:
    """Requests come as fast as the limit lets them; each look at the bucket is in the figure, that of the database's thread too."""
    async with open_services(_settings(folder)) as services:
        headers = {b"authorization": f"Bearer {await _key(services, _QUIET)}".encode(), b"host": b"127.0.0.1"}
        authenticator, calls = Authenticator(services), int(_CALLS_PER_ROUND_SECOND * scale.round_seconds)
        who_us = median([await _cpu_us(authenticator, None, headers, calls) for _ in range(scale.rounds)])
        clock = ManualClock(services.clock.now())
        limits = _PacedLimits(services, clock)
        both_us = median([await _cpu_us(authenticator, limits, headers, calls) for _ in range(scale.rounds)])
    return at_most("auth and limit, 1,000 requests/s", both_us, TARGET_US, unit=" us", note=" CPU", bound=f"{who_us:.1f} us without limit")


class _PacedLimits(RequestLimits):
    """Limits for which the time between two requests is as long as the limit wants it."""

    def __init__(self, services: Services, clock: ManualClock) -> None:
        super().__init__(services)
        self._buckets[_QUIET] = Bucket(services.db, clock, f"requests {_QUIET}", _QUIET_PER_MINUTE)
        self._paced = clock

    def advance(self) -> None:
        """Let the time until the next request pass."""
        self._paced.advance(60 / _QUIET_PER_MINUTE)


async def _cpu_us(authenticator: Authenticator, limits: _PacedLimits | None, headers: dict[bytes, bytes], calls: int) -> float:
    began = time.process_time()
    for _ in range(calls):
        caller = await authenticator.caller_of(headers, "/threads")
        check_scope(caller, "read")
        if limits is not None:
            limits.advance()
            if (await limits.admit(caller.project_id)).refusal is not None:
                raise RuntimeError("a request within the limit was refused")
    return (time.process_time() - began) / calls * 1e6


# --- two projects ---------------------------------------------------------------------------------------------------------------


async def _neighbours(folder: Path, scale: Scale) -> AsyncIterator[Row]:
    async with open_services(_settings(folder)) as services:
        quiet, noisy = await _key(services, _QUIET), await _key(services, _NOISY)
    config = folder / "config.toml"
    config.write_text(_CONFIG)
    arguments = ["serve", "--port", "0", "--data-dir", str(folder), "--config", str(config)]
    with machine.started("mini_assistant", arguments, ready="is ready at ", cores=[machine.server_core()]) as server:
        alone: list[float] = []
        beside: list[float] = []
        answers: dict[int, int] = {}
        await _asked_seconds(server.address, quiet)
        await _use_up(server.address, noisy)
        for _ in range(scale.rounds):
            alone += await _asked_seconds(server.address, quiet)
            async with asyncio.timeout(120), asyncio.TaskGroup() as group:
                noise = group.create_task(_make_noise(server.address, noisy, answers))
                beside += await _asked_seconds(server.address, quiet)
                noise.cancel()
    alone.sort()
    beside.sort()
    alone_ms, beside_ms = percentile(alone, 0.5) * 1000, percentile(beside, 0.5) * 1000
    told = ", ".join(f"{count} x {status}" for status, count in sorted(answers.items()))
    bound = f"alone {alone_ms:.2f} ms; neighbour {told}"
    yield at_most(
        "neighbour at 10 x its limit, p50", beside_ms / alone_ms, NOISE_TARGET, unit=" x", note=f" ({beside_ms:.2f} ms)", bound=bound
    )
    shown = f"{percentile(beside, 0.99) * 1000:.2f} ms"
    yield information("neighbour at 10 x its limit, p99", shown, f"alone {percentile(alone, 0.99) * 1000:.2f} ms")


def _with_key(data: bytes, key: str) -> bytes:
    return data.replace(b"\r\n", f"\r\nauthorization: Bearer {key}\r\n".encode(), 1)


async def _asked_seconds(address: str, key: str) -> list[float]:
    """Write and read a thread again and again, one request after the other; how long both took."""
    connection = await connect(address)
    create, taken = _with_key(request("POST", "/v1/threads", {}), key), list[float]()
    for _ in range(_ASKED_PER_ROUND):
        began = time.perf_counter()
        thread_id = (await connection.ask(create))["id"]
        await connection.ask(_with_key(request("GET", f"/v1/threads/{thread_id}"), key))
        taken.append(time.perf_counter() - began)
    connection.close()
    return taken


async def _use_up(address: str, key: str) -> None:
    """Use up what a project may ask for at once, until it is refused."""
    answers: dict[int, int] = {}
    async with asyncio.timeout(60):
        noise = asyncio.create_task(_make_noise(address, key, answers, per_second=1000))
        while 429 not in answers:  # noqa: ASYNC110 - an answer has no event of its own
            await asyncio.sleep(0.01)
        noise.cancel()
        await asyncio.wait([noise])


async def _make_noise(address: str, key: str, answers: dict[int, int], per_second: float = _NOISY_PER_MINUTE * _NOISE / 60) -> None:
    """Send requests evenly, whatever is answered, until cancelled: ten times as many as the limit lets through."""
    url = urlsplit(address)
    loop = asyncio.get_running_loop()
    made = [(await loop.create_connection(lambda: _Counted(answers), url.hostname, url.port))[0] for _ in range(_CONNECTIONS)]
    data, pause, next_at, number = _with_key(request("GET", "/v1/assistants"), key), 1 / per_second, loop.time(), 0
    try:
        while True:
            made[number % _CONNECTIONS].write(data)
            number, next_at = number + 1, next_at + pause
            await asyncio.sleep(max(0.0, next_at - loop.time()))
    finally:
        for transport in made:
            transport.close()


class _Counted(asyncio.Protocol):
    """Counts the statuses of what is answered."""

    def __init__(self, answers: dict[int, int]) -> None:
        self._answers = answers

    def data_received(self, data: bytes) -> None:
        for head in data.split(b"HTTP/1.1 ")[1:]:
            status = int(head[:3])
            self._answers[status] = self._answers.get(status, 0) + 1

"""The server with many runs that stream at once: how reads fare beside them, and how many one core carries."""

import asyncio
import tempfile
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import NamedTuple

from bench import machine
from bench.client import StreamReader, connect, load, request
from bench.endpoint import TOKENS_PER_SECOND
from bench.machine import Process
from bench.report import Row, at_most, information, median, percentile
from bench.runs import close_streams, open_streams, run_request
from bench.scale import Scale

GET_TARGET = 2.0
STREAMS_TARGET = 300
_DELAY_MAX_MS = 1000
_SHARE_MIN = 0.97
_SETTLE_SECONDS = 1.0


async def rows(scale: Scale) -> AsyncIterator[Row]:
    """One row for reads beside streams, two for the number of streams."""
    with tempfile.TemporaryDirectory() as folder, machine.paced_endpoint() as endpoint:
        with machine.server(Path(folder), endpoint.address) as server:
            yield await _reads_beside_streams(server, scale)
        with machine.server(Path(folder), endpoint.address) as server:
            async for row in _streams_on_one_core(server, endpoint, scale):
                yield row


async def _reads_beside_streams(server: Process, scale: Scale) -> Row:
    connection = await connect(server.address)
    thread = (await connection.ask(request("POST", "/v1/threads", {})))["id"]
    connection.close()
    get = request("GET", f"/v1/threads/{thread}")
    # Long enough to be there while reads are timed, and to end by itself before the next round.
    run = await run_request(server.address, f"paced-{int(TOKENS_PER_SECOND * (scale.round_seconds + scale.streams / 25))}")
    alone: list[float] = []
    beside: list[float] = []
    for _ in range(max(1, scale.rounds // 2)):
        alone.append(await _get_p50_ms(server, get, scale))
        readers = await open_streams(server.address, run, scale.streams)
        beside.append(await _get_p50_ms(server, get, scale))
        await asyncio.gather(*(reader.ended for reader in readers))
        await close_streams(readers)
    ratio = median(crowded / quiet for crowded, quiet in zip(beside, alone, strict=True))
    what = f"GET p50 beside {scale.streams} runs at {TOKENS_PER_SECOND}/s"
    return at_most(what, ratio, GET_TARGET, unit=" x", note=f" ({median(beside):.2f} ms)", bound=f"no streams {median(alone):.2f} ms")


async def _get_p50_ms(server: Process, get: bytes, scale: Scale) -> float:
    done = await load(server.address, [get], scale.round_seconds)
    return percentile(done.latencies_seconds, 0.5) * 1000


class _Step(NamedTuple):
    """How a crowd fared. share: of the tokens that should have come; cpu: of one core, for the server and for those around it."""

    streams: int
    share: float
    delay_p99_ms: float
    server_cpu: float
    around_cpu: float

    @property
    def holds(self) -> bool:
        return self.share >= _SHARE_MIN and self.delay_p99_ms <= _DELAY_MAX_MS


async def _streams_on_one_core(server: Process, endpoint: Process, scale: Scale) -> AsyncIterator[Row]:
    steps = scale.streams_max // scale.streams_step
    run = await run_request(server.address, f"paced-{int(TOKENS_PER_SECOND * steps * (scale.round_seconds + 5))}")
    readers: list[StreamReader] = []
    held: _Step | None = None
    last: _Step | None = None
    while len(readers) < scale.streams_max and (last is None or last.holds):
        held = last
        try:
            readers += await open_streams(server.address, run, scale.streams_step)
        except TimeoutError:
            break
        await asyncio.sleep(_SETTLE_SECONDS)
        last = await _watched(server, endpoint, readers, scale)
    await close_streams(readers)
    if last is not None and last.holds:
        held = last
    streams = held.streams if held else 0
    told = f"{streams} runs" + (f", {held.server_cpu:.0%} of the core" if held else "")
    around = f"client and endpoint {held.around_cpu:.0%}" if held else ""
    yield Row(f"streaming runs at {TOKENS_PER_SECOND} tokens/s, one core", told, around, f">= {STREAMS_TARGET}", streams >= STREAMS_TARGET)
    if held:
        delay = f"{held.delay_p99_ms:.0f} ms"
        yield information(
            "  token delay p99 with them", delay, f"too many: {last.streams}" if last and not last.holds else "no more were tried"
        )


async def _watched(server: Process, endpoint: Process, readers: list[StreamReader], scale: Scale) -> _Step:
    for reader in readers:
        reader.delays_ms.clear()
    tokens = sum(reader.tokens for reader in readers)
    began, server_cpu, around_cpu = time.perf_counter(), server.cpu_seconds(), endpoint.cpu_seconds() + time.process_time()
    await asyncio.sleep(2 * scale.round_seconds)
    seconds = time.perf_counter() - began
    delays = sorted(delay for reader in readers for delay in reader.delays_ms)
    return _Step(
        streams=len(readers),
        share=(sum(reader.tokens for reader in readers) - tokens) / (len(readers) * TOKENS_PER_SECOND * seconds),
        delay_p99_ms=percentile(delays, 0.99),
        server_cpu=(server.cpu_seconds() - server_cpu) / seconds,
        around_cpu=(endpoint.cpu_seconds() + time.process_time() - around_cpu) / seconds,
    )

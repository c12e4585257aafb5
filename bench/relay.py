"""CPU of the server for a token on its way from the endpoint to the client, with a bare relay beside it on the same core."""

import asyncio
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path

from bench import machine
from bench.client import StreamReader
from bench.endpoint import TOKENS_PER_SECOND
from bench.machine import Process
from bench.report import Row, at_most, median
from bench.runs import chat_request, close_streams, open_streams, run_request, streamed_seconds
from bench.scale import Scale

TARGET_US = 60.0
_BURST_TOKENS = 4000


async def rows(scale: Scale) -> AsyncIterator[Row]:
    """One row for tokens that come one by one, one for tokens that come all at once."""
    with (
        tempfile.TemporaryDirectory() as folder,
        machine.paced_endpoint() as endpoint,
        machine.server(Path(folder), endpoint.address) as server,
        machine.bare_relay(endpoint.address) as bare,
    ):
        yield await _paced(server, bare, scale)
        yield await _burst(server, bare, scale)


async def _paced(server: Process, bare: Process, scale: Scale) -> Row:
    model = f"paced-{int(TOKENS_PER_SECOND * (scale.rounds * scale.round_seconds + 5))}"
    readers = {
        server: await open_streams(server.address, await run_request(server.address, model), scale.streams),
        bare: await open_streams(bare.address, chat_request(model), scale.streams),
    }
    costs: dict[Process, list[float]] = {server: [], bare: []}
    for _ in range(scale.rounds):
        # Both at once: whatever else the machine does at the moment, it does to both.
        before = {process: (process.cpu_seconds(), _tokens(readers[process])) for process in readers}
        await asyncio.sleep(scale.round_seconds)
        for process, (cpu_seconds, tokens) in before.items():
            costs[process].append((process.cpu_seconds() - cpu_seconds) / (_tokens(readers[process]) - tokens) * 1e6)
    await close_streams([*readers[server], *readers[bare]])
    return _row(f"relay a token, {scale.streams} runs at {TOKENS_PER_SECOND}/s", costs[server], costs[bare])


def _tokens(readers: list[StreamReader]) -> int:
    return sum(reader.tokens for reader in readers)


async def _burst(server: Process, bare: Process, scale: Scale) -> Row:
    costs: dict[Process, list[float]] = {server: [], bare: []}
    requests = {
        server: [await run_request(server.address, f"burst-{tokens}") for tokens in (1, _BURST_TOKENS)],
        bare: [chat_request(f"burst-{tokens}") for tokens in (1, _BURST_TOKENS)],
    }
    for _ in range(scale.rounds):
        for process, (short, long) in requests.items():
            # The difference is the tokens' alone: a run has a price of its own.
            cpu_seconds = await _cpu_seconds(process, long) - await _cpu_seconds(process, short)
            costs[process].append(cpu_seconds / (_BURST_TOKENS - 1) * 1e6)
    return _row(f"relay a token, {_BURST_TOKENS} at once", costs[server], costs[bare])


async def _cpu_seconds(process: Process, data: bytes) -> float:
    began = process.cpu_seconds()
    await streamed_seconds(process.address, data)
    return process.cpu_seconds() - began


def _row(what: str, ours_us: list[float], least_us: list[float]) -> Row:
    ratio = median(a / b for a, b in zip(ours_us, least_us, strict=True))
    return at_most(
        what, median(ours_us), TARGET_US, unit=" us", note=f" CPU = {ratio:.1f} x", bound=f"{median(least_us):.3g} us CPU, bare relay"
    )

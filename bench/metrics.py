"""What it costs to be watched: counting a request against the CPU of the cheapest one, and a scrape of all figures."""

import tempfile
import time
from collections.abc import AsyncIterator
from pathlib import Path

from bench import machine
from bench.client import connect, load, request
from bench.report import Row, at_most, information, median
from bench.scale import Scale
from mini_assistant import logs
from mini_assistant.metrics import CountedRequests

TARGET_PERCENT = 2.0
_CONNECTIONS = 32
_COUNTS = 20_000
_SCRAPE_SECONDS = 0.5
_WARM_UP_SECONDS = 0.2


async def rows(scale: Scale) -> AsyncIterator[Row]:
    """The share of counting in a request, and the CPU of a scrape."""
    with (
        tempfile.TemporaryDirectory() as folder,
        machine.paced_endpoint() as endpoint,
        machine.server(Path(folder), endpoint.address) as server,
    ):
        connection = await connect(server.address)
        thread = (await connection.ask(request("POST", "/v1/threads", {})))["id"]
        gets = [request("GET", f"/v1/threads/{thread}")] * _CONNECTIONS
        await load(server.address, gets, _WARM_UP_SECONDS)
        requests_us: list[float] = []
        counting_us: list[float] = []
        for _ in range(scale.rounds):
            cpu_seconds = server.cpu_seconds()
            done = await load(server.address, gets, scale.round_seconds)
            requests_us.append((server.cpu_seconds() - cpu_seconds) / done.answers * 1e6)
            counting_us.append(_counting_us())
        connection.close()
        cpu_seconds = server.cpu_seconds()
        done = await load(server.address, [request("GET", "/metrics")], _SCRAPE_SECONDS)
        scrape_ms = (server.cpu_seconds() - cpu_seconds) / done.answers * 1000
    share = median(counting / whole for counting, whole in zip(counting_us, requests_us, strict=True)) * 100
    bound = f"GET thread: {median(requests_us):.0f} us CPU"
    yield at_most("metrics: counting a request", share, TARGET_PERCENT, unit=" %", bound=bound, note=f" ({median(counting_us):.2f} us)")
    yield information("metrics: CPU of a scrape", f"{scrape_ms:.2f} ms")


def _counting_us() -> float:
    """What a request costs for being counted, and for saying to the log which one it is."""
    counted = CountedRequests()
    counted.count("getThread", 200, 0.0003)
    began = time.process_time()
    for _ in range(_COUNTS):
        logs.request_id.set("req_0123456789abcdef")
        logs.project_id.set("default")
        counted.count("getThread", 200, 0.0003)
    return (time.process_time() - began) / _COUNTS * 1e6

"""Memory and start-up of a server whose models are elsewhere."""

import tempfile
from collections.abc import AsyncIterator
from pathlib import Path

from bench import machine
from bench.client import connect, request
from bench.report import Row, at_most, information, median
from bench.scale import Scale

PSS_TARGET_MIB = 120.0
START_TARGET_SECONDS = 1.5
_REQUESTS_PER_REPETITION = 2.5
_MIB = 1024 * 1024


async def rows(scale: Scale) -> AsyncIterator[Row]:
    """Start-up CPU, and memory when idle."""
    with tempfile.TemporaryDirectory() as folder, machine.paced_endpoint() as endpoint:
        with machine.server(Path(folder) / "first", endpoint.address):
            pass  # the first start of all compiles the modules
        fresh: list[float] = []
        existing: list[float] = []
        for place in range(max(1, scale.rounds // 2)):
            data_dir = Path(folder) / f"data-{place}"
            for times in (fresh, existing):
                with machine.server(data_dir, endpoint.address) as server:
                    times.append(server.cpu_seconds())
        yield at_most("start-up CPU, existing database", median(existing), START_TARGET_SECONDS, unit=" s", bound="none")
        yield at_most("start-up CPU, new database", median(fresh), START_TARGET_SECONDS, unit=" s", bound="none")
        with machine.server(Path(folder) / "first", endpoint.address) as server:
            yield at_most("idle PSS, no built-in model", server.pss_bytes() / _MIB, PSS_TARGET_MIB, unit=" MiB", bound="none")
            count = int(scale.repetitions * _REQUESTS_PER_REPETITION)
            await _use(server.address, count)
            yield information(f"PSS after {count} requests", f"{server.pss_bytes() / _MIB:.3g} MiB")


async def _use(address: str, count: int) -> None:
    connection = await connect(address)
    thread = (await connection.ask(request("POST", "/v1/threads", {})))["id"]
    for _ in range(count // 2):
        await connection.ask(request("POST", f"/v1/threads/{thread}/messages", {"role": "user", "content": "Hello"}))
        await connection.ask(request("GET", f"/v1/threads/{thread}/messages"))
    connection.close()

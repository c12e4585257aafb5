"""What a run adds to the model's own time: the scripted endpoint through the server against the same endpoint asked directly."""

import tempfile
from collections.abc import AsyncIterator
from pathlib import Path

from bench import machine
from bench.report import Row, at_most, information, percentile
from bench.runs import chat_request, run_request, streamed_seconds
from bench.scale import Scale

TARGET_MS = 3.0
_WARM_UP = 10


async def rows(scale: Scale) -> AsyncIterator[Row]:
    """The overhead, and the CPU of a run."""
    with (
        tempfile.TemporaryDirectory() as folder,
        machine.scripted_endpoint() as endpoint,
        machine.server(Path(folder), endpoint.address) as server,
    ):
        run, direct = await run_request(server.address, "scripted"), chat_request("scripted")
        for _ in range(_WARM_UP):
            await streamed_seconds(server.address, run)
        through: list[float] = []
        alone: list[float] = []
        cpu_seconds = server.cpu_seconds()
        for _ in range(scale.repetitions):
            alone.append(await streamed_seconds(endpoint.address, direct) * 1000)
            through.append(await streamed_seconds(server.address, run) * 1000)
        cpu_ms = (server.cpu_seconds() - cpu_seconds) / scale.repetitions * 1000
        fsync_ms = machine.fsync_ms(Path(folder))
    through.sort()
    alone.sort()
    model_ms = percentile(alone, 0.5)
    bound = f"the model alone {model_ms:.2f} ms"
    yield at_most("run overhead, p50", percentile(through, 0.5) - model_ms, TARGET_MS, unit=" ms", bound=bound)
    yield information("run overhead, p99", f"{percentile(through, 0.99) - model_ms:.3g} ms", bound)
    yield information("CPU of a streamed run", f"{cpu_ms:.2f} ms", f"4 commits; fsync {fsync_ms:.2f} ms")

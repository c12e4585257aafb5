"""A replica without workers and 1, 2 or 4 workers around one PostgreSQL: what a run costs, how long its events take, how many are carried.

Rounds go through all numbers of workers in turn: whatever else the machine does, it does to each of them. A replica, the workers and
PostgreSQL have all cores, and the endpoint and the client are beside them.
"""

import asyncio
import contextlib
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import NamedTuple

from bench import machine
from bench.client import open_stream
from bench.endpoint import TOKENS_PER_SECOND
from bench.machine import Postgres, Process
from bench.report import Row, at_most, information, median, percentile
from bench.runs import OPEN_TIMEOUT_SECONDS, chat_request, run_request, streamed_seconds
from bench.scale import Scale

OVERHEAD_TARGET_MS = 20.0
GROWTH_TARGET = 1.2
WORKERS = (1, 2, 4)
_CLIENTS = 16
_CLIENTS_OF_WORKER = 4
_CLIENTS_SATURATING = 32
_TOKENS = 50
_WARM_UP = 10
_WARM_UP_CLIENTS = 8


def environment(database_url: str, model_address: str) -> dict[str, str]:
    """What replicas and workers are told."""
    return {
        "MINI_ASSISTANT_DATABASE_URL": database_url,
        "MINI_ASSISTANT_WORKERS": "none",
        "MINI_ASSISTANT_SANDBOX": "none",
        "MINI_ASSISTANT_LOG_LEVEL": "error",
        "OPENAI_BASE_URL": f"{model_address}/v1",
        "OPENAI_API_KEY": "none",
    }


async def rows(scale: Scale) -> AsyncIterator[Row]:
    """The overhead of a run, its CPU and the delay of its events, and how many runs there can be."""
    with tempfile.TemporaryDirectory() as folder, machine.postgres() as database:
        async for row in _overhead(Path(folder), database, scale):
            yield row
        async for row in _by_workers(Path(folder), database, scale):
            yield row


# ---- one run at a time -----------------------------------------------------------------------------------------------------------


async def _overhead(folder: Path, database: Postgres, scale: Scale) -> AsyncIterator[Row]:
    with machine.scripted_endpoint() as endpoint:
        told = environment(database.url, endpoint.address)
        with machine.replica(folder, told) as replica, machine.worker(folder, told):
            run, direct = await run_request(replica.address, "scripted"), chat_request("scripted")
            for _ in range(_WARM_UP):
                await streamed_seconds(replica.address, run)
            through: list[float] = []
            alone: list[float] = []
            for _ in range(scale.repetitions // 2):
                alone.append(await _whole_ms(endpoint.address, direct))
                through.append(await _whole_ms(replica.address, run))
    through.sort()
    alone.sort()
    model_ms = percentile(alone, 0.5)
    bound = f"the model alone {model_ms:.2f} ms"
    yield at_most("cluster: run overhead, p50", percentile(through, 0.5) - model_ms, OVERHEAD_TARGET_MS, unit=" ms", bound=bound)
    yield information("cluster: run overhead, p99", f"{percentile(through, 0.99) - model_ms:.3g} ms", bound)


async def _whole_ms(address: str, data: bytes) -> float:
    """From before the connection to the end of the stream: an endpoint may have answered before its client hears of the connection."""
    began = time.perf_counter()
    await streamed_seconds(address, data)
    return (time.perf_counter() - began) * 1000


# ---- many at a time --------------------------------------------------------------------------------------------------------------


class _Load(NamedTuple):
    """What some runs took, in seconds for a run: CPU of each part. delays_ms: of tokens, from the endpoint to the client."""

    runs_per_second: float
    replica: float
    workers: float
    postgres: float
    around: float
    delays_ms: list[int]

    @property
    def ours(self) -> float:
        return self.replica + self.workers


class _Loads(dict[int, list[_Load]]):
    """The rounds of a load by the number of workers."""

    def __init__(self) -> None:
        super().__init__({count: [] for count in WORKERS})


class _Parts(NamedTuple):
    """The processes of a cluster and what is beside it."""

    replica: Process
    workers: list[Process]
    database: Postgres
    endpoint: Process

    def cpu_seconds(self) -> tuple[float, float, float, float]:
        """Of the replica, the workers, PostgreSQL, and the endpoint with the client."""
        workers = sum(worker.cpu_seconds() for worker in self.workers)
        around = self.endpoint.cpu_seconds() + time.process_time()
        return self.replica.cpu_seconds(), workers, self.database.cpu_seconds(), around


async def _by_workers(folder: Path, database: Postgres, scale: Scale) -> AsyncIterator[Row]:
    steady, grown, full = _Loads(), _Loads(), _Loads()
    bare: dict[int, list[float]] = {count: [] for count in WORKERS}
    bare_delays_ms: list[int] = []
    with machine.paced_endpoint() as endpoint:
        told = environment(database.url, endpoint.address)
        with machine.replica(folder, told) as replica:
            paced = await run_request(replica.address, f"paced-{_TOKENS}")
            burst = await run_request(replica.address, f"burst-{_TOKENS}")
            each = max(1, round(4 * scale.round_seconds))
            for _ in range(max(1, scale.rounds // 3)):
                for count in WORKERS:
                    with _workers(folder, told, count) as workers:
                        parts = _Parts(replica, workers, database, endpoint)
                        await _delays_ms([replica.address], burst, _WARM_UP_CLIENTS * count, 2)
                        steady[count].append(await _loaded(parts, paced, _CLIENTS, each))
                        grown[count].append(await _loaded(parts, paced, _CLIENTS_OF_WORKER * count, each))
                        full[count].append(await _loaded(parts, burst, _CLIENTS_SATURATING, 4 * each))
                    with _bare_relays(endpoint, count) as relays:
                        began = sum(relay.cpu_seconds() for relay in relays)
                        chat = chat_request(f"paced-{_TOKENS}")
                        bare_delays_ms += await _delays_ms([relay.address for relay in relays], chat, _CLIENTS, each)
                        bare[count].append(sum(relay.cpu_seconds() for relay in relays) - began)
    told_rows = [
        *_cost_rows(steady, f"{_CLIENTS} runs", bare),
        *_cost_rows(grown, f"{_CLIENTS_OF_WORKER} each", {}),
        *_delay_rows(steady, sorted(bare_delays_ms)),
        *_full_rows(full),
    ]
    for row in told_rows:
        yield row


@contextlib.contextmanager
def _workers(folder: Path, told: dict[str, str], count: int) -> Iterator[list[Process]]:
    with contextlib.ExitStack() as stack:
        yield [stack.enter_context(machine.worker(folder, told)) for _ in range(count)]


@contextlib.contextmanager
def _bare_relays(endpoint: Process, count: int) -> Iterator[list[Process]]:
    with contextlib.ExitStack() as stack:
        yield [stack.enter_context(machine.bare_relay(endpoint.address, on_all_cores=True)) for _ in range(count)]


async def _loaded(parts: _Parts, data: bytes, clients: int, each: int) -> _Load:
    began, before = time.perf_counter(), parts.cpu_seconds()
    delays_ms = await _delays_ms([parts.replica.address], data, clients, each)
    seconds, after, runs = time.perf_counter() - began, parts.cpu_seconds(), clients * each
    return _Load(runs / seconds, *((late - early) / runs for early, late in zip(before, after, strict=True)), delays_ms)


async def _delays_ms(addresses: list[str], data: bytes, clients: int, each: int) -> list[int]:
    """Let clients stream one run after the other; returns how late tokens were, sorted. Raises RuntimeError when tokens are missing."""
    delays_ms: list[int] = []
    tokens = 0

    async def stream(number: int) -> None:
        nonlocal tokens
        # They begin spread over the time of a run, as independent clients would.
        await asyncio.sleep(number / clients * _TOKENS / TOKENS_PER_SECOND)
        for _ in range(each):
            reader = await open_stream(addresses[number % len(addresses)], data)
            await reader.ended
            reader.close()
            delays_ms.extend(reader.delays_ms)
            tokens += reader.tokens

    async with asyncio.timeout(OPEN_TIMEOUT_SECONDS), asyncio.TaskGroup() as group:
        for number in range(clients):
            group.create_task(stream(number))
    if tokens < clients * each * _TOKENS:
        raise RuntimeError(f"{tokens} tokens came of {clients * each * _TOKENS}")
    return sorted(delays_ms)


# ---- what is told of it ----------------------------------------------------------------------------------------------------------


def _cost_rows(by_workers: _Loads, load_named: str, bare: dict[int, list[float]]) -> list[Row]:
    """bare: CPU of as many bare relays as workers under the same load, which grows because smaller processes wake up as often."""
    single, told = by_workers[WORKERS[0]], []
    for count, loads in by_workers.items():
        what = f"cluster: CPU of a run, {load_named}, {_named(count)}"
        ours, theirs = median(load.ours for load in loads) * 1000, median(load.postgres for load in loads) * 1000
        parts = " + ".join(f"{median(values) * 1000:.1f}" for values in zip(*((load.replica, load.workers) for load in loads), strict=True))
        if count == WORKERS[0]:
            told.append(information(what, f"{ours:.1f} ms", f"{_TOKENS} tokens at {TOKENS_PER_SECOND}/s"))
        else:
            growth = median(load.ours / least.ours for load, least in zip(loads, single, strict=True))
            least_ms = median(load.ours for load in single) * 1000
            bound, note = f"1 worker {least_ms:.1f} ms", f" ({ours:.1f} ms)"
            if bare:
                least_growth = median(a / b for a, b in zip(bare[count], bare[WORKERS[0]], strict=True))
                bound, note = f"{bound}; bare relays {least_growth:.2f} x", f" of theirs ({growth:.2f} x, {ours:.1f} ms)"
                growth /= least_growth
            told.append(at_most(what, growth, GROWTH_TARGET, unit=" x", note=note, bound=bound))
        told.append(information("  replica + workers; PostgreSQL", f"{parts} ms; {theirs:.1f} ms", _around(loads)))
    return told


def _delay_rows(steady: _Loads, least_ms: list[int]) -> list[Row]:
    bound = f"bare relay {percentile(least_ms, 0.5)} / {percentile(least_ms, 0.99)} ms"
    told = []
    for count, loads in steady.items():
        delays_ms = sorted(delay for load in loads for delay in load.delays_ms)
        shown = f"{percentile(delays_ms, 0.5)} / {percentile(delays_ms, 0.99)} ms"
        told.append(information(f"cluster: token delay p50/p99, {_named(count)}", shown, bound))
    return told


def _full_rows(full: _Loads) -> list[Row]:
    told = []
    for count, loads in full.items():
        per_second = median(load.runs_per_second for load in loads)
        shown = f"{per_second:.0f} runs/s, {per_second * _TOKENS:,.0f} tokens/s"
        costs = " + ".join(f"{median(values) * 1000:.1f}" for values in zip(*(load[1:4] for load in loads), strict=True))
        told.append(information(f"cluster: as fast as it can, {_named(count)}", shown, f"{costs} ms CPU a run"))
    return told


def _around(loads: list[_Load]) -> str:
    return f"client and endpoint {median(load.around for load in loads) * 1000:.1f} ms"


def _named(workers: int) -> str:
    return "1 worker" if workers == 1 else f"{workers} workers"

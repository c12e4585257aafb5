"""Requests a second of the server against a bare ASGI function on the same kind of store, in turns."""

import tempfile
from collections.abc import AsyncIterator
from pathlib import Path
from typing import NamedTuple

from bench import machine
from bench.client import connect, load, request
from bench.machine import Process
from bench.report import Row, at_least, median
from bench.scale import Scale

CONNECTIONS = 32
MESSAGES_PER_THREAD = 21
# Short turns: what else the machine does at the moment should be the same for both.
TURNS_PER_ROUND = 4
_TEXT = "What is the height of the tower, and since when has it stood there? Please answer in one sentence."
_MESSAGE = {"role": "user", "content": _TEXT}


class _Kind(NamedTuple):
    name: str
    target: float


_KINDS = (_Kind("POST message", 0.65), _Kind("GET message", 0.80), _Kind("list 20 messages", 0.80))


class _Turns(NamedTuple):
    """Figures of one kind of request, one entry a round."""

    per_second: list[float]
    cpu_us: list[float]


async def rows(scale: Scale) -> AsyncIterator[Row]:
    """One row for each kind of request."""
    with (
        tempfile.TemporaryDirectory() as folder,
        machine.paced_endpoint() as endpoint,
        machine.server(Path(folder), endpoint.address) as server,
        machine.bare_app(Path(folder)) as bare,
    ):
        requests = {process: await _requests(process.address) for process in (server, bare)}
        for place, kind in enumerate(_KINDS):
            yield await _compared(server, bare, {process: made[place] for process, made in requests.items()}, kind, scale)


async def _requests(address: str) -> list[list[bytes]]:
    """For each kind, a request a connection. Each connection has a thread of its own."""
    connection = await connect(address)
    threads: list[tuple[str, str]] = []
    for _ in range(CONNECTIONS):
        thread = (await connection.ask(request("POST", "/v1/threads", {})))["id"]
        for _ in range(MESSAGES_PER_THREAD):
            message = (await connection.ask(request("POST", f"/v1/threads/{thread}/messages", _MESSAGE)))["id"]
        threads.append((thread, message))
    connection.close()
    return [
        [request("POST", f"/v1/threads/{thread}/messages", _MESSAGE) for thread, _ in threads],
        [request("GET", f"/v1/threads/{thread}/messages/{message}") for thread, message in threads],
        [request("GET", f"/v1/threads/{thread}/messages") for thread, _ in threads],
    ]


async def _compared(server: Process, bare: Process, requests: dict[Process, list[bytes]], kind: _Kind, scale: Scale) -> Row:
    turns = {process: _Turns([], []) for process in (server, bare)}
    for place in range(scale.rounds * TURNS_PER_ROUND):
        for process in (server, bare) if place % 2 else (bare, server):
            cpu_seconds = process.cpu_seconds()
            done = await load(process.address, requests[process], scale.round_seconds / TURNS_PER_ROUND)
            turns[process].per_second.append(done.per_second)
            turns[process].cpu_us.append((process.cpu_seconds() - cpu_seconds) / done.answers * 1e6)
    ratio = median(ours / least for ours, least in zip(turns[server].per_second, turns[bare].per_second, strict=True))
    return at_least(kind.name, ratio, kind.target, measured=_told(turns[server]), bound=_told(turns[bare]))


def _told(turns: _Turns) -> str:
    return f"{median(turns.per_second):,.0f}/s, {median(turns.cpu_us):.0f} us CPU"

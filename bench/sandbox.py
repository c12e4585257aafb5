"""Sessions of the sandboxes that are prepared here: how fast they start and answer, and what they cost.

A call is compared with the least that code in another process takes: a bare Python that reads a line from a pipe, executes it and writes
a line. Sessions may use every core, as they may beside a server.
"""

import asyncio
import contextlib
import os
import sys
import tempfile
import time
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator
from pathlib import Path
from typing import NamedTuple

from bench import machine
from bench.report import Row, at_most, information, median, percentile
from bench.scale import QUICK, Scale
from mini_assistant.errors import SandboxUnavailable
from mini_assistant.sandboxes.base import Output, Sandbox, SandboxSession
from mini_assistant.sandboxes.process import ProcessSandbox
from mini_assistant.sandboxes.wasm import WasmSandbox
from mini_assistant.settings import Settings
from mini_assistant.tools.sandbox_sessions import SandboxSessions

START_TARGET_MS = 50.0
_CALL_TARGETS_MS = {"process": 5.0, "wasm": 20.0}
_SESSIONS = 20
_QUICK_SESSIONS = 2
_STARTS_MAX = 5
_POOL_TIMEOUT_SECONDS = 300
_REASON_CHARACTERS_MAX = 100
_MIB = 1024 * 1024

_NOTHING = "1 + 1"
_JOB = """
import numpy
import pandas
table = pandas.DataFrame({"key": numpy.arange(400_000) % 97, "value": numpy.arange(400_000) * 0.5})
print(table.groupby("key")["value"].agg(["sum", "mean", "std"]).sort_values("sum").head())
"""
_BARE_PYTHON = """
import sys
names = {}
for line in sys.stdin.buffer:
    exec(line.decode(), names)
    sys.stdout.buffer.write(b"done\\n")
    sys.stdout.buffer.flush()
"""


async def rows(scale: Scale) -> AsyncIterator[Row]:
    """The same rows for each local sandbox; one row with the reason for a sandbox that does not work here."""
    with tempfile.TemporaryDirectory() as folder, machine.every_core():
        settings = Settings(data_dir=Path(folder), sandbox_sessions_max=_SESSIONS, sandbox_pool_sessions=min(scale.rounds, _STARTS_MAX))
        for sandbox in (ProcessSandbox(settings), WasmSandbox(settings)):
            try:
                await sandbox.check()
                async for row in _rows_of_sandbox(sandbox, settings, scale):
                    yield row
            except SandboxUnavailable as exc:
                yield information(f"sandbox {sandbox.name}", "not here", " ".join(exc.message.split())[:_REASON_CHARACTERS_MAX])
            finally:
                await sandbox.close()


async def _rows_of_sandbox(sandbox: Sandbox, settings: Settings, scale: Scale) -> AsyncIterator[Row]:
    name = f"sandbox {sandbox.name}"
    cold = await _cold_starts(sandbox, settings.sandbox_pool_sessions)
    pooled = await _pooled_starts(sandbox, settings)
    bound = f"{cold.first_call_ms:.0f} ms, a new session"
    yield at_most(f"{name}: start, warm pool", pooled.first_call_ms, START_TARGET_MS, unit=" ms", bound=bound)
    yield information(f"{name}: first pandas job", f"{pooled.job_ms:.0f} ms", f"{cold.job_ms:.0f} ms, a new session")
    yield await _calls(sandbox, scale)
    count = _QUICK_SESSIONS if scale == QUICK else _SESSIONS
    async for row in _crowd(sandbox, count):
        yield row


async def _run(session: SandboxSession, code: str) -> float:
    """Milliseconds of a call. Raises RuntimeError when the code fails."""
    outputs: list[Output] = []
    began = time.perf_counter()
    execution = await session.execute(code, outputs.append)
    took_ms = (time.perf_counter() - began) * 1e3
    if execution.outcome != "ok":
        raise RuntimeError(f"the code ended as {execution.outcome}: {execution.detail} {outputs[-1:]}")
    return took_ms


# ---- starts


class _Starts(NamedTuple):
    """Medians from the wish for a session to the end of its first call, and of a pandas job behind it."""

    first_call_ms: float
    job_ms: float


async def _cold_starts(sandbox: Sandbox, count: int) -> _Starts:
    firsts: list[float] = []
    jobs: list[float] = []
    for _ in range(count):
        began = time.perf_counter()
        session = await sandbox.create_session()
        await _run(session, _NOTHING)
        firsts.append((time.perf_counter() - began) * 1e3)
        jobs.append(await _run(session, _JOB))
        await session.close()
    return _Starts(median(firsts), median(jobs))


class _CountedSandbox:
    """A sandbox that tells when sessions have been started. Closing it leaves the sandbox open."""

    def __init__(self, sandbox: Sandbox) -> None:
        self._sandbox = sandbox
        self._started = asyncio.Semaphore(0)
        self.name = sandbox.name

    async def check(self) -> str:
        return await self._sandbox.check()

    async def create_session(self, *, is_warm: bool = False) -> SandboxSession:
        session = await self._sandbox.create_session(is_warm=is_warm)
        self._started.release()
        return session

    async def wait(self, count: int) -> None:
        """Until so many more sessions have been started."""
        async with asyncio.timeout(_POOL_TIMEOUT_SECONDS):
            for _ in range(count):
                await self._started.acquire()

    async def close(self) -> None:
        pass


async def _pooled_starts(sandbox: Sandbox, settings: Settings) -> _Starts:
    """As runs have it: threads take their sessions out of a full pool, which is filled again in the background."""
    counted = _CountedSandbox(sandbox)
    sessions = SandboxSessions(counted, settings)
    firsts: list[float] = []
    jobs: list[float] = []
    try:
        sessions.expect()
        await counted.wait(settings.sandbox_pool_sessions)
        for number in range(settings.sandbox_pool_sessions):
            began = time.perf_counter()
            async with sessions.use("bench", f"thread-{number}") as kept:
                await _run(kept.session, _NOTHING)
                firsts.append((time.perf_counter() - began) * 1e3)
                await counted.wait(1)  # so that nothing else runs beside the job and the next start
                jobs.append(await _run(kept.session, _JOB))
    finally:
        await sessions.close()
    return _Starts(median(firsts), median(jobs))


# ---- calls


async def _calls(sandbox: Sandbox, scale: Scale) -> Row:
    """What a call takes more than it takes a bare Python, in turns."""
    ours: list[float] = []
    bare: list[float] = []
    session = await sandbox.create_session()
    async with _bare_python() as python:
        await _run(session, _NOTHING)
        await _run_bare(python)
        for _ in range(scale.repetitions):
            ours.append(await _run(session, _NOTHING))
            bare.append(await _run_bare(python))
    await session.close()
    p50, bare_p50 = percentile(sorted(ours), 0.5), percentile(sorted(bare), 0.5)
    note = f" (p99 {percentile(sorted(ours), 0.99):.2f})"
    bound = f"{bare_p50:.2f} ms, exec behind a pipe"
    return at_most(
        f"sandbox {sandbox.name}: call overhead", p50 - bare_p50, _CALL_TARGETS_MS[sandbox.name], unit=" ms", note=note, bound=bound
    )


@contextlib.asynccontextmanager
async def _bare_python() -> AsyncIterator[Process]:
    process = await asyncio.create_subprocess_exec(sys.executable, "-I", "-c", _BARE_PYTHON, stdin=PIPE, stdout=PIPE)
    try:
        yield process
    finally:
        process.kill()
        await process.wait()


async def _run_bare(python: Process) -> float:
    assert python.stdin is not None
    assert python.stdout is not None
    began = time.perf_counter()
    python.stdin.write(_NOTHING.encode() + b"\n")
    await python.stdout.readline()
    return (time.perf_counter() - began) * 1e3


# ---- many sessions


async def _crowd(sandbox: Sandbox, count: int) -> AsyncIterator[Row]:
    """Memory of sessions that do nothing, and many that work at a time against one after the other."""
    name = f"sandbox {sandbox.name}"
    bare, bare_mib = await _idle_sessions(sandbox, count, is_warm=False)
    await asyncio.gather(*(session.close() for session in bare))
    sessions, warm_mib = await _idle_sessions(sandbox, count, is_warm=True)
    try:
        measured = f"{warm_mib:.0f} MiB with pandas, {bare_mib:.0f} without"
        yield information(f"{name}: memory of an idle session", measured, f"PSS, {len(sessions)} sessions")
        await asyncio.gather(*(_run(session, _JOB) for session in sessions))  # the first job of each loads what is left
        one_by_one = [await _run(session, _JOB) for session in sessions]
        began = time.perf_counter()
        await asyncio.gather(*(_run(session, _JOB) for session in sessions))
        together_ms = (time.perf_counter() - began) * 1e3
        share = together_ms / sum(one_by_one)
        cores = len(os.sched_getaffinity(0))
        measured = f"{together_ms / 1e3:.2f} s, {share:.0%} of one by one"
        yield information(f"{name}: {len(sessions)} sessions, {cores} cores", measured, f"{sum(one_by_one) / 1e3:.2f} s, one by one")
    finally:
        await asyncio.gather(*(session.close() for session in sessions))


async def _idle_sessions(sandbox: Sandbox, count: int, *, is_warm: bool) -> tuple[list[SandboxSession], float]:
    """Fresh sessions, and the memory of one of them in MiB."""
    before = _pss_bytes(os.getpid())
    sessions: list[SandboxSession] = []
    for _ in range(0, count, 2):
        sessions += await asyncio.gather(*(sandbox.create_session(is_warm=is_warm) for _ in range(2)))
    return sessions, (_pss_bytes(os.getpid()) - before) / len(sessions) / _MIB


def _pss_bytes(pid: int) -> int:
    """The share of memory of all processes that come from this one."""
    try:
        children = [int(child) for task in Path(f"/proc/{pid}/task").iterdir() for child in (task / "children").read_text().split()]
        return sum(_own_pss_bytes(child) + _pss_bytes(child) for child in children)
    except (FileNotFoundError, ProcessLookupError):  # it has ended just now
        return 0


def _own_pss_bytes(pid: int) -> int:
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("Pss:")) * 1024

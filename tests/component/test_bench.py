"""The benchmarks run from end to end. Their figures are not looked at: a test machine is too busy for that."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

QUICK_TIMEOUT_SECONDS = 300
ROWS = [
    "POST message",
    "GET message",
    "list 20 messages",
    "who asks, 1,000 keys",
    "auth and limit, 1,000 requests/s",
    "neighbour at 10 x its limit, p50",
    "neighbour at 10 x its limit, p99",
    "store: insert",
    "store: get",
    "relay a token, 10 runs at 50/s",
    "relay a token, 4000 at once",
    "run overhead, p50",
    "run overhead, p99",
    "CPU of a streamed run",
    "metrics: counting a request",
    "metrics: CPU of a scrape",
    "GET p50 beside 10 runs at 50/s",
    "streaming runs at 50 tokens/s, one core",
    "start-up CPU, existing database",
    "start-up CPU, new database",
    "idle PSS, no built-in model",
    "PSS after 75 requests",
    "64 MB upload, growth of memory",
    "64 MB download, growth of memory",
    "index: 4,000 passages, dense",
    "index: 4,000 passages, hybrid + filter",
    "index: 50 stores of 10 passages",
    "ingest: text files",
    "parse a large PDF",
    "parse a small file, first / next",
    "sandbox process",
    "sandbox wasm",
    "tool calls",
    "quality: cranfield",
    "quality: debian-faq",
    "quality: python-faq",
    "PostgreSQL: insert, 1 caller",
    "PostgreSQL: insert, 32 callers",
    "PostgreSQL: get, 1 caller",
    "PostgreSQL: get, 32 callers",
    "cluster: run overhead, p50",
    "cluster: run overhead, p99",
    "cluster: CPU of a run, 16 runs, 1 worker",
    "cluster: CPU of a run, 16 runs, 4 workers",
    "cluster: CPU of a run, 4 each, 2 workers",
    "cluster: token delay p50/p99, 4 workers",
    "cluster: as fast as it can, 4 workers",
    "recovery: worker killed, slowest of 1",
    "recovery: replica killed, next event",
    "recovery: PostgreSQL restarted, next run",
]

linux_only = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the benchmarks read /proc")


def run_bench(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "bench", *arguments]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True)
    try:
        stdout, stderr = process.communicate(timeout=QUICK_TIMEOUT_SECONDS)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)  # with the servers that it has started
            process.wait(10)
    return subprocess.CompletedProcess(command, process.returncode, stdout, stderr)


@linux_only
@pytest.mark.heavy
@pytest.mark.timeout(QUICK_TIMEOUT_SECONDS + 30)
def test_every_row_is_printed() -> None:
    done = run_bench("--quick")
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    for row in ROWS:
        assert any(line.startswith(row) for line in lines), f"no row '{row}' in:\n{done.stdout}"
    assert "Traceback" not in done.stderr


@linux_only
@pytest.mark.timeout(QUICK_TIMEOUT_SECONDS + 30)
def test_one_measurement_can_be_chosen() -> None:
    done = run_bench("--quick", "store")
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert [line.split("  ")[0] for line in lines[2:4]] == ["store: insert", "store: get"]
    assert "target" in lines[-1]


@linux_only
@pytest.mark.timeout(QUICK_TIMEOUT_SECONDS + 30)
def test_operations_on_postgresql_are_measured() -> None:
    done = run_bench("--quick", "postgres_store")
    assert done.returncode == 0, done.stderr
    assert [line.split("  ")[0] for line in done.stdout.splitlines()[2:6]] == [row for row in ROWS if row.startswith("PostgreSQL: ")]


@linux_only
def test_an_unknown_measurement_is_refused_with_the_known_ones() -> None:
    done = run_bench("relais")
    assert done.returncode == 2
    known = "crud, auth, limits, store, relay, overhead, metrics, load, footprint, files, parsing, ingest, index, sandbox, tool_calls, "
    known += "quality, postgres_store, cluster, recovery"
    assert f"unknown: relais; known: {known}" in done.stderr

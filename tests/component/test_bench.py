"""The benchmarks run from end to end. Their figures are not looked at: a test machine is too busy for that."""

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
    "store: insert",
    "store: get",
    "relay a token, 10 runs at 50/s",
    "relay a token, 4000 at once",
    "run overhead, p50",
    "run overhead, p99",
    "CPU of a streamed run",
    "GET p50 beside 10 runs at 50/s",
    "streaming runs at 50 tokens/s, one core",
    "start-up CPU, existing database",
    "start-up CPU, new database",
    "idle PSS, no built-in model",
    "PSS after 75 requests",
]

linux_only = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the benchmarks read /proc")


def run_bench(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "bench", *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=QUICK_TIMEOUT_SECONDS,
        check=False,
    )


@linux_only
@pytest.mark.heavy
@pytest.mark.timeout(QUICK_TIMEOUT_SECONDS)
def test_every_row_is_printed() -> None:
    done = run_bench("--quick")
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    for row in ROWS:
        assert any(line.startswith(row) for line in lines), f"no row '{row}' in:\n{done.stdout}"
    assert "Traceback" not in done.stderr


@linux_only
@pytest.mark.timeout(QUICK_TIMEOUT_SECONDS)
def test_one_measurement_can_be_chosen() -> None:
    done = run_bench("--quick", "store")
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert [line.split("  ")[0] for line in lines[2:4]] == ["store: insert", "store: get"]
    assert "target" in lines[-1]


@linux_only
def test_an_unknown_measurement_is_refused_with_the_known_ones() -> None:
    done = run_bench("relais")
    assert done.returncode == 2
    assert "unknown: relais; known: crud, store, relay, overhead, load, footprint" in done.stderr

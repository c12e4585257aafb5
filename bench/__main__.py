"""`python -m bench [ROW ...]`: measure this checkout against bounds that are measured in the same run."""

import argparse
import os
import platform
import sqlite3
import sys
import tempfile
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import uvloop

from bench import (
    auth,
    cluster,
    crud,
    files,
    footprint,
    index,
    ingest,
    limits,
    load,
    machine,
    metrics,
    overhead,
    parsing,
    postgres_store,
    quality,
    recovery,
    relay,
    sandbox,
    store,
    tool_calls,
)
from bench.report import Row, heading, line
from bench.scale import FULL, QUICK, Scale

MEASUREMENTS: dict[str, Callable[[Scale], AsyncIterator[Row]]] = {
    "crud": crud.rows,
    "auth": auth.rows,
    "limits": limits.rows,
    "store": store.rows,
    "relay": relay.rows,
    "overhead": overhead.rows,
    "metrics": metrics.rows,
    "load": load.rows,
    "footprint": footprint.rows,
    "files": files.rows,
    "parsing": parsing.rows,
    "ingest": ingest.rows,
    "index": index.rows,
    "sandbox": sandbox.rows,
    "tool_calls": tool_calls.rows,
    "quality": quality.rows,
    "postgres_store": postgres_store.rows,
    "cluster": cluster.rows,
    "recovery": recovery.rows,
}


def main() -> int:
    """Measure and print; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m bench", description="Measure this checkout against bounds of the same run.")
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"what to measure (all): {', '.join(MEASUREMENTS)}")
    parser.add_argument("--quick", action="store_true", help="two minutes instead of ten: shows that it works, its figures mean little")
    parser.add_argument("--strict", action="store_true", help="exit with 1 when a target is missed")
    options = parser.parse_args()
    unknown = [name for name in options.names if name not in MEASUREMENTS]
    if unknown:
        parser.error(f"unknown: {', '.join(unknown)}; known: {', '.join(MEASUREMENTS)}")
    if not sys.platform.startswith("linux"):
        parser.error("the benchmarks read /proc and pin processes to cores: they need Linux")
    os.sched_setaffinity(0, machine.other_cores())
    missed = uvloop.run(_measure(options.names or list(MEASUREMENTS), QUICK if options.quick else FULL))
    return 1 if missed and options.strict else 0


async def _measure(names: list[str], scale: Scale) -> int:
    """Print the rows as they come; returns how many targets were missed."""
    print(_facts())
    print(heading())
    missed = 0
    for name in names:
        async for row in MEASUREMENTS[name](scale):
            print(line(row), flush=True)
            missed += row.is_ok is False
    print(f"{missed} targets missed." if missed else "Every target was met.")
    return missed


def _facts() -> str:
    with tempfile.TemporaryDirectory() as folder:
        fsync_ms = machine.fsync_ms(Path(folder))
    parts = [
        f"Python {platform.python_version()}",
        f"SQLite {sqlite3.sqlite_version}",
        f"{len(machine.other_cores())} + 1 cores" if machine.server_core() not in machine.other_cores() else "1 core for everything",
        f"fsync {fsync_ms:.2f} ms",
    ]
    return ", ".join(parts)


if __name__ == "__main__":
    sys.exit(main())

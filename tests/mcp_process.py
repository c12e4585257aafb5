"""The MCP server of `tests/mcp_server.py` as a process."""

import contextlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]


@contextlib.contextmanager
def mcp_server_process(*options: str) -> Iterator[str]:
    """The server with options of its command line; gives its URL."""
    arguments = [sys.executable, "-m", "tests.mcp_server", *options]
    process = subprocess.Popen(arguments, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        yield process.stdout.readline().strip()
    finally:
        process.kill()
        process.communicate(timeout=10)

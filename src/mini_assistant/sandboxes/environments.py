"""The Python environments that sandboxes run: made by `mini-assistant sandbox prepare`, apart from the server's own.

Each is a virtual environment with the packages of a lock file of this package. It is made beside its place, marked with the lock when
everything is in it, and moved there last: what lies in its place is whole. Nothing here runs on a request.
"""

import contextlib
import hashlib
import os
import shutil
import subprocess
import sys
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path

from mini_assistant.errors import ConfigError

LOCKS = Path(__file__).parent / "requirements"
"""The folder of the lock files: one with exact versions and hashes for each environment."""

_STAMP = "mini-assistant-stamp"
_OUTPUT_LINES_KEPT = 15
_FONTS_TIMEOUT_SECONDS = 300


def prepare_process(folder: Path, tell: Callable[[str], None]) -> None:
    """Make the environment of the sandbox `process` in a folder of environments, unless it is there. tell: gets lines of progress.

    Raises ConfigError with what went wrong; an environment that was there before stays then.
    """
    make_environment(folder / "process", LOCKS / "process.lock", tell, find_fonts)


def prepared_python_or_none(folder: Path) -> Path | None:
    """The Python of the sandbox `process` in a folder of environments; None when there is none, or one of another lock file."""
    place = folder / "process"
    return place / "bin" / "python" if is_prepared(place, LOCKS / "process.lock") else None


def is_prepared(place: Path, lock: Path) -> bool:
    """Whether there is a whole environment with the packages of a lock file."""
    with contextlib.suppress(OSError):
        return (place / _STAMP).read_text(encoding="ascii") == _stamp(lock) and (place / "bin" / "python").exists()
    return False


def make_environment(place: Path, lock: Path, tell: Callable[[str], None], finish: Callable[[Path], None] | None = None) -> None:
    """Make a virtual environment with the packages of a lock file, unless it is there. One of another lock is replaced.

    tell: gets lines of progress. finish: called with the folder before it is taken for whole. Raises ConfigError with the last lines of
    what failed; what was in its place before stays then.
    """
    if is_prepared(place, lock):
        tell(f"{place} is ready.")
        return
    # Of its own, so that two that make the same one at a time do not mix.
    unfinished, replaced = (place.with_name(f"{place.name}.{kind}-{os.getpid()}") for kind in ("unfinished", "replaced"))
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        tell(f"Making a Python environment in {place}.")
        _run([sys.executable, "-m", "venv", str(unfinished)], tell)
        _install(unfinished, lock, tell)
        finish_environment(unfinished, lock, finish)
        if place.exists():
            place.rename(replaced)
        unfinished.rename(place)
    except OSError as exc:
        raise ConfigError(
            f"{place} cannot be made: {exc.strerror or exc}. Set sandbox_environments_dir to a folder that can be written."
        ) from exc
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
        shutil.rmtree(replaced, ignore_errors=True)
    tell(f"{place} is ready.")


def finish_environment(place: Path, lock: Path, finish: Callable[[Path], None] | None = None) -> None:
    """Take the environment in a folder for whole: all packages of the lock file are in it. Raises OSError, and what `finish` does."""
    if finish is not None:
        finish(place)
    (place / _STAMP).write_text(_stamp(lock), encoding="ascii")


def find_fonts(place: Path) -> None:
    """Let matplotlib look for fonts once, and keep what it finds in the environment: it takes seconds. Raises ConfigError."""
    cache = place / "matplotlib"
    shutil.rmtree(cache, ignore_errors=True)
    cache.mkdir()
    # Without the fonts of the user who prepares it: the sandbox does not have them.
    environment = {"PATH": os.defpath, "HOME": str(cache), "MPLCONFIGDIR": str(cache)}
    command = [str(place / "bin" / "python"), "-I", "-c", "import matplotlib.font_manager"]
    try:
        subprocess.run(command, env=environment, check=True, capture_output=True, timeout=_FONTS_TIMEOUT_SECONDS)  # noqa: S603
    except subprocess.CalledProcessError as exc:
        raise ConfigError(f"matplotlib does not work in {place}: {exc.stderr.decode(errors='replace')[-500:]}") from exc
    except subprocess.TimeoutExpired as exc:
        raise ConfigError(f"matplotlib takes too long to find fonts in {place}.") from exc


def _install(place: Path, lock: Path, tell: Callable[[str], None]) -> None:
    pip = [str(place / "bin" / "python"), "-m", "pip", "--disable-pip-version-check", "--no-input"]
    options = ["--require-hashes", "--only-binary", ":all:", "--no-deps", "--progress-bar", "off"]
    _run([*pip, "install", *options, "--requirement", str(lock)], tell)


def _run(command: Sequence[str], tell: Callable[[str], None]) -> None:
    """Run a command and tell its output. Raises ConfigError with the end of it when the command fails."""
    kept: deque[str] = deque(maxlen=_OUTPUT_LINES_KEPT)
    # With the environment of who prepares: it may say where packages come from.
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace") as process:  # noqa: S603
        assert process.stdout is not None
        for line in process.stdout:
            kept.append(line.rstrip())
            tell(line.rstrip())
    if process.returncode != 0:
        raise ConfigError(f"Preparing the sandbox failed, and nothing was changed. {' '.join(command[:3])} said:\n" + "\n".join(kept))


def _stamp(lock: Path) -> str:
    return hashlib.sha256(lock.read_bytes()).hexdigest()

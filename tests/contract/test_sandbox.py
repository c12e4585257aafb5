"""What every sandbox behind `sandboxes/base.Sandbox` has to hold; `sandbox_backends.py` names the known differences.

Here code is clumsy, and hostile to its own session. That nothing of it reaches the host is shown by tests/attacks.
"""

import asyncio
import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from pathlib import Path
from textwrap import dedent
from typing import Any, NamedTuple

import pytest

from mini_assistant.app import build_sandbox
from mini_assistant.errors import SandboxFileMissing, SandboxFull, SandboxUnavailable
from mini_assistant.sandboxes import agent_session
from mini_assistant.sandboxes.base import Execution, Image, Logs, Output, Sandbox, SandboxSession
from mini_assistant.settings import Settings
from tests.contract.sandbox_backends import BACKENDS, WITH_SERVICES, Backend, reason_to_skip, running_backend

KERNEL_MARKS = [pytest.mark.heavy, pytest.mark.xdist_group("kernels")]
MEGABYTE = 1024 * 1024
LIMITS: dict[str, Any] = {
    "sandbox_call_timeout_seconds": 60.0,
    "sandbox_memory_bytes_max": 512 * MEGABYTE,
    "sandbox_disk_bytes_max": 16 * MEGABYTE,
    "sandbox_files_max": 60,
    "sandbox_log_bytes_max": 64 * 1024,
    "sandbox_image_bytes_max": 256 * 1024,
    "sandbox_images_max": 3,
}
MakeSandbox = Callable[..., Sandbox]


class Ran(NamedTuple):
    """What came of a call. outputs: pieces of logs that follow each other are one."""

    execution: Execution
    outputs: list[Output]

    @property
    def text(self) -> str:
        return "".join(output.text for output in self.outputs if isinstance(output, Logs))

    @property
    def images(self) -> list[bytes]:
        return [output.data for output in self.outputs if isinstance(output, Image)]

    @property
    def outcome(self) -> str:
        return self.execution.outcome


@pytest.fixture(autouse=True)
def little_patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """What takes no heed of an interrupt is killed sooner than in service."""
    monkeypatch.setattr(agent_session, "INTERRUPT_GRACE_SECONDS", 0.5)


@pytest.fixture(
    scope="module",
    # Kernels answer slowly: what matters most of them is in tests/component too.
    params=[pytest.param(name, marks=KERNEL_MARKS if name in WITH_SERVICES else ()) for name in BACKENDS],
)
def backend(request: pytest.FixtureRequest) -> Backend:
    if reason := reason_to_skip(request.param):
        pytest.skip(reason)
    return BACKENDS[request.param]


@pytest.fixture(scope="module")
def backend_settings(backend: Backend) -> Iterator[Mapping[str, Any]]:
    with running_backend(backend.name) as settings:
        yield settings


@pytest.fixture
def known_differences(backend: Backend, request: pytest.FixtureRequest) -> None:
    whole = request.node.name.replace(f"[{backend.name}]", "").replace(f"[{backend.name}-", "[").replace(f"-{backend.name}]", "]")
    for name in (request.node.originalname, whole):
        if name in backend.differences:
            pytest.skip(f"known difference of {backend.name}: {backend.differences[name]}")


@pytest.fixture
async def make_sandbox(backend_settings: Mapping[str, Any], known_differences: None, tmp_path: Path) -> AsyncIterator[MakeSandbox]:
    made: list[Sandbox] = []

    def make(**changes: Any) -> Sandbox:
        made.append(build_sandbox(Settings(data_dir=tmp_path / "data", **{**LIMITS, **backend_settings, **changes})))
        return made[-1]

    yield make
    for sandbox in made:
        await sandbox.close()


@pytest.fixture
async def session(make_sandbox: MakeSandbox) -> AsyncIterator[SandboxSession]:
    session = await make_sandbox().create_session()
    yield session
    await session.close()


@pytest.fixture
async def impatient(make_sandbox: MakeSandbox) -> AsyncIterator[SandboxSession]:
    """A session whose calls may take a second."""
    session = await make_sandbox(sandbox_call_timeout_seconds=1.0).create_session()
    yield session
    await session.close()


async def ran(session: SandboxSession, code: str) -> Ran:
    outputs: list[Output] = []

    def add(output: Output) -> None:
        if isinstance(output, Logs):
            assert output.text
            if outputs and isinstance(last := outputs[-1], Logs):
                outputs[-1] = Logs(last.text + output.text)
                return
        outputs.append(output)

    return Ran(await session.execute(dedent(code), add), outputs)


async def said(session: SandboxSession, code: str) -> str:
    """What code that ends well puts out."""
    result = await ran(session, code)
    assert result.outcome == "ok", result
    return result.text


async def pieces_of(*pieces: bytes) -> AsyncIterator[bytes]:
    for piece in pieces:
        yield piece


async def content_of(session: SandboxSession, name: str) -> bytes:
    return b"".join([piece async for piece in session.read_file(name)])


async def names_in(session: SandboxSession) -> list[str]:
    return [file.name for file in await session.list_files()]


def is_png(data: bytes) -> bool:
    return data.startswith(b"\x89PNG\r\n\x1a\n") and b"IEND" in data[-12:]


# ---- code and what it puts out -----------------------------------------------------------------------------------------------------


async def test_the_check_says_what_it_is(make_sandbox: MakeSandbox, backend: Backend) -> None:
    sandbox = make_sandbox()

    assert await sandbox.check()
    assert sandbox.name == backend.name


async def test_variables_imports_and_functions_are_kept(session: SandboxSession) -> None:
    assert await said(session, "import math\nx = 2\ndef f(y):\n    return x * y") == ""
    assert await said(session, "x += 1\nprint(f(5), math.floor(2.5), __name__)") == "15 2 __main__\n"


@pytest.mark.parametrize(
    ("code", "shown"),
    [
        ("1 + 1", "2\n"),
        ("x = 1\n'a' * 3", "'aaa'\n"),
        ("None", ""),
        ("x = 1", ""),
        ("print(1)", "1\n"),
        ("1 + 1;", ""),
        ("if True:\n    7", ""),
        ("", ""),
        ("   \n# nothing\n", ""),
        ("'é€𝄞'", "'é€𝄞'\n"),
        ("a = 1\r\na + 1\r\n", "2\n"),
    ],
)
async def test_a_bare_last_expression_is_shown(session: SandboxSession, code: str, shown: str) -> None:
    assert await said(session, code) == shown


async def test_output_and_errors_keep_their_order(session: SandboxSession) -> None:
    code = """
    import sys
    for number in range(200):
        print(number, "out")
        print(number, "err", file=sys.stderr)
    """
    assert await said(session, code) == "".join(f"{number} out\n{number} err\n" for number in range(200))


async def test_programs_that_code_starts_write_in_order(session: SandboxSession) -> None:
    code = """
    import subprocess, sys
    print("before")
    subprocess.run([sys.executable, "-c", "print('inside')"])
    print("after")
    """
    assert await said(session, code) == "before\ninside\nafter\n"


async def test_output_comes_while_code_runs(session: SandboxSession) -> None:
    printed = ""
    began = asyncio.Event()

    def on_output(output: Output) -> None:
        nonlocal printed
        assert isinstance(output, Logs)
        printed += output.text  # a kernel may send a line and its end one after the other
        if printed == "begun\n":
            began.set()

    running = asyncio.create_task(session.execute("import time\nprint('begun')\ntime.sleep(30)", on_output))
    await asyncio.wait_for(began.wait(), 10)
    assert not running.done()
    await session.interrupt()

    assert (await running).outcome == "cancelled"


async def test_a_traceback_shows_the_code_and_nothing_else(session: SandboxSession) -> None:
    result = await ran(
        session,
        """
        def divide(x):
            return 1 / x

        import json
        try:
            json.loads("{")
        except ValueError:
            divide(0)
        """,
    )

    assert result.outcome == "error"
    assert "return 1 / x" in result.text
    assert "divide(0)" in result.text
    assert "JSONDecodeError" in result.text
    assert result.text.rstrip().endswith("ZeroDivisionError: division by zero")
    assert result.execution.is_lost is False
    for trace in ("agent", "site-packages", "/usr", str(Path(sys.prefix)), "exec("):
        assert trace not in result.text
    assert await said(session, "1") == "1\n"


async def test_a_syntax_error_shows_the_line(session: SandboxSession) -> None:
    result = await ran(session, "x = 1\nif x = 2:\n    pass")

    assert result.outcome == "error"
    assert "if x = 2:" in result.text
    assert "SyntaxError" in result.text
    assert "agent" not in result.text


@pytest.mark.parametrize(
    "code",
    [
        "class E(Exception):\n    def __str__(self): raise ValueError('inside')\nraise E",
        "class R:\n    def __repr__(self): raise ValueError('inside')\nR()",
        "def f(): f()\nf()",
        pytest.param("raise BaseExceptionGroup('many', [ValueError(1), KeyboardInterrupt()])", id="group"),
        pytest.param("x = '\\ud800'\nraise ValueError(x)", id="surrogate-in-error"),
        "raise KeyboardInterrupt",
        "raise GeneratorExit",
        "assert False",
        "\0",
        pytest.param("print('\ud800')", id="surrogate"),
        "x = " + "(" * 300,
    ],
)
async def test_odd_errors_end_a_call_only(session: SandboxSession, code: str) -> None:
    outputs: list[Output] = []

    assert (await session.execute(code, outputs.append)).outcome in ("error", "memory")
    assert await said(session, "'fine'") == "'fine'\n"


async def test_exit_ends_the_call_only(session: SandboxSession) -> None:
    await said(session, "x = 5")

    for code in ("import sys\nsys.exit()", "raise SystemExit(0)", "exit()"):
        assert (await ran(session, code)).execution == Execution("ok")
    assert "gone wrong" in (await ran(session, "import sys\nsys.exit('gone wrong')")).text
    assert await said(session, "x") == "5\n"


async def test_input_is_refused(session: SandboxSession) -> None:
    result = await ran(session, "name = input('Who? ')")

    assert result.outcome == "error"
    assert "input" in result.text
    assert "agent" not in result.text


async def test_a_megabyte_of_code_runs(session: SandboxSession) -> None:
    code = "x = 0\n" + "x += 1  # " + "." * 100 + "\n"
    assert await said(session, code + "# " + "é" * (MEGABYTE // 2) + "\nx") == "1\n"


async def test_threads_go_on_between_calls(session: SandboxSession) -> None:
    await said(session, "import threading\ngo = threading.Event()\nthread = threading.Thread(target=lambda: (go.wait(), print('late')))")
    await said(session, "thread.start()\ngo.set()\nimport time")
    text = await said(session, "thread.join()\nprint('end')")

    assert text in ("late\nend\n", "end\n")


async def test_printing_between_calls_is_bounded(session: SandboxSession) -> None:
    await ran(
        session,
        """
        import threading, time
        stop = False
        def talk():
            while not stop:
                print("x" * 1000)
        thread = threading.Thread(target=talk)
        thread.start()
        """,
    )
    await asyncio.sleep(0.5)
    result = await ran(session, "stop = True\nthread.join()")

    assert result.outcome == "ok"
    assert len(result.text) < LIMITS["sandbox_log_bytes_max"] + 1000
    assert await said(session, "print('quiet')") == "quiet\n"


# ---- figures -----------------------------------------------------------------------------------------------------------------------


async def test_figures_come_in_order_with_the_text(session: SandboxSession) -> None:
    result = await ran(
        session,
        """
        import matplotlib.pyplot as plt
        print("one")
        plt.plot([1, 2]); plt.show()
        print("two")
        plt.plot([2, 1]); plt.title("left open")
        print("three")
        """,
    )

    assert [output.text if isinstance(output, Logs) else "image" for output in result.outputs] == [
        "one\n",
        "image",
        "two\nthree\n",
        "image",
    ]
    assert all(is_png(image) for image in result.images)
    assert result.images[0] != result.images[1]
    assert (await ran(session, "print(plt.get_fignums())")).outputs == [Logs("[]\n")]


async def test_a_figure_as_last_expression_is_shown_once(session: SandboxSession) -> None:
    result = await ran(session, "import matplotlib.pyplot as plt\nfig, ax = plt.subplots()\nax.plot([1])\nfig")

    assert [type(output) for output in result.outputs] == [Image]


async def test_figures_are_shown_after_an_error(session: SandboxSession) -> None:
    result = await ran(session, "import matplotlib.pyplot as plt\nplt.plot([1])\n1 / 0")

    assert result.outcome == "error"
    assert len(result.images) == 1


async def test_figures_beyond_the_limits_are_left_out(session: SandboxSession) -> None:
    many = await ran(
        session,
        "import matplotlib.pyplot as plt\nfor n in range(6):\n    plt.figure(figsize=(1, 1)); plt.plot([n]); plt.show()\nprint('end')",
    )
    large = await ran(
        session,
        "import numpy as np\nplt.figure(figsize=(6, 6)); plt.imshow(np.random.rand(600, 600, 3)); plt.show()\nprint('end')",
    )

    assert many.outcome == large.outcome == "ok"
    assert len(many.images) == 3
    assert large.images == []
    assert many.text.endswith("end\n")
    assert large.text.endswith("end\n")
    assert len(many.text) > len("end\n")
    assert len(large.text) > len("end\n")
    assert len((await ran(session, "plt.figure(figsize=(1, 1)); plt.plot([1]); plt.show()")).images) == 1


# ---- files -------------------------------------------------------------------------------------------------------------------------

ODD_NAMES = [
    "plain.csv",
    "with space.txt",
    " leading and trailing ",
    "-rf",
    "Ünïcödé 表.csv",
    "quote'\"`.txt",
    "new\nline",
    "$(x);&|<>*?",
    "back\\slash",
    ".hidden",
    "x" * 255,
    "deep/er/down.txt",
    "a b/c d/e f",
    "...",
]


@pytest.mark.parametrize("name", ODD_NAMES)
async def test_files_with_odd_names_come_in_and_out(session: SandboxSession, name: str) -> None:
    content = name.encode() * 1000
    await session.put_file(name, pieces_of(content[:777], content[777:]))

    code = f"""
    import os
    name = {name!r}
    data = open("/mnt/data/" + name, "rb").read()
    folder = os.path.dirname("/mnt/data/" + name)
    open(os.path.join(folder, "written-back"), "wb").write(data[::-1])
    print(len(data))
    """
    assert await said(session, code) == f"{len(content)}\n"
    written = name.rpartition("/")[0] + "/written-back" if "/" in name else "written-back"
    files = await session.list_files()
    assert [file.name for file in files] == sorted([name, written])
    assert {file.size_bytes for file in files} == {len(content)}
    assert await content_of(session, written) == content[::-1]


async def test_a_file_is_replaced_and_its_version_changes(session: SandboxSession) -> None:
    await session.put_file("a", pieces_of(b"one"))
    first = await session.list_files()
    assert await session.list_files() == first
    await session.put_file("a", pieces_of(b"two"))
    second = await session.list_files()
    await said(session, "open('/mnt/data/a', 'w').write('six');")
    third = await session.list_files()

    assert len({files[0].version for files in (first, second, third)}) == 3
    assert await content_of(session, "a") == b"six"


async def test_code_can_change_and_remove_what_was_put(session: SandboxSession) -> None:
    await session.put_file("folder/a", pieces_of(b"one"))
    code = """
    import os
    with open("/mnt/data/folder/a", "a") as file:
        file.write(" and more")
    open("/mnt/data/folder/b", "w").close()
    os.rename("/mnt/data/folder/a", "/mnt/data/c")
    """
    assert await said(session, code) == ""
    assert await names_in(session) == ["c", "folder/b"]
    assert await content_of(session, "c") == b"one and more"


@pytest.mark.parametrize("name", ["none", "../etc/passwd", "/etc/passwd", "folder", "folder/../a", "a/", "", ".", "a\0b", "\ud800", "a/b"])
async def test_what_is_no_file_is_missing(session: SandboxSession, name: str) -> None:
    await session.put_file("a", pieces_of(b"1"))
    await session.put_file("folder/b", pieces_of(b"1"))

    with pytest.raises(SandboxFileMissing):
        await content_of(session, name)


async def test_links_are_no_files(session: SandboxSession) -> None:
    code = """
    import os
    data = "/mnt/data/"
    open(data + "real", "w").write("real")
    os.mkdir(data + "folder")
    open(data + "folder/inside", "w").write("inside")
    for name, target in {"to-file": "real", "to-host": "../../../../../../etc/passwd", "to-folder": "folder", "loop": "loop"}.items():
        try:
            os.symlink(target, data + name)
        except OSError:
            pass
    """
    await said(session, code)

    assert await names_in(session) == ["folder/inside", "real"]
    for name in ("to-file", "to-host", "to-folder/inside", "loop"):
        with pytest.raises(SandboxFileMissing):
            await content_of(session, name)


async def test_nothing_is_written_through_links(session: SandboxSession) -> None:
    code = """
    import os
    os.makedirs("/tmp/aside", exist_ok=True)
    open("/tmp/aside/kept", "w").write("kept")
    os.symlink("/tmp/aside/kept", "/mnt/data/link")
    os.symlink("/tmp/aside", "/mnt/data/folder")
    """
    if (await ran(session, code)).outcome != "ok":
        pytest.skip("code cannot make such links")
    await session.put_file("link", pieces_of(b"new"))
    with pytest.raises(SandboxFull):
        await session.put_file("folder/new", pieces_of(b"new"))

    assert await content_of(session, "link") == b"new"
    assert await said(session, "print(open('/tmp/aside/kept').read(), os.listdir('/tmp/aside'))") == "kept ['kept']\n"


async def test_fifos_and_devices_are_no_files(session: SandboxSession) -> None:
    code = """
    import os, socket, stat
    os.mkfifo("/mnt/data/fifo")
    socket.socket(socket.AF_UNIX).bind("/mnt/data/socket")
    try:
        os.mknod("/mnt/data/zero", 0o666 | stat.S_IFCHR, os.makedev(1, 5))
    except OSError:
        pass
    """
    await ran(session, code)

    assert await names_in(session) == []
    for name in ("fifo", "socket", "zero"):
        with pytest.raises(SandboxFileMissing):
            await asyncio.wait_for(content_of(session, name), 20)


async def test_hard_links_are_files(session: SandboxSession) -> None:
    code = (
        "import os\nopen('/mnt/data/a', 'w').write('x')\ntry:\n    os.link('/mnt/data/a', '/mnt/data/b')\nexcept OSError:\n    print('no')"
    )
    is_refused = await said(session, code) == "no\n"

    assert await names_in(session) == (["a"] if is_refused else ["a", "b"])


async def test_names_that_are_no_text_are_left_out(session: SandboxSession) -> None:
    await ran(session, "open(b'/mnt/data/\\xff\\xfe', 'w').close()\nopen('/mnt/data/fine', 'w').close()")

    assert set(await names_in(session)) <= {"fine"}


async def test_a_file_that_does_not_fit_leaves_nothing(session: SandboxSession) -> None:
    await session.put_file("small", pieces_of(b"1"))

    async def large() -> AsyncIterator[bytes]:
        for _ in range(LIMITS["sandbox_disk_bytes_max"] // MEGABYTE + 1):
            yield b"x" * MEGABYTE

    with pytest.raises(SandboxFull):
        await session.put_file("large", large())
    with pytest.raises(SandboxFull):
        await session.put_file("x" * 256, pieces_of(b"1"))
    with pytest.raises(SandboxFull):
        await session.put_file("../outside", pieces_of(b"1"))

    assert await names_in(session) == ["small"]
    await session.put_file("other", pieces_of(b"1"))


async def test_a_writer_that_breaks_off_leaves_nothing(session: SandboxSession) -> None:
    async def broken() -> AsyncIterator[bytes]:
        yield b"x" * 1000
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await session.put_file("a", broken())

    assert await names_in(session) == []


# ---- limits ------------------------------------------------------------------------------------------------------------------------

ENDLESS = {
    "loop": "while True: pass",
    "sleep": "import time\ntime.sleep(1000)",
    "swallowed": "import time\nwhile True:\n    try:\n        time.sleep(1000)\n    except BaseException:\n        pass",
    "regex": "import re\nre.match(r'(a+)+$', 'a' * 60 + 'b')",
    "extension": "sum(range(10**13))",
    "number": "10 ** (10 ** 9)",
    "finally": "import time\ntry:\n    time.sleep(1000)\nfinally:\n    while True: pass",
    "repr": "class R:\n    def __repr__(self):\n        while True: pass\nR()",
    "error": "class E(Exception):\n    def __str__(self):\n        while True: pass\nraise E",
}


@pytest.mark.parametrize("kind", list(ENDLESS))
async def test_code_that_does_not_end_is_stopped(impatient: SandboxSession, kind: str) -> None:
    await impatient.put_file("kept", pieces_of(b"1"))
    started = asyncio.get_running_loop().time()
    result = await ran(impatient, ENDLESS[kind])

    assert result.outcome == "timeout"
    assert result.execution.detail
    assert asyncio.get_running_loop().time() - started < 15
    assert result.execution.is_lost == impatient.is_lost
    assert await content_of(impatient, "kept") == b"1"
    if not impatient.is_lost:
        assert await said(impatient, "'on'") == "'on'\n"


async def test_a_time_limit_keeps_the_variables_where_code_heeds_it(impatient: SandboxSession) -> None:
    await said(impatient, "x = 5")
    assert (await ran(impatient, "x += 1\nwhile True: pass")).execution.is_lost is False
    assert (await ran(impatient, "import time\ntime.sleep(1000)")).execution.is_lost is False
    assert await said(impatient, "x") == "6\n"


@pytest.mark.parametrize(
    "setup",
    [
        "signal.signal(signal.SIGINT, signal.SIG_IGN)",
        "signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())",
        "signal.signal(signal.SIGINT, lambda *_: None)",
    ],
)
async def test_code_that_swallows_signals_is_stopped(impatient: SandboxSession, setup: str) -> None:
    assert (await ran(impatient, f"import signal, time\n{setup}\nwhile True: time.sleep(1)")).outcome == "timeout"
    if not impatient.is_lost:
        assert (await ran(impatient, "while True: pass")).outcome == "timeout"


async def test_what_a_timer_does_is_its_own(session: SandboxSession) -> None:
    result = await ran(
        session,
        """
        import signal, time
        def strike(*_):
            raise ValueError("time is up")
        signal.signal(signal.SIGALRM, strike)
        signal.setitimer(signal.ITIMER_REAL, 0.05, 0.01)
        time.sleep(10)
        """,
    )

    assert result.outcome in ("error", "crashed")
    if not result.execution.is_lost:
        assert await said(session, "'on'") == "'on'\n"


async def test_memory_is_limited(session: SandboxSession) -> None:
    await session.put_file("kept", pieces_of(b"1"))
    result = await ran(session, "kept = []\nwhile True:\n    kept.append(b'x' * 10_000_000)")

    assert result.outcome == "memory"
    assert result.execution.is_lost == session.is_lost
    assert await content_of(session, "kept") == b"1"


async def test_one_object_beyond_all_memory_is_an_error_of_the_code(session: SandboxSession) -> None:
    assert (await ran(session, "x = bytearray(1 << 46)")).outcome in ("memory", "error")
    assert await said(session, "'on'") == "'on'\n"


async def test_disk_is_limited(session: SandboxSession) -> None:
    code = """
    import time
    for number in range(40):
        with open(f"/mnt/data/{number}", "wb") as file:
            file.write(b"x" * 1_000_000)
    time.sleep(3)
    """
    result = await ran(session, code)

    assert result.outcome == "disk_limit"
    assert result.execution.is_lost == session.is_lost
    assert await session.list_files()


async def test_one_large_file_is_stopped(session: SandboxSession) -> None:
    code = (
        "import time\nwith open('/mnt/data/a', 'wb') as file:\n    for _ in range(40):\n        file.write(b'x' * 1_000_000)\ntime.sleep(3)"
    )

    assert (await ran(session, code)).outcome == "disk_limit"


async def test_many_files_are_stopped(session: SandboxSession) -> None:
    result = await ran(session, "import time\nfor number in range(2000):\n    open(f'/mnt/data/{number}', 'w').close()\ntime.sleep(3)")

    assert result.outcome == "disk_limit"
    assert len(await session.list_files()) <= LIMITS["sandbox_files_max"]


async def test_a_flood_of_output_is_bounded(session: SandboxSession) -> None:
    result = await ran(session, "for number in range(200_000):\n    print(number, 'x' * 100)")

    assert result.outcome == "ok"
    assert LIMITS["sandbox_log_bytes_max"] < len(result.text) < LIMITS["sandbox_log_bytes_max"] + 500
    assert result.text.startswith("0 xxx")
    assert await said(session, "print('quiet')") == "quiet\n"


async def test_one_huge_line_is_bounded(session: SandboxSession) -> None:
    result = await ran(session, "print('é' * 10_000_000)")

    assert result.outcome == "ok"
    assert len(result.text.encode()) < LIMITS["sandbox_log_bytes_max"] + 500
    assert "\ufffd" not in result.text
    assert await said(session, "print('quiet')") == "quiet\n"


async def test_bytes_that_are_no_text_are_replaced(session: SandboxSession) -> None:
    code = "import sys\nsys.stdout.buffer.write(b'a\\xff\\x00b\\xe2\\x82')\nsys.stdout.flush()"

    assert (await said(session, code)).rstrip("\ufffd") == "a\ufffd\ufffdb"
    assert await said(session, "print('€')") == "€\n"


async def test_characters_are_whole_at_all_borders(session: SandboxSession) -> None:
    result = await said(session, "import time\nfor _ in range(5):\n    print('€' * 999, end='', flush=True)\n    time.sleep(0.12)")

    assert result == "€" * 4995


# ---- interrupts, crashes, and ends -------------------------------------------------------------------------------------------------


async def interrupted(session: SandboxSession, code: str) -> Execution:
    began = asyncio.Event()
    running = asyncio.create_task(session.execute(f"print('begun')\n{code}", lambda _: began.set()))
    await asyncio.wait_for(began.wait(), 20)
    await session.interrupt()
    return await asyncio.wait_for(running, 20)


@pytest.mark.parametrize("kind", ["loop", "sleep", "swallowed", "regex"])
async def test_running_code_is_interrupted(session: SandboxSession, kind: str) -> None:
    execution = await interrupted(session, ENDLESS[kind])

    assert execution.outcome == "cancelled"
    assert execution.is_lost == session.is_lost


async def test_an_interrupt_keeps_the_variables(session: SandboxSession) -> None:
    await said(session, "x = 5")
    assert (await interrupted(session, ENDLESS["sleep"])).is_lost is False
    assert await said(session, "x") == "5\n"


async def test_an_interrupt_of_nothing_does_nothing(session: SandboxSession) -> None:
    await session.interrupt()
    assert await said(session, "1") == "1\n"
    await session.interrupt()
    await session.interrupt()
    assert await said(session, "2") == "2\n"


@pytest.mark.parametrize(
    "code",
    [
        pytest.param("import os\nprint('before', flush=True)\nos._exit(3)", id="exit"),
        pytest.param("import ctypes\nprint('before', flush=True)\nctypes.string_at(0)", id="segfault"),
    ],
)
async def test_a_crash_loses_the_session_but_not_its_files(session: SandboxSession, code: str) -> None:
    await session.put_file("kept", pieces_of(b"1"))
    result = await ran(session, code)

    assert result.outcome == "crashed"
    assert result.execution.is_lost
    assert result.execution.detail
    assert session.is_lost
    assert "before" in result.text
    with pytest.raises(SandboxUnavailable):
        await ran(session, "1")
    with pytest.raises(SandboxUnavailable):
        await session.put_file("more", pieces_of(b"1"))
    await session.interrupt()
    assert await names_in(session) == ["kept"]
    assert await content_of(session, "kept") == b"1"


async def test_a_caller_that_is_cancelled_leaves_nothing_running(session: SandboxSession) -> None:
    began = asyncio.Event()
    running = asyncio.create_task(session.execute("print('begun')\nwhile True: pass", lambda _: began.set()))
    await asyncio.wait_for(began.wait(), 20)
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running

    if session.is_lost:
        with pytest.raises(SandboxUnavailable):
            await ran(session, "1")
    else:
        assert await said(session, "1") == "1\n"


async def test_a_session_is_closed_while_code_runs(session: SandboxSession) -> None:
    began = asyncio.Event()
    running = asyncio.create_task(session.execute("print('begun')\nwhile True: pass", lambda _: began.set()))
    await asyncio.wait_for(began.wait(), 20)
    await session.close()
    await session.close()

    assert (await asyncio.wait_for(running, 10)).is_lost
    with pytest.raises(SandboxUnavailable):
        await ran(session, "1")


FORGED = """
import gc, json, os, sys
ids = [""]
for thing in gc.get_objects():
    if type(thing).__name__ == "Agent":
        ids.append(thing._call)
lines = "".join(json.dumps({"id": key, "event": event, "error": error}) + chr(10) for key in ids
    for event, error in (("ready", None), ("done", "MemoryError"), ("image", None)))
sys.stdout.write(lines)
sys.stdout.flush()
for descriptor in range(3, 200):
    for data in (b"garbage" + chr(10).encode(), b"{" * 10_000 + chr(10).encode(), lines.encode()):
        try:
            os.write(descriptor, data)
        except OSError:
            pass
"""


async def test_forged_answers_shift_nothing(session: SandboxSession) -> None:
    result = await ran(session, FORGED)
    assert result.images == []

    for number in range(5):
        if session.is_lost:
            break
        await said(session, f"x = {number}")
        assert (await said(session, "print('x is', x)")).endswith(f"x is {number}\n")


# ---- many sessions, and the processes on the host ----------------------------------------------------------------------------------


async def test_sessions_side_by_side_do_not_mix(make_sandbox: MakeSandbox, backend: Backend) -> None:
    count = 1 if backend.name == "jupyter" else 8
    sandbox = make_sandbox()
    sessions = await asyncio.gather(*(sandbox.create_session() for _ in range(count)))

    async def use(number: int, session: SandboxSession) -> None:
        await session.put_file("mine", pieces_of(str(number).encode()))
        for turn in range(3):
            await said(session, f"x = {number * 100 + turn}")
            assert await said(session, "print(x, open('/mnt/data/mine').read())") == f"{number * 100 + turn} {number}\n"
        assert await names_in(session) == ["mine"]

    await asyncio.gather(*(use(number, session) for number, session in enumerate(sessions)))
    await asyncio.gather(*(session.close() for session in sessions))


def descendants(process_id: int) -> set[int]:
    """The processes that a process has started, with theirs."""
    parents: dict[int, int] = {}
    for folder in Path("/proc").iterdir():
        with contextlib.suppress(OSError, ValueError):
            parents[int(folder.name)] = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
    found = {process_id}
    while more := {child for child, parent in parents.items() if parent in found} - found:
        found |= more
    return found - {process_id}


def is_alive(process_id: int) -> bool:
    try:
        return Path(f"/proc/{process_id}/stat").read_text().rpartition(")")[2].split()[0] not in ("Z", "X")
    except OSError:
        return False


async def all_end(process_ids: set[int]) -> bool:
    for _ in range(100):
        if not any(is_alive(process_id) for process_id in process_ids):
            return True
        await asyncio.sleep(0.1)
    return False


CHILDREN = """
import os, signal, time
for _ in range(3):
    if os.fork() == 0:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        while True:
            time.sleep(1)
print("started")
"""


async def test_child_processes_end_with_the_session(make_sandbox: MakeSandbox) -> None:
    before = descendants(os.getpid())
    session = await make_sandbox().create_session()
    idle = descendants(os.getpid()) - before
    assert await said(session, CHILDREN) == "started\n"
    busy = descendants(os.getpid()) - before
    assert len(busy) == len(idle) + 3
    await session.close()

    assert await all_end(busy)


async def test_a_fork_that_comes_to_the_end_of_the_code_ends(session: SandboxSession) -> None:
    text = await said(
        session, "import os\nchild = os.fork()\nif child:\n    os.waitpid(child, 0)\nprint('child' if child == 0 else 'parent')"
    )

    assert text == "child\nparent\n"
    assert await said(session, "'on'") == "'on'\n"


HOLDER = """
import asyncio, json, sys
from pathlib import Path
from mini_assistant.app import build_sandbox
from mini_assistant.settings import Settings

async def hold(folder, settings):
    sandbox = build_sandbox(Settings(data_dir=Path(folder), **json.loads(settings)))
    sessions = [await sandbox.create_session() for _ in range(2)]
    async def nothing():
        yield b"marked"
    for session in sessions:
        await session.put_file("left-over-marker", nothing())
    busy = asyncio.create_task(sessions[0].execute("while True: pass", lambda output: None))
    await asyncio.sleep(0.3)
    print("holding", flush=True)
    await busy

asyncio.run(hold(sys.argv[1], sys.argv[2]))
"""


def started_holder(folder: Path, settings: Mapping[str, Any]) -> subprocess.Popen[bytes]:
    """A server, as it were, with two sessions, of which one is at work. Its temporary files are in the folder too."""
    return subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(folder / "data"), json.dumps(settings)],
        stdout=subprocess.PIPE,
        env={**os.environ, "TMPDIR": str(folder)},
    )


def markers_in(folder: Path) -> list[Path]:
    return list(folder.rglob("left-over-marker"))


async def test_nothing_is_left_of_a_killed_server(make_sandbox: MakeSandbox, backend_settings: Mapping[str, Any], tmp_path: Path) -> None:
    holder = started_holder(tmp_path, {**LIMITS, **backend_settings})
    try:
        assert holder.stdout is not None
        assert await asyncio.to_thread(holder.stdout.readline) == b"holding\n"
        left = descendants(holder.pid)
        assert len(left) >= 2
    finally:
        holder.send_signal(signal.SIGKILL)
        holder.communicate(timeout=10)

    assert await all_end(left)
    session = await make_sandbox().create_session()
    assert markers_in(tmp_path) == []
    assert await said(session, "1") == "1\n"


async def test_another_start_leaves_living_sessions_alone(make_sandbox: MakeSandbox, backend: Backend) -> None:
    """As `mini-assistant check` beside a server does it, in the same data directory."""
    if backend.name in WITH_SERVICES:
        pytest.skip("its sessions are no business of a start")
    session = await make_sandbox().create_session()
    assert await said(session, "open('kept.txt', 'w').write('kept')\nx = 1") == ""

    other = make_sandbox()
    await other.check()
    await other.close()

    assert await said(session, "print(open('kept.txt').read(), x)") == "kept 1\n"
    assert await content_of(session, "kept.txt") == b"kept"
    await session.close()

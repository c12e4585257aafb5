"""The backend `jupyter`: against a real Jupyter Kernel Gateway, and against one that lies, floods, breaks off and stays silent."""

import asyncio
import base64
import contextlib
import dataclasses
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import aiohttp.web
import pytest

from mini_assistant.errors import ConfigError, SandboxFileMissing, SandboxFull, SandboxUnavailable
from mini_assistant.sandboxes import jupyter, jupyter_session
from mini_assistant.sandboxes.base import Execution, Image, Logs, Output
from mini_assistant.sandboxes.jupyter import JupyterSandbox
from mini_assistant.sandboxes.jupyter_session import JupyterSession
from mini_assistant.settings import Settings
from tests.jupyter_gateway import TOKEN, jupyter_gateway

pytestmark = pytest.mark.xdist_group("kernels")

MANIFESTS = Path(__file__).parent.parent.parent / "deploy" / "kubernetes"
PNG = b"\x89PNG\r\n\x1a\n"
MEGABYTE = 1024 * 1024


@pytest.fixture(scope="module")
def gateway() -> Iterator[str]:
    with jupyter_gateway() as address:
        yield address


@pytest.fixture
def settings() -> Settings:
    return Settings(sandbox="jupyter", sandbox_token=TOKEN, sandbox_call_timeout_seconds=20)


@contextlib.asynccontextmanager
async def session_at(address: str, settings: Settings, **changes: Any) -> AsyncIterator[JupyterSession]:
    sandbox = JupyterSandbox(dataclasses.replace(settings, sandbox_url=address, **changes))
    session = await sandbox.create_session()
    try:
        yield session
    finally:
        await sandbox.close()


@pytest.fixture
async def session(gateway: str, settings: Settings) -> AsyncIterator[JupyterSession]:
    async with session_at(gateway, settings) as session:
        yield session


async def ran(session: JupyterSession, code: str) -> tuple[Execution, list[Output]]:
    outputs: list[Output] = []
    return await session.execute(code, outputs.append), outputs


def logs_of(outputs: list[Output]) -> str:
    return "".join(output.text for output in outputs if isinstance(output, Logs))


async def logged(session: JupyterSession, code: str) -> str:
    _, outputs = await ran(session, code)
    return logs_of(outputs)


async def pieces_of(*pieces: bytes) -> AsyncIterator[bytes]:
    for piece in pieces:
        yield piece


async def whole(session: JupyterSession, name: str) -> bytes:
    return b"".join([piece async for piece in session.read_file(name)])


# ---- code, on a real gateway


async def test_state_is_kept_and_the_last_expression_is_shown(session: JupyterSession) -> None:
    assert await ran(session, "x = 20") == (Execution("ok"), [])
    assert await ran(session, "y = 1\nx + y + 21") == (Execution("ok"), [Logs("42\n")])
    assert await ran(session, "None") == (Execution("ok"), [])


async def test_both_streams_keep_their_order(session: JupyterSession) -> None:
    assert await logged(session, "import sys\nprint('a')\nprint('b', file=sys.stderr)\nprint('c', flush=True)") == "a\nb\nc\n"


async def test_both_streams_of_child_processes_keep_their_order(session: JupyterSession) -> None:
    # Among themselves: a thread of the kernel reads them, beside what the code prints.
    code = "import subprocess\n_ = subprocess.run('echo d; echo e >&2; echo f', shell=True)"
    assert await logged(session, code) == "d\ne\nf\n"


async def test_output_comes_while_the_code_runs(session: JupyterSession) -> None:
    came = asyncio.Event()
    call = asyncio.create_task(session.execute("import time\nprint('now', flush=True)\ntime.sleep(15)", lambda _output: came.set()))
    async with asyncio.timeout(10):
        await came.wait()
    assert not call.done()
    await session.interrupt()
    assert (await call).outcome == "cancelled"


async def test_a_traceback_has_no_colours(session: JupyterSession) -> None:
    execution, outputs = await ran(session, "def f():\n    raise ValueError('so')\nf()")

    assert execution == Execution("error")
    text = logs_of(outputs)
    assert text.startswith("Traceback (most recent call last):")
    assert text.endswith("ValueError: so\n")
    assert "raise ValueError('so')" in text
    assert "\x1b" not in text
    assert "/" not in text


@pytest.mark.parametrize("code", ["import sys\nsys.exit()", "exit()", "quit()", "input()", "1 +", "raise KeyboardInterrupt"])
async def test_what_ends_a_call_does_not_end_the_session(session: JupyterSession, code: str) -> None:
    await ran(session, "x = 5")
    execution, _ = await ran(session, code)

    assert execution == Execution("error")
    assert await logged(session, "x") == "5\n"


async def test_figures_come_as_png(session: JupyterSession) -> None:
    execution, outputs = await ran(
        session, "import matplotlib.pyplot as plt\nfor i in range(2):\n    plt.figure()\n    _ = plt.plot([1, i])\n    plt.show()"
    )

    assert execution == Execution("ok")
    assert [isinstance(output, Image) and output.data.startswith(PNG) for output in outputs] == [True, True]


async def test_figures_and_logs_are_bounded(gateway: str, settings: Settings) -> None:
    limits = {"sandbox_images_max": 1, "sandbox_image_bytes_max": 100_000, "sandbox_log_bytes_max": 1024}
    async with session_at(gateway, settings, **limits) as session:
        plot = "import matplotlib.pyplot as plt, os\nfor i in range(3):\n    plt.plot([1, i])\n    plt.show()"
        _, outputs = await ran(session, plot)
        assert [type(output) for output in outputs] == [Image, Logs]
        assert "after the first 1 were left out" in logs_of(outputs)
        _, outputs = await ran(session, "import numpy\nplt.imshow(numpy.random.rand(500, 500))\nplt.figure(dpi=500)\nNone")
        assert "more than 100000 bytes" in logs_of(outputs)
        text = await logged(session, "for _ in range(100):\n    print('ä' * 50, flush=True)")
        assert text.startswith("ää")
        assert len(text) < 1200
        assert text.endswith("[Logs after the first 1024 bytes were left out.]\n")
        # More in one piece than the gateway sends on, and than this side takes.
        assert len(await logged(session, "print('x' * 30_000_000)")) < 1200
        assert await logged(session, "6 * 7") == "42\n"


@pytest.mark.parametrize(
    ("code", "outcome"),
    [("bytearray(10**15)", "memory"), ("open('a', 'wb').write(bytes(100_000_000))", "disk_limit"), ("1 / 0", "error")],
)
async def test_how_code_failed(session: JupyterSession, code: str, outcome: str) -> None:
    execution, _ = await ran(session, code)

    assert (execution.outcome, execution.is_lost) == (outcome, False)


# ---- limits of time, and the end of the interpreter


@pytest.mark.parametrize("code", ["while True:\n    pass", "import time\ntime.sleep(60)"])
async def test_code_is_stopped_at_its_limit_and_the_session_lives(gateway: str, settings: Settings, code: str) -> None:
    async with session_at(gateway, settings, sandbox_call_timeout_seconds=1.0) as session:
        await ran(session, "x = 3")
        execution, _ = await ran(session, code)

        assert execution == Execution("timeout", "The code was stopped: it ran longer than 1 seconds.")
        assert await logged(session, "x") == "3\n"


async def test_code_that_ignores_the_interrupt_is_killed_and_its_files_stay(gateway: str, settings: Settings) -> None:
    async with session_at(gateway, settings, sandbox_call_timeout_seconds=1.0) as session:
        began = time.monotonic()
        execution, _ = await ran(
            session, "import signal\nsignal.signal(signal.SIGINT, signal.SIG_IGN)\nopen('a.txt', 'w').write('kept')\nwhile True:\n    pass"
        )

        assert (execution.outcome, execution.is_lost, session.is_lost) == ("timeout", True, True)
        assert time.monotonic() - began < 15
        with pytest.raises(SandboxUnavailable):
            await ran(session, "1")
        with pytest.raises(SandboxUnavailable):
            await session.put_file("b", pieces_of(b""))
        assert [file.name for file in await session.list_files()] == ["a.txt"]
        assert await whole(session, "a.txt") == b"kept"


async def test_the_death_of_the_interpreter_is_noticed_and_its_files_stay(session: JupyterSession) -> None:
    # What was written just before the end may stay in the kernel: it sends its output a little later.
    execution, outputs = await ran(
        session, "import os, time\nprint('last', flush=True)\nopen('a', 'w').write('1')\ntime.sleep(0.5)\nos.kill(os.getpid(), 9)"
    )

    assert (execution.outcome, execution.is_lost) == ("crashed", True)
    assert logs_of(outputs) == "last\n"
    assert [file.name for file in await session.list_files()] == ["a"]


async def test_a_session_closes_while_its_code_runs(gateway: str, settings: Settings) -> None:
    async with session_at(gateway, settings) as session:
        call = asyncio.create_task(session.execute("open('a', 'w')\nwhile True:\n    pass", lambda _output: None))
        await asyncio.sleep(0.5)
        await session.close()
        assert await call == Execution("cancelled", "The connection to the kernel was closed.", is_lost=True)
        await session.close()
        assert await session.list_files() == []
    async with session_at(gateway, settings) as session:
        assert await session.list_files() == []


async def test_a_call_that_is_cancelled_loses_the_session(session: JupyterSession) -> None:
    call = asyncio.create_task(session.execute("open('a', 'w').close()\nwhile True:\n    pass", lambda _output: None))
    await asyncio.sleep(0.5)
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    assert session.is_lost
    assert [file.name for file in await session.list_files()] == ["a"]


async def test_an_interrupt_without_code_does_nothing(session: JupyterSession) -> None:
    await session.interrupt()

    assert await logged(session, "1") == "1\n"


async def test_a_lost_connection_is_made_again(session: JupyterSession) -> None:
    await ran(session, "x = 8")
    connection = session._channels._connection  # pyright: ignore[reportPrivateUsage]
    assert connection is not None
    await connection.close()

    assert await logged(session, "x") == "8\n"


# ---- files, on a real gateway

NAMES = ["a.csv", "plots/deep er/a.png", "ä 'quoted\" ☃.txt", "-rf", "$(id)", "a\nb", "x" * 255, ".hidden"]


@pytest.mark.parametrize("name", NAMES, ids=range(len(NAMES)))
async def test_files_go_in_and_out_under_their_names(session: JupyterSession, name: str) -> None:
    await session.put_file(name, pieces_of(b"1,2", b"\n", b""))

    assert await logged(session, f"print(open({name!r}).read(), end='')") == "1,2\n"
    await ran(session, f"open({name!r}, 'a').write('3')")
    files = await session.list_files()
    assert [(file.name, file.size_bytes) for file in files] == [(name, 5)]
    assert await whole(session, name) == b"1,2\n3"


async def test_large_files_are_whole_and_versions_change_with_bytes(session: JupyterSession) -> None:
    data = bytes(range(256)) * 4096 * 3 + b"end"
    await session.put_file("a", pieces_of(data[:700_000], data[700_000:]))
    assert await whole(session, "a") == data
    before = await session.list_files()
    assert before == await session.list_files()
    await ran(session, "f = open('a', 'r+b')\nf.write(b'9')\nf.close()")
    assert before[0].version != (await session.list_files())[0].version


@pytest.mark.parametrize("name", ["", "/etc/passwd", "../a", "a/../b", "a//b", "a/", ".", "a\0", "\ud800", "y" * 256, "d/" * 40 + "a"])
async def test_what_is_no_name_is_refused(session: JupyterSession, name: str) -> None:
    with pytest.raises(SandboxFull):
        await session.put_file(name, pieces_of(b"x"))
    with pytest.raises(SandboxFileMissing):
        await whole(session, name)


async def test_only_regular_files_are_read(session: JupyterSession) -> None:
    await ran(
        session,
        "import os\nos.symlink('/etc/passwd', 'link')\nos.symlink('/etc', 'folder_link')\nos.mkfifo('fifo')\nos.mkdir('folder')\n"
        "open(b'\\xff', 'w')\nos.symlink('.', 'loop')\nopen('folder/real', 'w').close()\nos.mkdir('closed', 0)",
    )

    assert [file.name for file in await session.list_files()] == ["folder/real"]
    for name in ["link", "folder_link/passwd", "fifo", "folder", "loop/folder/real", "none"]:
        with pytest.raises(SandboxFileMissing):
            await whole(session, name)
    with pytest.raises(SandboxFull):
        await session.put_file("folder_link/x", pieces_of(b"x"))
    await session.put_file("link", pieces_of(b"mine"))
    assert await whole(session, "link") == b"mine"


async def test_a_file_that_does_not_fit_leaves_nothing(gateway: str, settings: Settings) -> None:
    async with session_at(gateway, settings, sandbox_disk_bytes_max=3 * MEGABYTE) as session:
        with pytest.raises(SandboxFull):
            await session.put_file("a", pieces_of(*[bytes(MEGABYTE)] * 4))
        assert await session.list_files() == []
        await session.put_file("a", pieces_of(bytes(2 * MEGABYTE)))
        with pytest.raises(SandboxFull):
            await session.put_file("b", pieces_of(bytes(2 * MEGABYTE)))
        await ran(session, "with open('big', 'wb') as f:\n    _ = f.write(bytes(10_000_000))")
        assert len(await whole(session, "big")) == 3 * MEGABYTE
    # Here the folder itself is full before.
    async with session_at(gateway, settings) as session:
        with pytest.raises(SandboxFull, match="No space"):
            await session.put_file("a", pieces_of(*[bytes(MEGABYTE)] * 80))
        assert await session.list_files() == []


async def test_the_list_of_files_is_bounded(gateway: str, settings: Settings) -> None:
    async with session_at(gateway, settings, sandbox_files_max=10) as session:
        await ran(session, "for i in range(50):\n    open(str(i), 'w').close()")
        assert len(await session.list_files()) == 10
        with pytest.raises(SandboxFull):
            await session.put_file("a", pieces_of(b""))


# ---- gateways


async def test_a_gateway_has_one_session_at_a_time_and_each_begins_empty(
    gateway: str, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jupyter, "_FREE_TIMEOUT_SECONDS", 0.5)
    sandbox = JupyterSandbox(dataclasses.replace(settings, sandbox_url=gateway))
    session = await sandbox.create_session()
    await session.put_file("a", pieces_of(b"x"))
    with pytest.raises(SandboxUnavailable, match="in use"):
        await sandbox.create_session()
    # Another server does not know of it, but sees its files.
    with pytest.raises(SandboxUnavailable, match="not empty"):
        await JupyterSandbox(dataclasses.replace(settings, sandbox_url=gateway)).create_session()
    assert await whole(session, "a") == b"x"
    await session.close()
    session = await sandbox.create_session(is_warm=True)
    assert await session.list_files() == []
    assert await logged(session, "import sys\n'matplotlib.pyplot' in sys.modules, 'matplotlib' in globals()") == "(True, False)\n"
    await sandbox.close()


async def test_the_check_says_that_a_gateway_lives_on(
    gateway: str, settings: Settings, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(jupyter, "_END_TIMEOUT_SECONDS", 0.5)

    line = await JupyterSandbox(dataclasses.replace(settings, sandbox_url=gateway)).check()

    assert line.startswith(f"1 gateway at {gateway}, but a gateway lives on")
    assert "meets the next session" in caplog.text
    assert TOKEN not in line + caplog.text


async def test_a_wrong_token_is_told_at_once(gateway: str, settings: Settings) -> None:
    sandbox = JupyterSandbox(dataclasses.replace(settings, sandbox_url=gateway, sandbox_token="guessed"))

    async with asyncio.timeout(5):
        with pytest.raises(SandboxUnavailable, match="sandbox_token") as raised:
            await sandbox.create_session()
    assert "guessed" not in raised.value.message


def test_an_address_that_is_none_is_refused() -> None:
    for url in ["", " , ", "gateway:8888", "ftp://gateway", "http://user:secret@gateway", "http://gateway?token=x"]:
        with pytest.raises(ConfigError, match="sandbox_url"):
            JupyterSandbox(Settings(sandbox_url=url))


async def test_the_gateways_for_kubernetes_end_with_their_session(settings: Settings) -> None:
    with jupyter_gateway(is_one_kernel=True) as first, jupyter_gateway(is_one_kernel=True) as second:
        sandbox = JupyterSandbox(dataclasses.replace(settings, sandbox_url=f"{first}, {second}"))
        other_server = JupyterSandbox(dataclasses.replace(settings, sandbox_url=f"{first}, {second}"))
        session = await sandbox.create_session()
        # A process that would outlive its kernel, to see what comes next.
        await ran(session, "import subprocess\nsubprocess.Popen(['sleep', '600'], start_new_session=True)\nNone")
        other = await other_server.create_session()
        await other.put_file("a", pieces_of(b"x"))
        assert await session.list_files() == []
        with pytest.raises(SandboxUnavailable, match="in use"):
            await sandbox._claimed(is_warm=False)  # pyright: ignore[reportPrivateUsage]
        await session.close()
        with pytest.raises(SandboxUnavailable):
            await sandbox._claimed(is_warm=False)  # pyright: ignore[reportPrivateUsage]
        assert await whole(other, "a") == b"x"
        await other_server.close()


async def test_the_check_says_that_gateways_for_kubernetes_end(settings: Settings) -> None:
    with jupyter_gateway(is_one_kernel=True) as address:
        line = await JupyterSandbox(dataclasses.replace(settings, sandbox_url=address)).check()
        assert line == f"1 gateway at {address}, each for one session, and it ends with it"


async def test_code_cannot_take_the_place_of_a_gateway_for_kubernetes(settings: Settings) -> None:
    attempts = {
        "its environment": "open('/proc/1/environ', 'rb').read()",
        "its memory": "open('/proc/1/mem', 'rb')",
        "its files": "import os\nos.readlink('/proc/1/fd/0')",
        "ptrace": "import ctypes\nlibc = ctypes.CDLL(None, use_errno=True)\nassert libc.ptrace(16, 1, 0, 0) == 0, 'refused'",
    }
    with jupyter_gateway(is_one_kernel=True) as address:
        async with session_at(address, settings) as session:
            for name, code in attempts.items():
                execution, outputs = await ran(session, code)
                assert execution.outcome == "error", name
                assert "Permission" in logs_of(outputs) or "refused" in logs_of(outputs), name
            # It would notice: of a process that does not protect itself, the same can be read.
            child = "import subprocess\np = subprocess.Popen(['sleep', '60'])\nopen(f'/proc/{p.pid}/environ', 'rb').read()\nNone"
            assert (await ran(session, child))[0].outcome == "ok"
            assert await logged(session, f"import os\nprint({TOKEN!r} in str(os.environ))") == "False\n"
            await ran(session, "import os, signal\nos.kill(1, signal.SIGKILL)")
            assert await logged(session, "'alive'") == "'alive'\n"


# ---- a gateway in the hands of hostile code

Behaviour = Callable[["HostileGateway", aiohttp.web.WebSocketResponse, str], Awaitable[None]]


class HostileGateway:
    """Sets sessions up as it should, and answers their code by `behaviour`."""

    def __init__(self) -> None:
        self.behaviour: Behaviour = answer_well
        self.kernel_id = "kernel-1"
        self.calls: list[str] = []
        self.order_answer: Callable[[dict[str, Any]], bytes] = honest_answer
        self.redirected_to = ""

    def application(self) -> aiohttp.web.Application:
        application = aiohttp.web.Application()
        application.router.add_route("*", "/{path:.*}", self._answer)
        return application

    async def _answer(self, request: aiohttp.web.Request) -> aiohttp.web.StreamResponse:
        self.calls.append(f"{request.method} {request.path}")
        if self.redirected_to and request.path.endswith(self.redirected_to):
            raise aiohttp.web.HTTPFound("/stolen")
        if request.headers.get("Authorization") != f"token {TOKEN}":
            raise aiohttp.web.HTTPForbidden
        if request.path == "/api/kernelspecs":
            return aiohttp.web.json_response({"default": "python3"})
        if request.path == "/api/kernels":
            return aiohttp.web.json_response({"id": self.kernel_id}, status=201)
        if not request.path.endswith("/channels"):
            return aiohttp.web.Response(status=204)
        channels = aiohttp.web.WebSocketResponse()
        await channels.prepare(request)
        async for frame in channels:
            message = json.loads(frame.data)
            message_id, expression = message["header"]["msg_id"], message["content"]["user_expressions"].get("answer", "")
            if expression.startswith("exec"):
                await say(channels, message_id, "execute_reply", status="ok")
            elif expression:
                order = json.loads(base64.b64decode(expression.split("'")[3]).partition(b"\n")[0])
                text = repr(base64.b64encode(self.order_answer(order)).decode())
                value = {"status": "ok", "data": {"text/plain": text}}
                await say(channels, message_id, "execute_reply", status="ok", user_expressions={"answer": value})
            else:
                await self.behaviour(self, channels, message_id)
                continue
            await say(channels, message_id, "status", execution_state="idle")
        return channels


def honest_answer(order: dict[str, Any]) -> bytes:
    return json.dumps({"is_empty": True, "is_writable": True}).encode() + b"\n"


async def say(channels: aiohttp.web.WebSocketResponse, parent: str, kind: str, **content: Any) -> None:
    channel = "shell" if kind.endswith("_reply") else "iopub"
    message = {"channel": channel, "header": {"msg_id": "x", "msg_type": kind}, "parent_header": {"msg_id": parent}, "content": content}
    await channels.send_str(json.dumps(message))


async def answer_well(_gateway: HostileGateway, channels: aiohttp.web.WebSocketResponse, parent: str) -> None:
    await say(channels, parent, "stream", name="stdout", text="fine\n")
    await say(channels, parent, "execute_reply", status="ok")
    await say(channels, parent, "status", execution_state="idle")


@pytest.fixture
async def hostile() -> AsyncIterator[HostileGateway]:
    return HostileGateway()


@pytest.fixture
async def hostile_address(hostile: HostileGateway) -> AsyncIterator[str]:
    runner = aiohttp.web.AppRunner(hostile.application(), shutdown_timeout=0.1)
    await runner.setup()
    site = aiohttp.web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    yield f"http://127.0.0.1:{runner.addresses[0][1]}"
    await runner.cleanup()


@pytest.fixture
async def hostile_session(hostile_address: str, settings: Settings, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[JupyterSession]:
    monkeypatch.setattr(jupyter_session, "_ORDER_TIMEOUT_SECONDS", 0.5)
    monkeypatch.setattr(jupyter_session, "_GRACE_SECONDS", 0.2)
    async with session_at(hostile_address, settings, sandbox_call_timeout_seconds=1.0) as session:
        yield session


async def test_answers_to_other_requests_are_ignored(hostile: HostileGateway, hostile_session: JupyterSession) -> None:
    async def forge(_gateway: HostileGateway, channels: aiohttp.web.WebSocketResponse, parent: str) -> None:
        for forged in ["", "other", parent[:-1]]:
            await say(channels, forged, "execute_reply", status="error", ename="MemoryError")
            await say(channels, forged, "error", traceback=["forged"])
            await say(channels, forged, "status", execution_state="idle")
        await answer_well(_gateway, channels, parent)
        await say(channels, parent, "execute_reply", status="error", ename="MemoryError")

    hostile.behaviour = forge
    assert await ran(hostile_session, "1") == (Execution("ok"), [Logs("fine\n")])
    hostile.behaviour = answer_well
    assert await ran(hostile_session, "1") == (Execution("ok"), [Logs("fine\n")])


GARBAGE = [
    "",
    "{",
    "null",
    "[" * 100_000,
    '{"header": 1}',
    '{"channel": "iopub", "header": {"msg_type": "stream"}, "content": {"text": ["a"]}}',
    '{"channel": "iopub", "header": {"msg_type": "stream"}, "content": {"text": "\\ud800"}}',
    '{"channel": "iopub", "header": {"msg_type": "display_data"}, "content": {"data": {"image/png": "!!"}}}',
    '{"channel": "iopub", "header": {"msg_type": "display_data"}, "content": {"data": {"image/png": "R0lGODlh"}}}',
    '{"channel": "iopub", "header": {"msg_type": "status"}, "content": 7}',
    '{"channel": "shell", "header": {"msg_type": "execute_reply"}}',
]


async def test_what_is_no_message_is_ignored(hostile: HostileGateway, hostile_session: JupyterSession) -> None:
    async def babble(gateway: HostileGateway, channels: aiohttp.web.WebSocketResponse, parent: str) -> None:
        for text in GARBAGE:
            await channels.send_str(text)
        await channels.send_bytes(b"\x00\x00\x00\x01garbage")
        await answer_well(gateway, channels, parent)

    hostile.behaviour = babble

    assert await ran(hostile_session, "1") == (Execution("ok"), [Logs("fine\n")])


async def close_early(_gateway: HostileGateway, channels: aiohttp.web.WebSocketResponse, parent: str) -> None:
    await say(channels, parent, "stream", name="stdout", text="begun\n")
    await channels.close()


async def send_huge(_gateway: HostileGateway, channels: aiohttp.web.WebSocketResponse, parent: str) -> None:
    await say(channels, parent, "stream", name="stdout", text="begun\n")
    with contextlib.suppress(ConnectionError):
        await say(channels, parent, "stream", name="stdout", text="x" * 20 * MEGABYTE)


async def send_bad_text(_gateway: HostileGateway, channels: aiohttp.web.WebSocketResponse, parent: str) -> None:
    await say(channels, parent, "stream", name="stdout", text="begun\n")
    await channels._writer.send_frame(b"\xff\xfe", aiohttp.WSMsgType.TEXT)  # type: ignore[union-attr]


async def die(_gateway: HostileGateway, channels: aiohttp.web.WebSocketResponse, parent: str) -> None:
    await say(channels, parent, "stream", name="stdout", text="begun\n")
    await say(channels, "", "status", execution_state="dead")


@pytest.mark.parametrize("behaviour", [close_early, send_huge, send_bad_text, die])
async def test_a_connection_that_breaks_loses_the_session(
    hostile: HostileGateway, hostile_session: JupyterSession, behaviour: Behaviour
) -> None:
    hostile.behaviour = behaviour

    execution, outputs = await ran(hostile_session, "1")

    assert (execution.outcome, execution.is_lost, logs_of(outputs)) == ("crashed", True, "begun\n")
    assert execution.detail
    with pytest.raises(SandboxUnavailable):
        await ran(hostile_session, "1")


async def test_a_flood_ends_the_session(hostile: HostileGateway, hostile_address: str, settings: Settings) -> None:
    async def flood(_gateway: HostileGateway, channels: aiohttp.web.WebSocketResponse, parent: str) -> None:
        with contextlib.suppress(ConnectionError):
            for _ in range(1000):
                await say(channels, parent, "stream", name="stdout", text="x" * MEGABYTE)

    hostile.behaviour = flood
    limits = {"sandbox_images_max": 1, "sandbox_image_bytes_max": 1024, "sandbox_log_bytes_max": 2048}
    async with session_at(hostile_address, settings, **limits) as session:
        execution, outputs = await ran(session, "1")

    assert (execution.outcome, execution.is_lost) == ("crashed", True)
    assert len(logs_of(outputs)) < 2200


async def test_silence_ends_with_the_limit_of_time(hostile: HostileGateway, hostile_session: JupyterSession) -> None:
    async def say_nothing(_gateway: HostileGateway, _channels: aiohttp.web.WebSocketResponse, _parent: str) -> None:
        pass

    hostile.behaviour = say_nothing
    began = time.monotonic()
    execution, _ = await ran(hostile_session, "1")

    assert (execution.outcome, execution.is_lost) == ("timeout", True)
    assert time.monotonic() - began < 5
    assert "POST /api/kernels/kernel-1/interrupt" in hostile.calls
    assert "POST /api/kernels/kernel-1/restart" in hostile.calls


LISTED = [["../etc", 1, "v"], ["/a", 1, "v"], ["a/../b", 1, "v"], ["ok", 3, "v"], ["neg", -1, "v"], ["long", 1, "v" * 500], ["ok", 4, "v"]]


async def test_files_that_cannot_be_are_left_out(hostile: HostileGateway, hostile_session: JupyterSession) -> None:
    hostile.order_answer = lambda order: json.dumps({"files": LISTED}).encode() + b"\n"

    assert [file.name for file in await hostile_session.list_files()] == ["ok"]


@pytest.mark.parametrize("answer", [b"", b"{", b'{"files": 7}\n', b'{"files": [["a"]]}\n', b"\xff\n", b'{"files": [["a", 1e99, ""]]}\n'])
async def test_answers_that_are_none_lose_the_session(hostile: HostileGateway, hostile_session: JupyterSession, answer: bytes) -> None:
    hostile.order_answer = lambda order: answer

    assert await hostile_session.list_files() == []
    assert hostile_session.is_lost
    with pytest.raises(SandboxFileMissing):
        await whole(hostile_session, "a")


async def test_a_file_has_no_more_bytes_than_were_asked_for(hostile: HostileGateway, hostile_address: str, settings: Settings) -> None:
    async with session_at(hostile_address, settings, sandbox_disk_bytes_max=3 * MEGABYTE) as session:
        hostile.order_answer = lambda order: b"{}\n" + bytes(order.get("size", 0))
        assert len(await whole(session, "endless")) == 3 * MEGABYTE
        hostile.order_answer = lambda order: b"{}\n" + bytes(order.get("size", 0) + 1)
        with pytest.raises(SandboxFileMissing):
            await whole(session, "larger")


@pytest.mark.parametrize("path", ["/api/kernelspecs", "/api/kernels", "/channels"])
async def test_redirects_are_not_followed(hostile: HostileGateway, hostile_address: str, settings: Settings, path: str) -> None:
    hostile.redirected_to = path
    sandbox = JupyterSandbox(dataclasses.replace(settings, sandbox_url=hostile_address))

    with pytest.raises(SandboxUnavailable):
        await sandbox._claimed(is_warm=False)  # pyright: ignore[reportPrivateUsage]
    assert not [call for call in hostile.calls if "stolen" in call]


async def test_an_id_that_is_none_is_not_used(hostile: HostileGateway, hostile_address: str, settings: Settings) -> None:
    hostile.kernel_id = "../../stolen"
    sandbox = JupyterSandbox(dataclasses.replace(settings, sandbox_url=hostile_address))

    with pytest.raises(SandboxUnavailable, match="id that is none"):
        await sandbox.create_session()
    assert not [call for call in hostile.calls if "stolen" in call]


async def test_a_server_that_is_no_gateway_is_told(hostile: HostileGateway, hostile_address: str, settings: Settings) -> None:
    sandbox = JupyterSandbox(dataclasses.replace(settings, sandbox_url=f"{hostile_address}/elsewhere"))

    with pytest.raises(SandboxUnavailable, match="no Jupyter"):
        await sandbox.create_session()


async def test_nothing_that_listens_is_told_in_words(settings: Settings) -> None:
    sandbox = JupyterSandbox(dataclasses.replace(settings, sandbox_url="http://127.0.0.1:9"))

    with pytest.raises(SandboxUnavailable, match=r"http://127\.0\.0\.1:9 cannot be used"):
        await sandbox.check()


# ---- the manifests


def test_the_manifests_say_what_their_readme_says() -> None:
    yaml = pytest.importorskip("yaml")
    names = yaml.safe_load((MANIFESTS / "kustomization.yaml").read_text())["resources"]
    objects = [found for name in names for found in yaml.safe_load_all((MANIFESTS / name).read_text())]
    by_kind = {found["kind"]: found for found in objects}
    pod = by_kind["Job"]["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    rules = by_kind["NetworkPolicy"]["spec"]

    assert by_kind["RuntimeClass"]["handler"] == "runsc"
    assert pod["runtimeClassName"] == by_kind["RuntimeClass"]["metadata"]["name"]
    assert by_kind["Namespace"]["metadata"]["labels"]["pod-security.kubernetes.io/enforce"] == "restricted"
    assert rules["podSelector"] == {}
    assert rules["policyTypes"] == ["Ingress", "Egress"]
    assert rules["egress"] == []
    assert [len(rule["from"]) for rule in rules["ingress"]] == [1]
    assert set(rules["ingress"][0]["from"][0]) == {"namespaceSelector", "podSelector"}
    assert rules["ingress"][0]["ports"] == [{"protocol": "TCP", "port": 8888}]
    assert pod["automountServiceAccountToken"] is False
    assert pod["enableServiceLinks"] is False
    assert pod["restartPolicy"] == "Never"
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["securityContext"]["runAsUser"] > 0
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "privileged": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert {"cpu", "memory"} <= set(container["resources"]["limits"])
    volumes = {volume["name"]: volume for volume in pod["volumes"]}
    mounts = {mount["mountPath"]: mount for mount in container["volumeMounts"]}
    for path in ("/mnt/data", "/tmp"):
        assert volumes[mounts[path]["name"]]["emptyDir"]["medium"] == "Memory"
        assert volumes[mounts[path]["name"]]["emptyDir"]["sizeLimit"]
    assert not [volume for volume in pod["volumes"] if "hostPath" in volume]
    assert not {"hostNetwork", "hostPID", "hostIPC"} & set(pod)
    assert by_kind["Service"]["spec"]["clusterIP"] == "None"
    assert by_kind["Secret"]["stringData"] == {"token": "REPLACE-ME"}
    assert container["command"][0] == "jupyter-kernelgateway"

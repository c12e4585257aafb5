"""The sandbox `opensandbox`, against a stand-in for its server over real Jupyter kernels of this machine."""

import asyncio
import base64
import itertools
import json
import os
import signal
from collections.abc import AsyncIterator, Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from mini_assistant.errors import ConfigError, SandboxFileMissing, SandboxFull, SandboxUnavailable
from mini_assistant.sandboxes import opensandbox, opensandbox_session
from mini_assistant.sandboxes.base import Execution, Image, Logs, Output
from mini_assistant.sandboxes.opensandbox import OpenSandboxService
from mini_assistant.sandboxes.opensandbox_stream import CallOutput, CallStream
from mini_assistant.settings import Settings
from tests.opensandbox_stand_in import JUPYTER, KEY, KernelGateway, OpenSandboxStandIn

MEGABYTE = 1024 * 1024
PNG = b"\x89PNG\r\n\x1a\n" + b"0" * 100

pytestmark = pytest.mark.xdist_group("kernels")
needs_jupyter = pytest.mark.skipif(not JUPYTER.is_file(), reason="the environment of Jupyter is not installed (`make test` does)")


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[KernelGateway]:
    gateway = KernelGateway(tmp_path_factory.mktemp("gateway"))
    yield gateway
    gateway.close()


@pytest.fixture
async def server(tmp_path: Path, gateway: KernelGateway) -> AsyncIterator[OpenSandboxStandIn]:
    async with OpenSandboxStandIn(tmp_path, gateway) as server:
        yield server


Make = Callable[..., OpenSandboxService]


@pytest.fixture
async def make_service() -> AsyncIterator[Make]:
    made: list[OpenSandboxService] = []

    def make(server: OpenSandboxStandIn, **changed: Any) -> OpenSandboxService:
        made.append(OpenSandboxService(Settings(**{"sandbox_url": server.url, "sandbox_token": KEY} | changed)))
        return made[-1]

    yield make
    for service in made:
        await service.close()


@pytest.fixture
def service(server: OpenSandboxStandIn, make_service: Make) -> OpenSandboxService:
    return make_service(server, sandbox_call_timeout_seconds=20.0, sandbox_disk_bytes_max=MEGABYTE, sandbox_files_max=40)


async def run(session: Any, code: str) -> tuple[Execution, str, list[Output]]:
    outputs: list[Output] = []
    execution = await session.execute(code, outputs.append)
    return execution, "".join(output.text for output in outputs if isinstance(output, Logs)), outputs


async def pieces_of(*pieces: bytes) -> AsyncIterator[bytes]:
    for piece in pieces:
        yield piece


async def read(session: Any, name: str) -> bytes:
    return b"".join([piece async for piece in session.read_file(name)])


async def names_in(session: Any) -> list[str]:
    return [file.name for file in await session.list_files()]


# ---- code --------------------------------------------------------------------------------------------------------------------------


@needs_jupyter
async def test_state_is_kept_and_output_comes_in_its_order(service: OpenSandboxService) -> None:
    session = await service.create_session()

    assert await run(session, "x = 20\nprint('one')\nx + 1") == (Execution("ok"), "one\n21\n", [Logs("one\n"), Logs("21\n")])
    execution, logs, _ = await run(session, "import sys\nprint('out', flush=True)\nprint('err', file=sys.stderr, flush=True)\nx * 2")
    assert (execution, logs) == (Execution("ok"), "out\nerr\n40\n")
    assert (await run(session, "None"))[1] == ""
    assert (await run(session, "import os; os.getcwd()"))[1] == "'/mnt/data'\n"
    assert await run(session, " \n") == (Execution("ok"), "", [])
    assert (await run(session, "print('\ud800 is no letter')"))[0].outcome == "ok"


@needs_jupyter
async def test_errors_are_told_and_end_the_call_only(service: OpenSandboxService) -> None:
    session = await service.create_session()
    await session.execute("x = 1", lambda _: None)

    execution, logs, _ = await run(session, "def f():\n    return 1 / 0\nprint('before')\nf()")
    assert execution == Execution("error")
    assert logs.startswith("before\n")
    assert "return 1 / 0" in logs
    assert logs.endswith("ZeroDivisionError: division by zero\n")
    assert "\x1b" not in logs
    assert (await run(session, "def"))[0].outcome == "error"
    assert (await run(session, "input()"))[0].outcome == "error"
    assert await run(session, "import sys; sys.exit(3)") == (Execution("ok"), "", [])
    assert await run(session, "exit()") == (Execution("ok"), "", [])
    assert (await run(session, "raise MemoryError"))[0] == Execution("memory")
    assert (await run(session, "raise OSError(28, 'No space left on device')"))[0] == Execution("disk_limit")
    assert (await run(session, "x"))[1] == "1\n"


@needs_jupyter
async def test_figures_come_as_png_where_they_were_shown(service: OpenSandboxService) -> None:
    session = await service.create_session(is_warm=True)

    execution, _, outputs = await run(
        session, "import matplotlib.pyplot as plt\nprint('a')\nplt.plot([1, 2])\nplt.show()\nprint('b')\nplt.plot([2, 1])\nprint('c')"
    )

    assert execution == Execution("ok")
    # A line may come in two pieces.
    assert [kind for kind, _ in itertools.groupby(outputs, type)] == [Logs, Image, Logs, Image]
    assert all(output.data.startswith(b"\x89PNG\r\n\x1a\n") for output in outputs if isinstance(output, Image))
    _, logs, outputs = await run(session, "fig, ax = plt.subplots(); plt.close(fig); fig")
    assert [type(output) for output in outputs] == [Image]
    assert logs == ""
    _, logs, outputs = await run(session, "plt.plot([1])\n3")
    assert [type(output) for output in outputs] == [Logs, Image]
    assert logs == "3\n"
    execution, logs, outputs = await run(session, "plt.plot([1])\n1 / 0")
    assert execution == Execution("error")
    assert sorted(type(output).__name__ for output in outputs) == ["Image", "Logs"]


@needs_jupyter
async def test_output_that_takes_its_time_belongs_to_its_own_call(service: OpenSandboxService) -> None:
    session = await service.create_session()

    code = "import time\nfrom IPython.display import display\ndisplay(1)\ntime.sleep(0.4)\nprint(2)\ntime.sleep(0.4)\n3"
    assert (await run(session, code))[1] == "1\n2\n3\n"
    for number in range(10):
        assert (await run(session, f"print({number}); {number}"))[1] == f"{number}\n{number}\n"


@needs_jupyter
async def test_output_beyond_the_limits_is_left_out(server: OpenSandboxStandIn, make_service: Make) -> None:
    service = make_service(server, sandbox_log_bytes_max=1024, sandbox_images_max=1, sandbox_image_bytes_max=4096)
    session = await service.create_session()

    _, logs, _ = await run(session, "print('ä' * 4000)\nprint('later')")
    assert logs == "ä" * 512 + "\n[Output beyond 1024 bytes was left out.]\n"
    _, logs, _ = await run(session, "print('x' * 1_000_000)")
    assert "left out" in logs
    code = f"from IPython.display import Image, display\nfor _ in range(3): display(Image({PNG!r}))"
    _, logs, outputs = await run(session, code)
    assert [output for output in outputs if isinstance(output, Image)] == [Image(PNG)]
    assert logs == "[There were more figures; they were left out.]\n"
    assert (await run(session, "1"))[1] == "1\n"


@needs_jupyter
async def test_what_takes_too_long_is_interrupted(server: OpenSandboxStandIn, make_service: Make) -> None:
    session = await make_service(server, sandbox_call_timeout_seconds=0.5).create_session()
    await session.execute("x = 5", lambda _: None)

    for code in ("while True: pass", "import time; time.sleep(60)"):
        execution, logs, _ = await run(session, code)
        assert execution == Execution("timeout", "The code was stopped after 0.5 seconds.")
        assert "KeyboardInterrupt" in logs
    assert (await run(session, "x"))[1] == "5\n"


@needs_jupyter
async def test_what_does_not_listen_to_an_interrupt_is_killed_and_its_files_stay(
    server: OpenSandboxStandIn, make_service: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(opensandbox_session, "_GRACE_SECONDS", 0.3)
    session = await make_service(server, sandbox_call_timeout_seconds=1.0).create_session()
    code = "import signal\nsignal.signal(signal.SIGINT, signal.SIG_IGN)\nopen('kept.txt', 'w').write('kept')\nwhile True: pass"

    execution, _, _ = await run(session, code)

    assert execution == Execution("timeout", "The code was stopped after 1 seconds.", is_lost=True)
    assert session.is_lost
    assert await names_in(session) == ["kept.txt"]
    assert await read(session, "kept.txt") == b"kept"
    with pytest.raises(SandboxUnavailable):
        await session.execute("1", lambda _: None)
    with pytest.raises(SandboxUnavailable):
        await session.put_file("b.txt", pieces_of(b"1"))
    assert [sandbox.kernels for sandbox in server.sandboxes.values()] == [{}]


@needs_jupyter
async def test_a_call_is_cancelled_by_an_interrupt(service: OpenSandboxService) -> None:
    session = await service.create_session()
    await session.interrupt()
    begun = asyncio.Event()
    running = asyncio.create_task(session.execute("x = 7\nprint('begun')\nimport time\ntime.sleep(60)", lambda _: begun.set()))
    await begun.wait()

    await session.interrupt()

    assert await running == Execution("cancelled")
    assert (await run(session, "x"))[1] == "7\n"


@needs_jupyter
async def test_an_interpreter_that_ends_is_noticed(server: OpenSandboxStandIn, service: OpenSandboxService) -> None:
    session = await service.create_session()
    execution, _, _ = await run(session, "open('a.txt', 'w').write('1')\nimport os\nos._exit(1)")
    assert execution == Execution("crashed", "The interpreter ended.", is_lost=True)
    assert await names_in(session) == ["a.txt"]

    # Between two calls it is started again by Jupyter, without its variables: the session does not pretend that it is the same.
    session = await service.create_session()
    _, process_id, _ = await run(session, "import os; x = 1; os.getpid()")
    os.kill(int(process_id), signal.SIGKILL)
    async with asyncio.timeout(20):
        while not session.is_lost:
            try:
                await session.execute("x", lambda _: None)
            except SandboxUnavailable as exc:
                assert exc.message == "The interpreter of the sandbox has ended."  # noqa: PT017 - it may take a moment


@needs_jupyter
async def test_an_interpreter_that_was_ended_for_its_memory_is_told_so(server: OpenSandboxStandIn, service: OpenSandboxService) -> None:
    kills = 0

    async def events(request: web.Request) -> web.Response:
        assert dict(request.query) == {"path": "/sys/fs/cgroup/memory.events", "offset": "1", "limit": "20"}
        return web.Response(text=f"low 0\noom 1\noom_kill {kills}\noom_group_kill 0\n")

    server.overrides["GET", "/files/download"] = events
    session = await service.create_session()
    kills = 1

    execution, _, _ = await run(session, "import os; os._exit(1)")

    assert execution == Execution("memory", "The code took more memory than it may.", is_lost=True)


@needs_jupyter
async def test_sessions_are_apart(service: OpenSandboxService) -> None:
    one, two = await asyncio.gather(service.create_session(), service.create_session())
    await asyncio.gather(one.execute("x = 1; open('f', 'w').write('1')", lambda _: None), two.execute("x = 2", lambda _: None))

    assert [(await run(session, "x"))[1] for session in (one, two)] == ["1\n", "2\n"]
    assert await names_in(two) == []
    await one.close()
    assert (await run(two, "x"))[1] == "2\n"


# ---- files -------------------------------------------------------------------------------------------------------------------------

ODD_NAMES = [
    "plain.csv",
    "two words.csv",
    "folder/sub folder/ä ö.txt",
    "数据.csv",
    "$HOME.txt",
    "${x}$$y$.txt",
    "~tilde",
    "-rf",
    "quote'and\"double",
    "per%20cent&amp=+.txt",
    "line\nbreak",
    ".hidden",
    "n" * 255,
]


@needs_jupyter
async def test_files_go_in_and_out_under_their_names(service: OpenSandboxService) -> None:
    session = await service.create_session()
    for number, name in enumerate(ODD_NAMES):
        await session.put_file(name, pieces_of(b"content ", str(number).encode()))

    assert await names_in(session) == sorted(ODD_NAMES)
    assert [await read(session, name) for name in ODD_NAMES] == [f"content {number}".encode() for number in range(len(ODD_NAMES))]
    execution, logs, _ = await run(
        session, f"[open('/mnt/data/' + name).read()[8:] for name in {ODD_NAMES!r}] == list(map(str, range(13)))"
    )
    assert (execution.outcome, logs) == ("ok", "True\n")


@needs_jupyter
async def test_a_file_is_replaced_and_its_version_changes(service: OpenSandboxService) -> None:
    session = await service.create_session()
    await session.put_file("a.bin", pieces_of(b"1" * 600_000, b"2" * 300_000))
    [before] = await session.list_files()
    assert before.size_bytes == 900_000
    assert await read(session, "a.bin") == b"1" * 600_000 + b"2" * 300_000

    await session.put_file("a.bin", pieces_of())
    [after] = await session.list_files()
    assert (after.name, after.size_bytes) == ("a.bin", 0)
    assert after.version != before.version
    assert [file.version for file in await session.list_files()] == [after.version]
    await session.execute("open('a.bin', 'w').write('3')", lambda _: None)
    assert await read(session, "a.bin") == b"3"


@needs_jupyter
async def test_what_does_not_fit_is_refused_with_nothing_left(server: OpenSandboxStandIn, service: OpenSandboxService) -> None:
    session = await service.create_session()
    await session.put_file("a", pieces_of(b"1" * 700_000))

    with pytest.raises(SandboxFull):
        await session.put_file("b", pieces_of(b"2" * 400_000))
    for name in ("../b", "/b", "a//b", "", ".", "n" * 256, "a\0b", "\ud800"):
        with pytest.raises(SandboxFull):
            await session.put_file(name, pieces_of(b"1"))
    assert await names_in(session) == ["a"]
    await session.put_file("a", pieces_of(b"1" * 1_000_000))

    async def full(request: web.Request) -> web.Response:
        return web.json_response({"code": "RUNTIME_ERROR", "message": "write /mnt/data/a: no space left on device"}, status=500)

    server.overrides["POST", "/files/upload"] = full
    with pytest.raises(SandboxFull):
        await session.put_file("a", pieces_of(b"1"))
    assert await names_in(session) == []


@needs_jupyter
async def test_code_that_writes_too_much_is_told(service: OpenSandboxService) -> None:
    session = await service.create_session()

    execution, _, _ = await run(session, "open('big', 'wb').write(b'1' * 2_000_000)")
    assert execution.outcome == "disk_limit"
    execution, _, _ = await run(session, "import os\nos.remove('big')\nfor n in range(41): open(f'{n:02}', 'w').close()")
    assert execution.outcome == "disk_limit"
    assert await names_in(session) == [f"{n:02}" for n in range(40)]
    with pytest.raises(SandboxFull):
        await session.put_file("one-more", pieces_of(b"1"))


@needs_jupyter
async def test_links_lead_nowhere(tmp_path: Path, service: OpenSandboxService) -> None:
    target = tmp_path / "target"
    target.mkdir()
    (target / "secret").write_text("secret")
    session = await service.create_session()
    code = (
        f"import os\nos.symlink({str(target / 'secret')!r}, 'file-link')\nos.symlink({str(target)!r}, 'folder-link')\n"
        "os.symlink('gone', 'dangling')\nos.mkfifo('pipe')\nopen(b'no-\\xff-utf8', 'w').close()\nopen('real', 'w').write('1')"
    )
    assert (await run(session, code))[0] == Execution("ok")

    assert await names_in(session) == ["real"]
    for name in ("file-link", "folder-link/secret", "dangling", "pipe", "folder-link", "gone", "../secret", "real/x", "\ud800"):
        with pytest.raises(SandboxFileMissing):
            await read(session, name)
    await session.put_file("file-link", pieces_of(b"mine"))
    with pytest.raises(SandboxFull):
        await session.put_file("folder-link/secret", pieces_of(b"mine"))
    await session.put_file("pipe", pieces_of(b"mine"))
    assert (target / "secret").read_text() == "secret"
    assert await names_in(session) == ["file-link", "pipe", "real"]
    await session.execute("import shutil; os.chdir('/'); shutil.rmtree('/mnt/data')", lambda _: None)
    assert await names_in(session) == []


# ---- the life of a sandbox ---------------------------------------------------------------------------------------------------------


@needs_jupyter
async def test_check_tells_where_code_runs(server: OpenSandboxStandIn, service: OpenSandboxService) -> None:
    assert await service.check() == f"{server.url}/v1, image opensandbox/code-interpreter:latest"
    assert len(server.ended) == 1
    assert server.sandboxes == {}


@needs_jupyter
async def test_a_sandbox_is_asked_for_without_a_network_and_for_minutes(server: OpenSandboxStandIn, make_service: Make) -> None:
    service = make_service(server, sandbox_image="registry.example/ours:1", sandbox_memory_bytes_max=512 * MEGABYTE)
    await service.create_session()

    [sandbox] = server.sandboxes.values()
    assert sandbox.body["networkPolicy"] == {"defaultAction": "deny", "egress": []}
    assert sandbox.body["resourceLimits"] == {"cpu": "1", "memory": "512Mi"}
    assert sandbox.body["image"] == {"uri": "registry.example/ours:1"}
    assert sandbox.body["timeout"] == 600


@needs_jupyter
async def test_a_slow_start_is_waited_for(server: OpenSandboxStandIn, service: OpenSandboxService) -> None:
    server.polls_before_running = 2
    server.pings_before_ready = 2

    assert (await run(await service.create_session(), "1"))[1] == "1\n"


@needs_jupyter
async def test_where_only_the_server_reaches_its_sandboxes(tmp_path: Path, gateway: KernelGateway, make_service: Make) -> None:
    async with OpenSandboxStandIn(tmp_path, gateway, is_proxied=True) as server:
        service = make_service(server, sandbox_url=f"{server.url}/?use_server_proxy=true")
        session = await service.create_session()
        await session.put_file("a", pieces_of(b"1"))
        assert await read(session, "a") == b"1"
        assert (await run(session, "1"))[1] == "1\n"
        await service.close()
        assert server.sandboxes == {}


@needs_jupyter
async def test_a_sandbox_is_kept_alive_while_it_is_open(
    server: OpenSandboxStandIn, service: OpenSandboxService, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(opensandbox, "_RENEW_INTERVAL_SECONDS", 0.1)
    session = await service.create_session()
    [sandbox] = server.sandboxes.values()
    assert sandbox.expires_at is not None
    async with asyncio.timeout(10):
        while len(server.renewals) < 3:  # noqa: ASYNC110 - renewals have no event
            await asyncio.sleep(0.05)
    assert server.renewals == sorted(server.renewals)
    assert timedelta(0) < server.renewals[1] - server.renewals[0] < timedelta(seconds=5)

    await server.end_all()
    async with asyncio.timeout(10):
        while not session.is_lost:  # noqa: ASYNC110 - nor has a loss
            await asyncio.sleep(0.05)


@needs_jupyter
async def test_a_sandbox_that_is_gone_is_lost(server: OpenSandboxStandIn, service: OpenSandboxService) -> None:
    idle, busy = await asyncio.gather(service.create_session(), service.create_session())
    begun = asyncio.Event()
    running = asyncio.create_task(busy.execute("print(1)\nimport time\ntime.sleep(60)", lambda _: begun.set()))
    await begun.wait()

    await server.end_all()

    assert await running == Execution("crashed", "The interpreter ended.", is_lost=True)
    with pytest.raises(SandboxUnavailable):
        await idle.execute("1", lambda _: None)
    assert idle.is_lost
    with pytest.raises(SandboxUnavailable):
        await idle.list_files()
    with pytest.raises(SandboxFileMissing):
        await read(idle, "a")
    await idle.close()


@needs_jupyter
async def test_close_always_ends_the_sandbox(server: OpenSandboxStandIn, service: OpenSandboxService) -> None:
    failures = 2

    async def fail_twice(request: web.Request) -> web.Response:
        nonlocal failures
        failures -= 1
        if failures == 0:
            server.overrides.clear()
        return web.Response(status=500)

    session = await service.create_session()
    [sandbox_id] = server.sandboxes
    begun = asyncio.Event()
    running = asyncio.create_task(session.execute("print(1)\nimport time\ntime.sleep(60)", lambda _: begun.set()))
    await begun.wait()
    server.overrides["DELETE", sandbox_id] = fail_twice

    await session.close()
    await session.close()

    assert server.ended == [sandbox_id]
    assert (await running).is_lost
    await service.create_session()
    await service.close()
    assert server.sandboxes == {}
    with pytest.raises(SandboxUnavailable):
        await service.create_session()


async def hung(request: web.Request) -> web.Response:
    await asyncio.sleep(30)
    return web.Response()


@needs_jupyter
@pytest.mark.parametrize("place", [("POST", "/v1/sandboxes"), ("GET", "/ping"), ("POST", "/code/context"), ("POST", "/code")])
async def test_a_start_that_is_cancelled_leaves_no_sandbox(
    server: OpenSandboxStandIn, service: OpenSandboxService, place: tuple[str, str]
) -> None:
    reached = asyncio.Event()

    async def slow(request: web.Request) -> web.StreamResponse:
        reached.set()
        if place[1] != "/v1/sandboxes":
            return await hung(request)
        await asyncio.sleep(0.2)
        server.overrides.clear()
        return await server._answer(request)

    server.overrides[place] = slow
    starting = asyncio.create_task(service.create_session())
    await reached.wait()

    starting.cancel()
    await asyncio.wait([starting])

    assert starting.cancelled()
    await service.close()
    assert server.sandboxes == {}
    assert len(server.ended) == 1


@needs_jupyter
async def test_a_call_whose_caller_is_cancelled_loses_the_session(service: OpenSandboxService) -> None:
    session = await service.create_session()
    begun = asyncio.Event()
    running = asyncio.create_task(session.execute("print(1)\nimport time\ntime.sleep(60)", lambda _: begun.set()))
    await begun.wait()

    running.cancel()
    await asyncio.wait([running])

    assert running.cancelled()
    assert session.is_lost


# ---- what cannot be --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("url", ["", "127.0.0.1:8080", "ftp://127.0.0.1", "http://", "http://[::1"])
def test_an_address_that_is_none_is_refused_at_the_start(url: str) -> None:
    with pytest.raises(ConfigError, match="sandbox_url"):
        OpenSandboxService(Settings(sandbox_url=url))


def test_a_key_that_is_none_is_refused_at_the_start() -> None:
    with pytest.raises(ConfigError, match="sandbox_token"):
        OpenSandboxService(Settings(sandbox_url="http://127.0.0.1:1", sandbox_token="a\nb"))


@needs_jupyter
async def test_a_wrong_key_is_told_as_such(server: OpenSandboxStandIn, make_service: Make) -> None:
    with pytest.raises(SandboxUnavailable, match="the key in `sandbox_token` is not accepted") as caught:
        await make_service(server, sandbox_token="wrong").check()
    assert not caught.value.retryable
    assert "wrong" not in caught.value.message


async def test_a_server_that_is_not_there_is_told_as_such(make_service: Make, unused_tcp_port: int) -> None:
    service = OpenSandboxService(Settings(sandbox_url=f"http://127.0.0.1:{unused_tcp_port}"))
    with pytest.raises(SandboxUnavailable, match="cannot be reached"):
        await service.check()
    await service.close()


def told(body: Any, status: int = 200, **headers: str) -> Callable[[web.Request], Any]:
    async def answer(request: web.Request) -> web.Response:
        return web.Response(body=body if isinstance(body, bytes) else json.dumps(body).encode(), status=status, headers=headers)

    return answer


async def endless(request: web.Request) -> web.StreamResponse:
    response = web.StreamResponse()
    await response.prepare(request)
    while True:
        await response.write(b"[" * 65536)


RUNNING = {"id": "x", "status": {"state": "Running"}}
HOSTILE = {
    "garbage": ("POST", "/v1/sandboxes", told(b"\xff\xfe<html>")),
    "another form": ("POST", "/v1/sandboxes", told([1, 2])),
    "an id with a path in it": ("POST", "/v1/sandboxes", told({**RUNNING, "id": "../../admin"})),
    "an endless answer": ("POST", "/v1/sandboxes", endless),
    "a redirect": ("POST", "/v1/sandboxes", told(b"", 307, Location="/v1/elsewhere")),
    "a network policy refused": ("POST", "/v1/sandboxes", told({"code": "X", "message": "networkPolicy needs\n[egress] image"}, 400)),
    "a sandbox that failed": ("GET", "/sandboxes/x", told({**RUNNING, "status": {"state": "Failed", "message": "no such image"}})),
    "an address with a user": ("GET", "/endpoints/44772", told({"endpoint": "user:key@127.0.0.1:1"})),
    "an address that is none": ("GET", "/endpoints/44772", told({"endpoint": ":::"})),
    "headers of HTTP itself": ("GET", "/endpoints/44772", told({"endpoint": "127.0.0.1:1", "headers": {"Host": "x"}})),
    "headers with a line break": ("GET", "/endpoints/44772", told({"endpoint": "127.0.0.1:1", "headers": {"X-A": "a\r\nB: c"}})),
    "a compressed answer": ("GET", "/ping", told(b"\x1f\x8b", 200, **{"Content-Encoding": "gzip"})),
    "a context with a path in it": ("POST", "/code/context", told({"id": "../files"})),
    "a stream without an end": ("POST", "/code", told(b'{"type":"init"}\n\n')),
    "a stream without a number": ("POST", "/code", told(b'{"type":"stdout","text":"evil"}\n\n{"type":"execution_complete"}\n\n')),
    "a busy interpreter": ("POST", "/code", told(b'{"code":"RUNTIME_ERROR","message":"session is busy"}\n\n')),
}


@needs_jupyter
@pytest.mark.parametrize("case", HOSTILE)
async def test_a_start_that_goes_wrong_is_told_and_leaves_nothing(
    server: OpenSandboxStandIn, service: OpenSandboxService, case: str
) -> None:
    method, path, answer = HOSTILE[case]

    async def ended(request: web.Request) -> web.Response:
        server.ended.append("x")
        return web.Response(status=204)

    box = f"{server.host}/sandboxes/x"
    server.overrides = {(method, path): answer}
    server.overrides |= {
        place: told(body)
        for place, body in {
            ("POST", "/v1/sandboxes"): RUNNING,
            ("GET", "/sandboxes/x"): RUNNING,
            ("GET", "/endpoints/44772"): {"endpoint": box},
            ("GET", "/ping"): {},
            ("POST", "/directories"): {},
            ("POST", "/code/context"): {"id": "context"},
        }.items()
        if place != (method, path)
    }
    server.overrides["DELETE", "/sandboxes/x"] = ended

    with pytest.raises(SandboxUnavailable) as caught:
        await service.create_session()

    assert len(caught.value.message) < 500
    assert "\n" not in caught.value.message
    assert server.ended == ([] if path == "/v1/sandboxes" else ["x"])


@needs_jupyter
async def test_hostile_answers_of_a_sandbox_harm_its_own_session_only(server: OpenSandboxStandIn, service: OpenSandboxService) -> None:
    session = await service.create_session()
    record = {"type": "file", "size": 1, "modified_at": "x", "created_at": "x", "owner": "r", "group": "r", "mode": 644}
    paths = [
        "/mnt/data/../etc/passwd",
        "/etc/passwd",
        "/mnt/data",
        "/mnt/data/",
        "/mnt/data/a//b",
        "/mnt/data/" + "n" * 256,
        "/mnt/data/ok",
    ]
    server.overrides["GET", "/files/search"] = told(
        [*({**record, "path": path} for path in paths), {**record, "path": "/mnt/data/-", "size": -1}]
    )
    assert await names_in(session) == ["ok"]

    server.overrides["GET", "/files/search"] = told([{**record, "path": f"/mnt/data/{n:06}"} for n in range(20_000)])
    assert await names_in(session) == [f"{n:06}" for n in range(40)]
    server.overrides["GET", "/files/search"] = endless
    with pytest.raises(SandboxUnavailable):
        await session.list_files()
    server.overrides["GET", "/files/download"] = endless
    server.overrides["GET", "/files/info"] = told({"/mnt/data/ok": {**record, "path": "x"}})
    assert len(await read(session, "ok")) == MEGABYTE
    server.overrides["GET", "/files/info"] = told({"another": {**record, "path": "x"}})
    with pytest.raises(SandboxFileMissing):
        await read(session, "ok")


@needs_jupyter
@pytest.mark.parametrize("body", [b"", b"\xff" * 100, b'{"type":"error"}\n\n', b'{"code":"E","message":"session is busy"}\n'])
async def test_a_stream_that_says_no_end_loses_the_session(server: OpenSandboxStandIn, service: OpenSandboxService, body: bytes) -> None:
    session = await service.create_session()
    server.overrides["POST", "/code"] = told(body)

    execution, _, _ = await run(session, "1")

    assert execution == Execution("crashed", "The interpreter ended.", is_lost=True)


@needs_jupyter
async def test_a_flood_of_output_is_stopped_by_the_time_limit(server: OpenSandboxStandIn, make_service: Make) -> None:
    session = await make_service(server, sandbox_call_timeout_seconds=1.0).create_session()
    server.overrides["POST", "/code"] = endless

    execution, logs, _ = await run(session, "1")

    assert execution == Execution("timeout", "The code was stopped after 1 seconds.", is_lost=True)
    assert "left out" in logs


# ---- the stream alone --------------------------------------------------------------------------------------------------------------


def streamed(data: bytes, *, piece_bytes: int = 7, **changed: Any) -> tuple[CallStream, list[Output]]:
    settings = Settings(**{"sandbox_image_bytes_max": 1024, "sandbox_log_bytes_max": 1024} | changed)
    outputs: list[Output] = []
    stream = CallStream(settings, CallOutput(settings, outputs.append))
    for start in range(0, len(data), piece_bytes):
        stream.feed(data[start : start + piece_bytes])
    return stream, outputs


def event(**fields: Any) -> bytes:
    return json.dumps(fields).encode() + b"\n\n"


@pytest.mark.parametrize("piece_bytes", [1, 7, 100_000])
def test_events_are_read_however_they_are_cut(piece_bytes: int) -> None:
    data = event(type="init", text="x") + b"data: " + event(type="stdout", text="ä") + b"\r\n" + event(type="ping", timestamp=1)
    data += event(type="result", results={"text": "1", "text/html": "<b>"}) + event(type="result", results={"text/plain": "2"})
    data += event(type="result", results={"image/png": base64.b64encode(PNG).decode(), "text": "<Figure>"}) + event(
        type="execution_complete"
    )

    stream, outputs = streamed(data, piece_bytes=piece_bytes)

    assert outputs == [Logs("ä"), Logs("1\n"), Logs("2\n"), Image(PNG)]
    assert stream.is_complete
    assert stream.error_name is None


def test_what_is_no_event_is_left_out() -> None:
    data = b'null\n\n[1]\n{"type": 5}\n{"type":"stdout"}\n{"type":"stdout","text":null}\n{"type":"stdout","text":["x"]}\n\xff\n{"type":"st'
    data += b'\n{"type":"result","results":{"text":{"a":1},"image/png":7}}\n{"type":"result"}\n{"type":"what","text":"x"}\n'
    data += b'{"type":"stdout","text":"\\ud800"}\n' + b"[" * 5000 + b"\n" + event(type="stdout", text="kept")

    assert streamed(data)[1] in ([Logs("kept")], [Logs("?"), Logs("kept")])


def test_figures_that_are_none_or_too_large_are_left_out() -> None:
    def figure(data: bytes | str) -> bytes:
        return event(type="result", results={"image/png": data if isinstance(data, str) else base64.b64encode(data).decode()})

    _, outputs = streamed(figure(b"<svg>") + figure("a") + figure("ä") + figure("") + figure(PNG))
    assert outputs == [Image(PNG)]
    for size in (1025 - len(PNG), 2000, 40_000):
        _, outputs = streamed(figure(PNG + b"0" * size) + figure(PNG))
        assert outputs == [Logs("[A figure of more than 1024 bytes was left out.]\n"), Image(PNG)]
    _, outputs = streamed(figure(PNG + b"0" * 100_000) + figure(PNG))
    assert outputs == [Logs("\n[Output beyond 1024 bytes was left out.]\n"), Image(PNG)]


def test_a_traceback_comes_without_colours_and_may_be_missing() -> None:
    traceback = ["\x1b[0;31m-----\x1b[0m", "\x1b[38;5;241mValueError\x1b[39m: x"]

    stream, outputs = streamed(event(type="error", error={"ename": "ValueError", "evalue": "x", "traceback": traceback}))
    assert (stream.error_name, outputs) == ("ValueError", [Logs("-----\nValueError: x\n")])
    _, outputs = streamed(event(type="error", error={"ename": "ValueError", "evalue": "x", "traceback": None}))
    assert outputs == [Logs("ValueError: x\n")]


# ---- the stand-in itself -----------------------------------------------------------------------------------------------------------


@needs_jupyter
async def test_the_official_sdk_finds_the_stand_in_to_be_the_server(server: OpenSandboxStandIn) -> None:
    sdk = pytest.importorskip("opensandbox", reason="the SDK of OpenSandbox is not installed")
    interpreters = pytest.importorskip("code_interpreter", reason="the SDK of OpenSandbox's interpreters is not installed")
    config = sdk.config.ConnectionConfig(domain=server.host, api_key=KEY, disable_metrics=True)
    sandbox = await sdk.Sandbox.create(
        "opensandbox/code-interpreter:latest", entrypoint=["/opt/code-interpreter/code-interpreter.sh"], connection_config=config
    )
    try:
        interpreter = await interpreters.CodeInterpreter.create(sandbox, skip_health_check=True)
        context = await interpreter.codes.create_context("python")
        first = await interpreter.codes.run("x = 20\nprint('hello')\nx + 1", context=context)
        second = await interpreter.codes.run("1 / 0", context=context)
        await sandbox.files.create_directories([sdk.models.filesystem.WriteEntry(path="/mnt/data/sub", mode=777)])
        await sandbox.files.write_file("/mnt/data/sub/ä.txt", b"content", mode=644)
        found = await sandbox.files.search(sdk.models.filesystem.SearchEntry(path="/mnt/data", pattern="**"))
        content = await sandbox.files.read_bytes("/mnt/data/sub/ä.txt")
        info = await sandbox.files.get_file_info(["/mnt/data/sub"])
        await sandbox.renew(timedelta(minutes=20))
        running = asyncio.create_task(interpreter.codes.run("import time; time.sleep(60)", context=context))
        await asyncio.sleep(0.5)
        await interpreter.codes.interrupt(context.id)
        third = await running
        await interpreter.codes.delete_context(context.id)
        await interpreter.aclose()
    finally:
        await sandbox.destroy()

    assert [message.text for message in first.logs.stdout] == ["hello\n"]
    assert [result.text for result in first.result] == ["21"]
    assert (second.error.name, third.error.name) == ("ZeroDivisionError", "KeyboardInterrupt")
    assert [(entry.path, entry.size) for entry in found] == [("/mnt/data/sub/ä.txt", 7)]
    assert content == b"content"
    assert list(info) == ["/mnt/data/sub"]
    assert len(server.renewals) == 1
    assert server.sandboxes == {}

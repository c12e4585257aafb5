"""Code that does not end when it has to, what goes on after a call or a session has ended, and output that never stops."""

import asyncio
import subprocess
import sys
import time

import pytest

from mini_assistant.sandboxes.base import Execution, Image, Logs, Sandbox
from mini_assistant.settings import Settings
from tests.attacks.attempts import Heard, assert_next_session_works, cell, run, run_without_sandbox, wait_until_ended, with_prelude
from tests.attacks.targets import Targets, descendants, reap

CALL_SECONDS = 1.0
ENDS_SECONDS_MAX = CALL_SECONDS + 2 + 5
"""How long a call can take: its own time, the patience after an interrupt, and what a busy machine adds."""

ENDLESS = {
    "loop": cell("""
        while True:
            pass
    """),
    "sleep": "time.sleep(1000)",
    "interrupts ignored": cell("""
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        while True:
            pass
    """),
    "signals blocked": cell("""
        signal.pthread_sigmask(signal.SIG_BLOCK, range(1, 65))
        while True:
            pass
    """),
    "interrupts caught": cell("""
        while True:
            try:
                while True:
                    time.sleep(1)
            except BaseException:
                pass
    """),
    "regular expression": cell("""
        import re
        re.match('(a*)*b', 'a' * 64)
    """),
    "calculation in one step": "10 ** 10 ** 9",
    "itself stopped": "os.kill(os.getpid(), signal.SIGSTOP)",
    "its group stopped": "os.killpg(0, signal.SIGSTOP)",
    "lock that nobody opens": cell("""
        import threading
        lock = threading.Lock()
        lock.acquire()
        lock.acquire()
    """),
    "interpreter kept by a library": "ctypes.PyDLL(None).sleep(1000)",
    "waiting for a child": cell("""
        pid = os.fork()
        pid or time.sleep(1000)
        os.waitpid(pid, 0)
    """),
    "every descriptor closed": cell("""
        os.closerange(0, 1024)
        while True:
            pass
    """),
    "threads that keep the interpreter": cell("""
        import threading
        def f():
            while True:
                pass
        for _ in range(8):
            threading.Thread(target=f).start()
        f()
    """),
}

# What stays behind when its parent has ended. On its way it leaves the group, the session and the terminal.
SURVIVORS = {
    "child": "os.fork() or time.sleep(1000)",
    "grandchild without a parent": cell("""
        pid = os.fork()
        if pid == 0:
            os.setsid()
            os.fork() and os._exit(0)
            time.sleep(1000)
        os.waitpid(pid, 0)
    """),
    "one that heeds no signal": cell("""
        if os.fork() == 0:
            os.setsid()
            for n in range(1, 32):
                try:
                    signal.signal(n, signal.SIG_IGN)
                except OSError:
                    pass
            while True:
                time.sleep(1)
    """),
    "one that is stopped": cell("""
        if os.fork() == 0:
            os.setsid()
            os.kill(os.getpid(), signal.SIGSTOP)
            time.sleep(1000)
        time.sleep(0.2)
    """),
    "one that is followed": cell("""
        def flee():
            for _ in range(200):
                if os.fork():
                    os._exit(0)
                os.setsid()
                time.sleep(0.05)
        os.fork() or flee()
    """),
    "one that calculates": cell("""
        if os.fork() == 0:
            os.setsid()
            while True:
                pass
    """),
    "another program": cell("""
        import subprocess
        subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(1000)'], start_new_session=True)
    """),
}


@pytest.fixture
def call_seconds() -> float:
    return CALL_SECONDS


@pytest.mark.parametrize("name", ENDLESS)
async def test_code_is_ended(any_sandbox: Sandbox, name: str, targets: Targets) -> None:
    session = await any_sandbox.create_session()
    started = time.monotonic()
    async with asyncio.timeout(60):
        heard = await run(session, with_prelude(ENDLESS[name], targets.facts([])))

    assert time.monotonic() - started < ENDS_SECONDS_MAX
    # On WebAssembly there is no signal, thread or child, so code that asks for one ends with an error.
    assert heard.execution.outcome in ("timeout", "crashed") or (any_sandbox.name == "wasm" and heard.execution.outcome == "error")
    assert heard.execution.is_lost == session.is_lost
    if not session.is_lost:
        assert (await run(session, "6 * 7")).logs.strip().endswith("42")
    await session.close()
    await assert_next_session_works(any_sandbox)


@pytest.mark.parametrize("name", ENDLESS)
def test_by_itself_it_does_not_end(name: str, targets: Targets) -> None:
    before = descendants()
    code = with_prelude(ENDLESS[name], targets.facts([]))
    process = subprocess.Popen([sys.executable, "-I", "-S", "-c", code], stderr=subprocess.DEVNULL, start_new_session=True)
    try:
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(0.7)
    finally:
        process.kill()
        process.wait()
        reap(descendants() - before)


@pytest.mark.parametrize("name", SURVIVORS)
async def test_nothing_outlives_its_session(sandbox: Sandbox, name: str, targets: Targets) -> None:
    before = descendants()
    session = await sandbox.create_session()
    heard = await run(session, with_prelude(SURVIVORS[name] + "\nprint('left')", targets.facts([])))
    of_session = descendants() - before
    await session.close()
    left = await wait_until_ended(of_session) | (descendants() - before)
    reap(left)

    assert left == set()
    assert "left" in heard.logs or sandbox.name == "wasm"
    await assert_next_session_works(sandbox)


@pytest.mark.parametrize("name", SURVIVORS)
def test_without_a_sandbox_it_is_seen_to_outlive(name: str, targets: Targets) -> None:
    before = descendants()
    code = with_prelude(SURVIVORS[name], targets.facts([]))
    process = subprocess.Popen([sys.executable, "-I", "-S", "-c", code], stdin=subprocess.DEVNULL, start_new_session=True)
    time.sleep(0.5)
    process.kill()
    process.wait()
    left: set[int] = set()
    for _ in range(50):  # one of them flees, and may be between two lives
        found = descendants() - before
        left |= found
        reap(found)
        time.sleep(0.01)

    assert left != set()


async def test_work_that_goes_on_does_not_stop_the_next_call(any_sandbox: Sandbox, targets: Targets) -> None:
    code = cell("""
        import threading
        def work():
            while True:
                pass
        for _ in range(4):
            threading.Thread(target=work, daemon=True).start()
    """)
    session = await any_sandbox.create_session()
    await run(session, with_prelude(code, targets.facts([])))

    heard = await run(session, "print('still', 6 * 7)")

    assert heard.execution.outcome == "timeout" or "still 42" in heard.logs
    await session.close()
    await assert_next_session_works(any_sandbox)


async def test_a_session_is_closed_while_it_works(any_sandbox: Sandbox) -> None:
    before = descendants()
    session = await any_sandbox.create_session()
    working = asyncio.create_task(
        run(
            session,
            cell("""
        while True:
            print('x' * 1000)
    """),
        )
    )
    await asyncio.sleep(0.3)
    async with asyncio.timeout(10):
        await session.close()
        heard = await working

    assert heard.execution.is_lost
    assert await wait_until_ended(descendants() - before) == set()
    await assert_next_session_works(any_sandbox)


# ---- output --------------------------------------------------------------------------------------------------------------------------

FLOODS = {
    "lines": cell("""
        for _ in range(2_000_000):
            print('x' * 30)
    """),
    "one line": cell("""
        for _ in range(64):
            sys.stdout.write('x' * (1 << 20))
    """),
    "errors": cell("""
        for _ in range(64):
            sys.stderr.write('x' * (1 << 20))
    """),
    "bytes": cell("""
        for _ in range(64):
            os.write(1, b'\\xff\\x00\\xf0' * (1 << 18))
    """),
    "half characters": cell("""
        for _ in range(64):
            os.write(1, b'\\xf0\\x9f' * (1 << 18))
    """),
    "shown value": "'x' * (64 << 20)",
    "value that shows itself for ever": cell("""
        class Endless:
            def __repr__(self):
                while True:
                    sys.stdout.write('x' * (1 << 20))
        Endless()
    """),
    "error with much to say": "raise ValueError('x' * (64 << 20))",
    "deep traceback": cell("""
        def f(n):
            return f(n + 1)
        sys.setrecursionlimit(10 ** 6)
        f(0)
    """),
    "warnings": cell("""
        import warnings
        for i in range(100_000):
            warnings.warn(str(i) * 100)
    """),
    "child": cell("""
        os.fork() or [os.write(1, b'x' * (1 << 16)) for _ in range(1000)] and os._exit(0)
        time.sleep(0.5)
    """),
    "after the call": cell("""
        import threading
        def f():
            while True:
                os.write(1, b'x' * (1 << 16))
        threading.Thread(target=f, daemon=True).start()
    """),
}  # fmt: skip


def is_too_much(heard: Heard, settings: Settings) -> bool:
    """Twice as much as is kept, for the sentence that says so and bytes that become longer as text."""
    return len(heard.logs) > 2 * settings.sandbox_log_bytes_max


@pytest.mark.parametrize("name", FLOODS)
async def test_output_is_cut(any_sandbox: Sandbox, name: str, settings: Settings, targets: Targets) -> None:
    session = await any_sandbox.create_session()
    async with asyncio.timeout(30):
        heard = await run(session, with_prelude(FLOODS[name], targets.facts([])))
        assert not is_too_much(heard, settings)
        if not session.is_lost:
            await asyncio.sleep(0.2)
            assert not is_too_much(await run(session, "6 * 7"), settings)
    await session.close()
    await assert_next_session_works(any_sandbox)


@pytest.mark.parametrize("name", ["lines", "one line", "errors", "bytes", "half characters"])
def test_without_a_limit_it_is_too_much(name: str, settings: Settings, targets: Targets) -> None:
    seen = run_without_sandbox(FLOODS[name], targets)

    assert is_too_much(Heard(Execution("ok"), [Logs(seen.logs)]), settings)


# ---- figures -------------------------------------------------------------------------------------------------------------------------

PNG = b"\x89PNG\r\n\x1a\n"
SHOWING = cell("""
    class Figure:
        def __init__(self, data):
            self.data = data
        def _repr_png_(self):
            return self.data
""")
FIGURES = {
    "text": SHOWING + "Figure('no bytes')",
    "no PNG": SHOWING + "Figure(b'<svg onload=alert(1)>')",
    "empty": SHOWING + "Figure(b'')",
    "number": SHOWING + "Figure(7)",
    "endless": SHOWING + "Figure(property(lambda self: self))",
    "raises": SHOWING + cell("""
        Figure._repr_png_ = lambda self: 1 / 0
        Figure(b'')
    """),
    "exits": SHOWING + cell("""
        Figure._repr_png_ = lambda self: os._exit(3)
        Figure(b'')
    """),
    "too large": SHOWING + f"Figure({PNG!r} + b'x' * (32 << 20))",
    "everything is an attribute": cell("""
        class Any:
            def __getattr__(self, name):
                return lambda *a, **k: b'x'
        Any()
    """),
    "many": cell("""
        try:
            import matplotlib.pyplot as plt
            for _ in range(30):
                plt.figure(figsize=(1, 1))
        except ImportError:
            pass
    """),
    "huge": cell("""
        try:
            import matplotlib.pyplot as plt
            plt.figure(figsize=(400, 400), dpi=1000)
            plt.show()
        except ImportError:
            pass
    """),
}  # fmt: skip


def are_bad(images: list[bytes], settings: Settings) -> bool:
    """What is no PNG, too large, or too many."""
    sizes = [len(image) for image in images]
    return (
        not all(image.startswith(PNG) for image in images)
        or max(sizes, default=0) > settings.sandbox_image_bytes_max
        or (len(sizes) > settings.sandbox_images_max)
    )


@pytest.mark.parametrize("name", FIGURES)
async def test_figures_are_png_and_bounded(any_sandbox: Sandbox, name: str, settings: Settings, targets: Targets) -> None:
    session = await any_sandbox.create_session()
    async with asyncio.timeout(40):
        heard = await run(session, with_prelude(FIGURES[name], targets.facts([])))

    assert not are_bad(heard.images, settings)
    await session.close()
    await assert_next_session_works(any_sandbox)


@pytest.mark.parametrize("images", [[b"<svg>"], [b""], [PNG + b"x" * (2 << 20)], [PNG] * 6], ids=["no PNG", "empty", "too large", "many"])
def test_bad_figures_are_seen(images: list[bytes], settings: Settings) -> None:
    assert are_bad(Heard(Execution("ok"), [Image(image) for image in images]).images, settings)

"""Attempts to deceive the host about what happened, and to make it fail, by what is written where it reads, or to upset the interpreter.

Code can do with its own interpreter what it likes, and end its own call early. It must not be able to answer for another call, to make the
host raise or wait, or to make anything of what it writes count for more than output.
"""

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import AsyncIterator

import pytest

from mini_assistant.sandboxes.base import Sandbox
from tests.attacks.attempts import Heard, assert_next_session_works, cell, run, with_prelude
from tests.attacks.targets import Targets

CALL_SECONDS = 1.0
ANSWER_SECONDS_MAX = 20

# Lines that a host could take for an answer, to whichever call.
FORGED = [
    {"id": "", "event": "ready"},
    {"id": "", "event": "done", "error": None},
    {"id": "0", "event": "done", "error": None},
    {"id": None, "event": "done"},
    {"event": "done"},
    {"id": "", "event": "image", "png": "iVBORw0KGgo="},
    {"id": ["x"], "event": {"done": 1}},
]
LINES = "".join(json.dumps(line) + "\n" for line in FORGED)

# WRITERS write where the program around the code answers: by descriptors, and by the object that it has for that, which on WebAssembly is
# the only way.
FIND = cell("""
    import functools, gc, io
    FDS = set(range(3, 256))
    for thing in gc.get_objects():
        try:
            type(thing) is io.FileIO and thing.fileno() > 2 and FDS.add(thing.fileno())
        except ValueError:
            pass
    WRITERS = [functools.partial(os.write, fd) for fd in sorted(FDS)]
    frame = sys._getframe()
    while frame:
        for value in list(frame.f_locals.values()):
            if hasattr(value, '_answers') and hasattr(value._answers, 'write'):
                WRITERS.append(value._answers.write)
        frame = frame.f_back
""")

WRITE = FIND + cell("""
    data = {data}
    set_blocking = getattr(os, 'set_blocking', lambda fd, is_blocking: None)  # WebAssembly has none
    def set_all_blocking(is_blocking):
        for fd in FDS:
            try:
                set_blocking(fd, is_blocking)
            except OSError:
                pass
    set_all_blocking(False)
    for write in WRITERS:
        try:
            write(data)
        except (OSError, ValueError):
            pass
    set_all_blocking(True)
""")

# Written on every descriptor that is open beside input, output and errors.
WRITTEN = {
    "answers to other calls": f"{LINES.encode()!r} * 20",
    "half an answer": 'b\'{"id": "\'',
    "half a line before the answer": "b'[' * 1000",
    "bytes": "bytes(range(256)) * 100",
    "line ends": "b'\\n' * 60000",
    "zeros": "bytes(60000)",
    "no UTF-8": "b'\"\\xff\\xfe\\xf0\"\\n' * 1000",
    "deep JSON": 'b\'{"id": "x", "event": "done", "more": \' + b\'[\' * 30000 + b\']\' * 30000 + b\'}\\n\'',
    "large numbers": "b'{\"id\": ' + b'9' * 60000 + b'}\\n'",
    "other JSON": "b'null\\n[]\\n7\\n\"done\"\\nNaN\\ntrue\\n{}\\n' * 100",
    "surrogates": 'b\'{"id": "\\\\ud800", "event": "done", "error": "\\\\udfff"}\\n\' * 100',
    "figures without a call": 'b\'{"id": "", "event": "image", "png": "////"}\\n\' * 1000',
}

# Finds out what its own call is called, which the program around it knows.
OWN_ID = (
    FIND
    + """
frame, key = sys._getframe(), None
while frame and key is None:
    for value in list(frame.f_locals.values()):
        if isinstance(value, dict) and "id" in value and "do" in value:
            key = value["id"]
    frame = frame.f_back
assert key
def forge(**fields):
    line = json.dumps({"id": key, **fields}).encode() + b"\\n"
    for write in WRITERS:
        try:
            write(line)
        except (OSError, ValueError):
            pass
"""
)
INSIDE = {
    "its own end, early": OWN_ID
    + cell("""
        forge(event='done', error=None)
        time.sleep(0.5)
    """),
    "its own end, many times": OWN_ID
    + cell("""
        for _ in range(100):
            forge(event='done', error=None)
    """),
    "an error that is none": OWN_ID + "forge(event='done', error='x' * 60000)",
    "its own end, later": OWN_ID
    + cell("""
        import threading
        threading.Timer(0.5, lambda: forge(event='done', error=None)).start()
    """),
    "figures that are none": OWN_ID
    + cell("""
        for _ in range(100):
            forge(event='image', png='PHN2Zz4=')
    """),
    "figures that are no base64": OWN_ID
    + cell("""
        for _ in range(100):
            forge(event='image', png='*')
    """),
    "figure that is a number": OWN_ID + "forge(event='image', png=7)",
    "line without an end": OWN_ID
    + cell("""
        for fd in FDS:
            try:
                getattr(os, 'set_blocking', lambda fd, is_blocking: None)(fd, False)
                for _ in range(400):
                    os.write(fd, b'x' * 60000)
                    time.sleep(0.001)
            except OSError:
                pass
    """),
    "requests read away": FIND
    + cell("""
        import threading
        def steal(fd):
            while True:
                try:
                    os.read(fd, 65536)
                except OSError:
                    return
        for fd in FDS:
            threading.Thread(target=steal, args=[fd], daemon=True).start()
    """),
}

UPSET = {
    "exit": "sys.exit(3)",
    "exit at once": "os._exit(0)",
    "abort": "os.abort()",
    "wrong memory": "ctypes.string_at(1)",
    "own process killed": "os.kill(os.getpid(), signal.SIGKILL)",
    "output closed": cell("""
        os.close(1)
        os.close(2)
    """),
    "every descriptor closed": "os.closerange(0, 256)",
    "every descriptor made one": FIND
    + cell("""
        for fd in FDS:
            try:
                os.fstat(fd)
                os.dup2(1, fd)
            except OSError:
                pass
    """),
    "output exchanged": cell("""
        class Broken:
            def __getattr__(self, name):
                raise MemoryError
        sys.stdout = sys.stderr = Broken()
    """),
    "builtins taken away": cell("""
        import builtins
        for name in list(vars(builtins)):
            delattr(builtins, name)
    """),
    "json exchanged": "json.dumps = lambda *a, **k: 1 / 0",
    "json answers for others": 'json.dumps = lambda *a, **k: \'{"id": "", "event": "done"}\'',
    "os exchanged": "os.write = os.read = os.close = None",
    "modules taken away": "sys.modules.clear()",
    "tracebacks exchanged": cell("""
        import traceback
        traceback.TracebackException = None
        1 / 0
    """),
    "error that cannot be shown": cell("""
        class Odd(BaseException):
            def __str__(self):
                raise Odd
            __repr__ = __str__
        raise Odd
    """),
    "error whose text never ends": cell("""
        class Odd(Exception):
            def __str__(self):
                while True:
                    pass
        raise Odd
    """),
    "errors in a ring": cell("""
        a, b = ValueError(), ValueError()
        a.__cause__, b.__cause__ = b, a
        raise a
    """),
    "ten thousand errors": cell("""
        def f(n):
            raise ExceptionGroup('x', [ValueError(n)] * 10000)
        f(1)
    """),
    "value that exits": cell("""
        class Odd:
            def __repr__(self):
                os._exit(0)
        Odd()
    """),
    "value that raises": cell("""
        class Odd:
            def __repr__(self):
                raise SystemExit
        Odd()
    """),
    "trace": cell("""
        sys.settrace(lambda *a: 1 / 0)
        sys.setprofile(lambda *a: 1 / 0)
    """),
    "alarm": cell("""
        signal.setitimer(signal.ITIMER_REAL, 0.001, 0.001)
        time.sleep(1)
    """),
    "interrupts sent to itself": cell("""
        for _ in range(1000):
            try:
                os.kill(os.getpid(), signal.SIGINT)
            except KeyboardInterrupt:
                pass
    """),
    "recursion": cell("""
        sys.setrecursionlimit(2 ** 31 - 1)
        def f():
            f()
        f()
    """),
    "deep syntax": "eval('(' * 100_000 + ')' * 100_000)",
    "code with zeros": "exec('a\\0b')",
    "end of the program": cell("""
        import atexit
        atexit.register(time.sleep, 1000)
        raise SystemExit
    """),
    "threads that print": cell("""
        import threading
        [threading.Thread(target=print, args=['x'] * 100).start() for _ in range(20)]
    """),
    "collector": cell("""
        import gc
        for thing in gc.get_objects():
            if type(thing).__name__ in ('FileIO', 'BufferedReader', 'TextIOWrapper'):
                try:
                    thing.close()
                except Exception:
                    pass
    """),
}


@pytest.fixture
def call_seconds() -> float:
    return CALL_SECONDS


@pytest.fixture
async def nothing_is_raised() -> AsyncIterator[None]:
    """What the loop of the host could only log, fails the test."""
    raised: list[dict[str, object]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _loop, context: raised.append(context))
    yield
    await asyncio.sleep(0)
    assert raised == []


async def assert_not_deceived(sandbox: Sandbox, code: str, targets: Targets) -> Heard:
    """Whatever the code does, later calls get their own answers, or the session says that it is lost."""
    session = await sandbox.create_session()
    async with asyncio.timeout(ANSWER_SECONDS_MAX):
        heard = await run(session, with_prelude(code, targets.facts([])))
        for number in (6, 7):
            if session.is_lost:
                break
            later = await run(session, f"__import__('time').sleep(0.3)\n__import__('os').write(1, b'real %d' % ({number} * 7))")
            is_true = f"real {number * 7}" in later.logs or later.execution.outcome != "ok"
            assert is_true, "another call was answered by the code of an earlier one"
        await session.close()
    await assert_next_session_works(sandbox)
    return heard


@pytest.mark.usefixtures("nothing_is_raised")
@pytest.mark.parametrize("stream", ["sys.stdout", "sys.stderr"])
async def test_output_that_looks_like_answers_is_output(any_sandbox: Sandbox, stream: str, targets: Targets) -> None:
    heard = await assert_not_deceived(any_sandbox, f"{stream}.write({LINES!r})\ntime.sleep(0.3)\nprint('end')", targets)

    assert LINES in heard.logs
    assert heard.logs.endswith("end\n")
    assert (heard.images, heard.execution.outcome) == ([], "ok")


@pytest.mark.usefixtures("nothing_is_raised")
@pytest.mark.parametrize("name", WRITTEN)
async def test_what_is_written_on_every_descriptor_is_dropped(any_sandbox: Sandbox, name: str, targets: Targets) -> None:
    heard = await assert_not_deceived(any_sandbox, WRITE.format(data=WRITTEN[name]) + "print('written')", targets)

    assert heard.images == []


@pytest.mark.usefixtures("nothing_is_raised")
@pytest.mark.parametrize("name", WRITTEN)
async def test_what_is_written_while_a_later_call_runs_is_dropped(any_sandbox: Sandbox, name: str, targets: Targets) -> None:
    code = (
        "import threading\ndef flood():\n    while True:\n"
        + "".join(f"        {line}\n" for line in WRITE.format(data=WRITTEN[name]).splitlines())
        + "        time.sleep(0.05)\nthreading.Thread(target=flood, daemon=True).start()"
    )

    heard = await assert_not_deceived(any_sandbox, code, targets)

    assert heard.images == []


@pytest.mark.usefixtures("nothing_is_raised")
@pytest.mark.parametrize("name", INSIDE)
async def test_code_that_knows_its_own_call(any_sandbox: Sandbox, name: str, targets: Targets) -> None:
    heard = await assert_not_deceived(any_sandbox, INSIDE[name], targets)

    assert all(image.startswith(b"\x89PNG\r\n\x1a\n") for image in heard.images)


@pytest.mark.usefixtures("nothing_is_raised")
@pytest.mark.parametrize("name", UPSET)
async def test_an_interpreter_that_is_upset(any_sandbox: Sandbox, name: str, targets: Targets) -> None:
    await assert_not_deceived(any_sandbox, UPSET[name], targets)


async def test_code_can_end_its_own_call(any_sandbox: Sandbox, targets: Targets) -> None:
    """That what the attempts write is read by the host, and would deceive one that believed it."""
    code = OWN_ID + "forge(event='done', error=None)\ntime.sleep(0.5)\nprint('behind its end')"

    heard = await assert_not_deceived(any_sandbox, code, targets)

    assert "behind its end" not in heard.logs
    assert heard.execution.outcome == "ok"


# ---- controls ------------------------------------------------------------------------------------------------------------------------


def read_carelessly(line: bytes) -> bool:
    """Whether a host would take it for the end of a call that looks at nothing but that."""
    try:
        answer = json.loads(line)
    except (ValueError, RecursionError):
        return False
    return isinstance(answer, dict) and answer.get("event") == "done"


def test_what_is_written_reaches_every_descriptor(targets: Targets) -> None:
    """That the attempts find the pipe of the answers, and that a host without ids would be deceived."""
    reader, writer = os.pipe()
    code = with_prelude(WRITE.format(data=WRITTEN["answers to other calls"]), targets.facts([]))
    subprocess.run([sys.executable, "-I", "-S", "-c", code], pass_fds=[writer], timeout=20, check=True)
    os.close(writer)
    with open(reader, "rb") as pipe:
        lines = pipe.read().splitlines()

    assert any(read_carelessly(line) for line in lines)


@pytest.mark.parametrize("name", ["answers to other calls", "deep JSON", "other JSON", "large numbers"])
def test_a_careless_host_is_deceived_or_fails(name: str) -> None:
    found = []
    for line in eval(WRITTEN[name]).splitlines():
        try:
            found.append(json.loads(line)["event"] == "done")
        except Exception as exc:
            found.append(type(exc).__name__)

    assert {True, "RecursionError", "TypeError", "ValueError"} & set(found)


async def test_code_can_find_its_own_call(unsafe: Sandbox, targets: Targets) -> None:
    """Else the attempts that use it would try nothing."""
    session = await unsafe.create_session()
    heard = await run(session, with_prelude(INSIDE["its own end, early"] + "\nprint('too late')", targets.facts([])))

    assert heard.execution.outcome == "ok"
    assert "too late" not in heard.logs
    assert "too late" in (await run(session, "1")).logs

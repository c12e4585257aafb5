"""Attempts with files that the host collects from a session, or puts into it: links, things that are no files, odd names, and races.

What holds here is the host's own code, so `unsafe` has to hold too: there a link to a host's file really leads to it. The control is a
careless collector, which does on the same folder what any first version of such code does, and falls for it.
"""

import asyncio
import contextlib
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import NamedTuple

import pytest

from mini_assistant.errors import SandboxFileMissing, SandboxFull
from mini_assistant.sandboxes.base import Sandbox, SandboxSession
from mini_assistant.settings import Settings
from tests.attacks.attempts import assert_next_session_works, cell, run, untouched, with_prelude
from tests.attacks.targets import Targets

PLACE_SECONDS_MAX = 20
DATA = "/mnt/data"


class Trap(NamedTuple):
    """code: lays it. names: what the host then reads, beside what it finds in the list."""

    name: str
    code: str
    names: tuple[str, ...] = ()


LINKS = [
    Trap("link to a file", "os.symlink(T['secret'], 'a.txt')", ("a.txt",)),
    Trap("relative link to a file", "os.symlink('../' * 40 + T['secret'].lstrip('/'), 'a.txt')", ("a.txt",)),
    Trap("link to a folder", "os.symlink(T['folder'], 'a')", ("a/secret.txt", "a/../secret.txt", "a")),
    Trap(
        "link to a folder in a folder",
        cell("""
        os.makedirs('a/b')
        os.symlink(T['folder'], 'a/b/c')
    """),
        ("a/b/c/secret.txt",),
    ),
    Trap(
        "link to a link",
        cell("""
        os.symlink(T['secret'], 'b')
        os.symlink('b', 'a.txt')
    """),
        ("a.txt", "b"),
    ),
    Trap("link to the root", "os.symlink('/', 'a')", ("a{secret}",)),
    Trap("link to the parent", "os.symlink('..', 'a')", ("a/../../../host/secret.txt",)),
    Trap("link to an open file of the server", "os.symlink(f\"/proc/self/fd/{T['secret_fd']}\", 'a.txt')", ("a.txt",)),
    Trap("link to an open folder of the server", "os.symlink(f\"/proc/self/fd/{T['folder_fd']}\", 'a')", ("a/secret.txt",)),
    Trap("link to the root of the server", "os.symlink('/proc/self/root' + T['secret'], 'a.txt')", ("a.txt",)),
]

NAMES = [
    "../host/secret.txt",
    "{secret}",
    "../../../../../../../../../../../../{secret}",
    "./../host/secret.txt",
    "a/../../host/secret.txt",
    "/proc/self/fd/{fd}",
    "",
    ".",
    "..",
    "/",
    "a\0b",
    "\udcff",
    "x" * 256,
    "/".join(["a"] * 3000),
]


async def pieces(*parts: bytes) -> AsyncIterator[bytes]:
    for part in parts:
        yield part


async def read(session: SandboxSession, name: str, bytes_max: int = 1 << 40) -> bytes:
    """The bytes of a file; empty when the host says that there is none."""
    found = bytearray()
    with contextlib.suppress(SandboxFileMissing):
        async for piece in session.read_file(name):
            found += piece
            assert len(found) <= bytes_max
    return bytes(found)


async def everything(session: SandboxSession, names: tuple[str, ...] = ()) -> bytes:
    """All bytes that the host gets out of a session."""
    async with asyncio.timeout(PLACE_SECONDS_MAX):
        listed = [file.name for file in await session.list_files()]
        return b"\n".join([*[name.encode() for name in listed], *[await read(session, name) for name in (*listed, *names)]])


async def folder_of(session: SandboxSession) -> Path:
    """Where the files of a session without isolation lie on the host."""
    heard = await run(
        session,
        cell("""
        import os
        print('folder', os.getcwd()[::-1])
    """),
    )
    return Path(heard.logs.split()[1][::-1])


def carelessly(folder: Path, names: tuple[str, ...]) -> bytes:
    """All bytes that a collector gets which trusts what it finds."""
    found: list[bytes] = []
    for name in [*(path.relative_to(folder).as_posix() for path in folder.rglob("*")), *names]:
        with contextlib.suppress(OSError, ValueError):
            found.append((folder / name).read_bytes())
    return b"\n".join(found)


def told(code: str, targets: Targets) -> str:
    facts = targets.facts([]) | {"secret_fd": targets.secret_fd, "folder_fd": targets.folder_fd}
    return with_prelude(f"os.chdir({DATA!r})\n{code}", facts)


def named(names: tuple[str, ...], targets: Targets) -> tuple[str, ...]:
    return tuple(name.replace("{secret}", str(targets.secret)).replace("{fd}", str(targets.secret_fd)) for name in names)


@pytest.mark.parametrize("trap", LINKS, ids=lambda trap: trap.name)
async def test_the_host_follows_no_link(any_sandbox: Sandbox, trap: Trap, targets: Targets) -> None:
    session = await any_sandbox.create_session()
    heard = await run(session, told(trap.code, targets))
    names = named(trap.names, targets)

    found = await everything(session, names)
    for name in names:
        with contextlib.suppress(SandboxFull):
            await session.put_file(name, pieces(b"written by the host"))

    assert targets.token.encode() not in found
    assert untouched(targets) == []
    if any_sandbox.name == "unsafe":
        assert heard.execution.outcome == "ok", heard.logs
    await session.close()
    assert untouched(targets) == []
    await assert_next_session_works(any_sandbox)


@pytest.mark.parametrize("trap", LINKS, ids=lambda trap: trap.name)
async def test_a_careless_collector_follows_it(unsafe: Sandbox, trap: Trap, targets: Targets) -> None:
    session = await unsafe.create_session()
    heard = await run(session, told(trap.code, targets))
    folder = await folder_of(session)
    # The folder of such a session is as deep as this.
    names = (*named(trap.names, targets), "a/../../../../host/secret.txt")

    assert heard.execution.outcome == "ok", heard.logs
    assert targets.token.encode() in carelessly(folder, names), list(folder.iterdir())


async def test_a_name_leads_out_of_no_folder(any_sandbox: Sandbox, targets: Targets) -> None:
    session = await any_sandbox.create_session()
    await run(session, told("os.mkdir('a')", targets))

    for name in named(tuple(NAMES), targets):
        assert await read(session, name) == b""
        with contextlib.suppress(SandboxFull):
            await session.put_file(name, pieces(b"x"))

    assert untouched(targets) == []
    await session.close()


def test_a_careless_reader_takes_the_names(targets: Targets) -> None:
    folder = targets.folder.parent / "session"
    folder.mkdir()

    assert carelessly(folder, named(tuple(NAMES), targets)).count(targets.token.encode()) >= 3


async def test_a_hard_link_leads_to_no_file_of_the_host(sandbox: Sandbox, targets: Targets) -> None:
    session = await sandbox.create_session()
    await run(session, told("os.link(T['secret'], 'a.txt')", targets))

    assert targets.token.encode() not in await everything(session, ("a.txt",))
    assert untouched(targets) == []
    await session.close()


async def test_a_hard_link_without_isolation_is_seen(unsafe: Sandbox, targets: Targets) -> None:
    session = await unsafe.create_session()
    heard = await run(session, told("os.link(T['secret'], 'a.txt')", targets))

    assert heard.execution.outcome == "ok", heard.logs
    assert targets.token.encode() in await everything(session, ("a.txt",))


@pytest.mark.parametrize("name", ["link to a file", "link to a folder", "link to the root"])
async def test_a_file_is_not_put_through_a_link(any_sandbox: Sandbox, name: str, targets: Targets) -> None:
    """Those traps again, with what the host writes in the place of what it reads."""
    trap = next(trap for trap in LINKS if trap.name == name)
    session = await any_sandbox.create_session()
    await run(session, told(trap.code, targets))

    for place in (*named(trap.names, targets), "a/new", "a" + str(targets.folder) + "/new"):
        with contextlib.suppress(SandboxFull):
            await session.put_file(place, pieces(b"written by the host"))

    assert untouched(targets) == []
    await session.close()


async def test_a_careless_writer_goes_through_the_link(unsafe: Sandbox, targets: Targets) -> None:
    session = await unsafe.create_session()
    await run(session, told("os.symlink(T['secret'], 'a.txt')", targets))

    (await folder_of(session) / "a.txt").write_bytes(b"written by the host")

    assert untouched(targets) == ["secret"]


# ---- what is no file -----------------------------------------------------------------------------------------------------------------

NO_FILES = [
    Trap("pipe", "os.mkfifo('a')", ("a",)),
    Trap(
        "pipe that somebody writes to",
        cell("""
        os.mkfifo('a')
        os.open('a', os.O_RDWR)
    """),
        ("a",),
    ),
    Trap(
        "socket",
        cell("""
        s = socket.socket(socket.AF_UNIX)
        s.bind('a')
    """),
        ("a",),
    ),
    Trap("folder", "os.mkdir('a')", ("a", "a/")),
    Trap("link to itself", "os.symlink('a', 'a')", ("a", "a/a")),
    Trap("link to nothing", "os.symlink('nothing', 'a')", ("a",)),
    Trap("endless device", "os.symlink('/dev/zero', 'a')", ("a",)),
    Trap("device of its own", "os.mknod('a', 0o20666, os.makedev(1, 5))", ("a",)),
    Trap("terminal", "os.symlink('/dev/ptmx', 'a')", ("a",)),
]


@pytest.mark.parametrize("trap", NO_FILES, ids=lambda trap: trap.name)
async def test_what_is_no_file_is_left_out(any_sandbox: Sandbox, trap: Trap, targets: Targets) -> None:
    session = await any_sandbox.create_session()
    await run(session, told(trap.code + "\nopen('b', 'w').write('good')", targets))

    async with asyncio.timeout(PLACE_SECONDS_MAX):
        assert {file.name for file in await session.list_files()} <= {"b"}
        for name in trap.names:
            with pytest.raises(SandboxFileMissing):
                await anext(aiter(session.read_file(name)))
        with contextlib.suppress(SandboxFull):
            await session.put_file("a", pieces(b"x"))
    await session.close()
    await assert_next_session_works(any_sandbox)


async def test_a_careless_reader_waits_for_ever_at_a_pipe(unsafe: Sandbox, targets: Targets) -> None:
    session = await unsafe.create_session()
    await run(session, told("os.mkfifo('a')", targets))
    pipe = await folder_of(session) / "a"

    with pytest.raises(subprocess.TimeoutExpired):
        subprocess.run([sys.executable, "-I", "-S", "-c", f"open({str(pipe)!r}).read()"], timeout=1)  # noqa: ASYNC221


# ---- sizes and numbers ---------------------------------------------------------------------------------------------------------------


async def test_a_sparse_file_is_read_to_the_limit_only(any_sandbox: Sandbox, settings: Settings, targets: Targets) -> None:
    session = await any_sandbox.create_session()
    await run(
        session,
        told(
            cell("""
                f = open('a', 'w')
                for size in (1 << 40, 1 << 33, 1 << 24):
                    try:
                        f.truncate(size)
                        break
                    except OSError as exc:
                        print(exc)
            """),
            targets,
        ),
    )

    async with asyncio.timeout(PLACE_SECONDS_MAX):
        await session.list_files()
        await read(session, "a", bytes_max=settings.sandbox_disk_bytes_max)
    await session.close()
    await assert_next_session_works(any_sandbox)


def test_a_careless_reader_sees_a_sparse_file_whole(tmp_path: Path, settings: Settings) -> None:
    with (tmp_path / "a").open("wb") as file:
        file.truncate(1 << 24)

    assert len((tmp_path / "a").read_bytes()) > settings.sandbox_disk_bytes_max


async def test_a_file_that_grows_is_read_to_the_limit_only(any_sandbox: Sandbox, settings: Settings, targets: Targets) -> None:
    """Written over from its beginning again and again, and longer each time."""
    code = cell("""
            import threading
            def grow():
                with open('a', 'wb') as f:
                    while True:
                        f.write(b'x' * 4096)
                        f.flush()
            threading.Thread(target=grow, daemon=True).start()
            time.sleep(0.1)
        """)
    session = await any_sandbox.create_session()
    await run(session, told(code, targets))

    async with asyncio.timeout(PLACE_SECONDS_MAX):
        await read(session, "a", bytes_max=settings.sandbox_disk_bytes_max)
    await session.close()
    await assert_next_session_works(any_sandbox)


async def test_many_names_are_cut(any_sandbox: Sandbox, settings: Settings, targets: Targets) -> None:
    session = await any_sandbox.create_session()
    await run(
        session,
        told(
            cell("""
        for i in range(100_000):
            open(f'{i}', 'w').close()
    """),
            targets,
        ),
    )

    async with asyncio.timeout(PLACE_SECONDS_MAX):
        assert len(await session.list_files()) <= settings.sandbox_files_max
    await session.close()
    await assert_next_session_works(any_sandbox)


async def test_deep_folders_end(any_sandbox: Sandbox, targets: Targets) -> None:
    session = await any_sandbox.create_session()
    code = cell("""
        for i in range(180):
            os.mkdir('d' * 50)
            os.chdir('d' * 50)
            i % 50 or open('x', 'w').close()
        os.chdir('/')
    """)
    await run(session, told(code, targets))

    async with asyncio.timeout(PLACE_SECONDS_MAX):
        for file in await session.list_files():
            assert await read(session, file.name) == b""
        with pytest.raises(SandboxFull):
            await session.put_file("/".join(["e"] * 1000), pieces(b"x"))
    await session.close()
    await assert_next_session_works(any_sandbox)


async def test_odd_names_come_back_as_they_are_or_not_at_all(any_sandbox: Sandbox, targets: Targets) -> None:
    names = [
        cell("""
            line
            break
        """),
        "\x1b[31mred",
        "back\\slash",
        "..a",
        "a..",
        "...",
        "-rf",
        "$(x)",
        "\u202etxt.exe",
        "é",
        "e\u0301",
        " ",
        "\x7f",
        "%2e%2e",
    ]
    session = await any_sandbox.create_session()
    code = f"for name in {names!r}:\n    open(name, 'w').write(name)\nopen(b'\\xff\\xfe', 'w').close()\n"
    await run(session, told(code, targets))

    listed = {file.name for file in await session.list_files()}
    assert listed <= set(names)
    assert {name: (await read(session, name)).decode() for name in listed} == {name: name for name in listed}
    for name in names:
        await session.put_file(name, pieces(b"put"))
        assert await read(session, name) == b"put"
    await session.close()


async def test_the_folder_itself_taken_away(any_sandbox: Sandbox, targets: Targets) -> None:
    session = await any_sandbox.create_session()
    code = cell("""
            import shutil
            os.chmod('.', 0)
            for work in (lambda: os.rename(os.getcwd(), os.getcwd() + 'x'), lambda: os.rmdir(os.getcwd()),
                    lambda: os.symlink(T['folder'], T['data'])):
                try:
                    work()
                except OSError as exc:
                    print(exc)
        """)
    await run(session, told(code.replace("T['data']", repr(DATA)), targets))

    async with asyncio.timeout(PLACE_SECONDS_MAX):
        assert targets.token.encode() not in await everything(session, ("secret.txt",))
        with contextlib.suppress(SandboxFull):
            await session.put_file("new", pieces(b"x"))
    await session.close()
    assert untouched(targets) == []
    await assert_next_session_works(any_sandbox)


# ---- races ---------------------------------------------------------------------------------------------------------------------------

# Exchanges a file for a link and back, a folder for a link and back, and everything that the host is about to give a name to.
RACE = """
import threading
def exchange():
    os.makedirs('real', exist_ok=True)
    open('real/secret.txt', 'w').write('harmless')
    open('real.txt', 'w').write('harmless')
    n = 0
    while True:
        n += 1
        try:
            os.symlink(T['secret'], 'link.tmp')
            os.replace('link.tmp', 'a.txt')
            os.link('real.txt', 'file.tmp')
            os.replace('file.tmp', 'a.txt')
        except OSError:
            pass
        try:
            os.rename('real', 'd')
            os.rename('d', 'real')
            os.symlink(T['folder'], 'd')
            os.unlink('d')
        except OSError:
            pass
        for name in os.listdir('.'):
            if name not in ('real', 'real.txt', 'a.txt', 'd'):
                try:
                    os.unlink(name)
                    os.symlink(T['secret'], name)
                except OSError:
                    pass
                try:
                    os.unlink(name)
                except OSError:
                    pass
threading.Thread(target=exchange, daemon=True).start()
time.sleep(0.1)
"""
ROUNDS = 150


async def test_files_exchanged_while_they_are_collected(any_sandbox: Sandbox, targets: Targets) -> None:
    session = await any_sandbox.create_session()
    await run(session, told(RACE, targets))

    async with asyncio.timeout(60):
        for number in range(ROUNDS):
            found = await everything(session, ("a.txt", "d/secret.txt", "secret.txt"))
            assert targets.token.encode() not in found, f"in round {number}"
            for name in ("d/secret.txt", "a.txt", "d/new"):
                with contextlib.suppress(SandboxFull):
                    await session.put_file(name, pieces(b"written by the host"))
            assert not targets.is_folder_changed, f"in round {number}"
    await session.close()
    assert untouched(targets) == []
    await assert_next_session_works(any_sandbox)


async def test_a_careless_collector_loses_the_race(unsafe: Sandbox, targets: Targets) -> None:
    session = await unsafe.create_session()
    await run(session, told(RACE, targets))
    folder = await folder_of(session)

    def collect() -> bool:
        """It looks first whether a file is one, and then opens it."""
        for name in ("a.txt", "d/secret.txt"):
            path = folder / name
            with contextlib.suppress(OSError):
                if not path.is_symlink() and targets.token in path.read_text():
                    return True
        return False

    async with asyncio.timeout(30):
        while not collect():  # noqa: ASYNC110 - a race, which is run until it is lost
            await asyncio.sleep(0)


async def test_nothing_is_collected_from_a_session_that_is_closed(any_sandbox: Sandbox, targets: Targets) -> None:
    session = await any_sandbox.create_session()
    await run(session, told("open('a.txt', 'w').write('x' * 1000)", targets))
    reading = asyncio.gather(*(everything(session) for _ in range(8)), return_exceptions=True)
    await session.close()
    await reading

    assert untouched(targets) == []
    await assert_next_session_works(any_sandbox)

"""Attempts on another session of the same sandbox: its memory, files, sockets and processes. The other one is told nothing of it."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from mini_assistant.sandboxes.base import Sandbox, SandboxSession
from tests.attacks.attempts import Seen, assert_next_session_works, cell, leaked, run, untouched, with_prelude
from tests.attacks.targets import Targets

# Has the token in its memory and its files, and offers it on every socket it can have. What it cannot have it leaves out.
OTHER = r"""
import threading
token = T.pop("token")
# Backwards, since a session without isolation calls its folder by another name in its output.
place = {"cwd": os.getcwd()[::-1], "pid": os.getpid()}
open("secret.txt", "w").write(token)
def offer(name, listen):
    try:
        listener, place[name] = listen()
    except Exception:
        return
    def serve():
        while True:
            taker, _ = listener.accept()
            taker.send(token.encode())
            taker.close()
    threading.Thread(target=serve, daemon=True).start()
def tcp():
    listener = socket.create_server(("127.0.0.1", 0))
    return listener, listener.getsockname()[1]
def abstract():
    listener = socket.socket(socket.AF_UNIX)
    listener.bind("\0" + T["name"])
    listener.listen()
    return listener, T["name"]
def path():
    listener = socket.socket(socket.AF_UNIX)
    listener.bind("/tmp/" + T["name"])
    listener.listen()
    return listener, "/tmp/" + T["name"]
offer("tcp", tcp)
offer("abstract", abstract)
offer("path", path)
def keep(name, make):
    try:
        place[name] = make()
    except Exception:
        pass
def shared_file():
    open("/dev/shm/" + T["name"], "w").write(token)
    return "/dev/shm/" + T["name"]
def temporary_file():
    open("/tmp/" + T["name"] + ".txt", "w").write(token)
    return "/tmp/" + T["name"] + ".txt"
def memory():
    global kept
    kept = ctypes.create_string_buffer(token.encode())
    return ctypes.addressof(kept)
def shared_memory():
    number = libc.shmget(0, 4096, 0o666)
    assert number >= 0
    address = libc.shmat(number, None, 0)
    ctypes.memmove(address, token.encode(), len(token))
    return number
keep("file", shared_file)
keep("temporary", temporary_file)
keep("memory", memory)
keep("shm", shared_memory)
print("place", json.dumps(place))
"""

RECEIVE = cell("""
    s.settimeout(2)
    show(s.recv(99))
""")
ATTEMPTS = {
    "its files by their path": cell("""
        os.chdir('/')
        show(open(P['cwd'] + '/secret.txt').read())
    """),
    "its files by its process": "show(open(f\"/proc/{P['pid']}/cwd/secret.txt\").read())",
    "its files by every process": cell("""
        for pid in filter(str.isdigit, P['pids']):
            for path in ('cwd/secret.txt', 'root' + P['cwd'] + '/secret.txt'):
                try:
                    show(open(f'/proc/{pid}/{path}').read())
                except OSError as exc:
                    print(exc)
    """),
    "its memory": cell("""
        m = open(f"/proc/{P['pid']}/mem", 'rb', buffering=0)
        m.seek(P['memory'])
        show(m.read(64))
    """),
    "its memory by process_vm_readv": cell("""
        b = ctypes.create_string_buffer(64)
        local = (ctypes.c_uint64 * 2)(ctypes.addressof(b), 64)
        remote = (ctypes.c_uint64 * 2)(P['memory'], 64)
        call('process_vm_readv', P['pid'], local, 1, remote, 1, 0)
        show(b.raw)
    """),
    "its TCP server": "s = socket.create_connection(('127.0.0.1', P['tcp']), 2)\n" + RECEIVE,
    "its abstract socket": cell("""
        s = socket.socket(socket.AF_UNIX)
        s.connect('\\0' + P['abstract'])
    """)
    + RECEIVE,
    "its socket in /tmp": cell("""
        s = socket.socket(socket.AF_UNIX)
        s.connect(P['path'])
    """)
    + RECEIVE,
    "its file in /tmp": "show(open(P['temporary']).read())",
    "its shared memory by name": "show(open(P['file']).read())",
    "its shared memory by number": cell("""
        a = libc.shmat(P['shm'], None, 0o10000)
        assert a != 2 ** 64 - 1
        show(ctypes.string_at(a, 64))
    """),
    "what is left in /tmp, /dev/shm and home": cell("""
        for top in ('/tmp', '/dev/shm', os.path.expanduser('~')):
            for name in os.listdir(top):
                if P['name'] in name and os.path.isfile(os.path.join(top, name)):
                    show(open(os.path.join(top, name)).read())
    """),
}
Place = dict[str, object]


async def other_session(sandbox: Sandbox, targets: Targets) -> tuple[SandboxSession, Place]:
    """A session that has the token, and where it has it."""
    session = await sandbox.create_session()
    name = "mini-" + targets.mark
    heard = await run(session, with_prelude(OTHER, {"token": targets.token, "name": name, "mark": targets.mark}))
    assert heard.execution.outcome == "ok", heard.logs
    line = next(line for line in heard.logs.splitlines() if line.startswith("place "))
    place: Place = json.loads(line.removeprefix("place "))
    return session, place | {"name": name, "cwd": str(place["cwd"])[::-1]}


def told(code: str, place: Place, targets: Targets, pids: str) -> str:
    return with_prelude(f"P = json.loads({json.dumps(place)!r})\nP['pids'] = {pids}\n{code}", targets.facts([]))


@pytest.mark.parametrize("name", ATTEMPTS)
async def test_sessions_are_apart(sandbox: Sandbox, name: str, targets: Targets) -> None:
    other, place = await other_session(sandbox, targets)
    session = await sandbox.create_session()
    heard = await run(session, told(ATTEMPTS[name], place, targets, "os.listdir('/proc')"))
    await session.close()

    assert not leaked(targets, Seen(heard.logs)), heard.logs
    assert untouched(targets) == []
    still = await run(other, "print(open('secret.txt').read() == token, 6 * 7)")
    assert "True 42" in still.logs
    await other.close()
    await assert_next_session_works(sandbox)


@pytest.fixture
def removed() -> Iterator[list[Path]]:
    """Files of a session without isolation that lie outside of its folder; they are removed at the end."""
    paths: list[Path] = []
    yield paths
    for path in paths:
        path.unlink(missing_ok=True)


@pytest.mark.parametrize("name", ATTEMPTS)
async def test_without_isolation_they_are_not(unsafe: Sandbox, name: str, targets: Targets, removed: list[Path]) -> None:
    _, place = await other_session(unsafe, targets)
    removed += [Path(str(place[kind])) for kind in ("file", "temporary", "path") if kind in place]
    if "shm" in place:
        targets.more_shm_ids.append(int(str(place["shm"])))
    session = await unsafe.create_session()
    heard = await run(session, told(ATTEMPTS[name], place, targets, "[str(P['pid'])]"))

    assert leaked(targets, Seen(heard.logs)), heard.logs


async def test_a_closed_session_leaves_nothing_for_the_next(sandbox: Sandbox, targets: Targets) -> None:
    other, place = await other_session(sandbox, targets)
    await other.close()
    session = await sandbox.create_session()
    for name in ("its files by their path", "its file in /tmp", "its shared memory by name", "what is left in /tmp, /dev/shm and home"):
        heard = await run(session, told(ATTEMPTS[name], place, targets, "[]"))
        assert not leaked(targets, Seen(heard.logs)), heard.logs
    await session.close()

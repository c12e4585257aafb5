"""Floods of memory, files, processes and threads.

Each flood says so when it got all that it asked for, several times what it may have. Without a sandbox it gets it: floods are small.
"""

import pytest

from mini_assistant.sandboxes.base import Sandbox
from tests.attacks.attempts import Attempt, assert_judge_sees_success, attempt_in, cell, gained
from tests.attacks.targets import Targets

MEMORY_MEGABYTES = 640
"""Two and a half times what a session may have; what it may have is 256 megabytes, and 8 for files."""

# Takes memory piece by piece, in a way that the attempt defines as `take(i)`, and touches all of it.
TAKE = f"""
kept = []
for i in range({MEMORY_MEGABYTES} // 32):
    kept.append(take(i))
gained()
kept.clear()
"""
PIECE = "b'x' * (32 << 20)"


def removed_after(folder: str, code: str) -> str:
    """Files of a control are removed again."""
    made = f"import atexit, shutil\nfolder = {folder}\nos.makedirs(folder, exist_ok=True)\natexit.register(shutil.rmtree, folder, True)\n"
    return made + code


OWN_FOLDER = "os.path.join(os.getcwd(), f'flood-{os.getpid()}')"
WRITE_FILES = "def take(i):\n    with open(f'{folder}/{i}', 'wb') as f:\n        f.write(" + PIECE + ")\n" + TAKE

MEMORY = [
    Attempt("heap", f"take = lambda i: bytearray({PIECE})\n" + TAKE, gained),
    Attempt(
        "one piece", f"kept = bytearray({MEMORY_MEGABYTES} << 20)\nkept[::4096] = bytes(len(kept[::4096]))\ngained()\nkept = None", gained
    ),
    Attempt(
        "shared between processes",
        f"import mmap\ndef take(i):\n    m = mmap.mmap(-1, 32 << 20)\n    m.write({PIECE})\n    return m\n" + TAKE,
        gained,
    ),
    Attempt(
        "file without a name", f"def take(i):\n    fd = os.memfd_create('x')\n    os.write(fd, {PIECE})\n    return fd\n" + TAKE, gained
    ),
    Attempt(
        "System V shared memory",
        cell("""
                def take(i):
                    n = libc.shmget(0, ctypes.c_size_t(32 << 20), 0o600)
                    assert n >= 0
                    a = libc.shmat(n, None, 0)
                    libc.shmctl(n, 0, None)
                    ctypes.memset(ctypes.c_void_p(a), 120, 32 << 20)
            """)
        + TAKE,
        gained,
    ),
    Attempt(
        "many processes",
        "def take(i):\n    r, w = os.pipe()\n    pid = os.fork()\n    if pid == 0:\n        kept = "
        + PIECE
        + "\n        os.write(w, b'x')\n        time.sleep(30)\n"
        "        os._exit(0)\n    os.close(w)\n    assert os.read(r, 1) == b'x'\n    return pid\n"
        + TAKE.replace("kept.clear()", "[os.kill(pid, 9) for pid in kept]"),
        gained,
    ),
    Attempt("files in /dev/shm", removed_after("f'/dev/shm/flood-{os.getpid()}'", WRITE_FILES), gained),
    Attempt("files in /tmp", removed_after("f'/tmp/flood-{os.getpid()}'", WRITE_FILES), gained),
    Attempt(
        "files in the home folder",
        removed_after("os.path.expanduser('~') + f'/flood-{os.getpid()}'", WRITE_FILES),
        gained,
        control=removed_after("T['root'] + '/flood'", WRITE_FILES),
    ),
    Attempt(
        "pipes",
        cell("""
        def take(i):
            for _ in range(32):
                r, w = os.pipe()
                import fcntl
                fcntl.fcntl(w, 1031, 1 << 20)
                os.write(w, b'x' * (1 << 20))
    """)
        + TAKE,
        gained,
        needs_root=True,
        control=cell("""
                import resource
                resource.setrlimit(resource.RLIMIT_NOFILE, (2000, 2000))
                def take(i):
                    for _ in range(32):
                        r, w = os.pipe()
                        import fcntl
                        fcntl.fcntl(w, 1031, 1 << 20)
                        os.write(w, b'x' * (1 << 20))
            """)
        + TAKE,
    ),
]

DISK = [
    Attempt(
        "one large file",
        removed_after(
            OWN_FOLDER,
            cell("""
        f = open(f'{folder}/a', 'wb')
        for _ in range(64):
            f.write(b'x' * (1 << 20))
        f.flush()
        gained()
    """),
        ),
        gained,
    ),
    Attempt(
        "many files of half a megabyte",
        removed_after(
            OWN_FOLDER,
            cell("""
                for i in range(100):
                    open(f'{folder}/{i}', 'wb').write(b'x' * (1 << 19))
                    time.sleep(0.01)
                gained()
            """),
        ),
        gained,
    ),
    Attempt(
        "files that were deleted and are open",
        removed_after(
            OWN_FOLDER,
            cell("""
                kept = []
                for i in range(64):
                    f = open(f'{folder}/a', 'wb', buffering=0)
                    f.write(b'x' * (1 << 20))
                    os.unlink(f'{folder}/a')
                    kept.append(f)
                gained()
            """),
        ),
        gained,
    ),
    Attempt(
        "space reserved",
        removed_after(
            OWN_FOLDER,
            cell("""
        f = open(f'{folder}/a', 'wb')
        os.posix_fallocate(f.fileno(), 0, 64 << 20)
        gained()
    """),
        ),
        gained,
    ),
    Attempt(
        "empty files",
        removed_after(
            OWN_FOLDER,
            cell("""
        for i in range(1000):
            open(f'{folder}/{i}', 'w').close()
        time.sleep(0.3)
        gained()
    """),
        ),
        gained,
    ),
    Attempt(
        "folders",
        removed_after(
            OWN_FOLDER,
            cell("""
        for i in range(1000):
            os.mkdir(f'{folder}/{i}')
        time.sleep(0.3)
        gained()
    """),
        ),
        gained,
    ),
    Attempt(
        "links",
        removed_after(
            OWN_FOLDER,
            cell("""
        for i in range(1000):
            os.symlink('x' * 100, f'{folder}/{i}')
        time.sleep(0.3)
        gained()
    """),
        ),
        gained,
    ),
    Attempt(
        "empty files in /tmp",
        removed_after(
            "f'/tmp/flood-{os.getpid()}'",
            cell("""
        for i in range(20000):
            open(f'{folder}/{i}', 'w').close()
        gained()
    """),
        ),
        gained,
    ),
]

OPEN_FILES = """
import resource
resource.setrlimit(resource.RLIMIT_NOFILE, [resource.getrlimit(resource.RLIMIT_NOFILE)[1]] * 2)
kept = [os.open('/dev/null', os.O_RDONLY) for i in range(100_000)]
gained()
"""

PROCESSES = [
    Attempt(
        "processes",
        cell("""
        for i in range(150):
            if os.fork() == 0:
                time.sleep(5)
                os._exit(0)
        gained()
    """),
        gained,
    ),
    Attempt(
        "processes of processes",
        cell("""
                r, w = os.pipe()
                for i in range(8):
                    if os.fork() == 0:
                        break
                else:
                    os.close(w)
                    n = 0
                    while len(b := os.read(r, 1)) and n < 250:
                        n += 1
                    n >= 150 and gained()
                    os._exit(0)
                try:
                    for i in range(4):
                        os.fork()
                    os.write(w, b'x')
                    os.close(w)
                    time.sleep(3)
                finally:
                    os._exit(0)
            """),
        gained,
        control=cell("""
                r, w = os.pipe()
                for i in range(4):
                    os.fork()
                    os.fork()
                os.write(w, b'x')
                gained()
                os._exit(0)
            """),
    ),
    Attempt(
        "dead processes that nobody waits for",
        cell("""
        for i in range(300):
            os.fork() or os._exit(0)
        gained()
    """),
        gained,
    ),
    Attempt(
        "threads",
        cell("""
        import threading
        for i in range(150):
            threading.Thread(target=time.sleep, args=[5], daemon=True).start()
        gained()
    """),
        gained,
    ),
    Attempt("open files", OPEN_FILES, gained, control=OPEN_FILES.replace("100_000", "2_000")),
    Attempt(
        "memory kept from being swapped out",
        cell("""
        b = ctypes.create_string_buffer(64 << 20)
        libc.mlock(b, ctypes.c_size_t(64 << 20)) == 0 and gained()
    """),
        gained,
        needs_root=True,
    ),
]


@pytest.mark.parametrize("attempt", MEMORY + DISK + PROCESSES, ids=lambda attempt: attempt.name)
async def test_a_sandbox_holds(sandbox: Sandbox, attempt: Attempt, targets: Targets) -> None:
    await attempt_in(sandbox, attempt, targets)


@pytest.mark.parametrize("attempt", MEMORY + DISK + PROCESSES, ids=lambda attempt: attempt.name)
def test_without_a_sandbox_it_succeeds(attempt: Attempt, targets: Targets) -> None:
    assert_judge_sees_success(attempt, targets)

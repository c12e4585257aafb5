"""Attempts on files of the host: to read a secret, or to change it or what lies beside it, by every kind of path and descriptor."""

import pytest

from mini_assistant.sandboxes.base import Sandbox
from tests.attacks.attempts import Attempt, assert_judge_sees_success, attempt_in, cell, changed, gained, leaked
from tests.attacks.targets import Targets

READING = [
    Attempt("absolute path", "show(open(T['secret']).read())", leaked),
    Attempt("path with many ..", "show(open('../' * 40 + T['secret'].lstrip('/')).read())", leaked),
    Attempt("root of the process itself", "show(open('/proc/self/root' + T['secret']).read())", leaked),
    Attempt("root of its thread", "show(open(f'/proc/self/task/{os.getpid()}/root' + T['secret']).read())", leaked),
    Attempt(
        "roots of process 1 and of the server",
        cell("""
            for pid in T['server_pids']:
                try:
                    show(open(f'/proc/{pid}/root' + T['secret']).read())
                except OSError as exc:
                    print(exc)
        """),
        leaked,
    ),
    Attempt(
        "working folder of process 1 and of the server",
        cell("""
            for pid in T['server_pids']:
                try:
                    show(open(f'/proc/{pid}/cwd/host/secret.txt').read())
                except OSError as exc:
                    print(exc)
        """),
        leaked,
    ),
    Attempt(
        "symbolic link",
        cell("""
            os.symlink(T['secret'], f'/tmp/link-{os.getpid()}')
            try:
                show(open(f'/tmp/link-{os.getpid()}').read())
            finally:
                os.unlink(f'/tmp/link-{os.getpid()}')
        """),
        leaked,
    ),
    Attempt(
        "relative symbolic link",
        cell("""
            os.symlink('../' * 40 + T['secret'].lstrip('/'), f'link-{os.getpid()}')
            try:
                show(open(f'link-{os.getpid()}').read())
            finally:
                os.unlink(f'link-{os.getpid()}')
        """),
        leaked,
    ),
    Attempt(
        "folder opened as a descriptor",
        "show(os.read(os.open('secret.txt', os.O_RDONLY, dir_fd=os.open(T['folder'], os.O_RDONLY)), 99))",
        leaked,
    ),
    Attempt(
        "current folder changed first",
        cell("""
        os.chdir(T['folder'])
        show(open('secret.txt').read())
    """),
        leaked,
    ),
    Attempt(
        "file:// address",
        cell("""
        import urllib.request
        show(urllib.request.urlopen('file://' + T['secret']).read())
    """),
        leaked,
    ),
    Attempt(
        "child process",
        cell("""
        import subprocess
        show(subprocess.run(['cat', T['secret']], capture_output=True).stdout)
    """),
        leaked,
    ),
    Attempt(
        "imported as a module",
        cell("""
            import importlib.machinery
            show(importlib.machinery.SourceFileLoader('x', T['secret']).get_data(T['secret']))
        """),
        leaked,
    ),
    Attempt(
        "mapped into memory",
        cell("""
        import mmap
        show(mmap.mmap(os.open(T['secret'], os.O_RDONLY), 0, prot=mmap.PROT_READ)[:])
    """),
        leaked,
    ),
    Attempt(
        "sent from file to pipe",
        cell("""
            r, w = os.pipe()
            os.sendfile(w, os.open(T['secret'], os.O_RDONLY), 0, 99)
            show(os.read(r, 99))
        """),
        leaked,
    ),
    Attempt(
        "C library",
        cell("""
            libc.fopen.restype = ctypes.c_void_p
            f = libc.fopen(T['secret'].encode(), b'r')
            assert f
            b = ctypes.create_string_buffer(99)
            libc.fgets(b, 99, ctypes.c_void_p(f))
            show(b.value)
        """),
        leaked,
    ),
    Attempt(
        "every folder walked",
        cell("""
            end = time.monotonic() + 5
            for folder, folders, names in os.walk(T['root']):
                folders[:] = [name for name in folders if name not in ('proc', 'sys')]
                if 'secret.txt' in names:
                    show(open(os.path.join(folder, 'secret.txt')).read())
                if time.monotonic() > end:
                    break
        """),
        leaked,
    ),
    Attempt(
        "every descriptor that was inherited",
        cell("""
            for fd in range(1024):
                for read in (lambda: os.pread(fd, 99, 0), lambda: os.read(os.open('secret.txt', os.O_RDONLY, dir_fd=fd), 99),
                        lambda: os.read(os.open('host/secret.txt', os.O_RDONLY, dir_fd=fd), 99),
                        lambda: open(f'/proc/self/fd/{fd}/secret.txt').read()):
                    try:
                        show(read())
                    except OSError:
                        pass
        """),
        leaked,
    ),
    Attempt(
        ".. from every descriptor",
        cell("""
            for fd in range(64):
                for depth in range(12):
                    try:
                        show(os.read(os.open('../' * depth + T['secret'].lstrip('/'), os.O_RDONLY, dir_fd=fd), 99))
                    except OSError:
                        pass
        """),
        leaked,
        control=cell("""
            os.open('/', os.O_RDONLY)
            for fd in range(64):
                try:
                    show(os.read(os.open(T['secret'].lstrip('/'), os.O_RDONLY, dir_fd=fd), 99))
                except OSError:
                    pass
        """),
    ),
    Attempt(
        "file handle without a path",
        cell("""
            handle = ctypes.create_string_buffer(struct.pack('Ii', 128, 0) + bytes(128), 136)
            mount_id = ctypes.c_int()
            call('name_to_handle_at', -100, T['secret'].encode(), handle, ctypes.byref(mount_id), 0)
            show(os.read(call('open_by_handle_at', os.open('/', os.O_RDONLY), handle, os.O_RDONLY), 99))
        """),
        leaked,
        needs_root=True,
    ),
    Attempt("passwords of the host", "opens('/etc/shadow', os.O_RDONLY)", gained, needs_root=True, may_be_absent=True),
    Attempt(
        "home folder of root",
        cell("""
        os.listdir('/root')
        os.listdir('/root') and gained()
    """),
        gained,
        needs_root=True,
    ),
    Attempt("logs of the host", "os.listdir('/var/log') and gained()", gained),
    Attempt("hardware as the kernel tells it", "os.listdir('/sys/class/net') and gained()", gained),
    Attempt("disks", "os.listdir('/sys/block') and gained()", gained),
]

WRITING = [
    Attempt("written", "open(T['secret'], 'w').write('x')", changed),
    Attempt("emptied", "os.truncate(T['secret'], 0)", changed),
    Attempt("deleted", "os.unlink(T['secret'])", changed),
    Attempt("renamed", "os.rename(T['secret'], T['secret'] + '.gone')", changed),
    Attempt(
        "replaced by a file of its own",
        cell("""
            open('mine', 'w').close()
            os.replace('mine', T['secret'])
        """),
        changed,
        control=cell("""
            open(T['folder'] + '/mine', 'w').close()
            os.replace(T['folder'] + '/mine', T['secret'])
        """),
    ),
    Attempt("made readable for all", "os.chmod(T['secret'], 0o777)", changed),
    Attempt(
        "hard link into the own folder",
        cell("""
            os.link(T['secret'], 'mine')
            open('mine', 'w').write('x')
        """),
        changed,
        control="os.link(T['secret'], T['folder'] + '/mine')",
    ),
    Attempt("link put beside it", "os.symlink('/', T['folder'] + '/link')", changed),
    Attempt("file put beside it", "open(T['folder'] + '/new', 'w').close()", changed),
    Attempt(
        "folder put beside it through process 1 and the server",
        cell("""
            for pid in T['server_pids']:
                try:
                    os.mkdir(f'/proc/{pid}/cwd/host/new')
                except OSError as exc:
                    print(exc)
        """),
        changed,
    ),
    Attempt(
        "inherited descriptors written to",
        cell("""
            import fcntl
            for fd in range(3, 1024):
                try:
                    if not os.path.isdir(f'/proc/self/fd/{fd}') and fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDWR:
                        os.pwrite(fd, b'x', 0)
                    os.mkdir('new', dir_fd=fd)
                except OSError:
                    pass
        """),
        changed,
    ),
    Attempt("Python of the sandbox itself opened for writing", "opens(os.__file__, os.O_WRONLY)", gained, needs_root=True),
    Attempt(
        "program of the interpreter opened for writing through /proc",
        "opens('/proc/self/exe', os.O_WRONLY)",
        gained,
        control=cell("""
            import shutil, subprocess
            copy = T['root'] + '/copy'
            open(copy, 'w').close()
            opens(copy, os.O_WRONLY)
        """),
    ),
    Attempt(
        "libraries of the sandbox opened for writing",
        cell("""
        import email
        opens(email.__file__, os.O_RDWR)
    """),
        gained,
        needs_root=True,
    ),
]


@pytest.mark.parametrize("attempt", READING + WRITING, ids=lambda attempt: attempt.name)
async def test_a_sandbox_holds(sandbox: Sandbox, attempt: Attempt, targets: Targets) -> None:
    await attempt_in(sandbox, attempt, targets)


@pytest.mark.parametrize("attempt", READING + WRITING, ids=lambda attempt: attempt.name)
def test_without_a_sandbox_it_succeeds(attempt: Attempt, targets: Targets) -> None:
    assert_judge_sees_success(attempt, targets)

"""Attempts on the kernel: to get more rights, other namespaces and mounts, devices, and the parts of it that have had many holes.

Nothing of a real host is changed even where an attempt is let: knobs and devices are opened only, and calls that would change something
have an argument that is wrong on purpose, so that the kernel's answer tells whether the caller has the right, and no more.
"""

import pytest

from mini_assistant.sandboxes.base import Sandbox
from tests.attacks.attempts import Attempt, assert_judge_sees_success, attempt_in, cell, gained, leaked
from tests.attacks.targets import Targets

NEW_MOUNTS, NEW_HOSTNAME, NEW_IPC, NEW_USERS, NEW_PIDS, NEW_NETWORK, NEW_CGROUPS = (
    0x20000, 0x4000000, 0x8000000, 0x10000000, 0x20000000, 0x40000000, 0x2000000,
)  # fmt: skip


def unshare(flags: int) -> str:
    return f"in_child(lambda: (call('unshare', {flags}), gained()))"


# In mounts of its own where it can have them, so that a control changes none of the host's.
OWN_MOUNTS = f"call('unshare', {NEW_MOUNTS})\ncall('mount', b'none', b'/', None, 0x44000, None)\n"

NAMESPACES = [
    Attempt("users of its own", unshare(NEW_USERS), gained),
    Attempt("mounts of its own", unshare(NEW_MOUNTS), gained, needs_root=True),
    Attempt("network of its own", unshare(NEW_NETWORK), gained, needs_root=True),
    Attempt("processes of its own", unshare(NEW_PIDS), gained, needs_root=True),
    Attempt("hostname, IPC and control groups of its own", unshare(NEW_HOSTNAME | NEW_IPC | NEW_CGROUPS), gained, needs_root=True),
    Attempt("users and mounts of its own at once", unshare(NEW_USERS | NEW_MOUNTS), gained),
    Attempt(
        "users of its own by clone",
        f"pid = call('clone', {NEW_USERS | 17}, 0, 0, 0, 0)\npid or os._exit(0)\nos.waitpid(pid, 0)\ngained()",
        gained,
    ),
    Attempt(
        "users of its own by clone3",
        f"arguments = (ctypes.c_uint64 * 8)({NEW_USERS}, 0, 0, 0, 17)\npid = call('clone3', arguments, 64)\npid or os._exit(0)\n"
        "os.waitpid(pid, 0)\ngained()",
        gained,
    ),
    Attempt(
        "its own namespace joined again",
        "in_child(lambda: (call('setns', os.open('/proc/self/ns/uts', os.O_RDONLY), 0), gained()))",
        gained,
        needs_root=True,
    ),
    Attempt(
        "a namespace above its own",
        cell("""
            import fcntl
            parent = fcntl.ioctl(os.open('/proc/self/ns/user', os.O_RDONLY), 0xb702)
            call('setns', parent, 0)
            gained()
        """),
        gained,
        needs_root=True,
        control=cell("""
            import fcntl
            fcntl.ioctl(os.open('/proc/self/ns/uts', os.O_RDONLY), 0xb701)
            gained()
        """),
    ),
]

MOUNTS = [
    Attempt(
        "file system in memory",
        OWN_MOUNTS
        + cell("""
            call('mount', b'none', os.getcwd().encode(), b'tmpfs', 0, None)
            gained()
        """),
        gained,
        needs_root=True,
    ),
    Attempt(
        "the same without mounts of its own",
        cell("""
            call('mount', b'none', os.getcwd().encode(), b'tmpfs', 0, None)
            gained()
        """),
        gained,
        needs_root=True,
        control=OWN_MOUNTS
        + cell("""
            call('mount', b'none', os.getcwd().encode(), b'tmpfs', 0, None)
            gained()
        """),
    ),
    Attempt(
        "read-only root made writable",
        cell("""
            call('mount', b'none', b'/', None, 0x1020, None)
            gained()
        """),
        gained,
        needs_root=True,
        control=OWN_MOUNTS
        + cell("""
            call('mount', b'none', b'/', None, 0x1020, None)
            gained()
        """),
    ),
    Attempt(
        "/proc made writable",
        cell("""
            call('mount', b'none', b'/proc', None, 0x1020, None)
            gained()
        """),
        gained,
        needs_root=True,
        control=OWN_MOUNTS
        + cell("""
            call('mount', b'/proc', b'/proc', None, 0x1000, None)
            call('mount', b'none', b'/proc', None, 0x1020, None)
            gained()
        """),
    ),
    Attempt(
        "/proc a second time",
        cell("""
            os.makedirs('p', exist_ok=True)
            call('mount', b'proc', os.path.abspath('p').encode(), b'proc', 0, None)
            gained()
        """),
        gained,
        needs_root=True,
        control=OWN_MOUNTS
        + cell("""
            os.makedirs('p')
            call('mount', b'proc', os.path.abspath('p').encode(), b'proc', 0, None)
            gained()
        """),
    ),
    Attempt(
        "what lies below a mount uncovered",
        cell("""
            for path in ('/tmp', '/proc', '/mnt/data', '/dev', '/etc'):
                try:
                    call('umount2', path.encode(), 2)
                    gained()
                except OSError as exc:
                    print(exc)
        """),
        gained,
        needs_root=True,
        control=OWN_MOUNTS
        + cell("""
            call('mount', b'none', os.getcwd().encode(), b'tmpfs', 0, None)
            call('umount2', os.getcwd().encode(), 2)
            gained()
        """),
    ),
    Attempt(
        "root changed",
        cell("""
        os.chroot('/tmp')
        gained()
    """),
        gained,
        needs_root=True,
    ),
    Attempt(
        "root left by a second chroot",
        cell("""
            os.makedirs('jail', exist_ok=True)
            root = os.open('/', os.O_RDONLY)
            os.chroot('jail')
            os.fchdir(root)
            for _ in range(40):
                os.chdir('..')
            os.chroot('.')
            show(open(T['secret']).read())
        """),
        leaked,
        needs_root=True,
    ),
    Attempt("root exchanged", "permitted('pivot_root', b'/nonexistent-a', b'/nonexistent-b')", gained, needs_root=True),
    Attempt(
        "detached copy of a mount",
        cell("""
        call('open_tree', -100, b'/', 1)
        gained()
    """),
        gained,
        needs_root=True,
    ),
    Attempt(
        "file system opened",
        cell("""
        call('fsopen', b'tmpfs', 0)
        gained()
    """),
        gained,
        needs_root=True,
    ),
    Attempt(
        "attributes of a mount",
        "permitted('mount_setattr', -100, b'/nonexistent-a', 0, (ctypes.c_uint64 * 4)(0, 1, 0, 0), 32)",
        gained,
        needs_root=True,
    ),
]

DEVICES = [
    Attempt(
        "disk made",
        cell("""
        os.mknod('disk', 0o60600, os.makedev(7, 0))
        gained()
    """),
        gained,
        needs_root=True,
    ),
    Attempt(
        "memory made",
        cell("""
        os.mknod('memory', 0o20600, os.makedev(1, 1))
        gained()
    """),
        gained,
        needs_root=True,
    ),
    Attempt("message buffer", "opens('/dev/kmsg', os.O_RDONLY)", gained, needs_root=True, may_be_absent=True),
    Attempt("memory", "opens('/dev/mem', os.O_RDONLY)", gained, needs_root=True, may_be_absent=True),
    Attempt("virtual machines", "opens('/dev/kvm', os.O_RDONLY)", gained, needs_root=True, may_be_absent=True),
    Attempt("file systems of its own", "opens('/dev/fuse', os.O_RDONLY)", gained, needs_root=True, may_be_absent=True),
    Attempt("loop devices", "opens('/dev/loop-control', os.O_RDONLY)", gained, needs_root=True, may_be_absent=True),
    Attempt("network cards", "opens('/dev/net/tun', os.O_RDONLY)", gained, needs_root=True, may_be_absent=True),
    Attempt("terminals of the host", "opens('/dev/tty0', os.O_RDONLY | os.O_NOCTTY)", gained, needs_root=True, may_be_absent=True),
]

KNOBS = [
    Attempt(f"{path} {'written' if flags else 'read'}", f"opens({path!r}, {'os.O_WRONLY' if flags else 'os.O_RDONLY'})", gained, True, True)
    for path, flags in [
        ("/proc/sys/kernel/core_pattern", 1),
        ("/proc/sys/kernel/modprobe", 1),
        ("/proc/sys/kernel/hostname", 1),
        ("/proc/sys/vm/overcommit_memory", 1),
        ("/proc/sys/fs/binfmt_misc/register", 1),
        ("/proc/sysrq-trigger", 1),
        ("/proc/irq/default_smp_affinity", 1),
        ("/proc/acpi/wakeup", 1),
        ("/sys/kernel/uevent_helper", 1),
        ("/sys/power/state", 1),
        ("/sys/fs/cgroup/memory/release_agent", 1),
        ("/sys/fs/cgroup/cgroup.procs", 1),
        ("/proc/kcore", 0),
        ("/proc/kmsg", 0),
        ("/proc/vmallocinfo", 0),
        ("/proc/slabinfo", 0),
        ("/sys/kernel/debug/tracing/trace", 0),
        ("/sys/firmware/acpi/tables/DSDT", 0),
    ]
]  # fmt: skip

CALLS = [
    Attempt(
        "addresses of the kernel",
        "any(int(line.split()[0], 16) for line in open('/proc/kallsyms')) and gained()",
        gained,
        needs_root=True,
        may_be_absent=True,
    ),
    Attempt("keys as /proc tells them", "T['key'] in open('/proc/keys').read() and gained()", gained),
    Attempt(
        "key of the server's keyring",
        cell("""
            key = call('keyctl', 10, -3, b'user', T['key'].encode(), 0)
            b = ctypes.create_string_buffer(99)
            call('keyctl', 11, key, b, 99)
            show(b.value)
        """),
        leaked,
    ),
    Attempt(
        "key asked for by its name",
        cell("""
            key = call('request_key', b'user', T['key'].encode(), None, -1)
            b = ctypes.create_string_buffer(99)
            call('keyctl', 11, key, b, 99)
            show(b.value)
        """),
        leaked,
    ),
    Attempt(
        "key added",
        cell("""
        call('add_key', b'user', b'mini-own', b'x', 1, -1)
        gained()
    """),
        gained,
    ),
    Attempt(
        "shared memory by its number",
        cell("""
            address = libc.shmat(T['shm'], None, 0o10000)
            assert address != 2 ** 64 - 1
            show(ctypes.string_at(address, 64))
        """),
        leaked,
    ),
    Attempt("shared memory as /proc tells it", "f\" {T['shm']} \" in open('/proc/sysvipc/shm').read() and gained()", gained),
    Attempt(
        "message queue by its name",
        cell("""
        call('mq_open', T['queue'].encode(), os.O_RDONLY, 0, None)
        gained()
    """),
        gained,
    ),
    Attempt(
        "program in the kernel",
        cell("""
        call('bpf', 0, (ctypes.c_uint32 * 18)(2, 4, 4, 1), 72)
        gained()
    """),
        gained,
        needs_root=True,
    ),
    Attempt(
        "counters of the processor",
        cell("""
            call('perf_event_open', (ctypes.c_uint32 * 30)(1, 112), 0, -1, -1, 0)
            gained()
        """),
        gained,
        needs_root=True,
    ),
    Attempt(
        "page faults",
        cell("""
        call('userfaultfd', 1)
        gained()
    """),
        gained,
        needs_root=True,
    ),
    Attempt(
        "queue of calls that no filter sees",
        cell("""
        call('io_uring_setup', 2, ctypes.create_string_buffer(120))
        gained()
    """),
        gained,
    ),
    Attempt(
        "watch over all files",
        cell("""
        call('fanotify_init', 0, 0)
        gained()
    """),
        gained,
        needs_root=True,
    ),
    Attempt("module loaded", "permitted('init_module', b'', 0, b'')", gained, needs_root=True, may_be_absent=True),
    Attempt("module loaded from a file", "permitted('finit_module', -1, b'', 0)", gained, needs_root=True, may_be_absent=True),
    Attempt("module taken out", "permitted('delete_module', b'mini_assistant_none', 0)", gained, needs_root=True, may_be_absent=True),
    Attempt("another kernel", "permitted('kexec_load', 0, 0, None, 1 << 20)", gained, needs_root=True, may_be_absent=True),
    Attempt("restart", "permitted('reboot', 1, 2, 3, None)", gained, needs_root=True),
    Attempt("swap file", "permitted('swapon', b'/nonexistent-a', 0)", gained, needs_root=True),
    Attempt("accounts of all processes", "permitted('acct', b'/nonexistent-a')", gained, needs_root=True),
    Attempt("hostname", "permitted('sethostname', b'x', -1)", gained, needs_root=True),
    Attempt("clock", "permitted('settimeofday', None, None)", gained, needs_root=True),
    Attempt(
        "messages of the kernel",
        cell("""
        call('syslog', 10, None, 0)
        gained()
    """),
        gained,
        needs_root=True,
    ),
    Attempt("quotas", "permitted('quotactl', 0x800001 << 8, b'/nonexistent-a', 0, None)", gained, may_be_absent=True),
    Attempt(
        "ports of the machine",
        cell("""
            call('iopl', 3)
            gained()
        """),
        gained,
        needs_root=True,
        may_be_absent=True,
        control=cell("""
            try:
                call('iopl', 3)
                gained()
            except OSError as exc:
                exc.errno == errno.ENOSYS and absent()
        """),
    ),
    Attempt(
        "memory of pages moved",
        cell("""
        call('move_pages', T['victim'], 0, None, None, None, 0)
        gained()
    """),
        gained,
        needs_root=True,
    ),
    Attempt(
        "personality without random addresses",
        cell("""
        call('personality', 0x0040000)
        gained()
    """),
        gained,
    ),
    Attempt("another user", "in_child(lambda: (os.setuid(12345), gained()))", gained, needs_root=True),
    Attempt("another group", "in_child(lambda: (os.setgroups([12345]), gained()))", gained, needs_root=True),
    Attempt(
        "a capability that it has",
        "int([l for l in open('/proc/self/status') if l.startswith('CapEff')][0].split()[1], 16) and gained()",
        gained,
        needs_root=True,
    ),
    Attempt(
        "a capability got by starting a program",
        cell("""
            import subprocess
            status = subprocess.run(['cat', '/proc/self/status'], capture_output=True, text=True).stdout
            int([l for l in status.splitlines() if l.startswith('CapEff')][0].split()[1], 16) and gained()
        """),
        gained,
        needs_root=True,
    ),
    Attempt("rights by a program with set-user-id", "'NoNewPrivs:\\t0' in open('/proc/self/status').read() and gained()", gained),
    Attempt("no filter of calls", "'Seccomp:\\t0' in open('/proc/self/status').read() and gained()", gained),
    Attempt(
        "real-time priority",
        "in_child(lambda: (os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1)), gained()))",
        gained,
        needs_root=True,
    ),
    Attempt("priority raised", "in_child(lambda: (os.setpriority(os.PRIO_PROCESS, 0, -5), gained()))", gained, needs_root=True),
    Attempt(
        "limits raised",
        cell("""
            import resource
            soft, hard = resource.getrlimit(resource.RLIMIT_NPROC)
            in_child(lambda: (resource.setrlimit(resource.RLIMIT_CORE, (1 << 40, 1 << 40)), gained()))
        """),
        gained,
        needs_root=True,
    ),
]

# On x86-64 a filter that looks at numbers only can be passed by by two more tables of calls: of 32-bit programs, and of x32.
GATES = [
    Attempt(
        "calls of 32-bit programs",
        cell("""
            import mmap
            code = bytes.fromhex('53b8140000008b1c24cd805bc3')  # getpid by int 0x80
            page = mmap.mmap(-1, 4096, prot=7)
            page.write(code)
            address = ctypes.addressof(ctypes.c_char.from_buffer(page))
            platform.machine() == 'x86_64' or absent()
            def go():
                ctypes.CFUNCTYPE(ctypes.c_int)(address)() > 0 and gained()
            in_child(go)
        """),
        gained,
        may_be_absent=True,
        control=cell("""
            platform.machine() == 'x86_64' or absent()
            import mmap
            code = bytes.fromhex('53b8140000008b1c24cd805bc3')
            page = mmap.mmap(-1, 4096, prot=7)
            page.write(code)
            address = ctypes.addressof(ctypes.c_char.from_buffer(page))
            def go():
                gained() if ctypes.CFUNCTYPE(ctypes.c_int)(address)() > 0 else absent()
            pid = os.fork()
            pid or (go(), os._exit(0))
            os.waitpid(pid, 0)[1] and absent()
        """),
    ),
    Attempt(
        "numbers of x32",
        cell("""
            NUMBERS['x32'] = 0x40000000 + 39
            (call('x32') > 0) and gained()
        """),
        gained,
        may_be_absent=True,
        control=cell("""
            NUMBERS['x32'] = 0x40000000 + 39
            try:
                call('x32')
                gained()
            except OSError:
                absent()
        """),
    ),
]

ATTEMPTS = NAMESPACES + MOUNTS + DEVICES + KNOBS + CALLS + GATES


@pytest.mark.parametrize("attempt", ATTEMPTS, ids=lambda attempt: attempt.name)
async def test_a_sandbox_holds(sandbox: Sandbox, attempt: Attempt, targets: Targets) -> None:
    await attempt_in(sandbox, attempt, targets)


@pytest.mark.parametrize("attempt", ATTEMPTS, ids=lambda attempt: attempt.name)
def test_without_a_sandbox_it_succeeds(attempt: Attempt, targets: Targets) -> None:
    assert_judge_sees_success(attempt, targets)

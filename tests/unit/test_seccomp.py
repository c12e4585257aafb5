"""The filter for system calls, run by an interpreter of the kernel's BPF: what it decides about each call, for both architectures."""

import errno
import re
import struct
from pathlib import Path

import pytest

from mini_assistant.errors import SandboxUnavailable
from mini_assistant.sandboxes.seccomp import call_numbers, seccomp_filter

AUDIT_NUMBERS = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
I386_AUDIT_NUMBER = 0x40000003
MACHINES = list(AUDIT_NUMBERS)

NEEDED = """
read write openat mmap mprotect munmap execve exit_group futex wait4 kill getrandom pipe2 rt_sigaction epoll_pwait sendmsg recvmsg
dup3 unlinkat renameat2 statx fcntl setresuid fsync
"""
DANGEROUS = """
socket connect bind listen accept accept4 ptrace process_vm_readv process_vm_writev unshare setns mount umount2 pivot_root chroot
open_by_handle_at keyctl add_key request_key bpf perf_event_open userfaultfd io_uring_setup io_uring_enter io_uring_register
shmget shmat mq_open msgget semget init_module finit_module kexec_load reboot syslog swapon acct pidfd_getfd move_mount fsopen
seccomp capset setxattr mlockall clock_settime
"""

ALLOW = "allow"
KILL = "kill"


def decision(machine: str, number: int, *arguments: int, audit_number: int | None = None) -> str:
    """What the filter for a machine says to a call: "allow", "kill", or the name of an error."""
    data = struct.pack("<iIQ6Q", number, audit_number or AUDIT_NUMBERS[machine], 0, *arguments, *[0] * (6 - len(arguments)))
    program = list(struct.iter_unpack("<HBBI", seccomp_filter(machine)))
    accumulator = at = 0
    while True:
        code, if_true, if_false, value = program[at]
        at += 1
        match code:
            case 0x20:
                (accumulator,) = struct.unpack_from("<I", data, value)
            case 0x54:
                accumulator &= value
            case 0x15:
                at += if_true if accumulator == value else if_false
            case 0x25:
                at += if_true if accumulator > value else if_false
            case 0x35:
                at += if_true if accumulator >= value else if_false
            case 0x45:
                at += if_true if accumulator & value else if_false
            case 0x06:
                return {0x7FFF0000: ALLOW, 0x80000000: KILL}.get(value) or errno.errorcode[value & 0xFFFF]
            case _:
                raise AssertionError(f"unknown instruction {code:#x}")


def decide(machine: str, name: str, *arguments: int) -> str:
    return decision(machine, call_numbers(machine)[name], *arguments)


@pytest.mark.parametrize("machine", MACHINES)
@pytest.mark.parametrize("name", NEEDED.split())
def test_what_programs_need_is_allowed(machine: str, name: str) -> None:
    assert decide(machine, name) == ALLOW


@pytest.mark.parametrize("machine", MACHINES)
@pytest.mark.parametrize("name", DANGEROUS.split())
def test_what_is_dangerous_is_not_permitted(machine: str, name: str) -> None:
    assert decide(machine, name) == "EPERM"


@pytest.mark.parametrize("machine", MACHINES)
@pytest.mark.parametrize(("name", "number"), [("clone3", 435), ("landlock_create_ruleset", 444), ("cachestat", 451), ("newer", 9999)])
def test_what_is_not_named_is_unknown(machine: str, name: str, number: int) -> None:
    assert name not in call_numbers(machine)
    assert decision(machine, number) == "ENOSYS"


@pytest.mark.parametrize(("machine", "numbers"), [("x86_64", (319, 275, 276, 278, 326)), ("aarch64", (279, 76, 77, 75, 285))])
def test_memory_without_a_limit_and_splicing_are_unknown(machine: str, numbers: tuple[int, ...]) -> None:
    """memfd_create, splice, tee, vmsplice, copy_file_range."""
    assert {decision(machine, number) for number in numbers} == {"ENOSYS"}


@pytest.mark.parametrize("machine", MACHINES)
def test_calls_of_another_architecture_end_the_process(machine: str) -> None:
    others = [I386_AUDIT_NUMBER, *(number for name, number in AUDIT_NUMBERS.items() if name != machine)]

    assert {decision(machine, call_numbers(machine)["read"], audit_number=other) for other in others} == {KILL}


def test_the_second_set_of_numbers_of_x86_64_is_unknown() -> None:
    assert decision("x86_64", 0x40000000 | call_numbers("x86_64")["read"]) == "ENOSYS"
    assert decision("x86_64", 0x40000000 + 520) == "ENOSYS"  # its execve


@pytest.mark.parametrize("machine", MACHINES)
@pytest.mark.parametrize(
    ("name", "arguments", "expected"),
    [
        ("clone", (0x003D0F00,), ALLOW),  # a thread, as glibc makes it
        ("clone", (0x01200011,), ALLOW),  # fork, as glibc makes it
        ("clone", (0x10000011,), "EPERM"),  # CLONE_NEWUSER
        ("clone", (0x00020011,), "EPERM"),  # CLONE_NEWNS
        ("clone", (0x40000011,), "EPERM"),  # CLONE_NEWNET
        ("clone", (0x20000011,), "EPERM"),  # CLONE_NEWPID
        ("clone", (0x02000011,), "EPERM"),  # CLONE_NEWCGROUP
        ("clone", (0x04000011,), "EPERM"),  # CLONE_NEWUTS
        ("clone", (0x08000011,), "EPERM"),  # CLONE_NEWIPC
        ("socketpair", (1, 1), ALLOW),
        ("socketpair", (1, 1 | 0o2000000 | 0o4000), ALLOW),  # SOCK_CLOEXEC, SOCK_NONBLOCK
        ("socketpair", (1, 2), "EPERM"),  # datagrams
        ("socketpair", (2, 1), "EPERM"),  # AF_INET
        ("socketpair", (16, 1), "EPERM"),  # AF_NETLINK
        ("sendto", (3, 0, 0, 0, 0), ALLOW),
        ("sendto", (3, 0, 0, 0, 0x1000), "EPERM"),
        ("sendto", (3, 0, 0, 0, 0x1000_0000_0000), "EPERM"),
        ("prctl", (15,), ALLOW),  # PR_SET_NAME
        ("prctl", (1,), ALLOW),  # PR_SET_PDEATHSIG
        ("prctl", (22,), "EPERM"),  # PR_SET_SECCOMP
        ("prctl", (24,), ALLOW),  # PR_CAPBSET_DROP
        ("prctl", (47,), "EPERM"),  # PR_CAP_AMBIENT
        ("prctl", (35,), "EPERM"),  # PR_SET_MM
        ("prctl", (0x59616D61,), "EPERM"),  # PR_SET_PTRACER
        ("ioctl", (0, 0x5401), ALLOW),  # TCGETS
        ("ioctl", (0, 0x541B), ALLOW),  # FIONREAD
        ("ioctl", (0, 0x5412), "ENOTTY"),  # TIOCSTI
        ("ioctl", (0, 0x1_0000_5412), "ENOTTY"),
        ("ioctl", (0, 0x541C), "ENOTTY"),  # TIOCLINUX
        ("ioctl", (0, 0xAE01), "ENOTTY"),  # KVM_CREATE_VM
        ("personality", (0xFFFFFFFF,), ALLOW),
        ("personality", (0x0040000,), "EPERM"),  # ADDR_NO_RANDOMIZE
        ("personality", (0,), "EPERM"),
        ("mknodat", (0, 0, 0o010644), ALLOW),
        ("mknodat", (0, 0, 0o100644), ALLOW),
        ("mknodat", (0, 0, 0o020644), "EPERM"),  # a character device
        ("mknodat", (0, 0, 0o060644), "EPERM"),  # a block device
        ("mknodat", (0, 0, 0o140644), "EPERM"),  # a socket
        ("prlimit64", (0, 7, 0x1000), ALLOW),
        ("prlimit64", (0, 4, 0), ALLOW),  # to ask for the limit on core dumps
        ("prlimit64", (0, 4, 0x1000), "EPERM"),
        ("prlimit64", (0, 4, 0x1000_0000_0000), "EPERM"),
        ("setrlimit", (4, 0x1000), "EPERM"),
        ("setrlimit", (7, 0x1000), ALLOW),
    ],
)
def test_some_calls_are_decided_by_their_arguments(machine: str, name: str, arguments: tuple[int, ...], expected: str) -> None:
    assert decide(machine, name, *arguments) == expected


def test_devices_cannot_be_made_with_the_old_call_either() -> None:
    assert decide("x86_64", "mknod", 0, 0o010644) == ALLOW
    assert decide("x86_64", "mknod", 0, 0o020644) == "EPERM"


@pytest.mark.parametrize("machine", MACHINES)
def test_each_number_is_decided_in_every_program(machine: str) -> None:
    assert {decision(machine, number) for number in range(600)} <= {ALLOW, "EPERM", "ENOSYS", "ENOTTY"}


@pytest.mark.parametrize("machine", MACHINES)
def test_no_number_is_named_twice(machine: str) -> None:
    numbers = list(call_numbers(machine).values())

    assert len(numbers) == len(set(numbers))


def test_the_program_is_as_the_kernel_takes_it() -> None:
    for machine in MACHINES:
        program = list(struct.iter_unpack("<HBBI", seccomp_filter(machine)))
        assert len(program) <= 4096
        assert program[-1][0] == 0x06
        for at, (code, if_true, if_false, _) in enumerate(program):
            assert at + 1 + max(if_true, if_false) < len(program) or code == 0x06


@pytest.mark.parametrize(
    ("machine", "header"),
    [("x86_64", "/usr/include/x86_64-linux-gnu/asm/unistd_64.h"), ("aarch64", "/usr/include/asm-generic/unistd.h")],
)
def test_numbers_are_those_of_the_headers(machine: str, header: str) -> None:
    if not Path(header).exists():
        pytest.skip(f"{header} is not installed")
    found = {name: int(number) for name, number in re.findall(r"#define __NR(?:3264)?_(\w+)\s+(\d+)", Path(header).read_text())}
    found["newfstatat"] = found.get("newfstatat") or found["fstatat"]

    named = call_numbers(machine)

    assert {name: number for name, number in named.items() if name in found} == {n: v for n, v in found.items() if n in named}
    assert len(set(named) - set(found)) <= 3  # newer than the headers may be


def test_other_processors_have_no_filter() -> None:
    with pytest.raises(SandboxUnavailable, match="riscv64"):
        seccomp_filter("riscv64")

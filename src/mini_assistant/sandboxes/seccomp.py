"""The system calls that code in the sandbox `process` may make: a filter for the kernel, in its classic BPF.

What is not named is refused as unknown, so that programs fall back to older calls; what is known to be dangerous is refused as not
permitted. A filter stays for the life of a process and its children. It is made for one architecture; calls of any other end the process.
"""

import errno
import resource
import socket
import stat
import struct
from collections.abc import Iterable
from typing import NamedTuple

from mini_assistant.errors import SandboxUnavailable

# Name, number on x86_64, number on aarch64, which has no call where there is a dash.
_ALLOWED = """
read 0 63, write 1 64, open 2 -, close 3 57, stat 4 -, fstat 5 80, lstat 6 -, poll 7 -, lseek 8 62, mmap 9 222, mprotect 10 226,
munmap 11 215, brk 12 214, rt_sigaction 13 134, rt_sigprocmask 14 135, rt_sigreturn 15 139, pread64 17 67, pwrite64 18 68, readv 19 65,
writev 20 66, access 21 -, pipe 22 -, select 23 -, sched_yield 24 124, mremap 25 216, msync 26 227, madvise 28 233, dup 32 23,
dup2 33 -, pause 34 -, nanosleep 35 101, getitimer 36 102, alarm 37 -, setitimer 38 103, getpid 39 172, sendfile 40 71,
recvfrom 45 207, sendmsg 46 211, recvmsg 47 212, shutdown 48 210, getsockname 51 204, getpeername 52 205, setsockopt 54 208,
getsockopt 55 209, fork 57 -, vfork 58 -, execve 59 221, exit 60 93, wait4 61 260, kill 62 129, uname 63 160, fcntl 72 25, flock 73 32,
fsync 74 82, fdatasync 75 83, truncate 76 45, ftruncate 77 46, getdents 78 -, getcwd 79 17, chdir 80 49, fchdir 81 50, rename 82 -,
mkdir 83 -, rmdir 84 -, creat 85 -, link 86 -, unlink 87 -, symlink 88 -, readlink 89 -, chmod 90 -, fchmod 91 52, chown 92 -,
fchown 93 55, lchown 94 -, umask 95 166, gettimeofday 96 169, getrlimit 97 163, getrusage 98 165, sysinfo 99 179, times 100 153,
getuid 102 174, getgid 104 176, setuid 105 146, setgid 106 144, geteuid 107 175, getegid 108 177, setpgid 109 154, getppid 110 173,
getpgrp 111 -, setsid 112 157, setreuid 113 145, setregid 114 143, getgroups 115 158, setgroups 116 159, setresuid 117 147,
getresuid 118 148, setresgid 119 149, getresgid 120 150, getpgid 121 155, getsid 124 156, capget 125 90, rt_sigpending 127 136,
rt_sigtimedwait 128 137, rt_sigqueueinfo 129 138, rt_sigsuspend 130 133, sigaltstack 131 132, utime 132 -, statfs 137 43,
fstatfs 138 44, getpriority 140 141, setpriority 141 140, sched_setparam 142 118, sched_getparam 143 121, sched_setscheduler 144 119,
sched_getscheduler 145 120, sched_get_priority_max 146 125, sched_get_priority_min 147 126, sched_rr_get_interval 148 127,
arch_prctl 158 -, sync 162 81, gettid 186 178, readahead 187 213, getxattr 191 8, lgetxattr 192 9, fgetxattr 193 10, listxattr 194 11,
llistxattr 195 12, flistxattr 196 13, tkill 200 130, time 201 -, futex 202 98, sched_setaffinity 203 122, sched_getaffinity 204 123,
epoll_create 213 -, getdents64 217 61, set_tid_address 218 96, restart_syscall 219 128, fadvise64 221 223, timer_create 222 107,
timer_settime 223 110, timer_gettime 224 108, timer_getoverrun 225 109, timer_delete 226 111, clock_gettime 228 113,
clock_getres 229 114, clock_nanosleep 230 115, exit_group 231 94, epoll_wait 232 -, epoll_ctl 233 21, tgkill 234 131, utimes 235 -,
get_mempolicy 239 236, waitid 247 95, openat 257 56, mkdirat 258 34, fchownat 260 54, futimesat 261 -, newfstatat 262 79,
unlinkat 263 35, renameat 264 38, linkat 265 37, symlinkat 266 36, readlinkat 267 78, fchmodat 268 53, faccessat 269 48,
pselect6 270 72, ppoll 271 73, set_robust_list 273 99, get_robust_list 274 100, sync_file_range 277 84, utimensat 280 88,
epoll_pwait 281 22, signalfd 282 -, timerfd_create 283 85, eventfd 284 -, fallocate 285 47, timerfd_settime 286 86,
timerfd_gettime 287 87, signalfd4 289 74, eventfd2 290 19, epoll_create1 291 20, dup3 292 24, pipe2 293 59, preadv 295 69,
pwritev 296 70, rt_tgsigqueueinfo 297 240, syncfs 306 267, getcpu 309 168, sched_setattr 314 274, sched_getattr 315 275,
renameat2 316 276, getrandom 318 278, execveat 322 281, membarrier 324 283, preadv2 327 286, pwritev2 328 287, statx 332 291,
rseq 334 293, pidfd_send_signal 424 424, pidfd_open 434 434, close_range 436 436, faccessat2 439 439, epoll_pwait2 441 441,
futex_waitv 449 449, fchmodat2 452 452
"""

# Allowed or not by their arguments: see _conditions().
_CONDITIONAL = """
ioctl 16 29, sendto 44 206, socketpair 53 199, clone 56 220, mknod 133 -, personality 135 92, prctl 157 167, setrlimit 160 164,
mknodat 259 33, prlimit64 302 261
"""

_DANGEROUS = """
shmget 29 194, shmat 30 196, shmctl 31 195, socket 41 198, connect 42 203, accept 43 202, bind 49 200, listen 50 201, semget 64 190,
semop 65 193, semctl 66 191, shmdt 67 197, msgget 68 186, msgsnd 69 189, msgrcv 70 188, msgctl 71 187, ptrace 101 117, syslog 103 116,
setfsuid 122 151, setfsgid 123 152, capset 126 91, mlock 149 228, mlockall 151 230, vhangup 153 58, modify_ldt 154 -,
pivot_root 155 41, adjtimex 159 171, chroot 161 51, acct 163 89, settimeofday 164 170, mount 165 40, umount2 166 39, swapon 167 224,
swapoff 168 225, reboot 169 142, sethostname 170 161, setdomainname 171 162, iopl 172 -, ioperm 173 -, init_module 175 105,
delete_module 176 106, quotactl 179 60, setxattr 188 5, lsetxattr 189 6, fsetxattr 190 7, removexattr 197 14, lremovexattr 198 15,
fremovexattr 199 16, lookup_dcookie 212 18, semtimedop 220 192, clock_settime 227 112, mbind 237 235, set_mempolicy 238 237,
mq_open 240 180, mq_unlink 241 181, mq_timedsend 242 182, mq_timedreceive 243 183, mq_notify 244 184, mq_getsetattr 245 185,
kexec_load 246 104, add_key 248 217, request_key 249 218, keyctl 250 219, migrate_pages 256 238, unshare 272 97, move_pages 279 239,
accept4 288 242, perf_event_open 298 241, fanotify_init 300 262, fanotify_mark 301 263, name_to_handle_at 303 264,
open_by_handle_at 304 265, clock_adjtime 305 266, setns 308 268, process_vm_readv 310 270, process_vm_writev 311 271, kcmp 312 272,
finit_module 313 273, seccomp 317 277, kexec_file_load 320 294, bpf 321 280, userfaultfd 323 282, mlock2 325 284,
io_uring_setup 425 425, io_uring_enter 426 426, io_uring_register 427 427, open_tree 428 428, move_mount 429 429, fsopen 430 430,
fsconfig 431 431, fsmount 432 432, fspick 433 433, pidfd_getfd 438 438, process_madvise 440 440, mount_setattr 442 442,
quotactl_fd 443 443
"""


class _Architecture(NamedTuple):
    audit_number: int
    column: int


_ARCHITECTURES = {"x86_64": _Architecture(0xC000_003E, 1), "aarch64": _Architecture(0xC000_00B7, 2)}
# x86_64 has a second set of numbers, from here on, for programs with pointers of 32 bits.
_X32_NUMBERS = 0x4000_0000

_CLONE_NEW_NAMESPACES = 0x7E02_0000
_SOCKET_TYPE_MASK = 0xF
_PERSONALITY_QUERY = 0xFFFF_FFFF
_FILE_TYPES = (0, stat.S_IFREG, stat.S_IFIFO)
# PDEATHSIG, DUMPABLE, KEEPCAPS, NAME, SECCOMP (to ask), CAPBSET_READ and _DROP, TIMERSLACK, CHILD_SUBREAPER, NO_NEW_PRIVS, THP_DISABLE,
# and names of memory.
_PRCTL_OPTIONS = (1, 2, 3, 4, 7, 15, 16, 21, 23, 24, 29, 30, 36, 37, 38, 39, 41, 42, 0x5356_4D41)
# TCGETS, TIOCGWINSZ, FIONREAD, FIONBIO, FIONCLEX, FIOCLEX: what Python and libc ask of any file. None of them writes to a terminal.
_IOCTL_REQUESTS = (0x5401, 0x5413, 0x541B, 0x5421, 0x5450, 0x5451)

# The kernel's instructions, and its answers to a call.
_LOAD, _AND, _IS_EQUAL, _IS_GREATER, _IS_AT_LEAST, _HAS_ANY_BIT, _ANSWER = 0x20, 0x54, 0x15, 0x25, 0x35, 0x45, 0x06
_ALLOW, _KILL_PROCESS, _ERROR = 0x7FFF_0000, 0x8000_0000, 0x0005_0000
# Where a call's number, its architecture and the first of its six arguments of 64 bits lie; both architectures are little-endian.
_NUMBER_AT, _ARCHITECTURE_AT, _ARGUMENTS_AT = 0, 4, 16


class _Instruction(NamedTuple):
    """code, how many instructions to skip when a test is true, and when it is false, and the value it works with."""

    code: int
    skip_if_true: int
    skip_if_false: int
    value: int

    def encoded(self) -> bytes:
        return struct.pack("=HBBI", *self)


def seccomp_filter(machine: str) -> bytes:
    """The filter for a machine as `platform.machine()` names it. Raises SandboxUnavailable for one that it is not known for."""
    architecture = _ARCHITECTURES.get(machine)
    if architecture is None:
        raise SandboxUnavailable(f"The sandbox has no list of system calls for {machine} processors: only for {', '.join(_ARCHITECTURES)}.")
    conditional = _numbers(_CONDITIONAL, architecture)
    program = [
        _Instruction(_LOAD, 0, 0, _ARCHITECTURE_AT),
        _Instruction(_IS_EQUAL, 1, 0, architecture.audit_number),
        _answer(_KILL_PROCESS),
        _Instruction(_LOAD, 0, 0, _NUMBER_AT),
    ]
    if machine == "x86_64":
        program += [_Instruction(_IS_AT_LEAST, 0, 1, _X32_NUMBERS), _error(errno.ENOSYS)]
    for name, decision in _conditions().items():
        if name in conditional:
            program += [_Instruction(_IS_EQUAL, 0, len(decision), conditional[name]), *decision]
    program += _answer_to_each(_numbers(_ALLOWED, architecture).values(), _answer(_ALLOW))
    program += _answer_to_each(_numbers(_DANGEROUS, architecture).values(), _error(errno.EPERM))
    program.append(_error(errno.ENOSYS))
    return b"".join(instruction.encoded() for instruction in program)


def call_numbers(machine: str) -> dict[str, int]:
    """Every call that the filter for a machine names, with its number."""
    return _numbers(f"{_ALLOWED},{_CONDITIONAL},{_DANGEROUS}", _ARCHITECTURES[machine])


def _numbers(table: str, architecture: _Architecture) -> dict[str, int]:
    rows = [row.split() for row in table.split(",")]
    return {row[0]: int(row[architecture.column]) for row in rows if row[architecture.column] != "-"}


def _conditions() -> dict[str, list[_Instruction]]:
    """What decides about a call that is allowed with some arguments only. Each ends with an answer."""
    refused = _error(errno.EPERM)
    no_device = [_Instruction(_AND, 0, 0, 0o170000), *_only(_FILE_TYPES, refused)]
    return {
        # New threads and processes, but no new namespaces. clone3 has its flags in memory, where no filter can look: it is not named.
        "clone": [_argument(0), _Instruction(_HAS_ANY_BIT, 0, 1, _CLONE_NEW_NAMESPACES), refused, _answer(_ALLOW)],
        # A pair of streams is connected for good. A datagram can be sent to whoever has a name.
        "socketpair": [
            _argument(0),
            _Instruction(_IS_EQUAL, 1, 0, socket.AF_UNIX),
            refused,
            _argument(1),
            _Instruction(_AND, 0, 0, _SOCKET_TYPE_MASK),
            *_only((socket.SOCK_STREAM,), refused),
        ],
        "sendto": [*_refused_unless_zero(4, refused), _answer(_ALLOW)],
        "prctl": [_argument(0), *_only(_PRCTL_OPTIONS, refused)],
        "ioctl": [_argument(1), *_only(_IOCTL_REQUESTS, _error(errno.ENOTTY))],
        "personality": [_argument(0), *_only((_PERSONALITY_QUERY,), refused)],
        "mknod": [_argument(1), *no_device],
        "mknodat": [_argument(2), *no_device],
        # The limit on core dumps is what keeps them from a program of the host that collects them; lowered to 0 it does not.
        "setrlimit": [_argument(0), _Instruction(_IS_EQUAL, 0, 1, resource.RLIMIT_CORE), refused, _answer(_ALLOW)],
        "prlimit64": [
            _argument(1),
            _Instruction(_IS_EQUAL, 1, 0, resource.RLIMIT_CORE),
            _answer(_ALLOW),
            *_refused_unless_zero(2, refused),
            _answer(_ALLOW),
        ],
    }


def _argument(index: int, *, is_upper_half: bool = False) -> _Instruction:
    """Load an argument. The kernel takes a number of 32 bits from the lower half of one; a pointer needs both."""
    return _Instruction(_LOAD, 0, 0, _ARGUMENTS_AT + 8 * index + (4 if is_upper_half else 0))


def _only(values: Iterable[int], otherwise: _Instruction) -> list[_Instruction]:
    allow = _answer(_ALLOW)
    return [*(step for value in values for step in (_Instruction(_IS_EQUAL, 0, 1, value), allow)), otherwise]


def _refused_unless_zero(index: int, refused: _Instruction) -> list[_Instruction]:
    is_zero = _Instruction(_IS_EQUAL, 1, 0, 0)
    return [_argument(index), is_zero, refused, _argument(index, is_upper_half=True), is_zero, refused]


def _answer_to_each(numbers: Iterable[int], answer: _Instruction) -> list[_Instruction]:
    """The same answer to calls, by ranges of their numbers. The number is loaded when they are reached: conditions answer for theirs."""
    program: list[_Instruction] = []
    for first, last in _ranges(numbers):
        program += [_Instruction(_IS_AT_LEAST, 0, 2, first), _Instruction(_IS_GREATER, 1, 0, last), answer]
    return program


def _ranges(numbers: Iterable[int]) -> list[tuple[int, int]]:
    found: list[tuple[int, int]] = []
    for number in sorted(numbers):
        if found and found[-1][1] == number - 1:
            found[-1] = (found[-1][0], number)
        else:
            found.append((number, number))
    return found


def _answer(value: int) -> _Instruction:
    return _Instruction(_ANSWER, 0, 0, value)


def _error(number: int) -> _Instruction:
    return _answer(_ERROR | number)

"""A program that shuts itself in and then becomes another one, which stays shut in with all that it starts.

    python wasm_landlock.py ORDER COMMAND...

ORDER is the JSON of a `Confinement`. Landlock closes what is not named there, where the kernel has it: files, TCP, other processes; a
filter closes system calls; no privilege is left, and none can come. The command ends with its parent. Like guest/wasm_host.py this
one is run by its path, and imports nothing of this package.
"""

import base64
import ctypes
import errno
import json
import os
import resource
import signal
import struct
import sys
from typing import TypedDict

# The numbers are those of Linux's own headers, the same on all of its machines.
_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446
_RULESET_VERSION = 1
_PATH_BENEATH = 1
_PR_SET_PDEATHSIG, _PR_SET_SECCOMP, _PR_CAPBSET_DROP, _PR_SET_NO_NEW_PRIVS = 1, 22, 24, 38
_SECCOMP_MODE_FILTER = 2
_CAPABILITY_VERSION = 0x20080522
_CAPABILITIES_MAX = 64

_EXECUTE, _WRITE_FILE, _READ_FILE, _READ_DIR = 1 << 0, 1 << 1, 1 << 2, 1 << 3
_REMOVE_DIR, _REMOVE_FILE = 1 << 4, 1 << 5
_MAKE_DIR, _MAKE_REG, _MAKE_SYM = 1 << 7, 1 << 8, 1 << 12
_REFER, _TRUNCATE = 1 << 13, 1 << 14
_READS = _EXECUTE | _READ_FILE | _READ_DIR
_WRITES = _READ_FILE | _READ_DIR | _WRITE_FILE | _REMOVE_DIR | _REMOVE_FILE | _MAKE_DIR | _MAKE_REG | _MAKE_SYM | _REFER | _TRUNCATE
_OF_FILES = _EXECUTE | _READ_FILE | _WRITE_FILE | _TRUNCATE
# How many of the rights, from the first on, each version of Landlock knows; the last one is that of all later versions.
_RIGHTS_BY_VERSION = (0, 13, 14, 15, 15, 16)
_NETWORK_SINCE, _SCOPES_SINCE = 4, 6
_BIND_AND_CONNECT_TCP = 0b11
_ABSTRACT_SOCKETS_AND_SIGNALS = 0b11


class Confinement(TypedDict):
    """What stays open.

    reads, writes: files and folders with all that is below them; what is not there is left out. filter: of system calls, in base64.
    parent: the id of the process to end with; 0 when something else sees to that.
    """

    reads: list[str]
    writes: list[str]
    filter: str
    parent: int


def landlock_version() -> int:
    """The version of Landlock that this machine has; 0 for none."""
    if sys.platform != "linux":
        return 0
    return max(0, _libc().syscall(_CREATE_RULESET, None, ctypes.c_size_t(0), _RULESET_VERSION))


def confine(confinement: Confinement) -> None:
    """Shut this process in, for good. Raises OSError when the kernel refuses a part of it."""
    if confinement["parent"]:
        _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != confinement["parent"]:
            raise ProcessLookupError(errno.ESRCH, "The parent is gone.")
    # No core dump; 0 would still give one to a program of the host that collects them.
    resource.setrlimit(resource.RLIMIT_CORE, (1, 1))
    ruleset = _ruleset_or_none(confinement)
    _drop_capabilities()
    _prctl(_PR_SET_NO_NEW_PRIVS, 1)
    if ruleset is not None:
        _syscall(_RESTRICT_SELF, ruleset, 0)
        os.close(ruleset)
    _filter_calls(base64.b64decode(confinement["filter"]))


def _ruleset_or_none(confinement: Confinement) -> int | None:
    """A descriptor of the rules; None when the kernel has no Landlock."""
    version = landlock_version()
    if version == 0:
        return None
    rights = (1 << _RIGHTS_BY_VERSION[min(version, len(_RIGHTS_BY_VERSION) - 1)]) - 1
    rules = struct.pack(
        "<QQQ",
        rights,
        _BIND_AND_CONNECT_TCP if version >= _NETWORK_SINCE else 0,
        _ABSTRACT_SOCKETS_AND_SIGNALS if version >= _SCOPES_SINCE else 0,
    )
    # An older kernel takes no fields that it does not know.
    size_bytes = 24 if version >= _SCOPES_SINCE else 16 if version >= _NETWORK_SINCE else 8
    ruleset = _syscall(_CREATE_RULESET, rules, ctypes.c_size_t(size_bytes), 0)
    for paths, wanted in ((confinement["reads"], _READS), (confinement["writes"], _WRITES)):
        for path in paths:
            _allow(ruleset, path, wanted & rights)
    return ruleset


def _allow(ruleset: int, path: str, rights: int) -> None:
    try:
        opened = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except FileNotFoundError:
        return
    if not os.path.isdir(path):
        rights &= _OF_FILES
    _syscall(_ADD_RULE, ruleset, _PATH_BENEATH, struct.pack("<Qi", rights, opened), 0)
    os.close(opened)


def _drop_capabilities() -> None:
    """Landlock says nothing of what root may do beside opening files."""
    for number in range(_CAPABILITIES_MAX):
        # Fails for those that the kernel does not have, and for all of them when there is nothing to drop.
        _libc().prctl(_PR_CAPBSET_DROP, number, 0, 0, 0)
    header = struct.pack("<Ii", _CAPABILITY_VERSION, 0)
    if _libc().capset(header, bytes(24)) != 0:
        raise OSError(ctypes.get_errno(), "The capabilities cannot be dropped.")


def _filter_calls(program: bytes) -> None:
    # struct sock_fprog: how many instructions of 8 bytes, and where they are.
    where = ctypes.create_string_buffer(program, len(program))
    head = struct.pack("<HxxxxxxQ", len(program) // 8, ctypes.addressof(where))
    if _libc().prctl(_PR_SET_SECCOMP, _SECCOMP_MODE_FILTER, head, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "The filter of system calls is refused.")


def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)


def _prctl(option: int, value: int) -> None:
    if _libc().prctl(option, value, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), f"prctl {option} failed.")


def _syscall(*arguments: object) -> int:
    found = _libc().syscall(*arguments)
    if found < 0:
        raise OSError(ctypes.get_errno(), f"Landlock: system call {arguments[0]} failed.")
    return found


if __name__ == "__main__":
    confine(json.loads(sys.argv[1]))
    os.execv(sys.argv[2], sys.argv[2:])  # noqa: S606 - what this program is for

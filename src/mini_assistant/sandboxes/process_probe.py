"""What code in the sandbox `process` must not be able to do, tried by a program inside of it.

`ProcessSandbox.check` runs it in a session like any other, and takes the sandbox for usable only when nothing is found.
"""

import os
from collections.abc import Iterator
from pathlib import Path

import msgspec

from mini_assistant.sandboxes.base import DATA_DIRECTORY
from mini_assistant.sandboxes.bubblewrap import INNER_USER
from mini_assistant.sandboxes.process_guest import PROCESSES_SPARE, is_to_become_user
from mini_assistant.settings import Settings

# Runs inside, and says what it could do. It touches nothing of the host: files are opened, never written.
_PROBE = """
import json, os, resource, socket, sys, time

def can(action):
    try:
        action()
    except OSError:
        return False
    return True

def children(limit):
    made = []
    reader, writer = os.pipe()
    try:
        while len(made) <= limit:
            child = os.fork()
            if child == 0:
                os.close(writer)
                os.read(reader, 1)
                os._exit(0)
            made.append(child)
    except OSError:
        pass
    os.close(writer)
    for child in made:
        os.waitpid(child, 0)
    return len(made)

def takes_memory(size):
    try:
        bytearray(size)
    except MemoryError:
        return False
    return True

status = dict(line.split(":", 1) for line in open("/proc/self/status").read().splitlines())
print(json.dumps({
    "python": sys.version.split()[0],
    "interfaces": [line.split(":")[0].strip() for line in open("/proc/net/dev").read().splitlines()[2:]],
    "sockets": can(lambda: socket.socket()),
    "host_files": [path for path in HOST_PATHS if os.path.exists(path)],
    "writable": [path for path in WRITE_PATHS if can(lambda: os.close(os.open(path, os.O_WRONLY)))],
    "processes": len([name for name in os.listdir("/proc") if name.isdigit()]),
    "children": children(PROCESSES_MAX),
    "takes_memory": takes_memory(MEMORY_BYTES_MAX),
    "seccomp": status["Seccomp"].strip(),
    "has_new_privileges": status["NoNewPrivs"].strip() != "1",
    "capabilities": int(status["CapEff"], 16) | int(status["CapPrm"], 16),
    "files": os.listdir("/mnt/data"),
    "users": open("/proc/self/uid_map").read().split(),
    "user": os.getuid(),
}))
"""


class Found(msgspec.Struct):
    """What the probe says."""

    python: str
    interfaces: list[str]
    sockets: bool
    host_files: list[str]
    writable: list[str]
    processes: int
    children: int
    takes_memory: bool
    seccomp: str
    has_new_privileges: bool
    capabilities: int
    files: list[str]
    users: list[str]
    user: int


def probe_code(settings: Settings) -> str:
    """The program of the probe, for sessions with these limits. What it prints is a `Found` in JSON."""
    values = {
        "HOST_PATHS": [str(settings.data_dir.resolve()), str(Path(__file__)), "/etc/shadow", "/proc/kcore/", "/sys/kernel"],
        "WRITE_PATHS": ["/proc/sys/kernel/core_pattern", "/proc/sysrq-trigger", "/proc/self/oom_score_adj", "/usr/bin/env", "/etc/passwd"],
        "PROCESSES_MAX": settings.sandbox_processes_max,
        "MEMORY_BYTES_MAX": settings.sandbox_memory_bytes_max,
    }
    return "".join(f"{name} = {value!r}\n" for name, value in values.items()) + _PROBE


def holes(found: Found, settings: Settings) -> Iterator[str]:
    """What is not as it has to be."""
    if found.interfaces != ["lo"] or found.sockets:
        yield "there is a network"
    if found.host_files:
        yield f"files of the host can be seen ({', '.join(found.host_files)})"
    if found.writable:
        yield f"files can be opened for writing ({', '.join(found.writable)})"
    if found.processes > PROCESSES_SPARE + 1:
        yield "processes of the host can be seen"
    if found.children >= settings.sandbox_processes_max:
        yield "there is no limit on processes"
    if found.children == 0:
        yield "there can be no further processes at all: the limit counts those of the server too, before Linux 5.14"
    if found.takes_memory:
        yield "there is no limit on memory"
    if found.seccomp != "2" or found.has_new_privileges or found.capabilities:
        yield "the filter for system calls is not on, or rights can be had"
    if found.files:
        yield f"{DATA_DIRECTORY} is not empty at the start"
    if found.user != INNER_USER or (os.geteuid() == 0 and _is_root_outside(found)):
        yield "code runs as root"


def _is_root_outside(found: Found) -> bool:
    """Whether the user inside is the server's own, root. users: of each range the first inside, the first outside, and the count."""
    inside, outside = found.users[0::3], found.users[1::3]
    return is_to_become_user() and dict(zip(inside, outside, strict=True)).get(str(INNER_USER), "0") == "0"

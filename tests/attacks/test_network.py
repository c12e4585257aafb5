"""Attempts to reach anything outside by a socket: the loopback of the host, other families, and sockets that have a path or a name."""

import pytest

from mini_assistant.sandboxes.base import Sandbox
from tests.attacks.attempts import Attempt, assert_judge_sees_success, attempt_in, cell, gained, leaked, reached
from tests.attacks.targets import Targets

ATTEMPTS = [
    Attempt("TCP to the host's loopback", "socket.create_connection(('127.0.0.1', T['tcp']), 2).send(b'x')", reached),
    Attempt("TCP by another name of the loopback", "socket.create_connection(('0.0.0.0', T['tcp']), 2)", reached),
    Attempt(
        "TCP to IPv6 loopback",
        cell("""
            T['tcp6'] or absent()
            socket.create_connection(('::1', T['tcp6']), 2).send(b'x')
        """),
        reached,
        may_be_absent=True,
    ),
    Attempt(
        "TCP to an IPv4 address in IPv6",
        cell("""
            s = socket.socket(socket.AF_INET6)
            s.settimeout(2)
            s.connect(('::ffff:127.0.0.1', T['tcp']))
        """),
        reached,
    ),
    Attempt(
        "TCP by asyncio",
        cell("""
            import asyncio
            async def go():
                await asyncio.wait_for(asyncio.open_connection('127.0.0.1', T['tcp']), 2)
            asyncio.run(go())
        """),
        reached,
    ),
    Attempt(
        "TCP fast open",
        cell("""
        s = socket.socket()
        s.settimeout(2)
        s.sendto(b'x', 0x20000000, ('127.0.0.1', T['tcp']))
    """),
        reached,
    ),
    Attempt(
        "HTTP by urllib",
        cell("""
        import urllib.request
        urllib.request.urlopen(f"http://127.0.0.1:{T['tcp']}/", timeout=1)
    """),
        reached,
    ),
    Attempt(
        "TCP in a child process",
        cell("""
            import subprocess
            subprocess.run([sys.executable, '-c', f"import socket; socket.create_connection(('127.0.0.1', {T['tcp']}), 2)"])
        """),
        reached,
    ),
    Attempt(
        "UDP to the host's loopback", "socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b'x', ('127.0.0.1', T['udp']))", reached
    ),
    Attempt(
        "a question to a name server",
        cell("""
            question = struct.pack('>6H', 7, 256, 1, 0, 0, 0) + b'\\7example\\3com\\0' + struct.pack('>2H', 1, 1)
            socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(question, ('127.0.0.1', T['udp']))
        """),
        reached,
    ),
    Attempt(
        "network cards beside the loopback",
        cell("""
            names = [name for _, name in socket.if_nameindex()]
            show(str(names))
            set(names) - {'lo'} and gained()
        """),
        gained,
    ),
    Attempt("the host's connections as /proc tells them", "f':{T[\"tcp\"]:04X} ' in open('/proc/net/tcp').read() and gained()", gained),
    Attempt("the host's unix sockets as /proc tells them", "T['abstract'] in open('/proc/net/unix').read() and gained()", gained),
    Attempt(
        "unix socket by path",
        cell("""
        s = socket.socket(socket.AF_UNIX)
        os.chdir(T['folder'])
        s.connect('s')
    """),
        reached,
    ),
    Attempt(
        "unix socket by a link to it",
        cell("""
            link = f'/tmp/link-{os.getpid()}'
            os.symlink(T['folder'] + '/s', link)
            try:
                socket.socket(socket.AF_UNIX).connect(link)
            finally:
                os.unlink(link)
        """),
        reached,
    ),
    Attempt(
        "unix socket by every descriptor",
        cell("""
            for fd in range(3, 256):
                for path in (f'/proc/self/fd/{fd}', f'/proc/self/fd/{fd}/s'):
                    try:
                        socket.socket(socket.AF_UNIX).connect(path)
                    except OSError:
                        pass
        """),
        reached,
    ),
    Attempt("abstract unix socket", "socket.socket(socket.AF_UNIX).connect('\\0' + T['abstract'])", reached),
    Attempt(
        "descriptor taken over an abstract socket",
        cell("""
            s = socket.socket(socket.AF_UNIX)
            s.settimeout(2)
            s.connect('\\0' + T['giver'])
            _, fds, _, _ = socket.recv_fds(s, 9, 1)
            show(os.read(fds[0], 99))
        """),
        leaked,
    ),
    Attempt(
        "raw socket",
        cell("""
        socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP)
        gained()
    """),
        gained,
        needs_root=True,
    ),
    Attempt(
        "packet socket",
        cell("""
        socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
        gained()
    """),
        gained,
        needs_root=True,
    ),
    Attempt(
        "netlink: cards of the host",
        cell("""
            s = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0)
            s.settimeout(2)
            s.bind((0, 0))
            s.send(struct.pack('IHHIIBxHiII', 32, 18, 0x301, 1, 0, 0, 0, 0, 0, 0))
            data = s.recv(65536)
            kinds = []
            while data:
                size, kind = struct.unpack_from('IH', data)
                kinds.append(kind)
                data = data[(size + 3) & ~3:]
            kinds.count(16) > 1 and gained()
        """),
        gained,
    ),
    Attempt(
        "netlink: audit",
        cell("""
            socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 9)
            gained()
        """),
        gained,
        may_be_absent=True,
        control=cell("""
            try:
                socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 9)
                gained()
            except OSError:
                absent()
        """),
    ),
    Attempt(
        "vsock",
        cell("""
            socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM)
            gained()
        """),
        gained,
        may_be_absent=True,
        control=cell("""
            try:
                socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM)
                gained()
            except OSError:
                absent()
        """),
    ),
    Attempt(
        "cipher of the kernel",
        cell("""
            socket.socket(38, socket.SOCK_SEQPACKET)
            gained()
        """),
        gained,
        may_be_absent=True,
        control=cell("""
            try:
                socket.socket(38, socket.SOCK_SEQPACKET)
                gained()
            except OSError:
                absent()
        """),
    ),
    Attempt(
        "bluetooth, CAN, TIPC, XDP",
        cell("""
            for family in (31, 29, 30, 44):
                try:
                    socket.socket(family, socket.SOCK_RAW)
                    gained()
                except OSError as exc:
                    print(exc)
        """),
        gained,
        may_be_absent=True,
        control=cell("""
            for family in (31, 29, 30, 44):
                try:
                    socket.socket(family, socket.SOCK_RAW)
                    gained()
                except OSError as exc:
                    absent()
        """),
    ),
    Attempt("name of the host", "socket.gethostname() == T['hostname'] and gained()", gained),
]


@pytest.mark.parametrize("attempt", ATTEMPTS, ids=lambda attempt: attempt.name)
async def test_a_sandbox_holds(sandbox: Sandbox, attempt: Attempt, targets: Targets) -> None:
    await attempt_in(sandbox, attempt, targets)


@pytest.mark.parametrize("attempt", ATTEMPTS, ids=lambda attempt: attempt.name)
def test_without_a_sandbox_it_succeeds(attempt: Attempt, targets: Targets) -> None:
    assert_judge_sees_success(attempt, targets)

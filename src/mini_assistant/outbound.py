"""Connections to addresses that clients name: images by address, MCP servers, webhooks.

A client must not reach through this server what only this server can reach: the machine itself, its networks, the metadata service of
a cloud. So every address is checked right before it is connected to, each redirect anew; a name is looked up once, and what was
checked is what is connected to. The setting `private_addresses` lifts that.
"""

import asyncio
import errno
import ipaddress
import socket
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import NamedTuple

import aiohttp
import yarl
from aiohttp.abc import AbstractResolver, ResolveResult

Lookup = Callable[[str, int], Awaitable[list[str]]]
"""From a host and a port to addresses. Raises OSError or ValueError when there are none."""

_REDIRECTS_MAX = 3
_REDIRECTS = {301, 302, 303, 307, 308}
_READ_BYTES = 64 * 1024

# What is not the public internet, or leads from there to somewhere else.
_REFUSED_V4 = [
    ipaddress.IPv4Network(network)
    for network in (
        "0.0.0.0/8",
        "10.0.0.0/8",
        "100.64.0.0/10",
        "127.0.0.0/8",
        "168.63.129.16/32",  # of a public network, but it is the metadata service of a cloud, which answers inside of it only
        "169.254.0.0/16",
        "172.16.0.0/12",
        "192.0.0.0/24",
        "192.0.2.0/24",
        "192.88.99.0/24",
        "192.168.0.0/16",
        "198.18.0.0/15",
        "198.51.100.0/24",
        "203.0.113.0/24",
        "224.0.0.0/4",
        "240.0.0.0/4",
    )
]
_PUBLIC_V6 = ipaddress.IPv6Network("2000::/3")
# Tunnels (Teredo lies in the first, 6to4 is the third) carry an IPv4 address in them; nobody publishes anything at one.
_REFUSED_V6 = [ipaddress.IPv6Network(network) for network in ("2001::/23", "2001:db8::/32", "2002::/16", "3fff::/20")]
# A network without IPv4 reaches every public IPv4 address under this prefix.
_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")


class OutboundRefused(Exception):
    """An address that a client has named is not connected to, or gave nothing usable. `message` is for that client.

    A name that leads to a private address and one that leads nowhere get the same message, or clients could learn of inner names.
    """

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.message = message


def is_public_address(address: str) -> bool:
    """Whether an IP address, in the form in which the system gives it, belongs to the public internet."""
    try:
        parsed = ipaddress.ip_address(address)
    except ValueError:
        return False
    if isinstance(parsed, ipaddress.IPv6Address):
        if parsed.scope_id is not None:
            return False
        if parsed.ipv4_mapped is None and parsed not in _NAT64:
            return parsed in _PUBLIC_V6 and not any(parsed in network for network in _REFUSED_V6)
        parsed = ipaddress.IPv4Address(int(parsed) & 0xFFFFFFFF)
    return not any(parsed in network for network in _REFUSED_V4)


async def look_up(host: str, port: int) -> list[str]:
    """The `Lookup` of the system."""
    found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(address[0]) for *_, address in found))


async def public_addresses(host: str, port: int, *, private_addresses: bool, lookup: Lookup = look_up) -> list[str]:
    """The addresses of a host, looked up once. Connect to one of these, and not to the name, which may lead elsewhere the next time.

    host: as in a URL, without brackets. private_addresses: takes every address. It waits as long as the system's lookup does.
    Raises OutboundRefused when there is none, or any of them is not public.
    """
    try:
        addresses = await lookup(host, port)
    except (OSError, ValueError):
        addresses = []
    if not addresses or not (private_addresses or all(map(is_public_address, addresses))):
        raise OutboundRefused(f"the host '{host[:100]}' has no public address")
    return addresses


class CheckedResolver(AbstractResolver):
    """Lets aiohttp connect to public addresses only. aiohttp does not ask it about hosts that are written as addresses."""

    def __init__(self, *, private_addresses: bool, lookup: Lookup = look_up) -> None:
        self._private_addresses = private_addresses
        self._lookup = lookup

    async def resolve(self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET) -> list[ResolveResult]:
        """As aiohttp has it. Raises OutboundRefused."""
        addresses = await public_addresses(host, port, private_addresses=self._private_addresses, lookup=self._lookup)
        return [
            ResolveResult(
                hostname=host,
                host=address,
                port=port,
                family=socket.AF_INET6 if ":" in address else socket.AF_INET,
                proto=0,
                flags=socket.AI_NUMERICHOST | socket.AI_NUMERICSERV,
            )
            for address in addresses
        ]

    async def close(self) -> None:
        """Nothing is held open."""


def checked_connector(*, private_addresses: bool, lookup: Lookup = look_up) -> aiohttp.TCPConnector:
    """A connector for addresses that clients name: one lookup and one check for each connection, which is not used again.

    Requests through it raise OutboundRefused for a name, and ClientConnectorError for a written address, that is not public.
    """

    def checked_socket(address_info: tuple[int, int, int, str, tuple[object, ...]]) -> socket.socket:
        # The last look, at the very address that the socket is for: it also sees addresses that no resolver was asked about.
        family, kind, protocol, _, address = address_info
        if not private_addresses and not is_public_address(str(address[0])):
            raise OSError(errno.EACCES, "not a public address")
        return socket.socket(family, kind, protocol)

    return aiohttp.TCPConnector(
        resolver=CheckedResolver(private_addresses=private_addresses, lookup=lookup),
        use_dns_cache=False,
        force_close=True,
        socket_factory=checked_socket,
    )


@dataclass(frozen=True, slots=True)
class FetchLimits:
    """How far a fetch may go. timeout_seconds: for all of it, redirects and lookups included."""

    bytes_max: int
    timeout_seconds: float
    private_addresses: bool


class Fetched(NamedTuple):
    """What lies at an address. content_type: as the server says, without parameters, in lower case; may be empty."""

    content_type: str
    data: bytes


async def fetch(url: str, limits: FetchLimits, *, lookup: Lookup = look_up) -> Fetched:
    """What lies at an `http:` or `https:` URL that a client has named; redirects are followed.

    No cookies, keys or proxies of this server are used, and nothing is unpacked. Raises OutboundRefused.
    """
    place = url
    try:
        async with asyncio.timeout(limits.timeout_seconds):
            for _ in range(_REDIRECTS_MAX + 1):
                target = _checked_url(place, limits)
                answer = await _fetch_once(target, limits, lookup)
                if isinstance(answer, Fetched):
                    return answer
                place = _joined(target, answer)
    except TimeoutError:
        raise OutboundRefused(f"it took longer than {limits.timeout_seconds:g} seconds") from None
    raise OutboundRefused(f"there were more than {_REDIRECTS_MAX} redirects")


def _checked_url(text: str, limits: FetchLimits) -> yarl.URL:
    """A URL that may be asked for, as far as can be seen from it."""
    try:
        url = yarl.URL(text)
        host, port = url.host, url.port
    except ValueError:
        raise OutboundRefused("the URL is not valid") from None
    if url.scheme not in ("http", "https") or not host or not port:
        raise OutboundRefused("the URL must begin with http:// or https:// and name a host")
    if url.user is not None or url.password is not None:
        raise OutboundRefused("the URL must not contain a user or a password")
    if not limits.private_addresses and _is_written_address(host) and not is_public_address(host):
        raise OutboundRefused(f"the host '{host[:100]}' has no public address")
    return url


def _is_written_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def _joined(url: yarl.URL, location: str) -> str:
    try:
        return str(url.join(yarl.URL(location)))
    except ValueError:
        raise OutboundRefused("it redirects to a URL that is not valid") from None


async def _fetch_once(url: yarl.URL, limits: FetchLimits, lookup: Lookup) -> Fetched | str:
    """One request: what lies there, or where it redirects to."""
    session = aiohttp.ClientSession(
        connector=checked_connector(private_addresses=limits.private_addresses, lookup=lookup),
        headers={"Accept-Encoding": "identity", "User-Agent": "mini-assistant"},
        timeout=aiohttp.ClientTimeout(total=None),
        cookie_jar=aiohttp.DummyCookieJar(),
        auto_decompress=False,
        trust_env=False,
    )
    try:
        async with session, session.get(url, allow_redirects=False) as response:
            if response.status in _REDIRECTS and (location := response.headers.get("Location")):
                return location
            if response.status != 200:
                raise OutboundRefused(f"the answer has the status {response.status}")
            return Fetched(response.content_type.lower(), await _read(response, limits.bytes_max))
    except aiohttp.InvalidURL:
        raise OutboundRefused("the URL is not valid") from None
    except (aiohttp.ClientError, OSError, ValueError):
        # TimeoutError is an OSError too, but the only one here is that of `fetch`, which comes as a cancellation.
        raise OutboundRefused("the connection failed") from None


async def _read(response: aiohttp.ClientResponse, bytes_max: int) -> bytes:
    too_large = OutboundRefused(f"it is larger than {bytes_max} bytes")
    if (response.content_length or 0) > bytes_max:
        raise too_large
    data = bytearray()
    async for piece in response.content.iter_chunked(_READ_BYTES):
        data += piece
        if len(data) > bytes_max:
            raise too_large
    return bytes(data)

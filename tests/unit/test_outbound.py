"""Connections to addresses that clients name: nothing but the public internet, whatever the name, the form or the redirect."""

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Awaitable, Callable

import aiohttp
import pytest
from aiohttp import web

from mini_assistant import outbound
from mini_assistant.outbound import (
    FetchLimits,
    Lookup,
    OutboundRefused,
    checked_connector,
    fetch,
    is_public_address,
    look_up,
    public_addresses,
)

CLOSED = FetchLimits(bytes_max=1000, timeout_seconds=10.0, private_addresses=False)
OPEN = FetchLimits(bytes_max=1000, timeout_seconds=10.0, private_addresses=True)

Answer = Callable[[web.Request], Awaitable[web.StreamResponse]]


class Site:
    """A server on a loopback address that notes who comes. Its answer may be replaced."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.requests: list[web.Request] = []
        self.answer: Answer = hello

    def url(self, host: str, path: str = "/") -> str:
        return f"http://{host}:{self.port}{path}"

    async def reply(self, request: web.BaseRequest) -> web.StreamResponse:
        assert isinstance(request, web.Request)
        self.requests.append(request)
        return await self.answer(request)


async def hello(_request: web.Request) -> web.Response:
    return web.Response(body=b"hello", content_type="image/png")


@contextlib.asynccontextmanager
async def serving(*hosts: str) -> AsyncIterator[list[Site]]:
    """A site for each address, all on the same port."""
    async with contextlib.AsyncExitStack() as stack:
        sites: list[Site] = []
        for host in hosts:
            site = Site(sites[0].port if sites else 0)
            runner = web.AppRunner(application(site), access_log=None, shutdown_timeout=0.1)
            await runner.setup()
            stack.push_async_callback(runner.cleanup)
            await web.TCPSite(runner, host, site.port).start()
            site.port = runner.addresses[0][1]
            sites.append(site)
        yield sites


def application(site: Site) -> web.Application:
    built = web.Application()
    built.router.add_get("/{path:.*}", site.reply)
    return built


@pytest.fixture
async def site() -> AsyncIterator[Site]:
    async with serving("127.0.0.1") as [site]:
        yield site


def answering(*answers: list[str]) -> tuple[Lookup, list[str]]:
    """A lookup that gives one answer after the other, and the names that it was asked for."""
    asked: list[str] = []

    async def lookup(host: str, _port: int) -> list[str]:
        asked.append(host)
        return answers[len(asked) - 1]

    return lookup, asked


# ---- addresses ---------------------------------------------------------------------------------------------------------------------

PRIVATE = [
    "127.0.0.1", "127.255.255.254", "0.0.0.0", "0.1.2.3", "10.0.0.1", "10.255.255.255", "172.16.0.1", "172.31.255.255", "192.168.0.1",
    "192.168.255.255", "169.254.169.254", "169.254.170.2", "100.64.0.1", "100.100.100.200", "100.127.255.255", "168.63.129.16",
    "192.0.0.192", "192.0.2.1", "192.88.99.1", "198.18.0.1", "198.19.255.255", "198.51.100.1", "203.0.113.1", "224.0.0.1",
    "239.255.255.255", "240.0.0.1", "255.255.255.255", "::", "::1", "fe80::1", "fe80::1%eth0", "febf::1", "fec0::1", "fc00::1", "fd00::1",
    "fd00:ec2::254", "ff02::1", "ff0e::1", "100::1", "2001:db8::1", "3fff::1", "5f00::1", "::ffff:127.0.0.1", "::ffff:7f00:1",
    "::ffff:10.0.0.1", "::ffff:169.254.169.254", "::127.0.0.1", "::7f00:1", "::ffff:0:127.0.0.1", "64:ff9b::127.0.0.1",
    "64:ff9b::a9fe:a9fe", "64:ff9b::10.0.0.1", "64:ff9b:1::1", "64:ff9b:1::8.8.8.8", "2002:7f00:1::1", "2002:a00:1::1", "2002:808:808::1",
    "2001:0:7f00:1::1", "2001:0:4136:e378:8000:63bf:80ff:fffe", "2001:10::1", "2001:20::1", "2001:2::1", "4000::1", "localhost", "127.1",
    "2130706433", "0x7f000001", "8.8.8", "1.2.3.4.5", "", "8.8.8.8 ", "8.8.8.8\n", "[2606:4700::1]", "2606:4700::1%eth0",
]  # fmt: skip
PUBLIC = [
    "1.1.1.1", "8.8.8.8", "93.184.216.34", "100.63.255.255", "100.128.0.1", "126.255.255.255", "128.0.0.1", "172.15.255.255",
    "172.32.0.1", "192.167.255.255", "192.169.0.1", "169.253.255.255", "169.255.0.1", "198.17.255.255", "198.20.0.1", "223.255.255.255",
    "11.0.0.1", "168.63.129.17", "2606:4700::1", "2a00:1450::1", "2001:4860:4860::8888", "2001:200::1", "::ffff:8.8.8.8",
    "64:ff9b::8.8.8.8", "64:ff9b::808:808", "3ffe::1",
]  # fmt: skip


@pytest.mark.parametrize("address", PRIVATE)
def test_what_is_not_of_the_public_internet(address: str) -> None:
    assert not is_public_address(address)


@pytest.mark.parametrize("address", PUBLIC)
def test_what_is_of_the_public_internet(address: str) -> None:
    assert is_public_address(address)


# Forms that the system's lookup takes for an address of this machine or of its networks; none of them needs a name server.
WRITTEN = [
    "127.0.0.1", "127.1", "127.0.1", "2130706433", "0x7f000001", "0x7f.0.0.1", "0x7f.1", "017700000001", "0177.0.0.1", "127.0.0.0x1",
    "0", "0.0.0.0", "0x0", "10.1", "0xa9fea9fe", "2852039166", "169.254.169.254", "0251.0376.0251.0376", "192.168.257", "100.64.1",
    "[::1]", "[::]", "[0:0:0:0:0:0:0:1]", "[::ffff:127.0.0.1]", "[::ffff:7f00:1]", "[::127.0.0.1]", "[64:ff9b::127.0.0.1]",
    "[2002:7f00:1::1]", "[fe80::1%25lo]", "[fe80::1]", "[fd00:ec2::254]", "[ff02::1]", "localhost", "LOCALHOST", "localhost.", "127.0.0.1.",
    "127。0。0。1", "\uff11\uff12\uff17.0.0.1", "①②⑦.0.0.1", "%31%32%37.0.0.1", "1.1.1.1@127.0.0.1",
    "a.invalid", "a" * 64 + ".com", "a." * 200, "a..b", "\x00",
]  # fmt: skip


@pytest.mark.parametrize("host", WRITTEN)
async def test_no_form_of_a_private_address_is_connected_to(host: str, site: Site) -> None:
    async def numeric_lookup(name: str, port: int) -> list[str]:
        # The system is asked about everything that it can read without a name server.
        if name.lower() in ("localhost", "localhost."):
            return ["127.0.0.1"]
        found = await asyncio.get_running_loop().getaddrinfo(name, port, type=socket.SOCK_STREAM, flags=socket.AI_NUMERICHOST)
        return [str(address[0]) for *_, address in found]

    with pytest.raises(OutboundRefused) as refused:
        await fetch(site.url(host), CLOSED, lookup=numeric_lookup)

    assert site.requests == []
    assert refused.value.message.endswith(("has no public address", "the URL is not valid", "a user or a password"))


@pytest.mark.parametrize("host", ["127.1", "2130706433", "0x7f.1", "017700000001", "127.0.0.1", "::1", "::ffff:127.0.0.1"])
async def test_the_system_s_own_lookup_is_seen_through(host: str) -> None:
    assert await look_up(host, 80)

    with pytest.raises(OutboundRefused):
        await public_addresses(host, 80, private_addresses=False)


@pytest.mark.parametrize(
    "url",
    [
        "file:///etc/passwd", "ftp://1.1.1.1/", "gopher://1.1.1.1/", "unix:///var/run/x", "data:image/png;base64,AA", "//1.1.1.1/",
        "1.1.1.1", "http://", "http:///x", "http://:80/", "https://user@1.1.1.1/", "https://user:password@1.1.1.1/", "http://1.1.1.1:0/",
        "http://1.1.1.1:99999/", "http://1.1.1.1:x/", "http://[::1/", "http://[1.1.1.1]/", "",
    ],
)  # fmt: skip
@pytest.mark.parametrize("limits", [CLOSED, OPEN], ids=["closed", "open"])
async def test_urls_that_are_not_followed(url: str, limits: FetchLimits) -> None:
    lookup, asked = answering()

    with pytest.raises(OutboundRefused, match=r"the URL|no public address"):
        await fetch(url, limits, lookup=lookup)

    assert asked == []


async def test_one_private_address_among_public_ones_is_enough() -> None:
    lookup, _ = answering(["8.8.8.8", "10.0.0.1"], ["8.8.8.8", "2606:4700::1"], [])

    with pytest.raises(OutboundRefused):
        await public_addresses("a.example", 80, private_addresses=False, lookup=lookup)
    assert await public_addresses("a.example", 80, private_addresses=False, lookup=lookup) == ["8.8.8.8", "2606:4700::1"]
    with pytest.raises(OutboundRefused):
        await public_addresses("a.example", 80, private_addresses=True, lookup=lookup)


async def test_a_private_name_looks_like_one_that_is_not_there() -> None:
    lookup, _ = answering(["10.0.0.1"], [])
    messages: list[str] = []
    for _ in range(2):
        with pytest.raises(OutboundRefused) as refused:
            await fetch("http://db.example:5432/", CLOSED, lookup=lookup)
        messages.append(refused.value.message)

    assert messages == ["the host 'db.example' has no public address"] * 2


# ---- connections -------------------------------------------------------------------------------------------------------------------


async def test_private_addresses_may_be_allowed(site: Site) -> None:
    lookup, asked = answering(["127.0.0.1"])

    fetched = await fetch(site.url("images.example", "/a.png?b=c"), OPEN, lookup=lookup)

    assert fetched == ("image/png", b"hello")
    assert asked == ["images.example"]
    [request] = site.requests
    assert request.path_qs == "/a.png?b=c"
    assert request.headers["Host"] == f"images.example:{site.port}"
    assert request.headers["Accept-Encoding"] == "identity"
    assert {"Cookie", "Authorization"}.isdisjoint(request.headers)


async def test_the_address_that_was_checked_is_the_one_that_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    """A name that is public when it is checked and private a moment later; here 127.0.0.2 counts as public."""
    count_as_public(monkeypatch, "127.0.0.2")
    async with serving("127.0.0.2", "127.0.0.1") as [public, private]:
        lookup, asked = answering(["127.0.0.2"], ["127.0.0.1"])

        fetched = await fetch(public.url("rebinding.example"), CLOSED, lookup=lookup)
        with pytest.raises(OutboundRefused):
            await fetch(public.url("rebinding.example"), CLOSED, lookup=lookup)

    assert fetched.data == b"hello"
    assert asked == ["rebinding.example"] * 2, "each is looked up once"
    assert (len(public.requests), len(private.requests)) == (1, 0)


@pytest.mark.parametrize("target", ["http://rebinding.example:{port}/", "/again", "http://127.0.0.1:{port}/", "http://[::1]:{port}/",
                                    "file:///etc/passwd", "http://a:b@127.0.0.2:{port}/", "http://[/", "//127.0.0.1:{port}/"])  # fmt: skip
async def test_redirects_are_checked_like_the_first_address(target: str, monkeypatch: pytest.MonkeyPatch) -> None:
    count_as_public(monkeypatch, "127.0.0.2")
    async with serving("127.0.0.2", "127.0.0.1") as [public, private]:

        async def redirect(_request: web.Request) -> web.Response:
            return web.Response(status=302, headers={"Location": target.format(port=public.port)})

        public.answer = redirect
        lookup, _ = answering(["127.0.0.2"], ["127.0.0.1"])

        with pytest.raises(OutboundRefused) as refused:
            await fetch(public.url("rebinding.example"), CLOSED, lookup=lookup)

    assert (len(public.requests), len(private.requests)) == (1, 0)
    assert "status" not in refused.value.message


@pytest.mark.parametrize(("redirects", "is_followed"), [(0, True), (1, True), (3, True), (4, False)])
@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
async def test_redirects_are_followed_three_times(redirects: int, is_followed: bool, status: int, site: Site) -> None:
    async def redirect(request: web.Request) -> web.Response:
        hops = int(request.query["hops"])
        return await hello(request) if hops == 0 else web.Response(status=status, headers={"Location": f"/?hops={hops - 1}"})

    site.answer = redirect
    fetching = fetch(site.url("127.0.0.1", f"/?hops={redirects}"), OPEN)

    if is_followed:
        assert (await fetching).data == b"hello"
    else:
        with pytest.raises(OutboundRefused, match="more than 3 redirects"):
            await fetching
    assert len(site.requests) == min(redirects, 3) + 1


async def test_what_is_too_large_is_not_read(site: Site) -> None:
    async def large(request: web.Request) -> web.StreamResponse:
        size = int(request.query["size"])
        if "declared" in request.query:
            return web.Response(body=b"x" * size)
        response = web.StreamResponse()
        await response.prepare(request)
        with contextlib.suppress(ConnectionError):
            for _ in range(size):
                await response.write(b"x")
        return response

    site.answer = large

    assert len((await fetch(site.url("127.0.0.1", "/?declared&size=1000"), OPEN)).data) == 1000
    assert len((await fetch(site.url("127.0.0.1", "/?size=1000"), OPEN)).data) == 1000
    for path in ("/?declared&size=1001", "/?size=1001", "/?size=1000000"):
        with pytest.raises(OutboundRefused, match="larger than 1000 bytes"):
            await fetch(site.url("127.0.0.1", path), OPEN)


async def test_what_says_that_it_is_too_large_is_not_waited_for(site: Site) -> None:
    async def announcing(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Length": "1001"})
        await response.prepare(request)
        await asyncio.Event().wait()
        return response

    site.answer = announcing

    with pytest.raises(OutboundRefused, match="larger than 1000 bytes"):
        await fetch(site.url("127.0.0.1"), OPEN)


@pytest.mark.parametrize("pause", ["lookup", "before", "within", "drip"])
async def test_the_time_is_limited_as_a_whole(pause: str, site: Site) -> None:
    async def slow(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        if pause == "before":
            await asyncio.Event().wait()
        await response.prepare(request)
        await response.write(b"x")
        with contextlib.suppress(ConnectionError):
            while True:
                await asyncio.sleep(0.01 if pause == "drip" else 60)
                await response.write(b"x")
        return response

    async def lookup(_host: str, _port: int) -> list[str]:
        if pause == "lookup":
            await asyncio.Event().wait()
        return ["127.0.0.1"]

    site.answer = slow

    with pytest.raises(OutboundRefused, match=r"longer than 0\.2 seconds"):
        await fetch(site.url("a.example"), FetchLimits(bytes_max=10**6, timeout_seconds=0.2, private_addresses=True), lookup=lookup)


async def test_nothing_is_unpacked(site: Site) -> None:
    async def packed(_request: web.Request) -> web.Response:
        return web.Response(body=b"not really gzip", headers={"Content-Encoding": "gzip"}, content_type="IMAGE/PNG")

    site.answer = packed

    assert await fetch(site.url("127.0.0.1"), OPEN) == ("image/png", b"not really gzip")


@pytest.mark.parametrize("status", [199, 201, 204, 206, 300, 304, 400, 403, 404, 500])
async def test_other_answers_are_refused(status: int, site: Site) -> None:
    async def other(_request: web.Request) -> web.Response:
        return web.Response(status=status)

    site.answer = other

    with pytest.raises(OutboundRefused, match=f"the status {status}|the connection failed"):
        await fetch(site.url("127.0.0.1"), OPEN)


async def test_proxies_and_keys_of_the_environment_are_not_used(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    async with serving("127.0.0.1") as [proxy]:
        for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
            monkeypatch.setenv(name, proxy.url("127.0.0.1"))

        assert (await fetch(site.url("127.0.0.1"), OPEN)).data == b"hello"

    assert (len(site.requests), len(proxy.requests)) == (1, 0)


@pytest.mark.parametrize(
    "raw", [b"", b"nonsense\r\n\r\n", b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nx", b"HTTP/1.1 200 OK\r\nA: " + b"x" * 99_999]
)
async def test_servers_that_do_not_speak_http(raw: bytes) -> None:
    async def speak(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(raw)
        writer.close()

    async with await asyncio.start_server(speak, "127.0.0.1", 0) as server:
        with pytest.raises(OutboundRefused, match="the connection failed"):
            await fetch(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/", OPEN)


async def test_a_closed_port() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # and does not listen
        with pytest.raises(OutboundRefused, match="the connection failed"):
            await fetch(f"http://127.0.0.1:{taken.getsockname()[1]}/", OPEN)


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "[::ffff:127.0.0.1]"])
async def test_the_connector_guards_by_itself(host: str, site: Site) -> None:
    lookup, _ = answering(["127.0.0.1"])

    async with aiohttp.ClientSession(connector=checked_connector(private_addresses=False, lookup=lookup)) as session:
        with pytest.raises((OutboundRefused, aiohttp.ClientConnectorError)):
            await session.get(site.url(host))

    assert site.requests == []


def count_as_public(monkeypatch: pytest.MonkeyPatch, address: str) -> None:
    monkeypatch.setattr(outbound, "is_public_address", lambda other: other == address or is_public_address(other))

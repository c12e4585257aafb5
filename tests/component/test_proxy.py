"""A provider behind an HTTP proxy: requests take that way and no other, and neither keys nor passwords show when it fails."""

import asyncio
import base64
import contextlib
import logging
from collections.abc import AsyncIterator, Callable

import pytest

from mini_assistant.app import build_models, model_line
from mini_assistant.errors import ConfigError, ModelError
from mini_assistant.models.base import Capabilities, ChatMessage, ChatRequest, TextDelta
from mini_assistant.models.endpoint_session import EndpointSession, public_address
from mini_assistant.models.openai_compatible import OpenAICompatible
from mini_assistant.models.provider_limits import ProviderLimits
from mini_assistant.models.scripted import ScriptedEndpoint
from mini_assistant.settings import ProviderSettings, Settings, load_settings

KEY = "sk-test-0123456789abcdef"
PASSWORD = "p:a/ss word"
QUOTED_PASSWORD = "p%3Aa%2Fss%20word"
CREDENTIALS = base64.b64encode(f"user:{PASSWORD}".encode()).decode()
REQUEST = ChatRequest("some-model", (ChatMessage("user", "Hi there"),))


class TinyProxy:
    """A forward proxy. heads: of the requests it got. refusal: an answer that it gives instead of passing a request on."""

    def __init__(self, refusal: bytes = b"") -> None:
        self.heads: list[str] = []
        self.address = ""
        self._refusal = refusal
        self._server: asyncio.Server | None = None

    async def __aenter__(self) -> "TinyProxy":
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.address = f"127.0.0.1:{self._server.sockets[0].getsockname()[1]}"
        return self

    async def __aexit__(self, *_exc_info: object) -> None:
        assert self._server is not None
        self._server.close()
        await self._server.wait_closed()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError), contextlib.closing(writer):
            head = (await reader.readuntil(b"\r\n\r\n")).decode()
            self.heads.append(head)
            if self._refusal:
                writer.write(self._refusal)
                await writer.drain()
                return
            method, target, _ = head.split(" ", 2)
            place = target.removeprefix("http://").partition("/")[0]
            host, _, port = place.rpartition(":")
            there, back = await asyncio.open_connection(host, int(port))
            with contextlib.closing(back):
                if method == "CONNECT":
                    writer.write(b"HTTP/1.1 200 Connected\r\n\r\n")
                else:
                    back.write(head.replace(f"http://{place}", "", 1).encode())
                await asyncio.wait(
                    [asyncio.create_task(_pass_on(reader, back)), asyncio.create_task(_pass_on(there, writer))],
                    return_when=asyncio.FIRST_COMPLETED,
                )


async def _pass_on(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(ConnectionError):
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()


@pytest.fixture
async def proxy() -> AsyncIterator[TinyProxy]:
    async with TinyProxy() as proxy:
        yield proxy


Connect = Callable[..., OpenAICompatible]


@pytest.fixture
async def connect(endpoint: ScriptedEndpoint) -> AsyncIterator[Connect]:
    """Makes a provider whose requests go through the proxy of that address."""
    async with contextlib.AsyncExitStack() as stack:

        def make(proxy: str, base_url: str = "") -> OpenAICompatible:
            limits = ProviderLimits(retries_max=0, connect_timeout_seconds=5.0)
            provider = OpenAICompatible("far", base_url or endpoint.base_url, api_key=KEY, limits=limits, proxy=proxy)
            stack.push_async_callback(provider.close)
            return provider

        yield make


async def answer_of(provider: OpenAICompatible) -> str:
    async with asyncio.timeout(10):
        lists = [deltas async for deltas in provider.stream(REQUEST, Capabilities())]
    return "".join(delta.text for deltas in lists for delta in deltas if isinstance(delta, TextDelta))


async def error_of(provider: OpenAICompatible) -> ModelError:
    with pytest.raises(ModelError) as caught:
        await answer_of(provider)
    for secret in (KEY, PASSWORD, QUOTED_PASSWORD, CREDENTIALS):
        assert secret not in caught.value.message
    return caught.value


async def test_requests_go_through_the_proxy(proxy: TinyProxy, connect: Connect, endpoint: ScriptedEndpoint) -> None:
    provider = connect(f"http://{proxy.address}")
    assert await answer_of(provider) == "You said: Hi there"
    [head] = proxy.heads
    assert head.startswith(f"POST {endpoint.base_url}/chat/completions HTTP/1.1\r\n")
    assert "proxy-authorization" not in head.lower()
    assert endpoint.headers[0]["Authorization"] == f"Bearer {KEY}"


async def test_the_list_of_models_and_the_check_take_the_same_way(proxy: TinyProxy, connect: Connect, endpoint: ScriptedEndpoint) -> None:
    provider = connect(f"http://{proxy.address}")
    assert [model.name for model in await provider.list_models()]
    assert await provider.check() == f"The provider 'far' answers at {endpoint.base_url}."
    assert proxy.heads
    assert all(head.startswith(f"GET {endpoint.base_url}/models ") for head in proxy.heads)


async def test_the_proxy_is_told_its_user_and_password(proxy: TinyProxy, connect: Connect) -> None:
    assert await answer_of(connect(f"http://user:{QUOTED_PASSWORD}@{proxy.address}")) == "You said: Hi there"
    assert f"Proxy-Authorization: Basic {CREDENTIALS}\r\n" in proxy.heads[0]
    assert f"Authorization: Bearer {KEY}\r\n" in proxy.heads[0]


@pytest.mark.parametrize("credentials", ["", f"user:{QUOTED_PASSWORD}@"])
async def test_an_endpoint_with_tls_is_reached_by_a_tunnel_that_hides_the_key(
    credentials: str, proxy: TinyProxy, connect: Connect, endpoint: ScriptedEndpoint
) -> None:
    # There is no TLS at the other end of the tunnel, which is enough to see how it is asked for.
    place = endpoint.base_url.removeprefix("http://").removesuffix("/v1")
    error = await error_of(connect(f"http://{credentials}{proxy.address}", f"https://{place}/v1"))
    assert "cannot be reached" in error.message
    [head] = proxy.heads
    assert head.startswith(f"CONNECT {place} HTTP/1.1\r\n")
    assert (f"Proxy-Authorization: Basic {CREDENTIALS}\r\n" in head) is bool(credentials)
    assert KEY not in head


@pytest.mark.parametrize(
    ("status", "base_url", "message", "retryable"),
    [
        (407, "", "its proxy http://{proxy} wants another user and password", False),
        (407, "https://models.invalid/v1", "its proxy http://{proxy} wants another user and password", False),
        (403, "https://models.invalid/v1", "its proxy http://{proxy} refuses to connect (HTTP 403)", False),
        (502, "https://models.invalid/v1", "its proxy http://{proxy} refuses to connect (HTTP 502)", True),
        (502, "", "failed (HTTP 502)", True),
    ],
)
async def test_a_proxy_that_refuses(status: int, base_url: str, message: str, retryable: bool, connect: Connect) -> None:
    # Some quote what they were sent.
    page = f"Wrong: {KEY} {PASSWORD} {QUOTED_PASSWORD}".encode()
    async with TinyProxy(b"HTTP/1.1 %d No\r\nContent-Length: %d\r\nConnection: close\r\n\r\n%b" % (status, len(page), page)) as proxy:
        error = await error_of(connect(f"http://user:{QUOTED_PASSWORD}@{proxy.address}", base_url))
    assert message.format(proxy=proxy.address) in error.message
    assert error.retryable is retryable


async def test_a_proxy_that_is_not_there(connect: Connect, unused_tcp_port: int) -> None:
    error = await error_of(connect(f"http://user:{QUOTED_PASSWORD}@127.0.0.1:{unused_tcp_port}"))
    assert f"cannot be reached: its proxy http://127.0.0.1:{unused_tcp_port}: " in error.message
    assert error.retryable


async def test_the_proxies_of_the_environment_are_left_alone(
    proxy: TinyProxy, endpoint: ScriptedEndpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, f"http://{proxy.address}")
    provider = OpenAICompatible("near", endpoint.base_url, api_key=KEY)
    assert await answer_of(provider) == "You said: Hi there"
    await provider.close()
    assert not proxy.heads


async def test_the_setting_reaches_its_provider_alone(proxy: TinyProxy, endpoint: ScriptedEndpoint) -> None:
    near = ProviderSettings(base_url=endpoint.base_url)
    far = ProviderSettings(base_url=endpoint.base_url, proxy=f"http://{proxy.address}")
    models, _ = build_models(Settings(providers={"near": near, "far": far}))
    assert await models.check()
    assert len(proxy.heads) == 1
    await models.close()


async def test_no_secret_is_logged(proxy: TinyProxy, connect: Connect, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    provider = connect(f"http://user:{QUOTED_PASSWORD}@{proxy.address}")
    await answer_of(provider)
    assert KEY not in await provider.check()
    for secret in (KEY, PASSWORD, QUOTED_PASSWORD, CREDENTIALS):
        assert secret not in caplog.text


@pytest.mark.parametrize("proxy", ["http://user:pa:ss@127.0.0.1:x", "http://", "http://user:pa/ss@host:1"])
def test_a_proxy_that_is_no_url_is_refused_without_being_shown(proxy: str) -> None:
    with pytest.raises(ConfigError, match=r"^The proxy of the provider 'far' is no URL\.") as caught:
        OpenAICompatible("far", "http://127.0.0.1:9/v1", proxy=proxy)
    assert "pa:ss" not in str(caught.value)
    assert "pa/ss" not in str(caught.value)


def test_a_proxy_of_another_kind_is_refused_at_the_start(tmp_path) -> None:  # type: ignore[no-untyped-def]
    config = tmp_path / "config.toml"
    config.write_text('[providers.far]\nbase_url = "http://127.0.0.1:9/v1"\nproxy = "socks5://user:secret-word@127.0.0.1:1080"\n')
    with pytest.raises(ConfigError, match="proxy must begin with http://") as caught:
        load_settings(environment={}, config_file=config)
    assert "secret-word" not in str(caught.value)


# ---- addresses with secrets in them ------------------------------------------------------------------------------------------------


def test_an_address_is_shown_without_its_secrets() -> None:
    assert public_address("https://user:word@host:1/v1?key=secret#part") == "https://host:1/v1"
    assert "secret" not in public_address("http://user:secret@host:port")
    settings = Settings(openai_base_url="https://user:word@host/v1?key=secret")
    assert model_line(settings) == "Every model name is answered by https://host/v1."


def test_a_base_url_that_is_no_url_is_not_shown() -> None:
    with pytest.raises(ConfigError, match="base_url") as caught:
        OpenAICompatible("near", "http://user:pa:ss@host:port/v1")
    assert "pa:ss" not in str(caught.value)


def test_a_key_and_a_user_cannot_both_be_sent() -> None:
    with pytest.raises(ConfigError, match="only one of them can be sent") as caught:
        OpenAICompatible("near", "http://user:word@host/v1", api_key=KEY)
    assert "word" not in str(caught.value)


def test_what_is_secret_in_an_address_is_taken_out_of_what_is_quoted() -> None:
    base_url = f"https://user:{QUOTED_PASSWORD}@host/v1?key=abcdef0123456789&api-version=2024-05-01"
    session = EndpointSession("near", base_url, api_key="", connect_timeout_seconds=1.0)
    message = session.errors.error_frame({"message": f"{PASSWORD}, {QUOTED_PASSWORD}, abcdef0123456789, 2024-05-01"}).message
    assert message.endswith("***, ***, ***, 2024-05-01")

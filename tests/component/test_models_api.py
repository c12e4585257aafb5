"""`GET /models` lists what is configured, or what the only endpoint lists; and the settings of each provider are kept to."""

import asyncio
import contextlib
import json
import socket
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import aiohttp
import openai
import pytest
from aiohttp import web

from mini_assistant.app import build_models, running_server
from mini_assistant.errors import ConfigError, ModelError
from mini_assistant.models.base import ChatMessage, ChatRequest, ListedModel
from mini_assistant.models.model_list import LIST_BYTES_MAX, ProviderModels, configured_models
from mini_assistant.models.openai_compatible import OpenAICompatible
from mini_assistant.models.provider_limits import ProviderLimits, limits_of
from mini_assistant.models.routing import RoutedModels
from mini_assistant.models.script import Respond, Rule, Script, Stall, Text
from mini_assistant.models.scripted import ScriptedEndpoint
from mini_assistant.settings import ModelSettings, ProviderSettings, Settings, load_settings

KEY = "sk-test-0123456789abcdef"
NEAR = ProviderSettings(base_url="http://127.0.0.1:9/v1")
NAMED = Settings(
    providers={"near": NEAR, "far": NEAR},
    models={
        "llama3.1": ModelSettings(provider="near"),
        "org/phi-4": ModelSettings(provider="far"),
        "small": ModelSettings(provider="builtin"),
    },
    aliases={"gpt-4o": "org/phi-4", "gpt-*": "llama3.1", "llama3.1": "small"},
)


@contextlib.asynccontextmanager
async def served(settings: Settings) -> AsyncIterator[tuple[openai.AsyncOpenAI, aiohttp.ClientSession]]:
    """A server with these settings, by the official SDK and by a plain client."""
    async with (
        running_server(settings) as server,
        openai.AsyncOpenAI(base_url=f"{server}/v1", api_key="k", max_retries=0, timeout=20) as sdk,
        aiohttp.ClientSession(base_url=server, timeout=aiohttp.ClientTimeout(total=20)) as http,
    ):
        yield sdk, http


def local(tmp_path: Path, **changes: Any) -> Settings:
    return Settings(port=0, data_dir=tmp_path / "data", sandbox="none", model_retries_max=0, **changes)


class ListingEndpoint:
    """An endpoint that answers `GET /v1/models` as it is told, and counts how often it was asked."""

    def __init__(self) -> None:
        self.answer: Callable[[], web.Response] = lambda: web.json_response({"data": []})
        self.asked: list[str] = []
        self.is_silent = False
        self.base_url = ""
        application = web.Application()
        application.router.add_get("/v1/models", self._list)
        self._runner = web.AppRunner(application, access_log=None, handler_cancellation=True, shutdown_timeout=0.1)

    def lists(self, body: object) -> None:
        self.answer = lambda: web.json_response(body)

    async def _list(self, request: web.Request) -> web.Response:
        self.asked.append(request.headers.get("Authorization", ""))
        if self.is_silent:
            await asyncio.Event().wait()  # ended by cancellation, once the client has left
        return self.answer()

    async def __aenter__(self) -> "ListingEndpoint":
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", 0).start()
        self.base_url = f"http://127.0.0.1:{self._runner.addresses[0][1]}/v1"
        return self

    async def __aexit__(self, *_exc_info: object) -> None:
        await self._runner.cleanup()


@pytest.fixture
async def listing() -> AsyncIterator[ListingEndpoint]:
    async with ListingEndpoint() as endpoint:
        yield endpoint


# ---- what is configured ------------------------------------------------------------------------------------------------------------


def test_configured_are_all_models_and_the_aliases_of_one_name() -> None:
    assert configured_models(NAMED) == [
        ListedModel("llama3.1", "near"),
        ListedModel("org/phi-4", "far"),
        ListedModel("small", "builtin"),
        ListedModel("gpt-4o", "far"),
    ]
    assert configured_models(Settings(providers={"near": NEAR})) == []


async def test_the_sdk_lists_and_finds_what_is_configured(tmp_path: Path) -> None:
    settings = local(tmp_path, providers=NAMED.providers, models=NAMED.models, aliases=NAMED.aliases)
    async with served(settings) as (sdk, http):
        page = await sdk.models.list()
        assert page.object == "list"
        assert [(model.id, model.object, model.created, model.owned_by) for model in page.data] == [
            ("llama3.1", "model", 0, "near"),
            ("org/phi-4", "model", 0, "far"),
            ("small", "model", 0, "builtin"),
            ("gpt-4o", "model", 0, "far"),
        ]
        for model in page.data:
            assert await sdk.models.retrieve(model.id) == model
        assert (await sdk.models.retrieve("gpt-3.5-turbo")).owned_by == "near"
        assert (await sdk.models.retrieve("gpt-a/b")).id == "gpt-a/b"
        with pytest.raises(openai.NotFoundError) as caught:
            await sdk.models.retrieve("mistral")
        assert (caught.value.code, caught.value.param) == ("model_not_found", "model")
        # An older SDK leaves the slash as it is.
        async with http.get("/v1/models/org/phi-4") as response:
            assert (await response.json())["id"] == "org/phi-4"


async def test_an_alias_of_every_name_finds_every_name(tmp_path: Path) -> None:
    settings = local(tmp_path, providers={"near": NEAR}, models={"llama3.1": ModelSettings(provider="near")}, aliases={"*": "llama3.1"})
    async with served(settings) as (sdk, _):
        assert [model.id for model in (await sdk.models.list()).data] == ["llama3.1"]
        for name in ("anything", "a/b/c", "a//b", "ü %2F?#", "a:b"):
            model = await sdk.models.retrieve(name)
            assert (model.id, model.owned_by) == (name, "near")


async def test_without_any_provider_the_built_in_model_is_listed_and_answers_to_every_name(tmp_path: Path) -> None:
    models, _ = build_models(local(tmp_path))
    assert await models.list_models() == [ListedModel("SmolLM2-135M-Instruct", "builtin")]
    assert await models.find_model_or_none("gpt-4o") == ListedModel("gpt-4o", "builtin")
    await models.close()


async def test_several_providers_without_models_serve_no_name(tmp_path: Path) -> None:
    models, _ = build_models(local(tmp_path, providers={"near": NEAR, "far": NEAR}))
    assert not await models.list_models()
    assert await models.find_model_or_none("gpt-4o") is None
    await models.close()


# ---- the list of the only endpoint -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["OPENAI_BASE_URL", "the only provider"])
async def test_the_list_of_the_only_endpoint_is_passed_on(kind: str, tmp_path: Path, listing: ListingEndpoint) -> None:
    listing.lists({"object": "list", "data": [{"id": "org/llama", "created": 1_700_000_000, "owned_by": "org"}, {"id": "phi"}]})
    providers = {"near": ProviderSettings(base_url=listing.base_url, api_key_env="K")}
    by_provider = {"providers": providers, "provider_keys": {"near": KEY}}
    by_variable = {"openai_base_url": listing.base_url, "openai_api_key": KEY}
    async with served(local(tmp_path, **(by_variable if kind == "OPENAI_BASE_URL" else by_provider))) as (sdk, http):
        page = (await sdk.models.list()).data
        owner = "openai" if kind == "OPENAI_BASE_URL" else "near"
        assert [(model.id, model.created, model.owned_by) for model in page] == [("org/llama", 1_700_000_000, "org"), ("phi", 0, owner)]
        assert await sdk.models.retrieve("org/llama") == page[0]
        with pytest.raises(openai.NotFoundError, match="The model 'mistral' does not exist"):
            await sdk.models.retrieve("mistral")
        async with http.get("/v1/models") as response:
            assert KEY not in await response.text()
    assert listing.asked == [f"Bearer {KEY}"], "asked once, and kept"


async def test_names_beside_the_configured_ones_are_those_of_the_only_provider(listing: ListingEndpoint) -> None:
    listing.lists({"data": [{"id": "phi"}]})
    provider = ProviderSettings(base_url=listing.base_url)
    models, _ = build_models(Settings(providers={"near": provider}, models={"llama3.1": ModelSettings(provider="near")}))
    assert await models.list_models() == [ListedModel("llama3.1", "near")]
    assert await models.find_model_or_none("phi") == ListedModel("phi", "near")
    assert await models.find_model_or_none("mistral") is None
    await models.close()


def provider_of(listing: ListingEndpoint) -> OpenAICompatible:
    return OpenAICompatible("near", listing.base_url, api_key=KEY, limits=ProviderLimits(connect_timeout_seconds=2.0))


async def test_lists_as_servers_write_them(listing: ListingEndpoint) -> None:
    provider = provider_of(listing)
    listing.lists([{"id": "bare"}])
    assert await provider.list_models() == [ListedModel("bare", "near")]
    strange = {"id": "a", "created": "today", "owned_by": {"name": 1}, "permission": [], "more": None}
    listing.lists(
        {
            "data": [
                strange,
                {"id": ""},
                {"id": "x" * 257},
                {"id": "b", "created": 1.5e9},
                {"id": "b", "created": -1},
                {"id": "c", "created": True},
            ]
        }
    )
    assert await provider.list_models() == [ListedModel("a", "near"), ListedModel("b", "near"), ListedModel("c", "near")]
    listing.lists({"data": [{"id": f"m{number}", "created": 1.5e9} for number in range(10_001)]})
    listed = await provider.list_models()
    assert (len(listed), listed[0].created) == (10_000, 1_500_000_000)
    await provider.close()


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (lambda: web.json_response({"error": {"message": f"No key {KEY}"}}, status=401), "refused the key (HTTP 401)"),
        (lambda: web.Response(status=500, text="broken"), "failed (HTTP 500): broken"),
        (lambda: web.Response(status=400, text="what"), "did not accept the request"),
        (lambda: web.Response(status=404, text="nothing"), "sent no list of models (HTTP 404)"),
        (lambda: web.Response(status=302, headers={"Location": "http://127.0.0.1:9/"}), "redirects"),
        (lambda: web.Response(text="<html>"), "sent no list of models: <html>"),
        (lambda: web.json_response({"data": [{"name": "a"}]}), "sent no list of models"),
        (lambda: web.json_response({"data": None}), "sent no list of models"),
        (lambda: web.Response(body=b"[" * 100_000), "sent no list of models"),
        (lambda: web.Response(body=b" " * (LIST_BYTES_MAX + 1)), "sent a list of models that is too long"),
        (lambda: web.Response(body=b"\x1f\x8b", headers={"Content-Encoding": "gzip"}), "compressed"),
    ],
)
async def test_an_endpoint_that_gives_no_list(
    answer: Callable[[], web.Response], message: str, tmp_path: Path, listing: ListingEndpoint
) -> None:
    listing.answer = answer
    async with served(local(tmp_path, openai_base_url=listing.base_url, openai_api_key=KEY)) as (_, http):
        for path in ("/v1/models", "/v1/models/phi"):
            async with http.get(path) as response:
                assert response.status == 503, "an empty list would say that there are no models"
                assert response.headers["x-should-retry"] == "true"
                error = (await response.json())["error"]
        assert (error["type"], error["param"], error["code"]) == ("server_error", None, "unavailable")
        assert message in error["message"]
        assert KEY not in error["message"]
    assert len(listing.asked) == 1, "a failure is kept for a moment, too"


async def test_nobody_listens(tmp_path: Path, unused_tcp_port: int) -> None:
    async with served(local(tmp_path, openai_base_url=f"http://127.0.0.1:{unused_tcp_port}/v1")) as (sdk, _):
        with pytest.raises(openai.InternalServerError, match="cannot be reached"):
            await sdk.models.list()


async def test_an_endpoint_that_is_silent(listing: ListingEndpoint) -> None:
    listing.is_silent = True
    provider = OpenAICompatible("near", listing.base_url, limits=ProviderLimits(connect_timeout_seconds=0.2))
    with pytest.raises(ModelError, match=r"no answer within 0\.2 seconds"):
        await provider.list_models()
    await provider.close()


async def test_many_that_ask_at_a_time_are_one_question(listing: ListingEndpoint) -> None:
    listing.lists({"data": [{"id": "phi"}]})
    provider = provider_of(listing)
    models = ProviderModels(provider)
    answers = await asyncio.gather(*[models.listed() for _ in range(50)])
    assert answers == [[ListedModel("phi", "near")]] * 50
    assert len(listing.asked) == 1
    await provider.close()


async def test_a_list_that_is_old_is_asked_for_again(listing: ListingEndpoint) -> None:
    listing.answer = lambda: web.Response(status=500)
    provider = provider_of(listing)
    models = ProviderModels(provider, kept_seconds=0.0)
    with pytest.raises(ModelError):
        await models.listed()
    listing.lists({"data": [{"id": "phi"}]})
    assert await models.listed() == [ListedModel("phi", "near")]
    assert len(listing.asked) == 2
    await provider.close()


# ---- the settings of a provider ----------------------------------------------------------------------------------------------------


def two_providers(near: str, far: str, **own: Any) -> RoutedModels:
    """Two providers, of which the one called `near` has settings of its own."""
    settings = Settings(
        providers={"near": ProviderSettings(base_url=near, **own), "far": ProviderSettings(base_url=far)},
        provider_keys={"near": "sk-near-0123456789", "far": "sk-far-0123456789"},
        models={"a": ModelSettings(provider="near"), "b": ModelSettings(provider="far")},
        model_retries_max=1,
    )
    return build_models(settings)[0]


async def answer_of(models: RoutedModels, model: str, owner: str = "") -> None:
    async with asyncio.timeout(10):
        async for _ in models.stream(ChatRequest(model, (ChatMessage("user", "Hi"),), owner=owner)):
            pass


async def test_each_provider_gets_its_own_key(endpoint: ScriptedEndpoint) -> None:
    models = two_providers(endpoint.base_url, endpoint.base_url)
    for name in ("a", "b"):
        await answer_of(models, name)
    assert [headers["Authorization"] for headers in endpoint.headers] == ["Bearer sk-near-0123456789", "Bearer sk-far-0123456789"]
    await models.close()


@pytest.mark.parametrize(
    ("steps", "own", "message"),
    [
        ([Stall()], {"first_token_timeout_seconds": 0.2}, "did not begin to answer within 0.2 seconds"),
        ([Text("First"), Stall()], {"chunk_timeout_seconds": 0.2}, "in the middle of its answer within 0.2 seconds"),
    ],
)
async def test_time_limits_of_a_provider(steps: list[Any], own: dict[str, Any], message: str, endpoint: ScriptedEndpoint) -> None:
    endpoint.script = Script([Rule(steps)])
    models = two_providers(endpoint.base_url, endpoint.base_url, retries_max=0, **own)
    with pytest.raises(ModelError) as caught:
        await answer_of(models, "a")
    assert message in caught.value.message
    await models.close()


async def test_the_time_for_a_connection_of_a_provider() -> None:
    with contextlib.ExitStack() as stack:
        full = stack.enter_context(socket.socket())
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        for _ in range(4):  # they fill the queue of connections that nobody accepts
            client = stack.enter_context(socket.socket())
            client.setblocking(False)
            client.connect_ex(full.getsockname())
        url = f"http://127.0.0.1:{full.getsockname()[1]}/v1"
        models = two_providers(url, url, retries_max=0, connect_timeout_seconds=0.2)
        with pytest.raises(ModelError, match=r"no connection within 0\.2 seconds"):
            await answer_of(models, "a")
        await models.close()


async def test_retries_of_a_provider(endpoint: ScriptedEndpoint) -> None:
    endpoint.script = Script([Rule([Respond(500, "broken", {"Retry-After": "0"})])])
    models = two_providers(endpoint.base_url, endpoint.base_url, retries_max=3)
    for name, attempts in (("a", 4), ("b", 2)):
        endpoint.requests.clear()
        with pytest.raises(ModelError):
            await answer_of(models, name)
        assert len(endpoint.requests) == attempts
    await models.close()


async def test_one_project_with_many_requests_does_not_keep_another_waiting() -> None:
    order: list[str] = []
    async with ScriptedEndpoint(Script([Rule([Text("word ", repeat=3, delay_seconds=0.01)])])) as endpoint:
        models = two_providers(endpoint.base_url, endpoint.base_url, concurrency_max=1)

        async def ask(owner: str) -> None:
            await answer_of(models, "a", owner)
            order.append(owner)
            assert endpoint.open_streams <= 1

        async with asyncio.TaskGroup() as group:
            for _ in range(8):
                group.create_task(ask("many"))
            await endpoint.wait_for_streams(1)
            group.create_task(ask("one"))
        await models.close()
    assert order.index("one") <= 2, order
    assert len(order) == 9


@pytest.mark.parametrize(
    ("own", "problem"),
    [
        ("concurrency_max = 0", "concurrency_max must be at least 1, but is 0"),
        ("retries_max = -1", "retries_max must be at least 0, but is -1"),
        ("chunk_timeout_seconds = 0", "chunk_timeout_seconds must be at least 0.1, but is 0"),
        ("first_token_timeout_seconds = nan", "first_token_timeout_seconds must be at least 0.1, but is nan"),
        ("connect_timeout_seconds = inf", "connect_timeout_seconds must be at least 0.1, but is inf"),
    ],
)
def test_settings_of_a_provider_that_are_out_of_range(own: str, problem: str, tmp_path: Path) -> None:
    config = tmp_path / "config.toml"
    config.write_text(f'[providers.near]\nbase_url = "http://127.0.0.1:9/v1"\n{own}\n')
    with pytest.raises(ConfigError) as caught:
        limits_of(load_settings(environment={}, config_file=config), "near")
    assert str(caught.value) == f"[providers.near] {problem}."


def test_settings_of_a_provider_come_from_the_config_file(tmp_path: Path) -> None:
    own = {
        "connect_timeout_seconds": 1.5,
        "first_token_timeout_seconds": 30,
        "chunk_timeout_seconds": 7.0,
        "retries_max": 0,
        "concurrency_max": 3,
        "api_key_env": "NEAR_KEY",
        "proxy": "http://127.0.0.1:3128",
    }
    lines = [f"{name} = {json.dumps(value)}" for name, value in own.items()]
    config = tmp_path / "config.toml"
    config.write_text("\n".join(["[providers.near]", 'base_url = "http://127.0.0.1:9/v1"', *lines]))
    settings = load_settings(environment={"NEAR_KEY": KEY}, config_file=config)
    assert limits_of(settings, "near") == ProviderLimits(
        connect_timeout_seconds=1.5, first_token_timeout_seconds=30.0, chunk_timeout_seconds=7.0, retries_max=0, concurrency_max=3
    )
    assert settings.provider_keys == {"near": KEY}
    assert KEY not in repr(settings)
    with pytest.raises(ConfigError, match="NEAR_KEY, which is not set"):
        load_settings(environment={}, config_file=config)

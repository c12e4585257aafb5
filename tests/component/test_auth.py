"""Who may use the server: keys, the beta header, other web sites, and what is public."""

import dataclasses
import json
import re

import aiohttp
import openai
import pytest

from mini_assistant.app import all_routes
from mini_assistant.settings import Settings
from tests.envelope import checked_error

KEY = "sk-test-0123456789abcdef"
OTHER_KEY = "sk-test-fedcba9876543210"
PRIVATE = [route for route in all_routes() if not route.public]


@pytest.fixture
def settings(settings: Settings, request: pytest.FixtureRequest) -> Settings:
    """A server with two keys, or with the settings that the test names."""
    return dataclasses.replace(settings, **getattr(request, "param", {"api_keys": (KEY, OTHER_KEY)}))


def server_with(**changes: object) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("settings", [changes], indirect=True)


async def refused(http: aiohttp.ClientSession, method: str, path: str, **options: object) -> tuple[int, str, str | None]:
    """Send a request that must be refused; returns status, message and code."""
    async with http.request(method, path, **options) as response:
        raw = await response.read()
        assert response.status >= 400
        error = checked_error(raw)
        return response.status, error["message"], error["code"]


async def status_of(http: aiohttp.ClientSession, path: str, **headers: str) -> int:
    async with http.get(path, headers=headers) as response:
        return response.status


@pytest.mark.parametrize("key", [KEY, OTHER_KEY])
async def test_each_key_of_the_settings_works(key: str, http: aiohttp.ClientSession) -> None:
    for value in (f"Bearer {key}", f"bearer {key}", f"Bearer  {key}"):
        assert await status_of(http, "/v1/threads", Authorization=value) == 200


async def test_no_private_route_works_without_a_key(http: aiohttp.ClientSession) -> None:
    assert len(PRIVATE) >= 50
    for route in PRIVATE:
        path = "/v1" + re.sub(r"{(\w+)}", r"\1", route.path)  # the key is asked for before anything of the path is looked at
        for headers in ({}, {"Authorization": f"Bearer {KEY}x"}):
            status, message, code = await refused(http, route.method, path, headers=headers, data=b"{}" if route.body else None)

            assert status == 401
            assert code == ("invalid_api_key" if headers else None)
            assert message.startswith("Incorrect API key provided: " if headers else "You didn't provide an API key.")


@pytest.mark.parametrize("value", ["", "Bearer", "Bearer ", KEY, f"Basic {KEY}", f"Bearer{KEY}", "Bearer\t"])
async def test_a_header_without_a_bearer_key(value: str, http: aiohttp.ClientSession) -> None:
    status, message, code = await refused(http, "GET", "/v1/threads", headers={"Authorization": value})

    assert (status, code) == (401, None)
    assert message.startswith("You didn't provide an API key. You need to provide your API key in an Authorization header")


@pytest.mark.parametrize(
    "key", ["wrong", KEY[:-1], KEY + "0", KEY.upper(), f"{KEY} {KEY}", f"{KEY},{OTHER_KEY}", '"' + KEY + '"', "k" * 5000, "\u00fc"]
)
async def test_wrong_keys_are_refused_and_not_repeated(key: str, http: aiohttp.ClientSession) -> None:
    status, message, code = await refused(http, "GET", "/v1/threads", headers={"Authorization": f"Bearer {key}"})

    assert (status, code) == (401, "invalid_api_key")
    assert key not in message
    assert KEY not in message
    assert len(message) < 200


async def test_the_key_is_asked_for_before_anything_is_told(http: aiohttp.ClientSession) -> None:
    for method, path in (("GET", "/v1/unknown"), ("PUT", "/v1/threads"), ("GET", "/v1/threads/wrong-id"), ("POST", "/v1/threads?limit=x")):
        status, _, _ = await refused(http, method, path, data=b"{" if method != "GET" else None)
        assert status == 401


async def test_public_routes_need_no_key(http: aiohttp.ClientSession) -> None:
    assert {route.path for route in all_routes() if route.public} == {"/health", "/health/live", "/openapi.json"}
    for path in ("/health", "/v1/health", "/openapi.json", "/v1/openapi.json"):
        assert await status_of(http, path) == 200
        assert await status_of(http, path, Authorization="Bearer wrong", **{"Sec-Fetch-Site": "cross-site"}) == 200


async def test_the_official_sdk_raises_its_own_errors(server: str) -> None:
    async with openai.AsyncOpenAI(base_url=f"{server}/v1", api_key=KEY, max_retries=0) as client:
        assert (await client.beta.assistants.list()).data == []
    async with openai.AsyncOpenAI(base_url=f"{server}/v1", api_key="wrong", max_retries=0) as client:
        with pytest.raises(openai.AuthenticationError) as caught:
            await client.beta.assistants.list()
    assert caught.value.code == "invalid_api_key"


async def test_a_browser_with_a_key_may_come_from_another_site(http: aiohttp.ClientSession) -> None:
    headers = {"Authorization": f"Bearer {KEY}", "Sec-Fetch-Site": "cross-site"}

    assert await status_of(http, "/v1/threads", **headers) == 200


@server_with(api_keys=())
async def test_without_keys_any_key_or_none_will_do(http: aiohttp.ClientSession) -> None:
    assert await status_of(http, "/v1/threads") == 200
    assert await status_of(http, "/v1/threads", Authorization="Bearer anything") == 200
    assert await status_of(http, "/v1/threads", Authorization="nonsense") == 200


@server_with(api_keys=())
async def test_without_keys_other_web_sites_are_refused(http: aiohttp.ClientSession) -> None:
    for method, data in (("GET", None), ("POST", b"{}"), ("DELETE", None), ("OPTIONS", None)):
        headers = {"Sec-Fetch-Site": "cross-site", "Origin": "https://example.com"}
        status, message, code = await refused(http, method, "/v1/threads", data=data, headers=headers)

        assert (status, code) == (403, "cross_site_request")
        assert message.startswith("This server has no API keys")
    for site in ("same-origin", "same-site", "none"):
        assert await status_of(http, "/v1/threads", **{"Sec-Fetch-Site": site}) == 200
    async with http.get("/v1/threads") as response:
        assert (await response.json())["data"] == []
        assert "Access-Control-Allow-Origin" not in response.headers


NEAR_HOSTS = [
    *("localhost", "LocalHost:8000", "127.0.0.1", "127.0.0.1:80", "127.9.9.9:1", "[::1]", "[::1]:8000"),
    *("app.localhost", "app.localhost:8000", "host.docker.internal:8000"),
]
FAR_HOSTS = [
    *("example.com", "example.com:8000", "localhost.example.com", "127.0.0.1.example.com", "notlocalhost", "internal", "192.168.1.5"),
    *(
        "0.0.0.0",
        "0.0.0.0:8000",
        "[::]",
        "[::ffff:10.0.0.1]",
        "[2001:db8::1]:80",
        "",
        ":",
        "[",
        "127.0.0.1@example.com",
        "2130706433",
        "\u00fc",
    ),
    "x" * 5000,
]


@server_with(api_keys=())
async def test_without_keys_only_names_of_this_machine_are_answered(http: aiohttp.ClientSession) -> None:
    """A page whose name was given the address of this machine is of the same site for the browser, and shows itself by that name."""
    for host in NEAR_HOSTS:
        assert await status_of(http, "/v1/threads", Host=host) == 200, host
    for host in FAR_HOSTS:
        for method in ("GET", "POST", "DELETE"):
            status, message, code = await refused(http, method, "/v1/threads", headers={"Host": host, "Sec-Fetch-Site": "same-origin"})
            assert (status, code) == (403, "host_not_allowed"), host
            assert "`mini-assistant keys create`" in message
        assert await status_of(http, "/v1/threads", Host=host, Authorization="Bearer anything") == 403
        assert await status_of(http, "/health", Host=host) == 200


@server_with(api_keys=(), serve_without_keys=True)
async def test_a_setting_answers_to_every_name(http: aiohttp.ClientSession) -> None:
    for host in (*NEAR_HOSTS, *FAR_HOSTS):
        assert await status_of(http, "/v1/threads", Host=host) == 200
        assert await status_of(http, "/v1/threads", Host=host, **{"Sec-Fetch-Site": "cross-site"}) == 403


async def test_with_a_key_every_name_will_do(http: aiohttp.ClientSession) -> None:
    for host in (*NEAR_HOSTS, *FAR_HOSTS):
        assert await status_of(http, "/v1/threads", Host=host, Authorization=f"Bearer {KEY}") == 200
        assert await status_of(http, "/v1/threads", Host=host) == 401


@server_with(strict_beta_header=True)
async def test_the_beta_header_is_demanded_when_the_settings_say_so(http: aiohttp.ClientSession, sdk: openai.AsyncOpenAI) -> None:
    for path in ("/v1/threads", "/assistants", "/v1/threads/thread_x/runs"):
        for headers in ({}, {"OpenAI-Beta": "assistants=v1"}, {"OpenAI-Beta": ""}):
            status, message, code = await refused(http, "GET", path, headers=headers)

            assert (status, code) == (400, "invalid_beta")
            assert message.startswith("You must provide the 'OpenAI-Beta' header to access the Assistants API.")
    assert await status_of(http, "/v1/threads", **{"OpenAI-Beta": "assistants=v2"}) == 200
    assert await status_of(http, "/v1/threads", **{"OpenAI-Beta": "other=v1,assistants=v2"}) == 200
    assert await status_of(http, "/health") == 200
    assert (await sdk.beta.assistants.list()).data == []


async def test_the_beta_header_is_not_demanded_otherwise(http: aiohttp.ClientSession) -> None:
    assert await status_of(http, "/v1/threads", Authorization=f"Bearer {KEY}") == 200


@server_with(strict_beta_header=True, api_keys=(KEY,))
async def test_a_wrong_key_is_told_before_a_missing_beta_header(http: aiohttp.ClientSession) -> None:
    assert (await refused(http, "GET", "/v1/threads"))[0] == 401


async def test_a_refused_request_writes_nothing(http: aiohttp.ClientSession) -> None:
    for path, body in (("/v1/threads", {}), ("/v1/assistants", {"model": "m"})):
        assert (await refused(http, "POST", path, json=body))[0] == 401
        async with http.get(path, headers={"Authorization": f"Bearer {KEY}"}) as response:
            assert json.loads(await response.read())["data"] == []

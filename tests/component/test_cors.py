"""Web pages of other sites: nothing is told to a browser by default, and to the sites of `cors_origins` all that a page needs."""

import dataclasses
from typing import Any

import aiohttp
import pytest

from mini_assistant.settings import Settings

KEY = "sk-test-0123456789abcdef"
APP = "https://app.example"
OTHER = "https://other.example"
SDK_HEADERS = (
    "authorization,content-type,openai-beta,x-stainless-arch,x-stainless-lang,x-stainless-os,x-stainless-package-version,"
    "x-stainless-retry-count,x-stainless-runtime,x-stainless-runtime-version,x-stainless-timeout"
)
AUTHORIZED = {"Authorization": f"Bearer {KEY}"}


@pytest.fixture
def settings(settings: Settings, request: pytest.FixtureRequest) -> Settings:
    """A server with a key that names one site, or with the settings that the test names."""
    default = {"api_keys": (KEY,), "cors_origins": (APP, "http://localhost:3000/")}
    return dataclasses.replace(settings, **{**default, **getattr(request, "param", {})})


def server_with(**changes: object) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("settings", [changes], indirect=True)


async def headers_of(
    http: aiohttp.ClientSession, method: str = "GET", path: str = "/v1/threads", origin: str = APP, **more: Any
) -> tuple[int, dict[str, str]]:
    """Status and headers, with names in lower case, of what a page of this origin gets."""
    headers = {"Origin": origin, **more.pop("headers", {})}
    async with http.request(method, path, headers=headers, **more) as response:
        await response.read()
        return response.status, {name.lower(): value for name, value in response.headers.items()}


def cors_headers(headers: dict[str, str]) -> set[str]:
    return {name for name in headers if name.startswith("access-control-") or name == "vary"}


def preflight(method: str = "POST", names: str = SDK_HEADERS) -> dict[str, str]:
    return {"Access-Control-Request-Method": method, "Access-Control-Request-Headers": names}


@server_with(cors_origins=())
async def test_by_default_nothing_is_told(http: aiohttp.ClientSession) -> None:
    for headers in ({}, AUTHORIZED, preflight()):
        for method in ("GET", "OPTIONS", "POST"):
            status, answered = await headers_of(http, method, headers=headers, data=b"{}" if method == "POST" else None)

            assert cors_headers(answered) == set()
            assert status in (200, 401, 405)


@pytest.mark.parametrize("origin", [APP, "http://localhost:3000", APP.upper()])
async def test_a_named_site_is_told_what_it_needs(origin: str, http: aiohttp.ClientSession) -> None:
    status, headers = await headers_of(http, origin=origin, headers=AUTHORIZED)

    assert status == 200
    assert headers["access-control-allow-origin"] == origin
    assert headers["vary"] == "origin"
    exposed = headers["access-control-expose-headers"].split(", ")
    assert {"x-request-id", "retry-after", "x-ratelimit-remaining-requests", "content-disposition"} <= set(exposed)
    assert "access-control-allow-credentials" not in headers


@pytest.mark.parametrize(
    "origin",
    [
        OTHER,
        "null",
        "https://app.example.evil.example",
        "https://evil-app.example",
        "http://app.example",
        "https://app.example:444",
        "app.example",
        "",
    ],
)
async def test_no_other_site_is(origin: str, http: aiohttp.ClientSession) -> None:
    for headers in (AUTHORIZED, preflight()):
        for method in ("GET", "OPTIONS"):
            _, answered = await headers_of(http, method, origin=origin, headers=headers)

            assert cors_headers(answered) <= {"vary"}, "caches must still tell it from a named one"


@pytest.mark.parametrize("method", ["GET", "POST", "DELETE"])
async def test_a_question_before_a_call_of_the_sdk(method: str, http: aiohttp.ClientSession) -> None:
    status, headers = await headers_of(http, "OPTIONS", "/v1/threads/thread_x/runs", headers=preflight(method))

    assert status == 204
    assert headers["access-control-allow-origin"] == APP
    assert method in headers["access-control-allow-methods"].split(", ")
    assert headers["access-control-allow-headers"] == SDK_HEADERS
    assert int(headers["access-control-max-age"]) > 0
    assert "content-length" not in headers
    assert "transfer-encoding" not in headers


@pytest.mark.parametrize("names", ["", "x\u00e9", "a b", "a,,b", "*", "a;b", "x" * 101, ",".join(["a"] * 101)])
async def test_strange_names_of_headers_are_not_repeated(names: str, http: aiohttp.ClientSession) -> None:
    status, headers = await headers_of(http, "OPTIONS", headers=preflight(names=names))

    assert status == 204
    assert headers["access-control-allow-headers"].startswith("authorization, content-type, openai-beta")


async def test_options_without_a_question_are_what_they_were(http: aiohttp.ClientSession) -> None:
    status, headers = await headers_of(http, "OPTIONS", headers=AUTHORIZED)

    assert status == 405
    assert headers["access-control-allow-origin"] == APP, "so that a page can read why"


@pytest.mark.parametrize(
    ("path", "status", "options"),
    [
        ("/v1/threads", 401, {}),
        ("/v1/unknown", 404, {"headers": AUTHORIZED}),
        ("/v1/threads?limit=x", 400, {"headers": AUTHORIZED}),
        ("/openapi.json", 200, {}),
    ],
)
async def test_a_page_can_read_every_answer(path: str, status: int, options: dict[str, Any], http: aiohttp.ClientSession) -> None:
    found, headers = await headers_of(http, path=path, **options)

    assert (found, headers["access-control-allow-origin"]) == (status, APP)


async def test_a_page_can_read_a_stream_and_a_download(http: aiohttp.ClientSession) -> None:
    async with http.post("/v1/assistants", json={"model": "m"}, headers=AUTHORIZED) as response:
        assistant = (await response.json())["id"]
    body = {"assistant_id": assistant, "stream": True, "thread": {"messages": [{"role": "user", "content": "Hi"}]}}
    _, streamed = await headers_of(http, "POST", "/v1/threads/runs", headers=AUTHORIZED, json=body)
    form = aiohttp.FormData({"purpose": "assistants"})
    form.add_field("file", b"<script>", filename="a.html", content_type="text/html")
    async with http.post("/v1/files", data=form, headers=AUTHORIZED) as response:
        file = (await response.json())["id"]
    _, downloaded = await headers_of(http, path=f"/v1/files/{file}/content", headers=AUTHORIZED)

    assert streamed["content-type"].startswith("text/event-stream")
    assert streamed["access-control-allow-origin"] == downloaded["access-control-allow-origin"] == APP


@server_with(cors_origins=("*",))
async def test_all_sites_may_be_named(http: aiohttp.ClientSession) -> None:
    for headers in (AUTHORIZED, preflight()):
        _, answered = await headers_of(http, "OPTIONS", origin=OTHER, headers=headers)
        assert answered["access-control-allow-origin"] == "*"


@server_with(api_keys=())
async def test_without_keys_a_named_site_may_call_and_no_other(http: aiohttp.ClientSession) -> None:
    cross_site = {"Sec-Fetch-Site": "cross-site"}

    assert (await headers_of(http, headers=cross_site))[0] == 200
    assert (await headers_of(http, origin=OTHER, headers=cross_site))[0] == 403
    async with http.get("/v1/threads", headers=cross_site) as response:
        assert response.status == 403, "an image or a script of any page has no Origin"


# ---- headers of every answer -------------------------------------------------------------------------------------------------------


async def test_no_answer_can_become_a_page_or_stay_in_a_cache(http: aiohttp.ClientSession) -> None:
    for method, path in (
        ("GET", "/v1/threads"),
        ("GET", "/v1/unknown"),
        ("POST", "/v1/threads"),
        ("GET", "/openapi.json"),
        ("PUT", "/v1/threads"),
    ):
        for headers in ({}, AUTHORIZED):
            _, answered = await headers_of(http, method, path, headers=headers, data=b"{" if method == "POST" else None)

            assert answered["x-content-type-options"] == "nosniff"
            assert answered["cache-control"] == "no-store"
            assert answered["content-type"] == "application/json"
            assert "server" not in answered


@pytest.mark.parametrize("filename", ["page.html", "image.svg", "code.js", "style.css", "feed.xml"])
async def test_a_file_of_a_client_is_never_shown_as_a_page(filename: str, http: aiohttp.ClientSession) -> None:
    form = aiohttp.FormData({"purpose": "assistants"})
    form.add_field("file", b"<html><script>alert(1)</script></html>", filename=filename, content_type="text/html")
    async with http.post("/v1/files", data=form, headers=AUTHORIZED) as response:
        file = (await response.json())["id"]
    for more in ({}, {"Range": "bytes=0-5"}, {"Accept": "text/html"}):
        _, headers = await headers_of(http, path=f"/v1/files/{file}/content", headers={**AUTHORIZED, **more})

        assert headers["content-type"] == "application/octet-stream"
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["content-disposition"] == f'attachment; filename="{filename}"'


@pytest.mark.parametrize(
    "name", ['a"; filename="b.html', "a%0d%0aSet-Cookie: x=1", "a%0D%0A%0D%0A<script>", "\u202egnp.exe", "../../etc/passwd"]
)
async def test_a_name_adds_no_header(name: str, http: aiohttp.ClientSession) -> None:
    form = aiohttp.FormData({"purpose": "assistants"}, quote_fields=False)
    form.add_field("file", b"x", filename=name.replace('"', "%22"))
    async with http.post("/v1/files", data=form, headers=AUTHORIZED) as response:
        assert response.status in (200, 400)
        if response.status == 400:
            return
        file = (await response.json())["id"]
    _, headers = await headers_of(http, path=f"/v1/files/{file}/content", headers=AUTHORIZED)

    assert "set-cookie" not in headers
    disposition = headers["content-disposition"]
    assert disposition.startswith('attachment; filename="')
    assert disposition.count('"') == 2
    assert disposition.isascii()
    assert "/" not in disposition.split('"')[1].replace("_", "") or name.startswith("..")

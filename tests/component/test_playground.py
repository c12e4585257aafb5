"""The files of the playground: served to everybody with a strict policy, complete, without outside assets or strings of HTML."""

import dataclasses
import re
from pathlib import Path

import aiohttp
import pytest

import mini_assistant
from mini_assistant.app import all_routes, running_server
from mini_assistant.settings import Settings

FOLDER = Path(mini_assistant.__file__).parent / "playground"
FILES = sorted(path for path in FOLDER.iterdir() if path.suffix in (".html", ".css", ".js", ".svg"))
SCRIPTS = [path for path in FILES if path.suffix == ".js"]
STYLES = [path for path in FILES if path.suffix == ".css"]
KINDS = {".html": "text/html; charset=utf-8", ".css": "text/css; charset=utf-8", ".js": "text/javascript; charset=utf-8"} | {
    ".svg": "image/svg+xml"
}
# What makes markup or code of a text, and what the policy would refuse: elements are made by `dom.js`, looks by classes.
FORBIDDEN = re.compile(
    r"\b(innerHTML|outerHTML|insertAdjacentHTML|setHTMLUnsafe|parseHTMLUnsafe|createContextualFragment|DOMParser|srcdoc|eval|cssText)\b"
    r"|document\.write|new Function\(|\.setAttribute\(\s*[\"'](?:on|style)|[{,\s]style: |import\((?!\"\./[a-z_]+\.js\"\))|[\"'`]javascript:"
)


def policy_of(answer: aiohttp.ClientResponse) -> dict[str, str]:
    directives = answer.headers["content-security-policy"].split("; ")
    return {name: value for name, _, value in (directive.partition(" ") for directive in directives)}


async def test_every_file_is_served_with_its_type_and_the_policy(http: aiohttp.ClientSession) -> None:
    for path in FILES:
        async with http.get(f"/playground/{path.name}") as answer:
            assert answer.status == 200
            assert answer.headers["content-type"] == KINDS[path.suffix]
            assert await answer.read() == path.read_bytes()
            assert policy_of(answer)["default-src"] == "'none'"
            assert "unsafe" not in answer.headers["content-security-policy"]
            assert answer.headers["x-content-type-options"] == "nosniff"
            assert answer.headers["referrer-policy"] == "no-referrer"
            assert answer.headers["cross-origin-resource-policy"] == "same-origin"
    async with http.get("/playground/") as answer:
        assert await answer.read() == (FOLDER / "index.html").read_bytes()


async def test_the_policy(http: aiohttp.ClientSession) -> None:
    async with http.get("/playground/") as answer:
        assert policy_of(answer) == {
            "default-src": "'none'",
            "script-src": "'self'",
            "style-src": "'self'",
            "img-src": "'self' blob: data:",
            "connect-src": "'self'",
            "font-src": "'none'",
            "base-uri": "'none'",
            "form-action": "'none'",
            "frame-ancestors": "'none'",
            "require-trusted-types-for": "'script'",
            "trusted-types": "'none'",
        }


async def test_the_address_without_a_slash_is_redirected_relatively(http: aiohttp.ClientSession) -> None:
    async with http.get("/playground", allow_redirects=False) as answer:
        assert answer.status == 308
        assert answer.headers["location"] == "playground/"
        assert await answer.read() == b""


async def test_a_browser_that_has_the_file_is_told_so(http: aiohttp.ClientSession) -> None:
    async with http.get("/playground/main.js") as answer:
        etag = answer.headers["etag"]
        assert answer.headers["cache-control"] == "no-cache"
    for known, status in ((etag, 304), (f'"other", W/{etag}', 304), ('"other"', 200)):
        async with http.get("/playground/main.js", headers={"if-none-match": known}) as answer:
            assert answer.status == status
            assert answer.headers["etag"] == etag
            assert (await answer.read() == b"") == (status == 304)


@pytest.mark.parametrize(
    "path",
    [
        "nothing.js",
        "..%2fsettings.py",
        "%2e%2e%2fapp.py",
        "..%5capp.py",
        "__init__.py",
        "main.js%00",
        "MAIN.JS",
        "a/b.js",
        "%2fetc%2fpasswd",
    ],
)
async def test_nothing_else_is_served(http: aiohttp.ClientSession, server: str, path: str) -> None:
    async with http.get(aiohttp.client.URL(f"{server}/playground/{path}", encoded=True)) as answer:
        assert answer.status == 404
        assert (await answer.json())["error"]["type"] == "invalid_request_error"


async def test_files_are_only_read(http: aiohttp.ClientSession) -> None:
    async with http.post("/playground/main.js", json={}) as answer:
        assert answer.status == 405


async def test_a_server_with_keys_asks_for_none_here(settings: Settings) -> None:
    settings = dataclasses.replace(settings, api_keys=("a-secret-of-this-test",), project_requests_per_minute_max=1)
    async with running_server(settings) as address, aiohttp.ClientSession() as http:
        for path in ("/playground/", "/playground/main.js", "/playground/style.css"):  # nor does the limit of requests count them
            async with http.get(address + path) as answer:
                assert answer.status == 200
                assert b"a-secret-of-this-test" not in await answer.read()
        async with http.get(f"{address}/v1/assistants") as answer:
            assert answer.status == 401


async def test_it_can_be_switched_off(settings: Settings) -> None:
    async with running_server(dataclasses.replace(settings, playground=False)) as address, aiohttp.ClientSession() as http:
        for path in ("/playground", "/playground/", "/playground/main.js"):
            async with http.get(address + path) as answer:
                assert answer.status == 404


async def test_it_is_no_part_of_the_api(http: aiohttp.ClientSession) -> None:
    async with http.get("/openapi.json") as answer:
        paths = (await answer.json())["paths"]
    assert not [path for path in paths if "playground" in path]
    assert not [route for route in all_routes() if "playground" in route.path]


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.name)
def test_scripts_make_no_markup_of_texts(path: Path) -> None:
    lines = path.read_text(encoding="utf-8").splitlines()
    found = [f"{number}: {line.strip()}" for number, line in enumerate(lines, 1) if FORBIDDEN.search(line)]
    assert found == []


def test_the_search_for_markup_finds_some() -> None:
    for line in (
        "element.innerHTML = text",
        'document.write("x")',
        "eval(text)",
        'new Function("x")',
        'a.setAttribute("onclick", "x")',
        'el("p", { style: "color: red" })',
        'await import("https://x")',
    ):
        assert FORBIDDEN.search(line), line


def test_every_import_and_asset_is_there() -> None:
    names = {path.name for path in FILES}
    for path in SCRIPTS:
        for specifier in re.findall(r'^(?:import|export) [^;"]*? from "([^"]+)";$', path.read_text(encoding="utf-8"), re.MULTILINE):
            assert specifier.removeprefix("./") in names, f"{path.name} imports {specifier}"
    index = (FOLDER / "index.html").read_text(encoding="utf-8")
    named = set(re.findall(r'(?:href|src)="([^"#]+)"', index))
    assert named <= names
    assert {path.name for path in STYLES} <= named, "a style sheet that no page links"
    reached, waiting = set[str](), ["main.js"]
    while waiting:
        name = waiting.pop()
        if name not in reached:
            reached.add(name)
            waiting += re.findall(r'"\./([a-z_]+\.js)"', (FOLDER / name).read_text(encoding="utf-8"))
    assert {path.name for path in SCRIPTS} == reached, "a script that nothing imports"


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_nothing_comes_from_elsewhere(path: Path) -> None:
    text = path.read_text(encoding="utf-8").replace("http://www.w3.org/", "")
    assert not re.search(r"@import|url\(\s*[\"']?(?:https?:|//)|<style|\sstyle=|<script(?! type=\"module\" src=)|\son\w+=\"", text)
    if path.suffix in (".html", ".css", ".svg"):
        assert "//" not in text.replace("<!--", "")
    assert [number for number, line in enumerate(text.splitlines(), 1) if len(line) > 140] == []

"""Whatever a client sends to any route, the answer is a 4xx in the full envelope, nothing is written, and the server goes on.

The routes come from the route table: a new one fails here until it has a case.
"""

import json
import re
import sqlite3
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

import aiohttp
import msgspec
import pytest
import pytest_asyncio
from yarl import URL

from mini_assistant.app import DATABASE_FILE, all_routes, running_server
from mini_assistant.http.routing import Route
from mini_assistant.models.script import Rule, Script, ScriptedCall, Stall, Text, ToolCalls
from mini_assistant.models.scripted import ScriptedEndpoint
from mini_assistant.settings import Settings
from tests.envelope import checked_error

pytestmark = pytest.mark.asyncio(loop_scope="module")

ROUTES = {route.name: route for route in all_routes()}
PREFIXES = {"assistant_id": "asst", "thread_id": "thread", "message_id": "msg", "run_id": "run", "step_id": "step"}
NOUNS = {"assistant_id": "assistant", "thread_id": "thread", "message_id": "message", "run_id": "run", "step_id": "run step"}


@dataclass(frozen=True)
class Case:
    """What is right for a route, and what is wrong with it in its own way.

    good: a body that would be accepted; ids in braces are filled in. wrong: (change of the good body, param of the refusal).
    wrong_state: (the thread of the world that the call goes to, message); None for a call that is fine in every state.
    """

    good: dict[str, Any] | None = None
    wrong: list[tuple[dict[str, Any], str]] = field(default_factory=list)
    wrong_state: tuple[str, str] | None = None


TOOLS = [
    ({"tools": "file_search"}, "tools"),
    ({"tools": [{"type": "retrieval"}]}, "tools[0].type"),
    ({"tools": [{"type": "function", "function": {"name": "two words"}}]}, "tools[0].function.name"),
    ({"tools": [{"type": "function", "function": {"name": "f", "parameters": []}}]}, "tools[0].function.parameters"),
    ({"temperature": 2.1}, "temperature"),
    ({"temperature": "hot"}, "temperature"),
    ({"top_p": -0.1}, "top_p"),
    ({"response_format": {"type": "xml"}}, "response_format.type"),
    ({"response_format": {"type": "json_schema"}}, "response_format.json_schema"),
    ({"reasoning_effort": "huge"}, "reasoning_effort"),
    ({"model": ""}, "model"),
    ({"model": 5}, "model"),
]
METADATA = [
    ({"metadata": []}, "metadata"),
    ({"metadata": {"a": 1}}, "metadata.a"),
    ({"metadata": {"a": None}}, "metadata.a"),
    ({"metadata": {str(number): "" for number in range(17)}}, "metadata"),
    ({"metadata": {"k" * 65: ""}}, "metadata"),
    ({"metadata": {"a": "v" * 513}}, "metadata.a"),
]
MESSAGE = [
    ({"role": "system"}, "role"),
    ({"role": None}, "role"),
    ({"content": ""}, "content"),
    ({"content": []}, "content"),
    ({"content": 5}, "content"),
    ({"content": [{"type": "text"}]}, "content[0].text"),
    ({"content": [{"type": "video"}]}, "content[0].type"),
    ({"content": [{"type": "image_file", "image_file": {"file_id": "file-x"}}]}, "id"),
    ({"attachments": [{"file_id": "file-x", "tools": [{"type": "file_search"}]}]}, "id"),
    ({"attachments": [{}]}, "attachments[0].file_id"),
]
RUN = [
    *TOOLS,
    *METADATA,
    ({"assistant_id": "thread_x"}, "assistant_id"),
    ({"assistant_id": None}, "assistant_id"),
    ({"stream": "yes"}, "stream"),
    ({"max_prompt_tokens": 255}, "max_prompt_tokens"),
    ({"max_completion_tokens": 1.5}, "max_completion_tokens"),
    ({"truncation_strategy": {"type": "last"}}, "truncation_strategy.type"),
    ({"tool_choice": "always"}, "tool_choice"),
    ({"tool_choice": {"type": "function", "function": {"name": "unknown"}}}, "tool_choice"),
    ({"parallel_tool_calls": 1}, "parallel_tool_calls"),
]

CASES = {
    "createAssistant": Case(
        {"model": "m"}, [*TOOLS, *METADATA, ({"name": "n" * 257}, "name"), ({"instructions": "i" * 256_001}, "instructions")]
    ),
    "listAssistants": Case(),
    "getAssistant": Case(),
    "modifyAssistant": Case({"name": "new"}, [*TOOLS, *METADATA, ({"model": None}, "model")]),
    "deleteAssistant": Case(),
    "createThread": Case(
        {}, [*METADATA, ({"messages": [{"role": "user"}]}, "messages[0].content"), ({"tool_resources": []}, "tool_resources")]
    ),
    "listThreads": Case(),
    "getThread": Case(),
    "modifyThread": Case({"metadata": {"new": "1"}}, [*METADATA, ({"tool_resources": {"file_search": 1}}, "tool_resources.file_search")]),
    "deleteThread": Case(),
    "createMessage": Case(
        {"role": "user", "content": "hi"},
        [*MESSAGE, *METADATA],
        ("waiting", "Can't add messages to {thread_id} while a run {run_id} is active."),
    ),
    "listMessages": Case(),
    "getMessage": Case(),
    "modifyMessage": Case({"metadata": {"new": "1"}}, METADATA, ("writing", "Cannot update message with status 'in_progress'.")),
    "deleteMessage": Case(),
    "createThreadAndRun": Case(
        {"assistant_id": "{assistant_id}", "thread": {"messages": [{"role": "user", "content": "hi"}]}},
        [*RUN, ({"thread": {"messages": [{"role": "x", "content": "hi"}]}}, "thread.messages[0].role")],
    ),
    "createRun": Case(
        {"assistant_id": "{assistant_id}"},
        [*RUN, ({"additional_messages": [{"role": "user", "content": []}]}, "additional_messages[0].content")],
        ("waiting", "Thread {thread_id} already has an active run {run_id}."),
    ),
    "listRuns": Case(),
    "getRun": Case(),
    "modifyRun": Case({"metadata": {"new": "1"}}, METADATA, ("writing", "Cannot update run with status 'in_progress'.")),
    "cancelRun": Case(wrong_state=("answered", "Cannot cancel run with status 'completed'.")),
    "submitToolOuputsToRun": Case(
        {"tool_outputs": []},
        [
            ({"tool_outputs": {}}, "tool_outputs"),
            ({"tool_outputs": [{"output": "x"}]}, "tool_outputs[0].tool_call_id"),
            ({"tool_outputs": [{"tool_call_id": "c", "output": 5}]}, "tool_outputs[0].output"),
            ({"stream": 1}, "stream"),
        ],
        ("answered", 'Runs in status "completed" do not accept tool outputs.'),
    ),
    "streamRunEvents": Case(),
    "listRunSteps": Case(),
    "getRunStep": Case(),
    "getHealth": Case(),
    "getOpenapi": Case(),
}


async def test_every_route_has_a_case() -> None:
    assert set(CASES) == set(ROUTES)
    assert all((CASES[name].good is None) == (route.body is None) for name, route in ROUTES.items())
    assert all(CASES[name].wrong for name, route in ROUTES.items() if route.body is not None)


# ---- the world that bad requests must not change -----------------------------------------------------------------------------------


class World:
    """A server with an assistant and three threads: one whose run has answered, one whose run waits, one whose run is being written."""

    def __init__(self, http: aiohttp.ClientSession, server: str, settings: Settings) -> None:
        self.ids: dict[str, dict[str, str]] = {}
        self.http = http
        self.server = server
        self._database = settings.data_dir / DATABASE_FILE

    async def create(self) -> None:
        assistant = await self._created("/v1/assistants", {"model": "m", "tools": [{"type": "function", "function": {"name": "f"}}]})
        for name, text, last_event in (
            ("answered", "Hello", "done"),
            ("waiting", "call the function", "done"),
            ("writing", "stall", "thread.message.delta"),
        ):
            thread = await self._created("/v1/threads", {"messages": [{"role": "user", "content": text}]})
            ids = {"assistant_id": assistant["id"], "thread_id": thread["id"]}
            ids |= await self._run(ids, last_event)
            self.ids[name] = ids

    async def _run(self, ids: dict[str, str], last_event: str) -> dict[str, str]:
        body = {"assistant_id": ids["assistant_id"], "stream": True}
        text = ""
        async with self.http.post(f"/v1/threads/{ids['thread_id']}/runs", json=body) as response:
            async for line in response.content:
                text += line.decode()
                if line == f"event: {last_event}\n".encode():
                    break
        found = {"run_id": re.search(r'"id":"(run_\w+)"', text), "step_id": re.search(r'"id":"(step_\w+)"', text)}
        found["message_id"] = re.search(r'"id":"(msg_\w+)"', text)
        return {name: match[1] for name, match in found.items() if match is not None}

    async def _created(self, path: str, body: Any) -> dict[str, Any]:
        async with self.http.post(path, json=body) as response:
            assert response.status == 200
            return await response.json()

    def rows(self) -> dict[str, list[tuple[Any, ...]]]:
        """Everything that clients have put into the database."""
        connection = sqlite3.connect(self._database)
        try:
            tables = ("assistants", "threads", "messages", "runs", "run_steps")
            rows = {table: connection.execute(f"SELECT id, body FROM {table} ORDER BY seq").fetchall() for table in tables}
            return {**rows, "idempotency_keys": connection.execute("SELECT * FROM idempotency_keys").fetchall()}
        finally:
            connection.close()

    def url(self, path: str, thread: str = "answered", **other_ids: str) -> str:
        """The path of a route with ids of the world; `other_ids` are used as they are, percent signs included."""
        return path.format(**{**self.ids[thread], **other_ids})

    def body(self, name: str, change: dict[str, Any] | None = None) -> dict[str, Any]:
        """The good body of a route, changed."""
        text = json.dumps(CASES[name].good).replace("{assistant_id}", self.ids["answered"]["assistant_id"])
        return {**json.loads(text), **(change or {})}

    async def refused(self, method: str, path: str, data: bytes | None = None, **options: Any) -> tuple[int, dict[str, Any]]:
        """Send a request that must be refused; returns the status and the error."""
        url = URL(self.server + "/v1" + path, encoded=True)
        async with self.http.request(method, url, data=data, allow_redirects=False, **options) as response:
            raw = await response.read()
            assert 400 <= response.status < 500, (response.status, method, path[:100], (data or b"")[:100], raw[:200])
            assert response.headers["Content-Type"] == "application/json"
            assert response.headers["x-should-retry"] == "false"
            assert re.fullmatch("req_[0-9a-f]{32}", response.headers["x-request-id"])
            return response.status, checked_error(raw)

    async def is_served(self) -> bool:
        async with self.http.get("/health") as response:
            return response.status == 200


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def shared_world(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[World]:
    """One world for all tests here: none of them may change it."""
    rules = [
        Rule([ToolCalls([ScriptedCall("f")])], contains="call the function"),
        Rule([Text("Half an answer "), Stall()], contains="stall"),
    ]
    timeout = aiohttp.ClientTimeout(total=20)
    async with ScriptedEndpoint(Script(rules)) as endpoint:
        settings = Settings(
            port=0,
            data_dir=tmp_path_factory.mktemp("world"),
            openai_base_url=endpoint.base_url,
            model_retries_max=0,
            model_chunk_timeout_seconds=3600,
            run_expiry_seconds=3600,
        )
        async with running_server(settings) as server, aiohttp.ClientSession(base_url=server, timeout=timeout) as http:
            world = World(http, server, settings)
            await world.create()
            yield world


@pytest_asyncio.fixture(loop_scope="module")
async def world(shared_world: World) -> AsyncIterator[World]:
    before = shared_world.rows()
    yield shared_world
    assert shared_world.rows() == before, "something was written"
    assert await shared_world.is_served()


with_route = pytest.mark.parametrize("route", ROUTES.values(), ids=lambda route: route.name)
with_body = pytest.mark.parametrize("route", [route for route in ROUTES.values() if route.body], ids=lambda route: route.name)
with_query = pytest.mark.parametrize("route", [route for route in ROUTES.values() if route.query], ids=lambda route: route.name)
with_ids = pytest.mark.parametrize("route", [route for route in ROUTES.values() if "{" in route.path], ids=lambda route: route.name)


def raw_good_body(world: World, route: Route) -> bytes | None:
    return None if route.body is None else json.dumps(world.body(route.name)).encode()


# ---- ids ---------------------------------------------------------------------------------------------------------------------------

UNKNOWN_IDS = [
    "{prefix}_AAAAAAAAAAAAAAAAAAAAAAAA",
    "{prefix}_",
    "{prefix}_%00",
    "{prefix}_%F0%9F%98%80",
    "{prefix}_%ff%fe",
    "{prefix}_%ED%A0%80",
    "{prefix}_%25",
    "{prefix}_%27%3B%20DROP%20TABLE%20threads%3B--",
    "{prefix}_%0d%0aX-Evil%3A%201",
    "{prefix}_{{{{thread_id}}}}",
    "{prefix}_" + "a" * 5000,
    "{prefix}_..",
]
WRONG_IDS = ["x", "%20", "%00", "%ff", "{prefix}", "%7B%7D", "..%5c", "file-AAAAAAAAAAAAAAAAAAAAAA", "a" * 5000, "UPPER_{prefix}"]


@with_ids
async def test_unknown_ids_are_not_found(route: Route, world: World) -> None:
    for name in re.findall(r"{(\w+)}", route.path):
        for pattern in UNKNOWN_IDS:
            unknown = pattern.format(prefix=PREFIXES[name])
            status, error = await world.refused(route.method, world.url(route.path, **{name: unknown}), raw_good_body(world, route))

            assert status == 404
            assert error["message"].startswith(f"No {NOUNS[name]} found with id '{PREFIXES[name]}_")


@with_ids
async def test_ids_of_another_kind_are_refused_by_name(route: Route, world: World) -> None:
    for name in re.findall(r"{(\w+)}", route.path):
        for pattern in WRONG_IDS:
            path = world.url(route.path, **{name: pattern.format(prefix=PREFIXES[name])})
            status, error = await world.refused(route.method, path, raw_good_body(world, route))

            assert status == 400
            assert (error["param"], error["code"]) == (name, "invalid_value")
            assert error["message"].endswith(f"Expected an ID that begins with '{PREFIXES[name]}'.")


@with_ids
async def test_ids_that_bend_the_path_lead_nowhere(route: Route, world: World) -> None:
    for name in re.findall(r"{(\w+)}", route.path):
        for segment in ("", ".", "..", "a/b", "%2F", "..%2F..", f"{PREFIXES[name]}_a%2Fb", ";x=1"):
            path = world.url(route.path, **{name: segment})
            status, _ = await world.refused(route.method, path, raw_good_body(world, route))

            assert status in (400, 404, 405)


async def test_ids_of_other_objects_are_not_found_below_a_thread(world: World) -> None:
    below = [route for route in ROUTES.values() if route.path.startswith("/threads/{thread_id}/") and route.path.count("{") > 1]
    assert len(below) >= 9
    for route in below:
        strangers = {"thread_id": world.ids["waiting"]["thread_id"]}
        status, error = await world.refused(route.method, world.url(route.path, **strangers), raw_good_body(world, route))

        assert status == 404
        assert error["message"].startswith(("No run found with id 'run_", "No message found with id 'msg_"))


# ---- methods and paths -------------------------------------------------------------------------------------------------------------


@with_route
async def test_other_methods_are_not_allowed(route: Route, world: World) -> None:
    allowed = {known.method for known in ROUTES.values() if known.path == route.path}
    for method in ("GET", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "PROPFIND"):
        if method not in allowed:
            status, error = await world.refused(method, world.url(route.path), b"{}" if method in ("POST", "PUT", "PATCH") else None)

            assert (status, error["code"]) == (405, "method_not_supported")
            assert method in error["message"]


@pytest.mark.parametrize(
    "path",
    [
        "",
        "/",
        "/x",
        "/v1",
        "/threads/thread_x/nothing",
        "/threads/thread_x/runs/run_x/steps/step_x/more",
        "/%74hreads%2fx/y",
        "/openapi.yaml",
        "/x" * 3000,
    ],
)
async def test_unknown_paths_are_not_found(path: str, world: World) -> None:
    for method in ("GET", "POST", "DELETE", "PUT"):
        status, error = await world.refused(method, path)

        assert status == 404
        assert error["message"].startswith(f"Invalid URL ({method} /v1")


# ---- bodies ------------------------------------------------------------------------------------------------------------------------

NO_JSON_OBJECT = [
    b" ",
    b"{",
    b"}",
    b"{]",
    b'{"a"}',
    b'{"a":}',
    b"{'a': 1}",
    b"{}{}",
    b"{} x",
    b"// comment\n{}",
    b"null",
    b"true",
    b"5",
    b'"text"',
    b"[]",
    b"[{}]",
    b"NaN",
    b"undefined",
    b"name=value&other=1",
    b"<xml/>",
    b"--boundary\r\nContent-Disposition: form-data\r\n\r\n",
    b"\xff\xfe",
    b"\xef\xbb\xbf{}",
    b"\x00",
    b"{}\x00",
    b"\x1f\x8b\x08\x00",
    '{"a": 1}'.encode("utf-16"),
    '{"a": 1}'.encode("utf-32"),
    b'{"metadata": {"a": "\xff"}}',
    b'{"metadata": {"a": "\x00"}}',
    b'{"metadata": {"a": "\\ud800"}}',
    b'{"metadata": {"\\udfff": "a"}}',
    b'{"metadata": {"a": "\\x"}}',
    b'{"metadata": {"a": "\\u12"}}',
    b'{"metadata": {"a": 1e999}}',
    b'{"metadata": {"a": ' + b"9" * 5000 + b"}}",
    b'{"metadata": {"a": NaN}}',
    b"[" * 100_000,
    b"[" * 100_000 + b"]" * 100_000,
    b'{"metadata":' * 80_000,
    b'{"metadata":' * 50_000 + b"1" + b"}" * 50_000,
    b'{"metadata":{"a":' + b"[" * 990 + b"]" * 990 + b"}}",
    b'{"tools":' + b'[{"a":' * 500 + b"1" + b"}]" * 500 + b"}",
]


@with_body
async def test_bodies_that_are_no_json_object_are_refused(route: Route, world: World) -> None:
    path = world.url(route.path)
    for body in NO_JSON_OBJECT:
        status, error = await world.refused(route.method, path, body)

        assert status == 400
        if len(body) < 1000 and not body.startswith(b'{"'):
            assert error["message"].startswith(("We could not parse the JSON body of your request. ", "Invalid type for 'body': "))


@with_body
async def test_the_content_type_does_not_matter_and_an_empty_body_only_where_it_may_be(route: Route, world: World) -> None:
    if not route.body_optional:
        status, error = await world.refused(route.method, world.url(route.path), b"")
        assert (status, error["message"]) == (400, "We could not parse the JSON body of your request. It is empty.")
    for content_type in ("text/plain", "application/json; charset=utf-16", "multipart/form-data", "x", ""):
        status, _ = await world.refused(route.method, world.url(route.path), b"[]", headers={"Content-Type": content_type})
        assert status == 400


@with_body
async def test_unknown_fields_are_refused_by_name(route: Route, world: World) -> None:
    for name in ("file_ids", "Model", "metadata ", "__proto__", "ключ", "\x00"):
        body = json.dumps(world.body(route.name, {name: 1})).encode()
        status, error = await world.refused(route.method, world.url(route.path), body)

        assert (status, error["code"]) == (400, "unknown_parameter")
        assert error["message"] == f"Unknown parameter: '{name}'."


@with_body
async def test_missing_fields_are_refused_by_name(route: Route, world: World) -> None:
    assert route.body is not None
    for item in msgspec.structs.fields(route.body):
        if not item.required:
            continue
        body = world.body(route.name)
        del body[item.encode_name]
        status, error = await world.refused(route.method, world.url(route.path), json.dumps(body).encode())

        assert (status, error["param"], error["code"]) == (400, item.encode_name, "missing_required_parameter")


@with_body
async def test_wrong_values_are_refused_by_name(route: Route, world: World) -> None:
    for change, param in CASES[route.name].wrong:
        body = json.dumps(world.body(route.name, change)).encode()
        status, error = await world.refused(route.method, world.url(route.path), body)

        assert error["param"] == param, (change, error)
        assert status == (404 if param == "id" else 400)


@with_body
async def test_every_field_refuses_every_type_that_is_not_its_own(route: Route, world: World) -> None:
    assert route.body is not None
    for item in msgspec.structs.fields(route.body):
        refusals = 0
        for value in (5, 1.5, True, "x" * 300, [5], {"unknown field": 5}):
            try:
                msgspec.convert(value, item.type, strict=True)
            except msgspec.ValidationError:
                refusals += 1
                body = json.dumps(world.body(route.name, {item.encode_name: value})).encode()
                status, error = await world.refused(route.method, world.url(route.path), body)
                assert status == 400
                assert str(error["param"]).startswith(item.encode_name)
        assert refusals > 0


# ---- nesting that the types allow --------------------------------------------------------------------------------------------------


def nested(depth: int, kind: str) -> bytes:
    opening, closing = {"objects": (b'{"a":', b"}"), "arrays": (b'{"a":' + b"[", b"]" + b"}")}[kind]
    if kind == "objects":
        return opening * depth + b"1" + closing * depth
    return b'{"a":' + b"[" * (depth - 1) + b"1" + b"]" * (depth - 1) + b"}"


@pytest.mark.parametrize("kind", ["objects", "arrays"])
async def test_deep_schemas_are_kept_whole_or_refused_but_break_nothing(kind: str, shared_world: World) -> None:
    http, outcomes = shared_world.http, []
    for depth in (150, 190, *range(193, 205, 2), 250, *range(970, 1000), 1500, 10_000):
        for template in (
            b'{"model":"m","tools":[{"type":"function","function":{"name":"f","parameters":%b}}]}',
            b'{"model":"m","response_format":{"type":"json_schema","json_schema":{"name":"f","schema":%b}}}',
        ):
            schema = nested(depth, kind)
            async with http.post("/v1/assistants", data=template % schema) as response:
                raw = await response.read()
            if response.status == 200:
                outcomes.append(("kept", depth))
                assert schema in raw.replace(b" ", b"")
                await the_assistant_can_be_used(http, json.loads(raw)["id"])
            else:
                outcomes.append(("refused", depth))
                assert response.status == 400
                assert checked_error(raw)["message"].endswith("It is nested too deeply.")

    assert ("kept", 150) in outcomes
    assert ("refused", 250) in outcomes
    assert max(depth for kept, depth in outcomes if kept == "kept") < min(depth for kept, depth in outcomes if kept == "refused") + 2


async def the_assistant_can_be_used(http: aiohttp.ClientSession, assistant_id: str) -> None:
    """Its schema is read and written in every place that there is: change, list, run, prompt, stream."""
    run = {"assistant_id": assistant_id, "stream": True, "thread": {"messages": [{"role": "user", "content": "hi"}]}}
    for method, path, body in (
        ("GET", f"/v1/assistants/{assistant_id}", None),
        ("GET", "/v1/assistants", None),
        ("POST", f"/v1/assistants/{assistant_id}", {"name": "x"}),
        ("POST", "/v1/threads/runs", run),
    ):
        async with http.request(method, path, json=body) as response:
            text = await response.text()
            assert response.status == 200
    assert "event: thread.run.completed" in text


# ---- queries and headers -----------------------------------------------------------------------------------------------------------

QUERY_GARBAGE = [
    "&&&",
    "=",
    "?",
    "%",
    "%zz",
    "a=b&" * 500,
    "%00=%00",
    "limit=",
    "after=",
    "order=&limit=",
    "include",
    "unknown[]=1",
    "a" * 5000,
]
WRONG_QUERIES = {
    "limit": ["0", "101", "-1", "1.5", "x", "%00", "1e2", "9" * 200, "0x10", "%D9%A1"],
    "order": ["up", "ASC", "%00", "asc,desc"],
    "after": ["unknown", "%00", "%ff", "'", "a" * 3000],
    "before": ["unknown", "%00", "%ff", "'", "a" * 3000],
    "run_id": ["x", "%00", "thread_x"],
    "include": ["everything", "%00", "step_details"],
}


@with_query
async def test_wrong_queries_are_refused_by_name(route: Route, world: World) -> None:
    assert route.query is not None
    names = [item.encode_name for item in msgspec.structs.fields(route.query)]
    assert set(names) <= set(WRONG_QUERIES)
    for name in names:
        for value in WRONG_QUERIES[name]:
            bracketed = f"{name}[]" if name == "include" else name
            path = f"{world.url(route.path)}?{bracketed}={value}"
            status, error = await world.refused(route.method, path, raw_good_body(world, route))

            if name in ("after", "before"):
                assert status == 404
                assert "found with id '" in error["message"]
            else:
                assert status == 400
                assert str(error["param"]).startswith(name)


@pytest.mark.parametrize(
    "route", [route for route in ROUTES.values() if route.method == "GET" and not route.streams], ids=lambda route: route.name
)
async def test_query_garbage_is_ignored(route: Route, world: World) -> None:
    for garbage in QUERY_GARBAGE:
        async with world.http.get(URL(f"{world.server}/v1{world.url(route.path)}?{garbage}", encoded=True)) as response:
            assert response.status == 200, garbage


@pytest.mark.parametrize("key", ["", "k" * 256])
async def test_wrong_idempotency_keys_are_refused(key: str, world: World) -> None:
    for route in ROUTES.values():
        if route.method == "POST":
            status, error = await world.refused(
                "POST", world.url(route.path), raw_good_body(world, route), headers={"Idempotency-Key": key}
            )

            assert (status, error["param"], error["code"]) == (400, "Idempotency-Key", "invalid_value")


@pytest.mark.parametrize("position", ["x", "-1", "1", "1-", "-", "1-2-3", "1.5", "1-99999", "1-1.1.1", "9" * 400, "\u00e9", "1-1 "])
async def test_wrong_positions_in_a_stream_are_refused(position: str, world: World) -> None:
    status, error = await world.refused("GET", world.url(ROUTES["streamRunEvents"].path), headers={"Last-Event-ID": position})

    assert (status, error["param"]) == (400, "Last-Event-ID")


# ---- states ------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if case.wrong_state])
async def test_calls_that_do_not_fit_the_state_are_refused(name: str, world: World) -> None:
    assert CASES[name].wrong_state is not None
    thread, message = CASES[name].wrong_state
    status, error = await world.refused(ROUTES[name].method, world.url(ROUTES[name].path, thread), raw_good_body(world, ROUTES[name]))

    assert (status, error["param"], error["code"]) == (400, None, None)
    assert error["message"] == message.format(**world.ids[thread])


async def test_outputs_for_other_calls_than_the_pending_ones_are_refused(world: World) -> None:
    path = world.url(ROUTES["submitToolOuputsToRun"].path, "waiting")
    for outputs in ([], [{"tool_call_id": "call_x", "output": ""}], [{"tool_call_id": "call_x"}] * 10):
        status, error = await world.refused("POST", path, json.dumps({"tool_outputs": outputs}).encode())

        assert status == 400
        assert error["message"].startswith("Expected tool outputs for call_ids ['call_")


async def test_objects_are_gone_after_they_were_deleted(shared_world: World) -> None:
    http, gone = shared_world.http, {}
    for path, body in (("/v1/assistants", {"model": "m"}), ("/v1/threads", {})):
        async with http.post(path, json=body) as response:
            gone[path] = f"{path}/{(await response.json())['id']}"
        async with http.delete(gone[path]) as response:
            assert response.status == 200
    for method in ("GET", "POST", "DELETE"):
        for path in (*gone.values(), f"{gone['/v1/threads']}/messages", f"{gone['/v1/threads']}/runs"):
            if method == "DELETE" and path not in gone.values():
                continue
            data = b'{"role":"user","content":"x"}' if path.endswith("/messages") else b"{}"
            if path.endswith("/runs") and method == "POST":
                continue  # it needs an assistant that is there
            async with http.request(method, path, data=data if method == "POST" else None) as response:
                assert response.status == 404
                checked_error(await response.read())

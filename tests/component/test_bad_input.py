"""Whatever a client sends to any route, the answer is a 4xx in the full envelope, nothing is written, and the server goes on.

The routes come from the route table: a new one fails here until it has a case.
"""

import json
import re
from collections.abc import AsyncIterator

import aiohttp
import msgspec
import pytest
import pytest_asyncio
from yarl import URL

from mini_assistant.app import running_server
from mini_assistant.http.routing import Route
from mini_assistant.models.script import Rule, Script, ScriptedCall, Stall, Text, ToolCalls
from mini_assistant.models.scripted import ScriptedEndpoint
from mini_assistant.settings import Settings
from tests.component.request_cases import CASES, ROUTES
from tests.component.world import World, file_part, form_body, form_part, form_request, good
from tests.envelope import checked_error

pytestmark = pytest.mark.asyncio(loop_scope="module")

PREFIXES = {
    "assistant_id": "asst_",
    "thread_id": "thread_",
    "message_id": "msg_",
    "run_id": "run_",
    "step_id": "step_",
    "file_id": "file-",
    "upload_id": "upload_",
    "vector_store_id": "vs_",
    "batch_id": "vsfb_",
    "webhook_id": "wh_",
    "model": "m-",
}
NOT_FOUND = {
    "assistant_id": "No assistant found with id '",
    "thread_id": "No thread found with id '",
    "message_id": "No message found with id '",
    "run_id": "No run found with id '",
    "step_id": "No run step found with id '",
    "file_id": "No such File object: ",
    "upload_id": "No such Upload object: ",
    "vector_store_id": "No vector store found with id '",
    "batch_id": "No file batch found with id '",
    "webhook_id": "No such Webhook object: ",
    "model": "The model '",
}
# These may look like anything: what is not there is not found.
FREE_IDS = {"file_id", "upload_id", "webhook_id", "model"}


async def test_every_route_has_a_case() -> None:
    assert set(CASES) == set(ROUTES)
    assert all((CASES[name].good is None) == (route.body is None) for name, route in ROUTES.items())
    assert all((CASES[name].form is None) == (route.form is None) for name, route in ROUTES.items())
    assert all(CASES[name].wrong for name, route in ROUTES.items() if route.body is not None)
    assert {name for route in ROUTES.values() for name in re.findall(r"{(\w+)}", route.path)} == set(PREFIXES) == set(NOT_FOUND)


# ---- the world that bad requests must not change -----------------------------------------------------------------------------------


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
with_form = pytest.mark.parametrize("route", [route for route in ROUTES.values() if route.form], ids=lambda route: route.name)


# ---- ids ---------------------------------------------------------------------------------------------------------------------------

UNKNOWN_IDS = [
    "{prefix}AAAAAAAAAAAAAAAAAAAAAAAA",
    "{prefix}",
    "{prefix}%00",
    "{prefix}%F0%9F%98%80",
    "{prefix}%ff%fe",
    "{prefix}%ED%A0%80",
    "{prefix}%25",
    "{prefix}%27%3B%20DROP%20TABLE%20threads%3B--",
    "{prefix}%0d%0aX-Evil%3A%201",
    "{prefix}{{{{thread_id}}}}",
    "{prefix}" + "a" * 5000,
    "{prefix}..",
]
WRONG_IDS = ["x", "%20", "%00", "%ff", "{word}", "%7B%7D", "..%5c", "file-AAAAAAAAAAAAAAAAAAAAAA", "a" * 5000, "UPPER_{word}"]


def not_found(route: Route, name: str) -> tuple[str, str | None, str | None]:
    """How the message about an unknown id begins, its param and its code."""
    if name == "file_id" and route.path.startswith("/vector_stores/"):
        return "No file found with id '", None, None
    if name == "model":
        return NOT_FOUND[name], "model", "model_not_found"
    return NOT_FOUND[name], "id" if name in FREE_IDS else None, None


@with_ids
async def test_unknown_ids_are_not_found(route: Route, world: World) -> None:
    for name in re.findall(r"{(\w+)}", route.path):
        beginning, param, code = not_found(route, name)
        for pattern in UNKNOWN_IDS:
            unknown = pattern.format(prefix=PREFIXES[name])
            status, error = await world.refused(route.method, world.url(route.path, **{name: unknown}), **good(world, route))

            assert (status, error["param"], error["code"]) == (404, param, code)
            assert error["message"].startswith(f"{beginning}{PREFIXES[name]}")


@with_ids
async def test_ids_of_another_kind_are_refused_by_name(route: Route, world: World) -> None:
    for name in re.findall(r"{(\w+)}", route.path):
        word = PREFIXES[name][:-1]
        for pattern in WRONG_IDS:
            path = world.url(route.path, **{name: pattern.format(word=word)})
            status, error = await world.refused(route.method, path, **good(world, route))

            if name in FREE_IDS:
                beginning, param, code = not_found(route, name)
                assert (status, error["param"], error["code"]) == (404, param, code)
                assert error["message"].startswith(beginning)
                continue
            assert status == 400
            assert (error["param"], error["code"]) == (name, "invalid_value")
            assert error["message"].endswith(f"Expected an ID that begins with '{word}'.")


@with_ids
async def test_ids_that_bend_the_path_lead_nowhere(route: Route, world: World) -> None:
    for name in re.findall(r"{(\w+)}", route.path):
        for segment in ("", ".", "..", "a/b", "%2F", "..%2F..", f"{PREFIXES[name]}a%2Fb", ";x=1"):
            path = world.url(route.path, **{name: segment})
            status, _ = await world.refused(route.method, path, **good(world, route))

            assert status in (400, 404, 405)


async def test_ids_of_other_objects_are_not_found_below_a_thread(world: World) -> None:
    below = [route for route in ROUTES.values() if route.path.startswith("/threads/{thread_id}/") and route.path.count("{") > 1]
    assert len(below) >= 9
    for route in below:
        strangers = {"thread_id": world.ids["waiting"]["thread_id"]}
        status, error = await world.refused(route.method, world.url(route.path, **strangers), **good(world, route))

        assert status == 404
        assert error["message"].startswith(("No run found with id 'run_", "No message found with id 'msg_"))


async def test_files_and_batches_are_not_found_below_another_store(world: World) -> None:
    below = [route for route in ROUTES.values() if route.path.startswith("/vector_stores/{vector_store_id}/") and route.path.count("{") > 1]
    assert len(below) >= 7
    for route in below:
        if CASES[route.name].wrong_state is None:
            path = world.url(route.path, vector_store_id=world.ids["ended"]["vector_store_id"])
            status, error = await world.refused(route.method, path, **good(world, route))

            assert status == 404
            assert error["message"].startswith(("No file found with id 'file-", "No file batch found with id 'vsfb_"))


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


def known_fields(struct: type[msgspec.Struct] | None) -> set[str]:
    return {item.encode_name for item in msgspec.structs.fields(struct)} if struct is not None else set()


@with_body
async def test_unknown_fields_are_refused_by_name(route: Route, world: World) -> None:
    for name in {"file_ids", "Model", "metadata ", "__proto__", "ключ", "\x00"} - known_fields(route.body):
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
        assert status == (404 if param in ("id", None) else 400)


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


@pytest.mark.parametrize("depth", [17, 90, 150, 1000, 20_000])
async def test_deep_filters_are_refused(depth: int, world: World) -> None:
    filters = b'{"type":"and","filters":[' * depth + b'{"type":"eq","key":"a","value":1}' + b"]}" * depth
    body = b'{"query":"whales","filters":%b}' % filters
    status, error = await world.refused("POST", world.url(ROUTES["searchVectorStore"].path), body)

    assert status == 400
    assert "nested" in error["message"]


# ---- forms -------------------------------------------------------------------------------------------------------------------------

NO_FORM_TYPES = [
    "",
    "application/json",
    "text/plain; boundary=b",
    "application/x-www-form-urlencoded",
    "multipart/mixed; boundary=b",
    "multipart/form-data",
    "multipart/form-data; boundary=",
    "multipart/form-data; boundary=" + "b" * 201,
    "multipart/form-data; boundary=b b",
    "multipart/form-data; boundary=c",
    "multipart/form-data; boundary=\u00e9",
    "multipart/form-data; charset=utf-8",
    "form-data; boundary=b",
    "x",
]


@with_form
async def test_bodies_that_say_they_are_no_form_are_refused(route: Route, world: World) -> None:
    body = form_body(route, CASES[route.name].form or {})
    for content_type in NO_FORM_TYPES:
        status, error = await world.refused(route.method, world.url(route.path), **form_request(body, content_type))

        assert status == 400
        assert error["code"] in ("invalid_content_type", "invalid_multipart")


def garbage_forms(route: Route) -> list[bytes]:
    """Bodies that cannot be a form with a file."""
    disposition = b'Content-Disposition: form-data; name="%b"' % route.file_field.encode()
    begin, end = form_body(route, CASES[route.name].form or {}).removesuffix(b"--b--\r\n"), b"--b--\r\n"
    return [
        b"",
        b" ",
        b"{}",
        b"purpose=assistants&file=x",
        b"\x00" * 1000,
        b"\xff\xfe",
        b"\r\n" * 1000,
        b"-" * 100_000,
        b"--b",
        b"--b--",
        b"--b\r\n--b--\r\n",
        b"--b\r\n\r\n\r\n--b--\r\n",
        b"--b\n" + disposition.replace(b"\r", b"") + b"\n\nx\n--b--\n",
        b"--c\r\n" + disposition + b"\r\n\r\nx\r\n--c--\r\n",
        b"--b\r\n" + disposition,
        b"--b\r\n" + disposition + b"\r\n\r\n",
        b"--b\r\n" + disposition + b"\r\n\r\nx\r\n--b",
        b"--b\r\nContent-Disposition: form-data\r\n\r\nx\r\n--b--\r\n",
        b"--b\r\nContent-Type: text/plain\r\n\r\nx\r\n--b--\r\n",
        b"--b\r\nno header at all\r\n\r\nx\r\n--b--\r\n",
        b"--b\r\n: x\r\n" + disposition + b"\r\n\r\nx\r\n--b--\r\n",
        b"--b\r\nX: " + b"x" * 20_000 + b"\r\n" + disposition + b"\r\n\r\nx\r\n--b--\r\n",
        b"--b\r\n" + b"X: y\r\n" * 40_000 + disposition + b"\r\n\r\nx\r\n--b--\r\n",
        begin,
        begin + b"--b\r\n\r\nx\r\n" + end,
        begin + file_part(route) + end,
        begin + form_part("purpose", b"\xff") + end,
        begin + form_part("purpose", b"p" * 300_000) + end,
        begin + b"".join(form_part(f"field{number}", b"") for number in range(6000)) + end,
        begin + form_part("purpose", b"x")[:20],
    ]


@with_form
async def test_garbage_forms_are_refused(route: Route, world: World) -> None:
    for body in garbage_forms(route):
        status, error = await world.refused(route.method, world.url(route.path), **form_request(body))

        assert status == 400, body[:100]
        assert error["code"] in ("invalid_multipart", "missing_required_parameter", "invalid_value", "unknown_parameter"), body[:100]


@with_form
async def test_forms_that_end_too_early_are_refused(route: Route, world: World) -> None:
    body = form_body(route, CASES[route.name].form or {})
    for length in range(len(body) - len(b"\r\n")):
        status, _ = await world.refused(route.method, world.url(route.path), **form_request(body[:length]))

        assert status == 400


@with_form
async def test_forms_without_their_file_are_refused(route: Route, world: World) -> None:
    fields = b"".join(form_part(name, value.encode()) for name, value in (CASES[route.name].form or {}).items())
    for other in (b"", form_part(route.file_field + "s", b"x"), form_part("", b"x"), form_part(f"{route.file_field}[]", b"x")):
        status, error = await world.refused(route.method, world.url(route.path), **form_request(fields + other + b"--b--\r\n"))

        assert status == 400
        if fields or other:  # else there is no part at all, which is not a form
            assert (error["param"], error["code"]) == (route.file_field, "missing_required_parameter")
    empty = fields + file_part(route, b"") + b"--b--\r\n"
    status, error = await world.refused(route.method, world.url(route.path), **form_request(empty))
    assert (status, error["param"], error["code"]) == (400, route.file_field, "empty_file")


@with_form
async def test_fields_of_forms_are_refused_by_name(route: Route, world: World) -> None:
    case = CASES[route.name]
    for name in ("file_ids", "Purpose", "purpose ", "__proto__", "ключ", "\x00", "a[b]", "a[b][c]", "a["):
        status, error = await world.refused(
            route.method, world.url(route.path), **form_request(form_body(route, {**(case.form or {}), name: "1"}))
        )
        assert (status, error["code"]) == (400, "unknown_parameter"), name
    for name in case.form or {}:
        rest = {field: value for field, value in (case.form or {}).items() if field != name}
        status, error = await world.refused(route.method, world.url(route.path), **form_request(form_body(route, rest)))
        assert (status, error["param"], error["code"]) == (400, name, "missing_required_parameter")
    for change, param in case.wrong:
        status, error = await world.refused(
            route.method, world.url(route.path), **form_request(form_body(route, {**(case.form or {}), **change}))
        )
        assert (status, error["param"]) == (400, param), (change, error)


async def test_a_wrong_purpose_is_refused_in_the_words_of_the_hosted_api(world: World) -> None:
    purposes = "['fine-tune', 'assistants', 'batch', 'user_data', 'vision', 'evals']"
    _, error = await world.refused("POST", "/files", **form_request(form_body(ROUTES["createFile"], {"purpose": "cats"})))

    assert error["message"] == f"'cats' is not one of {purposes} - 'purpose'"
    assert (error["param"], error["code"]) == ("purpose", None)


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
# Of lists whose pages may be larger than the others'.
LIMITS_MAX = {"listFiles": 10_000, "listUsage": 1000}
# Any text will do: what nothing has gives an empty list.
FREE_QUERIES = {"purpose", "project_id", "action"}
WRONG_DATES = ["x", "%00", "%ff", "2026-02-30", "20261125", "0000-01-01", "9" * 3000]
WRONG_QUERIES = {
    "limit": ["0", "-1", "1.5", "x", "%00", "1e2", "9" * 200, "0x10", "%D9%A1"],
    "order": ["up", "ASC", "%00", "asc,desc"],
    "after": ["unknown", "%00", "%ff", "'", "a" * 3000],
    "before": ["unknown", "%00", "%ff", "'", "a" * 3000],
    "run_id": ["x", "%00", "thread_x"],
    "include": ["everything", "%00", "step_details"],
    "filter": ["done", "%00", "Completed", "completed,failed"],
    "start_date": WRONG_DATES,
    "end_date": WRONG_DATES,
    "page": ["x", "%00", "%ff", "2026-11-25", "~", "x~p"],
}


@with_query
async def test_wrong_queries_are_refused_by_name(route: Route, world: World) -> None:
    assert route.query is not None
    names = known_fields(route.query) - FREE_QUERIES
    assert names <= set(WRONG_QUERIES)
    too_high = str(LIMITS_MAX.get(route.name, 100) + 1)
    for name in names:
        for value in [*WRONG_QUERIES[name], *([too_high] if name == "limit" else [])]:
            bracketed = f"{name}[]" if name == "include" else name
            path = f"{world.url(route.path)}?{bracketed}={value}"
            status, error = await world.refused(route.method, path, **good(world, route))

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


@pytest.mark.parametrize("purpose", ["cats", "%00", "%ff", "'", "a" * 3000])
async def test_unknown_purposes_have_no_files(purpose: str, world: World) -> None:
    async with world.http.get(URL(f"{world.server}/v1/files?purpose={purpose}", encoded=True)) as response:
        assert (response.status, (await response.json())["data"]) == (200, [])


@pytest.mark.parametrize("key", ["", "k" * 256])
async def test_wrong_idempotency_keys_are_refused(key: str, world: World) -> None:
    for route in ROUTES.values():
        if route.method == "POST" and route.form is None:  # a form is not kept, so there the header means nothing
            status, error = await world.refused("POST", world.url(route.path), headers={"Idempotency-Key": key}, **good(world, route))

            assert (status, error["param"], error["code"]) == (400, "Idempotency-Key", "invalid_value")


@pytest.mark.parametrize("position", ["x", "-1", "1", "1-", "-", "1-2-3", "1.5", "1-99999", "1-1.1.1", "9" * 400, "\u00e9", "1-1 "])
async def test_wrong_positions_in_a_stream_are_refused(position: str, world: World) -> None:
    status, error = await world.refused("GET", world.url(ROUTES["streamRunEvents"].path), headers={"Last-Event-ID": position})

    assert (status, error["param"]) == (400, "Last-Event-ID")


# ---- states ------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if case.wrong_state])
async def test_calls_that_do_not_fit_the_state_are_refused(name: str, world: World) -> None:
    route, wrong_state = ROUTES[name], CASES[name].wrong_state
    assert wrong_state is not None
    objects, message, *code = wrong_state
    status, error = await world.refused(route.method, world.url(route.path, objects), **good(world, route))

    assert (status, error["param"], error["code"]) == (400, None, code[0] if code else None)
    assert error["message"] == message.format(**world.ids[objects])


async def test_outputs_for_other_calls_than_the_pending_ones_are_refused(world: World) -> None:
    path = world.url(ROUTES["submitToolOuputsToRun"].path, "waiting")
    for outputs in ([], [{"tool_call_id": "call_x", "output": ""}], [{"tool_call_id": "call_x"}] * 10):
        status, error = await world.refused("POST", path, json.dumps({"tool_outputs": outputs}).encode())

        assert status == 400
        assert error["message"].startswith("Expected tool outputs for call_ids ['call_")


async def test_objects_are_gone_after_they_were_deleted(shared_world: World) -> None:
    http, gone = shared_world.http, {}
    for path, body in (("/v1/assistants", {"model": "m"}), ("/v1/threads", {}), ("/v1/vector_stores", {})):
        async with http.post(path, json=body) as response:
            gone[path] = f"{path}/{(await response.json())['id']}"
        async with http.delete(gone[path]) as response:
            assert response.status == 200
    stores = gone["/v1/vector_stores"]
    below = (f"{gone['/v1/threads']}/messages", f"{gone['/v1/threads']}/runs", f"{stores}/files", f"{stores}/search")
    for method in ("GET", "POST", "DELETE"):
        for path in (*gone.values(), *below):
            if (method == "DELETE" and path in below) or (method == "GET" and path.endswith("/search")):
                continue
            bodies = {"messages": b'{"role":"user","content":"x"}', "files": b'{"file_id":"file-x"}', "search": b'{"query":"x"}'}
            data = bodies.get(path.rpartition("/")[2], b"{}")
            if path.endswith("/runs") and method == "POST":
                continue  # it needs an assistant that is there
            async with http.request(method, path, data=data if method == "POST" else None) as response:
                assert response.status == 404
                checked_error(await response.read())


async def test_files_are_gone_after_they_were_deleted(shared_world: World) -> None:
    http = shared_world.http
    async with http.post("/v1/files", **form_request(form_body(ROUTES["createFile"], {"purpose": "assistants"}))) as response:
        path = f"/v1/files/{(await response.json())['id']}"
    store = shared_world.url("/v1/vector_stores/{vector_store_id}")
    async with http.post(f"{store}/files", json={"file_id": path.rpartition("/")[2]}) as response:
        assert response.status == 200
    async with http.delete(path) as response:
        assert response.status == 200
    in_store = f"{store}/files/{path.rpartition('/')[2]}"
    for method, gone in (("GET", path), ("GET", f"{path}/content"), ("DELETE", path), ("GET", in_store), ("DELETE", in_store)):
        async with http.request(method, gone) as response:
            assert response.status == 404
            checked_error(await response.read())

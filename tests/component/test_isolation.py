"""Another project's id is an id of nothing: in every path, query and body, and to the byte as one that was made up.

The places are found in the types of the routes, so a new route is tried without being named here. What is written, and what is read of
rows in passing, is looked at in `test_two_tenants_walk.py` and `tests/test_project_queries.py`.
"""

import asyncio
import contextlib
import dataclasses
import itertools
import json
import re
from collections.abc import AsyncIterator, Iterator, Sequence
from typing import Any

import aiohttp
import pytest
import pytest_asyncio

from mini_assistant.administration import open_rows
from mini_assistant.app import running_server
from mini_assistant.db.base import Database
from mini_assistant.db.migrations import migrate_postgres
from mini_assistant.http.routing import Route
from mini_assistant.models.script import Rule, Script, ScriptedCall, Stall, Text, ToolCalls
from mini_assistant.models.scripted import ScriptedEndpoint
from mini_assistant.queue.procrastinate_schema import apply_schema
from mini_assistant.settings import Settings
from tests.component.request_cases import ROUTES
from tests.component.two_tenants import (
    NOT_OF_A_PROJECT,
    STATES,
    IdPlace,
    SeenAnswer,
    Tenant,
    all_id_places,
    all_rows,
    body_with,
    id_places,
    made_up,
    opened_tenant,
)
from tests.component.world import good
from tests.postgres_server import PostgresServer

# Their unknown ids are filters that let nothing through, and no errors.
FILTERS = {"listMessages query run_id"}
OURS, THEIRS = "team-a", "team-b"
pytestmark = pytest.mark.asyncio(loop_scope="module")
_FORM = {"Content-Type": "multipart/form-data; boundary=b"}


@dataclasses.dataclass(frozen=True)
class TwoTenants:
    """A server with the objects of two projects, and its rows."""

    ours: Tenant
    theirs: Tenant
    rows: Database
    settings: Settings


@pytest_asyncio.fixture(scope="module", loop_scope="module", params=["sqlite", "postgresql"])
async def both(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[TwoTenants]:
    """One server for all tests here: what they add to it does no harm."""
    rules = [
        Rule([ToolCalls([ScriptedCall("f")])], contains="call the function"),
        Rule([Text("Half an answer "), Stall()], contains="stall"),
    ]
    async with contextlib.AsyncExitStack() as stack:
        endpoint = await stack.enter_async_context(ScriptedEndpoint(Script(rules)))
        is_postgres = request.param == "postgresql"
        settings = Settings(
            port=0,
            data_dir=tmp_path_factory.mktemp("data"),
            database_url=stack.enter_context(_new_database(request.getfixturevalue("postgres"))) if is_postgres else "",
            openai_base_url=endpoint.base_url,
            model_retries_max=0,
            model_chunk_timeout_seconds=3600,
            run_expiry_seconds=3600,
            sandbox="none",
        )
        async with (
            running_server(settings) as server,
            opened_tenant(settings, server, OURS) as ours,
            opened_tenant(settings, server, THEIRS) as theirs,
            open_rows(settings) as rows,
        ):
            await asyncio.gather(ours.create(), theirs.create())
            yield TwoTenants(ours, theirs, rows, settings)


@contextlib.contextmanager
def _new_database(postgres: PostgresServer) -> Iterator[str]:
    url = postgres.create_database("isolation")
    migrate_postgres(url)
    apply_schema(url)
    yield url
    postgres.drop_database("isolation")


# ---- paths -------------------------------------------------------------------------------------------------------------------------


def routes_of_objects() -> Iterator[tuple[Route, list[str]]]:
    """Routes whose path names an object of a project, with the names of its ids."""
    for route in ROUTES.values():
        names = [place.kind for place in id_places() if place.route is route and place.part == "path"]
        if names:
            yield route, names


async def same_as_nothing(both: TwoTenants, route: Route, path: str, theirs: Sequence[str], **options: Any) -> SeenAnswer:
    """Send a request with their ids, and again with made-up ones: the answers are the same. path: with their ids in it."""
    answer = await both.ours.answer(route.method, path, **options)
    sent = json.dumps([path, *[str(value) for value in options.values()]])
    for object_id in theirs:
        path = path.replace(object_id, made_up(object_id))
    data = options.get("data")
    if isinstance(data, bytes):
        for object_id in theirs:
            data = data.replace(object_id.encode(), made_up(object_id).encode())
        options = {**options, "data": data}
    of_nothing = await both.ours.answer(route.method, path, **options)
    blotted = [*theirs, *map(made_up, theirs)]
    assert answer.without(blotted) == of_nothing.without(blotted), f"{route.name} with {sent[:300]} tells theirs from made-up ones"
    return answer


async def test_ids_in_paths(both: TwoTenants) -> None:
    before = await all_rows(both.rows)
    count = 0
    for route, names in routes_of_objects():
        options = good(both.ours, route)
        for state, size in itertools.product(STATES, range(1, len(names) + 1)):
            for replaced in itertools.combinations(names, size):
                theirs = {name: both.theirs.ids[state][name] for name in replaced}
                path = route.path.format(**{**both.ours.own_ids(route), **theirs})
                answer = await same_as_nothing(both, route, path, list(theirs.values()), **options)
                assert answer.status == 404, (route.name, replaced, answer)
                count += 1
        assert await all_rows(both.rows) == before, f"{route.name} has written something"
    assert count > 200


async def test_ids_of_what_they_have_deleted(both: TwoTenants) -> None:
    """Cursors of deleted objects are kept; not for others."""
    async with opened_tenant(both.settings, both.ours.server, "team-c") as third:
        await third.create()
        ids = third.ids["answered"]
        for path in ("/threads/{thread_id}/messages/{message_id}", "/vector_stores/{vector_store_id}/files/{file_id}", "/files/{file_id}"):
            assert (await third.answer("DELETE", path.format(**ids))).status == 200
        assert (await third.answer("GET", "/files?after={file_id}".format(**ids))).status == 200
    for place in (place for place in id_places() if place.part == "query" and str(place) not in FILTERS):
        path = place.route.path.format(**both.ours.own_ids(place.route)) + f"?{place.steps[0]}={ids[place.kind]}"
        answer = await same_as_nothing(both, place.route, path, [ids[place.kind]])
        assert answer.status == 404, (str(place), answer)


# ---- queries and bodies ------------------------------------------------------------------------------------------------------------


def bodies(both: TwoTenants, place: IdPlace, object_id: str) -> Iterator[bytes]:
    """Bodies with an id at a place: alone in its list, behind a good one, and for a stream."""
    body = body_with(place, both.ours.body(place.route.name), object_id)
    yield json.dumps(body).encode()
    if place.steps[-1] == 0 and place.kind != "vector_store_id":  # of which there can be but one
        own = both.ours.own_ids(place.route)[place.kind]
        yield json.dumps(body).encode().replace(f'["{object_id}"]'.encode(), f'["{own}", "{object_id}"]'.encode())
    if place.route.streams:
        yield json.dumps({**body, "stream": True}).encode()


async def test_ids_in_queries_and_bodies(both: TwoTenants) -> None:
    before = await all_rows(both.rows)
    for place in id_places():
        object_id = both.theirs.ids["waiting"][place.kind]
        path = place.route.path.format(**both.ours.own_ids(place.route))
        if place.part == "query":
            answers = [await same_as_nothing(both, place.route, f"{path}?{place.steps[0]}={object_id}", [object_id])]
        elif place.part == "body":
            answers = [await same_as_nothing(both, place.route, path, [object_id], data=data) for data in bodies(both, place, object_id)]
        else:
            continue
        for answer in answers:
            if str(place) in FILTERS:
                assert (answer.status, json.loads(answer.body)["data"]) == (200, [])
            else:
                assert answer.status in (400, 404), (str(place), answer)
                # It is this id that is refused, and not something else in the request.
                assert object_id in json.loads(answer.body)["error"]["message"], (str(place), answer)
        assert await all_rows(both.rows) == before, f"{place} has written something"


async def test_every_place_of_an_id_is_tried() -> None:
    """Each is of a known kind, or named with the reason why it is of no project."""
    places = list(all_id_places())
    assert set(NOT_OF_A_PROJECT) <= set(map(str, places)), "an exception is not needed any more"
    kinds = {place.kind for place in id_places()}
    assert kinds <= {
        "assistant_id",
        "thread_id",
        "message_id",
        "run_id",
        "step_id",
        "tool_call_id",
        "file_id",
        "upload_id",
        "part_id",
        "vector_store_id",
        "batch_id",
        "webhook_id",
    }
    assert {str(place) for place in places} >= {
        "createMessage body attachments.0.file_id",
        "createThreadAndRun body thread.messages.0.content.0.image_file.file_id",
        "createVectorStoreFileBatch body files.0.file_id",
        "listRunSteps query before",
        "submitToolOuputsToRun path run_id",
    }


async def test_the_tests_would_notice(both: TwoTenants) -> None:
    """Ids of the own project are not those of nothing."""
    same = dataclasses.replace(both, theirs=both.ours)
    for place in id_places():
        object_id = same.theirs.ids["answered"][place.kind]
        path = place.route.path.format(**same.ours.own_ids(place.route))
        if place.part == "query":
            path += f"?{place.steps[0]}={object_id}"
        is_read = place.route.method == "GET" and place.part != "body" and not place.route.streams
        if is_read or place.route.name in ("createAssistant", "createVectorStore"):
            options = {"data": next(bodies(same, place, object_id))} if place.part == "body" else {}
            with pytest.raises(AssertionError, match="tells theirs from made-up ones"):
                await same_as_nothing(same, place.route, path, [object_id], **options)
    before = await all_rows(both.rows)
    made = await both.ours.answer("POST", "/threads", b"{}")
    assert await all_rows(both.rows) != before
    assert (await both.ours.answer("DELETE", f"/threads/{json.loads(made.body)['id']}")).status == 200


# ---- what else is like an id -------------------------------------------------------------------------------------------------------


async def test_the_same_idempotency_key_in_two_projects(both: TwoTenants) -> None:
    answers: list[SeenAnswer] = []
    for tenant in (both.theirs, both.ours):
        for path, body in (("/threads", {}), ("/threads/runs", {"assistant_id": tenant.ids["answered"]["assistant_id"], "stream": True})):
            key = {"Idempotency-Key": f"the same {path}"}
            body = {**body, "thread": {"messages": [{"role": "user", "content": f"of {tenant.project}"}]}} if body else body
            answer = await tenant.answer("POST", path, json.dumps(body).encode(), headers=key)
            assert answer.status == 200
            answers.append(answer)
    theirs, ours = [re.findall(rb'"id":"(\w+)"', answer.body)[0] for answer in answers[::2]]
    assert theirs != ours
    assert b"of team-b" in answers[1].body
    assert b"of team-b" not in answers[3].body
    assert b"of team-a" in answers[3].body
    # Another body under the same key is refused within a project only.
    headers = {"Idempotency-Key": "the same"}
    assert (await both.theirs.answer("POST", "/threads", b'{"metadata":{"a":"1"}}', headers=headers)).status == 200
    assert (await both.ours.answer("POST", "/threads", b'{"metadata":{"a":"2"}}', headers=headers)).status == 200
    assert (await both.ours.answer("POST", "/threads", b'{"metadata":{"a":"3"}}', headers=headers)).status == 400


async def test_events_of_another_projects_run(both: TwoTenants) -> None:
    """Neither from the start nor after any `Last-Event-ID`, and with no thread of either project around it."""
    for state, ids in ((state, both.theirs.ids[state]) for state in STATES):
        for thread_id, last in itertools.product(
            (ids["thread_id"], both.ours.ids[state]["thread_id"]), (None, "1-1", "1-2.1", "9-999", "x")
        ):
            headers = {} if last is None else {"Last-Event-ID": last}
            path = f"/threads/{thread_id}/runs/{ids['run_id']}/events"
            answer = await same_as_nothing(both, ROUTES["streamRunEvents"], path, [ids["thread_id"], ids["run_id"]], headers=headers)
            assert answer.status == (400 if last == "x" else 404)


async def test_downloads_of_their_files(both: TwoTenants) -> None:
    """Not even whether the bytes have changed is told, or how many there are."""
    file_id = both.theirs.ids["answered"]["file_id"]
    path = f"/files/{file_id}/content"
    etag = (await both.theirs.answer("GET", path)).headers["etag"]
    for headers in ({}, {"If-None-Match": etag}, {"If-None-Match": "*"}, {"Range": "bytes=0-1"}, {"Range": "bytes=999-", "If-Range": etag}):
        answer = await same_as_nothing(both, ROUTES["downloadFile"], path, [file_id], headers=headers)
        assert answer.status == 404


async def test_stores_that_their_assistant_searches(both: TwoTenants) -> None:
    """Neither their assistant nor its vector store can be used; what an assistant names is looked up in its own project."""
    store_id = both.theirs.ids["answered"]["vector_store_id"]
    body = {"model": "m", "tools": [{"type": "file_search"}], "tool_resources": {"file_search": {"vector_store_ids": [store_id]}}}
    made = await both.theirs.answer("POST", "/assistants", json.dumps(body).encode())
    assistant_id = json.loads(made.body)["id"]
    run = json.dumps({"assistant_id": assistant_id, "thread": {"messages": [{"role": "user", "content": "whales"}]}}).encode()
    answer = await same_as_nothing(both, ROUTES["createThreadAndRun"], "/threads/runs", [assistant_id], data=run)
    assert answer.status == 404
    search = json.dumps({"query": "whales"}).encode()
    answer = await same_as_nothing(both, ROUTES["searchVectorStore"], f"/vector_stores/{store_id}/search", [store_id], data=search)
    assert answer.status == 404
    assert store_id.encode() not in (await both.ours.answer("GET", "/vector_stores")).body


async def test_lists_are_of_the_own_project(both: TwoTenants) -> None:
    """No list without an id in its path has anything of theirs."""
    theirs = {object_id for ids in both.theirs.ids.values() for object_id in ids.values()} - {"scripted"}
    paths = [route.path for route in ROUTES.values() if route.method == "GET" and "{" not in route.path and route.name.startswith("list")]
    for path in paths:
        answer = await both.ours.answer("GET", path)
        assert answer.status == (403 if path.startswith("/organization/") else 200)
        assert not {object_id for object_id in theirs if object_id.encode() in answer.body}, path
    for ids in both.theirs.ids.values():  # and nothing that was done above has changed what is theirs
        for path in ("/assistants/{assistant_id}", "/threads/{thread_id}", "/files/{file_id}", "/vector_stores/{vector_store_id}"):
            assert (await both.theirs.answer("GET", path.format(**{**both.theirs.ids["answered"], **ids}))).status == 200


# ---- scopes ------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scope", ["read", "write", "admin"])
async def test_scopes(scope: str, both: TwoTenants) -> None:
    """A key with one scope is refused by every route that needs another one, before anything is looked up."""
    async with opened_tenant(both.settings, both.ours.server, OURS, scope) as tenant:
        for route in (route for route in ROUTES.values() if not route.public):
            needed = route.needed_scope
            assert needed == ("read" if route.method == "GET" else "write") or (route.name, needed) in {
                ("searchVectorStore", "read"),
                ("listAuditLogs", "admin"),
                ("listUsage", "admin"),
                ("getMetrics", "admin"),
            }, "a route that needs another scope than its method says is named here"
            path = re.sub(r"{(\w+)}", lambda match: _id_of_nothing(match[1]), route.path)
            answer = await tenant.answer(route.method, path, b"{}" if route.form is None else None)
            if needed == scope:
                assert answer.status not in (401, 403), route.name
            else:
                assert (answer.status, json.loads(answer.body)["error"]["code"]) == (403, "insufficient_permissions"), route.name
                assert f"Missing scopes: {needed}." in json.loads(answer.body)["error"]["message"]


def _id_of_nothing(name: str) -> str:
    prefixes = {"message_id": "msg_", "assistant_id": "asst_", "vector_store_id": "vs_", "batch_id": "vsfb_"}
    return prefixes.get(name, name.removesuffix("id")) + "0" * 24


async def test_every_route_but_the_public_ones_wants_a_key(both: TwoTenants) -> None:
    async with aiohttp.ClientSession(both.ours.server) as http:
        for route in (route for route in ROUTES.values() if not route.public):
            async with http.request(route.method, "/v1" + route.path.replace("{", "").replace("}", "")) as response:
                assert response.status == 401, route.name
    assert {route.name for route in ROUTES.values() if route.public} == {"getHealth", "getLiveness", "getOpenapi"}

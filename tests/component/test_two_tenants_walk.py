"""Two projects do at random what the API offers, with each other's ids mixed in: nothing of one ever comes to the other.

Every text that a project writes carries its mark. All bytes of all answers are looked through, streams and downloads included, for the
other's mark and for ids that the other was told, and no request with one of the other's ids is ever accepted.
"""

import asyncio
import dataclasses
import json
import random
from collections import Counter
from collections.abc import Iterator
from typing import Any

import aiohttp
import pytest

from mini_assistant.app import running_server
from mini_assistant.http.routing import Route
from mini_assistant.queue.procrastinate_schema import apply_schema
from mini_assistant.settings import Settings
from tests.component.request_cases import ROUTES
from tests.component.two_tenants import ID, SeenAnswer, Tenant, body_with, id_places, made_up, opened_tenant

STEPS = 450
SEED = 20_261
KINDS = {
    "assistant": "assistant_id",
    "thread": "thread_id",
    "thread.message": "message_id",
    "thread.run": "run_id",
    "thread.run.step": "step_id",
    "file": "file_id",
    "upload": "upload_id",
    "upload.part": "part_id",
    "vector_store": "vector_store_id",
    "vector_store.file": "file_id",
    "vector_store.file_batch": "batch_id",
    "webhook": "webhook_id",
}
PARENTS = ("assistant_id", "thread_id", "run_id", "upload_id", "vector_store_id")
# Newer ones take the place of older ones: most of those are deleted.
REMEMBERED_MAX = 12
OFTEN = (
    "createAssistant",
    "createThread",
    "createMessage",
    "createRun",
    "createThreadAndRun",
    "createFile",
    "createUpload",
    "createVectorStore",
    "listMessages",
    "searchVectorStore",
    "streamRunEvents",
    "submitToolOuputsToRun",
)
# What the scripted model does: it repeats the text, or calls a tool when it is offered that.
WISHES = ("whales sing", "call f {}", 'call file_search {"queries": ["whales"]}')
SELDOM = ("delete", "cancel")


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.heavy)])
def settings(request: pytest.FixtureRequest, settings: Settings) -> Settings:
    if request.param == "sqlite":
        return settings
    database_url = request.getfixturevalue("postgres_url")
    apply_schema(database_url)
    return dataclasses.replace(settings, database_url=database_url)


class Walker:
    """A project whose next step is drawn by lot.

    mark: in every text that it writes. known: the newest objects of each kind, with the ids of what they are in. told: ids that answers
    have named and the request had not.
    """

    def __init__(self, tenant: Tenant, mark: str, seed: int) -> None:
        self.mark = mark
        self.known: dict[str, list[dict[str, Any]]] = {}
        self.told: set[str] = set()
        self.accepted = Counter[str]()
        self.refused_foreign = Counter[str]()
        self._tenant = tenant
        self._random = random.Random(seed)
        self._routes = [route for route in ROUTES.values() if not route.public and route.needed_scope != "admin"]
        self._weights = [8 if route.name in OFTEN else 1 if route.name.startswith(SELDOM) else 3 for route in self._routes]

    async def step(self, other: "Walker") -> None:
        """Send one request; fails when something of the other shows."""
        [route] = self._random.choices(self._routes, self._weights)
        request = self._request(route, other)
        answer = await self._tenant.answer(route.method, request.path, **request.options(self.mark))
        shown = f"{route.method} {request.path} {request.body} -> {answer.status} {answer.body[:500]!r}"
        assert answer.status < 500, shown
        assert other.mark.encode() not in answer.body, f"a text of the other: {shown}"
        assert other.mark not in str(answer.headers), f"a text of the other: {shown}"
        sent = set(ID.findall(f"{request.path} {json.dumps(request.body)}"))
        self.told |= set(ID.findall(answer.body.decode())) - sent
        if request.is_foreign:
            assert 400 <= answer.status < 500, f"an id of the other was taken: {shown}"
            self.refused_foreign[route.name] += 1
        elif answer.status == 200:
            self.accepted[route.name] += 1
            self._learn(answer)

    # ---- what is sent

    def _request(self, route: Route, other: "Walker") -> "_Drawn":
        names = [place.kind for place in id_places() if place.route is route and place.part == "path"]
        ids = {"model": "scripted", **self._ids(names)}
        drawn = _Drawn(route, "", self._body(route))
        if route.name == "submitToolOuputsToRun":
            calls = [call_id for run in self.known.get("run_id", []) if run["run_id"] == ids["run_id"] for call_id in run["calls"]]
            drawn.body = {"tool_outputs": [{"tool_call_id": call_id, "output": self.mark} for call_id in dict.fromkeys(calls)]}
        if names and self._random.random() < 0.2:
            name = self._random.choice(names)
            if theirs := other.any_id(name):
                ids[name], drawn.is_foreign = theirs, True
        drawn.path = route.path.format(**ids)
        places = [place for place in id_places() if place.route is route and place.part != "path" and place.kind != "run_id"]
        if places and self._random.random() < 0.3:
            place = self._random.choice(places)
            theirs = other.any_id(place.kind) if self._random.random() < 0.5 else None
            object_id = theirs or self.any_id(place.kind)
            if object_id is not None:
                drawn.is_foreign |= theirs is not None
                if place.part == "query":
                    drawn.path += f"?{place.steps[0]}={object_id}"
                else:
                    drawn.body = body_with(place, drawn.body or {}, object_id)
        if self._random.random() < 0.1:
            drawn.headers["Idempotency-Key"] = self._random.choice(("first", "second", "third"))  # both projects use them
        if route.name == "streamRunEvents" and self._random.random() < 0.5:
            drawn.headers["Last-Event-ID"] = self._random.choice(("1-1", "1-2", "1-3.1"))
        return drawn

    def _ids(self, names: list[str]) -> dict[str, str]:
        """Ids for a path: those of one object and of what it is in, or of nothing."""
        if not names:
            return {}
        fitting = [known for known in self.known.get(names[-1], []) if all(name in known for name in names)]
        if fitting:
            found = self._random.choice(fitting)
            return {name: found[name] for name in names}
        return {name: self.any_id(name) or made_up(f"{name.removesuffix('id')}{'0' * 24}") for name in names}

    def any_id(self, kind: str) -> str | None:
        """An id of an object that this project has, or had; None as long as there was none."""
        if kind == "tool_call_id":
            calls = [call_id for run in self.known.get("run_id", []) for call_id in run.get("calls", [])]
            return self._random.choice(calls) if calls else None
        known = self.known.get(kind)
        return self._random.choice(known)[kind] if known else None

    def _text(self) -> str:
        return f"{self.mark} {self._random.choice(WISHES)}"

    def _message(self) -> dict[str, Any]:
        message: dict[str, Any] = {"role": "user", "content": self._text(), "metadata": {"by": self.mark}}
        if (file_id := self.any_id("file_id")) and self._random.random() < 0.3:
            message["attachments"] = [{"file_id": file_id, "tools": [{"type": "file_search"}]}]
        return message

    def _body(self, route: Route) -> dict[str, Any] | None:
        """A good body, as far as the project has what it names."""
        function = {"type": "function", "function": {"name": "f", "description": self.mark}}
        metadata, own = {"metadata": {"by": self.mark}}, {"file_id": self.any_id("file_id") or "file-none"}
        run = {"assistant_id": self.any_id("assistant_id") or "asst_none", "stream": self._random.random() < 0.5, **metadata}
        upload = {"filename": f"{self.mark}.txt", "purpose": "assistants", "bytes": 5, "mime_type": "text/plain"}
        tools = self._random.choice(([function], [{"type": "file_search"}], [function, {"type": "file_search"}]))
        bodies: dict[str, dict[str, Any]] = {
            "createAssistant": {"model": "m", "name": self.mark, "instructions": self.mark, "tools": tools, **metadata},
            "modifyAssistant": {"name": self.mark, "description": self.mark},
            "createThread": {"messages": [self._message()], **metadata},
            "createMessage": self._message(),
            "createThreadAndRun": {**run, "thread": {"messages": [self._message()]}},
            "createRun": {**run, "additional_messages": [self._message()]},
            "createUpload": upload,
            "completeUpload": {"part_ids": [self.any_id("part_id") or "part_none"]},
            "createVectorStore": {"name": self.mark, "file_ids": [own["file_id"]] if self.known.get("file_id") else [], **metadata},
            "searchVectorStore": {"query": "Which whales sing?"},
            "createVectorStoreFile": {**own, "attributes": {"by": self.mark}},
            "updateVectorStoreFileAttributes": {"attributes": {"by": f"{self.mark} {self._random.random()}"}},
            "createVectorStoreFileBatch": {"file_ids": [own["file_id"]]},
            # Nothing expires here, so nobody is called.
            "createWebhook": {"url": f"https://example.com/{self.mark}", "events": ["run.expired"], **metadata},
        }
        return None if route.body is None else bodies.get(route.name, metadata)

    # ---- what comes back

    def _learn(self, answer: SeenAnswer) -> None:
        for found in _objects_in(answer):
            kind = KINDS.get(found.get("object", ""))
            if kind is not None and isinstance(found.get("id"), str):
                known = {name: found[name] for name in PARENTS if isinstance(found.get(name), str)}
                known[kind] = found["id"]
                known["calls"] = [
                    call["id"] for call in ((found.get("required_action") or {}).get("submit_tool_outputs") or {}).get("tool_calls", [])
                ]
                newest = self.known.setdefault(kind, [])
                newest.append(known)
                del newest[:-REMEMBERED_MAX]


@dataclasses.dataclass
class _Drawn:
    """A request that was drawn. is_foreign: whether it names something of the other project."""

    route: Route
    path: str
    body: dict[str, Any] | None
    headers: dict[str, str] = dataclasses.field(default_factory=dict)
    is_foreign: bool = False

    def options(self, mark: str) -> dict[str, Any]:
        """What the client takes. mark: for the bytes of a file."""
        if self.route.form is None:
            return {"data": None if self.body is None else json.dumps(self.body).encode(), "headers": self.headers}
        form = aiohttp.FormData({"purpose": "assistants"} if self.route.name == "createFile" else {})
        content = f"{mark}: whales sing under water.".encode() if self.route.name == "createFile" else mark[:5].encode()
        form.add_field(self.route.file_field, content, filename=f"{mark}.txt")
        return {"data": form, "headers": self.headers}


def _objects_in(answer: SeenAnswer) -> Iterator[dict[str, Any]]:
    """Every object in an answer, or in the events of one, at any depth."""
    lines = answer.body.decode().splitlines() if answer.headers["content-type"].startswith("text/event-stream") else []
    texts = [line.removeprefix("data: ") for line in lines if line.startswith("data: {")]
    if answer.headers["content-type"] == "application/json":
        texts.append(answer.body.decode())
    pending: list[Any] = [json.loads(text) for text in texts]
    while pending:
        value = pending.pop(0)
        if isinstance(value, dict):
            yield value
        pending += value.values() if isinstance(value, dict) else value if isinstance(value, list) else []


async def walk(settings: Settings, projects: tuple[str, str], steps: int, seed: int) -> tuple[Walker, Walker]:
    """Both projects take their steps at the same time."""
    async with (
        running_server(settings) as server,
        opened_tenant(settings, server, projects[0]) as first,
        opened_tenant(settings, server, projects[1]) as second,
    ):
        ours, theirs = Walker(first, "quartz", seed), Walker(second, "velvet", seed + 1)
        for _ in range(steps):
            async with asyncio.timeout(30):
                await asyncio.gather(ours.step(theirs), theirs.step(ours))
    return ours, theirs


def check_walk(ours: Walker, theirs: Walker) -> None:
    """Nobody was told an id of the other, and enough has happened for that to mean something."""
    assert not ours.told & theirs.told
    for walker in (ours, theirs):
        assert len(walker.told) > 120
        assert len(walker.accepted) > 35, walker.accepted
        assert walker.refused_foreign.total() > 50
        for name in ("createRun", "createThreadAndRun", "createFile", "searchVectorStore", "listMessages", "streamRunEvents"):
            assert walker.accepted[name], f"{name} was never accepted"


async def test_nothing_of_another_project_comes_by(settings: Settings) -> None:
    check_walk(*await walk(settings, ("team-a", "team-b"), STEPS, SEED))


@pytest.mark.heavy
@pytest.mark.parametrize("seed", range(10))
async def test_nothing_of_another_project_comes_by_for_long(seed: int, settings: Settings) -> None:
    check_walk(*await walk(settings, ("team-a", "team-b"), 2000, seed))


@pytest.mark.parametrize("settings", ["sqlite"], indirect=True)
async def test_the_walk_would_notice(settings: Settings) -> None:
    """Two keys of one project do not pass."""
    with pytest.raises(AssertionError, match="of the other"):
        await walk(settings, ("team-a", "team-a"), STEPS, SEED)

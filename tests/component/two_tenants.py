"""Two projects in one server, and every place of a request that takes the id of an object, found in the types of the routes."""

import contextlib
import functools
import re
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import aiohttp
import sqlalchemy as sa
from msgspec import inspect
from yarl import URL

from mini_assistant.administration import create_key
from mini_assistant.app import all_routes
from mini_assistant.db.base import Database, Query, Row
from mini_assistant.db.tables import metadata
from mini_assistant.http.routing import Route
from mini_assistant.settings import Settings
from tests.component.world import World

Step = str | int
Part = Literal["path", "query", "body"]

ID_NAME = re.compile(r"(^|_)ids?$|^after$|^before$")
ID = re.compile(r"\b(?:(?:asst|thread|msg|run|step|call|upload|part|vs|vsfb|wh)_[A-Za-z0-9]{24,32}|file-[A-Za-z0-9]{22})\b")
# What names no object of a project, with the reason.
NOT_OF_A_PROJECT = {
    "retrieveModel path model": "models are the server's",
    "listAuditLogs query after": "the log is that of all projects, for keys of the scope admin",
    "listAuditLogs query before": "the log is that of all projects, for keys of the scope admin",
    "listAuditLogs query project_id": "the log is that of all projects, for keys of the scope admin",
    "listUsage query project_id": "usage is that of all projects, for keys of the scope admin",
}
# What a cursor of a list is an id of, by the name of the list's type.
CURSORS = {
    "AssistantList": "assistant_id",
    "ThreadList": "thread_id",
    "MessageList": "message_id",
    "RunList": "run_id",
    "RunStepList": "step_id",
    "FileList": "file_id",
    "VectorStoreList": "vector_store_id",
    "VectorStoreFileList": "file_id",
    "WebhookList": "webhook_id",
}
# Members of a body that cannot be sent beside another one.
INSTEAD_OF = {("createVectorStoreFileBatch", "files"): "file_ids"}
# They change by themselves: while runs are being written, and by sweeps.
_CHANGING_COLUMNS = {"lease_owner", "lease_until"}
_SWEPT_TABLES = {"unneeded_blobs", "usage_entries", "usage_days", "rate_limits", "claim_limits"}
STATES = ("answered", "waiting", "writing")


@dataclass(frozen=True)
class IdPlace:
    """A place that takes an id. steps: names of members, and 0 for the first item of a list."""

    route: Route
    part: Part
    steps: tuple[Step, ...]

    def __str__(self) -> str:
        return f"{self.route.name} {self.part} {'.'.join(map(str, self.steps))}"

    @property
    def kind(self) -> str:
        """The name that objects of its kind have in `World.ids`. Raises KeyError for a list that is not known here."""
        name = next(step for step in reversed(self.steps) if isinstance(step, str))
        return CURSORS[self.route.answer.__name__] if name in ("after", "before") else name.removesuffix("s")


@functools.cache
def id_places() -> Sequence[IdPlace]:
    """Every place of every route that takes the id of a project's object, and of nothing else."""
    return [place for place in all_id_places() if str(place) not in NOT_OF_A_PROJECT]


def all_id_places() -> Iterator[IdPlace]:
    """Every place of every route that takes an id."""
    for route in all_routes():
        yield from (IdPlace(route, "path", (name,)) for name in re.findall(r"{(\w+)}", route.path))
        for part, struct in (("query", route.query), ("body", route.body or route.form)):
            if struct is not None:
                for steps in dict.fromkeys(_texts_in(inspect.type_info(struct))):
                    if ID_NAME.search(next(step for step in reversed(steps) if isinstance(step, str))):
                        yield IdPlace(route, part, steps)


def _texts_in(wanted: inspect.Type, steps: tuple[Step, ...] = (), within: tuple[type, ...] = ()) -> Iterator[tuple[Step, ...]]:
    """Where a type takes texts. within: the structs around, some of which hold themselves."""
    match wanted:
        case inspect.Metadata():
            yield from _texts_in(wanted.type, steps, within)
        case inspect.UnionType():
            for item in wanted.types:
                yield from _texts_in(item, steps, within)
        case inspect.CollectionType():
            yield from _texts_in(wanted.item_type, (*steps, 0), within)
        case inspect.StructType() if wanted.cls not in within:
            for field in wanted.fields:
                yield from _texts_in(field.type, (*steps, field.encode_name), (*within, wanted.cls))
        case inspect.StrType() | inspect.AnyType() | inspect.RawType():
            yield steps
        case _:
            pass


def value_with(wanted: inspect.Type, steps: tuple[Step, ...], leaf: str) -> Any:
    """The least value of a type that has a text at a place. Raises LookupError when the type has no such place."""
    match wanted:
        case inspect.Metadata():
            return value_with(wanted.type, steps, leaf)
        case inspect.UnionType():
            for item in wanted.types:
                with contextlib.suppress(LookupError):
                    return value_with(item, steps, leaf)
        case inspect.CollectionType() if steps and steps[0] == 0:
            return [value_with(wanted.item_type, steps[1:], leaf)]
        case inspect.StructType():
            for field in wanted.fields:
                if steps and field.encode_name == steps[0]:
                    return {**_least(wanted), field.encode_name: value_with(field.type, steps[1:], leaf)}
        case inspect.StrType() | inspect.AnyType() | inspect.RawType() if not steps:
            return leaf
        case _:
            pass
    raise LookupError(steps)


def _least(wanted: inspect.Type) -> Any:
    match wanted:
        case inspect.Metadata():
            return _least(wanted.type)
        case inspect.UnionType():
            return _least(wanted.types[0])
        case inspect.CollectionType():
            return []
        case inspect.StructType():
            tag = {} if wanted.tag_field is None else {wanted.tag_field: wanted.tag}
            return {**tag, **{field.encode_name: _least(field.type) for field in wanted.fields if field.required}}
        case inspect.LiteralType():
            return wanted.values[0]
        case _:
            return "text"


def body_with(place: IdPlace, good: dict[str, Any], object_id: str) -> dict[str, Any]:
    """A good body of the place's route with an id at the place."""
    assert place.route.body is not None
    top = str(place.steps[0])
    built = value_with(inspect.type_info(place.route.body), place.steps, object_id)
    left_out = INSTEAD_OF.get((place.route.name, top))
    return {**{name: value for name, value in good.items() if name != left_out}, top: built[top]}


def made_up(object_id: str) -> str:
    """An id in the shape of another one, of nothing."""
    return object_id[:-12] + "0" * 12


class Tenant(World):
    """A project with objects of every kind, and its client. project, key: empty until `opened_tenant` has made them."""

    project = ""
    key = ""

    async def create(self) -> None:
        await super().create()
        webhook_id, tool_call_id = await self._create_webhook(), await self._call_id()
        for state in STATES:
            self.ids[state] |= {"webhook_id": webhook_id, "tool_call_id": tool_call_id}
        # Its run has written none.
        messages = await self._got(self.url("/v1/threads/{thread_id}/messages", "waiting"))
        self.ids["waiting"]["message_id"] = messages["data"][0]["id"]

    async def _create_ended(self) -> dict[str, str]:
        return {}  # for it, rows are changed by hand

    async def _create_webhook(self) -> str:
        body = {"url": "https://example.com/hook", "events": ["vector_store.file_batch.cancelled"]}  # which never happens here
        return (await self._created("/v1/webhooks", body))["id"]

    async def _call_id(self) -> str:
        run = await self._got(self.url("/v1/threads/{thread_id}/runs/{run_id}", "waiting"))
        return run["required_action"]["submit_tool_outputs"]["tool_calls"][0]["id"]

    def own_ids(self, route: Route) -> dict[str, str]:
        """Ids that a good request of a route names."""
        return self.ids["waiting" if route.name == "submitToolOuputsToRun" else "answered"]

    async def answer(self, method: str, path: str, data: bytes | None = None, **options: Any) -> "SeenAnswer":
        """Send a request and read all of the answer. path: without `/v1`, percent signs are used as they are."""
        url = URL(f"{self.server}/v1{path}", encoded=True)
        async with self.http.request(method, url, data=data, allow_redirects=False, **options) as response:
            headers = {name.lower(): value for name, value in response.headers.items()}
            return SeenAnswer(response.status, headers, await response.read())


@dataclass(frozen=True)
class SeenAnswer:
    """What a client sees of an answer."""

    status: int
    headers: dict[str, str]
    body: bytes

    def without(self, object_ids: list[str]) -> tuple[int, dict[str, str], str]:
        """All that does not differ from request to request, with the ids blotted out."""
        text = self.body.decode()
        for object_id in object_ids:
            text = text.replace(object_id, "?" * len(object_id))
        changing = ("x-request-id", "openai-processing-ms")
        return self.status, {name: value for name, value in self.headers.items() if name not in changing}, text


@contextlib.asynccontextmanager
async def opened_tenant(settings: Settings, server: str, project: str, scopes: str = "read,write") -> AsyncIterator[Tenant]:
    """A client with a fresh key of a project; nothing is in it yet."""
    key = (await create_key(settings, project, scopes, None)).key
    timeout = aiohttp.ClientTimeout(total=30)
    async with aiohttp.ClientSession(base_url=server, timeout=timeout, headers={"Authorization": f"Bearer {key}"}) as http:
        tenant = Tenant(http, server, settings)
        tenant.project, tenant.key = project, key
        yield tenant


_select_all = {
    table.name: Query(sa.select(*[column for column in table.columns if column.name not in _CHANGING_COLUMNS]))
    for table in metadata.sorted_tables
    if table.name not in _SWEPT_TABLES
}


async def all_rows(db: Database) -> dict[str, list[Row]]:
    """Every row that clients can change."""
    return {name: sorted(await db.read(query()), key=repr) for name, query in _select_all.items()}

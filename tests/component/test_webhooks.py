"""Webhooks with a real receiver: what is told, to whom and how often; and what happens when it fails, is slow, or must not be called."""

import asyncio
import contextlib
import dataclasses
import json
import logging
import time
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import openai
import psycopg
import pytest
import sqlalchemy as sa
import standardwebhooks
from aiohttp import web

from mini_assistant.app import open_services, running_server
from mini_assistant.clock import ManualClock
from mini_assistant.db.base import Query
from mini_assistant.db.tables import audit_log, vector_store_file_batches, webhook_deliveries, webhook_events
from mini_assistant.errors import InvalidRequest, LimitReached, NotFound
from mini_assistant.files.commands import delete_file
from mini_assistant.http.routing import Request
from mini_assistant.models.script import Finish, Respond, Rule, Script, ScriptedCall, Stall, Text, ToolCalls
from mini_assistant.models.scripted import ScriptedEndpoint
from mini_assistant.pagination import Page
from mini_assistant.queue.procrastinate_schema import apply_schema
from mini_assistant.services import Services
from mini_assistant.settings import Settings
from mini_assistant.vector_stores import routes as store_routes
from mini_assistant.vector_stores.schema import CreateFileBatch, CreateVectorStore
from mini_assistant.webhooks import deliveries, routes, store
from mini_assistant.webhooks.schema import CreateWebhook, EventType, RunEventData
from mini_assistant.webhooks.signature import signed_headers
from mini_assistant.webhooks.worker import Deliverer
from tests.component.test_vector_store_counters import Clients
from tests.crash.cluster import Cluster
from tests.postgres_server import PostgresServer
from tests.vector_store_rows import insert_file

PROJECT = "default"
RUN_EVENTS: list[EventType] = [
    "run.requires_action",
    "run.completed",
    "run.incomplete",
    "run.failed",
    "run.cancelled",
    "run.expired",
]
BATCH_EVENTS: list[EventType] = ["vector_store.file_batch.completed", "vector_store.file_batch.cancelled"]
WEATHER = {"type": "function", "function": {"name": "weather"}}
TIMEOUT_SECONDS = 30

_rows = Query(
    sa.select(
        webhook_deliveries.c.id,
        webhook_deliveries.c.body,
        webhook_deliveries.c.attempts,
        webhook_deliveries.c.next_at,
        webhook_deliveries.c.last_error,
    ).order_by(webhook_deliveries.c.seq)
)
_wanted = Query(sa.select(webhook_events.c.type))
_batches = Query(sa.select(vector_store_file_batches.c.id, vector_store_file_batches.c.files_in_progress))
_audited = Query(sa.select(audit_log.c.action, audit_log.c.object_id))


# --- the receiver ---------------------------------------------------------------------------------------------------------------


@dataclasses.dataclass
class Call:
    """A call as it has arrived."""

    path: str
    headers: dict[str, str]
    body: bytes

    @property
    def id(self) -> str:
        return self.headers["webhook-id"]

    @property
    def event(self) -> dict[str, Any]:
        return json.loads(self.body)


class Receiver:
    """A server that is called. It answers a path with the next of its `statuses`, the last one again and again; None: never at all."""

    def __init__(self) -> None:
        self.calls: list[Call] = []
        self.statuses: dict[str, list[int | None]] = {}
        self.open_calls: Counter[str] = Counter()
        self.open_calls_most: Counter[str] = Counter()
        self.url = ""
        self._news = asyncio.Condition()

    async def __aenter__(self) -> "Receiver":
        app = web.Application()
        app.router.add_route("*", "/{path:.*}", self._take)
        self._runner = web.AppRunner(app, shutdown_timeout=0.1, access_log=None)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", 0)
        await site.start()
        self.port = self._runner.addresses[0][1]
        self.url = f"http://127.0.0.1:{self.port}"
        return self

    async def __aexit__(self, *_exc_info: object) -> None:
        await self._runner.cleanup()

    async def _take(self, request: web.Request) -> web.Response:
        path = request.path
        call = Call(path, {name.lower(): value for name, value in request.headers.items()}, await request.read())
        statuses = self.statuses.get(path, [200])
        status = statuses.pop(0) if len(statuses) > 1 else statuses[0]
        self.open_calls[path] += 1
        self.open_calls_most[path] = max(self.open_calls[path], self.open_calls_most[path])
        try:
            async with self._news:
                self.calls.append(call)
                self._news.notify_all()
            if status is None:
                await asyncio.Event().wait()
                raise AssertionError
            return web.Response(status=status, headers={"Location": f"{self.url}/elsewhere"} if status == 302 else {})
        finally:
            self.open_calls[path] -= 1

    def at(self, path: str) -> list[Call]:
        return [call for call in self.calls if call.path == path]

    async def until(self, count: int, path: str = "/hook") -> list[Call]:
        """The calls of a path as soon as there are so many."""
        async with asyncio.timeout(TIMEOUT_SECONDS), self._news:
            await self._news.wait_for(lambda: len(self.at(path)) >= count)
        return self.at(path)


@pytest.fixture
async def receiver() -> AsyncIterator[Receiver]:
    async with Receiver() as receiver:
        yield receiver


# --- the server -----------------------------------------------------------------------------------------------------------------


@pytest.fixture(params=["sqlite", "postgresql"])
def settings(request: pytest.FixtureRequest, tmp_path: Path, endpoint: ScriptedEndpoint) -> Settings:
    database_url = ""
    if request.param == "postgresql":
        database_url = request.getfixturevalue("postgres_url")
        apply_schema(database_url)
    return Settings(
        port=0,
        data_dir=tmp_path,
        database_url=database_url,
        openai_base_url=endpoint.base_url,
        model_retries_max=0,
        sandbox="none",
        private_addresses=True,
        sweep_interval_seconds=0.05,
    )


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock(time.time())


@pytest.fixture
async def services(settings: Settings, clock: ManualClock) -> AsyncIterator[Services]:
    """The parts without workers; their time stands still until a test moves it."""
    async with open_services(settings) as opened:
        yield dataclasses.replace(opened, clock=clock)


@contextlib.asynccontextmanager
async def delivering(*several: Services) -> AsyncIterator[list["asyncio.Task[None]"]]:
    """A deliverer for each; they are stopped in the end."""
    tasks = [asyncio.create_task(Deliverer(services).run()) for services in several]
    try:
        yield tasks
        assert not [task for task in tasks if task.done() and not task.cancelled()], "a deliverer has died"
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def with_settings(services: Services, **changes: Any) -> Services:
    return dataclasses.replace(services, settings=dataclasses.replace(services.settings, **changes))


def request(services: Services, body: Any = None, query: Any = None, project_id: str = PROJECT, **path: str) -> Request[Any, Any]:
    return Request(services, project_id, path, body, query)


async def create(services: Services, url: str, events: Sequence[EventType] = ("run.completed",), project_id: str = PROJECT) -> Any:
    """A new webhook as it was answered."""
    body = CreateWebhook(url, list(events))
    return json.loads(await routes.create_webhook(request(services, body, project_id=project_id)))


async def get(services: Services, webhook_id: str) -> Any:
    return json.loads(await routes.get_webhook(request(services, webhook_id=webhook_id)))


async def tell(services: Services, count: int = 1, status: str = "completed", project_id: str = PROJECT) -> None:
    """As if so many runs had come to this status."""
    for number in range(count):
        data = RunEventData(f"run_{number}", "thread_x", "asst_x", status)
        await services.db.write(store.queue_run_event(project_id, services.now(), data))
    services.webhooks_due.set()


async def rows_when(services: Services, is_so: Any) -> list[Any]:
    """The deliveries as soon as something holds for all of them: (id, body, attempts, next_at, last_error)."""
    async with asyncio.timeout(TIMEOUT_SECONDS):
        while True:
            rows = await services.db.read(_rows())
            if rows and all(is_so(row) for row in rows):
                return rows
            await asyncio.sleep(0.01)


def is_ended(row: Any) -> bool:
    return row[3] is None


def verified(call: Call, secret: str) -> Any:
    """The event of a call as both the official SDK and the library of the standard read it; they raise for a wrong signature."""
    client = openai.OpenAI(api_key="x")
    event = client.webhooks.unwrap(call.body, call.headers, secret=secret)
    assert standardwebhooks.Webhook(secret).verify(call.body, call.headers) == call.event
    assert event.type == call.event["type"]
    return event


# --- runs are told of -----------------------------------------------------------------------------------------------------------

RULES = [
    Rule([Respond(status=400, body={"error": {"message": "no"}})], contains="fail"),
    Rule([Text("It rains.")], contains="weather", after_tool=True),
    Rule([ToolCalls([ScriptedCall("weather")])], contains="weather"),
    Rule([Text("secret words "), Stall()], contains="stall"),
    Rule([Text("secret words "), Finish(reason="length")], contains="length"),
    Rule([Text("secret words")]),
]


async def test_each_end_of_a_run_is_told_of_once(settings: Settings, endpoint: ScriptedEndpoint, receiver: Receiver) -> None:
    endpoint.script = Script(RULES)
    settings = dataclasses.replace(settings, model_chunk_timeout_seconds=3600, run_expiry_seconds=2)
    expected: list[tuple[str, str]] = []
    async with running_server(settings) as address, openai.AsyncOpenAI(base_url=f"{address}/v1", api_key="k", max_retries=0) as sdk:
        hook: Any = await sdk.post("/webhooks", body={"url": f"{receiver.url}/hook", "events": RUN_EVENTS}, cast_to=object)
        other: Any = await sdk.post("/webhooks", body={"url": f"{receiver.url}/other", "events": ["run.failed"]}, cast_to=object)
        assistant = await sdk.beta.assistants.create(model="m", tools=[WEATHER])  # type: ignore[list-item]

        async def run_of(text: str) -> Any:
            thread = await sdk.beta.threads.create(messages=[{"role": "user", "content": text}])
            return await sdk.beta.threads.runs.create(thread_id=thread.id, assistant_id=assistant.id)

        async def awaited(run: Any, status: str) -> None:
            expected.append((run.id, f"run.{status}"))
            await receiver.until(len(expected))

        await awaited(await run_of("Hello"), "completed")
        failed = await run_of("fail")
        await awaited(failed, "failed")
        waiting = await run_of("weather")
        await awaited(waiting, "requires_action")
        calls = (
            await sdk.beta.threads.runs.retrieve(waiting.id, thread_id=waiting.thread_id)
        ).required_action.submit_tool_outputs.tool_calls
        outputs = [{"tool_call_id": call.id, "output": "rain"} for call in calls]
        await sdk.beta.threads.runs.submit_tool_outputs(waiting.id, thread_id=waiting.thread_id, tool_outputs=outputs)  # type: ignore[arg-type]
        await awaited(waiting, "completed")
        stopped = await run_of("stall")
        await sdk.beta.threads.runs.cancel(stopped.id, thread_id=stopped.thread_id)
        await awaited(stopped, "cancelled")
        await awaited(await run_of("stall"), "expired")
        await awaited(await run_of("at length"), "incomplete")

    assert [(call.event["data"]["id"], call.event["type"]) for call in receiver.at("/hook")] == expected
    assert len({call.id for call in receiver.calls}) == len(receiver.calls)
    for call in receiver.at("/hook"):
        event = verified(call, hook["secret"])
        assert call.headers["content-type"] == "application/json"
        assert set(call.event) == {"id", "object", "created_at", "type", "data"}
        assert set(call.event["data"]) == {"id", "thread_id", "assistant_id", "status"}
        assert call.event["type"] == f"run.{call.event['data']['status']}"
        assert call.event["object"] == "event"
        assert call.id == f"{event.id}:{hook['id']}"
        assert call.event["data"]["assistant_id"] == assistant.id
        assert b"secret words" not in call.body
        with pytest.raises(openai.InvalidWebhookSignatureError):
            verified(call, other["secret"])
    [of_other] = receiver.at("/other")
    assert (of_other.event["type"], of_other.event["data"]["id"]) == ("run.failed", failed.id)
    verified(of_other, other["secret"])


async def test_other_projects_and_types_are_not_told(services: Services, receiver: Receiver) -> None:
    mine = await create(services, f"{receiver.url}/mine", ["run.failed"])
    theirs = await create(services, f"{receiver.url}/theirs", RUN_EVENTS, project_id="theirs")
    for status in ("queued", "in_progress", "cancelling", "completed", "failed"):
        await tell(services, status=status)

    rows = await services.db.read(_rows())

    assert [row[0].partition(":")[2] for row in rows] == [mine["id"]]
    await tell(services, status="expired", project_id="theirs")
    assert (await services.db.read(_rows()))[-1][0].endswith(theirs["id"])


# --- file batches are told of ---------------------------------------------------------------------------------------------------


async def test_ends_of_file_batches_are_told_of_once(settings: Settings, receiver: Receiver) -> None:
    async with running_server(settings) as address, openai.AsyncOpenAI(base_url=f"{address}/v1", api_key="k", max_retries=0) as sdk:
        hook: Any = await sdk.post("/webhooks", body={"url": f"{receiver.url}/hook", "events": BATCH_EVENTS}, cast_to=object)
        files = [(await sdk.files.create(file=(f"{n}.txt", b"Whales sing."), purpose="assistants")).id for n in range(3)]
        strange = (await sdk.files.create(file=("a.xyz", b"?"), purpose="assistants")).id
        shop = await sdk.vector_stores.create()
        batch = await sdk.vector_stores.file_batches.create(shop.id, file_ids=[*files, strange])
        [first] = await receiver.until(1)
        known = await sdk.vector_stores.file_batches.retrieve(batch.id, vector_store_id=shop.id)
        # What is in the store already ends a batch as it begins.
        again = await sdk.vector_stores.file_batches.create(shop.id, file_ids=files)
        [_, second] = await receiver.until(2)

    assert (known.status, known.file_counts.completed, known.file_counts.failed) == ("completed", 3, 1)
    for call, ended in ((first, batch), (second, again)):
        verified(call, hook["secret"])
        assert call.event["type"] == "vector_store.file_batch.completed"
        assert call.event["data"] == {"id": ended.id, "vector_store_id": shop.id, "status": "completed"}
        assert call.event["object"] == "event"
        assert abs(call.event["created_at"] - time.time()) < 60
    assert len(receiver.calls) == 2


async def test_batches_end_when_their_files_leave_or_are_cancelled(services: Services) -> None:
    """Nothing is ingested here: files stay in progress until they are taken out."""
    hook = await create(services, "http://127.0.0.1:9/", BATCH_EVENTS)
    files = [await insert_file(services, f"Whales sing {number}.") for number in range(2)]
    shop, other = [json.loads(await store_routes.create_vector_store(request(services, CreateVectorStore())))["id"] for _ in range(2)]

    async def begin(store_id: str, *file_ids: str) -> str:
        body = CreateFileBatch(file_ids=list(file_ids))
        return json.loads(await store_routes.create_file_batch(request(services, body, vector_store_id=store_id)))["id"]

    detached = await begin(shop, *files)
    await store_routes.delete_vector_store_file(request(services, vector_store_id=shop, file_id=files[0]))
    moved = await begin(shop, files[1])  # takes the last file out of the first batch
    cancelled = await begin(other, *files)
    for _ in range(2):
        await store_routes.cancel_file_batch(request(services, vector_store_id=other, batch_id=cancelled))
    deleted = await begin(other, *files)
    for file_id in files:
        await delete_file(services, PROJECT, file_id)
    statuses = [
        json.loads(await store_routes.get_file_batch(request(services, vector_store_id=store_id, batch_id=batch_id)))["status"]
        for batch_id, store_id in ((detached, shop), (moved, shop), (cancelled, other), (deleted, other))
    ]
    rows = await services.db.read(_rows())
    told = [json.loads(row[1]) for row in rows]

    assert statuses == ["completed", "completed", "cancelled", "completed"]
    assert len(told) == 4
    assert {event["data"]["id"]: event["data"]["status"] for event in told} == {
        detached: "completed",
        cancelled: "cancelled",
        moved: "completed",
        deleted: "completed",
    }
    assert all(event["type"] == f"vector_store.file_batch.{event['data']['status']}" for event in told)
    assert [row[0] for row in rows] == [f"{event['id']}:{hook['id']}" for event in told]


@pytest.mark.parametrize("seed", range(3))
async def test_whoever_ends_a_batch_it_is_told_of_once(services: Services, seed: int) -> None:
    await create(services, "http://127.0.0.1:9/", BATCH_EVENTS)
    clients = Clients(services, seed)
    await clients.begin()
    for _ in range(40):
        await asyncio.gather(*(clients.act() for _ in range(6)))

    batches = await services.db.read(_batches())
    told = Counter(json.loads(row[1])["data"]["id"] for row in await services.db.read(_rows()))

    ended = {batch_id for batch_id, in_progress in batches if in_progress == 0}
    assert told == Counter(ended)
    assert len(ended) > 10


# --- failures -------------------------------------------------------------------------------------------------------------------


async def test_failed_calls_are_made_again_with_the_same_id(services: Services, clock: ManualClock, receiver: Receiver) -> None:
    services = with_settings(services, webhook_retry_seconds=100.0, webhook_retry_seconds_max=300.0)
    hook = await create(services, f"{receiver.url}/hook")
    receiver.statuses["/hook"] = [500, 503, 404, 429, 204]
    await tell(services)
    pauses: list[float] = []
    async with delivering(services):
        for attempt in range(1, 5):
            await receiver.until(attempt)
            error = f"The answer has the status {[500, 503, 404, 429][attempt - 1]}."
            [row] = await rows_when(services, lambda row, error=error: row[4] == error)
            pauses.append(row[3] - clock.now())
            assert len(receiver.calls) == attempt, "it was called too early"
            assert (await get(services, hook["id"]))["last_error"] == row[4]
            clock.advance(pauses[-1] + 0.001)
        calls = await receiver.until(5)
        [row] = await rows_when(services, is_ended)

    for pause, (low, high) in zip(pauses, [(75, 100), (150, 200), (225, 300), (225, 300)], strict=True):
        assert low <= pause <= high
    assert len({call.id for call in calls}) == 1
    assert len({call.body for call in calls}) == 1
    # Each is signed anew, with its own time.
    assert [int(call.headers["webhook-timestamp"]) for call in calls] == sorted({int(call.headers["webhook-timestamp"]) for call in calls})
    assert (row[2], row[4]) == (5, None)
    assert (await get(services, hook["id"])) | {"last_delivered_at": 0} == {**_shown(hook), "last_error": None, "last_delivered_at": 0}


def _shown(hook: Any) -> Any:
    return {name: value for name, value in hook.items() if name != "secret"}


async def test_an_event_is_given_up_after_the_last_attempt(
    services: Services, clock: ManualClock, receiver: Receiver, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    services = with_settings(services, webhook_attempts_max=3, webhook_retry_seconds=1.0)
    hook = await create(services, f"{receiver.url}/hook?token=very-secret")
    receiver.statuses["/hook"] = [500]
    await tell(services)
    async with delivering(services):
        for attempt in range(1, 4):
            await receiver.until(attempt)
            await rows_when(services, lambda row, attempt=attempt: row[2] == attempt and (row[3] is None or row[3] - clock.now() < 10))
            clock.advance(10)
        [row] = await rows_when(services, is_ended)
        await asyncio.sleep(0.2)

    assert len(receiver.calls) == 3
    assert (row[2], row[4]) == (3, "The answer has the status 500.")
    shown = await get(services, hook["id"])
    assert (shown["last_error"], shown["last_delivered_at"]) == ("The answer has the status 500.", None)
    assert f"webhook {hook['id']}: event " in caplog.text
    assert "given up" in caplog.text
    assert "very-secret" not in caplog.text
    assert hook["secret"][6:] not in caplog.text


async def test_a_receiver_that_never_answers_is_left_after_the_timeout(services: Services, receiver: Receiver) -> None:
    services = with_settings(services, webhook_timeout_seconds=0.2)
    hook = await create(services, f"{receiver.url}/hook")
    receiver.statuses["/hook"] = [None]
    await tell(services)
    async with delivering(services):
        [row] = await rows_when(services, lambda row: row[4] is not None)

    assert row[4] == "It took longer than 0.2 seconds."
    assert row[3] is not None
    assert (await get(services, hook["id"]))["last_error"] == row[4]


async def test_nobody_listening_is_a_failed_connection(services: Services) -> None:
    hook = await create(services, "http://127.0.0.1:9/")
    await tell(services)
    async with delivering(services):
        await rows_when(services, lambda row: row[4] == "The connection failed.")
    assert (await get(services, hook["id"]))["last_error"] == "The connection failed."


async def test_410_stops_a_webhook(services: Services, receiver: Receiver) -> None:
    gone = await create(services, f"{receiver.url}/gone", ["run.completed", "run.failed"])
    other = await create(services, f"{receiver.url}/hook")
    receiver.statuses["/gone"] = [410]
    await tell(services, 1, "failed")
    async with delivering(services):
        await rows_when(services, is_ended)
        await tell(services, 3)
        await rows_when(services, is_ended)
        await receiver.until(3)

    assert len(receiver.at("/gone")) == 1
    shown = await get(services, gone["id"])
    assert shown["events"] == []
    assert shown["last_error"] == "The answer has the status 410: the receiver wants no more events."
    assert [row[0] for row in await services.db.read(_wanted())] == ["run.completed"]
    assert (await get(services, other["id"]))["events"] == ["run.completed"]


async def test_redirects_are_not_followed(services: Services, receiver: Receiver) -> None:
    hook = await create(services, f"{receiver.url}/hook")
    receiver.statuses["/hook"] = [302]
    await tell(services)
    async with delivering(services):
        [row] = await rows_when(services, lambda row: row[4] is not None)

    assert row[4] == "The answer has the status 302, and redirects are not followed."
    assert [call.path for call in receiver.calls] == ["/hook"]
    assert hook["id"] in row[0]


@pytest.mark.parametrize(
    ("host", "message"),
    [("localhost", "It was not called: the host 'localhost' has no public address."), ("127.0.0.1", "The connection failed.")],
)
async def test_private_addresses_are_not_called(services: Services, receiver: Receiver, host: str, message: str) -> None:
    """They may have been allowed when the webhook was made, or the name may lead elsewhere since."""
    await create(services, f"http://{host}:{receiver.port}/hook")
    await tell(services)
    async with delivering(with_settings(services, private_addresses=False)):
        await rows_when(services, lambda row: row[4] == message)
    assert receiver.calls == []


# --- many of them ---------------------------------------------------------------------------------------------------------------


async def test_a_slow_receiver_holds_up_no_other(services: Services, receiver: Receiver) -> None:
    services = with_settings(services, webhook_concurrency_max=10)
    await create(services, f"{receiver.url}/slow")
    receiver.statuses["/slow"] = [None]
    await tell(services, 50)  # older than all others
    await create(services, f"{receiver.url}/hook", ["run.failed"])
    await tell(services, 50, "failed")
    async with delivering(services):
        await receiver.until(50)
        slow, fast = receiver.open_calls_most["/slow"], receiver.open_calls_most["/hook"]

    assert slow == 2
    assert fast <= 2
    assert len({call.id for call in receiver.at("/hook")}) == 50


async def test_two_deliverers_send_each_event_once(services: Services, receiver: Receiver) -> None:
    await create(services, f"{receiver.url}/hook")
    await create(services, f"{receiver.url}/other")
    async with delivering(services, services):
        await tell(services, 100)
        await receiver.until(100)
        await receiver.until(100, "/other")
        await rows_when(services, is_ended)

    assert len(receiver.calls) == 200
    assert set(Counter(call.id for call in receiver.calls).values()) == {1}
    assert len({call.event["id"] for call in receiver.calls}) == 100, "both webhooks are told of the same events"


async def test_a_claimed_event_is_nobody_elses_until_its_time_is_over(services: Services, clock: ManualClock) -> None:
    await create(services, "http://127.0.0.1:9/")
    await tell(services)
    due = deliveries.DueDeliveries(2)
    [seen] = await due.read(services, 10, [])

    [mine] = await deliveries.claim(services, [seen])

    assert mine.attempts == 1
    assert await deliveries.claim(services, [seen]) == []
    assert await due.read(services, 10, []) == []
    clock.advance(services.settings.webhook_timeout_seconds + services.settings.lease_seconds + 1)
    [again] = await due.read(services, 10, [])
    assert await due.read(services, 10, [again.webhook_id]) == []
    [theirs] = await deliveries.claim(services, [again])
    assert (theirs.id, theirs.attempts) == (mine.id, 2)
    # Whoever was too slow has nothing to say any more.
    await services.db.write([deliveries.end_call(mine, None, None)])
    [row] = await services.db.read(_rows())
    assert row[3] is not None


async def test_a_deliverer_that_stops_leaves_its_call_to_the_next(services: Services, receiver: Receiver) -> None:
    await create(services, f"{receiver.url}/hook")
    receiver.statuses["/hook"] = [None, 200]
    await tell(services)
    async with delivering(services):
        await receiver.until(1)
    async with delivering(services):
        first, second = await receiver.until(2)
        [row] = await rows_when(services, is_ended)

    assert first.id == second.id
    assert (row[2], row[4]) == (2, None)


async def test_old_events_are_forgotten_when_they_need_no_call(services: Services, clock: ManualClock, receiver: Receiver) -> None:
    await create(services, f"{receiver.url}/hook")
    await create(services, "http://127.0.0.1:9/")
    await tell(services, 3)
    async with delivering(services):
        await receiver.until(3)
        await rows_when(services, lambda row: row[3] is None or row[4] is not None)
    assert len(await services.db.read(_rows())) == 6
    await deliveries.forget_old_deliveries(services)
    assert len(await services.db.read(_rows())) == 6
    clock.advance(86_401)

    await deliveries.forget_old_deliveries(services)

    assert [row[4] for row in await services.db.read(_rows())] == ["The connection failed."] * 3


# --- the API --------------------------------------------------------------------------------------------------------------------


async def test_the_secret_is_shown_once(services: Services) -> None:
    hook = await create(services, "https://example.com/hook", ["run.completed", "run.completed", "run.failed"])
    assert hook["secret"].startswith("whsec_")
    assert hook["id"].startswith("wh_")
    assert hook == {
        "id": hook["id"],
        "object": "webhook",
        "created_at": services.now(),
        "url": "https://example.com/hook",
        "events": ["run.completed", "run.failed"],
        "metadata": {},
        "secret": hook["secret"],
    }
    assert await get(services, hook["id"]) == {**_shown(hook), "last_error": None, "last_delivered_at": None}
    listed = json.loads(await routes.list_webhooks(request(services, query=Page())))
    assert listed["data"] == [_shown(hook)]


async def test_webhooks_belong_to_their_project(services: Services) -> None:
    hook = await create(services, "https://example.com/hook")
    theirs = request(services, query=Page(), project_id="theirs", webhook_id=hook["id"])
    assert json.loads(await routes.list_webhooks(theirs))["data"] == []
    with pytest.raises(NotFound):
        await routes.get_webhook(theirs)
    with pytest.raises(NotFound):
        await routes.delete_webhook(theirs)
    assert await services.db.read(_audited()) == []


async def test_a_deleted_webhook_takes_its_events_with_it(services: Services) -> None:
    hook, other = await create(services, "https://example.com/hook"), await create(services, "https://example.com/other")
    await tell(services, 2)

    answer = json.loads(await routes.delete_webhook(request(services, webhook_id=hook["id"])))

    assert answer == {"id": hook["id"], "object": "webhook.deleted", "deleted": True}
    assert {row[0].partition(":")[2] for row in await services.db.read(_rows())} == {other["id"]}
    assert await services.db.read(_audited()) == [("webhook.deleted", hook["id"])]
    with pytest.raises(NotFound):
        await routes.delete_webhook(request(services, webhook_id=hook["id"]))
    page = json.loads(await routes.list_webhooks(request(services, query=Page(before=hook["id"]))))
    assert [item["id"] for item in page["data"]] == [other["id"]]


async def test_a_project_has_so_many_webhooks_as_it_may(services: Services) -> None:
    services = with_settings(services, webhooks_per_project_max=3)
    outcomes = await asyncio.gather(*(create(services, "https://example.com/") for _ in range(6)), return_exceptions=True)
    assert [type(outcome) for outcome in outcomes].count(LimitReached) == 3
    await create(services, "https://example.com/", project_id="theirs")
    hooks = [outcome for outcome in outcomes if isinstance(outcome, dict)]
    await routes.delete_webhook(request(services, webhook_id=hooks[0]["id"]))
    await create(services, "https://example.com/")
    with pytest.raises(LimitReached, match=r"as many webhooks as it may \(3\)"):
        await create(services, "https://example.com/")


@pytest.mark.parametrize("url", ["http://127.0.0.1/", "https://10.0.0.1/x", "http://[::1]:8000/", "http://169.254.169.254/latest"])
async def test_private_addresses_are_refused_from_the_start(services: Services, url: str) -> None:
    with pytest.raises(InvalidRequest, match="has no public address") as refused:
        await create(with_settings(services, private_addresses=False), url)
    assert (refused.value.param, refused.value.code) == ("url", "invalid_value")
    await create(services, url)


@pytest.mark.parametrize("url", ["https://example.com:0/", "https://example.com:70000/", "https://[:::]/"])
async def test_addresses_that_are_none_are_refused(services: Services, url: str) -> None:
    with pytest.raises(InvalidRequest, match="no server has this host and port"):
        await create(services, url)


async def test_a_repeat_with_the_same_key_makes_no_second_webhook(settings: Settings) -> None:
    async with running_server(settings) as address, openai.AsyncOpenAI(base_url=f"{address}/v1", api_key="k", max_retries=0) as sdk:
        options: Any = {"headers": {"Idempotency-Key": "once"}}
        body = {"url": "https://example.com/", "events": ["run.completed"]}
        answers: list[Any] = [await sdk.post("/webhooks", body=body, cast_to=object, options=options) for _ in range(2)]
        listed: Any = await sdk.get("/webhooks", cast_to=object)
    assert answers[0] == answers[1]
    assert len(listed["data"]) == 1


def test_the_signature_is_that_of_the_standard() -> None:
    secret = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
    timestamp = datetime(2026, 11, 25, tzinfo=UTC)
    headers = signed_headers(secret, "evt_1:wh_2", int(timestamp.timestamp()), b'{"a": "\xc3\xa9"}')
    assert headers["webhook-signature"] == standardwebhooks.Webhook(secret).sign("evt_1:wh_2", timestamp, '{"a": "é"}')


# --- several processes ----------------------------------------------------------------------------------------------------------


async def test_deleting_a_webhook_fails_no_run_that_ends_meanwhile(tmp_path: Path, postgres_url: str) -> None:
    settings = Settings(data_dir=tmp_path, database_url=postgres_url, sandbox="none", workers="none")
    apply_schema(postgres_url)
    async with asyncio.timeout(TIMEOUT_SECONDS), open_services(settings, ()) as services:
        hook = await create(services, "https://example.com/")
        async with await psycopg.AsyncConnection.connect(postgres_url) as deleting:
            await deleting.execute("DELETE FROM webhooks WHERE id = %s", [hook["id"]])
            telling = asyncio.create_task(tell(services))
            async with await psycopg.AsyncConnection.connect(postgres_url, autocommit=True) as looking:
                while True:
                    waiting = await (await looking.execute("SELECT 1 FROM pg_locks WHERE NOT granted")).fetchall()
                    if waiting:
                        break
                    assert not telling.done()
                    await asyncio.sleep(0.01)
            await deleting.commit()
        await telling
        assert await services.db.read(_rows()) == []


CLUSTER = {
    "MINI_ASSISTANT_PRIVATE_ADDRESSES": "true",
    "MINI_ASSISTANT_WEBHOOK_TIMEOUT_SECONDS": "2",
    "MINI_ASSISTANT_WEBHOOK_RETRY_SECONDS": "0.1",
}


async def _ended_runs(cluster: Cluster, count: int) -> set[str]:
    """So many runs, made at the same time."""
    assistant = await cluster.post("/assistants", {"model": "m"})

    async def one() -> str:
        body = {"assistant_id": assistant["id"], "thread": {"messages": [{"role": "user", "content": "Hello"}]}}
        return (await cluster.post("/threads/runs", body))["id"]

    return set(await asyncio.gather(*(one() for _ in range(count))))


@pytest.mark.heavy
async def test_workers_of_a_cluster_make_exactly_the_right_calls(
    postgres: PostgresServer, tmp_path: Path, endpoint: ScriptedEndpoint, receiver: Receiver
) -> None:
    cluster = Cluster(postgres, tmp_path, {**CLUSTER, "OPENAI_BASE_URL": endpoint.base_url})
    async with asyncio.timeout(120), cluster.with_processes(servers=1, workers=2):
        hook = await cluster.post("/webhooks", {"url": f"{receiver.url}/hook", "events": RUN_EVENTS})
        runs = await _ended_runs(cluster, 40)
        calls = await receiver.until(40)
        await asyncio.sleep(1)  # a second call would come within a sweep

    assert len(receiver.calls) == 40
    assert {call.event["data"]["id"] for call in calls} == runs
    for call in calls:
        verified(call, hook["secret"])


@pytest.mark.heavy
async def test_a_call_that_dies_with_its_worker_is_made_again(
    postgres: PostgresServer, tmp_path: Path, endpoint: ScriptedEndpoint, receiver: Receiver
) -> None:
    receiver.statuses["/hook"] = [None, 200]
    cluster = Cluster(postgres, tmp_path, {**CLUSTER, "OPENAI_BASE_URL": endpoint.base_url})
    async with asyncio.timeout(120), cluster.with_processes(servers=1, workers=1):
        await cluster.post("/webhooks", {"url": f"{receiver.url}/hook", "events": RUN_EVENTS})
        [run_id] = await _ended_runs(cluster, 1)
        await receiver.until(1)
        await cluster.kill(cluster.workers[0])
        await cluster.add_worker()
        first, second = await receiver.until(2)
        await asyncio.sleep(1)

    assert len(receiver.calls) == 2
    assert first.id == second.id
    assert first.event == second.event
    assert first.event["data"]["id"] == run_id

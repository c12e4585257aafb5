"""The limits of projects: requests and runs in a minute, runs that wait, tokens of a day, bytes. The same on both databases.

Time is moved by hand where permits come back with it.
"""

import asyncio
import contextlib
import dataclasses
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path
from typing import Any, cast

import aiohttp
import msgspec
import openai
import pytest
import sqlalchemy as sa

from mini_assistant import administration, metrics
from mini_assistant.app import BLOBS_FOLDER, open_services, running_server
from mini_assistant.assistants import routes as assistant_routes
from mini_assistant.assistants.schema import CreateAssistant, FunctionDefinition, FunctionTool
from mini_assistant.clock import ManualClock
from mini_assistant.db.base import Bound, Database, Query, Row
from mini_assistant.db.tables import files, rate_limits, runs, threads
from mini_assistant.errors import LimitReached, StoreUnavailable
from mini_assistant.files import commands as file_commands
from mini_assistant.files.store import insert_file
from mini_assistant.http.idempotency import IdempotentCall
from mini_assistant.http.routing import Request
from mini_assistant.models.script import Rule, Script, ScriptedCall, Text, ToolCalls
from mini_assistant.models.scripted import ScriptedEndpoint
from mini_assistant.projects import limits, quotas
from mini_assistant.projects.buckets import Bucket
from mini_assistant.projects.usage import Used, usage_entries_of
from mini_assistant.runs import commands, store
from mini_assistant.runs.claims import FairOrder
from mini_assistant.runs.code_files import written_files
from mini_assistant.runs.schema import CreateThreadAndRun, SubmitToolOutputs, ToolOutput
from mini_assistant.runs.store import Lease, transition_run
from mini_assistant.runs.worker import Worker
from mini_assistant.sandboxes.base import Image
from mini_assistant.services import Services
from mini_assistant.settings import ProjectSettings, Settings
from mini_assistant.vector_stores import commands as vector_commands
from mini_assistant.vector_stores.indexes.base import StoreScope
from mini_assistant.vector_stores.ingest_worker import IngestWorker
from mini_assistant.vector_stores.schema import CreateVectorStore, CreateVectorStoreFile
from mini_assistant.vector_stores.store import get_file_json
from tests.component.test_code_interpreter import ScriptedSandbox, World, do_nothing, puts_out, writes

NOON = 1_700_049_600.0
FIGURE = b"\x89PNG\r\n\x1a\n and more"
assert NOON % 86_400 == 43_200

_select_rows = Query(sa.select(rate_limits.c.name, rate_limits.c.left))
_select_runs = Query(sa.select(runs.c.id, runs.c.status))
_select_threads = Query(sa.select(threads.c.id))
_select_files = Query(sa.select(files.c.id))
_select_sizes = Query(sa.select(files.c.size_bytes))


@pytest.fixture(params=["sqlite", "postgres"])
def database_settings(request: pytest.FixtureRequest, tmp_path: Path, endpoint: ScriptedEndpoint) -> Settings:
    database_url = request.getfixturevalue("postgres_url") if request.param == "postgres" else ""
    settings = Settings(
        port=0,
        data_dir=tmp_path,
        database_url=database_url,
        openai_base_url=endpoint.base_url,
        model_retries_max=0,
        sweep_interval_seconds=0.2,
        claim_interval_seconds=0.05,
        sandbox="none",
    )
    if database_url:
        administration.migrate_database(settings)
    return settings


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock(NOON)


@pytest.fixture
async def services(database_settings: Settings, clock: ManualClock) -> AsyncIterator[Services]:
    async with open_services(database_settings) as opened, asyncio.timeout(50):
        yield dataclasses.replace(opened, clock=clock)


def limited(services: Services, **changes: Any) -> Services:
    return dataclasses.replace(services, settings=dataclasses.replace(services.settings, **changes))


class CountingDatabase:
    """A database that counts what is asked of it, and fails when it is told to."""

    def __init__(self, db: Database) -> None:
        self._db = db
        self.writes = 0
        self.fails = False

    async def write(
        self, statements: Sequence[Bound], on_commit: Callable[[], None] | None = None, *, durable: bool = True
    ) -> list[list[Row]]:
        self.writes += 1
        if self.fails:
            raise StoreUnavailable("The disk is full.")
        return await self._db.write(statements, on_commit, durable=durable)


def bucket_of(services: Services, per_minute: int) -> tuple[Bucket, CountingDatabase]:
    """A bucket as one more process has it."""
    counting = CountingDatabase(services.db)
    return Bucket(cast(Database, counting), services.clock, "requests p", per_minute), counting


async def taken(bucket: Bucket, wanted: int) -> int:
    """How many of so many requests at once get a permit."""
    outcomes = await asyncio.gather(*(bucket.take() for _ in range(wanted)))
    return [outcome.wait_seconds for outcome in outcomes].count(None)


# --- buckets --------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0ms"), (0.0071, "8ms"), (1, "1s"), (1.2, "1.2s"), (59.9999, "1m0s"), (360, "6m0s"), (432.5, "7m12.5s"), (18_000, "5h0m0s")],
)
def test_a_duration_is_written_as_the_hosted_api_wrote_it(seconds: float, text: str) -> None:
    assert limits.duration(seconds) == text


async def test_a_bucket_gives_a_minutes_worth_at_once_and_then_as_it_fills(services: Services, clock: ManualClock) -> None:
    bucket, _ = bucket_of(services, 60)
    assert await taken(bucket, 80) == 60
    refused = await bucket.take()
    assert refused.wait_seconds == pytest.approx(1)
    assert refused.left == 0
    clock.advance(0.9)
    assert await taken(bucket, 5) == 0
    clock.advance(0.1)
    assert await taken(bucket, 5) == 1
    clock.advance(3600)
    assert await taken(bucket, 80) == 60, "never more than a minute's worth"


async def test_what_is_left_is_told(services: Services, clock: ManualClock) -> None:
    bucket, _ = bucket_of(services, 600)
    told = [await bucket.take() for _ in range(100)]
    assert [each.left for each in told] == list(range(599, 499, -1)), "also of what this process has taken and not spent"
    assert told[-1].full_in_seconds == pytest.approx(10)
    clock.advance(1)
    assert (await bucket.take()).left == 509


async def test_requests_at_once_share_a_look_and_refused_ones_take_none(services: Services, clock: ManualClock) -> None:
    bucket, db = bucket_of(services, 600)
    assert await taken(bucket, 300) == 300
    assert db.writes == 1
    assert await taken(bucket, 1000) == 300
    looks = db.writes
    assert looks <= 4
    assert await taken(bucket, 5000) == 0
    assert db.writes == looks, "the noise of one project costs the database nothing"
    got = 0
    for _ in range(10):
        clock.advance(0.1)  # a permit comes
        got += await taken(bucket, 100)
    assert got == 10
    assert db.writes <= looks + 10


async def test_a_busy_process_takes_more_at_a_time(services: Services) -> None:
    bucket, db = bucket_of(services, 10_000)
    for _ in range(2000):
        assert (await bucket.take()).wait_seconds is None
    assert db.writes < 20


@pytest.mark.parametrize("per_minute", [60, 600, pytest.param(6000, marks=pytest.mark.heavy)])
async def test_processes_share_a_bucket(services: Services, clock: ManualClock, per_minute: int) -> None:
    """Three processes ask for much more than there is, for a minute: together they get the burst and what flows in, and nearly all."""
    buckets = [bucket_of(services, per_minute)[0] for _ in range(3)]
    got, steps = 0, 60
    for _ in range(steps):
        got += sum(await asyncio.gather(*(taken(bucket, per_minute // 30 + 1) for bucket in buckets)))
        clock.advance(60 / steps)
    got += sum(await asyncio.gather(*(taken(bucket, per_minute) for bucket in buckets)))
    assert 0.9 * 2 * per_minute <= got <= 2 * per_minute


async def test_what_a_process_does_not_spend_goes_back(services: Services, clock: ManualClock) -> None:
    """Ten processes were busy and have permits in hand; an hour later there is still no more than a minute's worth."""
    buckets = [bucket_of(services, 1000)[0] for _ in range(10)]
    for bucket in buckets:
        for _ in range(8):  # the last look takes more than is spent
            assert (await bucket.take()).wait_seconds is None
    clock.advance(3600)
    assert sum([await taken(bucket, 500) for bucket in buckets]) == 1000


async def test_a_low_limit_is_not_lost_in_fractions(services: Services, clock: ManualClock) -> None:
    buckets = [bucket_of(services, 1)[0] for _ in range(4)]
    assert sum([await taken(bucket, 1) for bucket in buckets]) == 1
    got = 0
    for _ in range(240):
        clock.advance(1)
        got += sum([await taken(bucket, 1) for bucket in buckets])
    assert got == 4


@pytest.mark.parametrize("jump", [-86_400, -5, 86_400])
async def test_a_clock_that_was_set_stops_nobody_for_long(services: Services, clock: ManualClock, jump: int) -> None:
    bucket, _ = bucket_of(services, 60)
    assert await taken(bucket, 100) == 60
    clock.advance(jump)
    await taken(bucket, 100)
    got = 0
    for _ in range(70):
        clock.advance(1)
        got += await taken(bucket, 3)
    assert 60 <= got <= 71


async def test_nobody_is_held_up_by_limits_when_the_database_is_away(services: Services, caplog: pytest.LogCaptureFixture) -> None:
    bucket, db = bucket_of(services, 60)
    db.fails = True
    assert await taken(bucket, 10) == 10
    assert "The limit 'requests p' is not kept meanwhile." in caplog.text


# --- requests -------------------------------------------------------------------------------------------------------------------


@contextlib.asynccontextmanager
async def serving(settings: Settings, **changes: Any) -> AsyncIterator[tuple[str, aiohttp.ClientSession]]:
    async with (
        asyncio.timeout(50),
        running_server(dataclasses.replace(settings, **changes)) as address,
        aiohttp.ClientSession(base_url=address, timeout=aiohttp.ClientTimeout(total=20)) as http,
    ):
        yield address, http


async def test_every_answer_tells_of_the_limit_and_the_next_request_is_refused(database_settings: Settings) -> None:
    before = metrics.LIMITS_REACHED.labels("requests_per_minute")._value.get()  # type: ignore[attr-defined]
    async with serving(database_settings, project_requests_per_minute_max=3) as (_, http):
        answers = []
        for path in ("/v1/assistants", "/v1/assistants/asst_gone", "/v1/nowhere", "/v1/files", "/v1/assistants", "/v1/files"):
            async with http.get(path) as answer:
                answers.append((answer.status, answer.headers.copy(), await answer.json()))
    statuses = [status for status, _, _ in answers]
    assert statuses == [200, 404, 404, 200, 429, 429], "what no route serves is not counted"
    told = [headers.get("x-ratelimit-remaining-requests") for _, headers, _ in answers]
    assert told == ["2", "1", None, "0", "0", "0"]
    assert answers[0][1]["x-ratelimit-limit-requests"] == "3"
    assert 0 < float(answers[0][1]["x-ratelimit-reset-requests"].removesuffix("s")) <= 20
    _, headers, body = answers[4]
    assert list(body["error"]) == ["message", "type", "param", "code"]
    assert body["error"]["type"] == "requests"
    assert body["error"]["code"] == "rate_limit_exceeded"
    assert body["error"]["param"] is None
    assert body["error"]["message"].startswith(
        "Rate limit reached for requests of project 'default' on requests per min. Limit: 3 / min. Please try again in "
    )
    assert 0 < int(headers["retry-after-ms"]) <= 20_000
    assert 1 <= int(headers["retry-after"]) <= 20
    assert headers["x-should-retry"] == "true"
    assert "detail" in answers[5][2], "as all errors of the Files API"
    assert metrics.LIMITS_REACHED.labels("requests_per_minute")._value.get() == before + 2  # type: ignore[attr-defined]


async def test_without_a_limit_nothing_is_told(database_settings: Settings) -> None:
    own = {"default": ProjectSettings(requests_per_minute_max=0)}
    async with serving(database_settings, project_requests_per_minute_max=1, projects=own) as (_, http):
        for _ in range(3):
            async with http.get("/v1/assistants") as answer:
                assert answer.status == 200
                assert not [name for name in answer.headers if name.lower().startswith("x-ratelimit")]
            async with http.get("/health") as answer:
                assert answer.status == 200


async def test_the_official_sdk_waits_and_goes_on(database_settings: Settings) -> None:
    async with serving(database_settings, project_requests_per_minute_max=120) as (address, _):
        async with openai.AsyncOpenAI(base_url=f"{address}/v1", api_key="test-key", max_retries=0, timeout=20) as impatient:
            with pytest.raises(openai.RateLimitError) as caught:  # noqa: PT012 - one of them
                for _ in range(200):
                    await impatient.beta.assistants.list()
        assert caught.value.code == "rate_limit_exceeded"
        assert caught.value.type == "requests"
        async with openai.AsyncOpenAI(base_url=f"{address}/v1", api_key="test-key", max_retries=2, timeout=20) as patient:
            for _ in range(3):
                await patient.beta.assistants.list()


async def test_each_project_has_its_own_bucket(services: Services) -> None:
    own = {"big": ProjectSettings(requests_per_minute_max=5)}
    admitting = limits.RequestLimits(limited(services, project_requests_per_minute_max=2, projects=own))
    allowed = {name: [(await admitting.admit(name)).refusal is None for _ in range(7)].count(True) for name in ("small", "big", "other")}
    assert allowed == {"small": 2, "big": 5, "other": 2}


# --- runs -----------------------------------------------------------------------------------------------------------------------


async def assistant_of(services: Services, project_id: str, functions: Sequence[str] = ()) -> str:
    tools: Any = [FunctionTool(FunctionDefinition(name)) for name in functions]
    body = CreateAssistant(model="scripted", instructions="Answer.", tools=tools)
    return msgspec.json.decode(await assistant_routes.create_assistant(Request(services, project_id, {}, body, None)))["id"]


def creation(services: Services, project_id: str, assistant_id: str, key: str | None = None) -> Request[Any, Any]:
    request: Request[Any, Any] = Request(services, project_id, {}, CreateThreadAndRun(assistant_id=assistant_id), None)
    if key is not None:
        request.idempotent_call = IdempotentCall.of(project_id, key, b"run")
    return request


async def outcomes_at_once(requests: Sequence[Request[Any, Any]]) -> list[Any]:
    return await asyncio.gather(*(commands.create_thread_and_run(request) for request in requests), return_exceptions=True)


def refusals(outcomes: Sequence[object]) -> list[LimitReached]:
    others = [each for each in outcomes if not isinstance(each, LimitReached | commands.StartedRun)]
    assert not others, others
    return [each for each in outcomes if isinstance(each, LimitReached)]


async def test_runs_of_a_minute_are_counted_exactly(services: Services, clock: ManualClock) -> None:
    strict = limited(services, project_runs_per_minute_max=6)
    assistant_id = await assistant_of(strict, "p")
    outcomes = await outcomes_at_once([creation(strict, "p", assistant_id) for _ in range(20)])
    refused = refusals(outcomes)
    assert len(refused) == 14
    assert refused[0].message == "Rate limit reached for runs of project 'p' on runs per min. Limit: 6 / min. Please try again in 10s."
    assert refused[0].type == "requests"
    assert refused[0].code == "rate_limit_exceeded"
    assert refused[0].retry_after_seconds == pytest.approx(10)
    assert len(await services.db.read(_select_runs())) == 6
    assert len(await services.db.read(_select_threads())) == 6, "nothing of a refused one was written"
    clock.advance(10)
    outcomes = await outcomes_at_once([creation(strict, "p", assistant_id) for _ in range(3)])
    assert len(refusals(outcomes)) == 2
    other = await assistant_of(strict, "q")
    assert not refusals(await outcomes_at_once([creation(strict, "q", other)]))


async def test_a_repeat_with_an_idempotency_key_is_no_further_run(services: Services) -> None:
    strict = limited(services, project_runs_per_minute_max=5)
    assistant_id = await assistant_of(strict, "p")
    await commands.create_thread_and_run(creation(strict, "p", assistant_id, "once"))
    with pytest.raises(Exception, match="idempotency"):  # which the API answers with what was kept
        await commands.create_thread_and_run(creation(strict, "p", assistant_id, "once"))
    assert await services.db.read(_select_rows()) == [("runs p", 4.0)]


async def test_over_http_a_repeat_is_answered_when_the_limit_is_reached(database_settings: Settings) -> None:
    async with serving(database_settings, project_runs_per_minute_max=1) as (_, http):
        async with http.post("/v1/assistants", json={"model": "scripted", "instructions": "Answer."}) as answer:
            body = {"assistant_id": (await answer.json())["id"]}
        seen: list[tuple[int, Any]] = []
        for key in ("a", "a", "b", "a"):
            async with http.post("/v1/threads/runs", json=body, headers={"Idempotency-Key": key}) as answer:
                seen.append((answer.status, (await answer.json()).get("id")))
                if answer.status == 429:
                    assert int(answer.headers["retry-after"]) <= 60
    assert [status for status, _ in seen] == [200, 200, 429, 200]
    assert seen[0] == seen[1] == seen[3]


async def test_runs_that_wait_are_counted_exactly(services: Services) -> None:
    own = {"p": ProjectSettings(runs_waiting_max=4)}
    strict = limited(services, projects=own)
    first, second = await assistant_of(strict, "p"), await assistant_of(strict, "q")
    requests = [*(creation(strict, "p", first) for _ in range(12)), *(creation(strict, "q", second) for _ in range(6))]
    refused = refusals(await outcomes_at_once(requests))
    assert len(refused) == 8
    assert refused[0].retry_after_seconds == 2
    assert refused[0].type == "requests"
    assert "4 runs of project 'p' are waiting already" in refused[0].message
    record = await store.get_record_for_worker(services, (await services.db.read(_select_runs()))[0][0])
    assert record.project_id == "p"
    await transition_run(services, record, "in_progress", lease=Lease("worker_1", NOON + 30))
    assert len(refusals(await outcomes_at_once([creation(strict, "p", first) for _ in range(3)]))) == 2


async def test_a_project_can_have_its_own_number_of_runs_in_progress(services: Services) -> None:
    order = FairOrder(2, {}, {"big": 4, "free": 0})
    assert order.has_limits
    assert FairOrder(0, {}, {"big": 4}).has_limits
    assert not FairOrder(0, {}, {"free": 0}).has_limits
    made: list[str] = []
    for project_id in ("small", "big", "free"):
        assistant_id = await assistant_of(services, project_id)
        made += [each.run.id for each in await outcomes_at_once([creation(services, project_id, assistant_id) for _ in range(6)])]

    async def claim(run_id: str) -> None:
        record = await store.get_record_for_worker(services, run_id)
        limits_of_it = order.limits_of_claim(record, None)
        await transition_run(services, record, "in_progress", lease=Lease("worker_1", NOON + 30), extra_statements=limits_of_it)

    assert len(await order.next_runs(services, 30)) == 2 + 4 + 6
    outcomes = await asyncio.gather(*(claim(run_id) for run_id in made), return_exceptions=True)
    lost = [isinstance(outcome, store.RunLost) for outcome in outcomes]
    assert [lost[first : first + 6].count(False) for first in (0, 6, 12)] == [2, 4, 6]
    assert await order.next_runs(services, 30) == []


# --- tokens ---------------------------------------------------------------------------------------------------------------------


async def use_tokens(services: Services, project_id: str, tokens: int) -> None:
    await services.db.write(usage_entries_of(project_id, services.now(), Used(prompt_tokens=tokens - 1, completion_tokens=1)))


async def test_a_project_without_tokens_begins_no_run_until_midnight(services: Services, clock: ManualClock) -> None:
    strict = limited(services, project_tokens_per_day_max=1000)
    assistant_id = await assistant_of(strict, "p")
    await use_tokens(services, "p", 999)
    assert not refusals(await outcomes_at_once([creation(strict, "p", assistant_id)]))
    await use_tokens(services, "p", 2)
    [refused] = refusals(await outcomes_at_once([creation(strict, "p", assistant_id)]))
    assert refused.type == "tokens"
    assert refused.code == "rate_limit_exceeded"
    assert refused.retry_after_seconds == 43_200
    assert refused.message == (
        "Rate limit reached for tokens of project 'p' on tokens per day. Limit: 1000 / day. Please try again in 12h0m0s."
    )
    assert len(await services.db.read(_select_runs())) == 1
    clock.advance(43_200)
    assert not refusals(await outcomes_at_once([creation(strict, "p", assistant_id)]))


async def status_of_run(services: Services, run_id: str, *statuses: str) -> Any:
    """The run when it has one of the statuses."""
    while True:
        run = (await store.get_record_for_worker(services, run_id)).run
        if run.status in statuses:
            return run
        await asyncio.sleep(0.01)


@contextlib.asynccontextmanager
async def working(worker: Worker | IngestWorker) -> AsyncIterator[None]:
    task = asyncio.create_task(worker.run())
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def test_tokens_are_asked_for_before_each_turn(services: Services, endpoint: ScriptedEndpoint) -> None:
    endpoint.script = Script([Rule([ToolCalls([ScriptedCall("f")])], after_tool=False), Rule([Text("Done.")])])
    strict = limited(services, project_tokens_per_day_max=1000)
    assistant_id = await assistant_of(strict, "p", ["f"])
    async with working(Worker(strict)):
        run = (await commands.create_thread_and_run(creation(strict, "p", assistant_id))).run
        waiting = await status_of_run(strict, run.id, "requires_action")
        await use_tokens(services, "p", 2000)
        call_id = waiting.required_action.submit_tool_outputs.tool_calls[0].id
        body = SubmitToolOutputs([ToolOutput(tool_call_id=call_id, output="1")])
        path = {"thread_id": run.thread_id, "run_id": run.id}
        with pytest.raises(LimitReached) as caught:
            await commands.submit_tool_outputs(Request(strict, "p", path, body, None))
        assert caught.value.type == "tokens"
        assert (await store.get_record_for_worker(services, run.id)).run.status == "requires_action"
        await commands.submit_tool_outputs(Request(services, "p", path, body, None))  # the limit was not there yet then
        failed = await status_of_run(strict, run.id, "failed", "completed")
    assert failed.status == "failed"
    assert failed.last_error.code == "rate_limit_exceeded"
    assert failed.last_error.message.startswith("Rate limit reached for tokens of project 'p' on tokens per day.")
    assert len(endpoint.requests) == 1, "the model was not asked again"


# --- bytes ----------------------------------------------------------------------------------------------------------------------


async def upload(http: aiohttp.ClientSession, size_bytes: int, path: str = "/v1/files", field: str = "file") -> tuple[int, Any, Any]:
    form = aiohttp.FormData()
    if field == "file":
        form.add_field("purpose", "assistants")
    form.add_field(field, b"x" * size_bytes, filename="a.txt")
    async with http.post(path, data=form) as answer:
        return answer.status, await answer.json(), answer.headers


async def test_files_of_a_project_stay_within_its_storage(database_settings: Settings) -> None:
    async with serving(database_settings, project_storage_bytes_max=10_000) as (_, http):
        outcomes = await asyncio.gather(*(upload(http, 3000) for _ in range(8)))
        made = [body["id"] for status, body, _ in outcomes if status == 200]
        assert len(made) == 3
        status, body, headers = await upload(http, 2000)
        assert status == 429
        assert body["error"]["type"] == body["error"]["code"] == "insufficient_quota"
        assert body["error"]["message"] == (
            "You exceeded your current quota: the files of project 'default' can be 10000 bytes in total. "
            "Delete files that are not needed any more."
        )
        assert "retry-after" not in headers
        assert headers["x-should-retry"] == "false"
        assert (await upload(http, 1000))[0] == 200
        assert (await upload(http, 1))[0] == 429, "it is full"
        async with http.delete(f"/v1/files/{made[0]}") as answer:
            assert answer.status == 200
        assert (await upload(http, 3000))[0] == 200
    blobs = [path for path in (database_settings.data_dir / BLOBS_FOLDER).rglob("*") if path.is_file()]
    assert len(blobs) == 4, "bytes of refused files are not kept"


async def test_parts_of_an_upload_count_and_its_file_no_further(database_settings: Settings) -> None:
    async with serving(database_settings, project_storage_bytes_max=10_000) as (_, http):
        announced = {"filename": "a.txt", "purpose": "assistants", "bytes": 8000, "mime_type": "text/plain"}
        async with http.post("/v1/uploads", json=announced) as answer:
            upload_id = (await answer.json())["id"]
        parts = [await upload(http, 4000, f"/v1/uploads/{upload_id}/parts", "data") for _ in range(3)]
        assert [status for status, _, _ in parts] == [200, 200, 429]
        assert (await upload(http, 3000))[0] == 429, "parts count"
        ids = [body["id"] for _, body, _ in parts[:2]]
        async with http.post(f"/v1/uploads/{upload_id}/complete", json={"part_ids": ids}) as answer:
            assert answer.status == 200, await answer.text()
        assert (await upload(http, 2000))[0] == 200


async def write_file(services: Services, text: str, filename: str = "a.md") -> str:
    async def pieces() -> AsyncIterator[bytes]:
        yield text.encode()

    async with file_commands.new_blob(services, file_commands.blob_of(services, pieces(), 1_000_000)) as blob:
        record = file_commands.new_file(blob, filename, "assistants", services.now())
        await quotas.write_stored(services, "p", insert_file("p", record))
    return record.file.id


async def test_files_written_at_once_never_exceed_the_storage(services: Services) -> None:
    strict = limited(services, project_storage_bytes_max=1000)
    outcomes = await asyncio.gather(*(write_file(strict, "x" * 150) for _ in range(20)), return_exceptions=True)
    assert sum(isinstance(each, LimitReached) for each in outcomes) == 14
    assert len(await services.db.read(_select_sizes())) == 6


async def test_files_that_code_makes_count_and_those_without_room_are_told_to_the_model(services: Services) -> None:
    sandbox = ScriptedSandbox()
    world = World(limited(services, project_storage_bytes_max=100), sandbox)
    try:
        sandbox.run = writes({"small.csv": b"x" * 60})
        use = await world.use()
        assert list(written_files((await world.call(use)).output)) == ["small.csv"]
        sandbox.run = writes({"large.csv": b"x" * 60})
        result = await world.call(use)
        assert written_files(result.output) == {}
        assert "not given to the user, who has no room for more files" in result.output
        sandbox.run = puts_out(Image(FIGURE + b"x" * 60))
        result = await world.call(await world.use())
        assert "A figure is not shown: it could not be kept." in result.output
        assert await world.unneeded_blobs_count() == 0, "nothing is left of what was refused"
        [[file_id]] = await services.db.read(_select_files())
        await file_commands.delete_file(services, "default", file_id)
        sandbox.run = do_nothing
        assert list(written_files((await world.call(use)).output)) == ["large.csv"], "the next call makes up for it"
    finally:
        await world.sessions.close()


async def test_vector_stores_of_a_project_stay_within_their_bytes(services: Services) -> None:
    """A small file fits, the next one does not; and once they are full, none is taken any more."""
    texts = ["Whales are mammals. ", "Sharks are fish. " * 300, "Crabs are neither. "]
    file_ids = [await write_file(services, text) for text in texts]
    strict = limited(services, project_vector_bytes_max=5000)
    made = msgspec.json.decode(await vector_commands.create_store(strict, "p", CreateVectorStore(), lambda _: []))
    scope = StoreScope("p", made["id"])

    async def added(using: Services, file_id: str) -> dict[str, Any]:
        await vector_commands.attach_file(using, scope, CreateVectorStoreFile(file_id), lambda _: [])
        while True:
            file = msgspec.json.decode(await get_file_json(using, scope, file_id))
            if file["status"] != "in_progress":
                return file
            await asyncio.sleep(0.01)

    async with working(IngestWorker(strict)):
        small = await added(strict, file_ids[0])
        assert small["status"] == "completed"
        assert 0 < small["usage_bytes"] < 5000
        large = await added(strict, file_ids[1])
        assert large["status"] == "failed"
        assert large["last_error"]["code"] == "server_error"
        assert large["last_error"]["message"].startswith(
            "You exceeded your current quota: the vector stores of project 'p' can be 5000 bytes in total."
        )
    full = limited(services, project_vector_bytes_max=small["usage_bytes"])
    with pytest.raises(LimitReached, match="You exceeded your current quota: the vector stores of project 'p'") as caught:
        await vector_commands.attach_file(full, scope, CreateVectorStoreFile(file_ids[2]), lambda _: [])
    assert caught.value.type == caught.value.code == "insufficient_quota"
    with pytest.raises(LimitReached):
        await vector_commands.create_store(full, "p", CreateVectorStore(file_ids=[file_ids[2]]), lambda _: [])
    assert msgspec.json.decode(await vector_commands.create_store(full, "p", CreateVectorStore(), lambda _: []))["id"]

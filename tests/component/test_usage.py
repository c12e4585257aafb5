"""Usage: written with what it is about, added to its days exactly once, and told by endpoint and command. The same on both databases."""

import asyncio
import contextlib
import dataclasses
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import aiohttp
import msgspec
import pytest
import sqlalchemy as sa

from mini_assistant import administration
from mini_assistant.__main__ import main
from mini_assistant.app import open_services
from mini_assistant.assistants import routes as assistant_routes
from mini_assistant.assistants.schema import CodeInterpreterTool, CreateAssistant, FunctionDefinition, FunctionTool, Tool
from mini_assistant.clock import ManualClock
from mini_assistant.db.base import Bound, Database, GuardFailed, Query, Row
from mini_assistant.db.tables import run_steps, usage_entries
from mini_assistant.errors import InvalidRequest
from mini_assistant.http.routing import Request
from mini_assistant.models.script import Rule, Script, ScriptedCall, Text, ToolCalls
from mini_assistant.models.scripted import ScriptedEndpoint
from mini_assistant.projects import usage
from mini_assistant.projects.usage import UsageDay, Used, get_days, roll_up_usage, sweep_usage, tokens_of_day, usage_entries_of
from mini_assistant.projects.usage_routes import ROUTES, UsageQuery, list_usage
from mini_assistant.runs import commands, store
from mini_assistant.runs.endings import end_run
from mini_assistant.runs.loop import RunExecution, get_past
from mini_assistant.runs.schema import CreateThreadAndRun, Run, SubmitToolOutputs, ToolOutput
from mini_assistant.runs.store import Lease, RunRecord, get_steps, transition_run
from mini_assistant.runs.worker import Worker
from mini_assistant.services import Services
from mini_assistant.settings import Settings
from mini_assistant.threads.schema import CreateMessage, CreateThread
from tests.vector_store_rows import insert_file, insert_store

NOON = datetime(2026, 11, 25, 12, tzinfo=UTC).timestamp()
EVER = ("2000-01-01", "2100-01-01")
DAY_SECONDS = 86_400

_entries_count = Query(sa.select(sa.func.count()).select_from(usage_entries))
_steps = Query(sa.select(run_steps.c.usage))


@pytest.fixture(params=["sqlite", "postgres"])
def settings(request: pytest.FixtureRequest, tmp_path: Path, endpoint: ScriptedEndpoint) -> Settings:
    database_url = request.getfixturevalue("postgres_url") if request.param == "postgres" else ""
    settings = Settings(
        port=0,
        data_dir=tmp_path,
        database_url=database_url,
        openai_base_url=endpoint.base_url,
        model_retries_max=0,
        sandbox="unsafe",
        sandbox_pool_sessions=0,
    )
    if database_url:
        administration.migrate_database(settings)
    return settings


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock(NOON)


@pytest.fixture
async def services(settings: Settings, clock: ManualClock) -> AsyncIterator[Services]:
    """The parts of a server without its HTTP side; its time stands still until a test moves it."""
    async with asyncio.timeout(50), open_services(settings) as opened:
        yield dataclasses.replace(opened, clock=clock)


@pytest.fixture
async def other_db(settings: Settings, services: Services) -> AsyncIterator[Database]:
    """The same rows over connections of another process."""
    async with administration.open_rows(settings) as db:
        yield db


# --- what is there --------------------------------------------------------------------------------------------------------------


async def days_of(db: Database, **wanted: Any) -> list[UsageDay]:
    return await get_days(db, *EVER, limit=1000, **wanted)


async def enter(services: Services, project_id: str, used: Used, count: int = 1) -> None:
    await services.db.write([entry for _ in range(count) for entry in usage_entries_of(project_id, services.now(), used)])


async def waiting_count(services: Services) -> int:
    return (await services.db.read(_entries_count()))[0][0]


async def total(services: Services) -> Used:
    """Everything that was used, after it has been added to its days."""
    answer = Used()
    while await waiting_count(services):
        await roll_up_usage(services.db)
    for day in await days_of(services.db):
        answer.add(Used(day.prompt_tokens, day.completion_tokens, day.runs, day.tool_calls, day.sandbox_seconds))
    return answer


async def tokens_of_steps(services: Services) -> tuple[int, int]:
    usages = [json.loads(usage) for (usage,) in await services.db.read(_steps()) if usage]
    return sum(known["prompt_tokens"] for known in usages), sum(known["completion_tokens"] for known in usages)


# --- entries become days --------------------------------------------------------------------------------------------------------


async def test_entries_are_added_to_the_day_of_their_project(services: Services, clock: ManualClock) -> None:
    await enter(services, "b", Used(prompt_tokens=10, completion_tokens=2, runs=1, tool_calls=3, sandbox_seconds=0.5), count=3)
    await enter(services, "a", Used(prompt_tokens=7))
    clock.advance(DAY_SECONDS / 2)  # midnight: the next day
    await enter(services, "b", Used(completion_tokens=5))
    await roll_up_usage(services.db)
    expected = [
        UsageDay("a", "2026-11-25", 7, 0, 0, 0, 0.0, 0, 0),
        UsageDay("b", "2026-11-25", 30, 6, 3, 9, 1.5, 0, 0),
        UsageDay("b", "2026-11-26", 0, 5, 0, 0, 0.0, 0, 0),
    ]
    assert (await days_of(services.db), await waiting_count(services)) == (expected, 0)
    await roll_up_usage(services.db)
    assert await days_of(services.db) == expected, "nothing waits, and nothing changes"


async def test_what_was_not_used_is_no_entry() -> None:
    assert usage_entries_of("p", 1, Used()) == []


async def test_several_processes_add_each_entry_once_while_others_come(services: Services, other_db: Database) -> None:
    async def use(project_id: str) -> None:
        for _ in range(40):
            await enter(services, project_id, Used(prompt_tokens=1, sandbox_seconds=0.25), count=50)

    async def roll_up(db: Database, users: Sequence["asyncio.Task[None]"]) -> None:
        while not all(user.done() for user in users):
            await roll_up_usage(db)

    async with asyncio.TaskGroup() as group:
        users = [group.create_task(use(project_id)) for project_id in ("a", "b")]
        for db in (services.db, other_db, services.db, other_db):
            group.create_task(roll_up(db, users))
    await roll_up_usage(other_db)
    assert await waiting_count(services) == 0
    assert [(day.project_id, day.prompt_tokens, day.sandbox_seconds) for day in await days_of(services.db)] == [
        ("a", 2000, 500.0),
        ("b", 2000, 500.0),
    ]


class Overtaken:
    """A database whose entries another process has already added when they have just been read."""

    def __init__(self, db: Database, overtake: Callable[[], Awaitable[None]]) -> None:
        self._db = db
        self._overtake = overtake
        self.refusals: list[str] = []

    async def read(self, statement: Bound) -> list[Row]:
        rows = await self._db.read(statement)
        await self._overtake()
        return rows

    async def write(
        self, statements: Sequence[Bound], on_commit: Callable[[], None] | None = None, *, durable: bool = True
    ) -> list[list[Row]]:
        try:
            return await self._db.write(statements, on_commit, durable=durable)
        except GuardFailed as exc:
            self.refusals.append(exc.guard)
            raise

    async def check(self) -> str:
        return await self._db.check()

    async def close(self) -> None:
        await self._db.close()


async def test_a_process_that_was_overtaken_adds_nothing(services: Services, other_db: Database) -> None:
    await enter(services, "p", Used(prompt_tokens=1), count=20)

    async def overtake() -> None:
        await roll_up_usage(other_db)
        await enter(services, "p", Used(prompt_tokens=1), count=20)  # as many as were read, but not the same

    overtaken = Overtaken(services.db, overtake)
    await roll_up_usage(overtaken)
    assert (overtaken.refusals, await waiting_count(services), (await days_of(services.db))[0].prompt_tokens) == (["entries"], 20, 20)
    await roll_up_usage(services.db)
    assert (await total(services)).prompt_tokens == 40


async def test_more_entries_than_one_list_takes(services: Services) -> None:
    await enter(services, "p", Used(tool_calls=1), count=2345)
    await roll_up_usage(services.db)
    assert (await waiting_count(services), (await total(services)).tool_calls) == (0, 2345)


async def test_the_tokens_of_a_day_are_known_before_and_after_they_are_added(services: Services, clock: ManualClock) -> None:
    assert await tokens_of_day(services, "p") == 0
    await enter(services, "p", Used(prompt_tokens=100, completion_tokens=11))
    await enter(services, "other", Used(prompt_tokens=5))
    assert await tokens_of_day(services, "p") == 111
    await roll_up_usage(services.db)
    await enter(services, "p", Used(completion_tokens=9))
    assert await tokens_of_day(services, "p") == 120
    clock.advance(DAY_SECONDS / 2 - 1)
    assert await tokens_of_day(services, "p") == 120, "the last second of the day"
    clock.advance(1)
    assert await tokens_of_day(services, "p") == 0, "yesterday's entry waits, and does not count"
    await enter(services, "p", Used(prompt_tokens=1))
    assert await tokens_of_day(services, "p") == 1


async def test_a_sweep_notes_the_most_that_was_stored_once_in_a_minute(
    services: Services, clock: ManualClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    await insert_file(services, "x" * 1000, "a.txt")
    await insert_store(services)
    await enter(services, "default", Used(runs=1))
    await sweep_usage(services)
    [day] = await days_of(services.db)
    assert (day.project_id, day.runs, day.storage_bytes, day.vector_bytes) == ("default", 1, 1000, 0)
    await insert_file(services, "x" * 500, "b.txt")
    clock.advance(59)
    await sweep_usage(services)
    assert (await days_of(services.db))[0].storage_bytes == 1000, "not yet a minute"
    clock.advance(1)
    await sweep_usage(services)
    assert (await days_of(services.db))[0].storage_bytes == 1500
    await services.db.write([Query(sa.text("DELETE FROM files"))(), Query(sa.text("UPDATE vector_stores SET usage_bytes = 77"))()])
    clock.advance(60)
    monkeypatch.setattr(usage, "_DAYS_PER_LIST_MAX", 1)
    await sweep_usage(services)
    [day] = await days_of(services.db)
    assert (day.storage_bytes, day.vector_bytes, day.runs) == (1500, 77, 1)


async def test_days_are_kept_as_long_as_the_settings_say(services: Services, clock: ManualClock) -> None:
    services = dataclasses.replace(services, settings=dataclasses.replace(services.settings, usage_ttl_days=30))
    await enter(services, "p", Used(runs=1))
    clock.advance(30 * DAY_SECONDS)
    await sweep_usage(services)
    assert [day.date for day in await days_of(services.db)] == ["2026-11-25"]
    clock.advance(DAY_SECONDS)
    await sweep_usage(services)
    assert await days_of(services.db) == []


# --- what runs use --------------------------------------------------------------------------------------------------------------


async def create_run(services: Services, text: str, tools: Sequence[Tool] = (), project_id: str = "p") -> Run:
    body = CreateAssistant(model="scripted", tools=list(tools))
    assistant = msgspec.json.decode(await assistant_routes.create_assistant(Request(services, project_id, {}, body, None)))
    thread = CreateThread(messages=[CreateMessage(role="user", content=text)])
    start = CreateThreadAndRun(assistant_id=assistant["id"], thread=thread)
    return (await commands.create_thread_and_run(Request(services, project_id, {}, start, None))).run


@contextlib.asynccontextmanager
async def working(services: Services) -> AsyncIterator[None]:
    task = asyncio.create_task(Worker(services).run())
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def until_status(services: Services, run: Run, *statuses: str) -> RunRecord:
    while (record := await store.get_record_for_worker(services, run.id)).run.status not in statuses:
        assert record.run.status in ("queued", "in_progress", "requires_action", "cancelling"), record.run
        await asyncio.sleep(0.005)
    return record


async def test_a_run_counts_with_its_tokens_once_it_has_ended(services: Services) -> None:
    run = await create_run(services, "Hello")
    await create_run(services, "Hello", project_id="waiting")
    async with working(services):
        record = await until_status(services, run, "completed")
    assert record.run.usage is not None
    assert record.run.usage.total_tokens > 0
    await roll_up_usage(services.db)
    [day] = await days_of(services.db, project_id="p")
    assert (day.runs, day.prompt_tokens, day.completion_tokens) == (1, record.run.usage.prompt_tokens, record.run.usage.completion_tokens)
    assert (day.tool_calls, day.sandbox_seconds) == (0, 0)


async def test_a_turn_counts_when_its_calls_go_to_the_client_and_the_calls_when_they_are_answered(
    services: Services, endpoint: ScriptedEndpoint
) -> None:
    calls = [ScriptedCall("look", "{}"), ScriptedCall("look", "{}")]
    endpoint.script = Script([Rule([Text("Done.")], after_tool=True), Rule([ToolCalls(calls)])])
    run = await create_run(services, "Look.", [FunctionTool(FunctionDefinition("look"))])
    async with working(services):
        record = await until_status(services, run, "requires_action")
        asked = await total(services)
        assert (asked.prompt_tokens, asked.completion_tokens) == await tokens_of_steps(services)
        assert (asked.prompt_tokens > 0, asked.tool_calls, asked.runs) == (True, 0, 0)
        action = record.run.required_action
        assert action is not None
        outputs = [ToolOutput(tool_call_id=call.id, output="42") for call in action.submit_tool_outputs.tool_calls]
        path = {"thread_id": run.thread_id, "run_id": run.id}
        await commands.submit_tool_outputs(Request(services, "p", path, SubmitToolOutputs(tool_outputs=outputs), None))
        ended = (await until_status(services, run, "completed")).run
    used = await total(services)
    assert ended.usage is not None
    assert (used.prompt_tokens, used.completion_tokens) == (ended.usage.prompt_tokens, ended.usage.completion_tokens)
    assert (used.prompt_tokens, used.completion_tokens) == await tokens_of_steps(services)
    assert (used.tool_calls, used.runs) == (2, 1)


async def test_a_run_that_is_cancelled_while_it_waits_for_the_client_counts_nothing_twice(
    services: Services, endpoint: ScriptedEndpoint
) -> None:
    endpoint.script = Script([Rule([ToolCalls([ScriptedCall("look", "{}")])])])
    run = await create_run(services, "Look.", [FunctionTool(FunctionDefinition("look"))])
    async with working(services):
        record = await until_status(services, run, "requires_action")
        await commands.cancel_run(Request(services, "p", {"thread_id": run.thread_id, "run_id": run.id}, None, None))
        record = await until_status(services, run, "cancelled")
    used, shown = await total(services), record.run.usage
    assert shown is not None
    assert (used.prompt_tokens, used.completion_tokens, used.runs, used.tool_calls) == (shown.prompt_tokens, shown.completion_tokens, 1, 1)


async def test_code_counts_for_as_long_as_it_runs(services: Services, endpoint: ScriptedEndpoint) -> None:
    code = json.dumps({"code": "import time; time.sleep(0.3)"})
    endpoint.script = Script([Rule([Text("Done.")], after_tool=True), Rule([ToolCalls([ScriptedCall("code_interpreter", code)])])])
    run = await create_run(services, "Calculate.", [CodeInterpreterTool()])
    async with working(services):
        await until_status(services, run, "completed")
    used = await total(services)
    assert used.sandbox_seconds >= 0.3
    assert (used.tool_calls, used.runs) == (1, 1)
    assert (used.prompt_tokens, used.completion_tokens) == await tokens_of_steps(services)


async def test_code_that_takes_too_long_counts_too(services: Services, endpoint: ScriptedEndpoint) -> None:
    services = dataclasses.replace(services, settings=dataclasses.replace(services.settings, tool_timeout_seconds=0.5))
    code = json.dumps({"code": "import time; time.sleep(60)"})
    endpoint.script = Script([Rule([Text("Done.")], after_tool=True), Rule([ToolCalls([ScriptedCall("code_interpreter", code)])])])
    run = await create_run(services, "Calculate.", [CodeInterpreterTool()])
    async with working(services):
        await until_status(services, run, "completed")
    used = await total(services)
    assert (used.sandbox_seconds > 0, used.tool_calls) == (True, 1)


async def test_a_turn_that_is_cut_off_in_its_code_counts_with_the_end_of_the_run(
    services: Services, endpoint: ScriptedEndpoint, tmp_path: Path
) -> None:
    begun = tmp_path / "begun"
    code = json.dumps({"code": f"open({str(begun)!r}, 'w').close(); import time; time.sleep(60)"})
    endpoint.script = Script([Rule([ToolCalls([ScriptedCall("code_interpreter", code)])])])
    run = await create_run(services, "Calculate.", [CodeInterpreterTool()])
    queued = await store.get_record_for_worker(services, run.id)
    claimed = await transition_run(services, queued, "in_progress", lease=Lease("worker_1", services.clock.now() + 30))
    execution = RunExecution(services, claimed, await get_past(services, claimed))
    executing = asyncio.create_task(execution.execute())
    while not begun.exists():  # noqa: ASYNC110 - another process makes it
        await asyncio.sleep(0.005)
    executing.cancel()
    await asyncio.gather(executing, return_exceptions=True)
    assert await total(services) == Used()

    costs = execution.costs
    ended = await end_run(services, execution.record, "failed", costs=costs)
    [step] = await get_steps(services, run.id)
    assert ended.run.usage is not None
    assert ended.run.usage == step.usage == step.step.usage
    used = await total(services)
    assert (used.prompt_tokens, used.completion_tokens) == (ended.run.usage.prompt_tokens, ended.run.usage.completion_tokens)
    assert (used.prompt_tokens > 0, used.sandbox_seconds > 0) == (True, True)
    assert (used.runs, used.sandbox_seconds) == (1, costs[step.step.id].sandbox_seconds)


async def test_what_a_row_has_counted_is_not_counted_again_by_who_did_not_learn_of_it(
    services: Services, endpoint: ScriptedEndpoint
) -> None:
    """The loop is cut off right after a commit; it cannot know, but the row does."""
    endpoint.script = Script([Rule([ToolCalls([ScriptedCall("look", "{}")])])])
    run = await create_run(services, "Look.", [FunctionTool(FunctionDefinition("look"))])
    queued = await store.get_record_for_worker(services, run.id)
    claimed = await transition_run(services, queued, "in_progress", lease=Lease("worker_1", services.clock.now() + 30))
    execution = RunExecution(services, claimed, await get_past(services, claimed))
    await execution.execute()
    waiting, before = await store.get_record_for_worker(services, run.id), await total(services)
    assert (waiting.run.status, list(execution.costs)) == ("requires_action", [(await get_steps(services, run.id))[0].step.id])
    await end_run(services, waiting, "expired", costs=execution.costs)
    assert await total(services) == dataclasses.replace(before, runs=1, tool_calls=1)


# --- who reads it ---------------------------------------------------------------------------------------------------------------


async def page(services: Services, **query: Any) -> dict[str, Any]:
    request = Request[None, UsageQuery](services, "default", {}, None, msgspec.convert(query, UsageQuery))
    return msgspec.json.decode(await list_usage(request))


async def test_the_endpoint_tells_the_days_of_all_projects_in_pages(services: Services, clock: ManualClock) -> None:
    for _ in range(3):
        for project_id in ("a", "b"):
            await enter(services, project_id, Used(prompt_tokens=1, runs=2, sandbox_seconds=0.5))
        clock.advance(DAY_SECONDS)
    clock.advance(-DAY_SECONDS)
    everything = await page(services)
    assert everything["object"] == "page"
    assert (everything["has_more"], everything["next_page"]) == (False, None)
    assert everything["data"][0] == {
        "object": "organization.usage.day",
        "project_id": "a",
        "date": "2026-11-25",
        "prompt_tokens": 1,
        "completion_tokens": 0,
        "runs": 2,
        "tool_calls": 0,
        "sandbox_seconds": 0.5,
        "storage_bytes": 0,
        "vector_bytes": 0,
    }
    places = [(day["date"], day["project_id"]) for day in everything["data"]]
    assert places == [(f"2026-11-{day}", project) for day in (25, 26, 27) for project in ("a", "b")]

    told, answer = list[dict[str, Any]](), await page(services, limit=2)
    while answer["has_more"]:
        told += answer["data"]
        answer = await page(services, limit=2, page=answer["next_page"])
    assert told + answer["data"] == everything["data"]
    of_one = await page(services, project_id="b", start_date="2026-11-26", end_date="2026-11-26")
    assert of_one["data"] == [everything["data"][3]]
    assert (await page(services, project_id="c"))["data"] == []
    clock.advance(28 * DAY_SECONDS)
    assert {day["date"] for day in (await page(services))["data"]} == {"2026-11-26", "2026-11-27"}, "the last 30 days"
    assert len((await page(services, end_date="2026-11-25"))["data"]) == 2


WRONG_QUERIES: list[tuple[dict[str, str], str]] = [
    ({"start_date": "2026-02-30"}, "start_date"),
    ({"start_date": "20261125"}, "start_date"),
    ({"start_date": "yesterday"}, "start_date"),
    ({"end_date": "2026-11-25T00:00:00Z"}, "end_date"),
    ({"end_date": "2026-11-25\n"}, "end_date"),
    ({"end_date": "0000-01-01"}, "end_date"),
    ({"end_date": "٢٠٢٦-11-25"}, "end_date"),
    ({"start_date": "2026-11-25", "end_date": "2026-11-24"}, "end_date"),
    ({"page": "2026-11-25"}, "page"),
    ({"page": "x~p"}, "page"),
]
QUERIES_AT_THE_EDGE = [{"end_date": "0001-01-01"}, {"end_date": "9999-12-31"}, {"project_id": "a\x00b"}, {"page": "2026-11-25~"}]


async def test_wrong_dates_are_refused_by_their_name(services: Services) -> None:
    for query, param in WRONG_QUERIES:
        with pytest.raises(InvalidRequest) as refused:
            await page(services, **query)
        assert refused.value.param == param, query


async def test_dates_and_names_at_the_edge_are_answered(services: Services) -> None:
    for query in QUERIES_AT_THE_EDGE:
        assert (await page(services, **query))["data"] == [], query


def test_only_keys_of_the_scope_admin_may_ask() -> None:
    assert [route.needed_scope for route in ROUTES] == ["admin"]


async def posted(http: aiohttp.ClientSession, path: str, body: dict[str, Any]) -> dict[str, Any]:
    async with http.post(path, json=body) as answer:
        assert answer.status == 200, await answer.text()
        return await answer.json()


async def got(http: aiohttp.ClientSession, path: str) -> dict[str, Any]:
    async with http.get(path) as answer:
        assert answer.status == 200, await answer.text()
        return await answer.json()


async def test_the_endpoint_and_the_command_tell_the_same_beside_a_server(
    http: aiohttp.ClientSession, settings: Settings, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assistant = await posted(http, "/v1/assistants", {"model": "scripted"})
    thread = {"messages": [{"role": "user", "content": "Hello"}]}
    run = await posted(http, "/v1/threads/runs", {"assistant_id": assistant["id"], "thread": thread})
    while run["status"] != "completed":
        run = await got(http, f"/v1/threads/{run['thread_id']}/runs/{run['id']}")
    told = await got(http, "/v1/organization/usage?start_date=&project_id=default")
    [day] = told["data"]
    assert (day["runs"], day["prompt_tokens"]) == (1, run["usage"]["prompt_tokens"])
    async with http.get("/v1/organization/usage?limit=0") as answer:
        assert (answer.status, (await answer.json())["error"]["param"]) == (400, "limit")

    arguments = ["usage", "--data-dir", str(settings.data_dir)]
    monkeypatch.setenv("MINI_ASSISTANT_DATABASE_URL", settings.database_url)
    assert await asyncio.to_thread(main, [*arguments, "--json", "--days", "2"]) == 0
    assert json.loads(capsys.readouterr().out) == {"object": "list", "data": [day]}
    assert await asyncio.to_thread(main, [*arguments, "--project", "default"]) == 0
    heading, line = capsys.readouterr().out.splitlines()
    assert heading.split()[:2] == ["date", "project"]
    assert line.split() == [
        day["date"],
        "default",
        *(str(day[name]) for name in ("prompt_tokens", "completion_tokens", "runs", "tool_calls")),
        "0.0",
        *(str(day[name]) for name in ("storage_bytes", "vector_bytes")),
    ]
    assert await asyncio.to_thread(main, [*arguments, "--project", "nobody"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 1


@pytest.mark.parametrize("days", ["0", "-1", "many"])
def test_the_command_wants_a_number_of_days(days: str) -> None:
    with pytest.raises(SystemExit):
        main(["usage", "--days", days])

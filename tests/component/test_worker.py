"""The worker: leases, fencing, sweeping, the backlog, and what happens when several parties want a run at the same time.

Time is moved by hand where leases are concerned: a worker whose lease has run out is stopped or stalled as far as others can tell.
"""

import asyncio
import contextlib
import dataclasses
import random
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any

import msgspec
import pytest
import sqlalchemy as sa
import uvloop

from mini_assistant.app import open_services
from mini_assistant.assistants import routes as assistant_routes
from mini_assistant.assistants.schema import CreateAssistant, FunctionDefinition, FunctionTool, Tool
from mini_assistant.clock import ManualClock
from mini_assistant.db.base import Bound, Database, Query, Row
from mini_assistant.db.tables import run_events, runs
from mini_assistant.errors import AppError, NotFound, RunStateConflict, StoreUnavailable
from mini_assistant.events.base import START
from mini_assistant.http.routing import Request
from mini_assistant.models.script import Rule, Script, ScriptedCall, Stall, Text, ToolCalls, Wait
from mini_assistant.models.scripted import ScriptedEndpoint
from mini_assistant.projects.audit import audit_entry
from mini_assistant.queue.local import LocalTaskQueue
from mini_assistant.queue.procrastinate_schema import apply_schema
from mini_assistant.runs import commands, leases, store
from mini_assistant.runs.endings import end_run
from mini_assistant.runs.schema import CreateRun, ModifyRun, Run, SubmitToolOutputs, ToolOutput
from mini_assistant.runs.store import Changes, Lease, RunLost, RunRecord, StepRecord
from mini_assistant.runs.worker import Worker
from mini_assistant.services import Services
from mini_assistant.settings import Settings
from mini_assistant.threads import routes as thread_routes
from mini_assistant.threads import store as thread_store
from mini_assistant.threads.schema import CreateMessage, CreateThread, Message, TextContent

PROJECT = "default"
LEASE_SECONDS = 30.0
TERMINAL = {"completed", "incomplete", "failed", "cancelled", "expired"}

_row = Query(
    sa.select(runs.c.status, runs.c.attempt, runs.c.version, runs.c.lease_owner, runs.c.lease_until).where(runs.c.id == sa.bindparam("run"))
)
_event_names = Query(
    sa.select(run_events.c.seq, run_events.c.name).where(run_events.c.run_id == sa.bindparam("run")).order_by(run_events.c.seq)
)


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.heavy)])
def settings(request: pytest.FixtureRequest, tmp_path: Path, endpoint: ScriptedEndpoint) -> Settings:
    database_url = ""
    if request.param == "postgresql":
        database_url = request.getfixturevalue("postgres_url")
        apply_schema(database_url)
    return Settings(
        data_dir=tmp_path,
        database_url=database_url,
        openai_base_url=endpoint.base_url,
        model_retries_max=0,
        lease_seconds=LEASE_SECONDS,
        sweep_interval_seconds=0.05,
        run_concurrency_max=3,
    )


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock(time.time())


@pytest.fixture
async def services(settings: Settings, clock: ManualClock) -> AsyncIterator[Services]:
    """The parts of a server without its HTTP side; its time stands still until a test moves it."""
    async with open_services(settings) as opened:
        yield dataclasses.replace(opened, clock=clock)


@contextlib.asynccontextmanager
async def working(*several: Services) -> AsyncIterator[list[asyncio.Task[None]]]:
    """A worker for each; they are stopped in the end."""
    tasks = [asyncio.create_task(Worker(services).run()) for services in several]
    try:
        yield tasks
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def other_process(services: Services) -> Services:
    """The same rows seen by another process: it hears nothing of this one's queue."""
    return dataclasses.replace(services, queue=LocalTaskQueue())


# --- what clients do ------------------------------------------------------------------------------------------------------------


def request(services: Services, body: Any = None, **path: str) -> Request[Any, Any]:
    return Request(services, PROJECT, path, body, None)


async def create_assistant(services: Services, functions: Sequence[str] = ()) -> str:
    tools: list[Tool] = [FunctionTool(FunctionDefinition(name)) for name in functions]
    body = CreateAssistant(model="scripted", tools=tools)
    return msgspec.json.decode(await assistant_routes.create_assistant(request(services, body)))["id"]


async def create_thread(services: Services, text: str = "Hello") -> str:
    body = CreateThread(messages=[CreateMessage(role="user", content=text)])
    return msgspec.json.decode(await thread_routes.create_thread(request(services, body)))["id"]


async def create_run(services: Services, text: str = "Hello", functions: Sequence[str] = ()) -> Run:
    """A run on a thread of its own."""
    assistant_id, thread_id = await create_assistant(services, functions), await create_thread(services, text)
    started = await commands.create_run(request(services, CreateRun(assistant_id=assistant_id), thread_id=thread_id))
    return started.run


def of(services: Services, run: Run, body: Any = None) -> Request[Any, Any]:
    return request(services, body, thread_id=run.thread_id, run_id=run.id)


async def submit(services: Services, run: Run, output: str = "42") -> None:
    record = await store.get_record_for_worker(services, run.id)
    action = record.run.required_action
    calls = action.submit_tool_outputs.tool_calls if action else []
    body = SubmitToolOutputs(tool_outputs=[ToolOutput(tool_call_id=call.id, output=output) for call in calls])
    await commands.submit_tool_outputs(of(services, run, body))


# --- what is there --------------------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class RunRow:
    status: str
    attempt: int
    version: int
    lease_owner: str | None
    lease_until: float


async def run_row(services: Services, run: Run) -> RunRow:
    return RunRow(*(await services.db.read(_row(run=run.id)))[0])


async def until(condition: Callable[[], Awaitable[bool]]) -> None:
    """Wait for something that has no event of its own."""
    while not await condition():  # noqa: ASYNC110
        await asyncio.sleep(0.005)


async def until_status(services: Services, run: Run, *statuses: str) -> RunRecord:
    """Wait until the run has one of the statuses; fails when it has ended in another."""
    wanted = set(statuses)
    while True:
        record = await store.get_record_for_worker(services, run.id)
        if record.run.status in wanted:
            return record
        assert record.run.status not in TERMINAL, f"{record.run.status}: {record.run.last_error}"
        await asyncio.sleep(0.005)


async def messages_of(services: Services, run: Run) -> list[Message]:
    history = await thread_store.get_history(services, PROJECT, run.thread_id, 1000)
    return [message for message in history if message.run_id == run.id]


def text_of(message: Message) -> str:
    return "".join(part.text.value for part in message.content if isinstance(part, TextContent))


async def steps_of(services: Services, run: Run) -> list[StepRecord]:
    return await store.get_steps(services, run.id)


async def event_names(services: Services, run: Run) -> list[str]:
    rows = await services.db.read(_event_names(run=run.id))
    assert [row[0] for row in rows] == list(range(1, len(rows) + 1)), "numbered without gaps"
    return [row[1].removeprefix("thread.") for row in rows]


async def thread_is_free(services: Services, run: Run) -> bool:
    return await store.active_run_id_or_none(services, PROJECT, run.thread_id) is None


class BrokenNowAndThen:
    """A database that can be told to refuse writes, as one on a full disk does."""

    def __init__(self, db: Database) -> None:
        self._db = db
        self.is_full = False
        self.refused = asyncio.Event()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._db, name)

    async def write(
        self, statements: Sequence[Bound], on_commit: Callable[[], None] | None = None, *, durable: bool = True
    ) -> list[list[Row]]:
        if self.is_full:
            self.refused.set()
            raise StoreUnavailable("The database cannot be written: database or disk is full.")
        return await self._db.write(statements, on_commit, durable=durable)


# --- the straight way -----------------------------------------------------------------------------------------------------------


async def test_a_run_is_claimed_executed_and_let_go(services: Services) -> None:
    async with working(services):
        run = await create_run(services)
        await until_status(services, run, "completed")
    row = await run_row(services, run)
    assert (row.attempt, row.lease_owner, row.lease_until) == (1, None, 0.0)
    assert [text_of(message) for message in await messages_of(services, run)] == ["You said: Hello"]
    names = await event_names(services, run)
    assert names[:3] == ["run.created", "run.queued", "run.in_progress"]
    assert names[-1] == "run.completed"
    assert len(names) == row.version


async def test_a_run_that_no_queue_tells_of_is_swept_up(services: Services) -> None:
    run = await create_run(services)
    async with working(other_process(services)):
        await until_status(services, run, "completed")


async def test_offering_a_run_again_and_again_executes_it_once(services: Services, endpoint: ScriptedEndpoint) -> None:
    async with working(services, other_process(services)):
        run = await create_run(services)
        for _ in range(50):
            services.queue.put("run", run.id)
            await asyncio.sleep(0)
        services.queue.put("run", "run_of_nobody")
        await until_status(services, run, "completed")
        services.queue.put("run", run.id)
        await asyncio.sleep(0.1)
    assert (await run_row(services, run)).attempt == 1
    assert len(endpoint.requests) == 1


# --- leases ---------------------------------------------------------------------------------------------------------------------


async def test_two_workers_that_sweep_the_same_rows_share_the_runs(services: Services, endpoint: ScriptedEndpoint) -> None:
    made = [await create_run(services, f"number {number}") for number in range(20)]
    async with working(other_process(services), other_process(services)):
        for run in made:
            await until_status(services, run, "completed")
    assert [(await run_row(services, run)).attempt for run in made] == [1] * 20
    assert len(endpoint.requests) == 20


async def test_a_living_worker_keeps_its_run(settings: Settings, endpoint: ScriptedEndpoint) -> None:
    """With real time: the answer takes several leases, and somebody else looks for lost runs all the while."""
    endpoint.script = Script([Rule([Text(["tick "] * 20, delay_seconds=0.1)])])
    async with open_services(dataclasses.replace(settings, lease_seconds=0.6)) as services, working(services, other_process(services)):
        run = await create_run(services)
        await until_status(services, run, "completed")
        assert (await run_row(services, run)).attempt == 1
    assert len(endpoint.requests) == 1


async def test_a_stalled_worker_is_replaced_and_can_write_nothing_more(
    services: Services, clock: ManualClock, endpoint: ScriptedEndpoint
) -> None:
    """The first worker stands still in the middle of its answer, as after SIGSTOP, and goes on when another has done its work."""
    endpoint.script = Script(
        [Rule([Text("This is "), Wait(1.0), Text("the old answer.")], times=1), Rule([Text("This is the new answer.")])]
    )
    async with working(services) as [stalled]:
        run = await create_run(services)
        await until(lambda: has_message(services, run))
        other = other_process(services)
        async with working(other):
            await asyncio.sleep(0.2)
            assert (await run_row(services, run)).attempt == 1, "the lease has not run out"
            clock.advance(LEASE_SECONDS + 1)
            await until_status(services, run, "completed")
        before = await run_row(services, run), await event_names(services, run)
        await endpoint.wait_for_streams(0)
        await asyncio.sleep(0.1)
        assert (await run_row(services, run), await event_names(services, run)) == before
        assert not stalled.done(), "losing a run is nothing that stops a worker"
        assert before[0].attempt == 2
    assert [(text_of(message), message.status) for message in await messages_of(services, run)] == [
        ("This is the new answer.", "completed")
    ]
    assert [record.step.status for record in await steps_of(services, run)] == ["completed"]
    assert Counter(before[1])["message.created"] == 1


async def has_message(services: Services, run: Run) -> bool:
    return bool(await messages_of(services, run))


async def test_a_worker_that_lost_its_lease_stops_asking_the_model(settings: Settings, endpoint: ScriptedEndpoint) -> None:
    """It learns of it when it renews the lease."""
    endpoint.script = Script([Rule([Text("Once upon"), Stall()])])
    async with open_services(dataclasses.replace(settings, lease_seconds=0.6, sweep_interval_seconds=60)) as services, working(services):
        run = await create_run(services)
        await until(lambda: has_message(services, run))
        record = await store.get_record_for_worker(services, run.id)
        await store.take_over_run(services, record, Lease("worker_of_another_process", time.time() + 60))
        await endpoint.wait_for_streams(0)
        row = await run_row(services, run)
        assert (row.status, row.lease_owner) == ("in_progress", "worker_of_another_process")


async def test_a_stopping_worker_hands_its_runs_back(services: Services, endpoint: ScriptedEndpoint) -> None:
    """Another goes on at once, without waiting for the lease to run out."""
    endpoint.script = Script([Rule([Text("Once upon"), Stall()], times=1)])
    async with working(services):
        run = await create_run(services)
        await until(lambda: has_message(services, run))
    row = await run_row(services, run)
    assert (row.status, row.lease_owner, row.lease_until) == ("in_progress", None, 0.0)
    await endpoint.wait_for_streams(0)
    async with working(other_process(services)):
        await until_status(services, run, "completed")
    assert [text_of(message) for message in await messages_of(services, run)] == ["You said: Hello"]


async def test_a_stopping_worker_begins_nothing_new(services: Services, endpoint: ScriptedEndpoint) -> None:
    """Neither what waits in its backlog, nor what was offered again while it was attended to."""
    endpoint.script = Script([Rule([Stall()])])
    async with working(services):
        made = [await create_run(services, f"number {number}") for number in range(8)]
        await endpoint.wait_for_streams(3)
        for run in made:
            services.queue.put("run", run.id)
        await asyncio.sleep(0.1)
    statuses = [(await run_row(services, run)).status for run in made]
    await endpoint.wait_for_streams(0)
    await asyncio.sleep(0.1)
    assert statuses == ["in_progress"] * 3 + ["queued"] * 5
    assert statuses == [(await run_row(services, run)).status for run in made]
    assert [(await run_row(services, run)).lease_owner for run in made] == [None] * 8
    assert len(endpoint.requests) == 3


async def test_stale_writes_are_refused_and_told_to_nobody(services: Services, clock: ManualClock) -> None:
    run = await create_run(services)
    queued = await store.get_record_for_worker(services, run.id)
    first = await store.transition_run(services, queued, "in_progress", lease=Lease("worker_1", clock.now() + 30))
    second = await store.take_over_run(services, first, Lease("worker_2", clock.now() + 30))
    reader = await services.events.subscribe(run.id, START, 0, 0)
    told = len(await reader.next())
    row = await run_row(services, run)
    for stale in (queued, first, dataclasses.replace(second, version=second.version - 1)):
        with pytest.raises(RunLost):
            await store.save_changes(services, stale, Changes())
        with pytest.raises(RunLost):
            await store.take_over_run(services, stale, Lease("worker_3", clock.now() + 30))
        for to in ("completed", "cancelling", "requires_action", "in_progress"):
            with pytest.raises((RunLost, RunStateConflict)):
                await store.transition_run(services, stale, to)
    with pytest.raises(RunLost):
        await end_run(services, first, "failed")
    assert await leases.renew_leases(services, "worker_1", {run.id: first.attempt}, clock.now() + 99) == [run.id]
    assert await leases.renew_leases(services, "worker_1", {run.id: second.attempt}, clock.now() + 99) == [run.id]
    assert await leases.renew_leases(services, "worker_2", {run.id: first.attempt}, clock.now() + 99) == [run.id]
    assert await run_row(services, run) == row
    reader.nudge()
    assert list(await reader.next()) == []
    assert told == 3
    assert await leases.renew_leases(services, "worker_2", {run.id: second.attempt}, clock.now() + 99) == []
    assert (await run_row(services, run)).lease_until == clock.now() + 99


async def test_of_many_claims_exactly_one_wins(services: Services, clock: ManualClock) -> None:
    run = await create_run(services)
    record = await store.get_record_for_worker(services, run.id)
    claims = [store.transition_run(services, record, "in_progress", lease=Lease(f"worker_{n}", clock.now() + 30)) for n in range(20)]
    outcomes = await asyncio.gather(*claims, return_exceptions=True)
    won = [outcome for outcome in outcomes if isinstance(outcome, RunRecord)]
    assert len(won) == 1
    assert all(isinstance(outcome, RunLost) for outcome in outcomes if outcome is not won[0])
    assert (await run_row(services, run)).lease_owner == won[0].lease_owner
    assert await event_names(services, run) == ["run.created", "run.queued", "run.in_progress"]


# --- the backlog ----------------------------------------------------------------------------------------------------------------


async def test_no_more_runs_than_allowed_are_executed_and_the_oldest_goes_first(services: Services, endpoint: ScriptedEndpoint) -> None:
    endpoint.script = Script([Rule([Wait(0.05), Text("Done.")])])
    most = 0

    async def watch() -> None:
        nonlocal most
        while True:
            most = max(most, endpoint.open_streams)
            await asyncio.sleep(0.002)

    watching = asyncio.create_task(watch())
    made = [await create_run(services, f"number {number}") for number in range(12)]
    async with working(services):
        for run in made:
            await until_status(services, run, "completed")
    watching.cancel()
    assert most == 3
    asked = [thread_text(body) for body in endpoint.requests]
    assert sorted(asked, key=lambda text: int(text.split()[1])) == [f"number {number}" for number in range(12)]
    assert all(abs(int(text.split()[1]) - place) <= 2 for place, text in enumerate(asked)), (
        "in their order, as far as three at a time allow"
    )


def thread_text(body: dict[str, Any]) -> str:
    return body["messages"][-1]["content"]


async def test_a_run_that_is_offered_again_takes_no_turn_from_those_that_wait(services: Services, endpoint: ScriptedEndpoint) -> None:
    endpoint.script = Script([Rule([Wait(0.05), Text("Done.")])])
    async with working(services):
        made = [await create_run(services, f"number {number}") for number in range(9)]
        await endpoint.wait_for_streams(3)
        while not await thread_is_free(services, made[-1]):
            for run in made[:3]:
                services.queue.put("run", run.id)  # as a client does that cancels over and over
            await asyncio.sleep(0.01)
    asked = [int(thread_text(body).split()[1]) for body in endpoint.requests]
    assert all(abs(number - place) <= 2 for place, number in enumerate(asked)), asked


# --- the end before its time ----------------------------------------------------------------------------------------------------


async def test_a_cancelled_run_keeps_what_was_told_and_frees_its_thread(services: Services, endpoint: ScriptedEndpoint) -> None:
    endpoint.script = Script([Rule([Text("Once upon a time"), Stall()])])
    async with working(services):
        run = await create_run(services)
        await until(lambda: has_message(services, run))
        reader = await services.events.subscribe(run.id, START, 0, 0)
        await until(lambda: has_told(reader, "time"))
        answer = msgspec.json.decode(await commands.cancel_run(of(services, run)), type=Run)
        assert (answer.status, answer.cancelled_at) == ("cancelling", None)
        record = await until_status(services, run, "cancelled")
        await endpoint.wait_for_streams(0)
    [message] = await messages_of(services, run)
    assert (text_of(message), message.status) == ("Once upon a time", "incomplete")
    assert message.incomplete_details is not None
    assert message.incomplete_details.reason == "run_cancelled"
    assert [known.step.status for known in await steps_of(services, run)] == ["cancelled"]
    assert (record.run.cancelled_at, record.run.expires_at) == (services.now(), None)
    assert await thread_is_free(services, run)


async def has_told(reader: Any, text: str) -> bool:
    return any(text.encode() in event.data for event in await reader.next())


@pytest.mark.parametrize("status", ["queued", "requires_action"])
async def test_a_run_without_a_worker_is_cancelled_too(services: Services, status: str) -> None:
    run = await create_run(services, 'call look {"x": 1}', ["look"])
    async with working(services):
        if status == "requires_action":
            await until_status(services, run, "requires_action")
        else:
            run = await create_run(services)
        await commands.cancel_run(of(services, run))
        await until_status(services, run, "cancelled")
    assert all(known.step.status == "cancelled" for known in await steps_of(services, run))
    assert await thread_is_free(services, run)


async def test_a_run_whose_worker_is_lost_while_it_is_cancelled_is_cancelled_by_another(services: Services, clock: ManualClock) -> None:
    run = await create_run(services)
    record = await store.get_record_for_worker(services, run.id)
    await store.transition_run(services, record, "in_progress", lease=Lease("worker_that_died", clock.now() + LEASE_SECONDS))
    await commands.cancel_run(of(services, run))
    async with working(services):
        await asyncio.sleep(0.2)
        assert (await run_row(services, run)).status == "cancelling", "its worker may still tell what it had"
        assert await leases.get_due_runs(services, 10) == []
        clock.advance(LEASE_SECONDS + 1)
        await until_status(services, run, "cancelled")


@pytest.mark.parametrize("status", ["queued", "in_progress", "requires_action"])
async def test_a_run_expires_in_whatever_status_it_is(services: Services, clock: ManualClock, status: str) -> None:
    run = await create_run(services, "call look", ["look"])
    if status == "requires_action":
        async with working(services):
            await until_status(services, run, "requires_action")
    if status == "in_progress":
        record = await store.get_record_for_worker(services, run.id)
        await store.transition_run(services, record, "in_progress", lease=Lease("worker_that_died", clock.now() + LEASE_SECONDS))
    clock.advance(services.settings.run_expiry_seconds + LEASE_SECONDS)
    async with working(services):
        record = await until_status(services, run, "expired")
    assert record.run.expires_at == run.expires_at
    assert await thread_is_free(services, run)
    with pytest.raises(RunStateConflict, match='Runs in status "expired" do not accept tool outputs'):
        await submit(services, run)


def test_runs_expire_on_time_while_the_model_is_silent(tmp_path: Path) -> None:
    """On the event loop of the server, whose timers may fire up to a millisecond early."""

    async def late_by() -> list[float]:
        async with ScriptedEndpoint(Script([Rule([Text("Once"), Stall()])])) as endpoint:
            settings = Settings(data_dir=tmp_path, openai_base_url=endpoint.base_url, run_expiry_seconds=1, run_concurrency_max=100)
            async with open_services(settings) as services, working(services):
                made: list[Run] = []
                for _ in range(30):
                    made.append(await create_run(services))
                    await asyncio.sleep(0.0137)  # not in step with whole milliseconds
                ended: list[float] = []
                async with asyncio.timeout(10):
                    for run in made:
                        await until_status(services, run, "expired")
                        ended.append(time.time() - (run.expires_at or 0))
                return ended

    assert max(uvloop.run(late_by())) < 2.0


async def test_a_deleted_thread_stops_its_run(services: Services, endpoint: ScriptedEndpoint) -> None:
    endpoint.script = Script([Rule([Text("Once"), Stall()])])
    async with working(services):
        run = await create_run(services)
        await until(lambda: has_message(services, run))
        await thread_routes.delete_thread(request(services, thread_id=run.thread_id))
        await endpoint.wait_for_streams(0)
        another = await create_run(services, "still alive")
        await until_status(services, another, "in_progress")


# --- several parties at the same time -------------------------------------------------------------------------------------------


async def outcome_of(call: Any) -> str:
    try:
        await call
    except (RunStateConflict, NotFound) as exc:
        return exc.message
    return "done"


@pytest.mark.parametrize("seed", [1, 2, 3])
async def test_cancel_against_complete(services: Services, endpoint: ScriptedEndpoint, seed: int) -> None:
    """An accepted cancel ends in `cancelled`; a refused one finds a run that has completed. Nothing else happens."""
    pick = random.Random(seed)
    endpoint.script = Script([Rule([Text("one two three")])])
    async with working(services):
        for _ in range(15):
            run = await create_run(services)
            for _ in range(pick.randrange(12)):
                await asyncio.sleep(0 if pick.random() < 0.5 else 0.001)
            outcome = await outcome_of(commands.cancel_run(of(services, run)))
            record = await until_status(services, run, "cancelled" if outcome == "done" else "completed")
            assert outcome in ("done", "Cannot cancel run with status 'completed'.")
            names = await event_names(services, run)
            assert Counter(names)["run.cancelling"] == (outcome == "done")
            assert record.version == len(names)
            assert all(known.step.status in ("completed", "cancelled") for known in await steps_of(services, run))
            assert all(message.status in ("completed", "incomplete") for message in await messages_of(services, run))
            assert await thread_is_free(services, run)


@pytest.mark.parametrize("seed", [1, 2, 3])
async def test_submit_against_submit_cancel_and_expiry(services: Services, clock: ManualClock, seed: int) -> None:
    """Of several outputs one is accepted; who comes too late is told so, in the words of the API."""
    pick = random.Random(seed)
    async with working(services):
        made = [await create_run(services, 'call look {"x": 1}', ["look"]) for _ in range(12)]
        for number, run in enumerate(made):
            await until_status(services, run, "requires_action")
            calls = [submit(services, run, "first"), submit(services, run, "second")]
            calls += [commands.cancel_run(of(services, run))] if number % 2 else []
            calls += [expire(services, run)] if number % 3 == 0 else []
            pick.shuffle(calls)
            outcomes = await asyncio.gather(*(outcome_of(call) for call in calls))
            record = await until_status(services, run, *TERMINAL)
            submitted = [
                known.step.step_details.tool_calls[0].function.output
                for known in await steps_of(services, run)
                if known.step.type == "tool_calls"
            ]  # type: ignore[union-attr]
            assert outcomes.count("done") >= 1
            for outcome in outcomes:
                assert (
                    outcome == "done" or "do not accept tool outputs" in outcome or "Cannot cancel" in outcome or "Expected tool" in outcome
                )
            if record.run.status == "completed":
                assert submitted in (["first"], ["second"])
            assert await thread_is_free(services, run)


async def expire(services: Services, run: Run) -> None:
    """What a sweep does that finds the run too old."""
    record = await store.get_record_for_worker(services, run.id)
    with contextlib.suppress(RunLost):
        await end_run(services, record, "expired")


async def test_a_run_expires_at_once_when_its_timer_was_early(services: Services, clock: ManualClock, endpoint: ScriptedEndpoint) -> None:
    """The timer counts on while the clock stands still just before the time."""
    endpoint.script = Script([Rule([Text("Once"), Stall()])])
    run = await create_run(services)
    clock.advance((run.expires_at or 0) - clock.now() - 0.05)
    async with working(services):
        await until_status(services, run, "in_progress")
        await asyncio.sleep(0.1)
        assert (await run_row(services, run)).status == "in_progress"
        clock.advance(0.1)
        async with asyncio.timeout(2):
            await until_status(services, run, "expired")


@pytest.mark.parametrize("rival", ["submit", "cancel", "expire"])
async def test_metadata_that_was_changed_meanwhile_is_not_lost(services: Services, rival: str) -> None:
    """The rival has read the run before the change and writes it after."""
    run = await create_run(services, "call look", ["look"])
    async with working(services):
        await until_status(services, run, "requires_action")
    seen = await store.get_record_for_worker(services, run.id)
    await commands.modify_run(of(services, run, ModifyRun(metadata={"kept": "yes"})))
    if rival == "expire":
        await end_run(services, seen, "expired")
    else:
        with pytest.raises(RunLost):
            await store.transition_run(services, seen, "queued" if rival == "submit" else "cancelling")
        await (submit(services, run) if rival == "submit" else commands.cancel_run(of(services, run)))
    assert (await store.get_record_for_worker(services, run.id)).run.metadata == {"kept": "yes"}


async def test_outputs_are_refused_politely_when_the_run_is_cancelled_while_they_are_read(services: Services) -> None:
    """Between the reading of the run and of its steps."""

    class CancelsBeforeSteps:
        def __init__(self) -> None:
            self.has_cancelled = False

        def __getattr__(self, name: str) -> Any:
            return getattr(services.db, name)

        async def read(self, statement: Bound) -> list[Row]:
            if "run_steps" in statement.query.compiled(sa.create_engine("sqlite://").dialect).text and not self.has_cancelled:
                self.has_cancelled = True
                record = await store.get_record_for_worker(services, run.id)
                await end_run(services, record, "expired")
            return await services.db.read(statement)

    run = await create_run(services, "call look", ["look"])
    async with working(services):
        await until_status(services, run, "requires_action")
    with pytest.raises(RunStateConflict, match='"expired"'):
        await submit(dataclasses.replace(services, db=CancelsBeforeSteps()), run)  # type: ignore[arg-type]


async def test_of_simultaneous_runs_on_one_thread_exactly_one_is_created(services: Services) -> None:
    assistant_id, thread_id = await create_assistant(services), await create_thread(services)
    bodies = [CreateRun(assistant_id=assistant_id, additional_messages=[CreateMessage(role="user", content=f"{n}")]) for n in range(20)]
    outcomes = await asyncio.gather(*(outcome_of(commands.create_run(request(services, body, thread_id=thread_id))) for body in bodies))
    assert outcomes.count("done") == 1
    assert all("already has an active run run_" in outcome for outcome in outcomes if outcome != "done")
    assert len(await thread_store.get_history(services, PROJECT, thread_id, 100)) == 2, "the refused ones left no message behind"


async def test_whatever_clients_do_at_the_same_time_a_run_ends_and_frees_its_thread(services: Services, endpoint: ScriptedEndpoint) -> None:
    pick = random.Random(11)
    endpoint.script = Script([Rule([Text("Let me see. "), ToolCalls([ScriptedCall("look", "{}")])], after_tool=False)])
    async with working(services, other_process(services)):
        for _ in range(10):
            run = await create_run(services, functions=["look"])
            async with asyncio.timeout(10):
                while not await thread_is_free(services, run):
                    acts = [submit(services, run), commands.modify_run(of(services, run, ModifyRun(metadata={"a": "b"})))]
                    acts += [commands.cancel_run(of(services, run))] if pick.random() < 0.1 else []
                    await asyncio.gather(*(tolerated(act) for act in acts))
                    await asyncio.sleep(pick.random() * 0.004)
            record = await store.get_record_for_worker(services, run.id)
            assert record.run.status in ("completed", "cancelled")
            assert record.version == len(await event_names(services, run))
            assert all(known.step.status != "in_progress" for known in await steps_of(services, run))


async def tolerated(call: Any) -> None:
    with contextlib.suppress(AppError):
        await call


# --- going on after a loss ------------------------------------------------------------------------------------------------------


async def test_a_run_goes_on_when_the_database_can_be_written_again(
    services: Services, clock: ManualClock, endpoint: ScriptedEndpoint
) -> None:
    db = BrokenNowAndThen(services.db)
    services = dataclasses.replace(services, db=db)  # type: ignore[arg-type]
    endpoint.script = Script([Rule([Wait(0.2), Text("Too early.")], times=1), Rule([Text("At last.")])])
    async with working(services):
        run = await create_run(services)
        await endpoint.wait_for_streams(1)
        db.is_full = True
        await db.refused.wait()
        await endpoint.wait_for_streams(0)
        assert (await run_row(services, run)).status == "in_progress"
        db.is_full = False
        clock.advance(LEASE_SECONDS + 1)
        await until_status(services, run, "completed")
    assert [text_of(message) for message in await messages_of(services, run)] == ["At last."]


async def lose_worker(services: Services, run: Run) -> None:
    """Let a worker begin its message; then it is gone."""
    async with working(services):
        await until(lambda: has_message(services, run))


async def test_a_step_whose_message_was_deleted_meanwhile_does_not_stay_open(services: Services, endpoint: ScriptedEndpoint) -> None:
    endpoint.script = Script([Rule([Text("Once"), Stall()], times=1)])
    run = await create_run(services)
    await lose_worker(services, run)
    [draft] = await messages_of(services, run)
    audit = audit_entry(PROJECT, services.now(), "thread.message.deleted", draft.id, actor="nobody")
    await thread_store.delete_message(services, PROJECT, run.thread_id, draft.id, audit)
    async with working(services):
        await until_status(services, run, "completed")
    assert [known.step.status for known in await steps_of(services, run)] == ["failed", "completed"]
    assert [text_of(message) for message in await messages_of(services, run)] == ["You said: Hello"]


async def test_a_model_that_goes_another_way_after_a_loss_leaves_nothing_open(services: Services, endpoint: ScriptedEndpoint) -> None:
    """It was writing a message, and calls a function when it is asked again."""
    endpoint.script = Script([Rule([Text("Once"), Stall()], times=1), Rule([ToolCalls([ScriptedCall("look")])], after_tool=False)])
    run = await create_run(services, functions=["look"])
    await lose_worker(services, run)
    async with working(services):
        await until_status(services, run, "requires_action")
        await submit(services, run)
        await until_status(services, run, "completed")
    assert [(known.step.type, known.step.status) for known in await steps_of(services, run)] == [
        ("message_creation", "failed"),
        ("tool_calls", "completed"),
        ("message_creation", "completed"),
    ]
    assert [message.status for message in await messages_of(services, run)] == ["incomplete", "completed"]


SPEAKS_AND_CALLS = [Text("Let me look. "), ToolCalls([ScriptedCall("look")])]


async def test_text_before_calls_is_not_said_twice_after_a_loss(services: Services, endpoint: ScriptedEndpoint) -> None:
    """The message was finished and the calls were not: asked again, the model says both again."""
    endpoint.script = Script([Rule([*SPEAKS_AND_CALLS, Stall()], times=2), Rule(SPEAKS_AND_CALLS, after_tool=False)])
    run = await create_run(services, functions=["look"])
    for _ in range(2):
        async with working(services):
            await until(lambda: has_tool_step(services, run))
            await endpoint.wait_for_streams(1)
    async with working(services):
        await until_status(services, run, "requires_action")
        await submit(services, run)
        await until_status(services, run, "completed")
    assert [text_of(message) for message in await messages_of(services, run)] == ["Let me look. ", "The tool returned: 42"]
    assert [(known.step.type, known.step.status, known.turn) for known in await steps_of(services, run)] == [
        ("message_creation", "completed", 1),
        ("tool_calls", "completed", 1),
        ("message_creation", "completed", 2),
    ]
    assert [len(body["messages"]) for body in endpoint.requests] == [1, 1, 1, 3], "a turn is asked for again with the same prompt"


async def has_tool_step(services: Services, run: Run) -> bool:
    return any(known.step.type == "tool_calls" for known in await steps_of(services, run))


async def test_a_model_that_calls_nothing_after_a_loss_is_heard(services: Services, endpoint: ScriptedEndpoint) -> None:
    endpoint.script = Script([Rule([*SPEAKS_AND_CALLS, Stall()], times=1), Rule([Text("I know it "), Text("already.")])])
    run = await create_run(services, functions=["look"])
    async with working(services):
        await until(lambda: has_tool_step(services, run))
    async with working(services):
        await until_status(services, run, "completed")
    assert [text_of(message) for message in await messages_of(services, run)] == ["Let me look. ", "I know it already."]
    assert [known.step.status for known in await steps_of(services, run)] == ["completed", "failed", "completed"]

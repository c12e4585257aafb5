"""Which waiting run is next: projects take turns, and limits hold over all workers. The same on both databases."""

import asyncio
import contextlib
import dataclasses
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
import sqlalchemy as sa

from mini_assistant import administration
from mini_assistant.app import open_services
from mini_assistant.assistants import routes as assistant_routes
from mini_assistant.assistants.schema import CreateAssistant
from mini_assistant.db.base import Query
from mini_assistant.db.tables import runs
from mini_assistant.http.routing import Request
from mini_assistant.models.script import Rule, Script, Stall
from mini_assistant.models.scripted import ScriptedEndpoint
from mini_assistant.runs import commands, store
from mini_assistant.runs.claims import FairOrder
from mini_assistant.runs.schema import CreateThreadAndRun, Run
from mini_assistant.runs.store import Lease, transition_run
from mini_assistant.runs.worker import Worker
from mini_assistant.services import Services
from mini_assistant.settings import ProviderSettings, Settings

_statuses = Query(sa.select(runs.c.project_id, runs.c.status))


@pytest.fixture(params=["sqlite", "postgres"])
def settings(request: pytest.FixtureRequest, tmp_path: Path, endpoint: ScriptedEndpoint) -> Settings:
    database_url = request.getfixturevalue("postgres_url") if request.param == "postgres" else ""
    settings = Settings(
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
async def services(settings: Settings) -> AsyncIterator[Services]:
    async with open_services(settings) as opened, asyncio.timeout(50):
        yield opened


def with_settings(services: Services, **changes: Any) -> Services:
    return dataclasses.replace(services, settings=dataclasses.replace(services.settings, **changes))


@contextlib.asynccontextmanager
async def working(*several: Services) -> AsyncIterator[None]:
    tasks = [asyncio.create_task(Worker(services).run()) for services in several]
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def assistant_of(services: Services, project_id: str, model: str = "scripted") -> str:
    body = CreateAssistant(model=model, instructions="Answer.")
    return msgspec.json.decode(await assistant_routes.create_assistant(Request(services, project_id, {}, body, None)))["id"]


async def create_runs(services: Services, project_id: str, count: int, model: str = "scripted") -> list[Run]:
    assistant_id = await assistant_of(services, project_id, model)
    body = CreateThreadAndRun(assistant_id=assistant_id)
    started = [await commands.create_thread_and_run(Request(services, project_id, {}, body, None)) for _ in range(count)]
    return [each.run for each in started]


async def claim(services: Services, run: Run, order: FairOrder) -> None:
    record = await store.get_record_for_worker(services, run.id)
    limits = order.limits_of_claim(record, services.models.provider_or_none(run.model))
    await transition_run(services, record, "in_progress", lease=Lease("worker_1", services.clock.now() + 30), extra_statements=limits)


async def until(condition: Callable[[list[Any]], bool], services: Services) -> list[Any]:
    while True:
        rows = await services.db.read(_statuses())
        if condition(rows):
            return rows
        await asyncio.sleep(0.01)


async def test_projects_take_turns_however_many_runs_one_of_them_has(services: Services) -> None:
    many, few = await create_runs(services, "many", 30), await create_runs(services, "few", 2)
    order = FairOrder(0, {})
    assert await order.next_runs(services, 5) == [run.id for run in (many[0], few[0], many[1], few[1], many[2])]
    await claim(services, many[0], order)
    await claim(services, few[0], order)
    await claim(services, few[1], order)
    assert await order.next_runs(services, 3) == [many[1].id, many[2].id, many[3].id]


async def test_a_run_whose_worker_is_lost_comes_first(services: Services) -> None:
    lost, waiting = await create_runs(services, "p", 2)
    record = await store.get_record_for_worker(services, lost.id)
    await transition_run(services, record, "in_progress", lease=Lease("worker_that_died", services.clock.now() - 1))
    assert await FairOrder(1, {}).next_runs(services, 5) == [lost.id], "the limit of the project is used up by the lost one"
    assert await FairOrder(0, {}).next_runs(services, 5) == [lost.id, waiting.id]


async def test_a_limit_of_a_project_holds_when_claims_are_made_at_once(services: Services) -> None:
    claimed, order = await create_runs(services, "p", 12), FairOrder(3, {})
    others = await create_runs(services, "q", 2)
    outcomes = await asyncio.gather(*(claim(services, run, order) for run in [*claimed, *others]), return_exceptions=True)
    assert [type(outcome) for outcome in outcomes].count(store.RunLost) == 9
    rows = await services.db.read(_statuses())
    assert sorted(project for project, status in rows if status == "in_progress") == ["p", "p", "p", "q", "q"]
    assert await order.next_runs(services, 20) == []


async def test_a_limit_of_a_provider_holds_for_all_projects(services: Services) -> None:
    provider = services.models.provider_or_none("scripted")
    assert provider is not None
    order = FairOrder(0, {provider: 2})
    first, second = await create_runs(services, "p", 2), await create_runs(services, "q", 2)
    assert await order.next_runs(services, 9) == [first[0].id, second[0].id, first[1].id, second[1].id]
    outcomes = await asyncio.gather(*(claim(services, run, order) for run in [*first, *second]), return_exceptions=True)
    assert [type(outcome) for outcome in outcomes].count(store.RunLost) == 2
    assert await order.next_runs(services, 9) == []


async def test_the_first_run_of_a_project_is_not_held_up_by_a_thousand_of_another(services: Services, endpoint: ScriptedEndpoint) -> None:
    """Two workers with two places each; the other project's run comes last and ends when most of the thousand still wait."""
    narrow = with_settings(services, run_concurrency_max=2)
    await create_runs(services, "many", 1000)
    async with working(narrow, narrow):
        await until(lambda rows: ("many", "completed") in rows, services)
        await create_runs(services, "few", 1)
        rows = await until(lambda rows: ("few", "completed") in rows, services)
    assert rows.count(("many", "queued")) > 500


async def test_a_worker_goes_on_when_a_limit_allows_it(settings: Settings, services: Services, endpoint: ScriptedEndpoint) -> None:
    limited = with_settings(services, project_runs_max=1)
    made = await create_runs(services, "p", 6)
    async with working(limited):
        await until(lambda rows: rows == [("p", "completed")] * len(made), services)


async def test_a_limited_worker_never_has_more_in_progress(services: Services, endpoint: ScriptedEndpoint) -> None:
    endpoint.script = Script([Rule([Stall()])])
    limited = with_settings(services, project_runs_max=2)
    await create_runs(services, "p", 8)
    async with working(limited, limited):
        await endpoint.wait_for_streams(2)
        for _ in range(5):
            await asyncio.sleep(0.1)  # several looks at what waits
            rows = await services.db.read(_statuses())
            assert rows.count(("p", "in_progress")) == 2


async def test_the_provider_of_a_run_is_that_of_its_model(tmp_path: Path, endpoint: ScriptedEndpoint) -> None:
    providers = {"local": ProviderSettings(base_url=endpoint.base_url, runs_max=1)}
    async with open_services(Settings(data_dir=tmp_path, providers=providers, sandbox="none")) as services:
        await create_runs(services, "p", 1)
        assert await services.db.read(Query(sa.select(runs.c.provider))()) == [("local",)]

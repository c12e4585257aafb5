"""`GET /metrics`: figures of one process and of all, scraped from real servers; and what else speaks of them: the page, the dashboard.

The counters are those of the whole test process, so tests look at what has been added.
"""

import asyncio
import dataclasses
import json
import re
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import aiohttp
import openai
import pytest
from prometheus_client import REGISTRY
from prometheus_client.metrics import MetricWrapperBase
from prometheus_client.parser import text_string_to_metric_families

from mini_assistant import metrics
from mini_assistant.administration import create_key
from mini_assistant.app import open_services, running_server, running_worker
from mini_assistant.clock import ManualClock
from mini_assistant.db.base import Bound, Database, Row
from mini_assistant.errors import StoreUnavailable
from mini_assistant.http import metrics_page
from mini_assistant.http.metrics_page import MetricsPage
from mini_assistant.http.routing import Request
from mini_assistant.models.script import Respond, Rule, Script, ScriptedCall, Stall, Text, ToolCalls
from mini_assistant.models.scripted import ScriptedEndpoint
from mini_assistant.queue.procrastinate_schema import apply_schema
from mini_assistant.runs import store
from mini_assistant.runs.store import Lease, transition_run
from mini_assistant.services import Services
from mini_assistant.settings import Settings
from tests.component.test_traces import run, with_store
from tests.component.test_worker import create_run

ROOT = Path(__file__).parents[2]
KEY = "sk-test-0123456789abcdef"

Figures = Mapping[tuple[str, ...], float]


def figures_in(page: str) -> Figures:
    """What a page says: values by name and labels, these as `name=value` in the order of the alphabet."""
    return {
        (sample.name, *(f"{name}={value}" for name, value in sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(page)
        for sample in family.samples
    }


async def scraped(address: str) -> Figures:
    async with aiohttp.ClientSession(address) as http, http.get("/metrics") as response:
        assert response.status == 200
        assert response.headers["Content-Type"] == "text/plain; charset=utf-8"
        return figures_in(await response.text())


def added(before: Figures, after: Figures, *series: str) -> float:
    return after.get(series, 0.0) - before.get(series, 0.0)


async def test_requests_runs_models_tools_and_files_are_counted(server: str, sdk: openai.AsyncOpenAI, endpoint: ScriptedEndpoint) -> None:
    before = await scraped(server)
    call = ToolCalls([ScriptedCall("file_search", json.dumps({"query": "whales"})), ScriptedCall("file_search", "[]")])
    endpoint.script = Script([Rule([call], times=1), Rule([Text("They sing.")], times=1), Rule([Respond(429, {})])])
    assistant = await with_store(sdk)
    ended = await run(sdk, **assistant)
    assert ended.status == "completed"
    assert (await run(sdk)).status == "failed"
    after = await scraped(server)

    assert added(before, after, "mini_assistant_requests_total", "route=createAssistant", "status=200") == 2
    assert added(before, after, "mini_assistant_request_seconds_count", "route=createAssistant") == 2
    assert added(before, after, "mini_assistant_runs_ended_total", "status=completed") == 1
    assert added(before, after, "mini_assistant_runs_ended_total", "status=failed") == 1
    assert added(before, after, "mini_assistant_model_seconds_count", "outcome=ok", "provider=openai") == 2
    assert added(before, after, "mini_assistant_model_seconds_count", "outcome=rate_limit_exceeded", "provider=openai") == 1
    assert added(before, after, "mini_assistant_first_token_seconds_count", "provider=openai") == 2
    assert added(before, after, "mini_assistant_tokens_total", "kind=prompt", "provider=openai") == ended.usage.prompt_tokens
    assert added(before, after, "mini_assistant_tokens_total", "kind=completion", "provider=openai") == ended.usage.completion_tokens
    assert added(before, after, "mini_assistant_tool_seconds_count", "outcome=ok", "tool=file_search") == 1
    assert added(before, after, "mini_assistant_tool_seconds_count", "outcome=bad_arguments", "tool=file_search") == 1
    assert added(before, after, "mini_assistant_ingest_seconds_count", "outcome=completed") == 1
    assert added(before, after, "mini_assistant_search_seconds_count") == 1
    assert added(before, after, "mini_assistant_index_cache_bytes") > 0
    assert ("process_resident_memory_bytes",) in after


async def test_streams_and_runs_are_counted_while_they_last(server: str, http: aiohttp.ClientSession, endpoint: ScriptedEndpoint) -> None:
    endpoint.script = Script([Rule([Text("As far as"), Stall()])])
    before = await scraped(server)
    async with http.post("/v1/assistants", json={"model": "m"}) as response:
        assistant = (await response.json())["id"]
    body = {"assistant_id": assistant, "stream": True, "thread": {"messages": [{"role": "user", "content": "hi"}]}}
    async with http.post("/v1/threads/runs", json=body) as stream:
        async for line in stream.content:
            if line == b"event: thread.message.delta\n":
                break
        meanwhile = await scraped(server)
    assert added(before, meanwhile, "mini_assistant_streams_open") == 1
    assert added(before, meanwhile, "mini_assistant_runs_executing") == 1
    # It is counted when its head is sent: the time is the time until then.
    assert added(before, meanwhile, "mini_assistant_requests_total", "route=createThreadAndRun", "status=200") == 1
    async with asyncio.timeout(10):
        while added(before, await scraped(server), "mini_assistant_streams_open"):  # noqa: ASYNC110 - polled
            await asyncio.sleep(0.02)


async def test_no_label_has_a_value_that_clients_choose(server: str, http: aiohttp.ClientSession, sdk: openai.AsyncOpenAI) -> None:
    mark = "quagga4711"
    call = {"type": "function", "function": {"name": mark}}
    await http.get(f"/v1/{mark}")
    await http.request("QUAGGA", "/v1/assistants")
    await http.get(f"/v1/threads/thread_{mark}")
    assistant = await sdk.beta.assistants.create(model=mark, tools=[call])  # type: ignore[list-item]
    await sdk.beta.threads.create_and_run_poll(assistant_id=assistant.id, thread={"messages": [{"role": "user", "content": mark}]})
    async with http.get("/metrics") as response:
        page = await response.text()

    assert mark not in page.lower()
    assert 'route="none",status="404"' in page


async def status_of(address: str, key: str = "") -> int:
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    async with aiohttp.ClientSession(address, headers=headers) as http, http.get("/metrics") as response:
        return response.status


async def test_figures_are_for_keys_of_the_scope_admin_unless_they_are_public(settings: Settings) -> None:
    with_key = dataclasses.replace(settings, api_keys=(KEY,))
    async with running_server(with_key) as address:
        assert [await status_of(address), await status_of(address, "sk-wrong"), await status_of(address, KEY)] == [401, 401, 200]
        made = [(await create_key(with_key, "team-a", scopes, None)).key for scopes in ("read,write", "admin")]
        assert [await status_of(address, key) for key in made] == [403, 200]
    async with running_server(dataclasses.replace(with_key, metrics_public=True)) as address:
        assert await status_of(address) == 200


async def test_a_worker_shows_its_figures_beside_its_probes(postgres_url: str, settings: Settings) -> None:
    apply_schema(postgres_url)
    settings = dataclasses.replace(settings, database_url=postgres_url, metrics_public=True)
    async with running_worker(settings, ("run", "ingest"), 0) as address:
        assert ("mini_assistant_queue_depth", "kind=run") in await scraped(address)


# ---- what is in rows -----------------------------------------------------------------------------------------------------------------


@pytest.fixture(params=["sqlite", "postgresql"])
async def services(request: pytest.FixtureRequest, settings: Settings) -> AsyncIterator[Services]:
    """The parts of a server in which nobody works; its time stands still until a test moves it."""
    if request.param == "postgresql":
        url = request.getfixturevalue("postgres_url")
        apply_schema(url)
        settings = dataclasses.replace(settings, database_url=url)
    async with open_services(settings) as opened:
        yield dataclasses.replace(opened, clock=ManualClock(float(int(time.time()))))


def asking(services: Services) -> Request[Any, Any]:
    return Request(services, "default", {}, None, None)


async def page_of(services: Services) -> Figures:
    return figures_in((await MetricsPage().get(asking(services))).decode())


async def test_runs_and_queues_are_those_of_all_processes(services: Services) -> None:
    empty = await page_of(services)
    for status in ("queued", "in_progress", "requires_action", "cancelling"):
        assert empty["mini_assistant_runs", f"status={status}"] == 0
    for kind in ("run", "ingest", "webhook"):
        assert empty["mini_assistant_queue_depth", f"kind={kind}"] == empty["mini_assistant_queue_age_seconds", f"kind={kind}"] == 0

    waiting, claimed, lost, asked = [await create_run(services) for _ in range(4)]
    now = services.clock.now()
    for started, until in ((claimed, now + 1000), (lost, now + 5), (asked, now + 1000)):
        record = await store.get_record_for_worker(services, started.id)
        record = await transition_run(services, record, "in_progress", lease=Lease("worker_1", until))
        if started is asked:
            await transition_run(services, record, "requires_action")
    assert isinstance(services.clock, ManualClock)
    services.clock.advance(30)
    told = await page_of(services)

    assert told["mini_assistant_runs", "status=queued"] == 1
    assert told["mini_assistant_runs", "status=in_progress"] == 2
    assert told["mini_assistant_runs", "status=requires_action"] == 1
    # The one that nobody has claimed, and the one whose worker is gone.
    assert told["mini_assistant_queue_depth", "kind=run"] == 2
    assert told["mini_assistant_queue_age_seconds", "kind=run"] == services.clock.now() - waiting.created_at == 30


class CountingDatabase:
    """A database whose reads are counted, and that may be away. Only reads."""

    def __init__(self, db: Database) -> None:
        self._db = db
        self.reads = 0
        self.failure: Exception | None = None
        self.is_silent = False

    async def read(self, statement: Bound) -> list[Row]:
        self.reads += 1
        if self.is_silent:
            await asyncio.Event().wait()
        if self.failure is not None:
            raise self.failure
        return await self._db.read(statement)


async def test_rows_are_looked_at_once_in_a_while(services: Services) -> None:
    db, page = CountingDatabase(services.db), MetricsPage()
    counted = dataclasses.replace(services, db=db)  # type: ignore[arg-type]
    await page.get(asking(counted))
    reads = db.reads
    assert reads > 0
    for _ in range(10):
        await page.get(asking(counted))
    assert db.reads == reads


@pytest.mark.parametrize("is_silent", [True, False])
async def test_the_other_figures_are_told_while_the_database_is_away(
    services: Services, is_silent: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(metrics_page, "_BELIEVED_SECONDS", 0.0)
    db, page = CountingDatabase(services.db), MetricsPage()
    away = asking(dataclasses.replace(services, db=db))  # type: ignore[arg-type]
    assert ("mini_assistant_runs", "status=queued") in figures_in((await page.get(away)).decode())
    db.is_silent, db.failure = is_silent, StoreUnavailable("The database is away.")
    with monkeypatch.context() as impatient:
        impatient.setattr(metrics_page, "_READ_SECONDS_MAX", 0.05)
        async with asyncio.timeout(10):
            told = figures_in((await page.get(away)).decode())

    assert ("mini_assistant_streams_open",) in told
    assert not [
        series for series in told if series[0] in ("mini_assistant_runs", "mini_assistant_queue_depth", "mini_assistant_queue_age_seconds")
    ]
    db.is_silent, db.failure = False, None
    assert ("mini_assistant_runs", "status=queued") in figures_in((await page.get(away)).decode())


async def test_an_event_loop_that_is_held_up_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics, "_LAG_SAMPLES", 1)
    metrics.EVENT_LOOP_LAG_SECONDS.set(0.0)
    watching = asyncio.create_task(metrics.watch_event_loop())
    await asyncio.sleep(0)
    time.sleep(0.4)  # noqa: ASYNC251 - that is the point
    async with asyncio.timeout(10):
        while not REGISTRY.get_sample_value("mini_assistant_event_loop_lag_seconds"):  # noqa: ASYNC110 - polled
            await asyncio.sleep(0.01)
    assert (REGISTRY.get_sample_value("mini_assistant_event_loop_lag_seconds") or 0.0) >= 0.2
    watching.cancel()


# ---- what else speaks of metrics -----------------------------------------------------------------------------------------------------


class Defined(NamedTuple):
    """A metric as its definition says."""

    name: str
    kind: str
    labels: Sequence[str]
    meaning: str

    @property
    def series(self) -> set[str]:
        endings = {"counter": ("_total",), "gauge": ("",), "histogram": ("_bucket", "_sum", "_count")}[self.kind]
        return {self.name + ending for ending in endings}


def defined() -> list[Defined]:
    """The metrics of the server in the order of their definitions."""
    found: list[Defined] = []
    for metric in vars(metrics).values():
        if isinstance(metric, metrics.CountedRequests):
            found += [Defined(family.name, family.type, family._labelnames, family.documentation) for family in metric.describe()]
        elif isinstance(metric, MetricWrapperBase):
            [family] = metric.describe()
            found.append(Defined(family.name, family.type, metric._labelnames, family.documentation))
    return found


def test_the_page_about_metrics_has_each_with_its_meaning() -> None:
    page = (ROOT / "docs" / "observability.md").read_text(encoding="utf-8")
    rows = [line for line in page.splitlines() if line.startswith("| `mini_assistant_")]

    assert rows == [
        f"| `{metric.name}{'_total' if metric.kind == 'counter' else ''}` | {metric.kind} | "
        f"{', '.join(f'`{label}`' for label in metric.labels) or 'none'} | {metric.meaning} |"
        for metric in defined()
    ]


def test_the_dashboard_asks_for_metrics_that_there_are() -> None:
    dashboard = json.loads((ROOT / "deploy" / "grafana" / "dashboard.json").read_text(encoding="utf-8"))
    queries = [target["expr"] for panel in dashboard["panels"] for target in panel.get("targets", [])]
    named = {name for query in queries for name in re.findall(r"mini_assistant_\w+", query)}
    known = {name: metric for metric in defined() for name in metric.series}

    assert named - set(known) == set()
    assert {metric.name for metric in defined()} - {known[name].name for name in named} == set(), "the dashboard leaves them out"
    for query in queries:
        for name, labels in re.findall(r"(mini_assistant_\w+)\{([^}]*)\}", query):
            chosen = set(re.findall(r"(\w+)=~?\"", labels)) - {"job", "instance"}
            assert chosen <= set(known[name].labels), query


def test_the_panels_of_the_dashboard_do_not_overlap_and_are_described() -> None:
    dashboard = json.loads((ROOT / "deploy" / "grafana" / "dashboard.json").read_text(encoding="utf-8"))
    taken: set[tuple[int, int]] = set()
    for panel in dashboard["panels"]:
        place = panel["gridPos"]
        cells = {(place["x"] + x, place["y"] + y) for x in range(place["w"]) for y in range(place["h"])}
        assert place["x"] + place["w"] <= 24
        assert not cells & taken, panel["title"]
        taken |= cells
        assert panel["type"] == "row" or (panel["description"].endswith(".") and panel["targets"])
    assert len({panel["id"] for panel in dashboard["panels"]}) == len(dashboard["panels"])

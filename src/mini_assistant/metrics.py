"""Every metric of the server, in one table. `GET /metrics` prints them; `docs/observability.md` explains them.

No label has a value that clients choose: what would be one (paths, models, projects) is left out, or named by its route or provider.
"""

import asyncio
import time
from bisect import bisect_left
from dataclasses import dataclass, field
from itertools import accumulate

from prometheus_client import REGISTRY, Counter, Gauge, Histogram, disable_created_metrics
from prometheus_client.core import CounterMetricFamily, HistogramMetricFamily
from prometheus_client.registry import Collector

# When each series was begun would be as many lines again, and says no more than a counter that begins anew.
disable_created_metrics()

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)
_BOUNDS = [*(str(float(bound)) for bound in _SECONDS), "+Inf"]


@dataclass(slots=True)
class _Answers:
    """Answers of a route with a status. buckets: how many took so long, without those that were faster."""

    seconds: float = 0.0
    buckets: list[int] = field(default_factory=lambda: [0] * (len(_SECONDS) + 1))


class CountedRequests(Collector):
    """The requests of this process: `mini_assistant_requests` and `mini_assistant_request_seconds`.

    Counted for every request, so by hand: a `Counter` and a `Histogram` take three times as long, for locks that nobody needs here.
    Used in the event loop only.
    """

    def __init__(self) -> None:
        self._answers: dict[tuple[str, int], _Answers] = {}

    def count(self, route: str, status: int, seconds: float) -> None:
        """Count an answered request. route: the name of its route; empty for an address that leads nowhere."""
        answers = self._answers.get((route, status))
        if answers is None:
            answers = self._answers[route, status] = _Answers()
        answers.seconds += seconds
        answers.buckets[bisect_left(_SECONDS, seconds)] += 1

    def describe(self) -> tuple[CounterMetricFamily, HistogramMetricFamily]:
        """The two families without what was counted."""
        return (
            CounterMetricFamily("mini_assistant_requests", "Requests that were answered.", labels=["route", "status"]),
            HistogramMetricFamily("mini_assistant_request_seconds", "Time until an answer, or the head of a stream.", labels=["route"]),
        )

    def collect(self) -> tuple[CounterMetricFamily, HistogramMetricFamily]:
        """The two families."""
        counts, times = self.describe()
        of_route: dict[str, list[_Answers]] = {}
        for (route, status), answers in self._answers.items():
            counts.add_metric([route or "none", str(status)], sum(answers.buckets))
            of_route.setdefault(route or "none", []).append(answers)
        for route, several in of_route.items():
            faster = accumulate(map(sum, zip(*(answers.buckets for answers in several), strict=True)))
            times.add_metric([route], list(zip(_BOUNDS, faster, strict=True)), sum(answers.seconds for answers in several))
        return counts, times


REQUESTS = CountedRequests()
REGISTRY.register(REQUESTS)
STREAMS_OPEN = Gauge("mini_assistant_streams_open", "Streams of runs that are being read.")
LIMITS_REACHED = Counter("mini_assistant_limits_reached", "Requests refused by a limit of their project.", ["limit"])

RUNS_ENDED = Counter("mini_assistant_runs_ended", "Runs that came to an end here, by their last status.", ["status"])
RUNS_EXECUTING = Gauge("mini_assistant_runs_executing", "Runs that this process executes.")
RUNS = Gauge("mini_assistant_runs", "Runs of all processes that have not ended, by status.", ["status"])
QUEUE_DEPTH = Gauge("mini_assistant_queue_depth", "Tasks of all processes that wait for a worker.", ["kind"])
QUEUE_AGE_SECONDS = Gauge("mini_assistant_queue_age_seconds", "Age of the oldest of them.", ["kind"])

MODEL_SECONDS = Histogram("mini_assistant_model_seconds", "Time of a turn of a model.", ["provider", "outcome"], buckets=_SECONDS)
FIRST_TOKEN_SECONDS = Histogram(
    "mini_assistant_first_token_seconds", "Time from asking a model to the first piece of its answer.", ["provider"], buckets=_SECONDS
)
TOKENS = Counter("mini_assistant_tokens", "Tokens that models have read and written.", ["provider", "kind"])
TOOL_SECONDS = Histogram(
    "mini_assistant_tool_seconds", "Time of a call of a hosted tool, or of one of an MCP server.", ["tool", "outcome"], buckets=_SECONDS
)
SANDBOX_SESSIONS = Gauge("mini_assistant_sandbox_sessions", "Sessions of the sandbox in this process.")
INGEST_SECONDS = Histogram("mini_assistant_ingest_seconds", "Time until a file is indexed.", ["outcome"], buckets=_SECONDS)
SEARCH_SECONDS = Histogram("mini_assistant_search_seconds", "Time of a search in vector stores.", buckets=_SECONDS)
INDEX_CACHE_BYTES = Gauge("mini_assistant_index_cache_bytes", "Memory that the index has taken for what is searched often.")
WEBHOOK_CALLS = Counter("mini_assistant_webhook_calls", "Calls of webhooks.", ["outcome"])
EVENT_LOOP_LAG_SECONDS = Gauge("mini_assistant_event_loop_lag_seconds", "How late the event loop was in the last second, at most.")

_LAG_INTERVAL_SECONDS = 0.1
_LAG_SAMPLES = 10


class MeasuredTurn:
    """A turn of a model, from asking for it to its end."""

    def __init__(self, provider: str) -> None:
        self._provider = provider
        self._began = time.perf_counter()

    def begin_answer(self) -> None:
        """The first piece of the answer is there."""
        FIRST_TOKEN_SECONDS.labels(self._provider).observe(time.perf_counter() - self._began)

    def end(self, outcome: str) -> None:
        """outcome: `ok`, `cancelled`, or the code of the error."""
        MODEL_SECONDS.labels(self._provider, outcome).observe(time.perf_counter() - self._began)


async def watch_event_loop() -> None:
    """Measure for how long the event loop could not attend to anything, until cancelled."""
    while True:
        latest_seconds = 0.0
        for _ in range(_LAG_SAMPLES):
            due = time.perf_counter() + _LAG_INTERVAL_SECONDS
            await asyncio.sleep(_LAG_INTERVAL_SECONDS)
            latest_seconds = max(latest_seconds, time.perf_counter() - due)
        EVENT_LOOP_LAG_SECONDS.set(latest_seconds)

"""Executes runs: claims them, keeps their leases alive, and ends them when they are cancelled, expire or fail.

One worker a process. It hears of runs from the queue, and from its own sweep, which finds what the queue has lost. While it has no place
for a run that it hears of, that run waits in its row, and the next one is chosen among all that wait (`claims.FairOrder`).
"""

import asyncio
import logging
from collections import deque
from collections.abc import Coroutine
from typing import Any

from mini_assistant import logs
from mini_assistant.errors import ModelError, StoreUnavailable
from mini_assistant.files.sweep import sweep_files
from mini_assistant.http.idempotency import delete_answers_of_deleted, delete_kept_answers
from mini_assistant.ids import new_id
from mini_assistant.metrics import RUNS_ENDED, RUNS_EXECUTING
from mini_assistant.pagination import forget_deleted_cursors
from mini_assistant.projects.audit import delete_old_audit
from mini_assistant.projects.retention import Retention
from mini_assistant.projects.usage import sweep_usage
from mini_assistant.runs import leases
from mini_assistant.runs.claims import FairOrder
from mini_assistant.runs.endings import end_run
from mini_assistant.runs.loop import RunExecution, get_past
from mini_assistant.runs.observed import observed_run
from mini_assistant.runs.schema import LastError, RunStatus
from mini_assistant.runs.states import ACTIVE
from mini_assistant.runs.store import Lease, RunLost, RunRecord, get_record_for_worker, take_over_run, transition_run
from mini_assistant.services import Services
from mini_assistant.tracing import Traces
from mini_assistant.vector_stores.sweep import sweep_vector_stores

log = logging.getLogger("mini_assistant.runs")

_SWEEP_ROWS_MAX = 1000
# Of those that wait, so many are read at a time, and what has been read is believed for so long: a new project waits no longer than that.
_CANDIDATES_MAX = 32
_CANDIDATE_SECONDS = 0.1
# What else is looked after regularly, beside the runs themselves.
_SWEEPS = (sweep_files, sweep_vector_stores, sweep_usage, delete_old_audit)
# What is deleted now may be seen so much later.
_LATE_SECONDS = 60
_SOMETHING_WRONG = LastError("server_error", "Sorry, something went wrong.")


class Worker:
    """The runs of this process."""

    def __init__(self, services: Services, traces: Traces | None = None) -> None:
        """traces: where runs are told of; None for nowhere."""
        self._services = services
        self._traces = traces
        self._owner = new_id("worker")
        # Runs that are being executed; the loop's own task is there once the run has been claimed.
        self._running: dict[str, _RunningRun] = {}
        settings = services.settings
        provider_limits = {name: limit for name, provider in settings.providers.items() if (limit := provider.runs_max) is not None}
        own_limits = {name: project.runs_max for name, project in settings.projects.items() if project.runs_max is not None}
        self._order = FairOrder(settings.project_runs_max, provider_limits, own_limits)
        self._retention = Retention(services)
        self._looked_for_deleted_at = 0
        # Whether runs may wait that this process has heard of, and the next of them as they were read a moment ago.
        self._has_waiting = False
        self._candidates: deque[str] = deque()
        self._candidates_until = 0.0
        self._is_choosing = False
        self._tasks: set[asyncio.Task[None]] = set()
        self._is_stopping = False

    async def run(self) -> None:
        """Work until cancelled; then stop the loops where they are and hand back their runs."""
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._consume())
                group.create_task(self._keep_leases())
                group.create_task(self._sweep_regularly())
                if self._order.has_limits:
                    group.create_task(self._look_for_waiting_regularly())
        finally:
            self._is_stopping = True
            for task in self._tasks:
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)
            await self._survive(leases.hand_back_leases(self._services, self._owner))

    async def drain(self, seconds: float) -> None:
        """Take no more runs, and wait so long for those in progress."""
        self._is_stopping = True
        attending = [running.attending for running in self._running.values() if running.attending is not None]
        if attending:
            await asyncio.wait(attending, timeout=seconds)

    async def _consume(self) -> None:
        while True:
            self._offer(await self._services.queue.get("run"))

    def _offer(self, run_id: str) -> None:
        running = self._running.get(run_id)
        if running is not None:
            running.is_offered_again = True
            self._start(self._look_again(running))
        elif self._is_stopping:
            return  # another worker finds it, or this one when it is started again
        elif not self._has_place:
            self._has_waiting = True
            self._start(self._end_if_due(run_id))  # ending a run takes no place
        else:
            running = self._running[run_id] = _RunningRun(run_id)
            running.attending = self._start(self._attend(running))

    @property
    def _has_place(self) -> bool:
        return len(self._running) < self._services.settings.run_concurrency_max

    async def _take_waiting(self) -> None:
        """Fill the free places with runs that wait, in their fair order."""
        if self._is_choosing:
            return
        self._is_choosing, time = True, asyncio.get_running_loop().time
        try:
            while self._has_waiting and self._has_place and not self._is_stopping:
                if not self._candidates or time() > self._candidates_until:
                    self._has_waiting = False  # until the queue tells of another one, also while this reads
                    found = await self._order.next_runs(self._services, _CANDIDATES_MAX)
                    self._candidates = deque(run_id for run_id in found if run_id not in self._running)
                    self._candidates_until = time() + _CANDIDATE_SECONDS
                if self._candidates:
                    self._has_waiting = True
                    self._offer(self._candidates.popleft())
        finally:
            self._is_choosing = False

    async def _look_for_waiting_regularly(self) -> None:
        """A run that a limit has held back is told of by nobody when the limit allows it."""
        while True:
            await asyncio.sleep(self._services.settings.claim_interval_seconds)
            self._has_waiting = True
            await self._survive(self._take_waiting())

    def _start(self, work: Coroutine[Any, Any, object]) -> "asyncio.Task[None]":
        task = asyncio.create_task(self._survive(work))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        task.add_done_callback(lambda _: work.close())  # a task that is cancelled before its first step has not begun it
        return task

    async def _survive(self, work: Coroutine[Any, Any, object]) -> None:
        """The outer boundary: whatever goes wrong with one run is logged, and the worker goes on."""
        try:
            await work
        except RunLost:
            pass
        except StoreUnavailable as exc:
            log.error("%s The run will be swept up later.", exc.message)
        except Exception:
            log.exception("unexpected error in the worker")

    async def _attend(self, running: "_RunningRun") -> None:
        """Do for a run whatever its row asks for."""
        logs.run_id.set(running.run_id)
        logs.project_id.set("")  # until its row is read: another run's may have made room for this one
        try:
            execution = await self._claim(running.run_id)
            if execution is not None:
                await self._execute(running, execution)
        finally:
            del self._running[running.run_id]
            if self._has_waiting:
                self._start(self._take_waiting())
            if running.is_offered_again:  # it may have been continued while this was coming to its end
                self._offer(running.run_id)

    async def _end_if_due(self, run_id: str) -> RunRecord | None:
        """End a run that is being cancelled or has expired; otherwise give its record, None when nobody has to attend to it."""
        services = self._services
        record = await get_record_for_worker(services, run_id)
        logs.run_id.set(run_id)  # for the task that attends to this run alone
        logs.project_id.set(record.project_id)
        now = services.clock.now()
        if record.run.status not in ACTIVE or record.lease_until > now:
            return None
        if record.run.status == "cancelling":
            await _end_run(services, await take_over_run(services, record, self._lease()), "cancelled")
            return None
        if record.run.expires_at is not None and record.run.expires_at <= now:
            await _end_run(services, record, "expired")
            return None
        return record

    def _lease(self) -> Lease:
        return Lease(self._owner, self._services.clock.now() + self._services.settings.lease_seconds)

    async def _claim(self, run_id: str) -> RunExecution | None:
        """Claim a run to execute it; None when there is nothing to execute."""
        services, record = self._services, await self._end_if_due(run_id)
        if record is None or record.run.status == "requires_action":
            return None
        status, lease = record.run.status, self._lease()
        if status == "queued":
            provider = services.models.provider_or_none(record.run.model) if self._order.has_limits else None
            limits = self._order.limits_of_claim(record, provider)
            claiming = transition_run(services, record, "in_progress", lease=lease, extra_statements=limits)
        else:
            claiming = take_over_run(services, record, lease)
        claimed, past = await asyncio.gather(claiming, get_past(services, record))
        if status == "in_progress":
            services.events.begin_attempt(run_id, claimed.attempt, claimed.version)
            log.info("run %s: taken over, attempt %d", run_id, claimed.attempt)
        return RunExecution(services, claimed, past)

    async def _execute(self, running: "_RunningRun", execution: RunExecution) -> None:
        """Run the loop to its end, or until it is interrupted; then end the run as its row says."""
        running.attempt = execution.record.attempt
        task = running.task = asyncio.create_task(self._observe(execution))
        self._cancel_at(running, task, execution.record.run.expires_at or 0)
        RUNS_EXECUTING.inc()
        try:
            await asyncio.wait({task})
        finally:
            RUNS_EXECUTING.dec()
            if running.deadline is not None:
                running.deadline.cancel()
            if not task.done():  # this worker is shutting down
                task.cancel()
                await asyncio.wait({task})
        if task.cancelled():
            await self._end_interrupted(execution)
            return
        failure = task.exception()
        if failure is not None:
            await self._end_failed(execution, failure)

    async def _observe(self, execution: RunExecution) -> None:
        async with observed_run(self._services, self._traces, execution.record) as observed:
            await execution.execute(observed)

    def _cancel_at(self, running: "_RunningRun", task: asyncio.Task[None], expires_at: float) -> None:
        seconds_left = expires_at - self._services.clock.now()
        if seconds_left <= 0:
            task.cancel()
        else:
            # A timer may be a little early, and a run that is stopped before it has expired would wait for its lease to run out.
            later = asyncio.get_running_loop().call_later
            running.deadline = later(max(seconds_left, 0.001), self._cancel_at, running, task, expires_at)

    async def _end_interrupted(self, execution: RunExecution) -> None:
        services = self._services
        record = await get_record_for_worker(services, execution.record.run.id)
        expires_at = record.run.expires_at
        if record.attempt != execution.record.attempt:
            return  # another worker has it
        if record.run.status == "cancelling" or (expires_at is not None and expires_at <= services.clock.now()):
            await _end_run(services, record, "expired", contents=execution.told_contents, costs=execution.costs)

    async def _end_failed(self, execution: RunExecution, failure: BaseException) -> None:
        """The one place where a failure becomes a run's `last_error`."""
        run_id = execution.record.run.id
        if isinstance(failure, RunLost):
            await self._end_interrupted(execution)
            return
        if isinstance(failure, StoreUnavailable):
            raise failure
        if isinstance(failure, ModelError):
            last_error = LastError(failure.code, failure.message)
            log.warning("run %s failed: %s: %s", run_id, failure.code, failure.message)
        else:
            last_error = _SOMETHING_WRONG
            log.error("run %s failed unexpectedly", run_id, exc_info=failure)
        told = {"last_error": last_error, "contents": execution.told_contents, "costs": execution.costs}
        await _end_run(self._services, execution.record, "failed", **told)

    async def _look_again(self, running: "_RunningRun") -> None:
        """Somebody says that a run has changed while it is executed here: stop the loop when it is to be cancelled or is gone."""
        if running.task is None:
            return
        try:
            record = await get_record_for_worker(self._services, running.run_id)
            must_stop = record.run.status == "cancelling" or record.attempt != running.attempt
        except RunLost:
            must_stop = True
        if must_stop:
            running.task.cancel()

    async def _keep_leases(self) -> None:
        settings = self._services.settings
        while True:
            await asyncio.sleep(settings.lease_seconds / 3)
            await self._survive(self._renew_leases())

    async def _renew_leases(self) -> None:
        executing = {running.run_id: running for running in self._running.values() if running.task is not None}
        until = self._services.clock.now() + self._services.settings.lease_seconds
        attempts = {run_id: running.attempt for run_id, running in executing.items()}
        for run_id in await leases.renew_leases(self._services, self._owner, attempts, until):
            await self._look_again(executing[run_id])

    async def _sweep_regularly(self) -> None:
        while True:
            await self._survive(self._sweep())
            for sweep in _SWEEPS:
                await self._survive(sweep(self._services))
            await self._survive(self._retention.sweep())
            await asyncio.sleep(self._services.settings.sweep_interval_seconds)

    async def _sweep(self) -> None:
        """Take what waits, end what is to be ended, and drop what is old."""
        services = self._services
        for due in await leases.get_due_runs(services, _SWEEP_ROWS_MAX):
            if due not in self._running:
                self._offer(due)
        self._has_waiting = True
        await self._take_waiting()
        services.events.prune()
        now, settings = services.now(), services.settings
        await leases.delete_old_events(services)
        since, self._looked_for_deleted_at = self._looked_for_deleted_at, now - _LATE_SECONDS
        await services.db.write(
            [
                delete_kept_answers(now - settings.idempotency_ttl_seconds),
                *delete_answers_of_deleted(since),
                forget_deleted_cursors(before=now - settings.deleted_cursor_ttl_seconds),
            ]
        )


async def _end_run(services: Services, record: RunRecord, to: RunStatus, **told: Any) -> None:
    """As `end_run`, and counted."""
    ended = await end_run(services, record, to, **told)
    RUNS_ENDED.labels(ended.run.status).inc()


class _RunningRun:
    """A run that this worker attends to. `attending` does so from the claim to the end; `task` is its loop, None until it is claimed."""

    def __init__(self, run_id: str) -> None:
        self.run_id = run_id
        self.attempt = 0
        self.is_offered_again = False
        self.attending: asyncio.Task[None] | None = None
        self.task: asyncio.Task[None] | None = None
        self.deadline: asyncio.TimerHandle | None = None

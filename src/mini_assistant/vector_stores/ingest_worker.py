"""Ingests files into vector stores: claims them, keeps their leases alive, and tries again what failed for the moment.

One worker a process. It hears of files from the queue, and from its own sweep, which finds what the queue has lost.
"""

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Coroutine
from typing import Any

from mini_assistant import logs
from mini_assistant.errors import BackendError, StoreUnavailable
from mini_assistant.ids import new_id
from mini_assistant.metrics import INGEST_SECONDS
from mini_assistant.models.embeddings.base import EmbeddingFailed
from mini_assistant.services import Services
from mini_assistant.vector_stores import ingest_tasks as tasks
from mini_assistant.vector_stores.ingest import INTERNAL_ERROR, delete_copies, fail_file, ingest_file
from mini_assistant.vector_stores.ingest_backlog import IngestBacklog
from mini_assistant.vector_stores.store import FileRecord

log = logging.getLogger("mini_assistant.ingest")

_SWEEP_ROWS_MAX = 1000
_FIRST_PAUSE_SECONDS = 1.0
_PAUSE_SECONDS_MAX = 60.0
# Claims count also when a server is stopped or killed in the middle of a file. A file that takes the server down with it each time
# must come to an end too, but one that was there in a few unlucky moments must not fail for it.
_CLAIMS_PER_ATTEMPT = 10


class IngestWorker:
    """The files that this process ingests."""

    def __init__(self, services: Services) -> None:
        self._services = services
        self._owner = new_id("worker")
        self._backlog = IngestBacklog()
        # Files that are being ingested, by row: their attempt, and the task to stop when the file is not wanted any more.
        self._running: dict[int, tuple[int, asyncio.Task[None]]] = {}
        # How often the ingest of a row has failed in a way that may pass.
        self._failures: Counter[int] = Counter()

    async def run(self) -> None:
        """Work until cancelled; then stop where it is and hand back the files."""
        await asyncio.to_thread(delete_copies, self._services)
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._consume())
                group.create_task(self._keep_leases())
                group.create_task(self._sweep_regularly())
                for _ in range(self._services.settings.ingest_concurrency_max):
                    group.create_task(self._work_through_backlog())
        finally:
            await self._survive(tasks.hand_back_leases(self._services, self._owner))

    async def _survive(self, work: Coroutine[Any, Any, object]) -> None:
        """The outer boundary: whatever goes wrong with one file is logged, and the worker goes on."""
        try:
            await work
        except StoreUnavailable as exc:
            log.error("%s The file will be swept up later.", exc.message)
        except Exception:
            log.exception("unexpected error in the ingest worker")

    async def _consume(self) -> None:
        while True:
            await self._survive(self._offer(int(await self._services.queue.get("ingest"))))

    async def _offer(self, seq: int) -> None:
        if seq in self._running:
            await self._renew_leases()  # it may have been cancelled, or is to be ingested again
            return
        task = await tasks.get_ingest_task_or_none(self._services, seq)
        if task is not None:
            self._backlog.add(task)

    async def _work_through_backlog(self) -> None:
        while True:
            task = await self._backlog.take()
            if task.seq not in self._running:
                await self._survive(self._attend(task.seq))

    async def _attend(self, seq: int) -> None:
        """Ingest a file that is still to be ingested."""
        logs.project_id.set("")  # the file before may have been another project's
        services = self._services
        record = await tasks.claim_file_or_none(services, seq, self._owner)
        if record is None:
            return
        if record.attempt > services.settings.ingest_attempts_max * _CLAIMS_PER_ATTEMPT:
            log.error("file %s in %s: given up after %d claims", record.file.id, record.vector_store_id, record.attempt - 1)
            await fail_file(services, record, INTERNAL_ERROR)
            return
        logs.project_id.set(record.project_id)
        ingesting = asyncio.create_task(_measured(services, record))
        self._running[seq] = (record.attempt, ingesting)
        try:
            await asyncio.wait({ingesting})
        finally:
            del self._running[seq]
            if not ingesting.done():  # this worker is shutting down
                ingesting.cancel()
                await asyncio.wait({ingesting})
        if ingesting.cancelled():
            self._services.queue.put("ingest", str(seq))  # cancelled, and perhaps wanted again since
            return
        self._services.webhooks_due.set()  # a batch may have ended with it
        failure = ingesting.exception()
        if failure is not None:
            await self._try_again_or_fail(record, failure)
        else:
            del self._failures[seq]

    async def _try_again_or_fail(self, record: FileRecord, failure: BaseException) -> None:
        services, name = self._services, f"file {record.file.id} in {record.vector_store_id}"
        self._failures[record.seq] += 1
        failures = self._failures[record.seq]
        may_pass = isinstance(failure, BackendError) and (failure.retryable or isinstance(failure, StoreUnavailable))
        if may_pass and failures < services.settings.ingest_attempts_max:
            pause_seconds = min(_FIRST_PAUSE_SECONDS * 2 ** (failures - 1), _PAUSE_SECONDS_MAX)
            log.warning("%s: %s Trying again in %g s.", name, failure, pause_seconds)
            await tasks.postpone_file(services, record, pause_seconds)
            return
        del self._failures[record.seq]
        if isinstance(failure, BackendError):
            log.error("%s failed: %s", name, failure.message)
        else:
            log.error("%s failed unexpectedly", name, exc_info=failure)
        await fail_file(services, record, failure.message if isinstance(failure, EmbeddingFailed) else INTERNAL_ERROR)

    async def _keep_leases(self) -> None:
        while True:
            await asyncio.sleep(self._services.settings.lease_seconds / 3)
            await self._survive(self._renew_leases())

    async def _renew_leases(self) -> None:
        """Renew, and stop the work on files that are cancelled, detached or another worker's."""
        held = dict(self._running)
        for seq in await tasks.renew_leases(self._services, {seq: attempt for seq, (attempt, _) in held.items()}):
            held[seq][1].cancel()

    async def _sweep_regularly(self) -> None:
        while True:
            await self._survive(self._sweep())
            await asyncio.sleep(self._services.settings.sweep_interval_seconds)

    async def _sweep(self) -> None:
        for task in await tasks.get_waiting_tasks(self._services, _SWEEP_ROWS_MAX):
            self._backlog.add(task)


async def _measured(services: Services, record: FileRecord) -> None:
    began, outcome = time.perf_counter(), "cancelled"
    try:
        outcome = await ingest_file(services, record)
    except BackendError:
        outcome = "error"
        raise
    finally:
        INGEST_SECONDS.labels(outcome).observe(time.perf_counter() - began)

"""The ingest worker and its pipeline: from an attached file to passages, through failures, cancelling and several workers.

Rows are put in directly; what the API answers about them is tested with the API.
"""

import asyncio
import contextlib
import dataclasses
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import pytest
import sqlalchemy as sa

from mini_assistant.app import open_services
from mini_assistant.clock import ManualClock
from mini_assistant.db.base import GuardFailed, Query
from mini_assistant.db.tables import files, vector_store_files, vector_stores
from mini_assistant.models.embeddings.base import Embedder, EmbeddingFailed, Vectors
from mini_assistant.models.script import Rule, Script, Text
from mini_assistant.models.scripted import ScriptedEndpoint
from mini_assistant.queue.local import LocalTaskQueue
from mini_assistant.services import Services
from mini_assistant.settings import Settings
from mini_assistant.vector_stores import ingest_tasks
from mini_assistant.vector_stores.indexes.base import StoreScope
from mini_assistant.vector_stores.ingest_worker import IngestWorker
from mini_assistant.vector_stores.store import end_file, get_file_record_or_none
from mini_assistant.vector_stores.summaries import file_summaries
from tests.documents import pdf_document
from tests.vector_store_rows import PROJECT, attach, file_row, insert_file, insert_store, passage_texts, store_row

LEASE_SECONDS = 30.0
WHALES = "# Whales\n\nWhales are large mammals that live in the sea. Whales breathe air and sing songs.\n"

_cancel = Query(sa.update(vector_store_files).where(vector_store_files.c.seq == sa.bindparam("row")).values(status=sa.literal("cancelled")))
_detach = Query(sa.delete(vector_store_files).where(vector_store_files.c.seq == sa.bindparam("row")))
_delete_store = Query(sa.delete(vector_stores).where(vector_stores.c.id == sa.bindparam("store")))
_count_claims = Query(
    sa.update(vector_store_files).where(vector_store_files.c.seq == sa.bindparam("row")).values(attempt=sa.bindparam("claims"))
)


@pytest.fixture
def settings(tmp_path: Path, endpoint: ScriptedEndpoint) -> Settings:
    return Settings(
        data_dir=tmp_path,
        openai_base_url=endpoint.base_url,
        model_retries_max=0,
        lease_seconds=LEASE_SECONDS,
        sweep_interval_seconds=0.05,
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
async def ingesting(*several: Services) -> AsyncIterator[None]:
    """An ingest worker for each; they are stopped in the end."""
    tasks = [asyncio.create_task(IngestWorker(services).run()) for services in several]
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def other_process(services: Services) -> Services:
    return dataclasses.replace(services, queue=LocalTaskQueue())


async def until(condition: Callable[[], Awaitable[bool]]) -> None:
    while not await condition():  # noqa: ASYNC110 - rows have no event of their own
        await asyncio.sleep(0.005)


async def ended(services: Services, seq: int) -> dict[str, Any]:
    """The row of a file when it is in progress no more."""
    row = await file_row(services, seq)
    while row is not None and row["status"] == "in_progress":
        await asyncio.sleep(0.005)
        row = await file_row(services, seq)
    assert row is not None
    return row


async def attached(services: Services, content: str | bytes = WHALES, filename: str = "whales.md") -> tuple[str, int]:
    """A store with one file that waits, and the queue told of it."""
    store_id = await insert_store(services)
    seq = await attach(services, store_id, await insert_file(services, content, filename))
    services.queue.put("ingest", str(seq))
    return store_id, seq


class HeldEmbedder:
    """The real embedder, which waits to be let go, or fails as often as it is told to."""

    def __init__(self, embedder: Embedder, failures: Sequence[EmbeddingFailed] = (), *, held: bool = False) -> None:
        self._embedder = embedder
        self._failures = list(failures)
        self.calls = 0
        self.called = asyncio.Event()
        self.let_go = asyncio.Event()
        if not held:
            self.let_go.set()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._embedder, name)

    async def embed(self, texts: Sequence[str], kind: Literal["passage", "query"]) -> Vectors:
        self.calls += 1
        self.called.set()
        await self.let_go.wait()
        if self._failures:
            raise self._failures.pop(0)
        return await self._embedder.embed(texts, kind)


# --- the straight way -----------------------------------------------------------------------------------------------------------


async def test_a_file_becomes_passages_with_counters_and_a_summary(services: Services) -> None:
    async with ingesting(services):
        store_id, seq = await attached(services)
        row = await ended(services, seq)

    assert row["status"] == row["body"]["status"] == "completed"
    assert row["body"]["last_error"] is None
    assert await passage_texts(services, seq) == [WHALES]
    # As the hosted API counted: the text, and 256 numbers of four bytes.
    assert row["body"]["usage_bytes"] == len(WHALES) + 1024
    store = await store_row(services, store_id)
    assert store == {
        "in_progress": 0,
        "completed": 1,
        "failed": 0,
        "usage_bytes": len(WHALES) + 1024,
        "embedder": services.embedder.id,
        "dimension": 256,
    }
    [(filename, summary)] = await file_summaries(services, PROJECT, [store_id])
    assert filename == "whales.md"
    assert summary.startswith("Whales. Whales are large mammals")
    assert await file_summaries(services, "another-project", [store_id]) == []


async def test_a_file_that_no_queue_tells_of_is_swept_up(services: Services) -> None:
    _, seq = await attached(services)
    async with ingesting(other_process(services)):
        assert (await ended(services, seq))["status"] == "completed"


async def test_no_copy_of_the_bytes_is_left_behind(services: Services, settings: Settings) -> None:
    async with ingesting(services):
        await ended(services, (await attached(services))[1])
        await ended(services, (await attached(services, b"\x00\x01 no document", "broken.pdf"))[1])

    assert list((settings.data_dir / "ingest").iterdir()) == []


async def test_a_starting_worker_deletes_what_killed_ones_have_left_behind(services: Services, settings: Settings) -> None:
    left_over = settings.data_dir / "ingest" / "left-over"
    left_over.parent.mkdir()
    left_over.write_bytes(b"whales")
    async with ingesting(services):
        await ended(services, (await attached(services))[1])

    assert not left_over.exists()


async def test_chunks_are_as_long_as_was_asked_for(services: Services) -> None:
    store_id = await insert_store(services)
    text = " ".join(f"word{number}" for number in range(2000))
    seq = await attach(services, store_id, await insert_file(services, text), chunk_tokens_max=100, overlap_tokens=50)
    async with ingesting(services):
        await ended(services, seq)

    texts = await passage_texts(services, seq)
    assert len(texts) > 40
    assert max(map(len, texts)) < 800


async def test_pages_of_a_pdf_are_found_again(services: Services) -> None:
    async with ingesting(services):
        store_id, seq = await attached(services, pdf_document(["Apples grow on trees.", "Whales live in the sea."]), "two.pdf")
        assert (await ended(services, seq))["status"] == "completed"

    assert "Whales live in the sea." in "".join(await passage_texts(services, seq))
    assert (await store_row(services, store_id))["completed"] == 1


# --- files that cannot be ingested ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "filename", "code", "message"),
    [
        (b"anything", "picture.bmp", "unsupported_file", "The file type is not supported."),
        (b"%PDF-1.7 but not really", "broken.pdf", "invalid_file", "could not be parsed"),
        ("  \n ", "blank.txt", "invalid_file", "It has no text."),
    ],
)
async def test_a_bad_file_fails_and_its_neighbour_does_not(
    services: Services, content: str | bytes, filename: str, code: str, message: str
) -> None:
    store_id = await insert_store(services)
    bad = await attach(services, store_id, await insert_file(services, content, filename))
    good = await attach(services, store_id, await insert_file(services, WHALES))
    async with ingesting(services):
        row = await ended(services, bad)
        assert (await ended(services, good))["status"] == "completed"

    assert row["status"] == "failed"
    assert row["body"]["last_error"]["code"] == code
    assert message in row["body"]["last_error"]["message"]
    assert await passage_texts(services, bad) == []
    store = await store_row(services, store_id)
    assert (store["in_progress"], store["completed"], store["failed"]) == (0, 1, 1)


async def test_a_text_that_is_too_long_fails(services: Services) -> None:
    services = dataclasses.replace(services, settings=dataclasses.replace(services.settings, file_tokens_max=100))
    async with ingesting(services):
        row = await ended(services, (await attached(services, "word " * 200))[1])

    assert row["body"]["last_error"] == {"code": "invalid_file", "message": "The file could not be parsed because it is too large."}


async def test_bytes_that_are_gone_fail_the_file_without_telling_where_they_were(services: Services) -> None:
    store_id = await insert_store(services)
    file_id = await insert_file(services, WHALES)
    key = (await services.db.read(Query(sa.select(files.c.blob_key))()))[0][0]
    await services.blobs.delete(key)
    seq = await attach(services, store_id, file_id)
    async with ingesting(services):
        row = await ended(services, seq)

    assert row["body"]["last_error"] == {"code": "server_error", "message": "An internal error occurred."}


# --- failures that may pass -----------------------------------------------------------------------------------------------------


async def test_an_embedder_that_fails_for_a_moment_is_asked_again(services: Services, clock: ManualClock) -> None:
    embedder = HeldEmbedder(services.embedder, [EmbeddingFailed("The endpoint is busy.")] * 2)
    services = dataclasses.replace(services, embedder=embedder)
    async with ingesting(services):
        _, seq = await attached(services)
        await until(lambda: is_postponed(services, seq))
        row = await file_row(services, seq)
        assert row is not None
        assert row["lease_until"] == pytest.approx(clock.now() + 1.0)
        await asyncio.sleep(0.15)  # several sweeps: it is not tried again before its time
        assert embedder.calls == 1
        clock.advance(1.1)
        await until(lambda: has_been_called(embedder, 2))
        await until(lambda: is_postponed(services, seq))
        clock.advance(2.1)
        assert (await ended(services, seq))["status"] == "completed"

    assert len(await passage_texts(services, seq)) == 1


async def is_postponed(services: Services, seq: int) -> bool:
    row = await file_row(services, seq)
    return row is not None and row["lease_owner"] is None and row["lease_until"] > services.clock.now()


async def has_been_called(embedder: HeldEmbedder, times: int) -> bool:
    return embedder.calls >= times


async def test_an_embedder_that_goes_on_failing_fails_the_file(services: Services, clock: ManualClock) -> None:
    embedder = HeldEmbedder(services.embedder, [EmbeddingFailed("The endpoint is busy.")] * 9)
    services = dataclasses.replace(services, embedder=embedder)
    async with ingesting(services):
        _, seq = await attached(services)
        for times in (1, 2):
            await until(lambda times=times: has_been_called(embedder, times))
            await until(lambda: is_postponed(services, seq))
            clock.advance(61)
        row = await ended(services, seq)

    assert embedder.calls == services.settings.ingest_attempts_max
    assert row["body"]["last_error"] == {"code": "server_error", "message": "The endpoint is busy."}


async def test_an_embedder_that_cannot_work_is_asked_once(services: Services) -> None:
    embedder = HeldEmbedder(services.embedder, [EmbeddingFailed("The key is wrong.", retryable=False)] * 9)
    services = dataclasses.replace(services, embedder=embedder)
    async with ingesting(services):
        row = await ended(services, (await attached(services))[1])

    assert embedder.calls == 1
    assert row["body"]["last_error"]["message"] == "The key is wrong."


async def test_a_file_that_is_claimed_over_and_over_is_given_up(services: Services) -> None:
    """As one that takes the server down with it each time."""
    _, seq = await attached(services)
    await services.db.write([_count_claims(row=seq, claims=30)])
    async with ingesting(services):
        row = await ended(services, seq)

    assert row["body"]["last_error"] == {"code": "server_error", "message": "An internal error occurred."}


async def test_vectors_of_another_embedder_are_not_mixed_in(services: Services) -> None:
    store_id = await insert_store(services, embedder="openai:large", dimension=3072)
    seq = await attach(services, store_id, await insert_file(services, WHALES))
    async with ingesting(services):
        row = await ended(services, seq)

    assert row["body"]["last_error"]["code"] == "server_error"
    assert "'openai:large'" in row["body"]["last_error"]["message"]
    assert f"'{services.embedder.id}'" in row["body"]["last_error"]["message"]
    assert await passage_texts(services, seq) == []


async def test_vectors_of_another_dimension_are_not_mixed_in(services: Services) -> None:
    store_id = await insert_store(services, embedder=services.embedder.id, dimension=128)
    seq = await attach(services, store_id, await insert_file(services, WHALES))
    async with ingesting(services):
        row = await ended(services, seq)

    assert "another dimension" in row["body"]["last_error"]["message"]


# --- what happens to a file while it is ingested --------------------------------------------------------------------------------


@pytest.mark.parametrize("what", ["cancelled", "detached", "store deleted"])
async def test_a_file_that_is_not_wanted_any_more_leaves_nothing(services: Services, what: str) -> None:
    embedder = HeldEmbedder(services.embedder, held=True)
    services = dataclasses.replace(services, embedder=embedder)
    async with ingesting(services):
        store_id, seq = await attached(services)
        await embedder.called.wait()
        statements = {
            "cancelled": [_cancel(row=seq)],
            "detached": [_detach(row=seq)],
            "store deleted": [_delete_store(store=store_id)],
        }
        await services.db.write(statements[what])
        embedder.let_go.set()
        _, next_seq = await attached(services)
        assert (await ended(services, next_seq))["status"] == "completed"  # the worker goes on

    row = await file_row(services, seq)
    assert row is None or row["status"] == "cancelled"
    assert await passage_texts(services, seq) == []


async def test_a_cancelled_file_is_left_alone_as_soon_as_the_worker_hears_of_it(services: Services) -> None:
    embedder = HeldEmbedder(services.embedder, held=True)
    services = dataclasses.replace(services, embedder=embedder, settings=dataclasses.replace(services.settings, ingest_concurrency_max=1))
    async with ingesting(services):
        _, seq = await attached(services)
        await embedder.called.wait()
        await services.db.write([_cancel(row=seq)])
        services.queue.put("ingest", str(seq))
        _, next_seq = await attached(services)
        await until(lambda: has_been_called(embedder, 2))  # the only place is free again, though nobody let the first call go
        embedder.let_go.set()
        assert (await ended(services, next_seq))["status"] == "completed"


async def test_a_worker_that_has_lost_its_lease_writes_nothing(services: Services, clock: ManualClock) -> None:
    stalled = dataclasses.replace(other_process(services), embedder=HeldEmbedder(services.embedder, held=True))
    _, seq = await attached(services)
    async with ingesting(stalled):
        await stalled.embedder.called.wait()  # type: ignore[attr-defined]
        clock.advance(LEASE_SECONDS + 1)
        async with ingesting(other_process(services)):
            row = await ended(services, seq)
        assert (row["status"], row["attempt"]) == ("completed", 2)
        stalled.embedder.let_go.set()  # type: ignore[attr-defined]
        await asyncio.sleep(0.2)

    assert (await passage_texts(services, seq)) == [WHALES]
    store = await store_row(services, row["body"]["vector_store_id"])
    assert (store["completed"], store["usage_bytes"]) == (1, row["body"]["usage_bytes"])


async def test_a_worker_that_stops_hands_its_files_back(services: Services) -> None:
    held = dataclasses.replace(services, embedder=HeldEmbedder(services.embedder, held=True))
    _, seq = await attached(services)
    async with ingesting(held):
        await held.embedder.called.wait()  # type: ignore[attr-defined]
    row = await file_row(services, seq)
    assert row is not None
    assert (row["status"], row["lease_owner"], row["lease_until"]) == ("in_progress", None, 0.0)

    async with ingesting(other_process(services)):
        assert (await ended(services, seq))["status"] == "completed"


async def test_a_start_frees_the_files_of_workers_that_are_gone(services: Services) -> None:
    _, seq = await attached(services)
    assert await ingest_tasks.claim_file_or_none(services, seq, "worker_gone") is not None
    assert await ingest_tasks.claim_file_or_none(services, seq, "worker_other") is None
    await ingest_tasks.free_all_leases(services)
    async with ingesting(services):
        assert (await ended(services, seq))["status"] == "completed"


async def test_an_earlier_ingest_of_the_same_row_is_replaced(services: Services) -> None:
    """Cut differently the second time, as a file is that is attached again with another chunking strategy."""
    async with ingesting(services):
        store_id, seq = await attached(services)
        first = await ended(services, seq)
        again = Query(
            sa.update(vector_store_files).where(vector_store_files.c.seq == sa.bindparam("row")).values(status=sa.literal("in_progress"))
        )
        count = Query(sa.update(vector_stores).values(files_in_progress=1, files_completed=0, usage_bytes=0))
        await services.db.write([again(row=seq), count()])
        services.queue.put("ingest", str(seq))
        second = await ended(services, seq)

    assert second["attempt"] == first["attempt"] + 1
    assert await passage_texts(services, seq) == [WHALES]
    assert (await store_row(services, store_id))["completed"] == 1


# --- many files -----------------------------------------------------------------------------------------------------------------


async def test_two_workers_share_the_files_and_each_is_ingested_once(services: Services) -> None:
    store_id = await insert_store(services)
    seqs = [await attach(services, store_id, await insert_file(services, f"File number {number}.")) for number in range(30)]
    async with ingesting(other_process(services), other_process(services)):
        rows = [await ended(services, seq) for seq in seqs]

    assert [(row["status"], row["attempt"]) for row in rows] == [("completed", 1)] * 30
    store = await store_row(services, store_id)
    assert (store["in_progress"], store["completed"]) == (0, 30)
    assert store["usage_bytes"] == sum(row["body"]["usage_bytes"] for row in rows)


async def test_a_large_store_does_not_hold_up_a_small_one(services: Services) -> None:
    services = dataclasses.replace(services, settings=dataclasses.replace(services.settings, ingest_concurrency_max=1))
    large, small = await insert_store(services), await insert_store(services)
    text = await insert_file(services, WHALES)
    many = [await attach(services, large, await insert_file(services, WHALES)) for _ in range(60)]
    one = await attach(services, small, text)
    async with ingesting(services):
        await ended(services, one)
        done = [row for row in [await file_row(services, seq) for seq in many] if row and row["status"] == "completed"]

    assert len(done) < 10


async def test_a_sweep_looks_into_every_store_first(services: Services) -> None:
    """However many files wait in one store, and however few rows are read."""
    large, small = await insert_store(services), await insert_store(services)
    file_id = await insert_file(services, WHALES)
    first, second = [await attach(services, large, await insert_file(services, WHALES)) for _ in range(30)][:2]
    alone = await attach(services, small, file_id)

    assert [task.seq for task in await ingest_tasks.get_waiting_tasks(services, 3)] == [first, alone, second]


async def test_no_more_files_are_ingested_at_a_time_than_is_set(services: Services) -> None:
    embedder = HeldEmbedder(services.embedder, held=True)
    services = dataclasses.replace(services, embedder=embedder)
    async with ingesting(services):
        seqs = [(await attached(services))[1] for _ in range(6)]
        await until(lambda: has_been_called(embedder, services.settings.ingest_concurrency_max))
        await asyncio.sleep(0.1)
        assert embedder.calls == services.settings.ingest_concurrency_max
        embedder.let_go.set()
        for seq in seqs:
            assert (await ended(services, seq))["status"] == "completed"


# --- summaries ------------------------------------------------------------------------------------------------------------------


def with_summary_model(services: Services) -> Services:
    return dataclasses.replace(services, settings=dataclasses.replace(services.settings, summary_model="scripted"))


async def test_a_model_writes_the_summary_when_there_is_one(services: Services, endpoint: ScriptedEndpoint) -> None:
    endpoint.script = Script([Rule([Text(["Sea mammals", " and their\nsongs."])])])
    services = with_summary_model(services)
    async with ingesting(services):
        row = await ended(services, (await attached(services))[1])

    assert row["summary"] == "Sea mammals and their songs."
    [asked] = endpoint.requests
    assert "whales.md" in str(asked)
    assert "large mammals" in str(asked)


async def test_an_extract_stands_in_for_a_model_that_does_not_answer(services: Services, endpoint: ScriptedEndpoint) -> None:
    await endpoint.__aexit__(None, None, None)
    services = with_summary_model(services)
    async with ingesting(services):
        row = await ended(services, (await attached(services))[1])

    assert row["status"] == "completed"
    assert row["summary"].startswith("Whales. Whales are large mammals")


@pytest.mark.parametrize(("mode", "has_summary", "requests"), [("off", False, 0), ("extractive", True, 0), ("auto", True, 1)])
async def test_the_setting_says_who_writes_summaries(
    services: Services, endpoint: ScriptedEndpoint, mode: str, has_summary: bool, requests: int
) -> None:
    services = with_summary_model(services)
    services = dataclasses.replace(services, settings=dataclasses.replace(services.settings, file_summaries=mode))
    async with ingesting(services):
        row = await ended(services, (await attached(services))[1])

    assert (row["summary"] is not None) is has_summary
    assert len(endpoint.requests) == requests


# --- the lists of statements ----------------------------------------------------------------------------------------------------


async def test_a_refused_write_leaves_all_as_it_was(services: Services) -> None:
    """Cancelled between the last look and the write: neither passages nor counters."""
    store_id, seq = await attached(services)
    record = await ingest_tasks.claim_file_or_none(services, seq, "worker_here")
    assert record is not None
    await services.db.write([_cancel(row=seq)])
    with pytest.raises(GuardFailed):
        await services.db.write(
            [
                *end_file(record, "completed", now=services.now(), usage_bytes=5),
                *services.index.remove_file(StoreScope(PROJECT, store_id), seq),
            ]
        )
    assert (await get_file_record_or_none(services, seq)) is not None
    assert (await store_row(services, store_id))["usage_bytes"] == 0

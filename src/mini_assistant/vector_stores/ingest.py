"""How a file becomes searchable, from top to bottom: bytes -> text -> passages -> vectors -> summary -> one write.

`ingest_file` is called by the ingest worker with a file that it has claimed. Nothing is written before the end, and the last write
holds everything or nothing: after a kill the file is ingested again, and no passage is there twice.
"""

import asyncio
import contextlib
import fcntl
import logging
import os
import tempfile
from collections.abc import AsyncGenerator, Generator, Sequence
from pathlib import Path
from typing import BinaryIO, Literal

import numpy as np
import sqlalchemy as sa

from mini_assistant.db.base import Bound, GuardFailed, Query
from mini_assistant.db.tables import summary_vectors, vector_stores
from mini_assistant.errors import StoreUnavailable
from mini_assistant.files.store import FileRecord as UploadedFile
from mini_assistant.files.store import get_file_or_none
from mini_assistant.models.embeddings.base import Vectors
from mini_assistant.projects.quotas import VECTOR_GUARD, vectors_are_full, vectors_within
from mini_assistant.services import Services
from mini_assistant.vector_stores.chunking import chunk_document
from mini_assistant.vector_stores.indexes.base import Passage, StoreScope
from mini_assistant.vector_stores.parsers.base import ParsedDocument, ParseFailed
from mini_assistant.vector_stores.schema import VectorStoreFileError
from mini_assistant.vector_stores.store import FileRecord, end_file, pin_embedder
from mini_assistant.vector_stores.summaries import summary_of_file_or_none

log = logging.getLogger("mini_assistant.ingest")

INTERNAL_ERROR = "An internal error occurred."
"""What the owner of a file is told of a failure that is nobody's business outside. Source: behaviour §6."""

_NO_TEXT = "The file could not be parsed. It has no text."

_COPIES_FOLDER = "ingest"
# Enough for an embedder to be busy with, few enough that a file that is cancelled is soon left alone.
_PASSAGES_PER_CALL = 256

_select_embedder = Query(
    sa.select(vector_stores.c.embedder).where(
        vector_stores.c.id == sa.bindparam("vector_store_id"), vector_stores.c.project_id == sa.bindparam("project_id")
    )
)
_delete_summary_vector = Query(sa.delete(summary_vectors).where(summary_vectors.c.file_seq == sa.bindparam("file_seq")))
_insert_summary_vector = Query.insert_into(summary_vectors)


IngestOutcome = Literal["completed", "failed", "dropped"]
"""What has become of a file; dropped: it was not this worker's any more."""


async def ingest_file(services: Services, record: FileRecord) -> IngestOutcome:
    """Make a claimed file findable, or record why it cannot be.

    Nothing is written when the file was cancelled, detached or deleted meanwhile, or is another worker's now.
    Raises BackendError for what may work later; the row is untouched then.
    """
    try:
        statements = await _ingested(services, record)
    except ParseFailed as exc:
        await fail_file(services, record, exc.message, code=exc.code)
        return "failed"
    if statements is None:
        return "dropped"
    try:
        await services.db.write(statements)
    except GuardFailed as exc:
        if exc.guard == VECTOR_GUARD:
            await fail_file(services, record, vectors_are_full(statements).message)
            return "failed"
        if exc.guard != "embedder":
            log.info("file %s in %s was changed while it was ingested; dropped", record.file.id, record.vector_store_id)
            return "dropped"
        await fail_file(services, record, await _embedder_conflict(services, record))
        return "failed"
    return "completed"


async def fail_file(
    services: Services,
    record: FileRecord,
    message: str,
    *,
    code: Literal["server_error", "unsupported_file", "invalid_file"] = "server_error",
) -> None:
    """End a claimed file as `failed`; `message` is for its owner. Nothing happens when it is not this worker's any more."""
    error = VectorStoreFileError(code=code, message=message)
    with contextlib.suppress(GuardFailed):
        await services.db.write(end_file(record, "failed", now=services.now(), last_error=error))


def delete_copies(services: Services) -> None:
    """Drop what killed processes left behind; called by each worker when it starts. Copies of a living one are locked, and stay."""
    for path in (services.settings.data_dir / _COPIES_FOLDER).glob("*"):
        with contextlib.suppress(OSError):
            opened = os.open(path, os.O_RDWR | os.O_NOFOLLOW)
            try:
                fcntl.flock(opened, fcntl.LOCK_EX | fcntl.LOCK_NB)
                path.unlink()
            finally:
                os.close(opened)


async def _ingested(services: Services, record: FileRecord) -> list[Bound] | None:
    """Statements that make a file findable; None when there is nothing to write any more. Raises ParseFailed and BackendError."""
    uploaded = await get_file_or_none(services, record.project_id, record.file.id)
    if uploaded is None:
        return None
    pinned = await _embedder_of_store_or_none(services, record)
    if pinned is not None and pinned != services.embedder.id:  # said before any work is done; the guard decides
        await fail_file(services, record, _wrong_embedder(record, pinned, services.embedder.id))
        return None
    document = await _parse(services, record, uploaded)
    passages = await asyncio.to_thread(_passages_of, document, record, services.settings.file_tokens_max)
    vectors = await _embed(services, [passage.text for passage in passages])
    summary = await summary_of_file_or_none(services, uploaded.file.filename, [passage.text for passage in passages])
    summary_vector = await _embed(services, [summary]) if summary else None
    return await asyncio.to_thread(_statements, services, record, passages, vectors, summary, summary_vector)


async def _parse(services: Services, record: FileRecord, uploaded: UploadedFile) -> ParsedDocument:
    async with _copy_of_blob(services, uploaded.blob_key) as path:
        return await services.parser.parse(str(path), uploaded.file.filename)


@contextlib.asynccontextmanager
async def _copy_of_blob(services: Services, blob_key: str) -> AsyncGenerator[Path]:
    """The bytes of a blob as a file on the disk, for as long as the context lasts.

    Raises BackendError, also for a disk that is full: it may have room later.
    """
    folder = services.settings.data_dir / _COPIES_FOLDER
    with _disk_failures(folder):
        # Not in a thread: a file that is made there while its ingest is cancelled would be nobody's.
        path, copy = _new_copy(folder)
    try:
        with copy:  # its lock is given back with it
            with _disk_failures(folder):
                async for piece in services.blobs.read(blob_key):
                    await asyncio.to_thread(_write_all, copy, piece)
            yield path
    finally:
        path.unlink(missing_ok=True)


@contextlib.contextmanager
def _disk_failures(folder: Path) -> Generator[None]:
    try:
        yield
    except OSError as exc:
        raise StoreUnavailable(f"{folder} cannot be written: {exc.strerror or exc}.") from exc


def _write_all(copy: BinaryIO, piece: bytes) -> None:
    rest = memoryview(piece)
    while rest:
        rest = rest[copy.write(rest) :]


def _new_copy(folder: Path) -> tuple[Path, BinaryIO]:
    """A new, empty file and its name. It is locked for as long as it is open, so that `delete_copies` of any process lets it be."""
    folder.mkdir(parents=True, exist_ok=True)
    while True:
        descriptor, name = tempfile.mkstemp(dir=folder)
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        if os.fstat(descriptor).st_nlink:
            return Path(name), open(descriptor, "wb", buffering=0)  # or else its end would write once more, and fail once more
        os.close(descriptor)  # deleted by a worker that has started between these lines


def _passages_of(document: ParsedDocument, record: FileRecord, tokens_max: int) -> list[Passage]:
    """The passages of a document, at least one. Raises ParseFailed."""
    if not document.text.strip():
        raise ParseFailed("invalid_file", _NO_TEXT)
    static = record.file.chunking_strategy.static
    return chunk_document(document, static.max_chunk_size_tokens, static.chunk_overlap_tokens, document_tokens_max=tokens_max)


async def _embed(services: Services, texts: Sequence[str]) -> Vectors:
    groups = [texts[first : first + _PASSAGES_PER_CALL] for first in range(0, len(texts), _PASSAGES_PER_CALL)]
    return np.concatenate([await services.embedder.embed(group, "passage") for group in groups])


def _statements(
    services: Services,
    record: FileRecord,
    passages: Sequence[Passage],
    vectors: Vectors,
    summary: str | None,
    summary_vector: Vectors | None,
) -> list[Bound]:
    """The one write of an ingested file. Seconds of CPU for a large one."""
    scope = StoreScope(record.project_id, record.vector_store_id)
    # As the hosted API counted: a text of 21 bytes took 1,045, which is the text and 256 numbers of four bytes.
    usage_bytes = sum(len(passage.text.encode("utf-8", "replace")) for passage in passages) + vectors.nbytes
    statements = [
        *end_file(record, "completed", now=services.now(), usage_bytes=usage_bytes, summary=summary),
        pin_embedder(record.vector_store_id, services.embedder.id, vectors.shape[1]),
        # Passages of an earlier ingest of the same row, if there are any.
        *services.index.remove_file(scope, record.seq),
        _delete_summary_vector(file_seq=record.seq),
        *services.index.add_file(scope, record.seq, passages, vectors),
    ]
    if summary_vector is not None:
        statements.append(_insert_summary_vector(file_seq=record.seq, vector=summary_vector[0].astype("<f2").tobytes()))
    return [*statements, *vectors_within(services, record.project_id)]


async def _embedder_of_store_or_none(services: Services, record: FileRecord) -> str | None:
    rows = await services.db.read(_select_embedder(vector_store_id=record.vector_store_id, project_id=record.project_id))
    return rows[0][0] if rows else None


async def _embedder_conflict(services: Services, record: FileRecord) -> str:
    pinned = await _embedder_of_store_or_none(services, record)
    if pinned == services.embedder.id:
        return f"The embedder '{pinned}' makes vectors of another dimension now than those of this vector store."
    return _wrong_embedder(record, pinned or "", services.embedder.id)


def _wrong_embedder(record: FileRecord, pinned: str, current: str) -> str:
    return (
        f"Vector store {record.vector_store_id} was indexed with '{pinned}', this server embeds with '{current}'. "
        "Add the file to a new vector store."
    )

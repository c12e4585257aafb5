"""Files in vector stores as the rows that the API makes, for tests of what happens behind it."""

from collections.abc import AsyncIterator
from typing import Any

import msgspec
import sqlalchemy as sa

from mini_assistant.assistants.schema import ChunkSize, StaticChunking
from mini_assistant.db.base import Query
from mini_assistant.db.tables import passages, segments, vector_store_files, vector_stores
from mini_assistant.files import store as file_store
from mini_assistant.files.commands import new_blob, new_file
from mini_assistant.ids import new_id
from mini_assistant.services import Services
from mini_assistant.vector_stores.schema import VectorStoreFile
from mini_assistant.vector_stores.store import file_json

PROJECT = "default"

_insert_store = Query.insert_into(vector_stores)
_insert_store_file = Query.insert_into(vector_store_files)
_newest_seq = Query(sa.select(sa.func.max(vector_store_files.c.seq)))
_file_row = Query(
    sa.select(
        vector_store_files.c.status,
        vector_store_files.c.attempt,
        vector_store_files.c.lease_owner,
        vector_store_files.c.lease_until,
        vector_store_files.c.body,
        vector_store_files.c.summary,
    ).where(vector_store_files.c.seq == sa.bindparam("seq"))
)
_store_row = Query(
    sa.select(
        vector_stores.c.files_in_progress,
        vector_stores.c.files_completed,
        vector_stores.c.files_failed,
        vector_stores.c.usage_bytes,
        vector_stores.c.embedder,
        vector_stores.c.dimension,
    ).where(vector_stores.c.id == sa.bindparam("id"))
)
_passage_texts = Query(
    sa.select(passages.c.ordinal, passages.c.text).where(passages.c.file_seq == sa.bindparam("seq")).order_by(passages.c.ordinal)
)
_passages_in_segments = Query(
    sa.select(sa.func.coalesce(sa.func.sum(segments.c.passage_count), 0)).where(segments.c.file_seq == sa.bindparam("seq"))
)
_count_in = Query(
    sa.update(vector_stores)
    .where(vector_stores.c.id == sa.bindparam("store_id"))
    .values(files_in_progress=vector_stores.c.files_in_progress + 1)
)


async def insert_store(services: Services, **columns: Any) -> str:
    """A vector store without files; gives its id."""
    store_id = new_id("vs")
    values: dict[str, Any] = {
        **dict.fromkeys(("files_in_progress", "files_completed", "files_failed", "files_cancelled", "usage_bytes", "revision"), 0),
        **dict.fromkeys(("expires_after_days", "expires_at", "embedder", "dimension")),
        "id": store_id,
        "project_id": PROJECT,
        "created_at": services.now(),
        "last_active_at": services.now(),
        "body": "{}",
    }
    await services.db.write([_insert_store(**values | columns)])
    return store_id


async def insert_file(services: Services, content: str | bytes, filename: str = "notes.txt", project_id: str = PROJECT) -> str:
    """A file with its bytes; gives its id."""
    data = content.encode() if isinstance(content, str) else content

    async def pieces() -> AsyncIterator[bytes]:
        yield data

    async with new_blob(services, lambda key: services.blobs.write(key, pieces(), bytes_max=len(data) + 1)) as blob:
        record = new_file(blob, filename, "assistants", services.now())
        await services.db.write(file_store.insert_file(project_id, record))
    return record.file.id


async def attach(
    services: Services, store_id: str, file_id: str, *, chunk_tokens_max: int = 800, overlap_tokens: int = 400, project_id: str = PROJECT
) -> int:
    """A file that waits to be ingested into a store; gives its row."""
    file = VectorStoreFile(
        id=file_id,
        usage_bytes=0,
        created_at=services.now(),
        vector_store_id=store_id,
        status="in_progress",
        last_error=None,
        chunking_strategy=StaticChunking(ChunkSize(chunk_tokens_max, overlap_tokens)),
        attributes={},
    )
    row: dict[str, Any] = {
        "id": file_id,
        "project_id": project_id,
        "created_at": services.now(),
        "body": file_json(file),
        "vector_store_id": store_id,
        "batch_id": None,
        "status": "in_progress",
        "usage_bytes": 0,
        "lease_owner": None,
        "lease_until": 0.0,
        "attempt": 0,
        "summary": None,
        "attributes": "{}",
    }
    await services.db.write([_insert_store_file(**row), _count_in(store_id=store_id)])
    return (await services.db.read(_newest_seq()))[0][0]


async def file_row(services: Services, seq: int) -> dict[str, Any] | None:
    """The row of a file in a store, None when it is gone; its `body` decoded."""
    rows = await services.db.read(_file_row(seq=seq))
    if not rows:
        return None
    names = ("status", "attempt", "lease_owner", "lease_until", "body", "summary")
    row = dict(zip(names, rows[0], strict=True))
    return {**row, "body": msgspec.json.decode(row["body"])}


async def store_row(services: Services, store_id: str) -> dict[str, Any]:
    """Counters of a store, and what its vectors are made with."""
    names = ("in_progress", "completed", "failed", "usage_bytes", "embedder", "dimension")
    return dict(zip(names, (await services.db.read(_store_row(id=store_id)))[0], strict=True))


async def passage_texts(services: Services, seq: int) -> list[str]:
    """Texts of a file's passages in their order; checks that each is there once, in rows and in segments."""
    rows = await services.db.read(_passage_texts(seq=seq))
    assert [row[0] for row in rows] == list(range(len(rows)))
    assert (await services.db.read(_passages_in_segments(seq=seq)))[0][0] == len(rows)
    return [row[1] for row in rows]

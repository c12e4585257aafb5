"""Frees what vector stores do not need any more. The worker's sweep calls this; the expiry itself is a matter of time alone."""

import sqlalchemy as sa

from mini_assistant.db.base import Query
from mini_assistant.db.tables import passages, segments, summary_vectors, vector_store_files, vector_stores
from mini_assistant.services import Services

_STORES_PER_SWEEP_MAX = 100

_of_store = vector_stores.c.id == sa.bindparam("of_store", type_=sa.Text)
_files_of_store = sa.select(vector_store_files.c.seq).where(vector_store_files.c.vector_store_id == sa.bindparam("of_store", type_=sa.Text))
# Spelled out as in the partial index that serves it.
_select_expired = Query(
    sa.select(vector_stores.c.id)
    .where(
        vector_stores.c.embedder.is_not(None),
        vector_stores.c.expires_at.is_not(None),
        vector_stores.c.expires_at <= sa.bindparam("now_seconds", type_=sa.BigInteger),
    )
    .limit(_STORES_PER_SWEEP_MAX)
)
_empty_store = (
    *[Query(sa.delete(table).where(table.c.file_seq.in_(_files_of_store))) for table in (passages, segments, summary_vectors)],
    Query(sa.update(vector_stores).where(_of_store).values(embedder=sa.null(), dimension=sa.null(), revision=vector_stores.c.revision + 1)),
)


async def sweep_vector_stores(services: Services) -> None:
    """Delete the passages of vector stores that have expired. Their lists of files stay (behaviour §6)."""
    for (vector_store_id,) in await services.db.read(_select_expired(now_seconds=services.now())):
        await services.db.write([query(of_store=vector_store_id) for query in _empty_store], durable=False)

"""The seam to the index of passages: it lives in the same database as the rows, so both change in one transaction."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from mini_assistant.db.base import Bound
from mini_assistant.models.embeddings.base import Vectors


class Passage(NamedTuple):
    """A piece of a document. start, end: half-open, in code points of its parsed text. page: from 1; None without pages."""

    text: str
    start: int
    end: int
    page: int | None


class StoreScope(NamedTuple):
    """The tenant that is searched: a vector store, and the project that it must belong to."""

    project_id: str
    vector_store_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class IndexQuery:
    """What is searched for.

    vector: one row, made by the embedder of the store. limit: the most hits wanted. file_seqs: rows of `vector_store_files` that may be
    found; None for all. embedding_weight, text_weight: rank by weighted reciprocal rank fusion instead of the default score; both or
    neither.
    """

    text: str
    vector: Vectors
    limit: int
    file_seqs: Collection[int] | None = None
    embedding_weight: float | None = None
    text_weight: float | None = None


class Hit(NamedTuple):
    """A passage that was found. score: 0..1, the best first, and independent of what else was found unless weights were given."""

    file_seq: int
    ordinal: int
    score: float
    passage: Passage


class PassageIndex(Protocol):
    """Passages of all vector stores, searched one store at a time."""

    def add_file(self, scope: StoreScope, file_seq: int, passages: Sequence[Passage], vectors: Vectors) -> list[Bound]:
        """Statements that make a file's passages findable; the next search after their commit sees them.

        Pure, and seconds of CPU for a large file: call it outside the event loop. vectors: one row a passage.
        """
        ...

    def remove_file(self, scope: StoreScope, file_seq: int) -> list[Bound]:
        """Statements that drop a file's passages; the next search after their commit does not see them. None need be there."""
        ...

    async def search(self, scope: StoreScope, query: IndexQuery) -> list[Hit]:
        """The best passages of a store. Exact: no passage that is left out has a better score. Empty for an unknown store."""
        ...

    async def close(self) -> None:
        """Drop what is cached."""
        ...

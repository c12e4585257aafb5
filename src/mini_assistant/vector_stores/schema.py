"""The wire shape of vector stores, of the files in them, of file batches and of searches.

Source: openapi-assistants.json, VectorStoreObject, VectorStoreFileObject, VectorStoreFileBatchObject, VectorStoreSearchRequest and the
requests beside them; recorded answers where they differ (behaviour §2.8 to §2.10, §6).
"""

from typing import Annotated, Literal

import msgspec
from msgspec import UNSET, Meta, UnsetType

from mini_assistant.assistants.schema import (
    ChunkingStrategyInput,
    ChunkSize,
    Description,
    Metadata,
    Name,
    ObjectId,
    StaticChunking,
)

_SOURCE_EXTENSIONS = (".c", ".cpp", ".cs", ".css", ".go", ".java", ".js", ".json", ".php", ".py", ".rb", ".sh", ".ts")
_DOCUMENT_EXTENSIONS = (".doc", ".docx", ".html", ".md", ".pdf", ".pptx", ".tex", ".txt")
SUPPORTED_EXTENSIONS = frozenset((*_SOURCE_EXTENSIONS, *_DOCUMENT_EXTENSIONS))
"""The types of files that can be searched, in lower case. Source: behaviour §5.1."""

DEFAULT_CHUNK_SIZE = ChunkSize(max_chunk_size_tokens=800, chunk_overlap_tokens=400)
"""What the strategy `auto` stands for."""

# No database has to hold the character NUL in a text that it compares.
_NO_NUL = r"^[^\x00]*$"
AttributeKey = Annotated[str, Meta(max_length=64, pattern=_NO_NUL)]
AttributeValue = Annotated[str, Meta(max_length=512, pattern=_NO_NUL)] | bool | Annotated[int, Meta(ge=-(2**63), le=2**63 - 1)] | float
Attributes = Annotated[
    dict[AttributeKey, AttributeValue],
    Meta(max_length=16, description="Up to 16 values; keys of at most 64 characters, texts of at most 512."),
]
FileStatus = Literal["in_progress", "completed", "failed", "cancelled"]


class ExpiresAfter(msgspec.Struct, forbid_unknown_fields=True):
    """When a vector store expires: so many days after it was last part of a run."""

    anchor: Literal["last_active_at"]
    days: Annotated[int, Meta(ge=1, le=365)]


class CreateVectorStore(msgspec.Struct, forbid_unknown_fields=True):
    """Body of `POST /vector_stores`; may be absent."""

    file_ids: list[ObjectId] | None = None
    name: Name | None = None
    description: Description | None = None
    expires_after: ExpiresAfter | None = None
    chunking_strategy: ChunkingStrategyInput | None = None
    metadata: Metadata | None = None


class ModifyVectorStore(msgspec.Struct, forbid_unknown_fields=True):
    """Body of `POST /vector_stores/{vector_store_id}`: what is absent stays, null clears."""

    name: Name | None | UnsetType = UNSET
    expires_after: ExpiresAfter | None | UnsetType = UNSET
    metadata: Metadata | None | UnsetType = UNSET


class FileCounts(msgspec.Struct):
    """How many files have come how far."""

    in_progress: int
    completed: int
    failed: int
    cancelled: int
    total: int


class VectorStore(msgspec.Struct, kw_only=True):
    """The vector store object."""

    id: str
    object: Literal["vector_store"] = "vector_store"
    created_at: int
    name: str | None
    description: str | None
    metadata: dict[str, str]
    usage_bytes: int
    file_counts: FileCounts
    status: Literal["in_progress", "completed", "expired"]
    expires_after: ExpiresAfter | None
    expires_at: int | None
    last_active_at: int


class CreateVectorStoreFile(msgspec.Struct, forbid_unknown_fields=True):
    """Body of `POST /vector_stores/{vector_store_id}/files`, and an item of a batch.

    What is None stays as it is when the file is in the vector store already.
    """

    file_id: ObjectId
    attributes: Attributes | None = None
    chunking_strategy: ChunkingStrategyInput | None = None


class ModifyVectorStoreFile(msgspec.Struct, forbid_unknown_fields=True):
    """Body of `POST /vector_stores/{vector_store_id}/files/{file_id}`. The attributes replace the earlier ones; null removes them."""

    attributes: Attributes | None


class VectorStoreFileError(msgspec.Struct):
    """Why a file cannot be searched."""

    code: Literal["server_error", "unsupported_file", "invalid_file"]
    message: str


class VectorStoreFile(msgspec.Struct, kw_only=True):
    """A file in a vector store; `id` is the file's. usage_bytes: 0 until the file has been ingested."""

    id: str
    object: Literal["vector_store.file"] = "vector_store.file"
    usage_bytes: int
    created_at: int
    vector_store_id: str
    status: FileStatus
    last_error: VectorStoreFileError | None
    chunking_strategy: StaticChunking
    attributes: dict[str, str | bool | int | float]


class CreateFileBatch(msgspec.Struct, forbid_unknown_fields=True):
    """Body of `POST /vector_stores/{vector_store_id}/file_batches`: `file_ids` or `files`.

    attributes, chunking_strategy: of all files in `file_ids`.
    """

    file_ids: Annotated[list[ObjectId], Meta(min_length=1)] | None = None
    files: Annotated[list[CreateVectorStoreFile], Meta(min_length=1)] | None = None
    attributes: Attributes | None = None
    chunking_strategy: ChunkingStrategyInput | None = None


class FileBatch(msgspec.Struct, kw_only=True):
    """The file batch object. Source: behaviour §0 row 8 for its `object`."""

    id: str
    object: Literal["vector_store.file_batch"] = "vector_store.file_batch"
    created_at: int
    vector_store_id: str
    status: Literal["in_progress", "completed", "cancelled", "failed"]
    file_counts: FileCounts


class FileText(msgspec.Struct):
    """Text of a file."""

    text: str
    type: Literal["text"] = "text"


class FileContent(msgspec.Struct, kw_only=True):
    """The text that a file was parsed to; no data while there is none."""

    object: Literal["vector_store.file_content.page"] = "vector_store.file_content.page"
    data: list[FileText]
    has_more: bool = False
    next_page: str | None = None


class _Comparison(msgspec.Struct, tag_field="type", forbid_unknown_fields=True):
    key: AttributeKey
    value: AttributeValue


class EqualFilter(_Comparison, tag="eq"):
    """The attribute has this value."""


class NotEqualFilter(_Comparison, tag="ne"):
    """The attribute has another value of the same type. False for files without it."""


class GreaterFilter(_Comparison, tag="gt"):
    """The attribute is greater."""


class GreaterOrEqualFilter(_Comparison, tag="gte"):
    """The attribute is greater, or has this value."""


class LessFilter(_Comparison, tag="lt"):
    """The attribute is less."""


class LessOrEqualFilter(_Comparison, tag="lte"):
    """The attribute is less, or has this value."""


class _Membership(msgspec.Struct, tag_field="type", forbid_unknown_fields=True):
    key: AttributeKey
    value: Annotated[list[AttributeValue], Meta(min_length=1, max_length=500)]


class InFilter(_Membership, tag="in"):
    """The attribute has one of these values."""


class NotInFilter(_Membership, tag="nin"):
    """The attribute has none of these values, though the type of one of them. False for files without it."""


class AndFilter(msgspec.Struct, tag_field="type", tag="and", forbid_unknown_fields=True):
    """All of the filters hold."""

    filters: "Annotated[list[Filter], Meta(min_length=1, max_length=100)]"


class OrFilter(msgspec.Struct, tag_field="type", tag="or", forbid_unknown_fields=True):
    """One of the filters holds."""

    filters: "Annotated[list[Filter], Meta(min_length=1, max_length=100)]"


ComparisonFilter = EqualFilter | NotEqualFilter | GreaterFilter | GreaterOrEqualFilter | LessFilter | LessOrEqualFilter
MembershipFilter = InFilter | NotInFilter
Filter = ComparisonFilter | MembershipFilter | AndFilter | OrFilter


class HybridSearch(msgspec.Struct, forbid_unknown_fields=True):
    """The weights of the two orders that passages are ranked by: by meaning and by words."""

    embedding_weight: Annotated[float, Meta(ge=0)]
    text_weight: Annotated[float, Meta(ge=0)]

    def __post_init__(self) -> None:
        if self.embedding_weight + self.text_weight <= 0:
            raise ValueError("Invalid 'hybrid_search': one of 'embedding_weight' and 'text_weight' must be above 0.")


class SearchRankingOptions(msgspec.Struct, forbid_unknown_fields=True):
    """How passages are ranked. Results below `score_threshold` are left out."""

    ranker: Literal["none", "auto", "default-2024-11-15"] = "auto"
    score_threshold: Annotated[float, Meta(ge=0, le=1)] = 0.0
    hybrid_search: HybridSearch | None = None


SearchText = Annotated[str, Meta(min_length=1, max_length=10_000)]


class SearchVectorStore(msgspec.Struct, forbid_unknown_fields=True):
    """Body of `POST /vector_stores/{vector_store_id}/search`."""

    query: SearchText | Annotated[list[SearchText], Meta(min_length=1, max_length=20)]
    rewrite_query: bool | None = None
    max_num_results: Annotated[int, Meta(ge=1, le=50)] | None = None
    filters: Filter | None = None
    ranking_options: SearchRankingOptions | None = None


class FoundPassage(msgspec.Struct):
    """A passage that a search found. score: 0..1. page: from 1, of files that have pages; an extension."""

    file_id: str
    filename: str
    score: float
    attributes: dict[str, str | bool | int | float]
    content: list[FileText]
    page: int | UnsetType = UNSET


class SearchResultsPage(msgspec.Struct, kw_only=True):
    """What a search found, the best first. search_query: what was searched for, rewritten when that was asked."""

    object: Literal["vector_store.search_results.page"] = "vector_store.search_results.page"
    search_query: list[str]
    data: list[FoundPassage]
    has_more: bool = False
    next_page: str | None = None

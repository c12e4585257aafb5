"""What every route, command and worker is given: the parts of the server, by their interfaces."""

from collections.abc import Mapping
from dataclasses import dataclass

from mini_assistant.clock import Clock
from mini_assistant.db.base import Database
from mini_assistant.events.base import EventBus
from mini_assistant.files.blobs.base import BlobStore
from mini_assistant.models.base import ChatModels
from mini_assistant.models.embeddings.base import Embedder
from mini_assistant.models.rerank.base import Reranker
from mini_assistant.queue.base import TaskQueue
from mini_assistant.settings import Settings
from mini_assistant.tools.base import HostedTool
from mini_assistant.vector_stores.indexes.base import PassageIndex
from mini_assistant.vector_stores.parsers.base import DocumentParser


@dataclass(frozen=True, kw_only=True)
class Services:
    """The parts; app.py puts real ones in, tests may put others.

    tools: the hosted tools of this server by the type that an assistant names (`file_search`, `code_interpreter`). reranker: None when
    passages keep the order of the index.
    """

    db: Database
    queue: TaskQueue
    events: EventBus
    models: ChatModels
    blobs: BlobStore
    parser: DocumentParser
    embedder: Embedder
    reranker: Reranker | None
    index: PassageIndex
    tools: Mapping[str, HostedTool]
    clock: Clock
    settings: Settings

    def now(self) -> int:
        """Unix seconds, as on the wire."""
        return int(self.clock.now())

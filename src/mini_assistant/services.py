"""What every route, command and worker is given: the parts of the server, by their interfaces."""

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass, field

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


@dataclass(frozen=True)
class Backends:
    """The parts that differ between one process with its own database and many processes around a shared one."""

    db: Database
    queue: TaskQueue
    events: EventBus
    index: PassageIndex
    clock: Clock


@dataclass(frozen=True, kw_only=True)
class Services:
    """The parts; app.py puts real ones in, tests may put others.

    tools: the hosted tools of this server by the type that an assistant names (`file_search`, `code_interpreter`). reranker: None when
    passages keep the order of the index. draining: set when this process has been told to stop, and should be sent nothing new.
    webhooks_due: set when there may be events for the deliverer of this process; one that is not told finds them a sweep later.
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
    draining: asyncio.Event = field(default_factory=asyncio.Event)
    webhooks_due: asyncio.Event = field(default_factory=asyncio.Event)

    def now(self) -> int:
        """Unix seconds, as on the wire."""
        return int(self.clock.now())

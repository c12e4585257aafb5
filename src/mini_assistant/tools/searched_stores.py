"""The vector stores that a run searches: those of the assistant, as the run has them, and those of the thread, as they are now.

Called by `tools/file_search.py`. Source: behaviour §3.10, §6 (expiry), §7.
"""

import asyncio
from collections.abc import Sequence

from msgspec import UNSET

from mini_assistant.assistants.schema import ToolResources
from mini_assistant.errors import NotFound, ToolFailure
from mini_assistant.threads.store import decode_thread, get_thread_json
from mini_assistant.tools.base import ToolUse
from mini_assistant.vector_stores.schema import VectorStore
from mini_assistant.vector_stores.store import get_store_or_none

_FIRST_PAUSE_SECONDS = 0.02
_PAUSE_SECONDS_MAX = 1.0


async def usable_store_ids(use: ToolUse) -> list[str]:
    """The stores of a run that exist: of the assistant, then of the thread. Raises ToolFailure when one has expired."""
    stores = await _stores(use, [*_store_ids(use.run.tool_resources), *await _thread_store_ids(use)])
    for store in stores:
        if store.status == "expired":
            raise ToolFailure("not_found", f"The vector store '{store.id}' has expired, and file_search needs it.")
    return [store.id for store in stores]


async def wait_for_files(use: ToolUse) -> None:
    """Wait until the thread's stores have no file in progress, at most `file_search_wait_seconds`. The assistant's are not waited for."""
    store_ids = await _thread_store_ids(use)
    now = asyncio.get_running_loop().time
    deadline, pause_seconds = now() + use.services.settings.file_search_wait_seconds, _FIRST_PAUSE_SECONDS
    # The rows are read again and again, in growing pauses: whoever ingests the files may be another process.
    while any(store.status == "in_progress" for store in await _stores(use, store_ids)):
        seconds_left = deadline - now()
        if seconds_left <= 0:
            return  # what is there is searched
        await asyncio.sleep(min(pause_seconds, seconds_left))
        pause_seconds = min(pause_seconds * 1.5, _PAUSE_SECONDS_MAX)


def _store_ids(resources: ToolResources) -> list[str]:
    return [] if resources.file_search is UNSET else list(resources.file_search.vector_store_ids)


async def _thread_store_ids(use: ToolUse) -> list[str]:
    try:
        return _store_ids(decode_thread(await get_thread_json(use.services, use.project_id, use.run.thread_id)).tool_resources)
    except NotFound:  # deleted, and the run with it
        return []


async def _stores(use: ToolUse, store_ids: Sequence[str]) -> list[VectorStore]:
    """Those of the stores that exist, each once."""
    found = [await get_store_or_none(use.services, use.project_id, store_id) for store_id in dict.fromkeys(store_ids)]
    return [store for store in found if store is not None]

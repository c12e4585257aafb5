"""Files in vector stores as the tests of file_search need them, made with the official SDK."""

from collections.abc import Mapping
from typing import Any

import openai
from openai.types import VectorStore

from mini_assistant.models.script import ScriptedCall, ToolCalls

FOOD = {"food.txt": "The favorite food of Anna is pizza with olives.", "drinks.md": "# Drinks\n\nBen drinks green tea in the morning."}


async def new_store(sdk: openai.AsyncOpenAI, files: Mapping[str, str | bytes] = FOOD, **fields: Any) -> VectorStore:
    """A vector store whose files can be searched."""
    store = await sdk.vector_stores.create(**fields)
    for name, content in files.items():
        data = content.encode() if isinstance(content, str) else content
        uploaded = await sdk.files.create(file=(name, data), purpose="assistants")
        attached = await sdk.vector_stores.files.create_and_poll(uploaded.id, vector_store_id=store.id, poll_interval_ms=10)
        assert attached.status == "completed", attached.last_error
    return await sdk.vector_stores.retrieve(store.id)


async def file_ids_of(sdk: openai.AsyncOpenAI, store: VectorStore) -> dict[str, str]:
    """By name, the files of a store."""
    ids = [item.id async for item in sdk.vector_stores.files.list(store.id)]
    return {(await sdk.files.retrieve(file_id)).filename: file_id for file_id in ids}


def resources_of(store: VectorStore) -> dict[str, Any]:
    """What an assistant or a thread has when it searches a store."""
    return {"file_search": {"vector_store_ids": [store.id]}}


def search_for(*queries: str) -> ToolCalls:
    """The model asks for one search with these queries."""
    return ToolCalls([search_call(*queries)])


def search_call(*queries: str) -> ScriptedCall:
    """One call of file_search."""
    listed = ",".join(f'"{query}"' for query in queries)
    return ScriptedCall("file_search", f'{{"queries":[{listed}]}}')

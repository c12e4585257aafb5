"""Uploaded files and vector stores as the tests need them, made with the official SDK."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Sequence

import openai
from openai.types.vector_stores import VectorStoreFile

POLL_MS = 10
WHALES = "Whales sing long songs under water. A blue whale is the largest animal that ever lived."
TOMATOES = "Tomatoes need sun, water and warm soil. Pick them when they are red."


async def text_file(sdk: openai.AsyncOpenAI, text: str = WHALES, name: str = "notes.txt") -> str:
    """An uploaded file; gives its id."""
    return (await sdk.files.create(file=(name, text.encode()), purpose="assistants")).id


async def text_files(sdk: openai.AsyncOpenAI, count: int) -> list[str]:
    """Uploaded files whose texts differ; gives their ids in the order of their numbers."""
    return [await text_file(sdk, f"This is text number {number}.", f"{number}.txt") for number in range(count)]


async def ingested(sdk: openai.AsyncOpenAI, vector_store_id: str, file_id: str) -> VectorStoreFile:
    """The file of a vector store once it is not in progress any more."""
    return await sdk.vector_stores.files.poll(file_id, vector_store_id=vector_store_id, poll_interval_ms=POLL_MS)


async def store_with(sdk: openai.AsyncOpenAI, *file_ids: str) -> str:
    """A vector store whose files have been ingested; gives its id."""
    store = await sdk.vector_stores.create(file_ids=list(file_ids))
    for file_id in file_ids:
        assert (await ingested(sdk, store.id, file_id)).status == "completed"
    return store.id


async def listed(sdk: openai.AsyncOpenAI, vector_store_id: str) -> list[str]:
    """The ids of all files of a vector store, the newest first."""
    return [file.id async for file in sdk.vector_stores.files.list(vector_store_id)]


async def found(sdk: openai.AsyncOpenAI, vector_store_id: str, query: str | Sequence[str], **options: object) -> list[str]:
    """The ids of the files whose passages a search finds, the best first."""
    page = await sdk.vector_stores.search(vector_store_id, query=query, **options)  # type: ignore[arg-type]
    return [result.file_id for result in page.data]


@contextlib.asynccontextmanager
async def silent_endpoint() -> AsyncIterator[str]:
    """An address that takes connections and never answers: whoever waits for vectors from it is never done."""
    writers: list[asyncio.StreamWriter] = []

    async def keep(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writers.append(writer)

    server = await asyncio.start_server(keep, "127.0.0.1", 0)
    try:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1"
    finally:
        server.close()
        for writer in writers:
            writer.close()

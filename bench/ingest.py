"""CPU of a whole ingest (parse, chunk, embed, summarise, index, commit) against the embedder alone on the same passages."""

import asyncio
import os
import tempfile
import time
from collections.abc import AsyncIterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from pydoc_data.topics import topics

import aiohttp

from bench import machine
from bench.report import Row, at_least, median
from bench.scale import QUICK, Scale
from mini_assistant.models.embeddings.wordllama import WordllamaEmbedder
from mini_assistant.vector_stores.chunking import chunk_document
from mini_assistant.vector_stores.parsers.base import ParsedDocument

TARGET = 0.5
_FILES = 24
_QUICK_FILES = 2
_ROUNDS_MAX = 3
# A chapter of a manual: 60 passages.
_FILE_CHARACTERS = 100_000
# The chunks of the hosted API.
_CHUNK_TOKENS = 800
_OVERLAP_TOKENS = 400
_POLL_SECONDS = 0.1
_INGEST_TIMEOUT_SECONDS = 300
_TICKS_PER_SECOND = os.sysconf("SC_CLK_TCK")


async def rows(scale: Scale) -> AsyncIterator[Row]:
    """One row. The texts are those of Python's own help, which is on every machine."""
    texts = _texts(_QUICK_FILES if scale == QUICK else _FILES)
    passages = [passage.text for text in texts for passage in chunk_document(ParsedDocument(text), _CHUNK_TOKENS, _OVERLAP_TOKENS)]
    whole: list[float] = []
    embedder: list[float] = []
    with tempfile.TemporaryDirectory() as folder:
        environment = {"MINI_ASSISTANT_FILE_SUMMARIES": "extractive"}
        arguments = ["serve", "--port", "0", "--data-dir", folder]
        cores = [machine.server_core()]
        with machine.started("mini_assistant", arguments, ready="is ready at ", cores=cores, environment=environment) as server:
            timeout = aiohttp.ClientTimeout(total=120)
            async with aiohttp.ClientSession(f"{server.address}/v1/", timeout=timeout) as client:
                await _ingest(client, server.pid, texts[:2])  # loads the embedder and starts the parsers
                for _ in range(min(scale.rounds, _ROUNDS_MAX)):
                    embedder.append(len(passages) / await _embedder_cpu_seconds(passages))
                    whole.append(len(passages) / await _ingest(client, server.pid, texts))
    ratio = median(a / b for a, b in zip(whole, embedder, strict=True))
    measured, bound = f"{median(whole):.0f} passages/CPU s", f"{median(embedder):.0f}, embedder alone"
    yield at_least("ingest: text files", ratio, TARGET, measured=measured, bound=bound)


def _texts(count: int) -> list[str]:
    """Files of about the same size, each with another part of the help first."""
    help_text = "\n\n".join(topics.values())
    step = len(help_text) // count
    return [(help_text[step * number :] + help_text)[:_FILE_CHARACTERS] for number in range(count)]


async def _embedder_cpu_seconds(passages: Sequence[str]) -> float:
    """CPU seconds of the embedder, on the server's core."""
    with ThreadPoolExecutor(1, initializer=os.sched_setaffinity, initargs=(0, [machine.server_core()])) as pinned:
        return await asyncio.get_running_loop().run_in_executor(pinned, asyncio.run, _embedded(passages))


async def _embedded(passages: Sequence[str]) -> float:
    embedder = WordllamaEmbedder()
    await embedder.check()
    began = time.process_time()
    await embedder.embed(passages, "passage")
    return time.process_time() - began


async def _ingest(client: aiohttp.ClientSession, server_pid: int, texts: Sequence[str]) -> float:
    """CPU seconds of the server from the creation of a store of these files until they can be found."""
    file_ids: list[str] = []
    for number, text in enumerate(texts):
        form = aiohttp.FormData({"purpose": "assistants"})
        form.add_field("file", text.encode(), filename=f"chapter-{number}.txt", content_type="text/plain")
        async with client.post("files", data=form) as response:
            file_ids.append((await response.json())["id"])
    began = _cpu_seconds(server_pid)
    async with client.post("vector_stores", json={"file_ids": file_ids}) as response:
        store = await response.json()
    async with asyncio.timeout(_INGEST_TIMEOUT_SECONDS):
        while store["file_counts"]["in_progress"]:
            await asyncio.sleep(_POLL_SECONDS)
            async with client.get(f"vector_stores/{store['id']}") as response:
                store = await response.json()
    if store["file_counts"]["completed"] != len(texts):
        raise RuntimeError(f"not every file was ingested: {store['file_counts']}")
    return _cpu_seconds(server_pid) - began


def _cpu_seconds(pid: int) -> float:
    """User and system time of a process and of all its children, those that have ended too."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        children = [int(child) for task in Path(f"/proc/{pid}/task").iterdir() for child in (task / "children").read_text().split()]
    except FileNotFoundError:  # a child that ended just now; its parent has its time
        return 0.0
    return sum(map(int, fields[11:15])) / _TICKS_PER_SECOND + sum(map(_cpu_seconds, children))

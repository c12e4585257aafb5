"""How well the right documents are found: nDCG@10 and recall@10 of labelled collections, by meaning, by words, by both, and with summaries.

Everything goes through a server as a client would: the documents are uploaded, ingested with the default chunks by the default embedder,
and searched for. A document counts as found at the place of its best passage. `python -m bench.quality --help` tells where the
collections are looked for; the report tells which of them are not here.
"""

import argparse
import asyncio
import contextlib
import dataclasses
import math
import os
import re
import tempfile
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple

import aiohttp
import uvloop

from bench import datasets
from bench.datasets import LabelledSet, Question
from bench.report import Row, heading, information, line
from bench.scale import FULL, QUICK, Scale
from mini_assistant.app import running_server
from mini_assistant.settings import Settings

# What each ranking must reach: the better one of its two halves.
TARGET_SHARE = 1.0
_PLACES = 10
# Passages that are asked for: enough for ten documents whose passages overlap.
_PASSAGES = 50
_REQUESTS = 8
_QUICK_QUESTIONS = 20
_INGEST_TIMEOUT_SECONDS = 600

_BY_MEANING = {"hybrid_search": {"embedding_weight": 1, "text_weight": 0}}
_BY_WORDS = {"hybrid_search": {"embedding_weight": 0, "text_weight": 1}}


class Folders(NamedTuple):
    """Where the collections are; None for Cranfield leaves it out."""

    cranfield: Path | None
    debian_faq: Path = datasets.DEBIAN_FAQ_FOLDER
    python_docs: Path = datasets.PYTHON_DOCS_FOLDER


class Quality(NamedTuple):
    """Means over all questions."""

    ndcg: float
    recall: float

    def __str__(self) -> str:
        return f"{self.ndcg:.3f} / {self.recall:.3f}"


class Measured(NamedTuple):
    """The quality of each way to rank."""

    by_words: Quality
    by_meaning: Quality
    by_both: Quality
    with_summaries: Quality


async def rows(scale: Scale) -> AsyncIterator[Row]:
    """Rows for each collection that is here. BENCH_CRANFIELD names the folder of the Cranfield collection."""
    named = os.environ.get("BENCH_CRANFIELD")
    async for row in rows_of(Folders(Path(named) if named else None), scale):
        yield row


async def rows_of(folders: Folders, scale: Scale) -> AsyncIterator[Row]:
    """As `rows`, with the folders given."""
    for name, load, where in _collections(folders):
        if load is None:
            yield information(f"quality: {name}", "not here", where)
            continue
        collection = load()
        questions = collection.questions if scale != QUICK else collection.questions[:_QUICK_QUESTIONS]
        measured = await measure(collection._replace(questions=questions))
        halves = f"words {measured.by_words}, meaning {measured.by_meaning}"
        yield _row(f"quality: {name}, nDCG@10 / recall@10", measured.by_both, measured, halves)
        yield _row(f"quality: {name}, with summaries", measured.with_summaries, measured, f"without {measured.by_both}")


def _row(what: str, quality: Quality, measured: Measured, bound: str) -> Row:
    is_ok = quality.ndcg >= TARGET_SHARE * max(measured.by_words.ndcg, measured.by_meaning.ndcg)
    return Row(what, str(quality), bound, ">= best half", is_ok)


def _collections(folders: Folders) -> list[tuple[str, Callable[[], LabelledSet] | None, str]]:
    """The name of each collection, how it is loaded if it is here, and how it is had if it is not."""
    cranfield = folders.cranfield
    is_cranfield_here = cranfield is not None and (cranfield / "cranqrel.trec.txt").is_file()
    return [
        (
            "cranfield",
            (lambda: datasets.cranfield(cranfield)) if cranfield is not None and is_cranfield_here else None,
            "BENCH_CRANFIELD names its folder",
        ),
        (
            "debian-faq",
            (lambda: datasets.debian_faq(folders.debian_faq)) if folders.debian_faq.is_dir() else None,
            "apt-get install debian-faq",
        ),
        (
            "python-faq",
            (lambda: datasets.python_faq(folders.python_docs)) if folders.python_docs.is_dir() else None,
            "apt-get install python3-doc",
        ),
    ]


async def measure(collection: LabelledSet) -> Measured:
    """Ingest a collection into a server of its own, and search it in every way."""
    with tempfile.TemporaryDirectory() as folder:
        settings = Settings(port=0, data_dir=Path(folder), file_summaries="extractive", ingest_concurrency_max=2)
        async with _client_of(settings) as client:
            vector_store_id, document_ids = await _ingested(client, collection.documents)
            searched = _Searched(client, vector_store_id, document_ids)
            with_summaries = await searched.quality(collection.questions, None)
        async with _client_of(dataclasses.replace(settings, file_summaries="off")) as client:
            searched = _Searched(client, vector_store_id, document_ids)
            return Measured(
                by_words=await searched.quality(collection.questions, _BY_WORDS),
                by_meaning=await searched.quality(collection.questions, _BY_MEANING),
                by_both=await searched.quality(collection.questions, None),
                with_summaries=with_summaries,
            )


@contextlib.asynccontextmanager
async def _client_of(settings: Settings) -> AsyncIterator[aiohttp.ClientSession]:
    timeout = aiohttp.ClientTimeout(total=120)
    async with running_server(settings) as address, aiohttp.ClientSession(f"{address}/v1/", timeout=timeout) as client:
        yield client


async def _ingested(client: aiohttp.ClientSession, documents: Mapping[str, str]) -> tuple[str, dict[str, str]]:
    """Upload the documents and wait until they can be found; gives the store, and the documents by their file ids."""
    slots = asyncio.Semaphore(_REQUESTS)

    async def upload(document: str) -> str:
        form = aiohttp.FormData({"purpose": "assistants"})
        filename = re.sub(r"\W+", "-", document).strip("-") + ".txt"
        form.add_field("file", documents[document].encode(), filename=filename, content_type="text/plain")
        async with slots:
            return (await _asked(client, "files", data=form))["id"]

    names = [name for name, text in documents.items() if text.strip()]
    file_ids = await asyncio.gather(*(upload(name) for name in names))
    store = await _asked(client, "vector_stores", json={})
    batch = await _asked(client, f"vector_stores/{store['id']}/file_batches", json={"file_ids": file_ids})
    async with asyncio.timeout(_INGEST_TIMEOUT_SECONDS):
        while batch["status"] == "in_progress":
            await asyncio.sleep(0.2)
            batch = await _asked(client, f"vector_stores/{store['id']}/file_batches/{batch['id']}")
    if batch["file_counts"]["completed"] != len(names):
        raise RuntimeError(f"not every document was ingested: {batch['file_counts']}")
    return store["id"], dict(zip(file_ids, names, strict=True))


async def _asked(client: aiohttp.ClientSession, path: str, **body: Any) -> Any:
    """The answer of a route, decoded: POST with a body, GET without."""
    async with client.request("POST" if body else "GET", path, **body) as response:
        if response.status != 200:
            raise RuntimeError(f"{path}: {response.status} {await response.text()}")
        return await response.json()


class _Searched(NamedTuple):
    """A store. document_ids: by file id."""

    client: aiohttp.ClientSession
    vector_store_id: str
    document_ids: Mapping[str, str]

    async def quality(self, questions: Sequence[Question], ranking_options: dict[str, Any] | None) -> Quality:
        """Ask every question. ranking_options: None for the server's own way to rank."""
        slots = asyncio.Semaphore(_REQUESTS)

        async def ask(question: Question) -> Quality:
            async with slots:
                return quality_of(await self._found(question.text, ranking_options), question.relevant)

        answers = await asyncio.gather(*map(ask, questions))
        return Quality(fmean(answer.ndcg for answer in answers), fmean(answer.recall for answer in answers))

    async def _found(self, text: str, ranking_options: dict[str, Any] | None) -> list[str]:
        body = {"query": text, "max_num_results": _PASSAGES, **({"ranking_options": ranking_options} if ranking_options else {})}
        page = await _asked(self.client, f"vector_stores/{self.vector_store_id}/search", json=body)
        return list(dict.fromkeys(self.document_ids[result["file_id"]] for result in page["data"]))


def quality_of(found: Sequence[str], relevant: Mapping[str, int]) -> Quality:
    """nDCG and recall of the first ten documents that were found."""
    gain = sum(relevant.get(document, 0) / math.log2(place + 2) for place, document in enumerate(found[:_PLACES]))
    ideal = sum(grade / math.log2(place + 2) for place, grade in enumerate(sorted(relevant.values(), reverse=True)[:_PLACES]))
    return Quality(gain / ideal, len(relevant.keys() & set(found[:_PLACES])) / len(relevant))


async def _print(folders: Folders, scale: Scale) -> bool:
    """Print the rows as they come; whether all targets were met."""
    print(heading())
    is_ok = True
    async for row in rows_of(folders, scale):
        print(line(row), flush=True)
        is_ok &= row.is_ok is not False
    return is_ok


def main() -> int:
    """Measure the collections that are here; returns 1 when one of them misses its target."""
    parser = argparse.ArgumentParser(prog="python -m bench.quality", description="Measure how well the right documents are found.")
    parser.add_argument("--cranfield", type=Path, help="folder with cran.all.1400.xml, cran.qry.xml and cranqrel.trec.txt")
    parser.add_argument("--debian-faq", type=Path, default=datasets.DEBIAN_FAQ_FOLDER, help="folder of the pages of debian-faq")
    parser.add_argument("--python-docs", type=Path, default=datasets.PYTHON_DOCS_FOLDER, help="folder _sources of the pages of python3-doc")
    parser.add_argument("--quick", action="store_true", help=f"only {_QUICK_QUESTIONS} questions of each")
    options = parser.parse_args()
    folders = Folders(options.cranfield, options.debian_faq, options.python_docs)
    return 0 if uvloop.run(_print(folders, QUICK if options.quick else FULL)) else 1


if __name__ == "__main__":
    raise SystemExit(main())

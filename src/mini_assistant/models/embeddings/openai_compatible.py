"""An embedder that speaks OpenAI's `/v1/embeddings` over HTTP: the hosted API, vLLM, Ollama, TEI, LiteLLM and others."""

import asyncio
import base64
from collections.abc import Sequence
from typing import Literal

import msgspec
import numpy as np
from numpy.typing import NDArray

from mini_assistant.errors import ModelError
from mini_assistant.models.embeddings.base import EmbeddingFailed, Vectors
from mini_assistant.models.embeddings.rows import embeddable, unit_rows
from mini_assistant.models.json_endpoint import JsonEndpoint
from mini_assistant.models.provider_limits import ProviderLimits

# What the most modest servers take in one request. The hosted API takes far more, and gains little from it.
_TEXTS_PER_REQUEST = 32
_CHARACTERS_PER_REQUEST = 256 * 1024
_REQUESTS_MAX = 4


class _Item(msgspec.Struct):
    """index: the place of its text in the request; its own place in the answer when a server leaves it out."""

    embedding: str | list[float]
    index: int | None = None


class _Answer(msgspec.Struct):
    data: list[_Item]


class EmbeddingsEndpoint:
    """An `Embedder` at `base_url`, to which `/embeddings` is added.

    limits: `first_token_timeout_seconds` is the time of a whole answer. Raises ConfigError when `base_url` is no URL, or the key cannot be
    sent as a header.
    """

    def __init__(self, base_url: str, model: str, *, api_key: str = "", limits: ProviderLimits | None = None) -> None:
        self.id = f"openai:{model}"
        self._model = model
        self._endpoint = JsonEndpoint("embeddings", base_url, api_key=api_key, limits=limits or ProviderLimits())
        self._requests = asyncio.Semaphore(_REQUESTS_MAX)
        self._dimension: int | None = None

    async def embed(self, texts: Sequence[str], kind: Literal["passage", "query"]) -> Vectors:
        """As `Embedder.embed`; passages and queries are embedded alike. A blank text, which servers refuse, has a vector of zeros."""
        places = [place for place, text in enumerate(texts) if text.strip()]
        if not places and self._dimension is None:
            await self._request(["-"])  # only its answer tells how long the vectors of zeros are
        batches = _batches([embeddable(texts[place]) for place in places])
        try:
            async with asyncio.TaskGroup() as group:
                requests = [group.create_task(self._request(batch)) for batch in batches]
        except* EmbeddingFailed as failures:
            raise _first(failures) from None
        vectors = np.zeros((len(texts), self._dimension or 0), dtype=np.float32)
        if places:
            vectors[places] = np.concatenate([request.result() for request in requests])
        return vectors

    async def check(self) -> str:
        """As `Embedder.check`. It embeds a word."""
        vectors = await self._request(["check"])
        return f"{self.id}, {vectors.shape[1]} dimensions, at {self._endpoint.public_address}"

    async def close(self) -> None:
        """As `Embedder.close`."""
        await self._endpoint.close()

    async def _request(self, texts: Sequence[str]) -> Vectors:
        body = {"model": self._model, "input": texts, "encoding_format": "base64"}
        try:
            async with self._requests:
                answer = await self._endpoint.post("embeddings", body)
            vectors = await asyncio.to_thread(_vectors, answer, len(texts))
        except ModelError as exc:
            raise EmbeddingFailed(exc.message, retryable=exc.retryable) from exc
        except ValueError as exc:  # of msgspec, base64 and _vectors
            message = self._endpoint.errors.nonsense(f"an answer that holds no vectors for the texts ({exc})").message
            raise EmbeddingFailed(message, retryable=False) from exc
        self._check_dimension(vectors.shape[1])
        return vectors

    def _check_dimension(self, dimension: int) -> None:
        if self._dimension not in (None, dimension):
            message = f"The model '{self._model}' of the embeddings endpoint gives {dimension} dimensions now, and gave {self._dimension}."
            raise EmbeddingFailed(message, retryable=False)
        self._dimension = dimension


def _first(failures: BaseExceptionGroup[EmbeddingFailed]) -> EmbeddingFailed:
    """The failure to report: one for which trying again does not help, if there is any."""
    found: list[EmbeddingFailed] = []
    for failure in failures.exceptions:
        found.append(_first(failure) if isinstance(failure, BaseExceptionGroup) else failure)
    return min(found, key=lambda failure: failure.retryable)


def _batches(texts: Sequence[str]) -> list[list[str]]:
    """The texts in the requests that carry them."""
    batches: list[list[str]] = []
    characters_left = 0
    for text in texts:
        if not batches or len(batches[-1]) == _TEXTS_PER_REQUEST or len(text) > characters_left:
            batches.append([])
            characters_left = _CHARACTERS_PER_REQUEST
        batches[-1].append(text)
        characters_left -= len(text)
    return batches


def _vectors(answer: bytes, count: int) -> Vectors:
    """The vectors in the order of the texts. Raises ValueError when they are not what was asked for."""
    items = msgspec.json.decode(answer, type=_Answer).data
    by_index = {place if item.index is None else item.index: item for place, item in enumerate(items)}
    if len(items) != count or sorted(by_index) != list(range(count)):
        raise ValueError(f"{len(items)} vectors for {count} texts")
    rows = [_row(by_index[place].embedding) for place in range(count)]
    if len({len(row) for row in rows}) != 1 or len(rows[0]) == 0:
        raise ValueError("their lengths differ or are 0")
    vectors = np.stack(rows)
    if not np.isfinite(vectors).all():
        raise ValueError("numbers that are not finite")
    return unit_rows(vectors)


def _row(embedding: str | list[float]) -> NDArray[np.float32]:
    if isinstance(embedding, str):
        return np.frombuffer(base64.b64decode(embedding, validate=True), dtype="<f4").astype(np.float32)
    return np.array(embedding, dtype=np.float32)

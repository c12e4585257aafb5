"""A re-ranker that is asked over HTTP, in the form that Jina and Cohere gave to `/rerank`: also vLLM, Infinity, LiteLLM and TEI."""

import asyncio
import math
from collections.abc import Sequence
from typing import Any

import msgspec

from mini_assistant.errors import ModelError
from mini_assistant.models.json_endpoint import JsonEndpoint
from mini_assistant.models.provider_limits import ProviderLimits
from mini_assistant.models.rerank.base import RerankFailed

_QUERY_CHARACTERS_MAX = 32 * 1024


class _Scored(msgspec.Struct):
    """index: of a passage. Servers call the score by either name."""

    index: int
    relevance_score: float | None = None
    score: float | None = None


class _Answer(msgspec.Struct):
    results: list[_Scored]


class RerankEndpoint:
    """A `Reranker` at `url`, which is the whole address. limits: `first_token_timeout_seconds` is the time of all attempts together.

    Raises ConfigError when `url` is no URL, or the key cannot be sent as a header.
    """

    def __init__(self, url: str, model: str, *, api_key: str = "", limits: ProviderLimits | None = None) -> None:
        self._model = model
        limits = limits or ProviderLimits()
        self._timeout_seconds = limits.first_token_timeout_seconds
        self._endpoint = JsonEndpoint("rerank", url, api_key=api_key, limits=limits)
        # TEI has another name for the passages; learned from its refusal.
        self._passages_field = "documents"

    async def scores(self, query: str, passages: Sequence[str]) -> list[float]:
        """As `Reranker.scores`. Scores of a scale of their own are brought to 0..1 by the logistic function, which keeps their order."""
        if not passages:
            return []
        try:
            async with asyncio.timeout(self._timeout_seconds):
                answer = await self._ask(query[:_QUERY_CHARACTERS_MAX], passages)
            return _in_range(_scores(answer, len(passages)))
        except ModelError as exc:
            raise RerankFailed(exc.message, retryable=exc.retryable) from exc
        except TimeoutError as exc:
            message = self._endpoint.errors.silent(self._timeout_seconds, has_begun=False).message
            raise RerankFailed(message, retryable=True) from exc
        except ValueError as exc:  # of msgspec and _scores
            message = self._endpoint.errors.nonsense(f"an answer that holds no scores for the passages ({exc})").message
            raise RerankFailed(message) from exc

    async def check(self) -> str:
        """As `Reranker.check`. It scores a word."""
        await self.scores("check", ["check"])
        return f"{self._model or 're-ranker'} at {self._endpoint.public_address}"

    async def close(self) -> None:
        """As `Reranker.close`."""
        await self._endpoint.close()

    async def _ask(self, query: str, passages: Sequence[str]) -> bytes:
        try:
            return await self._endpoint.post("", self._body(query, passages))
        except ModelError as exc:
            if self._passages_field == "texts" or exc.code != "invalid_prompt" or "texts" not in exc.message:
                raise
            self._passages_field = "texts"
            return await self._endpoint.post("", self._body(query, passages))

    def _body(self, query: str, passages: Sequence[str]) -> dict[str, Any]:
        body: dict[str, Any] = {"query": _valid(query), self._passages_field: [_valid(passage) for passage in passages]}
        if self._passages_field == "documents":
            body["top_n"] = len(passages)
        return {"model": self._model, **body} if self._model else body


def _valid(text: str) -> str:
    # Lone surrogates, which JSON can carry, are no valid text.
    return text if text.isascii() else text.encode("utf-8", "replace").decode()


def _scores(answer: bytes, count: int) -> list[float]:
    """The scores in the order of the passages. Raises ValueError when there is not one for each."""
    # TEI answers with the bare list.
    is_bare = answer.lstrip().startswith(b"[")
    results = msgspec.json.decode(answer, type=list[_Scored]) if is_bare else msgspec.json.decode(answer, type=_Answer).results
    scores: dict[int, float] = {}
    for result in results:
        score = result.score if result.relevance_score is None else result.relevance_score
        if score is None:
            raise ValueError("a result without a score")
        scores[result.index] = score
    if len(results) != count or sorted(scores) != list(range(count)):
        raise ValueError(f"{len(results)} results for {count} passages")
    return [scores[place] for place in range(count)]


def _in_range(scores: list[float]) -> list[float]:
    if all(0 <= score <= 1 for score in scores):
        return scores
    return [_logistic(score) for score in scores]


def _logistic(score: float) -> float:
    # Written for negative exponents only, which cannot overflow.
    if score >= 0:
        return 1 / (1 + math.exp(-score))
    power = math.exp(score)
    return power / (1 + power)

"""The seam to re-rankers: which of some passages answer a query best."""

from collections.abc import Sequence
from typing import Protocol

from mini_assistant.errors import BackendError


class RerankFailed(BackendError):
    """The re-ranker did not answer, or not with scores."""


class Reranker(Protocol):
    """Scores passages against a query."""

    async def scores(self, query: str, passages: Sequence[str]) -> list[float]:
        """A score in 0..1 for each passage, in their order. Raises RerankFailed."""
        ...

    async def check(self) -> str:
        """One line about the re-ranker. Raises RerankFailed with the reason when it cannot be used."""
        ...

    async def close(self) -> None:
        """Give back connections."""
        ...

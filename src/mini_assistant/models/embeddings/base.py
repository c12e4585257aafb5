"""The seam to embedders: from texts to vectors."""

from collections.abc import Sequence
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from mini_assistant.errors import BackendError

Vectors = NDArray[np.float32]
"""One row a text, `dimension` columns, each row of length 1 (or 0 for a text without a known word)."""


class EmbeddingFailed(BackendError):
    """Texts could not be embedded. retryable: whether the same call may work later."""

    def __init__(self, message: str, *, retryable: bool = True) -> None:
        super().__init__(message, retryable=retryable)


class Embedder(Protocol):
    """Makes vectors whose dot product says how near two texts are."""

    @property
    def id(self) -> str:
        """What made the vectors, such as `wordllama-256`; pinned for each vector store. Another id means other vectors."""
        ...

    async def embed(self, texts: Sequence[str], kind: Literal["passage", "query"]) -> Vectors:
        """Vectors of texts, in their order. CPU work is done outside the event loop. Raises EmbeddingFailed."""
        ...

    async def check(self) -> str:
        """One line about the embedder. Raises EmbeddingFailed with the reason when it cannot be used."""
        ...

    async def close(self) -> None:
        """Give back connections and memory."""
        ...

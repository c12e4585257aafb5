"""What embedders share: texts that can be encoded, and vectors of length 1."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from mini_assistant.models.embeddings.base import Vectors

TEXT_CHARACTERS_MAX = 64 * 1024
"""Longer than any chunk. The vector of more would say little, and its cost must be bounded whatever is asked."""


def embeddable(text: str) -> str:
    """The text as it is embedded: not too long, and without lone surrogates, which JSON can carry though they are no text."""
    text = text[:TEXT_CHARACTERS_MAX]
    return text if text.isascii() else text.encode("utf-8", "replace").decode()


def unit_rows(rows: NDArray[Any]) -> Vectors:
    """The rows with length 1; rows of zeros stay."""
    vectors = rows.astype(np.float32)
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    return np.divide(vectors, lengths, out=np.zeros_like(vectors), where=lengths > 0)

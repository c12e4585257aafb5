"""Vectors in eight bits, to find out quickly which few of many may be the nearest; those are then scored with what is stored.

The error is bounded, not estimated: nothing is lost. A scan reads half of the bytes.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from mini_assistant.vector_stores.indexes.products import fill_products

# Below it a scan of the stored vectors costs no more.
_ROWS_MIN = 4096
# Rows that are widened at a time.
_CHUNK_ROWS = 4096
_LARGEST = 127
# What half precision products may differ by themselves, and more.
_ROUNDING = 1e-4


class Coarse(NamedTuple):
    """Vectors as multiples of `step`.

    error: the length of the longest difference between a vector and its coarse form. length: that of the longest coarse form.
    """

    matrix: NDArray[np.int8]
    step: float
    error: float
    length: float


def coarse_or_none(vectors: NDArray[np.float16]) -> Coarse | None:
    """The coarse form of vectors; None for so few that it is of no use."""
    if len(vectors) < _ROWS_MIN:
        return None
    # Without the sign, half precision numbers are in the order of their bits, which numpy compares twenty times faster.
    largest = (vectors.view(np.uint16) & np.uint16(0x7FFF)).max().view(np.float16)
    step = float(largest) / _LARGEST or 1.0
    matrix = np.empty(vectors.shape, np.int8)
    error = length = 0.0
    for start in range(0, len(vectors), _CHUNK_ROWS):
        exact = vectors[start : start + _CHUNK_ROWS].astype(np.float32)
        rounded = np.rint(exact / np.float32(step))
        matrix[start : start + _CHUNK_ROWS] = rounded
        rounded *= np.float32(step)
        error = max(error, _longest(exact - rounded))
        length = max(length, _longest(rounded))
    return Coarse(matrix, step, error, length)


def _longest(vectors: NDArray[np.float32]) -> float:
    return float(np.sqrt(np.einsum("ij,ij->i", vectors, vectors).max()))


def coarse_products(coarse: Coarse, query: NDArray[np.float32], products: NDArray[np.float32]) -> float:
    """Fill in the products of all vectors with one query; returns how far each of them may be from the true one.

    query, products: one row.
    """
    step = float(np.abs(query).max()) / _LARGEST or 1.0
    rounded = np.rint(query / np.float32(step))
    fill_products(products, rounded.astype(np.int8), coarse.matrix)
    products *= np.float32(step * coarse.step)
    query_error = float(np.linalg.norm(query - rounded * np.float32(step)))
    return coarse.error * float(np.linalg.norm(query)) + query_error * coarse.length + _ROUNDING

"""The coarse scan: its products are never further from the true ones than it says."""

import numpy as np
import pytest

from mini_assistant.vector_stores.indexes.coarse import coarse_or_none, coarse_products


def some_vectors(count: int, seed: int, *, skew: float = 0.0) -> np.ndarray:
    numbers = np.random.default_rng(seed)
    made = numbers.standard_normal((count, 64), dtype=np.float32)
    made[:, 0] += skew
    return (made / np.linalg.norm(made, axis=1, keepdims=True)).astype(np.float16)


@pytest.mark.parametrize("skew", [0.0, 3.0, 50.0])
def test_products_are_within_their_bound(skew: float) -> None:
    vectors = some_vectors(6000, 1, skew=skew)
    coarse = coarse_or_none(vectors)
    assert coarse is not None
    for query in (*some_vectors(20, 2).astype(np.float32), *some_vectors(5, 3, skew=9.0).astype(np.float32), np.zeros(64, np.float32)):
        products = np.empty((1, len(vectors)), np.float32)
        bound = coarse_products(coarse, query[None], products)
        true = vectors.astype(np.float64) @ query.astype(np.float64)
        worst = np.abs(products[0] - true).max()
        assert worst <= bound
        assert bound < 0.2


def test_zeros_have_a_coarse_form_and_few_vectors_need_none() -> None:
    coarse = coarse_or_none(np.zeros((5000, 8), np.float16))
    assert coarse is not None
    assert not coarse.matrix.any()
    assert coarse_or_none(some_vectors(100, 1)) is None

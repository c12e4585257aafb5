"""Which terms of a query are searched for."""

import sys

import numpy as np

from mini_assistant.vector_stores.indexes.analyzer import analyze, query_terms
from mini_assistant.vector_stores.indexes.products import fill_products


def test_common_words_are_not_searched_for() -> None:
    assert query_terms(analyze("What is the height of the tower, and how was it measured?")) == ["height", "tower", "measur"]


def test_every_term_is_searched_for_once() -> None:
    assert query_terms(analyze("towers, a tower and the Tower")) == ["tower"]


def test_a_query_of_common_words_alone_keeps_them() -> None:
    assert query_terms(analyze("to be or not to be")) == ["to", "be", "or", "not"]
    assert query_terms([]) == []


def test_products_give_up_no_reference_that_they_do_not_own() -> None:
    query, vectors = np.ones((1, 8), np.float16), np.ones((50, 8), np.float16)
    products = np.empty((1, 50), np.float32)
    before = sys.getrefcount(None)
    for _ in range(5000):
        fill_products(products, query, vectors)

    assert np.all(products == 8)
    assert abs(sys.getrefcount(None) - before) < 1000

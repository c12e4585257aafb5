"""The arithmetic of scores."""

import numpy as np
import pytest

from mini_assistant.vector_stores.indexes.fusion import TermMatch, add_term, best_of, fused_ranks, idf, norms_of, score_of_rank


def f32(*values: float) -> np.ndarray:
    return np.array(values, np.float32)


def test_a_term_weighs_more_the_fewer_passages_have_it() -> None:
    weights = [idf(1000, matching) for matching in (0, 1, 10, 500, 1000)]
    assert weights == sorted(weights, reverse=True)
    assert weights[-1] > 0


def test_a_term_gives_less_than_its_weight_and_more_the_oftener_it_occurs() -> None:
    scores = np.zeros(4, np.float32)
    match = TermMatch(np.array([0, 1, 3], np.uint16), np.array([1, 255, 2], np.uint8))
    add_term(scores, match, norms_of(np.array([10, 10, 10, 10], np.uint16), 10.0), 0.5)
    assert 0 < scores[0] < scores[3] < scores[1] < 0.5
    assert scores[2] == 0
    assert scores[0] == pytest.approx(0.5 * 1 / (1 + 1.2))


def test_short_passages_count_more() -> None:
    norms = norms_of(np.array([5, 10, 20], np.uint16), 10.0)
    assert norms.tolist() == pytest.approx([0.75, 1.2, 2.1])
    assert np.isfinite(norms_of(np.zeros(2, np.uint16), 0.0)).all()


def test_ranks_are_fused_by_their_weights() -> None:
    dense, text = f32(0.9, 0.5, 0.1), f32(0.0, 0.2, 0.8)
    scores = fused_ranks(dense, text, 3.0, 1.0)
    assert scores.tolist() == pytest.approx([0.75, 0.75 * 61 / 62 + 0.25 * 61 / 62, 0.75 * 61 / 63 + 0.25])
    assert fused_ranks(dense, text, 0.0, 2.0).tolist() == pytest.approx([0.0, 61 / 62, 1.0])
    assert fused_ranks(dense, None, 1.0, 0.0).tolist() == pytest.approx([score_of_rank(rank) for rank in (1, 2, 3)])
    assert fused_ranks(dense, text, 0.0, 0.0).tolist() == [0, 0, 0]


def test_the_best_are_chosen_with_all_that_equal_the_last() -> None:
    scores = f32(0.1, 0.9, 0.5, 0.5, 0.5, 0.7)
    assert sorted(best_of(scores, 1)) == [1]
    assert sorted(best_of(scores, 3)) == [1, 2, 3, 4, 5]
    assert sorted(best_of(scores, 1, margin=0.25)) == [1, 5]
    assert sorted(best_of(scores, 6)) == sorted(best_of(scores, 60)) == list(range(6))

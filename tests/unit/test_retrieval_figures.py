"""The figures of `bench.quality` and the collections it reads, on small ones whose right answers can be seen."""

import math

import pytest

from bench import datasets
from bench.quality import quality_of


def test_the_best_order_has_the_best_figures():
    assert quality_of(["a", "b", "x"], {"a": 1, "b": 1}) == (1.0, 1.0)
    assert quality_of(["x", "y"], {"a": 1}) == (0.0, 0.0)


def test_a_later_place_is_worth_less_and_the_eleventh_nothing():
    assert quality_of(["x", "a"], {"a": 1}).ndcg == pytest.approx(1 / math.log2(3))
    assert quality_of([*"0123456789", "a"], {"a": 1}) == (0.0, 0.0)


def test_better_answers_count_more_and_what_is_missing_counts():
    first = quality_of(["good", "fair"], {"good": 3, "fair": 1})
    second = quality_of(["fair", "good"], {"good": 3, "fair": 1})
    assert first.ndcg == 1.0 > second.ndcg
    assert quality_of(["a"], {"a": 1, "b": 1}).recall == 0.5


def test_cranfield(tmp_path):
    (tmp_path / "cran.all.1400.xml").write_text(
        "<doc>\n<docno>1</docno>\n<title>t</title>\n<text>wings &amp; lift</text>\n</doc>\n"
        "<doc>\n<docno>2</docno>\n<title>t</title>\n<text>slabs</text>\n</doc>\n"
        "<doc>\n<docno>3</docno>\n<title>t</title>\n<text></text>\n</doc>\n"
    )
    (tmp_path / "cran.qry.xml").write_text(
        "<top>\n<num> 1</num>\n<title>\nwhat lifts .\n</title>\n</top><top><num> 9</num><title>q</title></top>"
    )
    (tmp_path / "cranqrel.trec.txt").write_text("1 0 1 1\n1 0 2 0\n1 0 3 1\n2 0 2 3\n")

    collection = datasets.cranfield(tmp_path)

    assert collection.documents == {"1": "wings & lift", "2": "slabs", "3": ""}
    assert collection.questions == [("what lifts .", {"1": 1}), ("q", {"2": 1})]


def test_a_question_of_a_faq_is_not_in_the_text_that_answers_it(tmp_path):
    (tmp_path / "a.en.html").write_text(
        '<h1>Chapter 1</h1><h2 class="title"><a id="x"></a>1.1. What is a <em>deb</em>?</h2><p>A package.\n</p>'
        '<h2 class="title">1.2. Feedback</h2><p>By mail.</p>'
    )
    (tmp_path / "a.html").write_text('<h2 class="title">2. A translation?</h2>')

    collection = datasets.debian_faq(tmp_path)

    assert collection.documents == {"a.en.html#0": "A package.", "a.en.html#1": "By mail."}
    assert collection.questions == [("What is a deb?", {"a.en.html#0": 1})]


def test_pages_beside_a_faq_are_documents_without_a_question(tmp_path):
    (tmp_path / "faq").mkdir()
    (tmp_path / "faq" / "design.rst.txt").write_text(
        "Design\n======\n\nWhy is ``x`` so?\n----------------\n\nBecause it was decided so long ago.\n\n"
        "No question\n-----------\n\nSome more text here.\n"
    )
    (tmp_path / "os.rst.txt").write_text("Paths?\n======\n\nText.\n")

    collection = datasets.python_faq(tmp_path)

    assert collection.questions == [("Why is x so?", {"faq/design.rst.txt#1": 1})]
    assert collection.documents["faq/design.rst.txt#1"] == "Because it was decided so long ago."
    assert collection.documents["os.rst.txt"].startswith("Paths?")

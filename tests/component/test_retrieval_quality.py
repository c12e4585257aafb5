"""The benchmarks of retrieval run from end to end through a real server, on collections small enough for every test run."""

from pathlib import Path

from bench.datasets import LabelledSet, Question
from bench.quality import Folders, measure, rows_of
from bench.scale import QUICK

DOCUMENTS = {
    "bread": "Knead the dough, let the bread rise for an hour and bake it in a hot oven until the crust is brown.",
    "towers": "The Eiffel tower in Paris was built of iron by Gustave Eiffel for the world's fair.",
    "whales": "Whales are mammals that live in the ocean and breathe through a blowhole.",
    "empty": "  ",
}
QUESTIONS = [Question("Who built the tower of iron?", {"towers": 1}), Question("How long must dough rise?", {"bread": 1})]


async def test_each_way_to_rank_finds_what_is_easy_to_find() -> None:
    measured = await measure(LabelledSet("easy", DOCUMENTS, QUESTIONS))

    assert measured.by_both == measured.with_summaries == measured.by_words == (1.0, 1.0)
    assert measured.by_meaning.recall == 1.0


async def test_what_is_wrong_counts() -> None:
    wrong = [Question("Who built the tower of iron?", {"whales": 1})]

    measured = await measure(LabelledSet("wrong", DOCUMENTS, wrong))

    assert measured.by_both.ndcg < 1.0


async def test_a_collection_that_is_here_has_rows_and_another_says_how_it_is_had(tmp_path: Path) -> None:
    page = (
        '<h2 class="title">1. Where is the iron tower?</h2><p>It is in Paris.</p><h2 class="title">2. What are whales?</h2><p>Mammals.</p>'
    )
    (tmp_path / "a.en.html").write_text(page)

    rows = [row async for row in rows_of(Folders(None, tmp_path, tmp_path / "missing"), QUICK)]

    assert [row.what for row in rows] == [
        "quality: cranfield",
        "quality: debian-faq, nDCG@10 / recall@10",
        "quality: debian-faq, with summaries",
        "quality: python-faq",
    ]
    assert rows[3].bound == "apt-get install python3-doc"
    assert rows[1].is_ok is not None
    assert rows[3].is_ok is None

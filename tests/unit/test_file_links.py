"""Links to files in a text that is being written."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mini_assistant.runs.annotations import AnnotatedText, Citable
from mini_assistant.runs.citations import Piece, Source, marker_of
from mini_assistant.threads.schema import FilePathAnnotation

FILES = {"out.csv": "file-1", "out.csv.gz": "file-2", "my plot.png": "file-3", "sub/ä.txt": "file-4"}


def told_of(pieces: list[str], citable: Citable = Citable(None, FILES)) -> list[Piece]:  # noqa: B008 - it cannot change
    text = AnnotatedText(citable)
    return [*(told for piece in pieces for told in text.add(piece)), *text.end()]


def joined(told: list[Piece]) -> tuple[str, list[tuple[str, str]]]:
    """The text, and what its annotations link to; each is exactly where it says."""
    text = "".join(piece.text for piece in told)
    links = [piece.annotation for piece in told if piece.annotation is not None]
    for link in links:
        assert text[link.start_index : link.end_index] == link.text
    return text, [(link.text, link.file_path.file_id) for link in links if isinstance(link, FilePathAnnotation)]


@pytest.mark.parametrize(
    ("text", "links"),
    [
        ("[it](sandbox:/mnt/data/out.csv)", [("sandbox:/mnt/data/out.csv", "file-1")]),
        ("See sandbox:/mnt/data/out.csv.", [("sandbox:/mnt/data/out.csv", "file-1")]),
        ("sandbox:/mnt/data/out.csv", [("sandbox:/mnt/data/out.csv", "file-1")]),
        ("(sandbox:/mnt/data/out.csv.gz)", [("sandbox:/mnt/data/out.csv.gz", "file-2")]),
        ("(sandbox:/mnt/data/out.csv.zip)", []),
        ("(sandbox:/mnt/data/out.csv2)", []),
        ("(sandbox:/mnt/data/other.csv)", []),
        ("[p](sandbox:/mnt/data/my plot.png)", [("sandbox:/mnt/data/my plot.png", "file-3")]),
        ("[p](sandbox:/mnt/data/my%20plot.png)", [("sandbox:/mnt/data/my%20plot.png", "file-3")]),
        ("sandbox:/mnt/data/sub/ä.txt", [("sandbox:/mnt/data/sub/ä.txt", "file-4")]),
        ("sandbox:sandbox:/mnt/data/out.csv sandbox:/mnt/da", [("sandbox:/mnt/data/out.csv", "file-1")]),
        (
            "sandbox:/mnt/data/out.csv, sandbox:/mnt/data/out.csv",
            [("sandbox:/mnt/data/out.csv", "file-1"), ("sandbox:/mnt/data/out.csv", "file-1")],
        ),
        ("no link", []),
    ],
)
def test_links_are_found_whatever_the_pieces(text: str, links: list[tuple[str, str]]) -> None:
    for pieces in ([text], list(text), [text[:9], text[9:]]):
        assert joined(told_of(pieces)) == (text, links)


@given(
    st.lists(st.sampled_from(["sandbox:", "/mnt/data/", "out.csv", ".gz", ".", " ", "s", "sand", "my%20", "my plot.png", "【4:0†a】", "ä"]))
)
def test_the_text_stays_as_it_is_written(parts: list[str]) -> None:
    text = "".join(parts)
    whole = joined(told_of([text]))

    assert whole[0] == text
    assert joined(told_of(parts)) == whole
    assert joined(told_of(list(text))) == whole


def test_nothing_is_held_back_without_need() -> None:
    text = AnnotatedText(Citable(None, FILES))

    assert text.add("some words") == [Piece("some word")]
    assert text.add(" more") == [Piece("s more")]


def test_links_and_citations_stand_in_one_text() -> None:
    marker = marker_of(4, 0, "a.pdf")
    told = told_of(list(f"It says so {marker} in sandbox:/mnt/data/out.csv{marker}."), Citable({(4, 0): Source(marker, "file-9")}, FILES))

    text, links = joined(told)
    assert text == f"It says so {marker} in sandbox:/mnt/data/out.csv{marker}."
    assert links == [("sandbox:/mnt/data/out.csv", "file-1")]
    assert sum(piece.annotation is not None for piece in told) == 3

"""Markers become annotations, one to one and with exact slices, however the text is cut into pieces."""

import itertools
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from openai.lib.streaming._deltas import accumulate_delta

from mini_assistant.assistants.schema import RankingOptions
from mini_assistant.models.base import RefusalDelta, SourcePassage, TextDelta
from mini_assistant.runs.annotations import Citable
from mini_assistant.runs.citations import (
    CitedText,
    Piece,
    SearchHead,
    Source,
    head_line,
    known_sources,
    marker_of,
    next_number,
    search_head_or_none,
    source_passages,
)
from mini_assistant.runs.schema import (
    FileSearchCall,
    FileSearchResult,
    FileSearchResultContent,
    FileSearchToolCall,
    MessageCreation,
    MessageCreationDetails,
    RunStep,
    ToolCallsDetails,
)
from mini_assistant.runs.store import StepRecord
from mini_assistant.runs.turn import OpenMessage
from mini_assistant.threads.schema import (
    FileCitation,
    FileCitationAnnotation,
    ImageFile,
    ImageFileContent,
    Message,
    Text,
    TextContent,
)

FOOD = "【4:0†food.txt】"
REPORT = "【4:1†report[1].pdf】"
LATER = "【6:0†food.txt】"
SOURCES = {(4, 0): Source(FOOD, "file-food"), (4, 1): Source(REPORT, "file-report"), (6, 0): Source(LATER, "file-food")}


def written(*pieces: str, sources: dict[tuple[int, int], Source] | None = None) -> list[Piece]:
    """What is told of a text that comes in these pieces."""
    cited = CitedText(SOURCES if sources is None else sources)
    told = [piece for text in pieces for piece in cited.add(text)]
    return [*told, *cited.end()]


def value_of(told: list[Piece]) -> str:
    return "".join(piece.text for piece in told)


def annotations_of(told: list[Piece]) -> list[FileCitationAnnotation]:
    return [piece.annotation for piece in told if piece.annotation is not None]


def test_a_marker_becomes_an_annotation_in_one_piece_with_it() -> None:
    assert written("My favorite food is pizza ", FOOD, ".") == [
        Piece("My favorite food is pizza "),
        Piece(FOOD, FileCitationAnnotation(FOOD, 26, 26 + len(FOOD), FileCitation("file-food"))),
        Piece("."),
    ]


@pytest.mark.parametrize(
    ("text", "value", "files"),
    [
        (f"a{FOOD}b{REPORT}", f"a{FOOD}b{REPORT}", ["file-food", "file-report"]),
        (f"{FOOD}{FOOD}{LATER}", f"{FOOD}{FOOD}{LATER}", ["file-food", "file-food", "file-food"]),
        ("a[4:0†food.txt]", f"a{FOOD}", ["file-food"]),
        ("a[4:1†report[1].pdf].", f"a{REPORT}.", ["file-report"]),
        ("a【4:0】b", f"a{FOOD}b", ["file-food"]),
        ("a【4:0†source】b", f"a{FOOD}b", ["file-food"]),
        ("a【 4:0 †other name】b", f"a{FOOD}b", ["file-food"]),
        ("a【4:7†food.txt】b", "ab", []),
        ("a【4:7】b", "ab", []),
        ("a【4†source】b", "ab", []),
        ("a[9:9†food.txt]b", "ab", []),
        ("a【4:0†foo", "a", []),
        ("a【4:0", "a【4:0", []),
        ("a[", "a[", []),
        ("x[4:0] = [1], 【重要】 [link](url) 【12】", "x[4:0] = [1], 【重要】 [link](url) 【12】", []),
        ("【4:0\n†food】", "【4:0\n†food】", []),
        (f"【【{FOOD}】", f"【【{FOOD}】", ["file-food"]),
        ("\U0001f355" * 3 + FOOD, "\U0001f355" * 3 + FOOD, ["file-food"]),
        ("[4:0†" + "x" * 400 + "]", "[4:0†" + "x" * 400 + "]", []),
    ],
)
def test_variants_are_written_as_the_marker_and_others_taken_out(text: str, value: str, files: list[str]) -> None:
    told = written(text)
    assert value_of(told) == value
    assert [annotation.file_citation.file_id for annotation in annotations_of(told)] == files


def test_a_run_that_found_nothing_keeps_times_in_brackets_and_no_markers() -> None:
    assert value_of(written("Open【09:30】 until【18:00†x】", sources={})) == "Open【09:30】 until"


def test_plain_text_is_told_at_once_and_what_may_be_a_marker_is_held_back() -> None:
    cited = CitedText(SOURCES)
    assert [value_of(cited.add(piece)) for piece in ("Pizza", " [", "1", "] ", "【", "4:", "0†fo", "od.txt", "】", "!")] == [
        "Pizza", " ", "", "[1] ", "", "", "", "", FOOD, "!",
    ]  # fmt: skip


def test_what_is_held_back_has_an_end() -> None:
    cited = CitedText(SOURCES)
    told = [value_of(cited.add(character)) for character in "【4:0†" + "x" * 400]
    assert told[:300] == [""] * 300
    assert "".join(told[:320]) == "【4:0†" + "x" * 315
    assert told[320:] == ["x"] * 85


FRAGMENTS = st.one_of(
    st.sampled_from(
        [FOOD, REPORT, LATER, "[4:0†food.txt]", "【4:0】", "【4:0†source】", "【9:9†x】", "【4†source】", "【4:0†", "†", "【", "】", "["]
    ),
    st.sampled_from(["]", "4", ":", "0", " ", "\n", "[1]", "【重要】", "\U0001f355", "e\u0301"]),
    st.text(max_size=6),
)
TEXTS = st.lists(FRAGMENTS, max_size=12).map("".join)


@given(TEXTS, st.lists(st.integers(0, 60), max_size=20))
def test_any_cutting_gives_the_same(text: str, cuts: list[int]) -> None:
    places = [0, *sorted(min(cut, len(text)) for cut in cuts), len(text)]
    whole = written(text)
    pieces = written(*(text[begin:end] for begin, end in itertools.pairwise(places)))

    assert value_of(pieces) == value_of(whole)
    assert annotations_of(pieces) == annotations_of(whole)


@given(TEXTS)
def test_every_slice_is_exact_and_every_marker_is_annotated(text: str) -> None:
    told = written(*text)
    value = value_of(told)
    for annotation in annotations_of(told):
        assert value[annotation.start_index : annotation.end_index] == annotation.text
    for marker in (FOOD, REPORT, LATER):
        assert value.count(marker) == sum(annotation.text == marker for annotation in annotations_of(told))


# ---- what is known --------------------------------------------------------------------------------------------------------------------


def searched(call_id: str, number: int, *names: str, queries: tuple[str, ...] = ("food?",)) -> StepRecord:
    results = [FileSearchResult(f"file-{name}", name, 0.5, {}, [FileSearchResultContent(f"text of {name}")]) for name in names]
    call = FileSearchToolCall(call_id, FileSearchCall(RankingOptions(score_threshold=0.0), results))
    output = head_line(SearchHead(number, list(queries))) + "\n\nSearch 99 for []"
    return record_of(ToolCallsDetails([call]), {call_id: output})


def record_of(details: Any, outputs: dict[str, str]) -> StepRecord:
    kind = "tool_calls" if isinstance(details, ToolCallsDetails) else "message_creation"
    step = RunStep(
        id="step_1", created_at=1, run_id="run_1", assistant_id="asst_1", thread_id="thread_1", type=kind, status="completed",
        step_details=details,
    )  # fmt: skip
    return StepRecord(step=step, turn=1, outputs=outputs)


def test_sources_are_known_from_rows_alone() -> None:
    steps = [
        searched("call_1", 4, "a.txt", "b.txt"),
        searched("call_2", 6, "a.txt"),
        record_of(MessageCreationDetails(MessageCreation("m")), {}),
    ]
    assert known_sources(steps) == {
        (4, 0): Source("【4:0†a.txt】", "file-a.txt"),
        (4, 1): Source("【4:1†b.txt】", "file-b.txt"),
        (6, 0): Source("【6:0†a.txt】", "file-a.txt"),
    }


def test_passages_are_known_from_the_step_and_the_output() -> None:
    record = searched("call_1", 4, "a.txt")
    details = record.step.step_details
    assert isinstance(details, ToolCallsDetails)
    [call] = details.tool_calls
    assert isinstance(call, FileSearchToolCall)
    assert source_passages(call, record.outputs["call_1"]) == (SourcePassage("【4:0†a.txt】", "text of a.txt"),)
    assert source_passages(call, "Error (failed): no") == ()


@given(st.integers(0, 999_999), st.lists(st.text()))
def test_the_head_of_an_output_says_what_it_was_made_of(number: int, queries: list[str]) -> None:
    line = head_line(SearchHead(number, queries))
    assert "\n" not in line
    assert search_head_or_none(line + "\n\nmore\nSearch 1 for []") == SearchHead(number, queries)


@pytest.mark.parametrize("output", ["", "Error (timeout): Search 4 for []", "Search 4 for", "Search x for []"])
def test_an_output_without_a_head_is_none(output: str) -> None:
    assert search_head_or_none(output) is None


@given(st.text(max_size=300))
def test_a_marker_is_one_whatever_the_name(name: str) -> None:
    marker = marker_of(4, 0, name)
    told = written(f"a{marker}b", sources={(4, 0): Source(marker, "file-1")})
    assert value_of(told) == f"a{marker}b"
    assert [annotation.text for annotation in annotations_of(told)] == [marker]


def message(*texts: Text) -> Message:
    return Message(
        id="msg_1", created_at=1, assistant_id="asst_1", thread_id="thread_1", run_id="run_0", status="completed", role="assistant",
        content=[TextContent(text) for text in texts], attachments=[], metadata={},
    )  # fmt: skip


def test_numbers_begin_at_four_and_lie_above_every_marker_in_the_context() -> None:
    annotation = FileCitationAnnotation("【12:0†a.txt】", 0, 12, FileCitation("file-1"))
    assert next_number(1, [], {}) == 4
    assert next_number(3, [message(Text("no marker"))], {}) == 6
    assert next_number(3, [message(Text("【12:0†a.txt】", [annotation]))], {}) == 13
    assert next_number(1, [], SOURCES) == 7


# ---- the message that is being written -------------------------------------------------------------------------------------------------


def open_message(sources: dict[tuple[int, int], Source] | None) -> OpenMessage:
    citable = None if sources is None else Citable(sources, {})
    return OpenMessage(message(), record_of(MessageCreationDetails(MessageCreation("msg_1")), {}), citable)


def test_a_message_tells_the_deltas_of_the_wire() -> None:
    opened = open_message(SOURCES)
    told = [delta for piece in ("Pizza ", "【4:0†fo", "od.txt】", ".") for delta in opened.add(TextDelta(piece))]
    head = '{"id":"msg_1","object":"thread.message.delta","delta":{"content":[{"index":0,"type":"text","text":'
    annotation = (
        f'{{"index":0,"type":"file_citation","text":"{FOOD}","start_index":6,"end_index":{6 + len(FOOD)},'
        '"file_citation":{"file_id":"file-food","quote":""}}'
    )
    assert [delta.decode() for delta in told] == [
        head + '{"value":"Pizza ","annotations":[]}}]}}',
        head + f'{{"value":"{FOOD}","annotations":[{annotation}]}}}}]}}}}',
        head + '{"value":"."}}]}}',
    ]
    assert opened.end() == []
    [part] = opened.content
    assert part == TextContent(Text(f"Pizza {FOOD}.", [FileCitationAnnotation(FOOD, 6, 6 + len(FOOD), FileCitation("file-food"))]))


def test_a_message_of_which_nothing_is_left_is_told_as_empty() -> None:
    opened = open_message(SOURCES)
    assert opened.add(TextDelta("【9:9†x】")) == []
    [delta] = opened.end()
    assert b'"value":"","annotations":[]' in delta
    assert opened.content == [TextContent(Text(""))]


def test_a_run_that_does_not_search_is_told_as_it_comes() -> None:
    opened = open_message(None)
    assert len(opened.add(TextDelta("【4:0†"))) == 1
    assert opened.end() == []
    assert opened.content == [TextContent(Text("【4:0†"))]


def test_a_refusal_is_left_alone() -> None:
    opened = open_message(SOURCES)
    [delta] = opened.add(RefusalDelta(f"No {FOOD}"))
    assert f'"refusal":"No {FOOD}"' in delta.decode()
    assert opened.end() == []


def test_images_come_before_the_text() -> None:
    images = [ImageFileContent(ImageFile("file-a")), ImageFileContent(ImageFile("file-b"))]
    step = record_of(MessageCreationDetails(MessageCreation("msg_1")), {})
    opened = OpenMessage(message(), step, Citable(None, {"out.csv": "file-1"}), images)
    told = [*opened.begin(), *opened.add(TextDelta("Here: sandbox:/mnt/data/out.csv")), *opened.end()]

    parts: dict[int, dict[str, Any]] = {}
    for delta in told:
        [part] = msgspec.json.decode(delta)["delta"]["content"]
        accumulate_delta(parts.setdefault(part["index"], {}), part)
    content = [parts[index] for index in range(3)]
    assert [part["type"] for part in content] == ["image_file", "image_file", "text"]
    assert [part["image_file"] for part in content[:2]] == [
        {"file_id": "file-a", "detail": "auto"},
        {"file_id": "file-b", "detail": "auto"},
    ]
    assert content[2]["text"]["value"] == "Here: sandbox:/mnt/data/out.csv"
    assert content[2]["text"]["annotations"][0]["file_path"] == {"file_id": "file-1"}
    assert msgspec.to_builtins(opened.content)[0] == {"type": "image_file", "image_file": {"file_id": "file-a", "detail": "auto"}}

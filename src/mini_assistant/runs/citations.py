"""How an answer cites what a search has found: the markers, and the annotations that they become. Pure.

Every passage that a search gives to the model has a marker `【a:b†name】`: a is the place of the search in the context, b the place
of the passage in its results. `CitedText` finds markers in the text while it is being written. A marker that names a known passage
becomes an annotation, written as the passage's own marker; any other one is taken out, so that markers and annotations are one to one.
Source: behaviour §4.3 (d), §7.
"""

import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import msgspec

from mini_assistant.models.base import SourcePassage
from mini_assistant.runs.schema import FileSearchToolCall, ToolCallsDetails
from mini_assistant.runs.store import StepRecord
from mini_assistant.threads.schema import Annotation, FileCitation, FileCitationAnnotation, Message, TextContent

_FIRST_NUMBER = 4
# What stands before the first output of a thread with one message: the hosted API counted two messages of its own and the call.
_UNSEEN_MESSAGES = _FIRST_NUMBER - 1
_NAME_CHARACTERS_MAX = 200
_NAME_UNFIT = re.compile(r"[\x00-\x1f\x7f【】†\u2028\u2029]+")

# Names in markers that models write may be longer than any that they were given, but what is held back must have an end.
_FULL = re.compile(
    r"【 ?(?P<a>[0-9]{1,6})(?::(?P<b>[0-9]{1,6}))? ?(?P<name>†[^【】\n]{0,300})?】"
    r"|\[ ?(?P<a2>[0-9]{1,6}):(?P<b2>[0-9]{1,6}) ?(?P<name2>†(?:[^\[\]\n]|\[[^\[\]\n]{0,50}\]){0,300})\]"
)
# What may still become one of those.
_BEGUN = re.compile(
    r"【 ?(?:[0-9]{1,6}(?::(?:[0-9]{1,6}(?: ?(?:†[^【】\n]{0,300})?)?)?| ?(?:†[^【】\n]{0,300})?)?)?"
    r"|\[ ?(?:[0-9]{1,6}(?::(?:[0-9]{1,6}(?: ?(?:†(?:[^\[\]\n]|\[[^\[\]\n]{0,50}\]){0,300}(?:\[[^\[\]\n]{0,50})?)?)?)?)?)?"
)
_OPENING = re.compile(r"[【\[]")
_HEAD = re.compile(r"Search ([0-9]{1,6}) for (\[.*\])")
_ANNOTATED = re.compile(r"【([0-9]{1,6}):")


class Source(NamedTuple):
    """Where a passage is from, and its marker."""

    marker: str
    file_id: str


Sources = Mapping[tuple[int, int], Source]
"""The passages that an answer can cite, by (place of the search, place of the passage)."""


class SearchHead(NamedTuple):
    """The first line of a search's output. With it and the results of the step, all that the model has seen is known."""

    number: int
    queries: list[str]


class Piece(NamedTuple):
    """A piece of text that can be told. With an annotation it is exactly what the annotation is about."""

    text: str
    annotation: Annotation | None = None


def marker_of(number: int, place: int, file_name: str) -> str:
    """The marker of a passage. A name that would break it is changed, and cut after 200 characters."""
    return f"【{number}:{place}†{_NAME_UNFIT.sub('_', file_name)[:_NAME_CHARACTERS_MAX]}】"


def head_line(head: SearchHead) -> str:
    """The line with which a search's output begins."""
    return f"Search {head.number} for {msgspec.json.encode(head.queries).decode()}"


def search_head_or_none(output: str) -> SearchHead | None:
    """What the first line of an output says; None when the search has failed."""
    match = _HEAD.fullmatch(output.partition("\n")[0])
    return SearchHead(int(match[1]), msgspec.json.decode(match[2], type=list[str])) if match else None


def source_passages(call: FileSearchToolCall, output: str) -> tuple[SourcePassage, ...]:
    """The passages of a call, in the order of their markers; none when the search has failed."""
    head = search_head_or_none(output)
    if head is None:
        return ()
    return tuple(
        SourcePassage(marker_of(head.number, place, result.file_name), result.content[0].text if result.content else "")
        for place, result in enumerate(call.file_search.results)
    )


def known_sources(steps: Sequence[StepRecord]) -> dict[tuple[int, int], Source]:
    """What the searches of a run have found so far."""
    sources: dict[tuple[int, int], Source] = {}
    for record in steps:
        details = record.step.step_details
        calls = details.tool_calls if isinstance(details, ToolCallsDetails) else []
        for call in calls:
            head = search_head_or_none(record.outputs.get(call.id, "")) if isinstance(call, FileSearchToolCall) else None
            if head is not None and isinstance(call, FileSearchToolCall):
                for place, result in enumerate(call.file_search.results):
                    sources[head.number, place] = Source(marker_of(head.number, place, result.file_name), result.file_id)
    return sources


def next_number(context_messages: int, history: Sequence[Message], sources: Sources) -> int:
    """The place of the next output in a context of so many messages; above any that a marker in the context has.

    An old marker that the model copies from an earlier answer can thus not be taken for one of this run.
    """
    parts = [part.text for message in history if message.role == "assistant" for part in message.content if isinstance(part, TextContent)]
    used = [match for text in parts for annotation in text.annotations if (match := _ANNOTATED.match(annotation.text))]
    highest = max([*(int(match[1]) for match in used), *(number for number, _ in sources)], default=0)
    return max(_UNSEEN_MESSAGES + context_messages, highest + 1)


class CitedText:
    """The text of one part while it is being written. However the text comes in pieces, the same is told of it."""

    def __init__(self, sources: Sources) -> None:
        self._sources = sources
        self._held = ""
        self._told_characters = 0

    def add(self, text: str) -> list[Piece]:
        """Take a piece; returns what can be told now. The end of the text is held back while it may become a marker."""
        if not self._held and _OPENING.search(text) is None:
            return self._told(text)
        text, self._held = self._held + text, ""
        pieces: list[Piece] = []
        begin = place = 0
        while opening := _OPENING.search(text, place):
            at = opening.start()
            match = _FULL.match(text, at)
            if match is None and _BEGUN.fullmatch(text, at):
                self._held, text = text[at:], text[:at]
                break
            place = at + 1
            if match is not None and not self._is_plain(match):
                pieces += [*self._told(text[begin:at]), *self._cited(match)]
                begin = place = match.end()
        return [*pieces, *self._told(text[begin:])]

    def end(self) -> list[Piece]:
        """The text is whole: what was held back is no marker. One that was cut off behind its `†` is not told."""
        held, self._held = self._held, ""
        return [] if "†" in held else self._told(held)

    def _is_plain(self, match: re.Match[str]) -> bool:
        """Whether brackets around numbers mean something else: they have no name, and there is nothing that they could cite."""
        return match["name"] is None and match["name2"] is None and (match["b"] is None or not self._sources)

    def _cited(self, match: re.Match[str]) -> list[Piece]:
        number, place = match["a"] or match["a2"], match["b"] or match["b2"]
        source = self._sources.get((int(number), int(place))) if place is not None else None
        if source is None:
            return []
        begin, end = self._told_characters, self._told_characters + len(source.marker)
        self._told_characters = end
        return [Piece(source.marker, FileCitationAnnotation(source.marker, begin, end, FileCitation(source.file_id)))]

    def _told(self, text: str) -> list[Piece]:
        self._told_characters += len(text)
        return [Piece(text)] if text else []

"""How the built-in model answers questions about files: by quoting them.

It is too small to choose a tool, or to answer from a passage: it was right in half of the tries, while the sentence that shares the
most words with the question answered nearly all of them. So when file_search is offered, a question is searched for as it is, and
what the search finds is quoted with its marker. Pure; `builtin.py` asks here before it asks the model.
"""

import math
import re
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

import msgspec

from mini_assistant.models.base import ChatDelta, ChatMessage, ChatRequest, Finished, NamedTool, TextDelta, TextPart, ToolCallDelta

FILE_SEARCH = "file_search"
NOT_FOUND = "I could not find this in the files."

_QUERY_CHARACTERS_MAX = 2000
_QUOTES_MAX = 3
_QUOTE_CHARACTERS_MAX = 500
# The share of the question's words, each weighing more the rarer it is, that a quote must have; and a further one of the best quote's.
_SHARE_MIN = 0.4
_FURTHER_SHARE_MIN = 0.7
# A sentence of the best passage needs less than one of the last, which was found for less.
_RANK_DISCOUNT = 0.01
_WORDS_OF_A_QUESTION = 3
_CHARACTERS_OF_A_QUESTION = 6  # in scripts without spaces

_UNSPACED = re.compile(r"[\u0e00-\u0eff\u1000-\u109f\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af\U00020000-\U0003ffff]+")
_WORD = re.compile(r"[^\W_]+")
_SENTENCE_END = re.compile(r"(?<=[.!?])[\"')\]]*\s+(?=[^a-z])|(?<=[。\uff01\uff1f])|\n\s*\n|\n(?=\s*(?:[-*•#|]|\d+[.)]\s))")
_GREETINGS = frozenset({"hi", "hello", "hey", "thanks", "thank", "good", "bye", "goodbye", "ok", "okay", "yes", "no", "great", "please"})
_ENDINGS = ("ings", "ing", "edly", "ed", "ies", "es", "s", "ly", "e")
_COMMON = (
    "a about above after again all also am an and any are as at be because been before being between both but by can could did do does "
    "doing down during each few find for from further get give given had has have having he her here hers him his how i if in into is it "
    "its itself just know list many me mean more most much my no nor not now of off on once only or other our out over own please same say "
    "says she should show so some such tell than that the their them then there these they this those through to too under until up us use "
    "very was we were what when where which while who whom whose why will with would you your file files document documents"
)
_COMMON_WORDS = frozenset(_COMMON.split())


class _Sentence(NamedTuple):
    """A sentence of a passage that may be quoted."""

    text: str
    marker: str
    words: frozenset[str]
    rank: int


def quoted_answer_or_none(request: ChatRequest) -> list[list[ChatDelta]] | None:
    """The answer to a request about files, in the pieces in which it is streamed; None when the model itself should answer.

    A search that was made is always answered here. One is asked for when file_search is offered, and either demanded or the last
    message asks for something.
    """
    last = request.messages[-1] if request.messages else None
    if last is not None and last.role == "tool":
        return _quotes(last_user_text(request.messages), _found(request.messages))
    question = last_user_text(request.messages)
    if not _may_search(request) or not (_must_search(request) or _asks(question)):
        return None
    arguments = msgspec.json.encode({"queries": [question[:_QUERY_CHARACTERS_MAX] or "*"]}).decode()
    return [[ToolCallDelta(0, FILE_SEARCH, arguments)], [Finished("tool_calls", None)]]


def _may_search(request: ChatRequest) -> bool:
    return request.tool_choice != "none" and any(tool.name == FILE_SEARCH for tool in request.tools)


def _must_search(request: ChatRequest) -> bool:
    return request.tool_choice == "required" or request.tool_choice == NamedTool(FILE_SEARCH)


def _asks(text: str) -> bool:
    """Whether a message wants to know something: anything but a greeting or a word of thanks."""
    words = [word.lower() for word in _WORD.findall(text)]
    if "?" in text or "\uff1f" in text:
        return bool(words)
    if not words or words[0] in _GREETINGS:
        return False
    return len(words) >= _WORDS_OF_A_QUESTION or (_UNSPACED.search(text) is not None and len(text) >= _CHARACTERS_OF_A_QUESTION)


def last_user_text(messages: Sequence[ChatMessage]) -> str:
    """What the user has said last, without images; empty when the user has said nothing."""
    content = next((message.content for message in reversed(messages) if message.role == "user"), "")
    return content if isinstance(content, str) else "\n".join(part.text for part in content if isinstance(part, TextPart))


def _found(messages: Sequence[ChatMessage]) -> list[_Sentence]:
    """The sentences that the searches after the last user message have brought, the best passages first."""
    users = [place for place, message in enumerate(messages) if message.role == "user"]
    outputs = messages[users[-1] if users else 0 :]
    passages = [(rank, passage) for message in outputs for rank, passage in enumerate(message.passages)]
    return [
        _Sentence(text, passage.marker, _words(text), rank)
        for rank, passage in sorted(passages, key=lambda found: found[0])
        for text in _sentences(passage.text)
    ]


def _quotes(question: str, sentences: Sequence[_Sentence]) -> list[list[ChatDelta]]:
    chosen = _chosen(_words(question), sentences)
    texts = [f"“{sentence.text}” {sentence.marker}" for sentence in chosen] or [NOT_FOUND]
    pieces: list[list[ChatDelta]] = [[TextDelta(text if place == 0 else f"\n\n{text}")] for place, text in enumerate(texts)]
    return [*pieces, [Finished("stop", None)]]


def _chosen(wanted: frozenset[str], sentences: Sequence[_Sentence]) -> list[_Sentence]:
    """The sentences that say the most of what is asked, the best first, none that says nothing new."""
    weights = _weights(wanted, sentences)
    total = sum(weights.values())
    if not total:  # only common words: whatever was found first is as good as anything
        return list(sentences[:1])

    def share(sentence: _Sentence) -> float:
        return sum(weights[word] for word in sentence.words & wanted) / total - _RANK_DISCOUNT * sentence.rank

    ranked = sorted(sentences, key=share, reverse=True)
    best = share(ranked[0]) if ranked else 0.0
    chosen: list[_Sentence] = []
    for sentence in ranked:
        if share(sentence) < max(_SHARE_MIN, _FURTHER_SHARE_MIN * best) or len(chosen) == _QUOTES_MAX:
            break
        if not any(sentence.words <= known.words for known in chosen):
            chosen.append(sentence)
    return chosen


def _weights(wanted: frozenset[str], sentences: Sequence[_Sentence]) -> dict[str, float]:
    """How much each word of a question counts: the more, the fewer sentences have it."""
    counts = Counter(word for sentence in sentences for word in sentence.words & wanted)
    return {word: math.log(1 + (len(sentences) + 1) / (counts[word] + 0.5)) for word in wanted}


def _sentences(text: str) -> list[str]:
    """The sentences of a passage, each on one line. Lines that a page has broken are joined, items of a list are not."""
    pieces = [" ".join(piece.split()).lstrip("-*•#| ") for piece in _SENTENCE_END.split(text)]
    return [_cut(piece) for piece in pieces if _WORD.search(piece)]


def _cut(sentence: str) -> str:
    return sentence if len(sentence) <= _QUOTE_CHARACTERS_MAX else sentence[:_QUOTE_CHARACTERS_MAX].rsplit(" ", 1)[0] + " …"


def _words(text: str) -> frozenset[str]:
    """The words that say something, without their endings; pairs of characters for scripts without spaces."""
    lowered = text.lower()
    pairs = {run[place : place + 2] for run in _UNSPACED.findall(lowered) for place in range(len(run) - 1)}
    words = {_stem(word) for word in _WORD.findall(_UNSPACED.sub(" ", lowered)) if word not in _COMMON_WORDS}
    return frozenset(words | pairs)


def _stem(word: str) -> str:
    ending = next((ending for ending in _ENDINGS if word.endswith(ending) and len(word) - len(ending) >= 3), "")
    return word[: len(word) - len(ending)] if word.isascii() else word

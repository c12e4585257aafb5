"""Takes apart passages that overlap, so that the text that neighbours share is analysed once. Pure."""

from collections.abc import Sequence
from itertools import pairwise

# An overlap is looked for by so many of its first characters. A shorter one is missed, and one that begins like what is before it.
_PROBE_CHARACTERS = 32


def shared_pieces(texts: Sequence[str]) -> tuple[list[str], list[tuple[int, int]]]:
    """Pieces, and for each text the first piece of it and the one after its last; put together they are the text.

    A text is only cut beside white space, so that the words of the pieces are the words of the text. What a text shares with the end of
    the one before it is in the same pieces, wherever that allows it.
    """
    news: list[str] = []
    spans: list[tuple[int, int]] = []
    before, end = "", 0
    for text in texts:
        shared = _shared_characters(before, text)
        news.append(text[shared:])
        spans.append((end - shared, end - shared + len(text)))
        before, end = text, spans[-1][1]
    whole = "".join(news)
    cuts = sorted({place for span in spans for place in span})
    number_of = {place: number for number, place in enumerate(cuts)}
    pieces = [whole[start:stop] for start, stop in pairwise(cuts)]
    return pieces, [(number_of[start], number_of[stop]) for start, stop in spans]


def _shared_characters(before: str, text: str) -> int:
    """How long the end of `before` is that `text` begins with; 0 when either would be cut within a word there."""
    place = before.find(text[:_PROBE_CHARACTERS])
    if place < 0 or not text.startswith(before[place:]):
        return 0
    shared = len(before) - place
    return shared if _is_beside_space(before, place) and _is_beside_space(text, shared) else 0


def _is_beside_space(text: str, place: int) -> bool:
    return place in (0, len(text)) or text[place - 1].isspace() or text[place].isspace()

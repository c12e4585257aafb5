"""From a text to the terms that are counted for BM25.

Terms are the words of the text in lower case (NFKC, case folded) with English endings taken off, numbers as they stand, identifiers
whole and in their parts, and pairs of characters for scripts that put no spaces between words. `split_words` and `terms_of` are the
two halves: the first is done for every text, the second once for each different word of it.

A change of what they yield needs a new `ANALYZER_VERSION`, with the old rules kept in `ANALYZERS` for the segments that were written
with them.
"""

import re
import unicodedata
from collections.abc import Callable, Mapping, Sequence

ANALYZER_VERSION = 1

# Above it a word is no identifier that somebody would ask for in parts, such as encoded bytes.
_IDENTIFIER_CHARACTERS_MAX = 64

_ASCII_WORD = re.compile(r"\d+(?:[.,:]\d+)+|[A-Za-z0-9_]+")
# Marks that belong to a word but are no letters to `\w`: accents left by NFKC, Hebrew and Arabic points, vowel signs from Devanagari to
# Sinhala, Thai, Lao, Tibetan, Myanmar and Khmer, and the joiners between letters.
_MARKS = (
    r"\u0300-\u036f\u0591-\u05bd\u05bf\u05c1\u05c2\u0610-\u061a\u064b-\u065f\u0670\u06d6-\u06dc"
    r"\u0900-\u0963\u0966-\u0dff\u0e30-\u0e3a\u0e40-\u0e4e\u0eb0-\u0ecd\u0f18\u0f19\u0f35\u0f37\u0f39\u0f71-\u0f84\u0f86\u0f87\u0f90-\u0fbc"
    r"\u1000-\u1049\u1050-\u109f\u17b4-\u17d3\u200c\u200d"
)
_WORD = re.compile(rf"\d+(?:[.,:]\d+)+|[\w{_MARKS}]+")

# Han, kana, Hangul, Thai, Lao, Myanmar and Khmer. Hangul has spaces, but particles stick to its words.
_SPACELESS = (
    r"\u0e00-\u0eff\u1000-\u109f\u1100-\u11ff\u1780-\u17ff\u3005-\u3007\u3040-\u30ff\u31f0-\u31ff\u3400-\u4dbf\u4e00-\u9fff"
    r"\ua960-\ua97f\uac00-\ud7ff\uf900-\ufaff\U0001b000-\U0001b16f\U00020000-\U000323af"
)
_RUN = re.compile(rf"[{_SPACELESS}]+|[^{_SPACELESS}]+")
_IS_SPACELESS = re.compile(rf"[{_SPACELESS}]")

_PARTS = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|\d+|[^\W\dA-Za-z_]+")
_HUMP = re.compile(r"[a-z][A-Z]|[A-Z]{2}[a-z]{2}")
_LETTERS_AND_NUMBER = re.compile(r"([A-Za-z]+)(\d+)")
_VOWEL = re.compile(r"[aeiouy]")
_IS_SHORT = re.compile(r"[^aeiou]?[aeiouy][^aeiouwxy]")


def split_words(text: str) -> list[str]:
    """The words of a text in their order and as they are spelled; `terms_of` takes them further."""
    if text.isascii():
        return _ASCII_WORD.findall(text)
    return _WORD.findall(unicodedata.normalize("NFKC", text))


def terms_of(word: str) -> tuple[str, ...]:
    """The terms of a word that `split_words` gave: itself without its ending, or an identifier and its parts, or pairs of characters."""
    if not word.isascii() and _IS_SPACELESS.search(word):
        return tuple(term for run in _RUN.findall(word) for term in _terms_of_run(run))
    folded = word.casefold()
    folded = folded.strip("_") or folded
    whole = stem(folded) if folded.isalpha() else folded
    return (whole, *_parts_of(word))


def _terms_of_run(run: str) -> tuple[str, ...]:
    if not _IS_SPACELESS.match(run):
        return terms_of(run)
    if len(run) == 1:
        return (run,)
    return tuple([run[place : place + 2] for place in range(len(run) - 1)])


def _parts_of(word: str) -> list[str]:
    """Parts of snake_case, camelCase and letters with a number such as `gpt4`; none for any other word."""
    if len(word) > _IDENTIFIER_CHARACTERS_MAX or (word.islower() and word.isalpha()):
        return []
    if "_" in word.strip("_") or _HUMP.search(word):
        return [stem(part.casefold()) for part in _PARTS.findall(word)]
    match = _LETTERS_AND_NUMBER.fullmatch(word)
    return [match[1].casefold(), match[2]] if match else []


def stem(word: str) -> str:
    """An English word without the ending of its plural or its verb form, so that forms of a word are equal; others as they are.

    word: in lower case. Source: steps 1 and 5 of M. F. Porter, An algorithm for suffix stripping, 1980, with fewer conditions.
    """
    if len(word) < 4 or not word.isascii():
        return word
    if word.endswith("s"):
        word = _without_plural(word)
    word = _without_verb_form(word)
    if word.endswith("y") and len(word) > 2 and _VOWEL.search(word, 0, len(word) - 1):
        return word[:-1] + "i"
    return word[:-1] if word.endswith("e") and len(word) > 4 else word


def _without_plural(word: str) -> str:
    if word.endswith(("sses", "xes", "ches", "shes")) or (word.endswith("ies") and len(word) > 4):
        return word[:-2]
    return word if word.endswith(("ss", "us", "is")) else word[:-1]


def _without_verb_form(word: str) -> str:
    if word.endswith("eed"):
        return word[:-1] if len(word) > 4 else word
    for ending in ("ed", "ing"):
        if word.endswith(ending) and _VOWEL.search(word, 0, len(word) - len(ending)):
            return _restored(word.removesuffix(ending))
    return word


def _restored(word: str) -> str:
    """What a verb looked like before its ending: `hoped` without it is `hop`, and becomes `hope`; `hopp` becomes `hop`."""
    if word.endswith(("at", "bl", "iz")) or _IS_SHORT.fullmatch(word):
        return word + "e"
    if len(word) > 3 and word[-1] == word[-2] and word[-1] not in "lszaeiou":
        return word[:-1]
    return word


def analyze(text: str) -> list[str]:
    """The terms of a text in their order, each as often as it occurs."""
    return [term for word in split_words(text) for term in terms_of(word)]


_COMMON = frozenset(
    map(
        stem,
        """
        a about an and any are as at be been being but by can could did do does don for from had has have how i if in into is it its me
        my no not of on or our s should so t than that the their them then there these they this those to was we were what when where
        which while who why will with would you your
        """.split(),  # noqa: SIM905 - a list would take a screen
    )
)


def query_terms(terms: Sequence[str]) -> list[str]:
    """The terms that a query is searched by: each once, and without the most common English words unless it is made of them.

    Passages keep all words, so that a query for `to be or not to be` finds its line.
    """
    different = list(dict.fromkeys(terms))
    return [term for term in different if term not in _COMMON] or different


ANALYZERS: Mapping[int, Callable[[str], list[str]]] = {ANALYZER_VERSION: analyze}
"""By version, what makes the terms of a query for segments that were written with it."""

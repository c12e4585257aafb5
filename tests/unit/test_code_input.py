"""The code of a call, read from arguments as they arrive: whatever the pieces, the same code is told, and all of it."""

import itertools
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mini_assistant.runs.code_input import CodeInput


def told_of(pieces: list[str]) -> str:
    code = CodeInput()
    told = "".join([*(code.add(piece) for piece in pieces), code.end()])
    assert code.code == told
    assert code.end() == ""
    return told


def split(text: str, places: list[int]) -> list[str]:
    borders = sorted({0, len(text), *(place % (len(text) + 1) for place in places)})
    return [text[begin:end] for begin, end in itertools.pairwise(borders)]


@given(st.text(st.characters(exclude_categories=["Cs"])), st.booleans(), st.lists(st.integers(0, 10_000), max_size=8))
def test_code_in_json_is_told_whatever_the_pieces(code: str, is_ascii: bool, places: list[int]) -> None:
    arguments = json.dumps({"code": code}, ensure_ascii=is_ascii)

    assert told_of(split(arguments, places)) == code
    assert told_of(list(arguments)) == code


@given(st.text(st.characters(exclude_categories=["Cs"])), st.lists(st.integers(0, 10_000), max_size=8))
def test_no_arguments_are_refused(arguments: str, places: list[int]) -> None:
    told = told_of(split(arguments, places))

    assert told == told_of([arguments])
    told.encode()


def test_code_is_told_while_it_is_written() -> None:
    code = CodeInput()

    assert code.add('{"co') == ""
    assert code.add('de": "x = 1\\') == "x = 1"
    assert code.add("nprint(x)") == "\nprint(x)"
    assert code.add('"}') == ""


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        ('{"input": "1 + 1"}', "1 + 1"),
        (' {\n "python" : "1 + 1" }', "1 + 1"),
        ('{"language": "python", "code": "1 + 1"}', "1 + 1"),
        ('"1 + 1"', "1 + 1"),
        ("print('no JSON')", "print('no JSON')"),
        ("{1: 2}", "{1: 2}"),
        ('{"code": 5}', ""),
        ('{"code": "half', "half"),
        ('{"code": "raw\nline"}', "raw\nline"),
        ('{"code": "a \\d+ pattern"}', "a \\d+ pattern"),
        ('{"code": "a\\"}', 'a"}'),
        ('{"code": "\\ud83d\\ude00"}', "\U0001f600"),
        ('{"code": "\\ud83d"}', "\ufffd"),
        ('{"code": "\\ude00\\ud83d end"}', "\ufffd\ufffd end"),
        ('{"code": "\\u00"}', "\\u00"),
        ('{"code": "1"} and more', "1"),
        ("{}", ""),
        ("  ", ""),
        ("", ""),
    ],
)
def test_what_models_write(arguments: str, code: str) -> None:
    assert told_of([arguments]) == code
    assert told_of(list(arguments)) == code

"""The check of a call's arguments: what is told of them, and that no schema and no arguments cost much, fetch anything or raise."""

import asyncio
import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mini_assistant.tools.arguments import argument_problem_or_none, object_problem_or_none

WEATHER: dict[str, Any] = {
    "type": "object",
    "properties": {"city": {"type": "string"}, "unit": {"enum": ["c", "f"]}},
    "required": ["city"],
    "additionalProperties": False,
}


def problem_of(schema: dict[str, Any], arguments: object) -> str | None:
    return argument_problem_or_none(schema, json.dumps(arguments))


def test_arguments_that_match_have_no_problem() -> None:
    assert problem_of(WEATHER, {"city": "Oslo", "unit": "c"}) is None
    assert problem_of({}, {"anything": [1, None]}) is None
    assert problem_of({"type": "object", "properties": {}}, {}) is None


def test_every_problem_is_told_with_its_place() -> None:
    assert problem_of(WEATHER, {"city": 5, "unit": "k", "wind": 1}) == (
        'At \'city\': the value is not of type "string". At \'unit\': the value is not one of "c" or "f". '
        "Additional properties are not allowed ('wind' was unexpected)."
    )
    assert problem_of(WEATHER, {}) == '"city" is a required property.'
    nested = {"properties": {"days": {"items": {"properties": {"no": {"type": "integer"}}}}}}
    assert problem_of(nested, {"days": [{"no": 1}, {"no": "2"}]}) == "At 'days[1].no': the value is not of type \"integer\"."


def test_of_alternatives_each_is_told() -> None:
    schema = {"properties": {"size": {"anyOf": [{"type": "integer"}, {"type": "null"}]}}}
    assert problem_of(schema, {"size": None}) is None
    assert problem_of(schema, {"size": "x"}) == ('At \'size\': the value is not of type "integer"; or the value is not of type "null".')


@pytest.mark.parametrize("arguments", ["", "  ", "{", '{"city":', "[1]", '"text"', "null", '{"city":"\\ud800"}', "{} {}", "\udc80"])
def test_what_is_no_object_is_told_so(arguments: str) -> None:
    problem = argument_problem_or_none(WEATHER, arguments)
    assert problem is not None
    assert problem.startswith("The arguments are not a JSON object: ")
    assert object_problem_or_none(arguments) == problem
    assert object_problem_or_none("{}") is None


def test_definitions_are_followed() -> None:
    schema = {
        "$schema": "http://json-schema.org/draft-07/schema#",
        "$defs": {"node": {"properties": {"value": {"type": "integer"}, "next": {"$ref": "#/$defs/node"}}, "required": ["value"]}},
        "properties": {"list": {"$ref": "#/$defs/node"}},
    }
    assert problem_of(schema, {"list": {"value": 1, "next": {"value": 2}}}) is None
    assert problem_of(schema, {"list": {"value": 1, "next": {"next": {"value": 3}}}}) == (
        "At 'list.next': \"value\" is a required property."
    )


def test_what_is_told_is_short_and_repeats_no_values() -> None:
    many = {"properties": {f"p{number}": {"type": "integer"} for number in range(50)}}
    problem = problem_of(many, {f"p{number}": "secret" * 100 for number in range(50)})
    assert problem is not None
    assert problem.count("At '") == 5
    assert "secret" not in problem
    long_names = {"additionalProperties": False, "required": ["r" * 5000]}
    problem = problem_of(long_names, {"x" * 5000: 1})
    assert problem is not None
    assert len(problem) <= 500


# ---- hostile schemas -------------------------------------------------------------------------------------------------------------------


async def test_nothing_is_fetched() -> None:
    """Neither over the network, which would be a connection here, nor from a file, nor relative to anything."""
    connections = 0

    async def count(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal connections
        connections += 1
        writer.close()

    listener = await asyncio.start_server(count, "127.0.0.1", 0)
    here = f"http://127.0.0.1:{listener.sockets[0].getsockname()[1]}"
    for schema in (
        {"$ref": f"{here}/schema.json"},
        {"$ref": "file:///etc/hostname"},
        {"$ref": "schema.json"},
        {"$ref": "../schema.json#/a"},
        {"$id": f"{here}/root.json", "$ref": "schema.json"},
        {"$id": "file:///etc/x", "$ref": "hostname"},
        {"$schema": f"{here}/meta.json", "type": "object"},
        {"$dynamicRef": f"{here}/schema.json"},
        {"properties": {"city": {"$id": f"{here}/", "$ref": "schema.json"}}},
        {"$defs": {"unused": {"$ref": f"{here}/schema.json"}}},
        {"properties": {"city": {"$schema": f"{here}/meta.json", "$id": f"{here}/x", "type": "string"}}},
    ):
        problem = await asyncio.to_thread(problem_of, schema, {"city": "Oslo"})
        assert problem is None
    listener.close()
    await listener.wait_closed()
    assert connections == 0


def doubling(levels: int, keyword: str) -> dict[str, Any]:
    """A schema of a few lines in which the last definition is looked at 2 ** levels times."""
    definitions: dict[str, Any] = {f"a{level}": {keyword: [{"$ref": f"#/$defs/a{level + 1}"}] * 2} for level in range(levels)}
    return {"$defs": {**definitions, f"a{levels}": {"type": "array"}}, "$ref": "#/$defs/a0"}


def nested(levels: int) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": "array"}
    for _ in range(levels):
        schema = {"properties": {"a": schema}}
    return schema


UNCHECKED = {
    "no type": {"type": "text"},
    "no schema": {"properties": []},
    "doubled branches": doubling(60, "anyOf"),
    "doubled demands": doubling(60, "allOf"),
    "a long chain": doubling(1500, "anyOf"),
    "a circle": {"$ref": "#"},
    "a wider circle": {"$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"anyOf": [{"$ref": "#/$defs/a"}]}}, "$ref": "#/$defs/a"},
    "a reference to nothing": {"$ref": "#/$defs/a"},
    "much too deep": nested(5000),
    "a bit too deep": nested(200),
    "too large": {"properties": {f"p{number}": {"type": "string"} for number in range(10_000)}, "type": "array"},
    "looks ahead": {"properties": {"a": {"pattern": "(?=x)x"}}, "type": "array"},
    "repeats": {"properties": {"a": {"pattern": r"(a)\1"}}, "type": "array"},
    "a huge pattern": {"properties": {"a": {"pattern": "(((a{1,1000}){1,1000}){1,1000})"}}, "type": "array"},
    "odd under a keyword of another draft": {"additionalItems": {"patternProperties": 5, "items": "x"}, "$ref": "#/additionalItems"},
}


@pytest.mark.parametrize("name", UNCHECKED)
def test_a_schema_that_cannot_be_checked_is_not(name: str) -> None:
    """All but the odd ones would refuse an object, or would run for longer than a test may."""
    assert problem_of(UNCHECKED[name], {"a": "x"}) is None
    assert argument_problem_or_none(UNCHECKED[name], "[]") == "The arguments are not a JSON object: Expected `object`, got `array`."


def test_few_doubled_branches_are_checked() -> None:
    assert problem_of(doubling(3, "anyOf"), {}) is not None
    assert problem_of(doubling(3, "allOf"), {}) is not None


def test_branches_that_double_with_each_level_of_the_arguments_are_not_followed_for_ever() -> None:
    branch = {"properties": {"x": {"$ref": "#/$defs/a"}}, "required": ["x", "y"]}
    schema = {"$defs": {"a": {"anyOf": [branch, branch]}}, "$ref": "#/$defs/a"}
    assert argument_problem_or_none(schema, '{"x":{}}') is not None
    assert argument_problem_or_none(schema, '{"y":1,"x":' * 50 + "{}" + "}" * 50) is None


def test_patterns_take_linear_time() -> None:
    schema = {"properties": {"a": {"pattern": "^(a+)+$"}}}
    assert problem_of(schema, {"a": "a" * 10_000}) is None
    assert problem_of(schema, {"a": "a" * 10_000 + "b"}) == "At 'a': the value does not match \"^(a+)+$\"."
    names = {"patternProperties": {"^(a+)+$": False}}
    assert problem_of(names, {"a" * 10_000 + "b": 1}) is None
    assert problem_of(names, {"aaa": 1}) is not None


# ---- hostile arguments -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "arguments",
    [
        '{"a":' * 60 + "1" + "}" * 60,
        '{"a":' * 200 + "1" + "}" * 200,
        '{"a":' + "[" * 900 + "]" * 900 + "}",
        '{"a":[' + "1," * 300_000 + "1]}",
        '{"a":1e400}',
        '{"a":' + "9" * 30 + "}",
        '{"a":' + "9" * 5000 + "}",
        '{"a":"' + "x" * 1_000_000 + '"}',
        '{"a":' * 100_000,
        '{"a":"\\u0000"}',
    ],
    ids=["deep", "deeper", "lists", "many", "infinite", "large", "larger", "long", "too deep", "zero"],
)
def test_no_arguments_raise(arguments: str) -> None:
    for schema in (
        WEATHER,
        {"properties": {"a": {"type": "integer", "multipleOf": 0.1}}},
        {"$defs": {"a": {"items": {"$ref": "#/$defs/a"}}}},
    ):
        problem = argument_problem_or_none(schema, arguments)
        assert problem is None or len(problem) <= 500


def test_many_problems_are_told_as_one() -> None:
    schema = {"properties": {"a": {"items": {"type": "string"}}}}
    assert problem_of(schema, {"a": [1] * 60_000}) == "The arguments do not match the schema of the function."


KEYWORDS = st.sampled_from(
    [
        *("type", "properties", "required", "items", "anyOf", "allOf", "not", "if", "enum", "pattern", "patternProperties", "dependencies"),
        *("additionalProperties", "propertyNames", "multipleOf", "uniqueItems", "contains", "prefixItems", "additionalItems"),
        *("$ref", "$defs"),
    ]
)
scalars = st.sampled_from(
    [None, True, False, 0, -1, 1.5, 1e300, "string", "object", "a", "#", "#/$defs/a", "#/properties/a", "(a+)+$", "["]
)
schemas = st.recursive(
    scalars,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3), st.dictionaries(KEYWORDS, inner, max_size=4), st.dictionaries(st.just("a"), inner)
    ),
    max_leaves=12,
)
values = st.recursive(
    scalars, lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.sampled_from("ab"), inner)), max_leaves=8
)


@settings(max_examples=300, deadline=None)
@given(st.dictionaries(KEYWORDS, schemas, max_size=5), st.dictionaries(st.sampled_from("ab"), values))
def test_nothing_raises(schema: dict[str, Any], arguments: dict[str, Any]) -> None:
    problem = problem_of(schema, arguments)
    assert problem is None or 0 < len(problem) <= 500

"""Whether the arguments of a function call keep to the function's JSON schema. Pure: no database, no clock, no network.

Schemas come from clients and arguments from models. Nothing that a schema refers to is fetched, patterns are matched in linear time, and
what a check would cost is reckoned before it is made. A schema that cannot be checked within these bounds is not checked at all: broken,
too large or too deep, with references to elsewhere, or with look-around in its patterns.
"""

import functools
from collections.abc import Iterator
from typing import Any, NamedTuple, cast

import jsonschema_rs
import msgspec

_PROBLEM_CHARACTERS_MAX = 500
_PROBLEMS_MAX = 5
_DETAIL_CHARACTERS_MAX = 120
_SCHEMA_BYTES_MAX = 65_536
_PATTERN_BYTES_MAX = 64_000
_DEPTH_MAX = 64
_VALUES_MAX = 100_000
_RECKONED_MAX = 10_000
# A unit is one keyword against one value, some 10 ns; telling of a problem takes some hundred times that.
_COST_MAX = 5_000_000
_COST_WITH_PROBLEMS_MAX = 100_000
_PATTERN_COST = 20
_CHARACTERS_PER_UNIT = 64

_ON_THE_SAME_VALUE = ("allOf", "anyOf", "oneOf", "not", "if", "then", "else", "dependentSchemas", "dependencies")
_ON_ITS_PARTS = (
    "properties",
    "patternProperties",
    "additionalProperties",
    "propertyNames",
    "items",
    "prefixItems",
    "additionalItems",
    "contains",
)
_BY_NAME = {"properties", "patternProperties", "dependentSchemas", "dependencies"}
# They change what a reference means, or look again at what has been looked at. A property of such a name counts, too.
_NOT_RECKONED = ('"$id"', '"$dynamicRef"', '"$recursiveRef"', '"unevaluatedProperties"', '"unevaluatedItems"')


class _Checked(NamedTuple):
    """A schema that can be checked. costs: of one value, by how deep the values in it go."""

    schema: dict[str, Any]
    validator: jsonschema_rs.Draft202012Validator
    has_patterns: bool
    costs: dict[int, int | None]


class _Unreckonable(Exception):
    """What a check would cost cannot be said."""


def object_problem_or_none(arguments: str) -> str | None:
    """Why the text is not a JSON object, in a sentence for the model; None when it is one."""
    return _read(arguments)[1]


def argument_problem_or_none(schema: dict[str, Any], arguments: str) -> str | None:
    """What is wrong with the arguments of a call, in a few sentences for the model; None when they are a JSON object of this schema.

    The first problems are told, with their places. Never raises, whatever the two are.
    """
    values, problem = _read(arguments)
    if values is None:
        return problem
    try:
        schema_json = msgspec.json.encode(schema)
    except (RecursionError, ValueError):
        return None
    checked = _checked_or_none(schema_json) if len(schema_json) <= _SCHEMA_BYTES_MAX else None
    extent = None if checked is None else _extent_or_none(values)
    if checked is None or extent is None:
        return None
    cost_of_one = _cost_or_none(checked, extent.depth)
    units = extent.values + len(arguments) // (1 if checked.has_patterns else _CHARACTERS_PER_UNIT)
    if cost_of_one is None or cost_of_one * units > _COST_MAX:
        return None
    try:
        if checked.validator.is_valid(values):
            return None
        if cost_of_one * extent.values > _COST_WITH_PROBLEMS_MAX:
            return "The arguments do not match the schema of the function."
        problems = [_told(error) for error, _ in zip(checked.validator.iter_errors(values), range(_PROBLEMS_MAX), strict=False)]
    except ValueError:  # the library's own limits
        return None
    return _shortened(" ".join(problems), _PROBLEM_CHARACTERS_MAX)


def _read(arguments: str) -> tuple[dict[str, object] | None, str | None]:
    """The object, or why there is none."""
    try:
        return msgspec.json.decode(arguments, type=dict[str, object]), None
    except RecursionError:
        return None, "The arguments are nested too deeply."
    except (msgspec.MsgspecError, UnicodeError) as exc:
        return None, f"The arguments are not a JSON object: {_shortened(str(exc), _DETAIL_CHARACTERS_MAX)}."


@functools.lru_cache(maxsize=128)
def _checked_or_none(schema_json: bytes) -> _Checked | None:
    schema: dict[str, Any] = msgspec.json.decode(schema_json)
    # Other drafts are read as the newest one, and references are within the schema.
    schema.pop("$schema", None)
    schema.pop("$id", None)
    rest = msgspec.json.encode(schema).decode()
    if any(keyword in rest for keyword in _NOT_RECKONED):
        return None
    options = jsonschema_rs.RegexOptions(size_limit=_PATTERN_BYTES_MAX, dfa_size_limit=_PATTERN_BYTES_MAX)
    try:
        validator = jsonschema_rs.Draft202012Validator(
            schema, offline=True, pattern_options=options, validate_formats=False, mask="the value"
        )
    except (ValueError, jsonschema_rs.ReferencingError):
        return None
    return _Checked(schema, validator, '"pattern' in rest, {})


class _Extent(NamedTuple):
    """How many values there are, and how many levels they have."""

    values: int
    depth: int


def _extent_or_none(values: dict[str, object]) -> _Extent | None:
    """None when there are too many values, or too many levels."""
    count = 0
    level: list[object] = [values]
    for depth in range(_DEPTH_MAX):
        if not level:
            return _Extent(count, depth)
        count += len(level)
        if count > _VALUES_MAX:
            return None
        level = [part for value in level for part in _parts(value)]
    return None


def _parts(value: object) -> Iterator[object]:
    if isinstance(value, dict):
        yield from cast("dict[str, object]", value).values()
    elif isinstance(value, list):
        yield from cast("list[object]", value)


def _cost_or_none(checked: _Checked, depth: int) -> int | None:
    """The most units that a check takes for each value in arguments of this depth; None when nobody can say."""
    if depth not in checked.costs:
        try:
            checked.costs[depth] = _Reckoning(checked.schema).cost(checked.schema, depth)
        except (_Unreckonable, RecursionError):
            checked.costs[depth] = None
    return checked.costs[depth]


class _Reckoning:
    """Reckons with every reference replaced by what it leads to: each branch may be looked at for each value, as often as it is reached."""

    def __init__(self, root: dict[str, Any]) -> None:
        self._root = root
        self._known: dict[tuple[int, int], int] = {}
        self._looks_left = _RECKONED_MAX

    def cost(self, schema: object, depth: int) -> int:
        """Units for one value with `depth` levels in it. Raises _Unreckonable."""
        self._looks_left -= 1
        if self._looks_left < 0:
            raise _Unreckonable("a schema with too many branches")
        if not isinstance(schema, dict) or depth <= 0:
            return 1
        keywords = cast("dict[str, Any]", schema)
        key = (id(keywords), depth)
        if key not in self._known:
            self._known[key] = -1  # for as long as it is being reckoned
            self._known[key] = min(self._cost_of(keywords, depth), _COST_MAX + 1)
        if self._known[key] < 0:
            raise _Unreckonable("a schema that leads back to itself for the same value")
        return self._known[key]

    def _cost_of(self, keywords: dict[str, Any], depth: int) -> int:
        total = 1 + sum(len(cast("list[object]", value)) for value in keywords.values() if isinstance(value, list | dict))
        total += _PATTERN_COST * (len(_inner(keywords, "pattern")) + len(_inner(keywords, "patternProperties")))
        for keyword in _ON_THE_SAME_VALUE:
            total += sum(self.cost(inner, depth) for inner in _inner(keywords, keyword))
        for keyword in _ON_ITS_PARTS:
            total += sum(self.cost(inner, depth - 1) for inner in _inner(keywords, keyword))
        if "$ref" in keywords:
            total += self.cost(self._target(keywords["$ref"]), depth)
        return total

    def _target(self, reference: object) -> object:
        """What a reference of the form `#/$defs/name` leads to."""
        if not isinstance(reference, str) or "%" in reference or (reference != "#" and not reference.startswith("#/")):
            raise _Unreckonable("a reference to elsewhere")
        target: object = self._root
        for step in reference.split("/")[1:]:
            name = step.replace("~1", "/").replace("~0", "~")
            if not isinstance(target, dict) or name not in target:
                raise _Unreckonable("a reference to nothing")
            target = cast("dict[str, object]", target)[name]
        return target


def _inner(keywords: dict[str, Any], keyword: str) -> list[object]:
    """The schemas that a keyword holds."""
    value = keywords.get(keyword)
    if isinstance(value, list):
        return cast("list[object]", value)
    if keyword in _BY_NAME and isinstance(value, dict):
        return list(cast("dict[str, object]", value).values())
    return [] if value is None else [value]


def _told(error: jsonschema_rs.ValidationError) -> str:
    """A problem as a sentence with its place."""
    message = _shortened(error.message, _DETAIL_CHARACTERS_MAX)
    kind = error.kind
    if isinstance(kind, jsonschema_rs.ValidationErrorKind.AnyOf | jsonschema_rs.ValidationErrorKind.OneOfNotValid):
        reasons = dict.fromkeys(_shortened(branch[0].message, _DETAIL_CHARACTERS_MAX) for branch in kind.context if branch)
        message = "; or ".join(reasons) or message
    place = "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in error.instance_path).removeprefix(".")
    return f"At '{_shortened(place, _DETAIL_CHARACTERS_MAX)}': {message}." if place else f"{message[:1].upper()}{message[1:]}."


def _shortened(text: str, characters_max: int) -> str:
    return text if len(text) <= characters_max else f"{text[: characters_max - 3]}..."

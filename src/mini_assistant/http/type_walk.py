"""Find the first fault of a JSON value against a msgspec type, in the words of the hosted API.

Called by `http/validation.py` after msgspec has refused a request; never on the way of a good one. It knows types and
values, and neither bytes nor HTTP. Types it does not know (dates, custom types) are taken as fine.
Source: assistants behaviour, the table of error messages.
"""

import math
import operator
import re
from collections.abc import Iterable, Sequence
from typing import Literal, TypeAlias

from msgspec import inspect

from mini_assistant.errors import InvalidRequest

FaultCode = Literal[
    "missing_required_parameter",
    "unknown_parameter",
    "invalid_type",
    "invalid_value",
    "string_above_max_length",
    "string_below_min_length",
    "array_above_max_length",
    "array_below_min_length",
    "empty_array",
    "object_above_max_properties",
    "object_below_min_properties",
    "property_name_above_max_length",
    "integer_above_max_value",
    "integer_below_min_value",
    "decimal_above_max_value",
    "decimal_below_min_value",
]
"""The closed set of `error.code` for a value that does not fit; malformed JSON has none."""


class JsonObject:
    """An object of a JSON text: its members in the order of the text, repeated names kept."""

    __slots__ = ("members",)

    def __init__(self, members: "list[tuple[str, JsonValue]]") -> None:
        self.members = members


JsonValue: TypeAlias = "bool | int | float | str | list[JsonValue] | JsonObject | None"
"""A JSON text read without a type. A number too large to be held is an infinite float."""

Place: TypeAlias = "tuple[Place, str | int] | None"
"""Where a value is: its container's place and its name or index there; None is the whole request.

Linked, so that going down costs the same at every depth; it is written out only for the one fault that is reported.
"""

Kind = Literal["null", "boolean", "integer", "decimal", "string", "array", "object"]

_ANY_KIND: frozenset[Kind] = frozenset(("null", "boolean", "integer", "decimal", "string", "array", "object"))
_TEXT_CHARACTERS_MAX = 100


def check(wanted: inspect.Type, value: JsonValue, place: Place = None) -> None:
    """Return when the value fits the type.

    Raises InvalidRequest for the first fault: in an object a missing field first, then its members in the order of the text.
    Raises RecursionError when the type is recursive and the value is some hundred levels deep.
    """
    alternatives = _alternatives(wanted)
    if isinstance(value, float) and not math.isfinite(value):
        _check_untyped(alternatives[0], value, place)
    kind = _kind_of(value)
    fitting = [item for item in alternatives if kind in _kinds_of(item)]
    if not fitting:
        raise _wrong_type(map(_noun, alternatives), value, place)
    match value:
        case JsonObject():
            _check_object(fitting, value, place)
        case list():
            _check_array(fitting[0], value, place)
        case str():
            _check_string(fitting[0], value, place)
        case int() | float():
            _check_number(fitting[0], value, place)
        case None:
            pass


def _alternatives(wanted: inspect.Type) -> list[inspect.Type]:
    """The plain types that a type stands for: members of a union, without descriptions."""
    match wanted:
        case inspect.Metadata():
            return _alternatives(wanted.type)
        case inspect.UnionType():
            return [plain for item in wanted.types for plain in _alternatives(item)]
        case _:
            return [wanted]


def _kind_of(value: JsonValue) -> Kind:
    match value:
        case None:
            return "null"
        case bool():
            return "boolean"
        case int():
            return "integer"
        case float():
            return "decimal"
        case str():
            return "string"
        case list():
            return "array"
        case JsonObject():
            return "object"


def _kinds_of(plain: inspect.Type) -> frozenset[Kind]:
    """The kinds of JSON value that a plain type takes."""
    match plain:
        case inspect.NoneType():
            return frozenset(("null",))
        case inspect.BoolType():
            return frozenset(("boolean",))
        case inspect.IntType():
            return frozenset(("integer",))
        case inspect.FloatType():
            return frozenset(("decimal", "integer"))
        case inspect.StrType():
            return frozenset(("string",))
        case inspect.LiteralType():
            return frozenset({_kind_of(item) for item in plain.values})
        case inspect.CollectionType():
            return frozenset(("array",))
        case inspect.DictType():
            return frozenset(("object",))
        case inspect.StructType():
            return frozenset(("array",)) if plain.array_like else frozenset(("object",))
        case _:
            return _ANY_KIND


def _noun(plain: inspect.Type) -> str:
    """How a message names a plain type, without its article."""
    match plain:
        case inspect.FloatType():
            return "decimal"
        case inspect.CollectionType():
            nouns = {_noun(item) for item in _alternatives(plain.item_type)}
            return f"array of {nouns.pop()}s" if len(nouns) == 1 and not nouns & {"value", "null"} else "array"
        case _:
            kinds = _kinds_of(plain) - {"null"} or {"null"}
            return next(iter(kinds)) if len(kinds) == 1 else "value"


def _check_object(fitting: Sequence[inspect.Type], value: JsonObject, place: Place) -> None:
    structs = [item for item in fitting if isinstance(item, inspect.StructType)]
    if structs:
        _check_struct(_struct_for(structs, value, place), value, place)
    elif isinstance(fitting[0], inspect.DictType):
        _check_dict(fitting[0], value, place)
    else:
        _check_untyped(fitting[0], value, place)


def _struct_for(structs: Sequence[inspect.StructType], value: JsonObject, place: Place) -> inspect.StructType:
    """The struct that the object's tag names. The tag may be left out where there is no choice."""
    tag_field = structs[0].tag_field
    if tag_field is None:
        return structs[0]
    for name, tag in value.members:
        if name == tag_field:
            _check_choice([item.tag for item in structs], tag, (place, name))
            return next(item for item in structs if item.tag == tag)
    if len(structs) == 1:
        return structs[0]
    raise _missing((place, tag_field))


def _check_struct(struct: inspect.StructType, value: JsonObject, place: Place) -> None:
    fields = {field.encode_name: field for field in struct.fields}
    given = {name for name, _ in value.members}
    for field in struct.fields:
        if field.required and field.encode_name not in given:
            raise _missing((place, field.encode_name))
    for name, member in value.members:
        if name in fields:
            check(fields[name].type, member, (place, name))
        elif name == struct.tag_field:
            _check_choice([struct.tag], member, (place, name))
        elif struct.forbid_unknown_fields:
            raise _fault("unknown_parameter", f"Unknown parameter: '{_name((place, name))}'.", (place, name))


def _check_dict(wanted: inspect.DictType, value: JsonObject, place: Place) -> None:
    count = len({name for name, _ in value.members})
    if wanted.max_length is not None and count > wanted.max_length:
        expected = f"Expected an object with at most {_properties(wanted.max_length)}"
        raise _invalid(
            "object_above_max_properties", f"too many properties. {expected}, but got an object with {_properties(count)}", place
        )
    if wanted.min_length is not None and count < wanted.min_length:
        expected = f"Expected an object with at least {_properties(wanted.min_length)}"
        raise _invalid("object_below_min_properties", f"too few properties. {expected}, but got an object with {_properties(count)}", place)
    [key_type, *_] = _alternatives(wanted.key_type)
    for name, member in value.members:
        _check_property_name(key_type, name, place)
        check(wanted.value_type, member, (place, name))


def _check_property_name(key_type: inspect.Type, name: str, place: Place) -> None:
    if not isinstance(key_type, inspect.StrType):
        return
    if key_type.max_length is not None and len(name) > key_type.max_length:
        expected = f"Expected a property name with maximum length {key_type.max_length}"
        problem = f"property name too long. {expected}, but got a property name with length {len(name)}"
        raise _invalid("property_name_above_max_length", problem, place)
    _check_string(key_type, name, place)


def _check_array(wanted: inspect.Type, value: list[JsonValue], place: Place) -> None:
    if not isinstance(wanted, inspect.CollectionType):
        _check_untyped(wanted, value, place)
        return
    count = len(value)
    if wanted.max_length is not None and count > wanted.max_length:
        expected = f"Expected an array with maximum length {wanted.max_length}"
        raise _invalid("array_above_max_length", f"array too long. {expected}, but got an array with length {count}", place)
    if wanted.min_length is not None and count < wanted.min_length:
        expected = f"Expected an array with minimum length {wanted.min_length}"
        if count == 0:
            raise _invalid("empty_array", f"empty array. {expected}, but got an empty array", place)
        raise _invalid("array_below_min_length", f"array too short. {expected}, but got an array with length {count}", place)
    for index, item in enumerate(value):
        check(wanted.item_type, item, (place, index))


def _check_string(wanted: inspect.Type, value: str, place: Place) -> None:
    if isinstance(wanted, inspect.LiteralType):
        _check_choice(wanted.values, value, place)
    if not isinstance(wanted, inspect.StrType):
        return
    count = len(value)
    if wanted.max_length is not None and count > wanted.max_length:
        expected = f"Expected a string with maximum length {wanted.max_length}"
        raise _invalid("string_above_max_length", f"string too long. {expected}, but got a string with length {count}", place)
    if wanted.min_length is not None and count < wanted.min_length:
        expected = f"Expected a string with minimum length {wanted.min_length}"
        raise _invalid("string_below_min_length", f"string too short. {expected}, but got a string with length {count}", place)
    if wanted.pattern is not None and re.search(wanted.pattern, value) is None:
        expected = f"Expected a string that matches the pattern '{wanted.pattern}'."
        raise _fault("invalid_value", f"Invalid '{_name(place)}': string does not match pattern. {expected}", place)


def _check_number(wanted: inspect.Type, value: float, place: Place) -> None:
    if isinstance(wanted, inspect.LiteralType):
        _check_choice(wanted.values, value, place)
    below: FaultCode
    above: FaultCode
    if isinstance(wanted, inspect.IntType):
        word, below, above = "integer", "integer_below_min_value", "integer_above_max_value"
    elif isinstance(wanted, inspect.FloatType):
        word, below, above = "decimal", "decimal_below_min_value", "decimal_above_max_value"
        _check_float_range(value, place)
    else:
        return
    got = f"but got {_shortened(_number(value))}"
    for bound, sign, holds in ((wanted.ge, ">=", operator.ge), (wanted.gt, ">", operator.gt)):
        if bound is not None and not holds(value, bound):
            raise _invalid(below, f"{word} below minimum value. Expected a value {sign} {_number(bound)}, {got}", place)
    for bound, sign, holds in ((wanted.le, "<=", operator.le), (wanted.lt, "<", operator.lt)):
        if bound is not None and not holds(value, bound):
            raise _invalid(above, f"{word} above maximum value. Expected a value {sign} {_number(bound)}, {got}", place)
    if wanted.multiple_of is not None and value % wanted.multiple_of != 0:
        raise _invalid("invalid_value", f"wrong step. Expected a multiple of {_number(wanted.multiple_of)}, {got}", place)


def _check_float_range(value: float, place: Place) -> None:
    """Whole numbers arrive exact, however long, and may be beyond what a float holds."""
    try:
        float(value)
    except OverflowError:
        raise _out_of_range(place) from None


def _check_choice(supported: Iterable[str | int | None], value: JsonValue, place: Place) -> None:
    plain = inspect.LiteralType(tuple(supported))
    if _kind_of(value) not in _kinds_of(plain):
        raise _wrong_type((_noun(plain),), value, place)
    if value not in plain.values:
        shown = [f"'{item}'" for item in plain.values if item is not None]
        message = f"Invalid value: '{_shortened(str(value))}'. Supported values are: {_listed(shown, 'and')}."
        raise _fault("invalid_value", message, place)


def _check_untyped(wanted: inspect.Type, value: JsonValue, place: Place) -> None:
    """Any JSON is wanted: only numbers can be wrong. Raw JSON is not even read, so there nothing can."""
    pending: list[tuple[JsonValue, Place]] = [] if isinstance(wanted, inspect.RawType) else [(value, place)]
    while pending:
        value, place = pending.pop()
        match value:
            case float() if not math.isfinite(value):
                raise _out_of_range(place)
            case list():
                pending.extend((item, (place, index)) for index, item in enumerate(value))
            case JsonObject():
                pending.extend((member, (place, name)) for name, member in value.members)
            case _:
                pass


def _missing(place: Place) -> InvalidRequest:
    return _fault("missing_required_parameter", f"Missing required parameter: '{_name(place)}'.", place)


def _wrong_type(nouns: Iterable[str], value: JsonValue, place: Place) -> InvalidRequest:
    # "null" is left out where something else is wanted too: who sends a wrong type seldom meant null.
    names = [noun for noun in dict.fromkeys(nouns) if noun != "null"] or ["null"]
    expected = _with_article(names[0])
    if len(names) > 1:
        expected = f"one of {_listed([expected, *names[1:]], 'or')}"
    kind = _kind_of(value)
    got = "a decimal number" if kind == "decimal" else _with_article(kind)
    message = f"Invalid type for '{_name(place)}': expected {expected}, but got {got} instead."
    return _fault("invalid_type", message, place)


def _out_of_range(place: Place) -> InvalidRequest:
    message = f"Invalid '{_name(place)}': number out of range. Expected a number that fits into 64 bits."
    return _fault("invalid_value", message, place)


def _invalid(code: FaultCode, problem: str, place: Place) -> InvalidRequest:
    return _fault(code, f"Invalid '{_name(place)}': {problem} instead.", place)


def _fault(code: FaultCode, message: str, place: Place) -> InvalidRequest:
    return InvalidRequest(message, param=None if place is None else _name(place), code=code)


def _name(place: Place) -> str:
    """A place written as `tools[0].function.name`. Long names are shortened; the whole request is `body`."""
    steps: list[str] = []
    while place is not None:
        place, step = place
        steps.append(f"[{step}]" if isinstance(step, int) else f".{_shortened(step)}")
    return "".join(reversed(steps)).removeprefix(".") or "body"


def _with_article(noun: str) -> str:
    if noun == "null":
        return noun
    return f"an {noun}" if noun[0] in "aeiou" else f"a {noun}"


def _listed(items: Sequence[str], conjunction: str) -> str:
    """`a`, `a and b`, `a, b, and c`."""
    if len(items) < 3:
        return f" {conjunction} ".join(items)
    return f"{', '.join(items[:-1])}, {conjunction} {items[-1]}"


def _properties(count: int) -> str:
    return "1 property" if count == 1 else f"{count} properties"


def _number(value: float) -> str:
    return str(value).removesuffix(".0")


def _shortened(text: str) -> str:
    return text if len(text) <= _TEXT_CHARACTERS_MAX else text[: _TEXT_CHARACTERS_MAX - 3] + "..."

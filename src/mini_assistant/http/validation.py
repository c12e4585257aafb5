"""Read request bodies and query strings into structs, and say what is wrong with the ones that do not fit.

A good request costs one call of msgspec, and one more when it may be nested deeply. A refused one is read a second time without a
type and compared with it (`http/type_walk.py`), because clients know the hosted API's literal messages. Called by the typed routes only.
"""

import functools
import json
import math
import re
from typing import Any, Literal, NoReturn, TypeVar
from urllib.parse import unquote_plus

import msgspec
from msgspec import inspect

from mini_assistant.errors import InvalidRequest
from mini_assistant.http.type_walk import JsonObject, JsonValue, check

T = TypeVar("T")
Query = TypeVar("Query", bound=msgspec.Struct)

# The second reading makes a Python object of every value. A body with more separators than this is explained in msgspec's
# words instead, so that a huge wrong body cannot stop the event loop for long: 50,000 take 0.1 to 0.2 s.
_SEPARATORS_MAX = 50_000
# Whoever reads an accepted value again, out of a row or deep inside a run, may have less of the stack left than there was for the body.
_DEPTH_MAX = 200
# Longer whole numbers are refused by msgspec and by Python itself.
_INTEGER_CHARACTERS_MAX = 4300

_QUERY_INTEGER = re.compile(r"-?[0-9]{1,100}")
_QUERY_BOOLEANS = {"true": True, "false": False}


def decode_body(decoder: msgspec.json.Decoder[T], raw: bytes) -> T:
    """Decode a JSON body.

    Raises InvalidRequest that names the first fault; nothing else, whatever the bytes are.
    """
    try:
        body = decoder.decode(raw)
        if len(raw) > _DEPTH_MAX and raw.count(b"{") + raw.count(b"[") > _DEPTH_MAX:
            _check_depth(msgspec.json.decode(raw))
        return body
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise explain(decoder.type, raw) from None


def explain(wanted: type, raw: bytes) -> InvalidRequest:
    """Say why msgspec refuses `raw` as `wanted`: the first fault with its place, such as `messages[0].content[1].type`.

    A `__post_init__` that raises ValueError is passed on with its own text, which is thus read by clients.
    """
    try:
        if sum(map(raw.count, (b",", b"[", b"{"))) <= _SEPARATORS_MAX:
            check(_described(wanted), _read_untyped(raw))
        msgspec.json.decode(raw, type=wanted)
    except InvalidRequest as fault:
        return fault
    except msgspec.ValidationError as exc:
        return _in_plain_words(exc)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return _malformed("It is not valid JSON in UTF-8")
    except RecursionError:
        return _malformed("It is nested too deeply")
    return InvalidRequest("The request body is not valid.", code="invalid_value")


@functools.lru_cache(maxsize=256)
def _described(wanted: type) -> inspect.Type:
    return inspect.type_info(wanted)


def _read_untyped(raw: bytes) -> JsonValue:
    """Raises InvalidRequest for malformed JSON, and RecursionError for JSON that is nested too deeply."""
    if not raw.strip():
        raise _malformed("It is empty")
    try:
        text = raw.decode()
        value: JsonValue = json.loads(text, object_pairs_hook=JsonObject, parse_int=_integer, parse_constant=_refuse_constant)
    except UnicodeDecodeError as exc:
        raise _malformed(f"It is not UTF-8 at byte {exc.start}") from None
    except json.JSONDecodeError as exc:
        raise _malformed(f"It is malformed at line {exc.lineno} column {exc.colno}: {exc.msg.removesuffix(' at')}") from None
    if "\\u" in text:
        _check_surrogates(raw)
    return value


def _integer(digits: str) -> float:
    return int(digits) if len(digits) <= _INTEGER_CHARACTERS_MAX else math.inf


def _refuse_constant(name: str) -> NoReturn:
    raise _malformed(f"{name} is not a value in JSON")


def _check_surrogates(raw: bytes) -> None:
    """Half of a surrogate pair is no character and cannot be stored; Python's reader lets it pass, msgspec's does not."""
    try:
        msgspec.json.decode(raw)
    except msgspec.ValidationError:
        return  # A number out of range, which the comparison with the type finds together with its place.
    except msgspec.DecodeError:
        raise _malformed("A \\u escape is half of a surrogate pair") from None


def _check_depth(value: Any) -> None:
    """Raise InvalidRequest when arrays and objects are nested deeper than `_DEPTH_MAX`."""
    level = [value]
    for _ in range(_DEPTH_MAX):
        level = [
            inner for outer in level for inner in (outer.values() if isinstance(outer, dict) else outer) if isinstance(inner, dict | list)
        ]
        if not level:
            return
    raise _malformed("It is nested too deeply")


def _malformed(reason: str) -> InvalidRequest:
    return InvalidRequest(f"We could not parse the JSON body of your request. {reason}.")


def _in_plain_words(exc: msgspec.ValidationError) -> InvalidRequest:
    """msgspec's own message, such as "Expected `str`, got `int` - at `$.metadata[...]`", with the path as the param."""
    reason, _, path = str(exc).partition(" - at ")
    place = path.rpartition("`$")[2].partition("[...]")[0].strip("`.")
    return InvalidRequest(reason.replace("`", "'").rstrip(".") + ".", param=place or None, code="invalid_value")


def decode_query(wanted: type[Query], query_string: bytes) -> Query:
    """Decode the part of a URL after `?`. Unknown names are ignored, an empty value counts as not given.

    A list is given as `name[]=a&name[]=b` or with a plain repeated name; of another repeated name the last value counts.
    The answer to an empty query string is shared: do not change it.
    Raises InvalidRequest that names the first fault.
    """
    if not query_string:
        return _defaults(wanted)
    given = _read_query(_query_fields(wanted), query_string.decode("utf-8", "replace"))
    return _convert_query(wanted, given)


@functools.lru_cache(maxsize=256)
def _defaults(wanted: type[Query]) -> Query:
    return _convert_query(wanted, {})


def _convert_query(wanted: type[Query], given: dict[str, JsonValue]) -> Query:
    try:
        return msgspec.convert(given, wanted)
    except msgspec.ValidationError as exc:
        check(_described(wanted), JsonObject(list(given.items())))
        raise _in_plain_words(exc) from None


_QueryKind = Literal["string", "integer", "boolean", "list"]


@functools.lru_cache(maxsize=256)
def _query_fields(wanted: type[msgspec.Struct]) -> dict[str, tuple[str, _QueryKind]]:
    """The field and its kind for every name that may be in the query string."""
    fields: dict[str, tuple[str, _QueryKind]] = {}
    for item in msgspec.structs.fields(wanted):
        kind = _query_kind(inspect.type_info(item.type))
        fields[item.encode_name] = (item.encode_name, kind)
        if kind == "list":
            fields[f"{item.encode_name}[]"] = (item.encode_name, kind)
    return fields


def _query_kind(wanted: inspect.Type) -> _QueryKind:
    match wanted:
        case inspect.Metadata():
            return _query_kind(wanted.type)
        case inspect.UnionType():
            kinds: set[_QueryKind] = {_query_kind(item) for item in wanted.types if not isinstance(item, inspect.NoneType)}
            return kinds.pop() if len(kinds) == 1 else "string"
        case inspect.IntType():
            return "integer"
        case inspect.BoolType():
            return "boolean"
        case inspect.CollectionType():
            return "list"
        case _:
            return "string"


def _read_query(fields: dict[str, tuple[str, _QueryKind]], query: str) -> dict[str, JsonValue]:
    given: dict[str, JsonValue] = {}
    lists: dict[str, list[JsonValue]] = {}
    for pair in query.split("&"):
        name, _, text = pair.partition("=")
        field = fields.get(name) or fields.get(unquote_plus(name))
        if field is None or not text:
            continue
        name, kind = field
        if "%" in text or "+" in text:
            text = unquote_plus(text)
        if kind == "list":
            lists.setdefault(name, []).append(text)
        elif kind == "integer" and _QUERY_INTEGER.fullmatch(text):
            given[name] = int(text)
        elif kind == "boolean":
            given[name] = _QUERY_BOOLEANS.get(text, text)
        else:
            given[name] = text
    return {**given, **lists} if lists else given

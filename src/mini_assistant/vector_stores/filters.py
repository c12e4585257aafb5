"""Filters on the attributes of files, as conditions in SQL.

Statements are compiled once for each shape of a filter (its operators and the types of its values); keys and values are parameters.
Called by `store.py`. Source: openapi-assistants.json, ComparisonFilter and CompoundFilter; behaviour §6 for what is missing or of
another type.
"""

import functools
import operator
from collections.abc import Callable, Iterator
from itertools import count
from typing import Any, TypeAlias

import sqlalchemy as sa

from mini_assistant.db.base import Bound, Query
from mini_assistant.db.tables import vector_store_file_attributes as attributes
from mini_assistant.db.tables import vector_store_files
from mini_assistant.errors import InvalidRequest
from mini_assistant.vector_stores.indexes.base import StoreScope
from mini_assistant.vector_stores.schema import AndFilter, Attributes, AttributeValue, Filter, InFilter, NotInFilter, OrFilter

FILTER_VALUES_MAX = 1000
"""The most filters in one, counted at all levels; one with a list counts for each value."""
FILTER_DEPTH_MAX = 16

_Shape: TypeAlias = "tuple[str, tuple[_Shape | str, ...]]"
"""The operator, with the shapes of the filters in it or the types of its values."""

_KINDS = ("text", "number", "boolean")
_columns: dict[str, sa.Column[Any]] = {kind: attributes.c[f"{kind}_value"] for kind in _KINDS}
_COMPARISONS: dict[str, Callable[[Any, Any], Any]] = {
    "eq": operator.eq,
    "ne": operator.ne,
    "gt": operator.gt,
    "gte": operator.ge,
    "lt": operator.lt,
    "lte": operator.le,
}


def check_filter(filter: Filter | None) -> None:
    """Raise InvalidRequest when a filter is nested too deeply or has too many filters in it."""
    level, seen = [] if filter is None else [filter], 0
    for _ in range(FILTER_DEPTH_MAX):
        if not level:
            return
        seen += sum(len(item.value) if isinstance(item, InFilter | NotInFilter) else 1 for item in level)
        if seen > FILTER_VALUES_MAX:
            raise InvalidRequest(f"Invalid 'filters': more than {FILTER_VALUES_MAX} values.", param="filters", code="invalid_value")
        level = [inner for outer in level if isinstance(outer, AndFilter | OrFilter) for inner in outer.filters]
    if level:
        raise InvalidRequest(f"Invalid 'filters': nested more than {FILTER_DEPTH_MAX} levels deep.", param="filters", code="invalid_value")


def matching_files(scope: StoreScope, filter: Filter) -> Bound:
    """The query for the `seq` of the files of a store that a filter lets through."""
    values = {f"value_{place}": value for place, value in enumerate(_values(filter))}
    return _query(_shape(filter))(vector_store_id=scope.vector_store_id, project_id=scope.project_id, **values)


def attribute_columns(values: Attributes) -> list[dict[str, Any]]:
    """The attributes of a file as rows: `key`, and of `text_value`, `number_value` and `boolean_value` the one that it has."""
    return [
        {"key": key, **{f"{kind}_value": _stored(value) if kind == _kind_of(value) else None for kind in _KINDS}}
        for key, value in values.items()
    ]


def _kind_of(value: AttributeValue) -> str:
    if isinstance(value, bool):
        return "boolean"
    return "text" if isinstance(value, str) else "number"


def _stored(value: AttributeValue) -> str | bool | float:
    return value if isinstance(value, str | bool) else float(value)


def _operator_of(filter: Filter) -> str:
    return str(filter.__struct_config__.tag)


def _shape(filter: Filter) -> _Shape:
    name = _operator_of(filter)
    if isinstance(filter, AndFilter | OrFilter):
        return name, tuple([_shape(inner) for inner in filter.filters])
    if isinstance(filter, InFilter | NotInFilter):
        return name, tuple([_kind_of(value) for value in filter.value])
    return name, (_kind_of(filter.value),)


def _values(filter: Filter) -> Iterator[str | bool | float]:
    """The parameters in the order in which `_condition` takes them: for every comparison its key, then its values."""
    if isinstance(filter, AndFilter | OrFilter):
        for inner in filter.filters:
            yield from _values(inner)
        return
    yield filter.key
    for value in filter.value if isinstance(filter, InFilter | NotInFilter) else [filter.value]:
        yield _stored(value)


@functools.lru_cache(maxsize=256)
def _query(shape: _Shape) -> Query:
    files = vector_store_files.c
    of_store = (files.vector_store_id == sa.bindparam("vector_store_id"), files.project_id == sa.bindparam("project_id"))
    return Query(sa.select(files.seq).where(*of_store, _condition(shape, count())))


def _condition(shape: _Shape, places: "count[int]") -> sa.ColumnElement[bool]:
    name, parts = shape
    if name in ("and", "or"):
        conditions = [_condition(part, places) for part in parts if not isinstance(part, str)]
        return sa.and_(*conditions) if name == "and" else sa.or_(*conditions)
    key = sa.bindparam(f"value_{next(places)}", type_=sa.Text)
    kinds = [part for part in parts if isinstance(part, str)]
    values = [sa.bindparam(f"value_{next(places)}", type_=_columns[kind].type) for kind in kinds]
    compare = _COMPARISONS.get(name)
    holds = _membership(name, kinds, values) if compare is None else compare(_columns[kinds[0]], values[0])
    return sa.exists().where(attributes.c.file_seq == vector_store_files.c.seq, attributes.c.key == key, holds)


def _membership(name: str, kinds: list[str], values: list[sa.BindParameter[Any]]) -> sa.ColumnElement[bool]:
    """Whether the value is one (`in`) or none (`nin`) of those of its own type. Of no type that is listed, it is neither."""
    of_kinds: list[sa.ColumnElement[bool]] = []
    for kind in dict.fromkeys(kinds):
        listed = [value for value, its_kind in zip(values, kinds, strict=True) if its_kind == kind]
        of_kinds.append(_columns[kind].in_(listed) if name == "in" else _columns[kind].not_in(listed))
    return sa.or_(*of_kinds)

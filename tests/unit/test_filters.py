"""Filters against what they mean, said in Python: on a real database, whatever the attributes and however filters are nested."""

import asyncio
import operator
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mini_assistant.assistants.schema import ChunkSize, StaticChunking
from mini_assistant.db.base import Query
from mini_assistant.db.sqlite import SqliteDatabase
from mini_assistant.db.tables import files, vector_stores
from mini_assistant.errors import InvalidRequest
from mini_assistant.vector_stores.attached_files import insert_file
from mini_assistant.vector_stores.filters import FILTER_DEPTH_MAX, FILTER_VALUES_MAX, check_filter, matching_files
from mini_assistant.vector_stores.indexes.base import StoreScope
from mini_assistant.vector_stores.schema import AndFilter, EqualFilter, Filter, InFilter, OrFilter, VectorStoreFile

PROJECT = "default"
NOW = 1_700_000_000

insert_upload = Query.insert_into(files)
insert_store = Query.insert_into(vector_stores)

Value = str | bool | int | float
Attributes = dict[str, Value]

# Few keys and values, so that they meet; among them pairs that Python or SQL might take for the same.
keys = st.sampled_from(["a", "b", "A"])
values = st.one_of(
    st.sampled_from(["", "a", "A", "1"]),
    st.booleans(),
    st.sampled_from([0, 1, 1.0, 0.5]),
    st.sampled_from(["é", "z\u0001", "\U0001f600", "\uffff", "true", -0.0, -1.5, 1e300, 2**53, 2**53 + 1, 2**63 - 1]),
)
attributes = st.dictionaries(keys, values, max_size=3)
comparisons = st.builds(
    lambda name, key, value: {"type": name, "key": key, "value": value},
    st.sampled_from(["eq", "ne", "gt", "gte", "lt", "lte"]),
    keys,
    values,
)
memberships = st.builds(
    lambda name, key, listed: {"type": name, "key": key, "value": listed},
    st.sampled_from(["in", "nin"]),
    keys,
    st.lists(values, min_size=1, max_size=6),
)
filters = st.recursive(
    st.one_of(comparisons, memberships),
    lambda inner: st.builds(
        lambda name, several: {"type": name, "filters": several}, st.sampled_from(["and", "or"]), st.lists(inner, min_size=1, max_size=3)
    ),
    max_leaves=8,
)


def kind(value: Value) -> type:
    return float if isinstance(value, int) and not isinstance(value, bool) else type(value)


def stored(value: Value) -> Value:
    """Numbers are compared as JSON has them: in double precision."""
    return float(value) if kind(value) is float else value


COMPARE: Mapping[str, Callable[[Any, Any], bool]] = {
    "eq": operator.eq,
    "ne": operator.ne,
    "gt": operator.gt,
    "gte": operator.ge,
    "lt": operator.lt,
    "lte": operator.le,
}


def holds(wanted: dict[str, Any], has: Attributes) -> bool:
    """What a filter means for a file with these attributes."""
    name = wanted["type"]
    if name in ("and", "or"):
        several = [holds(inner, has) for inner in wanted["filters"]]
        return all(several) if name == "and" else any(several)
    if wanted["key"] not in has:
        return False
    value = has[wanted["key"]]
    if name in COMPARE:
        return kind(value) is kind(wanted["value"]) and COMPARE[name](stored(value), stored(wanted["value"]))
    listed = [stored(item) for item in wanted["value"] if kind(item) is kind(value)]
    return bool(listed) and (stored(value) in listed) == (name == "in")


@dataclass
class Stores:
    """A database in which every example has a store of its own."""

    db: SqliteDatabase
    runner: asyncio.Runner
    numbers: Iterator[int]

    def matching(self, several: list[Attributes], wanted: Filter) -> list[int]:
        return self.runner.run(self._matching(several, wanted))

    async def _matching(self, several: list[Attributes], wanted: Filter) -> list[int]:
        """The places of those of the files that a filter lets through."""
        scope = StoreScope(PROJECT, f"vs_{next(self.numbers)}")
        await self._insert_store(scope)
        seqs = [await self._insert_file(scope, f"file-{place}", has) for place, has in enumerate(several)]
        found = {seq for (seq,) in await self.db.read(matching_files(scope, wanted))}
        other = StoreScope("other project", scope.vector_store_id)
        assert await self.db.read(matching_files(other, wanted)) == []
        return [place for place, seq in enumerate(seqs) if seq in found]

    async def _insert_store(self, scope: StoreScope) -> None:
        columns: dict[str, Any] = {column.name: 0 for column in vector_stores.columns if column.name != "seq"}
        await self.db.write([insert_store(**columns | {"id": scope.vector_store_id, "project_id": PROJECT, "body": "{}"})])

    async def _insert_file(self, scope: StoreScope, file_id: str, has: Attributes) -> int:
        file = VectorStoreFile(
            id=file_id,
            usage_bytes=0,
            created_at=NOW,
            vector_store_id=scope.vector_store_id,
            status="completed",
            last_error=None,
            chunking_strategy=StaticChunking(ChunkSize(800, 400)),
            attributes=has,
        )
        return (await self.db.write(insert_file(PROJECT, file, None, NOW)))[0][0][0]


@pytest.fixture(scope="module")
def stores(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stores]:
    path: Path = tmp_path_factory.mktemp("filters")
    db = SqliteDatabase(path / "filters.sqlite3")
    with asyncio.Runner() as runner:
        runner.run(db.open())
        runner.run(_insert_uploads(db))
        yield Stores(db, runner, count())
        runner.run(db.close())


async def _insert_uploads(db: SqliteDatabase) -> None:
    columns: dict[str, Any] = {column.name: 0 for column in files.columns if column.name != "seq"}
    rows = [insert_upload(**columns | {"id": f"file-{place}", "project_id": PROJECT, "expires_at": None}) for place in range(8)]
    await db.write(rows)


@settings(max_examples=400, deadline=None)
@given(several=st.lists(attributes, min_size=1, max_size=6), wanted=filters)
def test_a_filter_lets_through_what_it_says(stores: Stores, several: list[Attributes], wanted: dict[str, Any]) -> None:
    expected = [place for place, has in enumerate(several) if holds(wanted, has)]
    assert stores.matching(several, msgspec.convert(wanted, Filter)) == expected


def test_the_largest_filter_is_one_that_the_database_takes(stores: Stores) -> None:
    listed = InFilter("a", [*range(FILTER_VALUES_MAX - 100)])
    wide: Filter = OrFilter([listed, *[EqualFilter("b", str(number)) for number in range(99)]])
    check_filter(wide)
    assert stores.matching([{"a": 5}, {"b": "98"}, {"b": "99"}], wide) == [0, 1]
    deep: Filter = EqualFilter("a", 5)
    for _ in range(FILTER_DEPTH_MAX - 1):
        deep = AndFilter([deep])
    check_filter(deep)
    assert stores.matching([{"a": 5}, {"a": 6}], deep) == [0]


def test_larger_filters_are_refused() -> None:
    leaf: Filter = EqualFilter("a", 1)
    deep = leaf
    for _ in range(FILTER_DEPTH_MAX):
        deep = AndFilter([deep])
    many: Filter = OrFilter([OrFilter([leaf] * 100)] * (FILTER_VALUES_MAX // 100))
    for refused in (deep, many):
        with pytest.raises(InvalidRequest) as caught:
            check_filter(refused)
        assert (caught.value.param, caught.value.code) == ("filters", "invalid_value")
    check_filter(None)

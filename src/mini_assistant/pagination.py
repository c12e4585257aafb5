"""Lists in pages, the same for every resource: by creation time and sequence, with cursors that may have been deleted since.

Source: behaviour §1.7. `after` and `before` are object ids; `has_more` speaks of the direction in which the cursor leads.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Annotated, Any, Literal, NamedTuple

import msgspec
import sqlalchemy as sa

from mini_assistant.db.base import Bound, Database, Query, Row
from mini_assistant.db.tables import deleted_cursors
from mini_assistant.errors import NotFound


class Page(msgspec.Struct, frozen=True):
    """The query parameters of a list."""

    limit: Annotated[int, msgspec.Meta(ge=1, le=100)] = 20
    order: Literal["asc", "desc"] = "desc"
    after: str | None = None
    before: str | None = None


class _Shape(NamedTuple):
    """What makes the text of a list query; its values are parameters."""

    is_ascending: bool
    has_after: bool
    has_before: bool
    filters: tuple[str, ...]


class Listing:
    """The list of one kind of object.

    scope: the columns that every query fixes (`project_id`, and the parent's id). noun: as in `No message found with id ...`.
    condition: what else holds for every row; the values of its parameters come with the scope's.
    columns: what an item's JSON is made of; the body alone is the JSON itself. parent: the column of the scope without which an id
    names no single object; places of deleted ones are then kept as `<parent>/<id>`.
    """

    def __init__(
        self,
        table: sa.Table,
        scope: Sequence[str],
        noun: str,
        condition: sa.ColumnElement[bool] | None = None,
        *,
        columns: Sequence[str] = ("body",),
        parent: str | None = None,
    ) -> None:
        self._table = table
        self._scope = tuple(scope)
        self._noun = noun
        self._condition = condition
        self._columns = [table.c[name] for name in columns]
        self._parent = parent
        self._queries: dict[_Shape, Query] = {}
        self._place = Query(
            sa.union_all(
                sa.select(table.c.created_at, table.c.seq).where(table.c.id == sa.bindparam("id"), *self._conditions(self._scope)),
                sa.select(deleted_cursors.c.created_at, deleted_cursors.c.seq).where(
                    deleted_cursors.c.id == sa.bindparam("deleted_id"), deleted_cursors.c.project_id == sa.bindparam("project_id")
                ),
            )
        )

        kept = deleted_cursors.c
        self._keep_place = Query(
            sa.insert(deleted_cursors).from_select(
                [kept.id, kept.project_id, kept.created_at, kept.seq, kept.deleted_at],
                sa.select(
                    table.c.id,
                    table.c.project_id,
                    table.c.created_at,
                    table.c.seq,
                    sa.bindparam("now_seconds", type_=sa.BigInteger),
                ).where(table.c.id == sa.bindparam("object_id"), table.c.project_id == sa.bindparam("project_id")),
            )
        )

    def keep_place(self, project_id: str, object_id: str, now: int) -> Bound:
        """Keeps where an object stands that is about to be deleted, so that clients may delete while they page."""
        return self._keep_place(object_id=object_id, project_id=project_id, now_seconds=now)

    async def page(
        self,
        db: Database,
        page: Page,
        scope: dict[str, Any],
        filters: dict[str, Any] | None = None,
        *,
        render: Callable[[Row], str] | None = None,
    ) -> str:
        """A page as wire JSON.

        scope: values of the scope's columns. filters: further columns that must equal a value. render: makes an item's JSON of its
        columns; None when the one column is it.
        Raises NotFound when a cursor was never an object of this list.
        """
        filters = filters or {}
        # With `before` alone, the page lies next to the cursor: read away from it, then turn the rows round.
        is_backward = page.before is not None and page.after is None
        shape = _Shape(
            is_ascending=(page.order == "asc") != is_backward,
            has_after=page.after is not None,
            has_before=page.before is not None,
            filters=tuple(filters),
        )
        values: dict[str, Any] = {**scope, **filters, "row_limit": page.limit + 1}
        for name, cursor in (("after", page.after), ("before", page.before)):
            if cursor is not None:
                values[f"{name}_created_at"], values[f"{name}_seq"] = await self._place_of(db, cursor, scope)
        rows = await db.read(self._query(shape)(**values))
        has_more = len(rows) > page.limit
        rows = rows[: page.limit]
        items = [(row[0], row[1] if render is None else render(row[1:])) for row in rows]
        return list_json(items[::-1] if is_backward else items, has_more)

    async def _place_of(self, db: Database, cursor: str, scope: dict[str, Any]) -> tuple[int, int]:
        deleted_id = cursor if self._parent is None else f"{scope[self._parent]}/{cursor}"
        rows = await db.read(self._place(id=cursor, deleted_id=deleted_id, **scope))
        if not rows:
            raise NotFound(f"No {self._noun} found with id '{cursor[:100]}'.")
        return rows[0][0], rows[0][1]

    def _query(self, shape: _Shape) -> Query:
        query = self._queries.get(shape)
        if query is None:
            query = self._queries[shape] = self._build(shape)
        return query

    def _build(self, shape: _Shape) -> Query:
        columns = self._table.c
        place = sa.tuple_(columns.created_at, columns.seq)
        conditions = self._conditions((*self._scope, *shape.filters))
        if self._condition is not None:
            conditions.append(self._condition)
        # Read in the direction of the rows: past `after`, and not as far as `before`. Backward reads have only `before`, behind them.
        is_backward = shape.has_before and not shape.has_after
        for name, is_given, is_past in (("after", shape.has_after, True), ("before", shape.has_before, is_backward)):
            if is_given:
                cursor = sa.tuple_(
                    sa.bindparam(f"{name}_created_at", type_=sa.BigInteger), sa.bindparam(f"{name}_seq", type_=sa.BigInteger)
                )
                conditions.append(place > cursor if shape.is_ascending == is_past else place < cursor)
        order = (columns.created_at.asc(), columns.seq.asc()) if shape.is_ascending else (columns.created_at.desc(), columns.seq.desc())
        return Query(
            sa.select(columns.id, *self._columns).where(*conditions).order_by(*order).limit(sa.bindparam("row_limit", type_=sa.Integer))
        )

    def _conditions(self, names: Sequence[str]) -> list[sa.ColumnElement[bool]]:
        return [self._table.c[name] == sa.bindparam(name) for name in names]


EMPTY_LIST = '{"object":"list","data":[],"first_id":null,"last_id":null,"has_more":false}'


def list_json(rows: Sequence[tuple[str, str]], has_more: bool) -> str:
    """The list object around rows of (id, wire JSON)."""
    if not rows:
        return EMPTY_LIST
    data = ",".join([body for _, body in rows])
    return (
        f'{{"object":"list","data":[{data}],"first_id":"{rows[0][0]}","last_id":"{rows[-1][0]}",'
        f'"has_more":{"true" if has_more else "false"}}}'
    )


@functools.cache  # one type for each kind, however many lists of it there are
def list_schema(item: type[msgspec.Struct]) -> type[msgspec.Struct]:
    """The type of a list of `item`, for `/openapi.json`."""
    return msgspec.defstruct(
        f"{item.__name__}List",
        [("object", Literal["list"]), ("data", list[item]), ("first_id", str | None), ("last_id", str | None), ("has_more", bool)],
    )


forget_deleted_cursors = Query(sa.delete(deleted_cursors).where(deleted_cursors.c.deleted_at < sa.bindparam("before")))
"""Drops places kept since before a unix time (`before`)."""

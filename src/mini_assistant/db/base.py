"""The seam to the database: statements written once, and one call that applies a list of them or none.

Stores build `Bound` statements; `db/sqlite.py` (and other backends) run them. There are no interactive transactions: a mutation is
a list whose guards decide in the database itself whether the whole list holds.
"""

from collections.abc import Awaitable, Callable, Sequence
from operator import itemgetter
from typing import Any, Protocol

import msgspec
import sqlalchemy as sa
from sqlalchemy.engine.interfaces import Dialect
from sqlalchemy.sql import crud

Row = tuple[Any, ...]


class Query:
    """A statement authored with SQLAlchemy Core and compiled once for each dialect that runs it."""

    def __init__(self, clause: sa.ClauseElement, column_keys: list[str] | None = None) -> None:
        self._clause = clause
        self._column_keys = column_keys
        self._compiled: dict[str, CompiledQuery] = {}

    @classmethod
    def insert_into(cls, table: sa.Table) -> "Query":
        """An insert that takes a parameter for every column but the one that the database counts up."""
        return cls(sa.insert(table), [column.name for column in table.columns if column is not table.autoincrement_column])

    def __call__(self, **parameters: Any) -> "Bound":
        """The statement with its parameters, ready for `Database.read` or `Database.write`."""
        return Bound(self, parameters, None)

    def guard(self, name: str, **parameters: Any) -> "Bound":
        """As a call, but the whole list is undone when this statement yields no row; see `GuardFailed`."""
        return Bound(self, parameters, name)

    def compiled(self, dialect: Dialect) -> "CompiledQuery":
        """The statement for a dialect whose parameters are positional."""
        known = self._compiled.get(dialect.name)
        if known is None:
            compiled = self._clause.compile(dialect=dialect, column_keys=self._column_keys)
            constants = {name: value for name, value in (compiled.params or {}).items() if value is not None and value is not crud.REQUIRED}
            names: Sequence[str] = getattr(compiled, "positiontup", None) or ()
            known = self._compiled[dialect.name] = CompiledQuery(str(compiled), names, constants)
        return known


class CompiledQuery:
    """A statement as a driver takes it. `in_order` puts parameters into the order of the text's placeholders."""

    def __init__(self, text: str, names: Sequence[str], constants: dict[str, Any]) -> None:
        """constants: values of parameters that are part of the statement itself."""
        self.text = text
        self.in_order = _orderer(names, constants)


def _orderer(names: Sequence[str], constants: dict[str, Any]) -> Callable[[dict[str, Any]], tuple[Any, ...]]:
    if constants:
        return lambda parameters: tuple([parameters[name] if name in parameters else constants[name] for name in names])
    if len(names) > 1:
        return itemgetter(*names)  # a fifth of what a comprehension costs, and nearly every statement comes by here
    return lambda parameters: tuple([parameters[name] for name in names])


class Bound(msgspec.Struct, gc=False):
    """A statement with parameters. `guard` names the condition that it states, None when it states none."""

    query: Query
    parameters: dict[str, Any]
    guard: str | None


class GuardFailed(Exception):
    """A guard of a list yielded no row. Nothing of the list was written."""

    def __init__(self, guard: str) -> None:
        super().__init__(guard)
        self.guard = guard


class UniqueViolation(Exception):
    """A list broke a unique index. Nothing of the list was written. `index` names the index or its columns."""

    def __init__(self, index: str) -> None:
        super().__init__(index)
        self.index = index


class Database(Protocol):
    """Rows of one server or one cluster."""

    def read(self, statement: Bound) -> Awaitable[list[Row]]:
        """Rows as of the last commit. Raises StoreUnavailable."""
        ...

    async def write(
        self, statements: Sequence[Bound], on_commit: Callable[[], None] | None = None, *, durable: bool = True
    ) -> list[list[Row]]:
        """Apply all statements or none, and return the rows that each of them yielded.

        The call returns when the commit would survive a power cut; with `durable=False` it need only survive the end of this process,
        and becomes durable with the next commit that has to be. Commits are never lost out of their order. `on_commit` runs in the
        event loop right after the commit, in the order of the commits and even when the caller has been cancelled; events are
        published there, and nowhere else.
        Raises GuardFailed, UniqueViolation or StoreUnavailable; nothing is written then.
        """
        ...

    async def check(self) -> str:
        """One line about the database. Raises StoreUnavailable with the reason when it cannot be used."""
        ...

    async def close(self) -> None:
        """Finish what has been handed in and give back the connections."""
        ...

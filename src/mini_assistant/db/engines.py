"""Plain connections for commands that move many rows in one transaction, to SQLite and PostgreSQL alike; see `projects/archive.py`.

Servers never use them: a read sees one moment of the database however long it takes, and a write is one transaction of any size.
"""

import contextlib
import sqlite3
from collections.abc import Generator
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy import event
from sqlalchemy.exc import ArgumentError, DBAPIError, IntegrityError

from mini_assistant.errors import ConfigError, StoreUnavailable

_LOCK_WAIT_SECONDS = 30


class RowEngine:
    """A database that others may be using."""

    def __init__(self, engine: sa.Engine) -> None:
        self._engine = engine
        self._is_postgres = engine.dialect.name == "postgresql"

    @contextlib.contextmanager
    def reading(self) -> Generator[sa.Connection]:
        """Rows as of one moment. Raises StoreUnavailable."""
        with _translating(), self._engine.connect() as connection:
            if self._is_postgres:
                connection = connection.execution_options(isolation_level="REPEATABLE READ", postgresql_readonly=True)
            with connection.begin():
                yield connection

    @contextlib.contextmanager
    def writing(self) -> Generator[sa.Connection]:
        """One transaction, committed at the end. Raises ConfigError for a row that is there already, and StoreUnavailable."""
        with _translating(), self._engine.connect() as connection, connection.begin():
            yield connection

    def reserve_numbers(self, connection: sa.Connection, table: sa.Table, count: int) -> int:
        """The first of `count` numbers (`seq`) in a row that no other row of the table has had or will get.

        connection: as `writing` gives it. What is reserved and not used stays unused.
        """
        return self._reserve_in_postgres(table, count) if self._is_postgres else _reserve_in_sqlite(connection, table)

    def _reserve_in_postgres(self, table: sa.Table, count: int) -> int:
        # In a short transaction of its own: nobody inserts between the look and the step, and nobody waits for the rows.
        with self._engine.begin() as connection:
            connection.execute(sa.text(f"SET LOCAL lock_timeout = '{_LOCK_WAIT_SECONDS}s'"))
            connection.execute(sa.text(f"LOCK TABLE {table.name} IN SHARE ROW EXCLUSIVE MODE"))
            sequence = sa.func.pg_get_serial_sequence(table.name, "seq")
            highest = connection.scalar(sa.select(sa.func.coalesce(sa.func.max(table.c.seq), 0)))
            first = max(int(connection.scalar(sa.select(sa.func.nextval(sequence))) or 0), int(highest or 0) + 1)
            connection.execute(sa.select(sa.func.setval(sequence, first + count - 1)))
            return first

    def holdable(self, value: Any) -> Any:
        """A value as this database can hold it."""
        return without_nul(value) if self._is_postgres else value

    def close(self) -> None:
        """Give back all connections."""
        self._engine.dispose()


def _reserve_in_sqlite(connection: sa.Connection, table: sa.Table) -> int:
    """Nobody else writes in this transaction, and what it inserts moves the numbers on."""
    highest = connection.scalar(sa.select(sa.func.coalesce(sa.func.max(table.c.seq), 0)))
    given = connection.scalar(sa.text("SELECT seq FROM sqlite_sequence WHERE name = :name"), {"name": table.name})
    return max(int(highest or 0), int(given or 0)) + 1


def sqlite_engine(path: Path) -> RowEngine:
    """The embedded database in a file that is there."""
    engine = sa.create_engine(f"sqlite:///{path}", connect_args={"timeout": _LOCK_WAIT_SECONDS})
    event.listen(engine, "connect", _prepare_sqlite)
    event.listen(engine, "begin", _begin_sqlite)
    return RowEngine(engine)


def _prepare_sqlite(connection: sqlite3.Connection, _record: Any) -> None:
    connection.isolation_level = None  # or else reads would not be in a transaction
    for pragma in ("foreign_keys = ON", "synchronous = FULL", "secure_delete = ON"):
        connection.execute(f"PRAGMA {pragma}")


def _begin_sqlite(connection: sa.Connection) -> None:
    connection.exec_driver_sql("BEGIN")


def postgres_engine(url: str) -> RowEngine:
    """The PostgreSQL at `url` (postgresql://…). Raises ConfigError when that cannot be read."""
    try:
        engine = sa.create_engine(f"postgresql+psycopg://{url.partition('://')[2]}", poolclass=sa.NullPool)
    except (ArgumentError, ValueError):
        # The reason would show what it could not read, which may be a part of the password.
        raise ConfigError("The address of database_url cannot be read.") from None
    return RowEngine(engine)


@contextlib.contextmanager
def _translating() -> Generator[None]:
    try:
        yield
    except IntegrityError as exc:
        raise ConfigError(f"The database has such rows already, or they do not fit together: {_first_line(exc)}.") from exc
    except (DBAPIError, OverflowError) as exc:
        raise StoreUnavailable(f"The database cannot be used: {_first_line(exc)}.") from exc


def _first_line(exc: Exception) -> str:
    cause = exc.orig if isinstance(exc, DBAPIError) else exc
    return str(cause).strip().partition("\n")[0].rstrip(".")


def without_nul(value: Any) -> Any:
    """A value as PostgreSQL can hold it: no text there has the character NUL."""
    if isinstance(value, str) and "\x00" in value:
        return value.replace("\x00", "\N{REPLACEMENT CHARACTER}")
    return value

"""Moves all rows of an embedded database into an empty PostgreSQL, in one transaction.

The rows keep their ids and numbers, so every id, cursor and link that clients hold stays good.
"""

import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import sqlalchemy as sa
from psycopg import sql

from mini_assistant.db.engines import without_nul
from mini_assistant.db.tables import metadata
from mini_assistant.errors import ConfigError, StoreUnavailable

_ROWS_PER_READ = 500


def transfer_rows(source: Path, url: str) -> dict[str, int]:
    """Copy every row of the SQLite file `source` to the PostgreSQL at `url`; returns how many by table.

    Both have the current shape, and no server uses the file. Runs in progress are free for any worker afterwards.
    Raises ConfigError when the target has rows already, and StoreUnavailable; nothing is written then.
    """
    try:
        with sqlite3.connect(f"{source.absolute().as_uri()}?mode=ro", uri=True) as rows, psycopg.connect(url) as target:
            _require_empty(target)
            counts = {table.name: _copy_table(rows, target, table) for table in metadata.sorted_tables}
            for table in metadata.sorted_tables:
                _continue_numbers(rows, target, table)
            for name in ("runs", "vector_store_files"):
                target.execute(sql.SQL("UPDATE {} SET lease_owner = NULL, lease_until = 0").format(sql.Identifier(name)))
            return counts
    except (sqlite3.Error, psycopg.Error) as exc:
        raise StoreUnavailable(f"The rows could not be moved: {exc}. Nothing was written.") from exc


def blob_keys(source: Path) -> list[str]:
    """The keys of all blobs that rows of the SQLite file name."""
    try:
        with sqlite3.connect(f"{source.absolute().as_uri()}?mode=ro", uri=True) as rows:
            return [key for (key,) in rows.execute("SELECT blob_key FROM files UNION SELECT blob_key FROM upload_parts")]
    except sqlite3.Error as exc:
        raise StoreUnavailable(f"{source} cannot be read: {exc}.") from exc


def _require_empty(target: "psycopg.Connection[Any]") -> None:
    for table in metadata.sorted_tables:
        found = target.execute(sql.SQL("SELECT 1 FROM {} LIMIT 1").format(sql.Identifier(table.name))).fetchone()
        if found is not None and table.name != "claim_limits":
            raise ConfigError(f"The target has rows already (in {table.name}). Move into a new database.")


def _copy_table(rows: sqlite3.Connection, target: "psycopg.Connection[Any]", table: sa.Table) -> int:
    names = [column.name for column in table.columns]
    copy = sql.SQL("COPY {} ({}) FROM STDIN").format(sql.Identifier(table.name), sql.SQL(", ").join(map(sql.Identifier, names)))
    count = 0
    with target.cursor().copy(copy) as copying:
        for row in _read_table(rows, table):
            copying.write_row(row)
            count += 1
    return count


def _read_table(rows: sqlite3.Connection, table: sa.Table) -> Iterator[tuple[Any, ...]]:
    columns = ", ".join(f'"{column.name}"' for column in table.columns)
    is_boolean = [isinstance(column.type, sa.Boolean) for column in table.columns]
    reading = rows.execute(f'SELECT {columns} FROM "{table.name}"')  # noqa: S608 - names of our own tables
    while found := reading.fetchmany(_ROWS_PER_READ):
        for row in found:
            yield tuple(_value(value, boolean) for value, boolean in zip(row, is_boolean, strict=True))


def _value(value: Any, is_boolean: bool) -> Any:
    if is_boolean and value is not None:
        return bool(value)
    return without_nul(value)


def _continue_numbers(rows: sqlite3.Connection, target: "psycopg.Connection[Any]", table: sa.Table) -> None:
    """The next row gets a number that no row has had."""
    column = table.autoincrement_column
    if column is None or column.name != "seq":
        return
    highest = rows.execute(f'SELECT coalesce(max(seq), 0) FROM "{table.name}"').fetchone()[0]  # noqa: S608 - names of our own tables
    given = rows.execute("SELECT seq FROM sqlite_sequence WHERE name = ?", (table.name,)).fetchone()
    highest = max(highest, given[0] if given else 0)
    if highest:
        target.execute("SELECT setval(pg_get_serial_sequence(%s, 'seq'), %s)", (table.name, highest))

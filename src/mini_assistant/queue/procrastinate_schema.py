"""The tables of procrastinate: made and brought up to date by `mini-assistant migrate`, in a schema of their own.

procrastinate keeps no account of its migrations: files whose names begin with the version they came with. The last one that was
applied is kept as the comment of the schema.
"""

from pathlib import Path

import psycopg
from procrastinate.schema import SchemaManager

from mini_assistant.errors import StoreUnavailable

SCHEMA = "procrastinate"
_LOCK_KEY = 0x70726F63  # "proc"
_LAST_APPLIED = f"SELECT obj_description(to_regnamespace('{SCHEMA}'), 'pg_namespace')"


def apply_schema(url: str) -> None:
    """Bring the queue's tables in the database at `url` to the version of the installed procrastinate; nothing when they have it.

    Several processes may do so at a time. Raises StoreUnavailable when the database cannot be reached, or a statement is refused.
    """
    try:
        with psycopg.connect(url, autocommit=True) as connection:
            connection.execute("SELECT pg_advisory_lock(%s)", [_LOCK_KEY])  # let go with the connection
            row = connection.execute(_LAST_APPLIED).fetchone()
            for name, script in _scripts_after(row[0] if row else None):
                # Each is one transaction, and names itself in it.
                connection.execute(f"{script};\nCOMMENT ON SCHEMA {SCHEMA} IS '{name}'".encode())
    except psycopg.Error as exc:
        raise StoreUnavailable(f"The task queue's tables cannot be made ({exc.sqlstate or type(exc).__name__}).") from exc


def _scripts_after(applied: str | None) -> list[tuple[str, str]]:
    """What is still to be done, in its order: the name of each migration and its statements."""
    files = sorted(Path(SchemaManager.get_migrations_path()).glob("*.sql"))
    search_path = f"SET search_path TO {SCHEMA};\n"
    if applied is None:
        script = f"CREATE SCHEMA IF NOT EXISTS {SCHEMA};\n{search_path}{SchemaManager.get_schema()}"
        return [(files[-1].name, script)]
    return [(file.name, search_path + file.read_text(encoding="utf-8")) for file in files if file.name > applied]

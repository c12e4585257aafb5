"""Schema migrations. `HEAD` is the newest revision; a database that has it is opened without loading Alembic."""

import sqlite3
from pathlib import Path

HEAD = "0005"


class MigrationFailed(Exception):
    """The database cannot be brought to `HEAD`; it is as it was."""


def migrate(connection: sqlite3.Connection, url: str) -> None:
    """Bring the database at `url` to `HEAD`; `connection` is an open connection to it, for a quick look at its revision.

    Raises MigrationFailed when a newer version of the program has written the database, or a statement is refused.
    """
    if _revision(connection) != HEAD:
        _upgrade(url)


def migrate_postgres(url: str) -> None:
    """Bring the PostgreSQL database at `url` (postgresql://…) to `HEAD`; several processes may do so at a time.

    Raises MigrationFailed when a statement is refused, the database cannot be reached, or a newer version has written it.
    """
    _upgrade(f"postgresql+psycopg://{url.partition('://')[2]}")


def _upgrade(url: str) -> None:
    # Alembic takes a third of a second to import, and an up-to-date database does not need it.
    from alembic import command
    from alembic.config import Config
    from alembic.util import CommandError
    from sqlalchemy.exc import DBAPIError

    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent))
    config.set_main_option("sqlalchemy.url", url.replace("%", "%%"))
    try:
        command.upgrade(config, HEAD)
    except CommandError as exc:
        raise MigrationFailed(f"it has a revision that this version does not know ({exc})") from exc
    except DBAPIError as exc:
        raise MigrationFailed(str(exc.orig)) from exc


def _revision(connection: sqlite3.Connection) -> str | None:
    known = connection.execute("SELECT 1 FROM sqlite_master WHERE name = 'alembic_version'").fetchone()
    if known is None:
        return None
    row = connection.execute("SELECT version_num FROM alembic_version").fetchone()
    return row[0] if row else None

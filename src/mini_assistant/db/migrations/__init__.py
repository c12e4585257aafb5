"""Schema migrations. `HEAD` is the newest revision; a database that has it is opened without loading Alembic."""

import re
import sqlite3
from pathlib import Path

HEAD = "0006"
_REVISION = re.compile(r"\d{4}")


class MigrationFailed(Exception):
    """The database cannot be brought to `HEAD`; it is as it was."""


def migrate(connection: sqlite3.Connection, url: str) -> None:
    """Bring the database at `url` to `HEAD`; `connection` is an open connection to it, for a quick look at its revision.

    Raises MigrationFailed when a newer version of the program has written the database, or a statement is refused.
    """
    if _revision(connection) != HEAD:
        _upgrade(url)


def require_head(connection: sqlite3.Connection) -> None:
    """Raise MigrationFailed when the database has another revision than `HEAD`."""
    if (revision := _revision(connection)) != HEAD:
        raise MigrationFailed(f"a server of another version uses it ({revision}, not {HEAD})")


def migrate_postgres(url: str) -> None:
    """Bring the PostgreSQL database at `url` (postgresql://…) to `HEAD`; several processes may do so at a time.

    Raises MigrationFailed when a statement is refused, the database cannot be reached, or a newer version has written it.
    """
    _upgrade(f"postgresql+psycopg://{url.partition('://')[2]}")


def check_revision(revision: str | None) -> None:
    """Whether servers of this version can use a database that has this revision; None: it has none.

    A newer one is fine: migrations only add, and old servers restart beside new ones while a cluster is updated.
    Raises MigrationFailed when the revision is an older one, and for what is no revision.
    """
    if revision is None:
        raise MigrationFailed("it has no tables yet; run `mini-assistant migrate`")
    if not _REVISION.fullmatch(revision):
        raise MigrationFailed("its tables are those of another program")
    if revision < HEAD:
        raise MigrationFailed(f"its tables are of an older version ({revision}, not {HEAD}); run `mini-assistant migrate`")


def _upgrade(url: str) -> None:
    # Alembic takes a third of a second to import, and an up-to-date database does not need it.
    from alembic import command
    from alembic.config import Config
    from alembic.util import CommandError
    from sqlalchemy.exc import ArgumentError, DBAPIError

    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent))
    config.set_main_option("sqlalchemy.url", url.replace("%", "%%"))
    try:
        command.upgrade(config, HEAD)
    except CommandError as exc:
        raise MigrationFailed(f"it has a revision that this version does not know ({exc})") from exc
    except DBAPIError as exc:
        raise MigrationFailed(" ".join(str(exc.orig).split())) from exc
    except (ArgumentError, ValueError):
        # The reason would show what it could not read, which may be a part of the password; so would the chain of causes.
        raise MigrationFailed("its address cannot be read") from None


def _revision(connection: sqlite3.Connection) -> str | None:
    known = connection.execute("SELECT 1 FROM sqlite_master WHERE name = 'alembic_version'").fetchone()
    if known is None:
        return None
    row = connection.execute("SELECT version_num FROM alembic_version").fetchone()
    return row[0] if row else None

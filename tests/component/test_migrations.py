"""The migrations lead to the tables that the program uses, in one transaction, and are not even loaded when there is nothing to do."""

import asyncio
import fcntl
import re
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory

from mini_assistant.db import migrations
from mini_assistant.db.migrations import HEAD, migrate
from mini_assistant.db.sqlite import SqliteDatabase
from mini_assistant.db.tables import metadata
from mini_assistant.errors import StoreUnavailable


def migrated(path: Path) -> sqlite3.Connection:
    connection = sqlite3.connect(path, isolation_level=None)
    migrate(connection, f"sqlite:///{path}")
    return connection


def shape_of(connection: sqlite3.Connection) -> dict[str, list[str]]:
    """The parts of the statement of every table and index by its name, whatever their order, white space and quotes."""
    rows = connection.execute("SELECT name, sql FROM sqlite_master WHERE sql IS NOT NULL AND name != 'alembic_version'").fetchall()
    return {
        name: sorted(re.split(r",(?![^()]*\))", re.sub(r"[\s\"]+", "", sql).replace("(", "(,", 1).removesuffix(")"))) for name, sql in rows
    }


def revision_of(path: Path) -> str:
    connection = sqlite3.connect(path)
    try:
        return connection.execute("SELECT version_num FROM alembic_version").fetchone()[0]
    finally:
        connection.close()


def set_revision(path: Path, revision: str) -> None:
    connection = sqlite3.connect(path)
    connection.execute("UPDATE alembic_version SET version_num = ?", (revision,))
    connection.commit()
    connection.close()


def test_migrations_make_the_tables_that_the_program_uses(tmp_path: Path) -> None:
    migrated(tmp_path / "migrated.sqlite3").close()
    engine = sa.create_engine(f"sqlite:///{tmp_path / 'migrated.sqlite3'}")
    with engine.connect() as connection:
        assert compare_metadata(MigrationContext.configure(connection, opts={"compare_type": True}), metadata) == []
    engine.dispose()


def test_migrations_make_the_same_statements_as_the_tables(tmp_path: Path) -> None:
    """What a comparison of types does not see: conditions of partial indexes, tables without rowid, cascades."""
    connection = migrated(tmp_path / "migrated.sqlite3")
    engine = sa.create_engine(f"sqlite:///{tmp_path / 'created.sqlite3'}")
    metadata.create_all(engine)
    engine.dispose()
    created = sqlite3.connect(tmp_path / "created.sqlite3")
    assert shape_of(connection) == shape_of(created)
    connection.close()
    created.close()


def test_head_is_the_newest_of_one_line_of_revisions() -> None:
    config = Config()
    config.set_main_option("script_location", str(Path(migrations.__file__).parent))
    script = ScriptDirectory.from_config(config)
    assert script.get_heads() == [HEAD]
    assert len(script.get_bases()) == 1


def test_migrating_twice_changes_nothing(tmp_path: Path) -> None:
    path = tmp_path / "rows.sqlite3"
    first = migrated(path)
    first.execute("INSERT INTO threads (id, project_id, created_at, body) VALUES ('thread_1', 'p', 1, '{}')")
    shape = shape_of(first)
    first.close()
    again = migrated(path)
    assert shape_of(again) == shape
    assert again.execute("SELECT count(*) FROM threads").fetchone() == (1,)
    again.close()


def test_a_path_with_a_percent_sign_is_a_path(tmp_path: Path) -> None:
    path = tmp_path / "100%s %(here)s.sqlite3"
    migrated(path).close()
    assert revision_of(path) == HEAD


async def test_a_migration_that_fails_leaves_nothing_behind(tmp_path: Path) -> None:
    """All of it is one transaction: the next start, with the fault gone, begins where this one did."""
    path = tmp_path / "rows.sqlite3"
    connection = sqlite3.connect(path)
    last_table = metadata.sorted_tables[-1].name
    connection.execute(f"CREATE TABLE {last_table} (in_the_way)")
    database = SqliteDatabase(path)
    with pytest.raises(StoreUnavailable, match=rf"rows\.sqlite3 cannot be opened: .*{last_table} already exists"):
        await database.open()
    assert [row[0] for row in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")] == [last_table]
    connection.execute(f"DROP TABLE {last_table}")
    connection.close()
    await database.open()
    await database.close()
    assert revision_of(path) == HEAD


async def test_a_database_of_a_newer_version_is_refused_and_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "rows.sqlite3"
    migrated(path).close()
    set_revision(path, "9999")
    with pytest.raises(StoreUnavailable, match=r"rows\.sqlite3 cannot be opened: .*does not know.*9999"):
        await SqliteDatabase(path).open()
    assert revision_of(path) == "9999"
    set_revision(path, HEAD)
    database = SqliteDatabase(path)
    await database.open()  # the refusal has let go of the file
    await database.close()


OPEN_AND_TELL = """
import asyncio, sys
from pathlib import Path
from mini_assistant.db.sqlite import SqliteDatabase

async def main():
    database = SqliteDatabase(Path(sys.argv[1]))
    await database.open()
    await database.close()

asyncio.run(main())
print("alembic" in sys.modules)
"""


def test_an_up_to_date_database_is_opened_without_loading_alembic(tmp_path: Path) -> None:
    told = [
        subprocess.run(
            [sys.executable, "-c", OPEN_AND_TELL, tmp_path / "rows.sqlite3"], capture_output=True, text=True, timeout=60, check=True
        )
        for _ in range(2)
    ]
    assert [process.stdout.strip() for process in told] == ["True", "False"], "once to make it, never again"


async def test_what_is_no_database_is_refused(tmp_path: Path) -> None:
    (tmp_path / "text.sqlite3").write_text("This is a letter, not a database. " * 100)
    with pytest.raises(StoreUnavailable, match="cannot be opened: file is not a database"):
        await SqliteDatabase(tmp_path / "text.sqlite3").open()
    (tmp_path / "folder.sqlite3").mkdir()
    with pytest.raises(StoreUnavailable, match="cannot be opened"):
        await SqliteDatabase(tmp_path / "folder.sqlite3").open()
    (tmp_path / "file").touch()
    with pytest.raises(StoreUnavailable, match="cannot be used"):
        await SqliteDatabase(tmp_path / "file" / "rows.sqlite3").open()
    with pytest.raises(StoreUnavailable, match="cannot be opened"):
        await SqliteDatabase(tmp_path / "text.sqlite3").check()


async def test_a_lock_that_goes_away_soon_is_waited_for(tmp_path: Path) -> None:
    with open(tmp_path / "rows.lock", "w") as file:  # noqa: ASYNC230
        fcntl.flock(file, fcntl.LOCK_EX)
        database = SqliteDatabase(tmp_path / "rows.sqlite3")
        opening = asyncio.create_task(database.open())
        await asyncio.sleep(0.1)
        assert not opening.done()
        fcntl.flock(file, fcntl.LOCK_UN)
        await opening
    await database.close()


async def test_two_servers_cannot_open_the_same_file(tmp_path: Path) -> None:
    first, second = SqliteDatabase(tmp_path / "rows.sqlite3"), SqliteDatabase(tmp_path / "rows.sqlite3")
    await first.open()
    with pytest.raises(StoreUnavailable, match="in use by another server"):
        await second.open()
    await asyncio.gather(second.check(), first.check())
    await first.close()
    await second.open()
    await second.close()

"""Brings an archive of a project into a server, on SQLite or PostgreSQL. What is in an archive: `archive.py`.

All of the archive is checked before anything is written. Then come the bytes of files, under new keys that sweeps delete again when no row
claims them, and at last the rows, in one transaction: there is the whole project or nothing of it, whenever this is cut off.
"""

import contextlib
from collections.abc import AsyncGenerator, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import msgspec
import sqlalchemy as sa

from mini_assistant.db.migrations import HEAD
from mini_assistant.db.tables import unneeded_blobs
from mini_assistant.errors import BackendError, ConfigError
from mini_assistant.files.blobs.base import BlobStore, BlobTooLarge
from mini_assistant.ids import new_blob_key
from mini_assistant.projects.archive import ReadsRows, Tell
from mini_assistant.projects.archive_file import ArchiveReader, Blob, Member, TableRows
from mini_assistant.projects.archived_rows import (
    EXPORTED,
    TABLES_WITH_BLOBS,
    batch_rows,
    is_cursor,
    number_references,
    numbered_table_or_none,
    own_number,
    parents,
    row_decoder,
)

# So long the bytes of files may wait for their rows.
_IMPORT_SECONDS_MAX = 7 * 86_400

_Values = dict[str, Any]


class WritesRows(ReadsRows, Protocol):
    """A database that takes many rows in one transaction; see `db/engines.py`."""

    def writing(self) -> Any:
        """A context whose connection writes, committed at its end. Raises ConfigError for rows that are there, and StoreUnavailable."""
        ...

    def reserve_numbers(self, connection: sa.Connection, table: sa.Table, count: int) -> int:
        """The first of so many numbers that no row of the table has had."""
        ...

    def holdable(self, value: Any) -> Any:
        """A value as the database can hold it."""
        ...


@dataclass(frozen=True)
class _Target:
    """Where rows go. shifts: what is added to the numbers of a table. keys: the new keys of blobs by the ones in the archive."""

    project_id: str
    now: int
    shifts: Mapping[str, int]
    keys: Mapping[str, str]


async def import_project(rows: WritesRows, blobs: BlobStore, archive: ArchiveReader, project_id: str, *, now: int, tell: Tell) -> None:
    """Bring all of an archive into a project, which may have other objects. now: unix seconds.

    Raises ConfigError for an archive of another version, one that is damaged, and for objects that are there already; StoreUnavailable.
    """
    _check_shape(archive)
    with rows.reading() as connection:
        _check_rows(connection, archive)
    for blob in archive.manifest.blobs:
        archive.check(blob.member)
    keys = {blob.key: new_blob_key() for blob in archive.manifest.blobs}
    with rows.writing() as connection:
        _reserve(connection, list(keys.values()), now)
    try:
        for blob in archive.manifest.blobs:
            await _import_blob(blobs, archive, blob, keys[blob.key])
        with rows.writing() as connection:
            _import_rows(rows, connection, archive, project_id, now, keys)
    except BaseException:
        await _give_up(rows, blobs, list(keys.values()))
        raise
    for table in archive.manifest.tables:
        tell(f"{table.name}: {table.count} rows")
    tell(f"{len(keys)} blobs")


# ---- what is checked before anything is written


def _check_shape(archive: ArchiveReader) -> None:
    manifest = archive.manifest
    if manifest.revision != HEAD:
        raise ConfigError(
            f"The archive was written by another version: its rows have the revision {manifest.revision}, and this version has {HEAD}. "
            "Import it with that version, and then update the server."
        )
    expected = [(table.name, [column.name for column in table.columns]) for table in EXPORTED]
    if [(table.name, table.columns) for table in manifest.tables] != expected:
        raise ConfigError("The archive has not the tables of this version. Nothing was written.")
    if len({blob.key for blob in manifest.blobs}) != len(manifest.blobs):
        raise ConfigError("The archive names bytes twice. Nothing was written.")


def _check_rows(connection: sa.Connection, archive: ArchiveReader) -> None:
    """Read every row once. Raises ConfigError for what is none, for a number out of its range, and for an id that is there already."""
    unnamed = {blob.key: blob.member.size_bytes for blob in archive.manifest.blobs}
    for described, table in _tables(archive):
        count = 0
        for batch in _batches(archive, table, described):
            count += len(batch)
            _check_numbers(archive, table, batch)
            if table in TABLES_WITH_BLOBS:
                for row in batch:
                    if unnamed.pop(row["blob_key"], None) != row["size_bytes"]:
                        raise _wrong(table, f"the bytes of {row['id']} are not there")
            _check_ids(connection, table, batch)
        if count != described.count:
            raise _wrong(table, f"{count} instead of {described.count}")
    if unnamed:
        raise ConfigError("The archive has bytes of files that no row names. Nothing was written.")


def _check_numbers(archive: ArchiveReader, table: sa.Table, batch: list[_Values]) -> None:
    ranges = {described.name: described for described in archive.manifest.tables}
    for row in batch:
        for column, numbered in _numbers(table, row).items():
            described = ranges[numbered.name]
            if described.first_seq is None or described.last_seq is None or not described.first_seq <= row[column] <= described.last_seq:
                raise _wrong(table, f"the number {row[column]} belongs to no row of {numbered.name}")


def _check_ids(connection: sa.Connection, table: sa.Table, batch: list[_Values]) -> None:
    column = table.c.get("id")
    if column is None or own_number(table) is None or not column.unique:
        return
    taken = connection.scalar(sa.select(column).where(column.in_([row["id"] for row in batch])).limit(1))
    if taken is not None:
        raise ConfigError(f"{taken} is there already. Delete its project first, or import into another server. Nothing was written.")


def _numbers(table: sa.Table, row: _Values) -> dict[str, sa.Table]:
    """The columns of a row that hold a number, and the table whose row they number."""
    if is_cursor(table):
        numbered = numbered_table_or_none(row["id"])
        if numbered is None:
            raise _wrong(table, f"{row['id'][:100]} is no id of this version")
        return {"seq": numbered}
    own = own_number(table)
    return number_references(table) | ({} if own is None else {own: table})


def _tables(archive: ArchiveReader) -> Iterator[tuple[TableRows, sa.Table]]:
    yield from zip(archive.manifest.tables, EXPORTED, strict=True)


def _batches(archive: ArchiveReader, table: sa.Table, described: TableRows) -> Iterator[list[_Values]]:
    size = batch_rows(table)
    for member in described.members:
        batch: list[_Values] = []
        for row in _rows_of(archive, table, member):
            batch.append(row)
            if len(batch) == size:
                yield batch
                batch = []
        if batch:
            yield batch


def _rows_of(archive: ArchiveReader, table: sa.Table, member: Member) -> Iterator[_Values]:
    names, decode = [column.name for column in table.columns], row_decoder(table).decode
    for line in archive.rows(member):
        try:
            yield dict(zip(names, decode(line), strict=True))
        except msgspec.MsgspecError as exc:
            raise _wrong(table, str(exc)) from exc


def _wrong(table: sa.Table, reason: str) -> ConfigError:
    return ConfigError(f"The archive's rows of {table.name} are wrong: {reason}. Nothing was written.")


# ---- bytes of files


def _reserve(connection: sa.Connection, keys: list[str], now: int) -> None:
    """Say that bytes are about to be written, so that they are deleted when no row has claimed them in time."""
    if keys:
        connection.execute(sa.insert(unneeded_blobs), [{"blob_key": key, "since": now + _IMPORT_SECONDS_MAX} for key in keys])


async def _import_blob(blobs: BlobStore, archive: ArchiveReader, blob: Blob, key: str) -> None:
    async def pieces() -> AsyncGenerator[bytes]:
        for piece in archive.pieces(blob.member):
            yield piece

    try:
        written = await blobs.write(key, pieces(), bytes_max=blob.member.size_bytes)
    except BlobTooLarge:
        written = None
    if written is None or written.sha256 != blob.member.sha256:
        raise ConfigError("The archive was changed while it was read. Nothing was written.")


async def _give_up(rows: WritesRows, blobs: BlobStore, keys: list[str]) -> None:
    """Delete what no row has claimed; what cannot be deleted now is left to the server's sweeps."""
    with contextlib.suppress(BackendError, ConfigError):
        with rows.writing() as connection:
            reserved = unneeded_blobs.c.blob_key
            unclaimed = [key for some in _some(keys) for key in connection.scalars(sa.select(reserved).where(reserved.in_(some)))]
        for key in unclaimed:
            await blobs.delete(key)
        with rows.writing() as connection:
            for some in _some(unclaimed):
                connection.execute(sa.delete(unneeded_blobs).where(reserved.in_(some)))


def _some(keys: list[str]) -> Iterator[list[str]]:
    for start in range(0, len(keys), 500):
        yield keys[start : start + 500]


# ---- rows


def _import_rows(
    rows: WritesRows, connection: sa.Connection, archive: ArchiveReader, project_id: str, now: int, keys: Mapping[str, str]
) -> None:
    shifts = {
        described.name: rows.reserve_numbers(connection, table, (described.last_seq or 0) - described.first_seq + 1) - described.first_seq
        for described, table in _tables(archive)
        if described.first_seq is not None
    }
    target = _Target(project_id, now, shifts, keys)
    for described, table in _tables(archive):
        for batch in _batches(archive, table, described):
            moved = [{name: rows.holdable(value) for name, value in _moved(target, table, row).items()} for row in batch]
            _require_parents(connection, target, table, moved)
            connection.execute(sa.insert(table), moved)
            if table in TABLES_WITH_BLOBS:
                _claim(connection, [row["blob_key"] for row in moved])


def _moved(target: _Target, table: sa.Table, row: _Values) -> _Values:
    """A row as it is in its new place."""
    for column, numbered in _numbers(table, row).items():
        row[column] += target.shifts[numbered.name]
    if "project_id" in row:
        row["project_id"] = target.project_id
    if "blob_key" in row:
        row["blob_key"] = target.keys[row["blob_key"]]
    if "lease_owner" in row:  # who worked on it does not work here
        row |= {"lease_owner": None, "lease_until": 0.0}
    if "revision" in row:
        # Servers may remember a store that had this id; no revision that they know is as high.
        row["revision"] = max(row["revision"], target.now * 1000)
    return row


def _require_parents(connection: sa.Connection, target: _Target, table: sa.Table, batch: list[_Values]) -> None:
    """Raise ConfigError when a row hangs on an object that is not the project's own."""
    for column, parent in parents(table).items():
        wanted = {row[column] for row in batch}
        own = sa.select(parent.c.id).where(parent.c.id.in_(wanted), parent.c.project_id == target.project_id)
        missing = wanted - set(connection.scalars(own))
        if missing:
            raise _wrong(table, f"there is no {min(missing)[:100]}")


def _claim(connection: sa.Connection, keys: list[str]) -> None:
    claimed = connection.execute(sa.delete(unneeded_blobs).where(unneeded_blobs.c.blob_key.in_(keys), unneeded_blobs.c.since > 0))
    if claimed.rowcount != len(keys):
        raise ConfigError("The import took so long that the bytes of its files were deleted again. Nothing was written.")

"""Exports a project to one file, beside a running server; `archive_import.py` brings it into another one.

The rows are those of one moment. The bytes of files are read after them, so that the database is not held for long; when a file has been
deleted meanwhile, the export fails and is done again.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import msgspec
import sqlalchemy as sa

from mini_assistant.db.migrations import HEAD
from mini_assistant.errors import BlobMissing, ConfigError
from mini_assistant.files.blobs.base import BlobStore
from mini_assistant.projects.archive_file import ROWS_BYTES, ArchiveWriter, Blob, Manifest, Member, TableRows
from mini_assistant.projects.archived_rows import (
    EXPORTED,
    TABLES_WITH_BLOBS,
    batch_rows,
    is_cursor,
    numbered_table_or_none,
    own_number,
    select_rows,
)

Tell = Callable[[str], None]
"""Takes a line about the progress."""

_encode = msgspec.json.Encoder().encode


@dataclass
class _Numbers:
    """Between which numbers the rows of a table lie."""

    first: int | None = None
    last: int | None = None

    def add(self, number: int) -> None:
        self.first = number if self.first is None else min(self.first, number)
        self.last = number if self.last is None else max(self.last, number)


@dataclass
class _Rows:
    """The rows of one moment, as they are being written. blobs: key and size of the bytes that rows name."""

    numbers: dict[str, _Numbers] = field(default_factory=lambda: {table.name: _Numbers() for table in EXPORTED})
    counts: dict[str, int] = field(default_factory=lambda: {table.name: 0 for table in EXPORTED})
    members: dict[str, list[Member]] = field(default_factory=lambda: {table.name: [] for table in EXPORTED})
    blobs: list[tuple[str, int]] = field(default_factory=list[tuple[str, int]])

    def tables(self) -> list[TableRows]:
        """What the manifest says of them."""
        return [
            TableRows(
                str(table.name),
                [str(column.name) for column in table.columns],
                self.counts[table.name],
                self.numbers[table.name].first,
                self.numbers[table.name].last,
                self.members[table.name],
            )
            for table in EXPORTED
        ]


class ReadsRows(Protocol):
    """One moment of a database; see `db/engines.py`."""

    def reading(self) -> Any:
        """A context whose connection reads. Raises StoreUnavailable."""
        ...


async def export_project(rows: ReadsRows, blobs: BlobStore, project_id: str, path: Path, *, now: int, tell: Tell) -> None:
    """Write an archive of a project to a file that is not there yet. now: unix seconds.

    Raises ConfigError for a project without anything and for a file that is there; StoreUnavailable, BlobMissing and OSError: no file
    is left then.
    """
    with ArchiveWriter(path) as archive:
        with rows.reading() as connection:
            written = _export_rows(connection, archive, project_id)
        if not any(written.counts.values()):
            raise ConfigError(f"There is nothing of a project '{project_id}'.")
        members = [await _export_blob(blobs, archive, number, *blob) for number, blob in enumerate(written.blobs)]
        archive.finish(
            Manifest(
                format="mini-assistant project",
                version=1,
                revision=HEAD,
                project=project_id,
                created_at=now,
                tables=written.tables(),
                blobs=members,
            )
        )
    for name, count in written.counts.items():
        tell(f"{name}: {count} rows")
    tell(f"{len(members)} blobs, {sum(blob.member.size_bytes for blob in members)} bytes")


def _export_rows(connection: sa.Connection, archive: ArchiveWriter, project_id: str) -> _Rows:
    written = _Rows()
    for table in EXPORTED:
        lines = bytearray()
        reading = connection.execution_options(yield_per=batch_rows(table)).execute(select_rows(table), {"project_id": project_id})
        for row in reading.mappings():
            if not _note(written, table, row):
                continue
            lines += _encode(list(row.values())) + b"\n"
            if len(lines) >= ROWS_BYTES:
                _add_member(written, archive, table, lines)
                lines = bytearray()
        if lines:
            _add_member(written, archive, table, lines)
    return written


def _note(written: _Rows, table: sa.Table, row: Any) -> bool:
    """Note what the manifest says of a row; whether it is exported at all."""
    if is_cursor(table):
        place = numbered_table_or_none(row["id"])
        if place is None:
            return False
        written.numbers[place.name].add(row["seq"])
    elif own_number(table) is not None:
        written.numbers[table.name].add(row["seq"])
    if table in TABLES_WITH_BLOBS:
        written.blobs.append((row["blob_key"], row["size_bytes"]))
    written.counts[table.name] += 1
    return True


def _add_member(written: _Rows, archive: ArchiveWriter, table: sa.Table, lines: bytearray) -> None:
    members = written.members[table.name]
    members.append(archive.add(f"rows/{table.name}/{len(members):06}.jsonl", bytes(lines)))


async def _export_blob(blobs: BlobStore, archive: ArchiveWriter, number: int, key: str, size_bytes: int) -> Blob:
    writing = archive.begin(f"blobs/{number:08}", size_bytes)
    try:
        async for piece in blobs.read(key):
            writing.add(piece)
    except BlobMissing as exc:
        raise BlobMissing(
            f"{exc.message} Its file may have been deleted while this was written: export again. If it is there then, delete it first."
        ) from exc
    return Blob(key, writing.end())

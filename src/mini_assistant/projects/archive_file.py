"""The file that a project is exported to: a tar with members of rows and of bytes, and a manifest at its end that describes them all.

Whatever tar can have beside plain files is refused, and names of members are compared and never used as paths. The manifest comes last
because it has the hash of everything before it, so an archive that was cut off anywhere has none.
"""

import hashlib
import os
import re
import tarfile
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Annotated, BinaryIO, Literal

import msgspec

from mini_assistant.errors import ConfigError

ROWS_BYTES = 4 * 1024 * 1024
"""A member of rows is closed when it has become so large."""
_ROWS_BYTES_MAX = 256 * 1024 * 1024
_MANIFEST_BYTES_MAX = 512 * 1024 * 1024
_PIECE_BYTES = 256 * 1024
_MANIFEST = "manifest.json"
_NAME = re.compile(r"rows/[a-z_]{1,60}/\d{6,12}\.jsonl|blobs/\d{8,12}|manifest\.json")
_NUMBER_MAX = 2**53

_Number = Annotated[int, msgspec.Meta(ge=0, le=_NUMBER_MAX)]


class Member(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A member of the archive. sha256: lower-case hex of its bytes."""

    name: str
    size_bytes: _Number
    sha256: str


class Blob(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The bytes of a file, or of a part of an upload. key: what its row names them by."""

    key: str
    member: Member


class TableRows(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The rows of a table. first_seq, last_seq: all its numbers lie between them; None where rows have none, or there are none."""

    name: str
    columns: list[str]
    count: _Number
    first_seq: _Number | None
    last_seq: _Number | None
    members: list[Member]


class Manifest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What is in an archive. revision: the shape of the rows. created_at: unix seconds."""

    format: Literal["mini-assistant project"]
    version: Literal[1]
    revision: str
    project: str
    created_at: int
    tables: list[TableRows]
    blobs: list[Blob]

    def members(self) -> Iterator[Member]:
        """All that is described, in the order of the file."""
        for table in self.tables:
            yield from table.members
        for blob in self.blobs:
            yield blob.member


class ArchiveWriter:
    """An archive while it is written: beside its place, and moved there when it is whole and on disk. Raises OSError."""

    def __init__(self, path: Path) -> None:
        """Raises ConfigError when there is such a file already."""
        if path.exists():
            raise ConfigError(f"{path} is there already. Name a new file.")
        self._path = path
        self._unfinished = path.with_name(f"{path.name}.part")
        # For the owner alone: it has all that the project's users have said.
        self._file = os.fdopen(os.open(self._unfinished, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb")

    def __enter__(self) -> "ArchiveWriter":
        return self

    def __exit__(self, _type: type[BaseException] | None, _exc: BaseException | None, _traceback: TracebackType | None) -> None:
        self._file.close()
        self._unfinished.unlink(missing_ok=True)

    def add(self, name: str, content: bytes) -> Member:
        """Add a member that is in memory."""
        writing = self.begin(name, len(content))
        writing.add(content)
        return writing.end()

    def begin(self, name: str, size_bytes: int) -> "MemberWriter":
        """Begin a member of this size; it is ended before the next one begins."""
        header = tarfile.TarInfo(name)
        header.size, header.mode = size_bytes, 0o600
        self._file.write(header.tobuf(tarfile.GNU_FORMAT))
        return MemberWriter(self._file, name, size_bytes)

    def finish(self, manifest: Manifest) -> None:
        """Write the manifest, and put the archive into its place."""
        self.add(_MANIFEST, msgspec.json.encode(manifest))
        self._file.write(bytes(2 * tarfile.BLOCKSIZE))
        self._file.flush()
        os.fsync(self._file.fileno())
        self._unfinished.rename(self._path)


class MemberWriter:
    """A member while it is written."""

    def __init__(self, file: BinaryIO, name: str, size_bytes: int) -> None:
        self._file = file
        self._name = name
        self._size_bytes = size_bytes
        self._written_bytes = 0
        self._hash = hashlib.sha256()

    def add(self, piece: bytes) -> None:
        """Add bytes. Raises ConfigError when they are more than were announced."""
        self._written_bytes += len(piece)
        self._check(self._written_bytes <= self._size_bytes)
        self._hash.update(piece)
        self._file.write(piece)

    def end(self) -> Member:
        """Fill the last block. Raises ConfigError when there are fewer bytes than were announced."""
        self._check(self._written_bytes == self._size_bytes)
        self._file.write(bytes(-self._size_bytes % tarfile.BLOCKSIZE))
        return Member(self._name, self._size_bytes, self._hash.hexdigest())

    def _check(self, is_as_announced: bool) -> None:
        if not is_as_announced:
            raise ConfigError(f"{self._name} has not the {self._size_bytes} bytes that its row says: the file store is damaged.")


class ArchiveReader:
    """An archive whose members are the ones that its manifest describes. Their bytes are checked by `check`."""

    def __init__(self, path: Path) -> None:
        """Raises ConfigError for what is no whole archive, and OSError."""
        self._path = path
        self._file = path.open("rb")
        try:
            self._places = self._scan(os.fstat(self._file.fileno()).st_size)
            self.manifest = self._read_manifest()
        except BaseException:
            self._file.close()
            raise

    def __enter__(self) -> "ArchiveReader":
        return self

    def __exit__(self, _type: type[BaseException] | None, _exc: BaseException | None, _traceback: TracebackType | None) -> None:
        self._file.close()

    def _scan(self, file_bytes: int) -> dict[str, tuple[int, int]]:
        """Where each member begins, and its size."""
        places: dict[str, tuple[int, int]] = {}
        place = 0
        while any(block := self._block_at(place)):
            header = self._header(block)
            place += tarfile.BLOCKSIZE
            if header.type != tarfile.REGTYPE or not _NAME.fullmatch(header.name) or header.name in places or _MANIFEST in places:
                raise self._refused(f"it has a member that does not belong into one, {header.name[:100]!r}")
            if not 0 <= header.size <= file_bytes - place:
                raise self._refused(f"it ends within {header.name}")
            places[header.name] = (place, header.size)
            place += header.size + -header.size % tarfile.BLOCKSIZE
        return places

    def _block_at(self, place: int) -> bytes:
        self._file.seek(place)
        block = self._file.read(tarfile.BLOCKSIZE)
        if len(block) < tarfile.BLOCKSIZE:
            raise self._refused("it is not whole")
        return block

    def _header(self, block: bytes) -> tarfile.TarInfo:
        try:
            return tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
        except tarfile.HeaderError as exc:
            raise self._refused("it is no tar, or it is damaged") from exc

    def _read_manifest(self) -> Manifest:
        if _MANIFEST not in self._places:
            raise self._refused("it has no manifest")
        try:
            manifest = msgspec.json.decode(self._read(_MANIFEST, _MANIFEST_BYTES_MAX), type=Manifest)
        except msgspec.MsgspecError as exc:
            raise self._refused(f"its manifest is wrong: {exc}") from exc
        described = {member.name: member.size_bytes for member in manifest.members()}
        found = {name: size for name, (_, size) in self._places.items() if name != _MANIFEST}
        if described != found or len(described) != sum(1 for _ in manifest.members()):
            raise self._refused("its manifest does not describe its members")
        return manifest

    def check(self, member: Member) -> None:
        """Raise ConfigError when the bytes of a member are not the ones that were written."""
        written = hashlib.sha256()
        for piece in self.pieces(member):
            written.update(piece)
        if written.hexdigest() != member.sha256:
            raise self._refused(f"{member.name} is damaged: its SHA-256 is not the one of the manifest")

    def rows(self, member: Member) -> list[bytes]:
        """The lines of a member of rows."""
        content = self._read(member.name, _ROWS_BYTES_MAX)
        if hashlib.sha256(content).hexdigest() != member.sha256:
            raise self._refused(f"{member.name} is damaged: its SHA-256 is not the one of the manifest")
        return [line for line in content.split(b"\n") if line]

    def pieces(self, member: Member) -> Iterator[bytes]:
        """The bytes of a member, a few at a time."""
        place, left = self._places[member.name]
        while left > 0:
            self._file.seek(place)
            piece = self._file.read(min(left, _PIECE_BYTES))
            if not piece:
                raise self._refused("it has become shorter")
            place, left = place + len(piece), left - len(piece)
            yield piece

    def _read(self, name: str, bytes_max: int) -> bytes:
        place, size_bytes = self._places[name]
        if size_bytes > bytes_max:
            raise self._refused(f"{name} is larger than {bytes_max} bytes")
        self._file.seek(place)
        return self._file.read(size_bytes)

    def _refused(self, reason: str) -> ConfigError:
        return ConfigError(f"{self._path} is no archive of a project that could be imported: {reason}. Nothing was written.")

"""The parts of DOCX and PPTX files: XML in a zip archive, read under limits, as events, and never as a tree.

Nothing is written to disk, the sizes that an archive declares are not trusted, and XML with a DOCTYPE, which no Office program writes,
is refused before an entity of it can be defined.
"""

import posixpath
import zipfile
import zlib
from typing import Protocol
from xml.parsers import expat

from mini_assistant.vector_stores.parsers.base import ParseFailed
from mini_assistant.vector_stores.parsers.document_text import invalid_file, too_large

_ENTRIES_MAX = 20_000
_XML_BYTES_MAX = 512 * 1024 * 1024
_RATIO_MAX = 500
_RATIO_FREE_BYTES = 16 * 1024 * 1024
_READ_BYTES = 64 * 1024
_IS_ENCRYPTED = 0x1
_COMPRESSIONS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
_OLE_MAGIC = b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1"
_RELATIONSHIP = "http://schemas.openxmlformats.org/package/2006/relationships Relationship"


class XmlEvents(Protocol):
    """What a part is read by. Names are `namespace local-name`; attributes without a namespace have only their local name."""

    def start(self, name: str, attributes: dict[str, str]) -> None: ...
    def end(self, name: str) -> None: ...
    def text(self, data: str) -> None: ...


class Relationship:
    """A part that another one points to. kind: the last word of its type, such as `slide`."""

    __slots__ = ("id", "kind", "target")

    def __init__(self, id: str, kind: str, target: str) -> None:
        self.id = id
        self.kind = kind
        self.target = target


class OfficeParts:
    """An Office file. Raises ParseFailed when it is none, is protected, or has too much in it."""

    def __init__(self, path: str, program: str) -> None:
        self._refusal = f"It is not a valid {program} document."
        self._bytes_left = _XML_BYTES_MAX
        with open(path, "rb") as file:
            if file.read(len(_OLE_MAGIC)) == _OLE_MAGIC:
                raise invalid_file("It is protected by a password, or saved in an older format.")
        try:
            self._archive = zipfile.ZipFile(path)
        except (zipfile.BadZipFile, RuntimeError, ValueError, OSError, EOFError) as exc:
            raise self.refused() from exc
        self._entries = {entry.filename: entry for entry in self._archive.infolist()}
        if len(self._archive.infolist()) > _ENTRIES_MAX:
            raise too_large()

    def refused(self) -> ParseFailed:
        """The file is not what its name says."""
        return invalid_file(self._refusal)

    def main_part(self) -> str:
        """The path of the document itself. Raises ParseFailed."""
        for relationship in self.relationships(""):
            if relationship.kind == "officeDocument":
                return relationship.target
        raise self.refused()

    def relationships(self, part: str) -> list[Relationship]:
        """The parts that a part points to, in the order of the file; those outside of it are left out. Empty for a part without any."""
        folder, name = posixpath.split(part)
        path = posixpath.join(folder, "_rels", f"{name}.rels")
        if path not in self._entries:
            return []
        reader = _RelationshipReader(folder)
        self.read(path, reader)
        return reader.found

    def has(self, part: str) -> bool:
        """Whether there is such a part."""
        return part in self._entries

    def read(self, part: str, events: XmlEvents) -> None:
        """Tell the reader of a part what is in it. Raises ParseFailed."""
        entry = self._entries.get(part)
        if entry is None:
            raise self.refused()
        self._check(entry)
        parser = expat.ParserCreate(namespace_separator=" ")
        parser.buffer_text = True
        parser.StartDoctypeDeclHandler = self._refuse_doctype
        parser.StartElementHandler = events.start
        parser.EndElementHandler = events.end
        parser.CharacterDataHandler = events.text
        try:
            with self._archive.open(entry) as stream:
                while block := stream.read(_READ_BYTES):
                    self._bytes_left -= len(block)
                    if self._bytes_left < 0:
                        raise too_large()
                    parser.Parse(block, False)
            parser.Parse(b"", True)
        except (expat.ExpatError, zipfile.BadZipFile, zlib.error, RuntimeError, ValueError, OSError, EOFError) as exc:
            raise self.refused() from exc

    def _check(self, entry: zipfile.ZipInfo) -> None:
        if entry.flag_bits & _IS_ENCRYPTED:
            raise invalid_file("It is protected by a password.")
        if entry.compress_type not in _COMPRESSIONS:
            raise self.refused()
        is_bomb = entry.file_size > _RATIO_FREE_BYTES and entry.file_size > _RATIO_MAX * max(1, entry.compress_size)
        if is_bomb or entry.file_size > self._bytes_left:
            raise too_large()

    def _refuse_doctype(self, *_declaration: object) -> None:
        raise self.refused()


class _RelationshipReader:
    def __init__(self, folder: str) -> None:
        self._folder = folder
        self.found: list[Relationship] = []

    def start(self, name: str, attributes: dict[str, str]) -> None:
        if name != _RELATIONSHIP or attributes.get("TargetMode") == "External":
            return
        target = posixpath.normpath(posixpath.join("/", self._folder, attributes.get("Target", ""))).lstrip("/")
        kind = attributes.get("Type", "").rpartition("/")[2]
        self.found.append(Relationship(attributes.get("Id", ""), kind, target))

    def end(self, name: str) -> None:
        pass

    def text(self, data: str) -> None:
        pass

"""Which files of a folder are meant, and what is said of them in the vector store."""

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import msgspec

from mini_assistant.errors import ConfigError
from mini_assistant.terminal.printable import one_line
from mini_assistant.vector_stores.schema import SUPPORTED_EXTENSIONS

PATH_ATTRIBUTE = "path"
"""The attribute that says where in the folder a file is from. By it a file is known again."""

_VALUE_CHARACTERS_MAX = 512
_ATTRIBUTES_MAX = 16

AttributeValue = str | bool | int | float


class FolderFile(NamedTuple):
    """A file of the folder. path: relative to the folder, with `/`."""

    file: Path
    path: str
    size_bytes: int


class FoundFiles(NamedTuple):
    """What there is. leading_out: links to places outside of the folder, which are left alone."""

    files: list[FolderFile]
    leading_out: list[str]


def find_files(folder: Path, patterns: Sequence[str]) -> FoundFiles:
    """The files that match one of the patterns; without patterns all that can be searched, but no hidden ones. In the order of paths.

    Raises ConfigError for what is no folder, and for a pattern that is none.
    """
    if not folder.is_dir():
        raise ConfigError(f"{one_line(str(folder))} is no folder.")
    root = folder.resolve()
    found: dict[str, FolderFile] = {}
    leading_out: list[str] = []
    for file in _matching(folder, patterns):
        path = file.relative_to(folder).as_posix()
        if path in found or not file.is_file():
            continue
        if not file.resolve().is_relative_to(root):
            leading_out.append(path)
        elif patterns or _is_searchable(file, path):
            found[path] = FolderFile(file, path, file.stat().st_size)
    return FoundFiles([found[path] for path in sorted(found)], sorted(set(leading_out)))


def _matching(folder: Path, patterns: Sequence[str]) -> list[Path]:
    for pattern in patterns:
        if not pattern or Path(pattern).is_absolute() or ".." in Path(pattern).parts:
            raise ConfigError(f"--glob takes a pattern inside of the folder, such as '**/*.pdf', but was given '{one_line(pattern)}'.")
    try:
        return [file for pattern in patterns or ["**/*"] for file in folder.glob(pattern)]
    except ValueError as exc:
        raise ConfigError(f"--glob takes a pattern such as '**/*.pdf': {one_line(str(exc))}") from exc


def _is_searchable(file: Path, path: str) -> bool:
    is_hidden = any(part.startswith(".") for part in path.split("/"))
    return file.suffix.lower() in SUPPORTED_EXTENSIONS and not is_hidden


def sha256_of(file: Path) -> str:
    """The hash of a file's content, in hexadecimal digits."""
    with file.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()


def parsed_attributes(pairs: Sequence[str]) -> dict[str, AttributeValue]:
    """The attributes that `KEY=VALUE` stand for. Raises ConfigError."""
    attributes: dict[str, AttributeValue] = {}
    for pair in pairs:
        key, sign, value = pair.partition("=")
        if not sign or not key or key == PATH_ATTRIBUTE:
            raise ConfigError(f"--attributes takes KEY=VALUE, and no key '{PATH_ATTRIBUTE}', but was given '{one_line(pair)}'.")
        attributes[key] = _value_of(value)
    if len(attributes) >= _ATTRIBUTES_MAX:
        raise ConfigError(f"--attributes takes at most {_ATTRIBUTES_MAX - 1}: a file has {_ATTRIBUTES_MAX}, and '{PATH_ATTRIBUTE}' is one.")
    return attributes


def _value_of(text: str) -> AttributeValue:
    """A number, true, false or a quoted text as in JSON; any other text as it is."""
    try:
        return msgspec.json.decode(text, type=AttributeValue)
    except msgspec.MsgspecError:
        return text


def attributes_of(file: FolderFile, given: dict[str, AttributeValue]) -> dict[str, AttributeValue]:
    """What the vector store says of a file."""
    return {PATH_ATTRIBUTE: stored_path(file.path), **given}


def stored_path(path: str) -> str:
    """The path as the attribute holds it: of a long one the end, which says most. What is no text becomes question marks."""
    return path.encode("utf-8", "replace").decode("utf-8")[-_VALUE_CHARACTERS_MAX:]

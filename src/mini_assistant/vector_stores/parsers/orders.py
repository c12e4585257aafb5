"""What the server and the program that parses tell each other: frames of msgpack over a pipe, each behind its length."""

import struct
from typing import Literal

import msgspec

from mini_assistant.vector_stores.parsers.base import ParsedDocument
from mini_assistant.vector_stores.parsers.file_types import Kind

FRAME_HEADER = struct.Struct(">Q")
"""The length of the frame that follows, in bytes."""

EXIT_BY_SIGNAL = 128
"""The program's exit status is this and the number of the signal when the process of a file was ended by one, as shells have it."""


class ParseLimits(msgspec.Struct, frozen=True):
    """Limits of one file. memory_bytes_max: beside what the program has loaded. cpu_seconds_max: whole seconds."""

    memory_bytes_max: int
    cpu_seconds_max: int
    characters_max: int
    tokens_max: int


class ParseOrder(msgspec.Struct, frozen=True):
    """A file to parse. path: as the file system has it, which need not be UTF-8."""

    path: bytes
    kind: Kind
    limits: ParseLimits


class Parsed(msgspec.Struct, frozen=True, tag="parsed"):
    """The text of the file."""

    document: ParsedDocument


class Refused(msgspec.Struct, frozen=True, tag="refused"):
    """What `ParseFailed` says."""

    code: Literal["unsupported_file", "invalid_file"]
    message: str


ParseAnswer = Parsed | Refused

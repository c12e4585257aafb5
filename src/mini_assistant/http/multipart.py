"""Bodies of `multipart/form-data`, read while they arrive: one file that streams through, and small fields around it.

Called by the typed routes. Nothing but the fields is kept in memory, and they are bounded. The order of the parts is free; names with
brackets (`expires_after[seconds]`) are members of an object. Source: behaviour §1.1, §5.
"""

import functools
import re
from collections import deque
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from typing import Any, TypeVar, cast
from urllib.parse import unquote, unquote_to_bytes

import msgspec
from msgspec import inspect
from python_multipart import MultipartParser
from python_multipart.exceptions import FormParserError

from mini_assistant.errors import InvalidRequest
from mini_assistant.http.validation import decode_body

# Everything of a body but the bytes of its file: fields, headers of parts, and what stands before and behind them.
FORM_BYTES_MAX = 256 * 1024
_HEADER_BYTES_MAX = 8 * 1024

_PARAMETER = re.compile(r';\s*([^\s=;]+)\s*=\s*(?:"((?:[^"\\]|\\.)*)"|([^;]*))')
_NESTED_NAME = re.compile(r"([^\[\]]+)\[([^\[\]]+)\]")
_WHOLE_NUMBER = re.compile(r"-?[0-9]{1,100}")

Fields = TypeVar("Fields", bound=msgspec.Struct)


class MultipartForm:
    """The body of one request.

    headers: of the request. file_field: name of the part that is the file. receive: gives the next bytes, None after the last ones.
    """

    def __init__(self, headers: Mapping[bytes, bytes], file_field: str, receive: Callable[[], Awaitable[bytes | None]]) -> None:
        """Raises InvalidRequest when the content type is not that of a form."""
        self.fields: dict[str, str] = {}
        # As the client wrote it, with whatever path; None before `find_file` and when the client named none.
        self.filename: str | None = None
        self._file_field = file_field
        self._receive = receive
        self._declared = headers.get(b"content-length", b"")
        self._parts = _Parts(_boundary(headers.get(b"content-type", b"")), file_field)
        self._other_bytes = 0

    async def find_file(self) -> None:
        """Read up to the first byte of the file; `fields` has what came before. Raises InvalidRequest when there is no file."""
        while not self._parts.is_file_found and await self._read_on():
            pass
        if not self._parts.is_file_found:
            raise InvalidRequest(
                f"Missing required parameter: '{self._file_field}'.", param=self._file_field, code="missing_required_parameter"
            )
        self.fields, self.filename = self._parts.fields, self._parts.filename

    def is_certainly_above(self, file_bytes: int) -> bool:
        """Whether the client has said that its file is larger than so many bytes."""
        return self._declared.isdigit() and int(self._declared[:20]) > file_bytes + FORM_BYTES_MAX

    async def file_pieces(self) -> AsyncGenerator[bytes]:
        """The bytes of the file, after `find_file`. Raises InvalidRequest when the body is malformed or ends too early."""
        pieces = self._parts.pieces
        while True:
            while pieces:
                yield pieces.popleft()
            if self._parts.is_file_over:
                return
            await self._read_on()

    async def read_fields(self, wanted: type[Fields]) -> Fields:
        """Read what follows the file, and give all fields. Raises InvalidRequest for the first one that does not fit."""
        while await self._read_on():
            pass
        return decode_fields(wanted, self._parts.fields)

    async def _read_on(self) -> bool:
        """Take the next bytes of the body; False after the last ones."""
        data = await self._receive()
        if data is None:
            if not self._parts.is_over:
                raise _malformed("It ends before its last boundary")
            return False
        seen_bytes = self._parts.file_bytes
        self._parts.parse(data)
        self._other_bytes += len(data) - (self._parts.file_bytes - seen_bytes)
        if self._other_bytes > FORM_BYTES_MAX:
            raise _malformed(f"Its fields are larger than {FORM_BYTES_MAX} bytes")
        return True


class _Parts:
    """What has been parsed so far. The parser calls back for every step; nothing in here waits."""

    def __init__(self, boundary: bytes, file_field: str) -> None:
        self.fields: dict[str, str] = {}
        self.filename: str | None = None
        self.pieces: deque[bytes] = deque()
        self.file_bytes = 0
        self.is_file_found = self.is_file_over = self.is_over = False
        self._file_field = file_field
        self._header_name = self._header_value = self._disposition = b""
        self._value: list[bytes] = []
        self._name = ""
        self._is_in_file = False
        callbacks: Any = {
            "on_part_begin": self._begin_part,
            "on_header_field": self._add_to_header_name,
            "on_header_value": self._add_to_header_value,
            "on_header_end": self._end_header,
            "on_headers_finished": self._end_headers,
            "on_part_data": self._add_data,
            "on_part_end": self._end_part,
            "on_end": self._end,
        }
        self._parser = MultipartParser(boundary, callbacks, max_header_size=_HEADER_BYTES_MAX)

    def parse(self, data: bytes) -> None:
        try:
            self._parser.write(data)
        except FormParserError as exc:
            raise _malformed(str(exc).rstrip(".")) from None

    def _begin_part(self) -> None:
        self._disposition, self._value = b"", []

    def _add_to_header_name(self, data: bytes, start: int, end: int) -> None:
        self._header_name += data[start:end]

    def _add_to_header_value(self, data: bytes, start: int, end: int) -> None:
        self._header_value += data[start:end]

    def _end_header(self) -> None:
        if self._header_name.lower() == b"content-disposition":
            self._disposition = self._header_value
        self._header_name = self._header_value = b""

    def _end_headers(self) -> None:
        parameters = _parameters(self._disposition)
        if "name" not in parameters:
            raise _malformed("A part has no name")
        self._name = unquote(parameters["name"])
        self._is_in_file = self._name == self._file_field
        if self._is_in_file:
            if self.is_file_found:
                raise InvalidRequest(f"Only one '{self._file_field}' can be sent at a time.", param=self._file_field, code="invalid_value")
            self.is_file_found = True
            self.filename = parameters.get("filename")

    def _add_data(self, data: bytes, start: int, end: int) -> None:
        piece = data[start:end]
        if self._is_in_file:
            self.file_bytes += len(piece)
            self.pieces.append(piece)
        else:
            self._value.append(piece)

    def _end_part(self) -> None:
        if self._is_in_file:
            self.is_file_over, self._is_in_file = True, False
            return
        try:
            self.fields[self._name] = b"".join(self._value).decode()
        except UnicodeDecodeError:
            raise _malformed(f"The field '{self._name[:100]}' is not UTF-8") from None

    def _end(self) -> None:
        self.is_over = True


def decode_fields(wanted: type[Fields], fields: dict[str, str]) -> Fields:
    """The fields of a form as a struct. Raises InvalidRequest that names the first fault, in the words of JSON bodies."""
    members: dict[str, Any] = {}
    for name, text in fields.items():
        nested = _NESTED_NAME.fullmatch(name)
        if nested is None:
            members[name] = text
        else:
            inner = members.setdefault(nested[1], {})
            if isinstance(inner, dict):
                inner[nested[2]] = text
    return decode_body(_decoder(wanted), msgspec.json.encode(_with_numbers(inspect.type_info(wanted), members)))


@functools.cache
def _decoder(wanted: type[Fields]) -> msgspec.json.Decoder[Fields]:
    return msgspec.json.Decoder(wanted)


def _with_numbers(wanted: inspect.Type, given: Any) -> Any:
    """Text as a whole number where one is wanted, for a form knows nothing but text."""
    match wanted:
        case inspect.UnionType():
            plain = [item for item in wanted.types if not isinstance(item, inspect.NoneType)]
            return _with_numbers(plain[0], given)
        case inspect.Metadata():
            return _with_numbers(wanted.type, given)
        case inspect.StructType() if isinstance(given, dict):
            types = {field.encode_name: field.type for field in wanted.fields}
            members = cast("dict[str, Any]", given)
            return {name: _with_numbers(types[name], member) if name in types else member for name, member in members.items()}
        case inspect.IntType() if isinstance(given, str) and _WHOLE_NUMBER.fullmatch(given):
            return int(given)
        case _:
            return given


def _boundary(content_type: bytes) -> bytes:
    kind = content_type.partition(b";")[0].strip().lower()
    if kind != b"multipart/form-data":
        shown = kind.decode("latin-1")[:100]
        raise InvalidRequest(f"Invalid Content-Type header ({shown}), expected multipart/form-data.", code="invalid_content_type")
    boundary = _parameters(content_type).get("boundary", "").encode("latin-1", "replace")
    if not 0 < len(boundary) <= 200:
        raise _malformed("Its Content-Type names no boundary of 1 to 200 characters")
    return boundary


def _parameters(header: bytes) -> dict[str, str]:
    """The parameters of a header; `filename` is the one of RFC 5987 (`filename*`) where there are both."""
    try:
        text = header.decode()
    except UnicodeDecodeError:
        text = header.decode("latin-1")
    found: dict[str, str] = {}
    for name, quoted, plain in _PARAMETER.findall(text):
        found.setdefault(name.lower(), _unescaped(quoted) if quoted else plain.strip().strip('"'))
    extended = found.get("filename*")
    if extended is not None:
        charset, _, encoded = extended.partition("'")
        found["filename"] = _decoded(unquote_to_bytes(encoded.partition("'")[2]), charset)
    elif "filename" in found:
        found["filename"] = _without_percent(found["filename"])
    return found


def _unescaped(quoted: str) -> str:
    # Only these two: a path of Windows comes with its backslashes as they are.
    return re.sub(r'\\(["\\])', r"\1", quoted)


def _decoded(data: bytes, charset: str) -> str:
    return data.decode("latin-1" if charset.lower() == "iso-8859-1" else "utf-8", "replace")


def _without_percent(name: str) -> str:
    """Browsers and httpx write a quote or a line's end as %22, %0D, %0A and a percent sign as itself; some clients quote all of UTF-8.

    So a sequence stands for itself unless it is one of those three, or the whole name becomes more than ASCII through it.
    """
    if "%" not in name:
        return name
    try:
        whole = unquote(name, errors="strict")
    except UnicodeDecodeError:
        whole = name
    if name.isascii() and not whole.isascii():
        return whole
    return name.replace("%22", '"').replace("%0D", "\r").replace("%0A", "\n")


def _malformed(reason: str) -> InvalidRequest:
    return InvalidRequest(f"We could not parse the multipart body of your request. {reason}.", code="invalid_multipart")

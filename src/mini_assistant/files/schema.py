"""The wire shape of files. Source: openapi-assistants.json, CreateFileRequest and OpenAIFile; behaviour §2.6 and §5.

Field order is the order on the wire. Uploads share the purposes, the names and the expiry.
"""

import re
from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from mini_assistant.errors import InvalidRequest

PURPOSES = ("fine-tune", "assistants", "batch", "user_data", "vision", "evals")
# In the order of the literal message; a wrong one is answered by `check_purpose` and not in the words of other choices.
Purpose = Annotated[str, Meta(extra_json_schema={"enum": list(PURPOSES)})]
PURPOSES_NOT_DOWNLOADED = frozenset(("assistants", "user_data"))
"""What `strict_file_downloads` refuses."""

FILENAME_CHARACTERS_MAX = 512
_BATCH_EXPIRY_SECONDS = 30 * 86_400


class FileExpirationAfter(msgspec.Struct, forbid_unknown_fields=True):
    """When a file goes by itself."""

    anchor: Literal["created_at"]
    seconds: Annotated[int, Meta(ge=3600, le=2_592_000)]


class CreateFile(msgspec.Struct, forbid_unknown_fields=True):
    """The fields of the form of `POST /files`, beside the file itself."""

    purpose: Purpose
    expires_after: FileExpirationAfter | None = None


class FilePage(msgspec.Struct, frozen=True):
    """Query of the list of files, which has no `before`. purpose: only files of this one."""

    limit: Annotated[int, Meta(ge=1, le=10_000)] = 10_000
    order: Literal["asc", "desc"] = "desc"
    after: str | None = None
    purpose: str | None = None


class File(msgspec.Struct, kw_only=True):
    """The file object. `status` is deprecated and never waited for."""

    object: Literal["file"] = "file"
    id: str
    purpose: str
    filename: str
    bytes: int
    created_at: int
    expires_at: int | None
    status: Literal["uploaded", "processed", "error"] = "processed"
    status_details: str | None = None


class DeletedFile(msgspec.Struct):
    """What the deletion of a file answers."""

    id: str
    object: Literal["file"] = "file"
    deleted: bool = True


def check_purpose(purpose: str) -> None:
    """Raise InvalidRequest for a purpose that clients cannot give. Source: behaviour §1.4."""
    if purpose not in PURPOSES:
        raise InvalidRequest(f"'{purpose[:100]}' is not one of {list(PURPOSES)} - 'purpose'", param="purpose")


def plain_filename(name: str) -> str:
    """A client's name of a file without folders and control characters; `file` when nothing is left.

    Raises InvalidRequest when it is too long.
    """
    name = re.sub(r"[\x00-\x1f\x7f]", "", re.split(r"[/\\]", name)[-1])
    if len(name) > FILENAME_CHARACTERS_MAX:
        raise InvalidRequest(
            f"Invalid 'filename': string too long. Expected a string with maximum length {FILENAME_CHARACTERS_MAX}, "
            f"but got a string with length {len(name)} instead.",
            param="filename",
            code="string_above_max_length",
        )
    return "file" if name in ("", ".", "..") else name


def expiry_of(purpose: str, created_at: int, expires_after: FileExpirationAfter | None) -> int | None:
    """Unix time when a file expires; None for never. Files of the purpose `batch` always do."""
    if expires_after is not None:
        return created_at + expires_after.seconds
    return created_at + _BATCH_EXPIRY_SECONDS if purpose == "batch" else None

"""The wire shape of uploads and their parts.

Source: openapi-assistants.json, CreateUploadRequest, CompleteUploadRequest, Upload, UploadPart; behaviour §2.7. Field order is the order
on the wire.
"""

from typing import Annotated, Literal

import msgspec
from msgspec import UNSET, Meta, UnsetType

from mini_assistant.files.schema import FILENAME_CHARACTERS_MAX, File, FileExpirationAfter, Purpose

UploadStatus = Literal["pending", "completed", "cancelled", "expired"]


class CreateUpload(msgspec.Struct, forbid_unknown_fields=True):
    """Body of `POST /uploads`. bytes: of the whole file."""

    filename: Annotated[str, Meta(min_length=1, max_length=FILENAME_CHARACTERS_MAX)]
    purpose: Purpose
    bytes: Annotated[int, Meta(ge=1)]
    mime_type: Annotated[str, Meta(max_length=256)]
    expires_after: FileExpirationAfter | None = None


class AddUploadPart(msgspec.Struct, forbid_unknown_fields=True):
    """The fields of the form of `POST /uploads/{upload_id}/parts`: none, beside the bytes themselves."""


class CompleteUpload(msgspec.Struct, forbid_unknown_fields=True):
    """Body of `POST /uploads/{upload_id}/complete`. part_ids: in the order of the bytes. md5: of the whole file, in hex."""

    part_ids: Annotated[list[Annotated[str, Meta(min_length=1, max_length=256)]], Meta(min_length=1, max_length=10_000)]
    md5: Annotated[str, Meta(max_length=256)] | None = None


class Upload(msgspec.Struct, kw_only=True, omit_defaults=True):
    """The upload object. `file` is there once it is completed."""

    id: str
    object: Literal["upload"]
    bytes: int
    created_at: int
    filename: str
    purpose: str
    status: UploadStatus
    expires_at: int
    file: File | UnsetType = UNSET


class UploadPart(msgspec.Struct, kw_only=True):
    """The part object."""

    id: str
    object: Literal["upload.part"] = "upload.part"
    created_at: int
    upload_id: str

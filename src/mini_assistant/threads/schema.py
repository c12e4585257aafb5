"""The wire shape of threads and messages.

Source: openapi-assistants.json, CreateThreadRequest, ThreadObject, CreateMessageRequest, MessageObject; recorded answers where they
differ (behaviour §2.2, §2.3).
"""

from typing import Annotated, Literal

import msgspec
from msgspec import UNSET, Meta, UnsetType

from mini_assistant.assistants.schema import CodeInterpreterTool, Metadata, NewToolResources, ObjectId, ToolResources

MESSAGE_TEXT_CHARACTERS_MAX = 256_000
ImageDetail = Literal["auto", "low", "high"]


class TextInput(msgspec.Struct, tag_field="type", tag="text", forbid_unknown_fields=True):
    """A text part of a new message: here `text` is a plain string."""

    text: Annotated[str, Meta(max_length=MESSAGE_TEXT_CHARACTERS_MAX)]


class ImageUrl(msgspec.Struct, forbid_unknown_fields=True):
    """An image by address, `https:` or `data:`."""

    url: Annotated[str, Meta(min_length=1)]
    detail: ImageDetail = "auto"


class ImageFile(msgspec.Struct, forbid_unknown_fields=True):
    """An uploaded image."""

    file_id: ObjectId
    detail: ImageDetail = "auto"


class ImageUrlContent(msgspec.Struct, tag_field="type", tag="image_url", forbid_unknown_fields=True):
    """`{"type": "image_url", ...}`, the same in requests and answers."""

    image_url: ImageUrl


class ImageFileContent(msgspec.Struct, tag_field="type", tag="image_file", forbid_unknown_fields=True):
    """`{"type": "image_file", ...}`, the same in requests and answers."""

    image_file: ImageFile


ContentInput = TextInput | ImageUrlContent | ImageFileContent


class FileSearchToolOnly(msgspec.Struct, tag_field="type", tag="file_search", forbid_unknown_fields=True):
    """file_search as named by an attachment: without options."""


class Attachment(msgspec.Struct, forbid_unknown_fields=True):
    """A file given with a message, and the tools that may use it."""

    file_id: ObjectId
    tools: list[CodeInterpreterTool | FileSearchToolOnly] | UnsetType = UNSET


class CreateMessage(msgspec.Struct, forbid_unknown_fields=True):
    """Body of `POST /threads/{thread_id}/messages`."""

    role: Literal["user", "assistant"]
    content: (
        Annotated[str, Meta(min_length=1, max_length=MESSAGE_TEXT_CHARACTERS_MAX)]
        | Annotated[list[ContentInput], Meta(min_length=1, max_length=1000)]
    )
    attachments: Annotated[list[Attachment], Meta(max_length=500)] | None = None
    metadata: Metadata | None = None


class ModifyMessage(msgspec.Struct, forbid_unknown_fields=True):
    """Body of `POST /threads/{thread_id}/messages/{message_id}`."""

    metadata: Metadata | None | UnsetType = UNSET


class CreateThread(msgspec.Struct, forbid_unknown_fields=True):
    """Body of `POST /threads`; may be absent."""

    messages: Annotated[list[CreateMessage], Meta(max_length=10_000)] | None = None
    tool_resources: NewToolResources | None = None
    metadata: Metadata | None = None


class ModifyThread(msgspec.Struct, forbid_unknown_fields=True):
    """Body of `POST /threads/{thread_id}`."""

    tool_resources: ToolResources | None | UnsetType = UNSET
    metadata: Metadata | None | UnsetType = UNSET


class Thread(msgspec.Struct, kw_only=True):
    """The thread object."""

    id: str
    object: Literal["thread"] = "thread"
    created_at: int
    metadata: dict[str, str]
    tool_resources: ToolResources


class FileCitation(msgspec.Struct):
    """The file that a passage comes from."""

    file_id: str


class FileCitationAnnotation(msgspec.Struct, tag_field="type", tag="file_citation"):
    """A citation. Positions are half-open, in code points of the part's `value`."""

    text: str
    start_index: int
    end_index: int
    file_citation: FileCitation


class FilePath(msgspec.Struct):
    """A file that code made."""

    file_id: str


class FilePathAnnotation(msgspec.Struct, tag_field="type", tag="file_path"):
    """A link to a file that code made. Positions as in a citation."""

    text: str
    start_index: int
    end_index: int
    file_path: FilePath


Annotation = FileCitationAnnotation | FilePathAnnotation


class Text(msgspec.Struct):
    """Text with its annotations."""

    value: str
    annotations: list[Annotation] = msgspec.field(default_factory=list[Annotation])


class TextContent(msgspec.Struct, tag_field="type", tag="text"):
    """A text part of a message."""

    text: Text


class RefusalContent(msgspec.Struct, tag_field="type", tag="refusal"):
    """What the model said when it refused."""

    refusal: str


Content = TextContent | ImageUrlContent | ImageFileContent | RefusalContent

IncompleteReason = Literal["content_filter", "max_tokens", "run_cancelled", "run_expired", "run_failed"]


class IncompleteDetails(msgspec.Struct):
    """Why a message is not whole."""

    reason: IncompleteReason


class Message(msgspec.Struct, kw_only=True):
    """The message object. The hosted API left the status fields out of REST answers; sending them is a superset (behaviour §0)."""

    id: str
    object: Literal["thread.message"] = "thread.message"
    created_at: int
    assistant_id: str | None
    thread_id: str
    run_id: str | None
    status: Literal["in_progress", "incomplete", "completed"]
    incomplete_details: IncompleteDetails | None = None
    incomplete_at: int | None = None
    completed_at: int | None = None
    role: Literal["user", "assistant"]
    content: list[Content]
    attachments: list[Attachment]
    metadata: dict[str, str]

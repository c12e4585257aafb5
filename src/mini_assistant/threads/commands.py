"""New threads and messages, as several endpoints need them: with a thread, alone, and with a run."""

from mini_assistant.assistants.schema import ToolResources
from mini_assistant.assistants.tool_resources import check_files, check_resources
from mini_assistant.db.base import Bound
from mini_assistant.ids import new_id
from mini_assistant.services import Services
from mini_assistant.threads import store
from mini_assistant.threads.schema import (
    Content,
    ContentInput,
    CreateMessage,
    CreateThread,
    ImageFileContent,
    Message,
    Text,
    TextContent,
    TextInput,
    Thread,
)


def new_message(services: Services, thread_id: str, body: CreateMessage) -> Message:
    """A message as a client sends it. Raises NotFound for a file that does not exist.

    `assistant_id` and `run_id` stay None, also for the role `assistant` (behaviour §2.3).
    """
    attachments = body.attachments or []
    check_files(attachment.file_id for attachment in attachments)
    if not isinstance(body.content, str):
        check_files(part.image_file.file_id for part in body.content if isinstance(part, ImageFileContent))
    now = services.now()
    return Message(
        id=new_id("msg"),
        created_at=now,
        assistant_id=None,
        thread_id=thread_id,
        run_id=None,
        status="completed",
        completed_at=now,
        role=body.role,
        content=_content(body.content),
        attachments=attachments,
        metadata=body.metadata or {},
    )


def _content(content: str | list[ContentInput]) -> list[Content]:
    if isinstance(content, str):
        return [TextContent(Text(content))]
    return [_content_part(part) for part in content]


def _content_part(part: ContentInput) -> Content:
    return TextContent(Text(part.text)) if isinstance(part, TextInput) else part


def new_thread(
    services: Services, project_id: str, body: CreateThread, tool_resources: ToolResources | None = None
) -> tuple[Thread, list[Message]]:
    """A thread with its first messages, not yet written. `tool_resources` is used when `body` has none.

    Raises NotFound for a file or vector store that does not exist.
    """
    resources = body.tool_resources or tool_resources or ToolResources()
    check_resources(resources)
    thread = Thread(id=new_id("thread"), created_at=services.now(), metadata=body.metadata or {}, tool_resources=resources)
    return thread, [new_message(services, thread.id, message) for message in body.messages or []]


def insert_messages(project_id: str, messages: list[Message]) -> list[Bound]:
    """Statements that write messages in their order."""
    return [store.insert_message(project_id, message) for message in messages]

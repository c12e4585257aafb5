"""What the tools of a run have given so far, as far as its answers show it. Pure.

An answer cites passages and links to files; it begins with the figures that no answer of the run has shown yet, and has the new files
attached. Source: behaviour §7, §8.
"""

from collections.abc import Sequence
from typing import NamedTuple

from mini_assistant.assistants.schema import CodeInterpreterTool
from mini_assistant.runs.annotations import Citable
from mini_assistant.runs.citations import known_sources
from mini_assistant.runs.code_files import known_files, known_images
from mini_assistant.runs.store import StepRecord
from mini_assistant.threads.schema import Attachment, ImageFile, ImageFileContent, Message


class Made(NamedTuple):
    """For the next message of a run. citable: None when its text can refer to nothing and is not looked at."""

    citable: Citable | None = None
    images: Sequence[ImageFileContent] = ()
    attachments: Sequence[Attachment] = ()


def known_made(steps: Sequence[StepRecord], messages: Sequence[Message], *, can_search: bool, can_run_code: bool) -> Made:
    """What a run has made. messages: those that it has written; what they show already is left out.

    can_search, can_run_code: whether the run has the tools at all.
    """
    files = known_files(steps) if can_run_code else {}
    citable = Citable(known_sources(steps) if can_search else None, files) if can_search or files else None
    shown = {part.image_file.file_id for message in messages for part in message.content if isinstance(part, ImageFileContent)}
    attached = {attachment.file_id for message in messages for attachment in message.attachments}
    return Made(
        citable,
        [ImageFileContent(ImageFile(file_id)) for file_id in known_images(steps) if file_id not in shown] if can_run_code else [],
        [Attachment(file_id, [CodeInterpreterTool()]) for file_id in dict.fromkeys(files.values()) if file_id not in attached],
    )

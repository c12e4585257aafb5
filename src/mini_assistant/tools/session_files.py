"""The files of a sandbox's session: uploaded ones go in before code runs, and what code has written comes out when it has run.

A file that was put into a session stays there, also when it is deleted in the API. Code may change it; then the changed file is one
that code has written, and the upload is not copied again. Called by `tools/code_interpreter.py`. Source: behaviour §8.
"""

import asyncio
import contextlib
import logging
from collections.abc import Collection, Sequence
from pathlib import PurePosixPath
from typing import NamedTuple

import msgspec
from msgspec import UNSET

from mini_assistant.assistants.schema import ToolResources
from mini_assistant.errors import (
    BackendError,
    BlobMissing,
    LimitReached,
    NotFound,
    SandboxFileMissing,
    SandboxFull,
    StoreUnavailable,
    TooLarge,
)
from mini_assistant.files.commands import blob_of, new_blob, new_file
from mini_assistant.files.store import FileRecord, get_file_or_none, insert_file
from mini_assistant.projects.quotas import write_stored
from mini_assistant.sandboxes.base import DATA_DIRECTORY, FILE_NAME_BYTES_MAX, SandboxFile
from mini_assistant.services import Services
from mini_assistant.threads.store import decode_thread, get_thread_json
from mini_assistant.tools.base import ToolUse
from mini_assistant.tools.sandbox_sessions import KeptSession

OUTPUT_PURPOSE = "assistants_output"
"""Of the files that code has made."""

_SUFFIX_BYTES_MAX = 32
_NAMES_TOLD_MAX = 10

log = logging.getLogger("mini_assistant.tools")


class Upload(NamedTuple):
    """A file that the code of a run can read. name: its name in the data directory, unless code has taken that for a file of its own."""

    file_id: str
    filename: str
    name: str
    blob_key: str


class WrittenFiles(NamedTuple):
    """What came of the files that code has written: ids by path in the data directory, and sentences about those that are not kept."""

    ids: dict[str, str]
    notes: list[str]


# ---- files go in


async def get_uploads(use: ToolUse) -> list[Upload]:
    """The files for code: of the assistant as the run has them, then of the thread as they are now. Deleted ones are left out.

    Of two files with the same name the later one gets ` (2)`. Those of the assistant come first, and the list of a thread grows at its
    end, so a name stays what it was when more files are attached.
    """
    file_ids = dict.fromkeys([*_file_ids(use.run.tool_resources), *await _thread_file_ids(use)])
    records = await asyncio.gather(*(get_file_or_none(use.services, use.project_id, file_id) for file_id in file_ids))
    uploads: list[Upload] = []
    taken: set[str] = set()
    for record in records:
        if record is not None:
            name = free_name(safe_name(record.file.filename), taken)
            taken.add(name)
            uploads.append(Upload(record.file.id, record.file.filename, name, record.blob_key))
    return uploads


def _file_ids(resources: ToolResources) -> list[str]:
    return [] if resources.code_interpreter is UNSET else resources.code_interpreter.file_ids


async def _thread_file_ids(use: ToolUse) -> list[str]:
    try:
        return _file_ids(decode_thread(await get_thread_json(use.services, use.project_id, use.run.thread_id)).tool_resources)
    except NotFound:  # deleted, and the run with it
        return []


async def put_uploads(services: Services, kept: KeptSession, uploads: Sequence[Upload]) -> list[str]:
    """Copy the files that the session has not had yet; returns what the model must know: other names than it was told, failures.

    Raises SandboxUnavailable when the session is lost.
    """
    missing = [upload for upload in uploads if upload.file_id not in kept.names and upload.file_id not in kept.refused]
    if missing or kept.versions is None:
        files = await kept.session.list_files()
        kept.versions = _versions(files) if kept.versions is None else kept.versions
        taken = {file.name.partition("/")[0] for file in files} | set(kept.names.values())
        for upload in missing:
            name = free_name(upload.name, taken)
            taken.add(name)
            await _put(services, kept, upload, name)
    if missing:  # what lies there now is not what code has written
        put = {kept.names[upload.file_id] for upload in missing if upload.file_id in kept.names}
        kept.versions |= {name: version for name, version in _versions(await kept.session.list_files()).items() if name in put}
    return [note for upload in uploads if (note := _note_or_none(kept, upload)) is not None]


async def _put(services: Services, kept: KeptSession, upload: Upload, name: str) -> None:
    """Copy one file. What fails once is not tried again in this session: a file that is too large stays so."""
    try:
        await kept.session.put_file(name, services.blobs.read(upload.blob_key))
    except SandboxFull as exc:
        kept.refused[upload.file_id] = exc.message
    except (BlobMissing, StoreUnavailable) as exc:
        log.warning("%s cannot be copied into a sandbox: %s", upload.file_id, exc.message)
        kept.refused[upload.file_id] = "Its bytes cannot be read."
    else:
        kept.names[upload.file_id] = name


def _note_or_none(kept: KeptSession, upload: Upload) -> str | None:
    if upload.file_id in kept.refused:
        return f"{DATA_DIRECTORY}/{upload.name} ({upload.file_id}) is not there: {kept.refused[upload.file_id]}"
    name = kept.names[upload.file_id]
    if name != upload.name:
        return f"{upload.file_id} is {DATA_DIRECTORY}/{name}, for the code has written {DATA_DIRECTORY}/{upload.name} itself."
    return None


def safe_name(filename: str) -> str:
    """A name for a file with this one that every system takes: one printable part of a path, at most `FILE_NAME_BYTES_MAX` long."""
    name = "".join([_safe_character(character) for character in filename]).strip()
    stem, suffix = _split(name if name not in ("", ".", "..") else "file")
    return _joined(stem, suffix)


def free_name(name: str, taken: Collection[str]) -> str:
    """The name, or the first of `a (2).csv`, `a (3).csv`... that is not taken."""
    stem, suffix = _split(name)
    number = 1
    while name in taken:
        number += 1
        name = _joined(stem, f" ({number}){suffix}")
    return name


def _safe_character(character: str) -> str:
    if character.isprintable() and character != "/":
        return character
    return " " if character.isspace() else "_"


def _split(name: str) -> tuple[str, str]:
    suffix = PurePosixPath(name).suffix
    if not suffix or len(suffix.encode()) > _SUFFIX_BYTES_MAX:
        return name, ""
    return name.removesuffix(suffix), suffix


def _joined(stem: str, suffix: str) -> str:
    room = FILE_NAME_BYTES_MAX - len(suffix.encode())
    return stem.encode()[:room].decode(errors="ignore") + suffix


# ---- files come out


async def keep_written_files(use: ToolUse, kept: KeptSession) -> WrittenFiles:
    """Make files of the project of those that code has written or changed since the last call; all of them in one commit, or none.

    Hidden files, and those in hidden folders, are what libraries leave behind and not kept. At most `sandbox_output_files_max`, each of
    at most `file_bytes_max`, and together not more than a session may hold: a file can be longer than what it takes there.
    """
    try:
        files = await kept.session.list_files()
        known = kept.versions or {}
        changed = [file for file in files if known.get(file.name) != file.version and not _is_hidden(file.name)]
        written = await _keep(use, kept, changed)
    except BackendError as exc:
        log.warning("run %s: what its code has written cannot be kept: %s", use.run.id, exc.message)
        return WrittenFiles({}, ["The files that the code has written could not be read or kept."])
    except LimitReached as exc:
        log.warning("run %s: what its code has written cannot be kept: %s", use.run.id, exc.message)
        return WrittenFiles({}, ["The files that the code has written are not given to the user, who has no room for more files."])
    kept.versions = _versions(files)
    return written


async def _keep(use: ToolUse, kept: KeptSession, changed: Sequence[SandboxFile]) -> WrittenFiles:
    services, settings = use.services, use.services.settings
    records: dict[str, FileRecord] = {}
    left_out: list[str] = []
    bytes_left = settings.sandbox_disk_bytes_max
    async with contextlib.AsyncExitStack() as blobs:  # whatever is raised: none of them stays
        for file in changed:
            if len(records) == settings.sandbox_output_files_max:
                left_out.append(file.name)
                continue
            write = blob_of(services, kept.session.read_file(file.name), min(settings.file_bytes_max, bytes_left))
            try:
                blob = await blobs.enter_async_context(new_blob(services, write))
            except SandboxFileMissing:
                continue  # deleted or replaced by code that still runs
            except TooLarge:
                left_out.append(file.name)
                continue
            bytes_left -= blob.written.size_bytes
            records[file.name] = new_file(blob, safe_name(PurePosixPath(file.name).name), OUTPUT_PURPOSE, services.now())
        if records:
            rows = [row for record in records.values() for row in insert_file(use.project_id, record)]
            await write_stored(services, use.project_id, rows)
    return WrittenFiles({name: record.file.id for name, record in records.items()}, _notes_about(left_out))


def _notes_about(left_out: Sequence[str]) -> list[str]:
    if not left_out:
        return []
    told = msgspec.json.encode(left_out[:_NAMES_TOLD_MAX]).decode()
    more = f" and {len(left_out) - _NAMES_TOLD_MAX} more" if len(left_out) > _NAMES_TOLD_MAX else ""
    return [f"Too many or too large, and so not given to the user: {told}{more}."]


def _is_hidden(name: str) -> bool:
    return any(part.startswith(".") or part == "__pycache__" for part in PurePosixPath(name).parts)


def _versions(files: Sequence[SandboxFile]) -> dict[str, str]:
    return {file.name: file.version for file in files}

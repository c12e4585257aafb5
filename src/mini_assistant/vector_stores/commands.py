"""What is asked of vector stores: make one, add files, one by one and in batches, change attributes.

Files are added by lists of statements that are made of rows as they were read, and that other lists take in: those of assistants,
threads, messages and runs. `write_with_files` writes such a list and offers the new rows to the ingest worker.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import NamedTuple

import msgspec
from msgspec import UNSET

from mini_assistant.assistants.schema import ChunkingStrategyInput, StaticChunking
from mini_assistant.db.base import Bound, GuardFailed, UniqueViolation
from mini_assistant.errors import InvalidRequest
from mini_assistant.files.store import file_not_found
from mini_assistant.ids import new_hex_id
from mini_assistant.projects.quotas import VECTOR_GUARD, vector_room, vectors_are_full
from mini_assistant.services import Services
from mini_assistant.vector_stores import attached_files, batches, store
from mini_assistant.vector_stores.attached_files import AttachedFile
from mini_assistant.vector_stores.indexes.base import StoreScope
from mini_assistant.vector_stores.schema import (
    DEFAULT_CHUNK_SIZE,
    SUPPORTED_EXTENSIONS,
    Attributes,
    CreateFileBatch,
    CreateVectorStore,
    CreateVectorStoreFile,
    FileCounts,
    FileStatus,
    ModifyVectorStore,
    VectorStore,
    VectorStoreFile,
    VectorStoreFileError,
)

Remember = Callable[[str], list[Bound]]
"""Statements that keep an answer for a repeat of the request."""

_UNSUPPORTED = VectorStoreFileError("unsupported_file", "The file type is not supported.")


class RowsChanged(Exception):
    """Rows are not as they were when a list of statements was made of them. Nothing was written; make the list again."""


async def write_with_files(services: Services, statements: Sequence[Bound], on_commit: Callable[[], None] | None = None) -> None:
    """Write a list that may add files, and offer those that wait to be ingested.

    Raises RowsChanged when a vector store, a file in it, or an object that the list replaces (guard `changed`) has changed meanwhile,
    and LimitReached when vector stores have no room for the files; otherwise as `Database.write`.
    """
    try:
        results = await services.db.write(statements, on_commit)
    except GuardFailed as exc:
        if exc.guard in (store.STORE_GUARD, store.FILE_GUARD, "changed"):
            raise RowsChanged from exc
        if exc.guard == VECTOR_GUARD:
            raise vectors_are_full(statements) from exc
        raise
    except UniqueViolation as exc:
        if attached_files.is_attached_twice(exc.index):
            raise RowsChanged from exc
        raise
    for seq in attached_files.rows_to_ingest(statements, results):
        services.queue.put("ingest", str(seq))


# --- vector stores --------------------------------------------------------------------------------------------------------------


class NewStore(NamedTuple):
    """A vector store that the statements write with its files."""

    store: VectorStore
    statements: list[Bound]


async def new_store(services: Services, project_id: str, body: CreateVectorStore) -> NewStore:
    """A vector store, not yet written. Raises NotFound for a file that does not exist; unsupported ones are in it as failed."""
    file_ids = list(dict.fromkeys(body.file_ids or []))
    scope, now = StoreScope(project_id, new_hex_id("vs")), services.now()
    names = await _filenames(services, project_id, file_ids)
    wanted = [CreateVectorStoreFile(file_id, chunking_strategy=body.chunking_strategy) for file_id in file_ids]
    files = [_new_file(scope, new, names[new.file_id], now) for new in wanted]
    statuses = [file.status for file in files]
    made = VectorStore(
        id=scope.vector_store_id,
        created_at=now,
        name=body.name,
        description=body.description,
        metadata=body.metadata or {},
        usage_bytes=0,
        file_counts=FileCounts(statuses.count("in_progress"), 0, statuses.count("failed"), 0, len(files)),
        status="in_progress" if "in_progress" in statuses else "completed",
        expires_after=body.expires_after,
        expires_at=None if body.expires_after is None else now + body.expires_after.days * store.SECONDS_PER_DAY,
        last_active_at=now,
    )
    rows = [statement for file in files for statement in attached_files.insert_file(project_id, file, None, now)]
    if files:
        rows += vector_room(services, project_id)
    return NewStore(made, [store.insert_store(project_id, made), *rows])


async def create_store(services: Services, project_id: str, body: CreateVectorStore, remember: Remember) -> str:
    """Make a vector store; returns its wire JSON. Raises NotFound for a file that does not exist."""
    check_length("file_ids", body.file_ids, services.settings.vector_store_file_ids_max)
    while True:
        made = await new_store(services, project_id, body)
        answer = msgspec.json.encode(made.store).decode()
        try:
            await write_with_files(services, [*made.statements, *remember(answer)])
        except RowsChanged:
            continue  # one of the files was deleted in between
        return answer


def check_length(name: str, items: Sequence[object] | None, limit: int) -> None:
    """Raise InvalidRequest when a list is longer than a setting allows."""
    if items is not None and len(items) > limit:
        raise InvalidRequest(
            f"Invalid '{name}': array too long. Expected an array with maximum length {limit}, "
            f"but got an array with length {len(items)} instead.",
            param=name,
            code="array_above_max_length",
        )


async def modify_store(services: Services, scope: StoreScope, body: ModifyVectorStore) -> str:
    """Change what was sent; returns the wire JSON. Raises NotFound, and InvalidRequest for the expiry of a store that has expired."""
    while True:
        seen = store.decode_store(await store.get_store_json(services, *scope))
        changed = msgspec.structs.replace(
            seen,
            name=seen.name if body.name is UNSET else body.name,
            metadata=seen.metadata if body.metadata is UNSET else body.metadata or {},
        )
        statements = [store.replace_store(scope.project_id, seen, changed)]
        if body.expires_after is not UNSET:
            if seen.status == "expired":
                raise store.store_expired(scope.vector_store_id)
            days = None if body.expires_after is None else body.expires_after.days
            statements.append(store.set_expiry(*scope, days, services.now()))
        try:
            await write_with_files(services, statements)
        except RowsChanged:
            continue  # somebody else changed it in between: apply this change to theirs
        return await store.get_store_json(services, *scope)


async def delete_store(services: Services, scope: StoreScope, audit: Bound) -> None:
    """Delete a vector store with all that was made of its files; the files stay. audit: the line about it. Raises NotFound."""
    try:
        await services.db.write([*store.delete_store(*scope, services.now()), audit])
    except GuardFailed as exc:
        raise store.store_not_found(scope.vector_store_id) from exc


# --- files of a vector store ----------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class AddedFiles:
    """Files as they are in a vector store once the statements are written; statements change nothing for those that were there."""

    files: list[VectorStoreFile] = field(default_factory=list[VectorStoreFile])
    new_statuses: list[FileStatus] = field(default_factory=list[FileStatus])
    statements: list[Bound] = field(default_factory=list[Bound])


async def add_files(
    services: Services, scope: StoreScope, wanted: Sequence[CreateVectorStoreFile], batch_id: str | None = None
) -> AddedFiles:
    """Add files to a vector store, each named once.

    A file that is in it stays as it is, but for attributes that are given; it is ingested again when that was cancelled or has
    failed, or when it is to be cut in another way. Raises NotFound for the store or a file, InvalidRequest for a store that has expired.
    """
    await store.get_usable_store(services, *scope)
    file_ids = [new.file_id for new in wanted]
    names = await _filenames(services, scope.project_id, file_ids)
    known = await attached_files.get_attached_files(services, scope, file_ids)
    added, now = AddedFiles(), services.now()
    for new in wanted:
        attached = known.get(new.file_id)
        if attached is not None and not _must_ingest_again(attached.file, new):
            _keep_file(added, attached, new, batch_id, now)
            continue
        if attached is not None:
            added.statements += store.detach_file(scope, new.file_id, now)
            new = CreateVectorStoreFile(
                new.file_id,
                attached.file.attributes if new.attributes is None else new.attributes,
                attached.file.chunking_strategy if new.chunking_strategy is None else new.chunking_strategy,
            )
        file = _new_file(scope, new, names[new.file_id], now)
        added.files.append(file)
        added.new_statuses.append(file.status)
        added.statements += attached_files.insert_file(scope.project_id, file, batch_id, now)
    # First of all, for it says whether the store is there, and keeps others from it until the commit.
    added.statements.insert(0, store.count_new_files(*scope, added.new_statuses, now))
    if added.new_statuses:
        added.statements += vector_room(services, scope.project_id)
    return added


def _must_ingest_again(file: VectorStoreFile, new: CreateVectorStoreFile) -> bool:
    is_cut_anew = new.chunking_strategy is not None and _chunking(new.chunking_strategy) != file.chunking_strategy
    return file.status in ("failed", "cancelled") or is_cut_anew


def _keep_file(added: AddedFiles, attached: AttachedFile, new: CreateVectorStoreFile, batch_id: str | None, now: int) -> None:
    file, attributes = attached.file, new.attributes
    # As JSON, because in Python 1 equals true.
    if attributes is not None and store.attributes_json(attributes) != store.attributes_json(file.attributes):
        added.statements += attached_files.replace_attributes(attached, attributes)
        file = msgspec.structs.replace(file, attributes=attributes)
    if batch_id is not None:
        added.statements += batches.move_to_batch(attached, batch_id, now)
    added.files.append(file)


def _new_file(scope: StoreScope, new: CreateVectorStoreFile, filename: str, now: int) -> VectorStoreFile:
    is_supported = extension_of(filename) in SUPPORTED_EXTENSIONS
    return VectorStoreFile(
        id=new.file_id,
        usage_bytes=0,
        created_at=now,
        vector_store_id=scope.vector_store_id,
        status="in_progress" if is_supported else "failed",
        last_error=None if is_supported else _UNSUPPORTED,
        chunking_strategy=_chunking(new.chunking_strategy),
        attributes=new.attributes or {},
    )


def _chunking(given: ChunkingStrategyInput | None) -> StaticChunking:
    return given if isinstance(given, StaticChunking) else StaticChunking(DEFAULT_CHUNK_SIZE)


def extension_of(filename: str) -> str:
    """The part of a name that says what is in the file, such as `.pdf`; in lower case, empty when there is none."""
    return PurePosixPath(filename.strip().lower()).suffix


async def _filenames(services: Services, project_id: str, file_ids: Sequence[str]) -> dict[str, str]:
    names = await attached_files.get_filenames(services, project_id, file_ids)
    for file_id in file_ids:
        if file_id not in names:
            raise file_not_found(file_id)
    return names


async def refuse_unsupported(services: Services, project_id: str, file_ids: Sequence[str]) -> None:
    """Raise InvalidRequest for files that cannot be searched because of their type, and NotFound for ones that do not exist."""
    extensions = {extension_of(name) for name in (await _filenames(services, project_id, file_ids)).values()} - SUPPORTED_EXTENSIONS
    if extensions:
        raise InvalidRequest(
            f"Files with extensions [{', '.join(sorted(extension or 'none' for extension in extensions))}] are not supported for "
            "retrieval. See https://platform.openai.com/docs/assistants/tools/file-search/supported-files",
            param="file_ids",
            code="unsupported_file",
        )


async def attach_file(services: Services, scope: StoreScope, new: CreateVectorStoreFile, remember: Remember) -> str:
    """Add one file; returns its wire JSON. Raises as `add_files`, and InvalidRequest for a type that cannot be searched."""
    while True:
        await store.get_usable_store(services, *scope)
        await refuse_unsupported(services, scope.project_id, [new.file_id])
        added = await add_files(services, scope, [new])
        answer = store.file_json(added.files[0])
        try:
            await write_with_files(services, [*added.statements, *remember(answer)])
        except RowsChanged:
            continue  # it was added, ended or detached in between
        return answer


async def modify_file(services: Services, scope: StoreScope, file_id: str, attributes: Attributes) -> str:
    """Replace the attributes of a file; returns its wire JSON. Raises NotFound for the store or the file."""
    while True:
        attached = (await attached_files.get_attached_files(services, scope, [file_id])).get(file_id)
        if attached is None:
            await store.get_store_json(services, *scope)
            raise store.file_not_in_store(file_id, scope.vector_store_id)
        try:
            await write_with_files(services, attached_files.replace_attributes(attached, attributes))
        except RowsChanged:
            continue  # its ingest has ended in between, or somebody else changed it
        return store.file_json(msgspec.structs.replace(attached.file, attributes=attributes))


async def detach_file(services: Services, scope: StoreScope, file_id: str, audit: Bound) -> None:
    """Take a file out of a vector store; the uploaded file stays. audit: the line about it. Raises NotFound for the store or the file."""
    try:
        await services.db.write([*store.detach_file(scope, file_id, services.now()), audit])
    except GuardFailed as exc:
        await store.get_store_json(services, *scope)
        raise store.file_not_in_store(file_id, scope.vector_store_id) from exc


# --- file batches ---------------------------------------------------------------------------------------------------------------


async def create_batch(services: Services, scope: StoreScope, body: CreateFileBatch, remember: Remember) -> str:
    """Add many files; returns the batch's wire JSON. Raises as `add_files`; files of unsupported types are in it as failed."""
    wanted = _wanted_files(body, services.settings.file_batch_files_max)
    while True:
        batch_id = new_hex_id("vsfb")
        added = await add_files(services, scope, wanted, batch_id)
        answer, rows = batches.insert_batch(scope, batch_id, [file.status for file in added.files], services.now())
        try:
            await write_with_files(services, [*added.statements, *rows, *remember(answer)])
        except RowsChanged:
            continue  # one of the files was added, ended or detached in between
        return answer


def _wanted_files(body: CreateFileBatch, limit: int) -> list[CreateVectorStoreFile]:
    """The files of a batch, each once."""
    if body.file_ids is not None and body.files is not None:
        raise InvalidRequest("Only one of 'file_ids' and 'files' can be given.", param="files", code="invalid_value")
    check_length("file_ids", body.file_ids, limit)
    check_length("files", body.files, limit)
    wanted = body.files
    if wanted is None:
        if body.file_ids is None:
            raise InvalidRequest("Missing required parameter: 'file_ids'.", param="file_ids", code="missing_required_parameter")
        wanted = [CreateVectorStoreFile(file_id, body.attributes, body.chunking_strategy) for file_id in body.file_ids]
    return list({new.file_id: new for new in wanted}.values())


async def cancel_batch(services: Services, scope: StoreScope, batch_id: str) -> str:
    """Cancel what is not ingested yet; returns the batch's wire JSON. Raises NotFound for the store or the batch."""
    await batches.get_batch_json(services, scope, batch_id)
    await services.db.write(batches.cancel_batch(scope, batch_id, services.now()))
    return await batches.get_batch_json(services, scope, batch_id)

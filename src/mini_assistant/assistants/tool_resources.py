"""The files and vector stores that the tools of an assistant or thread work on.

Checks that they exist, makes the vector stores that a creation asks for, and takes in the files that are attached to messages. What is
to be written comes back as statements, for the list that writes the assistant, thread, message or run.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import msgspec
import sqlalchemy as sa
from msgspec import UNSET

from mini_assistant.assistants import store as assistant_store
from mini_assistant.assistants.schema import (
    CodeInterpreterResources,
    FileSearchResources,
    NewFileSearchResources,
    NewToolResources,
    NewVectorStore,
    ToolResources,
)
from mini_assistant.db.base import Bound, Query
from mini_assistant.db.tables import code_file_owners
from mini_assistant.errors import InvalidRequest, NotFound
from mini_assistant.files.store import existing_file_ids, file_not_found
from mini_assistant.services import Services
from mini_assistant.threads import store as thread_store
from mini_assistant.vector_stores.commands import add_files, check_length, new_store, refuse_unsupported
from mini_assistant.vector_stores.indexes.base import StoreScope
from mini_assistant.vector_stores.schema import CreateVectorStore, CreateVectorStoreFile, ExpiresAfter
from mini_assistant.vector_stores.store import get_store_or_none

CODE_FILES_MAX = 20

_owners = code_file_owners.c
_is_known = sa.exists().where(_owners.file_id == sa.bindparam("of_file"), _owners.owner_id == sa.bindparam("of_owner"))
_note_owner = Query(
    sa.insert(code_file_owners).from_select(
        [_owners.file_id, _owners.owner_id, _owners.project_id],
        sa.select(*[sa.bindparam(name, type_=sa.Text) for name in ("of_file", "of_owner", "of_project")]).where(~_is_known),
    )
)
_of_file = (_owners.file_id == sa.bindparam("of_file"), _owners.project_id == sa.bindparam("of_project"))
_select_owners = Query(sa.select(_owners.owner_id).where(*_of_file))
_forget_owners = Query(sa.delete(code_file_owners).where(*_of_file))


class AttachedFiles(NamedTuple):
    """Files attached to messages, by the tool that is to use them."""

    file_search: Sequence[str] = ()
    code_interpreter: Sequence[str] = ()


@dataclass(frozen=True, slots=True)
class PreparedResources:
    """Resources as they are shown, and what has to be written for them first."""

    resources: ToolResources
    statements: list[Bound]


async def check_files(services: Services, project_id: str, file_ids: Iterable[str]) -> None:
    """Raise NotFound for the first unknown file."""
    wanted = list(file_ids)
    known = await existing_file_ids(services, project_id, wanted) if wanted else set[str]()
    for file_id in wanted:
        if file_id not in known:
            raise file_not_found(file_id)


async def check_resources(services: Services, project_id: str, resources: ToolResources | None) -> None:
    """Raise NotFound for the first unknown file or vector store of an assistant or thread."""
    if resources is None:
        return
    if resources.code_interpreter is not UNSET:
        await check_files(services, project_id, resources.code_interpreter.file_ids)
    if resources.file_search is not UNSET:
        for vector_store_id in resources.file_search.vector_store_ids:
            if await get_store_or_none(services, project_id, vector_store_id) is None:
                raise NotFound(f"Vector store with id ['{vector_store_id[:100]}'] not found.")


async def new_resources(
    services: Services,
    project_id: str,
    given: NewToolResources | None,
    *,
    attached: AttachedFiles = AttachedFiles(),  # noqa: B008 - it cannot change
    store_expiry_days: int | None = None,
) -> PreparedResources:
    """The resources of a new assistant or thread; `vector_stores` become vector stores that are made with it.

    store_expiry_days: of a vector store that is made; None for no expiry. Raises NotFound for a file or vector store that does not
    exist, and InvalidRequest for too many files or ones that cannot be searched.
    """
    given = given or NewToolResources()
    shown = ToolResources(code_interpreter=given.code_interpreter)
    made: CreateVectorStore | None = None
    if given.file_search is not UNSET:
        helper = _new_store_or_none(given.file_search)
        made = None if helper is None else _store_to_make(services, helper, store_expiry_days)
        ids = given.file_search.vector_store_ids
        shown.file_search = FileSearchResources([] if ids is UNSET else ids)
    await check_resources(services, project_id, shown)
    return await _with_attached(services, project_id, PreparedResources(shown, []), attached, made)


async def with_attached(services: Services, project_id: str, resources: ToolResources, attached: AttachedFiles) -> PreparedResources:
    """The resources of a thread with files that are attached to its messages.

    They are added to the thread's vector store; without one, it gets one. Raises as `new_resources`, and InvalidRequest for a vector
    store that has expired.
    """
    shown = msgspec.structs.replace(resources)
    if shown.file_search is not UNSET:  # of stores that were deleted only the ids are left
        known = [
            store_id
            for store_id in shown.file_search.vector_store_ids
            if await get_store_or_none(services, project_id, store_id) is not None
        ]
        shown.file_search = FileSearchResources(known)
    return await _with_attached(services, project_id, PreparedResources(shown, []), attached, None)


def _new_store_or_none(given: NewFileSearchResources) -> NewVectorStore | None:
    if given.vector_stores is UNSET:
        return None
    if given.vector_store_ids is not UNSET:
        raise InvalidRequest(
            "Only one of 'vector_store_ids' and 'vector_stores' can be given.", param="tool_resources.file_search", code="invalid_value"
        )
    return given.vector_stores[0] if given.vector_stores else None


def _store_to_make(services: Services, helper: NewVectorStore, expiry_days: int | None) -> CreateVectorStore:
    place = "tool_resources.file_search.vector_stores[0].file_ids"
    check_length(place, helper.file_ids, services.settings.file_batch_files_max)
    return CreateVectorStore(
        file_ids=helper.file_ids,
        chunking_strategy=helper.chunking_strategy,
        metadata=helper.metadata,
        expires_after=None if expiry_days is None else ExpiresAfter("last_active_at", expiry_days),
    )


async def _with_attached(
    services: Services, project_id: str, prepared: PreparedResources, attached: AttachedFiles, made: CreateVectorStore | None
) -> PreparedResources:
    """made: a vector store to make in any case."""
    resources, statements = prepared.resources, prepared.statements
    if attached.code_interpreter:
        resources.code_interpreter = _more_code_files(resources, attached.code_interpreter)
    if attached.file_search:
        await refuse_unsupported(services, project_id, attached.file_search)
    existing = [] if resources.file_search is UNSET else resources.file_search.vector_store_ids
    if existing and attached.file_search:
        wanted = [CreateVectorStoreFile(file_id) for file_id in attached.file_search]
        statements += (await add_files(services, StoreScope(project_id, existing[0]), wanted)).statements
    elif made is not None or attached.file_search:
        made = made or _store_to_make(services, NewVectorStore(), services.settings.thread_store_expiry_days)
        made.file_ids = [*(made.file_ids or []), *attached.file_search]
        new = await new_store(services, project_id, made)
        statements += new.statements
        resources.file_search = FileSearchResources([new.store.id])
    return prepared


def _more_code_files(resources: ToolResources, file_ids: Sequence[str]) -> CodeInterpreterResources:
    listed = [] if resources.code_interpreter is UNSET else resources.code_interpreter.file_ids
    all_ids = list(dict.fromkeys([*listed, *file_ids]))
    if len(all_ids) > CODE_FILES_MAX:
        raise InvalidRequest(
            f"Invalid 'attachments': a thread can have at most {CODE_FILES_MAX} files for code_interpreter, but would have {len(all_ids)}.",
            param="attachments",
            code="array_above_max_length",
        )
    return CodeInterpreterResources(all_ids)


# --- files that are deleted -----------------------------------------------------------------------------------------------------


def note_code_files(project_id: str, owner_id: str, resources: ToolResources) -> list[Bound]:
    """Says that an assistant or thread lists these files for code_interpreter; belongs into the list that writes it."""
    if resources.code_interpreter is UNSET:
        return []
    return [_note_owner(of_file=file_id, of_owner=owner_id, of_project=project_id) for file_id in resources.code_interpreter.file_ids]


async def drop_code_file(services: Services, project_id: str, file_id: str) -> list[Bound]:
    """Takes a file out of all code_interpreter lists of its project.

    The guard `changed` fails when one of the assistants or threads has changed since they were read here: ask again then.
    """
    statements = [_forget_owners(of_file=file_id, of_project=project_id)]
    for (owner_id,) in await services.db.read(_select_owners(of_file=file_id, of_project=project_id)):
        try:
            statements += await _drop_from_owner(services, project_id, owner_id, file_id)
        except NotFound:
            continue  # deleted with its list
    return statements


async def _drop_from_owner(services: Services, project_id: str, owner_id: str, file_id: str) -> list[Bound]:
    if owner_id.startswith("asst_"):
        seen = await assistant_store.get_json(services, project_id, owner_id)
        changed, replace = assistant_store.decode(seen), assistant_store.replace
    else:
        seen = await thread_store.get_thread_json(services, project_id, owner_id)
        changed, replace = thread_store.decode_thread(seen), thread_store.replace_thread
    resources = changed.tool_resources.code_interpreter
    if resources is UNSET or file_id not in resources.file_ids:
        return []
    resources.file_ids = [listed for listed in resources.file_ids if listed != file_id]
    return [replace(project_id, owner_id, seen, msgspec.json.encode(changed).decode())]

"""What a project may keep: bytes of its files, and bytes of its vector stores. A limit of 0 is none.

The last statements of a list that makes it more count what there is then, one list after the other, so that no limit is ever exceeded.
Time does not help against these limits; deleting does.
"""

from collections.abc import Callable, Sequence

import sqlalchemy as sa

from mini_assistant.db.base import Bound, GuardFailed, Query
from mini_assistant.db.tables import files, upload_parts, vector_stores
from mini_assistant.errors import LimitReached
from mini_assistant.projects.limits import limit_reached, touch_limit
from mini_assistant.services import Services

VECTOR_GUARD = "vector bytes"
"""Fails when the vector stores of a project hold as much as they may."""
_STORAGE_GUARD = "storage bytes"

_project = sa.bindparam("project", type_=sa.Text)
_bytes_max = sa.bindparam("bytes_max", type_=sa.BigInteger)


def _sum(column: sa.Column[int], of_project: sa.ColumnElement[bool]) -> sa.ColumnElement[int]:
    return sa.select(sa.func.coalesce(sa.func.sum(column), 0)).where(of_project).scalar_subquery()


_stored_bytes = _sum(files.c.size_bytes, files.c.project_id == _project) + _sum(
    upload_parts.c.size_bytes, upload_parts.c.project_id == _project
)
_vector_bytes = _sum(vector_stores.c.usage_bytes, vector_stores.c.project_id == _project)
_select_stored_bytes = Query(sa.select(_stored_bytes))
_is_stored_within = Query(sa.select(sa.literal(1)).where(_stored_bytes <= _bytes_max))
_has_vector_room = Query(sa.select(sa.literal(1)).where(_vector_bytes < _bytes_max))
_are_vectors_within = Query(sa.select(sa.literal(1)).where(_vector_bytes <= _bytes_max))


# --- files ----------------------------------------------------------------------------------------------------------------------


async def check_storage_left(services: Services, project_id: str, is_above: Callable[[int], bool]) -> None:
    """Raise LimitReached for a file that certainly does not fit any more, before its bytes are read.

    is_above: whether it is larger than so many bytes, as far as is known.
    """
    bytes_max = services.settings.project_limit(project_id, "storage_bytes_max")
    if not bytes_max:
        return
    rows = await services.db.read(_select_stored_bytes(project=project_id))
    bytes_left = bytes_max - int(rows[0][0])
    if bytes_left < 1 or is_above(bytes_left):
        raise storage_is_full(services, project_id)


async def write_stored(services: Services, project_id: str, statements: Sequence[Bound]) -> None:
    """Write a list that keeps bytes of files for a project. Raises LimitReached when it may not keep so many; else as `Database.write`."""
    bytes_max = services.settings.project_limit(project_id, "storage_bytes_max")
    within: list[Bound] = []
    if bytes_max:
        within = [
            touch_limit(f"storage {project_id}"),
            _is_stored_within.guard(_STORAGE_GUARD, project=project_id, bytes_max=bytes_max),
        ]
    try:
        await services.db.write([*statements, *within])
    except GuardFailed as exc:
        if exc.guard == _STORAGE_GUARD:
            raise storage_is_full(services, project_id) from exc
        raise


def storage_is_full(services: Services, project_id: str) -> LimitReached:
    """The refusal of a file that does not fit any more."""
    bytes_max = services.settings.project_limit(project_id, "storage_bytes_max")
    message = (
        f"You exceeded your current quota: the files of project '{project_id}' can be {bytes_max} bytes in total. "
        "Delete files that are not needed any more."
    )
    return limit_reached("storage_bytes", message, type="insufficient_quota")


# --- vector stores --------------------------------------------------------------------------------------------------------------


def vector_room(services: Services, project_id: str) -> list[Bound]:
    """Guard VECTOR_GUARD for a list that adds files to a vector store: there is still room in those of the project."""
    bytes_max = services.settings.project_limit(project_id, "vector_bytes_max")
    return [_has_vector_room.guard(VECTOR_GUARD, project=project_id, bytes_max=bytes_max)] if bytes_max else []


def vectors_within(services: Services, project_id: str) -> list[Bound]:
    """Guard VECTOR_GUARD for the end of a list that makes a file findable: the vector stores of the project hold no more than they may."""
    bytes_max = services.settings.project_limit(project_id, "vector_bytes_max")
    if not bytes_max:
        return []
    return [
        touch_limit(f"vectors {project_id}"),
        _are_vectors_within.guard(VECTOR_GUARD, project=project_id, bytes_max=bytes_max),
    ]


def vectors_are_full(statements: Sequence[Bound]) -> LimitReached:
    """The refusal of a list whose guard VECTOR_GUARD has failed. Its message is also that of a file whose ingest fails for it."""
    [guard] = [bound.parameters for bound in statements if bound.guard == VECTOR_GUARD]
    message = (
        f"You exceeded your current quota: the vector stores of project '{guard['project']}' can be {guard['bytes_max']} bytes in total. "
        "Delete vector stores, or files in them, that are not needed any more."
    )
    return limit_reached("vector_bytes", message, type="insufficient_quota")

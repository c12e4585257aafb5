"""Rows of assistants."""

import msgspec
import sqlalchemy as sa

from mini_assistant.assistants.schema import Assistant
from mini_assistant.db.base import Bound, GuardFailed, Query
from mini_assistant.db.tables import assistants
from mini_assistant.errors import NotFound
from mini_assistant.pagination import Listing
from mini_assistant.services import Services

listing = Listing(assistants, ("project_id",), "assistant")
decode = msgspec.json.Decoder(Assistant).decode

_of_project = (assistants.c.id == sa.bindparam("object_id"), assistants.c.project_id == sa.bindparam("project_id"))
_select = Query(sa.select(assistants.c.body).where(*_of_project))
_insert = Query.insert_into(assistants)
_replace = Query(
    sa.update(assistants)
    .where(*_of_project, assistants.c.body == sa.bindparam("seen_body"))
    .values(body=sa.bindparam("new_body"))
    .returning(assistants.c.id)
)
_delete = Query(sa.delete(assistants).where(*_of_project).returning(assistants.c.id))


def not_found(assistant_id: str) -> NotFound:
    """The error for an unknown assistant."""
    return NotFound(f"No assistant found with id '{assistant_id[:100]}'.")


def insert(project_id: str, assistant: Assistant, body: str) -> Bound:
    """Writes a new assistant; `body` is its wire JSON."""
    return _insert(id=assistant.id, project_id=project_id, created_at=assistant.created_at, body=body)


async def get_json(services: Services, project_id: str, assistant_id: str) -> str:
    """An assistant's wire JSON. Raises NotFound."""
    rows = await services.db.read(_select(object_id=assistant_id, project_id=project_id))
    if not rows:
        raise not_found(assistant_id)
    return rows[0][0]


def replace(project_id: str, assistant_id: str, seen_body: str, new_body: str) -> Bound:
    """Writes a changed assistant; its guard `changed` fails when the row is not `seen_body` any more."""
    return _replace.guard("changed", object_id=assistant_id, project_id=project_id, seen_body=seen_body, new_body=new_body)


async def delete(services: Services, project_id: str, assistant_id: str, audit: Bound) -> None:
    """Delete an assistant. audit: the line about it. Raises NotFound."""
    try:
        await services.db.write(
            [
                listing.keep_place(project_id, assistant_id, services.now()),
                _delete.guard("exists", object_id=assistant_id, project_id=project_id),
                audit,
            ]
        )
    except GuardFailed as exc:
        raise not_found(assistant_id) from exc

"""The audit log: who did what that cannot be undone, or that lets somebody in."""

import msgspec
import sqlalchemy as sa

from mini_assistant.db.base import Bound, Query, Row
from mini_assistant.db.tables import audit_log
from mini_assistant.ids import new_id
from mini_assistant.pagination import Listing, Page
from mini_assistant.projects.schema import AuditLine
from mini_assistant.services import Services

_DAY_SECONDS = 86_400

_insert = Query.insert_into(audit_log)
_delete_old = Query(sa.delete(audit_log).where(audit_log.c.created_at < sa.bindparam("before", type_=sa.BigInteger)))
_listing = Listing(
    audit_log, (), "audit log", columns=("id", "project_id", "created_at", "actor", "action", "object_id", "request_id")
)  # of all projects


def audit_entry(project_id: str, now: int, action: str, object_id: str, *, actor: str, request_id: str | None = None) -> Bound:
    """A line of the log, for the list of statements that does the thing itself. actor: as in `audit_log.actor`."""
    return _insert(
        id=new_id("audit"),
        project_id=project_id,
        created_at=now,
        actor=actor,
        action=action,
        object_id=object_id,
        request_id=request_id,
    )


async def audit_page(services: Services, page: Page, filters: dict[str, str]) -> str:
    """A page of the log as wire JSON. filters: columns that must equal a value. Raises NotFound for a cursor that is no line of it."""
    # Lines are never deleted one by one, so no cursor of a deleted one is kept, under whatever project.
    return await _listing.page(services.db, page, {"project_id": ""}, filters, render=_line_json)


def _line_json(row: Row) -> str:
    line_id, project_id, created_at, actor, action, object_id, request_id = row
    line = AuditLine(
        id=line_id,
        project_id=project_id,
        created_at=created_at,
        actor=actor,
        action=action,
        object_id=object_id,
        request_id=request_id,
    )
    return msgspec.json.encode(line).decode()


async def delete_old_audit(services: Services) -> None:
    """Drop the lines that are older than `audit_ttl_days`."""
    before = services.now() - services.settings.audit_ttl_days * _DAY_SECONDS
    await services.db.write([_delete_old(before=before)], durable=False)

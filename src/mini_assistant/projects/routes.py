"""The endpoints of those who look after the server: `/organization/…`, for keys of the scope `admin`."""

from mini_assistant.http.routing import Request, Route
from mini_assistant.pagination import Page, list_schema
from mini_assistant.projects.audit import audit_page
from mini_assistant.projects.schema import AuditLine


class AuditPage(Page, frozen=True):
    """Query of the audit log. project_id, action: only lines that have this one."""

    project_id: str | None = None
    action: str | None = None


async def list_audit_logs(request: Request[None, AuditPage]) -> str:
    page = request.query
    wanted = {"project_id": page.project_id, "action": page.action}
    return await audit_page(request.services, page, {name: value for name, value in wanted.items() if value is not None})


ROUTES = [
    Route(
        method="GET",
        path="/organization/audit_logs",
        name="listAuditLogs",
        summary="List what was deleted and which keys were made or revoked, by whom, in all projects (extension)",
        call=list_audit_logs,
        query=AuditPage,
        answer=list_schema(AuditLine),
        scope="admin",
    ),
]

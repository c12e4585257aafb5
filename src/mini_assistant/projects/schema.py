"""Objects of the administration on the wire."""

from typing import Literal

import msgspec


class AuditLine(msgspec.Struct, kw_only=True):
    """A line of the audit log.

    actor: the id of a key, `settings` for a key of the settings, `nobody` on a server without keys, `command` for the command line,
    `retention` for what was deleted because of its age. object_id: what it was done to; of a file in a vector store the ids of both,
    with a slash between them. request_id: as the answer's `x-request-id` said; None for what was no request.
    """

    id: str
    project_id: str
    created_at: int
    actor: str
    action: str
    object_id: str
    request_id: str | None
    object: Literal["organization.audit_log"] = "organization.audit_log"

"""Which status a run may go to from which. A pure table: `store.transition_run` obeys it, and a property test walks it.

Source: behaviour §3.1. A run that is taken over by another worker stays `in_progress`: that is no transition.
"""

from typing import Any

import msgspec

from mini_assistant.runs.schema import Run, RunStatus

ALLOWED: dict[RunStatus, frozenset[RunStatus]] = {
    "queued": frozenset({"in_progress", "cancelling", "expired"}),
    "in_progress": frozenset({"requires_action", "cancelling", "completed", "incomplete", "failed", "expired"}),
    "requires_action": frozenset({"queued", "cancelling", "expired"}),
    "cancelling": frozenset({"cancelled"}),
    "cancelled": frozenset(),
    "failed": frozenset(),
    "completed": frozenset(),
    "incomplete": frozenset(),
    "expired": frozenset(),
}
ACTIVE = frozenset(status for status, following in ALLOWED.items() if following)
"""Statuses in which a run locks its thread."""
TERMINAL = frozenset(ALLOWED) - ACTIVE
_TIME_FIELD: dict[RunStatus, str] = {
    "in_progress": "started_at",
    "cancelled": "cancelled_at",
    "failed": "failed_at",
    "completed": "completed_at",
}


def with_status(run: Run, to: RunStatus, at: int, changes: dict[str, Any]) -> Run:
    """The run in its new status.

    at: unix seconds, for the status' own time field. changes: further fields (`usage`, `last_error` ...).
    `required_action` is cleared unless it is among them; a terminal run has no `expires_at`, except an expired one, whose time it tells.
    """
    fields: dict[str, Any] = {"required_action": None, **changes, "status": to}
    if to in _TIME_FIELD:
        fields[_TIME_FIELD[to]] = at
    if to in TERMINAL and to != "expired":
        fields["expires_at"] = None
    return msgspec.structs.replace(run, **fields)

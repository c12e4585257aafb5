"""How a run ends before its time: cancelled, failed or expired, with its open step and message. Source: behaviour §3.5."""

from collections.abc import Mapping, Sequence

from mini_assistant.runs import changes as change
from mini_assistant.runs.schema import LastError, MessageCreationDetails, RunStatus, StepError, StepStatus, Usage
from mini_assistant.runs.states import ALLOWED
from mini_assistant.runs.store import Changes, RunLost, RunRecord, StepRecord, get_record_for_worker, get_steps, transition_run
from mini_assistant.services import Services
from mini_assistant.threads import store as thread_store
from mini_assistant.threads.schema import Content, IncompleteReason, Message

_STEP_STATUS: dict[RunStatus, StepStatus] = {"cancelled": "cancelled", "failed": "failed", "expired": "expired"}
_MESSAGE_REASON: dict[RunStatus, IncompleteReason] = {
    "cancelled": "run_cancelled",
    "failed": "run_failed",
    "expired": "run_expired",
}
_TRIES_MAX = 20


async def end_run(
    services: Services,
    record: RunRecord,
    to: RunStatus,
    *,
    last_error: LastError | None = None,
    contents: Mapping[str, Sequence[Content]] | None = None,
    costs: Mapping[str, change.TurnCost] | None = None,
) -> RunRecord:
    """End a run as `cancelled`, `failed` or `expired`.

    contents: by message id, what has been told of a message that the rows do not show yet. costs: by step id, what a turn has cost that
    the rows do not show yet. A run that somebody is cancelling ends as `cancelled` whatever `to` says. Raises RunLost when the run has
    ended meanwhile, is another worker's, or is gone.
    """
    attempt = record.attempt
    for _ in range(_TRIES_MAX):
        status = record.run.status
        target: RunStatus = "cancelled" if status == "cancelling" else to
        if target not in ALLOWED[status] or record.attempt != attempt:
            break
        steps = await get_steps(services, record.run.id)
        changes, ended = Changes(), dict[str, StepRecord]()
        drafts = await _drafts(services, record, steps)
        for open_step in [known for known in steps if known.step.status == "in_progress"]:
            message = drafts.get(open_step.step.id)
            if message is not None:
                content = (contents or {}).get(message.id, message.content)
                change.end_message(changes, message, content, services.now(), _MESSAGE_REASON[target])
            error = _step_error(last_error) if target == "failed" else None
            usage = _spent(changes, open_step, (costs or {}).get(open_step.step.id))
            ended[open_step.step.id] = change.end_step(changes, open_step, _STEP_STATUS[target], services.now(), usage=usage, error=error)
        total = change.total_usage([ended.get(known.step.id, known) for known in steps])
        shown_error = last_error if target == "failed" else None
        try:
            return await transition_run(services, record, target, changes=changes, usage=total, last_error=shown_error)
        except RunLost:
            record = await get_record_for_worker(services, record.run.id)
    raise RunLost(record.run.id)


def _spent(changes: Changes, open_step: StepRecord, cost: change.TurnCost | None) -> Usage | None:
    """The usage of a step that ends; its row has counted it already, or it is counted now."""
    if open_step.usage is not None or cost is None:
        return open_step.usage
    change.spend(changes, cost)
    return cost.usage


async def _drafts(services: Services, record: RunRecord, steps: Sequence[StepRecord]) -> dict[str, Message]:
    """The messages in progress, by the id of the step that writes them."""
    answer: dict[str, Message] = {}
    for known in steps:
        details = known.step.step_details
        if known.step.status == "in_progress" and isinstance(details, MessageCreationDetails):
            message_id = details.message_creation.message_id
            message = await thread_store.get_message_or_none(services, record.project_id, record.run.thread_id, message_id)
            if message is not None and message.status == "in_progress":
                answer[known.step.id] = message
    return answer


def _step_error(last_error: LastError | None) -> StepError:
    if last_error is None:
        return StepError("server_error", "The run failed.")
    return StepError("rate_limit_exceeded" if last_error.code == "rate_limit_exceeded" else "server_error", last_error.message)

"""What a run does to its steps and messages: each change adds a row's statement and the wire events that tell of it.

The parts are pure; `store.save_changes` and `store.transition_run` write them.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import msgspec

from mini_assistant.ids import new_id
from mini_assistant.runs import store
from mini_assistant.runs.events import (
    created_message_events,
    created_step_events,
    ended_message_event,
    ended_step_event,
)
from mini_assistant.runs.schema import (
    MessageCreation,
    MessageCreationDetails,
    RunStep,
    StepError,
    StepStatus,
    ToolCallsDetails,
    Usage,
)
from mini_assistant.runs.store import Changes, RunRecord, StepRecord
from mini_assistant.threads import store as thread_store
from mini_assistant.threads.schema import Attachment, Content, IncompleteDetails, IncompleteReason, Message

_TIME_FIELD = {"completed": "completed_at", "failed": "failed_at", "cancelled": "cancelled_at", "expired": "expired_at"}


@dataclass(slots=True)
class TurnCost:
    """What a turn of the model has cost so far: its tokens, and the seconds for which code that it called has run."""

    usage: Usage
    sandbox_seconds: float = 0.0


def new_message(record: RunRecord, now: int, attachments: Sequence[Attachment] = ()) -> Message:
    """The message that a run begins to write. attachments: files that its code has made."""
    return Message(
        id=new_id("msg"),
        created_at=now,
        assistant_id=record.run.assistant_id,
        thread_id=record.run.thread_id,
        run_id=record.run.id,
        status="in_progress",
        role="assistant",
        content=[],
        attachments=list(attachments),
        metadata={},
    )


def new_step(record: RunRecord, turn: int, message_id: str | None, now: int) -> StepRecord:
    """The step that a run begins: one that writes the message, or one that calls tools when `message_id` is None."""
    details = ToolCallsDetails([]) if message_id is None else MessageCreationDetails(MessageCreation(message_id))
    step = RunStep(
        id=new_id("step"),
        created_at=now,
        run_id=record.run.id,
        assistant_id=record.run.assistant_id,
        thread_id=record.run.thread_id,
        type="tool_calls" if message_id is None else "message_creation",
        status="in_progress",
        expires_at=record.run.expires_at,
        step_details=details,
    )
    return StepRecord(step=step, turn=turn)


def begin_step(changes: Changes, project_id: str, record: StepRecord) -> None:
    """The step is new."""
    changes.statements.append(store.insert_step(project_id, record))
    changes.events += created_step_events(record.step)


def begin_message(changes: Changes, project_id: str, message: Message) -> None:
    """The message is new."""
    changes.statements.append(thread_store.insert_message(project_id, message))
    changes.events += created_message_events(message)


def end_message(
    changes: Changes, message: Message, content: Sequence[Content], now: int, incomplete: IncompleteReason | None = None
) -> Message:
    """The message has its last content: it is completed, or incomplete for a reason."""
    ended = msgspec.structs.replace(
        message,
        content=list(content),
        status="incomplete" if incomplete else "completed",
        incomplete_details=IncompleteDetails(incomplete) if incomplete else None,
        incomplete_at=now if incomplete else None,
        completed_at=None if incomplete else now,
    )
    changes.statements.append(thread_store.update_message(ended))
    changes.events.append(ended_message_event(ended))
    return ended


def end_step(
    changes: Changes, record: StepRecord, status: StepStatus, now: int, *, usage: Usage | None = None, error: StepError | None = None
) -> StepRecord:
    """The step has come to its end, with the details that `record` holds."""
    fields = {_TIME_FIELD[status]: now, "status": status, "usage": usage, "last_error": error, "expires_at": None}
    ended = StepRecord(
        step=msgspec.structs.replace(record.step, **fields), turn=record.turn, usage=usage or record.usage, outputs=record.outputs
    )
    changes.statements.append(store.update_step(ended))
    changes.events.append(ended_step_event(ended.step))
    if isinstance(ended.step.step_details, ToolCallsDetails):
        changes.used.tool_calls += len(ended.step.step_details.tool_calls)
    return ended


def keep_step(changes: Changes, record: StepRecord) -> None:
    """The step goes on, with details that only its row shows for now."""
    changes.statements.append(store.update_step(record))


def spend(changes: Changes, cost: TurnCost) -> None:
    """A turn has cost this. Belongs to the changes that are the first to write its usage into a step."""
    changes.used.prompt_tokens += cost.usage.prompt_tokens
    changes.used.completion_tokens += cost.usage.completion_tokens
    changes.used.sandbox_seconds += cost.sandbox_seconds


def total_usage(records: Sequence[StepRecord]) -> Usage | None:
    """The sum over a run's turns, None when no turn has been counted."""
    counted = [record.usage for record in records if record.usage is not None]
    if not counted:
        return None
    total = Usage()
    for usage in counted:
        total.prompt_tokens += usage.prompt_tokens
        total.completion_tokens += usage.completion_tokens
        total.total_tokens += usage.total_tokens
        total.prompt_token_details.cached_tokens += usage.prompt_token_details.cached_tokens
        total.completion_tokens_details.reasoning_tokens += usage.completion_tokens_details.reasoning_tokens
    return total

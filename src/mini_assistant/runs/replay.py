"""The events of a run that are no longer in memory, told again from rows, so that a late reader rebuilds the same final objects.

Deltas are not rows. Where a finished message or a step's calls had deltas, one delta that says all of it is put in their place.
"""

from collections.abc import Sequence

import msgspec

from mini_assistant.errors import InvalidRequest, NotFound
from mini_assistant.events.base import ALL_PARTS, START, Position, PositionLost, StreamEvent
from mini_assistant.runs import store
from mini_assistant.runs.events import (
    MESSAGE_DELTA,
    STEP_DELTA,
    whole_message_delta,
    whole_step_delta,
)
from mini_assistant.runs.schema import RunStep, ToolCall, ToolCallsDetails
from mini_assistant.services import Services
from mini_assistant.threads.schema import Message

_STEP_BEGINS = ("thread.run.step.created", "thread.run.step.in_progress")
_STEP_ENDS = frozenset(f"thread.run.step.{status}" for status in ("completed", "failed", "cancelled", "expired"))
_GONE = "The events of this run are no longer kept. Read the run, its steps and messages instead."
_PIECES_GONE = "The events after this Last-Event-ID are no longer kept. Attach again without Last-Event-ID."


def parse_position(last_event_id: str | None) -> tuple[int, Position]:
    """The attempt and position that a `Last-Event-ID` names; (0, START) without one. Raises InvalidRequest when it is none of ours."""
    if not last_event_id:
        return 0, START
    attempt, _, place = last_event_id.partition("-")
    seq, _, part = place.partition(".")
    numbers = (attempt, seq, part or "0")
    if not all(number.isascii() and number.isdigit() and len(number) <= 10 for number in numbers):
        raise InvalidRequest(
            f"Invalid 'Last-Event-ID': '{last_event_id[:100]}'. Expected an id that this server has sent.",
            param="Last-Event-ID",
            code="invalid_value",
        )
    return int(attempt), Position(int(seq), int(part or "0"))


async def last_seq(services: Services, run_id: str) -> int:
    """The number of a run's last event. Raises NotFound when the run is gone."""
    try:
        return (await store.get_record_for_worker(services, run_id)).version
    except store.RunLost as exc:
        raise NotFound(f"No run found with id '{run_id}'.") from exc


async def events_before(services: Services, run_id: str, after: Position, first_live_seq: int) -> Sequence[StreamEvent]:
    """What follows `after` and lies before the live events; empty when nothing does.

    Raises PositionLost when the rows have been dropped, or when `after` lies within an answer whose pieces are not known any more.
    """
    if after.seq >= first_live_seq - 1:
        return []
    rows = await store.get_events(services, run_id, max(0, after.seq - 1), first_live_seq - 1)
    last_read = rows[0] if rows and after.seq else None
    rows = rows[1:] if last_read else rows
    if not rows or rows[0].seq != after.seq + 1:
        raise PositionLost(_GONE)
    if after.part not in (0, ALL_PARTS):
        raise PositionLost(_PIECES_GONE)
    if last_read and last_read.name == "thread.run.cancelling" and after.part == 0:
        raise PositionLost(_PIECES_GONE)  # this event may stand between two pieces of an answer
    steps = {record.step.id: record.step for record in await store.get_steps(services, run_id)}
    return with_whole_deltas(rows, steps, last_read=last_read, skip_first=after.part == ALL_PARTS)


def with_whole_deltas(
    rows: Sequence[StreamEvent], steps: dict[str, RunStep], *, last_read: StreamEvent | None = None, skip_first: bool = False
) -> list[StreamEvent]:
    """The rows with one whole delta before each event that ends a message or a round of tool calls.

    steps: the run's steps by id. last_read: the row before the first one, None when that is the run's first. skip_first: the reader has
    had the deltas before the first row already.
    """
    answer: list[StreamEvent] = []
    open_tool_step = _tool_step_id(last_read) if last_read and last_read.name in _STEP_BEGINS else None
    for place, row in enumerate(rows):
        delta: tuple[str, bytes] | None = None
        if row.name in ("thread.message.completed", "thread.message.incomplete"):
            delta = _named(MESSAGE_DELTA, whole_message_delta(msgspec.json.decode(row.data, type=Message)))
        elif row.name == "thread.run.step.created":
            open_tool_step = _tool_step_id(row) or open_tool_step
        elif open_tool_step in steps and _has_whole_calls(row, open_tool_step):
            delta = _named(STEP_DELTA, whole_step_delta(open_tool_step, _calls(steps[open_tool_step])))
            open_tool_step = None
        if delta and not (skip_first and place == 0):
            answer.append(StreamEvent(row.seq - 1, ALL_PARTS, row.attempt, *delta))
        answer.append(row)
    return answer


async def with_passages(services: Services, run_id: str, events: Sequence[StreamEvent]) -> list[StreamEvent]:
    """The events with the passages of searches where a step has ended: only its row has them."""
    if not any(_is_ended_search(event) for event in events):
        return list(events)
    steps = {record.step.id: record.step for record in await store.get_steps(services, run_id)}
    return [_with_row(event, steps) if _is_ended_search(event) else event for event in events]


def _is_ended_search(event: StreamEvent) -> bool:
    return event.part == 0 and event.name in _STEP_ENDS and b'"file_search"' in event.data


def _with_row(event: StreamEvent, steps: dict[str, RunStep]) -> StreamEvent:
    step = steps.get(_tool_step_id(event) or "")
    return event if step is None else msgspec.structs.replace(event, data=msgspec.json.encode(step))


def _named(name: str, data: bytes | None) -> tuple[str, bytes] | None:
    return None if data is None else (name, data)


def _has_whole_calls(row: StreamEvent, tool_step: str) -> bool:
    """Whether the calls of a step cannot change any more, from this event on."""
    return row.name == "thread.run.requires_action" or (row.name in _STEP_ENDS and _tool_step_id(row) == tool_step)


def _tool_step_id(row: StreamEvent) -> str | None:
    step = msgspec.json.decode(row.data, type=RunStep)
    return step.id if step.type == "tool_calls" else None


def _calls(step: RunStep) -> list[ToolCall]:
    return step.step_details.tool_calls if isinstance(step.step_details, ToolCallsDetails) else []

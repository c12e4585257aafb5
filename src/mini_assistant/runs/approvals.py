"""Calls of MCP tools that the client has to approve.

A run waits for an approval as it waits for outputs of functions: in `requires_action`, with the call in its open step. What has become of
the call is kept in the row of the step, beside its body: AWAITED, then APPROVED until a worker has made the call. A refusal is an output
at once.
"""

from collections.abc import Mapping

import msgspec

from mini_assistant.runs.schema import FunctionCall, FunctionToolCall, ToolCall, ToolCallsDetails
from mini_assistant.runs.store import StepRecord

AWAITED = "approval: awaited"
APPROVED = "approval: given"
_REFUSED = "The user did not approve this call."


class _Decision(msgspec.Struct):
    approve: bool


def is_approval(text: str) -> bool:
    """Whether a client's output approves a call: `approve`, or a JSON object whose `approve` is true."""
    if text.strip() == "approve":
        return True
    try:
        return msgspec.json.decode(text, type=_Decision).approve
    except (msgspec.MsgspecError, RecursionError):
        return False


def with_outputs(record: StepRecord, given: Mapping[str, str]) -> StepRecord:
    """The step with what the client has sent, by call id: outputs of its functions, and decisions."""
    details = record.step.step_details
    assert isinstance(details, ToolCallsDetails)
    calls: list[ToolCall] = []
    outputs = dict(record.outputs)
    for call in details.tool_calls:
        text = given.get(call.id)
        if not isinstance(call, FunctionToolCall) or text is None:
            calls.append(call)
        elif outputs.get(call.id) != AWAITED:
            calls.append(_with_output(call, text))
        elif is_approval(text):
            outputs[call.id] = APPROVED
            calls.append(call)
        else:
            del outputs[call.id]
            calls.append(_with_output(call, f"{_REFUSED} {text}".rstrip()))
    return _changed(record, calls, outputs)


def approved_calls(record: StepRecord) -> list[FunctionToolCall]:
    """The calls of a step that were approved and have not been made."""
    details = record.step.step_details
    if not isinstance(details, ToolCallsDetails):
        return []
    return [call for call in details.tool_calls if isinstance(call, FunctionToolCall) and record.outputs.get(call.id) == APPROVED]


def with_made_calls(record: StepRecord, made: Mapping[str, str]) -> StepRecord:
    """The step with the outputs of its approved calls, by call id."""
    details = record.step.step_details
    assert isinstance(details, ToolCallsDetails)
    calls = [
        _with_output(call, made[call.id]) if isinstance(call, FunctionToolCall) and call.id in made else call for call in details.tool_calls
    ]
    return _changed(record, calls, {call_id: output for call_id, output in record.outputs.items() if call_id not in made})


def _with_output(call: FunctionToolCall, output: str) -> FunctionToolCall:
    return FunctionToolCall(call.id, FunctionCall(call.function.name, call.function.arguments, output))


def _changed(record: StepRecord, calls: list[ToolCall], outputs: dict[str, str]) -> StepRecord:
    step = msgspec.structs.replace(record.step, step_details=ToolCallsDetails(calls))
    return StepRecord(step=step, turn=record.turn, usage=record.usage, outputs=outputs)

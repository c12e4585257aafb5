"""From state to wire event: names, and the data of each. Pure. Source: behaviour §4.2 to §4.4."""

from typing import Any, NamedTuple

import msgspec
from msgspec import UNSET

from mini_assistant.runs.schema import (
    CodeInterpreterToolCall,
    CodeOutput,
    FileSearchCall,
    FileSearchToolCall,
    Run,
    RunStep,
    ToolCall,
    ToolCallsDetails,
)
from mini_assistant.threads.schema import Annotation, FileCitationAnnotation, ImageFileContent, Message, TextContent, Thread

MESSAGE_DELTA = "thread.message.delta"
STEP_DELTA = "thread.run.step.delta"
STOPPED_STATUSES = frozenset({"requires_action", "completed", "incomplete", "failed", "cancelled", "expired"})
STOPS = frozenset(f"thread.run.{status}" for status in STOPPED_STATUSES)
"""After one of these a stream ends."""

_encode = msgspec.json.encode


class RunEvent(NamedTuple):
    """An event that will be a row: its name and one line of JSON."""

    name: str
    data: bytes


def frame(name: str, data: bytes) -> bytes:
    """An event as it is framed on the wire."""
    return b"event: %b\ndata: %b\n\n" % (name.encode(), data)


DONE_FRAME = b"event: done\ndata: [DONE]\n\n"


def run_event(run: Run) -> RunEvent:
    """The event of a run's new status."""
    return RunEvent(f"thread.run.{run.status}", _encode(run))


def created_run_events(run: Run, new_thread: Thread | None) -> list[RunEvent]:
    """The two events of a new run, after that of the thread that was created with it."""
    data = _encode(run)
    before = [] if new_thread is None else [RunEvent("thread.created", _encode(new_thread))]
    return [*before, RunEvent("thread.run.created", data), RunEvent("thread.run.queued", data)]


def created_step_events(step: RunStep) -> list[RunEvent]:
    """The two events of a new step."""
    data = _encode(step)
    return [RunEvent("thread.run.step.created", data), RunEvent("thread.run.step.in_progress", data)]


def ended_step_event(step: RunStep) -> RunEvent:
    """The event of a step's last status, without the passages that only `include[]` shows."""
    return RunEvent(f"thread.run.step.{step.status}", _encode(without_contents(step)))


def without_contents(step: RunStep) -> RunStep:
    """The step as it is shown to who has not asked for the passages that its searches have found."""
    details = step.step_details
    if not isinstance(details, ToolCallsDetails) or not any(isinstance(call, FileSearchToolCall) for call in details.tool_calls):
        return step
    calls = [_without_content(call) if isinstance(call, FileSearchToolCall) else call for call in details.tool_calls]
    return msgspec.structs.replace(step, step_details=ToolCallsDetails(calls))


def has_file_search(step_json: str) -> bool:
    """Whether the JSON of a step, or of several, may hold passages. Quick: most steps are not worth decoding."""
    return '"file_search"' in step_json


def _without_content(call: FileSearchToolCall) -> FileSearchToolCall:
    results = [msgspec.structs.replace(result, content=UNSET) for result in call.file_search.results]
    return FileSearchToolCall(call.id, FileSearchCall(call.file_search.ranking_options, results))


def created_message_events(message: Message) -> list[RunEvent]:
    """The two events of a new message."""
    data = _encode(message)
    return [RunEvent("thread.message.created", data), RunEvent("thread.message.in_progress", data)]


def ended_message_event(message: Message) -> RunEvent:
    """The event of a message's last status."""
    return RunEvent(f"thread.message.{message.status}", _encode(message))


class MessageDeltas:
    """Deltas of one message. Everything but the text itself is encoded once."""

    def __init__(self, message_id: str) -> None:
        self._head = b'{"id":"%b","object":"thread.message.delta","delta":{"content":[{"index":' % message_id.encode()
        self._begun: set[int] = set()

    def text(self, index: int, text: str) -> bytes:
        """The next piece of the text part `index`; its first piece carries the empty `annotations`."""
        value = _encode(text)
        if index in self._begun:
            return b'%b%d,"type":"text","text":{"value":%b}}]}}' % (self._head, index, value)
        self._begun.add(index)
        return b'%b%d,"type":"text","text":{"value":%b,"annotations":[]}}]}}' % (self._head, index, value)

    def annotated(self, index: int, text: str, place: int, annotation: Annotation) -> bytes:
        """The next piece of the text part `index`, which the part's annotation number `place` (from 0) is about."""
        self._begun.add(index)
        told = _encode({"value": text, "annotations": [_annotation_delta(place, annotation)]})
        return b'%b%d,"type":"text","text":%b}]}}' % (self._head, index, told)

    def image_file(self, index: int, image: ImageFileContent) -> bytes:
        """The part `index`, which is an image."""
        return b"%b%d,%b]}}" % (self._head, index, _encode(image)[1:])

    def refusal(self, index: int, text: str) -> bytes:
        """The next piece of the refusal part `index`."""
        return b'%b%d,"type":"refusal","refusal":%b}]}}' % (self._head, index, _encode(text))


class StepDeltas:
    """Deltas of one tool_calls step. A string that is sent twice is doubled in the client, so each is sent once."""

    def __init__(self, step_id: str) -> None:
        self._head = b'{"id":"%b","object":"thread.run.step.delta","delta":{"step_details":{"type":"tool_calls","tool_calls":[' % (
            step_id.encode()
        )

    def started_function(self, index: int, call_id: str, name: str) -> bytes:
        """A function call begins; its arguments follow."""
        call = {"index": index, "id": call_id, "type": "function", "function": {"name": name, "arguments": "", "output": None}}
        return b"%b%b]}}}" % (self._head, _encode(call))

    def arguments(self, index: int, piece: str) -> bytes:
        """The next piece of a function's arguments."""
        return b'%b{"index":%d,"type":"function","function":{"arguments":%b}}]}}}' % (self._head, index, _encode(piece))

    def call(self, index: int, call: ToolCall) -> bytes:
        """A whole call at once; the output of a function is left to the step's last event."""
        return b"%b%b]}}}" % (self._head, _encode(_call_delta(index, call)))

    def code_input(self, index: int, piece: str) -> bytes:
        """The next piece of the code of a code_interpreter call."""
        return b'%b{"index":%d,"type":"code_interpreter","code_interpreter":{"input":%b}}]}}}' % (self._head, index, _encode(piece))

    def code_output(self, index: int, place: int, output: CodeOutput) -> bytes:
        """What code puts out: its output number `place`, or more of it when that is logs which have begun."""
        told = _encode({"index": place, **msgspec.to_builtins(output)})
        return b'%b{"index":%d,"type":"code_interpreter","code_interpreter":{"outputs":[%b]}}]}}}' % (self._head, index, told)


def _call_delta(index: int, call: ToolCall) -> dict[str, Any]:
    delta: dict[str, Any] = {"index": index, **msgspec.to_builtins(call)}
    if isinstance(call, CodeInterpreterToolCall):
        outputs = delta["code_interpreter"]["outputs"]
        delta["code_interpreter"]["outputs"] = [{"index": place, **output} for place, output in enumerate(outputs)]
    elif isinstance(call, FileSearchToolCall):
        delta["file_search"]["results"] = []  # told by the step's last event: entries of a delta would need an index
    else:
        delta["function"]["output"] = None
    return delta


def _annotation_delta(place: int, annotation: Annotation) -> dict[str, Any]:
    """An annotation as deltas have it: with its place, and a citation with an empty quote (behaviour §0 row 18)."""
    delta: dict[str, Any] = {"index": place, **msgspec.to_builtins(annotation)}
    if isinstance(annotation, FileCitationAnnotation):
        delta["file_citation"]["quote"] = ""
    return delta


def whole_message_delta(message: Message) -> bytes | None:
    """One delta that says all of a finished message; None when it is empty. For readers that attach late."""
    content: list[dict[str, Any]] = []
    for index, part in enumerate(message.content):
        entry: dict[str, Any] = {"index": index, **msgspec.to_builtins(part)}
        if isinstance(part, TextContent):
            entry["text"]["annotations"] = [_annotation_delta(place, annotation) for place, annotation in enumerate(part.text.annotations)]
        content.append(entry)
    if not content:
        return None
    return _encode({"id": message.id, "object": MESSAGE_DELTA, "delta": {"content": content}})


def whole_step_delta(step_id: str, calls: list[ToolCall]) -> bytes | None:
    """One delta that says all calls of a step; None when there are none. For readers that attach late."""
    if not calls:
        return None
    details = {"type": "tool_calls", "tool_calls": [_call_delta(index, call) for index, call in enumerate(calls)]}
    return _encode({"id": step_id, "object": STEP_DELTA, "delta": {"step_details": details}})

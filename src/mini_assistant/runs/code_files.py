"""What the code of a run has made: files that its answers can link to, and figures that they show. Pure.

The output of a code_interpreter call, as the model reads it, begins with a line that names the files that the code has written. The
line is the server's own, and code cannot forge it: what code prints comes behind it. So a run that another worker goes on with knows
its files from its steps. Source: behaviour §8.
"""

import re
from collections.abc import Mapping, Sequence

import msgspec

from mini_assistant.runs.schema import CodeImage, CodeInterpreterToolCall, ToolCallsDetails
from mini_assistant.runs.store import StepRecord

_LINE = re.compile(r"Files written: (\{.*\})")


def files_line(written: Mapping[str, str]) -> str:
    """The first line of a call's output, without its line end. written: file ids by path in the data directory; may be empty."""
    return f"Files written: {msgspec.json.encode(written).decode()}"


def written_files(output: str) -> dict[str, str]:
    """File ids by path, as the first line of an output tells them; empty when it tells none."""
    match = _LINE.fullmatch(output.partition("\n")[0])
    return msgspec.json.decode(match[1], type=dict[str, str]) if match else {}


def known_files(steps: Sequence[StepRecord]) -> dict[str, str]:
    """The files that the code of a run has written so far: of each path the newest."""
    files: dict[str, str] = {}
    for record, call in _code_calls(steps):
        files |= written_files(record.outputs.get(call.id, ""))
    return files


def known_images(steps: Sequence[StepRecord]) -> list[str]:
    """The file ids of the figures that the code of a run has shown so far."""
    outputs = [output for _, call in _code_calls(steps) for output in call.code_interpreter.outputs]
    return [output.image.file_id for output in outputs if isinstance(output, CodeImage)]


def _code_calls(steps: Sequence[StepRecord]) -> list[tuple[StepRecord, CodeInterpreterToolCall]]:
    return [
        (record, call)
        for record in steps
        if isinstance(record.step.step_details, ToolCallsDetails)
        for call in record.step.step_details.tool_calls
        if isinstance(call, CodeInterpreterToolCall)
    ]

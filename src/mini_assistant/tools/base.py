"""The seam to hosted tools: the ones that the server runs itself while a run goes on.

A function tool is not one of them: its calls go to the client (`tools/function.py`).
"""

from typing import Any, NamedTuple, Protocol

from mini_assistant.models.base import ToolDefinition
from mini_assistant.runs.schema import Run, ToolCall


class ToolResult(NamedTuple):
    """What a call gave: the call as the step shows it, and the text that the model reads."""

    call: ToolCall
    output: str


class HostedTool(Protocol):
    """A tool of the server, looked up by the type that an assistant names."""

    def definition(self, run: Run) -> ToolDefinition:
        """The tool as it is offered to the model in this run."""
        ...

    def started_call(self, call_id: str, run: Run, arguments: dict[str, Any]) -> ToolCall:
        """The call as the step shows it before the tool has run."""
        ...

    async def call(self, call_id: str, run: Run, project_id: str, arguments: dict[str, Any]) -> ToolResult:
        """Run the tool. Raises ToolFailure with a message that the model can act on."""
        ...

"""The seam to hosted tools: the ones that the server runs itself while a run goes on.

A function tool is not one of them: its calls go to the client (`tools/function.py`).
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from mini_assistant.models.base import ToolDefinition
from mini_assistant.runs.schema import CodeOutput, Run, ToolCall

if TYPE_CHECKING:
    from mini_assistant.services import Services  # it holds the tools


class ToolUse(NamedTuple):
    """Who uses a tool: a run of a project, with the parts of its server."""

    services: "Services"
    project_id: str
    run: Run


OutputTeller = Callable[[int, CodeOutput], None]
"""Tells the readers of the run what a call of code_interpreter puts out while it runs: `tell(place, output)`.

place: of the output in the call's list, from 0 and without a hole. Logs that are told of the same place are appended to it.
"""


class ToolResult(NamedTuple):
    """What a call gave: the call as the step shows it, and the text that the model reads."""

    call: ToolCall
    output: str


class HostedTool(Protocol):
    """A tool of the server, looked up by the type that an assistant names."""

    async def prepare(self, use: ToolUse, *, is_first_turn: bool) -> ToolDefinition | None:
        """Get ready for a run, and say how the tool is offered to the model in all its turns; None when there is nothing to offer.

        Called once by each worker that executes the run. is_first_turn: the model has not been asked yet, so that there may be things
        to wait for. Raises ToolFailure with a message for the owner of the run when the run cannot go on without what is missing.
        """
        ...

    def started_call(self, call_id: str, run: Run, arguments: dict[str, Any]) -> ToolCall:
        """The call as the step shows it before the tool has run."""
        ...

    async def call(self, use: ToolUse, call_id: str, number: int, arguments: dict[str, Any], tell: OutputTeller) -> ToolResult:
        """Run the tool. number: the place of its output in the context of the run, unique within it.

        tell: for tools that put out something while they run; what it told must be what the call of the result shows.
        Raises ToolFailure with a message that the model can act on.
        """
        ...

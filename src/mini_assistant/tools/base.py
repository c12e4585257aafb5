"""The seam to hosted tools: the ones that the server runs itself while a run goes on.

A function tool is not one of them: its calls go to the client (`tools/function.py`).
"""

from collections.abc import Callable, Collection
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from mini_assistant.models.base import ToolDefinition
from mini_assistant.runs.schema import CodeImage, CodeImageFile, CodeLogs, CodeOutput, Run, ToolCall

if TYPE_CHECKING:
    from mini_assistant.services import Services  # it holds the tools


class ToolUse(NamedTuple):
    """Who uses a tool: a run of a project, with the parts of its server."""

    services: "Services"
    project_id: str
    run: Run


class ToldOutputs:
    """What a call of code_interpreter has put out so far. Readers of the run are told of each output at once, and its step shows the same.

    tell: `tell(place, output)` tells of the output number `place`, from 0 and without a hole; logs that are told of the same place again
    are appended to it. sandbox_seconds: for how long its code has run, also when the call is broken off.
    """

    def __init__(self, tell: Callable[[int, CodeOutput], None]) -> None:
        self._tell = tell
        # Logs as pieces, which are put together once.
        self._told: list[list[str] | CodeImage] = []
        self.sandbox_seconds = 0.0

    def add_logs(self, text: str) -> None:
        """Tell a piece of what code has printed; it goes on with the logs before it."""
        last = self._told[-1] if self._told else None
        if isinstance(last, list):
            last.append(text)
        else:
            self._told.append([text])
        self._tell(len(self._told) - 1, CodeLogs(text))

    def add_image(self, file_id: str) -> None:
        """Tell of a figure, by the file that it is."""
        image = CodeImage(CodeImageFile(file_id))
        self._told.append(image)
        self._tell(len(self._told) - 1, image)

    @property
    def is_within_line(self) -> bool:
        """Whether the last thing told is logs without a line end."""
        last = self._told[-1] if self._told else None
        return isinstance(last, list) and not last[-1].endswith("\n")

    @property
    def images_count(self) -> int:
        return sum(isinstance(output, CodeImage) for output in self._told)

    @property
    def outputs(self) -> list[CodeOutput]:
        """All of it, put together as readers do."""
        return [CodeLogs("".join(output)) if isinstance(output, list) else output for output in self._told]


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

    async def call(self, use: ToolUse, call_id: str, number: int, arguments: dict[str, Any], told: ToldOutputs) -> ToolResult:
        """Run the tool. number: the place of its output in the context of the run, unique within it.

        told: takes what is put out while the tool runs; the call of the result shows the same.
        Raises ToolFailure with a message that the model can act on.
        """
        ...

    def kept_threads(self) -> Collection[tuple[str, str]]:
        """Project and id of the threads of which this process keeps something, such as a session of the sandbox."""
        ...

    def forget_thread(self, project_id: str, thread_id: str) -> None:
        """The thread is gone: begin to drop what is kept of it. One of which nothing is kept is no error."""
        ...

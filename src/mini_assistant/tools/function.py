"""The client's own functions: the model asks for them, the client runs them."""

import msgspec

from mini_assistant.assistants.schema import FunctionTool
from mini_assistant.errors import ToolFailure
from mini_assistant.runs.schema import FunctionCall, FunctionToolCall, Run


def check_call(run: Run, name: str, arguments: str) -> None:
    """Raise ToolFailure when a call cannot be handed to the client: no such function, or arguments that are no JSON."""
    names = [tool.function.name for tool in run.tools if isinstance(tool, FunctionTool)]
    if name not in names:
        raise ToolFailure("not_found", f"There is no tool named '{name[:64]}'. Tools are: {', '.join(names) or 'none'}.")
    try:
        msgspec.json.decode(arguments, type=dict[str, object])
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as exc:
        raise ToolFailure("bad_arguments", f"The arguments of '{name}' are not a JSON object.") from exc


def shown_call(call_id: str, name: str, arguments: str, output: str | None) -> FunctionToolCall:
    """The call as a step shows it."""
    return FunctionToolCall(call_id, FunctionCall(name, arguments, output))

"""The client's own functions: the model asks for them, the client runs them."""

from mini_assistant.assistants.schema import FunctionDefinition, FunctionTool
from mini_assistant.errors import ModelError, ToolFailure
from mini_assistant.runs.schema import FunctionCall, FunctionToolCall, Run
from mini_assistant.tools.arguments import argument_problem_or_none, object_problem_or_none


def check_call(run: Run, name: str, arguments: str, *, is_told_before: bool) -> None:
    """Check a call before it is handed to the client.

    is_told_before: the model has been told in this run that its arguments for the function were wrong. When they are wrong again, those of
    a function that is not `strict` go to the client as they are, if only they are a JSON object.
    Raises ToolFailure with what the model has to do better, and ModelError when a `strict` function cannot be called.
    """
    function = _function(run, name)
    problem = argument_problem_or_none(function.parameters or {}, arguments)
    if problem is None:
        return
    if is_told_before and function.strict:
        raise ModelError(f"The model called the function '{name}' with wrong arguments again, and the function is strict. {problem}")
    if is_told_before and object_problem_or_none(arguments) is None:
        return
    raise ToolFailure("bad_arguments", f"The arguments of '{name}' are wrong. {problem} Mend them and call it again.")


def _function(run: Run, name: str) -> FunctionDefinition:
    functions = {tool.function.name: tool.function for tool in run.tools if isinstance(tool, FunctionTool)}
    if name not in functions:
        raise ToolFailure("not_found", f"There is no tool named '{name[:64]}'. Tools are: {', '.join(functions) or 'none'}.")
    return functions[name]


def shown_call(call_id: str, name: str, arguments: str, output: str | None) -> FunctionToolCall:
    """The call as a step shows it."""
    return FunctionToolCall(call_id, FunctionCall(name, arguments, output))

"""What a model may call in a turn, and whether the calls that it wrote are among it. Pure."""

import msgspec

from mini_assistant.models.base import ChatRequest, NamedTool, ToolCallDelta, ToolDefinition

_CALLS_MAX = 128
_NAMES_LISTED_MAX = 20
_NAME_CHARACTERS_MAX = 64


class UnreadableAnswer(Exception):
    """An answer that is no next step. problem: one sentence for the model that says what was wrong."""

    def __init__(self, problem: str) -> None:
        super().__init__(problem)
        self.problem = problem


class WrittenCall(msgspec.Struct, frozen=True):
    """A call as a model wrote it. arguments: JSON text of an object; None when it wrote anything else."""

    name: str
    arguments: str | None


class Offer(msgspec.Struct, frozen=True):
    """The tools of a turn. tools: those that may be called now, at least one. calls_max: how many calls are taken, 1 or more."""

    tools: tuple[ToolDefinition, ...]
    is_demanded: bool
    is_named: bool
    calls_max: int

    @property
    def demand(self) -> str:
        """The line that tells the model whether it must call."""
        if self.is_named:
            return f"You must call the tool {self.tools[0].name} now."
        return "You must call a tool now." if self.is_demanded else "You may call tools."

    def has(self, name: str) -> bool:
        """Whether a tool of this name may be called."""
        return any(tool.name == name for tool in self.tools)

    def accepted(self, calls: list[WrittenCall], already: int = 0) -> list[ToolCallDelta]:
        """The calls in the form of a stream; those beyond what is allowed are left out. already: calls of the turn before these.

        Raises UnreadableAnswer when one of them cannot be made.
        """
        return [self._delta(already + at, call) for at, call in enumerate(calls[: max(0, self.calls_max - already)])]

    def _delta(self, index: int, call: WrittenCall) -> ToolCallDelta:
        if not self.has(call.name):
            names = ", ".join(tool.name for tool in self.tools[:_NAMES_LISTED_MAX])
            raise UnreadableAnswer(f"'{call.name[:_NAME_CHARACTERS_MAX]}' cannot be called; what can be called is: {names}.")
        if call.arguments is None:
            raise UnreadableAnswer(f"The arguments of '{call.name}' must be a JSON object.")
        return ToolCallDelta(index, call.name, call.arguments)


def offer_or_none(request: ChatRequest) -> Offer | None:
    """What is offered in a turn; None when nothing may be called."""
    choice, tools = request.tool_choice, request.tools
    if choice == "none" or not tools:
        return None
    named = tuple(tool for tool in tools if isinstance(choice, NamedTool) and tool.name == choice.name)[:1]
    return Offer(
        tools=named or tools,
        is_demanded=bool(named) or choice == "required",
        is_named=bool(named),
        calls_max=1 if named or not request.parallel_tool_calls else _CALLS_MAX,
    )

"""One answer on one rung of the ladder: as it is, with a call that was demanded, or in an emulated form."""

import contextlib
from collections.abc import AsyncGenerator
from dataclasses import dataclass, field

import msgspec

from mini_assistant.errors import ModelError
from mini_assistant.models.base import (
    Capabilities,
    ChatDelta,
    ChatProvider,
    ChatRequest,
    Emulation,
    Finished,
    FinishReason,
    NamedTool,
    RefusalDelta,
    TextDelta,
    TokenUsage,
    ToolCallDelta,
)
from mini_assistant.models.reasoning import answer_without_reasoning
from mini_assistant.models.tool_calling.emulation import AnswerReader, UnreadableAnswer, repair_request

# Where the schema is enforced nothing needs a repair, and where it is not, asking for it again is no use.
_REPAIRED: tuple[Emulation, ...] = ("json_object", "text")


class RungFailed(Exception):
    """The demanded call did not come, or the answer cannot be read. Nothing of it has been told."""


@dataclass(slots=True)
class Asking:
    """Who is asked in a turn, and what the answers cost that were thrown away. characters_max: of an answer that is held back."""

    provider: ChatProvider
    capabilities: Capabilities
    characters_max: int
    spent: list[TokenUsage] = field(default_factory=list[TokenUsage])

    def throw_away(self, finished: Finished) -> None:
        """Remember what an answer has cost."""
        if finished.usage is not None:
            self.spent.append(finished.usage)

    def with_spent(self, finished: Finished) -> Finished:
        """The end of the answer that is told, with what was spent before."""
        if finished.usage is None or not self.spent:
            return finished
        usages = [msgspec.structs.astuple(usage) for usage in (*self.spent, finished.usage)]
        return Finished(finished.reason, TokenUsage(*map(sum, zip(*usages, strict=True))))

    def check_length(self, characters: int) -> None:
        """Raise ModelError when more is held back than an answer may have."""
        if characters > self.characters_max:
            raise ModelError(f"The model's answer is longer than {self.characters_max} characters.")


def is_demanded(request: ChatRequest) -> bool:
    """Whether the answer must hold a tool call."""
    return bool(request.tools) and (request.tool_choice == "required" or isinstance(request.tool_choice, NamedTool))


async def answer_without_calls(asking: Asking, request: ChatRequest) -> AsyncGenerator[list[ChatDelta], None]:
    """An answer in the API's own way where no tool may be called: servers that overlook it call one all the same."""
    async with contextlib.aclosing(answer_without_reasoning(asking.provider, request, asking.capabilities)) as answer:
        async for deltas in answer:
            told: list[ChatDelta] = [delta for delta in deltas if not isinstance(delta, ToolCallDelta)]
            last = deltas[-1]
            if isinstance(last, Finished) and last.reason == "tool_calls":
                told[-1] = Finished("stop", last.usage)
            if told:
                yield told


async def demanded_answer(asking: Asking, request: ChatRequest) -> AsyncGenerator[list[ChatDelta], None]:
    """An answer in the API's own way that must hold a call. Text is held back until there is one: many servers overlook the demand.

    Raises RungFailed when there is none.
    """
    choice = request.tool_choice
    names = {choice.name} if isinstance(choice, NamedTool) else {tool.name for tool in request.tools}
    held: list[ChatDelta] = []
    held_characters = 0
    is_called = False
    async with contextlib.aclosing(answer_without_reasoning(asking.provider, request, asking.capabilities)) as answer:
        async for deltas in answer:
            if is_called:
                yield deltas
                continue
            held += deltas
            held_characters += sum(len(delta.text) for delta in deltas if isinstance(delta, TextDelta | RefusalDelta))
            asking.check_length(held_characters)
            is_called = any(isinstance(delta, ToolCallDelta) and delta.name in names for delta in deltas)
            last = deltas[-1]
            if is_called:
                yield held
            elif isinstance(last, Finished):
                if last.reason in ("length", "content_filter"):  # it may have been on its way to the call
                    yield held
                    return
                asking.throw_away(last)
                raise RungFailed("a demanded call did not come")


async def emulated_answer(
    asking: Asking, request: ChatRequest, asked: ChatRequest, form: Emulation
) -> AsyncGenerator[list[ChatDelta], None]:
    """The next step of a model, in a form that it can write; asked for once more where that helps. asked: the request in that form.

    Raises RungFailed when it cannot be read.
    """
    for is_last_attempt in (False, True) if form in _REPAIRED else (True,):
        reading = _Reading(AnswerReader(request, form))
        async with contextlib.aclosing(answer_without_reasoning(asking.provider, asked, asking.capabilities)) as answer:
            async for deltas in answer:
                told = reading.take(deltas)
                asking.check_length(reading.characters)
                if told:
                    yield told
        finished = reading.finished
        if finished is None:
            raise ModelError("The model's answer ended without a finish reason.")
        try:
            rest = reading.end()
        except UnreadableAnswer as exc:
            if not is_last_attempt:
                asking.throw_away(finished)
                asked = repair_request(asked, reading.text, exc.problem)
                continue
            if form != "text" or is_demanded(request):
                asking.throw_away(finished)
                raise RungFailed(exc.problem) from exc
            rest = [TextDelta(reading.text)]  # there is no lower rung, and words were allowed
        yield [*rest, asking.with_spent(Finished(reading.reason, finished.usage))]
        return


class _Reading:
    """An emulated answer while it arrives."""

    def __init__(self, reader: AnswerReader) -> None:
        self._reader = reader
        self._pieces: list[str] = []
        self._has_called = False
        self.characters = 0
        self.finished: Finished | None = None

    def take(self, deltas: list[ChatDelta]) -> list[ChatDelta]:
        """What can be told of the next deltas."""
        told: list[ChatDelta] = []
        for delta in deltas:
            if isinstance(delta, TextDelta):
                self._pieces.append(delta.text)
                self.characters += len(delta.text)
                told += self._reader.feed(delta.text)
            elif isinstance(delta, Finished):
                self.finished = delta
            elif isinstance(delta, RefusalDelta):
                told.append(delta)
        self._note_calls(told)
        return told

    def end(self) -> list[ChatDelta]:
        """The rest. Raises UnreadableAnswer when there is nothing to tell, unless the answer was cut off."""
        try:
            rest: list[ChatDelta] = [*self._reader.end()]
        except UnreadableAnswer:
            if self._reader.has_told or self._is_cut_off:
                return []
            raise
        self._note_calls(rest)
        return rest

    @property
    def text(self) -> str:
        return "".join(self._pieces)

    @property
    def reason(self) -> FinishReason:
        """Why the answer ended. Valid after `end`."""
        assert self.finished is not None
        if self._is_cut_off:
            return self.finished.reason
        return "tool_calls" if self._has_called else "stop"

    @property
    def _is_cut_off(self) -> bool:
        return self.finished is not None and self.finished.reason in ("length", "content_filter")

    def _note_calls(self, told: list[ChatDelta]) -> None:
        self._has_called = self._has_called or any(isinstance(delta, ToolCallDelta) for delta in told)

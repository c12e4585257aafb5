"""Tool calls of models that have none of the API's own: how they are asked for a next step, and how the answer is read.

`ladder.py` decides in which form a model is asked. Pure: nothing here waits, and no answer of a model can do more than be unreadable.
"""

import msgspec

from mini_assistant.models.base import ChatMessage, ChatRequest, Emulation, TextDelta, ToolCallDelta
from mini_assistant.models.tool_calling.history import plain_messages
from mini_assistant.models.tool_calling.json_answer import JsonAnswer
from mini_assistant.models.tool_calling.next_step import next_step_format, reply_schema_or_none
from mini_assistant.models.tool_calling.offer import UnreadableAnswer, offer_or_none
from mini_assistant.models.tool_calling.prompt_text import tools_section, with_section
from mini_assistant.models.tool_calling.text_answer import TextAnswer

__all__ = ["AnswerReader", "UnreadableAnswer", "emulated_request", "repair_request"]

_ANSWER_CHARACTERS_MAX = 4000


def emulated_request(request: ChatRequest, form: Emulation) -> ChatRequest:
    """The request without tools, in a form that asks for a next step. Where nothing may be called, only the history is rewritten."""
    messages = plain_messages(request.messages, form)
    response_format = request.response_format
    offer = offer_or_none(request)
    if offer is not None:
        messages = with_section(messages, tools_section(offer, form, reply_schema_or_none(response_format)))
        formats = {"json_schema": lambda: next_step_format(request, offer), "json_object": lambda: {"type": "json_object"}}
        response_format = formats[form]() if form in formats else None
    return msgspec.structs.replace(request, messages=messages, tools=(), tool_choice="none", response_format=response_format)


def repair_request(asked: ChatRequest, answer: str, problem: str) -> ChatRequest:
    """The emulated request once more, with the answer that could not be read and what was wrong with it."""
    cut = answer if len(answer) <= _ANSWER_CHARACTERS_MAX else f"{answer[:_ANSWER_CHARACTERS_MAX]} …"
    bad = [ChatMessage("assistant", cut)] if cut.strip() else []  # providers refuse empty messages
    said = ChatMessage("user", f"This answer cannot be used: {problem}\nAnswer again, as it is described under “# Tools”.")
    return msgspec.structs.replace(asked, messages=(*asked.messages, *bad, said))


class AnswerReader:
    """Reads one emulated answer while it arrives. request: the original one. Where nothing may be called all is text.

    Whatever the pieces of an answer, the same is told of it. The work is linear in its length.
    """

    def __init__(self, request: ChatRequest, form: Emulation) -> None:
        offer = offer_or_none(request)
        if offer is None:
            self._answer = _Words()
        elif form == "text":
            self._answer = TextAnswer(offer)
        else:
            self._answer = JsonAnswer(offer, is_reply_json=reply_schema_or_none(request.response_format) is not None)

    @property
    def has_told(self) -> bool:
        """Whether something was given out, so that the answer cannot be asked for again."""
        return self._answer.has_told

    def feed(self, text: str) -> list[TextDelta | ToolCallDelta]:
        """Take the next piece; returns what can be told with it."""
        return self._answer.feed(text)

    def end(self) -> list[TextDelta | ToolCallDelta]:
        """The answer is whole; returns the rest. Raises UnreadableAnswer when nothing of it can be used."""
        return self._answer.end()


class _Words:
    """An answer that can hold nothing but text."""

    def __init__(self) -> None:
        self.has_told = False

    def feed(self, piece: str) -> list[TextDelta | ToolCallDelta]:
        self.has_told = self.has_told or bool(piece)
        return [TextDelta(piece)] if piece else []

    def end(self) -> list[TextDelta | ToolCallDelta]:
        return []

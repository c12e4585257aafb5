"""Gets a model to call tools in the way that it can: the rungs of a ladder, from the API's own way down to plain words.

A turn begins on the highest rung that the model is known to manage. Nothing that a server says of itself is believed: when a demanded
call did not come, when an answer cannot be read, or when the request is refused for what the rung needs, the turn is tried one rung
lower, as long as nothing of it has been told; and what worked is remembered for the model. On every rung the same deltas come out.
"""

import contextlib
import logging
from collections.abc import AsyncGenerator
from dataclasses import dataclass
from typing import Any, Literal

import msgspec

from mini_assistant.errors import ModelError
from mini_assistant.models.base import Capabilities, ChatDelta, ChatProvider, ChatRequest, Emulation, NamedTool
from mini_assistant.models.learned import LearnedCapabilities, changes_after_refusal
from mini_assistant.models.reasoning import answer_without_reasoning
from mini_assistant.models.tool_calling.answers import (
    Asking,
    RungFailed,
    answer_without_calls,
    demanded_answer,
    emulated_answer,
    is_demanded,
)
from mini_assistant.models.tool_calling.emulation import emulated_request

log = logging.getLogger("mini_assistant.models")

Form = Emulation | Literal["native"]
_EMULATIONS: tuple[Emulation, ...] = ("json_schema", "json_object", "text")
# What a provider with `tools = "hosted"` calls by rules, without the model.
_CALLED_BY_RULES = {"file_search", "code_interpreter"}


@dataclass(frozen=True, slots=True)
class ServedModel:
    """A model at its provider. name: the provider's own. configured: what the config file says that it can do."""

    provider_name: str
    provider: ChatProvider
    name: str
    configured: Capabilities


class Ladder:
    """Streams answers of any model. characters_max: the longest answer that is held back in the hope of a call."""

    def __init__(self, learned: LearnedCapabilities, *, characters_max: int) -> None:
        self._learned = learned
        self._characters_max = characters_max

    async def stream(self, model: ServedModel, request: ChatRequest) -> AsyncGenerator[list[ChatDelta], None]:
        """As `ChatProvider.stream`, with tools for any model. Raises ModelError, too, when a demanded call came on no rung."""
        request = msgspec.structs.replace(request, model=model.name)
        capabilities = self._learned.of(request.owner, model.provider_name, model.name, model.configured)
        asking = Asking(model.provider, capabilities, self._characters_max)
        learned: dict[str, Any] = {}
        while True:
            form = form_of(request, asking.capabilities)
            asked = request if form == "native" else emulated_request(_without_forbidden_tools(request), form)
            has_begun = False
            try:
                async with contextlib.aclosing(_answer(asking, request, asked, form)) as answer:
                    async for deltas in answer:
                        if learned and not has_begun:
                            self._learned.remember(request.owner, model.provider_name, model.name, learned)
                            log.info("The model %r of '%s' is asked with %s from now on.", model.name, model.provider_name, learned)
                        has_begun = True
                        yield deltas
                return
            except RungFailed as exc:
                changes = _one_rung_lower(form, request, asking.capabilities)
                if changes is None:
                    raise ModelError(f"The model '{model.name}' does not call a tool, which this run demands.") from exc
            except ModelError as exc:
                changes = None if has_begun else changes_after_refusal(exc.refusal, asked, asking.capabilities)
                if changes is None or ("max_tokens_parameter" in changes and "max_tokens_parameter" in learned):
                    raise
            learned |= changes
            asking.capabilities = msgspec.structs.replace(asking.capabilities, **changes)


def form_of(request: ChatRequest, capabilities: Capabilities) -> Form:
    """In which form a turn is asked for."""
    way = capabilities.tools
    if way == "hosted":
        # Nothing is offered to such a model but what its provider calls, unless a call of something else is demanded.
        is_left_to_rules = not is_demanded(request) or (_demanded_names(request) & _CALLED_BY_RULES and capabilities.tool_choice is True)
        way = True if is_left_to_rules else capabilities.tool_choice is not True and capabilities.tool_choice
    elif way is True and is_demanded(request):
        way = capabilities.tool_choice
    if way is True:
        return "native"
    begin = 0 if way is False else _EMULATIONS.index(way)
    can_be = {"json_schema": capabilities.json_schema, "json_object": capabilities.json_object, "text": True}
    return next(form for form in _EMULATIONS[begin:] if can_be[form])


def _demanded_names(request: ChatRequest) -> set[str]:
    choice = request.tool_choice
    return {choice.name} if isinstance(choice, NamedTool) else {tool.name for tool in request.tools}


def _answer(asking: Asking, request: ChatRequest, asked: ChatRequest, form: Form) -> AsyncGenerator[list[ChatDelta], None]:
    if form != "native" and _without_forbidden_tools(request).tools:
        return emulated_answer(asking, request, asked, form)
    if is_demanded(request):
        return demanded_answer(asking, asked)
    if request.tool_choice == "none":
        return answer_without_calls(asking, asked)
    return answer_without_reasoning(asking.provider, asked, asking.capabilities)


def _without_forbidden_tools(request: ChatRequest) -> ChatRequest:
    """Tools that must not be called are not described to a model that is told of them in words."""
    return msgspec.structs.replace(request, tools=()) if request.tool_choice == "none" else request


def _one_rung_lower(form: Form, request: ChatRequest, capabilities: Capabilities) -> dict[str, Any] | None:
    """The change of capabilities after which `form_of` gives the next rung; None from the last."""
    if form == "text":
        return None
    field = "tool_choice" if capabilities.tools in (True, "hosted") and is_demanded(request) else "tools"
    if form == "native":
        return {field: False}
    return {field: _EMULATIONS[_EMULATIONS.index(form) + 1]}

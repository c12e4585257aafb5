"""What refusals and answers have shown of models while the server runs.

Endpoints differ in what they take, and most cannot be asked. So a request is sent as the config file says that the model takes it;
when it is refused for one of its parts, it is sent once more without that part, and what has worked is remembered for the model.
"""

import re
from collections import OrderedDict
from typing import Any

import msgspec

from mini_assistant.models.base import Capabilities, ChatRequest

_MODELS_MAX = 1000
_AT_MOST = re.compile(r"\b(?:at most|less than or equal to|must be <=?|range of \[\d+,) ?(\d{1,9})\b")
# What is wrong with this one prompt or its schemas. It names parts of the request, too, and says nothing of the model.
_OF_THIS_PROMPT = re.compile(
    r"context.?(?:length|window|size)|too many tokens|must contain the word|invalid schema for (?!response_format 'next_step')"
)


class LearnedCapabilities:
    """Changes to the capabilities of models, by owner, provider and the provider's name of the model. The newest 1,000 are kept.

    By owner, because a refusal may have its cause in the owner's own request: what one project makes a model refuse changes nothing for
    another.
    """

    def __init__(self) -> None:
        self._changes: OrderedDict[tuple[str, str, str], dict[str, Any]] = OrderedDict()

    def of(self, owner: str, provider: str, model: str, configured: Capabilities) -> Capabilities:
        """The capabilities of a model: the configured ones with what was learned."""
        changes = self._changes.get((owner, provider, model))
        return configured if changes is None else msgspec.structs.replace(configured, **changes)

    def remember(self, owner: str, provider: str, model: str, changes: dict[str, Any]) -> None:
        """Take changes over for the requests to come. changes: by the names of the fields of `Capabilities`."""
        key = (owner, provider, model)
        self._changes[key] = {**self._changes.get(key, {}), **changes}
        self._changes.move_to_end(key)
        if len(self._changes) > _MODELS_MAX:
            self._changes.popitem(last=False)


def changes_after_refusal(refusal: str, request: ChatRequest, capabilities: Capabilities) -> dict[str, Any] | None:
    """With which capabilities a refused request may succeed; None when the refusal names nothing that could be left out.

    refusal: the provider's own words. request, capabilities: what was sent. Changes only what was sent, so that no request is tried
    in the same way again.
    """
    words = refusal.lower()
    if _OF_THIS_PROMPT.search(words):
        return None
    for change in (_limit_change, _parameter_change, _role_change, _tools_change, _format_change):
        changes = change(words, request, capabilities)
        if changes:
            return changes
    return None


def _limit_change(words: str, request: ChatRequest, capabilities: Capabilities) -> dict[str, Any]:
    name = capabilities.max_tokens_parameter
    if request.completion_tokens_max is None or not re.search(rf"\b{name}\b", words):
        return {}
    limit = _AT_MOST.search(words)
    if limit is not None and 0 < int(limit[1]) < min(request.completion_tokens_max, capabilities.completion_tokens_max or 10**9):
        return {"completion_tokens_max": int(limit[1])}
    return {"max_tokens_parameter": "max_tokens" if name == "max_completion_tokens" else "max_completion_tokens"}


def _parameter_change(words: str, request: ChatRequest, capabilities: Capabilities) -> dict[str, Any]:
    if capabilities.stream_usage and ("stream_options" in words or "include_usage" in words):
        return {"stream_usage": False}
    if request.tools and capabilities.parallel_tool_calls and "parallel_tool_calls" in words:
        return {"parallel_tool_calls": False}
    if request.reasoning_effort is not None and capabilities.reasoning_effort and ("reasoning_effort" in words or "reasoning" in words):
        return {"reasoning_effort": False}
    has_sampling = request.temperature is not None or request.top_p is not None
    if has_sampling and capabilities.temperature and ("temperature" in words or "top_p" in words):
        return {"temperature": False}
    return {}


def _role_change(words: str, request: ChatRequest, capabilities: Capabilities) -> dict[str, Any]:
    role = capabilities.system_role
    if role == "user" or role not in words or "role" not in words or all(message.role != "system" for message in request.messages):
        return {}
    return {"system_role": "system" if role == "developer" else "user"}


def _tools_change(words: str, request: ChatRequest, capabilities: Capabilities) -> dict[str, Any]:
    if not request.tools or capabilities.tools is not True:
        return {}
    if request.tool_choice != "auto" and capabilities.tool_choice is True and re.search(r"tool_choice|tool choice", words):
        return {"tool_choice": False}
    return {"tools": False} if re.search(r"\btools?\b|function.?call|\bfunctions\b", words) else {}


def _format_change(words: str, request: ChatRequest, capabilities: Capabilities) -> dict[str, Any]:
    wanted = (request.response_format or {}).get("type")
    if not re.search(r"response_format|response format|json|schema|structured|grammar|guided", words):
        return {}
    if wanted == "json_schema" and capabilities.json_schema:
        return {"json_schema": False}
    return {"json_object": False} if wanted in ("json_schema", "json_object") and capabilities.json_object else {}

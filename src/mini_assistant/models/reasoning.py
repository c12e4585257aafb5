"""An answer as the rest of the program wants it: without what the model thinks, and with all of its tokens counted."""

import asyncio
import contextlib
from collections.abc import AsyncGenerator

import msgspec

from mini_assistant.models.base import (
    Capabilities,
    ChatDelta,
    ChatProvider,
    ChatRequest,
    Finished,
    ReasoningDelta,
    RefusalDelta,
    TextDelta,
    TokenUsage,
    ToolCallDelta,
)
from mini_assistant.models.think_tags import ThinkTags
from mini_assistant.models.tokens import count_prompt_tokens, count_tokens


async def answer_without_reasoning(
    provider: ChatProvider, request: ChatRequest, capabilities: Capabilities
) -> AsyncGenerator[list[ChatDelta], None]:
    """As `ChatProvider.stream`, without `ReasoningDelta`.

    The usage in `Finished` is estimated when the provider gave none, and so are the tokens of reasoning that it did not count.
    """
    tags = ThinkTags(capabilities.think_tags) if capabilities.think_tags else None
    texts: list[str] = []
    thoughts: list[str] = []
    async with contextlib.aclosing(provider.stream(request, capabilities)) as answer:
        async for deltas in answer:
            told: list[ChatDelta] = deltas
            if tags is not None and any(type(delta) is ReasoningDelta for delta in deltas):
                told = [*tags.end(), *deltas]  # the provider takes reasoning apart itself: tags would be words
                tags = None
            elif tags is not None:
                told = _sorted_out(deltas, tags)
                tags = None if tags.is_done else tags
            if any(type(delta) is ReasoningDelta for delta in told):
                thoughts += [delta.text for delta in told if isinstance(delta, ReasoningDelta)]
                told = [delta for delta in told if not isinstance(delta, ReasoningDelta)]
            texts += [_text_of(delta) for delta in told]
            last = deltas[-1]
            if isinstance(last, Finished) and (last.usage is None or thoughts):
                told[-1] = await asyncio.to_thread(_counted, last, request, "".join(texts), "".join(thoughts))
            if told:
                yield told


def _sorted_out(deltas: list[ChatDelta], tags: ThinkTags) -> list[ChatDelta]:
    """The deltas with the reasoning among the text marked as such."""
    sorted_out: list[ChatDelta] = []
    for delta in deltas:
        if isinstance(delta, TextDelta):
            sorted_out += tags.feed(delta.text)
            continue
        if isinstance(delta, Finished):
            sorted_out += tags.end(is_whole=delta.reason == "stop")
        sorted_out.append(delta)
    return sorted_out


def _text_of(delta: ChatDelta) -> str:
    """What a delta adds to the tokens of an answer."""
    if isinstance(delta, TextDelta) or isinstance(delta, RefusalDelta):  # noqa: SIM101 - a union costs three times as much
        return delta.text
    return (delta.name or "") + delta.arguments if isinstance(delta, ToolCallDelta) else ""


def _counted(finished: Finished, request: ChatRequest, answer: str, thoughts: str) -> Finished:
    usage, reasoning_tokens = finished.usage, count_tokens(thoughts)
    if usage is None:
        completion_tokens = count_tokens(answer) + reasoning_tokens
        usage = TokenUsage(count_prompt_tokens(request.messages, request.tools), completion_tokens, reasoning_tokens=reasoning_tokens)
    elif not usage.reasoning_tokens:
        usage = msgspec.structs.replace(usage, reasoning_tokens=min(reasoning_tokens, usage.completion_tokens))
    return Finished(finished.reason, usage)

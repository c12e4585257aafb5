"""Keeps what a model thinks out of its answer, and counts it."""

import asyncio
import contextlib
from collections.abc import AsyncGenerator

import msgspec

from mini_assistant.models.base import Capabilities, ChatDelta, ChatProvider, ChatRequest, Finished, ReasoningDelta, TextDelta
from mini_assistant.models.think_tags import ThinkTags
from mini_assistant.models.tokens import count_tokens


async def answer_without_reasoning(
    provider: ChatProvider, request: ChatRequest, capabilities: Capabilities
) -> AsyncGenerator[list[ChatDelta], None]:
    """As `ChatProvider.stream`, without `ReasoningDelta`. Reasoning that the provider did not count is counted in the usage."""
    tags = ThinkTags(capabilities.think_tags) if capabilities.think_tags else None
    thoughts: list[str] = []
    async with contextlib.aclosing(provider.stream(request, capabilities)) as answer:
        async for deltas in answer:
            told: list[ChatDelta] = deltas
            if tags is not None:
                told = _sorted_out(deltas, tags)
                tags = None if tags.is_done else tags
            if any(type(delta) is ReasoningDelta for delta in told):
                thoughts += [delta.text for delta in told if isinstance(delta, ReasoningDelta)]
                told = [delta for delta in told if not isinstance(delta, ReasoningDelta)]
            if thoughts and isinstance(last := deltas[-1], Finished):
                told = [*told[:-1], await _with_thoughts_counted(last, "".join(thoughts))]
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


async def _with_thoughts_counted(finished: Finished, thoughts: str) -> Finished:
    usage = finished.usage
    if usage is None or usage.reasoning_tokens:
        return finished
    tokens = await asyncio.to_thread(count_tokens, thoughts)
    return Finished(finished.reason, msgspec.structs.replace(usage, reasoning_tokens=min(tokens, usage.completion_tokens)))

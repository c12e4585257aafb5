"""What a model thinks is no part of its answer, and is counted when the provider has not counted it."""

import pytest

from mini_assistant.models.base import Capabilities, ChatMessage, ChatRequest, Finished, ReasoningDelta, TextDelta, TokenUsage
from mini_assistant.models.reasoning import answer_without_reasoning
from mini_assistant.models.tokens import count_prompt_tokens, count_tokens

ASKED = ChatRequest("m", (ChatMessage("user", "Why?"),))


class Provider:
    def __init__(self, *lists):
        self.lists = lists

    async def stream(self, request, capabilities):
        for deltas in self.lists:
            yield deltas


async def answered(*lists, **capabilities):
    found = [deltas async for deltas in answer_without_reasoning(Provider(*lists), ASKED, Capabilities(**capabilities))]
    assert all(found)
    deltas = [delta for deltas in found for delta in deltas]
    return "".join(delta.text for delta in deltas if isinstance(delta, TextDelta)), deltas[-1].usage


@pytest.mark.parametrize(
    "lists",
    [
        [[ReasoningDelta("Because of")], [ReasoningDelta(" that.")], [TextDelta("So.")]],
        [[ReasoningDelta("Because of that."), TextDelta("So.")]],
        [[TextDelta("<think>Because of")], [TextDelta(" that.</think>\n\nSo.")]],
        [
            [TextDelta("<th")],
            [
                TextDelta("ink>Because of that.</think>So."),
            ],
        ],
    ],
)
async def test_reasoning_is_left_out_and_counted(lists):
    words, usage = await answered(*lists, [Finished("stop", TokenUsage(5, 50))])
    assert words == "So."
    assert usage == TokenUsage(5, 50, reasoning_tokens=count_tokens("Because of that."))


async def test_what_the_provider_has_counted_stands():
    _, usage = await answered([ReasoningDelta("Hm.")], [TextDelta("So."), Finished("stop", TokenUsage(5, 50, reasoning_tokens=40))])
    assert usage == TokenUsage(5, 50, reasoning_tokens=40)


async def test_no_more_reasoning_than_tokens_were_written():
    _, usage = await answered([ReasoningDelta("One two three four five.")], [Finished("stop", TokenUsage(5, 3))])
    assert usage == TokenUsage(5, 3, reasoning_tokens=3)


async def test_tags_can_be_words():
    words, _ = await answered([TextDelta("<think>is a tag</think>")], [Finished("stop", TokenUsage(5, 3))], think_tags=False)
    assert words == "<think>is a tag</think>"
    words, _ = await answered([TextDelta("Hm.</think>So.")], [Finished("stop", TokenUsage(5, 3))], think_tags="opened")
    assert words == "So."


async def test_what_nobody_has_counted_is_estimated():
    _, usage = await answered([ReasoningDelta("Because of that.")], [TextDelta("So.")], [Finished("stop", None)])
    thoughts = count_tokens("Because of that.")
    assert usage == TokenUsage(count_prompt_tokens(ASKED.messages), count_tokens("So.") + thoughts, reasoning_tokens=thoughts)


async def test_tags_are_words_when_the_provider_takes_reasoning_apart():
    lists = [[ReasoningDelta("Hm.")], [TextDelta("So.")], [Finished("length", TokenUsage(5, 3))]]
    words, _ = await answered(*lists, think_tags="opened")
    assert words == "So."

"""Runs of the built-in model that search files. It quotes without its weights, so these tests need none of its packages."""

import dataclasses
import json
from typing import Any

import openai
import pytest

from mini_assistant.settings import Settings
from tests.conformance.conversations import messages_of, new_assistant, steps_of, stopped, text_of, thread_saying
from tests.searched_files import new_store, resources_of

FILE_SEARCH: Any = {"type": "file_search"}
FUNCTION: Any = {"type": "function", "function": {"name": "weather"}}


@pytest.fixture
def settings(settings: Settings) -> Settings:
    """A server whose every model is the built-in one."""
    return dataclasses.replace(settings, openai_base_url="")


async def asked(sdk: openai.AsyncOpenAI, text: str, *, tools: tuple[Any, ...] = (FILE_SEARCH,), **fields: Any) -> Any:
    assistant = await new_assistant(sdk, tools=list(tools), tool_resources=resources_of(await new_store(sdk)))
    thread = await thread_saying(sdk, text)
    return await stopped(sdk, await sdk.beta.threads.runs.create(thread.id, assistant_id=assistant.id, **fields))


async def test_a_question_is_answered_by_a_quote_that_is_cited(sdk: openai.AsyncOpenAI) -> None:
    run = await asked(sdk, "What is the favorite food of Anna?", tools=(FILE_SEARCH, FUNCTION))
    assert run.status == "completed", run.last_error
    assert [step.type for step in await steps_of(sdk, run)] == ["tool_calls", "message_creation"]
    [message] = await messages_of(sdk, run)
    assert text_of(message) == "“The favorite food of Anna is pizza with olives.” 【4:0†food.txt】"
    [annotation] = message.to_dict()["content"][0]["text"]["annotations"]  # type: ignore[index]
    assert (await sdk.files.retrieve(annotation["file_citation"]["file_id"])).filename == "food.txt"
    assert run.usage is not None
    assert run.usage.completion_tokens > 0


async def test_what_is_not_in_the_files_is_not_made_up(sdk: openai.AsyncOpenAI) -> None:
    run = await asked(sdk, "Who won the football championship in Brazil?")
    assert text_of((await messages_of(sdk, run))[0]) == "I could not find this in the files."


async def test_a_search_can_be_demanded_and_a_function_too(sdk: openai.AsyncOpenAI) -> None:
    forced = await asked(sdk, "Pizza", tool_choice={"type": "file_search"})
    assert [step.type for step in await steps_of(sdk, forced)] == ["tool_calls", "message_creation"]
    function = {"type": "function", "function": {"name": "weather"}}
    waiting = await asked(sdk, "Is it cold?", tools=(FILE_SEARCH, FUNCTION), tool_choice=function)
    assert waiting.status == "requires_action"
    assert waiting.required_action is not None
    [call] = waiting.required_action.submit_tool_outputs.tool_calls
    assert call.function.name == "weather"
    assert isinstance(json.loads(call.function.arguments), dict)

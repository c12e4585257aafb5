"""Runs of the built-in model that calculate and look at files. It does so without its weights, so these tests need none of its packages."""

import dataclasses
from typing import Any

import openai
import pytest

from mini_assistant.settings import Settings
from tests.conformance.conversations import messages_of, new_assistant, steps_of, stopped, text_of, thread_saying
from tests.searched_files import new_store, resources_of

CODE_INTERPRETER: Any = {"type": "code_interpreter"}
FILE_SEARCH: Any = {"type": "file_search"}


@pytest.fixture
def settings(settings: Settings) -> Settings:
    """A server whose every model is the built-in one, with the sandbox that every machine has."""
    return dataclasses.replace(settings, openai_base_url="", sandbox="unsafe", sandbox_pool_sessions=0)


async def asked(sdk: openai.AsyncOpenAI, text: str, *, resources: Any = None, tools: Any = None, **fields: Any) -> Any:
    assistant = await new_assistant(sdk, tools=tools or [CODE_INTERPRETER], tool_resources=resources)
    thread = await thread_saying(sdk, text)
    run = await stopped(sdk, await sdk.beta.threads.runs.create(thread.id, assistant_id=assistant.id, **fields))
    assert run.status == "completed", run.last_error
    return run


async def answer_of(sdk: openai.AsyncOpenAI, run: Any) -> str:
    [message] = await messages_of(sdk, run)
    return text_of(message)


async def call_of(sdk: openai.AsyncOpenAI, run: Any) -> Any:
    """The one call of a run that has made one."""
    tools, message = await steps_of(sdk, run)
    assert (tools.type, message.type) == ("tool_calls", "message_creation")
    assert tools.step_details.type == "tool_calls"
    [call] = tools.step_details.tool_calls
    assert call.type == "code_interpreter"
    return call.code_interpreter


async def test_arithmetic_is_calculated_by_code(sdk: openai.AsyncOpenAI) -> None:
    run = await asked(sdk, "What is 12*(7+3)?")
    call = await call_of(sdk, run)
    assert call.input == "print(12 * (7 + 3))"
    assert [output.to_dict() for output in call.outputs] == [{"type": "logs", "logs": "120\n"}]
    assert await answer_of(sdk, run) == "12 * (7 + 3) = 120"
    assert run.usage is not None
    assert run.usage.completion_tokens > 0


async def test_what_cannot_be_calculated_is_said(sdk: openai.AsyncOpenAI) -> None:
    run = await asked(sdk, "compute 9**9**9")
    assert (await answer_of(sdk, run)).startswith("I could not calculate 9^9^9: OverflowError")


async def test_arithmetic_goes_before_files(sdk: openai.AsyncOpenAI) -> None:
    resources = resources_of(await new_store(sdk))
    tools = [FILE_SEARCH, CODE_INTERPRETER]
    assert await answer_of(sdk, await asked(sdk, "17 % of 340", tools=tools, resources=resources)) == "17% of 340 = 57.8"
    quoted = await asked(sdk, "What is the favorite food of Anna?", tools=tools, resources=resources)
    assert (await answer_of(sdk, quoted)).startswith("“The favorite food of Anna is pizza with olives.”")


async def test_a_demanded_call_looks_at_the_files(sdk: openai.AsyncOpenAI) -> None:
    file = await sdk.files.create(file=("numbers.csv", b"name,number\nx,1\ny,3\n"), purpose="assistants")
    resources = {"code_interpreter": {"file_ids": [file.id]}}
    run = await asked(sdk, "What is in my file?", resources=resources, tool_choice=CODE_INTERPRETER)
    assert (await call_of(sdk, run)).input.startswith("import csv")
    answer = await answer_of(sdk, run)
    assert answer.startswith("This is what came of the code:\n\n```\nFiles in /mnt/data: 1\n\nnumbers.csv: 20 bytes\n")
    assert answer.endswith("\n```")

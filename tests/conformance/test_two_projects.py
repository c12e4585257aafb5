"""Two projects of one server with the official SDK: each has a server of its own, as far as it can see."""

import asyncio
import contextlib
import dataclasses
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any

import msgspec
import openai
import pytest

from mini_assistant.administration import create_key
from mini_assistant.models.script import Rule, Script, ScriptedCall, Text, ToolCalls
from mini_assistant.models.scripted import ScriptedEndpoint
from mini_assistant.settings import Settings
from tests.conformance.conversations import stopped
from tests.conformance.stored_files import found, ingested, store_with, text_file

CODE_INTERPRETER: Any = {"type": "code_interpreter"}
FILE_SEARCH: Any = {"type": "file_search"}
Call = Callable[[], Coroutine[Any, Any, object]]


@dataclasses.dataclass(frozen=True)
class Projects:
    """A client of each project."""

    ours: openai.AsyncOpenAI
    theirs: openai.AsyncOpenAI


@pytest.fixture
async def projects(settings: Settings, server: str) -> AsyncIterator[Projects]:
    async with contextlib.AsyncExitStack() as stack:
        clients: list[openai.AsyncOpenAI] = []
        for project in ("team-a", "team-b"):
            key = (await create_key(settings, project, "read,write", None)).key
            client = openai.AsyncOpenAI(base_url=f"{server}/v1", api_key=key, max_retries=0, timeout=20)
            clients.append(await stack.enter_async_context(client))
        yield Projects(*clients)


async def not_found(*calls: Call) -> None:
    """Each of the calls is answered 404, with the words for an object that is not there."""
    for call in calls:
        with pytest.raises(openai.NotFoundError) as caught:
            await call()
        assert caught.value.type == "invalid_request_error"


async def test_what_another_project_has_is_not_there(projects: Projects) -> None:
    ours, theirs = projects.ours.beta, projects.theirs.beta
    assistant = await theirs.assistants.create(model="m", name="Theirs")
    thread = await theirs.threads.create(messages=[{"role": "user", "content": "Ours alone."}])
    run = await stopped(projects.theirs, await theirs.threads.runs.create(thread.id, assistant_id=assistant.id))
    [step] = (await theirs.threads.runs.steps.list(run.id, thread_id=thread.id)).data
    [answer, question] = (await theirs.threads.messages.list(thread.id)).data
    own_thread, own_assistant = await ours.threads.create(), await ours.assistants.create(model="m")
    await not_found(
        lambda: ours.assistants.retrieve(assistant.id),
        lambda: ours.assistants.update(assistant.id, name="Taken"),
        lambda: ours.assistants.delete(assistant.id),
        lambda: ours.threads.retrieve(thread.id),
        lambda: ours.threads.delete(thread.id),
        lambda: ours.threads.messages.create(thread.id, role="user", content="Hello?"),
        lambda: ours.threads.messages.retrieve(answer.id, thread_id=thread.id),
        lambda: ours.threads.messages.retrieve(answer.id, thread_id=own_thread.id),
        lambda: ours.threads.messages.delete(question.id, thread_id=own_thread.id),
        lambda: ours.threads.runs.retrieve(run.id, thread_id=thread.id),
        lambda: ours.threads.runs.cancel(run.id, thread_id=own_thread.id),
        lambda: ours.threads.runs.steps.retrieve(step.id, thread_id=thread.id, run_id=run.id),
        lambda: ours.threads.runs.create(thread.id, assistant_id=own_assistant.id),
        lambda: ours.threads.runs.create(own_thread.id, assistant_id=assistant.id, instructions="Hi."),
        lambda: ours.threads.create_and_run(assistant_id=assistant.id, instructions="Hi."),
    )
    # Cursors too.
    with pytest.raises(openai.NotFoundError):
        await ours.assistants.list(after=assistant.id)
    assert [known.id async for known in ours.assistants.list()] == [own_assistant.id]
    assert [known.id async for known in theirs.assistants.list()] == [assistant.id]
    assert (await theirs.assistants.retrieve(assistant.id)).name == "Theirs"
    assert len((await theirs.threads.messages.list(thread.id)).data) == 2


async def test_files_and_searches_are_of_one_project(projects: Projects) -> None:
    ours, theirs = projects.ours, projects.theirs
    file_id, own_file_id = await text_file(theirs, "The velvet whale sings."), await text_file(ours, "The quartz whale sings.")
    store_id, own_store_id = await store_with(theirs, file_id), await store_with(ours, own_file_id)
    attachment: Any = {"file_id": file_id, "tools": [FILE_SEARCH]}
    await not_found(
        lambda: ours.files.retrieve(file_id),
        lambda: ours.files.content(file_id),
        lambda: ours.files.delete(file_id),
        lambda: ours.vector_stores.retrieve(store_id),
        lambda: _searched(ours, store_id),
        lambda: ours.vector_stores.files.retrieve(file_id, vector_store_id=store_id),
        lambda: ours.vector_stores.files.create(own_store_id, file_id=file_id),
        lambda: ours.vector_stores.file_batches.create(own_store_id, file_ids=[own_file_id, file_id]),
        lambda: ours.vector_stores.create(file_ids=[own_file_id, file_id]),
        lambda: ours.beta.threads.create(messages=[{"role": "user", "content": "Read it.", "attachments": [attachment]}]),
        lambda: ours.beta.assistants.create(model="m", tool_resources={"file_search": {"vector_store_ids": [store_id]}}),
        lambda: ours.beta.assistants.create(model="m", tool_resources={"code_interpreter": {"file_ids": [file_id]}}),
    )
    assert await found(ours, own_store_id, "velvet whale") == [own_file_id]
    assert await found(theirs, store_id, "quartz whale") == [file_id]
    assert (await ingested(theirs, store_id, file_id)).status == "completed"
    assert [known.id async for known in ours.files.list()] == [own_file_id]


async def _searched(sdk: openai.AsyncOpenAI, store_id: str) -> object:
    return await sdk.vector_stores.search(store_id, query="whale")


@pytest.mark.parametrize("settings", [{"sandbox": "process", "sandbox_pool_sessions": 1, "sandbox_sessions_max": 2}], indirect=True)
@pytest.mark.usefixtures("process_sandbox")
async def test_code_of_two_projects(projects: Projects, endpoint: ScriptedEndpoint) -> None:
    """Neither files nor variables of one are there for the other; what code has written is a file of its project alone."""
    written = "secret = 'velvet'\nfor folder in ('/mnt/data', '/tmp'):\n    open(f'{folder}/secret.txt', 'w').write(secret)"
    looked = "import glob\nprint(globals().get('secret'), glob.glob('/mnt/data/*'), glob.glob('/tmp/secret*'))"
    endpoint.script = Script([_runs_code("Write it.", written), _runs_code("Look around.", looked), Rule([Text("Done.")])])
    await _code_output(projects.theirs, "Write it.")
    assert "None [] []" in await _code_output(projects.ours, "Look around.")
    [made] = [file async for file in projects.theirs.files.list() if file.purpose == "assistants_output"]
    assert (await projects.theirs.files.content(made.id)).content == b"velvet"
    await not_found(lambda: projects.ours.files.retrieve(made.id), lambda: projects.ours.files.content(made.id))
    assert [file.id async for file in projects.ours.files.list()] == []
    # Another thread of the same project has a session of its own as well; there is room for two, so one of them is a new one.
    assert "None [] []" in await _code_output(projects.theirs, "Look around.")


def _runs_code(text: str, code: str) -> Rule:
    return Rule(
        [ToolCalls([ScriptedCall("code_interpreter", msgspec.json.encode({"code": code}).decode())])], contains=text, after_tool=False
    )


async def _code_output(sdk: openai.AsyncOpenAI, text: str) -> str:
    """What code has printed, in a new thread whose message has made the model run it; with all else of the calls."""
    assistant = await sdk.beta.assistants.create(model="m", tools=[CODE_INTERPRETER])
    thread = await sdk.beta.threads.create(messages=[{"role": "user", "content": text}])
    async with asyncio.timeout(60):
        run = await stopped(sdk, await sdk.beta.threads.runs.create(thread.id, assistant_id=assistant.id))
    assert run.status == "completed", run.last_error
    steps = (await sdk.beta.threads.runs.steps.list(run.id, thread_id=thread.id)).data
    calls = [step.step_details.to_dict() for step in steps if step.type == "tool_calls"]
    assert calls
    return msgspec.json.encode(calls).decode()

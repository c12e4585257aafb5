"""code_interpreter as clients see it: the steps, the stream, figures, links and files; all with the official SDK or frame by frame."""

import asyncio
import dataclasses
from typing import Any

import aiohttp
import msgspec
import openai
import pytest
from openai.types.beta.threads import Run

from mini_assistant.models.script import ScriptedCall, Step, Text, ToolCalls
from mini_assistant.models.scripted import ScriptedEndpoint
from mini_assistant.settings import Settings
from tests.conformance.conversations import (
    WEATHER,
    answer_turns,
    messages_of,
    new_assistant,
    pending_ids,
    run_after,
    steps_of,
    stopped,
    submit,
    thread_saying,
)
from tests.conformance.raw_http import Frame, names, read_stream
from tests.conformance.server_settings import server_with
from tests.conformance.strictness import assert_same, wire

CODE_INTERPRETER: Any = {"type": "code_interpreter"}
PNG = b"\x89PNG\r\n\x1a\n"
PLOT = "import matplotlib.pyplot as plt\nplt.plot([1, 2, 3])\nprint('drawn')\nplt.show()\nprint('shown')"
SUMMARY = "open('/mnt/data/summary.csv', 'w').write('a,b\\n1,2\\n')\nprint('written')"
ANSWER = "Here it is: [summary](sandbox:/mnt/data/summary.csv)."

pytestmark = pytest.mark.usefixtures("process_sandbox")


@pytest.fixture
def settings(settings: Settings, request: pytest.FixtureRequest) -> Settings:
    changes = {"sandbox": "process", "sandbox_pool_sessions": 0, **getattr(request, "param", {})}
    return dataclasses.replace(settings, **changes)


def run_code(code: str) -> Step:
    return ToolCalls([ScriptedCall("code_interpreter", msgspec.json.encode({"code": code}).decode())], pieces=5)


async def finished(sdk: openai.AsyncOpenAI, endpoint: ScriptedEndpoint, *turns: list[Step], **thread: Any) -> Run:
    """A run of an assistant with code_interpreter, whose model answers so."""
    answer_turns(endpoint, *turns)
    assistant = await new_assistant(sdk, tools=[CODE_INTERPRETER])
    created = await sdk.beta.threads.create(messages=[{"role": "user", "content": "Compute it."}], **thread)
    run = await stopped(sdk, await sdk.beta.threads.runs.create(created.id, assistant_id=assistant.id))
    assert run.status == "completed", run.last_error
    return run


async def code_call(sdk: openai.AsyncOpenAI, run: Run, place: int = 0) -> dict[str, Any]:
    """The call of the run's step number `place`, as it is on the wire."""
    step = (await steps_of(sdk, run))[place]
    assert (step.type, step.status) == ("tool_calls", "completed")
    [call] = step.to_dict()["step_details"]["tool_calls"]  # type: ignore[index]
    return call


def asked(endpoint: ScriptedEndpoint, place: int = -1) -> list[dict[str, Any]]:
    """The messages of a request to the model."""
    return list(endpoint.requests)[place]["messages"]


def asked_first(endpoint: ScriptedEndpoint) -> dict[str, Any]:
    """The first request to the model."""
    return next(iter(endpoint.requests))


async def test_the_steps_of_a_calculation(sdk: openai.AsyncOpenAI, endpoint: ScriptedEndpoint) -> None:
    run = await finished(sdk, endpoint, [run_code("x = 6\nprint('six')\nx * 7")], [Text("It is 42.")])

    call = await code_call(sdk, run)
    assert call == {
        "id": call["id"],
        "type": "code_interpreter",
        "code_interpreter": {"input": "x = 6\nprint('six')\nx * 7", "outputs": [{"type": "logs", "logs": "six\n42\n"}]},
    }
    code, answer = await steps_of(sdk, run)
    assert answer.type == "message_creation"
    assert run.usage is not None
    assert code.usage is not None
    assert answer.usage is not None
    assert run.usage.total_tokens == code.usage.total_tokens + answer.usage.total_tokens
    [message] = await messages_of(sdk, run)
    assert wire(message)["attachments"] == []
    assert "42" in asked(endpoint)[-1]["content"]


async def test_code_that_prints_nothing_has_no_outputs(sdk: openai.AsyncOpenAI, endpoint: ScriptedEndpoint) -> None:
    run = await finished(sdk, endpoint, [run_code("x = 1")], [Text("Done.")])

    assert (await code_call(sdk, run))["code_interpreter"] == {"input": "x = 1", "outputs": []}


async def test_an_error_goes_to_the_model_which_tries_again(sdk: openai.AsyncOpenAI, endpoint: ScriptedEndpoint) -> None:
    run = await finished(sdk, endpoint, [run_code("x = 1\n1 / 0")], [run_code("x + 1")], [Text("2.")])

    [first] = (await code_call(sdk, run))["code_interpreter"]["outputs"]
    assert "ZeroDivisionError" in first["logs"]
    assert "ZeroDivisionError" in asked(endpoint, 1)[-1]["content"]
    assert (await code_call(sdk, run, 1))["code_interpreter"]["outputs"] == [{"type": "logs", "logs": "2\n"}]


async def test_figures_and_files(sdk: openai.AsyncOpenAI, endpoint: ScriptedEndpoint) -> None:
    run = await finished(sdk, endpoint, [run_code(PLOT)], [run_code(SUMMARY)], [Text(["Here it is: [summary](sandbox:/mnt", ANSWER[34:]])])

    drawn, image, shown = (await code_call(sdk, run))["code_interpreter"]["outputs"]
    assert (drawn, shown) == ({"type": "logs", "logs": "drawn\n"}, {"type": "logs", "logs": "shown\n"})
    figure_id = image["image"]["file_id"]
    [message] = await messages_of(sdk, run)
    picture, text = wire(message)["content"]
    assert picture == {"type": "image_file", "image_file": {"file_id": figure_id, "detail": "auto"}}
    assert text["text"]["value"] == ANSWER
    [link] = text["text"]["annotations"]
    summary_id = link["file_path"]["file_id"]
    assert link == {
        "type": "file_path",
        "text": "sandbox:/mnt/data/summary.csv",
        "start_index": ANSWER.index("sandbox:"),
        "end_index": ANSWER.index(")"),
        "file_path": {"file_id": summary_id},
    }
    assert wire(message)["attachments"] == [{"file_id": summary_id, "tools": [CODE_INTERPRETER]}]
    figure, summary = await sdk.files.retrieve(figure_id), await sdk.files.retrieve(summary_id)
    assert (figure.purpose, summary.purpose, summary.filename) == ("assistants_output", "assistants_output", "summary.csv")
    assert (await sdk.files.content(figure_id)).content.startswith(PNG)
    assert (await sdk.files.content(summary_id)).content == b"a,b\n1,2\n"


async def test_state_is_kept_between_the_runs_of_a_thread_and_not_between_threads(
    sdk: openai.AsyncOpenAI, endpoint: ScriptedEndpoint
) -> None:
    first = await finished(sdk, endpoint, [run_code("secret = 41")], [Text("Kept.")])
    answer_turns(endpoint, [run_code("secret + 1")], [Text("42.")])
    await sdk.beta.threads.messages.create(first.thread_id, role="user", content="And now?")
    again = await stopped(sdk, await sdk.beta.threads.runs.create(first.thread_id, assistant_id=first.assistant_id))
    other = await finished(sdk, endpoint, [run_code("secret")], [Text("Unknown.")])

    assert (await code_call(sdk, again))["code_interpreter"]["outputs"] == [{"type": "logs", "logs": "42\n"}]
    assert "NameError" in (await code_call(sdk, other))["code_interpreter"]["outputs"][0]["logs"]


async def test_files_of_assistant_thread_and_attachments_are_there(sdk: openai.AsyncOpenAI, endpoint: ScriptedEndpoint) -> None:
    ids = [
        (await sdk.files.create(file=(name, name.encode()), purpose="assistants")).id
        for name in ("of the assistant.txt", "of-thread.txt", "für mich.csv")
    ]
    answer_turns(
        endpoint, [run_code("import os\nfor name in sorted(os.listdir('/mnt/data')): print(name, open(name).read())")], [Text("There.")]
    )
    assistant = await new_assistant(sdk, tools=[CODE_INTERPRETER], tool_resources={"code_interpreter": {"file_ids": ids[:1]}})
    thread = await sdk.beta.threads.create(
        messages=[{"role": "user", "content": "List.", "attachments": [{"file_id": ids[2], "tools": [CODE_INTERPRETER]}]}],
        tool_resources={"code_interpreter": {"file_ids": ids[1:2]}},
    )
    run = await stopped(sdk, await sdk.beta.threads.runs.create(thread.id, assistant_id=assistant.id))

    [listed] = (await code_call(sdk, run))["code_interpreter"]["outputs"]
    names_listed = ("für mich.csv", "of the assistant.txt", "of-thread.txt")
    assert listed["logs"] == "".join(f"{name} {name}\n" for name in names_listed)
    offered = asked_first(endpoint)["tools"][0]["function"]["description"]
    assert all(name in offered for name in names_listed)


async def streamed(sdk: openai.AsyncOpenAI, http: aiohttp.ClientSession, endpoint: ScriptedEndpoint, *turns: list[Step]) -> list[Frame]:
    answer_turns(endpoint, *turns)
    assistant, thread = await new_assistant(sdk, tools=[CODE_INTERPRETER]), await thread_saying(sdk, "Compute it.")
    return await read_stream(http, "POST", f"/v1/threads/{thread.id}/runs", {"assistant_id": assistant.id, "stream": True})


async def test_the_stream_of_a_calculation(sdk: openai.AsyncOpenAI, http: aiohttp.ClientSession, endpoint: ScriptedEndpoint) -> None:
    frames = await streamed(sdk, http, endpoint, [run_code("print(6 * 7)")], [Text("42.")])

    told = names(frames)
    begun = told.index("thread.run.step.delta")
    assert told[: begun] == [
        "thread.run.created", "thread.run.queued", "thread.run.in_progress", "thread.run.step.created", "thread.run.step.in_progress",
    ]  # fmt: skip
    deltas = [frame.data["delta"]["step_details"]["tool_calls"][0] for frame in frames if frame.name == "thread.run.step.delta"]
    first, *inputs, output = deltas
    assert first == {
        "index": 0,
        "id": first["id"],
        "type": "code_interpreter",
        "code_interpreter": {"input": "", "outputs": []},
    }
    assert all(set(delta) == {"index", "type", "code_interpreter"} for delta in inputs)
    assert len(inputs) > 1
    assert "".join(delta["code_interpreter"]["input"] for delta in inputs) == "print(6 * 7)"
    assert output == {
        "index": 0,
        "type": "code_interpreter",
        "code_interpreter": {"outputs": [{"index": 0, "type": "logs", "logs": "42\n"}]},
    }
    ended = told.index("thread.run.step.completed")
    assert told[ended + 1 : ended + 5] == [
        "thread.run.step.created", "thread.run.step.in_progress", "thread.message.created", "thread.message.in_progress",
    ]  # fmt: skip


async def test_logs_come_while_the_code_runs(sdk: openai.AsyncOpenAI, http: aiohttp.ClientSession, endpoint: ScriptedEndpoint) -> None:
    code = "import time\nfor n in range(3):\n    print(n, flush=True)\n    time.sleep(0.3)"
    frames = await streamed(sdk, http, endpoint, [run_code(code)], [Text("Done.")])

    outputs = [
        output
        for frame in frames
        if frame.name == "thread.run.step.delta"
        for output in frame.data["delta"]["step_details"]["tool_calls"][0]["code_interpreter"].get("outputs", [])
    ]
    assert [output["logs"] for output in outputs] == ["0\n", "1\n", "2\n"]
    assert {output["index"] for output in outputs} == {0}


async def test_the_helper_rebuilds_code_figures_and_links(sdk: openai.AsyncOpenAI, endpoint: ScriptedEndpoint) -> None:
    answer_turns(endpoint, [Text("I draw it. "), run_code(PLOT + "\n" + SUMMARY)], [Text(ANSWER)])
    assistant, thread = await new_assistant(sdk, tools=[CODE_INTERPRETER]), await thread_saying(sdk, "Draw it.")
    async with sdk.beta.threads.runs.stream(thread_id=thread.id, assistant_id=assistant.id) as stream:
        run, steps, messages = await stream.get_final_run(), await stream.get_final_run_steps(), await stream.get_final_messages()

    assert run.status == "completed"
    assert_same(messages, await messages_of(sdk, run))
    known = {step.id: step for step in await steps_of(sdk, run)}
    for step in steps:
        if step.type == "tool_calls":
            shown: Any = step.to_dict()["step_details"]
            for output in shown["tool_calls"][0]["code_interpreter"]["outputs"]:
                output.pop("index", None)  # the helper keeps what deltas are placed by
            shown["tool_calls"][0].pop("index", None)
            assert shown == known[step.id].to_dict()["step_details"]


async def test_code_and_a_function_in_one_turn(sdk: openai.AsyncOpenAI, endpoint: ScriptedEndpoint) -> None:
    both = ToolCalls([ScriptedCall("code_interpreter", '{"code": "print(1)"}'), ScriptedCall("weather", '{"city": "Oslo"}')])
    answer_turns(endpoint, [both], [Text("Both.")])
    assistant, thread = await new_assistant(sdk, tools=[CODE_INTERPRETER, WEATHER]), await thread_saying(sdk, "Both, please.")
    run = await stopped(sdk, await sdk.beta.threads.runs.create(thread.id, assistant_id=assistant.id))

    assert (run.status, len(pending_ids(run))) == ("requires_action", 1)
    run = await stopped(sdk, await submit(sdk, run, "rain"))
    assert run.status == "completed"
    results = [message["content"] for message in asked(endpoint)[-2:]]
    assert results == ["Files written: {}\n1\n", "rain"]


@server_with(sandbox_call_timeout_seconds=1.0)
async def test_code_that_takes_too_long_is_stopped_and_the_model_told(sdk: openai.AsyncOpenAI, endpoint: ScriptedEndpoint) -> None:
    run = await finished(
        sdk, endpoint, [run_code("kept = 7\nprint('on my way', flush=True)\nwhile True: pass")], [run_code("kept")], [Text("7.")]
    )

    assert (await code_call(sdk, run))["code_interpreter"]["outputs"][0]["logs"].startswith("on my way\n")
    assert "1 second" in asked(endpoint, 1)[-1]["content"]
    assert (await code_call(sdk, run, 1))["code_interpreter"]["outputs"] == [{"type": "logs", "logs": "7\n"}]


async def test_a_lost_session_is_replaced_with_its_files(sdk: openai.AsyncOpenAI, endpoint: ScriptedEndpoint) -> None:
    file = await sdk.files.create(file=("in.csv", b"1,2"), purpose="assistants")
    run = await finished(
        sdk,
        endpoint,
        [run_code("x = 1\nimport os\nos._exit(3)")],
        [run_code("print(open('in.csv').read(), 'x' in globals())")],
        [Text("Lost.")],
        tool_resources={"code_interpreter": {"file_ids": [file.id]}},
    )

    assert "variables" in asked(endpoint, 1)[-1]["content"]
    assert (await code_call(sdk, run, 1))["code_interpreter"]["outputs"] == [{"type": "logs", "logs": "1,2 False\n"}]


async def test_cancelling_a_run_stops_its_code(sdk: openai.AsyncOpenAI, endpoint: ScriptedEndpoint) -> None:
    answer_turns(endpoint, [run_code("kept = 1\nwhile True: pass")], [run_code("kept")], [Text("1.")])
    assistant, thread = await new_assistant(sdk, tools=[CODE_INTERPRETER]), await thread_saying(sdk, "For ever.")
    run = await run_after(sdk, await sdk.beta.threads.runs.create(thread.id, assistant_id=assistant.id), "queued")
    await asyncio.sleep(1.0)
    await sdk.beta.threads.runs.cancel(run.id, thread_id=thread.id)
    assert (await stopped(sdk, run)).status == "cancelled"

    again = await stopped(sdk, await sdk.beta.threads.runs.create(thread.id, assistant_id=assistant.id))
    assert again.status == "completed", again.last_error
    assert len((await code_call(sdk, again))["code_interpreter"]["outputs"]) == 1


@server_with(sandbox="none")
async def test_without_a_sandbox_the_model_and_the_user_are_told(sdk: openai.AsyncOpenAI, endpoint: ScriptedEndpoint) -> None:
    run = await finished(sdk, endpoint, [run_code("1 + 1")], [Text("I cannot.")])

    [output] = (await code_call(sdk, run))["code_interpreter"]["outputs"]
    assert "no sandbox to run code" in output["logs"]
    assert "no sandbox to run code" in asked(endpoint)[-1]["content"]

"""Scenarios of code_interpreter: code, a figure and a file, polled and streamed."""

from typing import Any

from tests.conformance.sdk_scenarios.client import Sdk, each, entered, plain, settled
from tests.conformance.sdk_scenarios.runs import started

# By the script it runs code that prints, writes a file and shows a figure, then says ANSWER in pieces.
MODEL = "computes"
LINK = "sandbox:/mnt/data/table.csv"
ANSWER = f"See [the table]({LINK})."
TABLE = b"a,b\n1,2\n"
PNG = b"\x89PNG\r\n\x1a\n"


async def computing(sdk: Sdk) -> tuple[Any, Any]:
    """An assistant that runs code, and a thread with a question."""
    return await started(sdk, "Make a table.", model=MODEL, tools=[{"type": "code_interpreter"}])


async def assert_shows(sdk: Sdk, message: Any) -> None:
    """The message begins with a figure, says ANSWER, and its link and its attachment are the file that was written."""
    picture, text = message.content
    assert (picture.type, text.type, text.text.value) == ("image_file", "text", ANSWER)
    [annotation] = text.text.annotations
    assert (annotation.type, annotation.text) == ("file_path", LINK)
    assert ANSWER[annotation.start_index : annotation.end_index] == LINK
    assert [attachment.file_id for attachment in message.attachments] == [annotation.file_path.file_id]
    assert (await settled(sdk.client.files.content(annotation.file_path.file_id))).content == TABLE
    assert (await settled(sdk.client.files.content(picture.image_file.file_id))).content.startswith(PNG)


async def code_figures_and_files_are_polled(sdk: Sdk) -> None:
    assistant, thread = await computing(sdk)
    threads = sdk.client.beta.threads
    run = await settled(threads.runs.create_and_poll(thread_id=thread.id, assistant_id=assistant.id))
    assert (run.status, run.last_error) == ("completed", None)
    [message] = (await settled(threads.messages.list(thread.id, run_id=run.id))).data
    await assert_shows(sdk, message)
    code, _ = [step async for step in each(threads.runs.steps.list(run.id, thread_id=thread.id, order="asc"))]
    [call] = code.step_details.tool_calls
    assert "Dot()" in call.code_interpreter.input
    assert [output.type for output in call.code_interpreter.outputs] == ["logs", "image"]
    assert call.code_interpreter.outputs[0].logs == "made\n"
    assert call.code_interpreter.outputs[1].image.file_id == message.content[0].image_file.file_id


async def code_is_streamed(sdk: Sdk) -> None:
    assistant, thread = await computing(sdk)
    handler = sdk.handler()
    runs = sdk.client.beta.threads.runs
    async with entered(runs.stream(thread_id=thread.id, assistant_id=assistant.id, event_handler=handler)) as stream:
        await settled(stream.until_done())
    run = await settled(handler.get_final_run())
    replay = sdk.handler()
    async with entered(sdk.attached(thread.id, run.id, replay)) as stream:
        await settled(stream.until_done())
    stored = (await settled(sdk.client.beta.threads.messages.list(thread.id, run_id=run.id))).data
    steps = [plain(step) async for step in each(runs.steps.list(run.id, thread_id=thread.id, order="asc"))]
    for met in (handler, replay):
        assert plain(await settled(met.get_final_run())) == plain(await settled(runs.retrieve(run.id, thread_id=thread.id)))
        assert [plain(message) for message in await settled(met.get_final_messages())] == [plain(message) for message in stored]
        assert [arguments[0] for name, arguments in met.calls if name == "on_run_step_done"] == steps
    await assert_shows(sdk, stored[0])


SCENARIOS = [code_figures_and_files_are_polled, code_is_streamed]

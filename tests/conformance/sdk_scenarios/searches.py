"""Scenarios of file_search: a cited answer polled and streamed, the passages behind it, and files that come with a message."""

from typing import Any

from tests.conformance.sdk_scenarios.client import Sdk, each, entered, plain, settled, text_of
from tests.conformance.sdk_scenarios.files import store_of, uploaded
from tests.conformance.sdk_scenarios.runs import started
from tests.conformance.sdk_scenarios.streams import names_besides_deltas

FOOD = "The favorite food of Anna is pizza with olives."
MARKER = "【4:0†food.txt】"
ANSWER = f"Anna likes pizza {MARKER}."
INCLUDE = ["step_details.tool_calls[*].file_search.results[*].content"]
QUESTION = "What does Anna like to eat?"
# By the script it searches once, then says ANSWER in pieces.
MODEL = "cites"


async def searching(sdk: Sdk) -> tuple[Any, Any, str]:
    """An assistant that searches a file, a thread with the question about it, and the file's id."""
    store, [food] = await store_of(sdk, ("food.txt", FOOD))
    resources = {"file_search": {"vector_store_ids": [store.id]}}
    assistant, thread = await started(sdk, QUESTION, model=MODEL, tools=[{"type": "file_search"}], tool_resources=resources)
    assert plain(assistant.tool_resources) == resources
    return assistant, thread, food


def assert_cites(message: Any, file_id: str) -> None:
    """The message is ANSWER, and its marker stands for this file."""
    [part] = message.content
    [annotation] = part.text.annotations
    assert (part.text.value, annotation.type, annotation.text) == (ANSWER, "file_citation", MARKER)
    assert ANSWER[annotation.start_index : annotation.end_index] == MARKER
    assert annotation.file_citation.file_id == file_id


async def answer_from_a_file_is_cited(sdk: Sdk) -> None:
    assistant, thread, food = await searching(sdk)
    threads = sdk.client.beta.threads
    run = await settled(threads.runs.create_and_poll(thread_id=thread.id, assistant_id=assistant.id))
    assert (run.status, run.last_error) == ("completed", None)
    [message] = (await settled(threads.messages.list(thread.id, run_id=run.id))).data
    assert_cites(message, food)

    steps = threads.runs.steps
    search, answer = [step async for step in each(steps.list(run.id, thread_id=thread.id, order="asc"))]
    assert (search.type, search.status, answer.type) == ("tool_calls", "completed", "message_creation")
    [call] = search.step_details.tool_calls
    assert (call.type, call.file_search.ranking_options.ranker) == ("file_search", "default_2024_08_21")
    assert [(result.file_id, result.file_name, result.content) for result in call.file_search.results] == [(food, "food.txt", None)]
    shown = await settled(steps.retrieve(search.id, thread_id=thread.id, run_id=run.id, include=INCLUDE))
    assert [plain(part) for part in shown.step_details.tool_calls[0].file_search.results[0].content] == [{"type": "text", "text": FOOD}]


async def cited_answer_is_streamed(sdk: Sdk) -> None:
    assistant, thread, food = await searching(sdk)
    handler = sdk.handler()
    runs = sdk.client.beta.threads.runs
    async with entered(runs.stream(thread_id=thread.id, assistant_id=assistant.id, event_handler=handler)) as stream:
        await settled(stream.until_done())
    # The helper never forgets its latest tool call, and says at the end of every step and of the run that it is done.
    assert names_besides_deltas(handler) == [
        "on_run_step_created",
        "on_tool_call_created",
        "on_tool_call_done",
        "on_run_step_done",
        "on_run_step_created",
        "on_message_created",
        "on_text_created",
        "on_text_done",
        "on_message_done",
        "on_tool_call_done",
        "on_run_step_done",
        "on_tool_call_done",
        "on_end",
    ]
    [message] = await settled(handler.get_final_messages())
    assert_cites(message, food)
    told = [arguments[0]["value"] for name, arguments in handler.calls if name == "on_text_delta"]
    assert "".join(told) == ANSWER
    run = await settled(handler.get_final_run())
    replay = sdk.handler()
    async with entered(sdk.attached(thread.id, run.id, replay)) as stream:
        await settled(stream.until_done())
    for met in (handler, replay):
        assert plain(await settled(met.get_final_run())) == plain(await settled(runs.retrieve(run.id, thread_id=thread.id)))
        stored = (await settled(sdk.client.beta.threads.messages.list(thread.id, run_id=run.id))).data
        assert [plain(message) for message in await settled(met.get_final_messages())] == [plain(message) for message in stored]
        # Not the helper's own snapshots: they keep the search as it began, for no delta tells its results.
        done = [arguments[0] for name, arguments in met.calls if name == "on_run_step_done"]
        assert done == [plain(step) async for step in each(runs.steps.list(run.id, thread_id=thread.id, order="asc"))]
        assert done[0]["step_details"]["tool_calls"][0]["file_search"]["results"][0]["file_id"] == food


async def files_come_with_a_message(sdk: Sdk) -> None:
    food = await uploaded(sdk, FOOD, "food.txt")
    search: dict[str, Any] = {"type": "file_search"}
    threads = sdk.client.beta.threads
    assistant = await settled(sdk.client.beta.assistants.create(model=MODEL, tools=[search]))
    attachments = [{"file_id": food.id, "tools": [search]}]
    thread = await settled(threads.create(messages=[{"role": "user", "content": QUESTION, "attachments": attachments}]))
    [store_id] = thread.tool_resources.file_search.vector_store_ids
    assert (await settled(sdk.client.vector_stores.retrieve(store_id))).expires_after.days == 7
    run = await settled(threads.runs.create_and_poll(thread_id=thread.id, assistant_id=assistant.id))
    assert run.status == "completed"
    answer, question = (await settled(threads.messages.list(thread.id))).data
    assert_cites(answer, food.id)
    assert (text_of(question), plain(question.attachments[0])) == (QUESTION, attachments[0])


SCENARIOS = [
    answer_from_a_file_is_cited,
    cited_answer_is_streamed,
    files_come_with_a_message,
]

"""file_search as clients see it: the steps, the stream, citations, `include[]`; all with the official SDK or frame by frame."""

from typing import Any

import aiohttp
import openai
from openai.types import VectorStore
from openai.types.beta import Assistant
from openai.types.beta.threads import Run

from mini_assistant.models.script import Rule, Script, ScriptedCall, Text, ToolCalls
from mini_assistant.models.scripted import ScriptedEndpoint
from tests.conformance.conversations import WEATHER, answer_turns, messages_of, new_assistant, steps_of, stopped, submit, thread_saying
from tests.conformance.raw_http import Frame, call, names, read_stream
from tests.conformance.strictness import wire
from tests.searched_files import FOOD, file_ids_of, new_store, resources_of, search_call, search_for

INCLUDE: Any = ["step_details.tool_calls[*].file_search.results[*].content"]
FILE_SEARCH: Any = {"type": "file_search"}
MARKER = "【4:0†food.txt】"
ANSWER = f"Anna likes pizza {MARKER}."


async def searching(sdk: openai.AsyncOpenAI, **tool: Any) -> tuple[Assistant, VectorStore]:
    """An assistant that searches a store with two files."""
    store = await new_store(sdk)
    return await new_assistant(sdk, tools=[{**FILE_SEARCH, **tool}], tool_resources=resources_of(store)), store


def answer_cited(endpoint: ScriptedEndpoint, *pieces: str) -> None:
    """The model searches, then answers in these pieces."""
    answer_turns(endpoint, [search_for("favorite food of Anna")], [Text(list(pieces))])


async def finished_search(sdk: openai.AsyncOpenAI, endpoint: ScriptedEndpoint, **fields: Any) -> Run:
    assistant, _ = await searching(sdk)
    answer_cited(endpoint, ANSWER)
    thread = await thread_saying(sdk, "What does Anna like to eat?")
    run = await stopped(sdk, await sdk.beta.threads.runs.create(thread.id, assistant_id=assistant.id, **fields))
    assert run.status == "completed", run.last_error
    return run


async def test_a_cited_answer(sdk: openai.AsyncOpenAI, endpoint: ScriptedEndpoint) -> None:
    run = await finished_search(sdk, endpoint)
    [message] = await messages_of(sdk, run)
    [part] = message.content
    assert part.type == "text"
    assert part.text.value == ANSWER
    [annotation] = part.text.annotations
    file_id = annotation.to_dict()["file_citation"]["file_id"]  # type: ignore[index]
    assert annotation.to_dict() == {
        "type": "file_citation",
        "text": MARKER,
        "start_index": 17,
        "end_index": 17 + len(MARKER),
        "file_citation": {"file_id": file_id},
    }
    assert ANSWER[annotation.start_index : annotation.end_index] == annotation.text
    assert (await sdk.files.retrieve(file_id)).filename == "food.txt"


async def test_the_steps_of_a_search(sdk: openai.AsyncOpenAI, endpoint: ScriptedEndpoint) -> None:
    run = await finished_search(sdk, endpoint)
    search, answer = await steps_of(sdk, run)
    assert (search.type, search.status, answer.type, answer.status) == ("tool_calls", "completed", "message_creation", "completed")
    [shown] = search.to_dict()["step_details"]["tool_calls"]  # type: ignore[index]
    assert shown["id"].startswith("call_")
    assert shown["type"] == "file_search"
    assert shown["file_search"]["ranking_options"] == {"ranker": "default_2024_08_21", "score_threshold": 0.0, "hybrid_search": None}
    results = shown["file_search"]["results"]
    assert [sorted(result) for result in results] == [["attributes", "file_id", "file_name", "score"]] * len(results)
    assert results[0]["file_name"] == "food.txt"
    assert results[0]["attributes"] == {}
    assert all(0 <= result["score"] <= 1 for result in results)
    assert [result["score"] for result in results] == sorted((result["score"] for result in results), reverse=True)
    assert search.usage is not None
    assert answer.usage is not None
    assert run.usage is not None
    assert run.usage.total_tokens == search.usage.total_tokens + answer.usage.total_tokens


async def test_passages_are_shown_only_to_who_asks_for_them(sdk: openai.AsyncOpenAI, endpoint: ScriptedEndpoint) -> None:
    run = await finished_search(sdk, endpoint)
    steps = sdk.beta.threads.runs.steps
    listed = [step async for step in steps.list(run.id, thread_id=run.thread_id, order="asc", include=INCLUDE)]
    retrieved = await steps.retrieve(listed[0].id, run_id=run.id, thread_id=run.thread_id, include=INCLUDE)
    plain = await steps.retrieve(listed[0].id, run_id=run.id, thread_id=run.thread_id)
    assert wire(listed[0]) == wire(retrieved)
    best: dict[str, Any] = retrieved.to_dict()["step_details"]["tool_calls"][0]["file_search"]["results"][0]  # type: ignore[index]
    assert best["content"] == [{"text": FOOD["food.txt"], "type": "text"}]
    assert wire(plain) == wire((await steps_of(sdk, run))[0])
    del best["content"]
    assert plain.to_dict()["step_details"]["tool_calls"][0]["file_search"]["results"][0] == best  # type: ignore[index]


async def streamed(
    sdk: openai.AsyncOpenAI, http: aiohttp.ClientSession, endpoint: ScriptedEndpoint, *pieces: str, query: str = ""
) -> list[Frame]:
    assistant, _ = await searching(sdk)
    answer_cited(endpoint, *pieces)
    thread = await thread_saying(sdk, "What does Anna like to eat?")
    body = {"assistant_id": assistant.id, "stream": True}
    return await read_stream(http, "POST", f"/v1/threads/{thread.id}/runs{query}", body)


async def test_the_stream_of_a_search(sdk: openai.AsyncOpenAI, http: aiohttp.ClientSession, endpoint: ScriptedEndpoint) -> None:
    frames = await streamed(sdk, http, endpoint, "Anna likes pizza ", "【4:", "0†food", ".txt", "】.")
    assert [frame.name for frame in frames] == [
        "thread.run.created",
        "thread.run.queued",
        "thread.run.in_progress",
        "thread.run.step.created",
        "thread.run.step.in_progress",
        "thread.run.step.delta",
        "thread.run.step.completed",
        "thread.run.step.created",
        "thread.run.step.in_progress",
        "thread.message.created",
        "thread.message.in_progress",
        "thread.message.delta",
        "thread.message.delta",
        "thread.message.delta",
        "thread.message.completed",
        "thread.run.step.completed",
        "thread.run.completed",
        "done",
    ]
    step, delta, ended = frames[3].data, frames[5].data, frames[6].data
    assert step["step_details"] == {"type": "tool_calls", "tool_calls": []}
    [ended_call] = ended["step_details"]["tool_calls"]
    ranking = {"score_threshold": 0.0, "ranker": "default_2024_08_21", "hybrid_search": None}
    started = {"index": 0, "type": "file_search", "id": ended_call["id"], "file_search": {"ranking_options": ranking, "results": []}}
    assert delta["delta"] == {"step_details": {"type": "tool_calls", "tool_calls": [started]}}
    assert ended_call["file_search"]["results"][0]["file_name"] == "food.txt"
    assert all("content" not in result for result in ended_call["file_search"]["results"])

    value, marked, rest = (frame.data["delta"]["content"] for frame in frames[11:14])
    assert value == [{"index": 0, "type": "text", "text": {"value": "Anna likes pizza ", "annotations": []}}]
    citation = {
        "index": 0,
        "type": "file_citation",
        "text": MARKER,
        "start_index": 17,
        "end_index": 17 + len(MARKER),
        "file_citation": {"file_id": ended_call["file_search"]["results"][0]["file_id"], "quote": ""},
    }
    assert marked == [{"index": 0, "type": "text", "text": {"value": MARKER, "annotations": [citation]}}]
    assert rest == [{"index": 0, "type": "text", "text": {"value": "."}}]
    del citation["index"], citation["file_citation"]["quote"]  # type: ignore[attr-defined]
    assert frames[14].data["content"] == [{"type": "text", "text": {"value": ANSWER, "annotations": [citation]}}]
    # What was told is what can be read afterwards.
    run = frames[16].data
    path = f"/v1/threads/{run['thread_id']}"
    assert (await call(http, "GET", f"{path}/runs/{run['id']}/steps/{ended['id']}")).body == ended
    assert (await call(http, "GET", f"{path}/messages/{frames[14].data['id']}")).body == frames[14].data


async def test_a_stream_shows_passages_when_it_is_asked_to(
    sdk: openai.AsyncOpenAI, http: aiohttp.ClientSession, endpoint: ScriptedEndpoint
) -> None:
    frames = await streamed(sdk, http, endpoint, ANSWER, query=f"?include[]={INCLUDE[0]}")
    [ended, _] = [frame.data for frame in frames if frame.name == "thread.run.step.completed"]
    results = ended["step_details"]["tool_calls"][0]["file_search"]["results"]
    assert results[0]["content"] == [{"text": FOOD["food.txt"], "type": "text"}]
    path = f"/v1/threads/{ended['thread_id']}/runs/{ended['run_id']}"
    assert (await call(http, "GET", f"{path}/steps/{ended['id']}?include[]={INCLUDE[0]}")).body == ended
    # Whoever attaches later has not asked.
    again = await read_stream(http, "GET", f"{path}/events")
    assert names(again) == names(frames)
    [plain, _] = [frame.data for frame in again if frame.name == "thread.run.step.completed"]
    assert "content" not in plain["step_details"]["tool_calls"][0]["file_search"]["results"][0]


async def test_the_stream_helper_rebuilds_what_can_be_read(sdk: openai.AsyncOpenAI, endpoint: ScriptedEndpoint) -> None:
    assistant, _ = await searching(sdk)
    answer_cited(endpoint, *ANSWER, "【4:1†drinks.md", "】", "[4:0†food.txt]", "【7:7†x】")
    thread = await thread_saying(sdk, "What does Anna like to eat?")
    texts: list[str] = []
    async with sdk.beta.threads.runs.stream(thread_id=thread.id, assistant_id=assistant.id) as stream:
        async for text in stream.text_deltas:
            texts.append(text)
        run = await stream.get_final_run()
        [final] = await stream.get_final_messages()
    [message] = await messages_of(sdk, run)
    assert wire(final) == wire(message)
    [part] = message.content
    assert part.type == "text"
    value = part.text.value
    assert "".join(texts) == value
    assert [annotation.text for annotation in part.text.annotations] == [MARKER, "【4:1†drinks.md】", MARKER]
    assert all(value[annotation.start_index : annotation.end_index] == annotation.text for annotation in part.text.annotations)
    assert "7:7" not in value


async def test_deltas_add_up_to_the_message(sdk: openai.AsyncOpenAI, endpoint: ScriptedEndpoint) -> None:
    """As Node's helper does it, which never looks at the last event."""
    assistant, _ = await searching(sdk)
    answer_cited(endpoint, *ANSWER, "【4:1†drinks.md】")
    thread = await thread_saying(sdk, "What does Anna like to eat?")
    async with sdk.beta.threads.runs.stream(thread_id=thread.id, assistant_id=assistant.id) as stream:
        snapshot: Any = None
        async for event in stream:
            if event.event == "thread.message.delta":
                snapshot = wire(stream.current_message_snapshot)  # type: ignore[arg-type]
        run = await stream.get_final_run()
    [message] = await messages_of(sdk, run)
    [part] = snapshot["content"]
    for place, annotation in enumerate(part["text"]["annotations"]):
        assert annotation.pop("index") == place
        assert annotation["file_citation"].pop("quote") == ""
    del part["index"]
    assert [part] == wire(message)["content"]


async def test_a_late_reader_is_told_the_citations(
    sdk: openai.AsyncOpenAI, http: aiohttp.ClientSession, endpoint: ScriptedEndpoint
) -> None:
    frames = await streamed(sdk, http, endpoint, "Anna likes pizza ", MARKER, ".")
    run = frames[-2].data
    again = await read_stream(http, "GET", f"/v1/threads/{run['thread_id']}/runs/{run['id']}/events")
    assert names(again) == names(frames)
    assert again[-3].data == frames[-3].data


async def test_both_stores_are_searched(sdk: openai.AsyncOpenAI, endpoint: ScriptedEndpoint) -> None:
    assistant, store = await searching(sdk)
    own = await new_store(sdk, {"thread.txt": "Anna eats pizza only on Sundays."})
    answer_turns(endpoint, [search_for("Anna pizza")], [Text(["On Sundays 【4:0†x】 and 【4:1†x】"])])
    thread = await sdk.beta.threads.create(messages=[{"role": "user", "content": "When?"}], tool_resources=resources_of(own))
    run = await stopped(sdk, await sdk.beta.threads.runs.create(thread.id, assistant_id=assistant.id))
    [call_shown] = (await steps_of(sdk, run))[0].to_dict()["step_details"]["tool_calls"]  # type: ignore[index]
    found = {result["file_name"]: result["file_id"] for result in call_shown["file_search"]["results"]}
    expected = {**await file_ids_of(sdk, store), **await file_ids_of(sdk, own)}
    assert {"food.txt", "thread.txt"} <= found.keys()
    assert found == {name: expected[name] for name in found}
    [message] = await messages_of(sdk, run)
    cited = [annotation["file_citation"]["file_id"] for annotation in message.to_dict()["content"][0]["text"]["annotations"]]  # type: ignore[index]
    assert cited == [result["file_id"] for result in call_shown["file_search"]["results"]][:2]


async def test_several_searches_and_a_function_in_one_turn(
    sdk: openai.AsyncOpenAI, http: aiohttp.ClientSession, endpoint: ScriptedEndpoint
) -> None:
    """Places of calls have no holes, and the outputs of the searches are still there after the client's."""
    store = await new_store(sdk)
    assistant = await new_assistant(sdk, tools=[FILE_SEARCH, WEATHER], tool_resources=resources_of(store))
    calls = [ScriptedCall("weather", '{"city":"Oslo"}'), search_call("Anna"), search_call("tea", "morning")]
    answer_turns(endpoint, [ToolCalls(calls)], [Text(["Tea 【6:0†drinks.md】, pizza 【5:0†food.txt】."])])
    thread = await thread_saying(sdk, "What and where?")
    frames = await read_stream(http, "POST", f"/v1/threads/{thread.id}/runs", {"assistant_id": assistant.id, "stream": True})
    deltas = [frame.data["delta"]["step_details"]["tool_calls"][0] for frame in frames if frame.name == "thread.run.step.delta"]
    assert list(dict.fromkeys(delta["index"] for delta in deltas)) == [0, 1, 2]
    assert [frame.name for frame in frames[-2:]] == ["thread.run.requires_action", "done"]
    waiting = await sdk.beta.threads.runs.retrieve(frames[-2].data["id"], thread_id=thread.id)
    [step] = await steps_of(sdk, waiting)
    assert "content" not in str(step.to_dict()["step_details"])
    run = await stopped(sdk, await submit(sdk, waiting, "sunny"))
    assert run.status == "completed", run.last_error
    [message] = await messages_of(sdk, run)
    texts = [annotation["text"] for annotation in message.to_dict()["content"][0]["text"]["annotations"]]  # type: ignore[index]
    assert texts == ["【6:0†drinks.md】", "【5:0†food.txt】"]
    outputs = [sent["content"] for sent in endpoint.requests[-1]["messages"] if sent["role"] == "tool"]
    assert outputs[0] == "sunny"
    assert outputs[1].startswith('Search 5 for ["Anna"]')
    assert outputs[2].startswith('Search 6 for ["tea","morning"]')


async def test_a_later_run_has_later_numbers(sdk: openai.AsyncOpenAI, endpoint: ScriptedEndpoint) -> None:
    """What the model copies from its earlier answer cites nothing in this one."""
    first = await finished_search(sdk, endpoint)
    endpoint.script = Script([Rule([search_for("Anna")], after_tool=False), Rule([Text([f"Old {MARKER}, new 【6:0】."])])])
    await sdk.beta.threads.messages.create(first.thread_id, role="user", content="Really?")
    run = await stopped(sdk, await sdk.beta.threads.runs.create(first.thread_id, assistant_id=first.assistant_id))
    [message] = await messages_of(sdk, run)
    text: dict[str, Any] = message.to_dict()["content"][0]["text"]  # type: ignore[index, assignment]
    assert text["value"] == "Old , new 【6:0†food.txt】."
    assert [annotation["text"] for annotation in text["annotations"]] == ["【6:0†food.txt】"]


async def test_ranking_options_are_kept_and_shown(sdk: openai.AsyncOpenAI, endpoint: ScriptedEndpoint) -> None:
    options = {"max_num_results": 1, "ranking_options": {"ranker": "auto", "score_threshold": 0.01}}
    assistant, _ = await searching(sdk, file_search=options)
    answer_cited(endpoint, ANSWER)
    thread = await thread_saying(sdk, "What does Anna like to eat?")
    run = await stopped(sdk, await sdk.beta.threads.runs.create(thread.id, assistant_id=assistant.id))
    [call_shown] = (await steps_of(sdk, run))[0].to_dict()["step_details"]["tool_calls"]  # type: ignore[index]
    assert call_shown["file_search"]["ranking_options"]["ranker"] == "auto"
    assert call_shown["file_search"]["ranking_options"]["score_threshold"] == 0.01
    assert len(call_shown["file_search"]["results"]) == 1


async def test_a_file_that_was_attached_a_moment_ago_is_searched(sdk: openai.AsyncOpenAI, endpoint: ScriptedEndpoint) -> None:
    """The run waits until it has been ingested. Nobody else has to."""
    lines = "\n\n".join(f"Line {number}: nothing to see, and nothing to say about it either." for number in range(20_000))
    uploaded = await sdk.files.create(file=("long.txt", f"{lines}\n\nThe zebra lives in Oslo.".encode()), purpose="assistants")
    assistant = await new_assistant(sdk, tools=[FILE_SEARCH])
    answer_turns(endpoint, [search_for("zebra Oslo")], [Text(["Oslo 【4:0】"])])
    attached: Any = [{"file_id": uploaded.id, "tools": [FILE_SEARCH]}]
    thread = await sdk.beta.threads.create(messages=[{"role": "user", "content": "Where is the zebra?", "attachments": attached}])
    run = await stopped(sdk, await sdk.beta.threads.runs.create(thread.id, assistant_id=assistant.id))
    assert run.status == "completed", run.last_error
    assert [item["status"] for item in await files_of_thread(sdk, thread.id)] == ["completed"]
    [message] = await messages_of(sdk, run)
    assert message.to_dict()["content"][0]["text"]["value"] == "Oslo 【4:0†long.txt】"  # type: ignore[index]


async def files_of_thread(sdk: openai.AsyncOpenAI, thread_id: str) -> list[dict[str, Any]]:
    thread = await sdk.beta.threads.retrieve(thread_id)
    assert thread.tool_resources is not None
    assert thread.tool_resources.file_search is not None
    [store_id] = thread.tool_resources.file_search.vector_store_ids or []
    return [wire(item) async for item in sdk.vector_stores.files.list(store_id)]

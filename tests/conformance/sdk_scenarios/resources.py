"""Scenarios without a run: assistants, threads, messages, paging, errors."""

import openai

from tests.conformance.sdk_scenarios.client import Sdk, each, plain, refusal, settled, text_of

MODEL = "scripted"


async def assistant_lives_and_dies(sdk: Sdk) -> None:
    assistants = sdk.client.beta.assistants
    weather = {"type": "function", "function": {"name": "get_weather"}}
    created = await settled(
        assistants.create(model=MODEL, name="Ada", instructions="Be brief.", tools=[weather], metadata={"team": "a"}, temperature=0)
    )
    assert created.object == "assistant"
    assert (created.name, created.instructions, created.temperature, created.metadata) == ("Ada", "Be brief.", 0, {"team": "a"})
    assert created.tools[0].function.parameters == {"type": "object", "properties": {}}
    assert plain(await settled(assistants.retrieve(created.id))) == plain(created)

    updated = await settled(assistants.update(created.id, name=None, metadata={"team": "b"}))
    assert (updated.name, updated.metadata, updated.instructions) == (None, {"team": "b"}, "Be brief.")
    assert updated.created_at == created.created_at

    deleted = await settled(assistants.delete(created.id))
    assert (deleted.id, deleted.object, deleted.deleted) == (created.id, "assistant.deleted", True)
    await refusal(lambda: assistants.retrieve(created.id), openai.NotFoundError)
    await refusal(lambda: assistants.delete(created.id), openai.NotFoundError)


async def lists_are_paged_by_iteration(sdk: Sdk) -> None:
    assistants = sdk.client.beta.assistants
    created = [(await settled(assistants.create(model=MODEL))).id for _ in range(5)]
    newest_first = [assistant.id async for assistant in each(assistants.list(limit=2))]
    oldest_first = [assistant.id async for assistant in each(assistants.list(limit=2, order="asc"))]
    assert newest_first[:5] == created[::-1]
    assert oldest_first == newest_first[::-1]

    page = await settled(assistants.list(limit=2))
    assert page.has_next_page()
    next_page = await settled(page.get_next_page())
    assert [assistant.id for assistant in next_page.data] == newest_first[2:4]
    before = await settled(assistants.list(order="asc", before=created[-1], limit=2))
    assert [assistant.id for assistant in before.data] == created[2:4]


async def iteration_survives_deleting_its_items(sdk: Sdk) -> None:
    assistants = sdk.client.beta.assistants
    created = {(await settled(assistants.create(model=MODEL))).id for _ in range(7)}
    met = set()
    async for assistant in each(assistants.list(limit=2)):
        met.add(assistant.id)
        await settled(assistants.delete(assistant.id))
    assert created <= met
    assert [assistant async for assistant in each(assistants.list())] == []


async def thread_lives_and_dies(sdk: Sdk) -> None:
    threads = sdk.client.beta.threads
    empty = await settled(threads.create())
    assert (empty.object, empty.metadata) == ("thread", {})
    thread = await settled(threads.create(messages=[{"role": "user", "content": "One"}, {"role": "assistant", "content": "Two"}]))
    assert [text_of(message) async for message in each(threads.messages.list(thread.id))] == ["Two", "One"]
    updated = await settled(threads.update(thread.id, metadata={"topic": "numbers"}))
    assert updated.metadata == {"topic": "numbers"}
    assert plain(await settled(threads.retrieve(thread.id))) == plain(updated)
    assert (await settled(threads.delete(thread.id))).object == "thread.deleted"
    await refusal(lambda: threads.retrieve(thread.id), openai.NotFoundError)
    await refusal(lambda: threads.messages.list(thread.id), openai.NotFoundError)


async def message_lives_and_dies(sdk: Sdk) -> None:
    thread = await settled(sdk.client.beta.threads.create())
    messages = sdk.client.beta.threads.messages
    parts = [
        {"type": "text", "text": "What is on it?"},
        {"type": "image_url", "image_url": {"url": "https://example.com/cat.png"}},
    ]
    created = await settled(messages.create(thread_id=thread.id, role="user", content=parts))
    assert (created.object, created.role, created.run_id) == ("thread.message", "user", None)
    assert plain(created.content[0]) == {"type": "text", "text": {"value": "What is on it?", "annotations": []}}
    assert created.content[1].image_url.detail == "auto"
    assert plain(await settled(messages.retrieve(created.id, thread_id=thread.id))) == plain(created)
    updated = await settled(messages.update(created.id, thread_id=thread.id, metadata={"seen": "yes"}))
    assert (updated.metadata, updated.content) == ({"seen": "yes"}, created.content)

    others = [(await settled(messages.create(thread_id=thread.id, role="user", content=f"No. {n}"))).id for n in range(4)]
    listed = [message.id async for message in each(messages.list(thread.id, order="asc", limit=2))]
    assert listed == [created.id, *others]
    assert (await settled(messages.delete(created.id, thread_id=thread.id))).deleted is True
    assert [message.id async for message in each(messages.list(thread.id, order="asc"))] == others


async def errors_have_the_classes_and_texts_of_the_hosted_api(sdk: Sdk) -> None:
    client = sdk.client
    error = await refusal(lambda: client.beta.assistants.retrieve("asst_unknown"), openai.NotFoundError)
    inner = {"message": "No assistant found with id 'asst_unknown'.", "type": "invalid_request_error", "param": None, "code": None}
    assert error.body == inner
    assert str(error).startswith("Error code: 404 - ")
    assert "No assistant found with id 'asst_unknown'." in str(error)
    assert (error.status_code, error.type, error.param, error.code) == (404, "invalid_request_error", None, None)
    assert (error.request_id or "").startswith("req_")

    error = await refusal(lambda: client.beta.threads.retrieve("thread_unknown"), openai.NotFoundError)
    assert error.body["message"] == "No thread found with id 'thread_unknown'."
    error = await refusal(lambda: client.beta.assistants.create(model=MODEL, metadata={"a": True}), openai.BadRequestError)
    assert (error.param, error.code) == ("metadata.a", "invalid_type")
    error = await refusal(lambda: client.beta.assistants.list(limit=101), openai.BadRequestError)
    assert (error.param, error.code) == ("limit", "integer_above_max_value")
    error = await refusal(lambda: client.with_options(api_key="wrong-key").beta.threads.create(), openai.AuthenticationError)
    assert (error.status_code, error.code) == (401, "invalid_api_key")


async def answers_carry_the_request_id(sdk: Sdk) -> None:
    thread = await settled(sdk.client.beta.threads.create())
    assert thread._request_id.startswith("req_")
    raw = await settled(sdk.client.beta.threads.with_raw_response.retrieve(thread.id))
    assert raw.headers["x-request-id"].startswith("req_")
    assert raw.headers["openai-processing-ms"].isdigit()
    assert plain(raw.parse()) == plain(thread)


SCENARIOS = [
    assistant_lives_and_dies,
    lists_are_paged_by_iteration,
    iteration_survives_deleting_its_items,
    thread_lives_and_dies,
    message_lives_and_dies,
    errors_have_the_classes_and_texts_of_the_hosted_api,
    answers_carry_the_request_id,
]

"""What holds for every endpoint: keys and headers, addresses, empty bodies, limits of fields, pages."""

import aiohttp
import openai
import pytest

from tests.conformance.conversations import MODEL, new_assistant
from tests.conformance.raw_http import call, refused
from tests.conformance.server_settings import server_with

KEY = "a-key-of-the-tests-0123456789"
V2 = {"OpenAI-Beta": "assistants=v2"}
closed_server = server_with(api_keys=(KEY,), strict_beta_header=True)


def bearer(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


@closed_server
async def test_a_key_is_asked_for(http: aiohttp.ClientSession) -> None:
    status, message, param, code = await refused(http, "GET", "/v1/assistants", headers=V2)
    assert (status, param, code) == (401, None, None)
    assert message.startswith("You didn't provide an API key.")


@closed_server
async def test_a_wrong_key_is_refused_and_not_repeated_to_the_client(http: aiohttp.ClientSession) -> None:
    for key in (f"{KEY}x", KEY[:-1], "sk-wrong"):
        status, message, param, code = await refused(http, "GET", "/v1/assistants", headers={**bearer(key), **V2})
        assert (status, param, code) == (401, None, "invalid_api_key")
        assert message.startswith("Incorrect API key provided: ")
        assert key not in message


@closed_server
async def test_the_sdk_works_with_the_right_key_and_raises_with_a_wrong_one(sdk: openai.AsyncOpenAI) -> None:
    assistant = await sdk.with_options(api_key=KEY).beta.assistants.create(model=MODEL)
    with pytest.raises(openai.AuthenticationError) as caught:
        await sdk.beta.assistants.retrieve(assistant.id)
    assert caught.value.code == "invalid_api_key"


@closed_server
async def test_a_strict_server_demands_the_v2_header(http: aiohttp.ClientSession) -> None:
    for beta in ({}, {"OpenAI-Beta": "assistants=v1"}):
        for path in ("/v1/threads", "/v1/assistants", "/threads"):
            status, message, param, code = await refused(http, "POST", path, {}, headers={**bearer(KEY), **beta})
            assert (status, param, code) == (400, None, "invalid_beta")
            assert "'OpenAI-Beta: assistants=v2'" in message
    assert (await call(http, "POST", "/v1/threads", {}, headers={**bearer(KEY), **V2})).status == 200


async def test_the_first_version_of_the_api_is_refused_everywhere(http: aiohttp.ClientSession) -> None:
    status, message, param, code = await refused(http, "POST", "/v1/threads", {}, headers={"OpenAI-Beta": "assistants=v1"})
    assert (status, param, code) == (400, None, "invalid_beta")
    assert "assistants=v2" in message


async def test_by_default_neither_key_nor_header_is_needed_and_the_prefix_may_be_left_out(http: aiohttp.ClientSession) -> None:
    made = await call(http, "POST", "/v1/threads", {})
    assert (await call(http, "GET", f"/threads/{made.body['id']}")).body == made.body


async def test_an_empty_body_stands_for_an_empty_object(http: aiohttp.ClientSession) -> None:
    made = await call(http, "POST", "/v1/threads", b"", skip_auto_headers=["Content-Type"])
    assert (made.status, made.body["object"], made.body["metadata"]) == (200, "thread", {})
    assert (await call(http, "POST", f"/v1/threads/{made.body['id']}", b"")).body == made.body


async def test_an_unknown_query_parameter_is_ignored(http: aiohttp.ClientSession) -> None:
    assert (await call(http, "GET", "/v1/assistants?colour=blue&limit=1")).status == 200


async def test_identifiers_have_the_shapes_that_clients_know(sdk: openai.AsyncOpenAI) -> None:
    assistant = await new_assistant(sdk)
    thread = await sdk.beta.threads.create()
    message = await sdk.beta.threads.messages.create(thread.id, role="user", content="Hi")
    run = await sdk.beta.threads.runs.create(thread.id, assistant_id=assistant.id)
    for made, prefix in ((assistant, "asst"), (thread, "thread"), (message, "msg"), (run, "run")):
        head, tail = made.id.split("_")
        assert head == prefix
        assert len(tail) == 24
        assert tail.isalnum()


async def test_metadata_has_at_most_16_texts_of_512_characters_under_names_of_64(sdk: openai.AsyncOpenAI) -> None:
    fits = {f"{number:064}": "x" * 512 for number in range(16)}
    assert (await sdk.beta.threads.create(metadata=fits)).metadata == fits
    for too_much, code in (
        ({str(number): "" for number in range(17)}, "object_above_max_properties"),
        ({"a": "x" * 513}, "string_above_max_length"),
        ({"n" * 65: ""}, "property_name_above_max_length"),
    ):
        with pytest.raises(openai.BadRequestError) as caught:
            await sdk.beta.threads.create(metadata=too_much)
        assert caught.value.code == code
        assert caught.value.param is not None
        assert caught.value.param.startswith("metadata")


async def test_instructions_have_at_most_256000_characters(sdk: openai.AsyncOpenAI) -> None:
    longest = "é" * 256_000
    assert (await new_assistant(sdk, instructions=longest)).instructions == longest
    with pytest.raises(openai.BadRequestError) as caught:
        await new_assistant(sdk, instructions=longest + "é")
    assert (caught.value.code, caught.value.param) == ("string_above_max_length", "instructions")


async def test_an_empty_list_has_no_first_and_last_id(http: aiohttp.ClientSession) -> None:
    empty = {"object": "list", "data": [], "first_id": None, "last_id": None, "has_more": False}
    thread_id = (await call(http, "POST", "/v1/threads", {})).body["id"]
    for path in ("/v1/assistants", f"/v1/threads/{thread_id}/messages", f"/v1/threads/{thread_id}/runs"):
        assert (await call(http, "GET", path)).body == empty


async def test_a_page_has_1_to_100_items(http: aiohttp.ClientSession) -> None:
    for limit, code in ((0, "integer_below_min_value"), (101, "integer_above_max_value"), ("ten", "invalid_type")):
        status, _, param, got = await refused(http, "GET", f"/v1/assistants?limit={limit}")
        assert (status, param, got) == (400, "limit", code)
    assert (await call(http, "GET", "/v1/assistants?limit=100")).status == 200
    status, _, param, code = await refused(http, "GET", "/v1/assistants?order=up")
    assert (status, param, code) == (400, "order", "invalid_value")


async def test_a_list_can_be_paged_without_repeats_even_when_all_was_made_in_one_second(sdk: openai.AsyncOpenAI) -> None:
    made = [(await new_assistant(sdk, name=str(number))).id for number in range(5)]
    page = await sdk.beta.assistants.list(limit=2)
    pages = [page]
    while page.has_more:
        page = await sdk.beta.assistants.list(limit=2, after=page.data[-1].id)
        pages.append(page)
    assert [len(page.data) for page in pages] == [2, 2, 1]
    assert [item.id for page in pages for item in page.data] == made[::-1]
    assert [item.id async for item in sdk.beta.assistants.list(limit=2)] == made[::-1]
    assert [item.id async for item in sdk.beta.assistants.list(limit=2, order="asc")] == made
    assert [item.id for item in (await sdk.beta.assistants.list()).data] == made[::-1]


async def test_before_gives_what_precedes_in_the_asked_order(sdk: openai.AsyncOpenAI) -> None:
    made = [(await new_assistant(sdk)).id for _ in range(5)]
    earlier = await sdk.beta.assistants.list(order="asc", before=made[-1])
    assert ([item.id for item in earlier.data], earlier.has_more) == (made[:-1], False)
    adjacent = await sdk.beta.assistants.list(order="asc", before=made[-1], limit=2)
    assert ([item.id for item in adjacent.data], adjacent.has_more) == (made[2:4], True)
    newer = await sdk.beta.assistants.list(before=made[2])
    assert [item.id for item in newer.data] == [made[4], made[3]]
    between = await sdk.beta.assistants.list(order="asc", after=made[0], before=made[3])
    assert [item.id for item in between.data] == made[1:3]


async def test_a_client_may_delete_what_it_pages_over(sdk: openai.AsyncOpenAI) -> None:
    made = {(await new_assistant(sdk)).id for _ in range(5)}
    seen: set[str] = set()
    async for assistant in sdk.beta.assistants.list(limit=2):
        seen.add(assistant.id)
        await sdk.beta.assistants.delete(assistant.id)
    assert seen == made
    assert (await sdk.beta.assistants.list()).data == []


async def test_a_cursor_that_was_never_in_the_list_is_not_found(http: aiohttp.ClientSession) -> None:
    for cursor in ("after", "before"):
        status, message, _, _ = await refused(http, "GET", f"/v1/assistants?{cursor}=asst_nothing")
        assert (status, message) == (404, "No assistant found with id 'asst_nothing'.")

"""What every `ChatProvider` promises, over a real connection to the scripted endpoint, and to servers that misbehave.

Each test also checks that nothing is left behind: no open stream at the endpoint and no task in this process.
"""

import asyncio
import contextlib
import gzip
import socket
import ssl

import msgspec
import pytest

from mini_assistant.errors import ConfigError, ModelError
from mini_assistant.models.base import (
    Capabilities,
    ChatMessage,
    ChatRequest,
    Finished,
    NamedTool,
    ReasoningDelta,
    RefusalDelta,
    TextDelta,
    TokenUsage,
    ToolCallDelta,
    ToolDefinition,
)
from mini_assistant.models.openai_compatible import OpenAICompatible
from mini_assistant.models.provider_limits import ProviderLimits
from mini_assistant.models.script import (
    Cut,
    ErrorFrame,
    Finish,
    Frames,
    Raw,
    Reasoning,
    Refusal,
    Respond,
    Rule,
    Script,
    ScriptedCall,
    Stall,
    Text,
    ToolCalls,
    Wait,
)
from mini_assistant.models.scripted import ScriptedEndpoint

KEY = "sk-test-0123456789abcdef"
NO_RETRIES = ProviderLimits(retries_max=0)
SHORT = ProviderLimits(retries_max=0, first_token_timeout_seconds=0.4, chunk_timeout_seconds=0.4)
FAST_RETRIES = ProviderLimits(retries_max=2, retry_pause_seconds=0.001)
REQUEST = ChatRequest("some-model", (ChatMessage("user", "Hi there"),))
WEATHER = ToolDefinition("weather", {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]})


@pytest.fixture
async def nothing_left_behind():
    before = asyncio.all_tasks()
    yield
    for _ in range(100):  # the tasks of connections that were closed just now end within a few rounds of the loop
        await asyncio.sleep(0)
    assert asyncio.all_tasks() - before == {asyncio.current_task()} - before


@pytest.fixture
async def endpoint(nothing_left_behind):
    async with ScriptedEndpoint() as endpoint:
        yield endpoint
        async with asyncio.timeout(5):
            await endpoint.wait_for_streams(0)


@pytest.fixture
async def connect(endpoint):
    """Makes a provider for the endpoint, or for the address given."""
    async with contextlib.AsyncExitStack() as stack:

        def make(limits=NO_RETRIES, base_url=None, **more):
            provider = OpenAICompatible("local", base_url or endpoint.base_url, api_key=KEY, limits=limits, **more)
            stack.push_async_callback(provider.close)
            return provider

        yield make


@pytest.fixture
async def serve(nothing_left_behind):
    """Starts a server that answers each connection's first request with the given bytes; gives out its base URL."""
    async with contextlib.AsyncExitStack() as stack:

        async def start(*parts, close=True):
            async def answer(reader, writer):
                try:
                    await reader.readuntil(b"\r\n\r\n")
                    for part in parts:
                        writer.write(part)
                        await writer.drain()
                    if not close:
                        await reader.read()
                except ConnectionError:
                    pass  # the client has seen enough
                finally:
                    writer.close()

            server = await stack.enter_async_context(await asyncio.start_server(answer, "127.0.0.1", 0))
            return f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1"

        yield start


def script(*rules):
    return Script([rule if isinstance(rule, Rule) else Rule([rule]) for rule in rules])


async def deltas_of(provider, request=REQUEST, capabilities=None):
    async with asyncio.timeout(10):
        lists = [deltas async for deltas in provider.stream(request, capabilities or Capabilities())]
    assert all(lists), "a read without deltas is not given out"
    deltas = [delta for deltas in lists for delta in deltas]
    assert [isinstance(delta, Finished) for delta in deltas] == [False] * (len(deltas) - 1) + [True], "Finished is the last delta"
    return deltas


async def error_of(provider, request=REQUEST, capabilities=None):
    with pytest.raises(ModelError) as caught:
        await deltas_of(provider, request, capabilities)
    assert KEY not in caught.value.message
    assert len(caught.value.message) < 400
    return caught.value


def text_of(deltas):
    return "".join(delta.text for delta in deltas if isinstance(delta, TextDelta))


# --- answers ---------------------------------------------------------------------------------------------------------


async def test_an_answer_with_usage(connect):
    deltas = await deltas_of(connect())
    assert text_of(deltas) == "You said: Hi there"
    assert deltas[-1] == Finished("stop", TokenUsage(2, 4))


async def test_an_answer_without_usage(endpoint, connect):
    endpoint.script = script(Rule([Text("Hello"), Finish(usage="none")]))
    assert await deltas_of(connect()) == [TextDelta("Hello"), Finished("stop", None)]


async def test_deltas_come_as_they_are_sent(endpoint, connect):
    endpoint.script = script(Rule([Text("First"), Stall()]))
    stream = connect().stream(REQUEST, Capabilities())
    async with asyncio.timeout(5), contextlib.aclosing(stream):
        assert await anext(stream) == [TextDelta("First")]


async def test_a_tool_call_and_its_result(connect):
    provider = connect()
    request = ChatRequest("m", (ChatMessage("user", 'call weather {"city": "Bonn"}'),), tools=(WEATHER,))
    deltas = await deltas_of(provider, request)
    calls = [delta for delta in deltas if isinstance(delta, ToolCallDelta)]
    assert [delta.name for delta in calls] == ["weather", None, None]
    assert "".join(delta.arguments for delta in calls) == '{"city": "Bonn"}'
    assert deltas[-1].reason == "tool_calls"


async def test_parallel_tool_calls(endpoint, connect):
    endpoint.script = script(ToolCalls([ScriptedCall("f", '{"a":1}'), ScriptedCall("g", '{"b":2}')], pieces=1))
    assert await deltas_of(connect()) == [
        ToolCallDelta(0, "f", ""),
        ToolCallDelta(0, None, '{"a":1}'),
        ToolCallDelta(1, "g", ""),
        ToolCallDelta(1, None, '{"b":2}'),
        Finished("tool_calls", TokenUsage(2, 4)),
    ]


async def test_tool_choice_reaches_the_endpoint(connect):
    request = ChatRequest("m", (ChatMessage("user", "Hi"),), tools=(WEATHER,), tool_choice=NamedTool("weather"))
    deltas = await deltas_of(connect(), request)
    assert "".join(delta.arguments for delta in deltas if isinstance(delta, ToolCallDelta)) == '{"city":"Hi"}'


async def test_a_refusal(endpoint, connect):
    endpoint.script = script(Refusal("I won't."))
    assert [delta for delta in await deltas_of(connect()) if isinstance(delta, RefusalDelta)] == [
        RefusalDelta("I "),
        RefusalDelta("won't."),
    ]


async def test_reasoning_is_told_from_the_answer(endpoint, connect):
    endpoint.script = script(Rule([Reasoning("Let me "), Wait(0.02), Reasoning("see."), Wait(0.02), Text("Yes.")]))
    deltas = await deltas_of(connect())
    assert deltas[:-1] == [ReasoningDelta("Let me see."), TextDelta("Yes.")]


async def test_reasoning_comes_with_the_beginning_of_the_answer(endpoint, connect):
    """Until then nothing has been seen of the answer, and it can be asked for again."""
    endpoint.script = script(Rule([Reasoning("Let me see."), Wait(0.02), Text("First"), Stall()]))
    stream = connect().stream(REQUEST, Capabilities())
    async with asyncio.timeout(5), contextlib.aclosing(stream):
        assert await anext(stream) == [ReasoningDelta("Let me see."), TextDelta("First")]


async def test_reasoning_behind_the_beginning_comes_as_it_is_sent(endpoint, connect):
    endpoint.script = script(Rule([Text("First"), Wait(0.02), Reasoning("Hm."), Stall()]))
    stream = connect().stream(REQUEST, Capabilities())
    async with asyncio.timeout(5), contextlib.aclosing(stream):
        assert [await anext(stream), await anext(stream)] == [[TextDelta("First")], [ReasoningDelta("Hm.")]]


async def test_an_answer_of_reasoning_alone(endpoint, connect):
    endpoint.script = script(Rule([Reasoning("Hm."), Finish("length", usage="none")]))
    assert await deltas_of(connect()) == [ReasoningDelta("Hm."), Finished("length", None)]


async def test_the_limit_of_an_answer(connect):
    deltas = await deltas_of(connect(), msgspec.structs.replace(REQUEST, completion_tokens_max=2))
    assert text_of(deltas) == "You said: "
    assert deltas[-1].reason == "length"


async def test_a_server_that_does_not_stream(endpoint, connect):
    endpoint.script = script(Rule([Text("Hello there"), ToolCalls([ScriptedCall("f")])], streams=False))
    assert await deltas_of(connect()) == [
        TextDelta("Hello there"),
        ToolCallDelta(0, "f", "{}"),
        Finished("tool_calls", TokenUsage(2, 5)),
    ]


async def test_a_server_that_forgets_the_content_type(serve, connect):
    url = await serve(b'HTTP/1.1 200 OK\r\n\r\ndata: {"choices":[{"delta":{"content":"Hi"},"finish_reason":"stop"}]}\n\ndata: [DONE]\n\n')
    assert await deltas_of(connect(base_url=url)) == [TextDelta("Hi"), Finished("stop", None)]


async def test_what_is_sent(endpoint, connect):
    await deltas_of(connect(base_url=endpoint.base_url + "/"))
    assert endpoint.requests[0]["model"] == "some-model"
    assert endpoint.requests[0]["stream_options"] == {"include_usage": True}
    assert endpoint.headers[0]["Authorization"] == f"Bearer {KEY}"
    assert endpoint.headers[0]["Accept-Encoding"] == "identity"
    assert endpoint.headers[0]["Content-Type"] == "application/json"


async def test_a_connection_is_used_again(endpoint, connect):
    provider = connect()
    for _ in range(3):
        await deltas_of(provider)
        assert endpoint.open_connections == 1


async def test_many_streams_at_a_time(endpoint, connect):
    endpoint.script = script(Text(["token "], repeat=5, delay_seconds=0.01))
    provider = connect()
    answers = await asyncio.gather(*[deltas_of(provider) for _ in range(150)])
    assert {text_of(deltas) for deltas in answers} == {"token " * 5}


async def test_as_many_answers_at_a_time_as_allowed(endpoint, connect):
    endpoint.script = script(Text(["a ", "b "], delay_seconds=0.01))
    provider = connect(ProviderLimits(concurrency_max=2))
    seen = []

    async def answer():
        async for _ in provider.stream(REQUEST, Capabilities()):
            seen.append(endpoint.open_streams)

    async with asyncio.timeout(10):
        await asyncio.gather(*[answer() for _ in range(6)])
    assert max(seen) == 2


# --- closing ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("steps", [[Text("First"), Stall()], [Text(["word "], repeat=1000, delay_seconds=0.01)]])
async def test_closing_the_stream_is_seen_by_the_endpoint(endpoint, connect, steps):
    endpoint.script = script(Rule(steps))
    stream = connect().stream(REQUEST, Capabilities())
    async with asyncio.timeout(5):
        await anext(stream)
        assert endpoint.open_streams == 1
        await stream.aclose()
        await endpoint.wait_for_streams(0)


@pytest.mark.parametrize("steps", [[Stall()], [Text("First"), Stall()]])
async def test_cancelling_is_seen_by_the_endpoint(endpoint, connect, steps):
    endpoint.script = script(Rule(steps))
    task = asyncio.create_task(deltas_of(connect()))
    async with asyncio.timeout(5):
        await endpoint.wait_for_streams(1)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await endpoint.wait_for_streams(0)


async def test_a_closed_stream_frees_its_slot(endpoint, connect):
    endpoint.script = script(Rule([Text("First"), Stall()], times=1))
    provider = connect(ProviderLimits(concurrency_max=1))
    stream = provider.stream(REQUEST, Capabilities())
    await anext(stream)
    await stream.aclose()
    assert text_of(await deltas_of(provider)) == "You said: Hi there"


async def test_a_failed_stream_frees_its_slot(endpoint, connect):
    endpoint.script = script(Rule([Text("First"), Cut()], times=1))
    provider = connect(ProviderLimits(concurrency_max=1, retries_max=0))
    await error_of(provider)
    assert text_of(await deltas_of(provider)) == "You said: Hi there"


async def test_closing_a_provider_that_was_never_used():
    await OpenAICompatible("local", "http://127.0.0.1:9/v1").close()


# --- failures of the answer ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("steps", "code", "message"),
    [
        pytest.param([Text("Half"), Cut()], "server_error", "cut off", id="cut"),
        pytest.param([Cut()], "server_error", "cut off", id="cut-before-the-first-token"),
        pytest.param([Text("Half"), Finish(None, done=False)], "server_error", "cut off", id="end-without-reason"),
        pytest.param([Text("Half"), Finish(None)], "server_error", "cut off", id="done-without-reason"),
        pytest.param([Text("Half"), ErrorFrame("Overloaded")], "server_error", "Overloaded", id="error-frame"),
        pytest.param([ErrorFrame("Too long", "context_length_exceeded")], "invalid_prompt", "Too long", id="error-frame-prompt"),
        pytest.param([Text("Half"), ErrorFrame("Slow down", 429)], "rate_limit_exceeded", "Slow down", id="error-frame-429"),
        pytest.param([Text("Half"), Raw("data: {oops\n\n")], "server_error", "no JSON", id="invalid-json"),
        pytest.param([Frames([{"choices": "none"}])], "server_error", "no piece of a chat completion", id="wrong-types"),
        pytest.param([Finish("error")], "server_error", "'error'", id="finish-error"),
        pytest.param([Respond(200, "<html>Sign in</html>", content_type="text/html")], "server_error", "text/html", id="html"),
        pytest.param([Respond(200, "Bonjour")], "server_error", "no chat completion: Bonjour", id="json-that-is-none"),
        pytest.param([Respond(200, {"error": {"message": "No GPU"}})], "server_error", "No GPU", id="error-with-200"),
        pytest.param([Respond(204, "")], "server_error", "HTTP 204", id="no-content"),
        pytest.param([Respond(302, "", {"Location": "http://127.0.0.1:9/"})], "server_error", "redirects", id="redirect"),
    ],
)
async def test_answers_that_fail(endpoint, connect, steps, code, message):
    endpoint.script = script(Rule(steps))
    error = await error_of(connect())
    assert message in error.message
    assert error.code == code


async def test_what_came_before_a_failure_is_given_out(endpoint, connect):
    endpoint.script = script(Rule([Text("Half an "), Wait(0.05), Cut()]))
    stream = connect().stream(REQUEST, Capabilities())
    async with asyncio.timeout(5):
        assert await anext(stream) == [TextDelta("Half "), TextDelta("an ")]
        with pytest.raises(ModelError, match="cut off"):
            await anext(stream)


async def test_text_in_the_same_read_as_a_failure_is_given_out_first(endpoint, connect):
    both = 'data: {"choices":[{"delta":{"content":"Half"}}]}\n\ndata: {"error":{"message":"Overloaded"}}\n\n'
    endpoint.script = script(Rule([Raw(both)]))
    stream = connect().stream(REQUEST, Capabilities())
    async with asyncio.timeout(5):
        assert await anext(stream) == [TextDelta("Half")]
        with pytest.raises(ModelError, match="Overloaded"):
            await anext(stream)


async def test_a_cut_after_the_finish_reason_is_an_end(endpoint, connect):
    finish = {"choices": [{"delta": {}, "finish_reason": "stop"}]}
    endpoint.script = script(Rule([Text("All"), Frames([finish]), Wait(0.02), Cut()]))
    assert await deltas_of(connect()) == [TextDelta("All"), Finished("stop", None)]


async def test_silence_after_the_finish_reason_is_an_end(endpoint, connect):
    finish = {"choices": [{"delta": {}, "finish_reason": "stop"}]}
    endpoint.script = script(Rule([Text("All"), Frames([finish]), Stall()]))
    assert await deltas_of(connect(SHORT)) == [TextDelta("All"), Finished("stop", None)]


async def test_a_server_that_stays_open_after_done(serve, connect):
    url = await serve(
        b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n",
        b'data: {"choices":[{"delta":{"content":"Hi"},"finish_reason":"stop"}]}\n\ndata: [DONE]\n\n',
        close=False,
    )
    assert await deltas_of(connect(base_url=url)) == [TextDelta("Hi"), Finished("stop", None)]


async def test_a_compressed_bomb_is_not_unpacked(serve, connect):
    bomb = gzip.compress(b": " + b"x" * 50_000_000)
    head = f"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nContent-Encoding: gzip\r\nContent-Length: {len(bomb)}\r\n\r\n"
    error = await error_of(connect(base_url=await serve(head.encode(), bomb)))
    assert "compressed" in error.message


async def test_an_endless_line(serve, connect):
    url = await serve(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n", *[b"x" * 1_000_000] * 12)
    assert "too long" in (await error_of(connect(base_url=url))).message


async def test_an_endless_completion(serve, connect):
    url = await serve(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n\r\n", *[b" " * 1_000_000] * 20)
    assert "too long" in (await error_of(connect(base_url=url))).message


@pytest.mark.parametrize(
    "answer", [b"", b"SSH-2.0-OpenSSH_9.2\r\n", b"HTTP/1.1 200 OK\r\nbroken header\r\n\r\n", b"HTTP/1.1 200 OK\r\nX: " + b"x" * 100_000]
)
async def test_a_server_that_does_not_speak_http(serve, connect, answer):
    error = await error_of(connect(base_url=await serve(answer)))
    assert "cannot be reached" in error.message
    assert error.code == "server_error"


# --- HTTP statuses and retries ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("status", "code", "message"),
    [
        (400, "invalid_prompt", "maximum context length"),
        (413, "invalid_prompt", "maximum context length"),
        (422, "invalid_prompt", "maximum context length"),
        (401, "server_error", "refused the key"),
        (403, "server_error", "refused the key"),
        (404, "server_error", "does not know the model or the address"),
        (418, "server_error", "HTTP 418"),
    ],
)
async def test_statuses_that_are_final(endpoint, connect, status, code, message):
    endpoint.script = script(Respond(status, {"error": {"message": f"maximum context length; key {KEY}"}}))
    error = await error_of(connect(FAST_RETRIES))
    assert message in error.message
    assert "***" in error.message
    assert error.code == code
    assert len(endpoint.requests) == 1


@pytest.mark.parametrize("status", [400, 404, 422])
async def test_the_words_of_a_refusal_are_kept(endpoint, connect, status):
    words = f"{'Very long. ' * 40}{KEY} 'tools' is not known."
    endpoint.script = script(Respond(status, {"error": {"message": words}}))
    assert (await error_of(connect())).refusal == words.replace(KEY, "***")
    endpoint.script = script(Respond(status, {"error": {"message": words * 20}}))
    assert len((await error_of(connect())).refusal) == 2_000


@pytest.mark.parametrize(
    ("steps", "refusal"),
    [
        ([ErrorFrame("'tools' is not known", 400)], "'tools' is not known"),
        ([Respond(500, {"error": {"message": "Unsupported param: tools"}})], "Unsupported param: tools"),
        ([Respond(400, "no tools", content_type="text/plain")], "no tools"),
        ([Respond(400, {"error": {"message": "Failed", "metadata": {"raw": "no tools"}}})], "Failed: no tools"),
        ([Respond(422, {"detail": [{"loc": ["body", "tools"]}]})], '{"loc":["body","tools"]}'),
        ([Respond(500, {"error": {"message": "Overloaded"}})], ""),
        ([Respond(401, {"error": {"message": "No"}})], ""),
        ([Respond(429, {"error": {"message": "Slow down"}})], ""),
        ([ErrorFrame("Overloaded")], ""),
        ([Cut()], ""),
    ],
)
async def test_only_refusals_of_the_request_are_refusals(endpoint, connect, steps, refusal):
    endpoint.script = script(Rule(steps))
    error = await error_of(connect(FAST_RETRIES))
    assert error.refusal == refusal
    assert len(endpoint.requests) == (1 if refusal or not error.retryable else 3)


@pytest.mark.parametrize(
    ("status", "code"), [(500, "server_error"), (503, "server_error"), (408, "server_error"), (429, "rate_limit_exceeded")]
)
async def test_statuses_that_are_tried_again(endpoint, connect, status, code):
    endpoint.script = script(Respond(status, {"error": {"message": "Later"}}))
    error = await error_of(connect(FAST_RETRIES))
    assert (error.code, error.retryable) == (code, True)
    assert "Later" in error.message
    assert len(endpoint.requests) == 3


@pytest.mark.parametrize(
    "steps",
    [
        [Respond(500, "broken")],
        [Respond(429, "", {"Retry-After": "0"})],
        [Cut()],
        [ErrorFrame("Overloaded")],
        [Reasoning("Hm."), Cut()],
        [Finish(None)],
    ],
)
async def test_an_answer_that_has_not_begun_is_tried_again(endpoint, connect, steps):
    endpoint.script = script(Rule(steps, times=2))
    assert text_of(await deltas_of(connect(FAST_RETRIES))) == "You said: Hi there"
    assert len(endpoint.requests) == 3


async def test_an_answer_that_has_begun_is_not_tried_again(endpoint, connect):
    endpoint.script = script(Rule([Text("Half"), Wait(0.02), Cut()], times=1))
    await error_of(connect(FAST_RETRIES))
    assert len(endpoint.requests) == 1


async def test_retry_after_is_waited_for(endpoint, connect):
    endpoint.script = script(Rule([Respond(429, "", {"Retry-After": "0.2"})], times=1))
    loop = asyncio.get_running_loop()
    begun = loop.time()
    await deltas_of(connect(FAST_RETRIES))
    assert loop.time() - begun >= 0.2


async def test_a_long_retry_after_is_handed_on(endpoint, connect):
    endpoint.script = script(Respond(429, {"error": {"message": "Quota"}}, {"Retry-After": "3600"}))
    error = await error_of(connect(FAST_RETRIES))
    assert (error.code, error.retry_after_seconds) == ("rate_limit_exceeded", 3600.0)
    assert len(endpoint.requests) == 1


async def test_a_used_up_quota_is_final(endpoint, connect):
    endpoint.script = script(Respond(429, {"error": {"message": "You exceeded your current quota", "code": "insufficient_quota"}}))
    error = await error_of(connect(FAST_RETRIES))
    assert error.code == "rate_limit_exceeded"
    assert len(endpoint.requests) == 1


async def test_nobody_listens(connect, unused_tcp_port):
    error = await error_of(connect(FAST_RETRIES, f"http://127.0.0.1:{unused_tcp_port}/v1"))
    assert "cannot be reached" in error.message
    assert (error.code, error.retryable) == ("server_error", True)


async def test_no_connection_in_time(connect):
    with socket.socket() as full:
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        address = full.getsockname()
        with contextlib.ExitStack() as waiting:  # they fill the queue of connections that nobody accepts
            for _ in range(4):
                client = waiting.enter_context(socket.socket())
                client.setblocking(False)
                client.connect_ex(address)
            limits = ProviderLimits(retries_max=0, connect_timeout_seconds=0.2)
            error = await error_of(connect(limits, f"http://127.0.0.1:{address[1]}/v1"))
    assert "no connection within 0.2 seconds" in error.message
    assert error.retryable


async def test_an_address_that_does_not_exist(connect):
    assert "cannot be reached" in (await error_of(connect(base_url="http://name.invalid/v1"))).message


async def test_tls_without_tls(endpoint, connect):
    error = await error_of(connect(FAST_RETRIES, endpoint.base_url.replace("http:", "https:")))
    assert "cannot be reached" in error.message
    assert ssl.OPENSSL_VERSION not in error.message


def test_an_address_that_is_none():
    with pytest.raises(ConfigError, match="base_url"):
        OpenAICompatible("local", "http://localhost:not-a-port/v1")


def test_a_key_that_is_none():
    with pytest.raises(ConfigError, match="key") as caught:
        OpenAICompatible("local", "http://localhost/v1", api_key="secret\nHost: evil")
    assert "secret" not in str(caught.value)


# --- time limits -----------------------------------------------------------------------------------------------------


async def test_no_first_token_in_time(endpoint, connect):
    endpoint.script = script(Stall())
    error = await error_of(connect(SHORT))
    assert "did not begin to answer within 0.4 seconds" in error.message
    assert (error.code, error.retryable) == ("server_error", True)


async def test_no_headers_in_time(serve, connect):
    error = await error_of(connect(SHORT, await serve(close=False)))
    assert "did not begin to answer within 0.4 seconds" in error.message


async def test_no_next_token_in_time(endpoint, connect):
    endpoint.script = script(Rule([Text("First"), Stall()]))
    assert "stopped sending in the middle of its answer within 0.4 seconds" in (await error_of(connect(SHORT))).message


async def test_the_pause_between_tokens_is_shorter_than_before_the_first(endpoint, connect):
    endpoint.script = script(Rule([Text("First"), Stall()]))
    limits = ProviderLimits(retries_max=0, first_token_timeout_seconds=60.0, chunk_timeout_seconds=0.2)
    assert "within 0.2 seconds" in (await error_of(connect(limits))).message


async def test_tokens_that_come_in_time_may_take_long_together(endpoint, connect):
    endpoint.script = script(Text(["token "], repeat=12, delay_seconds=0.05))
    assert text_of(await deltas_of(connect(SHORT))) == "token " * 12


async def test_reasoning_counts_as_a_sign_of_life(endpoint, connect):
    thoughts = [step for _ in range(12) for step in (Reasoning("Hm"), Wait(0.05))]
    endpoint.script = script(Rule([*thoughts, Text("Yes")]))
    assert text_of(await deltas_of(connect(SHORT))) == "Yes"


async def test_comments_do_not_count_as_a_sign_of_life(endpoint, connect):
    pings = [step for _ in range(30) for step in (Raw(": ping\n\n"), Wait(0.05))]
    endpoint.script = script(Rule([Text("First"), *pings, Text("second")]))
    assert "stopped sending" in (await error_of(connect(SHORT))).message


async def test_a_slow_reader_is_not_taken_for_a_silent_model(endpoint, connect):
    endpoint.script = script(Rule([Text("a"), Wait(0.01), Text("b")]))
    stream = connect(SHORT).stream(REQUEST, Capabilities())
    received = []
    async with asyncio.timeout(10):
        async for deltas in stream:
            received += deltas
            await asyncio.sleep(0.5)
    assert text_of(received) == "ab"


async def test_silence_is_tried_again_before_the_first_token(endpoint, connect):
    endpoint.script = script(Rule([Stall()], times=1))
    limits = ProviderLimits(retries_max=1, retry_pause_seconds=0.001, first_token_timeout_seconds=0.2)
    assert text_of(await deltas_of(connect(limits))) == "You said: Hi there"


# --- check -----------------------------------------------------------------------------------------------------------


async def test_check(endpoint, connect):
    assert await connect().check() == f"The provider 'local' answers at {endpoint.base_url}."


async def test_check_hides_credentials(endpoint):
    provider = OpenAICompatible("local", endpoint.base_url.replace("://", "://user:secret@") + "?key=secret")
    assert "secret" not in await provider.check()
    await provider.close()


@pytest.mark.parametrize("status", [404, 405])
async def test_check_without_a_list_of_models(serve, connect, status):
    url = await serve(f"HTTP/1.1 {status} No\r\nContent-Length: 0\r\n\r\n".encode())
    assert "answers at" in await connect(base_url=url).check()


@pytest.mark.parametrize(("status", "message"), [(401, "refused the key"), (500, "HTTP 500"), (302, "redirects")])
async def test_check_of_a_provider_that_refuses(serve, connect, status, message):
    url = await serve(f"HTTP/1.1 {status} No\r\nContent-Length: 0\r\n\r\n".encode())
    with pytest.raises(ModelError, match=message):
        await connect(base_url=url).check()


async def test_check_of_a_provider_that_is_silent(serve, connect):
    with pytest.raises(ModelError, match=r"no answer within 0\.2 seconds"):
        await connect(ProviderLimits(connect_timeout_seconds=0.2), await serve(close=False)).check()


async def test_check_when_nobody_listens(connect, unused_tcp_port):
    with pytest.raises(ModelError, match="cannot be reached"):
        await connect(base_url=f"http://127.0.0.1:{unused_tcp_port}/v1").check()

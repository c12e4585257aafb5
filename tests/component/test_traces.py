"""Traces of runs as a collector receives them: over HTTP, from the whole server, with a real provider of models behind it."""

import asyncio
import dataclasses
import json
import socket
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import openai
import pytest
from aiohttp import web
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest, ExportTraceServiceResponse
from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status

import mini_assistant
from mini_assistant import tracing
from mini_assistant.app import running_server
from mini_assistant.errors import ConfigError
from mini_assistant.models.script import Respond, Rule, Script, ScriptedCall, Text, ToolCalls
from mini_assistant.models.scripted import ScriptedEndpoint
from mini_assistant.queue.procrastinate_schema import apply_schema
from mini_assistant.settings import Settings
from mini_assistant.tracing import open_span, open_traces, traceparent_or_none, valid_traceparent_or_none
from tests.server_process import ServerProcess, WorkerProcess

TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
TRACEPARENT = f"00-{TRACE}-{PARENT}-01"
# Said by the user and by nobody else.
SECRET = "zebra-quagga-4711"


class Collector:
    """Takes spans as OTLP over HTTP."""

    def __init__(self) -> None:
        self.spans: list[Span] = []
        self.received = b""
        self.services: set[str] = set()
        self.changed = asyncio.Event()
        self.url = ""

    async def take(self, request: web.Request) -> web.Response:
        self.received += await request.read()
        message = ExportTraceServiceRequest.FromString(await request.read())
        for of_resource in message.resource_spans:
            self.services |= {item.value.string_value for item in of_resource.resource.attributes if item.key == "service.name"}
            for of_scope in of_resource.scope_spans:
                self.spans += of_scope.spans
        self.changed.set()
        return web.Response(body=ExportTraceServiceResponse().SerializeToString(), content_type="application/x-protobuf")

    async def wait_for(self, *names: str) -> list[Span]:
        """The spans whose names begin so, one for each, in the order of their beginning; waits until they are there."""
        while True:
            self.changed.clear()
            found = sorted(self.spans, key=lambda span: span.start_time_unix_nano)
            wanted, picked = list(names), []
            for span in found:
                if wanted and span.name.startswith(wanted[0]):
                    picked.append(span)
                    del wanted[0]
            if not wanted:
                return picked
            await self.changed.wait()


@pytest.fixture
async def collector() -> AsyncIterator[Collector]:
    collector = Collector()
    app = web.Application()
    app.router.add_post("/v1/traces", collector.take)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    collector.url = f"http://127.0.0.1:{runner.addresses[0][1]}/v1/traces"
    yield collector
    await runner.cleanup()


@pytest.fixture
def settings(settings: Settings, collector: Collector) -> Settings:
    return dataclasses.replace(settings, traces_url=collector.url)


def attributes(span: Span) -> dict[str, Any]:
    told: dict[str, Any] = {}
    for item in span.attributes:
        kind = item.value.WhichOneof("value")
        value = getattr(item.value, kind)
        told[item.key] = [entry.string_value for entry in value.values] if kind == "array_value" else value
    return told


async def run(sdk: openai.AsyncOpenAI, text: str = SECRET, headers: dict[str, str] | None = None, **assistant: Any) -> Any:
    """A run on a thread of its own, after it has stopped."""
    made = await sdk.beta.assistants.create(model="gpt-4o", **assistant)
    thread = {"messages": [{"role": "user", "content": text}]}
    started = await sdk.beta.threads.create_and_run(assistant_id=made.id, thread=thread, extra_headers=headers)  # type: ignore[arg-type]
    return await sdk.beta.threads.runs.poll(started.id, thread_id=started.thread_id, poll_interval_ms=20)


async def with_store(sdk: openai.AsyncOpenAI) -> dict[str, Any]:
    """What an assistant needs to search a file."""
    store = await sdk.vector_stores.create()
    await sdk.vector_stores.files.upload_and_poll(vector_store_id=store.id, file=("whales.txt", b"Whales sing."))
    return {"tools": [{"type": "file_search"}], "tool_resources": {"file_search": {"vector_store_ids": [store.id]}}}


def searching() -> Script:
    call = ToolCalls([ScriptedCall("file_search", json.dumps({"query": "whales"}))])
    return Script([Rule([call], times=1), Rule([Text("They sing.")])])


async def test_a_run_is_told_with_its_turns_and_tool_calls(
    sdk: openai.AsyncOpenAI, endpoint: ScriptedEndpoint, collector: Collector
) -> None:
    endpoint.script = searching()
    ended = await run(sdk, headers={"traceparent": TRACEPARENT}, **await with_store(sdk))
    assert ended.status == "completed"
    async with asyncio.timeout(20):
        whole, first, search, second = await collector.wait_for("invoke_agent", "chat gpt-4o", "execute_tool file_search", "chat gpt-4o")

    assert {span.trace_id.hex() for span in collector.spans} == {TRACE}
    assert whole.parent_span_id.hex() == PARENT
    assert [span.parent_span_id for span in (first, search, second)] == [whole.span_id] * 3
    told = attributes(whole)
    assert told["gen_ai.operation.name"] == "invoke_agent"
    assert told["gen_ai.agent.id"] == ended.assistant_id
    assert told["gen_ai.conversation.id"] == ended.thread_id
    assert told["gen_ai.provider.name"] == "openai"
    assert told["gen_ai.request.model"] == "gpt-4o"
    assert told["gen_ai.usage.input_tokens"] == ended.usage.prompt_tokens
    assert told["gen_ai.usage.output_tokens"] == ended.usage.completion_tokens
    assert told["mini_assistant.run.id"] == ended.id
    assert told["mini_assistant.run.status"] == "completed"
    turns = [attributes(span) for span in (first, second)]
    assert [turn["gen_ai.response.finish_reasons"] for turn in turns] == [["tool_calls"], ["stop"]]
    assert sum(turn["gen_ai.usage.input_tokens"] for turn in turns) == ended.usage.prompt_tokens
    assert turns[0]["gen_ai.operation.name"] == "chat"
    assert first.kind == Span.SpanKind.SPAN_KIND_CLIENT
    called = attributes(search)
    assert called["gen_ai.operation.name"] == "execute_tool"
    assert called["gen_ai.tool.name"] == "file_search"
    assert called["gen_ai.tool.call.id"].startswith("call_")
    assert called["gen_ai.tool.type"] == "datastore"
    assert not [span for span in collector.spans if span.status.code == Status.STATUS_CODE_ERROR]
    assert collector.services == {"mini-assistant"}
    # Each request to the provider names the turn that makes it.
    sent = [headers["traceparent"] for headers in endpoint.headers]
    assert sent == [f"00-{TRACE}-{span.span_id.hex()}-01" for span in (first, second)]
    for secret in (SECRET, "whales", "sing"):
        assert secret.encode() not in collector.received


async def test_content_is_told_where_the_settings_ask_for_it(settings: Settings, endpoint: ScriptedEndpoint, collector: Collector) -> None:
    endpoint.script = searching()
    settings = dataclasses.replace(settings, traces_content=True)
    async with running_server(settings) as address, openai.AsyncOpenAI(base_url=f"{address}/v1", api_key="none") as sdk:
        await run(sdk, **await with_store(sdk))
        async with asyncio.timeout(20):
            _, first, search, second = await collector.wait_for("invoke_agent", "chat", "execute_tool", "chat")

    [*_, asked] = json.loads(attributes(first)["gen_ai.input.messages"])
    assert asked == {"role": "user", "parts": [{"type": "text", "content": SECRET}]}
    [wanted] = json.loads(attributes(first)["gen_ai.output.messages"])
    assert [part["name"] for part in wanted["parts"]] == ["file_search"]
    assert json.loads(attributes(search)["gen_ai.tool.call.arguments"]) == {"query": "whales"}
    assert "Whales sing." in attributes(search)["gen_ai.tool.call.result"]
    [answer] = json.loads(attributes(second)["gen_ai.output.messages"])
    assert answer == {"role": "assistant", "parts": [{"type": "text", "content": "They sing."}], "finish_reason": "stop"}
    assert any(
        part["type"] == "tool_call_response"
        for message in json.loads(attributes(second)["gen_ai.input.messages"])
        for part in message["parts"]
    )


async def test_the_attempts_of_a_run_without_a_callers_trace_are_in_one(
    sdk: openai.AsyncOpenAI, endpoint: ScriptedEndpoint, collector: Collector
) -> None:
    endpoint.script = Script([Rule([ToolCalls([ScriptedCall("f", "{}")])], times=1), Rule([Text("done")])])
    waiting = await run(sdk, tools=[{"type": "function", "function": {"name": "f"}}])
    assert waiting.status == "requires_action"
    [call] = waiting.required_action.submit_tool_outputs.tool_calls
    outputs: Any = [{"tool_call_id": call.id, "output": "42"}]
    await sdk.beta.threads.runs.submit_tool_outputs(waiting.id, thread_id=waiting.thread_id, tool_outputs=outputs)
    await sdk.beta.threads.runs.poll(waiting.id, thread_id=waiting.thread_id, poll_interval_ms=20)
    async with asyncio.timeout(20):
        first, _, second, _ = await collector.wait_for("invoke_agent", "chat", "invoke_agent", "chat")

    assert first.trace_id == second.trace_id
    assert not first.parent_span_id
    assert not second.parent_span_id
    assert [attributes(span)["mini_assistant.run.attempt"] for span in (first, second)] == [1, 2]
    assert [attributes(span)["mini_assistant.run.status"] for span in (first, second)] == ["requires_action", "completed"]


async def test_what_fails_is_told_as_failed_without_the_providers_words(
    sdk: openai.AsyncOpenAI, endpoint: ScriptedEndpoint, collector: Collector
) -> None:
    endpoint.script = Script([Rule([Respond(429, {"error": {"message": f"No {SECRET}"}})])])
    assert (await run(sdk)).status == "failed"
    async with asyncio.timeout(20):
        spans = await collector.wait_for("invoke_agent", "chat")

    for span in spans:
        assert span.status.code == Status.STATUS_CODE_ERROR
        assert attributes(span)["error.type"] == "rate_limit_exceeded"
    assert SECRET.encode() not in collector.received


async def test_a_tool_call_that_fails_is_told_as_failed(sdk: openai.AsyncOpenAI, endpoint: ScriptedEndpoint, collector: Collector) -> None:
    call = ToolCalls([ScriptedCall("file_search", "[]")])
    endpoint.script = Script([Rule([call], times=1), Rule([Text("Sorry.")])])
    assert (await run(sdk, **await with_store(sdk))).status == "completed"
    async with asyncio.timeout(20):
        whole, failed = await collector.wait_for("invoke_agent", "execute_tool")

    assert (failed.status.code, attributes(failed)["error.type"]) == (Status.STATUS_CODE_ERROR, "bad_arguments")
    assert whole.status.code != Status.STATUS_CODE_ERROR


async def test_who_is_not_sampled_by_the_caller_is_not_told_of_but_passed_on(
    sdk: openai.AsyncOpenAI, endpoint: ScriptedEndpoint, collector: Collector
) -> None:
    await run(sdk, headers={"traceparent": f"00-{TRACE}-{PARENT}-00"})
    await run(sdk)
    async with asyncio.timeout(20):
        await collector.wait_for("invoke_agent", "chat")

    assert TRACE not in {span.trace_id.hex() for span in collector.spans}
    assert endpoint.headers[0]["traceparent"].startswith(f"00-{TRACE}-")
    assert endpoint.headers[0]["traceparent"].endswith("-00")


async def test_no_run_is_sampled_with_a_ratio_of_zero_but_those_whose_caller_is(
    settings: Settings, endpoint: ScriptedEndpoint, collector: Collector
) -> None:
    settings = dataclasses.replace(settings, traces_sample_ratio=0.0)
    async with running_server(settings) as address, openai.AsyncOpenAI(base_url=f"{address}/v1", api_key="none") as sdk:
        await run(sdk)
        await run(sdk, headers={"traceparent": TRACEPARENT})
        async with asyncio.timeout(20):
            await collector.wait_for("invoke_agent")

    assert {span.trace_id.hex() for span in collector.spans} == {TRACE}


async def test_spans_are_sent_before_the_server_ends(settings: Settings, collector: Collector) -> None:
    async with running_server(settings) as address, openai.AsyncOpenAI(base_url=f"{address}/v1", api_key="none") as sdk:
        await run(sdk)

    assert {span.name.split()[0] for span in collector.spans} == {"invoke_agent", "chat"}


async def test_without_an_address_nothing_is_told_and_nothing_passed_on(settings: Settings, endpoint: ScriptedEndpoint) -> None:
    async with (
        running_server(dataclasses.replace(settings, traces_url="")) as address,
        openai.AsyncOpenAI(base_url=f"{address}/v1", api_key="none") as sdk,
    ):
        assert (await run(sdk, headers={"traceparent": TRACEPARENT})).status == "completed"

    assert "traceparent" not in endpoint.headers[0]
    assert traceparent_or_none() is None
    with open_span("chat", {"a": 1}) as span:
        span.tell({"b": 2})
        assert not span.tells_content


async def test_a_run_goes_on_in_another_process_with_the_trace_of_its_request(
    postgres_url: str, endpoint: ScriptedEndpoint, collector: Collector, tmp_path: Path
) -> None:
    apply_schema(postgres_url)
    environment = {
        "MINI_ASSISTANT_DATABASE_URL": postgres_url,
        "MINI_ASSISTANT_SANDBOX": "none",
        "OPENAI_BASE_URL": endpoint.base_url,
        "OPENAI_API_KEY": "sk-none",
        "MINI_ASSISTANT_TRACES_URL": collector.url,
    }
    front = ServerProcess(tmp_path / "front", {**environment, "MINI_ASSISTANT_WORKERS": "none"})
    worker = WorkerProcess(tmp_path / "worker", environment)
    try:
        await asyncio.to_thread(front.start)
        await asyncio.to_thread(worker.start)
        async with openai.AsyncOpenAI(base_url=f"{front.address}/v1", api_key="none") as sdk:
            assert (await run(sdk, headers={"traceparent": TRACEPARENT})).status == "completed"
        async with asyncio.timeout(20):
            [whole] = await collector.wait_for("invoke_agent")
    finally:
        for process in (front, worker):
            if process.is_running:
                await asyncio.to_thread(process.stop)

    assert (whole.trace_id.hex(), whole.parent_span_id.hex()) == (TRACE, PARENT)


@pytest.mark.parametrize(
    "header",
    [
        None,
        "",
        "x",
        TRACEPARENT.upper(),
        f"01-{TRACE}-{PARENT}-01",
        f"ff-{TRACE}-{PARENT}-01",
        f"00-{'0' * 32}-{PARENT}-01",
        f"00-{TRACE}-{'0' * 16}-01",
        f"00-{TRACE}-{PARENT}-1",
        f"{TRACEPARENT}-more",
        f"{TRACEPARENT}\n",
        f" {TRACEPARENT}",
    ],
)
def test_a_wrong_traceparent_is_ignored(header: str | None) -> None:
    assert valid_traceparent_or_none(header) is None
    assert valid_traceparent_or_none(TRACEPARENT) == TRACEPARENT


async def test_a_request_with_a_wrong_traceparent_is_answered(
    http: aiohttp.ClientSession, sdk: openai.AsyncOpenAI, collector: Collector
) -> None:
    assert (await run(sdk, headers={"traceparent": "x" * 300})).status == "completed"
    async with asyncio.timeout(20):
        [whole] = await collector.wait_for("invoke_agent")
    assert not whole.parent_span_id


@pytest.mark.parametrize("url", ["127.0.0.1:4318", "http://127.0.0.1:4318/v1/traces?key=sk-secret"])
def test_a_wrong_address_is_refused_with_a_right_one(url: str) -> None:
    with pytest.raises(ConfigError, match="traces_url") as raised:
        open_traces(url, sample_ratio=1.0, tells_content=False)
    assert "sk-secret" not in str(raised.value)


def test_missing_packages_are_named_with_what_installs_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "mini_assistant.trace_export", None)
    monkeypatch.delattr(mini_assistant, "trace_export", raising=False)
    with pytest.raises(ConfigError, match="make setup-otel"):
        open_traces("http://127.0.0.1:4318/v1/traces", sample_ratio=1.0, tells_content=False)


async def test_a_collector_that_does_not_answer_keeps_nobody_from_ending(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tracing, "_CLOSE_SECONDS_MAX", 0.2)

    with socket.create_server(("127.0.0.1", 0)) as silent:  # takes connections, and nobody reads from them
        url = f"http://127.0.0.1:{silent.getsockname()[1]}/v1/traces"
        async with (
            asyncio.timeout(15),
            running_server(dataclasses.replace(settings, traces_url=url)) as address,
            openai.AsyncOpenAI(base_url=f"{address}/v1", api_key="none") as sdk,
        ):
            assert (await run(sdk)).status == "completed"

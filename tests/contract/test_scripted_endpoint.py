"""The scripted endpoint answers as an OpenAI-compatible server would, so that tests against it mean something."""

import asyncio
import json
import os
import signal
import sys

import aiohttp
import msgspec
import pytest

from mini_assistant.models.script import Rule, Script, Text, ToolCalls
from mini_assistant.models.scripted import ScriptedEndpoint

WEATHER = {
    "type": "function",
    "function": {
        "name": "weather",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string"}, "days": {"type": "integer"}},
            "required": ["city", "days"],
        },
    },
}
TIME = {"type": "function", "function": {"name": "time"}}


@pytest.fixture
async def endpoint():
    async with ScriptedEndpoint() as endpoint:
        yield endpoint


@pytest.fixture
async def http():
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=10)) as session:
        yield session


def user(text):
    return [{"role": "user", "content": text}]


@pytest.fixture
def complete(endpoint, http):
    async def complete(messages, **fields):
        async with http.post(endpoint.base_url + "/chat/completions", json={"model": "m", "messages": messages, **fields}) as response:
            return response.status, await response.json()

    return complete


@pytest.fixture
def answer(complete):
    async def answer(messages, **fields):
        status, body = await complete(messages, **fields)
        assert status == 200, body
        return body["choices"][0]["message"]

    return answer


def calls_of(message):
    return [(call["function"]["name"], json.loads(call["function"]["arguments"])) for call in message.get("tool_calls", [])]


async def test_the_default_reply(answer):
    assert await answer(user("Hi  there")) == {"role": "assistant", "content": "You said: Hi  there"}
    parts = [{"type": "text", "text": "Look"}, {"type": "image_url", "image_url": {"url": "https://x/y.png"}}]
    assert (await answer(user(parts)))["content"] == "You said: Look"


async def test_a_call_that_the_user_asks_for(answer):
    text = 'call weather {"city": "Bonn", "more": {"a": "}"}} and call time'
    assert calls_of(await answer(user(text), tools=[WEATHER, TIME])) == [
        ("weather", {"city": "Bonn", "more": {"a": "}"}}),
        ("time", {}),
    ]
    assert len(calls_of(await answer(user(text), tools=[WEATHER, TIME], parallel_tool_calls=False))) == 1
    for fields in ({}, {"tools": [TIME]}, {"tools": [WEATHER], "tool_choice": "none"}):
        assert calls_of(await answer(user('call weather {"city": "Bonn"}'), **fields)) == []


async def test_a_call_that_tool_choice_demands(answer):
    tools = [WEATHER, TIME]
    named = {"type": "function", "function": {"name": "time"}}
    assert calls_of(await answer(user("Bonn"), tools=tools, tool_choice="required")) == [("weather", {"city": "Bonn"})]
    assert calls_of(await answer(user("Bonn"), tools=tools, tool_choice=named)) == [("time", {})]
    assert calls_of(await answer(user('call time {"zone": 1}'), tools=tools, tool_choice="required")) == [("time", {"zone": 1})]


async def test_the_reply_to_a_tools_result(answer):
    asked = await answer(user("call time"), tools=[TIME])
    messages = [*user("call time"), asked, {"role": "tool", "tool_call_id": asked["tool_calls"][0]["id"], "content": "12:00"}]
    assert (await answer(messages, tools=[TIME]))["content"] == "The tool returned: 12:00"


@pytest.mark.parametrize(
    "messages",
    [
        [{"role": "tool", "tool_call_id": "x", "content": "12:00"}],
        [{"role": "assistant", "tool_calls": [{"id": "x"}]}],
        [{"role": "assistant", "tool_calls": [{"id": "x"}]}, {"role": "user", "content": "Hi"}],
        [{"role": "assistant", "tool_calls": [{"id": "x"}]}, {"role": "tool", "tool_call_id": "y", "content": ""}],
        [{"role": "assistant", "tool_calls": [{"id": "x"}, {"id": "y"}]}, {"role": "tool", "tool_call_id": "x", "content": ""}],
    ],
)
async def test_calls_and_results_must_match(complete, messages):
    status, body = await complete(messages)
    assert status == 400
    assert "tool" in body["error"]["message"]


@pytest.mark.parametrize("name", ["max_tokens", "max_completion_tokens"])
async def test_the_limit_of_an_answer(complete, name):
    _, body = await complete(user("Hi"), **{name: 2})
    assert body["choices"][0]["message"]["content"] == "You said: "
    assert body["choices"][0]["finish_reason"] == "length"
    assert body["usage"] == {"prompt_tokens": 1, "completion_tokens": 2, "total_tokens": 3}


async def test_rules_are_tried_in_order(endpoint, answer):
    rules = """{"rules": [
        {"model": "other", "steps": [{"do": "text", "text": "other model"}]},
        {"contains": "weather", "after_tool": false, "times": 1, "steps": [{"do": "text", "text": "first time"}]},
        {"contains": "weather", "after_tool": false, "steps": [{"do": "text", "text": ["sec", "ond"], "repeat": 2}]},
        {"after_tool": true, "steps": [{"do": "refusal", "text": "No tools."}]}
    ]}"""
    endpoint.script = msgspec.json.decode(rules, type=Script)
    assert (await answer(user("weather"), model="other"))["content"] == "other model"
    assert (await answer(user("weather")))["content"] == "first time"
    assert (await answer(user("weather")))["content"] == "secondsecond"
    assert (await answer(user("Hi")))["content"] == "You said: Hi"
    result = [{"role": "assistant", "tool_calls": [{"id": "x"}]}, {"role": "tool", "tool_call_id": "x", "content": "weather"}]
    assert (await answer(result))["refusal"] == "No tools."


async def test_a_new_script_counts_anew(endpoint, answer):
    for text in ("one", "two"):
        endpoint.script = Script([Rule([Text(text)], times=1)])
        assert [(await answer(user("Hi")))["content"] for _ in range(2)] == [text, "You said: Hi"]


async def test_the_stream(endpoint, http):
    endpoint.script = Script([Rule([Text("Hello there"), ToolCalls([])])])
    body = {"model": "m", "messages": user("Hi"), "stream": True, "stream_options": {"include_usage": True}}
    async with http.post(endpoint.base_url + "/chat/completions", json=body) as response:
        assert response.content_type == "text/event-stream"
        events = (await response.text()).split("\n\n")
    assert events[-2:] == ["data: [DONE]", ""]
    frames = [json.loads(event.removeprefix("data: ")) for event in events[:-2]]
    assert [frame["choices"][0]["delta"].get("content") for frame in frames[:-1]] == ["", "Hello ", "there", None]
    assert frames[-2]["choices"][0]["finish_reason"] == "stop"
    assert frames[-1]["choices"] == []
    assert frames[-1]["usage"]["completion_tokens"] == 2


async def test_what_was_received_is_kept(endpoint, answer):
    await answer(user("Hi"), temperature=0)
    assert endpoint.requests[0] == {"model": "m", "messages": user("Hi"), "temperature": 0}


async def test_from_the_command_line(tmp_path, http):
    rules = tmp_path / "rules.json"
    rules.write_text('{"rules": [{"steps": [{"do": "text", "text": "Scripted"}]}]}')
    command = [sys.executable, "-m", "mini_assistant.models.scripted", "--port", "0", "--script", str(rules)]
    process = await asyncio.create_subprocess_exec(
        *command, stdout=asyncio.subprocess.PIPE, env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    )
    try:
        async with asyncio.timeout(20):
            base_url = (await process.stdout.readline()).decode().strip()
            async with http.post(base_url + "/chat/completions", json={"model": "m", "messages": user("Hi")}) as response:
                assert (await response.json())["choices"][0]["message"]["content"] == "Scripted"
            async with http.get(base_url + "/models") as response:
                assert (await response.json())["object"] == "list"
            process.send_signal(signal.SIGTERM)
            assert await process.wait() == 0
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()

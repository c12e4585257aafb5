"""The scripted endpoint answers as an OpenAI-compatible server would, so that tests against it mean something."""

import asyncio
import json
import os
import signal
import sys

import aiohttp
import msgspec
import pytest

from mini_assistant.models.script import Finish, Rule, Script, ScriptedCall, Stall, Text, ToolCalls
from mini_assistant.models.scripted import ScriptedEndpoint
from mini_assistant.models.scripted_abilities import Abilities

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


# ---- models that take less -----------------------------------------------------------------------------------------------------------

IMAGE = [{"role": "user", "content": [{"type": "text", "text": "Look"}, {"type": "image_url", "image_url": {"url": "data:,"}}]}]
NAMED_TIME = {"type": "function", "function": {"name": "time"}}
JSON_OBJECT = {"response_format": {"type": "json_object"}}


@pytest.mark.parametrize(
    ("abilities", "fields", "status", "words"),
    [
        ({"tools": "refuse", "server": "ollama"}, {"tools": [TIME]}, 400, "registry.ollama.ai/library/m does not support tools"),
        ({"tools": "refuse", "server": "vllm"}, {"tools": [TIME]}, 400, '"auto" tool choice requires --enable-auto-tool-choice'),
        ({"tools": "refuse", "server": "llama_cpp"}, {"tools": [TIME]}, 500, "tools param requires --jinja flag"),
        ({"tools": "refuse", "server": "openrouter"}, {"tools": [TIME]}, 404, "No endpoints found that support tool use."),
        ({"tool_choice": "refuse"}, {"tools": [TIME], "tool_choice": "required"}, 400, "'tool_choice' does not support 'required'"),
        (
            {"tool_choice": "refuse_object", "server": "lm_studio"},
            {"tools": [TIME], "tool_choice": NAMED_TIME},
            400,
            "Invalid tool_choice type: 'object'. Supported string values: none, auto, required",
        ),
        ({"json_object": "refuse", "server": "deepseek"}, JSON_OBJECT, 400, "This response_format type is unavailable now"),
        ({"json_schema": "refuse"}, {"response_format": {"type": "json_schema"}}, 400, "'response_format' of type 'json_schema'"),
        ({"max_tokens_parameter": "max_completion_tokens"}, {"max_tokens": 5}, 400, "Use 'max_completion_tokens' instead."),
        ({"max_tokens_parameter": "max_tokens"}, {"max_completion_tokens": 5}, 400, "supplied: max_completion_tokens"),
        (
            {"system_role": "refuse", "server": "vllm"},
            {"messages": [{"role": "system", "content": "Hi"}]},
            400,
            "System role not supported",
        ),
        ({"developer_role": "refuse"}, {"messages": [{"role": "developer", "content": "Hi"}]}, 400, "does not support 'developer'"),
        ({"temperature": "refuse"}, {"temperature": 0.2}, 400, "'temperature' does not support 0.2 with this model"),
        ({"temperature": "refuse"}, {"top_p": 0.2}, 400, "Unsupported parameter: 'top_p'"),
        ({"reasoning_effort": "refuse"}, {"reasoning_effort": "low"}, 400, "Unsupported parameter: 'reasoning_effort'"),
        ({"stream_options": "refuse"}, {"stream_options": {}}, 400, "Unrecognized request argument supplied: stream_options"),
        ({"parallel_tool_calls": "refuse"}, {"tools": [TIME], "parallel_tool_calls": False}, 400, "'parallel_tool_calls' is not supported"),
        ({"images": "refuse", "server": "openrouter"}, {"messages": IMAGE}, 404, "No endpoints found that support image input"),
        ({"images": "refuse"}, {"messages": IMAGE}, 400, "image_url is only supported by certain models"),
    ],
)
async def test_a_refusal_reads_as_that_of_the_server(endpoint, complete, abilities, fields, status, words):
    endpoint.script = Script(abilities=msgspec.convert(abilities, Abilities))
    got, body = await complete(**{"messages": user("Hi"), **fields})
    assert got == status
    assert words in json.dumps(body).replace('\\"', '"')
    assert (await complete(user("Hi")))[0] == 200


async def test_a_parameter_is_named_as_the_hosted_api_names_it(endpoint, complete):
    endpoint.script = Script(abilities=Abilities(max_tokens_parameter="max_completion_tokens"))
    _, body = await complete(user("Hi"), max_tokens=5)
    assert body["error"] == {
        "message": "Unsupported parameter: 'max_tokens' is not supported with this model. Use 'max_completion_tokens' instead.",
        "type": "invalid_request_error",
        "param": "max_tokens",
        "code": "unsupported_parameter",
    }


@pytest.mark.parametrize("ignoring", ["ignore", False])
async def test_what_is_ignored_makes_no_difference(endpoint, answer, ignoring):
    endpoint.script = Script(abilities=Abilities(tools=ignoring))
    assert (await answer(user("call time"), tools=[TIME], tool_choice="required"))["content"] == "You said: call time"
    endpoint.script = Script(abilities=Abilities(tool_choice=ignoring))
    assert (await answer(user("Hi"), tools=[TIME], tool_choice="required"))["content"] == "You said: Hi"
    assert calls_of(await answer(user("call time"), tools=[TIME], tool_choice="required")) == [("time", {})]
    endpoint.script = Script(abilities=Abilities(parallel_tool_calls=ignoring))
    assert len(calls_of(await answer(user("call time call time"), tools=[TIME], parallel_tool_calls=False))) == 2
    endpoint.script = Script(abilities=Abilities(json_schema=ignoring))
    assert (await answer(user("Hi"), response_format=next_step_format([WEATHER])))["content"] == "You said: Hi"


async def test_a_model_without_tools_reads_no_results_of_tools(endpoint, complete):
    messages = [*user("Hi"), {"role": "assistant", "tool_calls": [{"id": "x"}]}, {"role": "tool", "tool_call_id": "x", "content": "12:00"}]
    endpoint.script = Script(abilities=Abilities(tools="ignore"))
    assert (await complete(messages))[1]["choices"][0]["message"]["content"] == "You said: Hi"
    endpoint.script = Script(abilities=Abilities(tools="refuse"))
    assert (await complete(messages))[0] == 400


def test_abilities_are_a_part_of_a_script():
    script = msgspec.json.decode('{"abilities": {"tools": "refuse", "images": false, "server": "ollama"}}', type=Script)
    assert script.abilities == Abilities(tools="refuse", images=False, server="ollama")
    with pytest.raises(msgspec.ValidationError):
        msgspec.json.decode('{"abilities": {"telepathy": true}}', type=Script)


# ---- models that are told how to write their next step -------------------------------------------------------------------------------


def next_step_format(tools, *, demanded=False, reply=None, **calls_fields):
    """`response_format` of a next step."""
    calls = [
        closed(
            name={"type": "string", "enum": [tool["function"]["name"]]}, arguments=tool["function"].get("parameters", {"type": "object"})
        )
        for tool in tools
    ]
    demanded_step = closed(tool_calls={"type": "array", "minItems": 1, **calls_fields, "items": {"anyOf": calls}})
    step = demanded_step if demanded else {"anyOf": [closed(reply=reply or {"type": "string"}), demanded_step]}
    return {"type": "json_schema", "json_schema": {"name": "next_step", "schema": closed(next_step=step), "strict": False}}


def closed(**properties):
    return {"type": "object", "properties": properties, "required": list(properties), "additionalProperties": False}


def section(tools, shape, demand="You may call tools."):
    """A system message that describes tools in words."""
    lines = [json.dumps({"description": None, "parameters": {}, **tool["function"]}) for tool in tools]
    return [{"role": "system", "content": "\n".join(["Be brief.", "", "# Tools", shape, demand, *lines])}]


JSON_SHAPE = 'Answer with {"next_step": {"reply": "text"}} or {"next_step": {"tool_calls": [{"name": "f", "arguments": {}}]}}.'
TEXT_SHAPE = 'To call a tool, write <tool_call>{"name": "f", "arguments": {}}</tool_call> in a line.'
RESULTS = "# Tool results\nweather (call_1):\nrain\n\ntime (call_2):\n12:00\nsharp"
FORMS = ["json_schema", "json_object", "text"]


@pytest.fixture
def next_step(answer):
    """Asks for the next step in a form; gives its text and calls."""

    async def next_step(form, messages, tools=(WEATHER, TIME), choice="auto"):
        if form == "json_schema":
            named = [tool for tool in tools if not isinstance(choice, dict) or tool["function"]["name"] == choice["function"]["name"]]
            content = (await answer(messages, response_format=next_step_format(named, demanded=choice != "auto")))["content"]
        else:
            demand = {"auto": "You may call tools.", "required": "You must call a tool now."}
            line = f"You must call the tool {choice['function']['name']} now." if isinstance(choice, dict) else demand[choice]
            asked = [*section(tools, JSON_SHAPE if form == "json_object" else TEXT_SHAPE, line), *messages]
            content = (await answer(asked, **(JSON_OBJECT if form == "json_object" else {})))["content"]
        if form == "text":
            lines = [line for line in content.splitlines() if line.startswith("<tool_call>")]
            calls = [json.loads(line.removeprefix("<tool_call>").removesuffix("</tool_call>")) for line in lines]
            return content if not calls else None, [(call["name"], call["arguments"]) for call in calls]
        step = json.loads(content)["next_step"]
        return step.get("reply"), [(call["name"], call["arguments"]) for call in step.get("tool_calls", [])]

    return next_step


@pytest.mark.parametrize("form", FORMS)
async def test_the_default_reply_in_every_form(next_step, form):
    assert await next_step(form, user('He said "hi"\nto \\me')) == ('You said: He said "hi"\nto \\me', [])
    text = 'call weather {"city": "Bonn"} and call time'
    assert await next_step(form, user(text)) == (None, [("weather", {"city": "Bonn"}), ("time", {})])
    assert await next_step(form, user("Bonn"), choice="required") == (None, [("weather", {"city": "Bonn"})])
    assert await next_step(form, user("Bonn"), choice=NAMED_TIME) == (None, [("time", {})])
    assert await next_step(form, [*user(text), *user(RESULTS)]) == ("The tool returned: 12:00\nsharp", [])


@pytest.mark.parametrize("form", FORMS)
async def test_a_rule_is_written_in_every_form(endpoint, next_step, form):
    endpoint.script = Script(
        [
            Rule([Text("Cold.")], after_tool=True),
            Rule([Text("I look."), ToolCalls([ScriptedCall("weather", '{"city": "Bonn"}'), ScriptedCall("time", "")])], contains="Bonn"),
            Rule([Text(["Fine", ", "], repeat=2), Text('"thanks"')]),
        ]
    )
    assert await next_step(form, user("Hi")) == ('Fine, Fine, "thanks"', [])
    assert await next_step(form, user("Bonn")) == (None, [("weather", {"city": "Bonn"}), ("time", {})])
    assert await next_step(form, [*user("Bonn"), *user(RESULTS)]) == ("Cold.", [])


async def test_the_last_user_text_is_not_a_result(endpoint, answer):
    endpoint.script = Script([Rule([Text("yes")], contains="rain"), Rule([Text("no")])])
    assert (await answer([*user("Hi"), *user(RESULTS)]))["content"] == "no"


async def test_a_schema_says_how_many_calls_and_what_a_reply_is(endpoint, answer):
    one = await answer(user("call time call time"), response_format=next_step_format([TIME], maxItems=1))
    assert len(json.loads(one["content"])["next_step"]["tool_calls"]) == 1
    endpoint.script = Script([Rule([Text('{"a": 1}')])])
    for reply, told in (({"type": "object"}, {"a": 1}), ({"type": "string"}, '{"a": 1}')):
        content = (await answer(user("Hi"), response_format=next_step_format([TIME], reply=reply)))["content"]
        assert json.loads(content) == {"next_step": {"reply": told}}


async def test_raw_text_stays_as_it_is(endpoint, answer):
    endpoint.script = Script([Rule([Text('{"next_step": ', raw=True)])])
    assert (await answer(user("Hi"), response_format=next_step_format([TIME])))["content"] == '{"next_step": '


async def test_arguments_stay_as_the_script_has_them(endpoint, answer):
    endpoint.script = Script([Rule([ToolCalls([ScriptedCall("time", '{"broken')])])])
    content = (await answer(user("Hi"), response_format=next_step_format([TIME])))["content"]
    assert content == '{"next_step": {"tool_calls": [{"name": "time", "arguments": {"broken}]}}'


async def test_an_answer_that_breaks_off_is_not_closed(endpoint, answer, complete):
    asked = {"response_format": next_step_format([TIME])}
    _, body = await complete(user("Hi"), max_tokens=2, **asked)
    assert body["choices"][0]["message"]["content"] == '{"next_step": {"reply": "You said: '
    assert body["choices"][0]["finish_reason"] == "length"
    for ending in (Finish("length"), Stall()):
        endpoint.script = Script([Rule([Text("As far as"), ending], streams=False)])
        assert (await answer(user("Hi"), **asked))["content"] == '{"next_step": {"reply": "As far as'


async def test_definitions_in_a_schema_are_followed(answer):
    wanted = next_step_format([WEATHER], demanded=True)
    schema = wanted["json_schema"]["schema"]
    [call] = schema["properties"]["next_step"]["properties"]["tool_calls"]["items"]["anyOf"]
    schema["$defs"] = {"w": call["properties"]["arguments"]}
    call["properties"]["arguments"] = {"$ref": "#/$defs/w"}
    content = (await answer(user("Bonn"), response_format=wanted))["content"]
    assert json.loads(content)["next_step"]["tool_calls"] == [{"name": "weather", "arguments": {"city": "Bonn"}}]

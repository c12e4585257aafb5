"""One suite of runs for models that differ in how they can call tools: clients see the same runs, steps, messages and events of all.

The endpoints refuse, or overlook, what their models cannot do. What refuses is not configured: the server learns it while it runs.
"""

import dataclasses
from typing import Any

import msgspec
import openai
import pytest

from mini_assistant.models.script import Reasoning, Script, ScriptedCall, Stall, Text, ToolCalls
from mini_assistant.models.scripted import ScriptedEndpoint
from mini_assistant.models.scripted_abilities import Abilities
from mini_assistant.settings import Settings
from tests.conformance.any_model_endpoints import (
    ANY_MODEL,
    CALLS,
    CALLS_ENDED,
    CONTINUED,
    IGNORED,
    MESSAGE,
    NARROW,
    REFUSED,
    RUN_STARTS,
    AnyModel,
    Watched,
    answer_turns,
    answered,
    pending_calls,
    watched_run,
    watched_submit,
)
from tests.conformance.conversations import (
    CALL_BOTH,
    CALL_WEATHER,
    CLOCK,
    WEATHER,
    messages_of,
    new_assistant,
    steps_of,
    text_of,
    thread_saying,
)
from tests.conformance.strictness import wire
from tests.sandboxed import why_not
from tests.searched_files import new_store, resources_of, search_for

OSLO = ScriptedCall("weather", '{"city":"Oslo"}')
WAITING = [*RUN_STARTS, *CALLS, "thread.run.requires_action"]
ANSWERED = [*CONTINUED, *MESSAGE, "thread.run.completed"]
CITY_SCHEMA = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"], "additionalProperties": False}
FORMATS: list[Any] = [
    {"type": "json_object"},
    {"type": "json_schema", "json_schema": {"name": "place", "schema": CITY_SCHEMA, "strict": True}},
]
# Models that nothing but words keeps to the form of an answer.
BY_WORD = {name: model for name, model in ANY_MODEL.items() if model.form in ("json_object", "text")}
PICTURE = "data:image/png;base64,iVBORw0KGgo="


@pytest.fixture(params=ANY_MODEL.values(), ids=list(ANY_MODEL))
def model(request: pytest.FixtureRequest) -> AnyModel:
    return request.param


@pytest.fixture
def settings(settings: Settings, endpoint: ScriptedEndpoint, model: AnyModel) -> Settings:
    endpoint.script = Script(abilities=model.abilities)
    return dataclasses.replace(settings, **model.settings(endpoint.base_url))


async def the_answer(sdk: openai.AsyncOpenAI, watched: Watched) -> str:
    """The text of the last message of a completed run, which is what can be read afterwards."""
    run = watched.final_run
    assert run.status == "completed", (run.status, run.last_error)
    assert wire(run) == wire(await sdk.beta.threads.runs.retrieve(run.id, thread_id=run.thread_id))
    return text_of((await messages_of(sdk, run))[-1])


async def test_an_answer_in_words_is_streamed(sdk: openai.AsyncOpenAI, endpoint: ScriptedEndpoint, model: AnyModel) -> None:
    watched = await watched_run(sdk, 'Say "hi",\nplease', tools=[WEATHER])

    assert await the_answer(sdk, watched) == 'You said: Say "hi",\nplease'
    assert watched.told == [*RUN_STARTS, *MESSAGE, "thread.run.completed"]
    assert watched.names.count("thread.message.delta") >= 3
    assert model.used(answered(endpoint)[-1]) == model.form


async def test_a_function_is_called(sdk: openai.AsyncOpenAI, model: AnyModel) -> None:
    waiting = await watched_run(sdk, CALL_WEATHER, tools=[WEATHER, CLOCK])
    assert pending_calls(waiting.final_run) == [("weather", {"city": "Oslo"})]
    assert waiting.told == WAITING

    watched = await watched_submit(sdk, waiting.final_run, "sun,\nall day")
    assert await the_answer(sdk, watched) == "The tool returned: sun,\nall day"
    assert watched.told == ANSWERED
    [step, message] = await steps_of(sdk, watched.final_run)
    details = wire(step)["step_details"]["tool_calls"][0]
    assert details["function"] == {"name": "weather", "arguments": details["function"]["arguments"], "output": "sun,\nall day"}
    assert (step.status, message.status) == ("completed", "completed")


async def test_a_call_is_demanded(sdk: openai.AsyncOpenAI, model: AnyModel) -> None:
    waiting = await watched_run(sdk, "Oslo", tools=[WEATHER, CLOCK], tool_choice="required")
    assert pending_calls(waiting.final_run) == [("weather", {"city": "Oslo"})]
    assert waiting.told == WAITING

    watched = await watched_submit(sdk, waiting.final_run, "sun")
    assert watched.final_run.status == "completed", watched.final_run.last_error


async def test_a_call_of_one_function_is_demanded(sdk: openai.AsyncOpenAI, model: AnyModel) -> None:
    choice: Any = {"type": "function", "function": {"name": "clock"}}
    waiting = await watched_run(sdk, "Oslo", tools=[WEATHER, CLOCK], tool_choice=choice)
    assert pending_calls(waiting.final_run) == [("clock", {})]
    assert waiting.told == WAITING

    watched = await watched_submit(sdk, waiting.final_run, "noon")
    assert await the_answer(sdk, watched) == "The tool returned: noon"


async def test_tools_that_must_not_be_called(sdk: openai.AsyncOpenAI, model: AnyModel) -> None:
    watched = await watched_run(sdk, CALL_WEATHER, tools=[WEATHER], tool_choice="none")

    assert await the_answer(sdk, watched) == f"You said: {CALL_WEATHER}"
    assert watched.told == [*RUN_STARTS, *MESSAGE, "thread.run.completed"]


async def test_two_calls_at_once(sdk: openai.AsyncOpenAI, endpoint: ScriptedEndpoint, model: AnyModel) -> None:
    waiting = await watched_run(sdk, CALL_BOTH, tools=[WEATHER, CLOCK])
    assert pending_calls(waiting.final_run) == [("weather", {"city": "Oslo"}), ("clock", {})]
    assert waiting.told == WAITING

    watched = await watched_submit(sdk, waiting.final_run, "sun", "noon")
    assert await the_answer(sdk, watched) == "The tool returned: noon"
    assert watched.told == ANSWERED
    results = [str(message["content"]) for message in answered(endpoint)[-1]["messages"]][2 if model.form == "native" else -1 :]
    assert 0 <= " ".join(results).index("sun") < " ".join(results).index("noon")


async def test_one_call_at_a_time(sdk: openai.AsyncOpenAI, endpoint: ScriptedEndpoint, model: AnyModel) -> None:
    # Two are written whatever was asked for.
    answer_turns(endpoint, [ToolCalls([OSLO, ScriptedCall("clock")])], [Text("Sunny.")])
    waiting = await watched_run(sdk, "Both", tools=[WEATHER, CLOCK], parallel_tool_calls=False)
    assert pending_calls(waiting.final_run) == [("weather", {"city": "Oslo"})]

    assert await the_answer(sdk, await watched_submit(sdk, waiting.final_run, "sun")) == "Sunny."


async def test_files_are_searched_and_cited(sdk: openai.AsyncOpenAI, endpoint: ScriptedEndpoint, model: AnyModel) -> None:
    resources = resources_of(await new_store(sdk))
    answer_turns(endpoint, [search_for("favorite food of Anna")], [Text(["Anna likes ", "pizza 【4:", "0†food", ".txt】."])])
    watched = await watched_run(sdk, "What does Anna eat?", tools=[{"type": "file_search"}], tool_resources=resources)

    assert await the_answer(sdk, watched) == "Anna likes pizza 【4:0†food.txt】."
    assert watched.told == [*RUN_STARTS, *CALLS_ENDED, *MESSAGE, "thread.run.completed"]
    [message] = await messages_of(sdk, watched.final_run)
    [annotation] = wire(message)["content"][0]["text"]["annotations"]
    assert (annotation["type"], annotation["text"], annotation["start_index"]) == ("file_citation", "【4:0†food.txt】", 17)
    assert "pizza with olives" in str(answered(endpoint)[-1]["messages"][-1]["content"])


class TestCode:
    @pytest.fixture
    def settings(self, settings: Settings) -> Settings:
        if reason := why_not("process"):
            pytest.skip(reason)
        return dataclasses.replace(settings, sandbox="process", sandbox_pool_sessions=0)

    async def test_code_is_run(self, sdk: openai.AsyncOpenAI, model: AnyModel) -> None:
        # The model makes its arguments up from what the user says.
        tools = [{"type": "code_interpreter"}, WEATHER]
        watched = await watched_run(sdk, 'print("six times")\n6 * 7', tools=tools, tool_choice={"type": "code_interpreter"})

        assert "42" in await the_answer(sdk, watched)
        assert watched.told == [*RUN_STARTS, *CALLS_ENDED, *MESSAGE, "thread.run.completed"]
        [step, _] = await steps_of(sdk, watched.final_run)
        [call] = wire(step)["step_details"]["tool_calls"]
        assert call["code_interpreter"]["input"] == 'print("six times")\n6 * 7'
        assert call["code_interpreter"]["outputs"] == [{"type": "logs", "logs": "six times\n42\n"}]


@pytest.mark.parametrize("wanted", FORMATS, ids=["json_object", "json_schema"])
async def test_a_reply_in_json(sdk: openai.AsyncOpenAI, endpoint: ScriptedEndpoint, model: AnyModel, wanted: Any) -> None:
    answer_turns(endpoint, [Text('{"city": "Oslo"}')], [ToolCalls([OSLO])], [Text('{"city": "Bergen"}')])
    told = {"instructions": "Answer in JSON.", "response_format": wanted}
    plain = await watched_run(sdk, "Where in JSON?", **told)
    assert msgspec.json.decode(await the_answer(sdk, plain)) == {"city": "Oslo"}
    assert plain.told == [*RUN_STARTS, *MESSAGE, "thread.run.completed"]

    waiting = await watched_run(sdk, "Where in JSON?", tools=[WEATHER], **told)
    assert pending_calls(waiting.final_run) == [("weather", {"city": "Oslo"})]
    watched = await watched_submit(sdk, waiting.final_run, "rain")
    assert msgspec.json.decode(await the_answer(sdk, watched)) == {"city": "Bergen"}
    assert watched.told == ANSWERED


async def test_a_thread_goes_on_after_calls(sdk: openai.AsyncOpenAI, endpoint: ScriptedEndpoint, model: AnyModel) -> None:
    waiting = await watched_run(sdk, CALL_WEATHER, tools=[WEATHER])
    first = (await watched_submit(sdk, waiting.final_run, "sun")).final_run
    await sdk.beta.threads.messages.create(first.thread_id, role="user", content=CALL_WEATHER.replace("Oslo", "Rome"))

    again = await watched_run(sdk, thread_id=first.thread_id, tools=[WEATHER])
    assert pending_calls(again.final_run) == [("weather", {"city": "Rome"})]
    assert "The tool returned: sun" in [message["content"] for message in answered(endpoint)[-1]["messages"]]
    watched = await watched_submit(sdk, again.final_run, "heat")
    assert await the_answer(sdk, watched) == "The tool returned: heat"


async def test_calls_in_several_turns(sdk: openai.AsyncOpenAI, endpoint: ScriptedEndpoint, model: AnyModel) -> None:
    answer_turns(endpoint, [ToolCalls([OSLO])], [ToolCalls([ScriptedCall("clock")])], [Text("Sunny at noon.")])
    waiting = await watched_run(sdk, "When does the sun shine?", tools=[WEATHER, CLOCK])
    again = await watched_submit(sdk, waiting.final_run, "<first output>")
    assert pending_calls(again.final_run) == [("clock", {})]
    assert again.told == [*CONTINUED, *CALLS, "thread.run.requires_action"]

    assert await the_answer(sdk, await watched_submit(sdk, again.final_run, "<second output>")) == "Sunny at noon."
    conversation = str(answered(endpoint)[-1]["messages"])
    places = [conversation.index(said) for said in ("When does the sun shine?", "Oslo", "<first output>", "<second output>")]
    assert places == sorted(places)


async def test_wrong_arguments_are_repaired(sdk: openai.AsyncOpenAI, endpoint: ScriptedEndpoint, model: AnyModel) -> None:
    wrong = ScriptedCall("weather", '{"town": 5}')
    answer_turns(endpoint, [ToolCalls([wrong])], [ToolCalls([OSLO])], [Text("Sunny.")])
    waiting = await watched_run(sdk, "Oslo?", tools=[WEATHER])

    assert pending_calls(waiting.final_run) == [("weather", {"city": "Oslo"})]
    assert waiting.told == [*RUN_STARTS, *CALLS_ENDED, *CALLS, "thread.run.requires_action"]
    assert "city" in str(answered(endpoint)[-1]["messages"][-1]["content"])
    assert await the_answer(sdk, await watched_submit(sdk, waiting.final_run, "sun")) == "Sunny."


@pytest.mark.parametrize("model", BY_WORD.values(), ids=list(BY_WORD), indirect=True)
async def test_an_answer_that_cannot_be_read_is_asked_for_again(
    sdk: openai.AsyncOpenAI, endpoint: ScriptedEndpoint, model: AnyModel
) -> None:
    broken = (
        '{"next_step": {"tool_calls": [{"name": "weather", "arg' if model.form == "json_object" else '<tool_call>{"name": "weather", "a'
    )
    answer_turns(endpoint, [Text(broken, raw=True)], [ToolCalls([OSLO])])
    waiting = await watched_run(sdk, "Oslo?", tools=[WEATHER])

    assert pending_calls(waiting.final_run) == [("weather", {"city": "Oslo"})]
    assert waiting.told == WAITING
    assert broken in str([message["content"] for message in answered(endpoint)[-1]["messages"]])


async def test_what_the_model_thinks_is_kept_out(sdk: openai.AsyncOpenAI, endpoint: ScriptedEndpoint, model: AnyModel) -> None:
    in_words = Text(["<thi", "nk>Should I call ", "weather?</think>\n\n"], raw=True)
    answer_turns(endpoint, [Reasoning("Should I?"), ToolCalls([OSLO])], [in_words, Text("It is sunny.")])
    waiting = await watched_run(sdk, "Oslo?", tools=[WEATHER])
    assert pending_calls(waiting.final_run) == [("weather", {"city": "Oslo"})]
    assert waiting.told == WAITING

    watched = await watched_submit(sdk, waiting.final_run, "sun")
    assert (await the_answer(sdk, watched)).strip() == "It is sunny."
    assert watched.told == ANSWERED


async def test_the_limit_of_an_answer(sdk: openai.AsyncOpenAI, endpoint: ScriptedEndpoint, model: AnyModel) -> None:
    answer_turns(endpoint, [Text(["word "], repeat=500)])
    watched = await watched_run(sdk, tools=[WEATHER], max_completion_tokens=256)
    run = watched.final_run

    assert run.incomplete_details is not None
    assert (run.status, run.incomplete_details.reason) == ("incomplete", "max_completion_tokens")
    [message] = await messages_of(sdk, run)
    assert message.status == "incomplete"
    assert text_of(message).split() == ["word"] * 256
    assert watched.told[-3:] == ["thread.message.incomplete", "thread.run.step.completed", "thread.run.incomplete"]


async def test_a_run_is_cancelled_in_the_middle_of_an_answer(sdk: openai.AsyncOpenAI, endpoint: ScriptedEndpoint, model: AnyModel) -> None:
    answer_turns(endpoint, [Text("As far as"), Stall()])
    assistant, thread = await new_assistant(sdk, tools=[WEATHER]), await thread_saying(sdk, "Hello")
    watched = Watched()
    text = ""
    async with sdk.beta.threads.runs.stream(thread_id=thread.id, assistant_id=assistant.id, event_handler=watched) as stream:
        async for event in stream:
            if event.event == "thread.message.delta":
                text += wire(event.data)["delta"]["content"][0]["text"]["value"]
                if text == "As far as":  # it is told while the model is still at it
                    await sdk.beta.threads.runs.cancel(watched.final_run.id, thread_id=thread.id)

    assert watched.final_run.status == "cancelled"
    await endpoint.wait_for_streams(0)
    [message] = await messages_of(sdk, watched.final_run)
    assert (message.status, text_of(message)) == ("incomplete", "As far as")


async def test_every_turn_is_counted(sdk: openai.AsyncOpenAI, model: AnyModel) -> None:
    waiting = await watched_run(sdk, CALL_WEATHER, tools=[WEATHER])
    run = (await watched_submit(sdk, waiting.final_run, "sun")).final_run

    steps = await steps_of(sdk, run)
    assert run.usage is not None
    usages = [step.usage for step in steps if step.usage is not None]
    assert len(usages) == 2
    assert all(usage.prompt_tokens > 0 and usage.completion_tokens > 0 for usage in usages)
    assert run.usage.total_tokens == sum(usage.total_tokens for usage in usages)


class TestImages:
    @pytest.fixture
    def settings(self, settings: Settings, endpoint: ScriptedEndpoint) -> Settings:
        endpoint.script = Script(abilities=msgspec.structs.replace(endpoint.script.abilities, images="refuse"))
        return settings

    @pytest.mark.parametrize(
        "model",
        [*ANY_MODEL.values(), AnyModel("native", Abilities(images="ignore"), {"images": False})],
        ids=[*ANY_MODEL, "native-configured"],
        indirect=True,
    )
    async def test_images_for_a_model_that_takes_none(self, sdk: openai.AsyncOpenAI, endpoint: ScriptedEndpoint, model: AnyModel) -> None:
        parts: list[Any] = [{"type": "text", "text": "What is this?"}, {"type": "image_url", "image_url": {"url": PICTURE}}]
        thread = await sdk.beta.threads.create(messages=[{"role": "user", "content": parts}])
        watched = await watched_run(sdk, thread_id=thread.id, tools=[WEATHER])

        error = watched.final_run.last_error
        assert error is not None
        assert (watched.final_run.status, error.code) == ("failed", "invalid_prompt")
        assert watched.told[-1] == "thread.run.failed"
        assert answered(endpoint) == []


# ---- what is learned while the server runs -------------------------------------------------------------------------------------------

LEARNED = {form: AnyModel(form, abilities) for form, abilities in REFUSED.items()}
OVERLOOKING = {form: AnyModel(form, abilities) for form, abilities in IGNORED.items()}


@pytest.mark.parametrize("model", LEARNED.values(), ids=list(LEARNED), indirect=True)
async def test_what_was_refused_once_is_not_asked_again(sdk: openai.AsyncOpenAI, endpoint: ScriptedEndpoint, model: AnyModel) -> None:
    await watched_run(sdk, tools=[WEATHER])
    assert len(endpoint.requests) > len(answered(endpoint)) == 1
    endpoint.requests.clear()

    waiting = await watched_run(sdk, CALL_WEATHER, tools=[WEATHER])
    assert pending_calls(waiting.final_run) == [("weather", {"city": "Oslo"})]
    assert [model.used(request) for request in endpoint.requests] == [model.form]


WAYS_TO_REFUSE: dict[str, tuple[dict[str, str], dict[str, Any]]] = {
    **{
        f"tools of {server}": ({"tools": "refuse", "server": server}, {"tools": [WEATHER]})
        for server in ("openai", "ollama", "vllm", "llama_cpp", "openrouter", "deepseek")
    },
    **{
        f"tool_choice of {server}": ({"tool_choice": "refuse", "server": server}, {"tools": [WEATHER], "tool_choice": "required"})
        for server in ("openai", "vllm", "llama_cpp", "lm_studio", "deepseek")
    },
    **{
        f"json_schema of {server}": ({"json_schema": "refuse", "server": server}, {"response_format": FORMATS[1]})
        for server in ("openai", "llama_cpp", "deepseek")
    },
    **{
        f"json_object of {server}": ({"json_object": "refuse", "server": server}, {"response_format": FORMATS[0]})
        for server in ("openai", "lm_studio", "deepseek")
    },
    **{
        f"system_role of {server}": ({"system_role": "refuse", "server": server}, {"instructions": "Answer in JSON."})
        for server in ("openai", "vllm")
    },
    "max_completion_tokens": ({"max_tokens_parameter": "max_tokens"}, {"max_completion_tokens": 1000}),
    "temperature": ({"temperature": "refuse"}, {"temperature": 0.5}),
    "top_p": ({"temperature": "refuse"}, {"top_p": 0.5}),
    "reasoning_effort": ({"reasoning_effort": "refuse"}, {"reasoning_effort": "low"}),
    "stream_options": ({"stream_options": "refuse"}, {}),
    "parallel_tool_calls": ({"parallel_tool_calls": "refuse"}, {"tools": [WEATHER]}),
}


@pytest.mark.parametrize(
    ("model", "fields"),
    [
        pytest.param(AnyModel("", msgspec.convert(abilities, Abilities)), fields, id=name)
        for name, (abilities, fields) in WAYS_TO_REFUSE.items()
    ],
    indirect=["model"],
)
async def test_the_words_of_every_server_are_understood(
    sdk: openai.AsyncOpenAI, endpoint: ScriptedEndpoint, model: AnyModel, fields: dict[str, Any]
) -> None:
    for _ in range(2):
        run = (await watched_run(sdk, "Say it in JSON", **fields)).final_run
        assert run.status in ("completed", "requires_action"), run.last_error
        assert run.usage is not None or run.status == "requires_action"
    assert len(endpoint.requests) == 3
    assert len(answered(endpoint)) == 2


@pytest.mark.parametrize("model", OVERLOOKING.values(), ids=list(OVERLOOKING), indirect=True)
async def test_a_demand_that_is_overlooked_is_met_on_a_lower_rung(
    sdk: openai.AsyncOpenAI, endpoint: ScriptedEndpoint, model: AnyModel
) -> None:
    waiting = await watched_run(sdk, "Oslo", tools=[WEATHER, CLOCK], tool_choice="required")
    assert pending_calls(waiting.final_run) == [("weather", {"city": "Oslo"})]
    assert waiting.told == WAITING
    endpoint.requests.clear()

    again = await watched_run(sdk, "Rome", tools=[WEATHER, CLOCK], tool_choice="required")
    assert pending_calls(again.final_run) == [("weather", {"city": "Rome"})]
    used = [model.used(request) for request in endpoint.requests]
    assert len(used) == 1
    assert used[0] != "native"


@pytest.mark.parametrize("model", [AnyModel("native", Abilities(tool_choice="ignore"))], ids=["native"], indirect=True)
async def test_only_demands_are_asked_for_lower_where_only_they_are_overlooked(
    sdk: openai.AsyncOpenAI, endpoint: ScriptedEndpoint, model: AnyModel
) -> None:
    waiting = await watched_run(sdk, "Oslo", tools=[WEATHER], tool_choice="required")
    assert pending_calls(waiting.final_run) == [("weather", {"city": "Oslo"})]
    endpoint.requests.clear()

    await watched_run(sdk, CALL_WEATHER, tools=[WEATHER])
    assert [model.used(request) for request in endpoint.requests] == ["native"]


@pytest.mark.parametrize("model", [AnyModel("text", NARROW)], ids=["narrow"], indirect=True)
async def test_a_model_that_takes_next_to_nothing(sdk: openai.AsyncOpenAI, endpoint: ScriptedEndpoint, model: AnyModel) -> None:
    given: Any = {"temperature": 0.5, "reasoning_effort": "low", "max_completion_tokens": 1000, "instructions": "Be brief."}
    waiting = await watched_run(sdk, CALL_WEATHER, tools=[WEATHER], **given)
    assert pending_calls(waiting.final_run) == [("weather", {"city": "Oslo"})]
    refusals = len(endpoint.requests) - len(answered(endpoint))
    watched = await watched_submit(sdk, waiting.final_run, "sun")

    assert await the_answer(sdk, watched) == "The tool returned: sun"
    assert (waiting.told, watched.told) == (WAITING, ANSWERED)
    assert watched.final_run.usage is not None
    assert refusals <= 10
    assert len(endpoint.requests) - len(answered(endpoint)) == refusals
    assert "Be brief." in str(answered(endpoint)[-1]["messages"])

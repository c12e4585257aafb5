"""Which rung a turn is asked on, when it goes lower, what is remembered, and that the same deltas come out on each."""

import msgspec
import pytest

from mini_assistant.errors import ModelError
from mini_assistant.models.base import (
    Capabilities,
    ChatMessage,
    ChatRequest,
    Finished,
    NamedTool,
    RequestedToolCall,
    TextDelta,
    TokenUsage,
    ToolCallDelta,
    ToolDefinition,
)
from mini_assistant.models.learned import LearnedCapabilities
from mini_assistant.models.tool_calling.ladder import Ladder, ServedModel, form_of

WEATHER = ToolDefinition("weather", {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]})
CLOCK = ToolDefinition("clock", {"type": "object", "properties": {}})
CALL = '{"next_step": {"tool_calls": [{"name": "weather", "arguments": {"city": "Oslo"}}]}}'
REPLY = '{"next_step": {"reply": "It is fine."}}'
TAG = '<tool_call>{"name": "weather", "arguments": {"city": "Oslo"}}</tool_call>'


def asked(choice="auto", tools=(WEATHER, CLOCK), **fields):
    return ChatRequest("m", (ChatMessage("user", "How is it?"),), tools=tools, tool_choice=choice, **fields)


def text(*pieces, reason="stop", tokens=1):
    return [[TextDelta(piece)] for piece in pieces] + [[Finished(reason, TokenUsage(10, tokens))]]


def native_call(name="weather", arguments='{"city": "Oslo"}'):
    return [[ToolCallDelta(0, name, "")], [ToolCallDelta(0, None, arguments)], [Finished("tool_calls", TokenUsage(10, 1))]]


def refusal(words):
    return ModelError("refused", code="invalid_prompt", refusal=words)


class Model:
    """A provider that gives the next prepared answer each time, and keeps what it was asked."""

    def __init__(self, *answers):
        self.answers = list(answers)
        self.asked = []
        self.open_streams = 0

    async def stream(self, request, capabilities):
        self.asked.append((request, capabilities))
        answer = self.answers.pop(0)
        self.open_streams += 1
        try:
            if isinstance(answer, ModelError):
                raise answer
            for deltas in answer:
                yield deltas
        finally:
            self.open_streams -= 1

    async def check(self):
        return ""

    async def close(self):
        pass

    @property
    def forms(self):
        """How it was asked, each time."""
        return [_form(request) for request, _ in self.asked]


def _form(request):
    if request.tools:
        return "native"
    return (request.response_format or {}).get("type", "text")


class Server:
    """A ladder with one model, over several turns."""

    def __init__(self, *answers, **capabilities):
        self.model = Model(*answers)
        self.ladder = Ladder(LearnedCapabilities(), characters_max=1000)
        self.served = ServedModel("local", self.model, "upstream", Capabilities(**capabilities))

    async def turn(self, request):
        lists = [deltas async for deltas in self.ladder.stream(self.served, request)]
        assert self.model.open_streams == 0
        assert all(lists)
        deltas = [delta for deltas in lists for delta in deltas]
        assert [type(delta) for delta in deltas].count(Finished) == 1
        assert isinstance(deltas[-1], Finished)
        words = "".join(delta.text for delta in deltas if isinstance(delta, TextDelta))
        calls = {}
        for delta in deltas:
            if isinstance(delta, ToolCallDelta):
                name, arguments = calls.get(delta.index, ("", ""))
                calls[delta.index] = (name or delta.name, arguments + delta.arguments)
        return words, [(name, msgspec.json.decode(arguments or "{}")) for name, arguments in calls.values()], deltas[-1]


CALLED = [("weather", {"city": "Oslo"})]


@pytest.mark.parametrize(
    ("capabilities", "answer", "form"),
    [
        ({}, native_call(), "native"),
        ({"tools": False}, text(CALL), "json_schema"),
        ({"tools": False, "json_schema": False}, text(CALL), "json_object"),
        ({"tools": False, "json_schema": False, "json_object": False}, text(TAG), "text"),
        ({"tools": "json_object"}, text(CALL), "json_object"),
        ({"tools": "text"}, text(TAG), "text"),
    ],
)
@pytest.mark.parametrize("choice", ["auto", "required", NamedTool("weather")])
async def test_the_same_call_on_every_rung(capabilities, answer, form, choice):
    server = Server(answer, **capabilities)
    words, calls, finished = await server.turn(asked(choice))
    assert (words, calls, finished.reason) == ("", CALLED, "tool_calls")
    assert server.model.forms == [form]


async def test_a_demanded_call_that_does_not_come_is_asked_for_one_rung_lower_from_then_on():
    server = Server(text("It is fine."), text(CALL, tokens=4), text(CALL), native_call())
    words, calls, finished = await server.turn(asked("required"))
    assert (words, calls) == ("", CALLED)
    assert finished == Finished("tool_calls", TokenUsage(20, 5))  # with what the first answer cost
    assert (await server.turn(asked(NamedTool("weather"))))[1] == CALLED
    assert (await server.turn(asked("auto")))[1] == CALLED
    assert server.model.forms == ["native", "json_schema", "json_schema", "native"]


async def test_a_call_of_another_tool_than_the_named_one_is_none():
    server = Server(native_call("clock", "{}"), text(CALL))
    assert (await server.turn(asked(NamedTool("weather"))))[1] == CALLED
    assert server.model.forms == ["native", "json_schema"]


async def test_text_before_a_demanded_call_is_told_with_it():
    server = Server([[TextDelta("Let me ")], [TextDelta("look.")], *native_call()])
    words, calls, _ = await server.turn(asked("required"))
    assert (words, calls) == ("Let me look.", CALLED)


async def test_every_rung_down_to_words():
    server = Server(text("Fine."), text("Fine."), text("Fine."), text("Fine."), text(TAG), text(TAG))
    assert (await server.turn(asked("required")))[1] == CALLED
    assert (await server.turn(asked("required")))[1] == CALLED
    # json_object is asked twice: it may have known the shape the second time
    assert server.model.forms == ["native", "json_schema", "json_object", "json_object", "text", "text"]


async def test_a_model_that_never_calls_fails_the_turn_and_nothing_is_learned_from_it():
    server = Server(*[text("Fine.")] * 6, text("Fine."), text(CALL))
    with pytest.raises(ModelError, match="does not call a tool, which this run demands"):
        await server.turn(asked("required"))
    assert server.model.forms == ["native", "json_schema", "json_object", "json_object", "text", "text"]
    await server.turn(asked("required"))
    assert server.model.forms[6:] == ["native", "json_schema"]


async def test_a_refusal_of_tools_is_remembered_for_every_turn():
    server = Server(refusal("gemma does not support tools"), text(REPLY), text(CALL))
    words, calls, finished = await server.turn(asked())
    assert (words, calls, finished.reason) == ("It is fine.", [], "stop")
    assert (await server.turn(asked("required")))[1] == CALLED
    assert server.model.forms == ["native", "json_schema", "json_schema"]


async def test_several_refusals_in_one_turn():
    server = Server(
        refusal("Unrecognized request argument supplied: stream_options"),
        refusal("temperature is not supported"),
        refusal("does not support tools"),
        refusal("This response_format type is unavailable now"),
        text(CALL),
        text(REPLY),
    )
    assert (await server.turn(asked(temperature=0.5)))[1] == CALLED
    assert (await server.turn(asked(temperature=0.5)))[0] == "It is fine."
    request, capabilities = server.model.asked[-1]
    assert _form(request) == "json_object"
    assert (capabilities.stream_usage, capabilities.temperature, capabilities.json_schema) == (False, False, False)


async def test_a_refusal_that_names_nothing_to_leave_out_fails_the_turn():
    server = Server(refusal("the prompt is too long"))
    with pytest.raises(ModelError, match="refused"):
        await server.turn(asked())
    assert server.model.forms == ["native"]


async def test_two_names_of_one_limit_are_tried_once_each():
    words = "Unsupported parameters: max_tokens, max_completion_tokens"
    server = Server(refusal(words), refusal(words))
    with pytest.raises(ModelError, match="refused"):
        await server.turn(asked(completion_tokens_max=5))
    assert [capabilities.max_tokens_parameter for _, capabilities in server.model.asked] == ["max_completion_tokens", "max_tokens"]


async def test_what_has_been_told_is_not_taken_back():
    server = Server([[TextDelta("Well, ")], [TextDelta("no.")], [Finished("stop", None)]])
    assert (await server.turn(asked()))[0] == "Well, no."

    class Breaking(Model):
        async def stream(self, request, capabilities):
            self.asked.append((request, capabilities))
            yield [TextDelta("Well, ")]
            raise refusal("does not support tools")

    server.served = ServedModel("local", Breaking(), "upstream", Capabilities())
    answer = server.ladder.stream(server.served, asked())
    assert await anext(answer) == [TextDelta("Well, ")]
    with pytest.raises(ModelError, match="refused"):
        await anext(answer)


@pytest.mark.parametrize("tools", [True, "json_object", "text"])
async def test_an_answer_that_was_cut_off_is_no_missing_call(tools):
    server = Server(text('{"next_step": {"tool', reason="length"), tools=tools)
    _, calls, finished = await server.turn(asked("required"))
    assert (calls, finished.reason) == ([], "length")


async def test_what_is_held_back_has_a_limit():
    server = Server(text(*["word "] * 300))
    with pytest.raises(ModelError, match="longer than 1000 characters"):
        await server.turn(asked("required"))


async def test_a_repair_shows_the_model_what_was_wrong():
    server = Server(text('<tool_call>{"name": "weather", "arguments": {"city": </tool_call>'), text(TAG), tools="text")
    assert (await server.turn(asked()))[1] == CALLED
    again = server.model.asked[1][0].messages
    assert again[-2].role == "assistant"
    assert again[-1].role == "user"


async def test_forbidden_calls_are_left_out():
    server = Server([[TextDelta("Fine.")], *native_call()], text("Fine."), tool_choice=True)
    words, calls, finished = await server.turn(asked("none"))
    assert (words, calls, finished.reason) == ("Fine.", [], "stop")
    server = Server(text("Fine."), tools=False)
    words, calls, finished = await server.turn(asked("none"))
    assert (words, calls, finished.reason) == ("Fine.", [], "stop")
    assert "weather" not in str(server.model.asked[0][0].messages)


async def test_tool_history_is_words_for_a_model_without_tools():
    history = (
        ChatMessage("user", "How is it?"),
        ChatMessage("assistant", "", tool_calls=(RequestedToolCall("c1", "weather", '{"city": "Oslo"}'),)),
        ChatMessage("tool", "Rain.", tool_call_id="c1"),
    )
    server = Server(text("It rains."), tools=False)
    words, _, _ = await server.turn(ChatRequest("m", history))
    assert words == "It rains."
    sent = server.model.asked[0][0].messages
    assert all(message.role != "tool" and not message.tool_calls for message in sent)
    assert "Rain." in str(sent[-1].content)


@pytest.mark.parametrize(
    ("tools", "choice", "form"),
    [
        ("auto by rules", "auto", "native"),
        ("file_search", NamedTool("file_search"), "native"),
        ("weather", NamedTool("weather"), "json_schema"),
        ("weather", "required", "json_schema"),
        ("file_search", "required", "native"),
    ],
)
def test_a_provider_that_calls_by_rules(tools, choice, form):
    request = asked(choice, tools=(ToolDefinition(tools, {"type": "object"}),))
    assert form_of(request, Capabilities(tools="hosted")) == form

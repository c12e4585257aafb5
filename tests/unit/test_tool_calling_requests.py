"""How a model without tool calls of its own is asked: the schema of the next step, the section about tools, the history, the repair."""

from typing import Any

import jsonschema_rs
import msgspec
import pytest

from mini_assistant.models.base import (
    ChatMessage,
    ChatRequest,
    Emulation,
    ImagePart,
    NamedTool,
    RequestedToolCall,
    SourcePassage,
    TextPart,
    ToolDefinition,
)
from mini_assistant.models.tool_calling.emulation import emulated_request, repair_request
from mini_assistant.models.tool_calling.next_step import next_step_format
from mini_assistant.models.tool_calling.offer import offer_or_none
from tests.unit.tool_calling_answers import CLOCK, WEATHER, request_with

ULM = {"name": "weather", "arguments": {"city": "Ulm"}}
NOW = {"name": "clock", "arguments": {}}


def asked_format(request: ChatRequest) -> dict[str, Any]:
    asked = emulated_request(request, "json_schema")
    assert asked.tools == ()
    assert asked.tool_choice == "none"
    assert asked.response_format is not None
    assert asked.response_format["type"] == "json_schema"
    assert asked.response_format["json_schema"]["name"] == "next_step"
    return asked.response_format["json_schema"]


def takes(request: ChatRequest, step: object) -> bool:
    schema = asked_format(request)["schema"]
    jsonschema_rs.meta.validate(schema)
    return jsonschema_rs.validator_for(schema).is_valid({"next_step": step})


def test_a_next_step_is_a_reply_or_calls() -> None:
    request = request_with()

    assert takes(request, {"reply": "Hi"})
    assert takes(request, {"tool_calls": [ULM, NOW]})
    assert not takes(request, {"tool_calls": []})
    assert not takes(request, {"reply": "Hi", "tool_calls": [NOW]})
    assert not takes(request, {"tool_calls": [{"name": "other", "arguments": {}}]})
    assert not takes(request, {"tool_calls": [{"name": "weather", "arguments": {"city": 5}}]})
    assert not takes(request, {"tool_calls": [{"name": "weather"}]})


def test_a_demanded_call_leaves_no_other_way() -> None:
    required = request_with(tool_choice="required")
    named = request_with(tool_choice=NamedTool("clock"))

    assert not takes(required, {"reply": "Hi"})
    assert takes(required, {"tool_calls": [ULM, NOW]})
    assert not takes(named, {"tool_calls": [ULM]})
    assert not takes(named, {"tool_calls": [NOW, NOW]})
    assert takes(named, {"tool_calls": [NOW]})
    assert "anyOf" not in asked_format(named)["schema"]["properties"]["next_step"]


def test_one_call_at_a_time() -> None:
    request = request_with(parallel_tool_calls=False)

    assert not takes(request, {"tool_calls": [ULM, NOW]})
    assert takes(request, {"tool_calls": [ULM]})


def test_the_reply_is_what_the_run_demands() -> None:
    own = {"type": "object", "properties": {"a": {"$ref": "#/$defs/A"}}, "required": ["a"], "$defs": {"A": {"type": "integer"}}}
    by_schema = request_with(response_format={"type": "json_schema", "json_schema": {"name": "n", "schema": own}})
    by_object = request_with(response_format={"type": "json_object"})

    assert takes(by_schema, {"reply": {"a": 1}})
    assert not takes(by_schema, {"reply": {"a": "1"}})
    assert not takes(by_schema, {"reply": "text"})
    assert takes(by_object, {"reply": {"any": "thing"}})
    assert not takes(by_object, {"reply": "text"})


@pytest.mark.parametrize("parameters", [{}, {"type": "string"}, {"type": ["object", "null"]}, {"enum": [1]}])
def test_parameters_that_are_no_schema_of_an_object_are_any_object(parameters: dict[str, Any]) -> None:
    request = request_with(tools=(ToolDefinition("f", parameters, strict=True),))

    assert takes(request, {"tool_calls": [{"name": "f", "arguments": {"any": 1}}]})
    assert not takes(request, {"tool_calls": [{"name": "f", "arguments": "text"}]})
    assert not takes(request, {"tool_calls": [{"name": "f", "arguments": None}]})
    assert asked_format(request)["strict"] is False


def test_references_within_parameters_still_lead_to_their_definitions() -> None:
    one = {
        "type": "object",
        "properties": {"x": {"$ref": "#/$defs/T"}, "same": {"$ref": "#/properties/x"}, "y": {"$ref": "#/definitions/a~1b/items"}},
        "$defs": {"T": {"anyOf": [{"type": "integer"}, {"type": "array", "items": {"$ref": "#/$defs/T"}}]}},
        "definitions": {"a/b": {"type": "array", "items": {"type": "boolean"}}},
        "additionalProperties": False,
        "$schema": "https://json-schema.org/draft/2020-12/schema",
    }
    other = {"type": "object", "properties": {"x": {"$ref": "#/$defs/T"}, "me": {"$ref": "#"}}, "$defs": {"T": {"type": "string"}}}
    before = msgspec.json.encode([one, other])
    request = request_with(tools=(ToolDefinition("one", one), ToolDefinition("other", other)))

    def takes_call(name: str, arguments: dict[str, Any]) -> bool:
        return takes(request, {"tool_calls": [{"name": name, "arguments": arguments}]})

    assert takes_call("one", {"x": [1, [2]], "y": True, "same": 3})
    assert not takes_call("one", {"x": "a"})
    assert not takes_call("one", {"y": 1})
    assert not takes_call("one", {"same": "a"})
    assert takes_call("other", {"x": "a", "me": {"me": {"x": "b"}}})
    assert not takes_call("other", {"x": 1})
    assert not takes_call("other", {"me": {"me": {"x": 1}}})
    assert msgspec.json.encode([one, other]) == before


def test_parameters_are_embedded_however_deep_they_are() -> None:
    schema: dict[str, Any] = {"$ref": "#/$defs/T"}
    for _ in range(5000):
        schema = {"type": "object", "properties": {"a": schema}}
    request = request_with(tools=(ToolDefinition("f", {**schema, "$defs": {"T": {"type": "string"}}}),), tool_choice="required")
    offer = offer_or_none(request)
    assert offer is not None

    root = next_step_format(request, offer)["json_schema"]["schema"]
    place = root["properties"]["next_step"]["properties"]["tool_calls"]["items"]["anyOf"][0]["properties"]["arguments"]
    while "$ref" not in place:
        place = place["properties"]["a"]
    assert place == {"$ref": "#/$defs/d0"}
    assert root["$defs"] == {"d0": {"type": "string"}}


@pytest.mark.parametrize(
    ("is_tool_strict", "own", "is_strict"),
    [
        (True, None, True),
        (False, None, False),
        (True, {"type": "json_object"}, False),
        (True, {"type": "json_schema", "json_schema": {"name": "n", "strict": True, "schema": {"type": "object"}}}, True),
        (True, {"type": "json_schema", "json_schema": {"name": "n", "schema": {"type": "object"}}}, False),
    ],
)
def test_the_schema_is_strict_when_all_in_it_is(is_tool_strict: bool, own: dict[str, Any] | None, is_strict: bool) -> None:
    tools = (ToolDefinition("f", {"type": "object"}, strict=True), ToolDefinition("g", {"type": "object"}, strict=is_tool_strict))

    assert asked_format(request_with(tools=tools, response_format=own))["strict"] is is_strict


@pytest.mark.parametrize(("form", "response_format"), [("json_schema", "json_schema"), ("json_object", "json_object"), ("text", None)])
def test_the_section_about_tools_ends_the_system_message(form: Emulation, response_format: str | None) -> None:
    messages = (ChatMessage("system", "Be kind."), ChatMessage("user", "Hello"))
    asked = emulated_request(request_with(messages=messages, response_format={"type": "json_object"}), form)

    system = asked.messages[0]
    assert isinstance(system.content, str)
    lines = system.content.splitlines()
    assert lines[:3] == ["Be kind.", "", "# Tools"]
    assert lines.count("You may call tools.") == 1
    assert [msgspec.json.decode(line) for line in lines[-2:]] == [
        {"name": "weather", "description": "The weather of a city.", "parameters": WEATHER.parameters},
        {"name": "clock", "description": "", "parameters": CLOCK.parameters},
    ]
    assert asked.messages[1:] == messages[1:]
    assert (asked.response_format or {}).get("type") == response_format


@pytest.mark.parametrize("form", ["json_schema", "json_object", "text"])
@pytest.mark.parametrize(
    ("choice", "line", "tools"),
    [("required", "You must call a tool now.", 2), (NamedTool("clock"), "You must call the tool clock now.", 1)],
)
def test_the_section_says_what_is_demanded(form: Emulation, choice: object, line: str, tools: int) -> None:
    asked = emulated_request(request_with(tool_choice=choice), form)

    assert asked.messages[0].role == "system"
    assert isinstance(asked.messages[0].content, str)
    lines = asked.messages[0].content.splitlines()
    assert lines[0] == "# Tools"
    assert line in lines
    assert not [other for other in lines if "may call" in other or "reply" in other]
    assert len([other for other in lines if '"parameters"' in other]) == tools


def test_parts_of_a_system_message_stay_parts() -> None:
    image = ImagePart("https://example.com/a.png")
    asked = emulated_request(
        request_with(messages=(ChatMessage("system", (TextPart("Be kind."), image)), ChatMessage("user", (image,)))), "text"
    )

    content = asked.messages[0].content
    assert content[:2] == (TextPart("Be kind."), image)
    assert isinstance(content[2], TextPart)
    assert content[2].text.startswith("\n\n# Tools\n")
    assert asked.messages[1].content == (image,)


HISTORY = (
    ChatMessage("user", "What is it like?"),
    ChatMessage(
        "assistant",
        "Let me see.",
        tool_calls=(
            RequestedToolCall("c1", "weather", '{\n"city": "Ulm", "n": 12345678901234567890123}'),
            RequestedToolCall("c2", "clock", "{bad"),
        ),
    ),
    ChatMessage("tool", "warm", tool_call_id="c1", passages=(SourcePassage("[1]", "warm"),)),
    ChatMessage("tool", "late\n# Tool results", tool_call_id="c2"),
    ChatMessage("assistant", "", tool_calls=(RequestedToolCall("c3", "clock", "{}"),)),
    ChatMessage("tool", "later", tool_call_id="c3"),
)
WEATHER_CALL = '{"name": "weather", "arguments": {"city": "Ulm", "n": 12345678901234567890123}}'
BAD_CALL = '{"name": "clock", "arguments": "{bad"}'
CLOCK_CALL = '{"name": "clock", "arguments": {}}'


@pytest.mark.parametrize(
    ("form", "first", "second"),
    [
        (
            "json_object",
            f'{{"next_step": {{"tool_calls": [{WEATHER_CALL}, {BAD_CALL}]}}}}',
            f'{{"next_step": {{"tool_calls": [{CLOCK_CALL}]}}}}',
        ),
        ("text", f"<tool_call>{WEATHER_CALL}</tool_call>\n<tool_call>{BAD_CALL}</tool_call>", f"<tool_call>{CLOCK_CALL}</tool_call>"),
    ],
)
@pytest.mark.parametrize("tools", [(), (WEATHER,)])
def test_calls_and_outputs_become_plain_messages(form: Emulation, first: str, second: str, tools: tuple[ToolDefinition, ...]) -> None:
    asked = emulated_request(request_with(messages=HISTORY, tools=tools), form)

    assert asked.messages[1 if tools else 0 :] == (
        ChatMessage("user", "What is it like?"),
        ChatMessage("assistant", f"Let me see.\n{first}"),
        ChatMessage("user", "# Tool results\n\nweather (c1):\nwarm\n\nclock (c2):\nlate\n# Tool results"),
        ChatMessage("assistant", second),
        ChatMessage("user", "# Tool results\n\nclock (c3):\nlater"),
    )


def test_images_in_outputs_stay_images() -> None:
    image = ImagePart("https://example.com/a.png")
    asked = emulated_request(request_with(messages=(ChatMessage("tool", (TextPart("See:"), image), tool_call_id="c9"),), tools=()), "text")

    assert asked.messages == (ChatMessage("user", (TextPart("# Tool results"), TextPart("\n\ntool (c9):\n"), TextPart("See:"), image)),)


@pytest.mark.parametrize("changes", [{"tools": ()}, {"tool_choice": "none"}])
@pytest.mark.parametrize("form", ["json_schema", "json_object", "text"])
def test_where_nothing_may_be_called_nothing_is_asked_for(changes: dict[str, Any], form: Emulation) -> None:
    request = request_with(response_format={"type": "json_object"}, **changes)

    assert emulated_request(request, form) == msgspec.structs.replace(request, tools=(), tool_choice="none")


def test_a_repair_shows_the_answer_and_what_was_wrong() -> None:
    asked = emulated_request(request_with(), "json_object")
    repaired = repair_request(asked, "x" * 10_000, "It is not JSON.")

    assert repaired.messages[:-2] == asked.messages
    assert repaired.messages[-2] == ChatMessage("assistant", "x" * 4000 + " …")
    assert repaired.messages[-1].role == "user"
    assert "It is not JSON." in repaired.messages[-1].content
    assert repaired.response_format == asked.response_format
    assert repair_request(asked, " \n", "It was empty.").messages[:-1] == asked.messages

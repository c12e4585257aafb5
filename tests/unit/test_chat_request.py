"""A turn becomes the body of POST /chat/completions, within what the model can do."""

import msgspec
import pytest

from mini_assistant.errors import ModelError
from mini_assistant.models.base import (
    Capabilities,
    ChatMessage,
    ChatRequest,
    ImagePart,
    NamedTool,
    RequestedToolCall,
    TextPart,
    ToolDefinition,
)
from mini_assistant.models.chat_request import encode_chat_request

USER = ChatMessage("user", "Hi")
TOOL = ToolDefinition("f", {"type": "object"}, "Does f.")


def encode(*messages, capabilities=None, **fields):
    return msgspec.json.decode(encode_chat_request(ChatRequest("m", messages or (USER,), **fields), capabilities or Capabilities()))


def test_the_least_that_is_sent():
    assert encode() == {
        "model": "m",
        "messages": [{"role": "user", "content": "Hi"}],
        "stream": True,
        "stream_options": {"include_usage": True},
    }


def test_a_conversation_with_a_tool_call():
    messages = (
        ChatMessage("system", "Be kind."),
        USER,
        ChatMessage("assistant", "", tool_calls=(RequestedToolCall("call_1", "f", '{"a":1}'),)),
        ChatMessage("tool", "42", tool_call_id="call_1"),
    )
    assert encode(*messages)["messages"] == [
        {"role": "system", "content": "Be kind."},
        {"role": "user", "content": "Hi"},
        {
            "role": "assistant",
            "content": None,
            "tool_calls": [{"id": "call_1", "type": "function", "function": {"name": "f", "arguments": '{"a":1}'}}],
        },
        {"role": "tool", "content": "42", "tool_call_id": "call_1"},
    ]


def test_parts():
    [one] = encode(ChatMessage("user", (TextPart("Hi"),)))["messages"]
    assert one["content"] == "Hi"
    [none] = encode(ChatMessage("user", ()))["messages"]
    assert none["content"] == ""
    [two] = encode(ChatMessage("user", (TextPart("What is this?"), ImagePart("https://x/y.png", "low"))))["messages"]
    assert two["content"] == [
        {"type": "text", "text": "What is this?"},
        {"type": "image_url", "image_url": {"url": "https://x/y.png", "detail": "low"}},
    ]


def test_an_image_for_a_model_without_eyes():
    with pytest.raises(ModelError, match="'m' does not take images") as caught:
        encode(ChatMessage("user", (ImagePart("https://x/y.png"),)), capabilities=Capabilities(images=False))
    assert caught.value.code == "invalid_prompt"


def test_tools():
    body = encode(tools=(TOOL, ToolDefinition("g", {}, strict=True)))
    assert body["tools"] == [
        {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}, "description": "Does f."}},
        {"type": "function", "function": {"name": "g", "parameters": {}, "strict": True}},
    ]
    assert body["parallel_tool_calls"] is True
    assert "tool_choice" not in body


@pytest.mark.parametrize(
    ("choice", "sent"),
    [("none", "none"), ("required", "required"), (NamedTool("f"), "required")],
)
def test_tool_choice(choice, sent):
    assert encode(tools=(TOOL,), tool_choice=choice)["tool_choice"] == sent


def test_tool_fields_need_tools():
    body = encode(tool_choice="required", parallel_tool_calls=False)
    assert not {"tools", "tool_choice", "parallel_tool_calls"} & set(body)


def test_tools_for_a_model_without_tools():
    body = encode(tools=(TOOL,), tool_choice="required", capabilities=Capabilities(tools=False))
    assert not {"tools", "tool_choice", "parallel_tool_calls"} & set(body)


def test_parallel_tool_calls_only_where_known():
    assert encode(tools=(TOOL,), parallel_tool_calls=False)["parallel_tool_calls"] is False
    assert "parallel_tool_calls" not in encode(tools=(TOOL,), capabilities=Capabilities(parallel_tool_calls=False))


def test_sampling_keeps_zero():
    body = encode(temperature=0.0, top_p=0.0, reasoning_effort="low")
    assert (body["temperature"], body["top_p"], body["reasoning_effort"]) == (0.0, 0.0, "low")


def test_sampling_only_where_known():
    body = encode(temperature=0.5, top_p=0.5, reasoning_effort="low", capabilities=Capabilities(temperature=False, reasoning_effort=False))
    assert not {"temperature", "top_p", "reasoning_effort"} & set(body)


SCHEMA = {"type": "json_schema", "json_schema": {"name": "x", "schema": {}}}


@pytest.mark.parametrize(
    ("wanted", "capabilities", "sent"),
    [
        (SCHEMA, Capabilities(), SCHEMA),
        (SCHEMA, Capabilities(json_schema=False), {"type": "json_object"}),
        (SCHEMA, Capabilities(json_schema=False, json_object=False), None),
        ({"type": "json_object"}, Capabilities(), {"type": "json_object"}),
        ({"type": "json_object"}, Capabilities(json_object=False), None),
        ({"type": "text"}, Capabilities(), None),
        (None, Capabilities(), None),
    ],
)
def test_response_format(wanted, capabilities, sent):
    assert encode(response_format=wanted, capabilities=capabilities).get("response_format") == sent


@pytest.mark.parametrize(
    ("asked", "capabilities", "sent"),
    [
        (100, Capabilities(), {"max_completion_tokens": 100}),
        (100, Capabilities(completion_tokens_max=50), {"max_completion_tokens": 50}),
        (100, Capabilities(completion_tokens_max=500, max_tokens_parameter="max_tokens"), {"max_tokens": 100}),
        (None, Capabilities(completion_tokens_max=50), {}),
    ],
)
def test_completion_tokens_max(asked, capabilities, sent):
    body = encode(completion_tokens_max=asked, capabilities=capabilities)
    assert {name: value for name, value in body.items() if "max" in name} == sent


def test_usage_is_asked_for_only_where_known():
    assert "stream_options" not in encode(capabilities=Capabilities(stream_usage=False))


def test_a_schema_that_is_nested_too_deeply():
    schema = {}
    for _ in range(100_000):
        schema = {"not": schema}
    with pytest.raises(ModelError, match="too deeply") as caught:
        encode(tools=(ToolDefinition("f", schema),))
    assert caught.value.code == "invalid_prompt"
    while schema:  # taken apart from outside: the interpreter frees nested objects one in the other
        schema = schema["not"]

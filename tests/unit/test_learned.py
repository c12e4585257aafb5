"""What refusals of real servers are understood to say, and that nothing is tried twice in the same way."""

import pytest

from mini_assistant.models.base import Capabilities, ChatMessage, ChatRequest, NamedTool, ToolDefinition
from mini_assistant.models.learned import LearnedCapabilities, changes_after_refusal

TOOL = ToolDefinition("f", {"type": "object"})
USER, SYSTEM = ChatMessage("user", "Hello"), ChatMessage("system", "Be brief.")
SCHEMA = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "object"}}}


def asked(**fields):
    return ChatRequest("m", (SYSTEM, USER), **fields)


@pytest.mark.parametrize(
    ("refusal", "request_", "changes"),
    [
        (
            "Unsupported parameter: 'max_tokens' is not supported with this model. Use 'max_completion_tokens' instead.",
            asked(completion_tokens_max=10),
            {"max_tokens_parameter": "max_completion_tokens"},
        ),
        (
            "max_tokens is too large: 99999. This model supports at most 4096 completion tokens, whereas you provided 99999.",
            asked(completion_tokens_max=99999),
            {"completion_tokens_max": 4096},
        ),
        ("Unrecognized request argument supplied: stream_options", asked(), {"stream_usage": False}),
        ("body.parallel_tool_calls: Extra inputs are not permitted", asked(tools=(TOOL,)), {"parallel_tool_calls": False}),
        ("Unsupported value: 'temperature' does not support 0.2 with this model.", asked(temperature=0.2), {"temperature": False}),
        ("Unrecognized request argument supplied: reasoning_effort", asked(reasoning_effort="low"), {"reasoning_effort": False}),
        ("Unsupported value: 'messages[0].role' does not support 'system' with this model.", asked(), {"system_role": "user"}),
        ("System role not supported", asked(), {"system_role": "user"}),
        ("registry.ollama.ai/library/gemma:2b does not support tools", asked(tools=(TOOL,)), {"tools": False}),
        (
            '"auto" tool choice requires --enable-auto-tool-choice and --tool-call-parser to be set',
            asked(tools=(TOOL,)),
            {"tools": False},
        ),
        ("No endpoints found that support tool use.", asked(tools=(TOOL,)), {"tools": False}),
        ("tools param requires --jinja flag", asked(tools=(TOOL,)), {"tools": False}),
        (
            "Invalid tool_choice type: 'object'. Supported string values: none, auto, required",
            asked(tools=(TOOL,), tool_choice=NamedTool("f")),
            {"tool_choice": False},
        ),
        ("Invalid schema for response_format 'next_step': too deep", asked(response_format=SCHEMA), {"json_schema": False}),
        ("This response_format type is unavailable now", asked(response_format=SCHEMA), {"json_schema": False}),
        ("'response_format.type' must be 'text'", asked(response_format={"type": "json_object"}), {"json_object": False}),
    ],
)
def test_refusals_of_servers(refusal, request_, changes):
    capabilities = Capabilities(max_tokens_parameter="max_tokens")
    assert changes_after_refusal(refusal, request_, capabilities) == changes


@pytest.mark.parametrize(
    ("refusal", "request_", "capabilities"),
    [
        (
            "This model's maximum context length is 8192 tokens. However, you requested 9000 tokens (8000 in the messages, 200 in the "
            "functions, and 800 in the completion).",
            asked(tools=(TOOL,), temperature=1.0),
            Capabilities(),
        ),
        (
            "'messages' must contain the word 'json' in some form, to use 'response_format' of type 'json_object'.",
            asked(response_format={"type": "json_object"}),
            Capabilities(),
        ),
        ("Invalid schema for response_format 'answer': 'required' is required.", asked(response_format=SCHEMA), Capabilities()),
        ("Invalid schema for function 'f': 'required' is required.", asked(tools=(TOOL,)), Capabilities()),
        ("does not support tools", asked(), Capabilities()),
        ("does not support tools", asked(tools=(TOOL,)), Capabilities(tools=False)),
        ("temperature is not supported", asked(), Capabilities()),
        ("temperature is not supported", asked(temperature=1.0), Capabilities(temperature=False)),
        ("stream_options is not known", asked(), Capabilities(stream_usage=False)),
        ("System role not supported", asked(), Capabilities(system_role="user")),
        ("System role not supported", ChatRequest("m", (USER,)), Capabilities()),
        ("response_format is not known", asked(response_format=SCHEMA), Capabilities(json_schema=False, json_object=False)),
        ("", asked(tools=(TOOL,), temperature=1.0), Capabilities()),
    ],
)
def test_what_cannot_be_left_out_is_no_lesson(refusal, request_, capabilities):
    assert changes_after_refusal(refusal, request_, capabilities) is None


def test_lessons_are_for_one_model_at_one_provider():
    learned = LearnedCapabilities()
    learned.remember("project", "local", "gemma", {"tools": False})
    learned.remember("project", "local", "gemma", {"stream_usage": False})
    assert learned.of("project", "local", "gemma", Capabilities()) == Capabilities(tools=False, stream_usage=False)
    assert learned.of("project", "other", "gemma", Capabilities()) == Capabilities()
    assert learned.of("another project", "local", "gemma", Capabilities()) == Capabilities()
    assert learned.of("project", "local", "llama", Capabilities()) == Capabilities()


def test_only_the_newest_models_are_remembered():
    learned = LearnedCapabilities()
    for number in range(1500):
        learned.remember("project", "local", f"model-{number}", {"tools": False})
    assert learned.of("project", "local", "model-0", Capabilities()).tools is True
    assert learned.of("project", "local", "model-1499", Capabilities()).tools is False

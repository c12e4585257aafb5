"""Literal messages of refused requests, and the agreement of the comparison with msgspec on arbitrary JSON."""

import json
import time
from typing import Annotated, Any, Literal, get_args

import msgspec
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from msgspec import UNSET, Meta, UnsetType

from mini_assistant.errors import InvalidRequest
from mini_assistant.http.type_walk import FaultCode, JsonObject, check
from mini_assistant.http.validation import decode_body, decode_query, explain

Name = Annotated[str, Meta(max_length=64, pattern="^[a-zA-Z0-9_-]+$")]
Attributes = Annotated[
    dict[Annotated[str, Meta(max_length=64)], Annotated[str, Meta(max_length=512)]],
    Meta(max_length=16, description="Sixteen pairs."),
]


class Body(msgspec.Struct, forbid_unknown_fields=True):
    """What every request struct has."""


class FunctionDefinition(Body):
    name: Name
    description: str | None = None
    parameters: dict[str, Any] | UnsetType = UNSET
    strict: bool | None = None


class CodeInterpreterTool(Body, tag_field="type", tag="code_interpreter"):
    pass


class FunctionTool(Body, tag_field="type", tag="function"):
    function: FunctionDefinition


class RankingOptions(Body):
    score_threshold: Annotated[float, Meta(ge=0, le=1)]
    ranker: Literal["auto", "default_2024_08_21"] = "auto"


class FileSearchOptions(Body):
    max_num_results: Annotated[int, Meta(ge=1, le=50)] = 20
    ranking_options: RankingOptions | None = None


class FileSearchTool(Body, tag_field="type", tag="file_search"):
    file_search: FileSearchOptions | UnsetType = UNSET


Tool = CodeInterpreterTool | FunctionTool | FileSearchTool


class TextPart(Body, tag_field="type", tag="text"):
    text: Annotated[str, Meta(min_length=1)]


class ImageUrl(Body):
    url: str
    detail: Literal["auto", "low", "high"] = "auto"


class ImageUrlPart(Body, tag_field="type", tag="image_url"):
    image_url: ImageUrl


class Attachment(Body):
    file_id: str
    tools: list[CodeInterpreterTool | FileSearchTool]


class MessageBody(Body):
    role: Literal["user", "assistant"]
    content: str | Annotated[list[TextPart | ImageUrlPart], Meta(min_length=1)]
    attachments: list[Attachment] | None = None
    metadata: Attributes | UnsetType | None = UNSET


class NamedFunction(Body):
    name: str


class NamedToolChoice(Body, tag_field="type", tag="function"):
    function: NamedFunction


class JsonSchemaFormat(Body, tag_field="type", tag="json_schema"):
    json_schema: dict[str, Any]


class TextFormat(Body, tag_field="type", tag="text"):
    pass


class AssistantBody(Body):
    model: str
    name: Annotated[str, Meta(max_length=256)] | None = None
    instructions: Annotated[str, Meta(max_length=256_000)] | UnsetType | None = UNSET
    tools: Annotated[list[Tool], Meta(max_length=128)] = []
    metadata: Attributes | None = None
    temperature: Annotated[float, Meta(ge=0, le=2)] | None = None
    response_format: Literal["auto"] | TextFormat | JsonSchemaFormat | None = None


class RunBody(Body, rename={"tool_choice": "tool_choice", "model_name": "model"}):
    assistant_id: str
    model_name: str | None = None
    additional_messages: list[MessageBody] | None = None
    max_prompt_tokens: Annotated[int, Meta(ge=256)] | None = None
    top_p: Annotated[float, Meta(gt=0, lt=1)] | None = None
    stream: bool | None = None
    tool_choice: Literal["none", "auto", "required"] | NamedToolChoice | None = None
    attributes: dict[str, str | float | bool] | None = None
    overlap: Annotated[int, Meta(multiple_of=2)] = 0
    hints: Annotated[tuple[str, ...], Meta(min_length=2)] = ("", "")
    limits: Annotated[dict[str, int], Meta(min_length=1)] | UnsetType = UNSET
    extra: Any = None
    raw: msgspec.Raw | UnsetType = UNSET


BODIES = (AssistantBody, MessageBody, RunBody)
TYPES = {body: msgspec.inspect.type_info(body) for body in BODIES}


def fault_of(wanted: type, body: object) -> InvalidRequest:
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    with pytest.raises(InvalidRequest) as caught:
        decode_body(msgspec.json.Decoder(wanted), raw)
    return caught.value


def message(content: object, **more: object) -> dict[str, object]:
    return {"role": "user", "content": content, **more}


def assistant(**more: object) -> dict[str, object]:
    return {"model": "m", **more}


def run(**more: object) -> dict[str, object]:
    return {"assistant_id": "asst_1", **more}


# fmt: off
LITERALS: list[tuple[type, object, str, str | None, str]] = [
    (RunBody, {"zebra": 1}, "Missing required parameter: 'assistant_id'.", "assistant_id", "missing_required_parameter"),
    (RunBody, run(additional_messages=[{"role": "user"}]), "Missing required parameter: 'additional_messages[0].content'.",
     "additional_messages[0].content", "missing_required_parameter"),
    (AssistantBody, assistant(tools=[{}]), "Missing required parameter: 'tools[0].type'.", "tools[0].type", "missing_required_parameter"),
    (AssistantBody, assistant(file_ids=[]), "Unknown parameter: 'file_ids'.", "file_ids", "unknown_parameter"),
    (AssistantBody, assistant(tools=[{"type": "file_search", "files": 1}]), "Unknown parameter: 'tools[0].files'.", "tools[0].files",
     "unknown_parameter"),
    (AssistantBody, assistant(**{"x" * 500: 1}), f"Unknown parameter: '{'x' * 97}...'.", "x" * 97 + "...", "unknown_parameter"),
    (RunBody, run(model_name="m"), "Unknown parameter: 'model_name'.", "model_name", "unknown_parameter"),
    (MessageBody, message("x", metadata={"modified": True}),
     "Invalid type for 'metadata.modified': expected a string, but got a boolean instead.", "metadata.modified", "invalid_type"),
    (AssistantBody, {"model": None}, "Invalid type for 'model': expected a string, but got null instead.", "model", "invalid_type"),
    (RunBody, run(stream="yes"), "Invalid type for 'stream': expected a boolean, but got a string instead.", "stream", "invalid_type"),
    (RunBody, run(max_prompt_tokens=300.0),
     "Invalid type for 'max_prompt_tokens': expected an integer, but got a decimal number instead.", "max_prompt_tokens", "invalid_type"),
    (AssistantBody, assistant(temperature="hot"), "Invalid type for 'temperature': expected a decimal, but got a string instead.",
     "temperature", "invalid_type"),
    (RunBody, run(hints=7), "Invalid type for 'hints': expected an array of strings, but got an integer instead.", "hints",
     "invalid_type"),
    (MessageBody, message(5), "Invalid type for 'content': expected one of a string or array of objects, but got an integer instead.",
     "content", "invalid_type"),
    (RunBody, run(tool_choice=[]), "Invalid type for 'tool_choice': expected one of a string or object, but got an array instead.",
     "tool_choice", "invalid_type"),
    (RunBody, run(attributes={"a": None}),
     "Invalid type for 'attributes.a': expected one of a string, decimal, or boolean, but got null instead.", "attributes.a",
     "invalid_type"),
    (AssistantBody, assistant(tools=[{"type": 1}]), "Invalid type for 'tools[0].type': expected a string, but got an integer instead.",
     "tools[0].type", "invalid_type"),
    (AssistantBody, [], "Invalid type for 'body': expected an object, but got an array instead.", None, "invalid_type"),
    (AssistantBody, None, "Invalid type for 'body': expected an object, but got null instead.", None, "invalid_type"),
    (AssistantBody, assistant(tools=[{"type": "retrieval"}]),
     "Invalid value: 'retrieval'. Supported values are: 'code_interpreter', 'function', and 'file_search'.", "tools[0].type",
     "invalid_value"),
    (MessageBody, {"role": "system", "content": "x"}, "Invalid value: 'system'. Supported values are: 'assistant' and 'user'.", "role",
     "invalid_value"),
    (MessageBody, {"role": "ä" * 3000, "content": "x"}, f"Invalid value: '{'ä' * 97}...'. Supported values are: 'assistant' and 'user'.",
     "role", "invalid_value"),
    (RunBody, run(additional_messages=[message([{"type": "text", "text": "x"}, {"type": "image"}])]),
     "Invalid value: 'image'. Supported values are: 'text' and 'image_url'.", "additional_messages[0].content[1].type", "invalid_value"),
    (RunBody, run(tool_choice={"type": "file_search", "function": {"name": "f"}}),
     "Invalid value: 'file_search'. Supported values are: 'function'.", "tool_choice.type", "invalid_value"),
    (AssistantBody, assistant(instructions="é" * 256_003),
     "Invalid 'instructions': string too long. "
     "Expected a string with maximum length 256000, but got a string with length 256003 instead.",
     "instructions", "string_above_max_length"),
    (MessageBody, message([{"type": "text", "text": ""}]),
     "Invalid 'content[0].text': string too short. Expected a string with minimum length 1, but got a string with length 0 instead.",
     "content[0].text", "string_below_min_length"),
    (AssistantBody, assistant(tools=[{"type": "function", "function": {"name": "get weather"}}]),
     "Invalid 'tools[0].function.name': string does not match pattern. Expected a string that matches the pattern '^[a-zA-Z0-9_-]+$'.",
     "tools[0].function.name", "invalid_value"),
    (AssistantBody, assistant(tools=[{"type": "file_search"}] * 129),
     "Invalid 'tools': array too long. Expected an array with maximum length 128, but got an array with length 129 instead.", "tools",
     "array_above_max_length"),
    (MessageBody, message([]), "Invalid 'content': empty array. Expected an array with minimum length 1, but got an empty array instead.",
     "content", "empty_array"),
    (RunBody, run(hints=["a"]),
     "Invalid 'hints': array too short. Expected an array with minimum length 2, but got an array with length 1 instead.", "hints",
     "array_below_min_length"),
    (MessageBody, message("x", metadata={str(n): "" for n in range(17)}),
     "Invalid 'metadata': too many properties. "
     "Expected an object with at most 16 properties, but got an object with 17 properties instead.",
     "metadata", "object_above_max_properties"),
    (RunBody, run(limits={}),
     "Invalid 'limits': too few properties. Expected an object with at least 1 property, but got an object with 0 properties instead.",
     "limits", "object_below_min_properties"),
    (MessageBody, message("x", metadata={"k" * 65: "v"}),
     "Invalid 'metadata': property name too long. "
     "Expected a property name with maximum length 64, but got a property name with length 65 instead.",
     "metadata", "property_name_above_max_length"),
    (MessageBody, message("x", metadata={"k": "v" * 513}),
     "Invalid 'metadata.k': string too long. Expected a string with maximum length 512, but got a string with length 513 instead.",
     "metadata.k", "string_above_max_length"),
    (RunBody, run(max_prompt_tokens=255),
     "Invalid 'max_prompt_tokens': integer below minimum value. Expected a value >= 256, but got 255 instead.", "max_prompt_tokens",
     "integer_below_min_value"),
    (AssistantBody, assistant(tools=[{"type": "file_search", "file_search": {"max_num_results": 10**18}}]),
     f"Invalid 'tools[0].file_search.max_num_results': integer above maximum value. Expected a value <= 50, but got {10**18} instead.",
     "tools[0].file_search.max_num_results", "integer_above_max_value"),
    (AssistantBody, assistant(temperature=2.1),
     "Invalid 'temperature': decimal above maximum value. Expected a value <= 2, but got 2.1 instead.", "temperature",
     "decimal_above_max_value"),
    (RunBody, run(top_p=0.0), "Invalid 'top_p': decimal below minimum value. Expected a value > 0, but got 0 instead.", "top_p",
     "decimal_below_min_value"),
    (RunBody, run(overlap=3), "Invalid 'overlap': wrong step. Expected a multiple of 2, but got 3 instead.", "overlap", "invalid_value"),
    (AssistantBody, b'{"model": "m", "temperature": 1e400}',
     "Invalid 'temperature': number out of range. Expected a number that fits into 64 bits.", "temperature", "invalid_value"),
    (AssistantBody, b'{"model": "m", "temperature": ' + b"9" * 400 + b"}",
     "Invalid 'temperature': number out of range. Expected a number that fits into 64 bits.", "temperature", "invalid_value"),
    (RunBody, b'{"assistant_id": "a", "extra": {"a": [1, ' + b"9" * 5000 + b"]}}",
     "Invalid 'extra.a[1]': number out of range. Expected a number that fits into 64 bits.", "extra.a[1]", "invalid_value"),
    (AssistantBody, b'{"model": 1, "model": "m"}', "Invalid type for 'model': expected a string, but got an integer instead.", "model",
     "invalid_type"),
    (AssistantBody, b'{"model": "m", "tools": [{"type": "file_search", "type": "function"}]}',
     "Invalid value: 'function'. Supported values are: 'file_search'.", "tools[0].type", "invalid_value"),
]
# fmt: on


@pytest.mark.parametrize(("wanted", "body", "text", "param", "code"), LITERALS)
def test_a_fault_is_named_in_the_words_of_the_hosted_api(wanted: type, body: object, text: str, param: str | None, code: str) -> None:
    fault = fault_of(wanted, body)
    assert (fault.message, fault.param, fault.code) == (text, param, code)
    assert fault.status == 400


def test_the_examples_cover_every_code() -> None:
    assert {case[-1] for case in LITERALS} == set(get_args(FaultCode))


@pytest.mark.parametrize(
    ("raw", "reason"),
    [
        (b"", "It is empty."),
        (b" \r\n", "It is empty."),
        (b"{", "It is malformed at line 1 column 2: Expecting property name enclosed in double quotes."),
        (b'{"model": "m"}}', "It is malformed at line 1 column 15: Extra data."),
        (b'{"model": "a\nb"}', "It is malformed at line 1 column 13: Invalid control character."),
        (b'{"temperature": NaN, "model": "m"}', "NaN is not a value in JSON."),
        (b'{"model": -Infinity}', "-Infinity is not a value in JSON."),
        (b'{"model": "\xff"}', "It is not UTF-8 at byte 11."),
        (b'{"model": "\xed\xa0\x80"}', "It is not UTF-8 at byte 11."),
        (b'\xef\xbb\xbf{"model": "m"}', "It is malformed at line 1 column 1: Unexpected UTF-8 BOM (decode using utf-8-sig)."),
        (b'{"model": "\\ud800"}', "A \\u escape is half of a surrogate pair."),
        (b'{"model": "\\udc00 and more text"}', "A \\u escape is half of a surrogate pair."),
        (b'{"zebra": "\\ud800", "temperature": 1e999}', "A \\u escape is half of a surrogate pair."),
        (b'{"model": ' + b"[" * 45_000 + b"]" * 45_000 + b"}", "It is nested too deeply."),
        (b'{"zebra": ' + b'{"a":' * 45_000 + b"1" + b"}" * 45_000 + b"}", "It is nested too deeply."),
        (b'{"tools": [' + b'{"type": "file_search"},' * 30_000, "It is not valid JSON in UTF-8."),
    ],
)
def test_malformed_json(raw: bytes, reason: str) -> None:
    fault = fault_of(AssistantBody, raw)
    assert fault.message.startswith("We could not parse the JSON body of your request. ")
    assert fault.message.endswith(reason)
    assert (fault.param, fault.code) == (None, None)


def test_deep_json_that_a_field_takes_is_refused() -> None:
    raw = b'{"assistant_id": "a", "extra": ' + b"[" * 100_000 + b"]" * 100_000 + b"}"
    assert fault_of(RunBody, raw).message.endswith("It is nested too deeply.")


class Folder(Body):
    name: str = ""
    folders: "list[Folder]" = []


def test_a_recursive_type_is_followed_until_it_is_too_deep() -> None:
    def nested(depth: int) -> bytes:
        return b'{"folders":[' * depth + b'{"name":1}' + b"]}" * depth

    assert fault_of(Folder, nested(20)).param == "folders[0]." * 20 + "name"
    assert fault_of(Folder, nested(450)).message.endswith("It is nested too deeply.")


class Chunking(Body):
    size: int
    overlap: int

    def __post_init__(self) -> None:
        if self.overlap > self.size // 2:
            raise ValueError("The overlap must not exceed half of the size.")


class Store(Body):
    chunking: list[Chunking]


def test_a_rule_of_the_struct_itself_is_passed_on() -> None:
    fault = fault_of(Store, {"chunking": [{"size": 10, "overlap": 2}, {"size": 10, "overlap": 8}]})
    assert (fault.message, fault.param, fault.code) == ("The overlap must not exceed half of the size.", "chunking[1]", "invalid_value")


def test_a_huge_wrong_body_is_explained_in_plain_words() -> None:
    fault = fault_of(MessageBody, message("x", attachments=[{"file_id": "f", "tools": []}] * 20_000 + [{"file_id": 5, "tools": []}]))
    assert (fault.message, fault.param, fault.code) == ("Expected 'str', got 'int'.", "attachments[20000].file_id", "invalid_value")


def test_the_largest_body_that_is_compared_does_not_stop_the_server_for_long() -> None:
    raw = json.dumps(message("x", metadata=None, attachments=[{"file_id": "f", "tools": []}] * 12_000 + [5])).encode()
    began = time.perf_counter()
    fault = explain(MessageBody, raw)
    assert fault.message == "Invalid type for 'attachments[12000]': expected an object, but got an integer instead."
    assert time.perf_counter() - began < 5  # about 0.1 s on an idle core


def test_a_type_that_is_not_compared_is_explained_in_plain_words() -> None:
    fault = fault_of(dict[str, tuple[int, str]], {"a": [1, 2]})
    assert (fault.message, fault.param, fault.code) == ("Expected 'str', got 'int'.", None, "invalid_value")


def test_explain_of_a_good_body_still_answers() -> None:
    assert explain(AssistantBody, b'{"model": "m"}').message == "The request body is not valid."


def test_good_bodies_come_back_as_msgspec_decodes_them() -> None:
    decoder = msgspec.json.Decoder(RunBody)
    got = decode_body(decoder, b'{"assistant_id": "a", "tool_choice": {"type": "function", "function": {"name": "f"}}, "model": null}')
    assert got == RunBody(assistant_id="a", tool_choice=NamedToolChoice(NamedFunction("f")))
    assert decode_body(decoder, b'{"assistant_id": "a", "assistant_id": "b"}').assistant_id == "b"


# Property tests. Bodies are random JSON made of the words that the structs know, and good bodies with one part replaced.

WORDS = [
    "type", "function", "text", "user", "role", "content", "model", "metadata", "tools", "name", "auto", "attachments", "assistant_id",
    "code_interpreter", "file_search", "additional_messages", "tool_choice", "temperature", "json_schema", "extra", "raw", "file_id",
]  # fmt: skip
strings = st.sampled_from(WORDS) | st.text(max_size=5) | st.sampled_from(["x" * 65, "y" * 513, "\0", "a b"])
scalars = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.sampled_from([10**19, -(10**25), 10**400])
    | st.floats(allow_nan=False, allow_infinity=False)
    | strings
)
json_values = st.recursive(scalars, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(strings, inner, max_size=4), max_leaves=12)

# fmt: off
GOOD: list[tuple[type, dict[str, Any]]] = [
    (AssistantBody, assistant(
        name="n",
        tools=[
            {"type": "code_interpreter"},
            {"type": "file_search", "file_search": {"max_num_results": 3, "ranking_options": {"score_threshold": 0.5}}},
            {"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {}}, "strict": True}},
        ],
        metadata={"a": "b"}, temperature=1, response_format={"type": "json_schema", "json_schema": {"name": "x"}},
    )),
    (MessageBody, message(
        [{"type": "text", "text": "x"}, {"type": "image_url", "image_url": {"url": "u", "detail": "low"}}],
        attachments=[{"file_id": "f", "tools": [{"type": "file_search"}]}], metadata={},
    )),
    (RunBody, run(
        model="m", additional_messages=[message("x")], max_prompt_tokens=256, top_p=0.5, stream=True,
        tool_choice={"type": "function", "function": {"name": "f"}}, attributes={"a": 1, "b": "x", "c": True},
        hints=["a", "b"], limits={"a": 1}, extra=[{}], raw={"a": [1]},
    )),
]
# fmt: on


def places_of(value: Any) -> list[tuple[Any, Any]]:
    """Every (container, key) inside a JSON value."""
    found: list[tuple[Any, Any]] = []
    keys = list(value) if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ()
    for key in keys:
        found.append((value, key))
        found += places_of(value[key])
    return found


@st.composite
def changed_bodies(draw: st.DrawFn) -> tuple[type, bytes]:
    wanted, good = draw(st.sampled_from(GOOD))
    body = json.loads(json.dumps(good))
    for _ in range(draw(st.integers(1, 2))):
        container, key = draw(st.sampled_from(places_of(body)))
        match draw(st.sampled_from(["replace", "remove", "rename"])):
            case "replace":
                container[key] = draw(json_values)
            case "remove":
                del container[key]
            case _ if isinstance(container, dict):
                container[draw(strings)] = container.pop(key)
            case _:
                container.append(draw(json_values))
        if not places_of(body):
            break
    return wanted, json.dumps(body).encode()


def is_accepted(wanted: type, raw: bytes) -> bool:
    try:
        msgspec.json.decode(raw, type=wanted)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return False
    return True


def assert_answer(wanted: type, raw: bytes) -> None:
    """decode_body gives what msgspec gives, or InvalidRequest in the form that the error envelope needs."""
    if is_accepted(wanted, raw):
        got = decode_body(msgspec.json.Decoder(wanted), raw)
        assert msgspec.json.encode(got) == msgspec.json.encode(msgspec.json.decode(raw, type=wanted))
        return
    fault = fault_of(wanted, raw)
    assert fault.message
    assert fault.param is None or isinstance(fault.param, str)
    assert fault.code is None or fault.code in get_args(FaultCode)
    assert len(fault.message) < 1000
    assert (fault.code is None) == fault.message.startswith("We could not parse the JSON body")
    msgspec.json.encode([fault.message, fault.param])  # a lone surrogate would fail here


def finds_fault(wanted: type, raw: bytes) -> bool:
    try:
        check(TYPES[wanted], json.loads(raw, object_pairs_hook=JsonObject))
    except InvalidRequest:
        return True
    return False


def assert_agreement(wanted: type, raw: bytes) -> None:
    """The comparison finds a fault exactly when msgspec does."""
    assert finds_fault(wanted, raw) is not is_accepted(wanted, raw)


@settings(max_examples=400, deadline=None)
@given(changed_bodies())
def test_bodies_with_a_changed_part(case: tuple[type, bytes]) -> None:
    assert_answer(*case)
    assert_agreement(*case)


@settings(max_examples=300, deadline=None)
@given(st.sampled_from(BODIES), st.dictionaries(strings, json_values, max_size=6) | json_values)
def test_random_json(wanted: type, body: object) -> None:
    raw = json.dumps(body, ensure_ascii=False).encode()
    assert_answer(wanted, raw)
    assert_agreement(wanted, raw)


@settings(max_examples=300, deadline=None)
@given(st.sampled_from(GOOD), st.data())
@example(GOOD[0], None)
def test_bodies_with_broken_bytes(case: tuple[type, dict[str, Any]], data: st.DataObject | None) -> None:
    wanted, good = case
    raw = json.dumps(good).encode()
    if data is not None:
        start = data.draw(st.integers(0, len(raw)))
        width = data.draw(st.integers(0, 4))
        piece = data.draw(st.binary(max_size=4) | st.sampled_from([b"\\ud800", b"\\udc00", b"\\u", b"1e999", b"\xed\xa0\x80", b'"']))
        raw = raw[:start] + piece + raw[start + width :]
    assert_answer(wanted, raw)


@settings(max_examples=200, deadline=None)
@given(st.sampled_from(BODIES), st.binary(max_size=40))
def test_random_bytes(wanted: type, raw: bytes) -> None:
    assert_answer(wanted, raw)


# Query strings.

CONTENT = "step_details.tool_calls[*].file_search.results[*].content"


class ListQuery(msgspec.Struct, frozen=True):
    limit: Annotated[int, Meta(ge=1, le=100)] = 20
    order: Literal["asc", "desc"] = "desc"
    after: str | None = None
    before: str | None = None
    run_id: str | None = None
    include: list[Literal["step_details.tool_calls[*].file_search.results[*].content"]] = []
    stream: bool | None = None
    after_seq: Annotated[int, Meta(ge=0, description="The last event seen.")] | None = None


class NeedsPurpose(msgspec.Struct):
    purpose: str


@pytest.mark.parametrize(
    ("query", "wanted"),
    [
        (b"", ListQuery()),
        (b"&&=&=x&limit", ListQuery()),
        (b"limit=5&order=asc", ListQuery(limit=5, order="asc")),
        (b"limit=007", ListQuery(limit=7)),
        (b"limit=5&limit=6", ListQuery(limit=6)),
        (b"after=&before=msg_1", ListQuery(before="msg_1")),
        (b"after=a%20b+c%2Bd&unknown=%zz", ListQuery(after="a b c+d")),
        (b"after=a=b", ListQuery(after="a=b")),
        (b"after=12", ListQuery(after="12")),
        (b"after=null", ListQuery(after="null")),
        (b"after=%00", ListQuery(after="\0")),
        (b"after=%zz%", ListQuery(after="%zz%")),
        (b"after=%ff\xff", ListQuery(after="\ufffd\ufffd")),
        (b"after=%ed%a0%80", ListQuery(after="\ufffd\ufffd\ufffd")),
        (f"include[]={CONTENT}".encode(), ListQuery(include=[CONTENT])),
        (f"include%5B%5D={CONTENT.replace('[', '%5B').replace('*', '%2A')}".encode(), ListQuery(include=[CONTENT])),
        (f"include={CONTENT}&include={CONTENT}&include=".encode(), ListQuery(include=[CONTENT, CONTENT])),
        (b"stream=true&after_seq=3", ListQuery(stream=True, after_seq=3)),
        (b"stream=false", ListQuery(stream=False)),
    ],
)
def test_a_query_string_becomes_a_struct(query: bytes, wanted: ListQuery) -> None:
    assert decode_query(ListQuery, query) == wanted


def test_the_defaults_are_made_once() -> None:
    assert decode_query(ListQuery, b"") is decode_query(ListQuery, b"")


# fmt: off
WRONG_QUERIES: list[tuple[bytes, str, str, str]] = [
    (b"limit=abc", "Invalid type for 'limit': expected an integer, but got a string instead.", "limit", "invalid_type"),
    (b"limit=1.5", "Invalid type for 'limit': expected an integer, but got a string instead.", "limit", "invalid_type"),
    (b"limit=" + b"9" * 9000, "Invalid type for 'limit': expected an integer, but got a string instead.", "limit", "invalid_type"),
    (b"limit=0", "Invalid 'limit': integer below minimum value. Expected a value >= 1, but got 0 instead.", "limit",
     "integer_below_min_value"),
    (b"limit=101", "Invalid 'limit': integer above maximum value. Expected a value <= 100, but got 101 instead.", "limit",
     "integer_above_max_value"),
    (b"limit=9999999999999999999999", "Invalid 'limit': integer above maximum value. Expected a value <= 100, "
     "but got 9999999999999999999999 instead.", "limit", "integer_above_max_value"),
    (b"order=up", "Invalid value: 'up'. Supported values are: 'asc' and 'desc'.", "order", "invalid_value"),
    (b"include[]=x", f"Invalid value: 'x'. Supported values are: '{CONTENT}'.", "include[0]", "invalid_value"),
    (b"stream=1", "Invalid type for 'stream': expected a boolean, but got a string instead.", "stream", "invalid_type"),
]
# fmt: on


@pytest.mark.parametrize(("query", "text", "param", "code"), WRONG_QUERIES)
def test_a_wrong_query_string_is_named(query: bytes, text: str, param: str, code: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        decode_query(ListQuery, query)
    assert (caught.value.message, caught.value.param, caught.value.code) == (text, param, code)


@pytest.mark.parametrize("query", [b"", b"purpose=", b"other=1"])
def test_a_query_string_without_a_required_name(query: bytes) -> None:
    with pytest.raises(InvalidRequest, match=r"^Missing required parameter: 'purpose'\.$"):
        decode_query(NeedsPurpose, query)


query_pieces = st.sampled_from([b"limit", b"order", b"after", b"include", b"[]", b"%5B%5D", b"=", b"&", b"asc", b"7", b"%", b"+", b"%ff"])


@settings(max_examples=300, deadline=None)
@given(st.lists(query_pieces | st.binary(max_size=3), max_size=12).map(b"".join))
def test_any_query_string_is_decoded_or_refused(query: bytes) -> None:
    try:
        answer: ListQuery | InvalidRequest = decode_query(ListQuery, query)
    except InvalidRequest as exc:
        answer = exc
    if isinstance(answer, ListQuery):
        assert 1 <= answer.limit <= 100
    else:
        assert answer.message
        assert answer.code in get_args(FaultCode)
        msgspec.json.encode([answer.message, answer.param])

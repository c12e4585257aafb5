"""The body of a chat completion, as odd servers send it, becomes the deltas of `models/base.py`."""

import contextlib
import itertools

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mini_assistant.errors import ModelError
from mini_assistant.models.base import Finished, ReasoningDelta, RefusalDelta, TextDelta, TokenUsage, ToolCallDelta
from mini_assistant.models.chat_chunks import ChatChunks
from mini_assistant.models.provider_errors import ProviderErrors
from mini_assistant.models.sse_lines import LINE_BYTES_MAX, LineTooLong, SseLines

DONE = b"data: [DONE]\n\n"


def chunks():
    return ChatChunks(ProviderErrors("local"))


def event(frame):
    return b"data: " + msgspec.json.encode(frame) + b"\n\n"


def delta(**fields):
    return event({"choices": [{"index": 0, "delta": fields, "finish_reason": None}]})


def finish(reason, **more):
    return event({"choices": [{"index": 0, "delta": {}, "finish_reason": reason}], **more})


def read(*parts):
    """All deltas of a stream that arrives in these reads and then ends."""
    reader = chunks()
    deltas = [delta for part in parts for delta in reader.feed(part)]
    if not reader.finished:
        deltas += reader.feed_end()
    return deltas


HELLO = [TextDelta("Hel"), TextDelta("lo"), Finished("stop", None)]
HELLO_FRAMES = [delta(content="Hel"), delta(content="lo"), finish("stop"), DONE]


# --- framing ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "rewrite",
    [
        pytest.param(lambda frame: frame, id="plain"),
        pytest.param(lambda frame: frame.replace(b"\n", b"\r\n"), id="crlf"),
        pytest.param(lambda frame: frame.replace(b"data: ", b"data:"), id="no-blank-after-colon"),
        pytest.param(lambda frame: b"event: message\nid: 7\nretry: 10\n" + frame, id="other-fields"),
        pytest.param(lambda frame: b": keep-alive\n\n" + frame, id="comments"),
        pytest.param(lambda frame: frame[:-1], id="no-blank-line-between-events"),
        pytest.param(lambda frame: frame.replace(b'"index"', b'\ndata: "index"'), id="json-over-two-lines"),
        pytest.param(lambda frame: b"\n\n" + frame + b"\n", id="extra-blank-lines"),
    ],
)
def test_framing_of_many_servers(rewrite):
    frames = [rewrite(frame) for frame in HELLO_FRAMES]
    assert read(*frames) == HELLO
    assert read(b"".join(frames)) == HELLO


@given(st.lists(st.integers(0, 400)), st.booleans())
@settings(max_examples=200, deadline=None)
def test_reads_may_end_anywhere(cuts, with_crlf):
    body = b": hi\n\n" + b"".join(HELLO_FRAMES)
    if with_crlf:
        body = body.replace(b"\n", b"\r\n")
    edges = [0, *sorted(min(cut, len(body)) for cut in cuts), len(body)]
    assert read(*[body[start:end] for start, end in itertools.pairwise(edges)]) == HELLO


def test_one_byte_at_a_time():
    body = b"".join(HELLO_FRAMES)
    assert read(*[body[at : at + 1] for at in range(len(body))]) == HELLO


def test_a_character_cut_in_two_reads():
    frame = delta(content="größer 🎉")
    cut = frame.index("🎉".encode()) + 2
    assert read(frame[:cut], frame[cut:], finish("stop"))[0] == TextDelta("größer 🎉")


def test_one_read_is_one_list():
    reader = chunks()
    assert reader.feed(HELLO_FRAMES[0] + HELLO_FRAMES[1]) == HELLO[:2]
    assert reader.feed(HELLO_FRAMES[2]) == []


def test_what_follows_the_end_is_ignored():
    assert read(b"".join(HELLO_FRAMES) + delta(content="more")) == HELLO


def test_a_line_without_end_is_refused():
    lines = SseLines()
    piece = b"x" * (LINE_BYTES_MAX // 4)
    for _ in range(4):
        assert lines.feed(piece) == []
    with pytest.raises(LineTooLong):
        lines.feed(b"x")


def test_a_long_line_that_ends_is_accepted():
    lines = SseLines()
    lines.feed(b"data: " + b"x" * (LINE_BYTES_MAX - 10))
    assert lines.feed(b"\ndata: y\n") == [b"x" * (LINE_BYTES_MAX - 10), b"y"]


def test_long_line_is_a_readable_error():
    with pytest.raises(ModelError, match="event that is too long") as caught:
        read(b"data: " + b"x" * LINE_BYTES_MAX)
    assert len(caught.value.message) < 400


# --- nonsense and ends -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("body", [b"data: <html>oops</html>\n\n", b'data: {"choices": [}\n\n', b"data: \xff\xfe\n\n"])
def test_invalid_json_is_nonsense(body):
    with pytest.raises(ModelError, match="sent an event that is no JSON") as caught:
        read(body, *HELLO_FRAMES)
    assert caught.value.code == "server_error"
    assert not caught.value.retryable


def test_lines_that_never_become_json_are_nonsense():
    with pytest.raises(ModelError, match="no JSON"):
        read(*[b"data: {" + b"x" * 1000 + b"\n"] * 100)


@pytest.mark.parametrize("opening", [b"[", b'{"choices":[{"delta":{"reasoning":' + b"[" * 9, b'{"error":'])
def test_json_that_is_nested_without_end_is_nonsense(opening):
    body = opening * 50_000
    with pytest.raises(ModelError, match="no piece of a chat completion"):
        read(b"data: " + body + b"\n\n")
    with pytest.raises(ModelError, match="no chat completion"):
        chunks().feed_completion(body)
    assert len(ProviderErrors("local").refused(500, {}, body).message) < 400


@pytest.mark.parametrize("frame", [{"choices": 1}, {"choices": [{"delta": "x"}]}, ["x"]])
def test_wrong_types_are_nonsense(frame):
    with pytest.raises(ModelError, match="no piece of a chat completion"):
        read(event(frame))


def test_end_without_a_reason_is_cut_off():
    for ending in ([], [DONE], [b'data: {"choices": [']):
        with pytest.raises(ModelError, match="cut off") as caught:
            read(delta(content="Hel"), *ending)
        assert caught.value.code == "server_error"


def test_nothing_at_all_is_cut_off():
    with pytest.raises(ModelError, match="cut off"):
        read()


@pytest.mark.parametrize(
    ("frame", "code", "retryable"),
    [
        ({"error": {"message": "Overloaded", "type": "server_error"}}, "server_error", True),
        ({"error": {"message": "Overloaded", "code": 429}}, "rate_limit_exceeded", True),
        ({"error": {"message": "Overloaded", "code": "insufficient_quota"}}, "rate_limit_exceeded", False),
        ({"error": {"message": "Overloaded", "code": "context_length_exceeded"}}, "invalid_prompt", False),
        ({"error": {"message": "Overloaded", "code": 400}}, "invalid_prompt", False),
        ({"error": "Overloaded"}, "server_error", True),
        ({"object": "error", "message": "Overloaded", "code": 500}, "server_error", True),
        ({"object": "error", "message": "Overloaded", "code": 400, "type": "BadRequestError"}, "invalid_prompt", False),
    ],
)
def test_an_error_in_the_stream(frame, code, retryable):
    with pytest.raises(ModelError, match="Overloaded") as caught:
        read(delta(content="Hel"), event(frame))
    assert (caught.value.code, caught.value.retryable) == (code, retryable)


# --- finish reasons and usage ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sent", "reason"),
    [("stop", "stop"), ("length", "length"), ("content_filter", "content_filter"), ("eos", "stop"), ("tool_calls", "stop")],
)
def test_finish_reasons_without_tool_calls(sent, reason):
    assert read(delta(content="x"), finish(sent))[-1] == Finished(reason, None)


@pytest.mark.parametrize(
    ("sent", "reason"), [("stop", "tool_calls"), ("tool_calls", "tool_calls"), ("function_call", "tool_calls"), ("length", "length")]
)
def test_finish_reasons_with_tool_calls(sent, reason):
    call = {"index": 0, "id": "a", "function": {"name": "f", "arguments": "{}"}}
    assert read(delta(tool_calls=[call]), finish(sent))[-1] == Finished(reason, None)


@pytest.mark.parametrize("sent", ["error", "abort", "insufficient_system_resource"])
def test_finish_reasons_that_are_failures(sent):
    with pytest.raises(ModelError, match=sent):
        read(delta(content="x"), finish(sent))


USAGE = {
    "prompt_tokens": 10,
    "completion_tokens": 5,
    "total_tokens": 15,
    "prompt_tokens_details": {"cached_tokens": 4},
    "completion_tokens_details": {"reasoning_tokens": 3},
}


@pytest.mark.parametrize(
    "frames",
    [
        pytest.param([finish("stop"), event({"choices": [], "usage": USAGE}), DONE], id="last-chunk"),
        pytest.param([finish("stop", usage=USAGE), DONE], id="finish-chunk"),
        pytest.param([event({"choices": [], "usage": {**USAGE, "prompt_tokens": 1}}), finish("stop", usage=USAGE)], id="repeated"),
    ],
)
def test_usage(frames):
    assert read(delta(content="x"), *frames)[-1] == Finished("stop", TokenUsage(10, 5, 4, 3))


@pytest.mark.parametrize("usage", [None, {}, {"prompt_tokens": "many"}, [], {"prompt_tokens": None, "completion_tokens": 1}])
def test_usage_that_says_nothing(usage):
    assert read(delta(content="x"), finish("stop", usage=usage))[-1] == Finished("stop", None)


def test_usage_with_null_details():
    usage = {
        "prompt_tokens": 1,
        "completion_tokens": 2,
        "prompt_tokens_details": None,
        "completion_tokens_details": {"reasoning_tokens": None},
    }
    assert read(delta(content="x"), finish("stop", usage=usage))[-1] == Finished("stop", TokenUsage(1, 2))


# --- content ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "fields",
    [
        {"reasoning_content": "Hm.", "content": None},
        {"reasoning": "Hm.", "content": ""},
        {"reasoning_content": "Hm.", "reasoning": "Hm."},
        {"reasoning_content": "", "reasoning": {"text": "Hm."}},
        {"reasoning": [{"type": "reasoning.text", "text": "H"}, "m."]},
        {"content": [{"type": "thinking", "thinking": [{"type": "text", "text": "Hm."}]}]},
        {"content": [{"type": "thinking", "thinking": "Hm."}]},
        {"content": [{"type": "reasoning", "text": "Hm."}]},
        {"content": [{"type": "reasoning", "reasoning": "Hm."}]},
    ],
)
def test_reasoning_of_many_servers(fields):
    reader = chunks()
    assert reader.feed(delta(**fields)) == [ReasoningDelta("Hm.")]
    assert reader.progress == 1


@pytest.mark.parametrize("fields", [{"reasoning": {"data": "x"}}, {"reasoning_content": [7, None]}, {"content": [{"type": "thinking"}]}])
def test_reasoning_without_words_is_a_sign_of_life(fields):
    reader = chunks()
    assert reader.feed(delta(**fields)) == []
    assert reader.progress == 1


def test_reasoning_comes_before_what_was_answered_in_the_same_piece():
    both = [ReasoningDelta("Hm."), TextDelta("Yes")]
    assert chunks().feed(delta(content="Yes", reasoning_content="Hm.")) == both
    parts = [{"type": "text", "text": "Y"}, {"type": "thinking", "thinking": "Hm."}, {"type": "text", "text": "es"}]
    assert chunks().feed(delta(content=parts)) == both


def test_reasoning_without_end_is_refused():
    reader = chunks()
    frame = delta(reasoning_content="x" * 1_000_000)
    for _ in range(4):
        reader.feed(frame)
    with pytest.raises(ModelError, match="characters of reasoning"):
        reader.feed(frame)


def test_role_comments_and_empty_chunks_are_no_progress():
    reader = chunks()
    for frame in (
        delta(role="assistant", content=""),
        delta(content=None),
        event({"choices": []}),
        event({"choices": None}),
        b": ping\n\n",
    ):
        assert reader.feed(frame) == []
    assert reader.progress == 0


def test_refusal():
    assert read(delta(refusal="I "), delta(refusal="won't."), finish("stop"))[:2] == [RefusalDelta("I "), RefusalDelta("won't.")]


def test_a_whole_completion():
    message = {
        "role": "assistant",
        "content": "Hello",
        "tool_calls": [{"id": "a", "type": "function", "function": {"name": "f", "arguments": "{}"}}],
    }
    body = msgspec.json.encode({"choices": [{"message": message, "finish_reason": "tool_calls"}], "usage": USAGE})
    assert chunks().feed_completion(body) == [
        TextDelta("Hello"),
        ToolCallDelta(0, "f", "{}"),
        Finished("tool_calls", TokenUsage(10, 5, 4, 3)),
    ]


@pytest.mark.parametrize("body", [b"", b"<html>", b"[]", b"\xff"])
def test_a_whole_completion_that_is_none(body):
    with pytest.raises(ModelError, match="no chat completion"):
        chunks().feed_completion(body)


# --- tool calls ------------------------------------------------------------------------------------------------------


def call(index=None, id=None, name=None, arguments=None):
    piece = {"index": index, "id": id, "function": {"name": name, "arguments": arguments}}
    return {key: value for key, value in piece.items() if value is not None}


TWO_CALLS = [("f", '{"a":1}'), ("g", '{"b":2}')]
SAME_NAME = [("f", '{"a":1}'), ("f", '{"b":2}')]


@pytest.mark.parametrize(
    ("pieces", "expected"),
    [
        pytest.param(
            [
                [call(0, "x", "f", "")],
                [call(0, arguments='{"a"')],
                [call(0, arguments=":1}")],
                [call(1, "y", "g", "")],
                [call(1, arguments='{"b":2}')],
            ],
            TWO_CALLS,
            id="as-specified",
        ),
        pytest.param(
            [
                [call(0, "x", "f", ""), call(1, "y", "g", "")],
                [call(1, arguments='{"b":')],
                [call(0, arguments='{"a":1}')],
                [call(1, arguments="2}")],
            ],
            TWO_CALLS,
            id="interleaved",
        ),
        pytest.param([[call(0, "x", "f", '{"a":1}'), call(1, "y", "g", '{"b":2}')]], TWO_CALLS, id="whole-calls-in-one-chunk"),
        pytest.param([[call(None, "x", "f", '{"a":1}'), call(None, "y", "g", '{"b":2}')]], TWO_CALLS, id="no-index"),
        pytest.param([[call(None, "x", "f", '{"a":1}')], [call(None, "y", "f", '{"b":2}')]], SAME_NAME, id="no-index-same-name"),
        pytest.param([[call(None, "", "f", '{"a":1}')], [call(None, "", "f", '{"b":2}')]], SAME_NAME, id="no-index-no-id-same-name"),
        pytest.param(
            [
                [call(None, "x", "f", '{"a"')],
                [call(None, "y", "g", '{"b"')],
                [call(None, "x", arguments=":1}")],
                [call(None, "y", arguments=":2}")],
            ],
            TWO_CALLS,
            id="no-index-found-by-id",
        ),
        pytest.param(
            [[call(None, "x", "f")], [call(arguments='{"a":1}')], [call(None, "y", "g")], [call(arguments='{"b":2}')]],
            TWO_CALLS,
            id="neither",
        ),
        pytest.param([[call(0, "x", "f", '{"a":1}')], [call(0, "y", "g", '{"b":2}')]], TWO_CALLS, id="one-index-for-all"),
        pytest.param([[call(0, "x", "f", '{"a":1}')], [call(0, "y", "f", '{"b":2}')]], SAME_NAME, id="one-index-same-name"),
        pytest.param([[call(0, "x", "f", '{"a":1}')], [call(1, "x", "g", '{"b":2}')]], TWO_CALLS, id="one-id-for-all"),
        pytest.param([[call(0, "x", "f", '{"a":1}')], [call(0, "x", "g", '{"b":2}')]], TWO_CALLS, id="one-id-and-index-other-name"),
        pytest.param([[call(0, "x", "f", '{"a":1}')], [call(0, "x", "f", '{"b":2}')]], SAME_NAME, id="nothing-tells-them-apart"),
        pytest.param(
            [[call(0, "x", "f", '{"a"')], [call(0, "x", "f", ":1}")], [call(1, "y", "g", '{"b":2}')]], TWO_CALLS, id="name-repeated"
        ),
        pytest.param(
            [[call(0, "x", "f", '{"a"')], [call(0, "p", arguments=":1}")], [call(1, "y", "g", '{"b":2}')]],
            TWO_CALLS,
            id="new-id-each-piece",
        ),
        pytest.param(
            [[call(0, "x")], [call(0, arguments='{"a"')], [call(0, name="f", arguments=":1}")]], TWO_CALLS[:1], id="name-comes-late"
        ),
        pytest.param([[call(0, "x", "f", {"a": 1})], [call(1, "y", "g", {"b": 2})]], TWO_CALLS, id="arguments-as-object"),
        pytest.param([[call(3, "x", "f", '{"a":1}')], [call(7, "y", "g", '{"b":2}')]], TWO_CALLS, id="odd-indexes"),
        pytest.param([[call(0, 1, "f", '{"a":1}')], [call(0, 2, "g", '{"b":2}')]], TWO_CALLS, id="numbers-as-ids"),
    ],
)
def test_tool_calls(pieces, expected):
    deltas = read(*[delta(tool_calls=piece) for piece in pieces], finish("tool_calls"))
    calls: dict[int, tuple[str, str]] = {}
    for item in deltas[:-1]:
        assert (item.name is None) == (item.index in calls), "the name comes once, with the first piece"
        name, arguments = calls.get(item.index, (item.name, ""))
        calls[item.index] = (name, arguments + item.arguments)
    assert list(calls) == list(range(len(expected)))
    assert list(calls.values()) == expected
    assert deltas[-1] == Finished("tool_calls", None)


def test_a_call_without_arguments():
    assert read(delta(tool_calls=[call(0, "x", "f")]), finish("tool_calls")) == [ToolCallDelta(0, "f", ""), Finished("tool_calls", None)]


def test_a_call_without_a_name_is_nonsense():
    with pytest.raises(ModelError, match="without a name"):
        read(delta(tool_calls=[call(0, "x", arguments="{}")]), finish("tool_calls"))


@given(st.binary(max_size=200))
def test_any_bytes_end_in_an_answer_or_a_model_error(data):
    reader = chunks()
    with contextlib.suppress(ModelError):
        reader.feed(data)
        reader.feed_end()
        assert reader.finished

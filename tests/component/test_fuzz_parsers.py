"""Everything that reads bytes of others, fed with generated ones: an answer or a refusal of its own kind, at once, and nothing grows.

The bytes are put together of pieces that mean something to the reader, for pure noise ends at the first byte. Each reader gets
`FUZZ_SECONDS` (one by default, a minute in the heavy tier), with other bytes each time in the heavy tier.
"""

import asyncio
import contextlib
import gc
import os
import random
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import hypothesis
import msgspec
import psutil
import pytest
from hypothesis import strategies as st

from mini_assistant.app import all_routes
from mini_assistant.errors import InvalidRequest, ModelError
from mini_assistant.files.schema import CreateFile, plain_filename
from mini_assistant.http.download import content_disposition, wanted_part
from mini_assistant.http.multipart import MultipartForm
from mini_assistant.http.validation import decode_body, decode_query
from mini_assistant.models.base import ToolDefinition
from mini_assistant.models.chat_chunks import ChatChunks
from mini_assistant.models.provider_errors import ProviderErrors
from mini_assistant.models.think_tags import ThinkTags
from mini_assistant.models.tool_calling.json_text import fields_or_none, items_or_none, json_values, string_or_none, valid_json_or_none
from mini_assistant.models.tool_calling.offer import Offer, UnreadableAnswer
from mini_assistant.models.tool_calling.text_answer import TextAnswer
from mini_assistant.models.tool_calling.written_step import step_or_none
from mini_assistant.settings import Settings
from mini_assistant.vector_stores.filters import check_filter
from mini_assistant.vector_stores.parsers.base import ParsedDocument, ParseFailed
from mini_assistant.vector_stores.parsers.process import ParserProcesses
from mini_assistant.vector_stores.schema import Filter
from tests.component.test_hostile_files import HONEST

SECONDS = float(os.environ.get("FUZZ_SECONDS", "1"))
HEAVY_SECONDS = float(os.environ.get("FUZZ_SECONDS", "60"))
# Of one input; none of them is larger than some kilobytes.
ONE_INPUT_SECONDS = 2.0
GROWTH_BYTES_MAX = 64 * 1024 * 1024


def made_of(pieces: list[bytes]) -> st.SearchStrategy[bytes]:
    """Bytes of these pieces in any order and number, with noise between them."""
    return st.lists(st.sampled_from(pieces) | st.binary(max_size=8), max_size=40).map(b"".join)


def text_of(pieces: list[str]) -> st.SearchStrategy[str]:
    return st.lists(st.sampled_from(pieces) | st.text(max_size=8), max_size=40).map("".join)


# ---- the readers -------------------------------------------------------------------------------------------------------------------

FORM = made_of(
    [
        b"--b",
        b"--",
        b"\r\n",
        b"\n",
        b"--b\r\n",
        b"--b--\r\n",
        b"Content-Disposition: ",
        b"form-data; ",
        b'name="file"',
        b'; filename="a.txt"',
        b'name="purpose"',
        b"assistants",
        b'name="expires_after[seconds]"',
        b"; filename*=UTF-8''%ff%00",
        b"\r\n\r\n",
        b"%0D%0A",
        b'\\"',
        b"3600",
        b'--b\r\nContent-Disposition: form-data; name="file"; filename="../a"\r\n\r\nx\r\n',
        b"Content-Type: x\r\n",
        b"\x00",
        b"\xff",
    ]
)


async def read_form(raw: bytes, step: int) -> None:
    pieces: Iterator[bytes] = iter([raw[start : start + step] for start in range(0, len(raw), step)])

    async def receive() -> bytes | None:
        return next(pieces, None)

    form = MultipartForm({b"content-type": b"multipart/form-data; boundary=b"}, "file", receive)
    await form.find_file()
    assert sum([len(piece) async for piece in form.file_pieces()]) <= len(raw)
    await form.read_fields(CreateFile)
    if form.filename is not None:
        name = plain_filename(form.filename)
        assert "/" not in name
        assert "\0" not in name


def fuzz_form(data: tuple[bytes, int]) -> None:
    with contextlib.suppress(InvalidRequest):
        asyncio.run(read_form(*data))


STREAM = made_of(
    [
        b"data: ",
        b"data:",
        b"event: error\n",
        b": ping\n",
        b"\n\n",
        b"\r\n\r\n",
        b"\r",
        b"data: [DONE]\n\n",
        b"id: 1\n",
        b'{"choices":[',
        b"]}",
        b"{}",
        b'{"index":0,"delta":{"content":"',
        b'"},"finish_reason":null}',
        b'"tool_calls":[{"index":0,"id":"x","function":{"name":"f","arguments":"',
        b'{"error":{"message":"x","code":429}}',
        b'"usage":{"prompt_tokens":1}',
        b"[" * 60,
        b'{"a":' * 60,
        b"\xff\xfe",
        b"\xe2\x82",
        b"\\u0000",
        b"null",
        b"1e999",
        b'data: {"choices":[{"index":0,"delta":{"content":"x","reasoning":{"text":"y"}},"finish_reason":"stop"}]}\n\n',
    ]
)


def fuzz_stream(data: tuple[bytes, int]) -> None:
    raw, step = data
    reader = ChatChunks(ProviderErrors("local"))
    with contextlib.suppress(ModelError):
        for start in range(0, len(raw), step):
            reader.feed(raw[start : start + step])
        reader.feed_end()


WRITTEN = text_of(
    [
        '{"',
        '":',
        '"}',
        "{",
        "}",
        "[",
        "]",
        '"',
        "\\",
        "\\u",
        "\\ud800",
        ",",
        "null",
        "NaN",
        "1e999",
        '"name":"f"',
        '"arguments":',
        '"next_step":',
        '"reply":',
        "<tool_call>",
        "</tool_call>",
        "```json\n",
        "```",
        "<function=f>",
        "[TOOL_CALLS]",
        "<think>",
        "</think>",
        "\n",
        "\x00",
        '{"name": "f", "arguments": {}}',
        "[" * 120,
        '{"a":' * 120,
    ]
)
OFFER = Offer(tools=(ToolDefinition("f", "does it", {"type": "object"}),), is_demanded=False, is_named=False, calls_max=4)


def fuzz_written(data: tuple[str, int]) -> None:
    text, step = data
    for value in json_values(text):
        fields_or_none(value), items_or_none(value), string_or_none(value)
    valid = valid_json_or_none(text)
    assert valid is None or msgspec.json.decode(valid) is not ...
    step_or_none(text, OFFER)
    answer = TextAnswer(OFFER)
    with contextlib.suppress(UnreadableAnswer):
        for start in range(0, len(text), step):
            answer.feed(text[start : start + step])
        answer.end()
    for tags in (ThinkTags(True), ThinkTags("opened")):
        for start in range(0, len(text), step):
            tags.feed(text[start : start + step])
        tags.end()


FILTERS = st.recursive(
    st.fixed_dictionaries(
        {"type": st.sampled_from(["eq", "ne", "gt", "in", "nin", "and", "x"]), "key": st.text(max_size=5) | st.integers()}
        | {
            "value": st.none()
            | st.booleans()
            | st.floats(allow_nan=False)
            | st.text(max_size=5)
            | st.lists(st.integers() | st.text(max_size=3), max_size=5)
        }
    ),
    lambda inner: st.fixed_dictionaries({"type": st.sampled_from(["and", "or", "eq"]), "filters": st.lists(inner, max_size=3)}),
    max_leaves=20,
)
FILTER_DECODER = msgspec.json.Decoder(Filter)


def fuzz_filter(data: Any) -> None:
    with contextlib.suppress(InvalidRequest):
        check_filter(decode_body(FILTER_DECODER, msgspec.json.encode(data)))


def fuzz_range(data: tuple[bytes, int]) -> None:
    header, size_bytes = data
    part = wanted_part(header, size_bytes)
    assert part is None or (part.start >= 0 and part.end <= size_bytes)


def fuzz_name(name: str) -> None:
    try:
        plain = plain_filename(name)
    except InvalidRequest:
        return
    header = content_disposition(plain)
    assert header.isascii()
    assert b"\r" not in header
    assert b"\n" not in header
    assert header.count(b'"') == 2


QUERIES = [route.query for route in all_routes() if route.query is not None]
BODIES = [msgspec.json.Decoder(route.body) for route in all_routes() if route.body is not None]
QUERY = made_of(
    [
        b"limit=",
        b"order=",
        b"after=",
        b"include[]=",
        b"include=",
        b"&",
        b"=",
        b"%",
        b"%ff",
        b"%00",
        b"asc",
        b"20",
        b"-1",
        b"+",
        b";",
        b"[]",
        b"stream=true",
    ]
)
BODY = made_of(
    [
        b"{",
        b"}",
        b"[",
        b"]",
        b":",
        b",",
        b'"model":"m"',
        b'"metadata":{"a":"b"}',
        b'"tools":[{"type":"function"}]',
        b'"messages":[',
        b'"role":"user"',
        b'"content":[{"type":"text","text":"x"}]',
        b"1e999",
        b"-0",
        b"123456789012345678901234567890",
        b'"\\ud800"',
        b"null",
        b"NaN",
        b"[" * 300,
        b'{"a":' * 300,
    ]
)


def fuzz_query(data: tuple[int, bytes]) -> None:
    with contextlib.suppress(InvalidRequest):
        decode_query(QUERIES[data[0] % len(QUERIES)], data[1])


def fuzz_body(data: tuple[int, bytes]) -> None:
    with contextlib.suppress(InvalidRequest):
        decode_body(BODIES[data[0] % len(BODIES)], data[1])


STEPS = st.integers(1, 50)
READERS: dict[str, tuple[st.SearchStrategy[Any], Callable[[Any], None]]] = {
    "forms": (st.tuples(FORM, STEPS), fuzz_form),
    "streams of models": (st.tuples(STREAM, STEPS), fuzz_stream),
    "calls as models write them": (st.tuples(WRITTEN, STEPS), fuzz_written),
    "filters": (FILTERS, fuzz_filter),
    "ranges": (st.tuples(made_of([b"bytes=", b"-", b",", b"0", b"9" * 18, b"5", b" "]), st.integers(0, 10**12)), fuzz_range),
    "names of files": (text_of(["/", "\\", "..", "\r\n", '"', "%0d%0a", "\u202e", "\x00", ";", "a" * 200]), fuzz_name),
    "queries": (st.tuples(st.integers(0, 100), QUERY), fuzz_query),
    "bodies": (st.tuples(st.integers(0, 100), BODY), fuzz_body),
}


def fuzz(name: str, seconds: float, *, derandomize: bool) -> int:
    """Feed a reader for so long; returns how many inputs it got."""
    strategy, feed = READERS[name]
    count, give_up_at = 0, time.monotonic() + seconds

    @hypothesis.given(strategy)
    @hypothesis.settings(
        max_examples=200, derandomize=derandomize, database=None, deadline=None, suppress_health_check=list(hypothesis.HealthCheck)
    )
    def check(data: Any) -> None:
        nonlocal count
        count += 1
        if time.monotonic() < give_up_at:
            began = time.process_time()
            feed(data)
            assert time.process_time() - began < ONE_INPUT_SECONDS

    check()
    while time.monotonic() < give_up_at and not derandomize:
        check()
    return count


@pytest.mark.parametrize("name", READERS)
def test_generated_bytes_end_in_an_answer_or_a_refusal(name: str) -> None:
    assert fuzz(name, SECONDS, derandomize=True) > 50


@pytest.mark.heavy
@pytest.mark.parametrize("name", READERS)
def test_many_generated_bytes_end_so_too_and_nothing_grows(name: str) -> None:
    fuzz(name, min(HEAVY_SECONDS, 5.0), derandomize=False)
    gc.collect()
    process = psutil.Process()
    before_bytes = process.memory_info().rss
    fuzz(name, HEAVY_SECONDS, derandomize=False)
    gc.collect()

    assert process.memory_info().rss - before_bytes < GROWTH_BYTES_MAX


def test_the_fuzzer_would_notice() -> None:
    def careless(raw: bytes) -> None:
        if raw.startswith(b"--b"):
            raise IndexError

    READERS["careless"] = (FORM, careless)
    try:
        with pytest.raises(IndexError):
            fuzz("careless", 5.0, derandomize=True)
    finally:
        del READERS["careless"]


# ---- documents ---------------------------------------------------------------------------------------------------------------------


def damaged(honest: bytes, chance: random.Random) -> bytes:
    """A document with bytes changed, parts taken out, repeated or put elsewhere."""
    content = bytearray(honest)
    for _ in range(chance.choice([1, 3, 20, 100])):
        start = chance.randrange(len(content))
        end = min(len(content), start + chance.choice([1, 4, 64, 1000]))
        piece = content[start:end]
        match chance.randrange(4):
            case 0:
                content[start:end] = chance.randbytes(end - start)
            case 1 if len(content) > 2000:
                del content[start:end]
            case 2 if len(content) < 200_000:
                content[start:start] = piece * chance.choice([1, 10])
            case _:
                content[start] = chance.choice([0, 0x7F, 0x80, 0xFF])
    return bytes(content)


@pytest.mark.heavy
@pytest.mark.parametrize("filename", HONEST)
async def test_many_damaged_documents_end_in_text_or_in_a_refusal(filename: str, tmp_path: Path) -> None:
    settings = Settings(parse_timeout_seconds=10.0, parse_memory_bytes_max=256 * 1024 * 1024, ingest_concurrency_max=1)
    chance, parser = random.Random(), ParserProcesses(settings)
    seed = chance.randrange(2**32)
    chance.seed(seed)
    give_up_at = time.monotonic() + HEAVY_SECONDS
    try:
        while time.monotonic() < give_up_at:
            (tmp_path / "blob").write_bytes(damaged(HONEST[filename], chance))
            with contextlib.suppress(ParseFailed):
                async with asyncio.timeout(30):
                    assert isinstance(await parser.parse(str(tmp_path / "blob"), filename), ParsedDocument), seed
    finally:
        await parser.close()

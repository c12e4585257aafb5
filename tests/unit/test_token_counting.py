"""Tokens are counted as the hosted models do."""

import threading
import time

import pytest

from mini_assistant.models.base import ChatMessage, ImagePart, RequestedToolCall, TextPart, ToolDefinition
from mini_assistant.models.tokens import count_message_tokens, count_prompt_tokens, count_tokens, tokenizer


@pytest.mark.parametrize(
    ("text", "tokens"),
    [("", 0), ("hello world", 2), ("hello world" * 1000, 2000), ("<|endoftext|>", 7), ("\ud800", 1), ("字" * 50, 50)],
)
def test_texts(text, tokens):
    assert count_tokens(text) == tokens


def test_tokens_and_text_belong_together():
    tokens = tokenizer().encode("größer 🎉")
    assert tokenizer().decode(tokens) == "größer 🎉"
    assert count_tokens("größer 🎉") == len(tokens)


def test_messages():
    assert count_message_tokens(ChatMessage("user", "hello world")) == 6
    assert count_message_tokens(ChatMessage("user", (TextPart("hello"), TextPart(" world")))) == 6
    assert count_message_tokens(ChatMessage("user", (ImagePart("data:image/png;base64," + "A" * 10_000, "low"),))) == 89
    assert count_message_tokens(ChatMessage("user", (ImagePart("https://x/y.png"),))) == 769
    with_call = ChatMessage("assistant", "", tool_calls=(RequestedToolCall("call_1", "hello", " world"),))
    assert count_message_tokens(with_call) == 4 + 4 + 2


def test_prompts():
    message = ChatMessage("user", "hello world")
    bare = count_prompt_tokens([message])
    assert bare == count_message_tokens(message) + 3
    assert count_prompt_tokens([message, message]) == bare + 6
    assert count_prompt_tokens([message], [ToolDefinition("f", {"type": "object"}, "Does f.")]) > bare + 10


@pytest.mark.parametrize("text", ["hello world " * 100_000, "a" * 1_000_000, " " * 1_000_000, "!" * 1_000_000])
def test_a_megabyte_takes_no_time(text):
    count_tokens("")
    begun = time.process_time()
    count_tokens(text)
    assert time.process_time() - begun < 1.0


def test_threads():
    counted = []
    threads = [threading.Thread(target=lambda: counted.append(count_tokens("hello world" * 10_000))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=10)
    assert counted == [20_000] * 8

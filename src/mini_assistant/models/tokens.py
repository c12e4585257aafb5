"""Counts tokens in the way of the hosted models (o200k), for budgets, truncation and turns whose provider does not count.

Exact for text; the overhead of messages, tools and images is an estimate. Every function may be called from any thread; a
megabyte takes about 30 ms, so count long texts off the event loop. The first call loads the tokenizer (0.1 s, 65 MB).
"""

import functools
import importlib.util
import threading
from collections.abc import Sequence
from importlib.machinery import EXTENSION_SUFFIXES, ExtensionFileLoader, FileFinder
from typing import Protocol

import msgspec

from mini_assistant.models.base import ChatMessage, TextPart, ToolDefinition

_MESSAGE_OVERHEAD_TOKENS = 4
_ANSWER_OVERHEAD_TOKENS = 3
_LOW_DETAIL_IMAGE_TOKENS = 85
_IMAGE_TOKENS = 765

_loading = threading.Lock()


class Tokenizer(Protocol):
    """What is used of the tokenizer. Texts must be valid UTF-8: no lone surrogates."""

    def count(self, text: str) -> int: ...
    def encode(self, text: str) -> list[int]: ...
    def decode(self, tokens: list[int]) -> str: ...
    def pretokenize(self, text: str) -> list[str]: ...


def tokenizer() -> Tokenizer:
    """The o200k tokenizer, loaded by the first call."""
    with _loading:
        return _load_tokenizer()


@functools.cache
def _load_tokenizer() -> Tokenizer:
    # Only the compiled part of bpe-openai is loaded. Importing the package builds tables in Python for every encoding that it
    # knows, which takes 1 s and 65 MB more, and none of them is needed here.
    package = importlib.util.find_spec("bpe_openai")
    assert package is not None
    assert package.submodule_search_locations is not None
    finder = FileFinder(package.submodule_search_locations[0], (ExtensionFileLoader, EXTENSION_SUFFIXES))
    spec = finder.find_spec("_bindings")
    assert spec is not None
    assert spec.loader is not None
    bindings = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(bindings)
    return bindings.tokenizer_for_encoding("o200k_base")


def count_tokens(text: str) -> int:
    """Tokens of a text. Text that looks like a special token is counted as text."""
    try:
        return tokenizer().count(text)
    except UnicodeEncodeError:  # lone surrogates, which JSON can carry
        return tokenizer().count(text.encode("utf-8", "replace").decode())


def count_message_tokens(message: ChatMessage) -> int:
    """Tokens that one message adds to a prompt."""
    total = _MESSAGE_OVERHEAD_TOKENS
    parts = (TextPart(message.content),) if isinstance(message.content, str) else message.content
    for part in parts:
        if isinstance(part, TextPart):
            total += count_tokens(part.text)
        else:
            total += _LOW_DETAIL_IMAGE_TOKENS if part.detail == "low" else _IMAGE_TOKENS
    return total + sum(_MESSAGE_OVERHEAD_TOKENS + count_tokens(call.name) + count_tokens(call.arguments) for call in message.tool_calls)


def count_prompt_tokens(messages: Sequence[ChatMessage], tools: Sequence[ToolDefinition] = ()) -> int:
    """Tokens of a whole prompt: its messages, and the tools that are offered."""
    total = _ANSWER_OVERHEAD_TOKENS + sum(map(count_message_tokens, messages))
    return total + sum(_MESSAGE_OVERHEAD_TOKENS + count_tokens(msgspec.json.encode(tool).decode()) for tool in tools)

"""Reads the body of a chat completion, streamed or whole, into the deltas of `base.py`.

Lenient where servers differ and nothing is lost by it; whatever cannot be understood is a ModelError.
"""

from typing import Any, Literal, cast

import msgspec

from mini_assistant.errors import ModelError
from mini_assistant.models.base import ChatDelta, Finished, FinishReason, ReasoningDelta, RefusalDelta, TextDelta, TokenUsage
from mini_assistant.models.provider_errors import ProviderErrors
from mini_assistant.models.sse_lines import LineTooLong, SseLines
from mini_assistant.models.tool_call_pieces import ToolCallPieces

_EVENT_BYTES_MAX = 64 * 1024
_REASONING_CHARACTERS_MAX = 4_000_000
_FINISH_REASONS: dict[str, FinishReason | Literal["failed"]] = {
    "length": "length",
    "max_tokens": "length",
    "content_filter": "content_filter",
    "tool_calls": "tool_calls",
    "function_call": "tool_calls",
    "error": "failed",
    "abort": "failed",
    "insufficient_system_resource": "failed",
}


class _Function(msgspec.Struct, gc=False):
    name: str | None = None
    arguments: str | dict[str, Any] | None = None


class _ToolCall(msgspec.Struct, gc=False):
    index: int | None = None
    id: str | int | None = None
    function: _Function | None = None


class _ContentPart(msgspec.Struct, gc=False):
    type: str = ""
    text: str | None = None
    thinking: Any = None
    reasoning: Any = None


class _Delta(msgspec.Struct, gc=False):
    content: str | list[_ContentPart] | None = None
    refusal: str | None = None
    tool_calls: list[_ToolCall] | None = None
    reasoning_content: Any = None
    reasoning: Any = None


class _Choice(msgspec.Struct, gc=False):
    delta: _Delta | None = None
    message: _Delta | None = None
    finish_reason: str | None = None


class _Chunk(msgspec.Struct, gc=False):
    choices: list[_Choice] | None = None
    usage: Any = None  # typed only at the end: an odd one must not spoil the answer
    error: Any = None
    object: str | None = None
    message: Any = None
    code: Any = None
    type: Any = None


class _CachedTokens(msgspec.Struct):
    cached_tokens: int | None = None


class _ReasoningTokens(msgspec.Struct):
    reasoning_tokens: int | None = None


class _Usage(msgspec.Struct):
    prompt_tokens: int
    completion_tokens: int
    prompt_tokens_details: _CachedTokens | None = None
    completion_tokens_details: _ReasoningTokens | None = None


_decode_chunk = msgspec.json.Decoder(_Chunk).decode


class ChatChunks:
    """One answer while it arrives.

    progress: grows with every read that brought a piece of the answer or of the reasoning before it.
    finished: whether `Finished` has been given out. has_reason: whether the server has said why it ends; only usage may follow.
    failure: what went wrong behind the deltas that were given out last, None while all is well.
    """

    def __init__(self, errors: ProviderErrors) -> None:
        self.progress = 0
        self.finished = False
        self.failure: ModelError | None = None
        self._errors = errors
        self._lines = SseLines()
        self._event = b""
        self._calls = ToolCallPieces()
        self._reason: str | None = None
        self._usage: Any = None
        self._thought = False
        self._reasoning_characters_left = _REASONING_CHARACTERS_MAX

    @property
    def has_reason(self) -> bool:
        return self._reason is not None

    def feed(self, data: bytes) -> list[ChatDelta]:
        """The deltas that one read of a stream completes. Raises ModelError, unless there are deltas before the fault."""
        deltas: list[ChatDelta] = []
        try:
            self._feed(data, deltas)
        except ModelError as error:
            if not deltas:
                raise
            self.failure = error
        if deltas or self._thought:
            self.progress += 1
            self._thought = False
        return deltas

    def _feed(self, data: bytes, deltas: list[ChatDelta]) -> None:
        try:
            contents = self._lines.feed(data)
        except LineTooLong:
            raise self._errors.nonsense("an event that is too long", data) from None
        for content in contents:
            if content == b"[DONE]":
                self._finish(deltas)
                return
            self._accept_line(content, deltas)

    def feed_end(self) -> list[ChatDelta]:
        """The deltas that the end of a stream completes. Raises ModelError when the answer had not ended."""
        deltas = self.feed(b"\n")
        if not self.finished and self.failure is None:
            self._finish(deltas)
        return deltas

    def feed_completion(self, body: bytes) -> list[ChatDelta]:
        """The deltas of an answer that came as one JSON object. Raises ModelError."""
        deltas: list[ChatDelta] = []
        try:
            chunk = _decode_chunk(body)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            raise self._errors.nonsense("an answer that is no chat completion", body) from None
        self._accept(chunk, deltas)
        self._finish(deltas)
        return deltas

    def _accept_line(self, content: bytes, deltas: list[ChatDelta]) -> None:
        """Take one `data:` line, or the blank line that ends an event.

        Mostly a line is a whole event. It is decoded at once, without waiting for the blank line, which some servers forget;
        a line that is not valid JSON by itself may go on in the next one.
        """
        if self._event:
            if not content or len(self._event) > _EVENT_BYTES_MAX:
                raise self._errors.nonsense("an event that is no JSON", self._event)
            content = self._event + b"\n" + content
        elif not content:
            return
        try:
            chunk = _decode_chunk(content)
        except (msgspec.ValidationError, RecursionError):
            raise self._errors.nonsense("an event that is no piece of a chat completion", content) from None
        except (msgspec.DecodeError, UnicodeDecodeError):
            self._event = content
            return
        self._event = b""
        self._accept(chunk, deltas)

    def _accept(self, chunk: _Chunk, deltas: list[ChatDelta]) -> None:
        if chunk.error or chunk.object == "error":
            raise self._errors.error_frame(chunk.error or {"message": chunk.message, "code": chunk.code, "type": chunk.type})
        if chunk.usage:
            self._usage = chunk.usage
        if not chunk.choices:
            return
        choice = chunk.choices[0]
        delta = choice.delta or choice.message
        if delta is not None:
            content = delta.content
            # Servers that write both fields write the same into both.
            if reasoning := delta.reasoning_content or delta.reasoning:
                self._accept_reasoning(_words_of(reasoning), deltas)
            if isinstance(content, list):
                content = self._accept_parts(content, deltas)
            if content:
                deltas.append(TextDelta(content))
            if delta.refusal:
                deltas.append(RefusalDelta(delta.refusal))
            if delta.tool_calls:
                self._accept_calls(delta.tool_calls, deltas)
        if choice.finish_reason:
            self._reason = choice.finish_reason

    def _accept_parts(self, parts: list[_ContentPart], deltas: list[ChatDelta]) -> str:
        """Take the reasoning among typed parts; the text of the others. A part that is no text is reasoning, under many names."""
        for part in parts:
            if part.type != "text":
                self._accept_reasoning(_words_of(part.thinking or part.reasoning or part.text), deltas)
        return "".join(part.text or "" for part in parts if part.type == "text")

    def _accept_reasoning(self, text: str, deltas: list[ChatDelta]) -> None:
        """Take a piece of reasoning. One without words, such as an encrypted one, is a sign of life all the same."""
        self._thought = True
        self._reasoning_characters_left -= len(text)
        if self._reasoning_characters_left < 0:
            raise self._errors.nonsense(f"more than {_REASONING_CHARACTERS_MAX} characters of reasoning")
        if text:
            deltas.append(ReasoningDelta(text))

    def _accept_calls(self, pieces: list[_ToolCall], deltas: list[ChatDelta]) -> None:
        for piece in pieces:
            function = piece.function or _Function()
            arguments = function.arguments or ""
            if not isinstance(arguments, str):
                arguments = msgspec.json.encode(arguments).decode()
            delta = self._calls.add(piece.index, piece.id, function.name, arguments)
            if delta is not None:
                deltas.append(delta)

    def _finish(self, deltas: list[ChatDelta]) -> None:
        if self._reason is None:
            raise self._errors.cut_off()
        reason = _FINISH_REASONS.get(self._reason, "stop")
        if reason == "failed":
            raise self._errors.error_frame(f"the answer ended with '{self._reason}'")
        if reason == "stop" and self._calls.has_any:
            reason = "tool_calls"
        if reason == "tool_calls":
            if self._calls.has_unnamed:
                raise self._errors.nonsense("a tool call without a name")
            reason = "tool_calls" if self._calls.has_any else "stop"
        self.finished = True
        deltas.append(Finished(reason, _usage_or_none(self._usage)))


def _words_of(reasoning: Any) -> str:
    """The text in the shapes that servers use for reasoning: text, an object with `text`, or a list of those. Empty for any other."""
    parts = cast("list[Any]", reasoning) if isinstance(reasoning, list) else [reasoning]
    texts = [cast("dict[str, Any]", part).get("text") if isinstance(part, dict) else part for part in parts]
    return "".join(text for text in texts if isinstance(text, str))


def _usage_or_none(sent: Any) -> TokenUsage | None:
    try:
        usage = msgspec.convert(sent, _Usage)
    except msgspec.ValidationError:
        return None
    cached = usage.prompt_tokens_details.cached_tokens if usage.prompt_tokens_details else None
    reasoning = usage.completion_tokens_details.reasoning_tokens if usage.completion_tokens_details else None
    return TokenUsage(usage.prompt_tokens, usage.completion_tokens, cached or 0, reasoning or 0)

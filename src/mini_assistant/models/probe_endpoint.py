"""The raw requests of a probe: one model at one endpoint, asked without the client of the server, and everything bounded."""

import asyncio
from dataclasses import dataclass
from typing import Any, Literal

import aiohttp
import msgspec

from mini_assistant.errors import ModelError
from mini_assistant.models.base import Finished, FinishReason, ReasoningDelta, TextDelta, TokenUsage, ToolCallDelta
from mini_assistant.models.chat_answer import ChatAnswer, read_at_most
from mini_assistant.models.endpoint_session import EndpointSession, pause_before_retry
from mini_assistant.models.probe_report import printable
from mini_assistant.models.provider_limits import ProviderLimits

_TOTAL_SECONDS_MAX = 900.0
# An endpoint that has gone away is not waited for in every test that is left.
_FAILURES_IN_A_ROW_MAX = 2
_ANSWER_CHARACTERS_MAX = 20_000
_ERROR_BODY_BYTES_MAX = 64 * 1024
_LIST_BYTES_MAX = 8 * 1024 * 1024
_DETAIL_CHARACTERS_MAX = 120
_USAGE_TOKENS_MAX = 1_000_000  # more than any of these requests can have used
_SERVER_FAILURES = (500, 501)  # with these, too, servers refuse what they do not know


@dataclass(frozen=True, slots=True)
class Answer:
    """An answer to one request. finish: None when it was not read to its end, because it became too long."""

    text: str
    reasoning: str
    calls: tuple[tuple[str, str], ...]
    finish: FinishReason | None
    usage: TokenUsage | None
    is_streamed: bool

    @property
    def is_cut_off(self) -> bool:
        """Whether there would have been more."""
        return self.finish not in ("stop", "tool_calls")


@dataclass(frozen=True, slots=True)
class Failure:
    """There is no answer. outcome: `no` when the endpoint refused the request, else `unknown`."""

    outcome: Literal["no", "unknown"]
    reason: str
    error: ModelError
    may_be_repeated: bool = False


class Endpoint:
    """The raw requests to one model. Everything is bounded: a single answer, its time, and the time of all together.

    requests, tokens: sent so far, and used as far as the endpoint said. common: fields of every request, `messages` not among them.
    reasoning: in which ways the model has shown what it thinks.
    """

    def __init__(self, session: EndpointSession, limits: ProviderLimits, model: str) -> None:
        self.requests = 0
        self.tokens = 0
        self.common: dict[str, Any] = {"model": model, "stream": True}
        self.reasoning: set[str] = set()
        self._session = session
        self._limits = limits
        self._loop = asyncio.get_running_loop()
        self._deadline = self._loop.time() + _TOTAL_SECONDS_MAX
        self._failures_in_a_row = 0

    async def ask(self, messages: list[dict[str, Any]], fields: dict[str, Any]) -> Answer | Failure:
        """The answer to one request, repeated as the limits allow while the endpoint has no room for it or closes the connection."""
        if self._failures_in_a_row >= _FAILURES_IN_A_ROW_MAX:
            return _not_tried("the endpoint does not answer any more")
        body = msgspec.json.encode({**self.common, "messages": messages, **fields})
        attempt = 0
        while True:
            if self._loop.time() > self._deadline:
                return _not_tried(f"{_TOTAL_SECONDS_MAX:g} seconds are over")
            reply = await self._attempt(body)
            if not isinstance(reply, Failure) or not reply.may_be_repeated or attempt >= self._limits.retries_max:
                break
            pause_seconds = pause_before_retry(reply.error, attempt, self._limits.retry_pause_seconds)
            if pause_seconds is None:
                break
            await asyncio.sleep(pause_seconds)
            attempt += 1
        is_failure = isinstance(reply, Failure) and reply.outcome == "unknown"
        self._failures_in_a_row = self._failures_in_a_row + 1 if is_failure else 0
        return reply

    async def get(self, path: str) -> bytes | None:
        """What a GET answers; None when it does not answer 200 in time. path: added to the address of the provider."""
        try:
            async with (
                asyncio.timeout(self._limits.connect_timeout_seconds * 2),
                self._session.client().get(self._session.url(path), allow_redirects=False) as response,
            ):
                if response.status != 200 or response.headers.get("Content-Encoding", "identity") != "identity":
                    return None
                return await read_at_most(response.content, _LIST_BYTES_MAX)
        except (TimeoutError, aiohttp.ClientError, ValueError):
            return None

    async def _attempt(self, body: bytes) -> Answer | Failure:
        limit_seconds = self._limits.first_token_timeout_seconds
        deadline = self._loop.time() + limit_seconds
        self.requests += 1
        try:
            async with (
                asyncio.timeout_at(deadline),
                self._session.client().post(self._session.url("chat/completions"), data=body, allow_redirects=False) as response,
            ):
                if response.status != 200:
                    return await self._refused(response)
                answer = await self._read(response, deadline)
        except TimeoutError as exc:
            is_connecting = isinstance(exc, aiohttp.ServerTimeoutError)
            error = self._session.connection_error(exc) if is_connecting else self._session.errors.silent(limit_seconds, has_begun=False)
            return self._failed(error)
        except (aiohttp.ClientError, ValueError) as exc:
            # Many servers close a connection that could have been used once more.
            error = self._session.connection_error(exc)
            return self._failed(error, may_be_repeated=error.retryable)
        except ModelError as exc:
            return self._failed(exc)
        self._take_note(answer)
        return answer

    async def _read(self, response: aiohttp.ClientResponse, deadline: float) -> Answer:
        """Read the answer until it ends or is long enough. Raises ModelError."""
        errors = self._session.errors
        if response.headers.get("Content-Encoding", "identity") != "identity":
            raise errors.nonsense("a compressed answer, which was not asked for")
        if "Content-Type" in response.headers and response.content_type not in ("text/event-stream", "application/json"):
            sent = await read_at_most(response.content, _ERROR_BODY_BYTES_MAX)
            raise errors.nonsense(f"{response.content_type} instead of an answer; check base_url", sent)
        collected = _Collected()
        answer = ChatAnswer(response, errors, self._limits, deadline)
        try:
            while collected.characters < _ANSWER_CHARACTERS_MAX and (deltas := await answer.read()):
                for delta in deltas:
                    collected.take(delta)
        finally:
            answer.close()
        return collected.answer(is_streamed=response.content_type != "application/json")

    async def _refused(self, response: aiohttp.ClientResponse) -> Failure:
        body = await read_at_most(response.content, _ERROR_BODY_BYTES_MAX)
        error = self._session.refused(response, body)
        return self._failed(
            error, is_refusal=response.status in _SERVER_FAILURES, may_be_repeated=response.status == 429 or response.status >= 500
        )

    def _failed(self, error: ModelError, *, is_refusal: bool = False, may_be_repeated: bool = False) -> Failure:
        words = error.refusal or error.message.partition("' ")[2] or error.message
        return Failure("no" if error.refusal or is_refusal else "unknown", _shortened(words), error, may_be_repeated)

    def _take_note(self, answer: Answer) -> None:
        if answer.usage is not None:
            self.tokens += sum(
                min(max(0, count), _USAGE_TOKENS_MAX) for count in (answer.usage.prompt_tokens, answer.usage.completion_tokens)
            )
            if answer.usage.reasoning_tokens > 0:
                self.reasoning.add("counted")
        if answer.reasoning:
            self.reasoning.add("apart")


class _Collected:
    """The deltas of an answer, put together. characters: grows with each delta, also with an empty one."""

    def __init__(self) -> None:
        self.characters = 0
        self._texts: list[str] = []
        self._thoughts: list[str] = []
        self._calls: dict[int, list[str]] = {}
        self._finished: Finished | None = None

    def take(self, delta: object) -> None:
        self.characters += 1
        match delta:
            case TextDelta(text):
                self.characters += len(text)
                self._texts.append(text)
            case ReasoningDelta(text):
                self.characters += len(text)
                self._thoughts.append(text)
            case ToolCallDelta(index, name, arguments):
                self.characters += len(arguments)
                parts = self._calls.setdefault(index, [name or "", ""])
                parts[1] += arguments
            case Finished():
                self._finished = delta
            case _:
                pass

    def answer(self, *, is_streamed: bool) -> Answer:
        finished = self._finished
        return Answer(
            text="".join(self._texts),
            reasoning="".join(self._thoughts),
            calls=tuple((name, arguments) for name, arguments in self._calls.values()),
            finish=None if finished is None else finished.reason,
            usage=None if finished is None else finished.usage,
            is_streamed=is_streamed,
        )


def _not_tried(reason: str) -> Failure:
    return Failure("unknown", f"not tried: {reason}", ModelError(reason))


def _shortened(text: str) -> str:
    text = printable(" ".join(text.split())).removesuffix(".")
    return text if len(text) <= _DETAIL_CHARACTERS_MAX else text[: _DETAIL_CHARACTERS_MAX - 1] + "…"

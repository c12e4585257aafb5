"""The official client in one way of calling it, whether it is the sync or the async one, and a handler that records every callback."""

import contextlib
import functools
import inspect
from collections.abc import AsyncIterable, AsyncIterator, Iterable
from typing import Any

import openai
from openai.lib.streaming import AssistantStreamManager, AsyncAssistantStreamManager
from openai.types.beta import AssistantStreamEvent

_CALLBACKS = (
    "on_end",
    "on_event",
    "on_exception",
    "on_image_file_done",
    "on_message_created",
    "on_message_delta",
    "on_message_done",
    "on_run_step_created",
    "on_run_step_delta",
    "on_run_step_done",
    "on_text_created",
    "on_text_delta",
    "on_text_done",
    "on_timeout",
    "on_tool_call_created",
    "on_tool_call_delta",
    "on_tool_call_done",
)


class Sdk:
    """`client` is the real client: its calls go through `settled`, its lists and streams through `each`, its contexts through `entered`."""

    def __init__(self, *, is_async: bool) -> None:
        self.is_async = is_async
        client_class = openai.AsyncOpenAI if is_async else openai.OpenAI
        self.client: Any = client_class(max_retries=0, timeout=20)

    async def close(self) -> None:
        await settled(self.client.close())

    def handler(self) -> Any:
        """A new event handler. `calls` lists the callbacks as (name, arguments), copied when they came."""
        base = openai.AsyncAssistantEventHandler if self.is_async else openai.AssistantEventHandler
        callbacks = {name: _recorder(name, is_async=self.is_async) for name in _CALLBACKS}
        handler = type("RecordingHandler", (base,), callbacks)()
        handler.calls = []
        return handler

    def attached(self, thread_id: str, run_id: str, handler: Any) -> Any:
        """The context of a stream that tells a run's events from the start: the server's extension, read by the SDK's own helper."""
        stream_class = openai.AsyncStream if self.is_async else openai.Stream
        request = functools.partial(
            self.client.get,
            f"/threads/{thread_id}/runs/{run_id}/events",
            cast_to=AssistantStreamEvent,
            stream=True,
            stream_cls=stream_class[AssistantStreamEvent],
        )
        if self.is_async:
            return AsyncAssistantStreamManager(request(), event_handler=handler)
        return AssistantStreamManager(request, event_handler=handler)


def _recorder(name: str, *, is_async: bool) -> Any:
    def record(handler: Any, *arguments: Any) -> None:
        handler.calls.append((name, [plain(argument) for argument in arguments]))

    async def record_async(handler: Any, *arguments: Any) -> None:
        record(handler, *arguments)

    return record_async if is_async else record


async def settled(answer: Any) -> Any:
    """The answer of a call: awaited where the client is async."""
    return await answer if inspect.isawaitable(answer) else answer


async def each(items: AsyncIterable[Any] | Iterable[Any]) -> AsyncIterator[Any]:
    """The items of a list, over all of its pages, or of a stream."""
    if isinstance(items, AsyncIterable):
        async for item in items:
            yield item
    else:
        for item in items:
            yield item


@contextlib.asynccontextmanager
async def entered(context: Any) -> AsyncIterator[Any]:
    """Enter a context of either kind."""
    if hasattr(context, "__aenter__"):
        async with context as value:
            yield value
    else:
        with context as value:
            yield value


async def refusal(answer: Any, kind: type[openai.APIStatusError]) -> openai.APIStatusError:
    """The error that a call is expected to end with; `answer` makes the call."""
    try:
        await settled(answer())
    except kind as error:
        return error
    raise AssertionError(f"the call was not refused with {kind.__name__}")


def plain(value: Any) -> Any:
    """An SDK object as the JSON that it came from."""
    return value.to_dict(mode="json") if hasattr(value, "to_dict") else value


def text_of(message: Any) -> str:
    """The text of a message."""
    return "".join(part.text.value for part in message.content if part.type == "text")

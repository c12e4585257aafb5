"""The seam between the run engine and models: what is asked, and what comes back while it is being written.

The engine knows only these types. `routing.py` picks a provider for a model's name; every provider streams.
"""

from collections.abc import AsyncGenerator, Sequence
from typing import Any, Literal, Protocol

import msgspec


class TextPart(msgspec.Struct, frozen=True):
    """Plain text inside a message."""

    text: str


class ImagePart(msgspec.Struct, frozen=True):
    """An image by address (`https:` or `data:`)."""

    url: str
    detail: str = "auto"


class StoredImagePart(msgspec.Struct, frozen=True):
    """An image among the server's own files. The run engine puts its bytes in its place before a provider is asked."""

    file_id: str
    detail: str = "auto"


class RequestedToolCall(msgspec.Struct, frozen=True):
    """A call that the model made in an earlier turn. `arguments` is JSON text as the model wrote it."""

    id: str
    name: str
    arguments: str


class SourcePassage(msgspec.Struct, frozen=True):
    """A passage of a file that a search has found. `marker` is how an answer cites it."""

    marker: str
    text: str


class ChatMessage(msgspec.Struct, frozen=True):
    """One message of a prompt. `tool_call_id` is set exactly when `role` is `tool`.

    passages: what the content of a search's output is made of, the best first, for a provider that would not read it as a text.
    """

    role: Literal["system", "user", "assistant", "tool"]
    content: tuple[TextPart | ImagePart | StoredImagePart, ...] | str
    tool_calls: tuple[RequestedToolCall, ...] = ()
    tool_call_id: str | None = None
    passages: tuple[SourcePassage, ...] = ()


class ToolDefinition(msgspec.Struct, frozen=True):
    """A tool as it is offered to the model. `parameters` is a JSON schema of an object."""

    name: str
    parameters: dict[str, Any]
    description: str | None = None
    strict: bool = False


class NamedTool(msgspec.Struct, frozen=True):
    """The model must call this tool."""

    name: str


class ChatRequest(msgspec.Struct, frozen=True):
    """One turn of a model. None means: not given, use the model's own default.

    `response_format` is the wire's object (`{"type": "json_schema", ...}`), None for text.
    `completion_tokens_max` bounds this turn alone. owner: whose request it is, where many wait for the same provider.
    """

    model: str
    messages: tuple[ChatMessage, ...]
    tools: tuple[ToolDefinition, ...] = ()
    tool_choice: Literal["none", "auto", "required"] | NamedTool = "auto"
    parallel_tool_calls: bool = True
    temperature: float | None = None
    top_p: float | None = None
    response_format: dict[str, Any] | None = None
    reasoning_effort: str | None = None
    completion_tokens_max: int | None = None
    owner: str = ""


class TextDelta(msgspec.Struct, frozen=True):
    """The next piece of the answer."""

    text: str


class RefusalDelta(msgspec.Struct, frozen=True):
    """The next piece of a refusal."""

    text: str


class ReasoningDelta(msgspec.Struct, frozen=True):
    """The next piece of what the model thinks before it answers. It is counted and goes no further than `routing.py`."""

    text: str


class ToolCallDelta(msgspec.Struct, frozen=True):
    """The next piece of the tool call `index` (0-based within the turn). `name` comes once, in the call's first piece."""

    index: int
    name: str | None
    arguments: str


class TokenUsage(msgspec.Struct, frozen=True):
    """Tokens of one turn. `cached_tokens` are part of the prompt's, `reasoning_tokens` of the completion's."""

    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int = 0
    reasoning_tokens: int = 0


FinishReason = Literal["stop", "length", "tool_calls", "content_filter"]


class Finished(msgspec.Struct, frozen=True):
    """The model ended its turn. Always the last delta. `usage` is None when the provider did not count."""

    reason: FinishReason
    usage: TokenUsage | None


ChatDelta = TextDelta | RefusalDelta | ReasoningDelta | ToolCallDelta | Finished


Emulation = Literal["json_schema", "json_object", "text"]
"""In which form a model that calls no tools in the way of the API is asked for its next step, the most reliable first."""


class Capabilities(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a model can do. Written in the config file per model; the defaults are those of a hosted model.

    context_window_tokens: prompt and answer together; None when unknown, then nothing is cut for it.
    completion_tokens_max: the longest answer that may be asked for; None when unknown.
    tools: whether the model calls tools in the way of the API. One that does not is asked for its next step (`models/tool_calling`) in
        the form that is named here, or in the best that it can. `hosted`: the provider calls the server's own tools by rules; functions
        are offered only where a call is demanded.
    tool_choice: the same for turns in which a call is demanded (`required` or a named tool).
    system_role: the role of instructions; `user` for models that know no other.
    think_tags: whether answers may begin with `<think>`; `opened`: they begin within it, and only `</think>` is written.
    max_tokens_parameter: the name under which the endpoint takes the limit of an answer.
    """

    context_window_tokens: int | None = None
    completion_tokens_max: int | None = None
    tools: bool | Literal["hosted"] | Emulation = True
    tool_choice: bool | Emulation = True
    parallel_tool_calls: bool = True
    images: bool = True
    json_schema: bool = True
    json_object: bool = True
    reasoning_effort: bool = True
    temperature: bool = True
    stream_usage: bool = True
    system_role: Literal["system", "developer", "user"] = "system"
    think_tags: bool | Literal["opened"] = True
    max_tokens_parameter: Literal["max_completion_tokens", "max_tokens"] = "max_completion_tokens"


class ListedModel(msgspec.Struct, frozen=True):
    """A model by the name that a run uses. owned_by: its provider, or whom that one names. created: unix seconds, 0 when unknown."""

    name: str
    owned_by: str
    created: int = 0


class ChatProvider(Protocol):
    """A place where models run."""

    def stream(self, request: ChatRequest, capabilities: Capabilities) -> AsyncGenerator[list[ChatDelta], None]:
        """Write one answer; yields what one read from the network brought, and ends after `Finished`.

        `request.model` is the provider's own name of the model. Closing the generator stops the model.
        Raises ModelError when the model fails, stalls, is cut off or answers nonsense. Attempts are repeated inside
        only while nothing has been yielded.
        """
        ...

    async def check(self) -> str:
        """A short line that says that the provider answers. Raises ModelError with the reason when it does not."""
        ...

    async def list_models(self) -> Sequence[ListedModel]:
        """The models that the provider names, by its own names. Raises ModelError with the reason when it does not name them."""
        ...

    async def close(self) -> None:
        """Give back connections and processes."""
        ...


class ChatModels(Protocol):
    """All models of this server, by the name that a run uses."""

    def capabilities(self, model: str, owner: str = "") -> Capabilities:
        """What the named model can do, by what `owner`'s requests have shown. Raises ModelError (`invalid_prompt`) for an unknown name."""
        ...

    def provider_or_none(self, model: str) -> str | None:
        """Who answers first for the named model; None when nobody serves the name."""
        ...

    def stream(self, request: ChatRequest) -> AsyncGenerator[list[ChatDelta], None]:
        """As `ChatProvider.stream`; `request.model` is the name in the run, aliases allowed."""
        ...

    async def check(self) -> str:
        """One line about the model that answers by default. Raises ModelError with the reason when it does not."""
        ...

    async def list_models(self) -> Sequence[ListedModel]:
        """What is configured by name; without that, what the only provider lists. Raises ModelError as `ChatProvider.list_models`."""
        ...

    async def find_model_or_none(self, model: str) -> ListedModel | None:
        """The model of a name, aliases allowed; None when there is none. Raises ModelError as `ChatProvider.list_models`."""
        ...

    async def close(self) -> None:
        """Close every provider."""
        ...

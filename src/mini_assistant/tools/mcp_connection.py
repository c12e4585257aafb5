"""A connection to one MCP server over streamable HTTP, through the official `mcp` package. Imported by `mcp.py` when a run needs it.

The address comes from an API client and the answers from whoever listens there, so nothing about either is trusted: addresses are
checked before each connection, answers are bounded, and no text of an error holds the address or a header.
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Collection, Coroutine, Mapping
from typing import Any, TypeVar, cast

import httpx2
import mcp_types
import msgspec
from mcp.client.client import Client
from mcp.client.streamable_http import streamable_http_client
from mcp.shared.exceptions import MCPError

from mini_assistant import __version__
from mini_assistant.assistants.schema import McpTool
from mini_assistant.errors import ToolFailure
from mini_assistant.outbound import OutboundRefused, public_addresses
from mini_assistant.tools.mcp import ListedTool, McpSettings

_ANSWER_BYTES_MAX = 8 * 1024 * 1024
_SCHEMA_BYTES_MAX = 64 * 1024
_TOOL_NAME_CHARACTERS_MAX = 256
_PAGES_MAX = 100
_ERROR_CHARACTERS_MAX = 1000
# A server that is slow to end a session is not waited for.
_CLOSE_SECONDS = 2.0
# How long a connection takes to end after a question was told that it is closed.
_END_SECONDS = 0.2
_TLS = httpx2.create_ssl_context(trust_env=False)

_Answer = TypeVar("_Answer")

# These write addresses, ids of sessions and what servers send into the log.
for _name in ("mcp", "client", "httpx2", "httpcore2"):
    logging.getLogger(_name).setLevel(logging.CRITICAL)


class McpConnection:
    """The connection is made with the first question, and again when it was lost. It lives in a task of its own."""

    def __init__(self, tool: McpTool, settings: McpSettings) -> None:
        self._tool = tool
        self._settings = settings
        self._lock = asyncio.Lock()
        self._client: Client | None = None
        self._owner: asyncio.Task[None] | None = None
        self._closing = asyncio.Event()

    async def list_tools(self, wanted: Collection[str] | None) -> list[ListedTool]:
        """At most `mcp_tools_max` tools, in the server's order; what is too large to be offered is left out.

        Raises ToolFailure, also when it takes longer than `mcp_connect_timeout_seconds`.
        """
        limit_seconds, tools_max = self._settings.mcp_connect_timeout_seconds, self._settings.mcp_tools_max
        found: dict[str, ListedTool] = {}
        cursor: str | None = None
        try:
            async with asyncio.timeout(limit_seconds):
                for _ in range(_PAGES_MAX):
                    client = await self._connected()
                    parameters = mcp_types.PaginatedRequestParams(cursor=cursor)
                    page = await self._answer(client.session.list_tools(params=parameters))
                    for tool in page.tools:
                        if (wanted is None or tool.name in wanted) and tool.name not in found and _can_be_offered(tool):
                            found[tool.name] = ListedTool(tool.name, tool.description, tool.input_schema)
                    cursor = page.next_cursor
                    if cursor is None or len(found) >= tools_max:
                        break
        except TimeoutError as exc:
            raise ToolFailure("timeout", f"It did not list its tools within {limit_seconds:g} seconds.") from exc
        return list(found.values())[:tools_max]

    async def call(self, name: str, arguments: Mapping[str, Any]) -> str:
        """Call a tool; its output is cut at `mcp_output_characters_max`, with a word about it.

        Raises ToolFailure, also when it takes longer than `mcp_timeout_seconds`.
        """
        limit_seconds = self._settings.mcp_timeout_seconds
        # Sent without the checks of `Client.call_tool`: they would match a schema of the server's, whose patterns may take for ever.
        request = mcp_types.CallToolRequest(params=mcp_types.CallToolRequestParams(name=name, arguments=dict(arguments)))
        try:
            async with asyncio.timeout(limit_seconds):
                client = await self._connected()
                result = await self._answer(client.session.send_request(request, mcp_types.CallToolResult))
        except TimeoutError as exc:
            raise ToolFailure("timeout", f"The tool took longer than {limit_seconds:g} seconds.") from exc
        text = _cut(_text_of(result), self._settings.mcp_output_characters_max)
        if result.is_error:
            raise ToolFailure("failed", text or "The tool has failed and does not say why.")
        return text

    async def close(self) -> None:
        """End the session and the connection, within a few seconds."""
        owner = self._owner
        if owner is None:
            return
        self._closing.set()
        try:
            if self._client is not None:  # else it is still being opened
                await asyncio.wait({owner}, timeout=_CLOSE_SECONDS)
        finally:
            owner.cancel()
        await asyncio.wait({owner}, timeout=_CLOSE_SECONDS)

    async def _connected(self) -> Client:
        async with self._lock:
            if self._closing.is_set():
                raise ToolFailure("cancelled", "The run has ended.")
            if self._client is None or self._owner is None or self._owner.done():
                if self._owner is not None:
                    self._owner.cancel()
                self._client = None
                opened: asyncio.Future[Client] = asyncio.get_running_loop().create_future()
                owner = self._owner = asyncio.create_task(self._own(opened))
                owner.add_done_callback(_note_failure)
                await asyncio.wait({opened, owner}, return_when=asyncio.FIRST_COMPLETED)
                if not opened.done():
                    raise _failure_of(owner)
                self._client = opened.result()
            return self._client

    async def _own(self, opened: "asyncio.Future[Client]") -> None:
        """Hold the connection until `close`. The package wants it to be opened and closed in one task."""
        read_seconds = max(self._settings.mcp_timeout_seconds, self._settings.mcp_connect_timeout_seconds)
        timeout = httpx2.Timeout(self._settings.mcp_connect_timeout_seconds, read=read_seconds)
        transport = _GuardedTransport(private_addresses=self._settings.private_addresses)
        async with httpx2.AsyncClient(transport=transport, headers=self._tool.headers, timeout=timeout, trust_env=False) as http:
            streams = streamable_http_client(self._tool.server_url, http_client=http, max_sse_event_size=_ANSWER_BYTES_MAX)
            about = mcp_types.Implementation(name="mini-assistant", version=__version__)
            async with Client(streams, client_info=about, cache=None) as client:
                opened.set_result(client)
                await self._closing.wait()

    async def _answer(self, asking: Coroutine[Any, Any, _Answer]) -> _Answer:
        """What the server answers. Raises ToolFailure for whatever goes wrong, also when the connection breaks meanwhile."""
        owner = self._owner
        assert owner is not None
        question = asyncio.create_task(asking)
        question.add_done_callback(_note_failure)
        try:
            await asyncio.wait({question, owner}, return_when=asyncio.FIRST_COMPLETED)
            if not question.done():
                # The package may still tell why, or leave the question without an answer for ever.
                await asyncio.wait({question}, timeout=_CLOSE_SECONDS)
        finally:
            question.cancel()
        failure = None if not question.done() or question.cancelled() else question.exception()
        if isinstance(failure, MCPError) and failure.error.code == mcp_types.CONNECTION_CLOSED:
            await asyncio.wait({owner}, timeout=_END_SECONDS)  # it knows why
        if not question.done() or question.cancelled() or (owner.done() and failure is not None):
            raise _failure_of(owner)
        if failure is not None:
            raise _failure_of(question)
        return question.result()


class _AnswerTooLarge(httpx2.StreamError):
    """The package reports errors of this kind and keeps the connection."""

    def __init__(self) -> None:
        super().__init__(f"its answer is larger than {_ANSWER_BYTES_MAX} bytes")


class _BoundedStream(httpx2.AsyncByteStream):
    """The bytes of an answer, up to a limit."""

    def __init__(self, stream: httpx2.AsyncByteStream) -> None:
        self._stream = stream

    async def __aiter__(self) -> AsyncIterator[bytes]:
        left = _ANSWER_BYTES_MAX
        async for piece in self._stream:
            left -= len(piece)
            if left < 0:
                raise _AnswerTooLarge
            yield piece

    async def aclose(self) -> None:
        await self._stream.aclose()


class _GuardedTransport(httpx2.AsyncHTTPTransport):
    """Connects to addresses that were checked, and takes plain, bounded answers."""

    def __init__(self, *, private_addresses: bool) -> None:
        super().__init__(verify=_TLS, trust_env=False)
        self._private_addresses = private_addresses

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        if request.method == "GET":
            return httpx2.Response(405)  # no stream beside the answers: nobody would read it, and it may go on for ever
        host, port = request.url.host, request.url.port or (443 if request.url.scheme == "https" else 80)
        addresses = await public_addresses(host, port, private_addresses=self._private_addresses)
        for place, address in enumerate(addresses, start=1):
            try:
                response = await super().handle_async_request(_to_address(request, address))
            except (httpx2.ConnectError, httpx2.ConnectTimeout):
                if place == len(addresses):
                    raise
                continue
            if response.headers.get("content-encoding", "identity") != "identity":
                await response.aclose()  # a few bytes of it could unpack to gigabytes
                raise httpx2.RemoteProtocolError("its answer is compressed, though that was not asked for")
            assert isinstance(response.stream, httpx2.AsyncByteStream)
            stream = _BoundedStream(response.stream)
            return httpx2.Response(response.status_code, headers=response.headers, stream=stream, extensions=response.extensions)
        raise httpx2.ConnectError("its name has no address")


def _to_address(request: httpx2.Request, address: str) -> httpx2.Request:
    """The same request to an address instead of a name, which stays in the header `Host` and in the TLS handshake."""
    headers = request.headers.copy()
    headers["accept-encoding"] = "identity"
    extensions = {**request.extensions, "sni_hostname": request.url.host}
    url = request.url.copy_with(host=address)
    return httpx2.Request(request.method, url, headers=headers, stream=request.stream, extensions=extensions)


def _can_be_offered(tool: mcp_types.Tool) -> bool:
    is_named = 0 < len(tool.name) <= _TOOL_NAME_CHARACTERS_MAX
    return is_named and tool.input_schema.get("type") == "object" and len(msgspec.json.encode(tool.input_schema)) <= _SCHEMA_BYTES_MAX


def _text_of(result: mcp_types.CallToolResult) -> str:
    """The blocks of an output as text, one below the other; what is no text is named."""
    texts = [_block_text(block) for block in result.content]
    if not texts and result.structured_content is not None:
        texts = [msgspec.json.encode(result.structured_content).decode()]
    return "\n".join(texts)


def _block_text(block: mcp_types.ContentBlock) -> str:
    match block:
        case mcp_types.TextContent():
            return block.text
        case mcp_types.ImageContent():
            return f"[An image ({block.mime_type[:100]}), which cannot be shown here.]"
        case mcp_types.AudioContent():
            return f"[A sound ({block.mime_type[:100]}), which cannot be played here.]"
        case mcp_types.ResourceLink():
            return f"[The resource {str(block.uri)[:500]}]"
        case mcp_types.EmbeddedResource():
            resource = block.resource
            if isinstance(resource, mcp_types.TextResourceContents):
                return resource.text
            return f"[The resource {str(resource.uri)[:500]}, which is no text.]"


def _cut(text: str, characters_max: int) -> str:
    if len(text) <= characters_max:
        return text
    return f"{text[:characters_max]}\n[Cut off here: the output has {len(text)} characters.]"


def _note_failure(task: "asyncio.Task[Any]") -> None:
    """Look at the outcome, so that asyncio does not complain of a failure that somebody else has told of."""
    if not task.cancelled():
        task.exception()


def _failure_of(task: "asyncio.Task[Any]") -> ToolFailure:
    """Why a task has failed, in words that may be shown."""
    failure = None if not task.done() or task.cancelled() else task.exception()
    match _innermost(failure):
        case ToolFailure() as told:
            return told
        case OutboundRefused(message=reason):
            return ToolFailure("failed", f"This server does not connect to it: {reason}.")
        case MCPError(error=error) if error.code == mcp_types.PARSE_ERROR:
            return ToolFailure("failed", f"It breaks the protocol: {error.message.partition(chr(10))[0][:_ERROR_CHARACTERS_MAX]}")
        case MCPError(error=error):
            return ToolFailure("failed", f"It answers: {error.message[:_ERROR_CHARACTERS_MAX]}")
        case httpx2.TimeoutException() | TimeoutError():
            return ToolFailure("timeout", "It does not answer in time.")
        case httpx2.ConnectError() | OSError():
            return ToolFailure("failed", "It cannot be reached.")
        case (httpx2.RemoteProtocolError() | httpx2.StreamError()) as broken:
            return ToolFailure("failed", f"It breaks the protocol: {str(broken)[:_ERROR_CHARACTERS_MAX]}.")
        case None:
            return ToolFailure("failed", "The connection was lost.")
        case other:
            return ToolFailure("failed", f"Its answer cannot be used ({type(other).__name__}).")


def _innermost(failure: BaseException | None) -> BaseException | None:
    """The first failure in a group of them, which the package's tasks end with."""
    while isinstance(failure, BaseExceptionGroup):
        failure = cast("BaseExceptionGroup[BaseException]", failure).exceptions[0]
    return failure

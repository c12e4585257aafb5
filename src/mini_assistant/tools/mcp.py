"""Tools of MCP servers that an assistant or a run names: what a run is offered of them, and their calls.

The connections themselves are in `mcp_connection.py`, which loads the `mcp` package. That takes half a second, so it is imported by the
first run that has such a tool, in a thread.
"""

import asyncio
import hashlib
import re
from collections.abc import Callable, Collection, Iterable, Mapping
from importlib import import_module
from typing import Any, NamedTuple, Protocol

from msgspec import UNSET

from mini_assistant.assistants.schema import FunctionTool, McpTool
from mini_assistant.errors import ToolFailure
from mini_assistant.models.base import ToolDefinition
from mini_assistant.runs.schema import Run

_CONNECTION_MODULE = "mini_assistant.tools.mcp_connection"
_NAME_CHARACTERS_MAX = 64
_NAME_DIGEST_CHARACTERS = 8
_DESCRIPTION_CHARACTERS_MAX = 4096


class McpSettings(Protocol):
    """What is read here of the server's `Settings`."""

    @property
    def private_addresses(self) -> bool: ...
    @property
    def mcp_timeout_seconds(self) -> float: ...
    @property
    def mcp_connect_timeout_seconds(self) -> float: ...
    @property
    def mcp_output_characters_max(self) -> int: ...
    @property
    def mcp_tools_max(self) -> int: ...


class ListedTool(NamedTuple):
    """A tool as its server describes it. parameters: the JSON schema of its arguments."""

    name: str
    description: str | None
    parameters: dict[str, Any]


class Connection(Protocol):
    """What is asked of a server. One connection is used by one run."""

    async def list_tools(self, wanted: Collection[str] | None) -> list[ListedTool]:
        """The server's tools with the names `wanted`, or all of them when that is None. Raises ToolFailure."""
        ...

    async def call(self, name: str, arguments: Mapping[str, Any]) -> str:
        """Call a tool; returns its output as the model reads it. Raises ToolFailure when the server cannot be asked or the tool fails."""
        ...

    async def close(self) -> None:
        """End the connection; does nothing when there is none."""
        ...


class _OfferedTool(NamedTuple):
    """A tool as the model is offered it, under the definition's name; `name` is the server's own."""

    connection: Connection
    name: str
    needs_approval: bool
    definition: ToolDefinition


class McpServers:
    """The MCP servers of one run, while one worker executes it. `close` has to be called in the end."""

    def __init__(self, settings: McpSettings, run: Run) -> None:
        self._settings = settings
        self._tools = [tool for tool in run.tools if isinstance(tool, McpTool)]
        self._functions = {tool.function.name for tool in run.tools if isinstance(tool, FunctionTool)}
        self._connections: dict[str, Connection] = {}
        self._offered: dict[str, _OfferedTool] = {}

    async def prepare(self, hosted_names: Iterable[str]) -> None:
        """Connect to all servers and learn what they offer. hosted_names: names that the server's own tools have taken.

        Raises ToolFailure, with a message for the owner of the run that names the server by its label, when one cannot be used.
        """
        if not self._tools:
            return
        module = await asyncio.to_thread(import_module, _CONNECTION_MODULE)
        new_connection: Callable[[McpTool, McpSettings], Connection] = module.McpConnection
        self._connections = {tool.server_label: new_connection(tool, self._settings) for tool in self._tools}
        listing_tasks = [asyncio.create_task(self._listed(tool)) for tool in self._tools]
        try:
            listings = await asyncio.gather(*listing_tasks)
        finally:
            for task in listing_tasks:
                task.cancel()  # when one server cannot be used, the others need not answer
        taken = {*self._functions, *hosted_names}
        for tool, listing in zip(self._tools, listings, strict=True):
            for listed in listing:
                name = offered_name(tool.server_label, listed.name, taken)
                definition = ToolDefinition(name, listed.parameters, (listed.description or "")[:_DESCRIPTION_CHARACTERS_MAX] or None)
                connection = self._connections[tool.server_label]
                self._offered[name] = _OfferedTool(connection, listed.name, needs_approval(tool, listed.name), definition)
                taken.add(name)

    async def _listed(self, tool: McpTool) -> list[ListedTool]:
        try:
            return await self._connections[tool.server_label].list_tools(tool.allowed_tools)
        except ToolFailure as failure:
            raise ToolFailure(failure.kind, f"The MCP server '{tool.server_label}' cannot be used: {failure.message}") from failure

    @property
    def definitions(self) -> list[ToolDefinition]:
        """The tools as the model is offered them."""
        return [tool.definition for tool in self._offered.values()]

    def offers(self, name: str) -> bool:
        """Whether the model means a tool of one of the servers by this name."""
        return name in self._offered

    def needs_approval(self, name: str) -> bool:
        """Whether the client has to approve calls of an offered tool."""
        return self._offered[name].needs_approval

    async def call(self, name: str, arguments: Mapping[str, Any]) -> str:
        """Call a tool by the name that the model knows; returns its output. Raises ToolFailure."""
        tool = self._offered.get(name)
        if tool is None:
            raise ToolFailure("not_found", f"The tool '{name[:_NAME_CHARACTERS_MAX]}' is not offered by its MCP server any more.")
        return await tool.connection.call(tool.name, arguments)

    async def close(self) -> None:
        """End all connections."""
        connections, self._connections, self._offered = self._connections, {}, {}
        await asyncio.gather(*(connection.close() for connection in connections.values()))


def needs_approval(tool: McpTool, name: str) -> bool:
    """Whether calls of the server's tool `name` wait for the client; a tool that is not mentioned does."""
    if isinstance(tool.require_approval, str):
        return tool.require_approval == "always"
    always, never = tool.require_approval.always, tool.require_approval.never
    if always is not UNSET and name in always.tool_names:
        return True
    return never is UNSET or name not in never.tool_names


def offered_name(label: str, name: str, taken: Collection[str]) -> str:
    """The name under which the model is offered a server's tool: `label__name` where that is a name of a function.

    Where it is not, or is `taken`, the name is changed and ends with a digest. It depends on nothing else, so it stays the same while a
    run goes on, in whatever order the server lists its tools.
    """
    plain = f"{label}__{name}"
    fitting = re.sub(r"[^a-zA-Z0-9_-]", "_", plain)
    if fitting == plain and len(plain) <= _NAME_CHARACTERS_MAX and plain not in taken:
        return plain
    digest = hashlib.sha256(plain.encode()).hexdigest()[:_NAME_DIGEST_CHARACTERS]
    return f"{fitting[: _NAME_CHARACTERS_MAX - _NAME_DIGEST_CHARACTERS - 1]}_{digest}"

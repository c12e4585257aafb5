"""An MCP server as a process of its own, with tools that are good and bad in known ways.

`python -m tests.mcp_server [--port 0] [--plain-json] [--handshake]` prints its URL in one line when it accepts connections. With
`--handshake` it speaks the protocol as it was before 2026, with sessions. It also answers `GET /seen`, outside of the protocol: see `Seen`.
"""

import argparse
import asyncio
import logging
import socket
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import uvicorn
from mcp.server.mcpserver import MCPServer
from mcp_types import CallToolResult, ImageContent, ResourceLink, TextContent
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp, Receive, Scope, Send


class Seen:
    """What has come in: the headers of the last request, the tools that were called and those whose calls were cancelled, sessions that
    were begun and ended by the client, and connections that are open, of which one asks for this."""

    def __init__(self) -> None:
        self.headers: dict[str, str] = {}
        self.calls: list[str] = []
        self.cancelled: list[str] = []
        self.deleted = 0
        self.connections: Callable[[], int] = lambda: 0


def build(seen: Seen) -> MCPServer[Any]:
    """The server with its tools."""
    server: MCPServer[Any] = MCPServer("test")

    @server.tool(description="Adds two numbers.", structured_output=False)
    async def add(a: int, b: int) -> str:
        seen.calls.append("add")
        return str(a + b)

    @server.tool(name="with.dots", structured_output=False)
    async def with_dots() -> str:
        return "dotted"

    @server.tool(structured_output=False)
    async def fail() -> str:
        raise ValueError("the lamp is broken")

    @server.tool(structured_output=False)
    async def say_error() -> CallToolResult:
        return CallToolResult(content=[TextContent(type="text", text="no such page")], is_error=True)

    @server.tool(structured_output=False)
    async def sleep(seconds: float) -> str:
        seen.calls.append("sleep")
        try:
            await asyncio.sleep(seconds)
        except asyncio.CancelledError:
            seen.cancelled.append("sleep")
            raise
        return "slept"

    @server.tool(structured_output=False)
    async def sleep_first() -> str:
        seen.calls.append("sleep_first")
        await asyncio.sleep(60 if seen.calls.count("sleep_first") == 1 else 0)
        return "awake"

    @server.tool(structured_output=False)
    async def write(characters: int) -> str:
        return "x" * characters

    @server.tool(structured_output=False)
    async def show() -> CallToolResult:
        image = ImageContent(type="image", data="AAAA", mime_type="image/png")
        link = ResourceLink(type="resource_link", name="page", uri="docs://page")
        return CallToolResult(content=[TextContent(type="text", text="Look:"), image, link])

    @server.custom_route("/seen", ["GET"])
    async def what_was_seen(_: Request) -> Response:
        shown = {"headers": seen.headers, "calls": seen.calls, "cancelled": seen.cancelled, "deleted": seen.deleted}
        return JSONResponse({**shown, "connections": seen.connections()})

    return server


def watched(app: ASGIApp, seen: Seen, *, handshake: bool) -> ASGIApp:
    """The application, behind something that notes what comes in. `/elsewhere` redirects to an address of a private network."""

    async def serve(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["path"] == "/mcp":
            seen.headers = {name.decode(): value.decode() for name, value in scope["headers"]}
            seen.deleted += scope["method"] == "DELETE"
            if handshake and seen.headers.get("mcp-method") == "server/discover":
                await send({"type": "http.response.start", "status": 404, "headers": []})
                await send({"type": "http.response.body", "body": b""})
                return
        if scope["type"] == "http" and scope["path"] == "/elsewhere":
            await send({"type": "http.response.start", "status": 307, "headers": [(b"location", b"http://169.254.169.254/mcp")]})
            await send({"type": "http.response.body", "body": b""})
            return
        await app(scope, receive, send)

    return serve


def main() -> None:
    """Serve until the process is ended."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--plain-json", action="store_true")
    parser.add_argument("--handshake", action="store_true")
    options = parser.parse_args()
    seen = Seen()
    app = build(seen).streamable_http_app(json_response=options.plain_json)
    listener = socket.create_server(("127.0.0.1", options.port))
    logging.disable(logging.CRITICAL)  # failures are what it is for
    print(f"http://127.0.0.1:{listener.getsockname()[1]}/mcp", flush=True)
    server = uvicorn.Server(uvicorn.Config(watched(app, seen, handshake=options.handshake), log_config=None))
    seen.connections = lambda: len(server.server_state.connections)
    with suppress(KeyboardInterrupt):
        server.run(sockets=[listener])


if __name__ == "__main__":
    main()

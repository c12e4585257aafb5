"""The server that browsers are pointed at: a process of its own, whose model is a scripted endpoint in a thread of the tests."""

import asyncio
import contextlib
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import openai

from mini_assistant.models.script import Script
from mini_assistant.models.scripted import ScriptedEndpoint
from tests.server_process import ServerProcess


class PlaygroundServer:
    """A running server. `address` is without `/v1` and `/playground/`; `sdk` is the official SDK, pointed at it."""

    def __init__(self, address: str, endpoint: ScriptedEndpoint, key: str) -> None:
        self.address = address
        self.endpoint = endpoint
        self.sdk = openai.OpenAI(base_url=f"{address}/v1", api_key=key or "none-needed", max_retries=0, timeout=20)

    def script(self, *rules: dict[str, Any]) -> None:
        """Let the model answer by these rules (`models/script.py`), in the place of those before; without any, by its default."""
        self.endpoint.script = msgspec.convert({"rules": rules}, Script)


@contextlib.contextmanager
def playground_server(data_dir: Path, *, key: str = "", **environment: str) -> Iterator[PlaygroundServer]:
    """A new server. key: the one that it asks for, empty for none. environment: more settings, as `MINI_ASSISTANT_…`."""
    with _endpoint_in_thread() as endpoint:
        settings = {
            "OPENAI_BASE_URL": endpoint.base_url,
            "MINI_ASSISTANT_MODEL_RETRIES_MAX": "0",
            "MINI_ASSISTANT_SANDBOX": "unsafe",  # what isolates code makes no difference to what is shown of it
        }
        process = ServerProcess(data_dir, {**settings, **({"MINI_ASSISTANT_API_KEYS": key} if key else {}), **environment})
        try:
            process.start()
            server = PlaygroundServer(process.address, endpoint, key)
            with server.sdk:
                yield server
        finally:
            status = process.stop()
        assert status == 0


@contextlib.contextmanager
def _endpoint_in_thread() -> Iterator[ScriptedEndpoint]:
    """The scripted endpoint with an event loop of its own: that of this thread belongs to the driver of the browser."""
    endpoint = ScriptedEndpoint()
    is_ready = threading.Event()
    loop = asyncio.new_event_loop()
    is_over = asyncio.Event()

    async def answer() -> None:
        async with endpoint:
            is_ready.set()
            await is_over.wait()

    thread = threading.Thread(target=lambda: loop.run_until_complete(answer()), name="scripted endpoint")
    thread.start()
    try:
        assert is_ready.wait(timeout=20)
        yield endpoint
    finally:
        loop.call_soon_threadsafe(is_over.set)
        thread.join(timeout=20)
        loop.close()

"""Fixtures of all tiers. Everything real: SQLite on disk, HTTP on loopback; only the model is scripted, and it is an HTTP endpoint too."""

from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
import openai
import pytest

from mini_assistant.app import running_server
from mini_assistant.models.scripted import ScriptedEndpoint
from mini_assistant.settings import Settings
from tests.postgres_server import postgres, postgres_url  # noqa: F401 - fixtures
from tests.s3_server import s3, s3_bucket  # noqa: F401 - fixtures
from tests.sandboxed import why_not
from tests.time_limit import time_limit  # noqa: F401 - every test is bounded


@pytest.fixture
async def endpoint() -> AsyncIterator[ScriptedEndpoint]:
    """A model endpoint that answers by a script; `endpoint.script` may be replaced in the test."""
    async with ScriptedEndpoint() as endpoint:
        yield endpoint


@pytest.fixture
def settings(tmp_path: Path, endpoint: ScriptedEndpoint) -> Settings:
    """Settings of a server on a free port whose every model is the scripted endpoint."""
    return Settings(port=0, data_dir=tmp_path / "data", openai_base_url=endpoint.base_url, model_retries_max=0, sandbox="none")


@pytest.fixture
def process_sandbox() -> None:
    """For tests that run code: skips them, with the reason, where the sandbox `process` does not work."""
    if reason := why_not("process"):
        pytest.skip(reason)


@pytest.fixture
async def server(settings: Settings) -> AsyncIterator[str]:
    """The whole server inside this process; gives its address without `/v1`."""
    async with running_server(settings) as address:
        yield address


@pytest.fixture
async def sdk(server: str) -> AsyncIterator[openai.AsyncOpenAI]:
    """The official SDK, pointed at the server."""
    async with openai.AsyncOpenAI(base_url=f"{server}/v1", api_key="test-key", max_retries=0, timeout=20) as client:
        yield client


@pytest.fixture
async def http(server: str) -> AsyncIterator[aiohttp.ClientSession]:
    """A plain client for what the SDK would not send."""
    async with aiohttp.ClientSession(base_url=server, timeout=aiohttp.ClientTimeout(total=20)) as session:
        yield session

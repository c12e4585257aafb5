"""Fixtures of the conformance tests: the official SDK with every body that it gets checked strictly, and servers with other settings."""

import dataclasses
import re
from collections.abc import AsyncIterator

import openai
import pytest

from mini_assistant.settings import Settings
from tests.conformance.strictness import check_body, check_error


@pytest.fixture
def settings(settings: Settings, request: pytest.FixtureRequest) -> Settings:
    """The settings of all tests, with the changes that `@server_with(...)` names."""
    return dataclasses.replace(settings, **getattr(request, "param", {}))


@pytest.fixture
async def sdk(server: str) -> AsyncIterator[openai.AsyncOpenAI]:
    """The official SDK; a body that is not strictly of its type fails the test."""
    hooks = {"response": [_check_response]}
    http_client = openai.DefaultAsyncHttpxClient(event_hooks=hooks, trust_env=False, verify=False)
    async with openai.AsyncOpenAI(
        base_url=f"{server}/v1", api_key="test-key", max_retries=0, timeout=20, http_client=http_client
    ) as client:
        yield client


async def _check_response(response) -> None:  # type: ignore[no-untyped-def]  # of the HTTP library that the SDK brings along
    assert re.fullmatch("req_[0-9a-f]{32}", response.headers["x-request-id"])
    assert response.headers["openai-processing-ms"].isdigit()
    if response.headers["content-type"] == "application/json":
        await response.aread()
        if response.status_code == 200:
            check_body(response.content)
        else:
            check_error(response.content)
    else:
        assert response.headers["content-type"] in ("text/event-stream; charset=utf-8", "application/octet-stream")

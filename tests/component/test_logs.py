"""The log of a process: every line says of what it speaks, nobody can forge one, and nothing that users say or keep secret is in it."""

import asyncio
import json
import logging
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import aiohttp
import openai
import pytest

from mini_assistant import logs
from mini_assistant.logs import JsonFormatter, TextFormatter
from mini_assistant.models.script import Respond, Rule, Script, ScriptedCall, Text, ToolCalls
from mini_assistant.models.scripted import ScriptedEndpoint
from tests.server_process import ServerProcess

FORGED = "2026-11-25T14:51:43.123Z ERROR mini_assistant: forged"
KEY = "sk-client-0123456789abcdef"
PROVIDER_KEY = "sk-provider-0123456789abcdef"
# Said by the user, the model, the tool and the file; each by nobody else.
SAID, ANSWERED, ARGUED, FILED = "zebra-said-4711", "zebra-answered-4712", "zebra-argued-4713", "zebra-filed-4714"
_LINE = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z (DEBUG|INFO|WARNING|ERROR|CRITICAL) ([\w.]+) ")

HOSTILE = [
    f"a\n{FORGED}",
    f"a\r\n{FORGED}",
    f"a\x1b[2K\x1b[1G{FORGED}",
    f"a\x85{FORGED}",
    f"a\u2028{FORGED}",
    f"a\x9b2K{FORGED}",
    f"a\u202e{FORGED}",
    f"a\x00\x08\x7f{FORGED}",
    f"a\ud800{FORGED}",
]


def record(message: str, *args: Any, exc_info: Any = None) -> logging.LogRecord:
    return logging.LogRecord("mini_assistant.runs", logging.WARNING, "x.py", 1, message, args, exc_info)


@pytest.fixture
def context() -> Iterator[None]:
    """A line that speaks of a request, a run and a project."""
    tokens = [
        (variable, variable.set(value)) for variable, value in ((logs.request_id, "req_1"), (logs.run_id, "run_1"), (logs.project_id, "p"))
    ]
    yield
    for variable, token in tokens:
        variable.reset(token)


@pytest.mark.parametrize("hostile", HOSTILE)
def test_a_text_is_one_printable_line_whatever_is_in_it(hostile: str) -> None:
    line = TextFormatter().format(record("file %s failed", hostile))

    assert line.isprintable()
    assert line.encode().isascii() or "\\" in line
    assert _LINE.match(line)
    assert len(line.splitlines()) == 1


@pytest.mark.parametrize("hostile", HOSTILE)
def test_an_object_is_one_line_of_ascii_whatever_is_in_it(hostile: str) -> None:
    line = JsonFormatter().format(record("file %s failed", hostile))

    assert line.isascii()
    assert len(line.splitlines()) == 1
    assert json.loads(line)["message"] == f"file {hostile} failed"


def test_a_traceback_is_indented_so_that_its_lines_are_nobody_elses() -> None:
    try:
        raise ValueError(f"x\n{FORGED}\n\x1b[31m")
    except ValueError:
        line = TextFormatter().format(record("broke", exc_info=sys.exc_info()))
        as_json = JsonFormatter().format(record("broke", exc_info=sys.exc_info()))

    first, *rest = line.splitlines()
    assert first.endswith("WARNING mini_assistant.runs broke")
    assert rest[0] == "    | Traceback (most recent call last):"
    assert all(line.startswith("    | ") and line.isprintable() for line in rest)
    assert "ValueError: x" in json.loads(as_json)["exception"]
    assert len(as_json.splitlines()) == 1


@pytest.mark.usefixtures("context")
def test_a_line_bears_the_ids_of_what_it_speaks_of() -> None:
    assert " WARNING mini_assistant.runs [request_id=req_1 run_id=run_1 project_id=p] hello" in TextFormatter().format(record("hello"))
    told = json.loads(JsonFormatter().format(record("hello")))
    assert told.pop("time").endswith("Z")
    assert told == {
        "level": "warning",
        "logger": "mini_assistant.runs",
        "message": "hello",
        "request_id": "req_1",
        "run_id": "run_1",
        "project_id": "p",
    }


def test_ids_that_are_not_known_are_left_out() -> None:
    assert set(json.loads(JsonFormatter().format(record("hello")))) == {"time", "level", "logger", "message"}
    assert TextFormatter().format(record("hello")).endswith("WARNING mini_assistant.runs hello")


def server_process(folder: Path, endpoint: ScriptedEndpoint, log_format: str) -> ServerProcess:
    return ServerProcess(
        folder,
        {
            "MINI_ASSISTANT_LOG_FORMAT": log_format,
            "MINI_ASSISTANT_REQUEST_LOG": "true",
            "MINI_ASSISTANT_API_KEYS": KEY,
            "MINI_ASSISTANT_SANDBOX": "none",
            "MINI_ASSISTANT_MODEL_RETRIES_MAX": "0",
            "OPENAI_BASE_URL": endpoint.base_url,
            "OPENAI_API_KEY": PROVIDER_KEY,
        },
    )


async def talk(address: str, endpoint: ScriptedEndpoint) -> tuple[str, str]:
    """A run that calls a function and answers, one that fails, and a file and a path with hostile names; gives the ids of the runs."""
    call = ToolCalls([ScriptedCall("f", json.dumps({"a": ARGUED}))])
    endpoint.script = Script([Rule([call], times=1), Rule([Text(ANSWERED)], times=1), Rule([Respond(500, {"error": {"message": "down"}})])])
    async with openai.AsyncOpenAI(base_url=f"{address}/v1", api_key=KEY, max_retries=0) as sdk:
        assistant = await sdk.beta.assistants.create(model="m", instructions=SAID, tools=[{"type": "function", "function": {"name": "f"}}])
        thread: Any = {"messages": [{"role": "user", "content": SAID}]}
        first = await sdk.beta.threads.create_and_run(assistant_id=assistant.id, thread=thread)
        first = await sdk.beta.threads.runs.poll(first.id, thread_id=first.thread_id, poll_interval_ms=20)
        assert first.required_action is not None
        outputs: Any = [{"tool_call_id": call.id, "output": SAID} for call in first.required_action.submit_tool_outputs.tool_calls]
        await sdk.beta.threads.runs.submit_tool_outputs(first.id, thread_id=first.thread_id, tool_outputs=outputs)
        first = await sdk.beta.threads.runs.poll(first.id, thread_id=first.thread_id, poll_interval_ms=20)
        assert first.status == "completed"
        second = await sdk.beta.threads.create_and_run(assistant_id=assistant.id, thread=thread)
        second = await sdk.beta.threads.runs.poll(second.id, thread_id=second.thread_id, poll_interval_ms=20)
        assert second.status == "failed"
        file = await sdk.files.create(file=(f"a\n{FORGED}.txt", FILED.encode()), purpose="assistants")
        store = await sdk.vector_stores.create(file_ids=[file.id])
        while (await sdk.vector_stores.retrieve(store.id)).file_counts.in_progress:  # noqa: ASYNC110 - polled
            await asyncio.sleep(0.02)
    async with (
        aiohttp.ClientSession(address, headers={"Authorization": "Bearer sk-wrong-0123456789"}) as http,
        http.get(f"/v1/files/%0A{FORGED.replace(' ', '%20')}%1B[2K") as response,
    ):
        assert response.status == 401
    return first.id, second.id


async def told(folder: Path, endpoint: ScriptedEndpoint, log_format: str, capfd: pytest.CaptureFixture[str]) -> tuple[str, str, str]:
    """The log of a server that was talked to, and the ids of the runs."""
    server = server_process(folder, endpoint, log_format)
    try:
        await asyncio.to_thread(server.start)
        async with asyncio.timeout(40):
            first, second = await talk(server.address, endpoint)
    finally:
        if server.is_running:
            await asyncio.to_thread(server.stop)
    log = capfd.readouterr().err
    for secret in (KEY, PROVIDER_KEY, "sk-wrong-0123456789", SAID, ANSWERED, ARGUED, FILED):
        assert secret not in log
    return log, first, second


async def test_the_log_of_a_server_is_objects_that_say_of_what_they_speak(
    tmp_path: Path, endpoint: ScriptedEndpoint, capfd: pytest.CaptureFixture[str]
) -> None:
    log, _, failed = await told(tmp_path, endpoint, "json", capfd)
    lines = [json.loads(line) for line in log.splitlines()]

    assert all({"time", "level", "logger", "message"} <= set(line) for line in lines)
    of_requests = [line for line in lines if line["logger"] == "mini_assistant.http"]
    assert len(of_requests) > 10
    assert all(line["request_id"].startswith("req_") and "run_id" not in line for line in of_requests)
    assert all(line["project_id"] == "default" for line in of_requests if " 401 " not in line["message"])
    of_runs = [line for line in lines if line["logger"].startswith("mini_assistant.runs")]
    assert [line["run_id"] for line in of_runs if line["level"] == "warning"] == [failed]
    assert all(line["project_id"] == "default" and "request_id" not in line for line in of_runs)


async def test_no_line_of_the_log_of_a_server_is_forged(
    tmp_path: Path, endpoint: ScriptedEndpoint, capfd: pytest.CaptureFixture[str]
) -> None:
    log, _, failed = await told(tmp_path, endpoint, "text", capfd)
    lines = log.splitlines()

    assert all(_LINE.match(line) and line.isprintable() for line in lines)
    assert not [line for line in lines if line.startswith(FORGED)]
    assert [line for line in lines if "\\n2026-11-25" in line]
    assert [line for line in lines if f"run_id={failed} project_id=default] " in line]

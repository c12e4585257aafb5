"""Clients that talk to a server which is killed and started again under them, and remember everything that it has told them.

A client that gets no answer waits for the server and goes on from what it then finds, as a careful user would.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import msgspec
from openai.lib.streaming._deltas import accumulate_delta

from mini_assistant.models.script import Rule, Script, ScriptedCall, Text, ToolCalls
from tests.server_process import ServerProcess

Json = dict[str, Any]

TERMINAL = {"completed", "incomplete", "failed", "cancelled", "expired"}
FUNCTION = {"type": "function", "function": {"name": "look", "parameters": {"type": "object", "properties": {"x": {"type": "integer"}}}}}


@dataclass(frozen=True)
class Kind:
    """What a conversation is about: the script of the model, and what has to be there in the end."""

    name: str
    rules: Sequence[Rule]
    texts: Sequence[str]
    steps: Sequence[str]
    calls: int = 0


def _kinds() -> list[Kind]:
    call, calls = ScriptedCall("look", '{"x": 1}'), [ScriptedCall("look", '{"x": 1}'), ScriptedCall("look", '{"x": 2}')]
    answer = Text([f"word{number} " for number in range(12)], delay_seconds=0.02)
    long_text = "".join(answer.text)
    return [
        Kind("plain text", [Rule([answer], contains="plain text")], [long_text], ["message_creation"]),
        Kind(
            "one call",
            [
                Rule([answer], contains="one call", after_tool=True),
                Rule([ToolCalls([call], pieces=4, delay_seconds=0.03)], contains="one call"),
            ],
            [long_text],
            ["tool_calls", "message_creation"],
            calls=1,
        ),
        Kind(
            "text and two calls",
            [
                Rule([Text("It is so.")], contains="text and two calls", after_tool=True),
                Rule(
                    [Text(["Let ", "me ", "look. "], delay_seconds=0.03), ToolCalls(calls, delay_seconds=0.03)],
                    contains="text and two calls",
                ),
            ],
            ["Let me look. ", "It is so."],
            ["message_creation", "tool_calls", "message_creation"],
            calls=2,
        ),
    ]


KINDS = _kinds()
SCRIPT = Script([rule for kind in KINDS for rule in kind.rules])


class ServerGone(Exception):
    """There was no answer, or only half of one."""


class KilledServer:
    """A server that is killed now and then. What it has acknowledged is remembered by path, and looked up again after each start."""

    def __init__(self, data_dir: Path, environment: dict[str, str]) -> None:
        self._process = ServerProcess(data_dir, environment)
        self._session: aiohttp.ClientSession | None = None
        self._settled: dict[str, Json] = {}
        self.is_up = asyncio.Event()

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator["KilledServer"]:
        async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=20)) as self._session:
            await asyncio.to_thread(self._process.start)
            self.is_up.set()
            try:
                yield self
            finally:
                await asyncio.to_thread(self._process.stop)

    async def kill_and_restart(self) -> None:
        """Kill it, start it on the same rows, and see that everything it had acknowledged is there, unchanged."""
        self.is_up.clear()
        await asyncio.to_thread(self._process.kill)
        await asyncio.to_thread(self._process.start)
        await self.check_settled()
        self.is_up.set()

    async def check_settled(self) -> None:
        for path, body in list(self._settled.items()):
            assert await self.get(path) == body, f"{path} has changed"

    def settle(self, path: str, body: Json) -> None:
        """An object that has been told and may not change any more."""
        assert self._settled.setdefault(path, body) == body, f"{path} has changed"

    async def get(self, path: str) -> Json:
        return await self._call("GET", path, None)

    async def post(self, path: str, body: Json) -> Json:
        return await self._call("POST", path, body)

    async def _call(self, method: str, path: str, body: Json | None) -> Json:
        assert self._session is not None
        try:
            async with self._session.request(method, self._process.address + "/v1" + path, json=body) as answer:
                text = await answer.text()
        except aiohttp.ClientError as exc:
            raise ServerGone from exc
        assert answer.status == 200, f"{method} {path}: {answer.status} {text}"
        return msgspec.json.decode(text)

    async def events(self, path: str) -> list[tuple[str, str, Json]]:
        """A whole stream as (id, name, data)."""
        assert self._session is not None
        try:
            async with self._session.get(self._process.address + "/v1" + path) as answer:
                frames = (await answer.text()).split("\n\n")
        except aiohttp.ClientError as exc:
            raise ServerGone from exc
        told = [dict(line.split(": ", 1) for line in frame.splitlines() if not line.startswith(":")) for frame in frames if frame]
        if not told or told[-1]["event"] != "done":
            raise ServerGone
        return [(event.get("id", ""), event["event"], msgspec.json.decode(event["data"])) for event in told[:-1]]


class Conversation:
    """One thread with one run, carried to its end through any number of kills."""

    def __init__(self, server: KilledServer, kind: Kind, number: int) -> None:
        self.server, self.kind = server, kind
        self.text = f"{kind.name}, number {number}"
        self.assistant: Json | None = None
        self.thread: Json | None = None
        self.run: Json | None = None
        self.outputs: dict[str, str] = {}

    async def carry_on(self) -> None:
        """Go on until the run has ended."""
        while True:
            try:
                await self._go_on()
                return
            except ServerGone:
                await asyncio.sleep(0.001)  # the one who kills has to say so first
                await self.server.is_up.wait()

    async def _go_on(self) -> None:
        server = self.server
        if self.assistant is None:
            self.assistant = await server.post("/assistants", {"model": "scripted", "tools": [FUNCTION], "name": self.text})
            server.settle(f"/assistants/{self.assistant['id']}", self.assistant)
        if self.thread is None:
            body = {"messages": [{"role": "user", "content": self.text}], "metadata": {"of": self.text}}
            self.thread = await server.post("/threads", body)
            server.settle(f"/threads/{self.thread['id']}", self.thread)
        if self.run is None:
            # A call without an answer may have been carried out all the same.
            made = (await server.get(self.path("/runs")))["data"]
            assert len(made) <= 1
            self.run = made[0] if made else await server.post(self.path("/runs"), {"assistant_id": self.assistant["id"]})
        while self.run["status"] not in TERMINAL:
            self.run = await server.get(self.run_path())
            await self._remember_what_is_finished()
            if self.run["status"] == "requires_action":
                await self._submit(self.run["required_action"]["submit_tool_outputs"]["tool_calls"])
            await asyncio.sleep(0.01)
        self.server.settle(self.run_path(), self.run)

    def path(self, rest: str = "") -> str:
        assert self.thread is not None
        return f"/threads/{self.thread['id']}{rest}"

    def run_path(self, rest: str = "") -> str:
        assert self.run is not None
        return self.path(f"/runs/{self.run['id']}{rest}")

    async def _submit(self, calls: list[Json]) -> None:
        outputs = {call["id"]: f"seen by {call['id']}" for call in calls}
        body = {"tool_outputs": [{"tool_call_id": call_id, "output": output} for call_id, output in outputs.items()]}
        answer = await self.server.post(self.run_path("/submit_tool_outputs"), body)
        assert answer["status"] == "queued"
        self.outputs |= outputs

    async def _remember_what_is_finished(self) -> None:
        for step in (await self.server.get(self.run_path("/steps")))["data"]:
            if step["status"] != "in_progress":
                self.server.settle(self.run_path(f"/steps/{step['id']}"), step)
        for message in (await self.server.get(self.path("/messages")))["data"]:
            if message["status"] != "in_progress":
                self.server.settle(self.path(f"/messages/{message['id']}"), message)

    # --- in the end -----------------------------------------------------------------------------------------------------------

    async def check(self) -> None:
        """Everything expected is there once, the events tell the same, and the thread is free."""
        run = await self.server.get(self.run_path())
        assert (run["status"], run["last_error"], run["required_action"], run["expires_at"]) == ("completed", None, None, None), self.text
        messages = (await self.server.get(self.path("/messages?order=asc")))["data"]
        assert [texts_of(message) for message in messages] == [self.text, *self.kind.texts]
        assert {message["status"] for message in messages} == {"completed"}
        steps = (await self.server.get(self.run_path("/steps?order=asc")))["data"]
        assert [step["type"] for step in steps] == list(self.kind.steps)
        assert {step["status"] for step in steps} == {"completed"}
        calls = [call for step in steps for call in step["step_details"].get("tool_calls", [])]
        assert len(calls) == self.kind.calls
        for call in calls:
            assert call["function"]["output"] == f"seen by {call['id']}"
        assert set(self.outputs) <= {call["id"] for call in calls}, "outputs that were accepted are kept"
        totals = ("prompt_tokens", "completion_tokens", "total_tokens")
        assert {name: run["usage"][name] for name in totals} == {
            name: sum((s["usage"] or {name: 0})[name] for s in steps) for name in totals
        }
        check_story(await self.server.events(self.run_path("/events")), run, steps, messages[1:])
        await self.server.post(self.path("/messages"), {"role": "user", "content": "The thread is free."})


def texts_of(message: Json) -> str:
    return "".join(part["text"]["value"] for part in message["content"])


def check_story(events: list[tuple[str, str, Json]], run: Json, steps: list[Json], messages: list[Json]) -> None:
    """The events from the start lead to the same objects, by their last states and by their deltas."""
    rows = [(event_id, name, data) for event_id, name, data in events if "delta" not in name]
    assert [int(event_id.split("-")[1]) for event_id, _, _ in rows] == list(range(1, len(rows) + 1)), "numbered without gaps"
    attempts = [int(event_id.split("-")[0]) for event_id, _, _ in rows]
    assert attempts == sorted(attempts)
    final: dict[str, Json] = {data["id"]: data for _, _, data in rows}
    assert [final[item["id"]] for item in (run, *steps, *messages)] == [run, *steps, *messages]
    assert len(final) == 1 + len(steps) + len(messages), "nothing else was told"
    created = [data["id"] for _, name, data in rows if name.endswith(".created")]
    assert sorted(created) == sorted(final)
    told: dict[str, Json] = {}
    for _, name, data in events:
        if "delta" in name:
            told[data["id"]] = accumulate_delta(told.get(data["id"], {}), data["delta"])
    for message in messages:
        assert message["id"] in told, [(event_id, name) for event_id, name, _ in events]
        assert texts_of(told[message["id"]]) == texts_of(message)
    for step in steps:
        if step["type"] == "tool_calls":
            shown = told[step["id"]]["step_details"]["tool_calls"]
            assert [(call["id"], call["function"]["arguments"]) for call in shown] == [
                (call["id"], call["function"]["arguments"]) for call in step["step_details"]["tool_calls"]
            ]

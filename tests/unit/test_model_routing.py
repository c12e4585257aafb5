"""Which provider serves a model's name, and the usage of turns that a provider did not count."""

import asyncio
import contextlib

import pytest

from mini_assistant.errors import ModelError
from mini_assistant.models.base import (
    Capabilities,
    ChatMessage,
    ChatRequest,
    Finished,
    RefusalDelta,
    TextDelta,
    TokenUsage,
    ToolCallDelta,
    ToolDefinition,
)
from mini_assistant.models.provider_limits import ProviderLimits, limits_of
from mini_assistant.models.routing import Route, RoutedModels, find_route, provider_names
from mini_assistant.models.tokens import count_prompt_tokens
from mini_assistant.settings import ModelSettings, ProviderSettings, Settings

ONE = ProviderSettings(base_url="http://127.0.0.1:1/v1")
BUILTIN_CAPABILITIES = Capabilities(context_window_tokens=2048, tools=False)
LLAMA = ModelSettings(provider="local", upstream_name="llama3.1:8b", context_window_tokens=8192)
PHI = ModelSettings(provider="other")
SMALL = ModelSettings(provider="builtin")

CONFIGURED = Settings(
    providers={"local": ONE, "other": ONE},
    models={"llama3.1": LLAMA, "phi": PHI, "small": SMALL},
    aliases={"gpt-4o": "llama3.1", "gpt-*": "phi", "gpt-3.5*": "small", "*": "llama3.1"},
)


class RecordingProvider:
    """Gives out the deltas that it was made with, and keeps what it was asked."""

    def __init__(self, *lists, line="fine", failure=None):
        self.lists = lists
        self.line = line
        self.failure = failure
        self.asked = []
        self.open_streams = 0
        self.is_closed = False

    async def stream(self, request, capabilities):
        self.asked.append((request, capabilities))
        self.open_streams += 1
        try:
            for deltas in self.lists:
                yield deltas
        finally:
            self.open_streams -= 1

    async def check(self):
        if self.failure is not None:
            raise self.failure
        return self.line

    async def close(self):
        self.is_closed = True
        if self.failure is not None:
            raise self.failure


def routed(settings=CONFIGURED, **providers):
    return RoutedModels(settings, providers, BUILTIN_CAPABILITIES)


# --- names -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "route"),
    [
        ("llama3.1", Route("local", "llama3.1:8b", LLAMA)),
        ("phi", Route("other", "phi", PHI)),
        ("gpt-4o", Route("local", "llama3.1:8b", LLAMA)),
        ("gpt-4o-mini", Route("other", "phi", PHI)),
        ("gpt-3.5-turbo", Route("builtin", "small")),
        ("claude", Route("local", "llama3.1:8b", LLAMA)),
        ("", Route("local", "llama3.1:8b", LLAMA)),
    ],
)
def test_configured_names(name, route):
    assert find_route(CONFIGURED, name) == route


def test_without_any_provider_the_builtin_model_serves_every_name():
    assert find_route(Settings(), "gpt-4o") == Route("builtin", "gpt-4o")


def test_with_a_base_url_it_serves_every_name():
    assert find_route(Settings(openai_base_url="http://127.0.0.1:1/v1"), "gpt-4o") == Route("openai", "gpt-4o")


def test_the_only_provider_serves_names_that_are_not_configured():
    settings = Settings(providers={"local": ONE}, models={"llama3.1": LLAMA}, openai_base_url="http://127.0.0.1:1/v1")
    assert find_route(settings, "llama3.1") == Route("local", "llama3.1:8b", LLAMA)
    assert find_route(settings, "mistral") == Route("local", "mistral")


def test_a_name_that_several_providers_could_serve():
    settings = Settings(providers={"local": ONE, "other": ONE}, models={"llama3.1": LLAMA})
    with pytest.raises(ModelError, match=r"^The requested model 'mistral' does not exist\.$") as caught:
        find_route(settings, "mistral")
    assert caught.value.code == "invalid_prompt"


@pytest.mark.parametrize(
    ("settings", "names"),
    [
        (Settings(), ["builtin"]),
        (Settings(openai_base_url="http://127.0.0.1:1/v1"), ["openai"]),
        (Settings(providers={"local": ONE}), ["local"]),
        (CONFIGURED, ["local", "other", "builtin"]),
    ],
)
def test_providers_that_are_needed(settings, names):
    assert provider_names(settings) == names


def test_capabilities():
    models = routed()
    assert models.capabilities("gpt-4o").context_window_tokens == 8192
    assert models.capabilities("small") == BUILTIN_CAPABILITIES
    assert routed(Settings()).capabilities("anything") == BUILTIN_CAPABILITIES
    assert routed(Settings(providers={"local": ONE})).capabilities("anything") == Capabilities()
    with pytest.raises(ModelError):
        routed(Settings(providers={"local": ONE, "other": ONE})).capabilities("anything")


def test_limits_of_a_provider_win_over_the_servers():
    own = ProviderSettings(base_url=ONE.base_url, chunk_timeout_seconds=7.0, retries_max=0, concurrency_max=3)
    settings = Settings(providers={"local": own}, model_connect_timeout_seconds=2.0, model_retries_max=5)
    assert limits_of(settings, "local") == ProviderLimits(
        connect_timeout_seconds=2.0, first_token_timeout_seconds=120.0, chunk_timeout_seconds=7.0, retries_max=0, concurrency_max=3
    )
    assert limits_of(settings, "openai").retries_max == 5


# --- streams ---------------------------------------------------------------------------------------------------------

REQUEST = ChatRequest("gpt-4o", (ChatMessage("user", "What is the weather?"),), tools=(ToolDefinition("weather", {"type": "object"}),))


async def deltas_of(models, request=REQUEST):
    return [delta async for deltas in models.stream(request) for delta in deltas]


async def test_a_request_goes_to_its_provider_under_its_name_there():
    local, other = RecordingProvider([Finished("stop", TokenUsage(1, 2))]), RecordingProvider()
    await deltas_of(routed(local=local, other=other))
    [(request, capabilities)] = local.asked
    assert request.model == "llama3.1:8b"
    assert request.messages == REQUEST.messages
    assert capabilities == LLAMA
    assert not other.asked


async def test_what_the_provider_counted_is_kept():
    provider = RecordingProvider([TextDelta("Sunny")], [Finished("stop", TokenUsage(1, 2))])
    assert await deltas_of(routed(local=provider)) == [TextDelta("Sunny"), Finished("stop", TokenUsage(1, 2))]


async def test_usage_is_estimated_when_the_provider_did_not_count():
    prompt_tokens = count_prompt_tokens(REQUEST.messages, REQUEST.tools)
    text = RecordingProvider([TextDelta("It is "), TextDelta("sunny")], [TextDelta("."), Finished("stop", None)])
    assert (await deltas_of(routed(local=text)))[-1] == Finished("stop", TokenUsage(prompt_tokens, 4))
    call = RecordingProvider([ToolCallDelta(0, "weather", "{"), ToolCallDelta(0, None, "}")], [Finished("tool_calls", None)])
    assert (await deltas_of(routed(local=call)))[-1] == Finished("tool_calls", TokenUsage(prompt_tokens, 2))
    refusal = RecordingProvider([RefusalDelta("No")], [Finished("stop", None)])
    assert (await deltas_of(routed(local=refusal)))[-1] == Finished("stop", TokenUsage(prompt_tokens, 1))


async def test_closing_the_stream_closes_the_providers():
    provider = RecordingProvider([TextDelta("a")], [TextDelta("b")], [Finished("stop", None)])
    stream = routed(local=provider).stream(REQUEST)
    async with contextlib.aclosing(stream):
        assert await anext(stream) == [TextDelta("a")]
        assert provider.open_streams == 1
    assert provider.open_streams == 0


async def test_an_unknown_model_fails_as_a_model_error():
    models = routed(Settings(providers={"local": ONE, "other": ONE}), local=RecordingProvider(), other=RecordingProvider())
    with pytest.raises(ModelError, match="does not exist"):
        await deltas_of(models)


async def test_check_asks_the_default():
    star = routed(local=RecordingProvider(line="local is fine"), other=RecordingProvider(line="other is fine"))
    assert await star.check() == "local is fine"
    assert await routed(Settings(), builtin=RecordingProvider(line="builtin is fine")).check() == "builtin is fine"


async def test_check_asks_all_when_there_is_no_default():
    settings = Settings(providers={"local": ONE, "other": ONE})
    assert await routed(settings, local=RecordingProvider(line="A."), other=RecordingProvider(line="B.")).check() == "A. B."
    broken = routed(settings, local=RecordingProvider(), other=RecordingProvider(failure=ModelError("No.")))
    with pytest.raises(ModelError, match="No"):
        await broken.check()


async def test_one_that_fails_to_close_does_not_keep_the_others_open():
    first, broken, last = RecordingProvider(), RecordingProvider(failure=OSError("stuck")), RecordingProvider()
    with pytest.raises(OSError, match="stuck"):
        await routed(first=first, broken=broken, last=last).close()
    assert first.is_closed
    assert last.is_closed


async def test_streams_do_not_share_what_they_counted():
    provider = RecordingProvider([TextDelta("one two three")], [Finished("stop", None)])
    answers = await asyncio.gather(*[deltas_of(routed(local=provider)) for _ in range(5)])
    assert {deltas[-1].usage.completion_tokens for deltas in answers} == {3}


# --- fallbacks -------------------------------------------------------------------------------------------------------


FALLING = Settings(
    providers={"local": ONE, "other": ONE},
    models={"a": ModelSettings(provider="local", fallbacks=("b", "c")), "b": ModelSettings(provider="other"), "c": LLAMA},
)


class FailingProvider(RecordingProvider):
    """Raises after the deltas that it was made with."""

    async def stream(self, request, capabilities):
        async with contextlib.aclosing(super().stream(request, capabilities)) as answer:
            async for deltas in answer:
                yield deltas
        raise self.failure


async def answered(models, name="a"):
    return [deltas async for deltas in models.stream(ChatRequest(name, (ChatMessage("user", "Hello"),)))]


async def test_a_model_that_fails_before_its_answer_falls_back():
    failing = FailingProvider(failure=ModelError("down", retryable=True))
    other = RecordingProvider([TextDelta("Hi")], [Finished("stop", TokenUsage(1, 1))])
    assert await answered(routed(FALLING, local=failing, other=other)) == list(other.lists)
    assert [request.model for request, _ in other.asked] == ["b"]


async def test_fallbacks_are_tried_in_their_order_and_the_last_failure_is_told():
    class Both(FailingProvider):
        async def stream(self, request, capabilities):
            self.asked.append((request, capabilities))
            raise ModelError(f"{request.model} is down")
            yield

    both = Both()
    with pytest.raises(ModelError, match=r"^llama3.1:8b is down$"):
        await answered(routed(FALLING, local=both, other=both))
    assert [request.model for request, _ in both.asked] == ["a", "b", "llama3.1:8b"]


async def test_an_answer_that_has_begun_does_not_fall_back():
    failing = FailingProvider([TextDelta("Hi")], failure=ModelError("cut off", retryable=True))
    other = RecordingProvider([Finished("stop", TokenUsage(1, 1))])
    with pytest.raises(ModelError, match="cut off"):
        await answered(routed(FALLING, local=failing, other=other))
    assert other.asked == []


async def test_a_prompt_that_is_wrong_is_wrong_everywhere():
    failing = FailingProvider(failure=ModelError("no images", code="invalid_prompt"))
    other = RecordingProvider([Finished("stop", TokenUsage(1, 1))])
    with pytest.raises(ModelError, match="no images"):
        await answered(routed(FALLING, local=failing, other=other))
    assert other.asked == []

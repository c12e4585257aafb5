"""Finds the provider of a model's name, and another one when that fails.

A name is looked up in `[models]`, then in `[aliases]`: exactly first, then by the longest prefix that ends with `*`. What
is left goes to the only provider there is: the single `[providers]` table, `OPENAI_BASE_URL`, or the built-in model.
"""

import contextlib
import logging
from collections.abc import AsyncGenerator, Mapping, Sequence
from dataclasses import dataclass

from mini_assistant.errors import ModelError
from mini_assistant.metrics import TOKENS, MeasuredTurn
from mini_assistant.models.base import (
    Capabilities,
    ChatDelta,
    ChatProvider,
    ChatRequest,
    Finished,
    ListedModel,
)
from mini_assistant.models.learned import LearnedCapabilities
from mini_assistant.models.model_list import ProviderModels, configured_models
from mini_assistant.models.tool_calling.ladder import Ladder, ServedModel
from mini_assistant.settings import Settings

log = logging.getLogger("mini_assistant.models")

BUILTIN = "builtin"
OPENAI = "openai"


@dataclass(frozen=True)
class Route:
    """Where a model is served. upstream_name: the provider's own name of it. capabilities: None for the provider's own.

    fallbacks: names of other models that are asked when this one fails before its answer has begun.
    """

    provider: str
    upstream_name: str
    capabilities: Capabilities | None = None
    fallbacks: tuple[str, ...] = ()


def find_route(settings: Settings, model: str) -> Route:
    """The route of a model's name. Raises ModelError (`invalid_prompt`) when no provider serves it."""
    name = _configured_name_or_none(settings, model)
    if name is not None:
        configured = settings.models[name]
        capabilities = None if configured.provider == BUILTIN else configured
        return Route(configured.provider, configured.upstream_name or name, capabilities, configured.fallbacks)
    provider = default_provider_or_none(settings)
    if provider is None:
        raise ModelError(f"The requested model '{model}' does not exist.", code="invalid_prompt")
    return Route(provider, model)


def default_provider_or_none(settings: Settings) -> str | None:
    """The provider of names that are not configured; None when several could be meant."""
    if settings.providers:
        return next(iter(settings.providers)) if len(settings.providers) == 1 else None
    return OPENAI if settings.openai_base_url else BUILTIN


def provider_names(settings: Settings) -> list[str]:
    """Every provider that some name leads to: what `RoutedModels` must be given."""
    names = [*settings.providers, *(model.provider for model in settings.models.values()), default_provider_or_none(settings)]
    return [name for name in dict.fromkeys(names) if name is not None]


def _configured_name_or_none(settings: Settings, model: str) -> str | None:
    if model in settings.models:
        return model
    if model in settings.aliases:
        return settings.aliases[model]
    prefixes = [alias for alias in settings.aliases if alias.endswith("*") and model.startswith(alias[:-1])]
    return settings.aliases[max(prefixes, key=len)] if prefixes else None


class RoutedModels:
    """The `ChatModels` of this server.

    providers: one for each of `provider_names`. builtin_capabilities: what the built-in model can do.
    """

    def __init__(self, settings: Settings, providers: Mapping[str, ChatProvider], builtin_capabilities: Capabilities) -> None:
        self._settings = settings
        self._providers = providers
        self._builtin_capabilities = builtin_capabilities
        self._learned = LearnedCapabilities()
        self._ladder = Ladder(self._learned, characters_max=settings.answer_characters_max)
        default = providers.get(default_provider_or_none(settings) or "")
        self._default_models = None if default is None else ProviderModels(default)

    def capabilities(self, model: str, owner: str = "") -> Capabilities:
        """As `ChatModels.capabilities`."""
        route = find_route(self._settings, model)
        return self._learned.of(owner, route.provider, route.upstream_name, self._configured(route))

    def provider_or_none(self, model: str) -> str | None:
        """As `ChatModels.provider_or_none`."""
        try:
            return find_route(self._settings, model).provider
        except ModelError:
            return None

    async def stream(self, request: ChatRequest) -> AsyncGenerator[list[ChatDelta], None]:
        """As `ChatModels.stream`; the usage in `Finished` is always there."""
        routes = self._routes(request.model)
        for place, route in enumerate(routes):
            has_begun, deltas, measured = False, list[ChatDelta](), MeasuredTurn(route.provider)
            try:
                async with contextlib.aclosing(self._ladder.stream(self._served(route), request)) as answer:
                    async for deltas in answer:
                        if not has_begun:
                            has_begun = True
                            measured.begin_answer()
                        yield deltas
                measured.end("ok")
                _count_tokens(route.provider, deltas)
                return
            except ModelError as exc:
                measured.end(exc.code)
                # What is wrong with the prompt is wrong with it elsewhere.
                if has_begun or exc.code == "invalid_prompt" or place == len(routes) - 1:
                    raise
                log.warning("The model '%s' falls back to '%s': %s", route.upstream_name, routes[place + 1].upstream_name, exc.message)
            except BaseException:
                measured.end("cancelled")
                raise

    async def check(self) -> str:
        """As `ChatModels.check`. Without a default every provider is asked."""
        star = self._settings.aliases.get("*")
        default = self._settings.models[star].provider if star is not None else default_provider_or_none(self._settings)
        names = [default] if default is not None else list(self._providers)
        return " ".join([await self._providers[name].check() for name in names])

    async def list_models(self) -> Sequence[ListedModel]:
        """As `ChatModels.list_models`."""
        configured = configured_models(self._settings)
        return configured if configured or self._default_models is None else await self._default_models.listed()

    async def find_model_or_none(self, model: str) -> ListedModel | None:
        """As `ChatModels.find_model_or_none`. A name that is not configured is one of the only provider's list."""
        provider = default_provider_or_none(self._settings)
        if _configured_name_or_none(self._settings, model) is not None or provider == BUILTIN:
            return ListedModel(model, find_route(self._settings, model).provider)
        listed = () if self._default_models is None else await self._default_models.listed()
        return next((known for known in listed if known.name == model), None)

    async def close(self) -> None:
        """As `ChatModels.close`; a provider that fails to close does not keep the others open."""
        async with contextlib.AsyncExitStack() as stack:
            for provider in self._providers.values():
                stack.push_async_callback(provider.close)

    def _routes(self, model: str) -> list[Route]:
        """The route of a model, and those of its fallbacks. Theirs are not looked at, so there is no circle."""
        route = find_route(self._settings, model)
        return [route, *(find_route(self._settings, name) for name in route.fallbacks)]

    def _served(self, route: Route) -> ServedModel:
        return ServedModel(route.provider, self._providers[route.provider], route.upstream_name, self._configured(route))

    def _configured(self, route: Route) -> Capabilities:
        own = self._builtin_capabilities if route.provider == BUILTIN else Capabilities()
        return route.capabilities or own


def _count_tokens(provider: str, last: Sequence[ChatDelta]) -> None:
    """last: the end of an answer, where its usage is."""
    if last and isinstance(finished := last[-1], Finished) and finished.usage is not None:
        TOKENS.labels(provider, "prompt").inc(finished.usage.prompt_tokens)
        TOKENS.labels(provider, "completion").inc(finished.usage.completion_tokens)

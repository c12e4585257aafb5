"""How long a provider may take and how often it is asked again."""

import math
from dataclasses import dataclass

from mini_assistant.errors import ConfigError
from mini_assistant.settings import ProviderSettings, Settings


@dataclass(frozen=True, kw_only=True)
class ProviderLimits:
    """The limits of one provider.

    retries_max: further attempts at a turn whose answer has not begun. retry_pause_seconds: before the first of them; it
    doubles each time. concurrency_max: answers at a time; None for any number.
    """

    connect_timeout_seconds: float = 5.0
    first_token_timeout_seconds: float = 120.0
    chunk_timeout_seconds: float = 60.0
    retries_max: int = 2
    retry_pause_seconds: float = 0.5
    concurrency_max: int | None = None


def limits_of(settings: Settings, provider: str) -> ProviderLimits:
    """The limits of a provider: its own from `[providers.NAME]`, else those of the server.

    Raises ConfigError for one of its own that is out of range.
    """
    own = settings.providers.get(provider) or ProviderSettings(base_url="")
    _check_range(own, provider)
    return ProviderLimits(
        connect_timeout_seconds=_own_or(own.connect_timeout_seconds, settings.model_connect_timeout_seconds),
        first_token_timeout_seconds=_own_or(own.first_token_timeout_seconds, settings.model_first_token_timeout_seconds),
        chunk_timeout_seconds=_own_or(own.chunk_timeout_seconds, settings.model_chunk_timeout_seconds),
        retries_max=settings.model_retries_max if own.retries_max is None else own.retries_max,
        concurrency_max=own.concurrency_max,
    )


def _check_range(own: ProviderSettings, provider: str) -> None:
    """The same bounds as those of the settings that they stand in for."""
    minimums = {
        "connect_timeout_seconds": 0.1,
        "first_token_timeout_seconds": 0.1,
        "chunk_timeout_seconds": 0.1,
        "retries_max": 0,
        "concurrency_max": 1,
    }
    for name, minimum in minimums.items():
        value: float | None = getattr(own, name)
        if value is not None and not minimum <= value < math.inf:
            raise ConfigError(f"[providers.{provider}] {name} must be at least {minimum}, but is {value:g}.")


def _own_or(own: float | None, general: float) -> float:
    return general if own is None else own

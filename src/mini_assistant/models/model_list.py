"""Which models there are: those that the config file names, or else what the only provider says of itself."""

import asyncio
from collections.abc import Sequence
from typing import Any

import msgspec

from mini_assistant.errors import ModelError
from mini_assistant.models.base import ChatProvider, ListedModel
from mini_assistant.models.provider_errors import ProviderErrors
from mini_assistant.settings import Settings

LIST_BYTES_MAX = 4 * 1024 * 1024
"""The longest list of an endpoint that is read; the longest known are a quarter of it."""

_MODELS_MAX = 10_000
_NAME_CHARACTERS_MAX = 256
_KEPT_SECONDS = 60.0
# So that many clients that ask while the endpoint is down do not each wait for it.
_FAILURE_KEPT_SECONDS = 5.0


def configured_models(settings: Settings) -> list[ListedModel]:
    """The names of `[models]`, then the aliases that stand for one name."""
    models = [ListedModel(name, model.provider) for name, model in settings.models.items()]
    aliases = [alias for alias in settings.aliases if not alias.endswith("*") and alias not in settings.models]
    return models + [ListedModel(alias, settings.models[settings.aliases[alias]].provider) for alias in aliases]


class ProviderModels:
    """The models of one provider, by its own list, which is asked for at most once in `kept_seconds`."""

    def __init__(self, provider: ChatProvider, *, kept_seconds: float = _KEPT_SECONDS) -> None:
        self._provider = provider
        self._kept_seconds = kept_seconds
        self._asking = asyncio.Lock()
        self._answer: Sequence[ListedModel] | ModelError = ()
        self._old_at = float("-inf")

    async def listed(self) -> Sequence[ListedModel]:
        """The list. Raises ModelError when the provider does not give one."""
        time = asyncio.get_running_loop().time
        async with self._asking:
            if time() >= self._old_at:
                self._answer = await self._ask()
                is_failure = isinstance(self._answer, ModelError)
                self._old_at = time() + (min(_FAILURE_KEPT_SECONDS, self._kept_seconds) if is_failure else self._kept_seconds)
            answer = self._answer
        if isinstance(answer, ModelError):
            raise ModelError(answer.message, code=answer.code, retryable=answer.retryable)
        return answer

    async def _ask(self) -> Sequence[ListedModel] | ModelError:
        try:
            return await self._provider.list_models()
        except ModelError as exc:
            return exc


class _Entry(msgspec.Struct):
    """A model in the list of an endpoint. What is beside the name is taken where it is usable."""

    id: str
    created: Any = None
    owned_by: Any = None


class _List(msgspec.Struct):
    data: list[_Entry]


def decode_list(body: bytes, provider: str, errors: ProviderErrors) -> list[ListedModel]:
    """The list that an endpoint has sent: OpenAI's object, or the bare array that some send. Raises ModelError when it is none."""
    try:
        decoded = msgspec.json.decode(body, type=_List | list[_Entry])
    except (msgspec.DecodeError, UnicodeDecodeError):
        raise errors.nonsense("no list of models", body) from None
    entries = decoded.data if isinstance(decoded, _List) else decoded
    usable = {entry.id: entry for entry in entries if 0 < len(entry.id) <= _NAME_CHARACTERS_MAX}
    return [_listed(entry, provider) for entry in list(usable.values())[:_MODELS_MAX]]


def _listed(entry: _Entry, provider: str) -> ListedModel:
    created, owner = entry.created, entry.owned_by
    is_time = type(created) in (int, float) and 0 <= created < 2**53
    is_owner = isinstance(owner, str) and 0 < len(owner) <= _NAME_CHARACTERS_MAX
    return ListedModel(entry.id, owner if is_owner else provider, int(created) if is_time else 0)

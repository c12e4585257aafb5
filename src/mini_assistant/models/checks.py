"""Whether a model name that a request gives is served here."""

from mini_assistant.errors import InvalidRequest, ModelError
from mini_assistant.models.base import ChatModels


def check_model(models: ChatModels, name: str) -> None:
    """Raise InvalidRequest (`model_not_found`) when no provider serves the name."""
    try:
        models.capabilities(name)
    except ModelError as exc:
        raise InvalidRequest(exc.message, param="model", code="model_not_found") from exc

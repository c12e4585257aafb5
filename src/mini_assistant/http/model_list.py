"""`GET /models`: the models that runs can name. Not a part of the Assistants API, but clients of it look there for a model to choose."""

from typing import Literal

import msgspec

from mini_assistant.errors import NotFound
from mini_assistant.http.routing import Request, Route
from mini_assistant.models.base import ListedModel


class Model(msgspec.Struct):
    """A model on the wire. created: unix seconds, 0 when nobody knows. owned_by: the provider, or whom it names."""

    id: str
    owned_by: str
    created: int
    object: Literal["model"] = "model"


class ModelList(msgspec.Struct):
    """The answer to `GET /models`."""

    data: list[Model]
    object: Literal["list"] = "list"


async def list_models(request: Request[None, None]) -> bytes:
    listed = await request.services.models.list_models()
    return msgspec.json.encode(ModelList([_on_the_wire(model) for model in listed]))


async def get_model(request: Request[None, None]) -> bytes:
    name = request.path["model"]
    model = await request.services.models.find_model_or_none(name)
    if model is None:
        raise NotFound(f"The model '{name[:100]}' does not exist", param="model", code="model_not_found")
    return msgspec.json.encode(_on_the_wire(model))


def _on_the_wire(model: ListedModel) -> Model:
    return Model(model.name, model.owned_by, model.created)


ROUTES = [
    Route(
        method="GET",
        path="/models",
        name="listModels",
        summary="List the models that runs can name",
        call=list_models,
        answer=ModelList,
    ),
    Route(
        method="GET",
        path="/models/{model}",
        name="retrieveModel",
        summary="Get a model",
        call=get_model,
        answer=Model,
        takes_rest=True,
    ),
]

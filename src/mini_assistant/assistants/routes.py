"""The endpoints of assistants."""

from typing import Any

import msgspec
from msgspec import UNSET

from mini_assistant.assistants import store
from mini_assistant.assistants.schema import (
    Assistant,
    CreateAssistant,
    Deleted,
    ModifyAssistant,
    Tool,
    ToolResources,
    echoed_resources,
    echoed_tools,
)
from mini_assistant.assistants.tool_resources import check_resources, new_resources, note_code_files
from mini_assistant.db.base import Bound, GuardFailed
from mini_assistant.http.routing import Request, Route
from mini_assistant.ids import new_id
from mini_assistant.models.checks import check_model
from mini_assistant.pagination import Page, list_schema
from mini_assistant.services import Services
from mini_assistant.vector_stores.commands import RowsChanged, write_with_files


async def create_assistant(request: Request[CreateAssistant, None]) -> str:
    services = request.services
    check_model(services.models, request.body.model)
    while True:
        prepared = await new_resources(services, request.project_id, request.body.tool_resources)
        assistant = _new_assistant(services, request.body, prepared.resources)
        answer = msgspec.json.encode(assistant).decode()
        rows = [store.insert(request.project_id, assistant, answer), *_files_of(request.project_id, assistant)]
        try:
            await write_with_files(services, [*prepared.statements, *rows, *request.remember(answer)])
        except RowsChanged:
            continue  # one of the files was deleted in between
        return answer


def _new_assistant(services: Services, body: CreateAssistant, resources: ToolResources) -> Assistant:
    tools = echoed_tools(body.tools)
    return Assistant(
        id=new_id("asst"),
        created_at=services.now(),
        name=body.name,
        description=body.description,
        model=body.model,
        instructions=body.instructions,
        tools=tools,
        tool_resources=echoed_resources(resources, tools),
        metadata=body.metadata or {},
        temperature=1.0 if body.temperature is None else body.temperature,
        top_p=1.0 if body.top_p is None else body.top_p,
        reasoning_effort=body.reasoning_effort,
        response_format="auto" if body.response_format is None else body.response_format,
    )


def _files_of(project_id: str, assistant: Assistant) -> list[Bound]:
    return note_code_files(project_id, assistant.id, assistant.tool_resources)


async def list_assistants(request: Request[None, Page]) -> str:
    return await store.listing.page(request.services.db, request.query, {"project_id": request.project_id})


async def get_assistant(request: Request[None, None]) -> str:
    return await store.get_json(request.services, request.project_id, request.path["assistant_id"])


async def modify_assistant(request: Request[ModifyAssistant, None]) -> str:
    services, assistant_id, body = request.services, request.path["assistant_id"], request.body
    if body.model is not UNSET:
        check_model(services.models, body.model)
    if body.tool_resources is not UNSET:
        await check_resources(services, request.project_id, body.tool_resources)
    while True:
        seen = await store.get_json(services, request.project_id, assistant_id)
        changed = _modified(store.decode(seen), body)
        answer = msgspec.json.encode(changed).decode()
        replaced = store.replace(request.project_id, assistant_id, seen, answer)
        try:
            await services.db.write([replaced, *_files_of(request.project_id, changed)])
        except GuardFailed:
            continue  # somebody else changed it in between: apply this change to theirs
        return answer


def _modified(assistant: Assistant, body: ModifyAssistant) -> Assistant:
    """The assistant with what was sent; null clears."""
    cleared: dict[str, Any] = {"metadata": {}, "temperature": 1.0, "top_p": 1.0, "response_format": "auto"}
    changes: dict[str, Any] = {
        name: cleared.get(name) if value is None else value
        for name in body.__struct_fields__
        if (value := getattr(body, name)) is not UNSET and name not in ("tools", "tool_resources")
    }
    if body.tools is not UNSET:
        changes["tools"] = echoed_tools(body.tools)
    tools: list[Tool] = changes.get("tools", assistant.tools)
    resources = assistant.tool_resources if body.tool_resources is UNSET else body.tool_resources
    changes["tool_resources"] = echoed_resources(resources, tools)
    return msgspec.structs.replace(assistant, **changes)


async def delete_assistant(request: Request[None, None]) -> str:
    assistant_id = request.path["assistant_id"]
    audit = request.audit("assistant.deleted", assistant_id)
    await store.delete(request.services, request.project_id, assistant_id, audit)
    return msgspec.json.encode(Deleted(assistant_id, "assistant.deleted")).decode()


ROUTES = [
    Route(
        method="POST",
        path="/assistants",
        name="createAssistant",
        summary="Create an assistant",
        call=create_assistant,
        body=CreateAssistant,
        answer=Assistant,
    ),
    Route(
        method="GET",
        path="/assistants",
        name="listAssistants",
        summary="List assistants",
        call=list_assistants,
        query=Page,
        answer=list_schema(Assistant),
    ),
    Route(
        method="GET",
        path="/assistants/{assistant_id}",
        name="getAssistant",
        summary="Get an assistant",
        call=get_assistant,
        answer=Assistant,
    ),
    Route(
        method="POST",
        path="/assistants/{assistant_id}",
        name="modifyAssistant",
        summary="Change an assistant",
        call=modify_assistant,
        body=ModifyAssistant,
        body_optional=True,
        answer=Assistant,
    ),
    Route(
        method="DELETE",
        path="/assistants/{assistant_id}",
        name="deleteAssistant",
        summary="Delete an assistant",
        call=delete_assistant,
        answer=Deleted,
    ),
]

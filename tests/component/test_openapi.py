"""`/openapi.json` is a valid document that says exactly what is served, and has what generated clients rely on."""

import json
from typing import Any

import aiohttp
import openapi_spec_validator
import pytest
from openapi_spec_validator.validation.exceptions import OpenAPIValidationError

from mini_assistant.app import all_routes
from mini_assistant.http.openapi import openapi_document

# Operations of the official specification that this server has, by their official names.
OFFICIAL = {
    "listAssistants": "GET /assistants",
    "createAssistant": "POST /assistants",
    "getAssistant": "GET /assistants/{assistant_id}",
    "modifyAssistant": "POST /assistants/{assistant_id}",
    "deleteAssistant": "DELETE /assistants/{assistant_id}",
    "createThread": "POST /threads",
    "createThreadAndRun": "POST /threads/runs",
    "getThread": "GET /threads/{thread_id}",
    "modifyThread": "POST /threads/{thread_id}",
    "deleteThread": "DELETE /threads/{thread_id}",
    "listMessages": "GET /threads/{thread_id}/messages",
    "createMessage": "POST /threads/{thread_id}/messages",
    "getMessage": "GET /threads/{thread_id}/messages/{message_id}",
    "modifyMessage": "POST /threads/{thread_id}/messages/{message_id}",
    "deleteMessage": "DELETE /threads/{thread_id}/messages/{message_id}",
    "listRuns": "GET /threads/{thread_id}/runs",
    "createRun": "POST /threads/{thread_id}/runs",
    "getRun": "GET /threads/{thread_id}/runs/{run_id}",
    "modifyRun": "POST /threads/{thread_id}/runs/{run_id}",
    "cancelRun": "POST /threads/{thread_id}/runs/{run_id}/cancel",
    "listRunSteps": "GET /threads/{thread_id}/runs/{run_id}/steps",
    "getRunStep": "GET /threads/{thread_id}/runs/{run_id}/steps/{step_id}",
    "submitToolOuputsToRun": "POST /threads/{thread_id}/runs/{run_id}/submit_tool_outputs",
    "createFile": "POST /files",
    "listFiles": "GET /files",
    "retrieveFile": "GET /files/{file_id}",
    "deleteFile": "DELETE /files/{file_id}",
    "downloadFile": "GET /files/{file_id}/content",
    "createUpload": "POST /uploads",
    "addUploadPart": "POST /uploads/{upload_id}/parts",
    "completeUpload": "POST /uploads/{upload_id}/complete",
    "cancelUpload": "POST /uploads/{upload_id}/cancel",
    "createVectorStore": "POST /vector_stores",
    "listVectorStores": "GET /vector_stores",
    "getVectorStore": "GET /vector_stores/{vector_store_id}",
    "modifyVectorStore": "POST /vector_stores/{vector_store_id}",
    "deleteVectorStore": "DELETE /vector_stores/{vector_store_id}",
    "searchVectorStore": "POST /vector_stores/{vector_store_id}/search",
    "createVectorStoreFile": "POST /vector_stores/{vector_store_id}/files",
    "listVectorStoreFiles": "GET /vector_stores/{vector_store_id}/files",
    "getVectorStoreFile": "GET /vector_stores/{vector_store_id}/files/{file_id}",
    "updateVectorStoreFileAttributes": "POST /vector_stores/{vector_store_id}/files/{file_id}",
    "deleteVectorStoreFile": "DELETE /vector_stores/{vector_store_id}/files/{file_id}",
    "retrieveVectorStoreFileContent": "GET /vector_stores/{vector_store_id}/files/{file_id}/content",
    "createVectorStoreFileBatch": "POST /vector_stores/{vector_store_id}/file_batches",
    "getVectorStoreFileBatch": "GET /vector_stores/{vector_store_id}/file_batches/{batch_id}",
    "cancelVectorStoreFileBatch": "POST /vector_stores/{vector_store_id}/file_batches/{batch_id}/cancel",
    "listFilesInVectorStoreBatch": "GET /vector_stores/{vector_store_id}/file_batches/{batch_id}/files",
}
EXTENSIONS = {
    "listThreads": "GET /threads",
    "streamRunEvents": "GET /threads/{thread_id}/runs/{run_id}/events",
    "createWebhook": "POST /webhooks",
    "listWebhooks": "GET /webhooks",
    "getWebhook": "GET /webhooks/{webhook_id}",
    "deleteWebhook": "DELETE /webhooks/{webhook_id}",
    "listModels": "GET /models",
    "listUsage": "GET /organization/usage",
    "retrieveModel": "GET /models/{model}",
    "listAuditLogs": "GET /organization/audit_logs",
    "getHealth": "GET /health",
    "getLiveness": "GET /health/live",
    "getMetrics": "GET /metrics",
    "getOpenapi": "GET /openapi.json",
}


@pytest.fixture(scope="module")
def document() -> dict[str, Any]:
    routes = all_routes()
    return json.loads(openapi_document([route for route in routes if route.name != "getOpenapi"]))


def operations(document: dict[str, Any]) -> dict[str, tuple[str, dict[str, Any]]]:
    """Operations by name, with their method and path."""
    return {
        operation["operationId"]: (f"{method.upper()} {path}", operation)
        for path, methods in document["paths"].items()
        for method, operation in methods.items()
    }


async def test_the_document_is_served_and_valid(http: aiohttp.ClientSession, document: dict[str, Any]) -> None:
    for path in ("/v1/openapi.json", "/openapi.json"):
        async with http.get(path) as response:
            assert response.status == 200
            assert response.headers["Content-Type"] == "application/json"
            served = await response.json()
        openapi_spec_validator.validate(served)
        assert served == document


def test_a_wrong_document_would_not_be_valid(document: dict[str, Any]) -> None:
    with pytest.raises(OpenAPIValidationError):
        openapi_spec_validator.validate({**document, "paths": {"/x": {"get": {"parameters": [{"name": "x"}]}}}})


def test_it_covers_exactly_the_routes(document: dict[str, Any]) -> None:
    described = {name: place for name, (place, _) in operations(document).items()}
    served = {route.name: f"{route.method} {route.path}" for route in all_routes()}

    assert described | {"getOpenapi": "GET /openapi.json"} == served
    assert served == OFFICIAL | EXTENSIONS


def test_paths_are_relative_to_the_address_that_clients_are_given(document: dict[str, Any]) -> None:
    assert document["servers"] == [{"url": "/v1"}]
    assert not [path for path in document["paths"] if path.startswith("/v1")]


def test_every_operation_says_what_it_takes_and_gives(document: dict[str, Any]) -> None:
    bodies = {route.name: route for route in all_routes()}
    for name, (place, operation) in operations(document).items():
        assert operation["summary"]
        assert operation["tags"]
        path_parameters = [item["name"] for item in operation["parameters"] if item["in"] == "path"]
        assert [f"{{{parameter}}}" in place for parameter in path_parameters] == [True] * place.count("{")
        assert operation["responses"]["200"]["content"]
        for status in ("400", "401", "404", "413"):
            assert operation["responses"][status]["content"]["application/json"]["schema"] == {"$ref": "#/components/schemas/ErrorEnvelope"}
        if bodies[name].form is not None:
            assert operation["requestBody"]["required"] is True
            assert list(operation["requestBody"]["content"]) == ["multipart/form-data"]
        elif bodies[name].body is None:
            assert "requestBody" not in operation
        else:
            assert operation["requestBody"]["required"] is not bodies[name].body_optional
            assert list(operation["requestBody"]["content"]) == ["application/json"]


@pytest.mark.parametrize(
    ("name", "kinds"),
    [
        ("createRun", ["application/json", "text/event-stream"]),
        ("createThreadAndRun", ["application/json", "text/event-stream"]),
        ("submitToolOuputsToRun", ["application/json", "text/event-stream"]),
        ("streamRunEvents", ["text/event-stream"]),
        ("getRun", ["application/json"]),
    ],
)
def test_streams_are_described(name: str, kinds: list[str], document: dict[str, Any]) -> None:
    assert list(operations(document)[name][1]["responses"]["200"]["content"]) == kinds


def test_forms_are_described(document: dict[str, Any]) -> None:
    _, operation = operations(document)["createFile"]
    [form] = operation["requestBody"]["content"].values()

    assert form["schema"]["properties"]["file"] == {"type": "string", "contentMediaType": "application/octet-stream"}
    assert form["schema"]["required"] == ["file", "purpose"]
    assert form["schema"]["properties"]["purpose"]["enum"] == ["fine-tune", "assistants", "batch", "user_data", "vision", "evals"]
    assert form["encoding"] == {"expires_after": {"style": "deepObject", "explode": True}}
    assert "Idempotency-Key" not in [item["name"] for item in operation["parameters"]]
    [form] = operations(document)["addUploadPart"][1]["requestBody"]["content"].values()
    assert (list(form["schema"]["properties"]), form["schema"]["required"]) == (["data"], ["data"])


def test_downloads_are_described(document: dict[str, Any]) -> None:
    _, operation = operations(document)["downloadFile"]

    for status in ("200", "206"):
        assert list(operation["responses"][status]["content"]) == ["application/octet-stream"]
    assert set(operation["responses"]) >= {"304", "416"}
    assert {"Range", "If-Range", "If-None-Match"} <= {item["name"] for item in operation["parameters"]}


def test_parameters_of_lists(document: dict[str, Any]) -> None:
    _, operation = operations(document)["listMessages"]
    parameters = {item["name"]: item["schema"] for item in operation["parameters"] if item["in"] == "query"}

    assert set(parameters) == {"limit", "order", "after", "before", "run_id"}
    assert (parameters["limit"]["minimum"], parameters["limit"]["maximum"], parameters["limit"]["default"]) == (1, 100, 20)
    assert parameters["order"]["enum"] == ["asc", "desc"]
    assert parameters["after"] == {"type": "string"}
    _, operation = operations(document)["getRunStep"]
    assert "include[]" in {item["name"] for item in operation["parameters"]}


def test_the_key_is_needed_where_it_is(document: dict[str, Any]) -> None:
    assert document["security"] == [{"key": []}]
    assert document["components"]["securitySchemes"]["key"] == {"type": "http", "scheme": "bearer"}
    public = {name for name, (_, operation) in operations(document).items() if operation.get("security") == []}
    assert public == {route.name for route in all_routes() if route.public} - {"getOpenapi"} == {"getHealth", "getLiveness"}


@pytest.mark.parametrize(
    ("schema", "required"),
    [
        ("CreateAssistant", {"model"}),
        ("CreateMessage", {"role", "content"}),
        ("CreateRun", {"assistant_id"}),
        ("CreateThreadAndRun", {"assistant_id"}),
        ("SubmitToolOutputs", {"tool_outputs"}),
        ("CreateUpload", {"filename", "purpose", "bytes", "mime_type"}),
        ("CompleteUpload", {"part_ids"}),
        ("SearchVectorStore", {"query"}),
        ("CreateVectorStoreFile", {"file_id"}),
        ("ModifyVectorStoreFile", {"attributes"}),
    ],
)
def test_required_fields_of_requests(schema: str, required: set[str], document: dict[str, Any]) -> None:
    found = document["components"]["schemas"][schema]

    assert set(found["required"]) == required
    assert found["additionalProperties"] is False


def test_limits_of_requests(document: dict[str, Any]) -> None:
    schemas = document["components"]["schemas"]
    assistant, message = schemas["CreateAssistant"]["properties"], schemas["CreateMessage"]["properties"]

    assert {"type": "string", "maxLength": 256} in assistant["name"]["anyOf"]
    assert {"type": "string", "maxLength": 256_000} in assistant["instructions"]["anyOf"]
    assert next(kind for kind in assistant["tools"]["anyOf"] if kind.get("type") == "array")["maxItems"] == 128
    assert next(kind for kind in assistant["temperature"]["anyOf"] if kind.get("type") == "number") == {
        "type": "number",
        "minimum": 0,
        "maximum": 2,
    }
    assert next(kind for kind in assistant["metadata"]["anyOf"] if kind.get("type") == "object")["maxProperties"] == 16
    assert message["role"] == {"enum": ["assistant", "user"]}


def test_objects_have_the_fields_that_the_sdks_read(document: dict[str, Any]) -> None:
    schemas = document["components"]["schemas"]

    run = schemas["Run"]["properties"]
    assert run["object"]["enum"] == ["thread.run"]
    assert set(run["status"]["enum"]) == {
        *("queued", "in_progress", "requires_action", "cancelling", "cancelled", "failed", "completed", "incomplete", "expired")
    }
    assert {"required_action", "last_error", "incomplete_details", "usage", "truncation_strategy", "parallel_tool_calls"} <= set(run)
    assert set(schemas["LastError"]["properties"]["code"]["enum"]) == {"server_error", "rate_limit_exceeded", "invalid_prompt"}
    assert schemas["Message"]["properties"]["object"]["enum"] == ["thread.message"]
    assert schemas["RunStep"]["properties"]["object"]["enum"] == ["thread.run.step"]
    assert schemas["Thread"]["properties"]["object"]["enum"] == ["thread"]
    assert schemas["Assistant"]["properties"]["object"]["enum"] == ["assistant"]
    assert schemas["File"]["properties"]["object"]["enum"] == ["file"]
    assert schemas["Upload"]["properties"]["object"]["enum"] == ["upload"]
    assert schemas["VectorStore"]["properties"]["object"]["enum"] == ["vector_store"]
    assert schemas["VectorStoreFile"]["properties"]["object"]["enum"] == ["vector_store.file"]
    assert schemas["FileBatch"]["properties"]["object"]["enum"] == ["vector_store.file_batch"]
    assert schemas["FileContent"]["properties"]["object"]["enum"] == ["vector_store.file_content.page"]
    assert schemas["SearchResultsPage"]["properties"]["object"]["enum"] == ["vector_store.search_results.page"]
    assert set(schemas["FileCounts"]["required"]) == {"in_progress", "completed", "failed", "cancelled", "total"}
    lists = ("AssistantList", "ThreadList", "MessageList", "RunList", "RunStepList", "FileList", "VectorStoreList", "VectorStoreFileList")
    for name in lists:
        assert set(schemas[name]["required"]) == {"object", "data", "first_id", "last_id", "has_more"}
    assert set(schemas["ErrorBody"]["required"]) == {"message", "type", "param", "code"}


def test_kinds_are_told_apart_by_their_type(document: dict[str, Any]) -> None:
    tools = next(kind for kind in document["components"]["schemas"]["CreateAssistant"]["properties"]["tools"]["anyOf"] if "items" in kind)

    assert tools["items"]["discriminator"]["propertyName"] == "type"
    assert set(tools["items"]["discriminator"]["mapping"]) == {"code_interpreter", "file_search", "function", "mcp"}


def test_every_reference_leads_somewhere_and_every_schema_is_used(document: dict[str, Any]) -> None:
    text = json.dumps(document)
    schemas = document["components"]["schemas"]

    assert set(schemas) == {name for name in schemas if f'"#/components/schemas/{name}"' in text}
    assert text.count("#/components/schemas/") == sum(text.count(f'#/components/schemas/{name}"') for name in schemas)

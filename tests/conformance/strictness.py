"""What every body must look like: strictly of the official SDK's type, with every field that the specification or the wire has.

The SDK itself takes almost anything for an answer, so its own parsing proves little. `tests/conformance/conftest.py` calls this for
each body that the SDK gets, `raw_http.py` for all others.
"""

import json
from typing import Any, TypeVar

import pydantic
from openai.types import (
    FileDeleted,
    FileObject,
    Upload,
    VectorStore,
    VectorStoreDeleted,
    VectorStoreSearchResponse,
)
from openai.types.beta import Assistant, AssistantDeleted, AssistantStreamEvent, Thread, ThreadDeleted
from openai.types.beta.threads import Message, MessageDeleted, Run
from openai.types.beta.threads.runs import RunStep
from openai.types.uploads import UploadPart
from openai.types.vector_stores import FileContentResponse, VectorStoreFile, VectorStoreFileBatch, VectorStoreFileDeleted

_TYPES: dict[str, type[pydantic.BaseModel]] = {
    "assistant": Assistant,
    "assistant.deleted": AssistantDeleted,
    "thread": Thread,
    "thread.deleted": ThreadDeleted,
    "thread.message": Message,
    "thread.message.deleted": MessageDeleted,
    "thread.run": Run,
    "thread.run.step": RunStep,
    "file": FileObject,
    "file.deleted": FileDeleted,
    "upload": Upload,
    "upload.part": UploadPart,
    "vector_store": VectorStore,
    "vector_store.deleted": VectorStoreDeleted,
    "vector_store.file": VectorStoreFile,
    "vector_store.file.deleted": VectorStoreFileDeleted,
    "vector_store.file_batch": VectorStoreFileBatch,
}
# Pages that are no lists, with the type of their items.
_PAGES: dict[str, tuple[type[pydantic.BaseModel], str]] = {
    "vector_store.search_results.page": (VectorStoreSearchResponse, "file_id filename score attributes content"),
    "vector_store.file_content.page": (FileContentResponse, "type text"),
}
_DELETED_FIELDS = "id object deleted"
# The fields that the specification requires, and those that recorded answers had beyond it.
_FIELDS: dict[str, frozenset[str]] = {
    name: frozenset(fields.split())
    for name, fields in {
        "assistant": """id object created_at name description model instructions tools metadata
            tool_resources temperature top_p response_format reasoning_effort""",
        "assistant.deleted": _DELETED_FIELDS,
        "thread": "id object created_at tool_resources metadata",
        "thread.deleted": _DELETED_FIELDS,
        "thread.message": """id object created_at thread_id status incomplete_details completed_at incomplete_at role content
            assistant_id run_id attachments metadata""",
        "thread.message.deleted": _DELETED_FIELDS,
        "thread.run": """id object created_at thread_id assistant_id status required_action last_error expires_at started_at
            cancelled_at failed_at completed_at model instructions tools metadata usage incomplete_details max_prompt_tokens
            max_completion_tokens truncation_strategy tool_choice parallel_tool_calls response_format
            temperature top_p reasoning_effort tool_resources""",
        "thread.run.step": """id object created_at assistant_id thread_id run_id type status step_details last_error expired_at
            cancelled_at failed_at completed_at metadata usage expires_at""",
        "file": "object id purpose filename bytes created_at expires_at status status_details",
        "file.deleted": _DELETED_FIELDS,
        "upload": "id object bytes created_at filename purpose status expires_at",
        "upload.part": "id object created_at upload_id",
        "vector_store": """id object created_at name description usage_bytes file_counts status expires_after expires_at last_active_at
            metadata""",
        "vector_store.deleted": _DELETED_FIELDS,
        "vector_store.file": """id object usage_bytes created_at vector_store_id status last_error chunking_strategy attributes""",
        "vector_store.file.deleted": _DELETED_FIELDS,
        "vector_store.file_batch": "id object created_at vector_store_id status file_counts",
        "vector_store.search_results.page": "object search_query data has_more next_page",
        "vector_store.file_content.page": "object data has_more next_page",
        "thread.message.delta": "id object delta",
        "thread.run.step.delta": "id object delta",
        "list": "object data first_id last_id has_more",
    }.items()
}
_USAGE_FIELDS = {"prompt_tokens", "completion_tokens", "total_tokens", "prompt_token_details", "completion_tokens_details"}
_COUNTS_FIELDS = {"in_progress", "completed", "failed", "cancelled", "total"}
_ERROR_FIELDS = {"message", "type", "param", "code"}
_EVENT: pydantic.TypeAdapter[Any] = pydantic.TypeAdapter(AssistantStreamEvent)
_Object = TypeVar("_Object", bound=pydantic.BaseModel)


def check_body(raw: bytes | str) -> Any:
    """Decode an answer's body and check it against the type that its `object` names; lists, item by item. Returns what it holds."""
    body = json.loads(raw)
    check_object(body)
    return body


def check_object(body: dict[str, Any]) -> None:
    """Check an object of the API, or a list of objects."""
    name = body["object"]
    if name == "file" and "deleted" in body:  # the one deletion whose object is called like what it was
        name = "file.deleted"
    _check_fields(body, _FIELDS[name])
    if name == "list":
        _check_list(body)
        return
    if name in _PAGES:
        _check_page(body)
        return
    if "file_counts" in body:
        counts = body["file_counts"]
        assert counts.keys() == _COUNTS_FIELDS
        assert counts["total"] == sum(counts.values()) - counts["total"]
    _TYPES[name].model_validate_json(_as_the_sdk_says(body), strict=True)
    for at, value in body.items():
        if at.endswith("_at"):
            assert value is None or (type(value) is int and 1_500_000_000 < value < 5_000_000_000), f"{at} is not unix seconds: {value}"
    if body.get("usage") is not None:
        _check_usage(body["usage"])


def check_error(raw: bytes | str) -> dict[str, Any]:
    """Check the error envelope and return what is in it."""
    body = json.loads(raw)
    error = body["error"]
    _check_error_fields(error)
    # The Files API says it twice.
    assert body == {"error": error} or body == {"error": error, "detail": {"message": error["message"], "code": error["code"]}}
    return error


def check_event(name: str, data: str) -> Any:
    """Check the data of a stream's event, of whatever name but `done`. Returns what it holds."""
    assert "\n" not in data
    body = json.loads(data)
    if name == "error":
        # Nested for the official SDKs, flat for readers of the specification.
        _check_error_fields(body["error"])
        assert {field: body[field] for field in _ERROR_FIELDS} == body["error"]
        return body
    if name.endswith(".delta"):
        _check_fields(body, _FIELDS[name])
        assert body["object"] == name
    else:
        check_object(body)
    _EVENT.validate_json(json.dumps({"event": name, "data": json.loads(_as_the_sdk_says(body))}), strict=True)
    return body


def wire(item: pydantic.BaseModel) -> dict[str, Any]:
    """An object of the SDK as it came over the wire, to compare a streamed one with one that was retrieved."""
    return item.model_dump(mode="json", by_alias=True, exclude_unset=True)


def assert_same(streamed: list[_Object], retrieved: list[_Object]) -> None:
    """The same objects, field by field, in the same order."""
    assert [wire(item) for item in streamed] == [wire(item) for item in retrieved]


def _check_fields(body: dict[str, Any], fields: frozenset[str]) -> None:
    missing = fields - body.keys()
    assert not missing, f"a {body['object']} lacks {sorted(missing)}"


def _check_list(body: dict[str, Any]) -> None:
    ids = [item["id"] for item in body["data"]]
    assert all(ids)
    assert len(set(ids)) == len(ids)
    assert (body["first_id"], body["last_id"]) == ((ids[0], ids[-1]) if ids else (None, None))
    assert type(body["has_more"]) is bool
    for item in body["data"]:
        check_object(item)


def _check_page(body: dict[str, Any]) -> None:
    item_type, fields = _PAGES[body["object"]]
    assert (body["has_more"], body["next_page"]) == (False, None)
    for item in body["data"]:
        assert item.keys() >= set(fields.split())
        item_type.model_validate(item, strict=True)


def _check_usage(usage: dict[str, Any]) -> None:
    assert usage.keys() == _USAGE_FIELDS
    assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]
    assert usage["prompt_token_details"].keys() == {"cached_tokens"}
    assert usage["completion_tokens_details"].keys() == {"reasoning_tokens"}


def _check_error_fields(error: dict[str, Any]) -> None:
    assert error.keys() == _ERROR_FIELDS
    assert error["message"]
    assert error["type"] in ("invalid_request_error", "server_error")
    for field in ("param", "code"):
        assert error[field] is None or (isinstance(error[field], str) and error[field])


def _as_the_sdk_says(body: dict[str, Any]) -> str:
    """The body as JSON, but for where recorded answers differ from the SDK's types: null instructions of a run, null name of a vector
    store, and what a file batch is called."""
    if body["object"] == "thread.run" and body["instructions"] is None:
        body = {**body, "instructions": ""}
    if body["object"] == "vector_store" and body["name"] is None:
        body = {**body, "name": ""}
    if body["object"] == "vector_store.file_batch":
        body = {**body, "object": "vector_store.files_batch"}
    return json.dumps(body)

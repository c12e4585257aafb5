"""For every route of the API what is right for it, and what is wrong with it in its own way."""

from dataclasses import dataclass, field
from typing import Any

from mini_assistant.app import all_routes

ROUTES = {route.name: route for route in all_routes()}


@dataclass(frozen=True)
class Case:
    """What is right for a route, and what is wrong with it in its own way.

    good: a body that would be accepted; ids in braces are filled in. form: the same of a form, beside its file.
    wrong: (change of the good body or form, param of the refusal). An object that is named and not there is not found: its param is
    `id`, and None for a vector store.
    wrong_state: (the objects of the world that the call goes to, message, and code where there is one); None for a call that is fine
    in every state.
    """

    good: dict[str, Any] | None = None
    form: dict[str, str] | None = None
    wrong: list[tuple[dict[str, Any], str | None]] = field(default_factory=list)
    wrong_state: tuple[str, ...] | None = None


MCP = {"type": "mcp", "server_label": "docs", "server_url": "https://example.com/mcp"}
WRONG_IN_MCP: list[tuple[dict[str, Any], str]] = [
    ({"server_label": "two words"}, "server_label"),
    ({"server_label": "docs\n"}, "server_label"),
    ({"server_label": "d" * 65}, "server_label"),
    *(
        ({"server_url": url}, "server_url")
        for url in (
            "ftp://example.com",
            "https://",
            "https://example.com/a b",
            "https://example.com\n",
            "https://user:password@example.com",
            "https://example.com:70000/",
            "https://[:::]/",
            "https://example.com/" + "x" * 2048,
        )
    ),
    *(({"headers": {name: "x"}}, "headers") for name in ("two words", "X\n", "Content-Length", "host")),
    *(({"headers": {"X": value}}, "headers.X") for value in ("a\r\nY: b", "a\n", "\u00e9", "x" * 4097, 5)),
    ({"headers": {f"X-{number}": "" for number in range(17)}}, "headers"),
    ({"allowed_tools": "add"}, "allowed_tools"),
    ({"allowed_tools": [""]}, "allowed_tools[0]"),
    ({"require_approval": "sometimes"}, "require_approval"),
    ({"require_approval": {"never": ["add"]}}, "require_approval.never"),
    ({"require_approval": {"read_only": True}}, "require_approval.read_only"),
    ({"authorization": "x"}, "authorization"),
]
TOOLS = [
    ({"tools": "file_search"}, "tools"),
    ({"tools": [{"type": "retrieval"}]}, "tools[0].type"),
    ({"tools": [{"type": "function", "function": {"name": "two words"}}]}, "tools[0].function.name"),
    ({"tools": [{"type": "function", "function": {"name": "f", "parameters": []}}]}, "tools[0].function.parameters"),
    *(({"tools": [{**MCP, **change}]}, f"tools[0].{param}") for change, param in WRONG_IN_MCP),
    ({"tools": [{"type": "function", "function": {"name": "f"}}, MCP, MCP]}, "tools[2].server_label"),
    ({"tools": [{"type": "mcp", "server_label": "docs"}]}, "tools[0].server_url"),
    ({"temperature": 2.1}, "temperature"),
    ({"temperature": "hot"}, "temperature"),
    ({"top_p": -0.1}, "top_p"),
    ({"response_format": {"type": "xml"}}, "response_format.type"),
    ({"response_format": {"type": "json_schema"}}, "response_format.json_schema"),
    ({"reasoning_effort": "huge"}, "reasoning_effort"),
    ({"model": ""}, "model"),
    ({"model": 5}, "model"),
]
RESOURCES = [
    ({"tool_resources": {"file_search": {"vector_store_ids": ["vs_x"]}}}, None),
    (
        {"tool_resources": {"file_search": {"vector_store_ids": ["{vector_store_id}", "vs_x"]}}},
        "tool_resources.file_search.vector_store_ids",
    ),
    ({"tool_resources": {"code_interpreter": {"file_ids": ["{file_id}", "file-x"]}}}, "id"),
    ({"tool_resources": {"code_interpreter": {"file_ids": ["{file_id}"] * 21}}}, "tool_resources.code_interpreter.file_ids"),
    ({"tool_resources": {"code_interpreter": {"file_ids": [5]}}}, "tool_resources.code_interpreter.file_ids[0]"),
    ({"tool_resources": {"retrieval": {}}}, "tool_resources.retrieval"),
]
# Only what makes an assistant or thread can make a vector store with it.
NEW_STORES = [
    *RESOURCES,
    ({"tool_resources": {"file_search": {"vector_store_ids": ["{vector_store_id}"], "vector_stores": []}}}, "tool_resources.file_search"),
    ({"tool_resources": {"file_search": {"vector_stores": [{}, {}]}}}, "tool_resources.file_search.vector_stores"),
    ({"tool_resources": {"file_search": {"vector_stores": [{"file_ids": ["{file_id}", "file-x"]}]}}}, "id"),
    ({"tool_resources": {"file_search": {"vector_stores": [{"name": "n"}]}}}, "tool_resources.file_search.vector_stores[0].name"),
]
NO_NEW_STORES = [
    *RESOURCES,
    ({"tool_resources": {"file_search": {"vector_stores": [{}]}}}, "tool_resources.file_search.vector_stores"),
]
METADATA = [
    ({"metadata": []}, "metadata"),
    ({"metadata": {"a": 1}}, "metadata.a"),
    ({"metadata": {"a": None}}, "metadata.a"),
    ({"metadata": {str(number): "" for number in range(17)}}, "metadata"),
    ({"metadata": {"k" * 65: ""}}, "metadata"),
    ({"metadata": {"a": "v" * 513}}, "metadata.a"),
]
MESSAGE = [
    ({"role": "system"}, "role"),
    ({"role": None}, "role"),
    ({"content": ""}, "content"),
    ({"content": []}, "content"),
    ({"content": 5}, "content"),
    ({"content": [{"type": "text"}]}, "content[0].text"),
    ({"content": [{"type": "video"}]}, "content[0].type"),
    ({"content": [{"type": "image_file", "image_file": {"file_id": "file-x"}}]}, "id"),
    ({"attachments": [{"file_id": "file-x", "tools": [{"type": "file_search"}]}]}, "id"),
    ({"attachments": [{"file_id": "{file_id}", "tools": [{"type": "file_search"}]}, {"file_id": "file-x"}]}, "id"),
    ({"attachments": [{"file_id": "{strange_file_id}", "tools": [{"type": "file_search"}]}]}, "file_ids"),
    ({"attachments": [{"file_id": "{file_id}", "tools": [{"type": "function"}]}]}, "attachments[0].tools[0].type"),
    ({"attachments": [{"file_id": "{file_id}"}] * 501}, "attachments"),
    ({"attachments": [{}]}, "attachments[0].file_id"),
]
RUN = [
    *TOOLS,
    *METADATA,
    ({"assistant_id": "thread_x"}, "assistant_id"),
    ({"assistant_id": None}, "assistant_id"),
    ({"stream": "yes"}, "stream"),
    ({"max_prompt_tokens": 255}, "max_prompt_tokens"),
    ({"max_completion_tokens": 1.5}, "max_completion_tokens"),
    ({"truncation_strategy": {"type": "last"}}, "truncation_strategy.type"),
    ({"tool_choice": "always"}, "tool_choice"),
    ({"tool_choice": {"type": "function", "function": {"name": "unknown"}}}, "tool_choice"),
    ({"parallel_tool_calls": 1}, "parallel_tool_calls"),
]
CHUNKING = [
    ({"chunking_strategy": "auto"}, "chunking_strategy"),
    ({"chunking_strategy": {"type": "semantic"}}, "chunking_strategy.type"),
    ({"chunking_strategy": {"type": "static"}}, "chunking_strategy.static"),
    (
        {"chunking_strategy": {"type": "static", "static": {"max_chunk_size_tokens": 99, "chunk_overlap_tokens": 0}}},
        "chunking_strategy.static.max_chunk_size_tokens",
    ),
    (
        {"chunking_strategy": {"type": "static", "static": {"max_chunk_size_tokens": 4097, "chunk_overlap_tokens": 0}}},
        "chunking_strategy.static.max_chunk_size_tokens",
    ),
    (
        {"chunking_strategy": {"type": "static", "static": {"max_chunk_size_tokens": 100, "chunk_overlap_tokens": 51}}},
        "chunking_strategy.static",
    ),
]
ATTRIBUTES = [
    ({"attributes": []}, "attributes"),
    ({"attributes": {"a": []}}, "attributes.a"),
    ({"attributes": {"a": None}}, "attributes.a"),
    ({"attributes": {"a": 2**63}}, "attributes.a"),
    ({"attributes": {"a": "v" * 513}}, "attributes.a"),
    ({"attributes": {"a": "v\0"}}, "attributes.a"),
    ({"attributes": {"k\0": 1}}, "attributes"),
    ({"attributes": {"k" * 65: ""}}, "attributes"),
    ({"attributes": {str(number): number for number in range(17)}}, "attributes"),
]
STORE_EXPIRY = [
    ({"expires_after": 7}, "expires_after"),
    ({"expires_after": {"days": 1}}, "expires_after.anchor"),
    ({"expires_after": {"anchor": "created_at", "days": 1}}, "expires_after.anchor"),
    ({"expires_after": {"anchor": "last_active_at", "days": 0}}, "expires_after.days"),
    ({"expires_after": {"anchor": "last_active_at", "days": 366}}, "expires_after.days"),
]
FILE_EXPIRY = [
    ({"expires_after": {"anchor": "last_active_at", "seconds": 3600}}, "expires_after.anchor"),
    ({"expires_after": {"anchor": "created_at", "seconds": 3599}}, "expires_after.seconds"),
    ({"expires_after": {"anchor": "created_at", "seconds": 2_592_001}}, "expires_after.seconds"),
    ({"expires_after": {"anchor": "created_at"}}, "expires_after.seconds"),
]


def and_filters(depth: int) -> dict[str, Any]:
    """A filter in so many others."""
    filters: dict[str, Any] = {"type": "eq", "key": "a", "value": 1}
    for _ in range(depth):
        filters = {"type": "and", "filters": [filters]}
    return filters


SEARCH = [
    ({"query": ""}, "query"),
    ({"query": []}, "query"),
    ({"query": None}, "query"),
    ({"query": ["a", ""]}, "query[1]"),
    ({"query": "q" * 10_001}, "query"),
    ({"query": ["q"] * 21}, "query"),
    ({"rewrite_query": "yes"}, "rewrite_query"),
    ({"max_num_results": 0}, "max_num_results"),
    ({"max_num_results": 51}, "max_num_results"),
    ({"filters": []}, "filters"),
    ({"filters": {}}, "filters.type"),
    ({"filters": {"type": "like", "key": "a", "value": 1}}, "filters.type"),
    ({"filters": {"type": "eq", "key": "a"}}, "filters.value"),
    ({"filters": {"type": "eq", "key": "k" * 65, "value": 1}}, "filters.key"),
    ({"filters": {"type": "eq", "key": "a", "value": None}}, "filters.value"),
    ({"filters": {"type": "eq", "key": "a", "value": 1, "more": 1}}, "filters.more"),
    ({"filters": {"type": "in", "key": "a", "value": []}}, "filters.value"),
    ({"filters": {"type": "in", "key": "a", "value": 1}}, "filters.value"),
    ({"filters": {"type": "and", "filters": []}}, "filters.filters"),
    ({"filters": {"type": "or", "filters": [{"type": "ne"}]}}, "filters.filters[0].key"),
    ({"filters": and_filters(16)}, "filters"),
    ({"filters": {"type": "or", "filters": [{"type": "in", "key": "a", "value": [1] * 400}] * 3}}, "filters"),
    ({"ranking_options": {"ranker": "best"}}, "ranking_options.ranker"),
    ({"ranking_options": {"score_threshold": 1.1}}, "ranking_options.score_threshold"),
    ({"ranking_options": {"hybrid_search": {"embedding_weight": 1}}}, "ranking_options.hybrid_search.text_weight"),
    ({"ranking_options": {"hybrid_search": {"embedding_weight": 0, "text_weight": 0}}}, "ranking_options.hybrid_search"),
]

EXPIRED = (
    "ended",
    "Vector store {vector_store_id} is expired. Its list of files can still be read: add them to a new vector store.",
    "vector_store_expired",
)

CASES = {
    "createAssistant": Case(
        {"model": "m"},
        wrong=[*TOOLS, *METADATA, *NEW_STORES, ({"name": "n" * 257}, "name"), ({"instructions": "i" * 256_001}, "instructions")],
    ),
    "listAssistants": Case(),
    "getAssistant": Case(),
    "modifyAssistant": Case({"name": "new"}, wrong=[*TOOLS, *METADATA, *NO_NEW_STORES, ({"model": None}, "model")]),
    "deleteAssistant": Case(),
    "createThread": Case(
        {},
        wrong=[
            *METADATA,
            *NEW_STORES,
            ({"messages": [{"role": "user"}]}, "messages[0].content"),
            ({"messages": [{"role": "user", "content": "hi", "attachments": [{"file_id": "file-x"}]}]}, "id"),
            ({"tool_resources": []}, "tool_resources"),
        ],
    ),
    "listThreads": Case(),
    "getThread": Case(),
    "modifyThread": Case(
        {"metadata": {"new": "1"}},
        wrong=[*METADATA, *NO_NEW_STORES, ({"tool_resources": {"file_search": 1}}, "tool_resources.file_search")],
    ),
    "deleteThread": Case(),
    "createMessage": Case(
        {"role": "user", "content": "hi"},
        wrong=[*MESSAGE, *METADATA],
        wrong_state=("waiting", "Can't add messages to {thread_id} while a run {run_id} is active."),
    ),
    "listMessages": Case(),
    "getMessage": Case(),
    "modifyMessage": Case(
        {"metadata": {"new": "1"}}, wrong=[*METADATA], wrong_state=("writing", "Cannot update message with status 'in_progress'.")
    ),
    "deleteMessage": Case(),
    "createThreadAndRun": Case(
        {"assistant_id": "{assistant_id}", "thread": {"messages": [{"role": "user", "content": "hi"}]}},
        wrong=[
            *RUN,
            *NEW_STORES,
            ({"thread": {"messages": [{"role": "x", "content": "hi"}]}}, "thread.messages[0].role"),
            ({"thread": {"messages": [{"role": "user", "content": "hi", "attachments": [{"file_id": "file-x"}]}]}}, "id"),
            ({"thread": {"tool_resources": {"file_search": {"vector_store_ids": ["vs_x"]}}}}, None),
        ],
    ),
    "createRun": Case(
        {"assistant_id": "{assistant_id}"},
        wrong=[
            *RUN,
            ({"additional_messages": [{"role": "user", "content": []}]}, "additional_messages[0].content"),
            ({"additional_messages": [{"role": "user", "content": "hi", "attachments": [{"file_id": "file-x"}]}]}, "id"),
        ],
        wrong_state=("waiting", "Thread {thread_id} already has an active run {run_id}."),
    ),
    "listRuns": Case(),
    "getRun": Case(),
    "modifyRun": Case(
        {"metadata": {"new": "1"}}, wrong=[*METADATA], wrong_state=("writing", "Cannot update run with status 'in_progress'.")
    ),
    "cancelRun": Case(wrong_state=("answered", "Cannot cancel run with status 'completed'.")),
    "submitToolOuputsToRun": Case(
        {"tool_outputs": []},
        wrong=[
            ({"tool_outputs": {}}, "tool_outputs"),
            ({"tool_outputs": [{"output": "x"}]}, "tool_outputs[0].tool_call_id"),
            ({"tool_outputs": [{"tool_call_id": "c", "output": 5}]}, "tool_outputs[0].output"),
            ({"stream": 1}, "stream"),
        ],
        wrong_state=("answered", 'Runs in status "completed" do not accept tool outputs.'),
    ),
    "streamRunEvents": Case(),
    "listRunSteps": Case(),
    "getRunStep": Case(),
    "createFile": Case(
        form={"purpose": "assistants"},
        wrong=[
            *FILE_EXPIRY,
            ({"purpose": ""}, "purpose"),
            ({"purpose": "assistants_output"}, "purpose"),
            ({"expires_after": "3600"}, "expires_after"),
            ({"expires_after": {"anchor": "created_at", "seconds": "1e9"}}, "expires_after.seconds"),
            ({"expires_after": {"anchor": "created_at", "seconds": "9" * 101}}, "expires_after.seconds"),
            ({"expires_after": {"anchor": "created_at", "seconds": "3600", "x": "1"}}, "expires_after.x"),
        ],
    ),
    "listFiles": Case(),
    "retrieveFile": Case(),
    "deleteFile": Case(),
    "downloadFile": Case(),
    "createUpload": Case(
        {"filename": "a.txt", "purpose": "assistants", "bytes": 5, "mime_type": "text/plain"},
        wrong=[
            *FILE_EXPIRY,
            ({"filename": ""}, "filename"),
            ({"filename": "f" * 513}, "filename"),
            ({"filename": None}, "filename"),
            ({"purpose": "x"}, "purpose"),
            ({"bytes": 0}, "bytes"),
            ({"bytes": 2**40}, "bytes"),
            ({"bytes": "5"}, "bytes"),
            ({"mime_type": "m" * 257}, "mime_type"),
        ],
    ),
    "addUploadPart": Case(form={}, wrong_state=("ended", "Upload {upload_id} has status 'cancelled' and cannot be added to or completed.")),
    "completeUpload": Case(
        {"part_ids": ["{part_id}"]},
        wrong=[
            ({"part_ids": []}, "part_ids"),
            ({"part_ids": [""]}, "part_ids[0]"),
            ({"part_ids": ["{part_id}", "part_x"]}, "part_ids[1]"),
            ({"part_ids": ["{part_id}", "{part_id}"]}, "part_ids"),
            ({"md5": "x"}, "md5"),
            ({"md5": "0" * 32}, "md5"),
            ({"md5": 5}, "md5"),
        ],
        wrong_state=("ended", "Upload {upload_id} has status 'cancelled' and cannot be added to or completed."),
    ),
    "cancelUpload": Case(wrong_state=("ended", "Cannot cancel upload with status 'cancelled'.")),
    "createVectorStore": Case(
        {"name": "n", "file_ids": ["{file_id}"]},
        wrong=[
            *CHUNKING,
            *METADATA,
            *STORE_EXPIRY,
            ({"name": "n" * 257}, "name"),
            ({"description": "d" * 513}, "description"),
            ({"file_ids": "{file_id}"}, "file_ids"),
            ({"file_ids": ["{file_id}", 5]}, "file_ids[1]"),
            ({"file_ids": [""]}, "file_ids[0]"),
            ({"file_ids": ["{file_id}"] * 501}, "file_ids"),
            ({"file_ids": ["{file_id}", "file-x"]}, "id"),
        ],
    ),
    "listVectorStores": Case(),
    "getVectorStore": Case(),
    "modifyVectorStore": Case({"name": "new"}, wrong=[*METADATA, *STORE_EXPIRY, ({"name": 5}, "name")]),
    "deleteVectorStore": Case(),
    "searchVectorStore": Case(
        {"query": "whales"},
        wrong=SEARCH,
        wrong_state=EXPIRED,
    ),
    "createVectorStoreFile": Case(
        {"file_id": "{other_file_id}"},
        wrong=[
            *ATTRIBUTES,
            *CHUNKING,
            ({"file_id": ""}, "file_id"),
            ({"file_id": None}, "file_id"),
            ({"file_id": "f" * 257}, "file_id"),
            ({"file_id": "file-x"}, "id"),
            ({"file_id": "{strange_file_id}"}, "file_ids"),
        ],
        wrong_state=EXPIRED,
    ),
    "listVectorStoreFiles": Case(),
    "getVectorStoreFile": Case(),
    "updateVectorStoreFileAttributes": Case({"attributes": {"a": 1}}, wrong=ATTRIBUTES),
    "deleteVectorStoreFile": Case(),
    "retrieveVectorStoreFileContent": Case(wrong_state=EXPIRED),
    "createVectorStoreFileBatch": Case(
        {"file_ids": ["{other_file_id}"]},
        wrong=[
            *ATTRIBUTES,
            *CHUNKING,
            ({"file_ids": None}, "file_ids"),
            ({"file_ids": []}, "file_ids"),
            ({"file_ids": [5]}, "file_ids[0]"),
            ({"file_ids": ["{file_id}"] * 2001}, "file_ids"),
            ({"file_ids": ["{other_file_id}", "file-x"]}, "id"),
            ({"files": [{"file_id": "{other_file_id}"}]}, "files"),
            ({"file_ids": None, "files": [{}]}, "files[0].file_id"),
            ({"file_ids": None, "files": [{"file_id": "{other_file_id}", "attributes": {"a": []}}]}, "files[0].attributes.a"),
            ({"file_ids": None, "files": [{"file_id": "{other_file_id}"}, {"file_id": "file-x"}]}, "id"),
        ],
        wrong_state=EXPIRED,
    ),
    "getVectorStoreFileBatch": Case(),
    "cancelVectorStoreFileBatch": Case(),
    "listFilesInVectorStoreBatch": Case(),
    "createWebhook": Case(
        {"url": "https://hook.invalid/", "events": ["run.completed"]},
        wrong=[
            *METADATA,
            ({"url": "ftp://example.com"}, "url"),
            ({"url": "https://example.com/a b"}, "url"),
            ({"url": "https://user:password@example.com"}, "url"),
            ({"url": "https://example.com:70000/"}, "url"),
            ({"url": "https://example.com/" + "x" * 2048}, "url"),
            ({"url": "http://127.0.0.1/"}, "url"),
            ({"url": 5}, "url"),
            ({"events": []}, "events"),
            ({"events": ["run.completed"] * 17}, "events"),
            ({"events": ["run.queued"]}, "events[0]"),
            ({"events": "run.completed"}, "events"),
            ({"secret": "whsec_x"}, "secret"),
        ],
    ),
    "listWebhooks": Case(),
    "getWebhook": Case(),
    "deleteWebhook": Case(),
    "listModels": Case(),
    "retrieveModel": Case(),
    "listUsage": Case(),
    "listAuditLogs": Case(),
    "getHealth": Case(),
    "getLiveness": Case(),
    "getMetrics": Case(),
    "getOpenapi": Case(),
}

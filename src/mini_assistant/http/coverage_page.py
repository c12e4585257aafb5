"""`docs/api-coverage.md`: which operations of the official API this server has. Made from the route table by `make docs`."""

from collections.abc import Sequence
from typing import NamedTuple

from mini_assistant.http.routing import Route


class Operation(NamedTuple):
    """An operation of the official specification."""

    name: str
    method: str
    path: str


# Source: openapi-assistants.json, in its order; the misspelt name is the specification's own.
OFFICIAL_OPERATIONS = {
    "Assistants": [
        Operation("listAssistants", "GET", "/assistants"),
        Operation("createAssistant", "POST", "/assistants"),
        Operation("getAssistant", "GET", "/assistants/{assistant_id}"),
        Operation("modifyAssistant", "POST", "/assistants/{assistant_id}"),
        Operation("deleteAssistant", "DELETE", "/assistants/{assistant_id}"),
    ],
    "Threads and messages": [
        Operation("createThread", "POST", "/threads"),
        Operation("getThread", "GET", "/threads/{thread_id}"),
        Operation("modifyThread", "POST", "/threads/{thread_id}"),
        Operation("deleteThread", "DELETE", "/threads/{thread_id}"),
        Operation("listMessages", "GET", "/threads/{thread_id}/messages"),
        Operation("createMessage", "POST", "/threads/{thread_id}/messages"),
        Operation("getMessage", "GET", "/threads/{thread_id}/messages/{message_id}"),
        Operation("modifyMessage", "POST", "/threads/{thread_id}/messages/{message_id}"),
        Operation("deleteMessage", "DELETE", "/threads/{thread_id}/messages/{message_id}"),
    ],
    "Runs and run steps": [
        Operation("createThreadAndRun", "POST", "/threads/runs"),
        Operation("listRuns", "GET", "/threads/{thread_id}/runs"),
        Operation("createRun", "POST", "/threads/{thread_id}/runs"),
        Operation("getRun", "GET", "/threads/{thread_id}/runs/{run_id}"),
        Operation("modifyRun", "POST", "/threads/{thread_id}/runs/{run_id}"),
        Operation("cancelRun", "POST", "/threads/{thread_id}/runs/{run_id}/cancel"),
        Operation("submitToolOuputsToRun", "POST", "/threads/{thread_id}/runs/{run_id}/submit_tool_outputs"),
        Operation("listRunSteps", "GET", "/threads/{thread_id}/runs/{run_id}/steps"),
        Operation("getRunStep", "GET", "/threads/{thread_id}/runs/{run_id}/steps/{step_id}"),
    ],
    "Files": [
        Operation("listFiles", "GET", "/files"),
        Operation("createFile", "POST", "/files"),
        Operation("retrieveFile", "GET", "/files/{file_id}"),
        Operation("deleteFile", "DELETE", "/files/{file_id}"),
        Operation("downloadFile", "GET", "/files/{file_id}/content"),
    ],
    "Uploads": [
        Operation("createUpload", "POST", "/uploads"),
        Operation("addUploadPart", "POST", "/uploads/{upload_id}/parts"),
        Operation("completeUpload", "POST", "/uploads/{upload_id}/complete"),
        Operation("cancelUpload", "POST", "/uploads/{upload_id}/cancel"),
    ],
    "Vector stores": [
        Operation("listVectorStores", "GET", "/vector_stores"),
        Operation("createVectorStore", "POST", "/vector_stores"),
        Operation("getVectorStore", "GET", "/vector_stores/{vector_store_id}"),
        Operation("modifyVectorStore", "POST", "/vector_stores/{vector_store_id}"),
        Operation("deleteVectorStore", "DELETE", "/vector_stores/{vector_store_id}"),
        Operation("searchVectorStore", "POST", "/vector_stores/{vector_store_id}/search"),
        Operation("listVectorStoreFiles", "GET", "/vector_stores/{vector_store_id}/files"),
        Operation("createVectorStoreFile", "POST", "/vector_stores/{vector_store_id}/files"),
        Operation("getVectorStoreFile", "GET", "/vector_stores/{vector_store_id}/files/{file_id}"),
        Operation("updateVectorStoreFileAttributes", "POST", "/vector_stores/{vector_store_id}/files/{file_id}"),
        Operation("deleteVectorStoreFile", "DELETE", "/vector_stores/{vector_store_id}/files/{file_id}"),
        Operation("retrieveVectorStoreFileContent", "GET", "/vector_stores/{vector_store_id}/files/{file_id}/content"),
        Operation("createVectorStoreFileBatch", "POST", "/vector_stores/{vector_store_id}/file_batches"),
        Operation("getVectorStoreFileBatch", "GET", "/vector_stores/{vector_store_id}/file_batches/{batch_id}"),
        Operation("cancelVectorStoreFileBatch", "POST", "/vector_stores/{vector_store_id}/file_batches/{batch_id}/cancel"),
        Operation("listFilesInVectorStoreBatch", "GET", "/vector_stores/{vector_store_id}/file_batches/{batch_id}/files"),
    ],
}


def coverage_page(routes: Sequence[Route]) -> str:
    """The text of `docs/api-coverage.md`."""
    served = {Operation(route.name, route.method, route.path): route for route in routes}
    official = {operation for group in OFFICIAL_OPERATIONS.values() for operation in group}
    lines = [
        "# API coverage",
        "",
        "Every operation of the official Assistants API, and whether this server has it. This page is generated by `make docs`.",
        f"{len(official & served.keys())} of {len(official)} are served"
        + ("; the others answer 404." if official - served.keys() else "."),
    ]
    for group, operations in OFFICIAL_OPERATIONS.items():
        lines += _table(group, "served", [(operation, "yes" if operation in served else "not yet") for operation in operations])
    extensions = [operation for operation in served if operation not in official]
    lines += _table("Beyond the official API", "what it does", [(operation, served[operation].summary) for operation in extensions])
    return "\n".join([*lines, ""])


def _table(title: str, last_column: str, rows: list[tuple[Operation, str]]) -> list[str]:
    lines = ["", f"## {title}", "", f"| operation | method and path | {last_column} |", "|---|---|---|"]
    return [*lines, *(f"| `{operation.name}` | `{operation.method} {operation.path}` | {text} |" for operation, text in rows)]

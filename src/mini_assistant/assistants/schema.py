"""The wire shape of assistants, and of what threads and runs share with them: tools, tool resources, response formats, metadata.

Source: openapi-assistants.json, CreateAssistantRequest, ModifyAssistantRequest, AssistantObject; recorded answers where they differ.
Field order is the order on the wire. UNSET means that the client did not send the field.
"""

from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

import msgspec
from msgspec import UNSET, Meta, UnsetType

from mini_assistant.errors import InvalidRequest

Metadata = Annotated[
    dict[Annotated[str, Meta(max_length=64)], Annotated[str, Meta(max_length=512)]],
    Meta(max_length=16, description="Up to 16 texts; keys of at most 64 characters, values of at most 512."),
]
Name = Annotated[str, Meta(max_length=256)]
Description = Annotated[str, Meta(max_length=512)]
Instructions = Annotated[str, Meta(max_length=256_000)]
ModelName = Annotated[str, Meta(min_length=1, max_length=256)]
Temperature = Annotated[float, Meta(ge=0, le=2)]
TopP = Annotated[float, Meta(ge=0, le=1)]
ReasoningEffort = Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"]
ObjectId = Annotated[str, Meta(min_length=1, max_length=256)]


class FunctionDefinition(msgspec.Struct, forbid_unknown_fields=True):
    """A function of the client's. `parameters` is a JSON schema of an object."""

    name: Annotated[str, Meta(min_length=1, max_length=64, pattern="^[a-zA-Z0-9_-]+$")]
    description: str | None | UnsetType = UNSET
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class FunctionTool(msgspec.Struct, tag_field="type", tag="function", forbid_unknown_fields=True):
    """`{"type": "function", "function": {...}}`."""

    function: FunctionDefinition


class RankingOptions(msgspec.Struct, forbid_unknown_fields=True):
    """How passages are ranked. The wire adds `hybrid_search` to what the specification names."""

    score_threshold: Annotated[float, Meta(ge=0, le=1)]
    ranker: Literal["auto", "default_2024_08_21"] = "auto"
    hybrid_search: dict[str, float] | None = None


class FileSearchOptions(msgspec.Struct, forbid_unknown_fields=True, omit_defaults=True):
    """Overrides of the file_search tool."""

    max_num_results: Annotated[int, Meta(ge=1, le=50)] | UnsetType = UNSET
    ranking_options: RankingOptions | UnsetType = UNSET


class FileSearchTool(msgspec.Struct, tag_field="type", tag="file_search", forbid_unknown_fields=True):
    """`{"type": "file_search"}`."""

    file_search: FileSearchOptions | UnsetType = UNSET


class CodeInterpreterTool(msgspec.Struct, tag_field="type", tag="code_interpreter", forbid_unknown_fields=True):
    """`{"type": "code_interpreter"}`."""


class McpToolNames(msgspec.Struct, forbid_unknown_fields=True):
    """Tools of an MCP server, by its own names."""

    tool_names: Annotated[list[ObjectId], Meta(max_length=128)]


class McpApproval(msgspec.Struct, forbid_unknown_fields=True, omit_defaults=True):
    """Which tools of an MCP server need an approval for each call: `always`, and what is named nowhere; `never` do not."""

    always: McpToolNames | UnsetType = UNSET
    never: McpToolNames | UnsetType = UNSET


# Unlike `$`, `$(?!\n)` does not let a line end pass; other readers of the OpenAPI document take it, too.
McpUrl = Annotated[
    str,
    Meta(max_length=2048, pattern=r"^https?://([A-Za-z0-9._-]+|\[[0-9A-Fa-f:.]+\])(:[0-9]{1,5})?([/?][!-\x22$-~]*)?$(?!\n)"),
]
McpHeaders = Annotated[
    dict[
        Annotated[str, Meta(max_length=256, pattern=r"^[A-Za-z0-9!$%&'*+.^_`|~-]+$(?!\n)")],
        Annotated[str, Meta(max_length=4096, pattern=r"^[\t -~]*$(?!\n)")],
    ],
    Meta(max_length=16),
]


class McpTool(msgspec.Struct, tag_field="type", tag="mcp", forbid_unknown_fields=True):
    """`{"type": "mcp", ...}`: the tools of an MCP server that speaks streamable HTTP. An extension of this server.

    headers: sent with each request to it. allowed_tools: names of the server's; None for all that it has.
    """

    server_label: Annotated[str, Meta(min_length=1, max_length=64, pattern=r"^[a-zA-Z0-9_-]+$(?!\n)")]
    server_url: McpUrl
    headers: McpHeaders | None = None
    allowed_tools: Annotated[list[ObjectId], Meta(max_length=128)] | None = None
    require_approval: Literal["always", "never"] | McpApproval = "always"


# They belong to the connection, not to who makes the request.
_CONNECTION_HEADERS = frozenset(
    {"host", "connection", "content-length", "transfer-encoding", "te", "trailer", "upgrade", "expect", "accept-encoding", "keep-alive"}
)


Tool = CodeInterpreterTool | FileSearchTool | FunctionTool | McpTool


class ChunkSize(msgspec.Struct, forbid_unknown_fields=True):
    """How a file's text is cut into passages. The overlap is at most half of the size."""

    max_chunk_size_tokens: Annotated[int, Meta(ge=100, le=4096)]
    chunk_overlap_tokens: Annotated[int, Meta(ge=0)]

    def __post_init__(self) -> None:
        if self.chunk_overlap_tokens * 2 > self.max_chunk_size_tokens:
            raise ValueError("Invalid 'chunk_overlap_tokens': it must not be more than half of 'max_chunk_size_tokens'.")


class AutoChunking(msgspec.Struct, tag_field="type", tag="auto", forbid_unknown_fields=True):
    """`{"type": "auto"}`: the default size."""


class StaticChunking(msgspec.Struct, tag_field="type", tag="static", forbid_unknown_fields=True):
    """`{"type": "static", "static": {...}}`, the same in requests and answers."""

    static: ChunkSize


ChunkingStrategyInput = AutoChunking | StaticChunking


class NewVectorStore(msgspec.Struct, forbid_unknown_fields=True):
    """A vector store that is made together with an assistant or a thread."""

    file_ids: list[ObjectId] | None = None
    chunking_strategy: ChunkingStrategyInput | None = None
    metadata: Metadata | None = None


class CodeInterpreterResources(msgspec.Struct, forbid_unknown_fields=True):
    """Files that the code can read."""

    file_ids: Annotated[list[ObjectId], Meta(max_length=20)] = msgspec.field(default_factory=list[str])


class FileSearchResources(msgspec.Struct, forbid_unknown_fields=True):
    """The vector store that is searched."""

    vector_store_ids: Annotated[list[ObjectId], Meta(max_length=1)] = msgspec.field(default_factory=list[str])


class ToolResources(msgspec.Struct, forbid_unknown_fields=True, omit_defaults=True):
    """What the tools of an assistant or thread work on."""

    code_interpreter: CodeInterpreterResources | UnsetType = UNSET
    file_search: FileSearchResources | UnsetType = UNSET


class NewFileSearchResources(msgspec.Struct, forbid_unknown_fields=True):
    """The vector store that is searched: one that there is, or one to be made."""

    vector_store_ids: Annotated[list[ObjectId], Meta(max_length=1)] | UnsetType = UNSET
    vector_stores: Annotated[list[NewVectorStore], Meta(max_length=1)] | UnsetType = UNSET


class NewToolResources(msgspec.Struct, forbid_unknown_fields=True):
    """Tool resources as a creation takes them. Answers show them as `ToolResources`."""

    code_interpreter: CodeInterpreterResources | UnsetType = UNSET
    file_search: NewFileSearchResources | UnsetType = UNSET


class TextFormat(msgspec.Struct, tag_field="type", tag="text", forbid_unknown_fields=True):
    """`{"type": "text"}`."""


class JsonObjectFormat(msgspec.Struct, tag_field="type", tag="json_object", forbid_unknown_fields=True):
    """`{"type": "json_object"}`."""


class JsonSchema(msgspec.Struct, forbid_unknown_fields=True):
    """A named JSON schema that the answer must follow."""

    name: Annotated[str, Meta(min_length=1, max_length=64, pattern="^[a-zA-Z0-9_-]+$")]
    description: str | UnsetType = UNSET
    schema: dict[str, Any] | UnsetType = UNSET
    strict: bool | None | UnsetType = UNSET


class JsonSchemaFormat(msgspec.Struct, tag_field="type", tag="json_schema", forbid_unknown_fields=True):
    """`{"type": "json_schema", "json_schema": {...}}`."""

    json_schema: JsonSchema


ResponseFormat = Literal["auto"] | TextFormat | JsonObjectFormat | JsonSchemaFormat


class CreateAssistant(msgspec.Struct, forbid_unknown_fields=True):
    """Body of `POST /assistants`."""

    model: ModelName
    name: Name | None = None
    description: Description | None = None
    instructions: Instructions | None = None
    tools: Annotated[list[Tool], Meta(max_length=128)] | None = None
    tool_resources: NewToolResources | None = None
    metadata: Metadata | None = None
    temperature: Temperature | None = None
    top_p: TopP | None = None
    reasoning_effort: ReasoningEffort | None = None
    response_format: ResponseFormat | None = None


class ModifyAssistant(msgspec.Struct, forbid_unknown_fields=True):
    """Body of `POST /assistants/{assistant_id}`: what is absent stays, null clears."""

    model: ModelName | UnsetType = UNSET
    name: Name | None | UnsetType = UNSET
    description: Description | None | UnsetType = UNSET
    instructions: Instructions | None | UnsetType = UNSET
    tools: Annotated[list[Tool], Meta(max_length=128)] | None | UnsetType = UNSET
    tool_resources: ToolResources | None | UnsetType = UNSET
    metadata: Metadata | None | UnsetType = UNSET
    temperature: Temperature | None | UnsetType = UNSET
    top_p: TopP | None | UnsetType = UNSET
    reasoning_effort: ReasoningEffort | None | UnsetType = UNSET
    response_format: ResponseFormat | None | UnsetType = UNSET


class Assistant(msgspec.Struct, kw_only=True):
    """The assistant object."""

    id: str
    object: Literal["assistant"] = "assistant"
    created_at: int
    name: str | None
    description: str | None
    model: str
    instructions: str | None
    tools: list[Tool]
    tool_resources: ToolResources
    metadata: dict[str, str]
    temperature: float
    top_p: float
    reasoning_effort: ReasoningEffort | None
    response_format: ResponseFormat


class Deleted(msgspec.Struct):
    """What a deletion answers."""

    id: str
    object: Literal["assistant.deleted", "thread.deleted", "thread.message.deleted", "vector_store.deleted", "vector_store.file.deleted"]
    deleted: bool = True


def echoed_tools(tools: list[Tool] | None) -> list[Tool]:
    """Tools as the hosted API echoed them: an omitted `parameters` is the empty object schema, `strict` is false, and file_search
    shows its ranking options. Source: behaviour §0 rows 13 and 14. Raises InvalidRequest for MCP servers that cannot be told apart or
    have a header that they must not have."""
    _check_mcp_tools(tools or [])
    for tool in tools or []:
        if isinstance(tool, FunctionTool):
            if tool.function.parameters is None:
                tool.function.parameters = {"type": "object", "properties": {}}
            tool.function.strict = bool(tool.function.strict)
        elif isinstance(tool, FileSearchTool):
            options = tool.file_search if tool.file_search is not UNSET else FileSearchOptions()
            if options.ranking_options is UNSET:
                options.ranking_options = RankingOptions(score_threshold=0.0, ranker="default_2024_08_21")
            tool.file_search = options
    return tools or []


def _has_port(url: str) -> bool:
    """Whether the host and port of a URL can be those of a server, as far as that is a matter of writing."""
    try:
        return urlsplit(url).port != 0
    except ValueError:
        return False


def _check_mcp_tools(tools: list[Tool]) -> None:
    labels: set[str] = set()
    for place, tool in enumerate(tools):
        if not isinstance(tool, McpTool):
            continue
        if tool.server_label in labels:
            reason = f"Invalid 'server_label': two MCP servers have the label '{tool.server_label}'."
            raise InvalidRequest(reason, param=f"tools[{place}].server_label", code="invalid_value")
        labels.add(tool.server_label)
        if not _has_port(tool.server_url):
            reason = "Invalid 'server_url': no server has this host and port."
            raise InvalidRequest(reason, param=f"tools[{place}].server_url", code="invalid_value")
        for name in tool.headers or {}:
            if name.lower() in _CONNECTION_HEADERS:
                reason = f"Invalid 'headers': '{name}' is set by this server itself."
                raise InvalidRequest(reason, param=f"tools[{place}].headers", code="invalid_value")


def echoed_resources(resources: ToolResources | None, tools: list[Tool]) -> ToolResources:
    """Resources as they were echoed: code_interpreter shows its empty list of files once the tool is on."""
    answer = resources or ToolResources()
    if answer.code_interpreter is UNSET and any(isinstance(tool, CodeInterpreterTool) for tool in tools):
        answer.code_interpreter = CodeInterpreterResources()
    return answer

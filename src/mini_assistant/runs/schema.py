"""The wire shape of runs and run steps.

Source: openapi-assistants.json, CreateRunRequest, CreateThreadAndRunRequest, RunObject, RunStepObject; the field order and the extra
fields of recorded answers (behaviour §0 rows 2, 3 and 5, §2.4, §2.5).
"""

from typing import Annotated, Literal

import msgspec
from msgspec import UNSET, Meta, UnsetType

from mini_assistant.assistants.schema import (
    Instructions,
    Metadata,
    ModelName,
    NewToolResources,
    ObjectId,
    RankingOptions,
    ReasoningEffort,
    ResponseFormat,
    Temperature,
    Tool,
    ToolResources,
    TopP,
)
from mini_assistant.errors import ModelErrorCode
from mini_assistant.threads.schema import CreateMessage, CreateThread

RunStatus = Literal["queued", "in_progress", "requires_action", "cancelling", "cancelled", "failed", "completed", "incomplete", "expired"]
StepStatus = Literal["in_progress", "cancelled", "failed", "completed", "expired"]


class TruncationStrategy(msgspec.Struct, forbid_unknown_fields=True):
    """Which messages the model sees: as many as fit, or the newest `last_messages`."""

    type: Literal["auto", "last_messages"]
    last_messages: Annotated[int, Meta(ge=1, le=100_000)] | None = None


class FunctionName(msgspec.Struct, forbid_unknown_fields=True):
    """The function that a tool choice names."""

    name: Annotated[str, Meta(min_length=1, max_length=64)]


class FunctionChoice(msgspec.Struct, tag_field="type", tag="function", forbid_unknown_fields=True):
    """`{"type": "function", "function": {"name": ...}}`."""

    function: FunctionName


class FileSearchChoice(msgspec.Struct, tag_field="type", tag="file_search", forbid_unknown_fields=True):
    """`{"type": "file_search"}`."""


class CodeInterpreterChoice(msgspec.Struct, tag_field="type", tag="code_interpreter", forbid_unknown_fields=True):
    """`{"type": "code_interpreter"}`."""


ToolChoice = Literal["none", "auto", "required"] | FunctionChoice | FileSearchChoice | CodeInterpreterChoice
RunTools = Annotated[list[Tool], Meta(max_length=20)]
TokenBudget = Annotated[int, Meta(ge=256, le=1_000_000_000)]


class RunParameters(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """What both calls that create a run take. null and absent both mean: as the assistant has it."""

    assistant_id: ObjectId
    model: ModelName | None = None
    instructions: Instructions | None = None
    additional_instructions: Instructions | None = None
    tools: RunTools | None = None
    metadata: Metadata | None = None
    temperature: Temperature | None = None
    top_p: TopP | None = None
    reasoning_effort: ReasoningEffort | None = None
    stream: bool | None = None
    max_prompt_tokens: TokenBudget | None = None
    max_completion_tokens: TokenBudget | None = None
    truncation_strategy: TruncationStrategy | None = None
    tool_choice: ToolChoice | None = None
    parallel_tool_calls: bool | None = None
    response_format: ResponseFormat | None = None


class CreateRun(RunParameters, forbid_unknown_fields=True, kw_only=True):
    """Body of `POST /threads/{thread_id}/runs`."""

    additional_messages: Annotated[list[CreateMessage], Meta(max_length=10_000)] | None = None


class CreateThreadAndRun(RunParameters, forbid_unknown_fields=True, kw_only=True):
    """Body of `POST /threads/runs`. `tool_resources` goes to the new thread."""

    thread: CreateThread | None = None
    tool_resources: NewToolResources | None = None


class ModifyRun(msgspec.Struct, forbid_unknown_fields=True):
    """Body of `POST /threads/{thread_id}/runs/{run_id}`."""

    metadata: Metadata | None | UnsetType = UNSET


class ToolOutput(msgspec.Struct, forbid_unknown_fields=True):
    """What the client's function gave. Absent and null read as empty."""

    tool_call_id: str
    output: str | None = None


class SubmitToolOutputs(msgspec.Struct, forbid_unknown_fields=True):
    """Body of `POST .../submit_tool_outputs`."""

    tool_outputs: Annotated[list[ToolOutput], Meta(max_length=512)]
    stream: bool | None = None


class CalledFunction(msgspec.Struct):
    """A call as the client has to make it. `arguments` is JSON text."""

    name: str
    arguments: str


class RequiredToolCall(msgspec.Struct, kw_only=True):
    """A call that waits for the client's output."""

    id: str
    type: Literal["function"] = "function"
    function: CalledFunction


class PendingToolCalls(msgspec.Struct):
    """The calls that wait."""

    tool_calls: list[RequiredToolCall]


class RequiredAction(msgspec.Struct, kw_only=True):
    """What a run in `requires_action` waits for."""

    type: Literal["submit_tool_outputs"] = "submit_tool_outputs"
    submit_tool_outputs: PendingToolCalls


class LastError(msgspec.Struct):
    """Why a run failed."""

    code: ModelErrorCode
    message: str


class RunIncompleteDetails(msgspec.Struct):
    """Which budget ended a run."""

    reason: Literal["max_completion_tokens", "max_prompt_tokens"]


class PromptTokenDetails(msgspec.Struct):
    """Part of `usage` on the wire (behaviour §0 row 5)."""

    cached_tokens: int = 0


class CompletionTokensDetails(msgspec.Struct):
    """Part of `usage` on the wire (behaviour §0 row 5)."""

    reasoning_tokens: int = 0


class Usage(msgspec.Struct):
    """Tokens of a step, or of a whole run."""

    prompt_tokens: int = 0
    completion_tokens: int = 0
    total_tokens: int = 0
    prompt_token_details: PromptTokenDetails = msgspec.field(default_factory=PromptTokenDetails)
    completion_tokens_details: CompletionTokensDetails = msgspec.field(default_factory=CompletionTokensDetails)


class Run(msgspec.Struct, kw_only=True):
    """The run object."""

    id: str
    object: Literal["thread.run"] = "thread.run"
    created_at: int
    assistant_id: str
    thread_id: str
    status: RunStatus
    started_at: int | None = None
    expires_at: int | None
    cancelled_at: int | None = None
    failed_at: int | None = None
    completed_at: int | None = None
    required_action: RequiredAction | None = None
    last_error: LastError | None = None
    model: str
    instructions: str | None
    tools: list[Tool]
    tool_resources: ToolResources
    metadata: dict[str, str]
    temperature: float | None
    top_p: float | None
    reasoning_effort: ReasoningEffort | None
    max_completion_tokens: int | None
    max_prompt_tokens: int | None
    truncation_strategy: TruncationStrategy
    incomplete_details: RunIncompleteDetails | None = None
    usage: Usage | None = None
    response_format: ResponseFormat
    tool_choice: ToolChoice
    parallel_tool_calls: bool


class MessageCreation(msgspec.Struct):
    """The message that a step writes."""

    message_id: str


class MessageCreationDetails(msgspec.Struct, tag_field="type", tag="message_creation"):
    """Details of a step that writes a message."""

    message_creation: MessageCreation


class FunctionCall(msgspec.Struct):
    """A function call and its output, None until the client has sent it."""

    name: str
    arguments: str
    output: str | None = None


class FunctionToolCall(msgspec.Struct, tag_field="type", tag="function"):
    """A call of a client's function."""

    id: str
    function: FunctionCall


class FileSearchResultContent(msgspec.Struct):
    """A passage; sent only with `include[]`."""

    text: str
    type: Literal["text"] = "text"


class FileSearchResult(msgspec.Struct):
    """A passage's place and score. page: from 1, where the file has pages; an extension."""

    file_id: str
    file_name: str
    score: float
    attributes: dict[str, str | float | bool]
    content: list[FileSearchResultContent] | UnsetType = UNSET
    page: int | UnsetType = UNSET


class FileSearchCall(msgspec.Struct):
    """What a search found."""

    ranking_options: RankingOptions
    results: list[FileSearchResult]


class FileSearchToolCall(msgspec.Struct, tag_field="type", tag="file_search"):
    """A call of the file_search tool."""

    id: str
    file_search: FileSearchCall


class CodeLogs(msgspec.Struct, tag_field="type", tag="logs"):
    """What code printed."""

    logs: str


class CodeImageFile(msgspec.Struct):
    """The file of a figure."""

    file_id: str


class CodeImage(msgspec.Struct, tag_field="type", tag="image"):
    """A figure that code drew."""

    image: CodeImageFile


CodeOutput = CodeLogs | CodeImage


class CodeCall(msgspec.Struct):
    """Code and what it gave."""

    input: str
    outputs: list[CodeOutput]


class CodeInterpreterToolCall(msgspec.Struct, tag_field="type", tag="code_interpreter"):
    """A call of the code_interpreter tool."""

    id: str
    code_interpreter: CodeCall


ToolCall = FunctionToolCall | FileSearchToolCall | CodeInterpreterToolCall


class ToolCallsDetails(msgspec.Struct, tag_field="type", tag="tool_calls"):
    """Details of a step that calls tools."""

    tool_calls: list[ToolCall]


class StepError(msgspec.Struct):
    """Why a step failed. The set of codes is smaller than a run's."""

    code: Literal["server_error", "rate_limit_exceeded"]
    message: str


class RunStep(msgspec.Struct, kw_only=True):
    """The run step object: the wire's `expires_at` and the specification's `expired_at` and `metadata` (behaviour §0 row 2)."""

    id: str
    object: Literal["thread.run.step"] = "thread.run.step"
    created_at: int
    run_id: str
    assistant_id: str
    thread_id: str
    type: Literal["message_creation", "tool_calls"]
    status: StepStatus
    cancelled_at: int | None = None
    completed_at: int | None = None
    expires_at: int | None = None
    expired_at: int | None = None
    failed_at: int | None = None
    last_error: StepError | None = None
    step_details: MessageCreationDetails | ToolCallsDetails
    usage: Usage | None = None
    metadata: dict[str, str] = msgspec.field(default_factory=dict[str, str])

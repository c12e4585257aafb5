"""One turn of the model while it is being written: deltas come in, rows and events go out.

Text opens a message and its step, a tool call opens a tool step. Each is a row before the first delta of it is told, and a turn that
was cut off by a crash is written into the same rows again.
"""

from collections.abc import Sequence

from mini_assistant.errors import ModelError
from mini_assistant.models.base import ChatDelta, Finished, RefusalDelta, TextDelta, ToolCallDelta
from mini_assistant.runs import changes as change
from mini_assistant.runs.annotations import AnnotatedText, Citable
from mini_assistant.runs.citations import Piece
from mini_assistant.runs.events import MESSAGE_DELTA, STEP_DELTA, MessageDeltas, StepDeltas
from mini_assistant.runs.made import Made
from mini_assistant.runs.schema import CodeOutput, MessageCreationDetails, StepError
from mini_assistant.runs.store import Changes, RunRecord, StepRecord, save_changes
from mini_assistant.runs.tool_calls import RequestedCall, hosted_tool_or_none, new_requested_call
from mini_assistant.services import Services
from mini_assistant.threads.schema import Annotation, Content, ImageFileContent, Message, RefusalContent, Text, TextContent

_INTERRUPTED = StepError("server_error", "The worker that wrote this step was lost.")


class _OpenPart:
    """A part of a message that is being written: what has been told of it."""

    def __init__(self, kind: type[TextDelta | RefusalDelta], citable: Citable | None) -> None:
        self.kind = kind
        self.pieces: list[str] = []
        self.annotations: list[Annotation] = []
        self.annotated = AnnotatedText(citable) if citable is not None and kind is TextDelta else None

    @property
    def content(self) -> Content:
        text = "".join(self.pieces)
        return TextContent(Text(text, list(self.annotations))) if self.kind is TextDelta else RefusalContent(text)


class OpenMessage:
    """A message that is being written, its step, and its content so far."""

    def __init__(self, message: Message, step: StepRecord, citable: Citable | None, images: Sequence[ImageFileContent] = ()) -> None:
        """citable: what the text may refer to; None when there is nothing, and it is told as it comes. images: parts before the text."""
        self.message = message
        self.step = step
        self.deltas = MessageDeltas(message.id)
        self._citable = citable
        self._images = images
        self._parts: list[_OpenPart] = []

    def begin(self) -> list[bytes]:
        """The wire deltas of the images, which come first."""
        return [self.deltas.image_file(index, image) for index, image in enumerate(self._images)]

    def add(self, delta: TextDelta | RefusalDelta) -> list[bytes]:
        """Take a piece; returns the wire deltas that tell of it, none while it may become an annotation."""
        kind = type(delta)
        place = next((place for place, part in enumerate(self._parts) if part.kind is kind), len(self._parts))
        if place == len(self._parts):
            self._parts.append(_OpenPart(kind, self._citable))
        part, index = self._parts[place], len(self._images) + place
        if part.annotated is not None:
            return [self._told(part, index, piece) for piece in part.annotated.add(delta.text)]
        part.pieces.append(delta.text)
        return [self.deltas.text(index, delta.text) if kind is TextDelta else self.deltas.refusal(index, delta.text)]

    def end(self) -> list[bytes]:
        """The message is whole; returns the wire deltas that tell the rest of it. A text of which nothing is left is told as empty."""
        rest: list[bytes] = []
        for index, part in enumerate(self._parts, len(self._images)):
            if part.annotated is not None:
                rest += [self._told(part, index, piece) for piece in part.annotated.end()]
                if not part.pieces:
                    rest.append(self._told(part, index, Piece("")))
        return rest

    def _told(self, part: _OpenPart, index: int, piece: Piece) -> bytes:
        part.pieces.append(piece.text)
        if piece.annotation is None:
            return self.deltas.text(index, piece.text)
        part.annotations.append(piece.annotation)
        return self.deltas.annotated(index, piece.text, len(part.annotations) - 1, piece.annotation)

    @property
    def content(self) -> list[Content]:
        """The parts as far as they have been told."""
        return [*self._images, *(part.content for part in self._parts)]


class OpenToolStep:
    """A step whose calls are being written."""

    def __init__(self, step: StepRecord) -> None:
        self.step = step
        self.deltas = StepDeltas(step.step.id)
        self.calls: list[RequestedCall] = []
        # The provider's index of a call against its place here: calls that are not wanted are left out.
        self.place_of: dict[int, int] = {}


class Turn:
    """The turn `number` of a run. `record` is the run after the last commit."""

    def __init__(
        self,
        services: Services,
        record: RunRecord,
        number: int,
        left_open: Sequence[StepRecord],
        drafts: Sequence[Message],
        *,
        has_spoken: bool = False,
        made: Made = Made(),  # noqa: B008 - it cannot change
    ):
        """left_open: steps that a lost worker had begun in this turn. drafts: messages that the run had begun.

        has_spoken: a lost worker has finished a message of this turn, before calls that it did not finish. made: what its text and its
        message can show of what the tools have given.
        """
        self._services = services
        self.record = record
        self.number = number
        self.message: OpenMessage | None = None
        self._made = made
        self.tools: OpenToolStep | None = None
        self.ended: list[StepRecord] = []
        self.written: list[Message] = []
        self._left_open = list(left_open)
        self._drafts = {message.id: message for message in drafts}
        # A model that is asked again says its text again: that is kept back until it is known whether calls follow this time, too.
        self._keeps_text_back = has_spoken
        self._kept_back: list[TextDelta | RefusalDelta] = []
        self._characters_left = services.settings.answer_characters_max

    async def take(self, deltas: Sequence[ChatDelta]) -> Finished | None:
        """Tell what the model has written; returns its last word when it has ended.

        Raises ModelError when the answer is longer than `answer_characters_max`, and RunLost when the run is not this worker's any more.
        """
        for delta in deltas:
            if isinstance(delta, TextDelta) or isinstance(delta, RefusalDelta):  # noqa: SIM101 - a union costs three times as much
                self._spend(delta.text)
                if self._keeps_text_back:
                    self._kept_back.append(delta)
                else:
                    await self._take_text(delta)
            elif isinstance(delta, ToolCallDelta):
                self._spend(delta.arguments)
                self._spend(delta.name or "")
                await self._take_call(delta)
            elif isinstance(delta, Finished):
                return delta
        return None

    async def _take_text(self, delta: TextDelta | RefusalDelta) -> None:
        if self.message is None:
            await self._open_message()
        assert self.message is not None
        for told in self.message.add(delta):
            self.tell(MESSAGE_DELTA, told)

    async def end_without_calls(self) -> OpenMessage:
        """The answer was text alone: what was kept back is a message after all, and an answer without a word an empty one."""
        for delta in self._kept_back or ([] if self.message else [TextDelta("")]):
            await self._take_text(delta)
        assert self.message is not None
        self._tell_rest(self.message)
        return self.message

    def _tell_rest(self, message: OpenMessage) -> None:
        for told in message.end():
            self.tell(MESSAGE_DELTA, told)

    def tell(self, name: str, data: bytes) -> None:
        """Give a delta to the readers of the run."""
        self._services.events.publish_delta(self.record.run.id, self.record.attempt, name, data)

    def _spend(self, text: str) -> None:
        self._characters_left -= len(text)
        if self._characters_left < 0:
            raise ModelError(f"The model's answer is longer than {self._services.settings.answer_characters_max} characters.")

    async def _open_message(self) -> None:
        changes = Changes()
        step = self._left_over("message_creation", changes)
        draft = None if step is None else self._draft_of(step)
        made, self._made = self._made, Made(self._made.citable)  # what one message shows, the next one does not
        if step is not None and draft is not None:
            self.message = OpenMessage(draft, step, made.citable, made.images)
        else:
            if step is not None:  # a client has deleted its message
                self._abandon(step, changes)
            now = self._services.now()
            message = change.new_message(self.record, now, made.attachments)
            new = change.new_step(self.record, self.number, message.id, now)
            self.message = OpenMessage(message, new, made.citable, made.images)
            change.begin_step(changes, self.record.project_id, new)
            change.begin_message(changes, self.record.project_id, message)
        await self._save(changes)
        for told in self.message.begin():
            self.tell(MESSAGE_DELTA, told)

    async def _take_call(self, delta: ToolCallDelta) -> None:
        if self.tools is None:
            await self._open_tool_step()
        tools = self.tools
        assert tools is not None
        place = tools.place_of.get(delta.index)
        if place is None:
            if tools.calls and not self.record.run.parallel_tool_calls:
                return  # the run allows one call a turn, whatever the model sends
            if len(tools.calls) >= self._services.settings.tool_calls_per_turn_max:
                raise ModelError(f"The model wanted more than {self._services.settings.tool_calls_per_turn_max} tool calls in one turn.")
            place = tools.place_of[delta.index] = len(tools.calls)
            call = new_requested_call(self._services, self.record.run, delta.name or "")
            tools.calls.append(call)
            self.tell(STEP_DELTA, self._started(tools.deltas, place, call))
        call = tools.calls[place]
        if delta.arguments:
            call.pieces.append(delta.arguments)
            if call.code is not None:
                self._tell_code(tools, place, call.code.add(delta.arguments))
            elif hosted_tool_or_none(self._services, self.record.run, call.name) is None:
                self.tell(STEP_DELTA, tools.deltas.arguments(place, delta.arguments))

    def end_calls(self, tools: OpenToolStep) -> None:
        """The calls are whole: tell what is left of their code. Many models write nothing where a function takes no arguments."""
        for place, call in enumerate(tools.calls):
            if call.code is not None:
                self._tell_code(tools, place, call.code.end())
            elif not call.arguments.strip():
                call.pieces.append("{}")
                if hosted_tool_or_none(self._services, self.record.run, call.name) is None:
                    self.tell(STEP_DELTA, tools.deltas.arguments(place, "{}"))

    def tell_output(self, call: int, place: int, output: CodeOutput) -> None:
        """Tell what code puts out. call, place: of the call in its step, and of the output in the call."""
        assert self.tools is not None
        self.tell(STEP_DELTA, self.tools.deltas.code_output(call, place, output))

    def _tell_code(self, tools: OpenToolStep, place: int, code: str) -> None:
        if code:
            self.tell(STEP_DELTA, tools.deltas.code_input(place, code))

    def _started(self, deltas: StepDeltas, place: int, call: RequestedCall) -> bytes:
        """The delta of a call that begins. Told at once for every kind of call: clients need the places without a hole."""
        tool = hosted_tool_or_none(self._services, self.record.run, call.name)
        if tool is None:
            return deltas.started_function(place, call.id, call.name)
        return deltas.call(place, tool.started_call(call.id, self.record.run, {}))

    async def _open_tool_step(self) -> None:
        changes = Changes()
        if self.message is not None:
            # The wire has a message closed before the next step begins; what the turn cost is told with the calls.
            self.close_message(changes)
        step = self._left_over("tool_calls", changes)
        if step is None:
            step = change.new_step(self.record, self.number, None, self._services.now())
            change.begin_step(changes, self.record.project_id, step)
        self.tools = OpenToolStep(step)
        await self._save(changes)

    def close_message(self, changes: Changes) -> None:
        """The open message is whole, and its step with it."""
        assert self.message is not None
        self._tell_rest(self.message)
        now = self._services.now()
        self.written.append(change.end_message(changes, self.message.message, self.message.content, now))
        self.ended.append(change.end_step(changes, self.message.step, "completed", now))
        self.message = None

    def _left_over(self, step_type: str, changes: Changes) -> StepRecord | None:
        """The step of this type that a lost worker had begun; steps of the other type are ended, for the model went another way."""
        found: StepRecord | None = None
        for record in self._left_open:
            if record.step.type == step_type and found is None:
                found = record
            else:
                self._abandon(record, changes)
        self._left_open = []
        return found

    def _abandon(self, record: StepRecord, changes: Changes) -> None:
        now = self._services.now()
        draft = self._draft_of(record)
        if draft is not None:
            self.written.append(change.end_message(changes, draft, draft.content, now, "run_failed"))
        self.ended.append(change.end_step(changes, record, "failed", now, error=_INTERRUPTED))

    def _draft_of(self, record: StepRecord) -> Message | None:
        """The message that a step was writing; None for a tool step, and when a client has deleted the message."""
        details = record.step.step_details
        return self._drafts.get(details.message_creation.message_id) if isinstance(details, MessageCreationDetails) else None

    def abandon_left_open(self, changes: Changes) -> None:
        """End what a lost worker had begun and this turn did not take up."""
        for record in self._left_open:
            self._abandon(record, changes)
        self._left_open = []

    async def _save(self, changes: Changes) -> None:
        if changes.statements:
            # What ends here must outlast a power cut; what only begins would begin again.
            self.record = await save_changes(self._services, self.record, changes, durable=bool(self.ended))

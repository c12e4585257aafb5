"""Sorts the pieces of streamed tool calls into calls with indexes 0, 1, 2 ... of our own.

Servers disagree about how pieces are marked. Some leave out `index`, some use one index or one id for all calls, some make
up a new id for every piece, some repeat the name. What they agree on is that a call begins with its name, so only a
piece with a name can begin another call.
"""

from dataclasses import dataclass, field

import msgspec

from mini_assistant.models.base import ToolCallDelta


@dataclass(slots=True)
class _OpenCall:
    index: int
    id: str | int | None
    name: str | None = None
    arguments: list[str] = field(default_factory=list[str])

    def has_all_arguments(self) -> bool:
        try:
            msgspec.json.decode("".join(self.arguments))
        except msgspec.DecodeError:
            return False
        return True


class ToolCallPieces:
    """The tool calls of one turn while they are being written."""

    def __init__(self) -> None:
        self._calls: list[_OpenCall] = []
        self._last: _OpenCall | None = None
        self._by_index: dict[int, _OpenCall] = {}
        self._by_id: dict[str | int, _OpenCall] = {}

    @property
    def has_any(self) -> bool:
        """Whether the turn has tool calls."""
        return bool(self._calls)

    @property
    def has_unnamed(self) -> bool:
        """Whether a call was begun whose name has not come."""
        return any(call.name is None for call in self._calls)

    def add(self, index: int | None, id: str | int | None, name: str | None, arguments: str) -> ToolCallDelta | None:
        """Take the next piece as the server marked it. None when it brings nothing, or while the call's name is missing."""
        call = self._call_for(index, id, name, arguments)
        is_first = call.name is None and bool(name)
        if is_first:
            call.name = name
        if arguments:
            call.arguments.append(arguments)
        if is_first:
            return ToolCallDelta(call.index, call.name, "".join(call.arguments))
        return ToolCallDelta(call.index, None, arguments) if call.name is not None and arguments else None

    def _call_for(self, index: int | None, id: str | int | None, name: str | None, arguments: str) -> _OpenCall:
        call = self._by_index.get(index) if index is not None else self._by_id.get(id or "", self._last)
        if call is None or _begins_another(call, id, name, arguments):
            call = _OpenCall(len(self._calls), id)
            self._calls.append(call)
        self._last = call
        if index is not None:
            self._by_index[index] = call
        if id:
            self._by_id[id] = call
        return call


def _begins_another(call: _OpenCall, id: str | int | None, name: str | None, arguments: str) -> bool:
    if not name or call.name is None:
        return False
    if name != call.name or (id and call.id and id != call.id):
        return True
    # The same name and id again: either repeated with every piece, or a second call. Nothing can follow complete arguments.
    return bool(arguments.strip()) and call.has_all_arguments()

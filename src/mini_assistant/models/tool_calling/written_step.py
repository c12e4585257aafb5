"""What a model meant with the JSON that it wrote: a reply, calls, or neither. Lenient about the shape, because small models are. Pure."""

import msgspec

from mini_assistant.models.tool_calling.json_text import fields_or_none, items_or_none, string_or_none, valid_json_or_none
from mini_assistant.models.tool_calling.offer import Offer, WrittenCall

_NAME_KEYS = {"name", "type", "id"}


class WrittenStep(msgspec.Struct, frozen=True):
    """A next step. reply: None when there is none; a reply that is no string is its JSON text. calls: perhaps none."""

    reply: str | None
    calls: list[WrittenCall]


def step_or_none(text: str, offer: Offer) -> WrittenStep | None:
    """The next step that a JSON text is; None when it is something else. Calls may be of tools that do not exist."""
    fields = fields_or_none(text)
    if fields is not None and "next_step" in fields:
        text = fields["next_step"]
        fields = fields_or_none(text)
        if fields is None and (reply := string_or_none(text)) is not None:
            return WrittenStep(reply, [])
    calls = _calls(text, fields, offer)
    reply = None if fields is None or "reply" not in fields else fields["reply"]
    if reply is not None:
        value = string_or_none(reply)
        return WrittenStep(reply if value is None else value, calls)
    return WrittenStep(None, calls) if calls else None


def calls_of(text: str, offer: Offer) -> list[WrittenCall]:
    """The calls that a JSON text is; none when it is something else."""
    step = step_or_none(text, offer)
    return [] if step is None else step.calls


def arguments_or_none(text: str) -> str | None:
    """Arguments as JSON text of an object. Nothing at all counts as no arguments, and an object in a string as the object."""
    if text == "null":
        return "{}"
    written = string_or_none(text)
    if written is not None:
        text = valid_json_or_none(written) or "" if written.strip() else "{}"
    return None if fields_or_none(text) is None else text


def _calls(text: str, fields: dict[str, str] | None, offer: Offer) -> list[WrittenCall]:
    if fields is None:
        return _list_of_calls(items_or_none(text) or [], offer, is_marked=False)
    if "tool_calls" in fields:
        calls = fields["tool_calls"]
        return _list_of_calls(items_or_none(calls) or [calls], offer, is_marked=True)
    return _list_of_calls([text], offer, is_marked=False)


def _list_of_calls(texts: list[str], offer: Offer, *, is_marked: bool) -> list[WrittenCall]:
    """All items as calls; none when one of them is no call."""
    calls: list[WrittenCall] = []
    for text in texts[: offer.calls_max]:
        call = _call_or_none(fields_or_none(text) or {}, offer, is_marked=is_marked)
        if call is None:
            return []
        calls.append(call)
    return calls


def _call_or_none(fields: dict[str, str], offer: Offer, *, is_marked: bool) -> WrittenCall | None:
    """is_marked: it stands where only calls stand. Elsewhere, without arguments, only what is nothing but a tool's name is a call."""
    fields = fields_or_none(fields.get("function", "")) or fields
    name = string_or_none(fields.get("name", ""))
    arguments = fields.get("arguments", fields.get("parameters"))
    is_bare_name = name is not None and offer.has(name) and fields.keys() <= _NAME_KEYS
    if name is None or (arguments is None and not is_marked and not is_bare_name):
        return None
    return WrittenCall(name, "{}" if arguments is None else arguments_or_none(arguments))

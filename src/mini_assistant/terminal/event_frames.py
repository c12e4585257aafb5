"""Takes the stream of a run's events apart as its bytes arrive."""

from typing import Any, NamedTuple

import msgspec


class Event(NamedTuple):
    """What has happened to a run. id: to attach again after it; empty where the stream has none. data: None for the stream's end."""

    id: str
    name: str
    data: Any


class EventFrames:
    """Bytes in, events out."""

    def __init__(self) -> None:
        self._rest = b""

    def feed(self, data: bytes) -> list[Event]:
        """The events that are complete now."""
        *frames, self._rest = (self._rest + data).split(b"\n\n")
        return [event for frame in frames if (event := _event_or_none(frame)) is not None]


def _event_or_none(frame: bytes) -> Event | None:
    """None for a frame without data, such as a heart-beat."""
    fields = {"id": "", "event": "message"}
    data: list[str] = []
    for line in frame.decode("utf-8", "replace").split("\n"):
        name, _, value = line.partition(":")
        value = value.removeprefix(" ")
        if name == "data":
            data.append(value)
        elif name in fields:
            fields[name] = value
    if not data:
        return None
    text = "\n".join(data)
    return Event(fields["id"], fields["event"], None if text == "[DONE]" else msgspec.json.decode(text))

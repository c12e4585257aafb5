"""Sends a run's events to one client. Source: behaviour §4.1, §4.5.

The default stream is framed as the hosted API framed it. A re-attached one carries ids. Heart-beats are comments without a blank line
behind them: with one, older Python clients would read an empty event after an id.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any

from mini_assistant.errors import InvalidRequest
from mini_assistant.events.base import PositionLost, StreamEvent, Subscription
from mini_assistant.http.error_response import ErrorBody, error_frame
from mini_assistant.http.routing import RunStream
from mini_assistant.runs.events import DONE_FRAME, STOPS, frame
from mini_assistant.runs.replay import events_before, with_passages
from mini_assistant.services import Services

Send = Callable[[dict[str, Any]], Awaitable[None]]
Receive = Callable[[], Awaitable[dict[str, Any]]]

log = logging.getLogger("mini_assistant.http")

_PING = b": ping\n"


@dataclass(frozen=True, slots=True)
class OpenedStream:
    """A stream that is ready to be sent. earlier: events told from rows, before the live ones."""

    stream: RunStream
    subscription: Subscription
    earlier: Sequence[StreamEvent]


async def open_run_stream(services: Services, stream: RunStream) -> OpenedStream:
    """Find the place where a stream begins. Raises InvalidRequest when it cannot be given exactly any more."""
    try:
        subscription = await services.events.subscribe(stream.run_id, stream.after, stream.attempt, stream.last_seq)
        try:
            earlier = await events_before(services, stream.run_id, stream.after, subscription.first_seq)
        except BaseException:
            subscription.close()
            raise
    except PositionLost as exc:
        raise InvalidRequest(str(exc), param="Last-Event-ID", code="events_gone") from exc
    return OpenedStream(stream, subscription, earlier)


async def send_run_stream(services: Services, opened: OpenedStream, receive: Receive, send: Send) -> bool:
    """Send events until the run stops, the client goes away, or it takes nothing for `stream_write_timeout_seconds`.

    Returns False in the last case: the connection is of no more use. The response's headers have been sent. Dropping the stream never
    touches the run.
    """
    sender = _Sender(services, opened, send)
    sending = asyncio.ensure_future(sender.send_events())
    leaving = asyncio.ensure_future(client_has_left(receive))
    watching = asyncio.ensure_future(sender.watch())
    tasks = (sending, leaving, watching)
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        opened.subscription.close()
        for task in tasks:
            task.cancel()
        outcomes = await asyncio.gather(*tasks, return_exceptions=True)
    for outcome in outcomes:
        if isinstance(outcome, Exception):
            raise outcome
    return not sender.is_stuck


async def client_has_left(receive: Receive) -> None:
    """Returns when the client of a request whose body has been read closes the connection."""
    while (await receive())["type"] != "http.disconnect":
        pass


class _Sender:
    """One client's stream while it is sent. Time is watched from beside it, so that an event costs no timer."""

    def __init__(self, services: Services, opened: OpenedStream, send: Send) -> None:
        self._services = services
        self._settings = services.settings
        self._opened = opened
        self._send = send
        self._time = asyncio.get_running_loop().time
        self._writing_since: float | None = None
        self._last_written = self._time()
        self.is_stuck = False

    async def send_events(self) -> None:
        """Send everything up to the event that ends the stream."""
        stream, subscription = self._opened.stream, self._opened.subscription
        if stream.is_over:
            await self._write(DONE_FRAME, more_body=False)
            return
        try:
            events = self._opened.earlier or await subscription.next()
            while True:
                if stream.shows_passages:
                    events = await with_passages(self._services, stream.run_id, events)
                stop = _first_stop(events)
                if stop is not None and stream.resumable:
                    # A run that was continued has stopped before: only a stop that nothing follows is the end.
                    subscription.nudge()
                    events = [*events, *await subscription.next()]
                    stop = len(events) - 1 if events[-1].name in STOPS else None
                if stop is not None:
                    await self._write(_framed(stream, events[: stop + 1]) + DONE_FRAME, more_body=False)
                    return
                await self._write(_framed(stream, events) if events else _PING)
                events = await subscription.next()
        except PositionLost as exc:
            error = ErrorBody(message=str(exc), type="server_error", param=None, code="stream_interrupted")
            await self._write(error_frame(error), more_body=False)

    async def _write(self, body: bytes, more_body: bool = True) -> None:
        self._writing_since = self._time()
        await self._send({"type": "http.response.body", "body": body, "more_body": more_body})
        self._last_written = self._time()
        self._writing_since = None

    async def watch(self) -> None:
        """Ask for heart-beats while nothing happens; return when the client has taken nothing for too long."""
        ping_seconds, write_seconds = self._settings.stream_ping_interval_seconds, self._settings.stream_write_timeout_seconds
        while True:
            await asyncio.sleep(min(ping_seconds, write_seconds) / 2)
            now = self._time()
            if self._writing_since is None:
                if now - self._last_written >= ping_seconds / 2:
                    self._opened.subscription.nudge()
            elif now - self._writing_since >= write_seconds:
                self.is_stuck = True
                log.info("a reader of %s took nothing for %g seconds and is dropped", self._opened.stream.run_id, write_seconds)
                return


def _first_stop(events: Sequence[StreamEvent]) -> int | None:
    for place, event in enumerate(events):
        if event.part == 0 and event.name in STOPS:
            return place
    return None


def _framed(stream: RunStream, events: Sequence[StreamEvent]) -> bytes:
    if stream.resumable:
        return b"".join([b"id: %b\n%b" % (event_id(event).encode(), frame(event.name, event.data)) for event in events])
    if len(events) == 1:
        return frame(events[0].name, events[0].data)
    return b"".join([frame(event.name, event.data) for event in events])


def event_id(event: StreamEvent) -> str:
    """The id of an event on a re-attached stream: `<attempt>-<seq>`, and `.<part>` behind it for a delta."""
    return f"{event.attempt}-{event.seq}.{event.part}" if event.part else f"{event.attempt}-{event.seq}"

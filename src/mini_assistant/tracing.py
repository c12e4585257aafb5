"""Traces of runs, as spans of OpenTelemetry: what a run does in which order and for how long. With no place to send them nothing is done.

A worker opens the span of a run; what happens in it, in the same task or in one that it starts, opens its spans below with `open_span` and
need not know who collects them. Names and attributes follow the conventions for generative AI. What users and models say is in them only
when the settings ask for it.
"""

import asyncio
import hashlib
import re
import threading
from collections.abc import Callable, Generator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar

from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from mini_assistant.errors import ConfigError, ModelError

Value = str | bool | int | float | list[str]
"""What an attribute of a span may be."""

_CLOSE_SECONDS_MAX = 5.0
_TRACEPARENT = re.compile("00-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}")

# The trace of a run without a caller's: all its attempts are in this one, whichever process makes them.
trace_id_of_run: ContextVar[int | None] = ContextVar("trace_id_of_run", default=None)


class OpenSpan:
    """A span while it lasts. tells_content: whether it may be told what users, models and tools say."""

    def __init__(self, span: trace.Span, *, tells_content: bool) -> None:
        self._span = span
        self.tells_content = tells_content and span.is_recording()

    def tell(self, attributes: Mapping[str, Value | None]) -> None:
        """Add attributes; those that are None are left out."""
        self._span.set_attributes({name: value for name, value in attributes.items() if value is not None})

    def fail(self, error_type: str, message: str = "") -> None:
        """Say that it came to nothing. error_type: one of few words, such as `timeout`. message: told only where content may be."""
        self._span.set_attribute("error.type", error_type)
        self._span.set_status(trace.StatusCode.ERROR, message if self.tells_content else None)


_NOTHING = OpenSpan(trace.INVALID_SPAN, tells_content=False)


class Traces:
    """Where the spans of this process go."""

    def __init__(self, tracer: trace.Tracer, *, tells_content: bool, close: Callable[[], None]) -> None:
        """close: called in a thread of its own; sends what has not been sent."""
        self._tracer = tracer
        self._tells_content = tells_content
        self._close = close

    def open_run(
        self, name: str, run_id: str, traceparent: str | None, attributes: Mapping[str, Value | None]
    ) -> AbstractContextManager[OpenSpan]:
        """The span of a run. traceparent: what it is a part of, None when nobody has said so; then all its spans have a trace of the run's.

        It is the parent of all spans that are opened meanwhile, in this task and in those that it starts.
        """
        carrier = {} if traceparent is None else {"traceparent": traceparent}
        parent = TraceContextTextMapPropagator().extract(carrier, Context())
        trace_id_of_run.set(int.from_bytes(hashlib.sha256(run_id.encode()).digest()[:16], "big"))
        return self._open(name, trace.SpanKind.INTERNAL, attributes, parent)

    def open_child(self, name: str, kind: trace.SpanKind, attributes: Mapping[str, Value | None]) -> AbstractContextManager[OpenSpan]:
        """A span below the one that is open."""
        return self._open(name, kind, attributes, None)

    @contextmanager
    def _open(self, name: str, kind: trace.SpanKind, attributes: Mapping[str, Value | None], parent: Context | None) -> Generator[OpenSpan]:
        given = {key: value for key, value in attributes.items() if value is not None}
        span = self._tracer.start_span(name, parent, kind, given)
        opened = OpenSpan(span, tells_content=self._tells_content)
        token = _current.set(self)
        try:
            with trace.use_span(span, record_exception=False, set_status_on_exception=False):
                yield opened
        except BaseException as exc:
            opened.fail(_error_type(exc), str(exc))
            raise
        finally:
            _current.reset(token)
            span.end()

    async def close(self) -> None:
        """Send what has not been sent, as far as that is possible in a few seconds."""
        loop, closed = asyncio.get_running_loop(), asyncio.Event()

        def close() -> None:
            self._close()
            if not loop.is_closed():
                loop.call_soon_threadsafe(closed.set)

        # No thread of a pool: the end of the process would wait for it, however long a collector takes that does not answer.
        threading.Thread(target=close, name="closing-traces", daemon=True).start()
        try:
            async with asyncio.timeout(_CLOSE_SECONDS_MAX):
                await closed.wait()
        except TimeoutError:
            return


_current: ContextVar[Traces | None] = ContextVar("traces", default=None)


def open_traces(url: str, *, sample_ratio: float, tells_content: bool) -> Traces | None:
    """The traces that are sent to `url`; None when it is empty. Close them at the end.

    Raises ConfigError for an address that is none, and when the packages that send traces are not installed.
    """
    if not url:
        return None
    if not url.startswith(("http://", "https://")):
        raise ConfigError("'traces_url' must begin with http:// or https://, as in http://127.0.0.1:4318/v1/traces.")
    if "?" in url:  # it would be in the log whenever the collector is away
        raise ConfigError("'traces_url' must have no query: a key for the collector belongs into OTEL_EXPORTER_OTLP_HEADERS.")
    try:
        from mini_assistant import trace_export  # here, because it is slow to import, may be missing, and few servers send traces
    except ImportError as exc:
        raise ConfigError(
            "'traces_url' needs packages that are not installed: run `pip install \"mini-assistant[otel]\"`, "
            "or `make setup-otel` in a checkout."
        ) from exc
    provider = trace_export.exporting_provider(url, sample_ratio)
    return Traces(provider.get_tracer("mini_assistant"), tells_content=tells_content, close=provider.shutdown)


def open_span(
    name: str, attributes: Mapping[str, Value | None], *, kind: trace.SpanKind = trace.SpanKind.INTERNAL
) -> AbstractContextManager[OpenSpan]:
    """A span below the one that is open; nothing outside of a run, and where runs are not traced. An error ends it as failed."""
    traces = _current.get()
    return nullcontext(_NOTHING) if traces is None else traces.open_child(name, kind, attributes)


def traceparent_or_none() -> str | None:
    """The open span in the words of W3C, for those who are asked on its behalf; None when there is none."""
    if _current.get() is None:
        return None
    context = trace.get_current_span().get_span_context()
    return f"00-{context.trace_id:032x}-{context.span_id:016x}-{context.trace_flags:02x}" if context.is_valid else None


def valid_traceparent_or_none(header: str | None) -> str | None:
    """The `traceparent` that a client has sent, None unless it is exactly of the form that W3C has laid down (version 00)."""
    return header if header is not None and _TRACEPARENT.fullmatch(header) else None


def _error_type(exc: BaseException) -> str:
    if isinstance(exc, ModelError):
        return exc.code
    return "cancelled" if isinstance(exc, asyncio.CancelledError) else type(exc).__name__

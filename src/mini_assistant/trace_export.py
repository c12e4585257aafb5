"""Sends spans to a collector, as OTLP over HTTP. Loaded only when the settings say where to: its packages are an extra.

It has a thread of its own; when the collector is slow or away, spans are dropped and runs go on.
"""

from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import OTELResourceDetector, Resource
from opentelemetry.sdk.trace import SpanLimits, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.sdk.trace.id_generator import RandomIdGenerator
from opentelemetry.sdk.trace.sampling import ParentBased, TraceIdRatioBased

from mini_assistant import __version__
from mini_assistant.tracing import trace_id_of_run

_SEND_SECONDS_MAX = 4.0
_PAUSE_MS = 1000.0
_SPANS_WAITING_MAX = 4096
_SPANS_SENT_AT_ONCE = 512
_ATTRIBUTE_CHARACTERS_MAX = 64 * 1024


class _RunIds(RandomIdGenerator):
    """Ids of traces that follow from the run, so that all its attempts are in one."""

    def generate_trace_id(self) -> int:
        return trace_id_of_run.get() or super().generate_trace_id()


def exporting_provider(url: str, sample_ratio: float) -> TracerProvider:
    """A provider whose spans are sent to `url`. sample_ratio: of the traces that no caller has decided about.

    The variables of OpenTelemetry count where the settings say nothing: `OTEL_EXPORTER_OTLP_HEADERS`, `OTEL_RESOURCE_ATTRIBUTES`.
    """
    own = Resource({"service.name": "mini-assistant", "service.version": __version__})
    provider = TracerProvider(
        sampler=ParentBased(TraceIdRatioBased(sample_ratio)),
        resource=own.merge(OTELResourceDetector().detect()),
        id_generator=_RunIds(),
        span_limits=SpanLimits(max_span_attribute_length=_ATTRIBUTE_CHARACTERS_MAX),
        shutdown_on_exit=False,  # whoever opens it closes it, and does not wait for ever
    )
    processor = BatchSpanProcessor(
        OTLPSpanExporter(url, timeout=_SEND_SECONDS_MAX),
        max_queue_size=_SPANS_WAITING_MAX,
        schedule_delay_millis=_PAUSE_MS,
        max_export_batch_size=_SPANS_SENT_AT_ONCE,
    )
    provider.add_span_processor(processor)
    return provider

"""
OpenTelemetry traces of gateway and worker, where OTEL_EXPORTER_OTLP_ENDPOINT says who collects
them; without it nothing of OpenTelemetry is imported here.

    call             gateway: a client's connection, or the trace the client brings along
      session        worker: each one that had the call's session
        final        a request for a final, with its segment, length of audio and stages
          whisper_…  asking one Triton, whose own spans follow

Partials and the VAD have none: they are many, and the metrics tell enough of them.
"""

import asyncio
from collections.abc import Mapping
from contextlib import AbstractContextManager, ExitStack
from types import TracebackType
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from opentelemetry.trace import Tracer

EXPORT_S = 3.0  # for the collector to take what it is sent; a process that ends waits so long
HEADER = "traceparent"  # of HTTP, W3C Trace Context

_tracer: "Tracer | None" = None

Values = Mapping[str, str | int | float | bool]


class TracesError(ValueError):
    """Traces are wanted and cannot be had; says what to install."""


def setup(service: str, instance: str, endpoint: str | None) -> None:
    """To be called once, by the process. `endpoint`: of OTLP over HTTP. Raises TracesError."""
    global _tracer
    if not endpoint:
        return
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ModuleNotFoundError as error:
        sentence = "OTEL_EXPORTER_OTLP_ENDPOINT needs pip install 'dalston[otel]'"
        raise TracesError(f"{sentence}: {error}") from None
    about = {"service.name": service, "service.instance.id": instance}
    provider = TracerProvider(resource=Resource.create(about))
    exporter = OTLPSpanExporter(f"{endpoint.rstrip('/')}/v1/traces", timeout=EXPORT_S)
    provider.add_span_processor(BatchSpanProcessor(exporter))
    # Ours alone, not the process's: FastAPI would trace each health check.
    _tracer = provider.get_tracer("dalston")


class _Span(AbstractContextManager[None]):
    """One that is no failure when nobody waits for it any more."""

    def __init__(self, tracer: "Tracer", name: str, about: Values, parent: str, kind: str):
        self._arguments = tracer, name, about, parent, kind
        self._stack = ExitStack()

    def __enter__(self) -> None:
        from opentelemetry.trace import SpanKind
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        tracer, name, about, parent, kind = self._arguments
        context = TraceContextTextMapPropagator().extract({HEADER: parent}) if parent else None
        span = tracer.start_as_current_span(
            name, context=context, kind=SpanKind[kind.upper()], attributes=about
        )
        self._span = self._stack.enter_context(span)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if isinstance(error, asyncio.CancelledError):
            self._span.set_attribute("dalston.dropped", True)
            self._stack.close()
        else:
            self._stack.__exit__(kind, error, traceback)


class _Nothing(AbstractContextManager[None]):
    def __exit__(self, *_: object) -> None:
        pass


_NOTHING = _Nothing()


def span(
    name: str,
    about: Values,
    *,
    parent: str = "",
    kind: Literal["internal", "server", "client"] = "internal",
) -> AbstractContextManager[object]:
    """A part of the trace, for as long as the context lasts. `parent`: what `header` said in
    another process; else the span it is in."""
    return _Span(_tracer, name, about, parent, kind) if _tracer else _NOTHING


def note(about: Values) -> None:
    """Say more of the span we are in."""
    if _tracer:
        from opentelemetry import trace

        trace.get_current_span().set_attributes(about)


def header() -> str:
    """Where we are in the trace, for another process; empty: there is none."""
    if _tracer is None:
        return ""
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

    carrier = dict[str, str]()
    TraceContextTextMapPropagator().inject(carrier)
    return carrier.get(HEADER, "")


def headers() -> list[tuple[str, str]]:
    """The same as headers of a request."""
    return [(HEADER, value)] if (value := header()) else []

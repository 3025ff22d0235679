"""
Takes OpenTelemetry traces as a collector does: OTLP over HTTP, as protobuf or JSON.
"""

import base64
import json
import threading
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from google.protobuf.json_format import MessageToDict
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest


@dataclass(frozen=True)
class Span:
    service: str
    name: str
    trace: str
    id: str
    parent: str
    about: dict[str, Any]


@dataclass
class Collector:
    url: str = ""
    spans: list[Span] = field(default_factory=list[Span])

    def named(self, name: str) -> list[Span]:
        return [span for span in self.spans if span.name == name]

    def take(self, content: dict[str, Any]) -> None:
        for resource in content["resourceSpans"]:
            about = _values(resource["resource"]["attributes"])
            for scope in resource["scopeSpans"]:
                for span in scope["spans"]:
                    self.spans.append(
                        Span(
                            about["service.name"],
                            span["name"],
                            span["traceId"].lower(),
                            span["spanId"].lower(),
                            span.get("parentSpanId", "").lower(),
                            _values(span.get("attributes", [])),
                        )
                    )


def _values(attributes: list[dict[str, Any]]) -> dict[str, Any]:
    return {item["key"]: next(iter(item["value"].values()), None) for item in attributes}


def _hexadecimal(content: dict[str, Any]) -> dict[str, Any]:
    """Ids are bytes, which protobuf writes in base64 and OTLP's own JSON does not."""
    for resource in content["resourceSpans"]:
        for scope in resource["scopeSpans"]:
            for span in scope["spans"]:
                for name in ("traceId", "spanId", "parentSpanId"):
                    if name in span:
                        span[name] = base64.b64decode(span[name]).hex()
    return content


@contextmanager
def collecting() -> Generator[Collector]:
    """One that listens at `url`."""
    collector = Collector()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, format: str, *args: object) -> None:
            pass

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            if self.headers["Content-Type"] == "application/json":
                collector.take(json.loads(body))
            else:
                content = MessageToDict(ExportTraceServiceRequest.FromString(body))
                collector.take(_hexadecimal(content))
            self.send_response(200 if self.path == "/v1/traces" else 404)
            self.send_header("Content-Length", "0")
            self.end_headers()

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        collector.url = f"http://127.0.0.1:{server.server_address[1]}"
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield collector
        server.shutdown()
        thread.join()

"""
The trace of one call, from the client's own through gateway and worker to Triton.
"""

import asyncio
import contextlib
import os
import signal
import subprocess
from collections.abc import Generator
from pathlib import Path

import pytest
from recordings import recordings
from support.collector import Collector, Span, collecting
from support.stack import Stack, start_stack
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed

from dalston.orchestrator.protocol.messages import Final, parse_server
from dalston.triton.process import free_port

AUDIO = recordings()[0].audio[: 8 * 16_000].tobytes()
TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
STREAM = "/v1/audio/transcriptions/stream?language=en"


async def finals(stack: Stack) -> list[Final]:
    """Of a client that has begun a trace of its own."""
    told = list[Final]()
    headers = {"traceparent": f"00-{TRACE}-{PARENT}-01"}
    async with connect(f"{stack.url}{STREAM}", additional_headers=headers) as socket:

        async def speak() -> None:
            for start in range(0, len(AUDIO), 3200):
                await socket.send(AUDIO[start : start + 3200])
                await asyncio.sleep(0.1)
            await socket.send('{"type":"end"}')

        speaking = asyncio.create_task(speak())
        with contextlib.suppress(ConnectionClosed):
            async for frame in socket:
                message = parse_server(frame)
                if isinstance(message, Final):
                    told.append(message)
        await speaking
    return told


def stopped(stack: Stack) -> int:
    stack.process.send_signal(signal.SIGTERM)
    return stack.process.wait(45)


@pytest.fixture(scope="module")
def traced(data_dir: Path) -> Generator[tuple[list[Final], Collector]]:
    """The finals of one call, and all that was collected when everything has stopped."""
    with collecting() as collector:
        stack = start_stack(data_dir, 1, OTEL_EXPORTER_OTLP_ENDPOINT=collector.url)
        try:
            told = asyncio.run(finals(stack))
            assert stopped(stack) == 0
        finally:
            if stack.process.poll() is None:
                os.killpg(stack.process.pid, signal.SIGKILL)
                stack.process.wait(10)
        yield told, collector


def children(span: Span, collector: Collector) -> list[Span]:
    return [other for other in collector.spans if other.parent == span.id]


def test_a_call_is_one_trace_from_the_client_to_triton(
    traced: tuple[list[Final], Collector],
) -> None:
    told, collector = traced
    (call,) = collector.named("call")
    assert (call.service, call.trace, call.parent) == ("dalston-gateway", TRACE, PARENT)
    (session,) = children(call, collector)
    assert (session.service, session.name) == ("dalston-worker", "session")
    assert session.about["dalston.session_id"] == call.about["dalston.session_id"]
    asked = children(session, collector)
    assert {span.name for span in asked} == {"final"}
    answered = [span for span in asked if "dalston.dropped" not in span.about]
    assert {final.segment_id for final in told} <= {
        span.about["dalston.segment_id"] for span in answered
    }
    for span in answered:
        (request,) = children(span, collector)
        assert (request.service, request.name) == ("dalston-worker", "whisper_fast")
        (inference,) = children(request, collector)
        assert inference.service == "dalston-triton"


def test_a_final_says_how_long_it_is_and_where_its_time_went(
    traced: tuple[list[Final], Collector],
) -> None:
    _, collector = traced
    final = next(s for s in collector.named("final") if "dalston.dropped" not in s.about)
    assert 0.3 < final.about["dalston.audio_seconds"] < 30
    assert final.about["dalston.encode_ms"] > 0
    assert "dalston.queue_ms" in final.about


def test_nothing_is_traced_that_belongs_to_no_call(
    traced: tuple[list[Final], Collector],
) -> None:
    _, collector = traced
    services = {span.service for span in collector.spans}
    assert services == {"dalston-gateway", "dalston-worker", "dalston-triton"}
    assert {span.trace for span in collector.spans} == {TRACE}


@pytest.mark.timeout(120)
def test_a_collector_that_is_gone_keeps_nothing_from_working_or_stopping(data_dir: Path) -> None:
    url = f"http://127.0.0.1:{free_port()}"
    stack = start_stack(data_dir, 1, OTEL_EXPORTER_OTLP_ENDPOINT=url)
    try:
        assert asyncio.run(finals(stack))
        assert stopped(stack) == 0
    finally:
        with contextlib.suppress(ProcessLookupError, subprocess.TimeoutExpired):
            os.killpg(stack.process.pid, signal.SIGKILL)
            stack.process.wait(10)

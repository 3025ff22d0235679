"""
The asyncio loop around one session: the only place where a session meets the models and the wire.

Knows neither WebSockets nor Triton: frames, `send` and the models are passed in. Reading never
waits for a model; it stops only when the session is MAX_BACKLOG_S behind, and then the client's
own connection slows it down. Writing has a queue of its own, so a client that reads slowly delays
nobody else; when it is full, partials are dropped first.
"""

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from dataclasses import dataclass

from dalston.orchestrator.inference import InferenceError, SequenceLost
from dalston.orchestrator.messages import (
    LONGEST_FRAME,
    EndReason,
    Error,
    Final,
    MessageError,
    Partial,
    ServerMessage,
    SessionEnd,
    parse,
    serialize,
)
from dalston.orchestrator.request_ids import named
from dalston.orchestrator.requests import (
    Cancel,
    Hypothesis,
    Request,
    SpeechRequest,
    TranscriptRequest,
)
from dalston.orchestrator.session import Session, State
from dalston.orchestrator.spans import Spans
from dalston.triton.contract import SAMPLE_RATE

logger = logging.getLogger(__name__)

# Audio that was received and is not yet decided, before reading stops.
MAX_BACKLOG_S = 30.0
# Messages the client has not read. Partials are dropped above the first, the session ends above
# the second: a final is a few hundred bytes, so this is hours of speech.
PARTIALS_WAITING, MESSAGES_WAITING = 64, 4096
# Retries wait longer each time, up to the last; after outage_s of failures the session gives up.
RETRY_FIRST_S, RETRY_LAST_S = 0.1, 2.0


class CloseCode:
    """docs/protocol.md, "Close codes"."""

    NORMAL = 1000
    GOING_AWAY = 1001
    TOO_BIG = 1009
    INTERNAL = 1011
    TIMEOUT = 4008
    SLOW_READER = 4011


@dataclass(frozen=True)
class Limits:
    idle_s: float = 30.0  # without a frame from the client
    session_s: float = 4 * 3600.0
    outage_s: float = 30.0  # of failing models


@dataclass(frozen=True)
class Models:
    """Coroutines of orchestrator.inference, or of a test."""

    speech_probabilities: Callable[[SpeechRequest], Awaitable[list[float]]]
    transcribe: Callable[[TranscriptRequest], Awaitable[Hypothesis]]


async def handle(
    session: Session,
    frames: AsyncIterator[str | bytes],
    send: Callable[[str], Awaitable[None]],
    models: Models,
    limits: Limits,
    draining: asyncio.Event,
) -> int | None:
    """Run the session to its end; the code to close with, or None if the client has gone."""
    loop = asyncio.get_running_loop()
    finished: asyncio.Future[int | None] = loop.create_future()
    tasks: set[asyncio.Task[None]] = set()
    asked: dict[int, asyncio.Task[None]] = {}  # transcripts under way, by request
    outgoing: asyncio.Queue[ServerMessage | None] = asyncio.Queue(MESSAGES_WAITING)
    caught_up = asyncio.Event()
    last_frame = loop.time()
    close_code: int = CloseCode.NORMAL
    failing_since: float | None = None
    spans = Spans()

    def spawn(work: Coroutine[None, None, None]) -> asyncio.Task[None]:
        task = loop.create_task(work)
        tasks.add(task)
        task.add_done_callback(settle)
        return task

    def settle(task: asyncio.Task[None]) -> None:
        tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) and not finished.done():
            finished.set_exception(error)

    def finish(code: int | None) -> None:
        if not finished.done():
            finished.set_result(code)

    def tell(message: ServerMessage | None) -> None:
        if isinstance(message, Partial) and outgoing.qsize() >= PARTIALS_WAITING:
            return
        try:
            outgoing.put_nowait(message)
        except asyncio.QueueFull:
            finish(CloseCode.SLOW_READER)

    def pump() -> None:
        """Carry what the session wants to where it belongs."""
        for request in session.requests():
            start(request)
        for message in session.messages():
            tell(message)
        if (session.received - session.decided) / SAMPLE_RATE < MAX_BACKLOG_S:
            caught_up.set()
        else:
            caught_up.clear()
        if session.state is State.DONE:
            tell(None)

    def start(request: Request) -> None:
        match request:
            case SpeechRequest(end=True):
                spawn(end_sequence(request))
            case SpeechRequest():
                spawn(ask_speech(request))
            case TranscriptRequest():
                asked[request.id] = spawn(ask_transcript(request))
            case Cancel():
                if task := asked.pop(request.id, None):
                    task.cancel()

    async def end_sequence(request: SpeechRequest) -> None:
        with contextlib.suppress(SequenceLost):
            await models.speech_probabilities(request)

    async def ask_speech(request: SpeechRequest) -> None:
        nonlocal failing_since
        asked = loop.time()
        spans.left(session.decided, asked)
        try:
            probabilities = await models.speech_probabilities(request)
        except SequenceLost as error:
            failing_since = failing_since or loop.time()
            failing_s = loop.time() - failing_since
            if failing_s > limits.outage_s:
                raise
            logger.warning("%s: %s", session.id, error)
            await asyncio.sleep(min(RETRY_FIRST_S + failing_s / 4, RETRY_LAST_S))
            session.receive_speech_lost()
        else:
            failing_since = None
            spans.add("vad", loop.time() - asked)
            session.receive_probabilities(probabilities)
        pump()

    async def ask_transcript(request: TranscriptRequest) -> None:
        began, wait = loop.time(), RETRY_FIRST_S
        while True:
            try:
                hypothesis = await models.transcribe(request)
            except InferenceError as error:
                logger.warning("%s: %s", session.id, error)
                give_up = loop.time() - began + wait > limits.outage_s
                if request.kind == "partial" or not error.retryable or give_up:
                    asked.pop(request.id, None)
                    session.receive_failure(request.id, str(error))
                    break
                await asyncio.sleep(wait)
                wait = min(2 * wait, RETRY_LAST_S)
            else:
                asked.pop(request.id, None)
                answered = loop.time()
                elapsed_ms = round((answered - began) * 1000)
                session.receive_hypothesis(request.id, hypothesis, elapsed_ms)
                pump()
                if request.kind == "final":
                    spans.add_all(hypothesis.stages)
                    spans.add("assembly", loop.time() - answered)
                return
        pump()

    def end(reason: EndReason, code: int, error: Error | None = None) -> None:
        nonlocal close_code
        close_code = code
        if error:
            tell(error)
        session.finish(reason)
        pump()

    async def read() -> None:
        nonlocal last_frame
        async for frame in frames:
            last_frame = loop.time()
            if isinstance(frame, str):
                try:
                    session.receive_message(parse(frame))
                except MessageError as error:
                    session.receive_invalid(str(error))
            elif len(frame) <= LONGEST_FRAME:
                session.receive_audio(frame)
                spans.arrived(session.received, last_frame)
            else:
                sentence = f"a frame of {len(frame)} bytes; {LONGEST_FRAME} at most"
                error = Error(code="invalid_message", message=sentence, recoverable=False)
                end("terminated", CloseCode.TOO_BIG, error)
                return
            pump()
            await caught_up.wait()
        finish(None)  # the client has gone

    async def write() -> None:
        while (message := await outgoing.get()) is not None:
            if isinstance(message, SessionEnd):
                message.stats.final_stages_ms = spans.means_ms()
            began = loop.time()
            text = serialize(named(message))
            if isinstance(message, Final):
                spans.add("serialisation", loop.time() - began)
            await send(text)
        finish(close_code)

    async def watch() -> None:
        """End the session when nothing comes any more, or for too long, or on a drain."""
        last_moment = loop.time() + limits.session_s
        while session.state is State.LISTENING:
            now = loop.time()
            # While reading is stopped the client cannot be blamed for silence.
            idle_from = last_frame if caught_up.is_set() else now
            if draining.is_set():
                end("server_drain", CloseCode.GOING_AWAY)
            elif now >= last_moment:
                sentence = f"a session lasts {limits.session_s:g} s at most"
                error = Error(code="session_timeout", message=sentence, recoverable=False)
                end("max_duration", CloseCode.TIMEOUT, error)
            elif now >= idle_from + limits.idle_s:
                sentence = f"nothing was received for {limits.idle_s:g} s"
                error = Error(code="session_timeout", message=sentence, recoverable=False)
                end("idle_timeout", CloseCode.TIMEOUT, error)
            else:
                with contextlib.suppress(TimeoutError):
                    until = min(last_moment, idle_from + limits.idle_s) - now
                    await asyncio.wait_for(draining.wait(), until)

    try:
        for work in (read(), write(), watch()):
            spawn(work)
        pump()
        return await finished
    except (InferenceError, SequenceLost) as error:
        logger.error("%s: given up: %s", session.id, error)
        failure = Error(code="internal_error", message=str(error), recoverable=False)
        with contextlib.suppress(ConnectionError):
            await send(serialize(named(failure)))
        return CloseCode.INTERNAL
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        session.abandon()
        for request in session.requests():
            if isinstance(request, SpeechRequest) and request.end:
                await end_sequence(request)

"""
The asyncio loop around one session: the only place where a session meets the models and the wire.

Knows neither WebSockets nor Triton: the line to the client and the models are passed in. Frames
are heard where they come in, without a task in between. Hearing never waits for a model; it stops
only when the session is MAX_BACKLOG_S behind, and then the client's own connection slows it down.
Writing has a queue of its own, so a client that reads slowly delays nobody else; when it is full,
partials are dropped first. A session that is too far behind what was said gets fewer partials,
then a warning, and at last ends: orchestrator/transcription/lag.py.
"""

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable, Coroutine
from contextvars import copy_context
from dataclasses import dataclass
from typing import Any, Protocol

from dalston.orchestrator.inference.triton_client import Hear, Heard, InferenceError, SequenceLost
from dalston.orchestrator.process import traces
from dalston.orchestrator.process.request_ids import named
from dalston.orchestrator.protocol.messages import (
    LONGEST_FRAME,
    Ack,
    EndReason,
    Error,
    Final,
    MessageError,
    Partial,
    ServerMessage,
    SessionEnd,
    Snapshot,
    Warn,
    parse,
    serialize,
)
from dalston.orchestrator.transcription.lag import Lag, Verdict
from dalston.orchestrator.transcription.model_requests import (
    Cancel,
    Hypothesis,
    Request,
    SpeechRequest,
    TranscriptRequest,
    TurnRequest,
)
from dalston.orchestrator.transcription.session import Session, State
from dalston.orchestrator.worker import metrics
from dalston.orchestrator.worker.stage_times import Spans
from dalston.triton.contract import SAMPLE_RATE

logger = logging.getLogger(__name__)

# Audio, or messages in the line of it, that were received and are not yet decided, before reading
# stops.
MAX_BACKLOG_S, MAX_MESSAGES = 30.0, 256
UNLOOKED = 1 << 16  # bytes of audio that may come before it is looked how many wait
# Messages the client has not read. Partials are dropped above the first, the session ends above
# the others: a final is a few hundred bytes, so this is hours of speech.
PARTIALS_WAITING, MESSAGES_WAITING, CHARACTERS_WAITING = 64, 4096, 2 << 20
# What is said last to a client that perhaps does not read.
LAST_WORDS_S = 1.0
# How often lag is measured. Above so much of it an utterance gets no second partial.
MEASURE_EVERY_S, SPARING_S = 0.25, 1.0
ACK_EVERY_S = 1.0
# The VAD answers in milliseconds. If it has not for so long, nothing does, and that is no
# overload; it is less than what is warned of.
NO_ANSWER_S = 2.5
# Retries wait longer each time, up to the last; after outage_s of failures the session gives up.
RETRY_FIRST_S, RETRY_LAST_S = 0.1, 2.0
MODEL_LOADING = Warn(
    code="model_loading",
    message="the model is being loaded; what is said meanwhile is transcribed after that",
)


class CloseCode:
    """docs/protocol.md, "Close codes"."""

    NORMAL = 1000
    GOING_AWAY = 1001
    TOO_BIG = 1009
    INTERNAL = 1011
    SERVICE_RESTART = 1012
    TIMEOUT = 4008
    LAG = 4010
    SLOW_READER = 4011


@dataclass(frozen=True)
class Limits:
    idle_s: float = 30.0  # without a frame from the client
    session_s: float = 4 * 3600.0
    outage_s: float = 30.0  # of failing models
    reader_s: float = 15.0  # for a message to leave
    frame_bytes: int = LONGEST_FRAME  # of audio


@dataclass(frozen=True)
class Models:
    """Of orchestrator.inference.fleet, or of a test."""

    hear: Hear
    transcribe: Callable[[TranscriptRequest], Awaitable[Hypothesis]]
    # How likely it is that a turn is over. Raises InferenceError.
    turn_over: Callable[[TurnRequest], Awaitable[float]]
    # Whether transcripts wait for a model that answers nobody. One that only has too much to do
    # answers somebody.
    mute: Callable[[], bool] = lambda: False
    # Whether they wait for a model to be loaded.
    loading: Callable[[], bool] = lambda: False


class Line(Protocol):
    """To the client: orchestrator.protocol.websocket_peer, or a test's."""

    def listen(self, hear: Callable[[str | bytes], None], leave: Callable[[], None]) -> None: ...

    def pause(self) -> None: ...

    def resume(self) -> None: ...

    async def say(self, frame: str) -> None:
        """Waits as long as the client does not read. Raises ConnectionError."""
        ...


async def handle(
    session: Session,
    line: Line,
    models: Models,
    limits: Limits,
    draining: asyncio.Event,
    lag: Lag,
) -> int | None:
    """Run the session to its end; the code to close with, or None if the client has gone."""
    loop = asyncio.get_running_loop()
    finished: asyncio.Future[int | None] = loop.create_future()
    tasks: set[asyncio.Task[None]] = set()
    asked: dict[int, asyncio.Task[None]] = {}  # transcripts under way, by request
    outgoing: asyncio.Queue[str | None] = asyncio.Queue()
    unread = 0  # characters in it
    finalised = session.received  # where a session goes on that is given the last snapshot told
    caught_up = True
    context = copy_context()  # whose session it is: frames come in one that knows nothing
    last_frame = loop.time()
    unlooked = 0  # bytes of audio
    close_code: int = CloseCode.NORMAL
    failing_since: float | None = None  # the VAD
    speech_asked: float | None = None  # and not answered yet
    retry: asyncio.TimerHandle | None = None  # for the VAD
    retrying: set[int] = set()  # finals that failed
    over = False
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
        nonlocal unread, finalised
        if isinstance(message, Partial | Ack) and outgoing.qsize() >= PARTIALS_WAITING:
            return
        if outgoing.qsize() >= MESSAGES_WAITING or unread >= CHARACTERS_WAITING:
            return finish(CloseCode.SLOW_READER)
        if message is None:
            return outgoing.put_nowait(None)
        if isinstance(message, SessionEnd):
            message.stats.final_stages_ms = spans.means_ms()
        began = loop.time()
        text = serialize(named(message))
        if isinstance(message, Final):
            spans.add("serialisation", loop.time() - began)
        elif isinstance(message, Snapshot):
            finalised = message.replay_from
        outgoing.put_nowait(text)
        unread += len(text)
        spans.told(message, session, began)

    def pump() -> None:
        """Carry what the session wants to where it belongs."""
        nonlocal caught_up
        for request in session.requests():
            start(request)
        for message in session.messages():
            tell(message)
        backlog_s = (session.received - session.decided) / SAMPLE_RATE
        before = caught_up
        caught_up = backlog_s < MAX_BACKLOG_S and session.messages_waiting < MAX_MESSAGES
        if before and not caught_up:
            line.pause()
        elif caught_up and not before:
            line.resume()
        if session.state is State.DONE:
            tell(None)

    def start(request: Request) -> None:
        match request:
            case SpeechRequest(end=True):
                models.hear(request, ignore)
            case SpeechRequest():
                ask_speech(request)
            case TranscriptRequest(kind="final"):
                asked[request.id] = spawn(ask_final(request))
            case TranscriptRequest():
                asked[request.id] = spawn(ask_transcript(request))
            case TurnRequest():
                spawn(ask_turn(request))
            case Cancel():
                retrying.discard(request.id)
                if task := asked.pop(request.id, None):
                    task.cancel()

    def ask_speech(request: SpeechRequest) -> None:
        nonlocal speech_asked
        asked = speech_asked = loop.time()
        spans.left(session.decided, asked)
        models.hear(request, lambda heard: inside(take_speech, asked, heard))

    def take_speech(asked: float, heard: Heard) -> None:
        nonlocal failing_since, speech_asked, retry
        speech_asked = None
        if not isinstance(heard, SequenceLost):
            failing_since = None
            now = loop.time()
            spans.add("vad", now - asked)
            session.receive_probabilities(heard)
            spans.heard(session, now)
            return pump()
        failing_since = failing_since or loop.time()
        failing_s = loop.time() - failing_since
        if failing_s > limits.outage_s:
            raise heard
        logger.warning("%s: %s", session.id, heard)
        metrics.SPEECH_LOST.inc()
        wait = min(RETRY_FIRST_S + failing_s / 4, RETRY_LAST_S)
        retry = loop.call_later(wait, inside, ask_speech_again)

    def ask_speech_again() -> None:
        session.receive_speech_lost()
        pump()

    async def ask_turn(request: TurnRequest) -> None:
        # The session waits for it: what fails is not asked again.
        try:
            probability = await models.turn_over(request)
        except InferenceError as error:
            logger.warning("%s: %s", session.id, error)
            probability = None
        metrics.TURNS_JUDGED.labels("no" if probability is None else "yes").inc()
        session.receive_turn(request.id, probability)
        pump()

    async def ask_final(request: TranscriptRequest) -> None:
        audio_s = len(request.audio) / 2 / SAMPLE_RATE
        about = {"dalston.segment_id": request.segment_id, "dalston.audio_seconds": audio_s}
        with traces.span("final", about):
            await ask_transcript(request)

    async def ask_transcript(request: TranscriptRequest) -> None:
        began, wait = loop.time(), RETRY_FIRST_S
        failing_since: float | None = None
        while True:
            try:
                hypothesis = await models.transcribe(request)
            except InferenceError as error:
                logger.warning("%s: %s", session.id, error)
                # A model may take long to be loaded before it fails.
                failing_since = failing_since or loop.time()
                give_up = loop.time() - failing_since + wait > limits.outage_s
                if request.kind == "partial" or not error.retryable or give_up:
                    asked.pop(request.id, None)
                    retrying.discard(request.id)
                    metrics.FAILED.labels(request.variant, request.kind).inc()
                    session.receive_failure(request.id, str(error))
                    break
                retrying.add(request.id)
                metrics.RETRIED.labels(request.variant).inc()
                await asyncio.sleep(wait)
                wait = min(2 * wait, RETRY_LAST_S)
            else:
                asked.pop(request.id, None)
                retrying.discard(request.id)
                answered = loop.time()
                elapsed_ms = round((answered - began) * 1000)
                session.receive_hypothesis(request.id, hypothesis, elapsed_ms)
                pump()
                if request.kind == "final":
                    spans.add_all(hypothesis.stages)
                    traces.note({f"dalston.{k}_ms": 1e3 * s for k, s in hypothesis.stages.items()})
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

    def leave() -> None:
        finish(None)  # the client has gone

    def ignore(_: object) -> None:
        pass

    def hear(frame: str | bytes) -> None:
        inside(take, frame)

    def inside(work: Callable[..., None], *arguments: Any) -> None:
        """Calls from outside know nothing of the session they are about, nor who it is that
        fails."""
        if over:
            return
        try:
            context.run(work, *arguments)
        except Exception as error:
            if not finished.done():
                finished.set_exception(error)

    def take(frame: str | bytes) -> None:
        nonlocal last_frame, unlooked
        last_frame = loop.time()
        if isinstance(frame, str):
            spans.heard(session, last_frame, message=True)
            try:
                session.receive_message(parse(frame))
            except MessageError as error:
                session.receive_invalid(str(error))
        elif len(frame) <= limits.frame_bytes:
            something = session.receive_audio(frame)
            spans.arrived(session.received, last_frame)
            unlooked += len(frame)
            if not something and unlooked < UNLOOKED:
                return  # most frames are part of a hop that is not whole yet
            unlooked = 0
        else:
            line.listen(ignore, leave)
            sentence = f"a frame of {len(frame)} bytes; {limits.frame_bytes} at most"
            error = Error(code="invalid_message", message=sentence, recoverable=False)
            return end("terminated", CloseCode.TOO_BIG, error)
        pump()

    async def write() -> None:
        nonlocal unread
        try:
            while (text := await outgoing.get()) is not None:
                unread -= len(text)
                async with asyncio.timeout(limits.reader_s):
                    await line.say(text)
        except TimeoutError:
            finish(CloseCode.SLOW_READER)
        except ConnectionError:
            finish(None)  # the client has gone
        else:
            finish(close_code)

    async def measure() -> None:
        """How far the session is: told to a client that asked for acks, and followed by less work,
        a warning or the end if it is too far behind."""
        nonlocal close_code
        acked, next_ack = None, loop.time() + ACK_EVERY_S
        was_loading = False
        due = loop.time() // MEASURE_EVERY_S * MEASURE_EVERY_S  # all sessions in one wake-up
        while session.state is State.LISTENING:
            now = loop.time()
            unanswered = speech_asked is not None and now - speech_asked >= NO_ANSWER_S
            failing = unanswered or failing_since is not None or bool(retrying) or models.mute()
            loading = models.loading()
            if loading and not was_loading:
                tell(MODEL_LOADING)
            was_loading = loading
            verdict = lag.measure(session.received, session.processed, failing, now, loading)
            session.sparing = lag.seconds > SPARING_S
            if verdict is Verdict.WARN:
                metrics.LAG_WARNINGS.inc()
                tell(lag.warning())
            elif verdict is Verdict.EXCEEDED:
                close_code = CloseCode.LAG
                for message in lag.last_words(session.id, session.last_transcript):
                    tell(message)
                return tell(None)
            if session.config.ack and now >= next_ack:
                ack = Ack(
                    session.received / SAMPLE_RATE,
                    session.heard / SAMPLE_RATE,
                    finalised / SAMPLE_RATE,
                )
                if ack != acked:
                    acked, next_ack = ack, now + ACK_EVERY_S
                    tell(ack)
            due = max(due + MEASURE_EVERY_S, now // MEASURE_EVERY_S * MEASURE_EVERY_S)
            await asyncio.sleep(due - now)

    async def watch() -> None:
        """End the session when nothing comes any more, or for too long, or on a drain."""
        # What it lasted in another worker counts.
        last_moment = loop.time() + limits.session_s - session.decided / SAMPLE_RATE
        while session.state is State.LISTENING:
            now = loop.time()
            # While reading is stopped the client cannot be blamed for silence.
            idle_from = last_frame if caught_up else now
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
                    async with asyncio.timeout(min(last_moment, idle_from + limits.idle_s) - now):
                        await draining.wait()

    async def stop() -> None:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def say_last(error: Error) -> None:
        await stop()
        with contextlib.suppress(ConnectionError, TimeoutError):
            async with asyncio.timeout(LAST_WORDS_S):
                await line.say(serialize(named(error)))

    try:
        for work in (write(), watch(), measure()):
            spawn(work)
        pump()
        line.listen(hear, leave)
        code = await finished
        if code == CloseCode.SLOW_READER:
            sentence = "what is sent is not read"
            await say_last(Error(code="slow_reader", message=sentence, recoverable=False))
        return code
    except (InferenceError, SequenceLost) as error:
        logger.error("%s: given up: %s", session.id, error)
        await say_last(Error(code="internal_error", message=str(error), recoverable=False))
        return CloseCode.INTERNAL
    finally:
        over = True
        line.listen(ignore, leave)
        if retry:
            retry.cancel()
        await stop()
        session.abandon()
        for request in session.requests():
            if isinstance(request, SpeechRequest) and request.end:
                models.hear(request, ignore)

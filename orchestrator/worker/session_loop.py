"""
The asyncio loop around one session: the only place where a session meets the models and the wire.

Knows neither WebSockets nor Triton: the connection to the client and the models are passed in.
Frames are received where they come in, without a task in between. Receiving never waits for a
model; it stops only when the session lags by MAX_BACKLOG_S, and then the client's own connection
slows it down. What is asked of the models is in model_calls.py, what the client is told in
outgoing.py, and what ends a session that does not end by itself in watch.py.
"""

import asyncio
import contextlib
import logging
from collections.abc import Callable, Coroutine
from contextvars import Context, copy_context
from typing import Any

from dalston.orchestrator.inference.triton_client import InferenceError, SequenceLost
from dalston.orchestrator.process.request_ids import named
from dalston.orchestrator.protocol.close_codes import CloseCode
from dalston.orchestrator.protocol.messages import (
    EndReason,
    Error,
    Frame,
    MessageError,
    parse,
    serialize,
)
from dalston.orchestrator.transcription.lag import Lag
from dalston.orchestrator.transcription.session import Session, State
from dalston.orchestrator.worker.model_calls import ModelCalls, Models
from dalston.orchestrator.worker.outgoing import Connection, Outgoing, SlowReader
from dalston.orchestrator.worker.stage_times import StageTimes
from dalston.orchestrator.worker.watch import Limits, Watch
from dalston.triton.contract import SAMPLE_RATE

logger = logging.getLogger(__name__)

# Audio, or messages in the line of it, that were received and are not yet decided, before reading
# stops.
MAX_BACKLOG_S, MAX_MESSAGES = 30.0, 256
UNLOOKED = 1 << 16  # bytes of audio after which the backlog is checked at the latest
# For what is said last to a client that perhaps does not read.
LAST_WORDS_S = 1.0


class SessionLoop:
    """One session between its client and the models. To be run once."""

    def __init__(
        self,
        session: Session,
        connection: Connection,
        models: Models,
        limits: Limits,
        draining: asyncio.Event,
        lag: Lag,
    ):
        """draining: once it is set, the session is asked to end."""
        self._loop = asyncio.get_running_loop()
        self._session, self._connection, self._limits = session, connection, limits
        self._finished: asyncio.Future[int | None] = self._loop.create_future()
        self._tasks: set[asyncio.Task[None]] = set()
        self._context = Context()  # of run(): frames come in one that knows of no session
        self._unlooked = 0  # bytes of audio
        self._over = False
        self._times = StageTimes(session)
        self._outgoing = Outgoing(session, connection, limits.reader_s, self._times)
        self._calls = ModelCalls(
            session, models, limits.outage_s, self._times, self._spawn, self._enter, self._pump
        )
        self._watch = Watch(
            session,
            limits,
            lag,
            models,
            self._calls,
            self._outgoing,
            draining,
            self._end,
            self._pump,
        )

    async def run(self) -> int | None:
        """Until the session has ended: the code to close with, or None if the client has left."""
        self._context = copy_context()
        try:
            for work in (self._write(), self._watch.until_due(), self._watch.follow_lag()):
                self._spawn(work)
            self._pump()
            self._connection.listen(self._on_frame, self._on_leave)
            return await self._finished
        except SlowReader:
            sentence = "what is sent is not read"
            await self._say_last(Error(code="slow_reader", message=sentence, recoverable=False))
            return CloseCode.SLOW_READER
        except (InferenceError, SequenceLost) as error:
            logger.error("%s: given up: %s", self._session.id, error)
            sentence = str(error)
            await self._say_last(Error(code="internal_error", message=sentence, recoverable=False))
            return CloseCode.INTERNAL
        finally:
            self._over = True
            self._connection.listen(_ignore, self._on_leave)
            await self._stop()
            self._session.abandon()
            self._calls.end()

    # From the client.

    def _on_frame(self, frame: Frame) -> None:
        self._enter(self._receive, frame)

    def _on_leave(self) -> None:
        self._finish(None)

    def _receive(self, frame: Frame) -> None:
        session, now = self._session, self._loop.time()
        self._watch.last_frame = now
        if self._limits.mute_s:
            self._watch.mute.receive(frame, now)
        if isinstance(frame, str):
            self._times.message_came(now)
            try:
                session.receive_message(parse(frame))
            except MessageError as error:
                session.receive_invalid(str(error))
        elif len(frame) <= self._limits.frame_bytes:
            something = session.receive_audio(frame)
            self._times.audio_came(now)
            self._unlooked += len(frame)
            if not something and self._unlooked < UNLOOKED:
                return  # most frames are part of a hop that is not whole yet
            self._unlooked = 0
        else:
            self._connection.listen(_ignore, self._on_leave)
            sentence = f"a frame of {len(frame)} bytes; {self._limits.frame_bytes} at most"
            error = Error(code="invalid_message", message=sentence, recoverable=False)
            return self._end("terminated", CloseCode.TOO_BIG, error)
        self._pump()

    # From the session.

    def _pump(self) -> None:
        """Carry what the session wants to where it belongs."""
        session, watch = self._session, self._watch
        for request in session.requests():
            self._calls.start(request)
        for message in session.messages():
            self._outgoing.tell(message)
        backlog_s = (session.received - session.decided) / SAMPLE_RATE
        before = watch.caught_up
        watch.caught_up = backlog_s < MAX_BACKLOG_S and session.messages_waiting < MAX_MESSAGES
        if before and not watch.caught_up:
            self._connection.pause()
        elif watch.caught_up and not before:
            self._connection.resume()
        if session.state is State.DONE:
            self._outgoing.close()

    def _end(self, reason: EndReason, code: CloseCode, error: Error | None = None) -> None:
        self._outgoing.close_code = code
        if error:
            self._outgoing.tell(error)
        self._session.finish(reason)
        self._pump()

    # Tasks, and how it ends.

    async def _write(self) -> None:
        self._finish(await self._outgoing.write())

    def _spawn(self, work: Coroutine[None, None, None]) -> asyncio.Task[None]:
        task = self._loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._on_task_end)
        return task

    def _on_task_end(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()):
            self._fail(error)

    def _enter(self, work: Callable[..., None], *arguments: Any) -> None:
        """Run a call from outside in the context of the session. If it fails, the session fails."""
        if self._over:
            return
        try:
            self._context.run(work, *arguments)
        except Exception as error:
            self._fail(error)

    def _finish(self, code: int | None) -> None:
        if not self._finished.done():
            self._finished.set_result(code)

    def _fail(self, error: BaseException) -> None:
        if not self._finished.done():
            self._finished.set_exception(error)

    async def _stop(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _say_last(self, error: Error) -> None:
        await self._stop()
        with contextlib.suppress(ConnectionError, TimeoutError):
            async with asyncio.timeout(LAST_WORDS_S):
                await self._connection.send(serialize(named(error)))


def _ignore(_: object) -> None:
    pass

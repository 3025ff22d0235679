"""
What is done by the clock while a session listens: its lag is measured, its client is told how far
it is, and a session that does not end by itself is ended.

A session that lags too much gets fewer partials, then a warning, and at last
ends: transcription/lag.py.
"""

import asyncio
import contextlib
from collections.abc import Callable
from dataclasses import dataclass

from dalston.orchestrator.protocol.close_codes import CloseCode
from dalston.orchestrator.protocol.messages import (
    LONGEST_FRAME,
    Ack,
    EndReason,
    Error,
    Flush,
    Warn,
)
from dalston.orchestrator.protocol.mute import Mute
from dalston.orchestrator.transcription.lag import Lag, Verdict
from dalston.orchestrator.transcription.session import Session, State
from dalston.orchestrator.worker import metrics
from dalston.orchestrator.worker.model_calls import ModelCalls, Models
from dalston.orchestrator.worker.outgoing import Outgoing
from dalston.triton.contract import SAMPLE_RATE

# How often lag is measured. Above so much of it an utterance gets no second partial.
MEASURE_EVERY_S, SPARING_S = 0.25, 1.0
ACK_EVERY_S = 1.0
MODEL_LOADING = Warn(
    code="model_loading",
    message="the model is being loaded; what is said meanwhile is transcribed after that",
)


@dataclass(frozen=True)
class Limits:
    idle_s: float = 30.0  # without a frame from the client
    session_s: float = 4 * 3600.0
    outage_s: float = 30.0  # of failing models
    reader_s: float = 15.0  # for a message to leave
    mute_s: float = 0.0  # without audio, before what was being said is finished; 0: never
    frame_bytes: int = LONGEST_FRAME  # of audio


class Watch:
    """Looks after one session. `last_frame` and `caught_up` are kept by whoever reads frames."""

    def __init__(
        self,
        session: Session,
        limits: Limits,
        lag: Lag,
        models: Models,
        calls: ModelCalls,
        outgoing: Outgoing,
        draining: asyncio.Event,
        end: Callable[[EndReason, CloseCode, Error | None], None],
        pump: Callable[[], None],
    ):
        """end: asks the session to end. pump: to be called after a message to it."""
        self._session, self._limits, self._lag, self._models = session, limits, lag, models
        self._calls, self._outgoing, self._draining, self._end = calls, outgoing, draining, end
        self._pump = pump
        self.mute = Mute(limits.mute_s, session.config)
        self._loop = asyncio.get_running_loop()
        self._acked: Ack | None = None
        self._next_ack = self._loop.time() + ACK_EVERY_S
        self._was_loading = False
        self.last_frame = self._loop.time()
        self.caught_up = True  # whether frames are read

    async def follow_lag(self) -> None:
        """Measure the lag. Send acks to a client that asked for them; give a session that lags less
        work, a warning, or its end."""
        # All sessions in one wake-up.
        due = self._loop.time() // MEASURE_EVERY_S * MEASURE_EVERY_S
        while self._session.state is State.LISTENING:
            now = self._loop.time()
            if self._measure(now) is Verdict.EXCEEDED:
                return self._end_lagging()
            self._ack(now)
            if self.mute.look(now, read=self.caught_up):
                self._session.receive_message(Flush())
                self._pump()
            due = max(due + MEASURE_EVERY_S, now // MEASURE_EVERY_S * MEASURE_EVERY_S)
            await asyncio.sleep(due - now)

    def _measure(self, now: float) -> Verdict:
        session, lag = self._session, self._lag
        if session.config.recorded:
            return Verdict.FINE  # it waits as long as live sessions keep the models busy
        loading = self._models.loading()
        if loading and not self._was_loading:
            self._outgoing.tell(MODEL_LOADING)
        self._was_loading = loading
        failing = self._calls.failing
        verdict = lag.measure(session.received, session.processed, failing, now, loading)
        session.sparing = lag.seconds > SPARING_S
        if verdict is Verdict.WARN:
            metrics.LAG_WARNINGS.inc()
            self._outgoing.tell(lag.warning())
        return verdict

    def _end_lagging(self) -> None:
        session = self._session
        self._outgoing.close_code = CloseCode.LAG
        for message in self._lag.last_words(session.id, session.last_transcript):
            self._outgoing.tell(message)
        self._outgoing.close()

    def _ack(self, now: float) -> None:
        session = self._session
        if not session.config.ack or now < self._next_ack:
            return
        ack = Ack(
            session.received / SAMPLE_RATE,
            session.searched / SAMPLE_RATE,
            self._outgoing.finalised / SAMPLE_RATE,
        )
        if ack != self._acked:
            self._acked, self._next_ack = ack, now + ACK_EVERY_S
            self._outgoing.tell(ack)

    async def until_due(self) -> None:
        """End the session when nothing comes any more, or for too long, or on a drain."""
        session, limits = self._session, self._limits
        recorded = bool(session.config.recorded)
        # What it lasted in another worker counts. Of a recording nobody knows that by its audio.
        lasted_s = 0.0 if recorded else session.decided / SAMPLE_RATE
        last_moment = self._loop.time() + limits.session_s - lasted_s
        while session.state is State.LISTENING:
            now = self._loop.time()
            # While reading is stopped the client cannot be blamed for silence, nor can a gateway
            # that holds a recording back until there are finals.
            idle_from = now if recorded or not self.caught_up else self.last_frame
            if self._draining.is_set():
                self._end("server_drain", CloseCode.GOING_AWAY, None)
            elif now >= last_moment:
                sentence = f"a session lasts {limits.session_s:g} s at most"
                error = Error(code="session_timeout", message=sentence, recoverable=False)
                self._end("max_duration", CloseCode.TIMEOUT, error)
            elif now >= idle_from + limits.idle_s:
                sentence = f"nothing was received for {limits.idle_s:g} s"
                error = Error(code="session_timeout", message=sentence, recoverable=False)
                self._end("idle_timeout", CloseCode.TIMEOUT, error)
            else:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(min(last_moment, idle_from + limits.idle_s) - now):
                        await self._draining.wait()

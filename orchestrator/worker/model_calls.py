"""
What one session asks of the models, and their answers on the way back to it.

Finals that fail are asked again, longer after each time, until outage_s of failures; a sequence of
the VAD that breaks off is started again. Partials are not: the next is due soon.
"""

import asyncio
import functools
import logging
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass

from dalston.orchestrator.inference.triton_client import (
    InferenceError,
    RequestSpeech,
    SequenceLost,
    SpeechAnswer,
)
from dalston.orchestrator.process import traces
from dalston.orchestrator.transcription.model_requests import (
    Cancel,
    EndOfTurnRequest,
    Hypothesis,
    Request,
    SpeechRequest,
    TranscriptRequest,
)
from dalston.orchestrator.transcription.session import Session
from dalston.orchestrator.worker import metrics
from dalston.orchestrator.worker.stage_times import StageTimes
from dalston.triton.contract import SAMPLE_RATE

logger = logging.getLogger(__name__)

# The VAD answers in milliseconds. If it has not answered for so long, nothing answers: that is a
# failure, not overload. It is shorter than the lag that is warned of.
NO_ANSWER_S = 2.5
# Retries wait longer each time, up to the last; after outage_s of failures the session gives up.
RETRY_FIRST_S, RETRY_LAST_S = 0.1, 2.0


@dataclass(frozen=True)
class Models:
    """The models of a session, as functions; of inference/fleet.py, or of a test."""

    request_speech: RequestSpeech
    # The second argument is called if the request has to wait for its turn: what to ask instead.
    transcribe: Callable[
        [TranscriptRequest, Callable[[], TranscriptRequest]], Awaitable[Hypothesis]
    ]
    # How likely it is that a turn is over. Raises InferenceError.
    end_of_turn: Callable[[EndOfTurnRequest], Awaitable[float]]
    # Whether transcripts wait for a model that answers nobody. One that only has too much to do
    # answers somebody.
    mute: Callable[[], bool] = lambda: False
    # Whether they wait for a model to be loaded.
    loading: Callable[[], bool] = lambda: False


class ModelCalls:
    """The requests of one session that are under way."""

    def __init__(
        self,
        session: Session,
        models: Models,
        outage_s: float,
        times: StageTimes,
        spawn: Callable[[Coroutine[None, None, None]], asyncio.Task[None]],
        enter: Callable[..., None],
        pump: Callable[[], None],
    ):
        """spawn: makes a task of the session. enter: calls something as the session, whoever calls.
        pump: to be called after each answer."""
        self._session, self._models, self._outage_s = session, models, outage_s
        self._times, self._spawn, self._enter, self._pump = times, spawn, enter, pump
        self._loop = asyncio.get_running_loop()
        self._transcripts: dict[int, asyncio.Task[None]] = {}  # by request
        self._retrying: set[int] = set()  # finals that failed
        self._speech_asked: float | None = None  # and not answered yet
        self._speech_fails_since: float | None = None
        self._speech_again: asyncio.TimerHandle | None = None

    @property
    def failing(self) -> bool:
        """Whether models fail, so that it is no overload if the session lags."""
        asked = self._speech_asked
        unanswered = asked is not None and self._loop.time() - asked >= NO_ANSWER_S
        lost = self._speech_fails_since is not None
        return unanswered or lost or bool(self._retrying) or self._models.mute()

    def start(self, request: Request) -> None:
        match request:
            case SpeechRequest(end=True):
                self._models.request_speech(request, _ignore)
            case SpeechRequest():
                self._request_speech(request)
            case TranscriptRequest(kind="final"):
                self._transcripts[request.id] = self._spawn(self._final(request))
            case TranscriptRequest():
                self._transcripts[request.id] = self._spawn(self._transcript(request))
            case EndOfTurnRequest():
                self._spawn(self._end_of_turn(request))
            case Cancel():
                self._retrying.discard(request.id)
                if task := self._transcripts.pop(request.id, None):
                    task.cancel()

    def end(self) -> None:
        """The session is over, and only its sequence of the VAD is left to end."""
        if self._speech_again:
            self._speech_again.cancel()
        for request in self._session.requests():
            if isinstance(request, SpeechRequest) and request.end:
                self._models.request_speech(request, _ignore)

    # Speech.

    def _request_speech(self, request: SpeechRequest) -> None:
        self._speech_asked = self._loop.time()
        self._times.hop_left(self._speech_asked)
        self._models.request_speech(request, self._on_speech)

    def _on_speech(self, answer: SpeechAnswer) -> None:
        self._enter(self._receive_speech, answer)

    def _receive_speech(self, answer: SpeechAnswer) -> None:
        asked, self._speech_asked = self._speech_asked, None
        assert asked is not None, "an answer to nothing"
        now = self._loop.time()
        if not isinstance(answer, SequenceLost):
            self._speech_fails_since = None
            self._times.add("vad", now - asked)
            self._session.receive_probabilities(answer)
            self._times.searched(now)
            return self._pump()
        self._speech_fails_since = self._speech_fails_since or now
        failing_s = now - self._speech_fails_since
        if failing_s > self._outage_s:
            raise answer
        logger.warning("%s: %s", self._session.id, answer)
        metrics.SPEECH_LOST.inc()
        wait = min(RETRY_FIRST_S + failing_s / 4, RETRY_LAST_S)
        self._speech_again = self._loop.call_later(wait, self._enter, self._speech_was_lost)

    def _speech_was_lost(self) -> None:
        self._session.receive_speech_lost()
        self._pump()

    # Transcripts.

    async def _final(self, request: TranscriptRequest) -> None:
        audio_s = len(request.audio) / 2 / SAMPLE_RATE
        about = {"dalston.segment_id": request.segment_id, "dalston.audio_seconds": audio_s}
        with traces.span("final", about):
            await self._transcript(request)

    async def _transcript(self, request: TranscriptRequest) -> None:
        """Ask until there is an answer, or none is to be had."""
        began, wait = self._loop.time(), RETRY_FIRST_S
        fails_since: float | None = None
        on_turn = functools.partial(self._session.receive_turn, request.id)
        while True:
            try:
                hypothesis = await self._models.transcribe(request, on_turn)
            except InferenceError as error:
                logger.warning("%s: %s", self._session.id, error)
                # A model may take long to be loaded before it fails.
                fails_since = fails_since or self._loop.time()
                give_up = self._loop.time() - fails_since + wait > self._outage_s
                if request.kind == "partial" or not error.retryable or give_up:
                    return self._give_up(request, error)
                self._retrying.add(request.id)
                metrics.RETRIED.labels(request.variant).inc()
                await asyncio.sleep(wait)
                wait = min(2 * wait, RETRY_LAST_S)
            else:
                return self._receive_hypothesis(request, hypothesis, began)

    def _receive_hypothesis(
        self, request: TranscriptRequest, hypothesis: Hypothesis, began: float
    ) -> None:
        self._forget(request)
        answered = self._loop.time()
        elapsed_ms = round((answered - began) * 1000)
        self._session.receive_hypothesis(request.id, hypothesis, elapsed_ms)
        self._pump()
        if request.kind == "final":
            self._times.add_all(hypothesis.stages)
            traces.note({f"dalston.{k}_ms": 1e3 * s for k, s in hypothesis.stages.items()})
            self._times.add("assembly", self._loop.time() - answered)

    def _give_up(self, request: TranscriptRequest, error: InferenceError) -> None:
        self._forget(request)
        metrics.FAILED.labels(request.variant, request.kind).inc()
        self._session.receive_failure(request.id, str(error))
        self._pump()

    def _forget(self, request: TranscriptRequest) -> None:
        self._transcripts.pop(request.id, None)
        self._retrying.discard(request.id)

    # Ends of turns.

    async def _end_of_turn(self, request: EndOfTurnRequest) -> None:
        # The session waits for it: what fails is not asked again.
        try:
            probability = await self._models.end_of_turn(request)
        except InferenceError as error:
            logger.warning("%s: %s", self._session.id, error)
            probability = None
        metrics.TURNS_JUDGED.labels("no" if probability is None else "yes").inc()
        self._session.receive_end_of_turn(request.id, probability)
        self._pump()


def _ignore(_: SpeechAnswer) -> None:
    pass

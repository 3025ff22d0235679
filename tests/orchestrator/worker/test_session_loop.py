"""
One session between a client and the models, with coroutines of the test for both.
"""

import asyncio
import dataclasses
import json
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from support.counted import counted
from support.speech import Vad, chunks, end_of_turn, pcm, recognise, say, silence

from dalston.orchestrator.inference.triton_client import InferenceError, SequenceLost, SpeechAnswer
from dalston.orchestrator.protocol.messages import LONGEST_FRAME, SessionConfig, Snapshot
from dalston.orchestrator.transcription.lag import Lag, LagLimits
from dalston.orchestrator.transcription.model_requests import (
    EndOfTurnRequest,
    Hypothesis,
    SpeechRequest,
    TranscriptRequest,
)
from dalston.orchestrator.transcription.session import Session
from dalston.orchestrator.worker import metrics
from dalston.orchestrator.worker.model_calls import Models
from dalston.orchestrator.worker.outgoing import (
    CHARACTERS_WAITING,
    MESSAGES_WAITING,
    PARTIALS_WAITING,
)
from dalston.orchestrator.worker.session_loop import MAX_BACKLOG_S, MAX_MESSAGES, SessionLoop
from dalston.orchestrator.worker.settings import WorkerSettings
from dalston.orchestrator.worker.watch import Limits

SPOKEN = pcm(np.concatenate([silence(0.4), say([1, 2, 3]), silence(0.7)]))


@dataclass
class Peer:
    """A client and models, all of them willing unless a test says otherwise."""

    limits: Limits = field(default_factory=lambda: Limits(idle_s=5.0, outage_s=2.0))
    lag_limits: LagLimits = field(default_factory=LagLimits)
    config: SessionConfig = field(default_factory=lambda: SessionConfig(language="en"))
    snapshot: Snapshot | None = None
    frames: deque[str | bytes | None] = field(default_factory=deque[str | bytes | None])
    told: list[dict[str, Any]] = field(default_factory=list[dict[str, Any]])
    draining: asyncio.Event = field(default_factory=asyncio.Event)
    vad: Vad = field(default_factory=Vad)
    mute: bool = False
    loading: bool = False
    ended_sequences: int = 0
    asked: set[asyncio.Task[None]] = field(default_factory=set[asyncio.Task[None]])
    read: int = 0  # frames that the handler has taken
    paused: bool = True
    hear: Callable[[str | bytes], None] | None = None
    leave: Callable[[], None] | None = None

    # The line, as the handler has it.

    def listen(self, on_frame: Callable[[str | bytes], None], on_leave: Callable[[], None]) -> None:
        self.hear, self.leave = on_frame, on_leave
        self.resume()

    def pause(self) -> None:
        self.paused = True

    def resume(self) -> None:
        self.paused = False
        asyncio.get_running_loop().call_soon(self.deliver)

    def deliver(self) -> None:
        while self.frames and not self.paused:
            assert self.hear
            assert self.leave
            frame = self.frames.popleft()
            if frame is None:
                self.leave()
            else:
                self.read += 1
                self.hear(frame)

    async def send(self, frame: str) -> None:
        self.told.append(json.loads(frame))

    # The models.

    def ask_vad(self, request: SpeechRequest, tell: Callable[[SpeechAnswer], None]) -> None:
        async def answer() -> None:
            try:
                tell(await self.speech(request))
            except SequenceLost as lost:
                tell(lost)

        task = asyncio.create_task(answer())
        self.asked.add(task)
        task.add_done_callback(self.asked.discard)

    async def speech(self, request: SpeechRequest) -> list[float]:
        await asyncio.sleep(0)
        self.ended_sequences += request.end
        return self.vad.probabilities(request)

    async def transcribe(self, request: TranscriptRequest) -> Hypothesis:
        await asyncio.sleep(0)
        return recognise(request.audio, request.language)

    async def end_of_turn(self, request: EndOfTurnRequest) -> float:
        await asyncio.sleep(0)
        return end_of_turn(request.audio)

    def start(self) -> asyncio.Task[int | None]:
        session = Session("sess_1", self.config, "fast", languages={"en"}, snapshot=self.snapshot)
        models = Models(
            self.ask_vad,
            lambda request, _: self.transcribe(request),
            self.end_of_turn,
            lambda: self.mute,
            lambda: self.loading,
        )
        lag = Lag(self.lag_limits, session.received, asyncio.get_running_loop().time())
        loop = SessionLoop(session, self, models, self.limits, self.draining, lag)
        return asyncio.create_task(loop.run())

    # What the test does.

    def speaks(self, *frames: str | bytes | None) -> None:
        """None: it leaves."""
        self.frames.extend(frames)
        self.deliver()

    async def speak(self, audio: bytes, rate: int = 16_000) -> None:
        """In real time; 16 bit."""
        begun = asyncio.get_running_loop().time()
        for number, frame in enumerate(chunks(audio, [rate // 5])):
            await asyncio.sleep(begun + 0.1 * number - asyncio.get_running_loop().time())
            self.speaks(frame)

    def of(self, kind: str) -> list[dict[str, Any]]:
        return [message for message in self.told if message["type"] == kind]

    def kinds(self) -> list[str]:
        return [message["type"] for message in self.told]

    def finals(self) -> list[str]:
        return [m["text"] for m in self.told if m["type"] == "transcript.final"]

    async def until(self, kind: str) -> None:
        while kind not in self.kinds():
            await asyncio.sleep(0.01)


async def ended(task: asyncio.Task[int | None]) -> int | None:
    """How the handler closed; and that it left no task behind."""
    code = await asyncio.wait_for(task, 20)
    await asyncio.sleep(0.01)  # for the VAD to hear of the end
    assert asyncio.all_tasks() == {asyncio.current_task()}
    return code


END = '{"type":"end"}'


# 000-07, 000-38, 001-43, C-04
async def test_a_conversation_ends_with_session_end_and_1000() -> None:
    peer = Peer()
    task = peer.start()
    peer.speaks(*chunks(SPOKEN, [3200]), END)
    assert await ended(task) == 1000
    assert peer.finals() == ["wb wc wd"]
    assert peer.kinds()[0] == "session.begin"
    assert peer.kinds()[-1] == "session.end"


async def test_reading_does_not_wait_for_the_models() -> None:
    peer = Peer()
    answer = asyncio.Event()

    async def slow(request: SpeechRequest) -> list[float]:
        await answer.wait()
        return peer.vad.probabilities(request)

    peer.speech = slow
    task = peer.start()
    peer.speaks(*chunks(bytes(32_000 * 10), [3200]))
    while peer.read < 100:
        await asyncio.sleep(0.01)
    answer.set()
    peer.speaks(END)
    assert await ended(task) == 1000


async def test_reading_stops_when_the_session_is_far_behind_and_goes_on_later() -> None:
    peer = Peer()
    answer = asyncio.Event()

    async def slow(request: SpeechRequest) -> list[float]:
        await answer.wait()
        return peer.vad.probabilities(request)

    peer.speech = slow
    task = peer.start()
    peer.speaks(*chunks(bytes(round(32_000 * (MAX_BACKLOG_S + 20))), [32_000]), END)
    await asyncio.sleep(0.3)
    assert MAX_BACKLOG_S - 1 <= peer.read <= MAX_BACKLOG_S + 1
    answer.set()
    assert await ended(task) == 1000
    assert peer.told[-1]["total_duration"] == MAX_BACKLOG_S + 20


async def test_reading_stops_when_too_many_messages_wait_and_goes_on_later() -> None:
    peer = Peer()
    answer = asyncio.Event()

    async def slow(request: SpeechRequest) -> list[float]:
        await answer.wait()
        return peer.vad.probabilities(request)

    peer.speech = slow
    task = peer.start()
    peer.speaks(bytes(32_000), *['{"type":"flush"}'] * 1000, SPOKEN, END)
    await asyncio.sleep(0.3)
    assert peer.read == MAX_MESSAGES + 1
    answer.set()
    assert await ended(task) == 1000
    assert peer.finals() == ["wb wc wd"]


async def test_a_client_that_leaves_in_the_middle_of_a_word_leaves_nothing_behind() -> None:
    peer = Peer()
    task = peer.start()
    peer.speaks(*chunks(SPOKEN[: len(SPOKEN) // 2], [3200]))
    await peer.until("vad.speech_start")
    peer.speaks(None)
    assert await ended(task) is None
    # The VAD is told, or its state would linger until it is forgotten.
    assert peer.vad.states == {}
    assert peer.ended_sequences >= 1


async def test_a_client_that_leaves_while_models_are_busy_cancels_them() -> None:
    peer = Peer()
    asked, cancelled = asyncio.Event(), asyncio.Event()

    async def endless(request: TranscriptRequest) -> Hypothesis:
        asked.set()
        try:
            await asyncio.Event().wait()
        finally:
            cancelled.set()
        raise AssertionError

    peer.transcribe = endless
    task = peer.start()
    peer.speaks(*chunks(SPOKEN, [3200]))
    await asked.wait()
    peer.speaks(None)
    assert await ended(task) is None
    assert cancelled.is_set()


# L-03, L-04
async def test_silence_on_the_line_ends_the_session_with_what_was_said() -> None:
    peer = Peer(limits=Limits(idle_s=0.4))
    task = peer.start()
    peer.speaks(*chunks(SPOKEN[:30_000], [3200]))
    assert await ended(task) == 4008
    assert peer.finals() == ["wb wc"]
    error = next(m for m in peer.told if m["type"] == "error")
    assert (error["code"], error["recoverable"]) == ("session_timeout", False)
    assert peer.told[-1]["reason"] == "idle_timeout"


async def test_a_client_that_keeps_talking_is_not_idle() -> None:
    peer = Peer(limits=Limits(idle_s=0.5))
    task = peer.start()
    for _ in range(6):
        peer.speaks(bytes(3200))
        await asyncio.sleep(0.2)
    peer.speaks(END)
    assert await ended(task) == 1000


async def test_a_ping_is_a_sign_of_life() -> None:
    peer = Peer(limits=Limits(idle_s=0.5))
    task = peer.start()
    for _ in range(5):
        peer.speaks('{"type":"ping"}')
        await asyncio.sleep(0.2)
    peer.speaks(END)
    assert await ended(task) == 1000
    assert peer.kinds().count("pong") == 5


async def test_a_client_that_is_muted_in_a_word_has_what_it_said_finished() -> None:
    peer = Peer(limits=Limits(mute_s=0.5))
    task = peer.start()
    await peer.speak(SPOKEN[:30_000])
    await peer.until("transcript.final")
    assert peer.finals() == ["wb wc"]
    peer.speaks(SPOKEN, END)
    assert await ended(task) == 1000
    assert peer.finals() == ["wb wc", "wb wc wd"]


# L-03
async def test_the_longest_session_ends_in_order() -> None:
    peer = Peer(limits=Limits(session_s=0.5))
    task = peer.start()
    while not task.done():
        peer.speaks(SPOKEN[:3200])
        await asyncio.sleep(0.1)
    assert await ended(task) == 4008
    (error,) = peer.of("error")
    assert (error["code"], error["recoverable"]) == ("session_timeout", False)
    assert "0.5 s at most" in error["message"]
    assert peer.told[-1]["reason"] == "max_duration"


async def test_a_drain_ends_the_session_in_order() -> None:
    peer = Peer()
    task = peer.start()
    peer.speaks(*chunks(SPOKEN[:30_000], [3200]))
    await peer.until("vad.speech_start")
    peer.draining.set()
    assert await ended(task) == 1001
    assert peer.finals() == ["wb wc"]
    assert peer.told[-1]["reason"] == "server_drain"


# L-04
@pytest.mark.parametrize("frame", ["{", "hello", '{"type":"what"}', '{"a":' * 4000])
async def test_a_frame_that_is_no_message_is_answered_and_the_session_goes_on(frame: str) -> None:
    peer = Peer()
    task = peer.start()
    half = chunks(SPOKEN, [len(SPOKEN) // 2])
    peer.speaks(half[0], frame, *half[1:], END)
    assert await ended(task) == 1000
    (error,) = [m for m in peer.told if m["type"] == "error"]
    assert (error["code"], error["recoverable"]) == ("invalid_message", True)
    assert peer.finals() == ["wb wc wd"]


@pytest.mark.parametrize("most", [LONGEST_FRAME, LONGEST_FRAME // 2])
async def test_a_frame_above_the_limit_ends_the_session_with_what_was_said(most: int) -> None:
    peer = Peer(limits=Limits(frame_bytes=most))
    task = peer.start()
    peer.speaks(SPOKEN, bytes(most + 1))
    assert await ended(task) == 1009
    (error,) = [m for m in peer.told if m["type"] == "error"]
    assert (error["code"], error["recoverable"]) == ("invalid_message", False)
    assert f"{most} at most" in error["message"]
    assert peer.finals() == ["wb wc wd"]
    assert peer.kinds()[-1] == "session.end"


@pytest.mark.parametrize("most", [LONGEST_FRAME, 2 * LONGEST_FRAME])
async def test_a_frame_of_the_largest_size_is_taken(most: int) -> None:
    peer = Peer(limits=Limits(frame_bytes=most))
    task = peer.start()
    peer.speaks(bytes(most), END)
    assert await ended(task) == 1000


async def test_a_final_is_asked_for_again_until_the_model_answers() -> None:
    peer = Peer()
    failures, retried = 2, counted(metrics.RETRIED, "fast")

    async def shaky(request: TranscriptRequest) -> Hypothesis:
        nonlocal failures
        if request.kind == "final" and failures:
            failures -= 1
            raise InferenceError("Triton: unavailable", retryable=True)
        return recognise(request.audio)

    peer.transcribe = shaky
    task = peer.start()
    peer.speaks(*chunks(SPOKEN, [3200]), END)
    assert await ended(task) == 1000
    assert peer.finals() == ["wb wc wd"]
    assert "error" not in peer.kinds()
    assert counted(metrics.RETRIED, "fast") == retried + 2


async def test_a_final_that_fails_for_too_long_is_given_up_and_the_session_goes_on() -> None:
    peer = Peer(limits=Limits(outage_s=0.5))
    failed = counted(metrics.FAILED, "fast", "final")
    away = True

    async def shaky(request: TranscriptRequest) -> Hypothesis:
        if request.kind == "final" and away:
            raise InferenceError("Triton: unavailable", retryable=True)
        return recognise(request.audio)

    peer.transcribe = shaky
    task = peer.start()
    peer.speaks(SPOKEN[:30_000], '{"type":"flush"}')  # without a pause: no speculation is given up
    await peer.until("error")
    away = False
    peer.speaks(SPOKEN, END)
    assert await ended(task) == 1000
    (error,) = peer.of("error")
    assert (error["code"], error["recoverable"]) == ("internal_error", True)
    assert "unavailable" in error["message"]
    assert peer.finals() == ["wb wc wd"]
    assert counted(metrics.FAILED, "fast", "final") == failed + 1


# 002-33, L-04
async def test_a_final_that_cannot_be_made_is_an_error_and_the_session_goes_on() -> None:
    peer = Peer()
    refused = False

    async def picky(request: TranscriptRequest) -> Hypothesis:
        nonlocal refused
        if request.kind == "final" and not refused:
            refused = True
            raise InferenceError("Triton: broken", retryable=False)
        return recognise(request.audio)

    peer.transcribe = picky
    task = peer.start()
    # Without a pause there is no speculation that could be asked again.
    peer.speaks(SPOKEN[:30_000], '{"type":"flush"}', SPOKEN, END)
    assert await ended(task) == 1000
    (error,) = [m for m in peer.told if m["type"] == "error"]
    assert (error["code"], error["recoverable"]) == ("internal_error", True)
    assert "broken" in error["message"]
    assert peer.finals() == ["wb wc wd"]


async def test_partials_that_fail_are_not_missed() -> None:
    peer = Peer()

    async def no_partials(request: TranscriptRequest) -> Hypothesis:
        if request.kind == "partial":
            raise InferenceError("Triton: queue full", retryable=True)
        return recognise(request.audio)

    peer.transcribe = no_partials
    task = peer.start()
    peer.speaks(*chunks(SPOKEN, [3200]), END)
    assert await ended(task) == 1000
    assert peer.finals() == ["wb wc wd"]


async def test_a_vad_that_comes_back_costs_nothing() -> None:
    peer = Peer()
    lost = 3

    async def shaky(request: SpeechRequest) -> list[float]:
        nonlocal lost
        if lost and not request.end:
            lost -= 1
            raise SequenceLost("Triton: no such sequence")
        return peer.vad.probabilities(request)

    peer.speech = shaky
    task = peer.start()
    peer.speaks(*chunks(SPOKEN, [3200]), END)
    assert await ended(task) == 1000
    assert peer.finals() == ["wb wc wd"]


async def test_a_vad_that_stays_away_ends_the_session_with_an_error() -> None:
    peer = Peer(limits=Limits(outage_s=0.3))

    async def dead(_: SpeechRequest) -> list[float]:
        raise SequenceLost("Triton: connection refused")

    vars(peer)["speech"] = dead
    task = peer.start()
    peer.speaks(*chunks(SPOKEN, [3200]))
    assert await ended(task) == 1011
    assert peer.told[-1]["code"] == "internal_error"
    assert "connection refused" in peer.told[-1]["message"]


async def test_a_turn_that_sounds_over_ends_when_the_model_has_said_so() -> None:
    peer = Peer(config=SessionConfig(language="en", endpointing="smart"))
    task = peer.start()
    peer.speaks(*chunks(pcm(np.concatenate([say([1, 2]), silence(0.45)])), [3200]))
    await peer.until("transcript.final")
    peer.speaks(END)
    assert await ended(task) == 1000
    assert peer.finals() == ["wb wc"]


async def test_a_model_that_cannot_judge_turns_is_asked_once_for_each_and_silence_decides() -> None:
    peer, asked = Peer(config=SessionConfig(language="en", endpointing="smart")), list[int]()

    async def broken(request: EndOfTurnRequest) -> float:
        asked.append(request.id)
        raise InferenceError("it is away", retryable=True)

    peer.end_of_turn = broken
    task = peer.start()
    before = counted(metrics.TURNS_JUDGED, "no")
    for _ in range(2):
        peer.speaks(*chunks(SPOKEN, [3200]))
    peer.speaks(END)
    assert await ended(task) == 1000
    assert counted(metrics.TURNS_JUDGED, "no") == before + 2
    assert peer.finals() == ["wb wc wd", "wb wc wd"]
    assert asked == [1, 2]
    assert [warning["code"] for warning in peer.of("warning")] == ["turns_not_judged"]


async def test_a_stale_request_is_cancelled_not_computed() -> None:
    peer = Peer()
    cancelled: list[str] = []

    async def slow(request: TranscriptRequest) -> Hypothesis:
        try:
            await asyncio.sleep(0.5 if request.kind == "partial" else 0)
        except asyncio.CancelledError:
            cancelled.append(request.kind)
            raise
        return recognise(request.audio)

    peer.transcribe = slow
    task = peer.start()
    peer.speaks(*chunks(SPOKEN, [3200]), END)
    assert await ended(task) == 1000
    assert cancelled == ["partial"]


async def test_a_slow_reader_loses_partials_first() -> None:
    peer = Peer()
    reading = asyncio.Event()
    finals = 0

    async def slow(frame: str) -> None:
        await reading.wait()
        peer.told.append(json.loads(frame))

    async def counted(request: TranscriptRequest) -> Hypothesis:
        nonlocal finals
        finals += request.kind == "final"
        return recognise(request.audio)

    peer.send, peer.transcribe = slow, counted
    task = peer.start()
    spoken = pcm(np.concatenate([say([k % 12 for k in range(80)]), silence(0.7)]))
    for _ in range(4):  # 26 s each, 50 partials
        peer.speaks(*chunks(spoken, [3200]))
    peer.speaks(END)
    while finals < 4:
        await asyncio.sleep(0.01)
    reading.set()
    assert await ended(task) == 1000
    assert len(peer.finals()) == 4
    assert peer.kinds().count("transcript.partial") <= PARTIALS_WAITING


def read_until(peer: Peer, count: int) -> None:
    """From then on the client does not read."""

    async def send(frame: str) -> None:
        if len(peer.told) < count or "slow_reader" in frame:
            peer.told.append(json.loads(frame))
        else:
            await asyncio.Event().wait()

    vars(peer)["send"] = send


async def test_a_reader_that_never_reads_is_let_go_with_the_reason() -> None:
    peer = Peer(limits=Limits(reader_s=60))
    read_until(peer, 1)
    task = peer.start()
    peer.speaks(*['{"type":"ping"}'] * (MESSAGES_WAITING + 10))
    assert await ended(task) == 4011
    assert peer.kinds() == ["session.begin", "error"]
    assert (peer.told[1]["code"], peer.told[1]["recoverable"]) == ("slow_reader", False)


async def test_a_reader_of_long_messages_is_let_go_after_fewer_of_them() -> None:
    peer = Peer(limits=Limits(reader_s=60))
    read_until(peer, 1)

    async def verbose(request: TranscriptRequest) -> Hypothesis:
        heard = recognise(request.audio, request.language)
        return dataclasses.replace(heard, text="wb " * (CHARACTERS_WAITING // 9))

    peer.transcribe = verbose
    task = peer.start()
    for _ in range(4):  # the last is not told any more
        peer.speaks(SPOKEN)
    assert await ended(task) == 4011
    assert peer.read < MESSAGES_WAITING


async def test_a_message_that_does_not_leave_in_time_is_enough() -> None:
    peer = Peer(limits=Limits(reader_s=0.3))
    read_until(peer, 1)
    task = peer.start()
    peer.speaks('{"type":"ping"}')
    assert await ended(task) == 4011
    assert peer.told[-1]["code"] == "slow_reader"


async def test_a_reader_that_cannot_even_be_told_so_is_let_go() -> None:
    peer = Peer(limits=Limits(reader_s=0.3))

    async def never(_: str) -> None:
        await asyncio.Event().wait()

    vars(peer)["send"] = never
    assert await ended(peer.start()) == 4011


async def test_an_end_that_is_not_read_does_not_keep_the_session() -> None:
    peer = Peer(limits=Limits(reader_s=0.3))
    read_until(peer, 1)
    task = peer.start()
    peer.speaks(END)
    assert await ended(task) == 4011


async def test_a_reader_that_takes_a_while_is_let_read() -> None:
    peer = Peer(limits=Limits(reader_s=0.5))

    async def slow(frame: str) -> None:
        await asyncio.sleep(0.1)
        peer.told.append(json.loads(frame))

    peer.send = slow
    task = peer.start()
    peer.speaks(*['{"type":"ping"}'] * 10, END)
    assert await ended(task) == 1000
    assert peer.kinds().count("pong") == 10


async def test_a_client_that_is_gone_when_it_is_written_to_has_left() -> None:
    peer = Peer()

    async def gone(_: str) -> None:
        raise ConnectionResetError

    vars(peer)["send"] = gone
    assert await ended(peer.start()) is None


async def test_a_bug_in_the_models_is_raised_not_swallowed() -> None:
    peer = Peer()

    async def buggy(_: TranscriptRequest) -> Hypothesis:
        raise ZeroDivisionError

    vars(peer)["transcribe"] = buggy
    task = peer.start()
    peer.speaks(*chunks(SPOKEN, [3200]))
    with pytest.raises(ZeroDivisionError):
        await asyncio.wait_for(task, 20)


# Lag. Limits are a tenth of the usual ones, so that the tests are short.

LAG = LagLimits(warning_s=0.5, limit_s=1.0, held_s=0.5, outage_s=3.0)


@pytest.mark.parametrize("rate", [8_000, 24_000, 44_100, 48_000])
async def test_who_is_heard_in_time_has_no_lag_at_any_sample_rate(rate: int) -> None:
    peer = Peer(lag_limits=LAG, config=SessionConfig(language="en", sample_rate=rate, ack=True))
    task = peer.start()
    await peer.speak(pcm(say([1, 2, 3, 4, 5], rate)), rate)
    peer.speaks(END)
    assert await ended(task) == 1000
    assert not peer.of("warning")
    (first, *_) = peer.of("ack")
    assert first["received"] == pytest.approx(1.1, abs=0.2)
    assert first["received"] - first["processed"] < LAG.warning_s


@pytest.mark.parametrize("rate", [8_000, 16_000, 48_000])
async def test_a_vad_that_is_too_slow_is_warned_of_and_ends_the_session(rate: int) -> None:
    peer = Peer(lag_limits=LAG, config=SessionConfig(language="en", sample_rate=rate))

    async def slow(request: SpeechRequest) -> list[float]:
        await asyncio.sleep(2 * len(request.audio) / 32_000)
        return peer.vad.probabilities(request)

    peer.speech = slow
    task = peer.start()
    speaking = asyncio.create_task(peer.speak(bytes(2 * rate * 10), rate))
    assert await asyncio.wait_for(task, 20) == 4010
    speaking.cancel()
    (warning,) = peer.of("warning")
    assert warning["code"] == "processing_lag"
    assert 0.5 <= warning["lag_seconds"] <= 1.0
    assert (warning["warning_threshold_seconds"], warning["hard_threshold_seconds"]) == (0.5, 1.0)
    error, terminated = peer.told[-2:]
    assert (error["type"], error["code"], error["recoverable"]) == ("error", "lag_exceeded", False)
    assert terminated == {
        "type": "session.terminated",
        "session_id": "sess_1",
        "reason": "lag_exceeded",
        "recoverable": False,
    }


async def test_a_recording_has_no_lag_and_is_not_idle_however_long_its_finals_wait() -> None:
    limits = Limits(idle_s=0.3, outage_s=2.0)
    config = SessionConfig(language="en", recorded=True, interim_results=False)
    peer = Peer(lag_limits=LAG, limits=limits, config=config)
    goes_on = asyncio.Event()

    async def slow(request: TranscriptRequest) -> Hypothesis:
        assert (request.kind, request.recorded) == ("final", True)
        await goes_on.wait()
        return recognise(request.audio)

    peer.transcribe = slow
    task = peer.start()
    peer.speaks(*chunks(SPOKEN + SPOKEN, [16_000]))
    await asyncio.sleep(2.0)  # more than lag and silence may last
    assert not task.done()
    goes_on.set()
    peer.speaks(END)
    assert await ended(task) == 1000
    assert peer.finals() == ["wb wc wd", "wb wc wd"]
    assert not peer.of("warning")


async def test_finals_that_are_overdue_are_lag_though_everything_is_heard() -> None:
    peer = Peer(lag_limits=LAG)
    finals = 0

    async def slow(request: TranscriptRequest) -> Hypothesis:
        nonlocal finals
        if request.kind == "final" and (finals := finals + 1) > 1:
            await asyncio.Event().wait()
        return recognise(request.audio)

    peer.transcribe = slow
    task = peer.start()
    speaking = asyncio.create_task(peer.speak(SPOKEN + SPOKEN + bytes(32_000 * 5)))
    assert await asyncio.wait_for(task, 20) == 4010
    speaking.cancel()
    assert peer.finals() == ["wb wc wd"]
    # The first was told whole, and where it ended is told at last.
    end = peer.of("transcript.final")[0]["end"]
    assert peer.told[-1]["last_transcript_offset_ms"] == pytest.approx(1000 * end)


async def test_a_long_utterance_is_no_lag_before_its_final_is_due() -> None:
    peer = Peer(lag_limits=LAG)
    task = peer.start()
    await peer.speak(pcm(say([k % 12 for k in range(7)])))
    peer.speaks(END)
    assert await ended(task) == 1000
    assert not peer.of("warning")


async def test_when_a_session_is_behind_an_utterance_gets_one_partial() -> None:
    peer = Peer(lag_limits=LagLimits(warning_s=60, limit_s=60))
    partials = 0

    async def behind(request: SpeechRequest) -> list[float]:
        # 1.5 s late at first, and no faster than real time from then on.
        await asyncio.sleep(1.5 if request.start else len(request.audio) / 32_000)
        return peer.vad.probabilities(request)

    async def counted(request: TranscriptRequest) -> Hypothesis:
        nonlocal partials
        partials += request.kind == "partial"
        return recognise(request.audio)

    peer.speech, peer.transcribe = behind, counted
    task = peer.start()
    await peer.speak(pcm(say([k % 12 for k in range(12)])))  # 3.84 s: seven partials else
    peer.speaks(END)
    assert await ended(task) == 1000
    assert partials == 1


async def test_an_outage_is_no_lag_and_what_was_said_meanwhile_is_told_late_but_whole() -> None:
    peer = Peer(lag_limits=LAG, limits=Limits(outage_s=10.0))
    back = asyncio.get_running_loop().time() + 2.5

    async def away(request: SpeechRequest) -> list[float]:
        if not request.end and asyncio.get_running_loop().time() < back:
            raise SequenceLost("Triton: connection refused")
        return peer.vad.probabilities(request)

    peer.speech = away
    task = peer.start()
    await peer.speak(SPOKEN + SPOKEN)
    peer.speaks(END)
    assert await ended(task) == 1000
    assert peer.finals() == ["wb wc wd", "wb wc wd"]
    assert not peer.of("warning")


async def test_finals_that_are_asked_for_again_are_no_lag() -> None:
    peer = Peer(lag_limits=LAG, limits=Limits(outage_s=10.0))
    back = asyncio.get_running_loop().time() + 4

    async def away(request: TranscriptRequest) -> Hypothesis:
        if asyncio.get_running_loop().time() < back:
            raise InferenceError("Triton: unavailable", retryable=True)
        return recognise(request.audio)

    peer.transcribe = away
    task = peer.start()
    await peer.speak(SPOKEN + bytes(32_000 * 2))
    peer.speaks(END)
    assert await ended(task) == 1000
    assert peer.finals() == ["wb wc wd"]
    assert not peer.of("warning")


async def test_a_model_that_answers_nobody_is_an_outage_though_nothing_fails() -> None:
    peer = Peer(lag_limits=LAG)

    async def hangs(request: TranscriptRequest) -> Hypothesis:
        if request.kind == "final":
            await asyncio.sleep(0.8)  # lag is above its threshold, and not yet for long
            peer.mute = True
            await asyncio.sleep(1.7)
            peer.mute = False
        return recognise(request.audio)

    peer.transcribe = hangs
    task = peer.start()
    await peer.speak(SPOKEN + bytes(32_000 * 4))
    peer.speaks(END)
    assert await ended(task) == 1000
    assert peer.finals() == ["wb wc wd"]


async def test_who_waits_for_a_model_to_be_loaded_is_told_once_and_loses_nothing() -> None:
    # The lag ends the session, and an outage is over, long before the model is there.
    peer = Peer(lag_limits=replace(LAG, outage_s=0.5), limits=Limits(outage_s=0.5), loading=True)
    there = asyncio.Event()

    async def loads(request: TranscriptRequest) -> Hypothesis:
        await there.wait()
        return recognise(request.audio)

    peer.transcribe = loads
    task = peer.start()
    await peer.speak(SPOKEN + SPOKEN)
    peer.loading = False
    there.set()
    peer.speaks(END)
    assert await ended(task) == 1000
    assert peer.finals() == ["wb wc wd", "wb wc wd"]
    (warning,) = peer.of("warning")
    assert warning["code"] == "model_loading"
    assert peer.kinds().index("warning") > peer.kinds().index("session.begin")


async def test_a_model_that_is_loaded_in_vain_is_asked_for_again() -> None:
    peer = Peer(limits=Limits(outage_s=0.5))
    failures = 1

    async def loads(request: TranscriptRequest) -> Hypothesis:
        nonlocal failures
        if request.kind == "final" and failures:
            failures -= 1
            await asyncio.sleep(0.6)  # longer than an outage may last
            raise InferenceError("Triton: load failed", retryable=True)
        return recognise(request.audio)

    peer.transcribe = loads
    task = peer.start()
    peer.speaks(*chunks(SPOKEN, [3200]), END)
    assert await ended(task) == 1000
    assert failures == 0
    assert peer.finals() == ["wb wc wd"]


# Acks.


async def test_without_being_asked_for_there_are_no_acks() -> None:
    peer = Peer()
    task = peer.start()
    await peer.speak(SPOKEN)
    peer.speaks(END)
    assert await ended(task) == 1000
    assert not peer.of("ack")


async def test_acks_come_every_second_and_are_never_ahead_of_the_snapshot_before() -> None:
    peer = Peer(config=SessionConfig(language="en", ack=True))
    task = peer.start()
    await peer.speak(4 * SPOKEN)
    peer.speaks(END)
    assert await ended(task) == 1000
    acks = peer.of("ack")
    assert 5 <= len(acks) <= 8
    stated = 0.0
    for message in peer.told:
        if message["type"] == "session.snapshot":
            stated = message["replay_from"] / 16_000
        elif message["type"] == "ack":
            assert message["finalised"] == stated
            assert message["finalised"] <= message["processed"] <= message["received"]
    assert acks[-1]["finalised"] > 1
    assert peer.kinds()[-1] == "session.end"


async def test_an_ack_does_not_wait_for_a_final() -> None:
    peer = Peer(config=SessionConfig(language="en", ack=True))
    answer = asyncio.Event()

    async def slow(request: TranscriptRequest) -> Hypothesis:
        await answer.wait()
        return recognise(request.audio)

    peer.transcribe = slow
    task = peer.start()
    peer.speaks(SPOKEN)
    await peer.until("ack")
    assert not peer.finals()
    assert peer.of("ack")[0]["finalised"] == 0
    answer.set()
    peer.speaks(END)
    assert await ended(task) == 1000


async def test_a_client_that_sends_nothing_gets_no_second_ack() -> None:
    peer = Peer(config=SessionConfig(language="en", ack=True))
    task = peer.start()
    peer.speaks(bytes(32_000))
    await asyncio.sleep(2.8)
    peer.speaks(END)
    assert await ended(task) == 1000
    assert len(peer.of("ack")) == 1


async def test_a_session_that_goes_on_is_final_up_to_its_snapshot() -> None:
    first = Peer()
    task = first.start()
    first.speaks(SPOKEN, END)
    assert await ended(task) == 1000
    (told,) = first.of("session.snapshot")
    told.pop("type")
    snapshot = msgspec.convert(told, Snapshot)
    snapshot = msgspec.structs.replace(
        snapshot, config=msgspec.structs.replace(snapshot.config, ack=True)
    )
    second = Peer(snapshot=snapshot)
    task = second.start()
    second.speaks(SPOKEN[2 * snapshot.replay_from :] + bytes(16_000))
    await second.until("ack")
    assert second.of("ack")[0]["finalised"] == snapshot.replay_from / 16_000
    second.speaks(END)
    assert await ended(task) == 1000


AN_HOUR = Snapshot(
    session_id="sess_1",
    epoch=1,
    position=3600 * 16_000,
    replay_from=3600 * 16_000,
    controls=0,
    config=SessionConfig(language="en"),
    detected_language=None,
    next_segment=0,
    speech_samples=0,
    segments=[],
)


async def test_what_a_session_lasted_elsewhere_counts() -> None:
    peer = Peer(limits=Limits(session_s=3600.3), snapshot=AN_HOUR)
    assert await ended(peer.start()) == 4008
    assert peer.told[-1]["reason"] == "max_duration"


async def test_a_session_that_has_time_left_is_heard_to_its_end() -> None:
    peer = Peer(limits=Limits(session_s=3660), snapshot=AN_HOUR)
    task = peer.start()
    peer.speaks(SPOKEN)
    await peer.until("transcript.final")
    peer.speaks(END)
    assert await ended(task) == 1000
    assert peer.finals() == ["wb wc wd"]


# L-03, L-09
def test_the_defaults_are_the_documented_ones() -> None:
    settings = WorkerSettings(REDIS_URL="redis://here", WORKER_ID="w")  # pyright: ignore[reportCallIssue]
    held = (settings.idle_seconds, settings.session_seconds)
    held += (settings.outage_seconds, settings.reader_seconds)
    assert Limits(*held) == Limits(30, 4 * 3600, 30, 15) == Limits()
    lag = (settings.lag_warning_seconds, settings.lag_limit_seconds, settings.lag_held_seconds)
    assert LagLimits(*lag) == LagLimits(3, 5, 2) == LagLimits()
    assert (settings.handshake_seconds, settings.host) == (10, "127.0.0.1")


@settings(max_examples=5, phases=[Phase.explicit, Phase.reuse, Phase.generate])
@given(sizes=st.lists(st.integers(1_000, 40_000), min_size=1, max_size=4))
def test_however_it_is_cut_the_finals_of_a_session_with_acks_are_the_same(
    sizes: list[int],
) -> None:
    async def finals(ack: bool, frames: list[bytes], seconds: float) -> list[Any]:
        peer = Peer(config=SessionConfig(language="en", ack=ack, word_timestamps=True))
        task = peer.start()
        for frame in frames:
            peer.speaks(frame)
            await asyncio.sleep(seconds / len(frames))
        peer.speaks(END)
        assert await ended(task) == 1000
        assert bool(peer.of("ack")) is ack
        assert peer.kinds()[-1] == "session.end"
        return [message | {"processing_ms": 0} for message in peer.of("transcript.final")]

    usual = asyncio.run(finals(False, [SPOKEN + SPOKEN], 0))
    assert [final["text"] for final in usual] == ["wb wc wd", "wb wc wd"]
    assert asyncio.run(finals(True, chunks(SPOKEN + SPOKEN, sizes), 1.4)) == usual


# C-06
async def test_the_end_tells_how_long_the_session_lasted_by_the_clock_and_in_audio() -> None:
    peer = Peer(snapshot=msgspec.structs.replace(AN_HOUR, elapsed_seconds=4000.0))
    task = peer.start()
    peer.speaks(SPOKEN)
    await peer.until("session.snapshot")
    peer.speaks(END)
    assert await ended(task) == 1000
    end, stated = peer.told[-1], peer.of("session.snapshot")[0]["elapsed_seconds"]
    assert end["total_audio_seconds"] == pytest.approx(3600 + len(SPOKEN) / 32_000, abs=1)
    assert 4000 < stated <= end["wall_seconds"] < 4060

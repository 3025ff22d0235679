"""
One session between a client and the models, with coroutines of the test for both.
"""

import asyncio
import json
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
from speech import Vad, chunks, pcm, recognise, say, silence

from dalston.orchestrator.handler import (
    MAX_BACKLOG_S,
    MESSAGES_WAITING,
    PARTIALS_WAITING,
    Limits,
    Models,
    handle,
)
from dalston.orchestrator.inference import InferenceError, SequenceLost
from dalston.orchestrator.messages import LONGEST_FRAME, SessionConfig
from dalston.orchestrator.requests import Hypothesis, SpeechRequest, TranscriptRequest
from dalston.orchestrator.session import Session

SPOKEN = pcm(np.concatenate([silence(0.4), say([1, 2, 3]), silence(0.7)]))


@dataclass
class Peer:
    """A client and models, all of them willing unless a test says otherwise."""

    limits: Limits = field(default_factory=lambda: Limits(idle_s=5.0, outage_s=2.0))
    config: SessionConfig = field(default_factory=lambda: SessionConfig(language="en"))
    frames: asyncio.Queue[str | bytes | None] = field(default_factory=asyncio.Queue)
    told: list[dict[str, Any]] = field(default_factory=list[dict[str, Any]])
    draining: asyncio.Event = field(default_factory=asyncio.Event)
    vad: Vad = field(default_factory=Vad)
    ended_sequences: int = 0
    read: int = 0  # frames that the handler has taken

    async def received(self) -> AsyncIterator[str | bytes]:
        while (frame := await self.frames.get()) is not None:
            self.read += 1
            yield frame

    async def send(self, text: str) -> None:
        self.told.append(json.loads(text))

    async def speech(self, request: SpeechRequest) -> list[float]:
        await asyncio.sleep(0)
        self.ended_sequences += request.end
        return self.vad.probabilities(request)

    async def transcribe(self, request: TranscriptRequest) -> Hypothesis:
        await asyncio.sleep(0)
        return recognise(request.audio, request.language)

    def start(self) -> asyncio.Task[int | None]:
        session = Session("sess_1", self.config, "fast", languages={"en"})
        models = Models(self.speech, self.transcribe)
        return asyncio.create_task(
            handle(session, self.received(), self.send, models, self.limits, self.draining)
        )

    def say(self, *frames: str | bytes | None) -> None:
        for frame in frames:
            self.frames.put_nowait(frame)

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
    await asyncio.sleep(0)
    assert asyncio.all_tasks() == {asyncio.current_task()}
    return code


END = '{"type":"end"}'


async def test_a_conversation_ends_with_session_end_and_1000() -> None:
    peer = Peer()
    task = peer.start()
    peer.say(*chunks(SPOKEN, [3200]), END)
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
    peer.say(*chunks(bytes(32_000 * 10), [3200]))
    while peer.read < 100:
        await asyncio.sleep(0.01)
    answer.set()
    peer.say(END)
    assert await ended(task) == 1000


async def test_reading_stops_when_the_session_is_far_behind_and_goes_on_later() -> None:
    peer = Peer()
    answer = asyncio.Event()

    async def slow(request: SpeechRequest) -> list[float]:
        await answer.wait()
        return peer.vad.probabilities(request)

    peer.speech = slow
    task = peer.start()
    peer.say(*chunks(bytes(round(32_000 * (MAX_BACKLOG_S + 20))), [32_000]), END)
    await asyncio.sleep(0.3)
    assert MAX_BACKLOG_S - 1 <= peer.read <= MAX_BACKLOG_S + 1
    answer.set()
    assert await ended(task) == 1000
    assert peer.told[-1]["total_duration"] == MAX_BACKLOG_S + 20


async def test_a_client_that_leaves_in_the_middle_of_a_word_leaves_nothing_behind() -> None:
    peer = Peer()
    task = peer.start()
    peer.say(*chunks(SPOKEN[: len(SPOKEN) // 2], [3200]))
    await peer.until("vad.speech_start")
    peer.say(None)
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
    peer.say(*chunks(SPOKEN, [3200]))
    await asked.wait()
    peer.say(None)
    assert await ended(task) is None
    assert cancelled.is_set()


async def test_silence_on_the_line_ends_the_session_with_what_was_said() -> None:
    peer = Peer(limits=Limits(idle_s=0.4))
    task = peer.start()
    peer.say(*chunks(SPOKEN[:30_000], [3200]))
    assert await ended(task) == 4008
    assert peer.finals() == ["wb wc"]
    error = next(m for m in peer.told if m["type"] == "error")
    assert (error["code"], error["recoverable"]) == ("session_timeout", False)
    assert peer.told[-1]["reason"] == "idle_timeout"


async def test_a_client_that_keeps_talking_is_not_idle() -> None:
    peer = Peer(limits=Limits(idle_s=0.5))
    task = peer.start()
    for _ in range(6):
        peer.say(bytes(3200))
        await asyncio.sleep(0.2)
    peer.say(END)
    assert await ended(task) == 1000


async def test_a_ping_is_a_sign_of_life() -> None:
    peer = Peer(limits=Limits(idle_s=0.5))
    task = peer.start()
    for _ in range(5):
        peer.say('{"type":"ping"}')
        await asyncio.sleep(0.2)
    peer.say(END)
    assert await ended(task) == 1000
    assert peer.kinds().count("pong") == 5


async def test_the_longest_session_ends_in_order() -> None:
    peer = Peer(limits=Limits(session_s=0.5))
    task = peer.start()
    while not task.done():
        peer.say(SPOKEN[:3200])
        await asyncio.sleep(0.1)
    assert await ended(task) == 4008
    assert peer.told[-1]["reason"] == "max_duration"


async def test_a_drain_ends_the_session_in_order() -> None:
    peer = Peer()
    task = peer.start()
    peer.say(*chunks(SPOKEN[:30_000], [3200]))
    await peer.until("vad.speech_start")
    peer.draining.set()
    assert await ended(task) == 1001
    assert peer.finals() == ["wb wc"]
    assert peer.told[-1]["reason"] == "server_drain"


@pytest.mark.parametrize("text", ["{", "hello", '{"type":"what"}', '{"a":' * 4000])
async def test_a_frame_that_is_no_message_is_answered_and_the_session_goes_on(text: str) -> None:
    peer = Peer()
    task = peer.start()
    half = chunks(SPOKEN, [len(SPOKEN) // 2])
    peer.say(half[0], text, *half[1:], END)
    assert await ended(task) == 1000
    (error,) = [m for m in peer.told if m["type"] == "error"]
    assert (error["code"], error["recoverable"]) == ("invalid_message", True)
    assert peer.finals() == ["wb wc wd"]


async def test_a_frame_above_the_limit_ends_the_session_with_what_was_said() -> None:
    peer = Peer()
    task = peer.start()
    peer.say(SPOKEN, bytes(LONGEST_FRAME + 1))
    assert await ended(task) == 1009
    (error,) = [m for m in peer.told if m["type"] == "error"]
    assert (error["code"], error["recoverable"]) == ("invalid_message", False)
    assert str(LONGEST_FRAME) in error["message"]
    assert peer.finals() == ["wb wc wd"]
    assert peer.kinds()[-1] == "session.end"


async def test_a_frame_of_the_largest_size_is_taken() -> None:
    peer = Peer()
    task = peer.start()
    peer.say(bytes(LONGEST_FRAME), END)
    assert await ended(task) == 1000


async def test_a_final_is_asked_for_again_until_the_model_answers() -> None:
    peer = Peer()
    failures = 2

    async def shaky(request: TranscriptRequest) -> Hypothesis:
        nonlocal failures
        if request.kind == "final" and failures:
            failures -= 1
            raise InferenceError("Triton: unavailable", retryable=True)
        return recognise(request.audio)

    peer.transcribe = shaky
    task = peer.start()
    peer.say(*chunks(SPOKEN, [3200]), END)
    assert await ended(task) == 1000
    assert peer.finals() == ["wb wc wd"]
    assert "error" not in peer.kinds()


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
    peer.say(SPOKEN[:30_000], '{"type":"flush"}', SPOKEN, END)
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
    peer.say(*chunks(SPOKEN, [3200]), END)
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
    peer.say(*chunks(SPOKEN, [3200]), END)
    assert await ended(task) == 1000
    assert peer.finals() == ["wb wc wd"]


async def test_a_vad_that_stays_away_ends_the_session_with_an_error() -> None:
    peer = Peer(limits=Limits(outage_s=0.3))

    async def dead(_: SpeechRequest) -> list[float]:
        raise SequenceLost("Triton: connection refused")

    vars(peer)["speech"] = dead
    task = peer.start()
    peer.say(*chunks(SPOKEN, [3200]))
    assert await ended(task) == 1011
    assert peer.told[-1]["code"] == "internal_error"
    assert "connection refused" in peer.told[-1]["message"]


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
    peer.say(*chunks(SPOKEN, [3200]), END)
    assert await ended(task) == 1000
    assert cancelled == ["partial"]


async def test_a_slow_reader_loses_partials_first() -> None:
    peer = Peer()
    reading = asyncio.Event()
    finals = 0

    async def slow(text: str) -> None:
        await reading.wait()
        peer.told.append(json.loads(text))

    async def counted(request: TranscriptRequest) -> Hypothesis:
        nonlocal finals
        finals += request.kind == "final"
        return recognise(request.audio)

    peer.send, peer.transcribe = slow, counted
    task = peer.start()
    spoken = pcm(np.concatenate([say([k % 12 for k in range(80)]), silence(0.7)]))
    for _ in range(4):  # 26 s each, 50 partials
        peer.say(*chunks(spoken, [3200]))
    peer.say(END)
    while finals < 4:
        await asyncio.sleep(0.01)
    reading.set()
    assert await ended(task) == 1000
    assert len(peer.finals()) == 4
    assert peer.kinds().count("transcript.partial") <= PARTIALS_WAITING


async def test_a_reader_that_never_reads_is_let_go() -> None:
    peer = Peer()

    async def never(_: str) -> None:
        await asyncio.Event().wait()

    vars(peer)["send"] = never
    task = peer.start()
    pings = ['{"type":"ping"}'] * (MESSAGES_WAITING + 10)
    peer.say(*pings)
    assert await ended(task) == 4011


async def test_a_bug_in_the_models_is_raised_not_swallowed() -> None:
    peer = Peer()

    async def buggy(_: TranscriptRequest) -> Hypothesis:
        raise ZeroDivisionError

    vars(peer)["transcribe"] = buggy
    task = peer.start()
    peer.say(*chunks(SPOKEN, [3200]))
    with pytest.raises(ZeroDivisionError):
        await asyncio.wait_for(task, 20)

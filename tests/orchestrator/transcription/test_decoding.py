"""
What is asked of Whisper for an utterance, and what is told of the answers. Whole sessions are in
test_session.py.
"""

import pytest

from dalston.orchestrator.protocol.messages import Error, Final, SessionConfig
from dalston.orchestrator.transcription.decoding import (
    FINALS_IN_FLIGHT,
    Decoding,
    Ended,
    Utterance,
)
from dalston.orchestrator.transcription.model_requests import Cancel, Hypothesis, TranscriptRequest
from dalston.orchestrator.transcription.outbox import Outbox

ENGLISH, ANY = SessionConfig(language="en"), SessionConfig()
AUDIO = bytes(2 * 32_000)


def spoken(number: int, speech: int = 16_000) -> Utterance:
    start = 64_000 * number
    return Utterance(start, start, number=number)


def ended(utterance: Utterance, config: SessionConfig, speech: int = 16_000) -> Ended:
    end = utterance.onset + speech
    return Ended(utterance, end, end + 3200, end + 8000, AUDIO, config, 0, cut=False, void=False)


@pytest.fixture
def outbox() -> Outbox:
    return Outbox()


@pytest.fixture
def decoding(outbox: Outbox) -> Decoding:
    return Decoding("fast", outbox)


def asked(decoding: Decoding) -> list[TranscriptRequest]:
    return [r for r in decoding.requests() if isinstance(r, TranscriptRequest)]


def test_a_final_that_was_asked_for_in_the_pause_is_not_asked_for_again(
    decoding: Decoding, outbox: Outbox
) -> None:
    utterance = spoken(0)
    over = ended(utterance, ENGLISH)
    decoding.speculate(utterance, AUDIO, over.end, over.last, ENGLISH)
    (request,) = asked(decoding)
    decoding.close(over)
    assert asked(decoding) == []
    decoding.receive_hypothesis(request.id, Hypothesis("so"), 5)
    (final,) = outbox.collect()
    assert isinstance(final, Final)
    assert (final.text, decoding.stats.speculative_finals_used) == ("so", 1)


def test_speech_that_goes_on_takes_the_request_back(decoding: Decoding) -> None:
    utterance = spoken(0)
    decoding.speculate(utterance, AUDIO, 16_000, 19_200, ENGLISH)
    (request,) = asked(decoding)
    decoding.resume(utterance)
    assert decoding.requests() == [Cancel(request.id)]
    assert decoding.stats.speculative_finals_dropped == 1


def test_only_so_many_finals_are_under_way_and_all_are_told_in_order(
    decoding: Decoding, outbox: Outbox
) -> None:
    for number in range(FINALS_IN_FLIGHT + 2):
        decoding.close(ended(spoken(number), ENGLISH))
    first = asked(decoding)
    assert len(first) == FINALS_IN_FLIGHT
    for request in reversed(first):
        decoding.receive_hypothesis(request.id, Hypothesis(request.segment_id), 5)
    rest = asked(decoding)
    assert len(rest) == 2
    for request in rest:
        decoding.receive_hypothesis(request.id, Hypothesis(request.segment_id), 5)
    told = [message.text for message in outbox.collect() if isinstance(message, Final)]
    assert told == [f"seg_{number:04}" for number in range(FINALS_IN_FLIGHT + 2)]


def test_a_final_waits_for_the_language_that_the_one_before_may_decide(
    decoding: Decoding, outbox: Outbox
) -> None:
    decoding.close(ended(spoken(0), ANY, 6 * 16_000))
    decoding.close(ended(spoken(1), ANY))
    (first,) = asked(decoding)
    assert first.language == "auto"
    decoding.receive_hypothesis(first.id, Hypothesis("ja", language="de"), 5)
    (second,) = asked(decoding)
    assert second.language == "de"


def test_a_final_that_cannot_be_had_is_said_so_and_the_next_is_told(
    decoding: Decoding, outbox: Outbox
) -> None:
    decoding.close(ended(spoken(0), ENGLISH))
    decoding.close(ended(spoken(1), ENGLISH))
    first, second = asked(decoding)
    decoding.receive_hypothesis(second.id, Hypothesis("so"), 5)
    assert outbox.collect() == []
    decoding.receive_failure(first.id, "no Triton answers")
    error, final = outbox.collect()
    assert isinstance(error, Error)
    assert (error.recoverable, "seg_0000" in error.message) == (True, True)
    assert isinstance(final, Final)


def test_of_a_recording_nothing_is_speculated_and_its_finals_say_that_they_can_wait(
    decoding: Decoding,
) -> None:
    recorded = SessionConfig(language="en", recorded=True)
    utterance = spoken(0)
    over = ended(utterance, recorded)
    decoding.speculate(utterance, AUDIO, over.end, over.last, recorded)
    assert decoding.requests() == []
    decoding.close(over)
    decoding.close(ended(spoken(1), ENGLISH))
    assert [request.recorded for request in asked(decoding)] == [True, False]

"""
The arrows of the diagram in session.py, and the ones that are refused.
"""

from dataclasses import replace

import numpy as np
import pytest
from msgspec.structs import replace as replace_fields
from support.scenes import Scene
from support.speech import RATE, Driver, Step, Vad, chunks, pcm, recognise, say, silence, snapshots

from dalston.orchestrator.protocol.messages import (
    Clear,
    ClientMessage,
    Commit,
    ConfigUpdated,
    Configure,
    Eager,
    End,
    Error,
    Final,
    Flush,
    Flushed,
    Partial,
    Ping,
    Pong,
    ServerMessage,
    SessionBegin,
    SessionConfig,
    SessionEnd,
    Snapshot,
    SpeechEnd,
    SpeechStart,
    Warn,
    Withdrawn,
)
from dalston.orchestrator.transcription.endpointer import PAUSE
from dalston.orchestrator.transcription.model_requests import (
    EndOfTurnRequest,
    Hypothesis,
    SpeechRequest,
    TranscriptRequest,
)
from dalston.orchestrator.transcription.session import Session, State


def new_session(**settings: object) -> Session:
    config = SessionConfig(**{"language": "en", **settings})  # pyright: ignore[reportArgumentType]
    return Session("sess_1", config, "fast", languages={"en", "es"}, translates=True)


def session_after(*steps: Step, **settings: object) -> Driver:
    """With models that answer at once."""
    driver = Driver(new_session(**settings))
    for step in steps:
        driver.step(step)
    return driver


def audio(*parts: list[int] | float) -> bytes:
    """Words, and seconds of silence."""
    return pcm(np.concatenate([say(p) if isinstance(p, list) else silence(p) for p in parts]))


def finals(driver: Driver) -> list[str]:
    return [m.text for m in driver.messages if isinstance(m, Final)]


# 000-40, 001-35
def test_a_session_begins_by_stating_how_it_listens() -> None:
    (begin,) = new_session(sample_rate=8_000).messages()
    assert isinstance(begin, SessionBegin)
    assert (begin.session_id, begin.protocol_version) == ("sess_1", "1.0")
    assert begin.config.sample_rate == 8_000


def test_a_flush_is_answered_once_the_finals_before_it_are_told() -> None:
    driver = session_after(audio([1, 2]), Flush(), audio(0.3), flushed=True)
    kinds = [type(m) for m in driver.messages if isinstance(m, Final | Flushed)]
    assert kinds == [Final, Flushed]
    (answer,) = [m for m in driver.messages if isinstance(m, Flushed)]
    assert answer.at == pytest.approx(2 * 0.32, abs=0.001)


def test_a_flush_of_nothing_is_answered_too() -> None:
    driver = session_after(audio(1.0), Flush(), Commit(), flushed=True)
    assert [m.at for m in driver.messages if isinstance(m, Flushed)] == [1.0, 1.0]


@pytest.mark.parametrize(("flush", "flushed"), [(Flush(answered=False), True), (Flush(), False)])
def test_no_flush_is_answered_that_nobody_asked_for(flush: Flush, flushed: bool) -> None:
    driver = session_after(audio([1, 2]), flush, flushed=flushed)
    assert not [m for m in driver.messages if isinstance(m, Flushed)]


# 000-27, 000-36, 002-07
def test_silence_after_speech_ends_the_utterance() -> None:
    driver = session_after(audio(0.5, [1, 2, 3], 0.7))
    kinds = [type(m) for m in driver.messages if not isinstance(m, Partial | SessionBegin)]
    assert kinds == [SpeechStart, SpeechEnd, Final, Snapshot]
    assert finals(driver) == ["wb wc wd"]


# 001-18
def test_silence_shorter_than_the_endpoint_stays_in_the_utterance() -> None:
    driver = session_after(audio([1, 2], 0.35, [3], 0.7))
    assert finals(driver) == ["wb wc wd"]


# 000-41, 001-38, C-05
def test_events_carry_the_audio_clock_of_the_session() -> None:
    driver = session_after(audio(2.0, [1, 2, 3], 1.0))
    (start,) = [m for m in driver.messages if isinstance(m, SpeechStart)]
    (end,) = [m for m in driver.messages if isinstance(m, SpeechEnd)]
    assert start.timestamp == pytest.approx(2.0, abs=0.033)
    assert end.timestamp == pytest.approx(2.0 + 3 * 0.32, abs=0.07)


# 000-35, C-08
def test_the_lookback_keeps_the_onset_of_the_first_word() -> None:
    driver = session_after(audio(1.0, [4], 0.8))
    (final,) = [m for m in driver.messages if isinstance(m, Final)]
    (asked,) = {r.audio for r in driver.asked if r.kind == "final"}
    assert final.start == pytest.approx(1.0 - 0.3, abs=0.033)
    assert recognise(asked).text == "we"


def test_a_click_is_no_utterance() -> None:
    click = pcm(np.concatenate([silence(0.5), say([5])[:800], silence(1.0)]))
    driver = session_after(click)
    assert not [m for m in driver.messages if isinstance(m, SpeechStart)]
    assert not driver.asked


def test_a_click_right_before_speech_was_its_beginning() -> None:
    """Its silence was just too long; the lookback of what follows reaches into it."""
    click = say([5])[:800]
    data = pcm(np.concatenate([silence(1.0), click, silence(0.65), say([1, 2, 3]), silence(0.7)]))
    driver = session_after(data)
    (start,) = [m for m in driver.messages if isinstance(m, SpeechStart)]
    (final,) = [m for m in driver.messages if isinstance(m, Final)]
    assert start.timestamp == pytest.approx(1.0, abs=0.04)
    assert final.start == pytest.approx(0.7, abs=0.04)
    assert final.text.endswith("wb wc wd")


def test_a_click_long_before_speech_is_forgotten() -> None:
    click = say([5])[:800]
    data = pcm(np.concatenate([silence(1.0), click, silence(1.5), say([1, 2, 3]), silence(0.7)]))
    driver = session_after(data)
    (start,) = [m for m in driver.messages if isinstance(m, SpeechStart)]
    assert start.timestamp == pytest.approx(2.55, abs=0.04)


# 000-28, 002-07, C-02
def test_partials_come_every_half_second_of_speech() -> None:
    words = [k % 12 for k in range(12)]  # 3.84 s
    driver = session_after(*chunks(audio(words, 0.7), [3200]))
    partials = [m for m in driver.messages if isinstance(m, Partial)]
    asked = [r for r in driver.asked if r.kind == "partial"]
    assert len(asked) == 7
    gaps = np.diff([len(r.audio) / 32_000 for r in asked])
    assert gaps == pytest.approx(np.full(6, 0.5), abs=0.065)
    assert partials[-1].text == " ".join("wa wb wc wd we wf wg wh wi wj wk wl".split())


def test_partials_come_as_rarely_as_the_worker_is_set_to() -> None:
    config = SessionConfig(language="en")
    driver = Driver(Session("sess_1", config, "fast", languages={"en"}, partial_every=16_000))
    for chunk in chunks(audio([1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 0], 0.7), [3200]):
        driver.step(chunk)
    gaps = np.diff([len(r.audio) / 32_000 for r in driver.asked if r.kind == "partial"])
    assert gaps == pytest.approx(np.full(2, 1.0), abs=0.065)


def test_only_one_partial_is_in_flight() -> None:
    session = new_session()
    asked = asked_of_whisper(session, Driver(session), audio([1, 2, 3, 4, 5, 6, 7, 8]))
    assert len({request.id for request in asked}) == 1


def test_a_late_partial_is_followed_by_one_of_the_newest_audio() -> None:
    session = new_session()
    vad = Driver(new_session()).vad
    partials: list[TranscriptRequest] = []

    def serve() -> None:
        while requests := session.requests():
            for request in requests:
                if isinstance(request, SpeechRequest):
                    session.receive_probabilities(vad.probabilities(request))
                elif isinstance(request, TranscriptRequest):
                    partials.append(request)

    for chunk in chunks(audio([1, 2, 3, 4, 5, 6, 7, 8]), [3200]):
        session.receive_audio(chunk)
        serve()
    session.receive_hypothesis(partials[0].id, recognise(partials[0].audio))
    serve()
    assert len(partials) == 2
    assert len(partials[1].audio) > len(partials[0].audio) + 16_000


def test_a_partial_that_had_to_wait_is_asked_with_the_audio_there_is_by_now() -> None:
    session = new_session()
    driver = Driver(new_session())
    (asked,) = asked_of_whisper(session, driver, audio([1, 2, 3]))
    assert asked.urgent
    assert asked_of_whisper(session, driver, audio([4, 5, 6])) == []
    newest = session.receive_turn(asked.id)
    assert (newest.id, newest.kind) == (asked.id, "partial")
    assert newest.audio.startswith(asked.audio)
    assert recognise(newest.audio).text.startswith("wb wc wd we wf")
    session.receive_hypothesis(newest.id, recognise(newest.audio))
    (partial,) = [m for m in session.messages() if isinstance(m, Partial)]
    assert partial.end == pytest.approx(session.decided / 16_000)
    # The next is due half a second after what was asked last, and waits behind first ones.
    (second,) = asked_of_whisper(session, driver, audio([7, 8]))
    assert len(second.audio) >= len(newest.audio) + 16_000
    assert not second.urgent


def asked_of_whisper(session: Session, driver: Driver, data: bytes) -> list[TranscriptRequest]:
    """Send audio, answer the VAD, and nobody else."""
    found: list[TranscriptRequest] = []
    for chunk in chunks(data, [3200]):
        session.receive_audio(chunk)
        while requests := session.requests():
            for request in requests:
                if isinstance(request, SpeechRequest):
                    probabilities = driver.vad.probabilities(request)
                    if not request.end:
                        session.receive_probabilities(probabilities)
                elif isinstance(request, TranscriptRequest):
                    found.append(request)
    return found


# 000-20
def test_no_interim_results_means_that_no_partial_is_even_asked_for() -> None:
    driver = session_after(audio([1, 2, 3, 4], 0.7), interim_results=False)
    assert {r.kind for r in driver.asked} == {"final"}
    assert not [m for m in driver.messages if isinstance(m, Partial)]


# 001-32, C-09
def test_enable_vad_false_hides_the_events_and_nothing_else() -> None:
    driver = session_after(audio([1, 2, 3], 0.7), enable_vad=False)
    assert finals(driver) == ["wb wc wd"]
    assert not [m for m in driver.messages if isinstance(m, SpeechStart | SpeechEnd)]


def test_the_final_is_asked_for_while_the_pause_may_still_be_one() -> None:
    driver = session_after(audio([1, 2, 3], 0.35))
    assert [r.kind for r in driver.asked][-1] == "final"
    assert not finals(driver)
    driver.step(audio(0.3))
    assert finals(driver) == ["wb wc wd"]
    assert [r.kind for r in driver.asked].count("final") == 1


def test_a_speculative_final_is_thrown_away_when_speech_resumes() -> None:
    driver = session_after(audio([1, 2], 0.35, [3], 0.7), End())
    finals_asked = [r for r in driver.asked if r.kind == "final"]
    assert len(finals_asked) == 2
    assert finals(driver) == ["wb wc wd"]
    (end,) = [m for m in driver.messages if isinstance(m, SessionEnd)]
    assert end.stats.speculative_finals_dropped == 1


def test_the_stats_tell_what_the_encoder_saw() -> None:
    session = new_session()
    driver = Driver(new_session())
    (partial,) = asked_of_whisper(session, driver, audio([1, 2, 3]))
    session.receive_hypothesis(partial.id, Hypothesis("wb", window_seconds=4))
    *_, final = asked_of_whisper(session, driver, audio(0.35))
    assert final.kind == "final"
    session.receive_hypothesis(final.id, Hypothesis("wb wc", window_seconds=34))
    assert session.stats.partial_window_seconds == 4
    assert session.stats.final_window_seconds == 34


def test_nothing_is_speculated_while_an_earlier_final_is_due() -> None:
    session, driver = new_session(interim_results=False), Driver(new_session())
    (first,) = asked_of_whisper(session, driver, audio([1, 2, 3], 0.7, [4, 5], 0.35))
    assert recognise(first.audio).text == "wb wc wd"
    session.receive_hypothesis(first.id, recognise(first.audio))
    (second,) = asked_of_whisper(session, driver, audio(0.3))
    session.receive_hypothesis(second.id, recognise(second.audio))
    assert [m.text for m in session.messages() if isinstance(m, Final)] == ["wb wc wd", "we wf"]


# 000-39, C-03
def test_flush_makes_a_final_of_the_open_utterance_at_once() -> None:
    driver = session_after(audio(0.3, [1, 2, 3]))
    assert not finals(driver)
    driver.step(Flush())
    assert finals(driver) == ["wb wc wd"]


def test_flush_transcribes_a_word_too_short_to_be_confirmed() -> None:
    driver = session_after(pcm(say([6])[:2600]), Flush(), min_speech_duration_ms=500)
    assert finals(driver) == ["wg"]
    kinds = [type(m) for m in driver.messages if isinstance(m, SpeechStart | SpeechEnd | Final)]
    assert kinds == [SpeechStart, SpeechEnd, Final]


def test_flush_in_silence_says_nothing() -> None:
    driver = session_after(audio(1.0), Flush(), audio(0.1))
    assert not finals(driver)
    assert not driver.asked


def test_commit_is_flush() -> None:
    assert finals(session_after(audio([1, 2]), Commit())) == ["wb wc"]


# C-03
def test_speech_goes_on_after_a_flush() -> None:
    driver = session_after(audio([1, 2]), Flush(), audio([3, 4], 0.7))
    assert finals(driver) == ["wb wc", "wd we"]


def test_clear_forgets_the_open_utterance() -> None:
    driver = session_after(audio([1, 2, 3]), Clear(), audio(0.6, [4, 5], 0.7))
    assert finals(driver) == ["we wf"]
    starts = [m for m in driver.messages if isinstance(m, SpeechStart)]
    ends = [m for m in driver.messages if isinstance(m, SpeechEnd)]
    assert len(starts) == len(ends) == 2


# 000-30, 000-44, 001-44, C-04, C-06, C-07
def test_end_finishes_what_was_said_and_is_the_last_word() -> None:
    driver = session_after(audio(0.5, [1, 2], 0.7, [3, 4]), End())
    assert driver.session.state is State.DONE
    end = driver.messages[-1]
    assert isinstance(end, SessionEnd)
    assert end.transcript == "wb wc wd we"
    assert [segment.text for segment in end.segments] == ["wb wc", "wd we"]
    assert end.reason == "client_end"
    assert end.total_duration == end.total_audio_seconds == pytest.approx(0.5 + 1.28 + 0.7)
    assert end.total_speech_duration == pytest.approx(1.28, abs=0.1)


def test_end_without_any_audio_is_an_empty_transcript() -> None:
    driver = session_after(End())
    end = driver.messages[-1]
    assert isinstance(end, SessionEnd)
    assert (end.transcript, end.segments, end.total_duration) == ("", [], 0.0)


def test_end_waits_for_finals_that_are_under_way() -> None:
    session = new_session()
    driver = Driver(session)
    session.receive_audio(audio([1, 2]))
    session.receive_message(End())
    driver.collect()
    assert session.state is State.ENDING
    assert not any(isinstance(m, SessionEnd) for m in driver.messages)
    driver.answer()
    assert session.state is State.DONE
    assert isinstance(driver.messages[-1], SessionEnd)


# C-09
def test_manual_endpointing_leaves_the_end_to_the_client() -> None:
    driver = session_after(audio([1, 2], 2.0, [3], 2.0), endpointing="manual")
    assert not finals(driver)
    driver.step(Flush())
    assert finals(driver) == ["wb wc wd"]


# The last word says whether a turn sounds over: speech.end_of_turn.
OVER, NOT_OVER = 2, 3


def test_a_turn_that_sounds_over_ends_earlier() -> None:
    driver = session_after(audio([1, OVER], 0.45), endpointing="smart")
    assert finals(driver) == ["wb wc"]
    assert not finals(session_after(audio([1, OVER], 0.45)))


def test_a_turn_that_does_not_sound_over_is_waited_for() -> None:
    driver = session_after(audio([1, NOT_OVER], 0.9, [OVER], 0.45), endpointing="smart")
    assert finals(driver) == ["wb wd wc"]
    assert len(finals(session_after(audio([1, NOT_OVER], 0.9, [OVER], 0.45)))) == 1


def test_silence_still_ends_a_turn_that_never_sounds_over() -> None:
    assert finals(session_after(audio([NOT_OVER], 1.2), endpointing="smart")) == ["wd"]
    short = session_after(audio([NOT_OVER], 0.8), endpointing="smart", max_silence_duration_ms=600)
    assert finals(short) == ["wd"]


def test_how_a_pause_sounds_is_asked_with_its_last_eight_seconds() -> None:
    words = [k % 12 for k in range(30)]  # 9.6 s
    driver = session_after(audio(words, 0.3), endpointing="smart")
    (turn,) = driver.turns
    (final,) = [request for request in driver.asked if request.kind == "final"]
    assert len(turn.audio) == 2 * 8 * RATE
    assert final.audio.endswith(turn.audio)


def test_nobody_is_asked_how_a_pause_sounds_who_did_not_ask_for_it() -> None:
    assert session_after(audio([1, 2], 0.7)).turns == []
    assert session_after(audio([1, 2], 0.7), endpointing="manual").turns == []


def in_a_pause(data: bytes, **settings: object) -> tuple[Session, Driver, EndOfTurnRequest]:
    """A session whose VAD has heard it all and whose question how the pause sounds is open."""
    session = new_session(endpointing="smart", interim_results=False, **settings)
    driver = Driver(new_session())
    (turn,) = asked_how_it_sounds(session, driver, data)
    return session, driver, turn


def asked_how_it_sounds(session: Session, driver: Driver, data: bytes) -> list[EndOfTurnRequest]:
    turns: list[EndOfTurnRequest] = []
    for chunk in chunks(data, [3200]):
        session.receive_audio(chunk)
        while requests := session.requests():
            for request in requests:
                if isinstance(request, SpeechRequest):
                    probabilities = driver.vad.probabilities(request)
                    if not request.end:
                        session.receive_probabilities(probabilities)
                elif isinstance(request, EndOfTurnRequest):
                    turns.append(request)
                elif isinstance(request, TranscriptRequest):
                    session.receive_hypothesis(request.id, recognise(request.audio))
    return turns


def test_nothing_is_decided_behind_a_pause_before_its_answer_came() -> None:
    session, driver, turn = in_a_pause(audio([1, OVER], 3.0))
    assert session.decided < 0.64 * RATE + 0.3 * RATE + 1024
    assert not [m for m in session.messages() if isinstance(m, SpeechEnd | Final)]
    session.receive_end_of_turn(turn.id, 0.95)
    asked_how_it_sounds(session, driver, b"\0\0")
    assert session.decided == pytest.approx(session.received, abs=RATE)
    assert [m.text for m in session.messages() if isinstance(m, Final)] == ["wb wc"]


def test_speech_that_goes_on_before_the_answer_could_count_waits_for_none() -> None:
    session, driver, turn = in_a_pause(audio([1, OVER], 0.2, [3, 4, 5]))
    assert session.decided > 1.6 * RATE
    session.receive_end_of_turn(turn.id, 0.95)  # late, and of no meaning
    asked_how_it_sounds(session, driver, audio(0.2))
    assert not [m for m in session.messages() if isinstance(m, Final)]


def test_a_turn_nobody_can_judge_ends_by_silence_and_that_is_told_once() -> None:
    session, driver, turn = in_a_pause(audio([1, OVER], 0.45))
    session.receive_end_of_turn(turn.id, None)
    asked_how_it_sounds(session, driver, b"\0\0")
    told = session.messages()
    assert not [m for m in told if isinstance(m, Final)]
    assert [m.code for m in told if isinstance(m, Warn)] == ["turns_not_judged"]
    (again,) = asked_how_it_sounds(session, driver, audio(0.3, [1, NOT_OVER], 0.7))
    session.receive_end_of_turn(again.id, None)
    told = session.messages()
    assert [m.text for m in told if isinstance(m, Final)][0] == "wb wc"
    assert [m.code for m in told if isinstance(m, Warn)] == []


def test_a_flush_behind_an_open_question_takes_effect_when_it_is_answered() -> None:
    session, driver, turn = in_a_pause(audio([1, NOT_OVER], 0.5))
    session.receive_message(Flush())
    assert session.messages_waiting == 1
    session.receive_end_of_turn(turn.id, 0.05)
    asked_how_it_sounds(session, driver, b"\0\0")
    assert [m.text for m in session.messages() if isinstance(m, Final)] == ["wb wd"]


def eager(driver: Driver) -> list[str]:
    """Eager finals, withdrawals and finals, in short."""
    told = [m for m in driver.messages if isinstance(m, Eager | Withdrawn | Final)]
    return [f"{type(m).__name__} {getattr(m, 'text', '')}".strip() for m in told]


def test_an_eager_final_is_told_in_the_pause_and_confirmed_by_the_final() -> None:
    driver = session_after(audio([1, 2, 3], 0.35), eager=True)
    assert eager(driver) == ["Eager wb wc wd"]
    driver.step(audio(0.3))
    assert eager(driver) == ["Eager wb wc wd", "Final wb wc wd"]
    told, final = (m for m in driver.messages if isinstance(m, Eager | Final))
    assert (told.segment_id, told.start, told.end) == (final.segment_id, final.start, final.end)
    assert told.language == final.language


def test_an_eager_final_is_withdrawn_when_speech_goes_on() -> None:
    driver = session_after(audio([1, 2], 0.35), audio([3], 0.35), audio(0.4), eager=True)
    assert eager(driver) == ["Eager wb wc", "Withdrawn", "Eager wb wc wd", "Final wb wc wd"]
    segments = {m.segment_id for m in driver.messages if isinstance(m, Eager | Withdrawn | Final)}
    assert segments == {"seg_0000"}


def test_an_eager_final_is_withdrawn_when_the_client_takes_the_utterance_back() -> None:
    driver = session_after(audio([1, 2], 0.35), Clear(), eager=True)
    assert eager(driver) == ["Eager wb wc", "Withdrawn"]


def test_a_flush_in_the_pause_confirms_the_eager_final() -> None:
    driver = session_after(audio([1, 2], 0.35), Flush(), eager=True)
    assert eager(driver) == ["Eager wb wc", "Final wb wc"]


def test_eager_finals_are_for_those_who_ask_and_come_without_partials_too() -> None:
    assert eager(session_after(audio([1, 2], 0.7))) == ["Final wb wc"]
    driver = session_after(audio([1, 2], 0.35), audio(0.4), eager=True, interim_results=False)
    assert eager(driver) == ["Eager wb wc", "Final wb wc"]
    assert not [m for m in driver.messages if isinstance(m, Partial)]


def test_behind_a_cut_an_eager_final_says_what_the_final_says() -> None:
    words = [k % 12 for k in range(100)]  # 32 s
    driver = session_after(*chunks(audio(words, 0.7), [6400]), eager=True)
    *_, told, final = (m for m in driver.messages if isinstance(m, Eager | Final))
    assert isinstance(told, Eager)
    assert isinstance(final, Final)
    assert (told.text, told.segment_id) == (final.text, final.segment_id)


def test_who_ends_turns_has_its_final_asked_for_before_200_ms_of_silence_are_over() -> None:
    driver = session_after(audio([1, 2], 0.1), endpointing="manual", interim_results=False)
    (asked,) = driver.asked
    driver.step(Flush())
    assert finals(driver) == ["wb wc"]
    assert driver.asked == [asked]
    assert session_after(audio([1, 2], 0.1), interim_results=False).asked == []


def test_in_a_pause_nothing_is_waited_for_longer_than_a_decision_takes() -> None:
    session, driver = new_session(interim_results=False), Driver(new_session())
    spoken = 0.64 * RATE - 0.08 * RATE
    for chunk in chunks(audio([1, 2], 0.6), [64]):  # 2 ms
        before = session.decided
        asked = asked_of_whisper(session, driver, chunk)
        if asked:
            # Silence is heard from the second silent frame on, in whole frames.
            assert session.received - spoken < PAUSE + 3 * 512 + 64
            assert session.decided > before
            break
    else:
        raise AssertionError("no final was speculated")


# 002-08, C-23
def test_an_utterance_of_thirty_seconds_is_cut_where_it_is_quiet_and_joined() -> None:
    words = [k % 12 for k in range(120)]  # 38 s
    driver = session_after(audio(words, 0.7), End(), word_timestamps=True)
    first, second = (m for m in driver.messages if isinstance(m, Final))
    assert 25 <= first.end - first.start <= 30
    ends = [m.timestamp for m in driver.messages if isinstance(m, SpeechEnd)]
    starts = [m.timestamp for m in driver.messages if isinstance(m, SpeechStart)]
    assert ends[0] == starts[1] == second.start
    assert f"{first.text} {second.text}".split() == ["w" + "abcdefghijkl"[w] for w in words]


def test_an_utterance_below_thirty_seconds_is_left_whole() -> None:
    driver = session_after(audio([k % 12 for k in range(92)], 0.7), End())  # 29.4 s
    (final,) = (m for m in driver.messages if isinstance(m, Final))
    assert 29 <= final.end - final.start < 30
    assert len(final.text.split()) == 92


# 000-17
def test_a_language_is_detected_once_and_kept() -> None:
    driver = session_after(audio(0.3, [1, 2, 3, 4], 0.7, [5, 6], 0.7), language="auto")
    asked = [r.language for r in driver.asked if r.kind == "final"]
    assert asked == ["auto", "en"]
    assert {m.language for m in driver.messages if isinstance(m, Final)} == {"en"}


def test_a_language_is_not_believed_on_less_than_a_second_of_speech() -> None:
    driver = session_after(audio(0.3, [1], 0.7, [2], 0.7), language="auto")
    assert [r.language for r in driver.asked if r.kind == "final"] == ["auto", "auto"]


# 001-41
def test_config_changes_the_language_from_here_on() -> None:
    driver = session_after(
        audio([1, 2, 3, 4], 0.7), Configure(language="es"), audio([1, 2, 3, 4], 0.7)
    )
    assert [r.language for r in driver.asked if r.kind == "final"] == ["en", "es"]
    (updated,) = [m for m in driver.messages if isinstance(m, ConfigUpdated)]
    assert updated.config.language == "es"


def test_config_back_to_auto_detects_anew() -> None:
    speech = audio([1, 2, 3, 4], 0.7)
    driver = session_after(speech, speech, Configure(language="auto"), speech, language="auto")
    assert [r.language for r in driver.asked if r.kind == "final"] == ["auto", "en", "auto"]


def asked_languages(driver: Driver, kind: str = "final") -> list[str]:
    return [r.language for r in driver.asked if r.kind == kind]


def test_one_of_several_languages_is_detected_once_and_kept() -> None:
    driver = session_after(
        audio([1, 2, 3, 4], 0.7, [2, 3], 0.7), language="auto", languages=("en", "es")
    )
    assert asked_languages(driver) == ["en es", "es"]
    assert [m.language for m in driver.messages if isinstance(m, Final)] == ["es", "es"]


def test_each_utterance_has_its_language_detected_and_short_ones_have_that_of_the_one_before() -> (
    None
):
    speech = audio([1, 2, 3, 4, 6], 0.7, [2], 0.7, [2, 3, 4, 5, 6], 0.7, [1], 0.7)
    driver = session_after(
        *chunks(speech, [3200]),
        language="auto",
        languages=("en", "es"),
        language_detection="utterance",
    )
    assert asked_languages(driver) == ["en es", "es", "en es", "en"]
    assert [m.language for m in driver.messages if isinstance(m, Final)] == ["es", "es", "en", "en"]


def test_a_short_utterance_waits_for_the_language_of_a_long_one_whose_final_is_late() -> None:
    session = new_session(
        language="auto", languages=("en", "es"), language_detection="utterance", vad_threshold=0.5
    )
    driver = Driver(session)
    driver.step(audio([2, 3, 4, 5, 6], 0.7))  # English, and kept
    held = list[TranscriptRequest]()
    session.receive_audio(audio([1, 2, 3, 4, 6], 0.7, [2], 0.7, [2, 3, 4, 5, 6], 0.7))
    while True:
        requests = session.requests()
        held += [r for r in requests if isinstance(r, TranscriptRequest) and r.kind == "final"]
        speech = [r for r in requests if isinstance(r, SpeechRequest)]
        if not requests:
            break
        for request in speech:
            probabilities = driver.vad.probabilities(request)
            if not request.end:
                session.receive_probabilities(probabilities)
    assert [r.language for r in held] == ["en es", "en es"]  # the long ones
    session.receive_hypothesis(held[0].id, recognise(held[0].audio, held[0].language))
    (short,) = [r for r in session.requests() if isinstance(r, TranscriptRequest)]
    assert short.language == "es"


def test_what_is_agreed_on_goes_on_in_its_language() -> None:
    speech = chunks(audio([1, *range(2, 12)], 0.7), [3200])
    driver = session_after(*speech, language="auto", languages=("en", "es"))
    partials = [r for r in driver.asked if r.kind == "partial"]
    assert {r.language for r in partials if not r.prefix} == {"en es"}
    assert {r.language for r in partials if r.prefix} == {"es"}


def test_languages_given_anew_are_detected_anew() -> None:
    speech = audio([1, 2, 3, 4], 0.7)
    driver = session_after(
        speech, speech, Configure(languages=("es", "en")), speech, language="auto"
    )
    assert asked_languages(driver) == ["auto", "en", "es en"]


def test_partials_and_finals_are_asked_for_with_task_prompt_and_keywords() -> None:
    driver = session_after(
        audio([1, 2, 3, 4, 5], 0.7), task="translate", prompt="A talk.", keywords=("wb",)
    )
    assert {r.kind for r in driver.asked} == {"partial", "final"}
    assert {(r.task, r.prompt, r.keywords) for r in driver.asked} == {
        ("translate", "A talk.", ("wb",))
    }


def test_prompt_and_keywords_change_where_the_message_stands_among_the_audio() -> None:
    driver = session_after(
        audio([1, 2], 0.7),
        Configure(prompt="Names.", keywords=("wd",)),
        audio([3, 4], 0.7),
        Configure(prompt="", keywords=()),
        audio([5], 0.7),
    )
    asked = [(r.prompt, r.keywords) for r in driver.asked if r.kind == "final"]
    assert asked == [("", ()), ("Names.", ("wd",)), ("", ())]


def test_a_final_speculated_with_another_prompt_is_asked_for_again() -> None:
    # The prompt changes in the pause: after the speculation, before the end of the utterance.
    driver = session_after(audio([1, 2], 0.4), Configure(prompt="Names."), audio(0.7))
    finals_asked = [r.prompt for r in driver.asked if r.kind == "final"]
    assert finals_asked == ["", "Names."]


def test_a_prompt_that_is_too_long_is_told_once_before_its_first_final() -> None:
    speech = audio([1], 0.7)
    driver = session_after(
        speech, speech, Configure(prompt="another one that is too long"), speech,
        prompt="a prompt of many words",
    )  # fmt: skip
    told = [m for m in driver.messages if isinstance(m, Warn | Final)]
    assert [type(m) for m in told] == [Warn, Final, Final, Warn, Final]
    assert all("10 tokens" in m.message for m in told[:1] if isinstance(m, Warn))
    assert {m.code for m in told if isinstance(m, Warn)} == {"prompt_cut"}


def test_a_session_that_goes_on_from_any_snapshot_asks_the_models_for_the_same() -> None:
    config = SessionConfig(language_detection="utterance", languages=("en", "es"))
    parts: list[bytes | ClientMessage] = [
        audio([1, 2, 3, 4, 6], 0.7, [2], 0.7),
        Configure(prompt="a prompt of many words", keywords=("wb",)),
        audio([2, 3, 4, 5, 6], 0.7, [1], 0.7),
        Configure(task="translate", language_detection="session"),
        audio([3, 4, 5, 6, 7], 0.7, [2, 3], 0.7),
    ]
    scene = Scene(config, parts)

    def asked(driver: Driver) -> list[TranscriptRequest]:
        return [replace(r, id=0, draft=()) for r in driver.asked if r.kind == "final"]

    undisturbed = Driver(scene.session())
    undisturbed.run(scene.steps([3200]))
    everything = asked(undisturbed)
    assert [r.language for r in everything] == ["en es", "es", "en es", "en", "en es", "es"]
    kept = snapshots(undisturbed.messages)
    assert len(kept) >= 6
    warned = list[bool]()
    for snapshot in kept:
        continued = Driver(scene.session(snapshot))
        continued.run(scene.steps([3200], scene.rest(snapshot)))
        rest = asked(continued)
        assert rest == everything[len(everything) - len(rest) :]
        assert len(rest) == len(everything) - snapshot.next_segment
        warned.append(any(isinstance(m, Warn) for m in continued.messages))
    assert True in warned
    assert warned[-1] is False  # it was told before


@pytest.mark.parametrize(
    ("change", "code", "word"),
    [
        (Configure(languages=("en", "ja")), "language_unsupported", "'ja'"),
        (Configure(language="en", languages=("en", "es")), "invalid_parameter", "languages"),
        (Configure(language="en", language_detection="utterance"), "invalid_parameter", "auto"),
    ],
    ids=["unknown", "fixed and several", "fixed and detected"],
)
def test_settings_that_contradict_themselves_are_refused_and_nothing_changes(
    change: Configure, code: str, word: str
) -> None:
    driver = session_after(change, audio([1, 2, 3, 4], 0.7), language="auto")
    (error,) = [m for m in driver.messages if isinstance(m, Error)]
    assert (error.code, error.recoverable) == (code, True)
    assert word in error.message
    assert asked_languages(driver) == ["auto"]


def test_a_model_that_cannot_translate_refuses_to() -> None:
    session = Session("s", SessionConfig(language="en"), "fast", languages={"en"})
    session.receive_message(Configure(task="translate"))
    (error,) = [m for m in session.messages() if isinstance(m, Error)]
    assert (error.code, error.message) == ("invalid_parameter", "this model cannot translate")


def test_translated_words_are_joined_with_spaces_whatever_is_spoken() -> None:
    # Japanese has none between words; the English it is translated into has.
    config = SessionConfig(language="ja", task="translate")
    driver = Driver(Session("s", config, "fast", languages={"ja"}, translates=True))
    driver.run([audio([k % 12 for k in range(110)], 0.7), End()])
    texts = finals(driver)
    assert len(texts) == 2
    assert sum(len(text.split()) for text in texts) == 110


# C-20
@pytest.mark.parametrize(("threshold", "hinted"), [(0.01, True), (0.05, True), (0.06, False)])
def test_a_threshold_that_is_one_of_loudness_elsewhere_is_hinted_at(
    threshold: float, hinted: bool
) -> None:
    driver = session_after(Configure(vad_threshold=threshold), Configure(language="es"))
    codes = [m.code for m in driver.messages if isinstance(m, Warn)]
    assert codes == ["low_vad_threshold"] * hinted


# 004-20
def test_config_of_the_vad_takes_effect() -> None:
    driver = session_after(Configure(min_silence_duration_ms=1500), audio([1], 1.0, [2], 2.0))
    assert finals(driver) == ["wb wc"]


# 000-19, 001-40
def test_word_timestamps_are_told_when_asked_for() -> None:
    driver = session_after(audio(0.4, [1, 2], 0.7), word_timestamps=True)
    (final,) = [m for m in driver.messages if isinstance(m, Final)]
    assert final.words is not None
    assert [w.word for w in final.words] == ["wb", "wc"]
    assert final.words[1].start == pytest.approx(0.4 + 0.32, abs=0.02)
    without = session_after(audio(0.4, [1, 2], 0.7))
    assert all(m.words is None for m in without.messages if isinstance(m, Final))


def test_the_model_is_asked_for_word_times_only_where_they_are_needed() -> None:
    spoken = audio(0.4, [1, 2], 0.7)

    def asked(*steps: Step, **settings: object) -> list[bool]:
        driver = session_after(*steps, **settings)
        return [request.words for request in driver.asked if request.kind == "final"]

    assert asked(spoken) == [False]
    assert asked(spoken, word_timestamps=True) == [True]
    # The pause came before the setting, the end behind it: what was speculated is not enough.
    paused = audio(0.4, [1, 2], 0.4)
    later = asked(paused, Configure(word_timestamps=True), audio(0.7))
    assert later == [False, True]
    # The sides of a cut are joined by their words.
    cut = asked(audio([k % 12 for k in range(18)], 0.7), max_utterance_duration=5.0)
    assert len(cut) >= 2
    assert all(cut)


# 001-39
def test_empty_text_makes_no_final() -> None:
    session = new_session()
    driver = Driver(session)
    session.receive_audio(audio([1, 2], 0.7))
    pending = session.requests()
    while pending:
        for request in pending:
            if isinstance(request, TranscriptRequest):
                session.receive_hypothesis(request.id, Hypothesis(""))
            elif isinstance(request, SpeechRequest) and not request.end:
                session.receive_probabilities(driver.vad.probabilities(request))
        pending = session.requests()
    kinds = {type(m) for m in session.messages()}
    assert SpeechEnd in kinds
    assert Final not in kinds
    assert Snapshot in kinds


def test_twenty_seconds_of_silence_make_a_snapshot() -> None:
    driver = session_after(*chunks(audio(45.0), [32_000]))
    positions = [m.position for m in driver.messages if isinstance(m, Snapshot)]
    assert positions == [320_000, 640_000]


def test_a_lost_vad_sequence_is_heard_again_from_its_start() -> None:
    session = new_session()
    vad = Driver(new_session()).vad
    driver = Driver(session)
    lost = False
    sequences: list[tuple[str, bool]] = []
    for chunk in [*chunks(audio(0.5, [1, 2, 3], 0.7), [3200]), None]:
        if chunk is not None:
            session.receive_audio(chunk)
        while requests := session.requests():
            for request in requests:
                if isinstance(request, SpeechRequest) and not request.end:
                    sequences.append((request.sequence, request.start))
                    if not lost and session.decided > 16_000:
                        lost = True
                        session.receive_speech_lost()
                    else:
                        session.receive_probabilities(vad.probabilities(request))
                elif isinstance(request, TranscriptRequest):
                    session.receive_hypothesis(request.id, recognise(request.audio))
    undisturbed = session_after(*chunks(audio(0.5, [1, 2, 3], 0.7), [3200]))
    assert lost
    assert len({name for name, _ in sequences}) >= 2
    # Every new sequence says that it starts.
    first_of = {name: start for name, start in reversed(sequences)}
    assert all(first_of.values())
    keep = (SpeechStart, SpeechEnd, Final)
    assert [m for m in session.messages() if isinstance(m, keep)] == [
        m for m in undisturbed.messages if isinstance(m, keep)
    ]
    assert driver.session is session


def test_a_final_that_fails_is_an_error_and_the_session_goes_on() -> None:
    session = new_session()
    vad = Driver(new_session()).vad
    failed = 0
    messages: list[ServerMessage] = []
    session.receive_audio(audio([1, 2], 0.7, [3, 4], 0.7))
    session.receive_message(End())
    while requests := session.requests():
        for request in requests:
            if isinstance(request, TranscriptRequest) and request.kind == "final":
                if failed == 0:
                    failed += 1
                    session.receive_failure(request.id, "out of memory")
                else:
                    session.receive_hypothesis(request.id, recognise(request.audio))
            elif isinstance(request, TranscriptRequest):
                session.receive_failure(request.id, "too late")
            elif isinstance(request, SpeechRequest) and not request.end:
                session.receive_probabilities(vad.probabilities(request))
        messages += session.messages()
    texts = [m.text for m in messages if isinstance(m, Final)]
    errors = [m for m in messages if isinstance(m, Error)]
    # The failed speculation is asked again at the endpoint.
    assert texts in (["wb wc", "wd we"], ["wd we"])
    assert len(errors) == 2 - len(texts)
    assert isinstance(messages[-1], SessionEnd)


# 001-10, L-04
def test_values_that_are_no_numbers_are_heard_as_silence_and_told_once() -> None:
    bad = np.full(8_000, np.nan, "<f4").tobytes()
    good = np.concatenate([say([1, 2]), silence(0.7)]).astype("<f4").tobytes()
    driver = session_after(bad, good, bad, encoding="pcm_f32le")
    errors = [m for m in driver.messages if isinstance(m, Error)]
    assert [(e.code, e.recoverable) for e in errors] == [("invalid_audio", True)]
    assert finals(driver) == ["wb wc"]


def test_ping_is_answered_at_once_even_while_a_final_is_awaited() -> None:
    session = new_session()
    session.messages()
    session.receive_audio(audio([1, 2], 0.2))
    session.receive_message(Flush())
    session.receive_message(Ping())
    assert session.messages() == [Pong()]


# What is refused.


@pytest.mark.parametrize(
    "message", [Flush(), Commit(), Clear(), End(), Configure(language="en")], ids=repr
)
def test_messages_after_end_are_refused(message: ClientMessage) -> None:
    session = new_session()
    session.receive_audio(audio([1]))
    session.receive_message(End())
    session.messages()
    session.receive_message(message)
    (error,) = session.messages()
    assert isinstance(error, Error)
    assert (error.code, error.recoverable) == ("invalid_message", True)
    assert "after the end" in error.message


def test_audio_after_end_is_refused_once() -> None:
    session = new_session()
    session.receive_audio(audio([1]))
    session.receive_message(End())
    session.messages()
    for _ in range(3):
        session.receive_audio(audio(0.1))
    (error,) = session.messages()
    assert isinstance(error, Error)
    assert error.code == "invalid_message"


def test_who_goes_on_speaking_when_it_is_us_who_end_has_done_nothing_wrong() -> None:
    session = new_session()
    session.receive_audio(audio([1]))
    session.finish("max_duration")
    session.messages()
    session.receive_audio(audio(0.1))
    session.receive_message(Flush())
    assert session.state is State.ENDING
    assert session.messages() == []


def test_nothing_is_told_after_the_session_has_ended() -> None:
    driver = session_after(End())
    session = driver.session
    session.receive_audio(audio(0.1))
    session.receive_message(Flush())
    session.receive_message(End())
    session.receive_invalid("nonsense")
    session.finish("idle_timeout")
    assert session.messages() == []


def test_a_frame_that_is_no_message_is_refused_and_the_session_goes_on() -> None:
    driver = session_after(audio([1]))
    driver.session.receive_invalid("not JSON")
    driver.step(audio([2], 0.7))
    (error,) = [m for m in driver.messages if isinstance(m, Error)]
    assert (error.code, error.message) == ("invalid_message", "not JSON")
    assert finals(driver) == ["wb wc"]


def test_a_language_the_model_does_not_know_is_refused_and_nothing_changes() -> None:
    driver = session_after(Configure(language="xx" * 5_000), audio([1, 2], 0.7))
    (error,) = [m for m in driver.messages if isinstance(m, Error)]
    assert len(error.message) < 300
    assert (error.code, error.recoverable) == ("language_unsupported", True)
    assert [r.language for r in driver.asked if r.kind == "final"] == ["en"]


def test_finishing_twice_ends_once() -> None:
    session = new_session()
    session.finish("idle_timeout")
    session.finish("max_duration")
    ends = [m for m in session.messages() if isinstance(m, SessionEnd)]
    assert [end.reason for end in ends] == ["idle_timeout"]


def test_probabilities_nobody_asked_for_are_our_own_bug() -> None:
    with pytest.raises(AssertionError, match="nobody asked"):
        new_session().receive_probabilities([0.5])
    with pytest.raises(AssertionError, match="nothing"):
        new_session().receive_speech_lost()


def test_the_answer_to_a_cancelled_request_is_ignored() -> None:
    driver = session_after(audio([1, 2], 0.7))
    before = len(driver.messages)
    for request in driver.asked:
        driver.session.receive_hypothesis(request.id, Hypothesis("late"))
        driver.session.receive_failure(request.id, "late")
    assert driver.session.messages() == []
    assert len(driver.messages) == before


# What is processed.


def test_an_utterance_that_goes_on_holds_nothing_up() -> None:
    driver = session_after(audio(0.5, list(range(12))))
    assert driver.session.received - driver.session.processed < RATE // 5


def test_a_final_that_is_not_told_yet_holds_up_from_where_it_was_due() -> None:
    session = new_session(interim_results=False)
    vad = Vad()
    session.receive_audio(audio([1, 2, 3], 3.0))
    final: TranscriptRequest | None = None
    while requests := session.requests():
        for request in requests:
            if isinstance(request, SpeechRequest) and not request.end:
                session.receive_probabilities(vad.probabilities(request))
            elif isinstance(request, TranscriptRequest):
                final = request
    session.messages()
    assert final
    assert session.searched / RATE == pytest.approx(3.96, abs=0.2)
    # Half a second of silence behind three words.
    assert session.processed / RATE == pytest.approx(0.96 + 0.5, abs=0.1)
    session.receive_hypothesis(final.id, recognise(final.audio))
    session.messages()
    assert session.processed == session.searched


def test_a_cut_is_not_heard_less_for_being_heard_twice() -> None:
    driver = Driver(new_session())
    heard = [0]
    for frame in chunks(audio([k % 12 for k in range(110)]), [3200]):
        driver.step(frame)
        assert driver.session.searched >= heard[-1]
        heard.append(driver.session.searched)
    assert len(finals(driver)) == 1
    assert driver.session.received - driver.session.processed < RATE // 5


# 001-22
def test_sparing_the_models_leaves_the_first_partial_of_an_utterance() -> None:
    driver = Driver(new_session())
    driver.session.sparing = True
    for frame in chunks(audio([1, 2, 3, 4, 5, 6], 1.0, [1, 2, 3, 4, 5, 6], 1.0), [3200]):
        driver.step(frame)
    shown = [m.segment_id for m in driver.messages if isinstance(m, Partial)]
    asked = [request.kind for request in driver.asked]
    assert asked == ["partial", "final"] * 2
    assert set(shown) == {"seg_0000", "seg_0001"}


# Messages that wait.


def test_settings_that_are_changed_twice_at_one_place_take_one_place_in_the_line() -> None:
    session = new_session()
    session.receive_audio(audio(0.5))
    assert session.messages_waiting == 0
    for _ in range(1000):
        session.receive_message(Configure(vad_threshold=0.6))
        session.receive_message(Configure(language="es"))
    assert session.messages_waiting == 1
    updated = [m.config for m in session.messages() if isinstance(m, ConfigUpdated)]
    assert (updated[0].vad_threshold, updated[0].language) == (0.6, "en")
    assert (updated[1].vad_threshold, updated[1].language) == (0.6, "es")
    session.receive_message(Flush())
    session.receive_message(Configure(language="en"))
    assert session.messages_waiting == 3


# The VAD, before and after a restart.


class SlowToWake(Vad):
    """Hears nothing in the first 0.4 s of a sequence, as Silero does of somebody quiet."""

    def __init__(self) -> None:
        super().__init__()
        self.heard: dict[str, int] = {}

    def probabilities(self, request: SpeechRequest) -> list[float]:
        answer = super().probabilities(request)
        before = self.heard.get(request.sequence, 0)
        self.heard[request.sequence] = before + len(answer)
        return [p if before + at >= 12 else 0.0 for at, p in enumerate(answer)]


def quiet_driver(session: Session) -> Driver:
    driver = Driver(session)
    driver.vad = SlowToWake()
    return driver


@pytest.mark.parametrize("rate", [8_000, 16_000, 44_100, 48_000])
def test_the_second_sentence_of_a_quiet_speaker_is_heard_from_its_first_word(rate: int) -> None:
    sound = np.concatenate(
        [say([1, 2, 3], rate), silence(0.56, rate), say([4, 5], rate), silence(0.7, rate)]
    )
    driver = quiet_driver(new_session(sample_rate=rate))
    driver.run([*chunks(pcm(sound), [1999]), Flush(), pcm(say([6, 7], rate)), End()])
    assert finals(driver) == ["wb wc wd", "we wf", "wg wh"]
    starts = [m.timestamp for m in driver.messages if isinstance(m, SpeechStart)]
    assert starts == pytest.approx([0.0, 1.52, 2.86], abs=0.07)


@pytest.mark.parametrize("rate", [16_000, 44_100])
def test_a_session_that_goes_on_elsewhere_hears_a_quiet_speaker_as_well(rate: int) -> None:
    sound = np.concatenate(
        [say([1, 2, 3], rate), silence(0.56, rate), say([4, 5], rate), silence(0.56, rate)]
    )
    scene = Scene(SessionConfig(language="en", sample_rate=rate), [pcm(np.tile(sound, 3))])
    undisturbed = quiet_driver(scene.session())
    undisturbed.run(scene.steps([3200]))
    everything = finals(undisturbed)
    assert everything == ["wb wc wd", "we wf"] * 3
    for number, snapshot in enumerate(snapshots(undisturbed.messages), 1):
        assert snapshot.position - snapshot.replay_from <= 4.1 * RATE
        continued = quiet_driver(scene.session(snapshot))
        continued.run(scene.steps([3200], scene.rest(snapshot)))
        assert finals(continued) == everything[number:]


def test_what_the_vad_hears_again_is_no_part_of_any_final() -> None:
    driver = session_after(*chunks(audio([1, 2, 3], 0.6, [4, 5], 0.6, [6], 0.7), [3200]))
    assert finals(driver) == ["wb wc wd", "we wf", "wg"]
    asked = [len(r.audio) / 32_000 for r in driver.asked if r.kind == "final"]
    assert asked == pytest.approx([0.96 + 0.2, 0.3 + 0.64 + 0.2, 0.3 + 0.32 + 0.2], abs=0.07)


@pytest.mark.parametrize("message", [Flush(), Clear(), End()], ids=repr)
def test_a_message_in_the_middle_of_what_is_heard_again_moves_nothing(
    message: Flush | Clear | End,
) -> None:
    whole = audio([1, 2, 3], 5.0, [4, 5], 0.7)
    snapshot = snapshots(session_after(whole).messages)[0]
    again = whole[2 * snapshot.replay_from :]
    continued = Driver(Session("s", snapshot.config, "fast", languages={"en"}, snapshot=snapshot))
    continued.run([again[:3200], message])
    assert continued.session.decided == snapshot.position
    continued.run([again[3200:]] if message == End() else [again[3200:], End()])
    assert finals(continued) == ([] if message == End() else ["we wf"])


def test_a_snapshot_that_names_no_floor_is_one_of_before_there_was_one() -> None:
    driver = session_after(audio([1, 2, 3], 0.7))
    (snapshot,) = snapshots(driver.messages)
    old = replace_fields(snapshot, replay_from=snapshot.floor, floor=None)
    rest = audio([1, 2, 3], 0.7, [4, 5], 0.7)[2 * old.replay_from :]
    continued = Driver(Session("s", old.config, "fast", languages={"en"}, snapshot=old))
    continued.run([rest, End()])
    assert finals(continued) == ["we wf"]


def test_a_session_without_audio_asks_nobody_anything() -> None:
    driver = session_after(Flush(), Clear(), Configure(vad_threshold=0.6), End())
    assert driver.session.state is State.DONE
    assert driver.vad.states == {}
    assert not driver.asked


# Settings and messages at the edge.


def test_flushing_twice_says_it_once() -> None:
    driver = session_after(audio([1, 2, 3]), Flush(), Flush(), audio([4, 5], 0.7), Flush())
    assert finals(driver) == ["wb wc wd", "we wf"]


def test_the_lookback_may_be_longer_than_all_the_audio_before() -> None:
    driver = session_after(audio(0.1, [1, 2], 0.7), prefix_padding_ms=1000)
    (final,) = [m for m in driver.messages if isinstance(m, Final)]
    assert (final.start, final.text) == (0.0, "wb wc")


@pytest.mark.parametrize("milliseconds", [50, 2000])
def test_the_shortest_and_the_longest_silence_that_may_end_an_utterance(milliseconds: int) -> None:
    driver = session_after(
        audio([1, 2], 0.7, [3, 4], 2.2), End(), min_silence_duration_ms=milliseconds
    )
    assert " ".join(finals(driver)).split() == ["wb", "wc", "wd", "we"]
    assert (len(finals(driver)) == 1) is (milliseconds == 2000)


@pytest.mark.parametrize("rate", [8_000, 16_000, 44_100])
@pytest.mark.parametrize("longest", [5.0, 7.3])
def test_the_shortest_utterances_that_are_cut_lose_nothing(longest: float, rate: int) -> None:
    words = [(5 * k + k // 7) % 12 for k in range(150)]  # 48 s
    sound = np.concatenate([say(words, rate), silence(0.7, rate)])
    driver = session_after(
        *chunks(pcm(sound), [3200]), End(), max_utterance_duration=longest, sample_rate=rate
    )
    assert len(finals(driver)) > 6
    assert " ".join(finals(driver)).split() == ["w" + "abcdefghijkl"[word] for word in words]


def test_what_is_changed_in_an_utterance_leaves_what_was_said_of_it() -> None:
    driver = session_after(
        audio([1, 2, 3]),
        Configure(prefix_padding_ms=1000, min_silence_duration_ms=300),
        audio([4], 0.4, [5, 6], 0.7),
    )
    assert finals(driver) == ["wb wc wd we", "wf wg"]

"""
What holds for every session, whatever is said and however the audio arrives.
"""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.scenes import SIZES, Scene, scenes, told, utterances
from support.speech import RATE, WORDS, Driver, chunks, pcm, say, silence, snapshots

from dalston.orchestrator.protocol.messages import (
    SAMPLE_BYTES,
    Clear,
    Eager,
    End,
    Final,
    Flush,
    Flushed,
    Partial,
    ServerMessage,
    SessionBegin,
    SessionConfig,
    SessionEnd,
    Snapshot,
    SpeechEnd,
    SpeechStart,
    Withdrawn,
)
from dalston.orchestrator.transcription.session import Session

# Scenes of minutes, ten of them: a busy machine takes longer than two minutes for some.
pytestmark = pytest.mark.timeout(400)


@settings(max_examples=10, deadline=None)
@given(scene=scenes(), sizes=SIZES, seed=st.integers(0, 2**32 - 1))
def test_chunking_and_the_order_of_answers_change_nothing_but_partials(
    scene: Scene, sizes: list[int], seed: int
) -> None:
    usual = Driver(scene.session()).run(scene.steps([3200]))
    other = Driver(scene.session(), late=np.random.default_rng(seed))
    assert told(other.run(scene.steps(sizes))) == told(usual)


@settings(max_examples=10, deadline=None)
@given(scene=scenes(), seed=st.integers(0, 2**32 - 1))
def test_sparing_the_models_changes_nothing_but_partials(scene: Scene, seed: int) -> None:
    usual = Driver(scene.session()).run(scene.steps([3200]))
    sparing = Driver(scene.session())
    random = np.random.default_rng(seed)
    for step in scene.steps([3200]):
        sparing.session.sparing = bool(random.random() < 0.7)
        sparing.step(step)
    assert told(sparing.run([])) == told(usual)


@pytest.mark.parametrize("sizes", [[1], [2], [3], [320_000], [1, 639, 3201]], ids=str)
def test_one_byte_at_a_time_is_as_good_as_ten_seconds(sizes: list[int]) -> None:
    sound = np.concatenate([silence(0.5), say([1, 2, 3]), silence(0.8), say([4]), silence(0.7)])
    scene = Scene(SessionConfig(language="en", word_timestamps=True), [pcm(sound)])
    usual = told(Driver(scene.session()).run(scene.steps([3200])))
    assert told(Driver(scene.session()).run(scene.steps(sizes))) == usual
    assert [m.text for m in usual if isinstance(m, Final)] == ["wb wc wd", "we"]


def from_any_snapshot(
    scene: Scene, data: st.DataObject
) -> tuple[Snapshot, list[ServerMessage]] | None:
    """One of the undisturbed session's, and what it tells after it; None if there are none."""
    undisturbed = Driver(scene.session()).run(scene.steps([3200]))
    stated = snapshots(undisturbed)
    if not stated:
        return None
    number = data.draw(st.integers(0, len(stated) - 1))
    places = [at for at, m in enumerate(told(undisturbed)) if isinstance(m, Snapshot)]
    return stated[number], told(undisturbed)[places[number] + 1 :]


@settings(max_examples=10, deadline=None)
@given(scene=scenes(), sizes=SIZES, data=st.data())
def test_a_session_continued_from_any_snapshot_equals_the_undisturbed_one(
    scene: Scene, sizes: list[int], data: st.DataObject
) -> None:
    if not (drawn := from_any_snapshot(scene, data)):
        return
    snapshot, expected = drawn
    continued = Driver(scene.session(snapshot))
    messages = continued.run(scene.steps(sizes, scene.rest(snapshot)))
    assert told([m for m in messages if not isinstance(m, SessionBegin)]) == expected


@settings(max_examples=10, deadline=None)
@given(scene=scenes(), sizes=SIZES, message=st.sampled_from([Flush(), Clear()]), data=st.data())
def test_a_message_while_audio_is_heard_again_takes_nothing_back(
    scene: Scene, sizes: list[int], message: Flush | Clear, data: st.DataObject
) -> None:
    """As a gateway says it for a client who is back, and stops in the middle of what it repeats."""
    if not (drawn := from_any_snapshot(scene, data)):
        return
    snapshot, expected = drawn
    first, *others = scene.rest(snapshot)
    assert isinstance(first, bytes)
    width = SAMPLE_BYTES[scene.config.encoding]
    again = (snapshot.position - snapshot.replay_from) * scene.config.sample_rate // RATE
    cut = width * data.draw(st.integers(0, min(again, len(first) // width)))
    continued = Driver(scene.session(snapshot))
    messages = continued.run(scene.steps(sizes, [first[:cut], message, first[cut:], *others]))
    ours = (SessionBegin, Snapshot, Flushed)
    assert [m for m in told(messages) if not isinstance(m, ours)] == [
        m for m in expected if not isinstance(m, ours)
    ]


# 002-09
@settings(max_examples=10, deadline=None)
@given(scene=scenes(), seed=st.integers(0, 2**32 - 1))
def test_every_utterance_starts_then_ends_then_has_at_most_one_final(
    scene: Scene, seed: int
) -> None:
    driver = Driver(scene.session(), late=np.random.default_rng(seed))
    messages = driver.run(scene.steps([3200]))
    start: float | None = None
    end = 0.0
    may_have_final = False
    for message in messages:
        match message:
            case SpeechStart(timestamp):
                assert start is None
                assert timestamp >= end
                start, may_have_final = timestamp, False
            case Partial():
                assert start is not None
            case SpeechEnd(timestamp):
                assert start is not None
                assert start < timestamp
                start, end, may_have_final = None, timestamp, True
            case Final():
                assert may_have_final
                may_have_final = False
            case _:
                pass
    assert start is None
    assert isinstance(messages[0], SessionBegin)
    assert isinstance(messages[-1], SessionEnd)


@settings(max_examples=10, deadline=None)
@given(scene=scenes(), seed=st.integers(0, 2**32 - 1))
def test_every_eager_final_is_confirmed_or_withdrawn_before_another_is_told(
    scene: Scene, seed: int
) -> None:
    driver = Driver(scene.session(), late=np.random.default_rng(seed))
    eager: Eager | None = None
    for message in driver.run(scene.steps([3200])):
        match message:
            case Eager():
                assert scene.config.eager
                assert eager is None
                eager = message
            case Withdrawn(segment):
                assert eager
                assert segment == eager.segment_id
                eager = None
            case Final() if eager:
                assert (message.segment_id, message.text) == (eager.segment_id, eager.text)
                eager = None
            case _:
                pass
    assert eager is None


@settings(max_examples=10, deadline=None)
@given(scene=scenes(), seed=st.integers(0, 2**32 - 1))
def test_what_language_it_is_does_not_depend_on_when_answers_come(scene: Scene, seed: int) -> None:
    usual, late = Driver(scene.session()), Driver(scene.session(), np.random.default_rng(seed))
    usual.unsure = late.unsure = True
    assert told(late.run(scene.steps([3200]))) == told(usual.run(scene.steps([3200])))
    for snapshot in snapshots(usual.messages)[1:2]:
        continued = Driver(scene.session(snapshot))
        continued.unsure = True
        continued.run(scene.steps([3200], scene.rest(snapshot)))
        after = [m for m in usual.messages if isinstance(m, Final)]
        finals = [m for m in continued.messages if isinstance(m, Final)]
        assert finals == after[len(after) - len(finals) :]


@settings(max_examples=10, deadline=None)
@given(scene=scenes())
def test_words_are_in_order_inside_their_segment(scene: Scene) -> None:
    messages = Driver(scene.session()).run(scene.steps([3200]))
    for final in (m for m in messages if isinstance(m, Final) and m.words is not None):
        times = [time for word in final.words or () for time in (word.start, word.end)]
        assert times == sorted(times)
        assert final.start <= times[0]
        assert times[-1] <= final.end


# 000-42
@settings(max_examples=10, deadline=None)
@given(scene=scenes(), seed=st.integers(0, 2**32 - 1))
def test_stable_text_never_shrinks_and_never_changes(scene: Scene, seed: int) -> None:
    driver = Driver(scene.session(), late=np.random.default_rng(seed))
    stable: dict[str, str] = {}
    for message in driver.run(scene.steps([3200])):
        if isinstance(message, Partial):
            before = stable.get(message.segment_id, "")
            now = message.text[: message.stable_chars]
            assert now.startswith(before)
            assert not message.text[message.stable_chars :] or not now.endswith(" ")
            stable[message.segment_id] = now


@settings(max_examples=8, deadline=None)
@given(words=st.lists(utterances(), min_size=1, max_size=4), pause=st.sampled_from([0.7, 1.0, 2.5]))
def test_no_word_is_lost_or_said_twice(words: list[list[int]], pause: float) -> None:
    sound = np.concatenate([x for group in words for x in (silence(pause), say(group))])
    scene = Scene(SessionConfig(language="en"), [pcm(sound)])
    (end,) = [
        m for m in Driver(scene.session()).run(scene.steps([3200])) if isinstance(m, SessionEnd)
    ]
    assert end.transcript.split() == [WORDS[word] for group in words for word in group]
    assert end.transcript == " ".join(segment.text for segment in end.segments)


# C-05
def test_the_clock_does_not_drift_over_an_hour_of_silence_and_speech() -> None:
    rate = 44_100  # which is no multiple of ours
    driver = Driver(
        Session("s", SessionConfig(language="en", sample_rate=rate), "fast", languages={"en"})
    )
    # Two words every 23.7 s; silence of 20 s between, so there are snapshots in it too.
    period = np.concatenate([silence(1.5, rate), say([3, 8], rate), silence(21.56, rate)])
    seconds = len(period) / rate
    block = chunks(pcm(period), [2 * rate])
    repeats = round(3600 / seconds)
    for _ in range(repeats):
        for chunk in block:
            driver.step(chunk)
    messages = driver.run([End()])
    starts = [m.timestamp for m in messages if isinstance(m, SpeechStart)]
    expected = [n * seconds + 1.5 for n in range(repeats)]
    assert len(starts) == repeats
    # A frame is 32 ms; what the hour adds to it is nothing.
    errors = np.array(starts) - np.array(expected)
    assert np.abs(errors).max() < 0.064
    assert abs(errors[-10:].mean() - errors[:10].mean()) < 0.02
    (end,) = [m for m in messages if isinstance(m, SessionEnd)]
    assert end.total_duration == pytest.approx(repeats * seconds, abs=0.001)
    assert len(end.segments) == repeats


# 002-08
def test_an_hour_of_speech_without_a_pause_loses_no_word_and_doubles_none() -> None:
    """Though word times are late at the beginning of each piece, as those of time warping are."""
    random = np.random.default_rng(5)
    words = random.integers(len(WORDS), size=11_250).tolist()  # an hour; neighbours may be equal
    config = SessionConfig(language="en", interim_results=False, word_timestamps=True)
    driver = Driver(Session("s", config, "fast", languages={"en"}))
    driver.late_words = 0.4
    messages = driver.run([*chunks(pcm(say(words)), [320_000]), pcm(silence(0.7)), End()])
    texts = [message for message in messages if isinstance(message, Final)]
    assert len(texts) >= 120
    assert " ".join(final.text for final in texts).split() == [WORDS[word] for word in words]
    spans = [time for final in texts for time in (final.start, final.end)]
    assert spans == sorted(spans)
    times = [t for final in texts for word in final.words or () for t in (word.start, word.end)]
    assert times == sorted(times)

"""
One test for each arrow of the diagram in endpointer.py, and for each that must not be taken.
"""

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from dalston.orchestrator.transcription.endpointer import (
    PAUSE,
    Endpointer,
    Event,
    Thresholds,
    TurnRules,
)

FRAME = 512
RULES = Thresholds(threshold=0.5, min_speech=4_000, min_silence=8_000, manual=False)


def heard(
    probabilities: list[float], rules: Thresholds = RULES, endpointer: Endpointer | None = None
) -> tuple[Endpointer, list[tuple[int, Event]]]:
    """The events and the numbers of the frames they came with."""
    endpointer = endpointer or Endpointer()
    events: list[tuple[int, Event]] = []
    for number, probability in enumerate(probabilities):
        start = number * FRAME
        if event := endpointer.receive(probability, start, start + FRAME, rules):
            events.append((number, event))
            if event in (Event.DROPPED, Event.ENDPOINT):
                endpointer = Endpointer()
    return endpointer, events


# 000-31
def test_speech_begins_at_the_threshold() -> None:
    assert heard([0.4, 0.49, 0.5])[1] == [(2, Event.ONSET)]


def test_below_the_threshold_nothing_begins() -> None:
    assert heard([0.49] * 50)[1] == []


# 000-33
def test_an_onset_is_confirmed_after_the_shortest_speech() -> None:
    # 250 ms are 7.8 frames.
    assert heard([0.9] * 8)[1] == [(0, Event.ONSET), (7, Event.CONFIRMED)]


def test_a_short_sound_is_dropped_after_the_silence_of_an_endpoint() -> None:
    assert heard([0.9] * 3 + [0.0] * 16)[1] == [(0, Event.ONSET), (18, Event.DROPPED)]


# 000-34, 001-12
def test_silence_ends_speech() -> None:
    endpointer, events = heard([0.9] * 10 + [0.0] * 15)
    assert endpointer.silence == 10 * FRAME
    assert events[-1] == (10 + 6, Event.PAUSE)
    assert heard([0.9] * 10 + [0.0] * 16)[1][-1] == (25, Event.ENDPOINT)


def test_just_below_the_threshold_speech_goes_on() -> None:
    assert heard([0.9] * 10 + [0.36] * 100)[1] == [(0, Event.ONSET), (7, Event.CONFIRMED)]


def test_a_run_of_silence_lasts_until_the_threshold_is_reached_again() -> None:
    # 0.4 neither starts a silence nor ends one.
    _, events = heard([0.9] * 10 + [0.2] + [0.4] * 15)
    assert events[-1] == (25, Event.ENDPOINT)


# 001-18
def test_speech_that_resumes_in_time_is_the_same_utterance() -> None:
    _, events = heard([0.9] * 10 + [0.0] * 10 + [0.9] * 5 + [0.0] * 16)
    assert [event for _, event in events] == [
        Event.ONSET,
        Event.CONFIRMED,
        Event.PAUSE,
        Event.RESUMED,
        Event.PAUSE,
        Event.ENDPOINT,
    ]


def test_a_pause_is_told_after_so_much_silence() -> None:
    _, events = heard([0.9] * 10 + [0.0] * 10)
    number = dict((event, number) for number, event in events)[Event.PAUSE]
    assert (number + 1 - 10) * FRAME >= PAUSE > (number - 10) * FRAME


@given(
    st.lists(st.sampled_from([0.0, 0.4, 0.9]), max_size=120),
    st.integers(800, 32_000),
    st.integers(800, 32_000),
)
def test_no_event_comes_before_the_earliest_that_was_promised(
    probabilities: list[float], min_speech: int, min_silence: int
) -> None:
    rules = Thresholds(0.5, min_speech, min_silence, manual=False)
    endpointer, promised = Endpointer(), 0
    for number, probability in enumerate(probabilities):
        start = number * FRAME
        # What was promised while nobody spoke holds until an onset gives it a place.
        promised = max(promised, endpointer.earliest(start, rules))
        event = endpointer.receive(probability, start, start + FRAME, rules)
        if event in (Event.CONFIRMED, Event.PAUSE, Event.DROPPED, Event.ENDPOINT):
            assert start + FRAME >= promised
        if event is not None:
            promised = 0  # what follows is promised anew
        if event in (Event.DROPPED, Event.ENDPOINT):
            endpointer = Endpointer()


def test_a_gap_shorter_than_a_pause_is_not_told() -> None:
    _, events = heard([0.9] * 10 + [0.0] * 5 + [0.9] * 5)
    assert [event for _, event in events] == [Event.ONSET, Event.CONFIRMED]


def test_an_onset_that_is_not_confirmed_has_no_pause() -> None:
    assert Event.PAUSE not in [event for _, event in heard([0.9] * 3 + [0.0] * 10)[1]]


def test_manual_endpointing_never_ends_confirmed_speech() -> None:
    manual = Thresholds(0.5, 4_000, 8_000, manual=True)
    events = [event for _, event in heard([0.9] * 10 + [0.0] * 200, manual)[1]]
    assert events == [Event.ONSET, Event.CONFIRMED, Event.PAUSE]


def test_manual_endpointing_still_drops_a_click() -> None:
    manual = Thresholds(0.5, 4_000, 8_000, manual=True)
    assert heard([0.9] * 2 + [0.0] * 20, manual)[1][-1][1] is Event.DROPPED


SMART = Thresholds(0.5, 4_000, 8_000, manual=False, turns=TurnRules(0.8, 4_800, 16_000))


def paused(rules: Thresholds = SMART) -> Endpointer:
    """In the pause behind 10 frames of speech, its PAUSE just told."""
    endpointer, events = heard([0.9] * 10 + [0.0] * 7, rules)
    assert events[-1] == (16, Event.PAUSE)
    return endpointer


def silent(endpointer: Endpointer, rules: Thresholds = SMART, until: int = 60) -> int:
    """The frames of silence in all that end the turn."""
    for number in range(17, until):
        assert not endpointer.undecided((number + 1) * FRAME, rules)
        if endpointer.receive(0.0, number * FRAME, (number + 1) * FRAME, rules):
            return number + 1 - 10
    raise AssertionError("no end")


def test_a_turn_that_sounds_over_ends_after_the_shortest_silence() -> None:
    endpointer = paused()
    endpointer.judge(0.8)
    assert silent(endpointer) == 10  # 300 ms are 9.4 frames


def test_a_turn_that_does_not_sound_over_ends_after_the_longest_silence() -> None:
    endpointer = paused()
    endpointer.judge(0.79)
    assert silent(endpointer) == 32  # 1 s is 31.25 frames


def test_a_turn_that_nobody_can_judge_ends_by_silence_alone() -> None:
    endpointer = paused()
    endpointer.judge(None)
    assert silent(endpointer) == 16  # 500 ms are 15.6 frames


def test_without_a_judgement_it_ends_not_before_the_place_where_one_would_have_counted() -> None:
    """Or it would matter when it was known that there is none."""
    rules = Thresholds(0.5, 4_000, 800, manual=False, turns=TurnRules(0.8, 4_800, 16_000))
    endpointer = paused(rules)
    endpointer.judge(None)
    assert silent(endpointer, rules) == 10


def test_a_frame_that_could_end_a_turn_waits_for_the_judgement() -> None:
    endpointer = paused()
    undecided = [endpointer.undecided((10 + n) * FRAME, SMART) for n in range(8, 12)]
    assert undecided == [False, False, True, True]
    endpointer.judge(0.9)
    assert not endpointer.undecided(21 * FRAME, SMART)


def test_a_judgement_of_a_pause_that_is_over_means_nothing() -> None:
    endpointer = paused()
    assert endpointer.receive(0.9, 17 * FRAME, 18 * FRAME, SMART) is Event.RESUMED
    endpointer.judge(0.9)
    _, events = heard([0.9] + [0.0] * 7, SMART, endpointer)
    assert [event for _, event in events] == [Event.PAUSE]


def test_each_pause_is_judged_anew() -> None:
    endpointer = paused()
    endpointer.judge(0.9)
    endpointer.receive(0.9, 17 * FRAME, 18 * FRAME, SMART)
    _, events = heard([0.9] + [0.0] * 8, SMART, endpointer)
    assert [event for _, event in events] == [Event.PAUSE]
    assert endpointer.undecided(20 * FRAME, SMART)


def test_a_click_is_dropped_after_the_usual_silence_whatever_ends_turns() -> None:
    assert heard([0.9] * 3 + [0.0] * 16, SMART)[1][-1] == (18, Event.DROPPED)


def test_behind_a_cut_speech_is_confirmed_from_the_start_and_may_have_been_nothing() -> None:
    endpointer = Endpointer()
    endpointer.resume_speech(0)
    assert not endpointer.spoke
    _, events = heard([0.0] * 16, endpointer=endpointer)
    assert [event for _, event in events] == [Event.PAUSE, Event.ENDPOINT]
    assert not endpointer.spoke


# 000-32, 001-12
@given(st.lists(st.floats(0, 1), max_size=300))
def test_events_alternate_as_the_diagram_says(probabilities: list[float]) -> None:
    follows = {
        Event.ONSET: {Event.CONFIRMED, Event.DROPPED},
        Event.CONFIRMED: {Event.PAUSE, Event.ENDPOINT},
        Event.PAUSE: {Event.RESUMED, Event.ENDPOINT},
        Event.RESUMED: {Event.PAUSE, Event.ENDPOINT},
        Event.ENDPOINT: {Event.ONSET},
        Event.DROPPED: {Event.ONSET},
    }
    events = [event for _, event in heard(probabilities)[1]]
    assert events[:1] in ([], [Event.ONSET])
    for before, after in pairwise(events):
        assert after in follows[before]

"""
Words are where the sound is, as far as silence tells.
"""

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dalston.triton.contract import SAMPLE_RATE
from dalston.triton.word_times import PAUSE_S, Word, moved_to_sound, pauses, shortened


def loud(seconds: float) -> npt.NDArray[np.int16]:
    noise = np.random.default_rng(1).normal(0, 3000, round(seconds * SAMPLE_RATE))
    return noise.astype(np.int16)


def quiet(seconds: float) -> npt.NDArray[np.int16]:
    noise = np.random.default_rng(2).normal(0, 10, round(seconds * SAMPLE_RATE))
    return noise.astype(np.int16)


def words(*times: float) -> list[Word]:
    """One word from each time to the next."""
    return [
        Word(f"w{n}", start, end, 0.9)
        for n, (start, end) in enumerate(zip(times, times[1:], strict=False))
    ]


def times(found: list[Word]) -> list[tuple[float, float]]:
    return [(round(word.start, 2), round(word.end, 2)) for word in found]


def test_pauses_are_where_nobody_speaks() -> None:
    parts = [quiet(0.3), loud(0.5), quiet(0.05), loud(0.5), quiet(0.4), loud(0.3), quiet(0.2)]
    found = pauses(np.concatenate(parts))
    assert [(round(a, 2), round(b, 2)) for a, b in found] == [(0, 0.3), (1.35, 1.75), (2.05, 2.25)]


def test_a_constant_offset_of_the_samples_is_no_sound() -> None:
    sound = np.concatenate([quiet(0.5), loud(1), quiet(0.5)])
    assert pauses(sound + np.int16(3000)) == pauses(sound) != []


def test_a_click_between_two_pauses_is_no_speech() -> None:
    sound = np.concatenate([quiet(0.3), loud(0.06), quiet(0.2), loud(1), quiet(0.2)])
    assert [(round(a, 2), round(b, 2)) for a, b in pauses(sound)] == [(0, 0.56), (1.56, 1.76)]


@pytest.mark.parametrize("audio", [quiet(0.0), quiet(0.004), loud(2)], ids=["none", "5ms", "loud"])
def test_without_a_pause_there_is_none(audio: npt.NDArray[np.int16]) -> None:
    assert pauses(audio) == []


def test_words_begin_and_end_at_the_pauses_next_to_them() -> None:
    said = words(0.0, 0.8, 1.5, 2.3)
    found = moved_to_sound(said, [(0, 0.3), (0.9, 1.2), (2.0, 2.3)], 2.3)
    assert times(found) == [(0.3, 0.9), (1.2, 1.5), (1.5, 2.0)]


def test_a_pause_far_from_any_place_between_words_is_inside_one() -> None:
    said = words(0.0, 2.0, 3.0)
    assert moved_to_sound(said, [(0.8, 1.2)], 3.0) == said


def test_a_pause_that_would_leave_nothing_of_a_word_moves_none() -> None:
    said = words(0.0, 1.0, 1.02, 2.0)
    assert times(moved_to_sound(said, [(0.97, 1.2)], 2.0)) == times(said)


def test_edges_without_a_pause_are_judged_by_the_usual_word() -> None:
    said = words(0.0, 2.0, 2.2, 2.4, 4.0)
    assert times(shortened(said)) == [(0.6, 2.0), (2.0, 2.2), (2.2, 2.4), (2.4, 3.8)]
    kept = shortened(moved_to_sound(said, [(0.0, 0.3), (3.9, 4.0)], 4.0), [(0.0, 0.3), (3.9, 4.0)])
    assert (kept[0].start, kept[-1].end) == (0.3, 3.9)


def test_silence_at_the_ends_is_taken_from_the_first_and_last_word():
    long = [Word("a", 0, 2, 0.9), Word("b", 2, 2.2, 0.8), Word("c", 2.2, 5, 0.7)]
    # The usual word is 2 s here, but nobody takes longer than 0.7 s for one.
    first, middle, last = shortened(long)
    assert (first.start, first.end) == pytest.approx((0.6, 2))
    assert middle == long[1]
    assert (last.start, last.end) == pytest.approx((2.2, 3.6))


def test_words_of_usual_length_and_single_words_are_left_as_they_are():
    usual = [Word("a", 0, 0.3, 1), Word("b", 0.3, 0.5, 1), Word("c", 0.5, 0.8, 1)]
    assert shortened(usual) == usual
    assert shortened([Word("a", 0, 9, 1)]) == [Word("a", 0, 9, 1)]
    assert shortened([]) == []


TIMES = st.lists(st.floats(0, 10), min_size=2, max_size=12).map(sorted)


@given(TIMES, TIMES)
def test_words_stay_in_order_and_inside(at: list[float], edges: list[float]) -> None:
    silent = [
        (start, end)
        for start, end in zip(edges[::2], edges[1::2], strict=False)
        if end - start >= PAUSE_S
    ]
    found = moved_to_sound(words(*at), silent, 10.0)
    flat = [time for word in found for time in (word.start, word.end)]
    assert flat == sorted(flat)
    assert not flat or (flat[0] >= 0 and flat[-1] <= 10)
    assert [word.text for word in found] == [word.text for word in words(*at)]

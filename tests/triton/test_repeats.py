"""
Loops are found, and of what was really said again nothing is lost.
"""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from recordings import Pcm, spoken

from dalston.triton.contract import SAMPLE_RATE
from dalston.triton.repeats import (
    LOOP_LONGEST,
    LOOP_REPEATS,
    attended,
    compression_ratio,
    loop,
    repeats_itself,
    sounded,
    without_loop,
)
from dalston.triton.whisper import HIGH_COMPRESSION


def quiet(seconds: float) -> Pcm:
    return np.zeros(round(seconds * SAMPLE_RATE), np.int16)


def word() -> Pcm:
    """Half a second of somebody's speech."""
    return spoken()[0][SAMPLE_RATE // 2 : SAMPLE_RATE]


@pytest.mark.parametrize(
    ("text", "does"),
    [
        ("", False),
        ("No.", False),
        ("What your country can do for you? What your country can do for you?", True),
        ("One, two, three. one two THREE", True),
        ("very very very", False),
        ("very very very very", True),
        ("the cat and the dog and the cow", False),
    ],
)
def test_three_words_that_come_again_in_the_same_order_are_a_repeat(text: str, does: bool):
    assert repeats_itself(text) == does


@given(st.lists(st.text("abc", min_size=1), unique=True))
def test_what_says_no_word_twice_does_not_repeat_itself(words: list[str]):
    assert not repeats_itself(" ".join(words))


@pytest.mark.parametrize(
    ("tokens", "rest"),
    [
        ([], []),
        ([1], [1]),
        ([1, 1, 1], [1, 1, 1]),
        ([1, 1, 1, 1], [1]),
        ([7, 1, 1, 1, 1, 1, 1], [7, 1]),
        ([1, 1, 1, 1, 2], [1, 1, 1, 1, 2]),
        ([5, 1, 2, 1, 2, 1, 2, 1, 2], [5, 1, 2]),
        ([1, 2, 1, 2, 1, 2], [1, 2, 1, 2, 1, 2]),
        ([9, *range(12), *range(12), *range(12), *range(12)], [9, *range(12)]),
        ([*range(13)] * 4, [*range(13)] * 4),
    ],
)
def test_a_loop_at_the_end_is_said_once(tokens: list[int], rest: list[int]):
    assert without_loop(tokens) == rest


def test_what_was_to_be_kept_is_kept_even_of_a_loop():
    assert without_loop([7, 1, 1, 1, 1, 1, 1], keep=4) == [7, 1, 1, 1]
    assert without_loop([7, 1, 1, 1, 1, 1, 1], keep=1) == [7, 1]


@given(
    st.lists(st.integers(0, 3), max_size=30),
    st.lists(st.integers(0, 3), min_size=1, max_size=LOOP_LONGEST),
    st.integers(LOOP_REPEATS, 9),
)
def test_what_is_left_of_a_loop_begins_the_tokens_and_loops_no_more(
    before: list[int], unit: list[int], repeats: int
):
    tokens = before + unit * repeats
    rest = without_loop(tokens)
    assert tokens[: len(rest)] == rest
    assert len(rest) <= len(before) + len(unit) * repeats - (LOOP_REPEATS - 1)
    assert len(rest) >= 1


@given(st.lists(st.integers(0, 10_000), unique=True, max_size=50))
def test_tokens_that_do_not_loop_are_left_alone(tokens: list[int]):
    assert without_loop(tokens) == tokens


def test_text_that_repeats_compresses_and_other_text_does_not():
    assert compression_ratio("thank you " * 30) > HIGH_COMPRESSION
    assert compression_ratio("set the temperature to twenty seven percent") < 1.5
    assert compression_ratio("") < HIGH_COMPRESSION


def test_as_many_repeats_stay_as_were_heard() -> None:
    assert without_loop([7, 1, 1, 1, 1, 1, 1], heard=4) == [7, 1, 1, 1, 1]
    assert without_loop([7, 1, 1, 1, 1, 1, 1], heard=9) == [7, 1, 1, 1, 1, 1, 1]
    assert without_loop([7, 1, 1, 1, 1, 1, 1], heard=0) == [7, 1]
    assert without_loop([7, 1, 1], heard=1) == [7, 1, 1]
    assert (loop([7, 1, 2, 1, 2, 1, 2, 1, 2]), loop([7, 1, 1])) == ((2, 4), (0, 1))


@pytest.mark.parametrize("times", [2, 5, 10])
@pytest.mark.parametrize("pause", [0.0, 0.15, 0.4])
def test_what_is_said_again_in_equal_distances_is_counted(times: int, pause: float) -> None:
    audio = np.concatenate([quiet(0.3), *[word(), quiet(pause)] * times, quiet(0.3)])
    assert abs(sounded(audio) - times) <= 1


def test_other_words_before_it_are_not_counted() -> None:
    said = np.concatenate([spoken()[1], quiet(0.3), *[word(), quiet(0.2)] * 8])
    assert 7 <= sounded(said) <= 10


def test_speech_noise_and_silence_do_not_come_again() -> None:
    noise = np.random.default_rng(1).standard_normal(5 * SAMPLE_RATE) * 500
    others = [noise.astype(np.int16), quiet(3), quiet(0), quiet(0.01), *spoken()]
    assert sum(sounded(audio) > 2 for audio in others) == 0


def test_repeats_count_that_the_decoder_heard_one_after_the_other() -> None:
    assert attended([0.1, 0.5, 0.5, 1.0, 1.0, 1.6, 1.6, 2.1], 2, 3) == 3
    assert attended([0.4, 0.4, 1.0, 2.3, 2.3, 2.3, 2.3], 1, 6) == 3
    assert attended([2.0] * 40, 2, 20) == 1
    assert attended([0.1, 1.0, 0.2, 1.1, 0.2, 1.1], 2, 3) == 2

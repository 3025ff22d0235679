"""
The join of the two sides of a cut: nothing is lost, nothing said twice.
"""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dalston.orchestrator.protocol.messages import Word
from dalston.orchestrator.transcription import assembler

RATE = 16_000
# As session.py has it: the second side's audio begins so long before the cut, and that of the
# first goes on so long after it.
BEFORE, AFTER = 1.0, 0.5
CUT = 10.0


def words(*items: tuple[str, float, float]) -> list[Word]:
    return [Word(text, start, end, 0.9) for text, start, end in items]


def joined(first: list[Word], second: list[Word], cut: float = CUT) -> list[str]:
    """What is said in the end, of what the two sides heard."""
    at = round(cut * RATE)
    said = assembler.before_cut(first, at)
    rest = assembler.after_cut(second, assembler.overlap(first, at), at)
    return [word.word for word in [*said, *rest]]


# 002-08
def test_a_repetition_that_word_times_put_long_after_the_cut_is_one() -> None:
    # Time warping gives the first word of the second side the silence after it, too.
    first = words(("the", 9.2, 9.3), ("harbour", 9.35, 9.7), ("master", 9.75, 10.0))
    second = words(("master", 10.3, 10.9), ("walked", 10.9, 11.2))
    assert joined(first, second) == ["the", "harbour", "master", "walked"]


def test_several_words_that_are_late_together_are_a_repetition() -> None:
    first = words(("were", 8.9, 9.1), ("selling", 9.15, 9.5), ("bread", 9.55, 9.85))
    second = words(("Selling", 9.8, 10.2), ("bread", 10.25, 10.6), ("and", 10.7, 10.9))
    assert joined(first, second) == ["were", "selling", "bread", "and"]


def test_what_is_really_said_again_after_the_cut_stays() -> None:
    first = words(("oh", 9.0, 9.2), ("no", 9.4, 9.7), ("no", 10.1, 10.4))
    for second in (
        words(("no", 9.4, 9.7), ("no", 10.1, 10.4), ("go", 10.6, 10.9)),
        words(("no", 10.1, 10.4), ("go", 10.6, 10.9)),
    ):
        assert joined(first, second) == ["oh", "no", "no", "go"]


def test_half_of_a_word_is_that_word() -> None:
    first = words(("harbour", 8.8, 9.3), ("master", 9.4, 9.8))
    second = words(("bour", 9.0, 9.3), ("master", 9.4, 9.9), ("walked", 10.0, 10.3))
    assert joined(first, second) == ["harbour", "master", "walked"]


def test_a_word_that_one_side_misheard_is_said_once() -> None:
    first = words(("of", 9.0, 9.1), ("willow", 9.2, 9.8))
    second = words(("yellow", 9.25, 9.85), ("that", 10.0, 10.2))
    assert joined(first, second) == ["of", "willow", "that"]


def test_marks_alone_are_no_word_that_could_be_the_same() -> None:
    first = words(("so", 9.0, 9.2), ("-", 9.8, 9.9))
    second = words(("-", 10.3, 10.4), ("go", 10.5, 10.7))
    assert joined(first, second)[-1] == "go"


def test_what_only_the_second_side_heard_is_kept() -> None:
    assert joined([], words(("so", 9.5, 9.8), ("go", 10.2, 10.4))) == ["so", "go"]
    first = words(("well", 7.0, 7.4))
    assert joined(first, words(("so", 9.5, 9.9), ("go", 10.2, 10.4))) == ["well", "so", "go"]


def test_scripts_without_spaces_are_joined_character_by_character() -> None:
    first = words(("今", 9.2, 9.4), ("天", 9.4, 9.6), ("天", 9.6, 9.8), ("气", 10.0, 10.2))
    second = words(("天", 9.4, 9.7), ("天", 9.7, 9.9), ("气", 10.1, 10.3), ("好", 10.4, 10.6))
    assert joined(first, second) == ["今", "天", "天", "气", "好"]


def test_marks_that_belong_to_a_letter_are_part_of_it() -> None:
    first = words(("की", 9.2, 9.5), ("के", 9.6, 9.9))
    second = words(("के", 9.7, 9.95), ("को", 10.1, 10.3))
    assert joined(first, second) == ["की", "के", "को"]


def test_times_go_on_over_the_cut() -> None:
    first = words(("one", 9.0, 9.4), ("two", 9.7, 10.2))
    second = words(("two", 9.7, 10.0), ("three", 9.95, 10.3))
    cut = round(CUT * RATE)
    said = assembler.before_cut(first, cut)
    rest = assembler.after_cut(second, assembler.overlap(first, cut), cut)
    times = [time for word in [*said, *rest] for time in (word.start, word.end)]
    assert times == sorted(times)
    assert said[-1].end <= CUT <= rest[0].start


def heard(
    spoken: list[Word], first: float, last: float, random: np.random.Generator, off: float
) -> list[Word]:
    """The words that lie in [first, last), with times that are wrong by up to `off` seconds."""
    found, floor = list[Word](), first
    for word in spoken:
        if first <= word.start and word.end <= last:
            shift = random.uniform(-off, off)
            start = min(max(word.start + shift, floor), last)
            end = min(max(word.end + shift, start), last)
            found.append(Word(word.word, start, end, 0.9))
            floor = start
    return found


@settings(max_examples=400, deadline=None)
@given(
    vocabulary=st.integers(1, 30),
    length=st.floats(0.12, 0.45),
    seed=st.integers(0, 2**32 - 1),
)
def test_a_cut_loses_nothing_and_says_nothing_twice(
    vocabulary: int, length: float, seed: int
) -> None:
    """However often words are really said again, as long as times are right to half a word."""
    random = np.random.default_rng(seed)
    names = [f"w{n}" for n in random.permutation(vocabulary)]
    spoken, at = list[Word](), 6.0
    while at < 14.0:
        name = names[int(random.integers(vocabulary))]
        spoken.append(Word(name, at, at + 0.9 * length, 0.9))
        at += length
    off = length * (0.0 if vocabulary == 1 else 0.2 if vocabulary < 12 else 0.45)
    first = heard(spoken, 0.0, CUT + AFTER, random, off)
    second = heard(spoken, CUT - BEFORE, 99.0, random, off)
    assert joined(first, second) == [word.word for word in spoken]


@pytest.mark.parametrize("late", [0.0, 0.3, 0.6, 0.8])
def test_the_whole_second_side_may_be_late(late: float) -> None:
    spoken = [Word(f"w{n}", 8 + 0.3 * n, 8.27 + 0.3 * n, 0.9) for n in range(14)]
    exact = np.random.default_rng(0)
    first = heard(spoken, 0.0, CUT + AFTER, exact, 0.0)
    second = [
        Word(w.word, w.start + late, w.end + late, 0.9)
        for w in heard(spoken, CUT - BEFORE, 99.0, exact, 0.0)
    ]
    assert joined(first, second) == [word.word for word in spoken]

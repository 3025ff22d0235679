"""
How near a transcript is to what was said.
"""

import pytest
import scoring
from recordings import Sentence
from scoring import Word, score

ASKED = "Ask not what your country can do for you."


@pytest.mark.parametrize(
    ("said", "heard"),
    [
        ("Mr. Quilter doesn't know.", "mister quilter does not know"),
        ("twenty-two colours", "22 colors"),
        ("well hello", "Well, hello!"),
    ],
)
def test_what_is_no_speech_is_no_error(said: str, heard: str) -> None:
    assert score(said, heard).errors == 0


def test_each_word_that_is_wrong_missing_or_too_many_is_an_error() -> None:
    assert score("turn on the light", "turn off the light").errors == 1
    assert score("turn on the light", "turn the light").errors == 1
    assert score("turn on the light", "turn on the the light").errors == 1
    assert score("turn on the light", "").errors == 4
    assert scoring.wer([("turn on", "turn off"), ("the light", "the light")]) == 0.25


def test_languages_without_spaces_are_counted_by_the_character() -> None:
    one = score("客観的実在の判断", "客観的実存の判断。", "ja")
    assert (one.words, one.errors) == (8, 1)
    assert score("길 한 옆으로", "길 한 옆으로.", "ko").words == 5


def test_a_sentence_said_once_and_written_twice_is_seen() -> None:
    assert score(ASKED, f"{ASKED} {ASKED}").twice
    # In the midst of others that make it too few words to be too many.
    long = " ".join(f"number {chr(97 + n)}" for n in range(20))
    assert score(f"{long} {ASKED}", f"{long} {ASKED} {ASKED}").twice
    assert score(None, f"{ASKED} {ASKED}").twice


def test_what_was_said_twice_may_be_written_twice() -> None:
    assert not score(f"{ASKED} {ASKED}", f"{ASKED} {ASKED}").twice
    assert not score("no no no no no", "no no no no no").twice
    assert not score(ASKED, ASKED).twice


def test_far_more_words_than_were_said_are_a_repeat_however_they_read() -> None:
    assert score("ten of clubs", "ten of clubs the ten of the club").twice
    assert not score("ten of clubs", "ten of the clubs now").twice  # 1.3 times, and two


def test_the_same_few_words_again_and_again_are_counted_as_often_as_they_return() -> None:
    assert scoring.repeats("a b c d a b c d a b c d".split(), 4) == 2
    assert scoring.repeats("a b c a b c".split(), 4) == 0
    assert scoring.repeats([], 4) == 0


def test_words_lost_at_the_edges_are_told_from_words_misheard_there() -> None:
    missing = score("turn on the light", "on the")
    assert (missing.first_lost, missing.last_lost) == (True, True)
    misheard = score("turn on the light", "burn on the lights")
    assert (misheard.first_lost, misheard.last_lost) == (False, False)
    nothing = score("turn on", "")
    assert (nothing.first_lost, nothing.last_lost) == (True, True)


TURNS = (Sentence("don't turn", 1.0, 2.0), Sentence("the light", 2.5, 3.5))


def test_the_first_and_the_last_word_of_each_sentence_have_a_time() -> None:
    heard = [
        Word("Don't", 1.1, 1.4),
        Word("turn", 1.5, 1.8),
        Word("the", 2.5, 2.6),
        Word("light.", 2.7, 3.6),
    ]
    assert scoring.time_errors(TURNS, heard) == pytest.approx([0.1, -0.2, 0.0, 0.1])


def test_a_word_that_was_not_understood_has_no_time() -> None:
    heard = [Word("Don't", 1.1, 1.4), Word("burn", 1.5, 1.8), Word("light.", 2.7, 3.6)]
    assert scoring.time_errors(TURNS, heard) == pytest.approx([0.1, 0.1])
    assert scoring.time_errors(TURNS, []) == []


def test_the_interval_holds_the_difference_and_widens_with_fewer_utterances() -> None:
    low, high = scoring.interval([1, 0] * 50, [0, 0] * 50, [10, 10] * 50)
    assert low < 0.05 < high
    few_low, few_high = scoring.interval([1, 0] * 5, [0, 0] * 5, [10, 10] * 5)
    assert few_low < low
    assert high < few_high
    assert scoring.interval([2, 0], [2, 0], [10, 10]) == (0.0, 0.0)


def test_the_interval_is_the_same_every_time() -> None:
    errors = [0, 1, 2, 0, 3]
    assert scoring.interval(errors, [0] * 5, [9] * 5) == scoring.interval(errors, [0] * 5, [9] * 5)

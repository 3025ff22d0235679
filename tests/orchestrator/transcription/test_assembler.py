"""
From hypotheses to segments, and over cuts.
"""

import math

import pytest

from dalston.orchestrator.protocol.messages import Segment, Word
from dalston.orchestrator.transcription import assembler
from dalston.orchestrator.transcription.model_requests import Hypothesis, TimedWord

SECOND = 16_000


def words(*items: tuple[str, float, float]) -> list[Word]:
    return [Word(text, start, end, 0.9) for text, start, end in items]


def texts(items: list[Word]) -> list[str]:
    return [word.word for word in items]


# 001-14, 001-21
def test_words_move_to_session_time() -> None:
    heard = Hypothesis(
        "one two", words=[TimedWord("one", 0.4, 0.7, 0.81239), TimedWord("two", 0.8, 1.1, 1)]
    )
    moved = assembler.session_words(heard, 10 * SECOND, round(10.3 * SECOND), 12 * SECOND)
    assert moved == [Word("one", 10.4, 10.7, 0.812), Word("two", 10.8, 11.1, 1.0)]


def test_the_first_word_does_not_take_the_silence_before_it() -> None:
    heard = Hypothesis("one", words=[TimedWord("one", 0.0, 0.7, 1)])
    (word,) = assembler.session_words(heard, 0, round(0.3 * SECOND), SECOND)
    assert word.start == pytest.approx(0.2)


def test_no_word_leaves_its_segment_or_goes_back() -> None:
    heard = Hypothesis(
        "a b c",
        words=[
            TimedWord("a", 0.9, 0.5, 1),
            TimedWord("b", 0.2, 0.8, 1),
            TimedWord("c", 1.5, 9.0, 1),
        ],
    )
    moved = assembler.session_words(heard, 0, 0, SECOND)
    times = [time for word in moved for time in (word.start, word.end)]
    assert times == sorted(times) == [0.9, 0.9, 0.9, 0.9, 1.0, 1.0]


def test_confidence_is_the_mean_probability_of_the_tokens_and_one_at_most() -> None:
    assert assembler.confidence(Hypothesis("a", average_logprob=math.log(0.75))) == 0.75
    assert assembler.confidence(Hypothesis("a", average_logprob=1e-6)) == 1.0


def test_a_probability_that_is_no_number_is_told_as_none_at_all() -> None:
    for value in (math.nan, -math.inf):
        assert assembler.confidence(Hypothesis("a", average_logprob=value)) == 0.0
        heard = Hypothesis("one", words=[TimedWord("one", 0.4, 0.7, value)])
        assert assembler.session_words(heard, 0, 0, SECOND)[0].confidence == 0.0
    heard = Hypothesis("one", words=[TimedWord("one", 0.4, 0.7, 1.0000001)])
    assert assembler.session_words(heard, 0, 0, SECOND)[0].confidence == 1.0


def test_words_that_differ_in_a_vowel_sign_are_not_the_same_at_a_cut() -> None:
    said = words(("की", 0.5, 0.9))
    heard = words(("कि", 0.95, 1.2), ("बात", 1.2, 1.6))
    assert texts(assembler.after_cut(heard, said, SECOND)) == ["कि", "बात"]
    again = words(("की", 0.95, 1.2), ("बात", 1.2, 1.6))
    assert texts(assembler.after_cut(again, said, SECOND)) == ["बात"]


def test_scripts_without_spaces_are_joined_without() -> None:
    assert assembler.text_of(words(("今", 0, 1), ("天", 1, 2)), "zh") == "今天"
    assert assembler.text_of(words(("to", 0, 1), ("day", 1, 2)), "en") == "to day"


def test_the_first_side_of_a_cut_keeps_what_lies_before_it() -> None:
    said = words(("one", 8.0, 8.4), ("two", 9.0, 9.4), ("three", 9.9, 10.3))
    assert texts(assembler.before_cut(said, 10 * SECOND)) == ["one", "two"]


# 001-14, 002-08
def test_the_second_side_drops_what_was_said_already() -> None:
    said = words(("one", 8.9, 9.2), ("two", 9.5, 9.8))
    now = words(("Two,", 9.5, 9.85), ("three", 10.1, 10.4))
    assert texts(assembler.after_cut(now, said, 10 * SECOND)) == ["three"]


def test_a_word_at_the_cut_that_the_first_side_left_out_is_kept() -> None:
    said = words(("one", 8.9, 9.2))
    # Its middle is before the cut in this hypothesis and was behind it in the other.
    now = words(("one", 8.9, 9.2), ("two", 9.8, 10.1), ("three", 10.2, 10.5))
    assert texts(assembler.after_cut(now, said, 10 * SECOND)) == ["two", "three"]


def test_a_word_that_really_is_said_twice_stays_twice() -> None:
    said = words(("no", 9.4, 9.8))
    now = words(("no", 9.4, 9.8), ("no", 10.2, 10.6))
    assert texts(assembler.after_cut(now, said, 10 * SECOND)) == ["no"]


def test_a_repetition_far_behind_the_cut_is_no_overlap() -> None:
    said = words(("yes", 9.4, 9.8))
    now = words(("maybe", 10.2, 10.6), ("yes", 11.0, 11.4))
    assert texts(assembler.after_cut(now, said, 10 * SECOND)) == ["maybe", "yes"]


def test_without_a_match_the_cut_decides() -> None:
    said = words(("eight", 9.3, 9.6))
    now = words(("ate", 9.3, 9.6), ("nine", 10.1, 10.4))
    assert texts(assembler.after_cut(now, said, 10 * SECOND)) == ["nine"]


def test_only_the_last_words_are_kept_for_the_join() -> None:
    said = words(("one", 1.0, 1.5), ("nine", 8.6, 8.9), ("ten", 9.5, 9.9))
    assert texts(assembler.overlap(said, 10 * SECOND)) == ["nine", "ten"]


def test_changed_words_are_counted_and_an_insertion_changes_none() -> None:
    assert assembler.changed_words("turn on the", "turn on the light", cut=False) == (3, 0)
    assert assembler.changed_words("turn on the", "turn off the light", cut=False) == (3, 1)
    assert assembler.changed_words("turn on the", "please turn on the light", cut=False) == (3, 0)


def test_words_that_move_to_the_next_segment_are_not_changed() -> None:
    assert assembler.changed_words("one two three four", "one two", cut=True) == (2, 0)


# 000-29, 001-23
def test_the_transcript_joins_segments_with_a_space() -> None:
    segments = [Segment(0, 1, "one two", "seg_0000"), Segment(2, 3, "three", "seg_0001")]
    assert assembler.transcript(segments) == "one two three"

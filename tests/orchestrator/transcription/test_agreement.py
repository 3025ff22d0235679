"""
What is shown of growing hypotheses, what of it becomes stable, and what never does.
"""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dalston.orchestrator.transcription.agreement import Agreement, Shown, ends_word, spoken
from dalston.orchestrator.transcription.model_requests import Hypothesis

VOCABULARY = [" turn", " on", " off", " the", " light", "s", " mus", "ic", " ten", ".", " The", ","]
SURE, DOUBTFUL = 0.95, 0.5


def hypothesis(*tokens: int, p: float | list[float] = SURE) -> Hypothesis:
    pieces = [VOCABULARY[token] for token in tokens]
    text = "".join(pieces).lstrip()
    ends = [len("".join(pieces[: n + 1]).lstrip()) for n in range(len(pieces))]
    sure = p if isinstance(p, list) else [p] * len(tokens)
    return Hypothesis(text, tokens, ends, token_logprobs=[math.log(one) for one in sure])


def untold(*tokens: int) -> Hypothesis:
    """Of a model that does not tell how sure it is."""
    told = hypothesis(*tokens)
    return Hypothesis(told.text, told.tokens, told.token_ends)


def test_nothing_is_stable_in_the_first_hypothesis() -> None:
    assert Agreement().receive(hypothesis(0, 1, 3)) == Shown("turn on the", 0)


# C-02
def test_what_two_sure_hypotheses_share_is_stable_but_the_last_word() -> None:
    agreement = Agreement()
    agreement.receive(hypothesis(0, 1, 3))
    assert agreement.receive(hypothesis(0, 1, 3, 4)) == Shown("turn on the light", 11)
    assert (agreement.text, agreement.tokens) == ("turn on the", (0, 1, 3))
    assert agreement.before == (0, 1, 3, 4)


def test_what_is_stable_ends_at_whole_characters_of_any_script() -> None:
    # Of Thai: a letter and its vowel sign are two tokens, of which the first ends before both.
    text, tokens, ends = "วันนี้ดี", (1, 2, 3, 4, 5, 6, 7), (0, 2, 3, 3, 6, 6, 8)
    heard = Hypothesis(text, tokens, ends, token_logprobs=[math.log(0.97)] * len(tokens))
    agreement = Agreement()
    agreement.receive(heard)
    shown = agreement.receive(heard)
    assert shown
    assert shown.text == text
    assert (agreement.text, agreement.tokens) == ("วันนี้", (1, 2, 3, 4, 5))
    assert [ends_word("วันดี", at) for at in range(1, 5)] == [False, True, True, False]


def test_of_a_character_in_several_tokens_the_least_sure_counts() -> None:
    def votes(*p: float) -> int:
        agreement = Agreement()
        for count in range(1, 20):
            shown = agreement.receive(
                Hypothesis(
                    "你好", (1, 2, 3), (0, 1, 2), token_logprobs=[math.log(one) for one in p]
                )
            )
            if shown and shown.stable:
                return count
        return 20

    assert votes(0.5, 0.99, 0.99) == votes(0.99, 0.5, 0.99) > votes(0.99, 0.99, 0.99)


def test_where_they_differ_stability_ends() -> None:
    agreement = Agreement()
    agreement.receive(hypothesis(0, 1, 3, 4))
    agreement.receive(hypothesis(0, 2, 3, 4))
    assert agreement.text == "turn"


def test_the_less_sure_it_is_the_more_hypotheses_have_to_say_it() -> None:
    def needed(p: float) -> int:
        agreement = Agreement()
        for count in range(1, 20):
            shown = agreement.receive(hypothesis(0, 1, 3, p=p))
            if shown and shown.stable:
                return count
        return 20

    assert [needed(p) for p in (0.999, 0.9, 0.75, 0.5, 0.3)] == [2, 2, 3, 6, 10]


def test_a_word_that_the_model_doubts_is_shown_when_it_says_it_again() -> None:
    agreement = Agreement()
    first = hypothesis(0, 1, 4, p=[SURE, SURE, DOUBTFUL])
    assert agreement.receive(first) == Shown("turn on", 0)
    for _ in range(2):
        agreement.receive(hypothesis(0, 1, 4, 5, p=[SURE, SURE, DOUBTFUL, SURE]))
    assert agreement.receive(hypothesis(0, 1, 4, p=[SURE, SURE, 0.7])) == Shown("turn on", 7)


def test_the_first_word_is_shown_however_doubtful() -> None:
    assert Agreement().receive(hypothesis(0, 1, p=0.1)) == Shown("turn", 0)


def test_one_hypothesis_does_not_take_back_what_several_have_said() -> None:
    agreement = Agreement()
    for _ in range(3):
        agreement.receive(hypothesis(0, 1, 3, p=[DOUBTFUL, 0.7, 0.7]))
    assert agreement.receive(hypothesis(0, 2, 3, p=[DOUBTFUL, 0.8, 0.8])) == Shown("turn on the", 0)
    # What is said again and again wins.
    agreement.receive(hypothesis(0, 2, 3, p=[DOUBTFUL, 0.95, 0.95]))
    assert agreement.receive(hypothesis(0, 2, 3, p=[DOUBTFUL, 0.95, 0.95])) == Shown(
        "turn off the", len("turn off")
    )


def test_a_hypothesis_that_has_no_half_a_word_is_shown_whole() -> None:
    agreement = Agreement()
    doubtful = hypothesis(0, 1, 4, p=DOUBTFUL)
    assert agreement.receive(doubtful, whole=True) == Shown("turn on light", 0)


def test_of_a_model_that_does_not_tell_two_are_shown_and_five_are_stable() -> None:
    agreement = Agreement()
    seen = [agreement.receive(untold(0, 1, 3)) for _ in range(5)]
    assert seen == [
        Shown("turn", 0),
        Shown("turn on the", 0),
        Shown("turn on the", 0),
        Shown("turn on the", 0),
        Shown("turn on the", 7),
    ]


def test_a_word_that_may_still_grow_is_not_stable() -> None:
    agreement = Agreement()
    agreement.receive(hypothesis(0, 6))
    # " mus" was said twice, and turns out to be the beginning of " music".
    agreement.receive(hypothesis(0, 6))
    agreement.receive(hypothesis(0, 6, 7))
    agreement.receive(hypothesis(0, 6, 7))
    assert agreement.receive(hypothesis(0, 6, 7)) == Shown("turn music", 4)


def test_a_mark_belongs_to_the_word_before_it_and_says_nothing_of_it() -> None:
    agreement = Agreement()
    agreement.receive(hypothesis(0, 11, 1, p=[SURE, 0.1, SURE]))
    assert agreement.receive(hypothesis(0, 11, 1, p=[SURE, 0.1, SURE])) == Shown("turn, on", 5)
    assert agreement.tokens == (0, 11)


def test_capitals_and_marks_do_not_hinder_stability_and_the_likeliest_is_shown() -> None:
    agreement = Agreement()
    agreement.receive(hypothesis(3, 4, 9, 10, 4, p=0.8))
    agreement.receive(hypothesis(3, 4, 11, 3, 4, p=0.7))
    shown = agreement.receive(hypothesis(3, 4, 9, 10, 4, p=0.8))
    assert shown == Shown("the light. The light", len("the light. The"))
    assert agreement.tokens == (3, 4, 9, 10)
    # From now on it is written so, whatever a hypothesis writes.
    assert agreement.receive(hypothesis(10, 4, 11, 3, 4)) == Shown("the light. The light", 14)


def test_stability_grows_and_never_shrinks() -> None:
    agreement = Agreement()
    agreement.receive(hypothesis(0, 1, 3, 4))
    agreement.receive(hypothesis(0, 1, 3, 4))
    assert agreement.receive(hypothesis(0, 1, 3, 8)) == Shown("turn on the light", 11)
    assert agreement.receive(hypothesis(0, 1, 3)) == Shown("turn on the light", 11)


def test_a_hypothesis_that_contradicts_what_is_stable_is_not_shown() -> None:
    agreement = Agreement()
    agreement.receive(hypothesis(0, 1, 3, 4))
    agreement.receive(hypothesis(0, 1, 3, 4))
    assert agreement.receive(hypothesis(0, 2, 3, 4)) is None
    assert agreement.receive(hypothesis(0), whole=True) is None
    assert agreement.text == "turn on the"


@pytest.mark.parametrize(
    ("text", "end", "expected"),
    [
        ("turn on", 4, True),
        ("turn on", 3, False),
        ("turn on", 7, False),  # nothing follows yet
        ("turn on", 0, False),
        ("今天天气", 2, True),
        ("สวัสดี", 3, True),
        ("10今", 2, True),
        ("don't go", 3, False),
    ],
)
def test_words_end_at_spaces_and_anywhere_in_scripts_without(
    text: str, end: int, expected: bool
) -> None:
    assert ends_word(text, end) is expected


def test_what_is_spoken_has_no_capitals_no_marks_and_no_spaces() -> None:
    assert spoken("Don't - well, GO!") == ["dont", "well", "go"]
    assert spoken("今天。天 a") == ["今", "天", "天", "a"]
    assert spoken(" ... ") == []


def test_half_a_character_is_no_end_of_a_word() -> None:
    # Two tokens make the second character: nothing is complete behind the first of them.
    agreement = Agreement()
    for _ in range(3):
        agreement.receive(
            Hypothesis("今天气", (1, 2, 3, 4), (1, 1, 2, 3), token_logprobs=[-0.05] * 4)
        )
    assert (agreement.text, agreement.tokens) == ("今天", (1, 2, 3))


def text_of(tokens: tuple[int, ...]) -> str:
    return "".join(VOCABULARY[token] for token in tokens).lstrip()


@given(
    st.lists(
        st.tuples(
            st.lists(
                st.tuples(st.integers(0, len(VOCABULARY) - 1), st.floats(0.05, 1.0)), max_size=12
            ),
            st.booleans(),
            st.booleans(),
        ),
        max_size=20,
    )
)
def test_what_is_shown_always_begins_with_what_was_stable(
    hypotheses: list[tuple[list[tuple[int, float]], bool, bool]],
) -> None:
    agreement = Agreement()
    stable = ""
    for tokens, forced, whole in hypotheses:
        # The server makes a partial begin with the stable tokens, and nobody makes a final.
        prefix = agreement.tokens if forced else ()
        heard = hypothesis(
            *prefix, *(token for token, _ in tokens), p=[1.0] * len(prefix) + [p for _, p in tokens]
        )
        shown = agreement.receive(heard, whole)
        assert agreement.text.startswith(stable)
        assert text_of(agreement.tokens) == agreement.text
        assert agreement.before[: len(agreement.tokens)] == agreement.tokens
        stable = agreement.text
        if shown is not None:
            assert shown.text[: shown.stable] == stable
            if whole:
                assert spoken(shown.text) == spoken(heard.text)


@given(st.lists(st.lists(st.integers(0, 11), min_size=1, max_size=6), min_size=1, max_size=8))
def test_something_is_shown_of_every_hypothesis_that_says_something(
    hypotheses: list[list[int]],
) -> None:
    agreement = Agreement()
    for tokens in hypotheses:
        shown = agreement.receive(hypothesis(*tokens, p=DOUBTFUL))
        assert shown is None or shown.text

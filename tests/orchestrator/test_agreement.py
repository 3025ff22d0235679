"""
What becomes stable, and what never does.
"""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dalston.orchestrator.agreement import Agreement, ends_word
from dalston.orchestrator.requests import Hypothesis

VOCABULARY = [" turn", " on", " off", " the", " light", "s", " mus", "ic", " ten", "."]


def hypothesis(*tokens: int) -> Hypothesis:
    pieces = [VOCABULARY[token] for token in tokens]
    text = "".join(pieces).lstrip()
    ends = [len("".join(pieces[: n + 1]).lstrip()) for n in range(len(pieces))]
    return Hypothesis(text, tokens, ends)


def test_nothing_is_stable_in_the_first_hypothesis() -> None:
    assert Agreement().receive(hypothesis(0, 1, 3)) == 0


def test_what_two_hypotheses_share_is_stable_but_the_last_word() -> None:
    agreement = Agreement()
    agreement.receive(hypothesis(0, 1, 3))
    assert agreement.receive(hypothesis(0, 1, 3, 4)) == len("turn on the")
    assert agreement.tokens == (0, 1, 3)


def test_where_they_differ_stability_ends() -> None:
    agreement = Agreement()
    agreement.receive(hypothesis(0, 1, 3, 4))
    assert agreement.receive(hypothesis(0, 2, 3, 4)) == len("turn")


def test_a_word_that_may_still_grow_is_not_stable() -> None:
    agreement = Agreement()
    agreement.receive(hypothesis(0, 6))
    # " mus" was agreed on, and turns out to be the beginning of " music".
    assert agreement.receive(hypothesis(0, 6, 7)) == len("turn")


def test_a_mark_belongs_to_the_word_before_it() -> None:
    agreement = Agreement()
    agreement.receive(hypothesis(0, 1, 9))
    assert agreement.receive(hypothesis(0, 1, 9)) == len("turn")


def test_stability_grows_and_never_shrinks() -> None:
    agreement = Agreement()
    agreement.receive(hypothesis(0, 1, 3, 4))
    agreement.receive(hypothesis(0, 1, 3, 4))
    assert agreement.receive(hypothesis(0, 1, 3, 8)) == len("turn on the")
    assert agreement.receive(hypothesis(0, 1, 3)) == len("turn on the")


def test_a_hypothesis_that_contradicts_what_is_stable_is_not_shown() -> None:
    agreement = Agreement()
    agreement.receive(hypothesis(0, 1, 3, 4))
    agreement.receive(hypothesis(0, 1, 3, 4))
    assert agreement.receive(hypothesis(0, 2, 3, 4)) is None
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


@given(st.lists(st.lists(st.integers(0, len(VOCABULARY) - 1), max_size=12), max_size=12))
def test_what_is_shown_always_begins_with_what_was_stable(hypotheses: list[list[int]]) -> None:
    agreement = Agreement()
    stable = ""
    for tokens in hypotheses:
        # The server makes a hypothesis begin with the stable tokens.
        shown = hypothesis(*agreement.tokens, *tokens)
        chars = agreement.receive(shown)
        if chars is not None:
            assert shown.text[:chars].startswith(stable)
            stable = shown.text[:chars]

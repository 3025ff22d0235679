"""
What the benches count as changed, and when a word is known.
"""

import flicker
import pytest
from partials import Result, Told

from dalston.orchestrator.protocol.messages import Final, Partial, Word


@pytest.mark.parametrize(
    ("shown", "now", "changed", "rewritten"),
    [
        ("turn on", "turn on the light", 0, 0),
        ("turn of", "turn on the light", 1, 0),
        ("turn the", "turn on the light", 1, 0),  # a word put in moves what follows
        ("Turn on. The", "turn on, the light", 0, 3),
        ("turn on", "turn", 1, 0),
        ("turn on", "", 2, 0),
        ("今天天", "今天气", 1, 0),
        ("- well", "well", 0, 0),
    ],
)
def test_words_are_changed_from_the_first_that_is_another(
    shown: str, now: str, changed: int, rewritten: int
) -> None:
    assert flicker.changed(shown, now) == (changed, rewritten)


def partial(text: str, stable: int, segment: str = "seg_0000") -> Partial:
    return Partial(segment, text, stable, 0.0, 1.0)


def final(text: str) -> Final:
    words = [Word(word, 0.5 * at, 0.5 * at + 0.4, 0.9) for at, word in enumerate(text.split())]
    return Final(
        segment_id="seg_0000",
        text=text,
        start=0.0,
        end=2.0,
        confidence=0.9,
        language="en",
        processing_ms=1,
        words=words,
    )


def result(*told: tuple[float, Partial | Final]) -> Result:
    found = Result()
    found.receive([Told(at, message) for at, message in told])
    return found


def test_a_word_is_known_from_when_it_is_shown_for_good() -> None:
    found = result(
        (1.0, partial("turn of", 0)), (1.5, partial("turn on", 4)), (2.0, final("turn on the"))
    )
    assert found.shown_after == pytest.approx([0.6, 0.6, 0.6])
    assert found.stable_after == pytest.approx([1.1, 1.1, 0.6])
    assert (found.words, found.changed, found.first) == (3, 1, [1.0])


def test_stable_words_that_the_final_changes_are_counted_by_what_is_said() -> None:
    found = result((1.0, partial("Turn on the", 7)), (2.0, final("turn off the")))
    assert (found.stable, found.stable_changed, found.broken) == (2, 1, 0)


def test_a_partial_that_changes_stable_text_is_seen() -> None:
    found = result((1.0, partial("turn on", 7)), (1.5, partial("Turn on", 4)))
    assert (found.broken, found.changed) == (1, 2)  # and nothing was said in the end


def test_what_was_shown_of_nothing_is_changed() -> None:
    found = result((1.0, partial("turn on", 0)), (3.0, partial("the", 0, "seg_0001")))
    assert found.changed == 3

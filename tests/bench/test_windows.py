"""
How partials are judged, and of what utterances.
"""

from itertools import pairwise

from windows import LENGTHS, errors_of_partial, utterances


def test_a_partial_is_judged_by_the_beginning_that_fits_best() -> None:
    assert errors_of_partial("turn on the light", "turn on") == (0, 2)
    assert errors_of_partial("turn on the light", "turn off the") == (1, 3)
    assert errors_of_partial("turn on the light", "") == (0, 0)
    assert errors_of_partial("turn on", "turn on the light") == (2, 2)


def test_every_length_of_the_table_has_utterances_that_fit_into_one_window() -> None:
    found = utterances()
    for low, high in pairwise(LENGTHS):
        row = [utterance for utterance in found if low <= utterance.seconds < high]
        assert len(row) >= 10
        assert all(utterance.text for utterance in row)
    assert max(utterance.seconds for utterance in found) < LENGTHS[-1]

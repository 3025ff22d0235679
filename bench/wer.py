"""
Word error rate.
"""

from collections.abc import Sequence


def errors(said: Sequence[str], heard: Sequence[str]) -> int:
    """Insertions, deletions and substitutions from one to the other (Levenshtein)."""
    row = list(range(len(heard) + 1))
    for i, word in enumerate(said, 1):
        above, row = row, [i]
        for j, other in enumerate(heard, 1):
            row.append(min(above[j] + 1, row[-1] + 1, above[j - 1] + (word != other)))
    return row[-1]


def wer(pairs: Sequence[tuple[str, str]]) -> float:
    """Of (said, heard) texts, all words together."""
    words = [(said.split(), heard.split()) for said, heard in pairs]
    return sum(errors(a, b) for a, b in words) / sum(len(a) for a, _ in words)

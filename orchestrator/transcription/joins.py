"""
The two sides of a cut utterance, joined so that no word is lost or said twice. Without I/O.

Both sides heard the audio around the cut: the first a little more than it says, the second from
somewhat before it. So the end of what the first heard and the beginning of what the second heard
are the same words, give or take what one of them misheard, and times that are wrong by half a
second now and then: dynamic time warping gives the first word of an audio whatever comes before
it. The words are aligned as two sequences (Needleman and Wunsch 1970), the same words attracting
each other and times only saying how probable that is, so that what is really said twice stays
twice.
"""

import difflib
from collections.abc import Sequence

from dalston.orchestrator.protocol.messages import Word
from dalston.triton.characters import letters

# What a pair is worth: the same word; one that sounds like it, or is half of it; another word at
# the same time, as one of them misheard it.
_SAME, _ALIKE, _MISHEARD = 2.0, 1.2, 0.2
_ALIKE_FROM = 0.6  # share of the letters
# What it costs to pair words whose middles lie a second apart: more than the same word is worth.
_SECOND = 2.2
# What it costs that one side did not hear a word between those that both did.
_MISSED = 0.6
# So long after the cut nothing is a repetition of what was before it.
_REACH = 2.5  # seconds


def told(heard: Sequence[Word], cut: float) -> int:
    """How many of the words of the first side it says: those whose middle lies before the cut."""
    return sum(_middle(word) < cut for word in heard)


def repeated(heard: Sequence[Word], words: Sequence[Word], cut: float) -> int:
    """How many of `words`, the first of the second side, the first has said, which `heard` these
    around the cut."""
    said = told(heard, cut)
    if not said:
        return 0
    near = [word for word in words if _middle(word) < cut + _REACH]
    pairs = _alignment(heard, near)
    if both := [at for before, at in pairs if before < said]:
        return both[-1] + 1
    # Nothing in common. What both left to the second side begins it; else the cut decides.
    first = min((at for _, at in pairs), default=len(near))
    return min(first, told(near, cut))


def _middle(word: Word) -> float:
    return (word.start + word.end) / 2


def _alignment(heard: Sequence[Word], words: Sequence[Word]) -> list[tuple[int, int]]:
    """The pairs of the best alignment, in order. What stands before the first of them in `heard`
    and after the last in either costs nothing."""
    rows, columns = len(heard), len(words)
    worth = [[_worth(one, other) for other in words] for one in heard]
    # best[i][j]: of the first i and the first j words. Words of the second side that begin it have
    # to be paired or paid for: its audio lies in that of the first.
    best = [[-_MISSED * j for j in range(columns + 1)] for _ in range(rows + 1)]
    came = [[0] * (columns + 1) for _ in range(rows + 1)]  # 0: neither, 1: pair, 2: up, 3: left
    for i in range(1, rows + 1):
        for j in range(1, columns + 1):
            ways = (
                (best[i - 1][j - 1] + worth[i - 1][j - 1], 1),
                (best[i - 1][j] - _MISSED, 2),
                (best[i][j - 1] - _MISSED, 3),
                (-_MISSED * j, 0),
            )
            best[i][j], came[i][j] = max(ways)
    i, j = max(
        ((i, j) for i in range(rows + 1) for j in range(columns + 1)),
        key=lambda at: best[at[0]][at[1]],
    )
    pairs = list[tuple[int, int]]()
    while i and j and came[i][j]:
        way = came[i][j]
        if way == 1:
            pairs.append((i - 1, j - 1))
        i, j = i - (way != 3), j - (way != 2)
    return pairs[::-1]


def _worth(one: Word, other: Word) -> float:
    """Of taking these words of the two sides for the same."""
    said, again = letters(one.word), letters(other.word)
    apart = abs(_middle(one) - _middle(other)) * _SECOND
    if said and said == again:
        return _SAME - apart
    if _alike(said, again):
        return _ALIKE - apart
    both = min(one.end, other.end) - max(one.start, other.start)
    shorter = min(one.end - one.start, other.end - other.start)
    return _MISHEARD if shorter > 0 and both > shorter / 2 else float("-inf")


def _alike(said: str, again: str) -> bool:
    if not said or not again:
        return False
    if min(len(said), len(again)) >= 2 and (said.endswith(again) or again.startswith(said)):
        return True  # half of it was cut off
    return difflib.SequenceMatcher(None, said, again, autojunk=False).ratio() >= _ALIKE_FROM

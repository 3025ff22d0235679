"""
How often what was shown is changed, word by word.

A word is changed when the next partial, or the final, has another in its place; so one that is put
in changes all behind it, as it does before the reader's eyes (the unstable words of Shangguan et
al. 2020, "Analyzing the quality and stability of a streaming end-to-end on-device speech
recognizer"). Other capitals or marks are no other word, and counted for themselves.
"""

from dalston.orchestrator.transcription.agreement import pieces
from dalston.triton.characters import letters


def changed(shown: str, now: str) -> tuple[int, int]:
    """Of the words shown: those that are others now, and those that are only written otherwise."""
    before, after = pieces(shown), pieces(now)
    kept = rewritten = 0
    for one, other in zip(before, after, strict=False):
        if letters(one) != letters(other):
            break
        kept += 1
        rewritten += one != other
    return len(before) - kept, rewritten

"""
Which part of a growing hypothesis will not change: LocalAgreement-2, without I/O.

Two successive hypotheses that begin with the same tokens have agreed on them (Liu et al. 2020,
"Low-latency sequence-to-sequence speech recognition and translation by partial hypothesis
selection"; Macháček et al. 2023 for Whisper). What was agreed is stable: the next hypothesis is
made to begin with those tokens, so no partial can contradict an earlier one.
"""

from collections.abc import Sequence

from dalston.orchestrator.requests import Hypothesis

# Scripts that put no space between words: there any character may end the stable part.
_SPACELESS = (
    (0x0E00, 0x0EFF),  # Thai, Lao
    (0x1000, 0x109F),  # Myanmar
    (0x1780, 0x17FF),  # Khmer
    (0x2E80, 0x9FFF),  # CJK, kana, bopomofo
    (0xF900, 0xFAFF),  # CJK compatibility
    (0x20000, 0x3FFFF),
)


def _spaceless(character: str) -> bool:
    code = ord(character)
    return any(first <= code <= last for first, last in _SPACELESS)


def ends_word(text: str, end: int) -> bool:
    """Whether a word of `text` is complete at `end`, something else following."""
    if not 0 < end < len(text):
        return False
    return text[end].isspace() or _spaceless(text[end]) or _spaceless(text[end - 1])


class Agreement:
    """The stable part of one utterance's partials."""

    def __init__(self) -> None:
        self.tokens: tuple[int, ...] = ()  # forced upon the next hypothesis
        self.text = ""  # what they say
        self.before: Sequence[int] = ()  # tokens of the last hypothesis

    def receive(self, hypothesis: Hypothesis) -> int | None:
        """Characters of the hypothesis' text that are stable now.

        None: it does not begin with what is stable, and must not be shown.
        """
        text, tokens = hypothesis.text, hypothesis.tokens
        if not text.startswith(self.text) or tuple(tokens[: len(self.tokens)]) != self.tokens:
            return None
        agreed = 0
        for mine, theirs in zip(tokens, self.before, strict=False):
            if mine != theirs:
                break
            agreed += 1
        self.before = tokens
        # Back to the end of a word that another follows: the last may still be growing.
        while agreed > len(self.tokens):
            end = hypothesis.token_ends[agreed - 1]
            if ends_word(text, end):
                self.tokens = tuple(tokens[:agreed])
                self.text = text[:end]
                break
            agreed -= 1
        return len(self.text)

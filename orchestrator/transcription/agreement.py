"""
What partials show of growing hypotheses, and which part of it will not change. Without I/O.

Each hypothesis of an utterance votes for its words, one after the other, with the more weight the
surer the model was of them: -log(1 - p), so that votes add up as independent witnesses do, of
whom all would have to be wrong. A word is shown once its votes are SHOWN ahead of those for any
other word in its place, so what the model guesses of half a word at the end of the audio is shown
when the next hypothesis says it too, and one hypothesis alone does not take back what several
have said. It is stable once its votes are STABLE ahead, two hypotheses at least have said it, and
another word follows. The next hypothesis is made to begin with what is stable, so no partial can
contradict an earlier one.

Capitals and marks are no speech: "yes, but" and "Yes. But" are the same words. Of the ways to
write them the likeliest is shown, and what is stable is written as it was when it became so.

LocalAgreement (Liu et al. 2020, "Low-latency sequence-to-sequence speech recognition and
translation by partial hypothesis selection"; Macháček et al. 2023 for Whisper) is the same with
equal votes: what N hypotheses in a row agree on. On real speech that changes its mind five times
as often when it is as fast, docs/log.md.
"""

import itertools
import math
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from dalston.orchestrator.transcription.model_requests import Hypothesis
from dalston.triton.characters import joined, letters

# How far ahead votes have to be, bench/partials.py. One word with p = 0.8 is shown, and stable
# when it was said three times; with p = 0.9 twice.
SHOWN, STABLE = 1.6, 3.5
# No probability counts for more: a model may be very sure of what it misheard.
_SUREST = 0.98
# Of models that do not tell: shown when two hypotheses say it, stable when five do.
_UNKNOWN = 0.56
# Hypotheses that vote: those of six seconds.
_VOTERS = 12

# Scripts that put no space between words: there any character may end the stable part.
SPACELESS_SCRIPTS = (
    (0x0E00, 0x0EFF),  # Thai, Lao
    (0x1000, 0x109F),  # Myanmar
    (0x1780, 0x17FF),  # Khmer
    (0x2E80, 0x9FFF),  # CJK, kana, bopomofo
    (0xF900, 0xFAFF),  # CJK compatibility
    (0x20000, 0x3FFFF),
)


def _spaceless(character: str) -> bool:
    code = ord(character)
    return any(first <= code <= last for first, last in SPACELESS_SCRIPTS)


def ends_word(text: str, end: int) -> bool:
    """Whether a word of `text` is complete at `end`, something else following."""
    if not 0 < end < len(text):
        return False
    if text[end].isspace():
        return not joined(text, end + 1)
    return not joined(text, end) and (_spaceless(text[end]) or _spaceless(text[end - 1]))


def pieces(text: str) -> list[str]:
    """Its words as they are written; of scripts without spaces the characters."""
    ends = [end for end in range(1, len(text)) if ends_word(text, end)]
    cut = (text[first:last] for first, last in itertools.pairwise([0, *ends, len(text)]))
    return [piece.strip() for piece in cut if letters(piece)]


def spoken(text: str) -> list[str]:
    """The same without capitals and marks."""
    return [letters(piece) for piece in pieces(text)]


@dataclass(frozen=True)
class Shown:
    text: str
    stable: int  # characters of it


@dataclass(frozen=True)
class _Word:
    said: str  # its letters
    text: str  # with its marks, and the space before it
    tokens: tuple[int, ...]
    vote: float


def _words(hypothesis: Hypothesis) -> list[_Word]:
    """Its words in order; together they are its text and tokens. Marks belong to the word before
    them, and those before the first to that."""
    return [_word(hypothesis, first, last) for first, last in _bounds(hypothesis)]


def _bounds(hypothesis: Hypothesis) -> Iterator[tuple[int, int]]:
    """First token of each word, and the one after its last."""
    text, ends = hypothesis.text, hypothesis.token_ends
    said = [letters(text[a:b]) for a, b in zip((0, *ends), ends, strict=False)]
    first = 0
    for last in range(1, len(ends) + 1):
        if not any(said[first:last]):
            continue
        behind = next((at for at in range(last, len(ends)) if ends[at] > ends[last - 1]), None)
        if behind is None:
            break
        if ends_word(text, ends[last - 1]) and said[behind]:
            yield first, last
            first = last
    if first < len(ends):
        yield first, len(ends)


def _word(hypothesis: Hypothesis, first: int, last: int) -> _Word:
    ends, logprobs = hypothesis.token_ends, hypothesis.token_logprobs
    start = ends[first - 1] if first else 0
    text = hypothesis.text[start : ends[last - 1]]
    sure = _UNKNOWN
    if logprobs:
        # Of its letters; whether a comma follows says little of the word. Of a letter that is
        # several tokens the first may be the one that is not sure.
        spelt, least = list[float](), 0.0
        for at in range(first, last):
            before, least = ends[at - 1] if at else 0, min(least, logprobs[at])
            if ends[at] > before:
                if letters(hypothesis.text[before : ends[at]]):
                    spelt.append(least)
                least = 0.0
        sure = math.exp(min(spelt or logprobs[first:last]))
    return _Word(
        letters(text),
        text,
        tuple(hypothesis.tokens[first:last]),
        -math.log(1 - min(sure, _SUREST)),
    )


@dataclass(frozen=True)
class _Chosen:
    word: _Word  # in the way to write it that most votes are for
    ahead: float  # its votes, less those for the second in its place
    voters: int
    newest: bool  # the last hypothesis is one of them


class Agreement:
    """The hypotheses of one utterance, and what they agree on so far."""

    def __init__(self) -> None:
        self.tokens: tuple[int, ...] = ()  # forced upon the next hypothesis
        self.text = ""  # what they say: the stable part
        self.before: Sequence[int] = ()  # these, and the others of the last hypothesis
        self._said: list[str] = []  # the words of the stable part
        self._voters = deque[list[_Word]](maxlen=_VOTERS)  # words after the stable part

    def receive(self, hypothesis: Hypothesis, whole: bool = False) -> Shown | None:
        """What to show now.

        whole: all of the hypothesis, as one whose audio ends in silence: it has no half a word.
        None: it does not begin with what is stable, and must not be shown.
        """
        words, stable = _words(hypothesis), len(self._said)
        if [word.said for word in words[:stable]] != self._said:
            return None
        rest = words[stable:]
        self._voters.append(rest)
        chosen = self._chosen()
        settled = 0
        for at, one in enumerate(chosen):
            follows = one.newest and at + 1 < len(rest)
            if one.ahead < STABLE or one.voters < 2 or not follows:
                break
            settled = at + 1
        self._settle([one.word for one in chosen[:settled]])
        behind = (token for word in rest[settled:] for token in word.tokens)
        self.before = (*self.tokens, *behind)
        tail = rest if whole else [one.word for one in chosen]
        return Shown(self.text + "".join(word.text for word in tail[settled:]), len(self.text))

    def _chosen(self) -> list[_Chosen]:
        """The words that are far enough ahead, and the first of all however far it is: that
        something is said is shown at once."""
        voters, chosen = list(self._voters), list[_Chosen]()
        while True:
            at = len(chosen)
            voters = [words for words in voters if at < len(words)]
            votes = dict[str, float]()
            for words in voters:
                votes[words[at].said] = votes.get(words[at].said, 0.0) + words[at].vote
            if not votes:
                return chosen
            best, *others = sorted(votes, key=votes.__getitem__, reverse=True)
            ahead = votes[best] - (votes[others[0]] if others else 0.0)
            if ahead < SHOWN and (chosen or self._said):
                return chosen
            voters = [words for words in voters if words[at].said == best]
            newest = voters[-1] is self._voters[-1]
            chosen.append(
                _Chosen(_likeliest(words[at] for words in voters), ahead, len(voters), newest)
            )

    def _settle(self, words: list[_Word]) -> None:
        """Add these words to the stable part."""
        if not words:
            return
        said = [word.said for word in words]
        self._said += said
        self.text += "".join(word.text for word in words)
        self.tokens += tuple(token for word in words for token in word.tokens)
        # Who did not say so has no vote any more.
        agreeing = [
            voter[len(said) :]
            for voter in self._voters
            if [word.said for word in voter[: len(said)]] == said
        ]
        self._voters.clear()
        self._voters.extend(agreeing)


def _likeliest(ways: Iterator[_Word]) -> _Word:
    """The way to write it with the most votes; the last of equals."""
    votes = dict[str, float]()
    words = dict[str, _Word]()
    for word in ways:
        votes[word.text] = votes.get(word.text, 0.0) + word.vote
        words[word.text] = word
    return words[max(reversed(list(votes)), key=votes.__getitem__)]

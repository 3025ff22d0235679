"""
What is taken out of text before a client is told of it and before it is kept: numbers, e-mail
addresses, and what the operator's own patterns match. Without I/O.

A number is three digits or more in a row, however they are grouped and written; digits that are
written as words count, in a few languages. Whatever is found is replaced by its name in brackets,
"[number]". Words with times are replaced in step: those of one number become one word.

Partials grow, and what they call stable must not change. So a number is shown once it is known to
be one: digits at the end of a partial are held back until three are there, or something else
follows. What stands in a partial then depends on whole words before it and on nothing after them.
For that reason patterns are looked for in each word of a partial by itself; what spreads over
several words is found in the final.

Where an utterance was cut in the middle of speech, a number may lie on both sides. Digits that
touch the cut are replaced however few they are.

The operator's patterns are RE2's: it takes time in proportion to the text, whatever the pattern.
"""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from os.path import commonprefix
from typing import Any, Protocol

import re2

from dalston.orchestrator.protocol.messages import REDACTION_NAME, Word
from dalston.orchestrator.transcription.agreement import SPACELESS_SCRIPTS, ends_word
from dalston.triton.contract import SPACELESS

SHORTEST_NUMBER = 3  # digits

_DIGIT_WORDS = (
    "zero oh nought one two three four five six seven eight nine double triple "  # English
    "null eins zwei zwo drei vier fünf sechs sieben acht neun "  # German
    "cero uno dos tres cuatro cinco seis siete ocho nueve "  # Spanish
    "zéro un deux trois quatre cinq sept huit neuf"  # French; six is English too
).split()
_DIGIT = rf"(?:\d|\b(?:{'|'.join(_DIGIT_WORDS)})\b)"
_BETWEEN = r"[\s.,/()+\-\u2010-\u2015]"  # digits of one number
_digit = re.compile(_DIGIT, re.IGNORECASE)
_digits = re.compile(rf"{_DIGIT}(?:{_BETWEEN}{{0,3}}{_DIGIT})*", re.IGNORECASE)
_between = re.compile(rf"{_BETWEEN}*")

# A letter or digit of a script that puts spaces between its words: an address may stand right
# beside one that does not.
_SPACELESS = "".join(f"{chr(first)}-{chr(last)}" for first, last in SPACELESS_SCRIPTS)
_LETTER = rf"[^\W{_SPACELESS}]"
_DOMAIN = rf"(?:{_LETTER}|-)+(?:\.(?:{_LETTER}|-)+)+"
_email = re.compile(rf"(?:{_LETTER}|[.+%'\-])+@{_DOMAIN}")
_NAMED = rf"{_LETTER}+(?:(?:\.| dot ){_LETTER}+)*"
_spoken_email = re.compile(rf"{_NAMED} at {_LETTER}+(?: dot {_LETTER}+)+", re.IGNORECASE)

Span = tuple[int, int, str]  # of a text: from, to, and what it is replaced by


class Pattern(Protocol):
    def finditer(self, text: str, /) -> Iterator[Any]: ...  # of matches


Patterns = Mapping[str, Pattern]


class PatternError(ValueError):
    """Says which line of a file of patterns is wrong, and why."""


def read_patterns(text: str) -> dict[str, Pattern]:
    """A name and a pattern in each line. Raises PatternError."""
    options = re2.Options()
    options.log_errors = False
    found = dict[str, Pattern]()
    for number, line in enumerate(text.splitlines(), 1):
        name, _, pattern = line.strip().partition(" ")
        if not name or name.startswith("#"):
            continue
        if not re.fullmatch(REDACTION_NAME, name) or name in ("numbers", "emails", *found):
            raise PatternError(f"line {number}: {name!r} is no name for a pattern, or has one")
        try:
            compiled = re2.compile(pattern.strip(), options)
        except re2.error as error:
            (why,) = error.args
            raise PatternError(f"line {number}: {why.decode()}") from None
        if compiled.search(""):
            raise PatternError(f"line {number}: the pattern matches where nothing is")
        found[name] = compiled
    return found


def unknown_names(names: Iterable[str], patterns: Patterns) -> list[str]:
    return [name for name in names if name not in ("numbers", "emails", *patterns)]


class Redaction:
    """What one session has taken out of its text. names: of SessionConfig.redact; each is known
    here, or one of the patterns."""

    def __init__(self, names: Sequence[str] = (), patterns: Patterns | None = None):
        self._numbers, self._emails = "numbers" in names, "emails" in names
        known = patterns or {}
        self._patterns = {name: known[name] for name in names if name in known}

    def __bool__(self) -> bool:
        return self._numbers or self._emails or bool(self._patterns)

    def text(self, text: str, cut_before: bool = False, cut_after: bool = False) -> str:
        """cut_before, cut_after: the utterance was cut out of speech at this end."""
        return _replaced(text, self._spans(text, cut_before, cut_after))

    def words(
        self, words: list[Word], language: str, cut_before: bool = False, cut_after: bool = False
    ) -> list[Word]:
        """The same of words with times. language: that they are written in."""
        separator = "" if language in SPACELESS else " "
        text = separator.join(word.word for word in words)
        spans = self._spans(text, cut_before, cut_after)
        if not spans:
            return words
        told, first, start = list[Word](), 0, 0
        while first < len(words):
            last, end = first, start + len(words[first].word)
            while any(a < end < b and end < len(text) for a, b, _ in spans):
                last += 1
                end += len(separator) + len(words[last].word)
            inside = [(a - start, b - start, name) for a, b, name in spans if start <= a < end]
            told.append(_merged(words[first : last + 1], _replaced(text[start:end], inside)))
            first, start = last + 1, end + len(separator)
        return told

    def partial(self, text: str, stable: int, cut_before: bool = False) -> tuple[str, int]:
        """What is shown of a partial whose first characters are stable, and how much of that is."""
        if not self:
            return text, stable
        shown = self._growing(text, cut_before)
        return shown, len(commonprefix([shown, self._growing(text[:stable], cut_before)]))

    def _growing(self, text: str, cut_before: bool) -> str:
        """Of a text that may go on: what nothing that follows can change."""
        spans, start = list[Span](), 0
        for end in [*(at for at in range(1, len(text)) if ends_word(text, at)), len(text)]:
            piece = text[start:end]
            found = [(start + a, start + b, name) for a, b, name in self._in_word(piece)]
            spans += found
            if self._emails and not found and "@" in piece and end == len(text):
                text = text[:start]  # an address that is not whole yet
            start = end
        if self._numbers:
            for a, b, digits in _runs(text):
                at_end = _between.fullmatch(text, b) is not None
                if digits >= SHORTEST_NUMBER or (cut_before and _between.fullmatch(text, 0, a)):
                    spans.append((a, b, "number"))
                    text = text[:b] if at_end else text
                elif at_end and not any(first < b and a < last for first, last, _ in spans):
                    text = text[:a]
        return _replaced(text, _joined(spans)).rstrip()

    def _in_word(self, text: str) -> Iterator[Span]:
        if self._emails:
            yield from ((*match.span(), "email") for match in _email.finditer(text))
        for name, pattern in self._patterns.items():
            yield from ((*match.span(), name) for match in pattern.finditer(text))

    def _spans(self, text: str, cut_before: bool, cut_after: bool) -> list[Span]:
        spans = list(self._in_word(text))
        if self._emails:
            spans += ((*match.span(), "email") for match in _spoken_email.finditer(text))
        if self._numbers:
            for a, b, digits in _runs(text):
                cut = (cut_before and _between.fullmatch(text, 0, a)) or (
                    cut_after and _between.fullmatch(text, b)
                )
                if digits >= SHORTEST_NUMBER or cut:
                    spans.append((a, b, "number"))
        return _joined(spans)


def _runs(text: str) -> Iterator[tuple[int, int, int]]:
    """Digits in a row: from, to, and how many."""
    for match in _digits.finditer(text):
        yield (*match.span(), len(_digit.findall(match.group())))


def _joined(spans: list[Span]) -> list[Span]:
    """In order; those that overlap become one, which has the name of the first."""
    joined = list[Span]()
    for start, end, name in sorted(spans):
        if joined and start < joined[-1][1]:
            before = joined.pop()
            joined.append((before[0], max(before[1], end), before[2]))
        else:
            joined.append((start, end, name))
    return joined


def _replaced(text: str, spans: Sequence[Span]) -> str:
    told, at = "", 0
    for start, end, name in spans:
        told, at = f"{told}{text[at:start]}[{name}]", end
    return told + text[at:]


def _merged(words: list[Word], text: str) -> Word:
    return Word(text, words[0].start, words[-1].end, min(word.confidence for word in words))

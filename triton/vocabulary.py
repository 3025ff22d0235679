"""
A Whisper checkpoint's tokens: control ids, text of token sequences and back, words. Knows no model.

Text tokens are pieces of UTF-8: a character of many bytes can be spread over several tokens, so
sequences are decoded as bytes, not token by token. Text is whole characters always: of one whose
last bytes are missing nothing is said.

Text becomes tokens by byte pair encoding with the ids as ranks, as openai-whisper does it: of all
neighbours those are joined first whose token has the lowest id. That needs no tokenizer.json, and
those of the multilingual checkpoints are not to be trusted: of 50,000 merges they lack the first,
" t", and so write " the" as two tokens that the model never saw.
"""

import codecs
import functools
import json
import sys
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from dalston.triton.characters import joined, letters
from dalston.triton.contract import PROMPT_TOKENS, SPACELESS

# Marks that belong to the word before or behind them (openai-whisper's timing.py).
_CLOSING = "\"'.。,，!！?？:：”)]}、"
_OPENING = "\"'“¿([{-"
# Endings that GPT-2's encoder keeps apart from their word.
_CONTRACTED = ("'s", "'t", "'re", "'ve", "'m", "'ll", "'d")
TEXTS_REMEMBERED = 256  # every partial and final of a session comes with the same prompt


def _bytes_of_printable() -> dict[str, int]:
    """The inverse of GPT-2's byte-to-printable map: unprintable bytes sit at 256 and up."""
    kept = [*range(33, 127), *range(161, 173), *range(174, 256)]
    moved = [byte for byte in range(256) if byte not in kept]
    table = {chr(byte): byte for byte in kept}
    return table | {chr(256 + index): byte for index, byte in enumerate(moved)}


class _Decoder:
    """Of bytes that come in pieces. What is no character is left out, and the one that stands for
    it in texts of others too."""

    def __init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="ignore")

    def decode(self, data: bytes) -> str:
        return self._decoder.decode(data).replace("\ufffd", "")

    @property
    def is_inside(self) -> bool:
        """Whether a character has begun that is not complete."""
        return bool(self._decoder.getstate()[0])


@dataclass(frozen=True)
class WordTokens:
    text: str
    count: int  # tokens it is made of


class Vocabulary:
    """Raises ValueError if `tokens`, in id order, are not those of a Whisper checkpoint."""

    def __init__(self, tokens: Sequence[str]):
        ids = {token: id for id, token in enumerate(tokens)}
        try:
            self.end = ids["<|endoftext|>"]
            self.start = ids["<|startoftranscript|>"]
            self.tasks = {"transcribe": ids["<|transcribe|>"], "translate": ids["<|translate|>"]}
            self.no_timestamps = ids["<|notimestamps|>"]
        except KeyError as missing:
            raise ValueError(f"not a Whisper vocabulary: no token {missing}") from None
        # Languages stand between the start token and the tasks. English-only checkpoints carry
        # the tokens too; what they lack is the empty token, and CTranslate2 tells them by it too.
        self.multilingual = "" in ids
        first_task = min(self.tasks.values())
        self.languages = {tokens[id][2:-2]: id for id in range(self.start + 1, first_task)}
        printable = _bytes_of_printable()
        # Bytes of each text token; ids from `end` on are controls and times, which say nothing.
        try:
            self._bytes = [
                bytes(printable[character] for character in token) for token in tokens[: self.end]
            ]
        except KeyError as character:
            raise ValueError(f"not a Whisper vocabulary: {character} in a token") from None
        self._size = len(tokens)
        # It stands before what was said earlier; a checkpoint without it takes no prompt.
        self.previous = ids.get("<|startofprev|>")
        self._ids = {token: id for token, id in ids.items() if token and id < self.end}
        self._printable = {byte: character for character, byte in printable.items()}
        self.encode = functools.lru_cache(TEXTS_REMEMBERED)(self._encode)

    def __len__(self) -> int:
        return self._size

    @classmethod
    def load(cls, folder: Path) -> "Vocabulary":
        """Read vocabulary.json, or vocabulary.txt of older conversions, of a CTranslate2 folder."""
        path = folder / "vocabulary.json"
        if path.exists():
            return cls(json.loads(path.read_text("utf-8")))
        lines = (folder / "vocabulary.txt").read_text("utf-8").split("\n")
        return cls(lines[:-1] if lines[-1] == "" else lines)

    def prompt(self, language: str, task: str) -> list[int]:
        """The tokens before the text. English-only checkpoints have but one way to begin."""
        if not self.multilingual:
            return [self.start, self.no_timestamps]
        return [self.start, self.languages[language], self.tasks[task], self.no_timestamps]

    def marks(self) -> frozenset[int]:
        """Text tokens without a letter or a digit. Parts of characters are not known to be any."""
        texts = (piece.decode("utf-8", "replace") for piece in self._bytes)
        return frozenset(
            token for token, text in enumerate(texts) if "\ufffd" not in text and not letters(text)
        )

    def context(self, prompt: str, keywords: Sequence[str]) -> tuple[list[int], int]:
        """The tokens before the start token, and how many did not fit: of the prompt the last are
        kept, and keywords go before it."""
        named = self.encode(", ".join(keywords) + ".") if keywords else ()
        said = self.encode(prompt)
        if self.previous is None:
            return [], len(named) + len(said)
        names = named[-PROMPT_TOKENS:]
        room = PROMPT_TOKENS - len(names)
        kept = said[max(0, len(said) - room) :]
        cut = len(named) + len(said) - len(names) - len(kept)
        return ([self.previous, *names, *kept] if names or kept else []), cut

    def _encode(self, text: str) -> tuple[int, ...]:
        """The tokens of text that is said, a space before its first word; runs of spaces and line
        breaks are one space. Names of control tokens are text like any other."""
        words = text.split()
        pieces = _pieces(" " + " ".join(words)) if words else ()
        return tuple(token for piece in pieces for token in self._joined(piece))

    def _joined(self, piece: str) -> list[int]:
        parts = [self._printable[byte] for byte in piece.encode()]
        while len(parts) > 1:
            ranks = [self._ids.get(a + b, sys.maxsize) for a, b in pairwise(parts)]
            best = min(ranks)
            if best == sys.maxsize:
                break
            at = ranks.index(best)
            parts[at : at + 2] = [parts[at] + parts[at + 1]]
        return [self._ids[part] for part in parts if part in self._ids]

    def spoken(self, tokens: Sequence[int]) -> list[int]:
        return [token for token in tokens if token < self.end]

    def decode(self, tokens: Sequence[int]) -> tuple[str, list[int]]:
        """The text of text tokens, spaces at its ends removed, and for each token how many
        characters of that text are complete after it: after one that ends inside of what belongs
        together, those before that."""
        text, ends = "", list[int]()
        decoder = _Decoder()
        for token in tokens:
            text += decoder.decode(self._bytes[token])
            ends.append(-1 if decoder.is_inside else len(text))
        for at, end in enumerate(ends):
            if end < 0 or joined(text, end):
                ends[at] = ends[at - 1] if at else 0
        leading = len(text) - len(text.lstrip())
        text = text.strip()
        return text, [min(max(0, end - leading), len(text)) for end in ends]

    def words(self, tokens: Sequence[int], language: str) -> list[WordTokens]:
        """Text tokens grouped into words, punctuation joined to the word it belongs to."""
        pieces = list[tuple[str, int]]()  # whole characters and token count, never blank
        decoder = _Decoder()
        piece, count = "", 0
        for token in tokens:
            piece += decoder.decode(self._bytes[token])
            count += 1
            if piece.strip() and not decoder.is_inside:
                pieces.append((piece, count))
                piece, count = "", 0
        if piece.strip():
            pieces.append((piece, count))
        elif pieces:
            pieces[-1] = (pieces[-1][0], pieces[-1][1] + count)

        words = list[WordTokens]()
        for piece, count in pieces:
            mark, spaced = piece.strip(), piece[0].isspace()
            if not words or _made_of(words[-1].text, _OPENING):
                begins = not words
            elif joined(words[-1].text + mark, len(words[-1].text)):
                begins = False
            elif _made_of(mark, _CLOSING) and not (spaced and _made_of(mark, _OPENING)):
                begins = False  # a quote behind a space opens
            else:
                begins = spaced or language in SPACELESS
            if begins:
                words.append(WordTokens(mark, count))
            else:
                last = words[-1]
                words[-1] = WordTokens(last.text + piece.rstrip(), last.count + count)
        return words


def _pieces(text: str) -> Iterator[str]:
    """What byte pair encoding never joins: GPT-2's pattern, for text whose only spaces are single.

    's|'t|'re|'ve|'m|'ll|'d| ?\\p{L}+| ?\\p{N}+| ?[^\\s\\p{L}\\p{N}]+
    """

    def kind(character: str) -> str:
        category = unicodedata.category(character)[0]
        return category if category in "LN" else "other"

    at = 0
    while at < len(text):
        end = at
        if contracted := next((one for one in _CONTRACTED if text.startswith(one, at)), ""):
            end += len(contracted)
        else:
            end += text[at] == " "
            first = kind(text[end])
            while end < len(text) and text[end] != " " and kind(text[end]) == first:
                end += 1
        yield text[at:end]
        at = end


def _made_of(text: str, characters: str) -> bool:
    return all(character in characters for character in text)

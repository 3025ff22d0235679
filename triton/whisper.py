"""
A batch of rows of audio -> transcripts: features, windows, grouping, decoding, scores, words.

Knows CTranslate2, not Triton. Everything that decides a row's result is in the row itself, never
in its neighbours: the window comes from the row's own length, the token limits too. What rows of
one window share is one encoder and one decoder run; languages, tasks and prefixes may be mixed
in it. Rows that fail are answered one by one, and a failure is a value, so that one bad row
never costs its neighbours their answer.
"""

import math
import time
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import ctranslate2
import numpy as np
import numpy.typing as npt

from dalston.triton import contract
from dalston.triton.features import HOP, log_mel
from dalston.triton.vocabulary import Vocabulary

# Gates of "Robust Speech Recognition via Large-Scale Weak Supervision" (Radford et al. 2022), 4.5.
NO_SPEECH = 0.6
LOW_LOGPROB = -1.0
HIGH_COMPRESSION = 2.4

# On a CPU the encoder gains nothing from more rows at once, and its memory grows with them.
ENCODER_ROWS_CPU = 4
# A decoder that loops would hold its whole batch up to the model's limit of 224 tokens. Nobody
# speaks this fast; scripts of many tokens a character come nearest.
TOKENS_PER_SECOND, TOKENS_EXTRA, TOKENS_LIMIT = 12, 16, 224
# So many repeats of the same few tokens at the end are a loop, not speech.
LOOP_REPEATS, LOOP_LONGEST = 4, 12
TOKENS_PER_WINDOW_SECOND = 50  # encoder frames, and so word times, are 20 ms


@dataclass(frozen=True)
class Row:
    audio: npt.NDArray[np.int16]
    language: str = "auto"
    task: str = "transcribe"
    prefix: Sequence[int] = ()
    words: bool = False
    full_window: bool = False


@dataclass(frozen=True)
class Word:
    text: str
    start: float  # seconds from the start of the row's audio
    end: float
    probability: float


@dataclass(frozen=True)
class Transcript:
    text: str
    tokens: list[int]
    token_ends: list[int]
    language: str
    language_probability: float
    average_logprob: float
    no_speech_probability: float
    suspect: bool
    words: list[Word] = field(default_factory=list[Word])
    stages: Sequence[float] = (0.0,) * len(contract.STAGES)  # seconds


class RowError(Exception):
    """A row that cannot be transcribed as asked: the caller's fault, said in a sentence."""


def _limit(row: Row, seconds: float) -> int:
    """The most tokens that can be spoken in so much time, with room behind the row's prefix."""
    spoken = math.ceil(TOKENS_PER_SECOND * seconds)
    return min(TOKENS_LIMIT, TOKENS_EXTRA + max(spoken, len(row.prefix)))


def compression_ratio(text: str) -> float:
    data = text.encode()
    return len(data) / len(zlib.compress(data))


def without_loop(tokens: list[int], keep: int = 0) -> list[int]:
    """The same without the repeats at its end, if there are LOOP_REPEATS or more of them.

    The first `keep` tokens stay whatever they are.
    """
    for period in range(1, min(LOOP_LONGEST, len(tokens) // LOOP_REPEATS) + 1):
        repeats = 1
        end = len(tokens)
        unit = tokens[end - period : end]
        while tokens[end - (repeats + 1) * period : end - repeats * period] == unit:
            repeats += 1
        if repeats >= LOOP_REPEATS:
            return tokens[: max(keep, end - (repeats - 1) * period)]
    return tokens


class Whisper:
    """One checkpoint in memory. Raises ValueError if `folder` holds none that can be served.

    languages: those it is any good at, of those in its vocabulary; empty for all of them.
    """

    def __init__(
        self,
        folder: Path,
        *,
        device: str = "cpu",
        device_index: int = 0,
        compute_type: str = "default",
        beam_size: int = 1,
        right_sized: bool = True,
        languages: Sequence[str] = (),
        threads: int = 1,
    ):
        self._vocabulary = Vocabulary.load(folder)
        try:
            self._model = ctranslate2.models.Whisper(
                str(folder),
                device=device,
                device_index=device_index,
                compute_type=compute_type,
                intra_threads=threads,
                inter_threads=1,
            )
        except RuntimeError as error:
            raise ValueError(f"{folder}: {error}") from error
        self._encoder_rows = ENCODER_ROWS_CPU if device == "cpu" else 1024
        self._beam_size = beam_size
        self._right_sized = right_sized
        known = self._vocabulary.languages if self._vocabulary.multilingual else ["en"]
        self.languages = [language for language in languages or known if language in known]
        if not self.languages:
            raise ValueError(f"{folder}: it knows none of {', '.join(languages)}")

    def transcribe(self, rows: Sequence[Row]) -> list[Transcript | Exception]:
        """One result for each row, in order: a Transcript, or why there is none."""
        results: list[Transcript | Exception | None] = [None] * len(rows)
        # The decoder's limit is one for a group, so rows of another limit are another group: it
        # is the window's, but for rows with a very long prefix.
        groups: dict[tuple[int, int], list[int]] = {}
        for index, row in enumerate(rows):
            try:
                window = self._window(row)
            except RowError as error:
                results[index] = error
            else:
                groups.setdefault((window, _limit(row, window)), []).append(index)
        for (window, limit), indexes in sorted(groups.items()):
            for index, result in zip(
                indexes, self._group([rows[index] for index in indexes], window, limit), strict=True
            ):
                results[index] = result
        return [result for result in results if result is not None]

    def _window(self, row: Row) -> int:
        """Check the row; the seconds of its window."""
        if row.task not in self._vocabulary.tasks:
            raise RowError(f"unknown task {row.task!r}")
        if row.language != "auto" and row.language not in self.languages:
            raise RowError(f"this model does not know the language {row.language!r}")
        if any(not 0 <= token < self._vocabulary.end for token in row.prefix):
            raise RowError("the prefix holds tokens that are no text")
        if len(row.prefix) >= TOKENS_LIMIT:
            raise RowError(f"a prefix of {len(row.prefix)} tokens, {TOKENS_LIMIT - 1} at most")
        if len(row.audio) > contract.LONGEST_AUDIO:
            raise RowError(f"{len(row.audio) / contract.SAMPLE_RATE:.2f} s of audio, 30 s at most")
        if row.full_window or not self._right_sized:
            return contract.WINDOWS[-1]
        return contract.window_seconds(len(row.audio))

    def _group(self, rows: list[Row], window: int, limit: int) -> list[Transcript | Exception]:
        try:
            return list(self._decode(rows, window, limit))
        except Exception as error:  # whatever it is, the rows that can be answered are
            if len(rows) == 1:
                return [error]
            return [result for row in rows for result in self._group([row], window, limit)]

    def _decode(self, rows: list[Row], window: int, limit: int) -> list[Transcript]:
        frames = window * contract.SAMPLE_RATE // HOP
        clock = [time.perf_counter()]
        features = [log_mel(row.audio, frames, self._model.n_mels) for row in rows]
        clock.append(time.perf_counter())
        encoded = self._encode(features)
        clock.append(time.perf_counter())
        languages = self._languages(rows, encoded)
        prompts = [
            self._vocabulary.prompt(language, row.task)
            for row, (language, _) in zip(rows, languages, strict=True)
        ]
        decoded = self._model.generate(
            encoded,
            [prompt + list(row.prefix) for prompt, row in zip(prompts, rows, strict=True)],
            beam_size=self._beam_size,
            # CTranslate2 gives at most half of max_length tokens, the forced prefix included.
            max_length=2 * limit,
            return_scores=True,
            return_no_speech_prob=True,
        )
        transcripts = [
            self._transcript(row, window, limit, language, sureness, result)
            for row, (language, sureness), result in zip(rows, languages, decoded, strict=True)
        ]
        clock.append(time.perf_counter())
        transcripts = self._with_words(rows, transcripts, prompts, encoded)
        clock.append(time.perf_counter())
        stages = [later - earlier for earlier, later in pairwise(clock)]
        return [replace(transcript, stages=stages) for transcript in transcripts]

    def _encode(self, features: list[npt.NDArray[np.float32]]) -> Any:
        parts: list[Any] = [
            self._model.encode(
                ctranslate2.StorageView.from_array(
                    np.stack(features[first : first + self._encoder_rows])
                )
            )
            for first in range(0, len(features), self._encoder_rows)
        ]
        if len(parts) == 1:
            return parts[0]
        return ctranslate2.StorageView.from_array(np.concatenate([np.asarray(p) for p in parts]))

    def _languages(self, rows: list[Row], encoded: Any) -> list[tuple[str, float]]:
        """The language of each row and its probability, 1 where it was given."""
        if not self._vocabulary.multilingual:
            return [("en", 1.0)] * len(rows)
        if all(row.language != "auto" for row in rows):
            return [(row.language, 1.0) for row in rows]
        languages = list[tuple[str, float]]()
        for row, found in zip(rows, self._model.detect_language(encoded), strict=True):
            likely = ((token[2:-2], probability) for token, probability in found)
            best = next((pair for pair in likely if pair[0] in self.languages), ("", 0.0))
            languages.append(best if row.language == "auto" else (row.language, 1.0))
        return languages

    def _transcript(
        self, row: Row, window: int, limit: int, language: str, sureness: float, result: Any
    ) -> Transcript:
        sequence: list[int] = result.sequences_ids[0]
        no_speech: float = result.no_speech_prob
        # The score is the sum over the new tokens and the end, divided by all but the end; that
        # of the empty sequence is minus infinity.
        new, ended = len(sequence) - len(row.prefix), len(sequence) < limit
        average = result.scores[0] * len(sequence) / (new + ended) if sequence else 0.0
        # The audio may end long before its window, and nobody says more than fits into it.
        most = _limit(row, len(row.audio) / contract.SAMPLE_RATE)
        endless = len(sequence) >= most
        tokens = self._vocabulary.spoken(sequence[:most])
        text, ends = self._vocabulary.decode(tokens)
        repetitive = compression_ratio(text) > HIGH_COMPRESSION
        unsure = average < LOW_LOGPROB
        silent = unsure and no_speech > NO_SPEECH and not row.prefix
        if silent:
            tokens = []
        elif repetitive or endless:
            tokens = without_loop(tokens, keep=len(row.prefix))
        if len(tokens) != len(ends):
            text, ends = self._vocabulary.decode(tokens)
        return Transcript(
            text=text,
            tokens=tokens,
            token_ends=ends,
            language=language,
            language_probability=sureness,
            average_logprob=average,
            no_speech_probability=no_speech,
            # A window of 30 s is the last resort: there is nothing better to try behind it. And
            # silence is what it is in any window.
            suspect=(repetitive or endless or unsure)
            and not silent
            and window < contract.WINDOWS[-1],
        )

    def _with_words(
        self,
        rows: list[Row],
        transcripts: list[Transcript],
        prompts: list[list[int]],
        encoded: Any,
    ) -> list[Transcript]:
        """Word times for the rows that want them, by dynamic time warping over the alignment
        heads (openai-whisper's timing.py). One call can align one prompt only."""
        wanted: dict[tuple[int, ...], list[int]] = {}
        for index, (row, transcript) in enumerate(zip(rows, transcripts, strict=True)):
            if row.words and transcript.tokens:
                wanted.setdefault(tuple(prompts[index]), []).append(index)
        for prompt, indexes in wanted.items():
            part = encoded
            if len(indexes) < len(rows):
                values = np.asarray(encoded.to_device(ctranslate2.Device.cpu))
                part = ctranslate2.StorageView.from_array(values[indexes])
            aligned = self._model.align(
                part,
                list(prompt),
                [transcripts[index].tokens for index in indexes],
                # Frames of features; it needs at least one of the encoder's, which are two.
                [max(2, math.ceil(len(rows[index].audio) / HOP)) for index in indexes],
            )
            for index, alignment in zip(indexes, aligned, strict=True):
                words = self._words(rows[index], transcripts[index], alignment)
                transcripts[index] = replace(transcripts[index], words=words)
        return transcripts

    def _words(self, row: Row, transcript: Transcript, alignment: Any) -> list[Word]:
        steps, times = np.array(alignment.alignments, np.int64).T
        begins = np.diff(steps, prepend=-1) > 0
        # Seconds at which each token begins; the last is where the end token does.
        starts: list[float] = (times[begins] / TOKENS_PER_WINDOW_SECOND).tolist()
        duration = len(row.audio) / contract.SAMPLE_RATE
        words, token = list[Word](), 0
        for word in self._vocabulary.words(transcript.tokens, transcript.language):
            behind = token + word.count
            start = min(starts[token], duration)
            end = min(starts[behind] if behind < len(starts) else duration, duration)
            probabilities: list[float] = alignment.text_token_probs[token:behind]
            probability = sum(probabilities) / len(probabilities)
            words.append(Word(word.text, start, max(start, end), probability))
            token = behind
        return shortened(words)


def shortened(words: list[Word]) -> list[Word]:
    """The first word takes the silence before it and the last the silence behind: neither may be
    longer than twice the usual word (the rule of openai-whisper for sentence boundaries)."""
    if len(words) < 2:
        return words
    longest = 2 * min(0.7, float(np.median([word.end - word.start for word in words])))
    first, last = words[0], words[-1]
    if first.end - first.start > longest:
        words = [Word(first.text, first.end - longest, first.end, first.probability), *words[1:]]
    if last.end - last.start > longest:
        words = [*words[:-1], Word(last.text, last.start, last.start + longest, last.probability)]
    return words

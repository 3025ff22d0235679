"""
A batch of rows of audio -> transcripts: features, windows, grouping, decoding, scores, words.

Knows the runtimes, not Triton. Everything that decides a row's result is in the row itself, never
in its neighbours: the window comes from the row's own length, the token limits too; a draft
changes what a row costs, and never what a row says that has no prefix. Rows that share a run may be
of any languages, tasks and prefixes; those whose prompts differ much in length do not, for the
shorter would cost as much as the longest. Rows that fail are answered one by one,
and a failure is a value, so that one bad row never costs its neighbours their answer.

Two runtimes: on a CPU, without beams, greedy.py; else CTranslate2, which also aligns words. A
checkpoint may be adapted to right-sized windows (triton/adaptation): then those are decoded with
the adapted weights, and full windows with the untouched ones, by CTranslate2.
"""

import json
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import ctranslate2
import numpy as np
import numpy.typing as npt

from dalston.triton import contract, repeats
from dalston.triton.features import HOP, log_mel
from dalston.triton.greedy import FRAMES_PER_SECOND, Controls, Encoded, Greedy, Task
from dalston.triton.vocabulary import Vocabulary
from dalston.triton.word_times import Word, moved_to_sound, pauses, shortened, token_starts

# Gates of "Robust Speech Recognition via Large-Scale Weak Supervision" (Radford et al. 2022), 4.5.
NO_SPEECH = 0.6
LOW_LOGPROB = -1.0
HIGH_COMPRESSION = 2.4
# A right-sized window is doubted sooner: by this average, by words that come again in the same
# order, by this share of the most tokens that people say (bench/windows.py). Not by the first two
# where weights are adapted to it: of 121 pieces of speech they doubted 6, and the full window made
# three more words wrong (docs/log.md).
DOUBTFUL_LOGPROB = -0.7
DOUBTFUL_SHARE, DOUBTFUL_EXTRA = 2 / 3, 6

# A language is taken for detected in any window when it is as likely as this.
SURE_LANGUAGE = 0.8

# On a CPU the encoder gains nothing from more rows at once, and its memory grows with them.
ENCODER_ROWS_CPU = 4
# More in one run of the own decoder gain next to nothing, and wait for each other.
GREEDY_ROWS = 8
# Of every Whisper's decoder, for prompt and text together; of the prompt so many are controls.
POSITIONS, PROMPT_CONTROLS = 448, 4
# A decoder that loops would hold its whole batch up to the model's limit. Nobody speaks this fast.
TOKENS_PER_SECOND, TOKENS_EXTRA, TOKENS_LIMIT = 12, 16, 224
# The same of contract.MANY_TOKENS: half a minute does not fit into the decoder's positions then, of
# which alignment takes two more.
MANY_PER_SECOND, MANY_LIMIT = 60, POSITIONS - PROMPT_CONTROLS - 2
# Rows whose prompts differ by more tokens than this do not share a run of the own decoder.
PROMPT_STEP = 64


@dataclass(frozen=True)
class Row:
    audio: npt.NDArray[np.int16]
    language: str = "auto"  # or a code, or several with spaces between them
    task: str = "transcribe"
    prompt: str = ""
    keywords: Sequence[str] = ()
    prefix: Sequence[int] = ()
    draft: Sequence[int] = ()  # what probably follows the prefix: it costs less if that is right
    words: bool = False
    full_window: bool = False


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
    token_times: list[float] = field(default_factory=list[float])  # see contract.py
    token_logprobs: list[float] = field(default_factory=list[float])  # likewise
    window_seconds: float = 0.0  # of audio and zeros, that the encoder saw
    prompt_cut: int = 0  # tokens of prompt and keywords that did not fit
    words: list[Word] = field(default_factory=list[Word])
    stages: Sequence[float] = field(default=(0.0,) * len(contract.STAGES), compare=False)  # seconds


@dataclass(frozen=True)
class _Answer:
    """What a runtime says of a row."""

    tokens: list[int]  # the prefix first; without the end
    logprob: float  # the sum over the new tokens, and the end if there is one
    ended: bool  # by itself, not by the limit
    no_speech: float
    language: str
    sureness: float  # of the language; 1 where it was given
    frames: list[int] = field(default_factory=list[int])  # attended by each token, if it is known
    rewound: bool = False  # it was about to say all again
    logprobs: list[float] = field(default_factory=list[float])  # of each new token, if known


class RowError(Exception):
    """A row that cannot be transcribed as asked: the caller's fault, said in a sentence."""


def _rate(row: Row, language: str = "") -> tuple[int, int]:
    """The most tokens a second and in all, in the language that was detected or may be."""
    codes = [language] if language else _among(row.language)
    if row.task == "transcribe" and (not codes or contract.MANY_TOKENS & set(codes)):
        return MANY_PER_SECOND, MANY_LIMIT
    return TOKENS_PER_SECOND, TOKENS_LIMIT


def _limit(row: Row, seconds: float, language: str = "") -> int:
    """The most tokens that can be spoken in so much time, with room after the row's prefix."""
    rate, most = _rate(row, language)
    return min(most, TOKENS_EXTRA + max(math.ceil(rate * seconds), len(row.prefix)))


def _spoken_in(row: Row, window: int) -> int:
    """Seconds, by which a row's tokens are limited: the window, so that it shares a run
    with others; of a second try, which may loop, not much more than the audio."""
    return contract.window_seconds(len(row.audio)) if row.full_window else window


def _among(language: str) -> list[str]:
    """The codes to choose from; none: from all."""
    return [] if language == "auto" else language.split(" ")


def _likeliest(found: list[tuple[str, float]], allowed: Sequence[str]) -> tuple[str, float]:
    """Of tokens of languages, likely ones first, the first that is allowed, and its probability."""
    likely = ((token[2:-2], probability) for token, probability in found)
    return next((pair for pair in likely if pair[0] in allowed), ("", 0.0))


# Of a checkpoint's folder: its adapted weights, or the graphs that were made of them.
ADAPTED = "adapted"


class Whisper:
    """One checkpoint in memory. Raises ValueError if `folder` holds none that can be served.

    languages: those it is any good at, of those in its vocabulary; empty for all of them.
    shortest_window and margin, in seconds: of the windows, if they may be right-sized.
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
        shortest_window: int = contract.WINDOWS[0],
        margin: float = contract.MARGIN,
        languages: Sequence[str] = (),
        threads: int = 1,
    ):
        def load(path: Path) -> Any:
            try:
                return ctranslate2.models.Whisper(
                    str(path),
                    device=device,
                    device_index=device_index,
                    compute_type=compute_type,
                    intra_threads=threads,
                    inter_threads=1,
                )
            except RuntimeError as error:
                raise ValueError(f"{path}: {error}") from error

        self._vocabulary = Vocabulary.load(folder)
        self._model = load(folder)
        adapted = folder / ADAPTED
        self._adapted = adapted.is_dir()
        graphs = adapted if self._adapted else folder
        self._greedy, self._short = None, self._model
        if device == "cpu" and beam_size == 1 and Greedy.is_in(graphs):
            self._greedy = Greedy(graphs, self._controls(folder), threads)
        elif self._adapted:
            self._short = load(adapted)
        self._encoder_rows = ENCODER_ROWS_CPU if device == "cpu" else 1024
        self._beam_size = beam_size
        self._right_sized = right_sized
        self._shortest_window = shortest_window
        self._margin = margin
        known = self._vocabulary.languages if self._vocabulary.multilingual else ["en"]
        self.languages = [language for language in languages or known if language in known]
        if not self.languages:
            raise ValueError(f"{folder}: it knows none of {', '.join(languages)}")

    def _controls(self, folder: Path) -> Controls:
        config = json.loads((folder / "config.json").read_text("utf-8"))
        return Controls(
            end=self._vocabulary.end,
            no_speech=self._vocabulary.no_timestamps - 1,
            suppressed=config.get("suppress_ids") or (),
            suppressed_first=config.get("suppress_ids_begin") or (),
            marks=self._vocabulary.marks(),
            guarded=not self._adapted,
        )

    def transcribe(self, rows: Sequence[Row]) -> list[Transcript | Exception]:
        """One result for each row, in order: a Transcript, or why there is none."""
        results: list[Transcript | Exception | None] = [None] * len(rows)
        windows = dict[int, int]()
        for index, row in enumerate(rows):
            try:
                windows[index] = self._window(row)
            except RowError as error:
                results[index] = error
        for indexes in self._runs(rows, windows):
            part, seconds = [rows[i] for i in indexes], [windows[i] for i in indexes]
            for index, result in zip(indexes, self._run(part, seconds), strict=True):
                results[index] = result
        return [result for result in results if result is not None]

    def _runs(self, rows: Sequence[Row], windows: dict[int, int]) -> list[list[int]]:
        """Rows that one run can answer."""
        groups: dict[tuple[int, ...], list[int]] = {}
        for index in sorted(windows, key=windows.__getitem__):
            row, window = rows[index], windows[index]
            before = len(self._context(row))
            if self._greedy_for(window):
                # Any can; the cross attention looks at the longest window of a run.
                key = (-(-before // PROMPT_STEP),)
            else:
                # The decoder's limit and the place where transcripts start are one for a run, so
                # rows of others are in another. The limit is the window's, but for rows with a
                # very long prefix.
                key = (window, self._limit(row, _spoken_in(row, window)), before)
            groups.setdefault(key, []).append(index)
        return [
            group[at : at + most]
            for key, group in groups.items()
            for most in [GREEDY_ROWS if len(key) == 1 else len(group)]
            for at in range(0, len(group), most)
        ]

    def _greedy_for(self, window: int) -> Greedy | None:
        """The own decoder, if it is the one for windows of so many seconds."""
        return None if self._adapted and window == contract.WINDOWS[-1] else self._greedy

    def _model_for(self, window: int) -> Any:
        """CTranslate2's likewise."""
        return self._model if window == contract.WINDOWS[-1] else self._short

    def _context(self, row: Row) -> list[int]:
        """What stands before the start of the row's transcript."""
        return self._vocabulary.context(row.prompt, row.keywords)[0]

    def _limit(self, row: Row, seconds: float, language: str = "") -> int:
        """Tokens; the prefix among them."""
        room = POSITIONS - len(self._context(row)) - PROMPT_CONTROLS
        limit = min(_limit(row, seconds, language), room)
        # A prefix that was taken when the language was not known yet is not cut.
        return max(limit, len(row.prefix) + 1) if language else limit

    def _window(self, row: Row) -> int:
        """Check the row; the seconds of its window."""
        if row.task not in self._vocabulary.tasks:
            raise RowError(f"unknown task {row.task!r}")
        if row.task != "transcribe" and not self._vocabulary.multilingual:
            raise RowError("this model knows only English: it cannot translate")
        for language in _among(row.language):
            if language not in self.languages:
                raise RowError(f"this model does not know the language {language!r}")
        if any(not 0 <= token < self._vocabulary.end for token in row.prefix):
            raise RowError("the prefix holds tokens that are no text")
        if any(not 0 <= token < self._vocabulary.end for token in row.draft):
            raise RowError("the draft holds tokens that are no text")
        most = self._limit(row, contract.WINDOWS[-1]) - 1
        if len(row.prefix) > most:
            raise RowError(f"a prefix of {len(row.prefix)} tokens, {most} at most")
        if len(row.audio) > contract.LONGEST_AUDIO:
            raise RowError(f"{len(row.audio) / contract.SAMPLE_RATE:.2f} s of audio, 30 s at most")
        if row.full_window or not self._right_sized:
            return contract.WINDOWS[-1]
        return contract.window_seconds(len(row.audio), self._shortest_window, self._margin)

    def _run(self, rows: list[Row], windows: list[int]) -> list[Transcript | Exception]:
        try:
            return list(self._decode(rows, windows))
        except Exception as error:  # whatever it is, the rows that can be answered are
            if len(rows) == 1:
                return [error]
            return [
                result
                for row, window in zip(rows, windows, strict=True)
                for result in self._run([row], [window])
            ]

    def _decode(self, rows: list[Row], windows: list[int]) -> list[Transcript]:
        clock = [time.perf_counter()]
        features = [
            log_mel(row.audio, window * contract.SAMPLE_RATE // HOP, self._model.n_mels)
            for row, window in zip(rows, windows, strict=True)
        ]
        clock.append(time.perf_counter())
        if greedy := self._greedy_for(windows[0]):
            encoded = [greedy.encode(one) for one in features]
            clock.append(time.perf_counter())
            answers = self._greedily(greedy, rows, encoded, windows)

            def encoded_of(indexes: list[int]) -> Any:
                rows_of = np.stack([encoded[index].encoded for index in indexes])
                return ctranslate2.StorageView.from_array(rows_of)
        else:
            model = self._model_for(windows[0])
            encoded = self._encode(model, features)
            clock.append(time.perf_counter())
            answers = self._beams(model, rows, encoded, windows[0])

            def encoded_of(indexes: list[int]) -> Any:
                if len(indexes) == len(rows):
                    return encoded
                values = np.asarray(encoded.to_device(ctranslate2.Device.cpu))
                return ctranslate2.StorageView.from_array(values[indexes])

        transcripts = [
            self._transcript(row, window, answer)
            for row, window, answer in zip(rows, windows, answers, strict=True)
        ]
        clock.append(time.perf_counter())
        transcripts = self._with_words(rows, windows, transcripts, encoded_of)
        clock.append(time.perf_counter())
        stages = [later - earlier for earlier, later in pairwise(clock)]
        return [replace(transcript, stages=stages) for transcript in transcripts]

    def _greedily(
        self, greedy: Greedy, rows: list[Row], encoded: list[Encoded], windows: list[int]
    ) -> list[_Answer]:
        def detect(index: int) -> list[tuple[str, float]]:
            return self._encoded_languages(greedy, encoded[index])

        def detect_anew(features: npt.NDArray[np.float32]) -> list[tuple[str, float]]:
            return self._encoded_languages(greedy, greedy.encode(features))

        languages = self._languages(rows, windows, detect, detect_anew)
        tasks = list[Task]()
        for row, one, window, (language, _) in zip(rows, encoded, windows, languages, strict=True):
            limit = self._limit(row, _spoken_in(row, window), language)
            before = self._context(row)
            prompt = before + self._vocabulary.prompt(language, row.task)
            spoken = math.ceil(len(row.audio) / contract.SAMPLE_RATE * FRAMES_PER_SECOND)
            start = len(before)
            tasks.append(Task(one, prompt, limit, spoken, row.prefix, row.draft, start=start))
        return [
            _Answer(
                found.tokens,
                found.logprob,
                found.ended,
                found.no_speech,
                language,
                sureness,
                found.frames,
                found.rewound,
                found.logprobs,
            )
            for found, (language, sureness) in zip(greedy.decode(tasks), languages, strict=True)
        ]

    def _beams(self, model: Any, rows: list[Row], encoded: Any, window: int) -> list[_Answer]:
        limit = self._limit(rows[0], _spoken_in(rows[0], window))
        found = list[list[tuple[str, float]]]()

        def detect(index: int) -> list[tuple[str, float]]:
            found.extend(() if found else model.detect_language(encoded))
            return found[index]

        def detect_anew(features: npt.NDArray[np.float32]) -> list[tuple[str, float]]:
            return model.detect_language(self._encode(model, [features]))[0]

        languages = self._languages(rows, [window] * len(rows), detect, detect_anew)
        prompts = [
            [*self._context(row), *self._vocabulary.prompt(language, row.task)]
            for row, (language, _) in zip(rows, languages, strict=True)
        ]
        decoded = model.generate(
            encoded,
            [[*prompt, *row.prefix] for prompt, row in zip(prompts, rows, strict=True)],
            beam_size=self._beam_size,
            # CTranslate2 gives at most half of max_length tokens, the forced prefix included, and
            # no more than are left behind the prompt.
            max_length=limit + max(limit, len(prompts[0])),
            return_scores=True,
            return_no_speech_prob=True,
        )
        answers = list[_Answer]()
        for result, (language, sureness) in zip(decoded, languages, strict=True):
            tokens: list[int] = result.sequences_ids[0]
            # The score is the sum over the new tokens and the end, divided by all but the end;
            # that of the empty sequence is minus infinity.
            logprob = result.scores[0] * len(tokens) if tokens else 0.0
            ended = len(tokens) < limit
            no_speech: float = result.no_speech_prob
            answers.append(_Answer(tokens, logprob, ended, no_speech, language, sureness))
        return answers

    def _encode(self, model: Any, features: list[npt.NDArray[np.float32]]) -> Any:
        parts: list[Any] = [
            model.encode(
                ctranslate2.StorageView.from_array(
                    np.stack(features[first : first + self._encoder_rows])
                )
            )
            for first in range(0, len(features), self._encoder_rows)
        ]
        if len(parts) == 1:
            return parts[0]
        return ctranslate2.StorageView.from_array(np.concatenate([np.asarray(p) for p in parts]))

    def _languages(
        self,
        rows: list[Row],
        windows: list[int],
        detect: Callable[[int], list[tuple[str, float]]],
        detect_anew: Callable[[npt.NDArray[np.float32]], list[tuple[str, float]]],
    ) -> list[tuple[str, float]]:
        """The language of each row and its probability, 1 where it was given.

        detect, detect_anew: for the row of an index, or for features, tokens of languages with
        their probabilities, likely ones first.
        """
        if not self._vocabulary.multilingual:
            return [("en", 1.0)] * len(rows)
        languages = [(row.language, 1.0) for row in rows]
        for index, row in enumerate(rows):
            among = _among(row.language)
            if len(among) == 1:
                continue
            language = _likeliest(detect(index), among or self.languages)
            if language[1] < SURE_LANGUAGE and windows[index] < contract.DETECTION_WINDOW:
                frames = contract.DETECTION_WINDOW * contract.SAMPLE_RATE // HOP
                longer = detect_anew(log_mel(row.audio, frames, self._model.n_mels))
                language = _likeliest(longer, among or self.languages)
            languages[index] = language
        return languages

    def _encoded_languages(self, greedy: Greedy, encoded: Encoded) -> list[tuple[str, float]]:
        """As CTranslate2's detect_language tells them."""
        names = [f"<|{code}|>" for code in self._vocabulary.languages]
        ids = list(self._vocabulary.languages.values())
        logprobs = greedy.first_logprobs(encoded, self._vocabulary.start)[ids]
        odds = np.exp(logprobs - logprobs.max())
        probabilities = odds / odds.sum()
        return [(names[at], float(probabilities[at])) for at in (-probabilities).argsort()]

    def _transcript(self, row: Row, window: int, answer: _Answer) -> Transcript:
        sequence = answer.tokens
        new = len(sequence) - len(row.prefix)
        average = answer.logprob / max(1, new + answer.ended) if sequence else 0.0
        # The audio may end long before its window, and nobody says more than fits into it.
        seconds = len(row.audio) / contract.SAMPLE_RATE
        most = self._limit(row, seconds, answer.language)
        endless = len(sequence) >= most
        tokens = self._vocabulary.spoken(sequence[:most])
        times = [
            min(frame / FRAMES_PER_SECOND, seconds)
            for frame, token in zip(answer.frames, sequence[:most], strict=False)
            if token < self._vocabulary.end
        ]
        chances = [0.0] * len(row.prefix) + answer.logprobs if answer.logprobs else []
        logprobs = [
            chance
            for chance, token in zip(chances, sequence[:most], strict=False)
            if token < self._vocabulary.end
        ]
        text, ends = self._vocabulary.decode(tokens)
        repetitive = repeats.compression_ratio(text) > HIGH_COMPRESSION
        unsure = average < LOW_LOGPROB
        silent = unsure and answer.no_speech > NO_SPEECH and not row.prefix
        if silent:
            tokens = []
        elif repetitive or endless:
            heard = self._heard(row, answer, tokens, times, average)
            tokens = repeats.without_loop(tokens, keep=len(row.prefix), heard=heard)
        if len(tokens) != len(ends):
            text, ends = self._vocabulary.decode(tokens)
        doubtful = (
            repetitive
            or endless
            or answer.rewound
            or len(sequence)
            > DOUBTFUL_SHARE * _rate(row, answer.language)[0] * seconds + DOUBTFUL_EXTRA
        )
        if not self._adapted:
            doubtful = doubtful or average < DOUBTFUL_LOGPROB or repeats.repeats_itself(text)
        return Transcript(
            text=text,
            tokens=tokens,
            token_ends=ends,
            language=answer.language,
            language_probability=answer.sureness,
            average_logprob=average,
            no_speech_probability=answer.no_speech,
            token_times=times[: len(tokens)],
            token_logprobs=logprobs[: len(tokens)],
            # A window of 30 s is the last resort: there is nothing better to try behind it. And
            # silence is what it is in any window.
            suspect=doubtful and not silent and window < contract.WINDOWS[-1],
            window_seconds=window,
            prompt_cut=self._vocabulary.context(row.prompt, row.keywords)[1],
        )

    def _heard(
        self, row: Row, answer: _Answer, tokens: list[int], times: list[float], average: float
    ) -> int:
        """How many of the repeats at the end of the tokens were said, by what there is to judge by:
        the sound, the decoder's attention, or else that it was sure and stopped by itself."""
        period, count = repeats.loop(tokens)
        if not period:
            return 1
        if times:
            return max(
                repeats.attended(times[: len(tokens)], period, count), repeats.sounded(row.audio)
            )
        sure = answer.ended and average > DOUBTFUL_LOGPROB and answer.no_speech < NO_SPEECH
        return count if sure else repeats.sounded(row.audio)

    def _with_words(
        self,
        rows: list[Row],
        windows: list[int],
        transcripts: list[Transcript],
        encoded_of: Callable[[list[int]], Any],
    ) -> list[Transcript]:
        """Word times for the rows that want them, by dynamic time warping over the alignment
        heads (openai-whisper's timing.py). One call can align one window and one prompt only."""
        wanted: dict[tuple[int, ...], list[int]] = {}
        for index, (row, transcript) in enumerate(zip(rows, transcripts, strict=True)):
            if row.words and transcript.tokens:
                prompt = self._vocabulary.prompt(transcript.language, row.task)
                wanted.setdefault((windows[index], *prompt), []).append(index)
        for (window, *prompt), indexes in wanted.items():
            aligned = self._model_for(window).align(
                encoded_of(indexes),
                prompt,
                [transcripts[index].tokens for index in indexes],
                # Frames of features; it needs at least one of the encoder's, which are two.
                [max(2, math.ceil(len(rows[index].audio) / HOP)) for index in indexes],
            )
            for index, alignment in zip(indexes, aligned, strict=True):
                seconds = len(rows[index].audio) / contract.SAMPLE_RATE
                starts = token_starts(alignment, seconds)
                words = self._words(rows[index], transcripts[index], alignment, starts)
                times = transcripts[index].token_times or starts[: len(transcripts[index].tokens)]
                chances = (
                    transcripts[index].token_logprobs
                    or [
                        math.log(max(probability, 1e-30))
                        for probability in alignment.text_token_probs
                    ][: len(transcripts[index].tokens)]
                )
                transcripts[index] = replace(
                    transcripts[index], words=words, token_times=times, token_logprobs=chances
                )
        return transcripts

    def _words(
        self, row: Row, transcript: Transcript, alignment: Any, starts: Sequence[float]
    ) -> list[Word]:
        duration = len(row.audio) / contract.SAMPLE_RATE
        words, token = list[Word](), 0
        language = "en" if row.task == "translate" else transcript.language  # of the text
        for word in self._vocabulary.words(transcript.tokens, language):
            behind = token + word.count
            start = starts[token]
            end = starts[behind] if behind < len(starts) else duration
            probabilities: list[float] = alignment.text_token_probs[token:behind]
            probability = sum(probabilities) / len(probabilities)
            words.append(Word(word.text, start, max(start, end), probability))
            token = behind
        silent = pauses(row.audio)
        return shortened(moved_to_sound(words, silent, duration), silent)

"""
What right-sized windows cost in accuracy and save in time, without a server.

    python bench/windows.py BUILT_MODEL_REPOSITORY
    python bench/windows.py BUILT_MODEL_REPOSITORY --corpus FOLDER

With a corpus (bench/corpus.py says what that is): whether the checkpoint's finals in right-sized
windows are as good as in full ones, for several floors of the window and margins of silence, and
what the encoder is spared. A final whose scores look bad is decoded again in a full window, as when
it is served. The cheapest that are as good are printed for the manifest (triton/models.toml), or
for the dalston.json of a folder: English within 0.3 points of full windows, the other languages
together within one, and nothing said twice that full windows say once.

Without: the demo checkpoint. Utterances are sentences of the sample recordings, and several in a
row, a fifth of a second apart, at times of several voices. Finals: the whole utterance. Partials:
its beginnings, half a second apart or an eighth of it; nobody knows which word is said by when, so
the errors of a partial are those against the beginning of the text that fits it best, and nothing
is forced. A right-sized
final whose scores look bad is decoded again in a full window, as when it is served; how many are,
is told. Prints a Markdown table, and one JSON object last.
"""

import argparse
import itertools
import json
import sys
import time
from bisect import bisect
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import corpus
import machine
import numpy as np
import scoring
from google.protobuf import text_format
from recordings import Pcm, recordings
from tritonclient.grpc import model_config_pb2

from dalston.triton.contract import MARGIN, SAMPLE_RATE, WINDOWS, whisper_model, window_seconds
from dalston.triton.whisper import Row, Transcript, Whisper

LENGTHS = (0, 2, 4, 8, 16, 28)  # seconds: the bounds of the table's rows
GAP = np.zeros(SAMPLE_RATE // 5, np.int16)
STEP = SAMPLE_RATE // 2
BATCH = 4
# Of corpora: what is tried, and how much worse than full windows is as good.
SHORTEST, MARGINS = (4, 8, 12), (MARGIN, 1.0, 2.0)  # seconds
WORSE_ENGLISH, WORSE_OTHERS = 0.003, 0.01  # of all words
LONGEST_S = 29.0


@dataclass(frozen=True)
class Utterance:
    audio: Pcm
    text: str

    @property
    def seconds(self) -> float:
        return len(self.audio) / SAMPLE_RATE


@dataclass(frozen=True)
class Column:
    """What one kind of window made of the utterances of one row."""

    final_wer: float
    partial_wer: float
    core_ms: float  # of a request, finals and partials
    again: int  # finals decoded again in a full window


def utterances() -> list[Utterance]:
    """From every sentence on as many as one window holds, if need be of the next voice."""
    sentences = [
        (recording.cut(sentence), sentence.text)
        for recording in recordings()
        for sentence in recording.sentences
    ]
    found = list[Utterance]()
    for first in range(len(sentences)):
        audio, texts, kept = np.zeros(0, np.int16), list[str](), set[int]()
        for cut, text in sentences[first:]:
            audio = np.concatenate([audio, GAP, cut]) if texts else cut
            texts.append(text)
            row = bisect(LENGTHS, len(audio) / SAMPLE_RATE)
            if row == len(LENGTHS):
                break
            if row not in kept:  # one of each length is enough
                kept.add(row)
                found.append(Utterance(audio, " ".join(texts)))
    return found


def errors_of_partial(text: str, heard: str) -> tuple[int, int]:
    """Against the beginning of `text` that fits best, and how many words that has."""
    said, words = text.split(), heard.split()
    return min((scoring.errors(said[:count], words), count) for count in range(len(said) + 1))


def column(model: Whisper, row: Sequence[Utterance], full: bool) -> Column:
    used = -time.process_time()
    audio = [utterance.audio for utterance in row]
    heard = _transcribed(model, audio, full)
    again = [index for index, result in enumerate(heard) if result.suspect]
    for index, better in zip(
        again, _transcribed(model, [audio[i] for i in again], True), strict=True
    ):
        heard[index] = better
    partials = [
        (utterance.text, utterance.audio[:end])
        for utterance in row
        for end in range(STEP, len(utterance.audio), max(STEP, len(utterance.audio) // 8))
    ]
    shown = _transcribed(model, [audio for _, audio in partials], full)
    used += time.process_time()
    wrong = [
        errors_of_partial(text, result.text)
        for (text, _), result in zip(partials, shown, strict=True)
    ]
    return Column(
        scoring.wer([(u.text, result.text) for u, result in zip(row, heard, strict=True)]),
        sum(errors for errors, _ in wrong) / max(1, sum(words for _, words in wrong)),
        1000 * used / (len(row) + len(partials)),
        len(again),
    )


def _transcribed(model: Whisper, audio: Sequence[Pcm], full: bool) -> list[Transcript]:
    found = list[Transcript]()
    for at in range(0, len(audio), BATCH):
        rows = [Row(pcm, language="en", full_window=full) for pcm in audio[at : at + BATCH]]
        for result in model.transcribe(rows):
            assert isinstance(result, Transcript), result
            found.append(result)
        print(f"\r{at + len(rows)} of {len(audio)}  ", end="", file=sys.stderr)
    return found


@dataclass(frozen=True)
class Result:
    """What windows of one kind made of a corpus."""

    shortest: int  # seconds, as the margin
    margin: float
    english: float  # word error rates
    others: float
    first: float  # of all before anything was decoded again: what partials show
    twice: int  # utterances
    again: int
    encoder_s: int

    def as_good_as(self, full: "Result") -> bool:
        return (
            self.english <= full.english + WORSE_ENGLISH
            and self.others <= full.others + WORSE_OTHERS
            and self.twice <= full.twice
        )

    def manifest(self, folder: Path, full: "Result") -> dict[str, Any]:
        return {
            "windows": "right-sized",
            "shortest_window": self.shortest,
            "margin": self.margin,
            "proven": f"python bench/windows.py BUILT --corpus {folder.name}: "
            f"WER {self.english:.1%}"
            f" ({full.english:.1%} in full windows), others {self.others:.1%} ({full.others:.1%}),"
            f" {self.encoder_s / full.encoder_s:.0%} of the encoder's seconds",
        }


class Served:
    """A checkpoint as a built repository serves it, in windows of any kind."""

    def __init__(self, repository: Path, variant: str):
        folder = repository / whisper_model(variant)
        config = text_format.Parse(
            (folder / "config.pbtxt").read_text("utf-8"), model_config_pb2.ModelConfig()
        )
        self._folder = folder / "1" / "checkpoint"
        self._compute_type = config.parameters["compute_type"].string_value
        self._beam_size = int(config.parameters["beam_size"].string_value)
        windows = config.parameters["windows"].string_value
        self._right_sized = windows == "right-sized"
        self._shortest = int(config.parameters["shortest_window"].string_value)
        self._margin = float(config.parameters["margin"].string_value)
        self._known = dict[tuple[str, int], Transcript]()  # by name and window

    def finals(self, audio: Sequence[Pcm]) -> list[Transcript]:
        """As they are served: what looks bad is decoded again in a full window."""
        whisper = self._whisper(self._shortest, self._margin, self._right_sized)
        first = _transcribed(whisper, audio, full=False)
        again = [index for index, result in enumerate(first) if result.suspect]
        better = _transcribed(whisper, [audio[index] for index in again], full=True)
        for index, result in zip(again, better, strict=True):
            first[index] = result
        return first

    def _whisper(self, shortest: int, margin: float, right_sized: bool = True) -> Whisper:
        return Whisper(
            self._folder,
            compute_type=self._compute_type,
            beam_size=self._beam_size,
            right_sized=right_sized,
            shortest_window=shortest,
            margin=margin,
        )

    def transcribed(
        self, items: Sequence[corpus.Item], shortest: int, margin: float
    ) -> list[Transcript]:
        windows = [window_seconds(len(item.audio), shortest, margin) for item in items]
        missing = [
            (item, window)
            for item, window in zip(items, windows, strict=True)
            if (item.name, window) not in self._known
        ]
        if missing:
            whisper = self._whisper(shortest, margin)
            for at, (item, window) in enumerate(missing):
                spoken = item.language if item.language in whisper.languages else "auto"
                (result,) = whisper.transcribe([Row(item.audio, language=spoken)])
                assert isinstance(result, Transcript), result
                self._known[item.name, window] = result
                print(f"\r{at + 1} of {len(missing)}  ", end="", file=sys.stderr)
        return [self._known[item.name, window] for item, window in zip(items, windows, strict=True)]


def result(served: Served, items: Sequence[corpus.Item], shortest: int, margin: float) -> Result:
    first = served.transcribed(items, shortest, margin)
    again = [item for item, heard in zip(items, first, strict=True) if heard.suspect]
    better = dict(
        zip(
            [item.name for item in again],
            served.transcribed(again, WINDOWS[-1], margin),
            strict=True,
        )
    )
    finals = [better.get(item.name, heard) for item, heard in zip(items, first, strict=True)]
    windows = [window_seconds(len(item.audio), shortest, margin) for item in items]
    english = [item.language == "en" for item in items]
    scores = _scores(items, finals)
    return Result(
        shortest,
        margin,
        _wer([score for score, is_it in zip(scores, english, strict=True) if is_it]),
        _wer([score for score, is_it in zip(scores, english, strict=True) if not is_it]),
        _wer(_scores(items, first)),
        sum(score.twice for score in scores),
        len(again),
        sum(windows) + WINDOWS[-1] * len(again),
    )


def _scores(items: Sequence[corpus.Item], heard: Sequence[Transcript]) -> list[scoring.Score]:
    return [
        scoring.score(item.text, one.text, item.language)
        for item, one in zip(items, heard, strict=True)
    ]


def _wer(scores: Sequence[scoring.Score]) -> float:
    return sum(score.errors for score in scores) / max(1, sum(score.words for score in scores))


def prove(repository: Path, variant: str, folder: Path, english_only: bool) -> int:
    items = [
        item
        for item in corpus.items(folder)
        if item.text and item.seconds < LONGEST_S and (item.language == "en" or not english_only)
    ]
    served = Served(repository, variant)
    full = result(served, items, WINDOWS[-1], MARGIN)
    print(
        f"{len(items)} utterances, {sum(item.seconds for item in items):.0f} s\n\n"
        "| at least | margin | WER, English | other languages | all before the second try |"
        " said twice | decoded again | encoder seconds |\n|---|---|---|---|---|---|---|---|"
    )
    found = list[Result]()
    settings = [(full.shortest, full.margin), *itertools.product(SHORTEST, MARGINS)]
    for shortest, margin in settings:
        found.append(result(served, items, shortest, margin))
        one = found[-1]
        print(
            f"\r| {shortest} s | {margin:g} s | {one.english:.1%} | {one.others:.1%} |"
            f" {one.first:.1%} | {one.twice} | {one.again} | {one.encoder_s}"
            f" ({one.encoder_s / full.encoder_s:.0%}) |",
            flush=True,
        )
    good = [one for one in found[1:] if one.as_good_as(full)]
    best = min(good, key=lambda one: one.encoder_s, default=full)
    if best.encoder_s < full.encoder_s:
        for key, value in best.manifest(folder, full).items():
            print(f"{key} = {json.dumps(value)}")
        print(json.dumps(best.manifest(folder, full)))
    else:
        print('windows = "full"')
    about = {"machine": machine.described(), "commit": machine.commit()}
    print(json.dumps({"results": [vars(one) for one in found], **about}))
    return 0


def main() -> int:
    assert __doc__
    parser = argparse.ArgumentParser(description=__doc__.strip().splitlines()[0])
    parser.add_argument("repository", type=Path)
    parser.add_argument("--corpus", type=Path, help="a folder of speech with a manifest.json")
    parser.add_argument("--variant", default="fast", help="of the repository (fast)")
    parser.add_argument("--english", action="store_true", help="leave other languages out")
    args = parser.parse_args()
    if args.corpus:
        return prove(args.repository, args.variant, args.corpus, args.english)
    model = Whisper(args.repository / "whisper_fast" / "1" / "checkpoint", compute_type="int8")
    found = list[dict[str, Any]]()
    window = f"{WINDOWS[-1]} s"
    print(
        f"| utterance | how many | decoded again | WER of finals, right-sized | {window} |"
        f" WER of partials, right-sized | {window} | core ms a request, right-sized | {window} |"
    )
    print("|---|---|---|---|---|---|---|---|---|")
    every = utterances()
    for low, high in pairwise(LENGTHS):
        row = [utterance for utterance in every if low <= utterance.seconds < high]
        right, full = column(model, row, False), column(model, row, True)
        print("\r", end="", file=sys.stderr)
        print(
            f"| {low} to {high} s | {len(row)} | {right.again} |"
            f" {right.final_wer:.1%} | {full.final_wer:.1%} |"
            f" {right.partial_wer:.1%} | {full.partial_wer:.1%} |"
            f" {right.core_ms:.0f} | {full.core_ms:.0f} |",
            flush=True,
        )
        found.append(
            {
                "seconds": [low, high],
                "utterances": len(row),
                "right_sized": vars(right),
                "full": vars(full),
            }
        )
    print(json.dumps({"rows": found, "machine": machine.described(), "commit": machine.commit()}))
    return 0


if __name__ == "__main__":
    sys.exit(main())

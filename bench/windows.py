"""
What right-sized windows cost in accuracy and save in time: the demo checkpoint, without a server.

    python bench/windows.py BUILT_MODEL_REPOSITORY

Utterances are sentences of the sample recordings, and several in a row, a fifth of a second apart,
at times of several voices. Finals: the whole utterance. Partials: its beginnings, half a second
apart or an eighth of it; nobody knows which word is said by when, so the errors of a partial are
those against the beginning of the text that fits it best, and nothing is forced. A right-sized
final whose scores look bad is decoded again in a full window, as when it is served; how many are,
is told. Prints a Markdown table, and one JSON object last.
"""

import argparse
import json
import sys
import time
from bisect import bisect
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import machine
import numpy as np
import wer
from recordings import Pcm, recordings

from dalston.triton.contract import SAMPLE_RATE, WINDOWS
from dalston.triton.whisper import Row, Transcript, Whisper

LENGTHS = (0, 2, 4, 8, 16, 28)  # seconds: the bounds of the table's rows
GAP = np.zeros(SAMPLE_RATE // 5, np.int16)
STEP = SAMPLE_RATE // 2
BATCH = 4


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
    return min((wer.errors(said[:count], words), count) for count in range(len(said) + 1))


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
        wer.wer([(u.text, result.text) for u, result in zip(row, heard, strict=True)]),
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


def main() -> int:
    assert __doc__
    parser = argparse.ArgumentParser(description=__doc__.strip().splitlines()[0])
    parser.add_argument("repository", type=Path)
    args = parser.parse_args()
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

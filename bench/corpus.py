"""
A folder of human speech, and what is said in it.

`manifest.json` there is a list with an object for each file:

    file        its name in the folder: anything that libsndfile reads, any rate
    kind        "utterance", "conversation" or "two-channel"
    language    ISO 639-1
    text        what is said, or null where nobody wrote it down
    part        the row of the tables that it counts in; if missing, what stands before the first
                "_" of its name
    turns       of a conversation: objects with start and end (seconds), text, and for two channels
                the speaker. A turn with a `file` was put there from that file, so its times are
                known by construction; others are taken for what somebody heard
    channel_text, channel_speaker   of two channels: what is said on each, or whose turns it has
    rttm        a file in the folder: when somebody speaks, in the NIST's format

Other fields are ignored: say whose voices they are, and under which licence.
"""

import functools
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import soundfile
import soxr
from recordings import Pcm, Recording, Sentence

from dalston.triton.contract import SAMPLE_RATE

# Speech is what is so much louder than the quiet parts, and no more than so much quieter than the
# loud ones, for ten frames: lips and tongue click for less.
LOUDER_DB, QUIETER_DB, FRAME, FRAMES = 10.0, 32.0, SAMPLE_RATE // 100, 10
GAP_S = 1.0  # behind an utterance, in calls: more than ends it
LONGEST_S = 20.0  # of an utterance in a call
# Of what is put together for word times: too short a gap to end an utterance, which therefore has
# several sentences whose edges are known.
TOGETHER_GAP_S, TOGETHER_S = 0.3, 20.0
ASIDE_S = 0.2  # from speech, of what counts as the room alone: annotators hear no better


@dataclass(frozen=True)
class Item:
    """Audio to transcribe."""

    name: str
    part: str
    language: str
    audio: Pcm
    text: str | None
    timed: tuple[Sentence, ...] = ()  # what is said when, where that is known

    @property
    def seconds(self) -> float:
        return len(self.audio) / SAMPLE_RATE


def items(folder: Path) -> list[Item]:
    """Every file, two-channel ones as two; raises SystemExit if there is no manifest."""
    found = list[Item]()
    for entry in _manifest(folder):
        channels = _audio(folder / entry["file"])
        part = entry.get("part") or Path(entry["file"]).stem.split("_")[0]
        whole = Item(entry["file"], part, entry["language"], channels[0], entry["text"])
        if entry["kind"] == "two-channel":
            found += _each_channel(entry, whole, channels)
        else:
            found.append(replace(whole, timed=_timed(entry.get("turns", ()), channels[0])))
    return found


def _manifest(folder: Path) -> list[dict[str, Any]]:
    path = folder / "manifest.json"
    if not path.is_file():
        raise SystemExit(f"{path} is missing: bench/corpus.py says what stands in it")
    return json.loads(path.read_text("utf-8"))


def _audio(path: Path) -> list[Pcm]:
    """Its channels, at 16 kHz."""
    samples: npt.NDArray[np.float32]
    samples, rate = soundfile.read(path, dtype="float32", always_2d=True)  # pyright: ignore[reportUnknownMemberType, reportUnknownVariableType]
    if rate != SAMPLE_RATE:
        samples = soxr.resample(samples, rate, SAMPLE_RATE)
    pcm = np.rint(np.clip(samples, -1, 1) * 32767).astype(np.int16)
    return [np.ascontiguousarray(channel) for channel in pcm.T]


def _timed(turns: Sequence[dict[str, Any]], audio: Pcm) -> tuple[Sentence, ...]:
    if not all("file" in turn for turn in turns):
        return ()
    found = list[Sentence]()
    for turn in turns:
        start: float = turn["start"]
        first, last = round(start * SAMPLE_RATE), round(turn["end"] * SAMPLE_RATE)
        begins, ends = speech(audio[first:last])
        found.append(Sentence(turn["text"], start + begins, start + ends))
    return tuple(found)


def _each_channel(entry: dict[str, Any], whole: Item, channels: list[Pcm]) -> list[Item]:
    found = list[Item]()
    for number, audio in enumerate(channels):
        one = replace(whole, name=f"{whole.name}, {number}", audio=audio)
        if "channel_text" in entry:
            one = replace(one, text=entry["channel_text"][number])
        else:
            speaker = entry["channel_speaker"][number]
            turns = [turn for turn in entry["turns"] if turn["speaker"] == speaker]
            text = " ".join(turn["text"] for turn in turns)
            one = replace(one, text=text, timed=_timed(turns, audio))
        found.append(one)
    return found


def speech(audio: Pcm) -> tuple[float, float]:
    """Where the first sound begins and the last ends that is as loud as speech: seconds."""
    frames = audio[: len(audio) // FRAME * FRAME].reshape(-1, FRAME).astype(np.float64)
    level: npt.NDArray[np.float64] = 10 * np.log10((frames**2).mean(1) + 1)
    ranked: list[float] = sorted(level.tolist())
    quiet, loudest = ranked[len(ranked) // 20], ranked[19 * len(ranked) // 20]
    loud = level > max(quiet + LOUDER_DB, loudest - QUIETER_DB)
    long = np.convolve(loud, np.ones(FRAMES), "valid") == FRAMES  # the frames from here on
    if not long.any():
        return 0.0, len(audio) / SAMPLE_RATE
    where = np.flatnonzero(long)
    return int(where[0]) * FRAME / SAMPLE_RATE, int(where[-1] + FRAMES) * FRAME / SAMPLE_RATE


@functools.cache
def recordings(folder: Path) -> tuple[Recording, ...]:
    """The English utterances as callers say them: each with silence behind it."""
    found = list[Recording]()
    kinds = {entry["file"]: entry["kind"] for entry in _manifest(folder)}
    for item in items(folder):
        if kinds.get(item.name) != "utterance" or item.language != "en" or not item.text:
            continue
        if item.seconds <= LONGEST_S:
            audio = np.concatenate([item.audio, np.zeros(round(GAP_S * SAMPLE_RATE), np.int16)])
            sentence = Sentence(item.text, *speech(item.audio))
            found.append(Recording(item.name, audio, (sentence,), item.language))
    if not found:
        raise SystemExit(f"{folder}: no English utterance of {LONGEST_S:g} s or less")
    return tuple(found)


def together(folder: Path) -> list[Item]:
    """The utterances of `recordings` put together, so that it is known where each begins and ends
    though no pause ends an utterance there."""
    gap = np.zeros(round(TOGETHER_GAP_S * SAMPLE_RATE), np.int16)
    found, audio, said = list[Item](), gap, list[Sentence]()

    def over() -> None:
        text = " ".join(sentence.text for sentence in said)
        found.append(Item(f"together {len(found)}", "together", "en", audio, text, tuple(said)))

    for recording in recordings(folder):
        (sentence,) = recording.sentences
        first, last = round(sentence.start * SAMPLE_RATE), round(sentence.end * SAMPLE_RATE)
        if said and (len(audio) + last - first) / SAMPLE_RATE > TOGETHER_S:
            over()
            audio, said = gap, list[Sentence]()
        start = len(audio) / SAMPLE_RATE
        audio = np.concatenate([audio, recording.audio[first:last], gap])
        said.append(Sentence(sentence.text, start, start + (last - first) / SAMPLE_RATE))
    if said:
        over()
    return found


def telephone(item: Item) -> Item:
    """As a telephone carries it: 8 kHz, in the 256 steps of G.711's mu-law, which is drawn here by
    its formula."""
    narrow = soxr.resample(item.audio.astype(np.float32) / 32768, SAMPLE_RATE, 8_000)
    curve = np.log1p(255 * np.abs(narrow)) / np.log1p(255)
    steps = np.rint(127 * np.minimum(curve, 1)) / 127
    heard = np.sign(narrow) * np.expm1(steps * np.log1p(255)) / 255
    wide = soxr.resample(heard.astype(np.float32), 8_000, SAMPLE_RATE)
    return replace(item, audio=np.rint(np.clip(wide, -1, 1) * 32767).astype(np.int16))


def rooms(folder: Path) -> Pcm:
    """What is heard in conversations while nobody speaks, one stretch after the other."""
    found, aside = [np.zeros(0, np.int16)], round(ASIDE_S * SAMPLE_RATE)
    for entry in _manifest(folder):
        # In those put together from others there is no room.
        if entry["kind"] != "conversation" or any("file" in t for t in entry.get("turns", ())):
            continue
        (audio,) = _audio(folder / entry["file"])
        quiet = np.ones(len(audio), bool)
        for line in (folder / entry["rttm"]).read_text().splitlines():
            fields = line.split()
            start, length = round(float(fields[3]) * SAMPLE_RATE), float(fields[4]) * SAMPLE_RATE
            quiet[max(0, start - aside) : start + round(length) + aside] = False
        found.append(audio[quiet])
    return np.concatenate(found)

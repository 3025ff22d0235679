"""
How much partials change their mind, and how soon they know it: sessions without a server.

    python bench/partials.py BUILT_MODEL_REPOSITORY
    python bench/partials.py BUILT_MODEL_REPOSITORY --recordings FOLDER --answers FILE

Each recording is a session of its own (orchestrator/transcription/session.py) in this process,
whose models answer at once: partials come every half second, whatever the machine, and the same
command gives the same numbers. Audio files of FOLDER (WAV, FLAC) in the order of their names, or
the committed recordings. --answers keeps what the models said in a file (SQLite), so that a rule of
agreement.py can be tried again in seconds: only what it asks anew is decoded. --part K/N takes
every Nth.

Prints a Markdown table, and one JSON object last.
"""

import argparse
import hashlib
import json
import pickle
import sqlite3
import statistics
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import flicker
import machine
import numpy as np
import slo
import soundfile
import soxr
from recordings import Pcm, recordings

from dalston.orchestrator.protocol.messages import End, Final, Partial, ServerMessage, SessionConfig
from dalston.orchestrator.transcription import assembler
from dalston.orchestrator.transcription.agreement import spoken
from dalston.orchestrator.transcription.model_requests import (
    Cancel,
    Hypothesis,
    SpeechRequest,
    TimedWord,
    TranscriptRequest,
)
from dalston.orchestrator.transcription.session import Session
from dalston.triton.contract import SAMPLE_RATE
from dalston.triton.silero import Chunk, Silero
from dalston.triton.whisper import Row, Transcript, Whisper

CHUNK = SAMPLE_RATE // 10  # samples: what a microphone hands over at once
SILENCE = np.zeros(SAMPLE_RATE, np.int16)  # behind each recording, so that it ends by itself


class Models:
    """Both, as a session asks them. answers: the file of what Whisper said before."""

    def __init__(self, repository: Path, answers: Path | None):
        self.silero = Silero(repository / "silero_vad" / "1" / "silero.onnx")
        checkpoint = repository / "whisper_fast" / "1" / "checkpoint"
        self.whisper = Whisper(checkpoint, compute_type="int8")
        self.decoded = 0
        self._answers = sqlite3.connect(answers or ":memory:", timeout=60)
        self._answers.execute("create table if not exists answers (asked text primary key, said)")
        self._answers.execute("pragma synchronous = off")
        self._of = repository.resolve().name.encode()

    def speech(self, request: SpeechRequest) -> list[float]:
        audio = np.frombuffer(request.audio, np.int16)
        (heard,) = self.silero.probabilities(
            [Chunk(request.sequence, audio, request.start, request.end)], 0.0
        )
        assert not isinstance(heard, Exception), heard
        return heard.tolist()

    def transcribe(self, request: TranscriptRequest) -> Hypothesis:
        said = self._said(request, full_window=False)
        if request.kind == "final" and said.suspect:
            said = self._said(request, full_window=True)
        return Hypothesis(
            text=said.text,
            tokens=said.tokens,
            token_ends=said.token_ends,
            language=said.language,
            average_logprob=said.average_logprob,
            no_speech_probability=said.no_speech_probability,
            words=[TimedWord(w.text, w.start, w.end, w.probability) for w in said.words],
            token_times=said.token_times,
            token_logprobs=said.token_logprobs,
        )

    def _said(self, request: TranscriptRequest, full_window: bool) -> Transcript:
        # A draft changes nothing of it.
        decides = repr((request.language, request.prefix, request.words, full_window)).encode()
        asked = hashlib.sha256(self._of + decides + request.audio).hexdigest()
        known = self._answers.execute("select said from answers where asked = ?", [asked])
        if row := known.fetchone():
            return pickle.loads(row[0])  # noqa: S301  written below
        self.decoded += 1
        (said,) = self.whisper.transcribe(
            [
                Row(
                    np.frombuffer(request.audio, np.int16),
                    request.language,
                    prefix=request.prefix,
                    draft=request.draft,
                    words=request.words,
                    full_window=full_window,
                )
            ]
        )
        assert isinstance(said, Transcript), said
        row = (asked, pickle.dumps(said))
        self._answers.execute("insert or replace into answers values (?, ?)", row)
        self._answers.commit()
        return said


@dataclass
class Told:
    """A message, and how much audio the session had been given then (seconds)."""

    at: float
    message: ServerMessage


def session(models: Models, audio: Pcm, language: str) -> list[Told]:
    config = SessionConfig(language=language, word_timestamps=True)
    session = Session("bench", config, "fast", languages=models.whisper.languages)
    told = list[Told]()

    def answer(at: int) -> None:
        told.extend(Told(at / SAMPLE_RATE, message) for message in session.messages())
        while requests := session.requests():
            cancelled = {request.id for request in requests if isinstance(request, Cancel)}
            for request in requests:
                match request:
                    case SpeechRequest(end=True):
                        models.speech(request)
                    case SpeechRequest():
                        session.receive_probabilities(models.speech(request))
                    case TranscriptRequest() if request.id not in cancelled:
                        session.receive_hypothesis(request.id, models.transcribe(request))
                    case _:
                        pass
            told.extend(Told(at / SAMPLE_RATE, message) for message in session.messages())

    for at in range(0, len(audio), CHUNK):
        session.receive_audio(audio[at : at + CHUNK].tobytes())
        answer(at + CHUNK)
    session.receive_message(End())
    answer(len(audio))
    return told


@dataclass
class Result:
    """Of some sessions; times are seconds."""

    words: int = 0  # of finals
    partials: int = 0
    changed: int = 0  # words shown, and changed by the next partial or the final
    rewritten: int = 0  # the same words with other capitals or marks
    stable: int = 0  # words that the last partial called stable
    stable_changed: int = 0  # by the final
    broken: int = 0  # partials that changed what was stable in the one before
    first: list[float] = field(default_factory=list[float])  # start of the segment -> first text
    # From the end of a word to the partial, or the final, from which on it is shown; is stable.
    shown_after: list[float] = field(default_factory=list[float])
    stable_after: list[float] = field(default_factory=list[float])

    def receive(self, told: list[Told]) -> None:
        partials = list[tuple[float, Partial]]()
        for at, message in ((one.at, one.message) for one in told):
            match message:
                case Partial():
                    if partials and partials[-1][1].segment_id != message.segment_id:
                        self._segment(partials, at, None)  # it said nothing in the end
                        partials = []
                    partials.append((at, message))
                case Final():
                    self._segment(partials, at, message)
                    partials = []
                case _:
                    pass
        self._segment(partials, 0.0, None)

    def _segment(
        self, partials: list[tuple[float, Partial]], at: float, final: Final | None
    ) -> None:
        texts = [partial.text for _, partial in partials]
        said = final.text if final else ""
        for shown, now in zip(texts, [*texts[1:], said], strict=False):
            changed, rewritten = flicker.changed(shown, now)
            self.changed += changed
            self.rewritten += rewritten
        stable = [partial.text[: partial.stable_chars] for _, partial in partials]
        self.broken += sum(
            not now.startswith(before) for before, now in zip(stable, texts[1:], strict=False)
        )
        self.partials += len(partials)
        if partials:
            self.first.append(partials[0][0] - partials[0][1].start)
            words, changed = assembler.changed_words(stable[-1], said, cut=False)
            self.stable += words
            self.stable_changed += changed
            if changed:
                print(f"stable: {stable[-1]}\n final: {said}", file=sys.stderr)
        if final is None:
            return
        self.words += len(spoken(said))
        words = [word for word in final.words or () if spoken(word.word)]
        if len(words) != len(spoken(said)):
            return
        for place, word in enumerate(words):
            since = at
            for when, partial in reversed(partials):
                if spoken(partial.text)[: place + 1] != spoken(said)[: place + 1]:
                    break
                since = when
            self.shown_after.append(since - word.end)
            known = [
                when
                for (when, _), text in zip(partials, stable, strict=True)
                if len(spoken(text)) > place
            ]
            self.stable_after.append((known[0] if known else at) - word.end)

    def summary(self) -> dict[str, Any]:
        def share(part: int, whole: int) -> float:
            return round(100 * part / max(1, whole), 2)

        return {
            "words": self.words,
            "partials": self.partials,
            "changed_percent": share(self.changed, self.words),
            "rewritten_percent": share(self.rewritten, self.words),
            "stable_percent": share(self.stable, self.words),
            "stable_words": self.stable,
            "stable_changed": self.stable_changed,
            "stable_changed_percent": share(self.stable_changed, self.stable),
            "stable_broken": self.broken,
            "first_text_s": round(statistics.median(self.first or [0.0]), 2),
            "shown_after_s": [round(value, 2) for value in _spread(self.shown_after)],
            "stable_after_s": [round(value, 2) for value in _spread(self.stable_after)],
        }


def _spread(values: list[float]) -> tuple[float, float]:
    return slo.percentile(values, 0.5) or 0.0, slo.percentile(values, 0.95) or 0.0


def audio_of(folder: Path | None) -> Iterator[tuple[str, Pcm]]:
    if folder is None:
        for recording in recordings():
            yield recording.name, recording.audio
        return
    for path in sorted(path for path in folder.iterdir() if path.suffix in (".wav", ".flac")):
        samples, rate = soundfile.read(path, dtype="int16", always_2d=True)
        yield path.name, soxr.resample(samples[:, 0], rate, SAMPLE_RATE).astype(np.int16)


def main() -> int:
    assert __doc__
    parser = argparse.ArgumentParser(description=__doc__.strip().splitlines()[0])
    parser.add_argument("repository", type=Path)
    parser.add_argument("--recordings", type=Path, help="a folder of audio files")
    parser.add_argument("--answers", type=Path, help="the file of what the models said before")
    parser.add_argument("--language", default="en")
    parser.add_argument("--part", default="1/1", metavar="K/N")
    args = parser.parse_args()
    number, of = map(int, args.part.split("/"))
    models, result = Models(args.repository, args.answers), Result()
    for name, audio in list(audio_of(args.recordings))[number - 1 :: of]:
        print(name, file=sys.stderr, flush=True)
        result.receive(session(models, np.concatenate([audio, SILENCE]), args.language))
    summary = result.summary()
    print("| what | |\n|---|---|")
    for key, value in summary.items():
        print(f"| {key} | {value} |")
    print(json.dumps(summary | {"machine": machine.described(), "commit": machine.commit()}))
    return 0


if __name__ == "__main__":
    sys.exit(main())

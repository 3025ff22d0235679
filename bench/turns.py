"""
How turns end: by silence of one length, or by how the pause sounds (endpointing=smart).

    python bench/turns.py CORPUS REPOSITORY

REPOSITORY is built with `dalston models build --end-of-turn`. CORPUS is a folder with
manifest.json: a list of {"file", "kind", "channels"} with the "turns" [{"speaker", "start", "end"}]
of conversations, or the file of their "rttm"; segments of one speaker less than 3 s apart, with
nobody between, are one turn. Other files are one turn each. Real sessions hear everything, without
a server and as fast as they can; Whisper is left out, for it ends no turn.

A false cut-off is an endpoint whose speech ended inside a turn, more than EDGE_S before its end.
Latency is the silence that was waited for at the end of a turn; the models' time comes on top.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import soundfile

from dalston.orchestrator.protocol.messages import End, SessionConfig, SpeechEnd
from dalston.orchestrator.transcription.model_requests import (
    EndOfTurnRequest,
    Hypothesis,
    SpeechRequest,
    TranscriptRequest,
)
from dalston.orchestrator.transcription.session import Session, State
from dalston.triton.contract import SAMPLE_RATE
from dalston.triton.silero import Chunk, Silero
from dalston.triton.turn import EndOfTurn

EDGE_S = 0.25
ONE_TURN_S = 3.0
BEHIND_S = 3.0  # of silence behind each recording
PIECE = SAMPLE_RATE // 10 * 2  # bytes
SETTINGS: list[dict[str, Any]] = [
    {"min_silence_duration_ms": 300},
    {"min_silence_duration_ms": 500},
    {"min_silence_duration_ms": 600},
    {"min_silence_duration_ms": 800},
    {"endpointing": "smart"},
    {"endpointing": "smart", "max_silence_duration_ms": 800},
    {"endpointing": "smart", "turn_threshold": 0.5},
    {"endpointing": "smart", "turn_threshold": 0.98},
]


@dataclass(frozen=True)
class Recording:
    kind: str
    audio: bytes
    turns: list[tuple[float, float]]  # seconds; empty: it is one as a whole


@dataclass
class Ends:
    """What came of some recordings in one way."""

    turns: int = 0
    cut: int = 0  # of these, by an endpoint inside
    inside: int = 0  # endpoints
    waited: list[float] = field(default_factory=list[float])  # seconds, at the ends of turns


class Models:
    def __init__(self, repository: Path):
        self.vad = Silero(repository / "silero_vad" / "1" / "silero.onnx")
        self._turn = EndOfTurn(repository / "end_of_turn" / "1" / "end_of_turn.onnx")
        self._judged: dict[bytes, float] = {}  # settings share many pauses

    def end_of_turn(self, audio: bytes) -> float:
        if audio not in self._judged:
            self._judged[audio] = self._turn.probability(np.frombuffer(audio, np.int16))
        return self._judged[audio]


def recordings(corpus: Path) -> list[Recording]:
    found = list[Recording]()
    for entry in json.loads((corpus / "manifest.json").read_text("utf-8")):
        if entry["kind"] != "utterance" and not ("turns" in entry or "rttm" in entry):
            continue
        audio, rate = soundfile.read(corpus / entry["file"], dtype="int16", always_2d=True)
        assert rate == SAMPLE_RATE, entry["file"]
        kind = "utterances" if entry["kind"] == "utterance" else "conversations"
        # Which channel a speaker has is not told: sides of one call are heard mixed.
        mixed = audio.mean(axis=1).astype(np.int16)
        behind = np.zeros(int(BEHIND_S * SAMPLE_RATE), np.int16)
        data = np.concatenate([mixed, behind]).tobytes()
        found.append(Recording(kind, data, turns(corpus, entry) if kind != "utterances" else []))
    return found


def turns(corpus: Path, entry: dict[str, Any]) -> list[tuple[float, float]]:
    if entry.get("turns"):
        return [(turn["start"], turn["end"]) for turn in entry["turns"]]
    segments = list[tuple[float, float, str]]()
    for line in (corpus / entry["rttm"]).read_text("utf-8").splitlines():
        fields = line.split()
        start, length = float(fields[3]), float(fields[4])
        segments.append((start, start + length, fields[7]))
    merged = list[tuple[float, float, str]]()
    for start, end, speaker in sorted(segments):
        if merged and merged[-1][2] == speaker and start - merged[-1][1] < ONE_TURN_S:
            merged[-1] = (merged[-1][0], max(merged[-1][1], end), speaker)
        else:
            merged.append((start, end, speaker))
    return [(start, end) for start, end, _ in merged]


def endpoints(models: Models, audio: bytes, settings: dict[str, Any]) -> list[tuple[float, float]]:
    """Where speech ended, and the silence that was waited for before that was so; seconds."""
    config = SessionConfig(language="en", interim_results=False, **settings)
    session = Session("bench", config, "fast", languages={"en"})
    found = list[tuple[float, float]]()

    def serve() -> None:
        while requests := session.requests():
            for request in requests:
                match request:
                    case SpeechRequest():
                        samples = np.frombuffer(request.audio, np.int16)
                        chunk = Chunk(request.sequence, samples, request.start, request.end)
                        (heard,) = models.vad.probabilities([chunk], 0.0)
                        if isinstance(heard, Exception):
                            raise heard
                        if not request.end:
                            session.receive_probabilities(heard.tolist())
                    case EndOfTurnRequest():
                        session.receive_end_of_turn(request.id, models.end_of_turn(request.audio))
                    case TranscriptRequest():
                        session.receive_hypothesis(request.id, Hypothesis("something"))
                    case _:
                        pass
                for message in session.messages():
                    if isinstance(message, SpeechEnd) and session.state is State.LISTENING:
                        heard_to = session.searched / SAMPLE_RATE
                        found.append((message.timestamp, heard_to - message.timestamp))

    for at in range(0, len(audio), PIECE):
        session.receive_audio(audio[at : at + PIECE])
        serve()
    session.receive_message(End())
    serve()
    return found


def judge(ends: Ends, recording: Recording, found: Sequence[tuple[float, float]]) -> None:
    """An utterance ends where the last endpoint is; what is before is inside."""
    known = recording.turns
    if not known:
        known = [(0.0, found[-1][0])] if found else []
    for start, end in known:
        inside = [at for at, _ in found if start < at < end - EDGE_S]
        ends.turns += 1
        ends.cut += bool(inside)
        ends.inside += len(inside)
        ends.waited += [waited for at, waited in found if abs(at - end) <= EDGE_S]


def named(settings: dict[str, Any]) -> str:
    if settings.get("endpointing") != "smart":
        return f"silence {settings['min_silence_duration_ms']} ms"
    config = SessionConfig(**settings)
    bounds = f"{config.turn_silence_ms} to {config.max_silence_duration_ms} ms"
    return f"smart {config.turn_threshold:g}, {bounds}"


def main() -> None:
    assert __doc__
    parser = argparse.ArgumentParser(description=__doc__.strip().splitlines()[0])
    parser.add_argument("corpus", type=Path)
    parser.add_argument("repository", type=Path)
    args = parser.parse_args()
    models, heard = Models(args.repository), recordings(args.corpus)
    rows = list[dict[str, Any]]()
    print(
        "| turns end by | of | turns | cut off | endpoints inside | waited: mean | p50 | p95, ms |"
    )
    print("|---|---|---|---|---|---|---|---|")
    for settings in SETTINGS:
        ends = {kind: Ends() for kind in ("conversations", "utterances")}
        for recording in heard:
            judge(ends[recording.kind], recording, endpoints(models, recording.audio, settings))
            print(".", end="", file=sys.stderr, flush=True)
        for kind, seen in ends.items():
            waited = 1000 * np.array(seen.waited)
            row = {
                "by": named(settings),
                "of": kind,
                "turns": seen.turns,
                "cut": seen.cut,
                "inside": seen.inside,
                "mean_ms": round(float(waited.mean())),
                "p50_ms": round(float(np.median(waited))),
                "p95_ms": round(float(np.percentile(waited, 95))),
            }
            rows.append(row)
            percent = 100 * seen.cut / seen.turns
            print(
                f"| {row['by']} | {kind} | {seen.turns} | {percent:.0f} % | {seen.inside} "
                f"| {row['mean_ms']} | {row['p50_ms']} | {row['p95_ms']} |"
            )
    print(json.dumps(rows))


if __name__ == "__main__":
    main()

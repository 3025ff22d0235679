"""
What sessions ask of the models, made from the recordings in demo/samples, and written down in
perf_analyzer's format of input data.
"""

import base64
import itertools
import json
import random
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import recordings as samples

from dalston.orchestrator.protocol.messages import SessionConfig
from dalston.orchestrator.transcription.agreement import Agreement
from dalston.orchestrator.transcription.decoding import PARTIAL_EVERY
from dalston.orchestrator.transcription.endpointer import PAUSE
from dalston.orchestrator.transcription.model_requests import (
    Hypothesis,
    SpeechRequest,
    TranscriptRequest,
)
from dalston.orchestrator.transcription.session import HOP
from dalston.triton.contract import SAMPLE_RATE, VAD_FRAME, Variant

Step = dict[str, Any]  # of perf_analyzer's input data: the tensors of one request


@dataclass(frozen=True)
class Recording:
    audio: bytes  # 16 kHz mono, int16
    utterances: tuple[tuple[int, int], ...]  # samples [start, end) of each


@dataclass(frozen=True)
class InputData:
    """A file in perf_analyzer's format."""

    path: Path
    audio_s: float  # of a request, on average


def recordings() -> list[Recording]:
    """The sentences in them are all short enough for the smallest window. So that others are asked
    for too, one, two or three in a row make an utterance, as of somebody who pauses little."""
    found = list[Recording]()
    sizes = itertools.cycle((1, 2, 3))
    for sample in samples.recordings():
        sentences = iter(sample.sentences)
        utterances = list[tuple[int, int]]()
        while row := list(itertools.islice(sentences, next(sizes))):
            utterances.append((_samples(row[0].start), _samples(row[-1].end)))
        found.append(Recording(sample.audio.tobytes(), tuple(utterances)))
    return found


def _samples(seconds: float) -> int:
    return round(seconds * SAMPLE_RATE)


def _cut(recording: Recording, start: int, end: int) -> bytes:
    return recording.audio[2 * max(0, start) : 2 * end]


def speech_requests(recording: Recording) -> list[SpeechRequest]:
    """A sequence as a session asks it: hops, at the end what is left in whole frames, END.

    perf_analyzer itself chooses the correlation id, and marks the first request and the last.
    """
    frames = len(recording.audio) // (2 * VAD_FRAME)
    end = frames * VAD_FRAME
    hops = [
        SpeechRequest("", _cut(recording, start, min(start + HOP, end)), start=start == 0)
        for start in range(0, end, HOP)
    ]
    return [*hops, SpeechRequest("", b"", end=True)]


def final_requests(recordings: Sequence[Recording], variant: Variant) -> list[TranscriptRequest]:
    """Every utterance, with the silence before and behind it that a session adds."""
    lookback = SessionConfig().prefix_padding_ms * SAMPLE_RATE // 1000
    return [
        TranscriptRequest(
            id=0,
            kind="final",
            audio=_cut(recording, start - lookback, end + PAUSE),
            # A session has its language detected on the first utterance.
            language="auto" if number == 0 else "en",
            variant=variant,
            words=True,
        )
        for recording in recordings
        for number, (start, end) in enumerate(recording.utterances)
    ]


async def partial_requests(
    recordings: Sequence[Recording],
    variant: Variant,
    transcribe: Callable[[TranscriptRequest], Awaitable[Hypothesis]],
) -> list[TranscriptRequest]:
    """Every utterance as it grows. The models are asked, for what they answer is what the next
    request is made to begin with."""
    requests = list[TranscriptRequest]()
    for final in final_requests(recordings, variant):
        agreement = Agreement()
        for position in range(2 * PARTIAL_EVERY, len(final.audio), 2 * PARTIAL_EVERY):
            request = replace(
                final,
                kind="partial",
                audio=final.audio[:position],
                words=False,
                prefix=agreement.tokens,
                draft=tuple(agreement.before[len(agreement.tokens) :]),
            )
            requests.append(request)
            agreement.receive(await transcribe(request))
    return requests


def step(request: SpeechRequest | TranscriptRequest, full_window: bool = False) -> Step:
    """A request as the tensors of triton/contract.py, without the batch dimension."""
    tensors: Step = {"AUDIO": _tensor(request.audio)}
    if isinstance(request, TranscriptRequest):
        prefix, draft = list(request.prefix), list(request.draft)
        tensors |= {
            "LANGUAGE": [request.language],
            "TASK": [request.task],
            "PROMPT": [request.prompt],
            "KEYWORDS": ["\n".join(request.keywords)],
            "PREFIX": {"content": prefix, "shape": [len(prefix)]},
            "DRAFT": {"content": draft, "shape": [len(draft)]},
            "WORDS": [request.words],
            "FULL_WINDOW": [full_window],
        }
    return tensors


def _tensor(audio: bytes) -> dict[str, Any]:
    # Empty tensors are written as empty lists; an empty base64 string is not safe to decode there.
    content: Any = {"b64": base64.b64encode(audio).decode()} if audio else []
    return {"content": content, "shape": [len(audio) // 2]}


def mixed(steps: Iterable[Step]) -> list[Step]:
    """The same in an order that is random and always the same, so that windows resemble each
    other; and an odd number, so that N threads that take every Nth request come round to all."""
    steps = list(steps)
    random.Random(1).shuffle(steps)
    return steps[: len(steps) - 1 + len(steps) % 2]


def write(path: Path, data: Sequence[Step] | Sequence[Sequence[Step]]) -> InputData:
    """One list of requests, or for a model with sequences a list of those."""
    path.write_text(json.dumps({"data": data}))
    every = [item for entry in data for item in ([entry] if isinstance(entry, dict) else entry)]
    samples = sum(tensors["AUDIO"]["shape"][0] for tensors in every)
    return InputData(path, samples / SAMPLE_RATE / len(every))

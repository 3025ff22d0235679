"""
The least time in which the models can answer what a run asked of them: replayed offline, in one
process, batched, on all cores, without Triton, sockets or pacing.

    python bench/ceiling.py RECORDING MODEL_REPOSITORY

Prints the seconds it took. Both are as bench/load.py makes them.
"""

import json
import os
import pickle
import queue
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from dalston.orchestrator.requests import SpeechRequest, TranscriptRequest
from dalston.triton.contract import window_seconds
from dalston.triton.silero import Chunk, Silero
from dalston.triton.whisper import Row, Whisper

BATCH = 8  # of Whisper: larger ones gain nothing on a CPU
Work = Callable[[Whisper], None]


def rows(transcripts: list[tuple[TranscriptRequest, bool]]) -> list[list[Row]]:
    """Batches of rows that share a window, and wait for nobody."""
    by_window: dict[tuple[int, bool], list[Row]] = {}
    for request, full in transcripts:
        audio = np.frombuffer(request.audio, np.int16)
        row = Row(
            audio,
            language=request.language,
            prefix=request.prefix,
            words=request.words,
            full_window=full,
        )
        by_window.setdefault((window_seconds(len(audio)), request.words), []).append(row)
    return [
        found[at : at + BATCH] for found in by_window.values() for at in range(0, len(found), BATCH)
    ]


def hear(silero: Silero, speech: list[SpeechRequest]) -> None:
    for request in speech:
        audio = np.frombuffer(request.audio, np.int16)
        silero.probabilities([Chunk(request.sequence, audio, request.start, request.end)], 0.0)


def main() -> None:
    recording, repository = map(Path, sys.argv[1:3])
    speech, transcripts = pickle.loads(recording.read_bytes())
    cores = len(os.sched_getaffinity(0))
    checkpoint = repository / "whisper_fast" / "1" / "checkpoint"
    silero = Silero(repository / "silero_vad" / "1" / "silero.onnx")
    models = [Whisper(checkpoint, compute_type="int8_float32") for _ in range(cores)]
    for model in models:  # warm
        model.transcribe([Row(np.zeros(16_000, np.int16), language="en")])

    work: queue.SimpleQueue[Work] = queue.SimpleQueue()
    work.put(lambda _: hear(silero, speech))
    for batch in rows(transcripts):
        work.put(lambda model, batch=batch: _check(model, batch))

    def labour(model: Whisper) -> None:
        while True:
            try:
                work.get_nowait()(model)
            except queue.Empty:
                return

    began = time.perf_counter()
    threads = [threading.Thread(target=labour, args=[model]) for model in models]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    seconds = time.perf_counter() - began
    asked = {"speech": len(speech), "transcripts": len(transcripts)}
    print(json.dumps({"seconds": round(seconds, 3), **asked}))


def _check(model: Whisper, batch: list[Row]) -> None:
    for result in model.transcribe(batch):
        if isinstance(result, Exception):
            raise result


if __name__ == "__main__":
    main()

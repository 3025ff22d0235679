"""
The least time in which the models can answer what a run asked of them: replayed offline, in one
process, batched, on all cores, without Triton, sockets or pacing.

    python bench/ceiling.py RECORDING MODEL_REPOSITORY FIRST_S LAST_S

Replays what was asked between these seconds of the recorded run, and prints how long it took. The
files are as bench/load.py makes them.
"""

import json
import os
import pickle
import queue
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from asked import Asked

from dalston.orchestrator.transcription.model_requests import SpeechRequest, TranscriptRequest
from dalston.triton.contract import window_seconds
from dalston.triton.silero import Chunk, Silero
from dalston.triton.whisper import Row, Whisper

BATCH = 8  # of Whisper: larger ones gain nothing on a CPU
Work = Callable[[Whisper], None]


def rows(transcripts: Sequence[tuple[float, TranscriptRequest, bool]]) -> list[list[Row]]:
    """Batches of rows that share a window, and wait for nobody."""
    by_window: dict[tuple[int, bool], list[Row]] = {}
    for _, request, full in transcripts:
        audio = np.frombuffer(request.audio, np.int16)
        row = Row(
            audio,
            language=request.language,
            prefix=request.prefix,
            draft=request.draft,
            words=request.words,
            full_window=full,
        )
        by_window.setdefault((window_seconds(len(audio)), request.words), []).append(row)
    return [
        found[at : at + BATCH] for found in by_window.values() for at in range(0, len(found), BATCH)
    ]


def hear(silero: Silero, speech: Sequence[tuple[float, SpeechRequest]]) -> None:
    heard = set[str]()
    for _, request in speech:
        # One that began before what is replayed begins here.
        start = request.start or request.sequence not in heard
        heard.add(request.sequence)
        audio = np.frombuffer(request.audio, np.int16)
        silero.probabilities([Chunk(request.sequence, audio, start, request.end)], 0.0)


def main() -> None:
    recording, repository = map(Path, sys.argv[1:3])
    whole: Asked = pickle.loads(recording.read_bytes())
    asked = whole.between(*map(float, sys.argv[3:5]))
    cores = len(os.sched_getaffinity(0))
    checkpoint = repository / "whisper_fast" / "1" / "checkpoint"
    silero = Silero(repository / "silero_vad" / "1" / "silero.onnx")
    models = [Whisper(checkpoint, compute_type="int8_float32") for _ in range(cores)]
    for model in models:  # warm
        model.transcribe([Row(np.zeros(16_000, np.int16), language="en")])

    work: queue.SimpleQueue[Work] = queue.SimpleQueue()
    work.put(lambda _: hear(silero, asked.speech))
    for batch in rows(asked.transcripts):
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
    count = {"speech": len(asked.speech), "transcripts": len(asked.transcripts)}
    print(json.dumps({"seconds": round(seconds, 3), **count}))


def _check(model: Whisper, batch: list[Row]) -> None:
    for result in model.transcribe(batch):
        if isinstance(result, Exception):
            raise result


if __name__ == "__main__":
    main()

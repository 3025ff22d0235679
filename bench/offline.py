"""
faster-whisper as its users run it on a file: every window 30 s, nobody waits. Run by the Python of
an environment that has it; quality.py makes that environment.

    python offline.py CHECKPOINT BEAM_SIZE THREADS < jobs > answers

Jobs are lines of JSON: the file of the samples (.npy, 16 kHz, int16), the language, and whether the
times of words are wanted. Answers are lines in the same order.
"""

import json
import sys
import time
from typing import Any

import faster_whisper  # pyright: ignore[reportMissingImports]
import numpy as np


def main() -> None:
    checkpoint, beam_size, threads = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    library: Any = faster_whisper
    model = library.WhisperModel(checkpoint, device="cpu", compute_type="int8", cpu_threads=threads)
    encode, windows, encoding_s = model.encode, 0, 0.0

    def counted(features: Any) -> Any:
        nonlocal windows, encoding_s
        began = time.perf_counter()
        encoded = encode(features)
        windows, encoding_s = windows + 1, encoding_s + time.perf_counter() - began
        return encoded

    model.encode = counted
    for line in sys.stdin:
        job = json.loads(line)
        windows, encoding_s, began = 0, 0.0, time.perf_counter()
        segments, _ = model.transcribe(
            np.load(job["audio"]).astype(np.float32) / 32768,
            language=job["language"],
            beam_size=beam_size,
            # Whatever it decodes again after a bad score it samples: never twice the same.
            temperature=0.0,
            word_timestamps=job["words"],
        )
        told = list(segments)
        words = [
            {"text": word.word, "start": float(word.start), "end": float(word.end)}
            for segment in told
            for word in segment.words or ()
        ]
        answer = {
            "text": "".join(segment.text for segment in told).strip(),
            "words": words,
            "window_seconds": 30.0 * windows,
            "encoding_s": encoding_s,
            "seconds": time.perf_counter() - began,
        }
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()

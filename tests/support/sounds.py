"""
Recordings in other formats, as clients send them.
"""

import numpy as np
import numpy.typing as npt
import soxr

from dalston.orchestrator.protocol.messages import Encoding
from dalston.orchestrator.transcription import audio
from dalston.triton.contract import SAMPLE_RATE


def converted(pcm: npt.NDArray[np.int16], rate: int, encoding: Encoding) -> bytes:
    """16 kHz samples at another rate and in another encoding."""
    samples = pcm.astype(np.float32) / 32768
    if rate != SAMPLE_RATE:
        samples = np.clip(soxr.resample(samples, SAMPLE_RATE, rate), -1, 1)
    return encoded(samples, encoding)


def encoded(samples: npt.NDArray[np.float32], encoding: Encoding) -> bytes:
    """-1..1 to bytes."""
    if encoding == "pcm_s16le":
        return np.rint(samples * 32767).astype("<i2").tobytes()
    if encoding == "pcm_f32le":
        return samples.astype("<f4").tobytes()
    # The code whose value is nearest, from the decoder's own table.
    table = audio._MULAW if encoding == "mulaw" else audio._ALAW  # pyright: ignore[reportPrivateUsage]
    order = np.argsort(table)
    middles = (table[order][1:] + table[order][:-1]) / 2
    return order[np.searchsorted(middles, samples)].astype(np.uint8).tobytes()

"""
Silero's ONNX file run directly, frame by frame: what every way to it must equal to the bit.
"""

from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnxruntime

from dalston.triton.contract import VAD_CONTEXT, VAD_FRAME


def probabilities(path: Path, audio: npt.NDArray[np.int16]) -> npt.NDArray[np.float32]:
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    samples = np.concatenate([np.zeros(VAD_CONTEXT), audio / 32768]).astype(np.float32)
    hidden = cell = np.zeros((1, 1, 128), np.float32)
    found: list[float] = []
    for at in range(0, len(audio) // VAD_FRAME * VAD_FRAME, VAD_FRAME):
        frame = samples[None, at : at + VAD_CONTEXT + VAD_FRAME]
        probability, hidden, cell = session.run(
            ["speech_probs", "hn", "cn"], {"input": frame, "h": hidden, "c": cell}
        )
        found.append(probability[0])
    return np.array(found, np.float32)

"""
Whether a turn is over: the last seconds of speech in, the probability that who spoke has finished.

Knows ONNX Runtime, not Triton. The network is smart-turn v3.2 of Daily (BSD-2-Clause), 8 million
parameters in int8, out of the wheel of pipecat-ai: it judges intonation and pace, not words, in the
pause after them. Its features are Whisper's log mel of a waveform that was brought to mean 0 and
variance 1 first, the zeros before short audio included, as in pipecat's _whisper_features.py.
"""

from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnxruntime

from dalston.triton import features
from dalston.triton.contract import TURN_AUDIO

_N_MELS = 80
_VARIANCE_FLOOR = 1e-7  # of transformers' WhisperFeatureExtractor


class EndOfTurn:
    """path: of the ONNX file."""

    def __init__(self, path: Path):
        options = onnxruntime.SessionOptions()
        # One core answers in 80 ms; more threads would fight with the decoders for theirs.
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        self._session = onnxruntime.InferenceSession(
            str(path), options, providers=["CPUExecutionProvider"]
        )

    def probability(self, audio: npt.NDArray[np.int16]) -> float:
        """That the turn is over which `audio` is the end of. It should reach into the pause: the
        network is trained on 200 ms of it."""
        inputs = {"input_features": turn_features(audio)[None]}
        (answer,) = self._session.run(None, inputs)
        return float(answer.item())


def turn_features(audio: npt.NDArray[np.int16]) -> npt.NDArray[np.float32]:
    """[80, 800], of the last 8 s."""
    samples = np.zeros(TURN_AUDIO, np.float32)
    heard = audio[-TURN_AUDIO:].astype(np.float32) / 32768
    samples[TURN_AUDIO - len(heard) :] = heard
    samples = (samples - samples.mean()) / np.sqrt(samples.var() + np.float32(_VARIANCE_FLOOR))
    return features.log_mel_of(samples, TURN_AUDIO // features.HOP, _N_MELS)

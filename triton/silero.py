"""
Silero VAD for many sequences: chunks of audio in, speech probabilities out, state kept between.

Knows ONNX Runtime, not Triton: the model under Triton and a worker that runs it itself
(`DALSTON_VAD=worker`) both call `Silero.probabilities`, and the numbers are the same to the bit.
The file is `silero_vad_16k_sequence.onnx` of silero-vad 6.2: many frames of one sequence in one
call. Stacking frames of different sequences gains a tenth on a CPU, and is not worth its copies.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnxruntime

from dalston.triton.contract import VAD_CONTEXT, VAD_FRAME

_STATE = (1, 1, 128)  # hidden and cell state of the recurrent layer
SWEEP_S = 1.0  # how often states nobody came back to are looked for


class SequenceLost(Exception):
    """Audio for a sequence whose state is not here: it must be started again."""


@dataclass(frozen=True)
class Chunk:
    sequence: str
    audio: npt.NDArray[np.int16]  # any number of samples, none included
    start: bool = False
    end: bool = False


@dataclass
class _State:
    hidden: npt.NDArray[np.float32] = field(default_factory=lambda: np.zeros(_STATE, np.float32))
    cell: npt.NDArray[np.float32] = field(default_factory=lambda: np.zeros(_STATE, np.float32))
    # The context of the next frame, then what came behind the last whole one.
    audio: npt.NDArray[np.float32] = field(
        default_factory=lambda: np.zeros(VAD_CONTEXT, np.float32)
    )
    used: float = 0.0  # clock seconds


class Silero:
    """A sequence unused for `forget_s` is forgotten; 0 keeps them for ever."""

    def __init__(self, path: Path, forget_s: float = 0.0):
        options = onnxruntime.SessionOptions()
        # A second thread gains nothing on so small a network and fights for the core.
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        self._session = onnxruntime.InferenceSession(
            str(path), options, providers=["CPUExecutionProvider"]
        )
        self._states: dict[str, _State] = {}
        self._forget_s = forget_s
        self._swept = 0.0

    def __len__(self) -> int:
        return len(self._states)

    def probabilities(
        self, chunks: Sequence[Chunk], now: float
    ) -> list[npt.NDArray[np.float32] | SequenceLost]:
        """For each chunk the probabilities of its whole frames; `now` is any monotonic clock."""
        results = [self._one(chunk, now) for chunk in chunks]
        if self._forget_s and now - self._swept > SWEEP_S:
            self._swept = now
            for sequence, state in list(self._states.items()):
                if now - state.used > self._forget_s:
                    del self._states[sequence]
        return results

    def forget(self, sequence: str) -> None:
        self._states.pop(sequence, None)

    def _one(self, chunk: Chunk, now: float) -> npt.NDArray[np.float32] | SequenceLost:
        if chunk.start:
            self._states[chunk.sequence] = _State()
        state = self._states.get(chunk.sequence)
        if state is None:
            return SequenceLost(f"no state for the sequence {chunk.sequence!r}: start it again")
        state.used = now
        audio = np.concatenate([state.audio, chunk.audio.astype(np.float32) / np.float32(32768)])
        frames = (len(audio) - VAD_CONTEXT) // VAD_FRAME
        if frames:
            inputs = np.lib.stride_tricks.sliding_window_view(audio, VAD_CONTEXT + VAD_FRAME)
            result, state.hidden, state.cell = self._session.run(
                ["speech_probs", "hn", "cn"],
                {
                    "input": np.ascontiguousarray(inputs[::VAD_FRAME][:frames]),
                    "h": state.hidden,
                    "c": state.cell,
                },
            )
            audio = audio[frames * VAD_FRAME :].copy()
        else:
            result = np.zeros(0, np.float32)
        state.audio = audio
        if chunk.end:
            del self._states[chunk.sequence]
        return result

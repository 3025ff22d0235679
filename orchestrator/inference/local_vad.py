"""
The VAD inside the worker, for machines where the way to Triton costs more than it brings.

It calls the same function as the model in Triton, so the probabilities are identical. Needs
onnxruntime, which worker images otherwise do without.
"""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from dalston.orchestrator.inference.triton_client import SequenceLost, SpeechAnswer
from dalston.orchestrator.transcription.model_requests import SpeechRequest
from dalston.triton.silero import Chunk, Silero


class LocalVad:
    def __init__(self, path: Path):
        self._silero = Silero(path)
        # Not in the event loop; and one thread, since the states are not locked.
        self._thread = ThreadPoolExecutor(1, "vad")

    def request_speech(
        self, request: SpeechRequest, on_answer: Callable[[SpeechAnswer], None]
    ) -> None:
        """`on_answer` is called with the probability of each whole frame, or with why there is
        none."""
        audio = np.frombuffer(request.audio, np.int16)
        chunk = Chunk(request.sequence, audio, request.start, request.end)
        answer = asyncio.get_running_loop().run_in_executor(self._thread, self._answer, chunk)
        answer.add_done_callback(lambda done: on_answer(done.result()))

    def _answer(self, chunk: Chunk) -> SpeechAnswer:
        (result,) = self._silero.probabilities([chunk], 0.0)
        return SequenceLost(str(result)) if isinstance(result, Exception) else result.tolist()

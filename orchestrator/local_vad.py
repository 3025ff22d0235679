"""
The VAD inside the worker, for machines where the way to Triton costs more than it brings.

The same function as the model under Triton calls, so the same probabilities to the bit. Needs
onnxruntime, which worker images otherwise do without.
"""

import asyncio
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from dalston.orchestrator.inference import SequenceLost
from dalston.orchestrator.requests import SpeechRequest
from dalston.triton.silero import Chunk, Silero


class LocalVad:
    def __init__(self, path: Path):
        self._silero = Silero(path)
        # Not in the event loop; and one thread, since the states are not locked.
        self._thread = ThreadPoolExecutor(1, "vad")

    async def speech_probabilities(self, request: SpeechRequest) -> list[float]:
        """The probability of each whole frame. Raises SequenceLost."""
        audio = np.frombuffer(request.audio, np.int16)
        chunk = Chunk(request.sequence, audio, request.start, request.end)
        loop = asyncio.get_running_loop()
        (result,) = await loop.run_in_executor(
            self._thread, self._silero.probabilities, [chunk], 0.0
        )
        if isinstance(result, Exception):
            raise SequenceLost(str(result))
        return result.tolist()

"""
AUDIO of one chunk of a sequence in, PROBABILITY of each whole frame out; none if there is no frame
(whisper_fast says why).

State: for each correlation id the recurrent state and the samples behind the last whole frame,
from START to END, or until nobody asked for it for Triton's own idle limit.
"""

import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils

from dalston.triton.contract import Input, Output
from dalston.triton.silero import Chunk, Silero


class TritonPythonModel:
    def initialize(self, args: dict[str, str]) -> None:
        config = json.loads(args["model_config"])
        idle_us = int(config["sequence_batching"]["max_sequence_idle_microseconds"])
        folder = Path(args["model_repository"], args["model_version"])
        self._silero = Silero(folder / "silero.onnx", forget_s=idle_us / 1e6)

    def execute(self, requests: list[Any]) -> list[Any]:
        answers: list[Any] = [None] * len(requests)
        chunks, places = list[Chunk](), list[int]()
        for place, request in enumerate(requests):
            sequence = str(request.correlation_id())
            if request.is_cancelled():
                # What it carried nobody has heard: the sequence goes no further.
                self._silero.forget(sequence)
                answers[place] = _failure(pb_utils.TritonError.CANCELLED, "cancelled")
                continue
            flags = request.flags()
            audio = pb_utils.get_input_tensor_by_name(request, Input.AUDIO).as_numpy()
            chunks.append(
                Chunk(
                    sequence,
                    audio[0],  # sequences have one row a request: Triton sees to it
                    start=bool(flags & pb_utils.TRITONSERVER_REQUEST_FLAG_SEQUENCE_START),
                    end=bool(flags & pb_utils.TRITONSERVER_REQUEST_FLAG_SEQUENCE_END),
                )
            )
            places.append(place)
        results = self._silero.probabilities(chunks, time.monotonic())
        for place, result in zip(places, results, strict=True):
            if isinstance(result, np.ndarray):
                tensor = pb_utils.Tensor(Output.PROBABILITY, result.reshape(1, -1))
                answers[place] = pb_utils.InferenceResponse([tensor] if result.size else [])
            else:
                answers[place] = _failure(pb_utils.TritonError.NOT_FOUND, str(result))
        return answers


def _failure(code: Any, sentence: str) -> Any:
    return pb_utils.InferenceResponse(error=pb_utils.TritonError(sentence, code))

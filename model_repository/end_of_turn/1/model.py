"""
AUDIO of the end of a turn in, the PROBABILITY that it is over out. Keeps no state.
"""

from pathlib import Path
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils

from dalston.triton.contract import Input, Output
from dalston.triton.turn import EndOfTurn


class TritonPythonModel:
    def initialize(self, args: dict[str, str]) -> None:
        folder = Path(args["model_repository"], args["model_version"])
        self._turn = EndOfTurn(folder / "end_of_turn.onnx")

    def execute(self, requests: list[Any]) -> list[Any]:
        return [self._one(request) for request in requests]

    def _one(self, request: Any) -> Any:
        if request.is_cancelled():
            return _failure(pb_utils.TritonError.CANCELLED, "cancelled")
        audio = pb_utils.get_input_tensor_by_name(request, Input.AUDIO).as_numpy()
        if len(audio) != 1:
            sentence = "more than one row in a request"
            return _failure(pb_utils.TritonError.INVALID_ARG, sentence)
        probability = np.array([[self._turn.probability(audio[0])]], np.float32)
        return pb_utils.InferenceResponse([pb_utils.Tensor(Output.PROBABILITY, probability)])


def _failure(code: Any, sentence: str) -> Any:
    return pb_utils.InferenceResponse(error=pb_utils.TritonError(sentence, code))

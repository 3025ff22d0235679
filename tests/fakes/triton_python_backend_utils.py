"""
What Triton gives to its Python models, as far as ours use it. Read by the tests and by the type
checker; the real module exists only inside the server.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

TRITONSERVER_REQUEST_FLAG_SEQUENCE_START = 1
TRITONSERVER_REQUEST_FLAG_SEQUENCE_END = 2


class Tensor:
    def __init__(self, name: str, values: npt.NDArray[Any]):
        self._name, self._values = name, values

    def name(self) -> str:
        return self._name

    def as_numpy(self) -> npt.NDArray[Any]:
        return self._values


class TritonError(Exception):
    INTERNAL, NOT_FOUND, INVALID_ARG, CANCELLED = 1, 2, 3, 7  # tritonserver.h

    def __init__(self, message: str, code: int = INTERNAL):
        super().__init__(message)
        self._message, self._code = message, code

    def message(self) -> str:
        return self._message

    def code(self) -> int:
        return self._code


class InferenceResponse:
    def __init__(
        self, output_tensors: Sequence[Tensor] = (), error: TritonError | None = None
    ) -> None:
        self._tensors, self._error = list(output_tensors), error

    def output_tensors(self) -> list[Tensor]:
        return self._tensors

    def has_error(self) -> bool:
        return self._error is not None

    def error(self) -> TritonError | None:
        return self._error


class InferenceRequest:
    """A request as a model sees it; tests make them."""

    def __init__(
        self,
        inputs: dict[str, Any],
        *,
        sequence: str | int = "",
        flags: int = 0,
        cancelled: bool = False,
        wanted: Sequence[str] = (),
    ):
        self.inputs = {name: np.atleast_2d(np.asarray(value)) for name, value in inputs.items()}
        self._sequence, self._flags, self._cancelled = sequence, flags, cancelled
        self._wanted = list(wanted)

    def correlation_id(self) -> str | int:
        return self._sequence

    def flags(self) -> int:
        return self._flags

    def is_cancelled(self) -> bool:
        return self._cancelled

    def requested_output_names(self) -> list[str]:
        return self._wanted


def get_input_tensor_by_name(request: InferenceRequest, name: str) -> Tensor:
    return Tensor(name, request.inputs[name])

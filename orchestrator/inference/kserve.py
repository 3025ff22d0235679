"""
What Triton's HTTP understands and answers: inferences with binary tensors (the KServe protocol with
Triton's extensions), and pages of JSON.
"""

import struct
from collections.abc import Sequence
from functools import cache
from typing import Any

import msgspec
import numpy as np

from dalston.orchestrator.inference.http import Answer, CallFailed, Code

_DTYPES = {"INT32": np.dtype("<i4"), "FP32": np.dtype("<f4"), "BOOL": np.dtype("?")}


class BinarySize(msgspec.Struct):
    binary_data_size: int


class Tensor(msgspec.Struct):
    """https://github.com/triton-inference-server/server/blob/main/docs/protocol/extension_binary_data.md"""

    name: str
    shape: list[int]
    datatype: str
    parameters: BinarySize


class _Answered(msgspec.Struct):
    outputs: list[Tensor] = []


class _Failure(msgspec.Struct):
    error: str


Outputs = dict[str, tuple[str, memoryview]]  # by name: datatype and content

_read_answer = msgspec.json.Decoder(_Answered).decode
_read_failure = msgspec.json.Decoder(_Failure).decode


@cache
def _wanted(outputs: Sequence[str]) -> str:
    return ",".join(f'{{"name":"{name}","parameters":{{"binary_data":true}}}}' for name in outputs)


class InferRequest:
    """A request to a model: the names of its tensors as JSON, and after them the tensors, binary.

    The JSON is written by hand: names are those of the contract, and an object for each part costs
    more than the text.
    """

    def __init__(self, model: str, outputs: tuple[str, ...], **parameters: str | bool):
        self.model = model
        self.audio_s = 0.0  # that it takes long to work on
        self._outputs, self._parameters = outputs, parameters
        self._inputs = list[str]()
        self._contents = list[bytes]()

    def add(self, name: str, datatype: str, length: int, content: bytes) -> None:
        """Add an input, of one row."""
        self._inputs.append(
            f'{{"name":"{name}","shape":[1,{length}],"datatype":"{datatype}",'
            f'"parameters":{{"binary_data_size":{len(content)}}}}}'
        )
        self._contents.append(content)

    def wire_form(self, host: str, headers: Sequence[tuple[str, str]]) -> bytes:
        parameters = b""
        if self._parameters:
            parameters = b',"parameters":' + msgspec.json.encode(self._parameters)
        inputs, outputs = ",".join(self._inputs), _wanted(self._outputs)
        json = f'{{"inputs":[{inputs}],"outputs":[{outputs}]'.encode() + parameters + b"}"
        size = len(json) + sum(map(len, self._contents))
        more = "".join([f"{name}: {value}\r\n" for name, value in headers]) if headers else ""
        head = (
            f"POST /v2/models/{self.model}/infer HTTP/1.1\r\nHost: {host}\r\n{more}"
            f"Inference-Header-Content-Length: {len(json)}\r\nContent-Length: {size}\r\n\r\n"
        )
        return b"".join((head.encode(), json, *self._contents))


def outputs(answer: Answer) -> Outputs:
    """Those that have elements. Raises CallFailed."""
    check(answer)
    found, at = Outputs(), 0
    for tensor in _read_answer(answer.json).outputs:
        end = at + tensor.parameters.binary_data_size
        found[tensor.name] = tensor.datatype, answer.binary[at:end]
        at = end
    return found


def check(answer: Answer) -> None:
    """Raises CallFailed if the answer tells of a failure."""
    if answer.status == 200:
        return
    try:
        sentence = _read_failure(answer.json).error
    except msgspec.MsgspecError:
        sentence = answer.json.decode(errors="replace") or f"HTTP {answer.status}"
    try:
        code = Code(answer.status)
    except ValueError:
        code = Code.INTERNAL
    raise CallFailed(code, sentence)


def string(text: str) -> bytes:
    """Triton's form of one string: its length, then its bytes."""
    data = text.encode()
    return struct.pack("<I", len(data)) + data


def value(datatype: str, content: memoryview) -> Any:
    if datatype != "BYTES":
        return np.frombuffer(content, _DTYPES[datatype])
    strings, at = list[str](), 0
    while at < len(content):
        (length,) = struct.unpack_from("<I", content, at)
        strings.append(str(content[at + 4 : at + 4 + length], "utf-8"))
        at += 4 + length
    return strings


# --- pages ----------------------------------------------------------------------------------------


class _Group(msgspec.Struct):
    count: int
    kind: str


class _Parameter(msgspec.Struct):
    string_value: str


_NONE = _Parameter("")


class ModelConfig(msgspec.Struct):
    """What we need of https://github.com/triton-inference-server/common, ModelConfig."""

    max_batch_size: int
    instance_group: list[_Group]
    parameters: dict[str, _Parameter]

    def parameter(self, name: str) -> str:
        """Empty if the model has none of this name."""
        return self.parameters.get(name, _NONE).string_value

    @property
    def partials_in_flight(self) -> int:
        """Enough to keep every instance busy, and batches as large as finals can wait for: on a
        CPU a row in a batch of three costs two thirds of one alone."""
        (group,) = self.instance_group
        rows = self.max_batch_size if group.kind == "KIND_GPU" else 3
        return rows * group.count

    @property
    def places(self) -> int:
        """Rows that are decoded side by side: all of a batch on a GPU, one of each process on a
        CPU."""
        (group,) = self.instance_group
        return (self.max_batch_size if group.kind == "KIND_GPU" else 1) * group.count


class Indexed(msgspec.Struct):
    """A model of the repository.

    https://github.com/triton-inference-server/server/blob/main/docs/protocol/extension_model_repository.md
    """

    name: str
    state: str = ""
    reason: str = ""

    @property
    def asleep(self) -> bool:
        return self.state in ("UNLOADING", "LOADING") or self.reason == "unloaded"


class Region(msgspec.Struct):
    """https://github.com/triton-inference-server/server/blob/main/docs/protocol/extension_shared_memory.md"""

    name: str


class _Count(msgspec.Struct):
    count: int


class _Outcomes(msgspec.Struct):
    success: _Count


class _ModelStats(msgspec.Struct):
    inference_stats: _Outcomes


class _Stats(msgspec.Struct):
    """What we need of
    https://github.com/triton-inference-server/server/blob/main/docs/protocol/extension_statistics.md
    """

    model_stats: list[_ModelStats]


read_config = msgspec.json.Decoder(ModelConfig).decode
read_index = msgspec.json.Decoder(list[Indexed]).decode
read_regions = msgspec.json.Decoder(list[Region]).decode
read_stats = msgspec.json.Decoder(_Stats).decode

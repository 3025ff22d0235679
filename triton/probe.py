"""
Whether models answer: health is an inference, for a model whose process has died stays "ready".
"""

import asyncio
import os
import struct
import sys
import time
from collections.abc import Sequence
from typing import Any

import grpc
import grpc.aio
from tritonclient.grpc import service_pb2, service_pb2_grpc

from dalston.triton.contract import TURN_MODEL, VAD_MODEL, WHISPER_INPUTS, Input
from dalston.triton.installation import ServerError

DEADLINE_S = 30.0  # behind a queue of finals
CHANGING_S = 10.0  # how long a model may be on its way in or out


async def probe(stub: Any, model: str, deadline_s: float = DEADLINE_S) -> None:
    """Ask a model something small. Raises ServerError if it gives no answer."""
    request = service_pb2.ModelInferRequest(model_name=model)

    def add(name: str, datatype: str, shape: Sequence[int], content: bytes) -> None:
        request.inputs.add(name=name, datatype=datatype, shape=shape)
        request.raw_input_contents.append(content)

    samples = 1024
    if model == VAD_MODEL:
        request.parameters["sequence_id"].string_param = f"probe.{os.getpid()}.{time.time_ns()}"
        request.parameters["sequence_start"].bool_param = True
        request.parameters["sequence_end"].bool_param = True
        add(Input.AUDIO, "INT16", [1, samples], bytes(2 * samples))
    elif model == TURN_MODEL:
        add(Input.AUDIO, "INT16", [1, samples], bytes(2 * samples))
    else:
        values = {
            Input.AUDIO: bytes(2 * samples),
            Input.PREFIX: b"",
            Input.DRAFT: b"",
            Input.LANGUAGE: "en",
            Input.TASK: "transcribe",
            Input.PROMPT: "",
            Input.KEYWORDS: "",
        }
        for tensor in WHISPER_INPUTS:
            value = values.get(tensor.name, b"\0")
            if isinstance(value, str):
                add(tensor.name, "BYTES", [1, 1], struct.pack("<I", len(value)) + value.encode())
            else:
                count = len(value) // {"INT16": 2, "INT32": 4, "BOOL": 1}[tensor.type]
                add(tensor.name, tensor.type, [1, count], value)
    try:
        await stub.ModelInfer(request, timeout=deadline_s)
    except grpc.aio.AioRpcError as error:
        raise ServerError(f"{model}: {error.details()}") from None


async def probe_all(address: str, lately_s: float = 0.0) -> None:
    """Whether every model of the server at `address` answers. Raises ServerError.

    One that is unloaded is none that fails. One that has answered somebody in the last `lately_s`
    is not asked: who asks it keeps it from being unloaded.
    """
    async with grpc.aio.insecure_channel(address) as channel:
        stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
        for model, answered in (await _loaded(stub, address)).items():
            if lately_s and answered > time.time() - lately_s:
                continue
            try:
                await probe(stub, model)
            except ServerError:
                # It may have been unloaded after it was listed.
                if model in await _loaded(stub, address):
                    raise


async def _loaded(stub: Any, address: str) -> dict[str, float]:
    """The models that are loaded, those that do not answer among them, and when each last answered,
    as seconds of the epoch by its server's clock; 0: never. Raises ServerError.

    Not from the index of models, for which we would need the token (restricted.py). A server says
    that it is ready if no model but those that were unloaded is missing.
    """
    began = time.monotonic()
    try:
        while not (await stub.ServerReady(service_pb2.ServerReadyRequest(), timeout=5)).ready:
            if time.monotonic() - began > CHANGING_S:
                raise ServerError(f"the Triton at {address} does not have every model loaded")
            await asyncio.sleep(0.1)
        statistics = await stub.ModelStatistics(service_pb2.ModelStatisticsRequest(), timeout=5)
    except grpc.aio.AioRpcError as error:
        raise ServerError(f"no Triton at {address}: {error.details()}") from None
    if not statistics.model_stats:
        raise ServerError(f"the Triton at {address} has no models")
    return {model.name: model.last_inference / 1000 for model in statistics.model_stats}


def main(address: str, lately_s: float = 0.0) -> int:
    """Exit status 0 if every model answers, or has in the last `lately_s`."""
    try:
        asyncio.run(probe_all(address, lately_s))
    except ServerError as error:
        print(error, file=sys.stderr)
        return 1
    return 0

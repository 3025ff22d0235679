"""
A server in Triton's place that answers everything at once, without a model: so that what is
measured is gateway and worker alone. Speech is what is loud; every transcript is the same.

    python bench/instant.py PORT      gRPC
"""

import asyncio
import sys
from typing import Any

import grpc.aio
import numpy as np
from tritonclient.grpc import service_pb2, service_pb2_grpc

from dalston.triton.contract import STAGES, VAD_FRAME, VAD_MODEL, WHISPER_OUTPUTS

LOUD = 200.0  # of int16, root mean square of a frame
SPEECH, SILENCE = 0.95, 0.02
_TEXT = b"\x16\0\0\0and that is what it is"
_CONTENTS = {
    "TEXT": _TEXT,
    "TOKENS": np.arange(6, dtype="<i4").tobytes(),
    "TOKEN_ENDS": np.array([3, 8, 11, 16, 19, 22], "<i4").tobytes(),
    "LANGUAGE": b"\x02\0\0\0en",
    "SUSPECT": b"\0",
    "WORD": b"",
    "WORD_START": b"",
    "WORD_END": b"",
    "WORD_PROBABILITY": b"",
    "STAGE_SECONDS": np.zeros(len(STAGES), "<f4").tobytes(),
}
_ONE = np.array([1.0], "<f4").tobytes()


class Instant(service_pb2_grpc.GRPCInferenceServiceServicer):
    async def ServerLive(self, request: Any, context: Any) -> Any:
        return service_pb2.ServerLiveResponse(live=True)

    async def ModelReady(self, request: Any, context: Any) -> Any:
        return service_pb2.ModelReadyResponse(ready=True)

    async def ModelConfig(self, request: Any, context: Any) -> Any:
        answer = service_pb2.ModelConfigResponse()
        answer.config.max_batch_size = 16
        answer.config.instance_group.add(count=2, kind=2)
        for key, value in (("checkpoint_id", "instant"), ("languages", "en")):
            answer.config.parameters[key].string_value = value
        return answer

    async def ModelInfer(self, request: Any, context: Any) -> Any:
        answer = service_pb2.ModelInferResponse(model_name=request.model_name)
        if request.model_name == VAD_MODEL:
            audio = np.frombuffer(request.raw_input_contents[0], "<i2").astype(np.float32)
            frames = audio[: len(audio) // VAD_FRAME * VAD_FRAME].reshape(-1, VAD_FRAME)
            loud = np.sqrt((frames**2).mean(axis=1)) > LOUD
            found = np.where(loud, SPEECH, SILENCE).astype("<f4")
            answer.outputs.add(name="PROBABILITY", datatype="FP32", shape=[1, len(found)])
            answer.raw_output_contents.append(found.tobytes())
            return answer
        types = {tensor.name: tensor.type for tensor in WHISPER_OUTPUTS}
        for output in request.outputs:
            datatype = types[output.name].replace("STRING", "BYTES")
            answer.outputs.add(name=output.name, datatype=datatype, shape=[1, 1])
            answer.raw_output_contents.append(_CONTENTS.get(output.name, _ONE))
        return answer


async def main() -> None:
    server = grpc.aio.server()
    service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(Instant(), server)  # pyright: ignore
    server.add_insecure_port(f"127.0.0.1:{sys.argv[1]}")
    await server.start()
    await server.wait_for_termination()


if __name__ == "__main__":
    asyncio.run(main())

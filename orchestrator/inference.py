"""
The models, as coroutines: Triton over gRPC. The only file that imports tritonclient.

Calls are unary with deadlines, never streams: this server's streaming crashes under load. Nor are
they cancelled: a cancellation that meets the answer on its way crashes it too (docs/log.md). The
generated stubs are used directly; the client class around them builds the same messages with
three times the work, ten times a second for every stream.

Finals are asked for at once. Partials wait here while as many are under way as keep the models
busy, so that a final finds few of them before it, and the first of an utterance before others;
Triton's own priorities would do some of this too, but stall its batcher (docs/log.md).
"""

import asyncio
import contextlib
import struct
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import grpc
import grpc.aio
import numpy as np
from tritonclient.grpc import service_pb2, service_pb2_grpc

from dalston.orchestrator.requests import Hypothesis, SpeechRequest, TimedWord, TranscriptRequest
from dalston.orchestrator.turns import Turns
from dalston.triton.contract import STAGES, VAD_MODEL, VARIANTS, whisper_model

SPEECH_DEADLINE_S = 10.0
PARTIAL_DEADLINE_S = 5.0  # another is due long before
FINAL_DEADLINE_S = 60.0
# 30 s of audio are 960 KB; answers are small.
_CHANNEL_OPTIONS = [
    ("grpc.max_send_message_length", 4 << 20),
    ("grpc.max_receive_message_length", 4 << 20),
]

# The outputs a partial needs; a final also wants words and scores.
_PARTIAL_OUTPUTS = ("TEXT", "TOKENS", "TOKEN_ENDS", "LANGUAGE", "LANGUAGE_PROBABILITY")
_FINAL_OUTPUTS = (
    *_PARTIAL_OUTPUTS,
    "AVERAGE_LOGPROB",
    "NO_SPEECH_PROBABILITY",
    "SUSPECT",
    "WORD",
    "WORD_START",
    "WORD_END",
    "WORD_PROBABILITY",
    "STAGE_SECONDS",
)
_DTYPES = {"INT32": np.dtype("<i4"), "FP32": np.dtype("<f4"), "BOOL": np.dtype("?")}


class InferenceError(Exception):
    """A model did not answer. `retryable`: it may, if asked again."""

    def __init__(self, sentence: str, retryable: bool):
        super().__init__(sentence)
        self.retryable = retryable


class SequenceLost(Exception):
    """The VAD no longer knows this sequence, or never will: it has to be started again."""


@dataclass(frozen=True)
class LoadedVariant:
    """What Triton serves as whisper_<variant>."""

    model_id: str
    languages: tuple[str, ...]
    partials_in_flight: int  # at most, of one worker


def _nobody_waits() -> None:
    pass


class Triton:
    """Both models behind one server's URL, "host:port" of its gRPC."""

    def __init__(self, url: str):
        self._channel = grpc.aio.insecure_channel(url, options=_CHANNEL_OPTIONS)
        self._stub: Any = service_pb2_grpc.GRPCInferenceServiceStub(self._channel)
        # By variant, as large as the variant was when it was first seen.
        self._partials: dict[str, Turns] = {}

    async def close(self) -> None:
        await self._channel.close()

    async def variants(self) -> Mapping[str, LoadedVariant]:
        """The Whisper variants that are ready. Raises InferenceError if the VAD is not, or none."""
        try:
            if not (await self._ready(VAD_MODEL)):
                raise InferenceError(f"{VAD_MODEL} is not ready", retryable=True)
            loaded: dict[str, LoadedVariant] = {}
            for variant in VARIANTS:
                if not await self._ready(whisper_model(variant)):
                    continue
                request = service_pb2.ModelConfigRequest(name=whisper_model(variant))
                config = (await self._stub.ModelConfig(request, timeout=5)).config
                parameters = {k: v.string_value for k, v in config.parameters.items()}
                loaded[variant] = LoadedVariant(
                    parameters["checkpoint_id"],
                    tuple(parameters["languages"].split()),
                    _partials_in_flight(config),
                )
                self._partials.setdefault(variant, Turns(loaded[variant].partials_in_flight))
        except grpc.aio.AioRpcError as error:
            raise InferenceError(_sentence(error), retryable=True) from None
        if not loaded:
            raise InferenceError("no Whisper model is ready", retryable=True)
        return loaded

    async def _ready(self, model: str) -> bool:
        request = service_pb2.ModelReadyRequest(name=model)
        with contextlib.suppress(grpc.aio.AioRpcError):
            return (await self._stub.ModelReady(request, timeout=5)).ready
        return False

    async def speech_probabilities(self, request: SpeechRequest) -> list[float]:
        """The probability of each whole frame. Raises SequenceLost."""
        call = service_pb2.ModelInferRequest(model_name=VAD_MODEL)
        call.parameters["sequence_id"].string_param = request.sequence
        call.parameters["sequence_start"].bool_param = request.start
        call.parameters["sequence_end"].bool_param = request.end
        _add(call, "AUDIO", "INT16", [1, len(request.audio) // 2], request.audio)
        try:
            response = await self._infer(call, SPEECH_DEADLINE_S)
        except grpc.aio.AioRpcError as error:
            # Whatever it was, this part of the audio was or was not heard: nobody knows.
            raise SequenceLost(_sentence(error)) from None
        content = response.raw_output_contents[0]
        return list(struct.unpack(f"<{len(content) // 4}f", content))

    async def transcribe(self, request: TranscriptRequest) -> Hypothesis:
        """For a variant of `variants`. Raises InferenceError."""
        final = request.kind == "final"
        answered: Callable[[], None] = _nobody_waits
        if not final:
            turns = self._partials[request.variant]
            await turns.take(request.urgent)
            answered = turns.give_back
            request = request.newest() if request.newest else request
        asked = time.perf_counter()
        outputs = await self._whisper(request, answered, full_window=False)
        if not final:
            return _hypothesis(outputs, {})
        spent = outputs["STAGE_SECONDS"]
        if bool(outputs["SUSPECT"][0]):
            # Right-sized windows can harm a stock checkpoint: once more as it was trained.
            outputs = await self._whisper(request, answered, full_window=True)
            spent = spent + outputs["STAGE_SECONDS"]
        elsewhere = time.perf_counter() - asked - float(spent.sum())
        return _hypothesis(outputs, dict(zip(STAGES, spent.tolist(), strict=True), queue=elsewhere))

    async def _whisper(
        self, request: TranscriptRequest, answered: Callable[[], None], full_window: bool
    ) -> dict[str, Any]:
        final = request.kind == "final"
        call = service_pb2.ModelInferRequest(model_name=whisper_model(request.variant))
        prefix = np.array(request.prefix, "<i4").tobytes()
        draft = np.array(request.draft, "<i4").tobytes()
        _add(call, "AUDIO", "INT16", [1, len(request.audio) // 2], request.audio)
        _add(call, "LANGUAGE", "BYTES", [1, 1], _string(request.language))
        _add(call, "TASK", "BYTES", [1, 1], _string("transcribe"))
        _add(call, "PREFIX", "INT32", [1, len(request.prefix)], prefix)
        _add(call, "DRAFT", "INT32", [1, len(request.draft)], draft)
        _add(call, "WORDS", "BOOL", [1, 1], bytes([request.words]))
        _add(call, "FULL_WINDOW", "BOOL", [1, 1], bytes([full_window]))
        for name in _FINAL_OUTPUTS if final else _PARTIAL_OUTPUTS:
            call.outputs.add(name=name)
        try:
            deadline = FINAL_DEADLINE_S if final else PARTIAL_DEADLINE_S
            response = await self._infer(call, deadline, answered)
        except grpc.aio.AioRpcError as error:
            retryable = error.code() not in (
                grpc.StatusCode.INVALID_ARGUMENT,
                grpc.StatusCode.UNIMPLEMENTED,
            )
            raise InferenceError(_sentence(error), retryable) from None
        return {
            output.name: _value(output.datatype, content)
            for output, content in zip(response.outputs, response.raw_output_contents, strict=True)
        }

    async def _infer(
        self, call: Any, deadline: float, answered: Callable[[], None] = _nobody_waits
    ) -> Any:
        """The answer. If nobody waits for it any more, it comes all the same and is dropped."""

        def over(answer: asyncio.Future[Any]) -> None:
            answered()
            if not answer.cancelled():
                answer.exception()  # else asyncio complains that nobody asked

        answer = asyncio.ensure_future(self._stub.ModelInfer(call, timeout=deadline))
        answer.add_done_callback(over)
        return await asyncio.shield(answer)


def _partials_in_flight(config: Any) -> int:
    """Enough to keep every instance busy: a batch on a GPU; on a CPU one row and the next."""
    (group,) = config.instance_group
    rows = config.max_batch_size if group.kind == group.KIND_GPU else 2
    return rows * group.count


def _add(call: Any, name: str, datatype: str, shape: list[int], content: bytes) -> None:
    call.inputs.add(name=name, datatype=datatype, shape=shape)
    call.raw_input_contents.append(content)


def _string(text: str) -> bytes:
    """Triton's form of one string: its length, then its bytes."""
    data = text.encode()
    return struct.pack("<I", len(data)) + data


def _value(datatype: str, content: bytes) -> Any:
    if datatype != "BYTES":
        return np.frombuffer(content, _DTYPES[datatype])
    strings, at = list[str](), 0
    while at < len(content):
        (length,) = struct.unpack_from("<I", content, at)
        strings.append(content[at + 4 : at + 4 + length].decode())
        at += 4 + length
    return strings


def _hypothesis(outputs: dict[str, Any], stages: Mapping[str, float]) -> Hypothesis:
    words = zip(
        outputs.get("WORD", ()),
        outputs.get("WORD_START", ()),
        outputs.get("WORD_END", ()),
        outputs.get("WORD_PROBABILITY", ()),
        strict=True,
    )
    return Hypothesis(
        text=outputs["TEXT"][0],
        tokens=tuple(outputs["TOKENS"].tolist()),
        token_ends=tuple(outputs["TOKEN_ENDS"].tolist()),
        language=outputs["LANGUAGE"][0],
        language_probability=float(outputs["LANGUAGE_PROBABILITY"][0]),
        average_logprob=float(outputs["AVERAGE_LOGPROB"][0])
        if "AVERAGE_LOGPROB" in outputs
        else 0.0,
        no_speech_probability=float(outputs["NO_SPEECH_PROBABILITY"][0])
        if "NO_SPEECH_PROBABILITY" in outputs
        else 0.0,
        words=tuple(TimedWord(w, float(a), float(b), float(p)) for w, a, b, p in words),
        stages=stages,
    )


def _sentence(error: grpc.aio.AioRpcError) -> str:
    return f"Triton: {error.details() or error.code().name}"

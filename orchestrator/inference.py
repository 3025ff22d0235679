"""
The models of one Triton, as coroutines. fleet.py makes one of several.

Finals are asked for at once. Partials wait here while as many are under way as keep the models
busy, so that a final finds few of them before it, and the first of an utterance before others;
Triton's own priorities would do some of this too, but stall its batcher (docs/log.md).
"""

import secrets
import struct
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import grpc
import numpy as np
from tritonclient.grpc import service_pb2

from dalston.orchestrator import traces
from dalston.orchestrator.channel import CallFailed, Channel
from dalston.orchestrator.requests import Hypothesis, SpeechRequest, TimedWord, TranscriptRequest
from dalston.orchestrator.turns import Turns
from dalston.triton.contract import STAGES, VAD_MODEL, VARIANTS, whisper_model

SPEECH_DEADLINE_S = 10.0
PARTIAL_DEADLINE_S = 5.0  # another is due long before
FINAL_DEADLINE_S = 60.0
PROBE_DEADLINE_S = 10.0  # behind a queue of finals
_SILENCE = bytes(2 * 1600)  # 0.1 s

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

    def __init__(
        self, sentence: str, retryable: bool, code: grpc.StatusCode = grpc.StatusCode.UNAVAILABLE
    ):
        super().__init__(sentence)
        self.retryable = retryable
        self.code = code


class SequenceLost(Exception):
    """The VAD no longer knows this sequence, or never will: it has to be started again."""

    def __init__(self, sentence: str, code: grpc.StatusCode = grpc.StatusCode.NOT_FOUND):
        super().__init__(sentence)
        self.code = code


@dataclass(frozen=True)
class LoadedVariant:
    """What Triton serves as whisper_<variant>."""

    model_id: str
    languages: tuple[str, ...]
    partials_in_flight: int  # at most, of one worker


class Triton:
    """Both models behind one server's URL, "host:port" of its gRPC."""

    def __init__(self, url: str):
        self._channel = Channel(url)
        self._waiting = 0  # partials, for their turn
        # By variant, as large as the variant was when it was first seen.
        self._partials: dict[str, Turns] = {}

    async def close(self) -> None:
        await self._channel.close()

    @property
    def url(self) -> str:
        return self._channel.url

    @property
    def pending(self) -> int:
        return self._waiting + self._channel.pending

    def mute_s(self, model: str) -> float:
        """For how long a model has answered nobody, while somebody waits."""
        return self._channel.mute_s(model)

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
                config = (await self._channel.ask("ModelConfig", request)).config
                parameters = {k: v.string_value for k, v in config.parameters.items()}
                loaded[variant] = LoadedVariant(
                    parameters["checkpoint_id"],
                    tuple(parameters["languages"].split()),
                    _partials_in_flight(config),
                )
                self._partials.setdefault(variant, Turns(loaded[variant].partials_in_flight))
        except CallFailed as error:
            raise InferenceError(_sentence(error), retryable=True, code=error.code) from None
        if not loaded:
            raise InferenceError("no Whisper model is ready", retryable=True)
        return loaded

    async def _ready(self, model: str) -> bool:
        request = service_pb2.ModelReadyRequest(name=model)
        try:
            return (await self._channel.ask("ModelReady", request)).ready
        except CallFailed as error:
            if error.code in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED):
                raise  # that is the server, and what else is asked of it would tell the same
        return False

    async def probe(self, model: str) -> None:
        """Whether a model works, by asking it something small. Raises InferenceError."""
        if model != VAD_MODEL:
            (variant,) = (name for name in VARIANTS if whisper_model(name) == model)
            request = TranscriptRequest(0, "partial", _SILENCE, "en", variant)  # pyright: ignore[reportArgumentType]
            await self._whisper(request, PROBE_DEADLINE_S)
            return
        sequence = f"probe.{secrets.token_hex(8)}"
        try:
            for request in (
                SpeechRequest(sequence, bytes(1024), start=True),
                SpeechRequest(sequence, b"", end=True),
            ):
                await self.speech_probabilities(request)
        except SequenceLost as error:
            raise InferenceError(str(error), retryable=True, code=error.code) from None

    async def speech_probabilities(self, request: SpeechRequest) -> list[float]:
        """The probability of each whole frame. Raises SequenceLost."""
        call = service_pb2.ModelInferRequest(model_name=VAD_MODEL)
        call.parameters["sequence_id"].string_param = request.sequence
        call.parameters["sequence_start"].bool_param = request.start
        call.parameters["sequence_end"].bool_param = request.end
        _add(call, "AUDIO", "INT16", [1, len(request.audio) // 2], request.audio)
        try:
            response = await self._channel.infer(call, SPEECH_DEADLINE_S)
        except CallFailed as error:
            # Whatever it was, this part of the audio was or was not heard: nobody knows.
            raise SequenceLost(_sentence(error), error.code) from None
        content = response.raw_output_contents[0]
        return list(struct.unpack(f"<{len(content) // 4}f", content))

    async def transcribe(self, request: TranscriptRequest) -> Hypothesis:
        """For a variant of `variants`. Raises InferenceError."""
        if request.kind == "partial":
            turns = self._partials[request.variant]
            self._waiting += 1
            try:
                await turns.take(request.urgent)
            finally:
                self._waiting -= 1
            request = request.newest() if request.newest else request
            outputs = await self._whisper(request, PARTIAL_DEADLINE_S, over=turns.give_back)
            return _hypothesis(outputs, {})
        asked = time.perf_counter()
        outputs = await self._final(request)
        spent = outputs["STAGE_SECONDS"]
        if bool(outputs["SUSPECT"][0]):
            # Right-sized windows can harm a stock checkpoint: once more as it was trained.
            outputs = await self._final(request, full_window=True)
            spent = spent + outputs["STAGE_SECONDS"]
        elsewhere = time.perf_counter() - asked - float(spent.sum())
        return _hypothesis(outputs, dict(zip(STAGES, spent.tolist(), strict=True), queue=elsewhere))

    async def _final(self, request: TranscriptRequest, full_window: bool = False) -> dict[str, Any]:
        about = {"dalston.triton": self.url, "dalston.full_window": full_window}
        with traces.span(whisper_model(request.variant), about, kind="client"):
            return await self._whisper(request, FINAL_DEADLINE_S, full_window)

    async def _whisper(
        self,
        request: TranscriptRequest,
        deadline_s: float,
        full_window: bool = False,
        over: Callable[[], None] = lambda: None,
    ) -> dict[str, Any]:
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
        for name in _FINAL_OUTPUTS if request.kind == "final" else _PARTIAL_OUTPUTS:
            call.outputs.add(name=name)
        try:
            metadata = traces.metadata() if request.kind == "final" else None
            response = await self._channel.infer(call, deadline_s, over, metadata)
        except CallFailed as error:
            retryable = error.code not in (
                grpc.StatusCode.INVALID_ARGUMENT,
                grpc.StatusCode.UNIMPLEMENTED,
            )
            raise InferenceError(_sentence(error), retryable, error.code) from None
        return {
            output.name: _value(output.datatype, content)
            for output, content in zip(response.outputs, response.raw_output_contents, strict=True)
        }


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


def _sentence(error: CallFailed) -> str:
    return f"Triton: {error}"

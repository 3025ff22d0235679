"""
Each model.py as Triton calls it, but for Triton: the requests are made by hand.
"""

import json
import runpy
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import triton_python_backend_utils as pb_utils
from google.protobuf import json_format, text_format
from recordings import Pcm, spoken
from support.silero_file import probabilities
from triton_python_backend_utils import InferenceRequest, InferenceResponse
from tritonclient.grpc import model_config_pb2

from dalston.triton.contract import (
    SAMPLE_RATE,
    TURN_MODEL,
    VAD_FRAME,
    VAD_MODEL,
    VARIANTS,
    WHISPER_OUTPUTS,
    whisper_model,
)
from dalston.triton.silero import SWEEP_S
from dalston.triton.turn import EndOfTurn

SOURCE = Path(__file__).parents[2] / "model_repository"
WHISPERS = [whisper_model(variant) for variant in VARIANTS]
OUTPUTS = [tensor.name for tensor in WHISPER_OUTPUTS]
START = pb_utils.TRITONSERVER_REQUEST_FLAG_SEQUENCE_START
END = pb_utils.TRITONSERVER_REQUEST_FLAG_SEQUENCE_END

SPEECH = spoken()[0]


def started(repository: Path, name: str, idle_us: int | None = None) -> Any:
    """The model of our source, told of its folder and configuration as Triton tells it."""
    text = (repository / name / "config.pbtxt").read_text("utf-8")
    config = text_format.Parse(text, model_config_pb2.ModelConfig())
    if idle_us is not None:
        config.sequence_batching.max_sequence_idle_microseconds = idle_us
    model = runpy.run_path(str(SOURCE / name / "1" / "model.py"))["TritonPythonModel"]()
    model.initialize(
        {
            "model_config": json_format.MessageToJson(config, preserving_proto_field_name=True),
            "model_repository": str(repository / name),
            "model_version": "1",
            "model_instance_kind": "CPU",
            "model_instance_device_id": "0",
        }
    )
    return model


def answer(response: InferenceResponse) -> dict[str, npt.NDArray[Any]]:
    """The outputs of a response that is no error; each is one row."""
    assert not response.has_error(), response.error()
    tensors = {tensor.name(): tensor.as_numpy() for tensor in response.output_tensors()}
    assert all(values.shape[0] == 1 for values in tensors.values())
    return {name: values[0] for name, values in tensors.items()}


def failure(response: InferenceResponse) -> tuple[int, str]:
    """Code and sentence of a response that is an error."""
    error = response.error()
    assert error
    assert not response.output_tensors()
    return error.code(), error.message()


# --- Whisper --------------------------------------------------------------------------------------


@pytest.fixture(scope="module", params=WHISPERS)
def whisper(request: pytest.FixtureRequest, model_repository: Path) -> Any:
    return started(model_repository, request.param)


def row(
    audio: Pcm = SPEECH,
    language: bytes = b"en",
    task: bytes = b"transcribe",
    prompt: str = "",
    keywords: Sequence[str] = (),
    prefix: Sequence[int] = (),
    draft: Sequence[int] = (),
    words: bool = False,
    full_window: bool = False,
    wanted: Sequence[str] = OUTPUTS,
    cancelled: bool = False,
) -> InferenceRequest:
    return InferenceRequest(
        {
            "AUDIO": np.array(audio, np.int16),
            "LANGUAGE": np.array([language], object),
            "TASK": np.array([task], object),
            "PROMPT": np.array([prompt.encode()], object),
            "KEYWORDS": np.array(["\n".join(keywords).encode()], object),
            "PREFIX": np.array(prefix, np.int32),
            "DRAFT": np.array(draft, np.int32),
            "WORDS": np.array([words]),
            "FULL_WINDOW": np.array([full_window]),
        },
        wanted=wanted,
        cancelled=cancelled,
    )


# 001-13
def test_a_transcript_has_every_output_in_the_type_of_the_contract(whisper: Any):
    (response,) = whisper.execute([row(words=True)])
    outputs = answer(response)
    assert list(outputs) == [name for name in OUTPUTS if name != "PROMPT_CUT"]  # nothing was cut
    types = {"STRING": np.object_, "INT32": np.int32, "FP32": np.float32, "BOOL": np.bool_}
    for tensor in WHISPER_OUTPUTS:
        if tensor.name not in outputs:
            continue
        values = outputs[tensor.name]
        assert values.dtype == types[tensor.type], tensor.name
        assert tensor.shape == (-1,) or values.shape == tensor.shape, tensor.name
    assert all(isinstance(word, bytes) for word in [*outputs["TEXT"], *outputs["WORD"]])
    assert len(outputs["TEXT"][0].split()) >= 2
    assert b" ".join(outputs["WORD"].tolist()) == outputs["TEXT"][0]
    assert len(outputs["TOKENS"]) == len(outputs["TOKEN_ENDS"]) > 0
    assert len(outputs["TOKENS"]) == len(outputs["TOKEN_TIMES"]) == len(outputs["TOKEN_LOGPROBS"])
    times = [outputs[name] for name in ("WORD_START", "WORD_END", "WORD_PROBABILITY")]
    assert all(len(values) == len(outputs["WORD"]) for values in times)


def test_outputs_without_elements_are_left_out(whisper: Any):
    (response,) = whisper.execute([row(audio=np.zeros(SAMPLE_RATE, np.int16), words=True)])
    outputs = answer(response)
    assert outputs["TEXT"].tolist() == [b""]
    variable = {tensor.name for tensor in WHISPER_OUTPUTS if tensor.shape == (-1,)}
    assert list(outputs) == [name for name in OUTPUTS if name not in variable]


def test_only_outputs_that_are_wanted_are_sent(whisper: Any):
    (response,) = whisper.execute([row(words=True, wanted=["TEXT", "SUSPECT"])])
    assert list(answer(response)) == ["TEXT", "SUSPECT"]


def test_every_request_is_answered_in_order_errors_and_cancelled_ones_included(whisper: Any):
    other = spoken()[2]
    requests = [
        row(audio=other),
        row(language=b"tlh"),
        row(cancelled=True),
        row(language=b"\xff\xfe"),
        row(),
        row(task=b"sing"),
        row(prefix=[50_257]),
        row(audio=np.zeros(31 * SAMPLE_RATE, np.int16)),
        row(audio=np.zeros(0, np.int16)),
        row(audio=np.zeros((2, 1000), np.int16)),
        row(language=b"de"),
    ]
    responses = whisper.execute(requests)
    assert len(responses) == len(requests)
    bad = {
        index: failure(responses[index])
        for index, response in enumerate(responses)
        if response.has_error()
    }
    invalid, cancelled = pb_utils.TritonError.INVALID_ARG, pb_utils.TritonError.CANCELLED
    assert bad == {
        1: (invalid, "this model does not know the language 'tlh'"),
        2: (cancelled, "cancelled"),
        3: (invalid, "'utf-8' codec can't decode byte 0xff in position 0: invalid start byte"),
        5: (invalid, "unknown task 'sing'"),
        6: (invalid, "the prefix holds tokens that are no text"),
        7: (invalid, "31.00 s of audio, 30 s at most"),
        9: (invalid, "more than one row in a request"),
    }
    # Each good one has the answer that it has alone.
    for index in (0, 4, 8, 10):
        (alone,) = whisper.execute([requests[index]])
        assert answer(responses[index])["TEXT"] == answer(alone)["TEXT"]
    assert answer(responses[0])["TEXT"] != answer(responses[4])["TEXT"]
    assert answer(responses[10])["LANGUAGE"].tolist() == [b"de"]


def test_a_runtime_that_fails_is_an_internal_error_of_that_row(model_repository: Path):
    whisper = started(model_repository, WHISPERS[0])
    odd = row()
    odd.inputs["AUDIO"] = np.zeros((1, 5, 2), np.int16)  # Triton would not let it pass
    first, second = whisper.execute([odd, row()])
    code, sentence = failure(first)
    assert code == pb_utils.TritonError.INTERNAL
    assert sentence
    assert answer(second)["TEXT"][0]


def test_a_batch_of_nobody_who_waits_still_runs(whisper: Any):
    responses = whisper.execute([row(cancelled=True), row(cancelled=True)])
    assert [failure(response)[0] for response in responses] == [pb_utils.TritonError.CANCELLED] * 2


def test_the_languages_of_the_configuration_are_the_ones_that_are_taken(whisper: Any):
    # The demo checkpoint has tokens for a hundred, and learned four.
    languages = (b"en", b"es", b"de", b"fr", b"zh", b"auto")
    responses = whisper.execute([row(language=language) for language in languages])
    assert [response.has_error() for response in responses] == [False] * 4 + [True, False]


def test_a_prefix_and_a_full_window_reach_the_model(whisper: Any):
    (free, full) = whisper.execute([row(), row(full_window=True)])
    tokens = answer(free)["TOKENS"].tolist()
    (forced,) = whisper.execute([row(prefix=[*tokens[:2], 1])])
    assert answer(forced)["TOKENS"].tolist()[:3] == [*tokens[:2], 1]
    assert answer(full)["TEXT"][0]


# --- end of turn ----------------------------------------------------------------------------------


def test_turns_are_judged_and_what_nobody_waits_for_is_not(turns_repository: Path):
    model = started(turns_repository, TURN_MODEL)
    asked = InferenceRequest({"AUDIO": SPEECH})
    cancelled = InferenceRequest({"AUDIO": SPEECH}, cancelled=True)
    found, dropped = model.execute([asked, cancelled])
    outputs = answer(found)
    path = turns_repository / TURN_MODEL / "1" / "end_of_turn.onnx"
    assert outputs["PROBABILITY"].dtype == np.float32
    assert outputs["PROBABILITY"].tolist() == [
        np.float32(EndOfTurn(path).probability(np.array(SPEECH, np.int16)))
    ]
    assert failure(dropped) == (pb_utils.TritonError.CANCELLED, "cancelled")


# --- VAD ------------------------------------------------------------------------------------------


@pytest.fixture
def vad(model_repository: Path) -> Any:
    return started(model_repository, VAD_MODEL)


def chunk(
    sequence: str | int, audio: Pcm = SPEECH[:VAD_FRAME], flags: int = 0, cancelled: bool = False
) -> InferenceRequest:
    return InferenceRequest(
        {"AUDIO": np.array(audio, np.int16)}, sequence=sequence, flags=flags, cancelled=cancelled
    )


def heard(response: InferenceResponse) -> npt.NDArray[np.float32]:
    return answer(response)["PROBABILITY"]


# K-03
def test_states_are_kept_by_sequence(vad: Any, model_repository: Path):
    audio = {"a.1.1": SPEECH[: 20 * VAD_FRAME], "b.1.1": SPEECH[5000:][: 20 * VAD_FRAME]}
    found: dict[str, list[npt.NDArray[np.float32]]] = {name: [] for name in audio}
    for step in range(10):
        flags = START if step == 0 else END if step == 9 else 0
        requests = [
            chunk(name, pcm[step * 2 * VAD_FRAME : (step + 1) * 2 * VAD_FRAME], flags)
            for name, pcm in audio.items()
        ]
        for name, response in zip(audio, vad.execute(requests), strict=True):
            found[name].append(heard(response))
    path = model_repository / VAD_MODEL / "1" / "silero.onnx"
    for name, pcm in audio.items():
        assert np.array_equal(np.concatenate(found[name]), probabilities(path, pcm))


def test_probabilities_are_one_row_of_whole_frames_and_no_output_if_there_is_none(vad: Any):
    responses = vad.execute([chunk("s", SPEECH[:100], START), chunk("t", SPEECH[:5000], START)])
    assert answer(responses[0]) == {}
    (tensor,) = responses[1].output_tensors()
    assert tensor.as_numpy().shape == (1, 5000 // VAD_FRAME)
    assert heard(responses[1]).dtype == np.float32


def test_correlation_ids_may_be_numbers(vad: Any):
    vad.execute([chunk(7, flags=START)])
    (response,) = vad.execute([chunk(7)])
    assert len(heard(response)) == 1


def test_every_chunk_is_answered_in_order_errors_and_cancelled_ones_included(vad: Any):
    responses = vad.execute(
        [
            chunk("a", flags=START),
            chunk("never started"),
            chunk("c", flags=START, cancelled=True),
            chunk("d", flags=START | END),
        ]
    )
    assert len(heard(responses[0])) == len(heard(responses[3])) == 1
    lost = "no state for the sequence 'never started': start it again"
    assert failure(responses[1]) == (pb_utils.TritonError.NOT_FOUND, lost)
    assert failure(responses[2]) == (pb_utils.TritonError.CANCELLED, "cancelled")


def test_the_end_frees_the_state(vad: Any):
    vad.execute([chunk("s", flags=START)])
    vad.execute([chunk("s", SPEECH[:0], flags=END)])
    (response,) = vad.execute([chunk("s")])
    assert failure(response)[0] == pb_utils.TritonError.NOT_FOUND


def test_a_chunk_nobody_waits_for_ends_its_sequence_since_nobody_heard_it(vad: Any):
    vad.execute([chunk("s", flags=START), chunk("other", flags=START)])
    vad.execute([chunk("s", cancelled=True)])
    lost, found = vad.execute([chunk("s"), chunk("other")])
    assert failure(lost)[0] == pb_utils.TritonError.NOT_FOUND
    assert len(heard(found)) == 1


def test_a_sequence_whose_end_never_comes_is_forgotten_after_the_idle_limit(
    model_repository: Path,
):
    vad = started(model_repository, VAD_MODEL, idle_us=200_000)
    vad.execute([chunk("vanished", flags=START)])
    time.sleep(SWEEP_S + 0.3)
    vad.execute([chunk("present", flags=START)])  # it is others that make it look
    lost, found = vad.execute([chunk("vanished"), chunk("present")])
    assert failure(lost)[0] == pb_utils.TritonError.NOT_FOUND
    assert len(heard(found)) == 1


def test_the_idle_limit_is_read_from_the_configuration_as_triton_writes_it(
    model_repository: Path,
):
    # Triton's JSON has numbers where protobuf's own has strings.
    model = runpy.run_path(str(SOURCE / VAD_MODEL / "1" / "model.py"))["TritonPythonModel"]()
    config = {"sequence_batching": {"max_sequence_idle_microseconds": 60_000_000}}
    folder = str(model_repository / VAD_MODEL)
    model.initialize(
        {"model_config": json.dumps(config), "model_repository": folder, "model_version": "1"}
    )
    (response,) = model.execute([chunk("s", flags=START)])
    assert len(heard(response)) == 1

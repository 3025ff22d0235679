"""
A batch of rows of AUDIO in, a transcript with its scores for each out. Keeps no state.

An output without elements is left out: Triton's HTTP (2.51) never frees some 80 bytes of one.

whisper_accurate/1/model.py is a link to this file: the two differ in their checkpoint alone.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils

from dalston.triton.contract import Input, Output
from dalston.triton.whisper import Row, RowError, Transcript, Whisper


class TritonPythonModel:
    def initialize(self, args: dict[str, str]) -> None:
        config = json.loads(args["model_config"])
        parameters = {key: value["string_value"] for key, value in config["parameters"].items()}
        self._whisper = Whisper(
            Path(args["model_repository"], args["model_version"], "checkpoint"),
            device="cuda" if args["model_instance_kind"] == "GPU" else "cpu",
            device_index=int(args["model_instance_device_id"]),
            compute_type=parameters["compute_type"],
            beam_size=int(parameters["beam_size"]),
            right_sized=parameters["windows"] == "right-sized",
            shortest_window=int(parameters["shortest_window"]),
            margin=float(parameters["margin"]),
            languages=parameters["languages"].split(),
        )

    def execute(self, requests: list[Any]) -> list[Any]:
        answers: list[Any] = [None] * len(requests)
        rows, places = list[Row](), list[int]()
        for place, request in enumerate(requests):
            if request.is_cancelled():  # queued requests come here even when nobody waits for them
                answers[place] = _failure(pb_utils.TritonError.CANCELLED, "cancelled")
                continue
            try:
                rows.append(_row(request))
            except ValueError as error:  # more than one row, or a string that is no UTF-8
                answers[place] = _failure(pb_utils.TritonError.INVALID_ARG, str(error))
                continue
            places.append(place)
        for place, result in zip(places, self._whisper.transcribe(rows), strict=True):
            if isinstance(result, Transcript):
                answers[place] = _answer(result, requests[place].requested_output_names())
            elif isinstance(result, RowError):
                answers[place] = _failure(pb_utils.TritonError.INVALID_ARG, str(result))
            else:
                answers[place] = _failure(pb_utils.TritonError.INTERNAL, str(result))
        return answers


def _row(request: Any) -> Row:
    def value(name: str) -> Any:
        rows = pb_utils.get_input_tensor_by_name(request, name).as_numpy()
        if len(rows) != 1:
            raise ValueError("more than one row in a request")
        return rows[0]

    return Row(
        value(Input.AUDIO),
        language=value(Input.LANGUAGE)[0].decode(),
        task=value(Input.TASK)[0].decode(),
        prompt=value(Input.PROMPT)[0].decode(),
        keywords=value(Input.KEYWORDS)[0].decode().splitlines(),
        prefix=value(Input.PREFIX).tolist(),
        draft=value(Input.DRAFT).tolist(),
        words=bool(value(Input.WORDS)[0]),
        full_window=bool(value(Input.FULL_WINDOW)[0]),
    )


def _answer(transcript: Transcript, wanted: list[str]) -> Any:
    words = transcript.words
    values: dict[str, tuple[Sequence[Any], Any]] = {
        Output.TEXT: ([transcript.text.encode()], object),
        Output.TOKENS: (transcript.tokens, np.int32),
        Output.TOKEN_ENDS: (transcript.token_ends, np.int32),
        Output.TOKEN_TIMES: (transcript.token_times, np.float32),
        Output.TOKEN_LOGPROBS: (transcript.token_logprobs, np.float32),
        Output.LANGUAGE: ([transcript.language.encode()], object),
        Output.LANGUAGE_PROBABILITY: ([transcript.language_probability], np.float32),
        Output.AVERAGE_LOGPROB: ([transcript.average_logprob], np.float32),
        Output.NO_SPEECH_PROBABILITY: ([transcript.no_speech_probability], np.float32),
        Output.SUSPECT: ([transcript.suspect], np.bool_),
        Output.PROMPT_CUT: ([transcript.prompt_cut] if transcript.prompt_cut else [], np.int32),
        Output.WORD: ([word.text.encode() for word in words], object),
        Output.WORD_START: ([word.start for word in words], np.float32),
        Output.WORD_END: ([word.end for word in words], np.float32),
        Output.WORD_PROBABILITY: ([word.probability for word in words], np.float32),
        Output.STAGE_SECONDS: (transcript.stages, np.float32),
        Output.WINDOW_SECONDS: ([transcript.window_seconds], np.float32),
    }
    return pb_utils.InferenceResponse(
        [
            pb_utils.Tensor(name, np.array([value], dtype))
            for name, (value, dtype) in values.items()
            if name in wanted and len(value)
        ]
    )


def _failure(code: Any, sentence: str) -> Any:
    return pb_utils.InferenceResponse(error=pb_utils.TritonError(sentence, code))

"""
Requests and answers in the form that Triton's HTTP has them.
"""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dalston.orchestrator.inference import kserve
from dalston.orchestrator.inference.http import Answer, CallFailed, Code


def test_a_request_is_json_and_the_tensors_after_it() -> None:
    request = kserve.InferRequest("m", ("A", "B"), sequence_id="s", sequence_start=True)
    request.add("X", "INT16", 2, b"\1\0\2\0")
    request.add("Y", "BYTES", 1, kserve.string("é"))
    head, _, body = request.wire_form("h:1", [("traceparent", "t")]).partition(b"\r\n\r\n")
    lines = head.decode().split("\r\n")
    assert lines[0] == "POST /v2/models/m/infer HTTP/1.1"
    headers = dict(line.split(": ") for line in lines[1:])
    assert (headers["Host"], headers["traceparent"]) == ("h:1", "t")
    assert int(headers["Content-Length"]) == len(body)
    size = int(headers["Inference-Header-Content-Length"])
    told = json.loads(body[:size])
    assert told["parameters"] == {"sequence_id": "s", "sequence_start": True}
    assert [(one["name"], one["shape"]) for one in told["inputs"]] == [("X", [1, 2]), ("Y", [1, 1])]
    assert [one["name"] for one in told["outputs"]] == ["A", "B"]
    sizes = [one["parameters"]["binary_data_size"] for one in told["inputs"]]
    assert (sum(sizes), body[size:]) == (len(body) - size, b"\1\0\2\0\2\0\0\0\xc3\xa9")


@given(texts=st.lists(st.text()))
def test_strings_come_back_as_they_went(texts: list[str]) -> None:
    content = b"".join(map(kserve.string, texts))
    assert kserve.value("BYTES", memoryview(content)) == texts


def test_outputs_are_cut_out_of_what_follows_the_json() -> None:
    def output(name: str, datatype: str, size: int) -> dict[str, object]:
        parameters = {"binary_data_size": size}
        return {"name": name, "shape": [1], "datatype": datatype, "parameters": parameters}

    told = {"outputs": [output("P", "FP32", 4), output("Q", "INT32", 8)]}
    binary = np.float32(0.5).tobytes() + np.array([1, 2], "<i4").tobytes()
    found = kserve.outputs(Answer(200, json.dumps(told).encode(), memoryview(binary)))
    assert kserve.value(*found["P"]).tolist() == [0.5]
    assert kserve.value(*found["Q"]).tolist() == [1, 2]


@pytest.mark.parametrize(
    ("status", "body", "code", "sentence"),
    [
        (404, b'{"error":"unknown model"}', Code.NOT_FOUND, "unknown model"),
        (418, b'{"error":"odd"}', Code.INTERNAL, "odd"),
        (503, b"busy", Code.UNAVAILABLE, "busy"),
        (500, b"", Code.INTERNAL, "HTTP 500"),
    ],
)
def test_a_failure_has_its_code_and_a_sentence(
    status: int, body: bytes, code: Code, sentence: str
) -> None:
    with pytest.raises(CallFailed) as failed:
        kserve.outputs(Answer(status, body, memoryview(b"")))
    assert (failed.value.code, str(failed.value)) == (code, sentence)

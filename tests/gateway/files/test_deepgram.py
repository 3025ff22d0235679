"""
Deepgram's REST, in front of a worker that hears as many seconds as there are.
"""

import hashlib
import json
from collections.abc import AsyncGenerator
from typing import Any

import pytest
from support.fronted import FakeWorker, Gateway, gateway_over
from support.uploads import CONTAINERS, Answer, post, recorded, scribe, tone


@pytest.fixture
async def gateway(redis_url: str) -> AsyncGenerator[Gateway]:
    async with gateway_over(redis_url) as gateway:
        yield gateway


async def listen(
    gateway: Gateway, query: str = "model=nova-3", file: bytes = b"", **more: Any
) -> Answer:
    kind = more.pop("content_type", "application/octet-stream")
    return await post(gateway.url, f"/v1/listen?{query}", file, kind, **more)


@pytest.mark.parametrize("kind", CONTAINERS)
async def test_the_body_is_the_file(gateway: Gateway, kind: str) -> None:  # 003-35
    file = recorded(kind, 2.2)
    async with FakeWorker(gateway.slots, "a", scribe).running():
        answer = await listen(gateway, file=file)
    assert answer.status == 200
    about = answer.json["metadata"]
    assert about["sha256"] == hashlib.sha256(file).hexdigest()
    assert 2.1 < about["duration"] < 2.4
    assert about["request_id"] == answer.headers["x-request-id"]
    assert about["models"] == list(about["model_info"])
    (channel,) = answer.json["results"]["channels"]
    assert channel["alternatives"] == [
        {"transcript": "sentence 0 sentence 1", "confidence": 0.9, "words": []}
    ]
    await gateway.until_held(0)


async def test_settings_are_in_the_query(gateway: Gateway) -> None:
    worker = FakeWorker(gateway.slots, "a", scribe)
    query = "model=accurate&language=multi&keyterm=Delft&redact=pci&utterances=true&diarize=true"
    async with worker.running():
        answer = await listen(gateway, query, recorded("wav"))
    config = json.loads(worker.requests[0]["config"])
    asked = ("model", "language", "language_detection", "keywords", "redact", "word_timestamps")
    assert [config[name] for name in asked] == [
        "accurate",
        "auto",
        "utterance",
        ["Delft"],
        ["numbers"],
        True,
    ]
    assert [one["start"] for one in answer.json["results"]["utterances"]] == [0.0, 1.0]
    assert answer.json["results"]["channels"][0]["alternatives"][0]["languages"] == ["en"]


async def test_samples_without_a_container_are_as_the_query_says(gateway: Gateway) -> None:
    raw = tone(3, 8_000).astype("<i2").tobytes()
    async with FakeWorker(gateway.slots, "a", scribe).running():
        answer = await listen(gateway, "encoding=linear16&sample_rate=8000", raw)
        detects = await listen(gateway, "detect_language=true", recorded("wav"))
    assert answer.json["metadata"]["duration"] == pytest.approx(3, abs=0.01)
    assert "detected_language" not in answer.json["results"]["channels"][0]
    assert detects.json["results"]["channels"][0]["language_confidence"] == 1.0


@pytest.mark.parametrize(
    ("query", "file", "kind", "code"),
    [
        ("callback=http://a", b"", "audio/wav", "INVALID_PARAMETER"),
        ("redact=names", b"", "audio/wav", "INVALID_PARAMETER"),
        ("language=klingon", b"", "audio/wav", "LANGUAGE_UNSUPPORTED"),
        ("encoding=opus&sample_rate=8000", b"x", "audio/wav", "INVALID_PARAMETER"),
        ("model=a", b"no song" * 99, "audio/mpeg", "INVALID_AUDIO"),
        ("model=a", b'{"url":"http://10.0.0.1/a.wav"}', "application/json", "INVALID_PARAMETER"),
    ],
)
async def test_what_cannot_be_followed_is_refused_as_deepgram_does(
    gateway: Gateway, query: str, file: bytes, kind: str, code: str
) -> None:
    answer = await listen(gateway, query, file, content_type=kind)
    assert answer.status == 400
    assert set(answer.json) == {"err_code", "err_msg", "request_id"}
    assert answer.json["err_code"] == code
    assert answer.headers["dg-error"] == answer.json["err_msg"]


async def test_a_body_that_is_too_large_or_of_somebody_unknown_is_refused(redis_url: str) -> None:
    async with gateway_over(redis_url, file_bytes=1000) as gateway:
        large = await listen(gateway, file=bytes(2000))
    async with gateway_over(redis_url, api_keys="redis") as gateway:
        nobody = await listen(gateway, file=bytes(2000), Authorization="Token dk_nobody")
    assert (large.status, large.json["err_code"]) == (413, "FILE_TOO_LARGE")
    assert (nobody.status, nobody.json["err_code"]) == (401, "UNAUTHORIZED")

"""
ElevenLabs' REST, in front of a worker that hears as many seconds as there are.
"""

import json
from collections.abc import AsyncGenerator
from typing import Any

import pytest
from support.dialects import final as said
from support.fronted import FakeWorker, Gateway, gateway_over
from support.registered import BEGIN
from support.uploads import CONTAINERS, Answer, end, form, post, recorded, scribe, tone
from websockets.asyncio.server import ServerConnection

from dalston.gateway.access.keys import RedisKeys, make
from dalston.orchestrator.protocol.messages import serialize

PATH = "/v1/speech-to-text"


@pytest.fixture
async def gateway(redis_url: str) -> AsyncGenerator[Gateway]:
    async with gateway_over(redis_url) as gateway:
        yield gateway


async def convert(gateway: Gateway, *fields: tuple[str, str], **more: Any) -> Answer:
    """As their SDK does, which says `null` for three things that are not set."""
    file = more.pop("file") if "file" in more else recorded("wav")
    unset = [
        (name, "null") for name in ("webhook_metadata", "entity_detection", "entity_redaction")
    ]
    body = form([("model_id", "scribe_v2"), *unset, *fields], file)
    return await post(gateway.url, f"{PATH}?enable_logging=true", body, **more)


async def speaks(connection: ServerConnection) -> None:
    await connection.send(BEGIN)
    for message in (said(0, "Goed zo.", 0.5, 1.5, "nl"), said(1, "Ja, ja.", 2.0, 3.0, "nl")):
        await connection.send(serialize(message))
    await connection.send(end(4.0))
    await connection.close(1000)


@pytest.mark.parametrize("kind", CONTAINERS)
async def test_any_container_is_transcribed(gateway: Gateway, kind: str) -> None:  # 003-35
    async with FakeWorker(gateway.slots, "a", scribe).running():
        answer = await convert(gateway, file=recorded(kind, 2.2))
    assert (answer.status, answer.json["text"]) == (200, "sentence 0 sentence 1")
    await gateway.until_held(0)


async def test_words_and_what_stands_between_them_are_the_text(gateway: Gateway) -> None:
    async with FakeWorker(gateway.slots, "a", speaks).running():
        answer = await convert(gateway, ("language_code", "nld"))
    body = answer.json
    assert (body["language_code"], body["language_probability"]) == ("nld", 1.0)
    assert body["audio_duration_secs"] == 4.0
    assert "".join(item["text"] for item in body["words"]) == body["text"] == "Goed zo. Ja, ja."
    assert all(isinstance(item["start"], float) and item["end"] for item in body["words"])
    assert {item["type"] for item in body["words"]} == {"word", "spacing"}


async def test_what_is_asked_is_what_the_session_gets(gateway: Gateway) -> None:
    worker = FakeWorker(gateway.slots, "a", scribe)
    raw = tone(3, 16_000).astype("<i2").tobytes()
    async with worker.running():
        answer = await convert(
            gateway,
            ("file_format", "pcm_s16le_16"),
            ("timestamps_granularity", "none"),
            ("keyterms", "Delft"),
            ("keyterms", "Gouda"),
            ("diarize", "false"),
            ("additional_formats", '[{"format":"srt"},{"format":"txt"}]'),
            file=raw,
        )
    config = json.loads(worker.requests[0]["config"])
    assert (config["keywords"], config["word_timestamps"]) == (["Delft", "Gouda"], False)
    assert (answer.json["audio_duration_secs"], answer.json["words"]) == (3.0, [])
    srt, txt = answer.json["additional_formats"]
    assert srt["content"].startswith("1\n00:00:00,000 --> ")
    assert txt["content"] == answer.json["text"]


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("model_id", ""),
        ("source_url", "http://10.0.0.1/a.wav"),
        ("cloud_storage_url", "https://a/b.mp3"),
        ("webhook", "true"),
        ("use_multi_channel", "true"),
        ("entity_redaction", "pii"),
        ("timestamps_granularity", "character"),
        ("file_format", "opus"),
        ("language_code", "klingon"),
        ("additional_formats", '[{"format":"pdf"}]'),
        ("file", ""),
    ],
)
async def test_what_cannot_be_followed_is_refused_as_elevenlabs_does(
    gateway: Gateway, field: str, value: str
) -> None:
    fields = [] if field == "file" else [(field, value)]
    answer = await convert(gateway, *fields, file=None if field == "file" else recorded("wav"))
    assert answer.status == 400
    detail = answer.json["detail"]
    assert detail["status"] in ("invalid_parameter", "language_unsupported")
    assert detail["param"] == field
    assert detail["message"]


async def test_a_transcript_is_there_for_a_while_for_the_key_it_came_with(redis_url: str) -> None:
    async with gateway_over(redis_url, api_keys="redis", transcript_seconds=100) as gateway:
        keys = RedisKeys(gateway.client)
        holders = list[dict[str, str]]()
        for name in ("one", "other"):
            text, record = make(name, 0, ("files",))
            await keys.add(record)
            holders.append({"xi_api_key": text})
        own, other = holders
        async with FakeWorker(gateway.slots, "a", scribe).running():
            made = await convert(gateway, **own)
        path = f"{PATH}/transcripts/{made.json['transcription_id']}"
        assert (
            0
            < await gateway.client.ttl(f"dalston:transcript:{made.json['transcription_id']}")
            <= 100
        )
        found = await post(gateway.url, path, b"", method="GET", **own)
        assert found.json == made.json
        for wrong, status in ((other, 404), ({}, 401)):
            for method in ("GET", "DELETE"):
                assert (await post(gateway.url, path, b"", method=method, **wrong)).status == status
        unknown = f"{PATH}/transcripts/{'x' * 300}"
        assert (await post(gateway.url, unknown, b"", method="GET", **own)).status == 404
        assert (await post(gateway.url, path, b"", method="DELETE", **own)).status == 200
        gone = await post(gateway.url, path, b"", method="GET", **own)
        assert (gone.status, gone.json["detail"]["status"]) == (404, "not_found")


@pytest.mark.parametrize("setting", [{"transcript_seconds": 0}, {"resume": False}])
async def test_nothing_is_kept_where_nothing_is_to_be_kept(
    redis_url: str, setting: dict[str, Any]
) -> None:
    async with gateway_over(redis_url, **setting) as gateway:
        async with FakeWorker(gateway.slots, "a", scribe).running():
            answer = await convert(gateway)
        assert "transcription_id" not in answer.json
        assert await gateway.client.keys("dalston:transcript:*") == []

"""
OpenAI's REST, in front of a worker that says what the test wants.
"""

import asyncio
import json
from collections.abc import AsyncGenerator, Awaitable, Callable
from typing import Any

import pytest
from support.fronted import FakeWorker, Gateway, gateway_over
from support.registered import BEGIN, final
from support.uploads import BOUNDARY, CONTAINERS, Answer, end, film, form, post, recorded, scribe
from support.waiting import until
from websockets.asyncio.server import ServerConnection

from dalston.gateway.access.keys import RedisKeys, Scope, make
from dalston.orchestrator.protocol.messages import Error, serialize

PATH = "/v1/audio/transcriptions"
Ask = Callable[..., Awaitable[Answer]]


@pytest.fixture
async def gateway(redis_url: str) -> AsyncGenerator[Gateway]:
    async with gateway_over(
        redis_url, files_at_once=2, files_waiting=3, file_queue_seconds=5.0, file_seconds=20.0
    ) as gateway:
        yield gateway


async def ask(gateway: Gateway, *fields: tuple[str, str], **more: Any) -> Answer:
    """Two seconds of a tone, unless it is to be something else."""
    file = more.pop("file") if "file" in more else recorded("wav")
    path = more.pop("path", PATH)
    return await post(gateway.url, path, form([("model", "whisper-1"), *fields], file), **more)


async def key(gateway: Gateway, scope: Scope, sessions: int = 0) -> str:
    text, record = make(scope, sessions, (scope,))
    await RedisKeys(gateway.client).add(record)
    return text


def error(answer: Answer) -> Any:
    told = answer.json["error"]
    assert set(told) == {"message", "type", "param", "code"}
    return told


@pytest.mark.parametrize("kind", CONTAINERS)
async def test_any_container_is_transcribed(gateway: Gateway, kind: str) -> None:
    async with FakeWorker(gateway.slots, "a", scribe).running():
        answer = await ask(gateway, file=recorded(kind, 2.2))
    assert answer.status == 200
    assert answer.json == {
        "text": "sentence 0 sentence 1",
        "usage": {"type": "duration", "seconds": 3},
    }
    await gateway.until_held(0)


async def test_each_format_tells_the_same(gateway: Gateway) -> None:
    async with FakeWorker(gateway.slots, "a", scribe).running():
        told = {
            name: await ask(gateway, ("response_format", name))
            for name in ("json", "text", "srt", "verbose_json", "vtt")
        }
    assert told["text"].body == b"sentence 0 sentence 1\n"
    assert told["srt"].body.startswith(b"1\n00:00:00,000 --> 00:00:00,500\nsentence 0\n\n2\n")
    assert told["vtt"].body.startswith(b"WEBVTT\n\n00:00:00.000 --> 00:00:00.500\nsentence 0\n")
    verbose = told["verbose_json"].json
    assert {name: verbose[name] for name in ("task", "language", "duration", "text")} == {
        "task": "transcribe",
        "language": "english",
        "duration": 2.0,
        "text": told["json"].json["text"],
    }
    assert "words" not in verbose
    assert verbose["segments"][1] == {
        "id": 1,
        "seek": 100,
        "start": 1.0,
        "end": 1.5,
        "text": "sentence 1",
        "tokens": [],
        "temperature": 0.0,
        "avg_logprob": -0.1054,
        "compression_ratio": 0.5556,
        "no_speech_prob": 0.0,
    }


async def test_words_come_instead_of_segments_or_beside_them(gateway: Gateway) -> None:
    worker = FakeWorker(gateway.slots, "a", scribe)
    verbose = ("response_format", "verbose_json")
    name = "timestamp_granularities[]"
    async with worker.running():
        words = await ask(gateway, verbose, (name, "word"))
        both = await ask(gateway, verbose, (name, "word"), (name, "segment"))
    assert {"words", "segments"} & words.json.keys() == {"words"}
    assert {"words", "segments"} <= both.json.keys()
    assert all(json.loads(one["config"])["word_timestamps"] for one in worker.requests)


async def test_a_stream_tells_each_final_when_it_comes_and_then_all(gateway: Gateway) -> None:
    heard = asyncio.Event()

    async def waits(connection: ServerConnection) -> None:
        await connection.send(BEGIN)
        await connection.send(final(0))
        await heard.wait()
        await connection.send(final(1))
        await connection.send(end(2.0))
        await connection.close(1000)

    body = form([("model", "m"), ("stream", "true")], recorded("wav"))
    head = (
        f"POST {PATH} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: {len(body)}\r\n"
        f"Content-Type: multipart/form-data; boundary={BOUNDARY}\r\n\r\n"
    )
    async with FakeWorker(gateway.slots, "a", waits).running(), asyncio.timeout(10):
        reader, writer = await asyncio.open_connection(*gateway.url.split(":"))
        writer.write(head.encode() + body)
        first = await reader.readuntil(b'"delta":"sentence 0"}')
        assert b"text/event-stream" in first
        heard.set()
        rest = await reader.readuntil(b"0\r\n\r\n")
        writer.close()
    assert b'{"type":"transcript.text.delta","delta":" sentence 1"}' in rest
    assert b'"type":"transcript.text.done","text":"sentence 0 sentence 1"' in rest


async def test_what_is_asked_is_what_the_session_gets(gateway: Gateway) -> None:
    worker = FakeWorker(gateway.slots, "a", scribe)
    async with worker.running():
        await ask(
            gateway,
            ("model", "accurate"),
            ("language", "nl"),
            ("prompt", "x" * 3000 + "Rotterdam"),
            ("keywords[]", "Delft"),
            ("temperature", "0.2"),
            ("include[]", "logprobs"),
            ("chunking_strategy", "auto"),
            path="/v1/audio/translations",
        )
    config = json.loads(worker.requests[0]["config"])
    assert config["prompt"].endswith("xRotterdam")
    assert len(config["prompt"]) == 2000
    asked = ("model", "language", "task", "keywords", "recorded", "interim_results")
    assert [config[name] for name in asked] == [
        "accurate",
        "nl",
        "translate",
        ["Delft"],
        True,
        False,
    ]


@pytest.mark.parametrize(
    ("fields", "file", "status", "param"),
    [
        ([], None, 400, "file"),
        ([], b"", 400, "file"),
        ([], b"words, not a song" * 99, 400, "file"),
        ([], film(), 400, "file"),
        ([], recorded("mp3")[:30], 400, "file"),
        ([], recorded("wav", 21), 413, "file"),
        ([("model", "")], recorded("wav"), 400, "model"),
        ([("response_format", "diarized_json")], recorded("wav"), 400, "response_format"),
        ([("language", "klingon")], recorded("wav"), 400, "language"),
        ([("temperature", "hot")], recorded("wav"), 400, "temperature"),
        ([("stream", "perhaps")], recorded("wav"), 400, "stream"),
        ([("timestamp_granularities[]", "x")], recorded("wav"), 400, "timestamp_granularities[]"),
        ([("a", "b" * (65 << 10))], recorded("wav"), 400, None),
        ([("a", "b")] * 101, recorded("wav"), 400, None),
    ],
)
async def test_what_cannot_be_followed_is_refused_in_their_shape(
    gateway: Gateway, fields: list[tuple[str, str]], file: bytes | None, status: int, param: Any
) -> None:
    async with FakeWorker(gateway.slots, "a", scribe).running():
        answer = await ask(gateway, *fields, file=file)
    assert answer.status == status
    told = error(answer)
    assert (told["type"], told["param"]) == ("invalid_request_error", param)
    await gateway.until_held(0)


async def test_a_body_that_is_no_form_or_a_broken_one_is_refused(gateway: Gateway) -> None:
    for body, kind in [
        (b"{}", "application/json"),
        (b"--x", ""),
        (b"--" + b"x" * 99, "multipart/form-data"),
    ]:
        answer = await post(gateway.url, PATH, body, kind)
        assert (answer.status, error(answer)["code"]) == (400, "invalid_parameter")


async def test_a_body_that_is_too_large_is_refused_before_it_is_read(redis_url: str) -> None:
    async with gateway_over(redis_url, file_bytes=100_000) as gateway:
        for chunked in (False, True):
            body = form([("model", "m")], bytes(150_000))
            if chunked:
                answer = await asyncio.to_thread(_chunked, gateway.url, body)
            else:
                answer = await post(gateway.url, PATH, body)
            assert (answer.status, error(answer)["code"]) == (413, "file_too_large")


def _chunked(url: str, body: bytes) -> Answer:
    import http.client

    connection = http.client.HTTPConnection(url, timeout=10)
    parts = (body[at : at + 50_000] for at in range(0, len(body), 50_000))
    kind = f"multipart/form-data; boundary={BOUNDARY}"
    connection.request("POST", PATH, parts, {"Content-Type": kind}, encode_chunked=True)
    got = connection.getresponse()
    answer = Answer(got.status, {}, got.read())
    connection.close()
    return answer


async def test_who_is_not_known_uploads_nothing(redis_url: str) -> None:
    async with gateway_over(redis_url, api_keys="redis") as gateway:
        listener = await key(gateway, "stream")
        caller = await key(gateway, "files")
        async with FakeWorker(gateway.slots, "a", scribe).running():
            unknown = await ask(gateway, Authorization="Bearer dk_nobody")
            nobody = await ask(gateway)
            live_only = await ask(gateway, Authorization=f"Bearer {listener}")
            known = await ask(gateway, Authorization=f"Bearer {caller}")
            listed = await post(gateway.url, "/v1/models", b"", method="GET")
    assert (nobody.status, error(nobody)["code"]) == (401, "invalid_api_key")
    assert (unknown.status, error(unknown)["code"]) == (401, "invalid_api_key")
    assert (live_only.status, error(live_only)["code"]) == (403, "forbidden")
    assert known.status == 200
    assert listed.status == 401


async def test_a_key_has_no_more_files_at_once_than_sessions(redis_url: str) -> None:
    async def silent(connection: ServerConnection) -> None:
        await connection.send(BEGIN)
        await connection.wait_closed()

    async with gateway_over(redis_url, api_keys="redis") as gateway:
        caller = await key(gateway, "files", sessions=1)
        async with FakeWorker(gateway.slots, "a", silent).running():
            first = asyncio.create_task(ask(gateway, Authorization=f"Bearer {caller}"))
            await gateway.until_held(1)
            second = await ask(gateway, Authorization=f"Bearer {caller}")
            assert (second.status, error(second)["code"]) == (429, "rate_limit_exceeded")
            assert int(second.headers["retry-after"]) > 0
            first.cancel()


async def test_silence_is_an_empty_transcript(gateway: Gateway) -> None:
    async def hears_nothing(connection: ServerConnection) -> None:
        await connection.send(BEGIN)
        await connection.send(end(2.0))
        await connection.close(1000)

    async with FakeWorker(gateway.slots, "a", hears_nothing).running():
        told = {
            name: await ask(gateway, ("response_format", name))
            for name in ("json", "text", "srt", "verbose_json", "vtt")
        }
        streamed = await ask(gateway, ("stream", "true"))
    assert told["json"].json["text"] == told["verbose_json"].json["text"] == ""
    assert told["verbose_json"].json["segments"] == []
    assert (told["text"].body, told["srt"].body) == (b"\n", b"")
    assert told["vtt"].body == b"WEBVTT\n\n"
    assert [(event["type"], event["text"]) for event in streamed.events] == [
        ("transcript.text.done", "")
    ]


@pytest.mark.parametrize("stream", ["false", "true"])
async def test_who_leaves_gives_the_slot_back_and_nothing_is_kept(
    gateway: Gateway, stream: str
) -> None:
    async def silent(connection: ServerConnection) -> None:
        await connection.send(BEGIN)
        await connection.wait_closed()

    body = form([("model", "m"), ("stream", stream)], recorded("wav"))
    head = (
        f"POST {PATH} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: {len(body)}\r\n"
        f"Content-Type: multipart/form-data; boundary={BOUNDARY}\r\n\r\n"
    )
    async with FakeWorker(gateway.slots, "a", silent).running():
        _, writer = await asyncio.open_connection(*gateway.url.split(":"))
        writer.write(head.encode() + body)
        await gateway.until_held(1)
        writer.transport.abort()
        await gateway.until_held(0)
    assert await gateway.client.keys("*:resume") == []


async def test_only_so_many_files_are_transcribed_at_a_time_and_so_many_wait(
    gateway: Gateway,
) -> None:
    goes_on = asyncio.Event()

    async def waits(connection: ServerConnection) -> None:
        await connection.send(BEGIN)
        await goes_on.wait()
        await connection.send(end(2.0))
        await connection.close(1000)

    worker = FakeWorker(gateway.slots, "a", waits)
    async with worker.running():
        asking = [asyncio.create_task(ask(gateway)) for _ in range(3)]
        await until(lambda: len(worker.requests) == 2)
        refused = await ask(gateway)
        while refused.status == 200:
            refused = await ask(gateway)
        assert (refused.status, error(refused)["code"]) == (503, "no_capacity")
        assert refused.headers["retry-after"] == "5"
        assert len(worker.requests) == 2
        goes_on.set()
        assert [answer.status for answer in await asyncio.gather(*asking)] == [200, 200, 200]


@pytest.mark.parametrize(
    ("says", "status", "code"),
    [
        ([end(1.0, "server_drain")], 503, "no_capacity"),
        (
            [serialize(Error(code="internal_error", message="seg_0001: no", recoverable=True))],
            500,
            "internal_error",
        ),
        (
            [serialize(Error(code="language_unsupported", message="no", recoverable=False))],
            400,
            "language_unsupported",
        ),
    ],
)
async def test_half_a_transcript_is_never_told_for_the_whole(
    gateway: Gateway, says: list[str], status: int, code: str
) -> None:
    async def breaks_off(connection: ServerConnection) -> None:
        for message in (BEGIN, final(0), *says):
            await connection.send(message)
        await connection.close(1000)

    async with FakeWorker(gateway.slots, "a", breaks_off).running():
        whole = await ask(gateway)
        streamed = await ask(gateway, ("stream", "true"))
    assert (whole.status, error(whole)["code"]) == (status, code)
    assert streamed.status == 200
    assert [event["type"] for event in streamed.events] == ["transcript.text.delta", "error"]
    assert streamed.events[-1]["error"]["code"] == code


async def test_without_a_worker_a_file_waits_in_line_and_is_refused_at_last(redis_url: str) -> None:
    async with gateway_over(redis_url, file_queue_seconds=0.3) as gateway:
        answer = await ask(gateway)
    assert (answer.status, error(answer)["type"]) == (503, "server_error")
    assert answer.headers["retry-after"] == "5"


async def test_a_worker_that_dies_in_the_middle_changes_nothing(gateway: Gateway) -> None:
    async def dies(connection: ServerConnection) -> None:
        await connection.send(BEGIN)
        await connection.send(final(0))
        async for _ in connection:
            connection.transport.abort()

    async with FakeWorker(gateway.slots, "a", dies).running():
        asking = asyncio.create_task(ask(gateway))
        await gateway.until_held(1)
        async with FakeWorker(gateway.slots, "b", scribe).running():
            answer = await asking
    assert answer.json["text"] == "sentence 0 sentence 1"


async def test_models_are_the_variants_that_workers_serve(gateway: Gateway) -> None:
    async with FakeWorker(gateway.slots, "a", scribe).running():
        listed = await post(gateway.url, "/v1/models", b"", method="GET")
        one = await post(gateway.url, "/v1/models/fast", b"", method="GET")
        none = await post(gateway.url, "/v1/models/of/somebody", b"", method="GET")
    assert listed.json["object"] == "list"
    assert [model["id"] for model in listed.json["data"]] == ["accurate", "fast"]
    assert one.json == {
        "id": "fast",
        "object": "model",
        "created": 0,
        "owned_by": "dalston",
        "checkpoints": [],
    }
    assert (none.status, error(none)["code"]) == (404, "model_not_found")


async def test_a_server_may_take_no_files_at_all(redis_url: str) -> None:
    async with gateway_over(redis_url, files_at_once=0) as gateway:
        answer = await ask(gateway)
    assert (answer.status, error(answer)["code"]) == (404, "not_found")

"""
A real worker with a real Triton and a real Redis.
"""

import asyncio
import contextlib
import json
import urllib.error
import urllib.request
from collections.abc import AsyncGenerator, Callable
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from recordings import recordings
from support.redis_process import redis_process
from support.speech import chunks, snapshots
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidStatus

from dalston.orchestrator.capacity.redis_client import UnsupportedRedis
from dalston.orchestrator.capacity.slots import (
    Registration,
    Slots,
    WorkerIdTaken,
    redis_client,
)
from dalston.orchestrator.protocol import introduction
from dalston.orchestrator.protocol.messages import (
    LONGEST_MESSAGE,
    Segment,
    SessionConfig,
    Snapshot,
    parse_server,
    serialize,
)
from dalston.orchestrator.transcription.session import Session
from dalston.orchestrator.worker.settings import WorkerSettings
from dalston.orchestrator.worker.worker import Worker
from dalston.triton.process import free_port

END = '{"type":"end"}'
SPOKEN = recordings()[0].audio[: 4 * 16_000].tobytes()


@dataclass
class Running:
    """A worker that was started, and its place in Redis."""

    port: int
    slots: Slots
    client: Any
    stop: asyncio.Event
    task: asyncio.Task[None]

    def session(self, query: str = "", path: str = "/session", **headers: str) -> Any:
        url = f"ws://127.0.0.1:{self.port}{path}?{query}"
        return connect(url, compression=None, additional_headers=headers)

    async def http(self, path: str) -> tuple[int, Any]:
        def fetch() -> tuple[int, Any]:
            try:
                url = f"http://127.0.0.1:{self.port}{path}"
                with urllib.request.urlopen(url, timeout=5) as response:
                    return response.status, json.load(response)
            except urllib.error.HTTPError as error:
                with error:
                    return error.code, error.read().decode()

        return await asyncio.to_thread(fetch)

    async def record(self, id: str) -> dict[str, str]:
        raw = await self.client.hgetall(f"dalston:realtime:worker:{id}")
        return {key.decode(): value.decode() for key, value in raw.items()}


@dataclass
class Workers:
    """Starts workers, and stops those that a test leaves running."""

    redis_url: str
    triton_url: str
    started: list[Running] = field(default_factory=list[Running])

    async def start(self, id: str = "w1", **settings: Any) -> Running:
        given: dict[str, Any] = {
            "redis_url": self.redis_url,
            "worker_id": id,
            "port": 0,
            "triton_urls": [self.triton_url],
            "drain_seconds": 0.5,
            **settings,
        }
        client = redis_client(self.redis_url)
        stop = asyncio.Event()
        port: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        worker = Worker(WorkerSettings(**given))
        task = asyncio.create_task(worker.run(stop, port.set_result))
        running = Running(await port, Slots(client), client, stop, task)
        self.started.append(running)
        return running

    async def ready(self, id: str = "w1", **settings: Any) -> Running:
        """Started, and registered as ready."""
        running = await self.start(id, **settings)
        await until(lambda: running.http("/health"), lambda answer: answer[0] == 200)
        return running


async def until(ask: Callable[[], Any], wanted: Callable[[Any], bool]) -> Any:
    async with asyncio.timeout(15):
        while not wanted(answer := await ask()):
            await asyncio.sleep(0.02)
    return answer


@pytest.fixture
async def workers(redis_url: str, triton_url: str) -> AsyncGenerator[Workers]:
    client: Any = redis_client(redis_url)
    await client.flushall()
    workers = Workers(redis_url, triton_url)
    yield workers
    for running in workers.started:
        running.stop.set()
        await asyncio.wait([running.task], timeout=15)
        await running.client.aclose()
    await client.aclose()


async def drained(connection: ClientConnection) -> tuple[list[Any], int | None]:
    messages: list[Any] = []
    with contextlib.suppress(ConnectionClosed):
        async with asyncio.timeout(30):
            while True:
                messages.append(json.loads(await connection.recv()))
    return messages, connection.close_code


def texts(messages: list[Any]) -> list[str]:
    return [m["text"] for m in messages if m["type"] == "transcript.final"]


# 000-06, 001-01, 001-03, 002-05, 003-28
async def test_a_session_is_transcribed(workers: Workers) -> None:
    worker = await workers.ready()
    async with worker.session("language=en") as session:
        for chunk in chunks(SPOKEN, [3200]):
            await session.send(chunk)
            await asyncio.sleep(0.03)  # faster, and the final overtakes its partials
        await session.send(END)
        messages, code = await drained(session)
    assert code == 1000
    kinds = [m["type"] for m in messages]
    assert kinds[0] == "session.begin"
    assert kinds[-1] == "session.end"
    assert {"vad.speech_start", "transcript.partial", "transcript.final"} <= set(kinds)
    assert messages[0]["config"]["model_id"] == "demo"


async def test_a_session_goes_on_from_a_snapshot_in_another_worker(workers: Workers) -> None:
    recording = recordings()[0].audio.tobytes()
    first, second = await workers.ready("w1"), await workers.ready("w2")
    async with first.session("session_id=sess_x&epoch=1&language=auto") as session:
        for chunk in chunks(recording, [32_000]):
            await session.send(chunk)
        await session.send(END)
        undisturbed, _ = await drained(session)
    told = [parse_server(json.dumps(message)) for message in undisturbed]
    kept = next(snapshot for snapshot in snapshots(told) if len(snapshot.segments) == 2)
    async with second.session("session_id=sess_x&epoch=2&resume=1") as session:
        await session.send(msgspec.json.encode(kept).decode())
        for chunk in chunks(recording[2 * kept.replay_from :], [32_000]):
            await session.send(chunk)
        await session.send(END)
        continued, code = await drained(session)
    assert code == 1000
    assert texts(continued) == texts(undisturbed)[2:]
    end, expected = continued[-1], undisturbed[-1]
    assert (end["transcript"], end["segments"]) == (expected["transcript"], expected["segments"])
    assert end["total_duration"] == expected["total_duration"]


async def test_a_session_goes_on_as_its_snapshot_says_and_not_as_it_began(
    workers: Workers,
) -> None:
    worker = await workers.ready()
    snapshot = Snapshot(
        session_id="sess_x",
        epoch=1,
        position=0,
        replay_from=0,
        controls=1,
        config=SessionConfig(language="en", prompt="Set the light."),
        detected_language=None,
        next_segment=0,
        speech_samples=0,
        segments=[],
    )
    # No model here translates: a session that begins so is refused.
    async with worker.session("session_id=sess_x&epoch=2&resume=1&task=translate") as session:
        await session.send(msgspec.json.encode(snapshot).decode())
        await session.send(END)
        messages, code = await drained(session)
    assert (messages[0]["config"]["prompt"], code) == ("Set the light.", 1000)


async def test_a_snapshot_that_is_none_is_refused(workers: Workers) -> None:
    worker = await workers.ready()
    async with worker.session("resume=1") as session:
        await session.send("{}")
        (error,), code = await drained(session)
    assert (error["code"], code) == ("invalid_message", 4400)


async def test_an_epoch_that_is_no_number_is_refused(workers: Workers) -> None:
    worker = await workers.ready()
    async with worker.session("session_id=sess_x&epoch=second") as session:
        (error,), code = await drained(session)
    assert (error["code"], code) == ("invalid_message", 4400)


async def test_a_later_epoch_of_a_session_ends_the_one_that_runs_here(workers: Workers) -> None:
    worker = await workers.ready(max_sessions=1)
    async with worker.session("session_id=sess_x&epoch=1") as old:
        await old.recv()
        async with worker.session("session_id=sess_x&epoch=2") as new:
            assert json.loads(await new.recv())["type"] == "session.begin"
            messages, code = await drained(old)
            assert (messages[-1]["type"], messages[-1]["reason"]) == (
                "session.terminated",
                "taken_over",
            )
            assert (messages[-1]["recoverable"], code) == (False, 1001)
            assert (await worker.http("/health"))[1]["active_sessions"] == 1
            async with worker.session() as another:
                assert (await drained(another))[1] == 1013
            await new.send(SPOKEN)
            await new.send(END)
            messages, code = await drained(new)
            assert (len(texts(messages)), code) == (1, 1000)
    assert (await worker.http("/health"))[1]["active_sessions"] == 0


@pytest.mark.parametrize("epoch", [1, 2])
async def test_an_epoch_that_is_over_is_refused_where_a_later_one_runs(
    workers: Workers, epoch: int
) -> None:
    worker = await workers.ready(max_sessions=1)
    async with worker.session("session_id=sess_x&epoch=2") as running:
        await running.recv()
        async with worker.session(f"session_id=sess_x&epoch={epoch}") as late:
            (message,), code = await drained(late)
        assert (message["reason"], code) == ("taken_over", 1001)
        await running.send(SPOKEN)
        await running.send(END)
        messages, code = await drained(running)
        assert (len(texts(messages)), code) == (1, 1000)


# 000-24, 001-09
async def test_sessions_share_one_worker(workers: Workers) -> None:
    worker = await workers.ready(max_sessions=4)

    async def one(number: int) -> list[str]:
        async with worker.session() as session:
            for chunk in chunks(recordings()[number].audio.tobytes(), [16_000]):
                await session.send(chunk)
            await session.send(END)
            return texts((await drained(session))[0])

    together = await asyncio.gather(*map(one, range(4)))
    assert together == [await one(number) for number in range(4)]
    assert all(together)


# 001-04, 001-58, C-16
async def test_health_is_told_over_http_and_websocket(workers: Workers) -> None:
    worker = await workers.ready()
    status, body = await worker.http("/health")
    assert (status, body["status"], body["models"]) == (200, "healthy", ["accurate", "fast"])
    async with worker.session(path="/health") as connection:
        assert json.loads(await connection.recv())["status"] == "healthy"
    assert (await worker.http("/elsewhere"))[0] == 404


# 001-30
async def test_a_wrong_path_closes_with_1008(workers: Workers) -> None:
    worker = await workers.ready()
    async with worker.session(path="/sessions") as connection:
        assert await drained(connection) == ([], 1008)
        assert connection.close_reason == "Invalid path"


# 001-31, C-28
async def test_one_session_too_many_closes_with_1013(workers: Workers) -> None:
    worker = await workers.ready(max_sessions=1)
    async with worker.session() as first:
        await first.recv()
        async with worker.session() as second:
            (error,), code = await drained(second)
            assert (error["code"], error["retry_after"], code) == ("no_capacity", 5, 1013)
            assert second.close_reason == "Server at capacity"
    # The place is free again once the first has gone.
    await until(lambda: worker.http("/health"), lambda answer: answer[1]["active_sessions"] == 0)
    async with worker.session() as third:
        assert json.loads(await third.recv())["type"] == "session.begin"


async def test_what_a_server_redacts_is_redacted_in_every_session(workers: Workers) -> None:
    worker = await workers.ready(redact=["numbers"])
    async with worker.session("redact=emails") as session:
        begin = json.loads(await session.recv())
    assert begin["config"]["redact"] == ["emails", "numbers"]
    async with worker.session("redact=nobody") as session:
        (error,), code = await drained(session)
    assert (error["code"], code) == ("invalid_parameter", 4400)
    assert "redact: 'nobody' is neither numbers nor emails" in error["message"]


async def test_a_bad_parameter_is_refused(workers: Workers) -> None:
    worker = await workers.ready()
    async with worker.session("sample_rate=5") as session:
        (error,), code = await drained(session)
    assert (error["code"], code) == ("invalid_parameter", 4400)
    async with worker.session("language=ja") as session:
        (error,), code = await drained(session)
    # Whisper knows it; the demo checkpoint does not.
    assert (error["code"], code) == ("language_unsupported", 4400)


async def test_a_session_is_for_those_who_know_the_secret(workers: Workers) -> None:
    worker = await workers.ready(secret="between-us")
    wrong = ("", "Bearer", "Bearer between-u", "between-us", "Bearer between-us2", "Bearer ü")
    for shown in wrong:
        with pytest.raises(InvalidStatus, match="401") as refusal:
            await worker.session(Authorization=shown)
        assert b"DALSTON_WORKER_SECRET" in (refusal.value.response.body or b"")
        assert b"between-us" not in (refusal.value.response.body or b"")
    with pytest.raises(InvalidStatus, match="401"):
        await worker.session("authorization=Bearer%20between-us")
    async with worker.session(Authorization="Bearer between-us") as session:
        assert json.loads(await session.recv())["type"] == "session.begin"
    # A gateway proves that it has it, and is proven it first.
    number, heard = introduction.nonce(), ""
    for known in ("between-us", "another"):
        async with worker.session("settings=1", **{introduction.NONCE_HEADER: number}) as session:
            answer = session.response.headers[introduction.PROOF_HEADER]
            proof = introduction.checked(known, number, f"ws://127.0.0.1:{worker.port}", answer)
            assert (proof is None) is (known == "another")
            await session.send(proof.first_frame() if proof else "0" * 64)
            if proof:
                await session.send("{}")
                assert json.loads(await session.recv())["type"] == "session.begin"
                # What was heard of another connection is of no use.
                heard = proof.first_frame()
                continue
            assert await drained(session) == ([], 1008)
    async with worker.session("settings=1", **{introduction.NONCE_HEADER: number}) as session:
        await session.send(heard)
        assert await drained(session) == ([], 1008)
    # Health is for everybody.
    assert (await worker.http("/health"))[0] == 200
    async with worker.session(path="/health") as connection:
        assert json.loads(await connection.recv())["status"] == "healthy"


async def test_a_worker_without_a_secret_lets_everybody_in(workers: Workers) -> None:
    worker = await workers.ready()
    async with worker.session(Authorization="Bearer whatever") as session:
        assert json.loads(await session.recv())["type"] == "session.begin"


async def test_a_worker_that_the_world_may_use_says_so(
    workers: Workers, caplog: pytest.LogCaptureFixture
) -> None:
    await workers.start("w1")
    await workers.start("w2", host="0.0.0.0", secret="between-us")
    assert "set DALSTON_WORKER_SECRET" not in caplog.text
    await workers.start("w3", host="0.0.0.0")
    assert "set DALSTON_WORKER_SECRET" in caplog.text


async def test_every_error_names_the_request_that_the_gateway_named(workers: Workers) -> None:
    worker = await workers.ready(max_sessions=1)
    async with worker.session("sample_rate=5&request_id=req_1") as session:
        (error,), _ = await drained(session)
        assert error["request_id"] == "req_1"
    async with worker.session("request_id=req_2") as session:
        await session.recv()
        async with worker.session("request_id=req_3") as second:
            (error,), _ = await drained(second)
            assert (error["code"], error["request_id"]) == ("no_capacity", "req_3")
        await session.send("what?")
        error = json.loads(await session.recv())
        assert (error["code"], error["request_id"]) == ("invalid_message", "req_2")
    async with worker.session("sample_rate=5") as session:
        (error,), _ = await drained(session)
        assert error["request_id"].startswith("req_")


# 000-09, L-12, C-12
async def test_the_record_says_what_the_worker_is(workers: Workers) -> None:
    worker = await workers.ready(max_sessions=7, endpoint="ws://here:9000")
    record = await until(lambda: worker.record("w1"), bool)
    assert record["endpoint"] == "ws://here:9000"
    assert (record["status"], record["capacity"], record["active_sessions"]) == ("ready", "7", "0")
    assert json.loads(record["models"]) == ["fast", "accurate"]
    assert json.loads(record["models_loaded"]) == ["demo"]
    assert json.loads(record["languages_supported"]) == ["de", "en", "es", "fr", "auto"]
    assert record["version"] == version("dalston")
    assert "gpu_memory_used" not in record  # there is none


# 001-08, 001-28
async def test_a_direct_session_takes_a_slot_too(workers: Workers) -> None:
    worker = await workers.ready(heartbeat_seconds=0.1)
    async with worker.session() as session:
        await session.recv()
        await until(lambda: worker.record("w1"), lambda r: r.get("active_sessions") == "1")
    await until(lambda: worker.record("w1"), lambda r: r.get("active_sessions") == "0")


# 001-36
async def test_what_goes_wrong_inside_is_an_error_of_its_session_alone(
    workers: Workers, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    worker = await workers.ready()
    receive_audio = Session.receive_audio

    def broken(session: Session, data: bytes) -> bool:
        if data == b"\1\0":
            raise ValueError("nobody thought of this")
        return receive_audio(session, data)

    monkeypatch.setattr(Session, "receive_audio", broken)
    slot = await worker.slots.acquire("sess_x", "fast", {})
    query = f"session_id=sess_x&epoch={slot.epoch}"
    async with worker.session(query) as session, worker.session() as other:
        await session.send(b"\1\0")
        messages, code = await drained(session)
        error = messages[-1]
        assert (error["type"], error["code"], error["recoverable"], code) == (
            "error",
            "internal_error",
            False,
            1011,
        )
        assert "nobody thought" not in error["message"]  # it is in the log
        assert "nobody thought of this" in caplog.text
        await other.send(END)
        assert (await drained(other))[1] == 1000
    status = "dalston:realtime:session:sess_x", "status"
    await until(lambda: worker.client.hget(*status), lambda found: found == b"error")


# 002-28
async def test_while_a_session_runs_its_record_says_how_it_is_served(workers: Workers) -> None:
    worker = await workers.ready(heartbeat_seconds=0.1)
    slot = await worker.slots.acquire("sess_y", "fast", {"language": "auto", "model": "fast"})
    async with worker.session(f"session_id=sess_y&epoch={slot.epoch}&language=de") as session:
        await session.send(bytes(32_000))

        async def record() -> dict[str, str]:
            return next(s for s in await worker.slots.sessions() if s["session_id"] == "sess_y")

        served = await until(record, lambda r: float(r.get("audio_duration", 0)) == 1.0)
        assert (served["model"], served["language"], served["status"]) == ("fast", "de", "active")


async def test_a_session_of_fast_takes_its_share_of_a_worker(workers: Workers) -> None:
    worker = await workers.ready(max_sessions=1, fast_share=0.5)
    async with worker.session("model=fast") as first, worker.session("model=fast") as second:
        for session in (first, second):
            assert json.loads(await session.recv())["type"] == "session.begin"
        async with worker.session("model=fast") as third:
            assert (await drained(third))[1] == 1013


async def test_a_worker_whose_record_others_overwrote_goes_on(workers: Workers) -> None:
    worker = await workers.ready(heartbeat_seconds=0.1)
    await until(lambda: worker.record("w1"), bool)
    garbage = {"instance": "nobody", "endpoint": "ws://nowhere:1"}
    await worker.client.hset("dalston:realtime:worker:w1", mapping=garbage)
    await asyncio.sleep(0.5)  # some heartbeats
    assert not worker.task.done()
    # It was silent for as long as others are: whoever wrote that does not live.
    await worker.client.hset("dalston:realtime:worker:w1", "heartbeat_at", 1)
    await until(lambda: worker.record("w1"), lambda r: r["endpoint"] != "ws://nowhere:1")


# L-11
async def test_a_worker_that_ends_unregisters(workers: Workers) -> None:
    worker = await workers.ready()
    await until(lambda: worker.record("w1"), bool)
    worker.stop.set()
    await asyncio.wait_for(worker.task, 5)
    assert await worker.record("w1") == {}


# L-11
async def test_draining_lets_running_sessions_end_and_takes_no_new_ones(workers: Workers) -> None:
    worker = await workers.ready(drain_seconds=20)
    async with worker.session("language=en") as session:
        await session.recv()
        worker.stop.set()
        await until(lambda: worker.record("w1"), lambda r: r.get("status") == "draining")
        async with worker.session() as late:
            (error,), code = await drained(late)
            assert (error["code"], code) == ("no_capacity", 1013)
        assert (await worker.http("/health"))[0] == 503
        await session.send(SPOKEN)
        await session.send(END)
        messages, code = await drained(session)
        assert code == 1000
        assert texts(messages)
    await asyncio.wait_for(worker.task, 5)


async def test_a_drain_that_takes_too_long_ends_sessions_with_what_was_said(
    workers: Workers,
) -> None:
    worker = await workers.ready(drain_seconds=0.2)
    async with worker.session("language=en") as session:
        await session.send(SPOKEN)
        await until_type(session, "vad.speech_start")
        worker.stop.set()
        messages, code = await drained(session)
    assert code == 1001
    assert messages[-1]["reason"] == "server_drain"
    assert messages[-1]["transcript"]
    await asyncio.wait_for(worker.task, 10)


async def until_type(session: ClientConnection, kind: str) -> None:
    async with asyncio.timeout(15):
        while json.loads(await session.recv())["type"] != kind:
            pass


async def test_two_processes_may_not_share_an_id(workers: Workers) -> None:
    first = await workers.ready("same")
    await until(lambda: first.record("same"), bool)
    second = await workers.start("same", endpoint="ws://elsewhere:9000")
    with pytest.raises(WorkerIdTaken, match="same"):
        await asyncio.wait_for(second.task, 10)


async def test_one_that_died_leaves_its_id_to_the_next_at_once_wherever_that_listens(
    workers: Workers,
) -> None:
    nobody = f"ws://127.0.0.1:{free_port()}"
    dead = Registration("same", "dead", nobody, "ready", 4, ["fast"], ["demo"], ["en"], "0.1.0")
    client = redis_client(workers.redis_url)
    await Slots(client).heartbeat(dead, {})
    await client.aclose()
    worker = await workers.ready("same")
    await until(lambda: worker.record("same"), lambda record: record["endpoint"] != nobody)
    assert not worker.task.done()


async def test_without_triton_the_worker_says_so_and_takes_no_sessions(workers: Workers) -> None:
    worker = await workers.start(triton_urls=[f"127.0.0.1:{free_port()}"])
    status, body = await worker.http("/health")
    assert status == 503
    assert "unhealthy" in body
    async with worker.session() as session:
        (error,), code = await drained(session)
    assert (error["code"], code) == ("no_capacity", 1013)
    assert await worker.record("w1") == {}


async def test_the_vad_can_run_in_the_worker_with_the_same_result(
    workers: Workers, model_repository: Any
) -> None:
    model = model_repository / "silero_vad" / "1" / "silero.onnx"
    results: list[list[Any]] = []
    for id, settings in (("w1", {}), ("w2", {"vad": "worker", "vad_model": model})):
        worker = await workers.ready(id, **settings)
        async with worker.session("language=en") as session:
            await session.send(recordings()[1].audio.tobytes())
            await session.send(END)
            messages, _ = await drained(session)
        keep = ("vad.speech_start", "vad.speech_end", "transcript.final")
        for message in messages:
            message.pop("processing_ms", None)
        results.append([m for m in messages if m["type"] in keep])
    assert results[0] == results[1]
    assert results[0]


async def said(session: ClientConnection) -> Any:
    """Speak, and flush: the final, or the error in its place."""
    await session.send(SPOKEN)
    await session.send('{"type":"flush"}')
    async with asyncio.timeout(40):
        while True:
            message = json.loads(await session.recv())
            if message["type"] in ("transcript.final", "error"):
                return message


# 002-33
async def test_a_final_that_a_model_fails_on_is_an_error_and_the_session_goes_on(
    workers: Workers, failing_triton: Any
) -> None:
    worker = await workers.ready(triton_urls=[failing_triton.url])
    async with worker.session("language=en") as session:
        assert (await said(session))["text"] == "all is well"
        failing_triton.error.write_text("index 7 is out of bounds for axis 0")
        error = await said(session)
        assert error["type"] == "error"
        assert "index 7 is out of bounds" in error["message"]
        assert error["recoverable"]
        failing_triton.error.unlink()
        assert (await said(session))["text"] == "all is well"


# 002-32
async def test_a_model_without_memory_lowers_the_capacity_and_its_final_comes_later(
    workers: Workers, failing_triton: Any
) -> None:
    worker = await workers.ready(
        max_sessions=8, triton_urls=[failing_triton.url], heartbeat_seconds=20
    )  # it is told at once
    async with worker.session("language=en") as session, worker.session(), worker.session():
        failing_triton.error.write_text("CUDA failed with error out of memory")
        final = asyncio.create_task(said(session))
        await until(lambda: worker.record("w1"), lambda record: record.get("capacity") == "2")
        # Those that run go on; new ones are refused.
        async with worker.session() as another:
            assert (await drained(another))[1] == 1013
        assert not final.done()
        failing_triton.error.unlink()
        assert (await final)["text"] == "all is well"


async def test_one_triton_of_two_is_enough(workers: Workers, triton_url: str) -> None:
    nobody = f"127.0.0.1:{free_port()}"
    worker = await workers.ready(triton_urls=[nobody, triton_url])
    async with worker.session("language=en") as session:
        assert (await said(session))["text"]


@pytest.mark.parametrize("kind", ["silence", "noise", "tones"])
async def test_a_minute_of_nothing_is_no_text(workers: Workers, kind: str) -> None:
    worker = await workers.ready()
    r, n = np.random.default_rng(7), 60 * 16_000
    t = np.arange(n) / 16_000
    audio = {
        "silence": np.zeros(n),
        "noise": r.standard_normal(n) * 0.05,
        "tones": sum(
            0.1 * np.sin(2 * np.pi * f * t) * (np.sin(2 * np.pi * t / p) > 0)
            for f, p in ((220, 1.3), (277, 2.1), (330, 0.9), (440, 3.4))
        ),
    }[kind]
    pcm = np.rint(np.asarray(audio) * 32767).astype("<i2").tobytes()
    async with worker.session() as session:
        for chunk in chunks(pcm, [32_000]):
            await session.send(chunk)
        await session.send(END)
        messages, _ = await drained(session)
    assert texts(messages) == []
    assert messages[-1]["transcript"] == ""
    assert not [m for m in messages if m["type"] == "transcript.partial"]


async def test_when_redis_is_back_the_worker_is_too_with_its_sessions(
    tmp_path: Path, triton_url: str
) -> None:
    with redis_process(tmp_path) as redis:
        started = Workers(redis.url, triton_url)
        worker = await started.ready(max_sessions=2)
        await until(lambda: worker.record("w1"), bool)
        slot = await worker.slots.acquire("s1", "fast", {})
        async with worker.session(f"session_id=s1&epoch={slot.epoch}&language=en") as session:
            await session.recv()
            for wait_s in (0.0, 0.5):
                redis.kill()
                await asyncio.sleep(wait_s)
                redis.start()
                record = await until(lambda: worker.record("w1"), bool)
                assert (record["status"], record["active_sessions"]) == ("ready", "1")
            assert await worker.slots.renew([slot]) == set()
            await session.send(SPOKEN)
            await session.send(END)
            messages, code = await drained(session)
            assert code == 1000
            assert texts(messages)
        await until(lambda: worker.record("w1"), lambda r: r.get("active_sessions") == "0")
        worker.stop.set()
        await asyncio.wait_for(worker.task, 5)
        await worker.client.aclose()


async def test_a_redis_cluster_is_refused_at_the_start(tmp_path: Path, triton_url: str) -> None:
    with redis_process(tmp_path, "--save", "", "--cluster-enabled", "yes") as cluster:
        worker = await Workers(cluster.url, triton_url).start()
        with pytest.raises(UnsupportedRedis, match="Cluster"):
            await asyncio.wait_for(worker.task, 10)
        await worker.client.aclose()


# Limits: each refuses, and lets the honest caller through.


async def speak(session: ClientConnection, audio: bytes) -> None:
    for chunk in chunks(audio, [3200]):
        await session.send(chunk)
        await asyncio.sleep(0.1)


async def test_a_session_that_lags_too_much_is_closed_with_4010(workers: Workers) -> None:
    worker = await workers.ready(
        lag_warning_seconds=0.001, lag_limit_seconds=0.002, lag_held_seconds=0.0
    )
    async with worker.session("session_id=sess_x&language=en") as session:
        speaking = asyncio.create_task(speak(session, SPOKEN))
        messages, code = await drained(session)
        speaking.cancel()
    assert code == 4010
    error, terminated = messages[-2:]
    assert (error["code"], error["recoverable"]) == ("lag_exceeded", False)
    assert (terminated["type"], terminated["reason"]) == ("session.terminated", "lag_exceeded")
    assert (terminated["session_id"], terminated["recoverable"]) == ("sess_x", False)


async def test_a_session_in_real_time_is_never_warned(workers: Workers) -> None:
    worker = await workers.ready()
    async with worker.session("language=en&sample_rate=16000") as session:
        await speak(session, SPOKEN)
        await session.send(END)
        messages, code = await drained(session)
    assert code == 1000
    assert texts(messages)
    assert not [m for m in messages if m["type"] in ("warning", "ack")]


async def test_acks_are_told_to_those_who_ask(workers: Workers) -> None:
    worker = await workers.ready()
    async with worker.session("language=en&ack=true&sample_rate=8000") as session:
        await speak(session, SPOKEN[: 24_000 * 2])
        await session.send(END)
        messages, _ = await drained(session)
    acks = [m for m in messages if m["type"] == "ack"]
    assert acks
    # 3200 bytes are 0.2 s of 8 kHz, and come every 0.1 s; the first ack is due after 1 to 1.25 s.
    assert acks[0]["received"] == pytest.approx(2.35, abs=0.6)


async def test_a_worker_that_lags_takes_no_new_sessions_but_goes_on_with_others(
    workers: Workers,
) -> None:
    worker = await workers.ready(lag_warning_seconds=0.001)
    async with worker.session("language=en") as session:
        speaking = asyncio.create_task(speak(session, SPOKEN))
        await until_type(session, "warning")
        refused: list[Any] = []
        while not refused and not speaking.done():  # it is measured four times a second
            async with worker.session() as late:
                message = json.loads(await late.recv())
                refused += [message] if message["type"] == "error" else []
        assert refused[0]["code"] == "no_capacity"
        assert refused[0]["retry_after"] == 5
        async with worker.session("resume=1") as resumed:
            await resumed.send("{}")  # it is asked what it goes on with
            assert json.loads(await resumed.recv())["code"] == "invalid_message"
        await speaking
        await session.send(END)
        messages, code = await drained(session)
    assert code == 1000
    assert texts(messages)


async def test_a_caller_that_never_sends_is_let_go(workers: Workers) -> None:
    worker = await workers.ready(idle_seconds=0.5)
    async with worker.session() as session:
        messages, code = await drained(session)
    assert code == 4008
    assert [m["type"] for m in messages] == ["session.begin", "error", "session.end"]
    assert messages[1]["code"] == "session_timeout"
    await until(lambda: worker.http("/health"), lambda answer: answer[1]["active_sessions"] == 0)


async def test_a_caller_that_sends_in_time_is_not(workers: Workers) -> None:
    worker = await workers.ready(idle_seconds=0.5)
    async with worker.session() as session:
        for _ in range(4):
            await asyncio.sleep(0.3)
            await session.send(bytes(320))
        await session.send(END)
        _, code = await drained(session)
    assert code == 1000


async def test_the_longest_session_is_a_setting(workers: Workers) -> None:
    worker = await workers.ready(session_seconds=0.5)
    async with worker.session() as session:
        (_, error, end), code = await drained(session)
    assert (error["code"], end["reason"], code) == ("session_timeout", "max_duration", 4008)


async def test_a_connection_that_never_asks_for_anything_is_closed(workers: Workers) -> None:
    worker = await workers.ready(handshake_seconds=0.5)
    reader, writer = await asyncio.open_connection("127.0.0.1", worker.port)
    writer.write(b"GET /session HTTP/1.1\r\n")
    async with asyncio.timeout(5):
        await reader.read()
    writer.close()


async def test_a_connection_that_takes_its_time_to_ask_is_answered(workers: Workers) -> None:
    worker = await workers.ready(handshake_seconds=20.0)
    reader, writer = await asyncio.open_connection("127.0.0.1", worker.port)
    for part in ("GET /health HTTP/1.1\r\n", "Host: 127.0.0.1\r\n", "\r\n"):
        writer.write(part.encode())
        await asyncio.sleep(0.3)
    async with asyncio.timeout(5):
        assert b" 200 OK" in await reader.readline()
    writer.close()


async def test_a_session_without_the_snapshot_it_goes_on_from_is_closed(workers: Workers) -> None:
    worker = await workers.ready(handshake_seconds=0.5)
    async with worker.session("session_id=sess_x&epoch=2&resume=1") as session:
        (error,), code = await drained(session)
    assert (error["code"], code) == ("session_timeout", 4008)
    assert "snapshot" in error["message"]


async def test_what_no_caller_needs_to_send_at_once_is_closed_with_1009(workers: Workers) -> None:
    worker = await workers.ready()
    async with worker.session() as session:
        piece = LONGEST_MESSAGE // 16
        with contextlib.suppress(ConnectionClosed):
            await session.send([bytes(piece)] * 16 + [bytes(1)])
        messages, code = await drained(session)
    # By the library, which holds no more of it: the session never sees it, and cannot say why.
    assert ([m["type"] for m in messages], code) == (["session.begin"], 1009)


async def test_a_snapshot_of_four_hours_is_taken(workers: Workers) -> None:
    worker = await workers.ready()
    said = "four hours of somebody who says a dozen words, or a few more, in each of these segments"
    told = [Segment(float(n), n + 2.0, said, f"seg_{n:04d}") for n in range(0, 4 * 3600, 2)]
    snapshot = Snapshot(
        session_id="sess_x",
        epoch=1,
        position=3 * 3600 * 16_000,
        replay_from=3 * 3600 * 16_000,
        controls=0,
        config=SessionConfig(language="en"),
        detected_language=None,
        next_segment=4 * 3600,
        speech_samples=0,
        segments=told,
    )
    url = f"ws://127.0.0.1:{worker.port}/session?session_id=sess_x&epoch=2&resume=1"
    async with connect(url, max_size=None) as session:
        await session.send(serialize(snapshot))
        await session.send(END)
        messages, code = await drained(session)
    assert (messages[-1]["segments"][-1]["text"], code) == (said, 1000)


WRONG = json.dumps({"type": "x" * 200})  # the answer repeats it


async def push(session: ClientConnection) -> None:
    with contextlib.suppress(ConnectionClosed):
        while True:
            for _ in range(100):
                await session.send(WRONG)
            await asyncio.sleep(0)  # the worker shares this loop


@pytest.mark.parametrize("reader_seconds", [0.5, 60], ids=["by time", "by size"])
async def test_a_client_that_never_reads_is_let_go(workers: Workers, reader_seconds: float) -> None:
    worker = await workers.ready(reader_seconds=reader_seconds)
    async with worker.session("session_id=sess_x") as session:
        session.transport.pause_reading()  # not even control frames
        pushing = asyncio.create_task(push(session))
        await until(
            lambda: worker.http("/health"), lambda answer: answer[1]["active_sessions"] == 0
        )
        # It reads after all, and finds out why.
        session.transport.resume_reading()
        messages, code = await drained(session)
        pushing.cancel()
    assert code == 4011
    assert messages[-1]["code"] == "slow_reader"


async def test_a_client_that_does_not_even_read_why_is_dropped(workers: Workers) -> None:
    worker = await workers.ready(reader_seconds=0.5)
    async with worker.session("session_id=sess_x") as session:
        session.transport.pause_reading()
        async with asyncio.timeout(10):
            await push(session)  # until the connection is gone


async def test_a_worker_ends_though_a_client_does_not_read(workers: Workers) -> None:
    worker = await workers.ready(reader_seconds=1.0, drain_seconds=0.2)
    async with worker.session() as session:
        session.transport.pause_reading()
        pushing = asyncio.create_task(push(session))
        await asyncio.sleep(0.5)
        worker.stop.set()
        await asyncio.wait_for(worker.task, 10)
        pushing.cancel()
        session.transport.abort()


async def test_a_client_that_reads_late_reads_everything(workers: Workers) -> None:
    worker = await workers.ready()
    async with worker.session("session_id=sess_x") as session:
        session.transport.pause_reading()
        for _ in range(200):
            await session.send('{"type":"ping"}')
        await session.send(END)
        await asyncio.sleep(1)
        session.transport.resume_reading()
        messages, code = await drained(session)
    assert code == 1000
    assert [m["type"] for m in messages].count("pong") == 200

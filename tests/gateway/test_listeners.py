"""
Calls whose client reads no text, and who listens to them: through Redis.
"""

import asyncio
import json
from typing import Any

from support.fronted import FakeWorker, Gateway, drained, gateway_over
from support.registered import BEGIN, final
from websockets.asyncio.client import ClientConnection, connect
from websockets.asyncio.server import ServerConnection
from websockets.exceptions import ConnectionClosed

from dalston.gateway.access.keys import RedisKeys, make

CALL = "CA" + "0123456789abcdef" * 2


def twilio(gateway: Gateway) -> connect:
    return connect(f"ws://{gateway.url}/twilio", compression=None)


def listener(gateway: Gateway, name: str = CALL, query: str = "") -> connect:
    return connect(f"ws://{gateway.url}/v1/realtime/heard/{name}?{query}", compression=None)


async def stream(call: ClientConnection, *tracks: str, **parameters: str) -> None:
    """A call as Twilio sends it, of two messages for each track."""
    begin: dict[str, Any] = {"callSid": CALL, "tracks": tracks, "customParameters": parameters}
    messages = [{"event": "connected"}, {"event": "start", "start": begin}]
    for at in range(2):
        for track in tracks:
            media = {"track": track, "timestamp": str(20 * at), "payload": "AQID" * 40}
            messages.append({"event": "media", "media": media})
    for message in [*messages, {"event": "stop"}]:
        await call.send(json.dumps(message))


async def say(connection: ServerConnection) -> None:
    """A worker that tells how much it heard, at the end."""
    await connection.send(BEGIN)
    heard = 0
    async for frame in connection:
        if isinstance(frame, bytes):
            heard += len(frame)
        elif json.loads(frame)["type"] == "end":
            await connection.send(json.dumps(json.loads(final(0)) | {"text": f"{heard} bytes"}))
            await connection.send('{"type":"session.end"}')
            return await connection.close(1000)


async def silence(call: ClientConnection) -> int | None:
    """The close code of a connection on which nothing is said."""
    try:
        async with asyncio.timeout(10):
            assert await call.recv() is None, "Twilio reads nothing"
    except ConnectionClosed:
        pass
    return call.close_code


async def test_what_is_heard_of_a_call_is_told_to_who_listens_and_not_to_twilio(
    gateway: Gateway,
) -> None:
    async with FakeWorker(gateway.slots, "a", say).running(), listener(gateway) as ears:
        async with twilio(gateway) as call:
            await stream(call, "inbound", "outbound")
            assert await silence(call) == 1000
        messages, code = await drained(ears)
    finals = [m for m in messages if m["type"] == "transcript.final"]
    assert {(m["channel"], m["text"]) for m in finals} == {(0, "240 bytes"), (1, "240 bytes")}
    assert [m["type"] for m in messages].count("session.begin") == 2
    assert code == 1000
    await gateway.until_held(0)


async def test_it_is_told_to_all_who_listen(gateway: Gateway) -> None:
    async with FakeWorker(gateway.slots, "a", say).running(), listener(gateway) as one:
        async with listener(gateway) as other, twilio(gateway) as call:
            await stream(call, "inbound")
            assert (await drained(one))[0] == (await drained(other))[0]


async def test_the_key_is_a_parameter_of_the_stream(redis_url: str) -> None:
    async with gateway_over(redis_url, api_keys="redis") as gateway:
        text, key = make("calls")
        await RedisKeys(gateway.client).add(key)
        async with FakeWorker(gateway.slots, "a", say).running():
            async with listener(gateway) as ears:
                (error,), code = await drained(ears)
                assert (error["code"], code) == ("unauthorized", 4001)
            async with listener(gateway, query=f"api_key={text}") as ears:
                async with twilio(gateway) as call:
                    await stream(call, "inbound")
                    assert await silence(call) == 1011
                messages, _ = await drained(ears)
                assert [m["code"] for m in messages] == ["unauthorized"]
            async with listener(gateway, query=f"api_key={text}") as ears:
                async with twilio(gateway) as call:
                    await stream(call, "inbound", api_key=text)
                    assert await silence(call) == 1000
                messages, _ = await drained(ears)
                assert "240 bytes" in str(messages)


async def test_a_name_that_could_be_guessed_is_none(gateway: Gateway) -> None:
    async with listener(gateway, "events") as ears:
        (error,), code = await drained(ears)
    assert (error["code"], code) == ("invalid_parameter", 4400)


async def test_who_stops_listening_is_forgotten(gateway: Gateway) -> None:
    async def listeners() -> int:
        channels: list[Any] = await gateway.client.pubsub_channels("*heard:*")
        return len(channels)

    async with listener(gateway):
        assert await listeners() == 1
    async with asyncio.timeout(5):
        while await listeners():
            await asyncio.sleep(0.01)

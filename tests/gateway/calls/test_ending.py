"""
Sessions that somebody wants ended who does not know where they are.
"""

from typing import Any

import pytest
from support.fronted import FakeWorker, Gateway, drained, echo, gateway_over

from dalston.gateway.calls import ending
from dalston.gateway.calls.ending import end_session
from dalston.orchestrator.capacity.slots import Slots, redis_client

ADMIN = {"Authorization": "Bearer secret"}


async def left_over(slots: Slots) -> str:
    """A session whose gateway is gone: it has its slot, and can be gone on with."""
    id = f"sess_{'0' * 24}"
    slot = await slots.acquire(id, "fast", {"gateway": "gone"}, key_id="kiosk")
    await slots.keep(id, slot.epoch, {"config": "{}"}, "kiosk", whole=True)
    return id


async def test_a_session_that_no_gateway_has_is_ended_by_who_asks(
    gateway: Gateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ending, "ANSWER_S", 0.3)
    async with FakeWorker(gateway.slots, "a", echo).running():
        id = await left_over(gateway.slots)
        assert await gateway.held() == 1
        path = f"/v1/realtime/sessions/{id}"
        assert await gateway.http(path, "DELETE", ADMIN) == (
            200,
            {"session_id": id, "status": "ended"},
        )
        assert await gateway.held() == 0
        assert await gateway.slots.sessions() == []
        # Nor does its client go on with it.
        async with gateway.stream(f"resume_session_id={id}") as late:
            (error,), code = await drained(late)
        assert (code, "nothing is kept" in error["message"]) == (4400, True)
        assert (await gateway.http(path, "DELETE", ADMIN))[0] == 404


async def test_a_session_of_another_gateway_is_ended_by_that_one(redis_url: str) -> None:
    async with gateway_over(redis_url) as gateway:
        async with FakeWorker(gateway.slots, "a", echo).running(), gateway.stream() as stream:
            await stream.recv()
            (session,) = await gateway.slots.sessions()
            client: Any = redis_client(redis_url)
            assert await end_session(Slots(client), session["session_id"]) == "terminating"
            messages, _ = await drained(stream)
            assert messages[-1]["said"] == {"type": "end", "reason": "terminated"}
            await gateway.until_held(0)
            assert await end_session(Slots(client), session["session_id"]) is None
            await client.aclose()


async def test_a_gateway_that_did_not_hear_learns_it_when_it_renews(
    gateway: Gateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ending, "ANSWER_S", 0.2)
    async with FakeWorker(gateway.slots, "a", echo).running():
        id = f"sess_{'1' * 24}"
        slot = await gateway.slots.acquire(id, "fast", {"gateway": "deaf"})
        assert await gateway.slots.renew([slot]) == set()
        assert await end_session(gateway.slots, id) == "ended"
        assert await gateway.slots.renew([slot]) == {id}


async def test_the_active_sessions_of_a_key_are_known(gateway: Gateway) -> None:
    async with FakeWorker(gateway.slots, "a", echo).running():
        id = await left_over(gateway.slots)
        await gateway.slots.acquire("sess_other", "fast", {}, key_id="till")
        assert await gateway.slots.sessions_of("kiosk") == [id]
        await gateway.slots.discard(id)
        assert await gateway.slots.sessions_of("kiosk") == []

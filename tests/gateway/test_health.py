"""
What a real gateway tells of its health in the words of other servers.
"""

from support.fronted import FakeWorker, Gateway, echo

from dalston.orchestrator.capacity.slots import Registration

NOTHING = {"websocket_ready": False, "model_loaded": False, "gpu_available": False}


# 004-29
async def test_clients_of_recordings_are_told_whether_one_would_work(gateway: Gateway) -> None:
    status = {"status": "unhealthy", "active_connections": 0, **NOTHING}
    assert await gateway.http("/ws/status") == (200, status)
    async with FakeWorker(gateway.slots, "a", echo, capacity=1).running():
        _, ready = await gateway.http("/ws/status")
        async with gateway.stream() as stream:
            await stream.recv()
            _, full = await gateway.http("/ws/status")
    status |= {"status": "healthy", "model_loaded": True}
    assert ready == {**status, "websocket_ready": True}
    assert full == {**status, "active_connections": 1}


async def test_models_that_sleep_are_not_loaded_and_memory_tells_of_a_gpu(
    gateway: Gateway,
) -> None:
    names = ["fast"], ["demo"], ["en"]
    asleep = Registration(
        "a", "a", "ws://x", "ready", 2, *names, "0.1.0", gpu_memory_total="8GB", asleep=["fast"]
    )
    await gateway.slots.heartbeat(asleep, {})
    _, told = await gateway.http("/ws/status")
    assert (told["websocket_ready"], told["model_loaded"], told["gpu_available"]) == (
        True,
        False,
        True,
    )

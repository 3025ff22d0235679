"""
What is asked of a running Triton over gRPC beside inferences, and of its processes.
"""

import asyncio
import contextlib
from collections.abc import Callable
from typing import Any

import grpc
import grpc.aio
import psutil
from tritonclient.grpc import service_pb2

STARTING_S = 600.0  # large checkpoints take minutes to load
UNLOADING_S = 10.0  # it waits for what is under way


async def is_live(stub: Any) -> bool:
    try:
        await stub.ServerLive(service_pb2.ServerLiveRequest(), timeout=5)
    except grpc.aio.AioRpcError:
        return False
    return True


async def answers(stub: Any, model: str) -> int:
    """How many a model has given since it was loaded."""
    request = service_pb2.ModelStatisticsRequest(name=model)
    statistics = await stub.ModelStatistics(request, timeout=5)
    return sum(s.inference_stats.success.count for s in statistics.model_stats)


async def is_ready(stub: Any, model: str) -> bool:
    try:
        request = service_pb2.ModelReadyRequest(name=model)
        return (await stub.ModelReady(request, timeout=2)).ready
    except grpc.aio.AioRpcError:
        return False


async def unload(stub: Any, model: str) -> None:
    """Unload a model; requests that it already has are still answered. Raises AioRpcError."""
    request = service_pb2.RepositoryModelUnloadRequest(model_name=model)
    await stub.RepositoryModelUnload(request, timeout=UNLOADING_S)


async def load(
    stub: Any, model: str, processes: Callable[[], set[psutil.Process]]
) -> set[psutil.Process]:
    """Load a model. Returns the processes that serve it then, those included that died meanwhile.

    processes: those of the model that live at the moment. Raises AioRpcError.
    """
    old = processes()
    request = service_pb2.RepositoryModelLoadRequest(model_name=model)
    loading = asyncio.ensure_future(stub.RepositoryModelLoad(request, timeout=STARTING_S))
    serving = set[psutil.Process]()
    while not loading.done():
        await asyncio.wait([loading], timeout=0.1)
        serving |= processes() - old
    await loading
    return serving


def kill(process: psutil.Process) -> None:
    with contextlib.suppress(psutil.NoSuchProcess):
        process.kill()

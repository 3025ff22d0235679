"""
The gRPC connection to one Triton: calls that are never cancelled, and whether anybody is there.

Calls are unary with deadlines, never streams: this server's streaming crashes under load. Nor are
they cancelled: a cancellation that meets the answer on its way crashes it too (docs/log.md). Who
waits gives up; the call goes on and is dropped. The generated stubs are used directly; the client
class around them builds the same messages with three times the work, ten times a second for every
stream.

A server that is slow is not dead: finals take seconds under overload. So while answers are due
and none comes it is asked whether it lives, which waits for no model. Keepalive pings of gRPC
would ask the same, but this server takes one a second for an attack and hangs up.
"""

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from contextvars import Context
from typing import Any

import grpc
import grpc.aio
from tritonclient.grpc import service_pb2, service_pb2_grpc

from dalston.orchestrator import metrics

logger = logging.getLogger(__name__)

_OPTIONS = [
    # 30 s of audio are 960 KB; answers are small.
    ("grpc.max_send_message_length", 4 << 20),
    ("grpc.max_receive_message_length", 4 << 20),
    # A server that was away is found within half a second, not after gRPC's two minutes. The
    # second is what a connection may take.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 1000),
    ("grpc.max_reconnect_backoff_ms", 500),
    # Else a new channel takes over the old one's connection.
    ("grpc.use_local_subchannel_pool", 1),
]
# Without an answer for so long, the server is asked; it is silent if it leaves so many questions
# in a row unanswered.
ASK_AFTER_S, LIVE_DEADLINE_S, UNANSWERED = 1.0, 1.5, 2
ASK_AGAIN_S = 0.25  # a silent one
_LATE = grpc.StatusCode.DEADLINE_EXCEEDED  # told by our own side, so no sign of life


def _nothing() -> None:
    pass


class CallFailed(Exception):
    """There is no answer, and there will be none."""

    def __init__(self, code: grpc.StatusCode, sentence: str):
        super().__init__(sentence)
        self.code = code


class _Connection:
    def __init__(self, url: str):
        self.channel = grpc.aio.insecure_channel(url, options=_OPTIONS)
        self.stub: Any = service_pb2_grpc.GRPCInferenceServiceStub(self.channel)
        self.calls: set[asyncio.Future[Any]] = set()

    async def close(self, calls_first: bool = False) -> None:
        if calls_first and self.calls:
            await asyncio.wait(self.calls)  # they have deadlines
        await self.channel.close()


class Channel:
    """url: "host:port"."""

    def __init__(self, url: str):
        self.url = url
        self.silent = False
        self._connection = _Connection(url)
        self._given_up: dict[_Connection, asyncio.Task[None]] = {}
        # What somebody waits for: of which model, since when. The oldest is the first.
        self._due: dict[asyncio.Future[Any], tuple[str, float]] = {}
        self._answers = 0  # so far
        self._answered: dict[str, float] = {}  # models; when, last
        self._listening: asyncio.Task[None] | None = None

    async def close(self) -> None:
        connections = [self._connection, *self._given_up]
        tasks = [*self._given_up.values(), *([self._listening] if self._listening else [])]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for connection in connections:
            await connection.close()

    @property
    def pending(self) -> int:
        """Inferences under way, with those that nobody waits for any more."""
        return len(self._connection.calls)

    def mute_s(self, model: str) -> float:
        """For how long a model has answered nobody, while somebody waits."""
        due = (at for call, (of, at) in self._due.items() if of == model and not call.done())
        oldest = next(due, None)
        if oldest is None:
            return 0.0
        return time.monotonic() - max(oldest, self._answered.get(model, oldest))

    async def ask(self, method: str, request: Any, deadline_s: float = 2.0) -> Any:
        """Anything but an inference. Raises CallFailed."""
        if self.silent:
            raise self._silence()
        try:
            return await getattr(self._connection.stub, method)(request, timeout=deadline_s)
        except grpc.aio.AioRpcError as error:
            raise _failed(error) from None

    async def infer(
        self,
        request: Any,
        deadline_s: float,
        over: Callable[[], None] = _nothing,
        metadata: Sequence[tuple[str, str]] | None = None,
    ) -> Any:
        """The answer. Raises CallFailed. `over` is called when the server is done with it."""
        if self.silent:
            over()
            raise self._silence()
        waiting = asyncio.get_running_loop().create_future()
        calls = self._connection.calls

        def done(call: asyncio.Future[Any]) -> None:
            calls.discard(call)
            self._due.pop(waiting, None)
            over()
            # Asked for even if nobody waits any more, or asyncio complains.
            error = None if call.cancelled() else call.exception()
            if isinstance(error, grpc.aio.AioRpcError):
                error = _failed(error)
            if not isinstance(error, CallFailed) or error.code != _LATE:
                self._answers += 1
                self._answered[request.model_name] = time.monotonic()
            if waiting.done():
                return
            if call.cancelled():
                waiting.cancel()
            elif error:
                waiting.set_exception(error)
            else:
                waiting.set_result(call.result())

        infer = self._connection.stub.ModelInfer
        call = asyncio.ensure_future(infer(request, timeout=deadline_s, metadata=metadata))
        calls.add(call)
        self._due[waiting] = request.model_name, time.monotonic()
        call.add_done_callback(done)
        if self._listening is None or self._listening.done():
            # It is not about the session that happened to ask: not in its log lines and traces.
            self._listening = asyncio.create_task(self._listen(), context=Context())
        return await waiting

    async def _listen(self) -> None:
        """While answers are due: does the server live?"""
        while self._due:
            heard = self._answers
            await asyncio.sleep(ASK_AFTER_S)
            asked = 0
            while self._due and self._answers == heard and not await self._lives():
                asked += 1
                if asked == UNANSWERED:
                    await self._be_silent()
                    break

    async def _be_silent(self) -> None:
        """Let everybody go who waits, until the server is heard again."""
        logger.warning("Triton %s is silent", self.url)
        metrics.SILENCES.labels(self.url).inc()
        self.silent = True
        for waiting in self._due:
            if not waiting.done():
                waiting.set_exception(self._silence())
        self._due.clear()
        # The other end may be gone without a word, and then this one never hears of its return.
        # Closing it at once would cancel the calls.
        old, self._connection = self._connection, _Connection(self.url)
        self._given_up[old] = asyncio.create_task(old.close(calls_first=True))
        self._given_up[old].add_done_callback(lambda _: self._given_up.pop(old, None))
        while not await self._lives(refused=False):
            await asyncio.sleep(ASK_AGAIN_S)
        logger.info("Triton %s is heard again", self.url)
        self.silent = False

    async def _lives(self, refused: bool = True) -> bool:
        """refused: what to say if there is no server; the calls have heard of that themselves."""
        request = service_pb2.ServerLiveRequest()
        try:
            await self._connection.stub.ServerLive(request, timeout=LIVE_DEADLINE_S)
        except grpc.aio.AioRpcError as error:
            return refused and error.code() != _LATE
        return True

    def _silence(self) -> CallFailed:
        return CallFailed(grpc.StatusCode.UNAVAILABLE, f"{self.url} is silent")


def _failed(error: grpc.aio.AioRpcError) -> CallFailed:
    return CallFailed(error.code(), error.details() or error.code().name)

"""
The calls to one Triton: their form on the wire, their deadlines, and whether anybody is there.

A call that nobody waits for any more goes on and is dropped: the work is done anyhow, and behind
the answer its connection is clean.

A server that is slow is not dead: finals take seconds under overload. So while answers are due
and none comes it is asked whether it lives, which waits for no model. Each call has a connection of
its own, and one that is dead without a word looks like a model that is slow: until that model
answers what was asked later.
"""

import asyncio
import contextlib
import logging
import time
from collections.abc import Awaitable, Callable, Sequence
from contextvars import Context
from dataclasses import dataclass

import msgspec

from dalston.orchestrator import metrics
from dalston.orchestrator.wire import Answer, CallFailed, Code, Wire

logger = logging.getLogger(__name__)

# Without an answer for so long, the server is asked; it is silent if it leaves so many questions
# in a row unanswered.
ASK_AFTER_S, LIVE_DEADLINE_S, UNANSWERED = 1.0, 1.5, 2
ASK_AGAIN_S = 0.25  # a silent one
# Behind the answer to what was asked later a call may take so long, and so many times what the
# slowest lately took.
LOST_S, SLOWER, HALF_LIFE_S = 2.0, 3.0, 60.0
PROBE_AFTER_S = 2.5  # a model that has answered nobody


def _nothing() -> None:
    pass


class BinarySize(msgspec.Struct):
    binary_data_size: int


class Tensor(msgspec.Struct):
    """https://github.com/triton-inference-server/server/blob/main/docs/protocol/extension_binary_data.md"""

    name: str
    shape: list[int]
    datatype: str
    parameters: BinarySize


class _Binary(msgspec.Struct):
    binary_data: bool = True


class _Wanted(msgspec.Struct):
    name: str
    parameters: _Binary


class _Question(msgspec.Struct):
    inputs: list[Tensor]
    outputs: list[_Wanted]
    parameters: dict[str, str | bool] = {}


class _Told(msgspec.Struct):
    outputs: list[Tensor] = []


class _Refused(msgspec.Struct):
    error: str


Outputs = dict[str, tuple[str, memoryview]]  # by name: datatype and content

_encode = msgspec.json.Encoder().encode
_told = msgspec.json.Decoder(_Told).decode
_refused = msgspec.json.Decoder(_Refused).decode


class Inference:
    """What is asked of a model, and its outputs: binary tensors behind their names in JSON."""

    def __init__(self, model: str, outputs: Sequence[str], **parameters: str | bool):
        self.model = model
        self._question = _Question([], [_Wanted(name, _Binary()) for name in outputs], parameters)
        self._contents = list[bytes]()

    def add(self, name: str, datatype: str, length: int, content: bytes) -> None:
        """One row of an input."""
        tensor = Tensor(name, [1, length], datatype, BinarySize(len(content)))
        self._question.inputs.append(tensor)
        self._contents.append(content)

    def request(self, host: str, headers: Sequence[tuple[str, str]]) -> bytes:
        json = _encode(self._question)
        size = len(json) + sum(map(len, self._contents))
        more = "".join(f"{name}: {value}\r\n" for name, value in headers)
        head = (
            f"POST /v2/models/{self.model}/infer HTTP/1.1\r\nHost: {host}\r\n{more}"
            f"Inference-Header-Content-Length: {len(json)}\r\nContent-Length: {size}\r\n\r\n"
        )
        return b"".join((head.encode(), json, *self._contents))

    @staticmethod
    def outputs(answer: Answer) -> Outputs:
        """Raises CallFailed."""
        check(answer)
        found, at = Outputs(), 0
        for tensor in _told(answer.json).outputs:
            end = at + tensor.parameters.binary_data_size
            found[tensor.name] = tensor.datatype, answer.binary[at:end]
            at = end
        return found


def check(answer: Answer) -> None:
    """Raises CallFailed if it tells of a failure."""
    if answer.status == 200:
        return
    try:
        sentence = _refused(answer.json).error
    except msgspec.MsgspecError:
        sentence = answer.json.decode(errors="replace") or f"HTTP {answer.status}"
    try:
        code = Code(answer.status)
    except ValueError:
        code = Code.INTERNAL
    raise CallFailed(code, sentence)


@dataclass(eq=False)
class _Due:
    """What somebody waits for."""

    model: str
    asked: float
    call: asyncio.Future[Answer]
    waiting: asyncio.Future[Answer]
    overtaken: float | None = None  # since one of the model that was asked later is answered


class Channel:
    """url: "host:port" of its HTTP. probe: asks a model something small, whatever it answers."""

    def __init__(self, url: str, probe: Callable[[str], Awaitable[object]]):
        self.url = url
        self.silent = False
        self._probe = probe
        self._probes: dict[str, asyncio.Task[None]] = {}  # by model
        self._wire = Wire(url)
        self._calls: set[asyncio.Future[Answer]] = set()
        self._due: dict[asyncio.Future[Answer], _Due] = {}  # by call, the oldest first
        self._answers = 0  # so far
        self._answered: dict[str, float] = {}  # models; when, last
        self._slowest: dict[str, tuple[float, float]] = {}  # models; seconds to an answer, when
        self._listening: asyncio.Task[None] | None = None

    async def close(self) -> None:
        tasks = [*self._probes.values(), *([self._listening] if self._listening else [])]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._wire.abort()
        await asyncio.gather(*self._calls, return_exceptions=True)

    @property
    def pending(self) -> int:
        """Inferences under way, with those that nobody waits for any more."""
        return len(self._calls)

    def mute_s(self, model: str) -> float:
        """For how long a model has answered nobody, while somebody waits."""
        due = (d for d in self._due.values() if d.model == model and not d.waiting.done())
        asked = (due.asked for due in due)
        oldest = next(asked, None)
        if oldest is None:
            return 0.0
        return time.monotonic() - max(oldest, self._answered.get(model, oldest))

    async def get(self, path: str, deadline_s: float = 2.0) -> bytes:
        """The body of a page. Raises CallFailed."""
        if self.silent:
            raise self._silence()
        answer = await self._get(path, deadline_s)
        check(answer)
        return answer.json

    async def _get(self, path: str, deadline_s: float) -> Answer:
        request = f"GET {path} HTTP/1.1\r\nHost: {self.url}\r\n\r\n".encode()
        try:
            async with asyncio.timeout(deadline_s):
                return await self._wire.ask(request)
        except TimeoutError:
            raise _late(deadline_s) from None

    async def infer(
        self,
        inference: Inference,
        deadline_s: float,
        over: Callable[[], None] = _nothing,
        headers: Sequence[tuple[str, str]] = (),
    ) -> Outputs:
        """Raises CallFailed. `over` is called when the server is done with it, or too late."""
        if self.silent:
            over()
            raise self._silence()
        loop = asyncio.get_running_loop()
        call = self._wire.ask(inference.request(self.url, headers))
        due = _Due(inference.model, time.monotonic(), call, loop.create_future())

        def end() -> None:
            alarm.cancel()
            self._calls.discard(call)
            self._due.pop(call, None)
            over()

        def done(_: asyncio.Future[Answer]) -> None:
            # Asked for even if nobody waits any more, or asyncio complains.
            error = None if call.cancelled() else call.exception()
            if call in self._calls:
                end()
            if not call.cancelled():
                self._hear(due)
            if due.waiting.done():
                return
            if call.cancelled():
                due.waiting.cancel()
            elif error:
                due.waiting.set_exception(error)
            else:
                due.waiting.set_result(call.result())

        def late() -> None:
            end()
            if not due.waiting.done():
                due.waiting.set_exception(_late(deadline_s))

        alarm = loop.call_later(deadline_s, late)
        self._calls.add(call)
        self._due[call] = due
        call.add_done_callback(done)
        if self._listening is None or self._listening.done():
            # It is not about the session that happened to ask: not in its log lines and traces.
            self._listening = asyncio.create_task(self._listen(), context=Context())
        return Inference.outputs(await due.waiting)

    def _hear(self, answered: _Due) -> None:
        """A call has its answer, or was refused by the server."""
        now = time.monotonic()
        self._answers += 1
        self._answered[answered.model] = now
        self._took(answered)
        for due in self._due.values():
            if due.asked >= answered.asked:
                break
            if due.model == answered.model and due.overtaken is None:
                due.overtaken = now

    async def _listen(self) -> None:
        """While answers are due: does the server live, and do our connections?"""
        while self._due:
            heard = self._answers
            await asyncio.sleep(ASK_AFTER_S)
            self._drop_lost()
            asked = 0
            while self._due and self._answers == heard and not await self._lives():
                asked += 1
                if asked == UNANSWERED:
                    await self._be_silent()
                    break
            else:
                self._probe_mute()

    def _drop_lost(self) -> None:
        """Models answer nearly in turn. A call that was overtaken long ago is lost: its connection
        is dead without a word, or the process hangs that had it."""
        now = time.monotonic()
        lost = [
            d
            for d in self._due.values()
            if d.overtaken and now - d.overtaken > self._patience_s(d, now)
        ]
        if lost:
            logger.warning("Triton %s: %d calls are lost", self.url, len(lost))
            self._wire.drop_idle()
        for due in lost:
            self._took(due)
            if not due.waiting.done():
                sentence = f"{self.url} answered what was asked later, and this not"
                due.waiting.set_exception(CallFailed(Code.UNAVAILABLE, sentence))
            due.call.cancel()

    def _took(self, due: _Due) -> None:
        now = time.monotonic()
        took_s = max(now - due.asked, self._slowest_s(due.model, now))
        self._slowest[due.model] = took_s, now

    def _slowest_s(self, model: str, now: float) -> float:
        took_s, at = self._slowest.get(model, (0.0, now))
        return took_s * 0.5 ** ((now - at) / HALF_LIFE_S)

    def _patience_s(self, due: _Due, now: float) -> float:
        """One of several instances may have a batch of long finals. If that is it, it has more time
        when it is asked again."""
        return max(LOST_S, SLOWER * self._slowest_s(due.model, now))

    def _probe_mute(self) -> None:
        """If a model owes answers for long, what is asked now tells whether those will come."""
        for model in {due.model for due in self._due.values()}:
            if self.mute_s(model) > PROBE_AFTER_S and model not in self._probes:
                self._wire.drop_idle()
                probe = asyncio.create_task(self._ask_mute(model), context=Context())
                self._probes[model] = probe
                probe.add_done_callback(lambda _, model=model: self._probes.pop(model))

    async def _ask_mute(self, model: str) -> None:
        with contextlib.suppress(Exception):  # whatever it says, it says something
            await self._probe(model)

    async def _be_silent(self) -> None:
        """Let everybody go who waits, until the server is heard again."""
        logger.warning("Triton %s is silent", self.url)
        metrics.SILENCES.labels(self.url).inc()
        self.silent = True
        for due in self._due.values():
            if not due.waiting.done():
                due.waiting.set_exception(self._silence())
        self._due.clear()
        # The other end may be gone without a word, and then these never hear of its return.
        old, self._wire = self._wire, Wire(self.url)
        old.abort()
        while not await self._lives(refused=False):
            await asyncio.sleep(ASK_AGAIN_S)
        logger.info("Triton %s is heard again", self.url)
        self.silent = False

    async def _lives(self, refused: bool = True) -> bool:
        """refused: what to say if there is no server; the calls have heard of that themselves."""
        self._wire.drop_idle()  # none of them has to be alive
        try:
            await self._get("/v2/health/live", LIVE_DEADLINE_S)
        except CallFailed as error:
            return refused and error.code is not Code.DEADLINE_EXCEEDED
        return True

    def _silence(self) -> CallFailed:
        return CallFailed(Code.UNAVAILABLE, f"{self.url} is silent")


def _late(deadline_s: float) -> CallFailed:
    return CallFailed(Code.DEADLINE_EXCEEDED, f"no answer within {deadline_s:g} s")

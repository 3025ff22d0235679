"""
The calls to one Triton: their form on the wire, their deadlines, and whether anybody is there.

The answer comes as a call; that costs less than a task that waits for it. A call that nobody waits
for any more goes on, and its answer is dropped: the work is done anyhow, and after the answer the
connection can be used again.

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

from dalston.orchestrator.inference import kserve, metrics
from dalston.orchestrator.inference.http import Answer, CallFailed, Code, Exchange, HttpClient
from dalston.orchestrator.inference.kserve import InferRequest, Outputs

logger = logging.getLogger(__name__)

# Without an answer for so long, the server is asked; it is silent if it leaves so many questions
# in a row unanswered.
ASK_AFTER_S, LIVE_DEADLINE_S, UNANSWERED = 1.0, 1.5, 2
ASK_AGAIN_S = 0.25  # a silent one
# A call that was overtaken is lost after LOST_S, or SLOWER times the slowest recent answer if that
# is longer, and the time that it takes to decode the audio of all overtaken calls: they may be one
# batch. A machine that decodes less than four times as fast as people speak serves nobody.
LOST_S, SLOWER, HALF_LIFE_S = 2.0, 3.0, 60.0
FASTER_THAN_SPEECH = 4.0
PROBE_AFTER_S = 2.5  # a model that has answered nobody


def _nothing() -> None:
    pass


@dataclass(eq=False)
class Due:
    """A call that is under way, until it is answered or too late."""

    model: str
    audio_s: float
    asked: float
    on_answer: Callable[[Answer | CallFailed], None]
    over: Callable[[], None]
    exchange: Exchange
    alarm: asyncio.TimerHandle
    waited: bool = True  # for, by somebody
    overtaken: float | None = None  # when a later call to the same model was answered

    def fail(self, error: CallFailed) -> None:
        """Tell whoever waits that there is no answer."""
        if self.waited:
            self.waited = False
            self.on_answer(error)


class Channel:
    """The calls to one Triton.

    url: "host:port" of its HTTP. probe: asks a model something small, whatever it answers.
    """

    def __init__(self, url: str, probe: Callable[[str], Awaitable[object]]):
        self.url = url
        self.silent = False
        self._probe = probe
        self._probes: dict[str, asyncio.Task[None]] = {}  # by model
        self._http = HttpClient(url)
        self._calls = set[Due]()
        self._due: dict[Due, None] = {}  # of these the ones that may still come; the oldest first
        self._answers = 0  # so far
        self._answered: dict[str, float] = {}  # models; when, last
        self._slowest: dict[str, tuple[float, float]] = {}  # models; seconds to an answer, when
        self._listening: asyncio.Task[None] | None = None

    async def close(self) -> None:
        tasks = [*self._probes.values(), *([self._listening] if self._listening else [])]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._http.abort()
        while self._calls:
            await asyncio.sleep(0.001)

    @property
    def pending(self) -> int:
        """Inferences under way, with those that nobody waits for any more."""
        return len(self._calls)

    def mute_s(self, model: str) -> float:
        """For how long a model has answered nobody, while somebody waits."""
        due = (d for d in self._due if d.model == model and d.waited)
        asked = (due.asked for due in due)
        oldest = next(asked, None)
        if oldest is None:
            return 0.0
        return time.monotonic() - max(oldest, self._answered.get(model, oldest))

    async def get(self, path: str, deadline_s: float = 2.0, header: str = "") -> bytes:
        """The body of a page. header: "NAME: VALUE", if it wants one. Raises CallFailed."""
        return await self._page("GET", path, deadline_s, header)

    async def post(self, path: str, deadline_s: float = 2.0, header: str = "") -> bytes:
        """What a page answers to nothing in particular; as get()."""
        return await self._page("POST", path, deadline_s, header)

    async def _page(self, method: str, path: str, deadline_s: float, header: str) -> bytes:
        if self.silent:
            raise self._silence()
        answer = await self._get(path, deadline_s, method, header)
        kserve.check(answer)
        return answer.json

    async def _get(
        self, path: str, deadline_s: float, method: str = "GET", header: str = ""
    ) -> Answer:
        more = "Content-Length: 0\r\n" if method == "POST" else ""
        more += f"{header}\r\n" if header else ""
        request = f"{method} {path} HTTP/1.1\r\nHost: {self.url}\r\n{more}\r\n".encode()
        answer: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        call = self._http.ask(request, lambda result: _settle(answer, result))
        try:
            async with asyncio.timeout(deadline_s):
                return await answer
        except TimeoutError:
            raise _late(deadline_s) from None
        finally:
            if not call.over:
                call.give_up()

    async def infer(
        self,
        request: InferRequest,
        deadline_s: float,
        over: Callable[[], None] = _nothing,
        headers: Sequence[tuple[str, str]] = (),
    ) -> Outputs:
        """Raises CallFailed. `over` is called when the server is done with it, or too late."""
        answer: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        due = self.ask(request, deadline_s, lambda result: _settle(answer, result), over, headers)
        try:
            return kserve.outputs(await answer)
        finally:
            if due:
                due.waited = False

    def ask(
        self,
        request: InferRequest,
        deadline_s: float,
        on_answer: Callable[[Answer | CallFailed], None],
        over: Callable[[], None] = _nothing,
        headers: Sequence[tuple[str, str]] = (),
    ) -> Due | None:
        """`on_answer` is called with the answer or with why there is none: once, and never before
        this has returned. `over` as in infer()."""
        loop = asyncio.get_running_loop()
        if self.silent:
            over()
            loop.call_soon(on_answer, self._silence())
            return None

        def received(result: Answer | CallFailed) -> None:
            if due in self._calls:
                self._finish(due)
            self._count_answer(due)
            if due.waited:
                due.waited = False
                on_answer(result)

        def late() -> None:
            self._finish(due)
            due.fail(_late(deadline_s))

        exchange = self._http.ask(request.wire_form(self.url, headers), received)
        alarm = loop.call_later(deadline_s, late)
        now = time.monotonic()
        due = Due(request.model, request.audio_s, now, on_answer, over, exchange, alarm)
        self._calls.add(due)
        self._due[due] = None
        if self._listening is None or self._listening.done():
            # It is not about the session that happened to ask: not in its log lines and traces.
            self._listening = asyncio.create_task(self._listen(), context=Context())
        return due

    def _finish(self, due: Due) -> None:
        """Forget a call that the server has answered, or is too late for."""
        due.alarm.cancel()
        self._calls.discard(due)
        self._due.pop(due, None)
        due.over()

    def _count_answer(self, answered: Due) -> None:
        """A call has its answer, or was refused by the server."""
        now = time.monotonic()
        self._answers += 1
        self._answered[answered.model] = now
        self._took(answered)
        for due in self._due:
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
            d for d in self._due if d.overtaken and now - d.overtaken > self._patience_s(d, now)
        ]
        if lost:
            logger.warning("Triton %s: %d calls are lost", self.url, len(lost))
            self._http.drop_idle()
        sentence = f"{self.url} answered what was asked later, and this not"
        for due in lost:
            self._took(due)
            self._finish(due)
            due.exchange.give_up()
            due.fail(CallFailed(Code.UNAVAILABLE, sentence))

    def _took(self, due: Due) -> None:
        now = time.monotonic()
        took_s = max(now - due.asked, self._slowest_s(due.model, now))
        self._slowest[due.model] = took_s, now

    def _slowest_s(self, model: str, now: float) -> float:
        took_s, at = self._slowest.get(model, (0.0, now))
        return took_s * 0.5 ** ((now - at) / HALF_LIFE_S)

    def _patience_s(self, due: Due, now: float) -> float:
        """One of several instances may have a batch of long finals. If so, a repeated call
        gets more time."""
        batch_s = sum(d.audio_s for d in self._due if d.overtaken and d.model == due.model)
        slowest_s = max(LOST_S, SLOWER * self._slowest_s(due.model, now))
        return slowest_s + batch_s / FASTER_THAN_SPEECH

    def _probe_mute(self) -> None:
        """If a model owes answers for long, what is asked now tells whether those will come."""
        for model in {due.model for due in self._due}:
            if self.mute_s(model) > PROBE_AFTER_S and model not in self._probes:
                self._http.drop_idle()
                probe = asyncio.create_task(self._ask_mute(model), context=Context())
                self._probes[model] = probe
                probe.add_done_callback(lambda _, model=model: self._probes.pop(model))

    async def _ask_mute(self, model: str) -> None:
        with contextlib.suppress(Exception):  # whatever it says, it says something
            await self._probe(model)

    async def _be_silent(self) -> None:
        """Fail all calls that wait, and refuse new ones until the server answers again."""
        logger.warning("Triton %s is silent", self.url)
        metrics.SILENCES.labels(self.url).inc()
        self.silent = True
        waiting, self._due = self._due, {}
        for due in waiting:
            due.fail(self._silence())
        # The other end may be gone without a word, and then these never hear of its return.
        old, self._http = self._http, HttpClient(self.url)
        old.abort()
        while not await self._lives(refused=False):
            await asyncio.sleep(ASK_AGAIN_S)
        logger.info("Triton %s is heard again", self.url)
        self.silent = False

    async def _lives(self, refused: bool = True) -> bool:
        """refused: the result if the connection is refused; the calls notice that themselves."""
        self._http.drop_idle()  # none of them has to be alive
        try:
            await self._get("/v2/health/live", LIVE_DEADLINE_S)
        except CallFailed as error:
            return refused and error.code is not Code.DEADLINE_EXCEEDED
        return True

    def _silence(self) -> CallFailed:
        return CallFailed(Code.UNAVAILABLE, f"{self.url} is silent")


def _settle(waiting: asyncio.Future[Answer], result: Answer | CallFailed) -> None:
    if waiting.done():
        return
    if isinstance(result, CallFailed):
        waiting.set_exception(result)
    else:
        waiting.set_result(result)


def _late(deadline_s: float) -> CallFailed:
    return CallFailed(Code.DEADLINE_EXCEEDED, f"no answer within {deadline_s:g} s")

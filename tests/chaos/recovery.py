"""
How long callers wait after a fault, of those in mid-utterance whose session it struck.
"""

import asyncio
import contextlib
import random
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from caller import Caller, Message
from deployment import Deployment
from injector import Struck
from readings import Reading
from redis.exceptions import RedisError

TEXT = frozenset({"transcript.partial", "transcript.final"})
FINAL = frozenset({"transcript.final"})
# What the next message is to be, by kind of fault; None: any but the first of a connection.
_NEXT: dict[str, tuple[str, frozenset[str] | None]] = {
    "kill worker": ("worker kill -> next partial", TEXT),
    "stop worker": ("worker stop -> next partial", TEXT),
    "term worker": ("worker drain -> next partial", TEXT),
    "silence gateway-worker": ("gateway-worker silent -> next partial", TEXT),
    "kill triton": ("triton kill -> next final", FINAL),
    "kill server triton": ("triton kill -> next final", FINAL),
    "kill stub triton": ("stub kill -> next final", FINAL),
    "stop triton": ("triton stop -> next final", FINAL),
    "kill gateway": ("gateway kill -> next message", None),
    "stop gateway": ("gateway stop -> next message", None),
    "term gateway": ("gateway drain -> next message", None),
}
_REDIS = {"kill redis", "restart kept redis", "restart emptied redis", "fail over redis"}
NEW_SESSION = "redis back -> new session"
_TOLD_FIRST = {"session.begin", "session.queued", "warning", "error", "session.terminated"}
LONGEST_S = 60.0
_NOTHING = Reading("nothing", b"", 16_000, 2, {}, ())


@dataclass(frozen=True)
class Sample:
    what: str
    seconds: float
    clean: bool  # no other fault came between


@dataclass(eq=False)
class _Pending:
    what: str
    began: float
    clean: bool = True


@dataclass
class Recovery:
    deployment: Deployment
    tell: Callable[[Sample], None]
    _pending: set[_Pending] = field(default_factory=set[_Pending])
    _probes: set[asyncio.Task[None]] = field(default_factory=set[asyncio.Task[None]])

    def strike(self, struck: Struck) -> None:
        """A fault was done: those that are waited for are no longer alone."""
        for pending in self._pending:
            pending.clean = False
        if struck.fault.kind in _REDIS:
            task = asyncio.create_task(self._probe(struck.fault.number, struck.target))
            self._probes.add(task)
            task.add_done_callback(self._probes.discard)
        elif expected := _NEXT.get(struck.fault.kind):
            for caller in struck.hit:
                self._listen(caller, *expected, struck.at)

    async def settle(self) -> None:
        await asyncio.gather(*self._probes)

    def _listen(self, caller: Caller, what: str, kinds: frozenset[str] | None, at: float) -> None:
        pending, call = _Pending(what, at), caller.call
        self._pending.add(pending)

        def hear(who: Caller, message: Message) -> None:
            kind: str = message["type"]
            over = who.call is not call or time.monotonic() - at > LONGEST_S
            if over or (kind in kinds if kinds else kind not in _TOLD_FIRST):
                caller.heard.discard(hear)
                self._pending.discard(pending)
                if who.call is call:
                    self.tell(Sample(what, time.monotonic() - at, pending.clean))

        caller.heard.add(hear)

    async def _answers(self) -> bool:
        """Whether some Redis is the master, and says something."""
        try:
            redis = await self.deployment.redis()
            return bool(await redis.ping())
        except (RedisError, OSError):
            return False

    async def _probe(self, number: int, name: str) -> None:
        """From the moment Redis answers again to the first session that begins."""
        redis = self.deployment.members[name]
        with contextlib.suppress(RedisError, OSError):
            if (await self.deployment.master()) is not redis:
                return  # nobody misses it
        while redis.running:
            await asyncio.sleep(0.005)
        while not await self._answers():
            await asyncio.sleep(0.01)
        pending = _Pending(NEW_SESSION, time.monotonic())
        self._pending.add(pending)
        while time.monotonic() - pending.began < LONGEST_S:
            door = self.deployment.door(self.deployment.free_key)
            caller = Caller(door, random.Random(number))
            if await caller.begins(_NOTHING):
                break
            number += 1
            await asyncio.sleep(0.05)
        self._pending.discard(pending)
        self.tell(Sample(NEW_SESSION, time.monotonic() - pending.began, pending.clean))

"""
The sessions of a worker: who may begin one, who goes on with one, and the end of each.

A session comes from a gateway, which names it and its epoch, or from a client directly. A later
epoch of a session that still runs here ends the earlier one: they are one slot.
"""

import asyncio
import contextlib
import functools
import logging
import secrets
from collections.abc import Mapping
from dataclasses import dataclass

import msgspec
from redis.exceptions import RedisError

from dalston.orchestrator.capacity.slots import Slots
from dalston.orchestrator.inference.fleet import Fleet
from dalston.orchestrator.inference.triton_client import Hear, LoadedVariant
from dalston.orchestrator.process import request_ids, traces
from dalston.orchestrator.process.request_ids import named
from dalston.orchestrator.protocol.messages import (
    Error,
    ErrorCode,
    SessionTerminated,
    Snapshot,
    serialize,
)
from dalston.orchestrator.protocol.parameters import (
    ParameterError,
    choose_endpointing,
    choose_variant,
    session_config,
)
from dalston.orchestrator.protocol.websocket_peer import Gone, Peer
from dalston.orchestrator.transcription.lag import Lag, LagLimits
from dalston.orchestrator.transcription.session import Session
from dalston.orchestrator.worker import metrics
from dalston.orchestrator.worker.memory_limit import Memory
from dalston.orchestrator.worker.session_loop import CloseCode, Limits, Models, handle
from dalston.orchestrator.worker.settings import WorkerSettings
from dalston.triton.contract import SAMPLE_RATE

logger = logging.getLogger(__name__)

# For a client that did not read, to read what was said last.
CLOSE_S = 2.0


@dataclass(eq=False)
class Running:
    """A session in this worker, until its last words are said."""

    epoch: int
    lag: Lag
    connection: Peer
    direct: bool  # without a gateway
    work: asyncio.Task[int | None]
    taken_over: bool = False  # by a later epoch


class Sessions:
    """hear, tritons: who is asked. slots: where ends are told. memory: how many there may be."""

    def __init__(
        self,
        settings: WorkerSettings,
        hear: Hear,
        tritons: Fleet,
        slots: Slots,
        memory: Memory,
    ):
        self._settings, self._slots, self._memory = settings, slots, memory
        self._hear, self._tritons = hear, tritons
        self.running: dict[str, Running] = {}  # by id
        self.measured = metrics.Sessions()
        self.variants: Mapping[str, LoadedVariant] = {}  # that models are there for
        self.draining = False  # no new ones
        self._ending = asyncio.Event()  # running ones end, where no gateway goes on with them

    def __len__(self) -> int:
        return len(self.running)

    async def hand_over(self) -> None:
        """A gateway goes on with its sessions elsewhere; whoever has none ends here, and what was
        said last is still finished and told."""
        self._ending.set()
        left = [running.connection for running in self.running.values() if not running.direct]
        await asyncio.gather(
            *(there.close(CloseCode.SERVICE_RESTART, patience_s=CLOSE_S) for there in left)
        )

    async def serve(self, connection: Peer, query: dict[str, str], parent: str) -> None:
        """parent: the caller's span, as the header tells it. Raises Gone."""
        request_ids.request_id.set(request_ids.new_or(query.get("request_id")))

        async def refuse(code: ErrorCode, sentence: str, close_code: int, reason: str) -> None:
            retry_after = 5 if code == "no_capacity" else None
            error = Error(
                code=code,
                message=sentence,
                recoverable=code == "no_capacity",
                retry_after=retry_after,
            )
            metrics.REFUSED.labels(code).inc()
            await connection.say(serialize(named(error)))
            await connection.close(close_code, reason)

        session_id = query.get("session_id") or f"sess_{secrets.token_hex(12)}"
        # One that runs has to go on somewhere, and here it has its slot.
        here = session_id in self.running
        full = not here and len(self.running) >= self._memory.sessions
        overloaded = not (here or "resume" in query) and any(
            running.lag.overloaded for running in self.running.values()
        )
        if full or overloaded or self.draining or not self.variants:
            sentence = "this worker takes no more sessions"
            return await refuse("no_capacity", sentence, 1013, "Server at capacity")
        try:
            config, warnings = session_config(query)
            languages = {name: loaded.languages for name, loaded in self.variants.items()}
            translating = [name for name, loaded in self.variants.items() if loaded.translates]
            epoch = msgspec.convert(query.get("epoch", "1"), int, strict=False)
            snapshot = None
            if query.get("resume"):
                async with asyncio.timeout(self._settings.handshake_seconds):
                    first = await connection.received()
                snapshot = msgspec.json.decode(first, type=Snapshot)
            # One that goes on has settings of its own by now, and the variant it had.
            asked = snapshot.config if snapshot else config
            variant, fallbacks = choose_variant(asked, languages, translating)
            config, silence = choose_endpointing(config, self._tritons.judges_turns)
        except ParameterError as error:
            return await refuse(error.code, str(error), 4400, str(error)[:120])
        except msgspec.MsgspecError as error:
            return await refuse("invalid_message", str(error), 4400, "no epoch, or no snapshot")
        except TimeoutError:
            sentence = f"no snapshot came for {self._settings.handshake_seconds:g} s"
            return await refuse("session_timeout", sentence, CloseCode.TIMEOUT, sentence)

        request_ids.session_id.set(session_id)
        if before := self.running.get(session_id):
            if before.epoch >= epoch:
                return await self._send_away(connection, session_id)
            before.taken_over = True
            before.work.cancel()
        loaded = self.variants[variant]
        config = msgspec.structs.replace(config, model=variant, model_id=loaded.model_id)
        session = Session(
            session_id,
            config,
            variant,  # pyright: ignore[reportArgumentType]
            languages=frozenset(loaded.languages),
            translates=loaded.translates,
            epoch=epoch,
            warnings=[*warnings, *fallbacks, *silence],
            snapshot=snapshot,
            partial_every=round(self._settings.partial_seconds * SAMPLE_RATE),
        )
        tritons = self._tritons
        tritons.wake(variant)
        models = Models(
            self._hear,
            tritons.transcribe,
            tritons.turn_over,
            functools.partial(tritons.mute, variant),
            functools.partial(tritons.loading, variant),
        )
        settings = self._settings
        limits = Limits(
            settings.idle_seconds,
            settings.session_seconds,
            settings.outage_seconds,
            settings.reader_seconds,
            settings.frame_bytes,
        )
        lag_limits = LagLimits(
            settings.lag_warning_seconds,
            settings.lag_limit_seconds,
            settings.lag_held_seconds,
            settings.outage_seconds,
        )
        lag = Lag(lag_limits, session.received, asyncio.get_running_loop().time())
        direct = "session_id" not in query
        # Others are handed over.
        ending = self._ending if direct else asyncio.Event()
        about = {"dalston.session_id": session_id, "dalston.epoch": epoch, "dalston.model": variant}

        async def serving() -> int | None:
            with traces.span("session", about, parent=parent, kind="server"):
                return await handle(session, connection, models, limits, ending, lag)

        work = asyncio.create_task(serving())
        running = Running(epoch, lag, connection, direct, work)
        self.running[session_id] = running
        self.measured.began(session, lag)
        code = CloseCode.INTERNAL
        try:
            code = await work
        except asyncio.CancelledError:
            if not running.taken_over:
                raise
            logger.info("epoch %d is taken over", epoch)
            await self._send_away(connection, session_id)
        except Exception:
            logger.exception("%s failed", session_id)
            sentence = "something went wrong in the server"
            error = Error(code="internal_error", message=sentence, recoverable=False)
            with contextlib.suppress(Gone, TimeoutError):
                async with asyncio.timeout(CLOSE_S):
                    await connection.say(serialize(named(error)))
        finally:
            if self.running.get(session_id) is running:
                del self.running[session_id]
            self.measured.ended(session)
            # Who does not read had its time.
            slow = code == CloseCode.SLOW_READER
            patience = CLOSE_S if slow else settings.reader_seconds
            await connection.close(code or CloseCode.NORMAL, patience_s=patience)
            handed_over = connection.close_code == CloseCode.SERVICE_RESTART
            metrics.ENDED.labels(
                code or (CloseCode.SERVICE_RESTART if handed_over else "gone")
            ).inc()
            status = "error" if code == CloseCode.INTERNAL else "ended"
            with contextlib.suppress(RedisError):  # the lease ends without us
                await self._slots.release(session_id, epoch, status, session.received / SAMPLE_RATE)

    async def _send_away(self, connection: Peer, session_id: str) -> None:
        """A gateway whose session another one goes on with, here."""
        message = SessionTerminated(session_id=session_id, reason="taken_over", recoverable=False)
        with contextlib.suppress(Gone, TimeoutError):
            async with asyncio.timeout(CLOSE_S):
                await connection.say(serialize(message))
        await connection.close(CloseCode.GOING_AWAY, patience_s=CLOSE_S)

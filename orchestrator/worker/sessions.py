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
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import msgspec
from redis.exceptions import RedisError

from dalston.orchestrator.capacity.slots import Slots
from dalston.orchestrator.capacity.workers import Served
from dalston.orchestrator.inference.fleet import Fleet
from dalston.orchestrator.inference.triton_client import LoadedVariant, RequestSpeech
from dalston.orchestrator.process import request_ids, traces
from dalston.orchestrator.process.request_ids import named
from dalston.orchestrator.protocol.close_codes import CloseCode
from dalston.orchestrator.protocol.messages import (
    Error,
    ErrorCode,
    Notice,
    SessionConfig,
    SessionTerminated,
    Snapshot,
    quote,
    refusal,
    serialize,
)
from dalston.orchestrator.protocol.parameters import (
    ParameterError,
    choose_endpointing,
    choose_variant,
    session_config,
)
from dalston.orchestrator.protocol.websocket_peer import Peer, PeerClosed
from dalston.orchestrator.transcription.lag import Crowd, Lag, LagLimits
from dalston.orchestrator.transcription.redaction import unknown_names
from dalston.orchestrator.transcription.session import Session
from dalston.orchestrator.worker import metrics
from dalston.orchestrator.worker.memory_limit import MemoryLimit
from dalston.orchestrator.worker.session_loop import Limits, Models, SessionLoop
from dalston.orchestrator.worker.settings import WorkerSettings
from dalston.triton.contract import SAMPLE_RATE, SMALLER, Variant

logger = logging.getLogger(__name__)

# For a client that did not read, to read what was said last.
CLOSE_S = 2.0
LITTLE = 1e-6  # what sums of shares may be wrong by
# Parameters that are no settings.
_OF_THE_SESSION = {"epoch", "request_id", "resume", "session_id", "settings"}


class SessionDenied(Exception):
    """A session does not begin here: the code of the error and its sentence, the close code and
    its reason."""

    def __init__(self, code: ErrorCode, sentence: str, close_code: CloseCode, reason: str):
        super().__init__(sentence)
        self.code: ErrorCode = code
        self.close_code, self.reason = close_code, reason


@dataclass(frozen=True)
class SessionRequest:
    """What a caller asks of this worker."""

    epoch: int
    config: SessionConfig
    warnings: Sequence[Notice] = ()
    snapshot: Snapshot | None = None  # of the session that goes on here


@dataclass(eq=False)
class Running:
    """A session in this worker, until its last words are said."""

    session: Session
    lag: Lag
    connection: Peer
    direct: bool  # without a gateway
    work: asyncio.Task[int | None]
    taken_over: bool = False  # by a later epoch

    @property
    def epoch(self) -> int:
        return self.session.epoch

    def served(self) -> Served:
        """As it is told to Redis."""
        session = self.session
        audio_s = session.received / SAMPLE_RATE
        return Served(session.epoch, session.variant, session.language, audio_s)


class Sessions:
    def __init__(
        self,
        settings: WorkerSettings,
        request_speech: RequestSpeech,
        tritons: Fleet,
        slots: Slots,
        memory: MemoryLimit,
    ):
        """request_speech, tritons: the models. slots: where ends are told. memory: how many
        sessions there may be."""
        self._settings, self._slots, self._memory = settings, slots, memory
        self._request_speech, self._tritons = request_speech, tritons
        self.running: dict[str, Running] = {}  # by id
        self.measured = metrics.SessionCounts()
        self._crowd = Crowd()
        self.variants: Mapping[str, LoadedVariant] = {}  # that models are there for
        self.draining = False  # no new ones
        self._ending = asyncio.Event()  # running ones end, where no gateway goes on with them

    def __len__(self) -> int:
        return len(self.running)

    def _share(self, variant: str) -> float:
        """Of a slot, that a session takes."""
        return self._settings.fast_share if variant == SMALLER else 1.0

    @property
    def used(self) -> float:
        """How many slots are taken."""
        return sum(self._share(running.session.variant) for running in self.running.values())

    async def hand_over(self) -> None:
        """Gateways continue their sessions elsewhere. Sessions without a gateway end here, after
        what was said last is finished and told."""
        self._ending.set()
        left = [running.connection for running in self.running.values() if not running.direct]
        await asyncio.gather(
            *(there.close(CloseCode.SERVICE_RESTART, patience_s=CLOSE_S) for there in left)
        )

    async def serve(self, connection: Peer, query: dict[str, str], parent: str) -> None:
        """parent: the caller's span, as the header tells it. Raises PeerClosed."""
        request_ids.request_id.set(request_ids.new_or(query.get("request_id")))
        session_id = query.get("session_id") or f"sess_{secrets.token_hex(12)}"
        try:
            self._find_room(session_id, self._settings.fast_share, resumes="resume" in query)
            request = await self._request(connection, query)
            session = self._session(session_id, request)
            self._find_room(session_id, self._share(session.variant), resumes="resume" in query)
        except SessionDenied as denied:
            return await _deny(connection, denied)
        request_ids.session_id.set(session_id)
        if before := self.running.get(session_id):
            if before.epoch >= request.epoch:
                return await self._send_away(connection, session_id)
            before.taken_over = True
            before.work.cancel()
        direct = "session_id" not in query
        await self._run(session, connection, direct, parent)

    def _find_room(self, session_id: str, share: float, resumes: bool) -> None:
        """Raises SessionDenied if there is none for this session, which takes a share of a slot."""
        # One that runs has to go on somewhere, and here it has its slot.
        here = session_id in self.running
        full = not here and self.used + share > self._memory.sessions + LITTLE
        overloaded = not (here or resumes) and any(
            running.lag.overloaded for running in self.running.values()
        )
        if full or overloaded or self.draining or not self.variants:
            raise SessionDenied(
                "no_capacity",
                "this worker takes no more sessions",
                CloseCode.NO_CAPACITY,
                "Server at capacity",
            )

    async def _request(self, connection: Peer, query: dict[str, str]) -> SessionRequest:
        """What the caller asks for. A gateway says it in the first frame, settings or a snapshot; a
        client in the query. Raises SessionDenied and PeerClosed."""
        patience_s = self._settings.handshake_seconds
        try:
            epoch = msgspec.convert(query.get("epoch", "1"), int, strict=False)
            if query.get("resume") or query.get("settings"):
                async with asyncio.timeout(patience_s):
                    first = await connection.received()
                if not query.get("resume"):
                    return SessionRequest(epoch, msgspec.json.decode(first, type=SessionConfig))
                snapshot = msgspec.json.decode(first, type=Snapshot)
                return SessionRequest(epoch, snapshot.config, snapshot=snapshot)
            settings = {name: query[name] for name in query if name not in _OF_THE_SESSION}
            config, warnings = session_config(settings)
            return SessionRequest(epoch, config, warnings)
        except ParameterError as error:
            raise _not_allowed(error) from None
        except msgspec.MsgspecError as error:
            raise SessionDenied(
                "invalid_message",
                str(error),
                CloseCode.INVALID_PARAMETER,
                "no epoch, no settings, or no snapshot",
            ) from None
        except TimeoutError:
            sentence = f"neither settings nor a snapshot came for {patience_s:g} s"
            raise SessionDenied("session_timeout", sentence, CloseCode.TIMEOUT, sentence) from None

    def _session(self, session_id: str, request: SessionRequest) -> Session:
        """Raises SessionDenied if no model here can do what is asked for."""
        languages = {name: loaded.languages for name, loaded in self.variants.items()}
        translating = [name for name, loaded in self.variants.items() if loaded.translates]
        try:
            variant, fallbacks = choose_variant(request.config, languages, translating)
        except ParameterError as error:
            raise _not_allowed(error) from None
        config, silence = request.config, list[Notice]()
        redact = tuple(dict.fromkeys((*config.redact, *self._settings.redact)))
        if unknown := unknown_names(redact, self._settings.redact_patterns):
            sentence = (
                f"redact: {quote(unknown[0])!r} is neither numbers nor emails, nor a pattern here"
            )
            raise _not_allowed(ParameterError("redact", unknown[0], sentence))
        if request.snapshot is None:  # else it goes on as it was, wherever it is
            config, silence = choose_endpointing(config, self._tritons.judges_turns)
        loaded = self.variants[variant]
        config = msgspec.structs.replace(
            config, model=variant, model_id=loaded.model_id, redact=redact
        )
        return Session(
            session_id,
            config,
            variant,  # pyright: ignore[reportArgumentType]
            languages=frozenset(loaded.languages),
            translates=loaded.translates,
            epoch=request.epoch,
            warnings=[*request.warnings, *fallbacks, *silence],
            snapshot=request.snapshot,
            partial_every=round(self._settings.partial_seconds * SAMPLE_RATE),
            patterns=self._settings.redact_patterns,
        )

    async def _run(self, session: Session, connection: Peer, direct: bool, parent: str) -> None:
        """Run a session to its end, and give its slot back."""
        settings, variant = self._settings, session.variant
        self._tritons.wake(variant)
        lag_limits = LagLimits(
            settings.lag_warning_seconds,
            settings.lag_limit_seconds,
            settings.lag_held_seconds,
            settings.outage_seconds,
        )
        now = asyncio.get_running_loop().time()
        lag = Lag(lag_limits, session.received, now, self._crowd)
        # Others are handed over.
        ending = self._ending if direct else asyncio.Event()
        # A gateway does so where the client's frames arrive.
        mute_s = settings.mute_seconds if direct else 0.0
        limits = replace(_limits(settings), mute_s=mute_s)
        loop = SessionLoop(session, connection, self._models(variant), limits, ending, lag)
        about = {
            "dalston.session_id": session.id,
            "dalston.epoch": session.epoch,
            "dalston.model": variant,
        }

        async def serving() -> int | None:
            with traces.span("session", about, parent=parent, kind="server"):
                return await loop.run()

        running = Running(session, lag, connection, direct, asyncio.create_task(serving()))
        self.running[session.id] = running
        self.measured.began(session, lag)
        code: int | None = CloseCode.INTERNAL
        try:
            code = await running.work
        except asyncio.CancelledError:
            if not running.taken_over:
                raise
            logger.info("epoch %d is taken over", session.epoch)
            await self._send_away(connection, session.id)
        except Exception:
            logger.exception("%s failed", session.id)
            sentence = "something went wrong in the server"
            error = Error(code="internal_error", message=sentence, recoverable=False)
            await _say_last(connection, error)
        finally:
            await self._ended(session, running, code)

    def _models(self, variant: Variant) -> Models:
        tritons = self._tritons
        return Models(
            self._request_speech,
            tritons.transcribe,
            tritons.end_of_turn,
            functools.partial(tritons.mute, variant),
            functools.partial(tritons.loading, variant),
        )

    async def _ended(self, session: Session, running: Running, code: int | None) -> None:
        """code: to close with; None: the caller has left."""
        if self.running.get(session.id) is running:
            del self.running[session.id]
        self.measured.ended(session)
        running.lag.over()
        connection = running.connection
        # A caller that does not read had its time.
        slow = code == CloseCode.SLOW_READER
        patience = CLOSE_S if slow else self._settings.reader_seconds
        await connection.close(code or CloseCode.NORMAL, patience_s=patience)
        handed_over = connection.close_code == CloseCode.SERVICE_RESTART
        gone = CloseCode.SERVICE_RESTART.value if handed_over else "gone"
        metrics.ENDED.labels(code or gone).inc()
        status = "error" if code == CloseCode.INTERNAL else "ended"
        with contextlib.suppress(RedisError):  # the lease ends without us
            audio_s = session.received / SAMPLE_RATE
            about = {"model": session.variant, "language": session.language}
            await self._slots.release(session.id, session.epoch, status, audio_s, **about)

    async def _send_away(self, connection: Peer, session_id: str) -> None:
        """Send away a gateway whose session now runs here for another gateway."""
        message = SessionTerminated(session_id=session_id, reason="taken_over", recoverable=False)
        await _say_last(connection, message)
        await connection.close(CloseCode.GOING_AWAY, patience_s=CLOSE_S)


def _limits(settings: WorkerSettings) -> Limits:
    return Limits(
        settings.idle_seconds,
        settings.session_seconds,
        settings.outage_seconds,
        settings.reader_seconds,
        settings.frame_bytes,
    )


def _not_allowed(error: ParameterError) -> SessionDenied:
    return SessionDenied(error.code, str(error), CloseCode.INVALID_PARAMETER, str(error)[:120])


async def _deny(connection: Peer, denied: SessionDenied) -> None:
    metrics.REFUSED.labels(denied.code).inc()
    await connection.send(serialize(named(refusal(denied.code, str(denied)))))
    await connection.close(denied.close_code, denied.reason)


async def _say_last(connection: Peer, message: Error | SessionTerminated) -> None:
    with contextlib.suppress(PeerClosed, TimeoutError):
        async with asyncio.timeout(CLOSE_S):
            await connection.send(serialize(named(message)))

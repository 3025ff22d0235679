"""
What a session would lose with its worker, and what its client has heard already. No I/O.

The client's frames are held from the last snapshot on, and can be sent again to another worker,
which says everything after that snapshot once more; what the client already knows is left out.
Messages come in the order of the audio and finals depend on nothing but it, so "once more" means
the same messages in the same order; only partials may differ.

The frames are held as the client sent them, for a worker that decodes and resamples them again
gets the same samples only from the same bytes.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import msgspec

from dalston.gateway.calls.memory import FRAME_COSTS
from dalston.orchestrator.protocol.messages import (
    LONGEST_TEXT,
    Ack,
    Commit,
    ConfigUpdated,
    Configure,
    Eager,
    Error,
    Final,
    Flush,
    Flushed,
    Frame,
    MessageError,
    Notice,
    Partial,
    Ping,
    Pong,
    Segment,
    SessionBegin,
    SessionConfig,
    SessionEnd,
    Snapshot,
    SpeechEnd,
    SpeechStart,
    Withdrawn,
    parse,
    parse_server,
    prefix,
    segment_number,
    serialize,
)
from dalston.triton.contract import SAMPLE_RATE, Variant

_BEGIN, _SNAPSHOT, _END = prefix(SessionBegin), prefix(Snapshot), prefix(SessionEnd)
_FINAL, _PARTIAL = prefix(Final), prefix(Partial)
_EAGER, _WITHDRAWN = prefix(Eager), prefix(Withdrawn)
_SPEECH, _ACK = (prefix(SpeechStart), prefix(SpeechEnd)), prefix(Ack)
_FLUSHED, _UPDATED, _PONG, _ERROR = (
    prefix(Flushed),
    prefix(ConfigUpdated),
    prefix(Pong),
    prefix(Error),
)

# Audio that is held, in seconds of it: an utterance, silence before a snapshot, and lag. So many
# frames of it come in a second, and each costs something besides. And bytes of messages.
HELD_S, HELD_FRAMES, HELD_TEXT = 120, 200, 1 << 20


@dataclass(slots=True)
class HeldFrame:
    """A frame of the client that the next worker may need."""

    frame: Frame
    end: int  # audio bytes of the session up to and with it
    ordinal: int = 0  # of a text frame, as its worker counts them
    asks: Literal["", "config", "flush"] = ""  # what has an answer
    answered: bool = False  # config.updated, flushed or an error was told
    invalid: bool = False  # no message; held until a worker has said so


class Relay:
    """Audio is counted in bytes of the client since the session began."""

    def __init__(self, session_id: str, config: SessionConfig, warnings: Sequence[Notice] = ()):
        """warnings: what the client is told when the session begins, besides what its worker
        says."""
        self.session_id = session_id
        self.config, self._warnings = config, warnings
        self._most_audio = HELD_S * config.bytes_per_second  # held at once
        self._most = self._most_audio + HELD_S * HELD_FRAMES * FRAME_COSTS
        self.snapshot: Snapshot | None = None  # the last, without segments
        self.finals: dict[str, str] = {}  # by segment id, as they were told
        self.end: str | None = None  # session.end, once it was told
        self._unsaved: dict[str, str] = {}
        self._last_told = -1  # number of the last final the client has
        self._held: list[HeldFrame] = []
        self.held_bytes = self._held_text = 0  # what each frame costs included
        self._dropped = 0  # frames that are held no more
        self._received = 0  # bytes
        self._needed = 0  # the client's bytes before this are no longer needed
        self._saved_from = 0  # position that a session resumed now begins at
        self._texts = 0  # frames the worker has counted
        self._pings = 0  # that were not answered
        # Speech events told since the snapshot, and how many of them a new worker will repeat.
        self._speech_told = self._speech_due = 0
        self._answers_due = Counter[str]()  # that a new worker will repeat
        self._begun = self._invalid_told = False
        self.resume_offset_ms: float | None = None  # of one that was resumed
        self._partial: str | None = None  # the last that was told, as it is on the wire
        self._shown: tuple[str, float, str] | None = None  # after a takeover: segment, end, stable
        self._eager: str | None = None  # segment whose eager final the client takes for good
        self._acked = 0.0

    @classmethod
    def resumed(
        cls,
        session_id: str,
        kept: Mapping[str, str],
        last_segment: int,
        warnings: Sequence[Notice] = (),
    ) -> "Relay":
        """To go on with what was saved of a session, whose client has the finals up to
        `last_segment`. Raises msgspec.MsgspecError and KeyError if that is not what was saved."""
        config = msgspec.json.decode(kept["config"], type=SessionConfig)
        relay = cls(session_id, config, warnings)
        relay.finals = {
            id: kept[id] for id in sorted(kept, key=segment_number) if segment_number(id) >= 0
        }
        for final in relay.finals.values():
            _final(final)  # whether it is one
        relay.end = kept.get("end")
        if relay.end and not relay.end.startswith(_END):
            raise KeyError("session.end")
        replay_from = 0
        if "snapshot" in kept:
            relay.snapshot = msgspec.json.decode(kept["snapshot"], type=Snapshot)
            replay_from = relay.snapshot.replay_from
            relay.config = relay.snapshot.config
        relay._saved_from = replay_from
        relay.resume_offset_ms = replay_from / (SAMPLE_RATE // 1000)
        relay._received = relay.config.frame(replay_from) * relay.config.frame_bytes
        relay._needed = relay._received
        relay._last_told = last_segment
        relay.nothing_is_saved()
        return relay

    def missed(self) -> list[str]:
        """What the client is told before a worker continues: a pending eager final is withdrawn,
        since the new worker does not know it; a client that resumes gets the finals it lacks, and
        the end."""
        eager, self._eager = self._eager, None
        withdrawn = [serialize(Withdrawn(eager))] if eager else []
        missed = [
            final for id, final in self.finals.items() if segment_number(id) > self._last_told
        ]
        self._last_told = max([self._last_told, *map(segment_number, self.finals)])
        return [*withdrawn, *missed, *([self.end] if self.end else [])]

    def degrade(self, variant: Variant) -> None:
        """The session, which has not begun, is given another variant than it asked for."""
        sentence = f"no slot is free for {self.config.model!r}; {variant!r} is used instead"
        self._warnings = [*self._warnings, Notice("model_fallback", sentence)]
        self.config = msgspec.structs.replace(self.config, model=variant)

    @property
    def language(self) -> str:
        """The language that is spoken, as far as it is known here; else "auto"."""
        found = self.snapshot.detected_language if self.snapshot else None
        return found or "auto" if self.config.language == "auto" else self.config.language

    # From the client.

    def hold(self, frame: Frame) -> None:
        if isinstance(frame, bytes):
            self._received += len(frame)
            self.held_bytes += len(frame) + FRAME_COSTS
            self._held.append(HeldFrame(frame, self._received))
            return
        self._texts += 1
        try:
            message = parse(frame)
        except MessageError:
            frame = frame[: LONGEST_TEXT + 1]  # no less invalid
            held = HeldFrame(frame, self._received, self._texts, invalid=True)
        else:
            if isinstance(message, Ping):
                self._pings += 1
                return
            # As we write it, for what is more than that is no part of the message.
            asks = ""
            if isinstance(message, Configure):
                asks = "config"
            elif isinstance(message, Commit) or (isinstance(message, Flush) and message.answered):
                asks = "flush"
            held = HeldFrame(serialize(message), self._received, self._texts, asks)
        self._held.append(held)
        self._count_held(held, 1)

    def _count_held(self, held: HeldFrame, sign: int) -> None:
        frame = held.frame
        ascii = isinstance(frame, bytes) or frame.isascii()
        costs = sign * (len(frame) * (1 if ascii else 4) + FRAME_COSTS)
        self.held_bytes += costs
        if isinstance(frame, str):
            self._held_text += costs

    @property
    def received(self) -> int:
        """Bytes of the session's audio so far: of one that is gone on with, those before the audio
        that its client sends again."""
        return self._received

    @property
    def audio_s(self) -> float:
        """What the client has sent of its session, in seconds."""
        return self._received / self.config.bytes_per_second

    @property
    def full(self) -> bool:
        """Whether the client should wait until less is held."""
        audio = self._received - self._needed
        return audio > self._most_audio or self.held_bytes > self._most

    @property
    def wordy(self) -> bool:
        """Whether more messages are held than can be needed, since no audio comes between them."""
        return self._held_text > HELD_TEXT

    # To the register.

    def unsaved(self) -> dict[str, str]:
        """Take the fields that are not saved yet; taking them counts as saving. If `config` is
        among them, they are the whole record."""
        fields, self._unsaved = self._unsaved, {}
        return fields

    @property
    def has_unsaved(self) -> bool:
        return bool(self._unsaved)

    def saved(self, fields: Mapping[str, str]) -> None:
        """Another gateway can go on from there: the client may forget what is before."""
        if "snapshot" in fields:
            self._saved_from = msgspec.json.decode(fields["snapshot"], type=Snapshot).replay_from

    def not_saved(self, fields: Mapping[str, str]) -> None:
        """Saving failed: these fields have to be saved again."""
        self._unsaved = {**fields, **self._unsaved}

    def nothing_is_saved(self) -> None:
        """The register has lost everything, so that everything is unsaved."""
        self._unsaved = {**self.finals, "config": msgspec.json.encode(self.config).decode()}
        if self.snapshot:
            self._unsaved["snapshot"] = serialize(self.snapshot)
        if self.end:
            self._unsaved["end"] = self.end

    # To a worker.

    def stated(self) -> SessionConfig | Snapshot:
        """What the next worker is given to begin with: the settings, or the snapshot there is, its
        segments complete."""
        if self.snapshot is None:
            return self.config
        finals = map(_final, self.finals.values())
        # A final after the snapshot is told again, and is not yet part of it.
        segments = [
            Segment(final.start, final.end, final.text, final.segment_id)
            for final in finals
            if segment_number(final.segment_id) < self.snapshot.next_segment
        ]
        return msgspec.structs.replace(self.snapshot, segments=segments)

    def start_again(self) -> int:
        """Prepare to send everything to another worker. Returns the number of the first frame."""
        self._texts = self.snapshot.controls if self.snapshot else 0
        for held in self._held:
            if isinstance(held.frame, str):
                self._texts += 1
                held.ordinal = self._texts
        self._speech_due = self._speech_told
        self._answers_due = Counter(held.asks for held in self._held if held.answered)
        if self._partial:
            partial = parse_server(self._partial)
            assert isinstance(partial, Partial)
            stable = partial.text[: partial.stable_chars]
            self._shown, self._partial = (partial.segment_id, partial.end, stable), None
        return self._dropped

    def frame(self, number: int) -> Frame | None:
        """The held frame with this number, or the first held one if it was dropped. None: it was
        not received yet."""
        at = max(0, number - self._dropped)
        return self._held[at].frame if at < len(self._held) else None

    @property
    def first_held(self) -> int:
        return self._dropped

    def unanswered_pings(self) -> list[str]:
        pings, self._pings = self._pings, 0
        return [serialize(Ping())] * pings

    # From a worker.

    def pass_on(self, frame: str) -> str | None:
        """What the client is told when a worker says this; None: nothing, or nothing new."""
        if frame.startswith(_PARTIAL):
            if self._shown:
                return self._pass_partial(frame)
            self._partial = frame
            return frame
        if frame.startswith(_SPEECH):
            self._speech_told += not self._speech_due
            self._speech_due, repeated = max(0, self._speech_due - 1), self._speech_due > 0
            return None if repeated else frame
        if frame.startswith(_FINAL):
            return self._pass_final(frame)
        if frame.startswith(_EAGER):
            segment = msgspec.json.decode(frame, type=Eager).segment_id
            if segment_number(segment) <= self._last_told:
                return None
            self._eager = segment
            return frame
        if frame.startswith(_WITHDRAWN):
            told, self._eager = self._eager is not None, None
            return frame if told else None
        if frame.startswith(_SNAPSHOT):
            self._state(frame)
            return None
        if frame.startswith(_ACK):
            ack = msgspec.json.decode(frame, type=Ack)
            if ack.received < self._acked:
                return None  # another worker has not heard it all yet
            self._acked = ack.received
            finalised = min(ack.finalised, self._saved_from / SAMPLE_RATE)
            return serialize(msgspec.structs.replace(ack, finalised=finalised))
        if frame.startswith(_BEGIN):
            return self._pass_begin(frame)
        if frame.startswith(_FLUSHED):
            return self._pass_answer(frame, "flush")
        if frame.startswith(_PONG):
            self._pings = max(0, self._pings - 1)
            return frame
        if frame.startswith(_UPDATED):
            return self._pass_answer(frame, "config")
        if frame.startswith(_ERROR):
            code = msgspec.json.decode(frame, type=Error).code
            if code in ("language_unsupported", "invalid_parameter"):
                return self._pass_answer(frame, "config")
            if code == "invalid_message":
                self._drop_invalid()
            if code == "invalid_audio":
                told, self._invalid_told = self._invalid_told, True
                return None if told else frame
            return frame
        if frame.startswith(_END):
            self.end = self._unsaved["end"] = frame
        return frame

    def _pass_begin(self, frame: str) -> str | None:
        if self._begun:
            return None
        self._begun = True
        begin = parse_server(frame)
        assert isinstance(begin, SessionBegin)
        self.config = begin.config
        self.nothing_is_saved()
        resumed = self.resume_offset_ms is not None
        if not (resumed or self._warnings):
            return frame
        begin = msgspec.structs.replace(
            begin,
            warnings=[*self._warnings, *begin.warnings],
            resumed_from=self.session_id if resumed else None,
            resume_offset_ms=self.resume_offset_ms,
        )
        return serialize(begin)

    def _pass_final(self, frame: str) -> str | None:
        segment = _final(frame).segment_id
        if self._shown and segment_number(segment) >= segment_number(self._shown[0]):
            self._shown = None
        self._partial = self._eager = None
        if segment not in self.finals:
            self.finals[segment] = self._unsaved[segment] = frame
        if segment_number(segment) <= self._last_told:
            return None
        self._last_told = segment_number(segment)
        return frame

    def _pass_partial(self, frame: str) -> str | None:
        """After a takeover: only what goes on from what was shown before."""
        assert self._shown
        partial = msgspec.json.decode(frame, type=Partial)
        segment, end, stable = self._shown
        if segment_number(partial.segment_id) > segment_number(segment):
            self._shown, self._partial = None, frame
            return frame
        if partial.segment_id != segment:
            return None
        if partial.end <= end or not partial.text.startswith(stable):
            return None
        if partial.stable_chars < len(stable):
            partial = msgspec.structs.replace(partial, stable_chars=len(stable))
        self._shown = segment, partial.end, partial.text[: partial.stable_chars]
        return serialize(partial)

    def _pass_answer(self, frame: str, to: Literal["config", "flush"]) -> str | None:
        if self._answers_due[to]:
            self._answers_due[to] -= 1
            return None
        for at, held in enumerate(self._held):
            if held.asks == to and not held.answered:
                held.answered = True
                before = self._held[at - 1] if at else None
                # Told twice, with nothing between them: the next worker need not hear it twice.
                if before and before.answered and before.frame == held.frame:
                    self._drop(at - 1)
                break
        return frame

    def _drop(self, at: int) -> None:
        self._count_held(self._held.pop(at), -1)
        self._dropped += 1

    def _drop_invalid(self) -> None:
        """A worker has refused the invalid frame; no other worker has to."""
        for at, held in enumerate(self._held):
            if held.invalid:
                return self._drop(at)

    def _state(self, frame: str) -> None:
        """Keep a new snapshot, and drop the frames before it: nobody needs them any more."""
        snapshot = msgspec.json.decode(frame, type=Snapshot)
        self.snapshot = msgspec.structs.replace(snapshot, segments=[])
        self._unsaved["snapshot"] = serialize(self.snapshot)
        self._speech_told = self._speech_due = 0
        self._partial = None
        self._needed = needed = self.config.frame(snapshot.replay_from) * self.config.frame_bytes
        keep = list[HeldFrame]()
        for held in self._held:
            if isinstance(held.frame, str):
                if held.ordinal > snapshot.controls:
                    keep.append(held)
            elif held.end > needed:
                first = held.end - len(held.frame)
                if first < needed:
                    held.frame = held.frame[needed - first :]
                keep.append(held)
        self._dropped += len(self._held) - len(keep)
        self._held = keep
        self.held_bytes = self._held_text = 0
        for held in keep:
            self._count_held(held, 1)


def _final(frame: str) -> Final:
    return msgspec.json.decode(frame, type=Final)

"""
What it takes to go on with a session whose connection broke. No I/O.

`Sent` holds what the server may need again: the audio behind the last ack's `finalised`, and the
messages that stood among it. `Heard` knows what the application was told: a server that goes on
says again what is behind the offset, and nobody has to hear that twice.
"""

import json
import math
from collections import Counter, deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

Event = dict[str, Any]

# How far the application may be ahead of what the server has searched for speech, then it waits:
# a connection can be away that long without stopping whoever speaks.
AHEAD_S = 90.0
# Audio that is held. An utterance of 30 s and what surrounds it come on top of AHEAD_S; more is
# needed only while the server's register is away, and then the oldest goes.
HELD_S = 150.0
# Times of what is said again differ by less; two that are not the same differ by more.
SAME_S = 0.04
_ANSWERS = ("language_unsupported", "invalid_parameter", "invalid_message")  # to a config, if not
_PING = '{"type": "ping"}'
_WIDTHS = {"pcm_f32le": 4, "mulaw": 1, "alaw": 1}  # bytes of a sample, else 2


class Gone(Exception):
    """The server needs audio that is not held any more; says from where."""


@dataclass
class Held:
    frame: bytes | str
    start: int  # bytes of audio before it
    end: int
    configures: frozenset[int] = frozenset()  # channels that answer it
    answered: set[int] = field(default_factory=set[int])  # those that have


class Sent:
    """Audio is counted in bytes since the session began, or since it was gone on with when the
    application itself asked for that. What is held goes out in order by `take`; `go_back` begins
    again further in front.

    keep: without it nothing is held that was taken. channels: that have a session each.
    """

    def __init__(self, keep: bool = True, channels: int = 1):
        self._keep, self._channels = keep, channels
        self._acks = dict[int, Event]()  # the last of each channel
        self._held = deque[Held]()
        self._taken = 0  # of them
        self._position = 0  # end of the audio that was taken
        self._skip = 0  # audio before it is not to be sent again
        self._first, self._end = 0, 0  # of the audio that is held
        self._base = 0  # bytes of the session before the first of ours
        self._processed: int | None = None  # by the server; None without an ack
        # Configs that go out again and were answered before, by channel.
        self._repeated = Counter[int]()
        self._pings = 0  # that were not answered
        self._pings_due = 0  # to be sent; they have no place among the audio
        self._rate, self._frame_bytes = 16_000, 2  # Hertz; of one sample of every channel

    def begin(self, config: Mapping[str, Any], offset_ms: float = 0.0) -> None:
        """What the audio is, and where the application's first byte belongs."""
        self._rate = int(config.get("sample_rate", 16_000))
        width = _WIDTHS.get(str(config.get("encoding")), 2)
        self._frame_bytes = width * int(config.get("channels", 1)) * self._channels
        self._base = self._bytes(offset_ms)

    def hold(self, frame: bytes | str) -> None:
        end = self._end
        if isinstance(frame, bytes):
            end += len(frame)
            self._held.append(Held(frame, self._end, end))
        else:
            message = json.loads(frame)
            if message["type"] == "ping":
                self._pings += 1
                self._pings_due += 1
                return
            answering = frozenset[int]()
            if message["type"] == "config":
                channel = message.get("channel")
                answering = frozenset(range(self._channels) if channel is None else [channel])
            self._held.append(Held(frame, end, end, answering))
        self._end = end

    def take(self) -> bytes | str | None:
        """The next frame for the server; None if it has them all."""
        if self._pings_due:
            self._pings_due -= 1
            return _PING
        while self._taken < len(self._held):
            held = self._held[self._taken]
            self._taken += 1
            self._position = held.end
            skipped = self._skip - held.start
            if not self._keep:
                self._forget()
            if isinstance(held.frame, bytes):
                if held.end > self._skip:
                    self._let_the_oldest_go()
                    return held.frame[max(0, skipped) :]
            elif skipped <= 0:
                return held.frame
        return None

    @property
    def full(self) -> bool:
        """The application is to wait."""
        reached = self._position if self._processed is None else self._processed
        return self._end - reached > AHEAD_S * self._rate * self._frame_bytes

    def acknowledged(self, ack: Event, channel: int = 0) -> None:
        self._acks[channel] = ack
        acks = self._acks.values()
        if len(acks) == self._channels:
            self._processed = self._bytes(min(ack["processed"] for ack in acks) * 1000)
            self._need(self._bytes(min(ack["finalised"] for ack in acks) * 1000))

    def go_back(self, offset_ms: float) -> None:
        """Everything from there on goes out again. Raises Gone."""
        offset = self._bytes(offset_ms)
        if offset < self._first or not self._keep:
            raise Gone(f"the audio from {offset_ms / 1000:.1f} s on is not held any more")
        self._skip = max(0, offset)
        self._taken, self._position = 0, self._skip
        if self._processed is not None:
            self._processed = offset
        behind = [held for held in self._held if held.start >= offset]
        self._repeated = Counter(channel for held in behind for channel in held.answered)
        self._pings_due = self._pings

    def ponged(self) -> None:
        self._pings = max(0, self._pings - 1)

    def answered(self, channel: int = 0) -> bool:
        """A config was; whether the application has not heard that before."""
        if self._repeated[channel]:
            self._repeated[channel] -= 1
            return False
        for held in self._held:
            if channel in held.configures - held.answered:
                held.answered.add(channel)
                break
        return True

    def _bytes(self, offset_ms: float) -> int:
        """Before the first frame at or behind the offset."""
        frame = math.ceil(round(offset_ms * self._rate / 1000, 6))
        return frame * self._frame_bytes - self._base

    def _need(self, first: int) -> None:
        """Nothing before it is needed again."""
        while self._taken and (held := self._held[0]).start < first and held.end <= first:
            self._forget()

    def _let_the_oldest_go(self) -> None:
        most = HELD_S * self._rate * self._frame_bytes
        while self._taken > 1 and self._end - self._first > most:
            self._forget()

    def _forget(self) -> None:
        self._first = self._held.popleft().end
        self._taken -= 1


class Heard:
    """last_segment: of the last final that the application has, "" if none."""

    def __init__(self, last_segment: str = ""):
        self.last_segment = last_segment
        self._speech: float | None = None  # since when somebody speaks
        self._onset = self._endpoint = -1.0  # the last that were told
        self._until = 0.0  # end of the last final
        self._shown: tuple[int, float, str] | None = None  # partial: segment, end, stable text
        self._offset: float | None = None  # seconds; of a session that was gone on with
        self._eager: str | None = None  # segment whose eager final is not confirmed yet
        self._invalid_told = False
        self._received = 0.0

    def resumed(self, offset_ms: float) -> list[Event]:
        """What comes now may be what came before. What the application is told of that: whoever
        goes on tells an eager final anew."""
        self._offset = offset_ms / 1000
        segment, self._eager = self._eager, None
        return [{"type": "transcript.withdrawn", "segment_id": segment}] if segment else []

    def hear(self, event: Event) -> list[Event]:
        """What the application is told: the event, nothing, or something before it."""
        match event["type"]:
            case "vad.speech_start":
                return self._hear_start(event)
            case "vad.speech_end":
                return self._hear_end(event)
            case "transcript.partial":
                return self._hear_partial(event)
            case "transcript.eager":
                if _number(event["segment_id"]) <= _number(self.last_segment):
                    return []
                self._eager = event["segment_id"]
                return [event]
            case "transcript.withdrawn":
                told, self._eager = self._eager is not None, None
                return [event] if told else []
            case "transcript.final":
                return self._hear_final(event)
            case "session.end":
                return [*self._missed_end(event.get("total_duration", math.inf)), event]
            case "ack":
                news = event["received"] >= self._received
                self._received = max(self._received, event["received"])
                return [event] if news else []
            case "error" if event.get("code") == "invalid_audio":
                told, self._invalid_told = self._invalid_told, True
                return [] if told and self._offset is not None else [event]
            case _:
                return [event]

    def _hear_start(self, event: Event) -> list[Event]:
        at = event["timestamp"]
        # The other side of a cut begins where the final before it ends.
        known = at <= self._onset + SAME_S or at < self._until - SAME_S / 2
        if self._offset is not None and known:
            return []
        missed = self._missed_end(at)
        self._speech = self._onset = at
        return [*missed, event]

    def _hear_end(self, event: Event) -> list[Event]:
        at = event["timestamp"]
        if self._offset is not None and at <= self._endpoint + SAME_S:
            return []
        self._speech, self._endpoint = None, at
        return [event]

    def _missed_end(self, before: float) -> list[Event]:
        """Speech ended while the connection was away: at the latest where the server goes on."""
        if self._speech is None or self._offset is None:
            return []
        at = min(before, max(self._offset, self._speech))
        self._speech, self._endpoint = None, at
        return [{"type": "vad.speech_end", "timestamp": at}]

    def _hear_partial(self, event: Event) -> list[Event]:
        segment = _number(event["segment_id"])
        if self._offset is not None:
            if segment <= _number(self.last_segment) or event["end"] <= self._endpoint + SAME_S:
                return []
            if self._shown and segment <= self._shown[0]:
                known, end, stable = self._shown
                if segment < known or event["end"] <= end or not event["text"].startswith(stable):
                    return []
                event = event | {"stable_chars": max(event["stable_chars"], len(stable))}
        self._shown = segment, event["end"], event["text"][: event["stable_chars"]]
        return [event]

    def _hear_final(self, event: Event) -> list[Event]:
        if _number(event["segment_id"]) <= _number(self.last_segment):
            return []
        self.last_segment, self._eager = event["segment_id"], None
        # A final that was missed is told without the events before it; what is open ends.
        missed = self._missed_end(event["end"])
        self._until = event["end"]
        self._endpoint = max(self._endpoint, self._until)
        return [*missed, event]


def answers_config(event: Event) -> bool:
    if event["type"] == "error":
        return event.get("code") in _ANSWERS and bool(event.get("recoverable"))
    return event["type"] == "config.updated"


def _number(segment_id: str) -> int:
    """Of seg_0007 it is 7; -1 of none."""
    return int(segment_id.removeprefix("seg_") or -1)

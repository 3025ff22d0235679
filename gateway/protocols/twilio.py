"""
Twilio's Media Streams: `WS /twilio`.

Twilio sends a call's sound and reads no text: a message that is not one of its own counts as an
error there. So what is heard is not said to Twilio but to whoever listens to the call
(gateway/listeners.py), in the messages of our own protocol. Settings and the key come as parameters
of `<Stream>`, in the start message, since Twilio takes no query in the URL. Source:
https://www.twilio.com/docs/voice/media-streams/websocket-messages
"""

from collections.abc import Sequence

import msgspec

from dalston.gateway.protocols.protocol import Asked, ClientError, ClientProtocol, Opening
from dalston.gateway.protocols.vendors import audio, close_code
from dalston.orchestrator.protocol.messages import End, Frame, serialize
from dalston.orchestrator.protocol.parameters import ParameterError, session_config

RATE = 8_000  # samples a second, of a byte each: the only format there is
_TRACKS = ("inbound", "outbound")  # who called, and who is called
_OF_THE_CALL = ("api_key", "token")
_FIXED = ("channels", "encoding", "sample_rate")
_SILENCE = b"\xff"  # in mu-law
# Times are whole milliseconds and not regular. Tracks are set right where they differ by more than
# this, in samples; and one that says nothing for so long is silent.
GAP, PATIENCE = RATE // 10, RATE // 2
LONGEST_GAP = 60 * RATE  # one that is longer is none: the clock was set


class _Start(msgspec.Struct):
    callSid: str  # noqa: N815
    tracks: tuple[str, ...] = ("inbound",)
    customParameters: dict[str, str] = {}  # noqa: N815


class _Media(msgspec.Struct):
    payload: str
    track: str = "inbound"
    timestamp: str = ""  # milliseconds


class _Message(msgspec.Struct):
    event: str
    start: _Start | None = None
    media: _Media | None = None


_message = msgspec.json.Decoder(_Message)


class InStep:
    """Tracks that come apart, as one audio in which their samples stand in turn."""

    def __init__(self, tracks: Sequence[str]):
        self._waiting = {track: bytearray() for track in tracks}
        self._ends = dict.fromkeys(tracks, 0)  # samples of each so far
        self._starts = dict.fromkeys(tracks, 0)  # what its times are ahead of that

    def add(self, track: str, at: int | None, sound: bytes) -> bytes:
        """What is complete now. at: the sample at which it begins, if anybody says so."""
        end = self._ends[track]
        if at is not None:
            missing = at - self._starts[track] - end
            if abs(missing) > LONGEST_GAP:
                self._starts[track] += missing
            elif missing > GAP:
                self._fill(track, missing)
            elif missing < -GAP:
                sound = sound[-missing:]  # it was taken for silent meanwhile
        self._waiting[track] += sound
        self._ends[track] += len(sound)
        end = self._ends[track]
        for other, reached in self._ends.items():
            if end - reached > PATIENCE:
                self._fill(other, end - reached - PATIENCE)
        return self._complete()

    def rest(self) -> bytes:
        """What is left, where no more comes."""
        last = max(self._ends.values())
        for track, reached in self._ends.items():
            self._fill(track, last - reached)
        return self._complete()

    def _fill(self, track: str, samples: int) -> None:
        self._waiting[track] += _SILENCE * samples
        self._ends[track] += samples

    def _complete(self) -> bytes:
        tracks = list(self._waiting.values())
        count = min(map(len, tracks))
        turns = bytearray(count * len(tracks))
        for at, waiting in enumerate(tracks):
            turns[at :: len(tracks)] = waiting[:count]
            del waiting[:count]
        return bytes(turns)


class Twilio(ClientProtocol):
    shows_key_later = True
    topic: str | None = ""

    def __init__(self, _: Opening):
        self._asked: Asked | None = None
        self._tracks: InStep | None = None

    def asked(self) -> Asked | None:
        return self._asked

    def receive(self, frame: Frame) -> Sequence[Frame]:
        try:
            message = _message.decode(frame)
        except (msgspec.MsgspecError, UnicodeError, RecursionError) as error:
            raise ClientError(f"not a message of Media Streams: {error}") from None
        match message.event:
            case "media" if message.media and self._tracks:
                return self._media(message.media, self._tracks)
            case "media":
                raise ClientError("media came before the start message")
            case "start" if message.start:
                self._begin(message.start)
                return ()
            case "stop" if self._tracks:
                rest = self._tracks.rest()
                return (rest, serialize(End())) if rest else (serialize(End()),)
            case _:
                return ()  # connected, mark, dtmf, and what may come to be

    def _media(self, media: _Media, tracks: InStep) -> Sequence[Frame]:
        at = int(media.timestamp) * RATE // 1000 if media.timestamp.isdecimal() else None
        try:
            complete = tracks.add(media.track, at, audio(media.payload))
        except (KeyError, ValueError):
            raise ClientError("media of a track that the start message does not name") from None
        return (complete,)

    def _begin(self, start: _Start) -> None:
        if self._asked:
            raise ClientError("the start message came twice")
        tracks = [track for track in _TRACKS if track in start.tracks]
        if len(tracks) != len(start.tracks) or not tracks:
            raise ClientError("tracks may be inbound, outbound, or both")
        wanted = start.customParameters
        key = wanted.get("api_key") or wanted.get("token") or ""
        named = {name: wanted[name] for name in wanted if name not in _OF_THE_CALL}
        if fixed := [name for name in _FIXED if name in named]:
            raise ClientError(f"{fixed[0]} is what Twilio sends, and no parameter")
        try:
            config, warnings = session_config(
                {**named, "encoding": "mulaw", "sample_rate": str(RATE)}
            )
        except ParameterError as error:
            raise ClientError(str(error)) from None
        self._asked = Asked(config, warnings, channels=len(tracks), key=key)
        self._tracks, self.topic = InStep(tracks), start.callSid

    def say(self, message: str) -> Sequence[Frame]:
        return (message,)

    def close_code(self, reason: int) -> int:
        return close_code(reason, 1011)

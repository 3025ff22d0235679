"""
OpenAI's Realtime protocol for transcription, as its SDKs, LiveKit and Pipecat speak it:
`WS /v1/realtime`, in the shape it has now, and in that of its beta.

All frames are JSON. The session is what the first `session.update` says, or the usual one for who
begins with audio. What is said becomes items: one for each utterance that silence ends, or one for
each commit where the client commits. Deltas only append: they are what partials call stable, and
nothing of it is taken back. What has an effect, and what has none, is in docs/compatibility.md.
Source: https://platform.openai.com/docs/guides/realtime-transcription
"""

import math
import secrets
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec

from dalston.gateway.protocols.openai_settings import RATE, Settings, SettingsError
from dalston.gateway.protocols.protocol import Asked, ClientProtocol, Opening, Reply
from dalston.gateway.protocols.vendors import close_code, join
from dalston.orchestrator.protocol.messages import (
    Clear,
    Error,
    ErrorCode,
    Final,
    Flush,
    Flushed,
    Frame,
    Partial,
    SessionTerminated,
    SpeechEnd,
    SpeechStart,
    Word,
    parse_server,
    segment_number,
    serialize,
)
from dalston.orchestrator.protocol.parameters import ParameterError

_ERROR_TYPES: dict[ErrorCode, str] = {
    "internal_error": "server_error",
    "lag_exceeded": "server_error",
    "no_capacity": "server_error",
    "rate_limit": "rate_limit_error",
    "unauthorized": "authentication_error",
    "forbidden": "permission_error",
    "worker_lost": "server_error",
}
# Bytes of audio after which a session begins that nobody has said anything of: half a second. Some
# clients send audio and settings at the same time.
MOST_EARLY = RATE
_TRANSCRIPTION = "conversation.item.input_audio_transcription"


class _Append(msgspec.Struct, tag_field="type", tag="input_audio_buffer.append"):
    audio: bytes = b""  # Base64 on the wire


class _Event(msgspec.Struct):
    type: str
    event_id: str | None = None
    session: msgspec.Raw = msgspec.Raw()


_append, _event = msgspec.json.Decoder(_Append), msgspec.json.Decoder(_Event)


@dataclass
class _Item:
    """What is said in one utterance, or between two commits."""

    id: str
    start: float  # seconds of the session
    told: str = ""  # by deltas
    finals: list[Final] = field(default_factory=list[Final])

    def text(self, then: str = "") -> str:
        spoken = self.finals[-1].language if self.finals else ""
        return join([*(final.text for final in self.finals), then], spoken)

    @property
    def words(self) -> Iterator[Word]:
        return (word for final in self.finals for word in final.words or ())


class OpenAIRealtime(ClientProtocol):
    subprotocols = ("realtime",)

    def __init__(self, opening: Opening):
        beta = opening.headers.get("openai-beta", "").startswith("realtime=")
        self._settings = Settings(f"sess_{secrets.token_hex(12)}", opening.one("model"), beta)
        self._known = self._heard = False  # what the session is to be; any audio
        self._prefix, self._events = secrets.token_hex(8), 0
        self._buffered = 0  # bytes of audio since the last commit or clear
        self._committed: str | None = None  # the item that was committed last
        # Those that are not complete, in order. Where silence ends utterances an item begins with
        # its speech; where the client commits, the last is the one to be committed next.
        self._open = deque[_Item]()
        self._items = 0  # how many there were

    def greeting(self) -> Sequence[Frame]:
        return [self._told(self._settings.created, session=self._settings.told())]

    # From the client.

    def asked(self) -> Asked | None:
        return Asked(self._settings.config()) if self._known else None

    def receive(self, frame: Frame) -> Sequence[Frame | Reply]:
        try:
            return self._append(_append.decode(frame).audio)  # most frames are that
        except (msgspec.MsgspecError, UnicodeError, RecursionError):
            return self._receive(frame)

    def _receive(self, frame: Frame) -> Sequence[Frame | Reply]:
        try:
            event = _event.decode(frame)
        except (msgspec.MsgspecError, UnicodeError, RecursionError) as error:
            return [self._reply_error(f"not an event of this protocol: {error}", "invalid_json")]
        match event.type:
            case "input_audio_buffer.append":
                sentence = "the audio is no Base64"
                return [self._reply_error(sentence, "invalid_value", event, "audio")]
            case "session.update" | "transcription_session.update":
                return self._update(event)
            case "input_audio_buffer.commit":
                return self._commit(event)
            case "input_audio_buffer.clear":
                self._buffered = 0
                return (serialize(Clear()), Reply(self._told("input_audio_buffer.cleared")))
            case _:
                sentence = f"events of type {event.type[:50]!r} are not possible in a transcription"
                return [self._reply_error(sentence, "unknown_event", event, "type")]

    def _append(self, data: bytes) -> Sequence[Frame]:
        self._heard = True
        self._buffered += len(data)
        self._known = self._known or self._buffered >= MOST_EARLY
        return (data,) if data else ()

    def _update(self, event: _Event) -> Sequence[Frame | Reply]:
        if bytes(event.session) in (b"", b"null"):
            return [self._reply_error("session is missing", "missing_parameter", event, "session")]
        try:
            change = self._settings.update(event.session, self._known, self._heard)
        except SettingsError as error:
            return [self._reply_error(str(error), "invalid_value", event, error.param)]
        except ParameterError as error:
            return [self._reply_error(str(error), error.code, event, "session")]
        self._known = True
        told = Reply(self._told(self._settings.updated, session=self._settings.told()))
        return [serialize(change), told] if change else [told]

    def _commit(self, event: _Event) -> Sequence[Frame | Reply]:
        if not self._buffered:
            sentence = "there is no audio to be committed"
            return [self._reply_error(sentence, "input_audio_buffer_commit_empty", event)]
        self._buffered, self._known = 0, True
        flush = serialize(Flush())
        if not self._settings.manual:
            return [flush]
        self._current()
        told = self._commit_item(self._open[-1])
        self._open.append(self._new_item())
        return [*map(Reply, told), flush]

    # To the client.

    def say(self, message: str) -> Sequence[Frame]:
        known = parse_server(message)
        match known:
            case SpeechStart() if not self._settings.manual:
                return self._start(known)
            case SpeechEnd() if not self._settings.manual:
                return self._stop(known)
            case Partial():
                return self._delta(self._of(known.segment_id), known.text[: known.stable_chars])
            case Final():
                return self._final(known)
            case Flushed() if self._settings.manual:
                item = self._current()
                self._open.popleft()
                self._current().start = known.at
                return [self._complete(item, known.at - item.start)]
            case Error():
                kind = _ERROR_TYPES.get(known.code, "invalid_request_error")
                return [self._error(kind, known.message, known.code)]
            case SessionTerminated():
                sentence = f"the session has ended: {known.reason}"
                return [self._error("server_error", sentence, known.reason)]
            case _:
                return ()

    def _start(self, start: SpeechStart) -> Sequence[Frame]:
        item = self._new_item(start.timestamp)
        self._open.append(item)
        about = {"audio_start_ms": _ms(start.timestamp), "item_id": item.id}
        return [self._told("input_audio_buffer.speech_started", **about)]

    def _stop(self, end: SpeechEnd) -> Sequence[Frame]:
        if not self._open:
            return ()
        item, self._buffered = self._open[-1], 0
        about = {"audio_end_ms": _ms(end.timestamp), "item_id": item.id}
        stopped = self._told("input_audio_buffer.speech_stopped", **about)
        return [stopped, *self._commit_item(item)]

    def _final(self, final: Final) -> Sequence[Frame]:
        item = self._of(final.segment_id)
        if item is None:
            return ()
        item.finals.append(final)
        told = self._delta(item, "")
        if self._settings.manual:
            return told
        # One of which nothing was understood has no final: it is complete, and empty.
        done = list[Frame]()
        while self._open[0] is not item:
            done.append(self._complete(self._open.popleft(), 0.0))
        self._open.popleft()
        return [*done, *told, self._complete(item, final.end - final.start)]

    def _of(self, segment_id: str) -> _Item | None:
        """The item of an utterance: each has a SpeechStart, and they are counted alike."""
        if self._settings.manual:
            return self._current()
        wanted = self._item_id(segment_number(segment_id))
        return next((item for item in self._open if item.id == wanted), None)

    def _current(self) -> _Item:
        """The item that is said now, where the client commits."""
        if not self._open:
            self._open.append(self._new_item())
        return self._open[0]

    def _delta(self, item: _Item | None, stable: str) -> list[Frame]:
        """What is certain of an item by now, less what was told: its finals, and so much of what
        follows them."""
        if item is None:
            return []
        text = item.text(stable)
        if not text.startswith(item.told) or len(text) == len(item.told):
            return []
        delta, item.told = text[len(item.told) :], text
        about = {"item_id": item.id, "content_index": 0, "delta": delta}
        return [self._told(f"{_TRANSCRIPTION}.delta", **about)]

    def _commit_item(self, item: _Item) -> list[Frame]:
        before, self._committed = self._committed, item.id
        about = {"item_id": item.id, "previous_item_id": before}
        content = {
            "id": item.id,
            "object": "realtime.item",
            "type": "message",
            "status": "completed",
            "role": "user",
            "content": [{"type": "input_audio", "transcript": None}],
        }
        return [
            self._told("input_audio_buffer.committed", **about),
            self._told(self._settings.item_added, previous_item_id=before, item=content),
        ]

    def _complete(self, item: _Item, seconds: float) -> Frame:
        about: dict[str, Any] = {
            "item_id": item.id,
            "content_index": 0,
            "transcript": item.text(),
            "usage": {"type": "duration", "seconds": round(max(0.0, seconds), 3)},
        }
        if item.finals:
            about["languages"] = [{"code": item.finals[-1].language}]
        if self._settings.logprobs:
            about["logprobs"] = list(map(_logprob, item.words))
        return self._told(f"{_TRANSCRIPTION}.completed", **about)

    def _reply_error(
        self, sentence: str, code: str, event: _Event | None = None, param: str | None = None
    ) -> Reply:
        event_id = event.event_id if event else None
        return Reply(self._error("invalid_request_error", sentence, code, param, event_id))

    def _error(
        self,
        kind: str,
        sentence: str,
        code: str,
        param: str | None = None,
        event_id: str | None = None,
    ) -> str:
        about = {
            "type": kind,
            "code": code,
            "message": sentence,
            "param": param,
            "event_id": event_id,
        }
        return self._told("error", error=about)

    def _told(self, kind: str, **fields: Any) -> str:
        self._events += 1
        event = {"type": kind, "event_id": f"event_{self._prefix}_{self._events}", **fields}
        return msgspec.json.encode(event).decode()

    def _new_item(self, start: float = 0.0) -> _Item:
        self._items += 1
        return _Item(self._item_id(self._items - 1), start)

    def _item_id(self, number: int) -> str:
        return f"item_{self._prefix}_{number}"

    def close_code(self, reason: int) -> int:
        return close_code(reason, 1008)


def _ms(seconds: float) -> int:
    return round(1000 * seconds)


def _logprob(word: Word) -> dict[str, Any]:
    return {
        "token": word.word,
        "logprob": round(math.log(max(word.confidence, 1e-6)), 4),
        "bytes": list(word.word.encode()),
    }

"""
The protocol of servers that are told when to start and stop recording: `WS /ws/transcribe`.

A connection is greeted, and can make several recordings. Here they are one session: audio between
two of them is dropped, and each begins where the last one ended. Times are of the recording.
"""

import secrets
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Annotated, Any, ClassVar

import msgspec
from msgspec import Meta

from dalston.gateway.protocols.protocol import Asked, ClientProtocol, Opening, Reply
from dalston.gateway.protocols.vendors import close_code, join, language, one_of, settings
from dalston.orchestrator.protocol.messages import (
    Configure,
    Encoding,
    Error,
    Final,
    Flush,
    Flushed,
    Frame,
    Partial,
    Ping,
    Pong,
    SessionConfig,
    SessionTerminated,
    Word,
    parse_server,
    serialize,
)
from dalston.orchestrator.protocol.parameters import LOUDNESS, ParameterError

_ENCODINGS: dict[str, Encoding] = {"pcm16": "pcm_s16le", "pcm_s16le": "pcm_s16le"}
_FORMATS = {"encoding": "pcm16", "sample_rate": 16_000, "channels": 1, "chunk_size": 3_200}


class _Config(msgspec.Struct):
    sample_rate: int = 16_000
    encoding: str = "pcm16"
    language: str = "auto"


class _Start(msgspec.Struct, tag_field="type", tag="start_recording"):
    config: _Config | None = None


class _Stop(msgspec.Struct, tag_field="type", tag="stop_recording"):
    pass


class _Ping(msgspec.Struct, tag_field="type", tag="ping"):
    pass


class _Configure(msgspec.Struct, tag_field="type", tag="configure"):
    vad_threshold: Annotated[float, Meta(ge=0, le=1)] | None = None
    silence_duration: Annotated[float, Meta(ge=0.05, le=2)] | None = None  # seconds
    language: str | None = None


_message = msgspec.json.Decoder(_Start | _Stop | _Ping | _Configure)


class Recordings(ClientProtocol):
    patience_s: ClassVar[float | None] = 3_600.0  # pages connect long before somebody speaks

    def __init__(self, opening: Opening):
        self._clock = opening.clock
        self._client_id = opening.one("client_id") or f"client_{secrets.token_hex(6)}"
        self._asked: SessionConfig | None = None
        self._change = Configure()  # what was configured before the first recording
        self._recording = False
        self._passed = 0  # bytes of audio
        self._since = 0.0  # seconds of the session at which the recording began
        self._finals = list[Final]()  # of the recording

    def greeting(self) -> Sequence[Frame]:
        about = {
            "status": "connected",
            "client_id": self._client_id,
            "protocol_version": "1.0",
            "supported_audio_formats": _FORMATS,
        }
        return [self._told("connection", stamped=False, **about)]

    def asked(self) -> Asked | None:
        return Asked(self._asked) if self._asked else None

    # From the client.

    def receive(self, frame: Frame) -> Sequence[Frame | Reply]:
        if isinstance(frame, bytes):
            if not self._recording:
                return ()
            self._passed += len(frame)
            return (frame,)
        try:
            message = _message.decode(frame)
        except (msgspec.MsgspecError, UnicodeError, RecursionError) as error:
            return [self._error(f"not a message of this protocol: {error}")]
        match message:
            case _Start():
                return self._start(message.config or _Config())
            case _Stop() if self._recording:
                self._recording = False
                return (serialize(Flush()),)
            case _Stop():
                return [self._error("no recording was started")]
            case _Configure():
                return self._configure(message)
            case _Ping() if self._asked:
                return (serialize(Ping()),)
            case _:
                return [Reply(self._told("pong", stamped=False))]

    def _start(self, config: _Config) -> Sequence[Frame | Reply]:
        if self._recording:
            return [self._error("a recording was started already")]
        try:
            asked = settings(
                {
                    "sample_rate": config.sample_rate,
                    "encoding": one_of("encoding", config.encoding, _ENCODINGS),
                    "language": language(config.language),
                    "word_timestamps": True,
                    "flushed": True,
                    "vad_threshold": self._change.vad_threshold,
                    "min_silence_duration_ms": self._change.min_silence_duration_ms,
                }
            )
        except ParameterError as error:
            return [self._error(str(error))]
        meaning = list[Frame | Reply]()
        if self._asked is None:
            self._asked = asked
        elif asked.bytes_per_second != self._asked.bytes_per_second:
            return [self._error("the format of the audio cannot change on one connection")]
        elif asked.language != self._asked.language:
            meaning.append(serialize(Configure(language=asked.language)))
        self._recording = True
        self._since = self._passed / self._asked.bytes_per_second
        self._finals = []
        about = {
            "sample_rate": config.sample_rate,
            "encoding": config.encoding,
            "language": config.language,
        }
        return [*meaning, Reply(self._told("recording_started", config=about))]

    def _configure(self, asked: _Configure) -> Sequence[Frame | Reply]:
        if asked.vad_threshold is not None and asked.vad_threshold <= LOUDNESS:
            sentence = (
                f"vad_threshold={asked.vad_threshold:g} is a threshold of loudness; here it is the "
                f"probability of speech, usually 0.5"
            )
            return [self._error(sentence)]
        silence = asked.silence_duration
        change = Configure(
            vad_threshold=asked.vad_threshold,
            min_silence_duration_ms=None if silence is None else round(1000 * silence),
            language=None if asked.language is None else language(asked.language),
        )
        about = {
            name: value
            for name, value in msgspec.structs.asdict(asked).items()
            if value is not None
        }
        told = Reply(self._told("configured", stamped=False, config=about))
        if self._asked is None:
            self._change = change
            return [told]
        return [serialize(change), told]

    # To the client.

    def say(self, message: str) -> Sequence[Frame]:
        known = parse_server(message)
        match known:
            case Partial():
                return [self._partial(known)]
            case Final():
                self._finals.append(known)
                return [self._transcription(known)]
            case Flushed():
                return [self._stopped(known)]
            case Pong():
                return [self._told("pong", stamped=False)]
            case Error():
                return [self._told("error", error=known.message)]
            case SessionTerminated():
                return [self._told("error", error=f"the session has ended: {known.reason}")]
            case _:
                return ()

    def _partial(self, partial: Partial) -> Frame:
        return self._told(
            "partial",
            segment_id=partial.segment_id,
            text=partial.text,
            is_final=False,
            processing_time_ms=0,  # nobody measures it
        )

    def _transcription(self, final: Final) -> Frame:
        return self._told(
            "transcription",
            segment_id=final.segment_id,
            text=final.text,
            is_final=True,
            words=[self._word(word) for word in final.words or ()],
            duration=round(final.end - final.start, 3),
            processing_time_ms=final.processing_ms,
            language=final.language,
        )

    def _word(self, word: Word) -> dict[str, Any]:
        return {
            "word": word.word,
            "start": round(max(0.0, word.start - self._since), 3),
            "end": round(max(0.0, word.end - self._since), 3),
            "confidence": word.confidence,
        }

    def _stopped(self, flushed: Flushed) -> Frame:
        spoken = self._finals[-1].language if self._finals else ""
        return self._told(
            "recording_stopped",
            final_transcript=join([final.text for final in self._finals], spoken),
            total_duration=round(max(0.0, flushed.at - self._since), 3),
            total_segments=len(self._finals),
        )

    def _error(self, sentence: str) -> Reply:
        return Reply(self._told("error", error=sentence))

    def _told(self, kind: str, *, stamped: bool = True, **fields: Any) -> str:
        told = {"type": kind, **fields}
        if stamped:
            told["timestamp"] = datetime.fromtimestamp(self._clock(), UTC).isoformat()
        return msgspec.json.encode(told).decode()

    def close_code(self, reason: int) -> int:
        return close_code(reason, 1008)

"""
ElevenLabs' Scribe realtime protocol, as its SDKs, LiveKit and Pipecat speak it:
`WS /v1/speech-to-text/realtime`.

Settings are in the query. All frames are JSON, told apart by `message_type`; a client sends audio
as Base64, and a commit with it. The client leaves by closing. What has an effect, and what has
none, is in docs/compatibility.md.
Source: https://elevenlabs.io/docs/api-reference/speech-to-text/v-1-speech-to-text-realtime
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import msgspec

from dalston.gateway.protocols.protocol import Asked, ClientError, ClientProtocol, Opening
from dalston.gateway.protocols.vendors import (
    flag,
    join,
    language,
    number,
    one_of,
    settings,
    variant,
)
from dalston.orchestrator.protocol.close_codes import CloseCode
from dalston.orchestrator.protocol.messages import (
    Encoding,
    Error,
    ErrorCode,
    Final,
    Flush,
    Flushed,
    Frame,
    Partial,
    Ping,
    SessionBegin,
    SessionTerminated,
    Warn,
    parse_server,
    quote,
    serialize,
)
from dalston.orchestrator.protocol.parameters import ParameterError

_FORMATS: Mapping[str, tuple[Encoding, int]] = {
    **{f"pcm_{rate}": ("pcm_s16le", rate) for rate in (8000, 16000, 22050, 24000, 44100, 48000)},
    "ulaw_8000": ("mulaw", 8000),
}
_STRATEGIES = {"manual": True, "vad": False}
_ERRORS: Mapping[ErrorCode, str] = {
    "forbidden": "auth_error",
    "internal_error": "transcriber_error",
    "invalid_audio": "input_error",
    "invalid_message": "input_error",
    "invalid_parameter": "invalid_request",
    "lag_exceeded": "transcriber_error",
    "language_unsupported": "invalid_request",
    "no_capacity": "resource_exhausted",
    "rate_limit": "rate_limited",
    "session_timeout": "session_time_limit_exceeded",
    "slow_reader": "queue_overflow",
    "unauthorized": "auth_error",
    "worker_lost": "transcriber_error",
}
_CLOSE_CODES = {int(CloseCode.NORMAL): 1000, int(CloseCode.GOING_AWAY): 1001}
_FAULTS = {int(CloseCode.INTERNAL), int(CloseCode.NO_CAPACITY), int(CloseCode.LAG)}


class _Chunk(msgspec.Struct, tag_field="message_type", tag="input_audio_chunk"):
    audio_base_64: bytes = b""  # Base64 on the wire
    commit: bool = False
    sample_rate: int | None = None


_chunk = msgspec.json.Decoder(_Chunk)


class ElevenLabs(ClientProtocol):
    def __init__(self, opening: Opening):
        self._opening = opening
        self._manual = True  # the client commits; else silence does
        self._timestamps = self._detection = False
        self._rate = 16_000
        # What was said since the last commit, where the client commits.
        self._pending = list[Final]()

    # What is asked.

    def asked(self) -> Asked:
        one = self._opening.one
        name = one("audio_format", "pcm_16000")
        encoding, self._rate = one_of("audio_format", name, _FORMATS)
        strategy = one("commit_strategy", "manual")
        self._manual = one_of("commit_strategy", strategy, _STRATEGIES)
        if one("entity_redaction", "null") not in ("null", "false", ""):
            # Not ignored: who asks for it would not notice.
            sentence = "entity_redaction is not possible here; the server's DALSTON_REDACT is"
            raise ParameterError("entity_redaction", "", sentence)
        self._timestamps = flag("include_timestamps", one("include_timestamps"))
        self._detection = flag("include_language_detection", one("include_language_detection"))
        spoken, others = one("language_code"), self._opening.all("secondary_languages")
        return Asked(
            settings(
                {
                    "model": variant(one("model_id")),
                    "encoding": encoding,
                    "sample_rate": self._rate,
                    "language": language(spoken) if spoken and not others else "auto",
                    "languages": ",".join(map(language, [spoken, *others])) if others else None,
                    "word_timestamps": self._timestamps,
                    "endpointing": "manual" if self._manual else "auto",
                    "vad_threshold": one("vad_threshold") or None,
                    "min_speech_duration_ms": one("min_speech_duration_ms") or None,
                    "min_silence_duration_ms": _silence_ms(one("vad_silence_threshold_secs")),
                    "flushed": True,
                },
                self._opening.all("keyterms"),
            )
        )

    # From the client.

    def receive(self, frame: Frame) -> Sequence[Frame]:
        try:
            chunk = _chunk.decode(frame)
        except (msgspec.MsgspecError, UnicodeError, RecursionError) as error:
            sentence = f"not a message of this protocol; only input_audio_chunk is known: {error}"
            raise ClientError(quote(sentence)) from None
        if chunk.sample_rate not in (None, self._rate):
            sentence = f"sample_rate={chunk.sample_rate}, and audio_format says {self._rate}"
            raise ClientError(sentence)
        meaning: list[Frame] = [chunk.audio_base_64] if chunk.audio_base_64 else []
        if chunk.commit:
            meaning.append(serialize(Flush()))
        # An empty chunk keeps the connection alive.
        return meaning or (serialize(Ping()),)

    # To the client.

    def say(self, message: str) -> Sequence[Frame]:
        known = parse_server(message)
        match known:
            case SessionBegin():
                return [self._started(known)]
            case Partial():
                return [_told("partial_transcript", text=self._open_text(known))]
            case Final() if self._manual:
                self._pending.append(known)
                return ()
            case Final():
                return list(self._committed([known]))
            case Flushed() if self._manual:
                finals, self._pending = self._pending, []
                return list(self._committed(finals))
            case Warn():
                return [_told("warning", warning=known.message)]
            case Error() if known.recoverable and known.code == "invalid_audio":
                return [_told("warning", warning=known.message)]
            case Error():
                return [_told(_ERRORS[known.code], error=known.message)]
            case SessionTerminated():
                return [_told("transcriber_error", error=f"the session has ended: {known.reason}")]
            case _:
                return ()

    def _started(self, begin: SessionBegin) -> Frame:
        config = begin.config
        spoken = None if config.language == "auto" else config.language
        about = {
            "sample_rate": config.sample_rate,
            "audio_format": self._opening.one("audio_format", "pcm_16000"),
            "language_code": spoken,
            "commit_strategy": "manual" if self._manual else "vad",
            "vad_silence_threshold_secs": config.min_silence_duration_ms / 1000,
            "vad_threshold": config.vad_threshold,
            "min_speech_duration_ms": config.min_speech_duration_ms,
            "min_silence_duration_ms": config.min_silence_duration_ms,
            "model_id": self._opening.one("model_id"),
            "include_timestamps": self._timestamps,
            "include_language_detection": self._detection,
        }
        return _told("session_started", session_id=begin.session_id, config=about)

    def _open_text(self, partial: Partial) -> str:
        """All that was said since the last commit."""
        spoken = self._pending[-1].language if self._pending else ""
        return join([*(final.text for final in self._pending), partial.text], spoken)

    def _committed(self, finals: Sequence[Final]) -> Iterator[Frame]:
        spoken = finals[-1].language if finals else None
        text = join([final.text for final in finals], spoken or "")
        yield _told("committed_transcript", text=text)
        if self._timestamps or self._detection:
            words = list(items(text, finals)) if self._timestamps else None
            yield _told(
                "committed_transcript_with_timestamps",
                text=text,
                language_code=spoken if self._detection else None,
                words=words,
            )

    def close_code(self, reason: int) -> int:
        return _CLOSE_CODES.get(reason, 1011 if reason in _FAULTS else 1008)


def _told(message_type: str, **fields: Any) -> str:
    return msgspec.json.encode({"message_type": message_type, **fields}).decode()


def items(text: str, finals: Sequence[Final]) -> Iterator[dict[str, Any]]:
    """The words with their times, and what stands between them: together they are the text."""
    words = [word for final in finals for word in final.words or ()]
    at, end = 0, words[0].start if words else 0.0
    for word in words:
        spoken = word.word.strip()
        begin = text.find(spoken, at)
        if begin < 0:
            continue
        if begin > at:
            between = {"text": text[at:begin], "start": end, "end": word.start}
            yield {**between, "type": "spacing", "logprob": 0.0}
        at, end = begin + len(spoken), word.end
        yield {
            "text": spoken,
            "start": word.start,
            "end": word.end,
            "type": "word",
            "logprob": round(math.log(max(word.confidence, 1e-6)), 4),
        }


def _silence_ms(seconds: str) -> int | None:
    if not seconds:
        return None
    asked = number("vad_silence_threshold_secs", seconds, 0.3, 3.0)
    longest = 2_000  # of SessionConfig
    return min(int(asked * 1000), longest)

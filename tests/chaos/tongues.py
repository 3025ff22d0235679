"""
What the fuzzer says to each protocol of the gateway, and how a session of each is ended.
"""

import base64
import json
from collections.abc import Callable
from dataclasses import dataclass

STREAM, SESSION = "/v1/audio/transcriptions/stream", "/session"


@dataclass(frozen=True)
class Tongue:
    """How a protocol is spoken."""

    path: str
    kinds: tuple[str, ...]  # of messages, that `tag` names
    keys: tuple[str, ...]
    sane: tuple[str, ...]  # messages as clients send them
    queries: tuple[str, ...]
    tag: str = "type"
    wrap: Callable[[bytes], str] | None = None  # None: audio goes in binary frames
    first: tuple[str, ...] = ()  # one of these begins a session, mostly
    end: str = ""  # the message after which the server closes; "": the client closes
    last: tuple[str, ...] = ()  # what a session says last that has ended in order; (): anything
    patient: bool = False  # the server waits for a beginning for an hour
    weight: int = 1  # sessions, of all that are made


def _append(audio: bytes) -> str:
    text = base64.b64encode(audio).decode()
    return json.dumps({"type": "input_audio_buffer.append", "audio": text})


def _chunk(audio: bytes) -> str:
    about = {"commit": len(audio) % 5 == 0, "sample_rate": 16_000, "previous_text": None}
    text = base64.b64encode(audio).decode()
    return json.dumps({"message_type": "input_audio_chunk", "audio_base_64": text, **about})


def _media(audio: bytes) -> str:
    payload = base64.b64encode(audio[:8000]).decode()
    about = {"track": ("inbound", "outbound")[len(audio) % 2], "timestamp": str(len(audio))}
    return json.dumps({"event": "media", "media": about | {"payload": payload}})


def _started(*tracks: str) -> str:
    start = {"callSid": f"CA{'0' * 32}", "tracks": tracks, "customParameters": {"language": "en"}}
    return json.dumps({"event": "start", "start": start})


def _native(path: str, more: tuple[str, ...] = ()) -> Tongue:
    kinds = ("config", "flush", "commit", "clear", "ping", "end", "stop", "session.begin")
    return Tongue(
        path,
        kinds,
        (
            "language",
            "vad_threshold",
            "min_silence_duration_ms",
            "prefix_padding_ms",
            "reason",
            "x",
        ),
        tuple(json.dumps({"type": kind}) for kind in kinds[:5]),
        tuple(
            f"encoding={encoding}&sample_rate={rate}&channels={channels}&language=en"
            for encoding in ("pcm_s16le", "pcm_f32le", "mulaw")
            for rate in (8_000, 16_000, 44_100, 48_000)
            for channels in (1, 2)
        )
        + more,
        end='{"type":"end"}',
        last=("session.end", "error", "session.terminated"),
        weight=3,
    )


_LISTEN = "model=nova-3&encoding=linear16&sample_rate=16000"
_SCRIBE = "model_id=scribe_v2_realtime&audio_format="
_TURNS = '{"type":"session.update","session":{"type":"transcription","audio":{"input":{%s}}}}'
_APART = "channels=2&multichannel=true&language=en"
NATIVE = _native(STREAM, (_APART, f"{_APART}&encoding=mulaw", "encoding=auto", "encoding=webm"))
TONGUES = (
    NATIVE,
    _native(SESSION),
    Tongue(
        "/v1/realtime",
        (
            "session.update",
            "input_audio_buffer.append",
            "input_audio_buffer.commit",
            "input_audio_buffer.clear",
            "transcription_session.update",
            "response.create",
        ),
        ("audio", "session", "event_id", "input", "turn_detection", "transcription", "language"),
        (
            '{"type":"input_audio_buffer.commit"}',
            '{"type":"input_audio_buffer.clear"}',
            _TURNS % '"turn_detection":null',
            _TURNS % '"turn_detection":{"type":"server_vad","silence_duration_ms":300}',
            _TURNS % '"transcription":{"language":"en","prompt":"x"}',
        ),
        ("", "intent=transcription", "model=gpt-4o-transcribe"),
        wrap=_append,
    ),
    Tongue(
        "/v1/speech-to-text/realtime",
        ("input_audio_chunk", "commit", "session_started"),
        ("audio_base_64", "commit", "sample_rate", "previous_text", "x"),
        (
            '{"message_type":"input_audio_chunk","audio_base_64":"","commit":true}',
            '{"message_type":"input_audio_chunk","audio_base_64":"","commit":false}',
        ),
        (
            f"{_SCRIBE}pcm_16000&commit_strategy=vad&include_timestamps=true",
            f"{_SCRIBE}pcm_48000",
            f"{_SCRIBE}ulaw_8000&commit_strategy=vad",
            f"{_SCRIBE}mp3",
            "vad_threshold=x",
        ),
        tag="message_type",
        wrap=_chunk,
    ),
    Tongue(
        "/v1/listen",
        ("KeepAlive", "Finalize", "CloseStream", "Configure"),
        ("keyterms", "thresholds", "x"),
        (
            '{"type":"KeepAlive"}',
            '{"type":"Finalize"}',
            '{"type":"Configure","keyterms":["x"]}',
        ),
        (
            _LISTEN,
            f"{_LISTEN}&interim_results=true&utterance_end_ms=1000&vad_events=true&punctuate=true",
            f"{_LISTEN}&endpointing=false&language=multi&channels=2",
            f"{_LISTEN}&channels=2&multichannel=true",
            "model=nova-3",  # in a container
            "encoding=mulaw",
            "encoding=opus",
            f"{_LISTEN}&language=tlh&keyterm=%00",
        ),
        end='{"type":"CloseStream"}',
    ),
    Tongue(
        "/v2/listen",
        ("CloseStream", "ForceEndTurn", "Configure"),
        ("keyterms", "language_hints", "thresholds", "x"),
        ('{"type":"ForceEndTurn"}', '{"type":"Configure","keyterms":["x"]}'),
        (
            "model=flux-general-en&encoding=linear16&sample_rate=16000&eager_eot_threshold=0.4",
            "model=flux-general-multi&language_hint=de",
            "eot_threshold=2",
        ),
        end='{"type":"CloseStream"}',
    ),
    Tongue(
        "/ws/transcribe",
        ("start_recording", "stop_recording", "configure", "ping"),
        ("config", "vad_threshold", "silence_duration", "language", "sample_rate", "encoding"),
        (
            '{"type":"start_recording","config":{"sample_rate":16000}}',
            '{"type":"start_recording"}',
            '{"type":"stop_recording"}',
            '{"type":"configure","vad_threshold":0.5}',
            '{"type":"ping"}',
        ),
        ("", "client_id=me", "client_id=%00%ff"),
        patient=True,
    ),
    Tongue(
        "/vosk",
        ("config", "eof"),
        ("config", "eof", "sample_rate", "words", "phrase_list", "max_alternatives"),
        ('{"config":{"sample_rate":16000}}', '{"config":{"phrase_list":["x","[unk]"]}}'),
        ("", "language=de", "language=tlh"),
        end='{"eof":1}',
    ),
    Tongue(
        "/vapi",
        ("start", "conversation", "end"),
        ("encoding", "container", "sampleRate", "channels", "x"),
        ('{"type":"conversation","x":[]}',),
        ("", "language=en", "language=tlh", "keywords=a,,b&redact=numbers"),
        first=(
            '{"type":"start","encoding":"linear16","container":"raw","sampleRate":16000,"channels":2}',
            '{"type":"start"}',
            '{"type":"start","sampleRate":8000,"channels":1}',
        ),
    ),
    Tongue(
        "/twilio",
        ("connected", "start", "media", "mark", "dtmf", "stop"),
        ("start", "media", "payload", "track", "timestamp", "callSid", "tracks"),
        (
            '{"event":"mark","mark":{"name":"x"}}',
            '{"event":"media","media":{"payload":"////","track":"outbound","timestamp":"1000"}}',
            '{"event":"media","media":{"payload":"////","timestamp":"-5"}}',
        ),
        ("",),
        tag="event",
        wrap=_media,
        first=(_started("inbound"), _started("inbound", "outbound"), '{"event":"connected"}'),
        end='{"event":"stop"}',
    ),
)

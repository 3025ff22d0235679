"""
Deepgram's live protocol, as its SDKs, LiveKit and Pipecat speak it: `WS /v1/listen`.

Settings are in the query. Audio comes in binary frames; KeepAlive, Finalize and CloseStream are
JSON. Each partial and each final is a `Results`. What has an effect, and what has none, is in
docs/compatibility.md. Source: https://developers.deepgram.com/reference/speech-to-text/listen-streaming
"""

import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

import msgspec

from dalston.gateway.protocols.protocol import (
    Asked,
    ClientError,
    ClientProtocol,
    HttpAnswer,
    Opening,
    Reply,
)
from dalston.gateway.protocols.vendors import (
    STATUS,
    apart,
    flag,
    number,
    one_of,
    retry_headers,
    settings,
    variant,
)
from dalston.orchestrator.protocol.close_codes import CloseCode
from dalston.orchestrator.protocol.messages import (
    Ack,
    Configure,
    End,
    Error,
    Final,
    Flush,
    Flushed,
    Frame,
    Partial,
    Ping,
    SessionBegin,
    SessionEnd,
    SessionTerminated,
    SpeechStart,
    Word,
    parse_server,
    serialize,
)
from dalston.orchestrator.protocol.parameters import ParameterError

ENCODINGS = {
    "linear16": "pcm_s16le",
    "linear32": "pcm_f32le",
    "mulaw": "mulaw",
    "alaw": "alaw",
}
# Whisper needs some silence around what it hears; who asks for less gets this. Milliseconds.
LEAST_SILENCE, MOST_SILENCE = 300, 2_000
CLOSE_CODES = {
    int(CloseCode.NORMAL): 1000,
    int(CloseCode.GOING_AWAY): 1001,
    int(CloseCode.INVALID_PARAMETER): 1008,
    int(CloseCode.TOO_BIG): 1008,
}
_REDACTED = {
    **dict.fromkeys(("true", "numbers", "pci", "ssn", "credit_card", "phone_number"), "numbers"),
    **dict.fromkeys(("email", "email_address"), "emails"),
}
_WITHIN_WORDS = frozenset("'’-.,:/@&")
_UNKNOWN = "only KeepAlive, Finalize, CloseStream and Configure are known"


class _Control(msgspec.Struct):
    type: str
    keyterms: list[str] | None = None


class _Alternative(msgspec.Struct):
    transcript: str
    confidence: float
    words: list["_Word"]
    languages: list[str]


class _Word(msgspec.Struct, omit_defaults=True):
    word: str
    start: float
    end: float
    confidence: float
    punctuated_word: str | None = None


class _Channel(msgspec.Struct):
    alternatives: list[_Alternative]


class _ModelInfo(msgspec.Struct):
    name: str
    version: str
    arch: str = "whisper"


class _About(msgspec.Struct):
    request_id: str
    model_info: _ModelInfo
    model_uuid: str


class _Results(msgspec.Struct, tag="Results"):
    channel_index: tuple[int, int]
    duration: float
    start: float
    is_final: bool
    speech_final: bool
    from_finalize: bool
    channel: _Channel
    metadata: _About


class _SpeechStarted(msgspec.Struct, tag="SpeechStarted"):
    channel: tuple[int, int]
    timestamp: float


class _UtteranceEnd(msgspec.Struct, tag="UtteranceEnd"):
    channel: tuple[int, int]
    last_word_end: float


class _Metadata(msgspec.Struct, tag="Metadata"):
    transaction_key: str
    request_id: str
    sha256: str
    created: str
    duration: float
    channels: int


class _Error(msgspec.Struct, tag="Error"):
    variant: str
    description: str
    message: str


class _ConfigureSuccess(msgspec.Struct, tag="ConfigureSuccess", omit_defaults=True):
    request_id: str
    keyterms: list[str] | None = None


_Said = _Results | _SpeechStarted | _UtteranceEnd | _Metadata | _Error | _ConfigureSuccess
_encoder = msgspec.json.Encoder()
_control = msgspec.json.Decoder(_Control)


def denial(error: Error, request_id: str) -> HttpAnswer:
    """How Deepgram refuses a connection."""
    body, headers = denied(error.code, error.message, request_id)
    return HttpAnswer(STATUS[error.code], body, {**headers, **retry_headers(error)})


def denied(code: str, sentence: str, request_id: str) -> tuple[bytes, dict[str, str]]:
    """How Deepgram says no: body and headers."""
    body = {"err_code": code.upper(), "err_msg": sentence, "request_id": request_id}
    headers = {"dg-error": sentence, "dg-request-id": request_id}
    sane = {name: text for name, text in headers.items() if text.isascii() and text.isprintable()}
    return _encoder.encode(body), sane


def wanted_terms(opening: Opening) -> list[str]:
    """Words that are to be expected."""
    weighed = opening.all("keywords")
    return opening.all("keyterm") + [term.rpartition(":")[0] or term for term in weighed]


def hidden_by(opening: Opening) -> str | None:
    """What is to be taken out of the text. Raises ParameterError."""
    hidden = [one_of("redact", what.lower(), _REDACTED) for what in opening.all("redact")]
    return ",".join(dict.fromkeys(hidden)) or None


@dataclass
class _Heard:
    """How far a channel was told."""

    last_word: float = -1.0  # end of the last one, until its UtteranceEnd was told
    told_until: float = 0.0  # the audio that the finals cover


class Deepgram(ClientProtocol):
    opens_at_once = False
    subprotocols = ("token", "bearer")

    def __init__(self, opening: Opening):
        self._opening = opening
        self._request_id = ""
        self._model = opening.one("model")
        self._about = _About("", _ModelInfo(self._model, ""), "")
        self._formatted = self._speech_events = False
        self._endpoints = opening.one("endpointing").lower() != "false"
        self._multilingual = opening.one("language") == "multi"
        # Silence after the last word of which the client is told, in seconds; 0: it is not.
        self._utterance_end_s = 0.0
        self._channels = 1  # that are told apart
        self._heard = [_Heard()]  # by channel
        self._ended = 0  # of them

    # What is asked.

    def asked(self) -> Asked:
        one = self._opening.one
        if one("callback"):
            raise ParameterError("callback", "", "callback is not possible here")
        self._formatted = any(
            flag(name, one(name)) for name in ("punctuate", "smart_format", "dictation")
        )
        self._speech_events = flag("vad_events", one("vad_events"))
        if text := one("utterance_end_ms"):
            self._utterance_end_s = number("utterance_end_ms", text, 1000, 5000) / 1000
        # Who does not say how the audio is encoded sends it in a container, which says so itself.
        container = None if one("encoding") else "auto"
        encoding = one_of("encoding", one("encoding") or "linear16", ENCODINGS)
        language = one("language", "en")
        detects = self._multilingual or flag("detect_language", one("detect_language"))
        terms, hidden = wanted_terms(self._opening), hidden_by(self._opening)
        config = settings(
            {
                "model": variant(self._model),
                "encoding": encoding,
                "sample_rate": (not container and one("sample_rate"))
                or ("8000" if encoding in ("mulaw", "alaw") else "16000"),
                "channels": (not container and one("channels")) or None,
                "language": "auto" if detects else language,
                "language_detection": "utterance" if self._multilingual else None,
                "interim_results": flag("interim_results", one("interim_results")),
                "word_timestamps": True,
                "min_silence_duration_ms": _silence(one("endpointing")),
                "flushed": True,
                "redact": hidden,
                "ack": self._utterance_end_s > 0,
            },
            terms,
        )
        config, self._channels = apart(config, self._apart(), container)
        self._heard = [_Heard() for _ in range(self._channels)]
        return Asked(config, channels=self._channels, container=container)

    def _apart(self) -> bool:
        one = self._opening.one
        # Of one channel it is allowed, and says nothing.
        return flag("multichannel", one("multichannel")) and one("channels") not in ("", "1")

    def denial(self, error: Error, request_id: str) -> HttpAnswer:
        return denial(error, request_id)

    # From the client.

    def receive(self, frame: Frame) -> Sequence[Frame | Reply]:
        if isinstance(frame, bytes):
            # An empty frame ends the stream, as CloseStream does.
            return (frame,) if frame else (serialize(End()),)
        try:
            control = _control.decode(frame)
        except (msgspec.MsgspecError, UnicodeError, RecursionError):
            raise ClientError(f"a text that is no control message; {_UNKNOWN}") from None
        match control.type:
            case "KeepAlive":
                return (serialize(Ping()),)
            case "Finalize":
                return (serialize(Flush()),)
            case "CloseStream":
                return (serialize(End()),)
            case "Configure":
                return self._configure(control)
            case _:
                raise ClientError(f"a control message of another type; {_UNKNOWN}")

    def _configure(self, control: _Control) -> Sequence[Frame | Reply]:
        told = Reply(_text(_ConfigureSuccess(self._request_id, control.keyterms)))
        if control.keyterms is None:
            return (told,)
        try:
            keywords = settings({}, control.keyterms).keywords
        except ParameterError as error:
            code = "CONFIGURE_KEYTERM_LIMIT_EXCEEDED"
            failure = {
                "type": "ConfigureFailure",
                "request_id": self._request_id,
                "code": code,
                "description": str(error),
            }
            return (Reply(_encoder.encode(failure).decode()),)
        return (serialize(Configure(keywords=keywords)), told)

    # To the client.

    def say(self, message: str) -> Sequence[Frame]:
        said = self._say(message)
        return [_text(what) for what in said]

    def _say(self, message: str) -> Sequence[_Said]:
        known = parse_server(message)
        channel = known.channel or 0
        heard, index = self._heard[channel], (channel, self._channels)
        match known:
            case SessionBegin() if channel:
                return ()
            case SessionBegin():
                self._request_id = known.session_id
                about = _ModelInfo(self._model, known.protocol_version)
                self._about = _About(known.session_id, about, known.config.model_id)
                return ()
            case SpeechStart():
                heard.last_word = -1.0
                return (_SpeechStarted(index, known.timestamp),) if self._speech_events else ()
            case Partial():
                return (self._results(index, known.start, known.end, known.text),)
            case Final():
                return self._final(index, heard, known)
            case Flushed():
                start = max(heard.told_until, 0.0)
                finalized = self._results(index, start, known.at, "", is_final=True)
                finalized.from_finalize = True
                return (finalized,)
            case Ack():
                return self._utterance_end(index, heard, known.processed)
            case SessionEnd():
                self._ended += 1
                return (self._metadata(known),) if self._ended == self._channels else ()
            case Error() if not known.recoverable:
                return (_Error(known.code.upper(), known.message, known.message),)
            case SessionTerminated():
                sentence = f"the session has ended: {known.reason}"
                return (_Error(known.reason.upper(), sentence, sentence),)
            case _:
                return ()

    def _final(self, index: tuple[int, int], heard: _Heard, final: Final) -> Sequence[_Said]:
        words = [word_told(word, self._formatted) for word in final.words or ()]
        heard.told_until = heard.last_word = final.end
        results = self._results(
            index, final.start, final.end, final.text, final.confidence, words, is_final=True
        )
        results.speech_final = self._endpoints
        if self._multilingual:
            results.channel.alternatives[0].languages = [final.language]
        return (results,)

    def _results(
        self,
        index: tuple[int, int],
        start: float,
        end: float,
        text: str,
        confidence: float = 0.0,
        words: Sequence[_Word] = (),
        *,
        is_final: bool = False,
    ) -> _Results:
        shown = text if self._formatted else bare(text)
        channel = _Channel([_Alternative(shown, confidence, list(words), [])])
        duration = round(max(0.0, end - start), 3)
        return _Results(index, duration, start, is_final, False, False, channel, self._about)

    def _utterance_end(
        self, index: tuple[int, int], heard: _Heard, processed: float
    ) -> Sequence[_Said]:
        """Whether there was as much silence since the last word as the client wants to know of."""
        last = heard.last_word
        if not self._utterance_end_s or last < 0 or processed - last < self._utterance_end_s:
            return ()
        heard.last_word = -1.0
        return (_UtteranceEnd(index, last),)

    def _metadata(self, end: SessionEnd) -> _Metadata:
        created = datetime.fromtimestamp(self._opening.clock(), UTC).isoformat()
        return _Metadata(
            "deprecated", self._request_id, "", created, end.total_audio_seconds, self._channels
        )

    def close_code(self, reason: int) -> int:
        return CLOSE_CODES.get(reason, 1011)


def _text(said: _Said) -> str:
    return _encoder.encode(said).decode()


def _silence(text: str) -> int | None:
    """Milliseconds of silence that end an utterance; None: as many as usual."""
    if not text or text.lower() in ("true", "false"):
        return None
    wanted = number("endpointing", text, 0, 600_000)
    return int(min(max(wanted, LEAST_SILENCE), MOST_SILENCE))


def word_told(word: Word, formatted: bool) -> _Word:
    spoken = word.word.strip()
    return _Word(bare(spoken), word.start, word.end, word.confidence, spoken if formatted else None)


def bare(text: str) -> str:
    """Without capitals, and without punctuation but for what stands within words."""
    inside = f" {text} "
    kept = [
        c
        for before, c, after in zip(inside, inside[1:], inside[2:], strict=False)
        if unicodedata.category(c)[0] != "P"
        or (c in _WITHIN_WORDS and before.isalnum() and after.isalnum())
    ]
    return " ".join("".join(kept).lower().split())

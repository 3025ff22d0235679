"""
Deepgram's protocol for voice agents, Flux, as its SDKs and LiveKit speak it: `WS /v2/listen`.

Each utterance is a turn. When it ends is judged by how it sounds (endpointing=smart), if a model
here can tell. An eager final is an EagerEndOfTurn, and TurnResumed takes it back. What has an
effect, and what has none, is in docs/compatibility.md.
Source: https://developers.deepgram.com/reference/speech-to-text/listen-flux
"""

from collections.abc import Sequence
from typing import Any

import msgspec

from dalston.gateway.protocols.deepgram import CLOSE_CODES, ENCODINGS, denial
from dalston.gateway.protocols.protocol import (
    Asked,
    ClientError,
    ClientProtocol,
    HttpAnswer,
    Opening,
    Reply,
)
from dalston.gateway.protocols.vendors import language, number, one_of, settings, variant
from dalston.orchestrator.protocol.messages import (
    Configure,
    Eager,
    End,
    Error,
    Final,
    Flush,
    Frame,
    Partial,
    SessionBegin,
    SessionTerminated,
    SpeechStart,
    Withdrawn,
    parse_server,
    serialize,
)
from dalston.orchestrator.protocol.parameters import ParameterError

_EOT_THRESHOLD = 0.7  # Flux's, for who names none
LONGEST_SILENCE = 5_000  # milliseconds; Flux has up to 10,000


class _Control(msgspec.Struct):
    type: str
    keyterms: list[str] | None = None
    language_hints: list[str] | None = None
    thresholds: dict[str, Any] | None = None


_control = msgspec.json.Decoder(_Control)


class Flux(ClientProtocol):
    opens_at_once = False
    subprotocols = ("token", "bearer")

    def __init__(self, opening: Opening):
        self._opening = opening
        self._request_id = ""
        self._told = 0  # messages
        self._turn = -1  # index of the turn that began last
        self._eot = _EOT_THRESHOLD
        self._eager: float | None = None  # the client wants to be told early, from so much on
        self._keyterms = opening.all("keyterm")
        self._multilingual = opening.one("model").endswith("multi")
        self._flushed = False  # the client has ended the turn

    # What is asked.

    def asked(self) -> Asked:
        one = self._opening.one
        if text := one("eot_threshold"):
            self._eot = number("eot_threshold", text, 0.5, 0.9)
        if text := one("eager_eot_threshold"):
            self._eager = number("eager_eot_threshold", text, 0.3, 0.9)
        timeout = number("eot_timeout_ms", one("eot_timeout_ms", "5000"), 500, 10_000)
        hints = [language(code) for code in self._opening.all("language_hint")]
        config = settings(
            {
                "model": variant(one("model")),
                "encoding": one_of("encoding", one("encoding", "linear16"), ENCODINGS),
                "sample_rate": one("sample_rate", "16000"),
                "language": "auto" if self._multilingual else "en",
                "languages": ",".join(hints) if hints and self._multilingual else None,
                "language_detection": "utterance" if self._multilingual else None,
                "word_timestamps": True,
                "eager": self._eager is not None,
                "endpointing": "smart",
                "turn_threshold": self._eot if one("eot_threshold") else None,
                "max_silence_duration_ms": min(int(timeout), LONGEST_SILENCE),
            },
            self._keyterms,
        )
        return Asked(config)

    def denial(self, error: Error, request_id: str) -> HttpAnswer:
        return denial(error, request_id)

    # From the client.

    def receive(self, frame: Frame) -> Sequence[Frame | Reply]:
        if isinstance(frame, bytes):
            return (frame,) if frame else ()
        try:
            control = _control.decode(frame)
        except (msgspec.MsgspecError, UnicodeError, RecursionError):
            raise ClientError("a text that is no control message") from None
        match control.type:
            case "CloseStream":
                return (serialize(End()),)
            case "ForceEndTurn":
                self._flushed = True
                return (serialize(Flush()),)
            case "Configure":
                return self._configure(control)
            case _:
                raise ClientError("a control message that is not known here")

    def _configure(self, control: _Control) -> Sequence[Frame | Reply]:
        if control.thresholds:
            sentence = "thresholds cannot change once the session has begun"
            return (Reply(self._say_one("ConfigureFailure", description=sentence)),)
        try:
            keywords = settings({}, control.keyterms or ()).keywords
            codes = ",".join(map(language, control.language_hints or ()))
            languages = settings({"languages": codes or None}).languages
        except ParameterError as error:
            return (Reply(self._say_one("ConfigureFailure", description=str(error))),)
        if control.keyterms is not None:
            self._keyterms = control.keyterms
        change = Configure(
            keywords=keywords if control.keyterms is not None else None,
            languages=languages if control.language_hints is not None else None,
        )
        told = self._say_one(
            "ConfigureSuccess",
            request_id=self._request_id,
            thresholds={"eot_threshold": self._eot, "eager_eot_threshold": self._eager},
            keyterms=self._keyterms,
        )
        return (serialize(change), Reply(told))

    # To the client.

    def say(self, message: str) -> Sequence[Frame]:
        known = parse_server(message)
        match known:
            case SessionBegin():
                self._request_id = known.session_id
                return [self._say_one("Connected", request_id=known.session_id)]
            case SpeechStart():
                self._turn, self._flushed = self._turn + 1, False
                at = known.timestamp
                return [self._info("StartOfTurn", at, at, "", [], 0.0)]
            case Partial():
                return [self._info("Update", known.start, known.end, known.text)]
            case Eager():
                confidence = self._eager or 0.0
                span = known.start, known.end
                return [self._info("EagerEndOfTurn", *span, known.text, confidence=confidence)]
            case Withdrawn():
                return [self._info("TurnResumed", 0.0, 0.0, "")]
            case Final():
                return [self._end_of_turn(known)]
            case Error() if not known.recoverable:
                return [self._error(known.code, known.message)]
            case SessionTerminated():
                return [self._error(known.reason, f"the session has ended: {known.reason}")]
            case _:
                return ()

    def _end_of_turn(self, final: Final) -> Frame:
        words = [
            {"word": w.word, "confidence": w.confidence, "start": w.start, "end": w.end}
            for w in final.words or ()
        ]
        more: dict[str, Any] = {"trigger": "manual" if self._flushed else "model"}
        if self._multilingual:
            more["languages"] = [final.language]
        span = final.start, final.end
        return self._info("EndOfTurn", *span, final.text, words, self._eot, **more)

    def _info(
        self,
        event: str,
        start: float,
        end: float,
        text: str,
        words: Sequence[Any] | None = None,
        confidence: float = 0.0,
        **more: Any,
    ) -> Frame:
        if words is None:  # of partials no times are known
            words = [{"word": word, "confidence": 0.0} for word in text.split()]
        return self._say_one(
            "TurnInfo",
            request_id=self._request_id,
            event=event,
            turn_index=max(0, self._turn),
            audio_window_start=start,
            audio_window_end=end,
            transcript=text,
            words=words,
            end_of_turn_confidence=confidence,
            **more,
        )

    def _error(self, code: str, sentence: str) -> Frame:
        return self._say_one("Error", code=code.upper(), description=sentence)

    def _say_one(self, kind: str, **fields: Any) -> str:
        self._told += 1
        about = {"type": kind, "sequence_id": self._told - 1, **fields}
        return msgspec.json.encode(about).decode()

    def close_code(self, reason: int) -> int:
        return CLOSE_CODES.get(reason, 1011)

"""
The protocol of vosk-server, as its clients speak it: `WS /vosk`.

A client may begin with a config, then sends PCM, and at last `{"eof":1}`. It waits for one answer
to each chunk of audio, and for one to the end. So each chunk is answered at once: by a result that
came meanwhile, or else by what is understood of the open utterance so far; and the end is answered
by all that is left. Source: https://github.com/alphacep/vosk-server, websocket/asr_server.py.
"""

from collections import deque
from collections.abc import Sequence
from typing import Any

import msgspec

from dalston.gateway.protocols.protocol import Asked, ClientError, ClientProtocol, Opening, Reply
from dalston.gateway.protocols.vendors import close_code, join, settings, variant
from dalston.orchestrator.protocol.messages import (
    End,
    Error,
    Final,
    Frame,
    Partial,
    SessionConfig,
    SessionEnd,
    SessionTerminated,
    parse_server,
    serialize,
)
from dalston.orchestrator.protocol.parameters import ParameterError

USUAL_RATE = 8_000  # of vosk-server, for who says nothing


class _Config(msgspec.Struct):
    sample_rate: float = USUAL_RATE
    phrase_list: list[str] = []
    words: bool | int = True
    model: str = ""
    max_alternatives: int = 0


class _Message(msgspec.Struct):
    config: _Config | None = None
    eof: int = 0


_message = msgspec.json.Decoder(_Message)


class Vosk(ClientProtocol):
    def __init__(self, opening: Opening):
        self._said = _Config()
        self._language = opening.one("language", "auto")
        self._asked: SessionConfig | None = None
        self._finals = deque[Final]()  # that no chunk was answered with
        self._partial = ""

    def asked(self) -> Asked | None:
        return Asked(self._asked) if self._asked else None

    # From the client.

    def receive(self, frame: Frame) -> Sequence[Frame | Reply]:
        if isinstance(frame, bytes):
            self._begin()
            return (frame, Reply(self._news()))
        try:
            message = _message.decode(frame)
        except (msgspec.MsgspecError, UnicodeError, RecursionError) as error:
            raise ClientError(f"not a message of this protocol: {error}") from None
        if message.config is not None:
            if self._asked:
                raise ClientError("the config cannot change after the first audio")
            self._said = message.config
        if message.eof:
            self._begin()
            return (serialize(End()),)
        return ()

    def _begin(self) -> None:
        if self._asked:
            return
        said = self._said
        try:
            self._asked = settings(
                {
                    "sample_rate": round(said.sample_rate),
                    "language": self._language,
                    "model": variant(said.model),
                    "word_timestamps": bool(said.words),
                },
                [phrase for phrase in said.phrase_list if phrase != "[unk]"],
            )
        except ParameterError as error:
            raise ClientError(str(error)) from None

    def _news(self) -> str:
        if self._finals:
            return self._result([self._finals.popleft()])
        return _text({"partial": self._partial})

    # To the client.

    def say(self, message: str) -> Sequence[Frame]:
        known = parse_server(message)
        match known:
            case Partial():
                self._partial = known.text
            case Final():
                self._partial = ""
                self._finals.append(known)
            case SessionEnd():
                return [self._result(list(self._finals))]
            case Error() if not known.recoverable:
                return [_text({"error": known.message})]
            case SessionTerminated():
                return [_text({"error": f"the session has ended: {known.reason}"})]
            case _:
                pass
        return ()

    def _result(self, finals: Sequence[Final]) -> str:
        spoken = finals[-1].language if finals else ""
        told: dict[str, Any] = {"text": join([final.text for final in finals], spoken)}
        words = [word for final in finals for word in final.words or ()]
        if words:
            told["result"] = [
                {"conf": w.confidence, "end": w.end, "start": w.start, "word": w.word}
                for w in words
            ]
        return _text(told)

    def close_code(self, reason: int) -> int:
        return close_code(reason, 1011)


def _text(told: dict[str, Any]) -> str:
    return msgspec.json.encode(told).decode()

"""
Vapi's custom transcriber: `WS /vapi`.

Vapi says first what it sends, then PCM in binary frames: the customer on channel 0, the assistant
on channel 1. It takes whole texts, with whose they are; it has no word for partials. It ends by
closing the connection. Source: https://docs.vapi.ai/customization/custom-transcriber
"""

from collections.abc import Sequence

import msgspec

from dalston.gateway.protocols.protocol import Asked, ClientError, ClientProtocol, Opening
from dalston.gateway.protocols.vendors import apart, close_code, language, settings
from dalston.orchestrator.protocol.messages import (
    Error,
    Final,
    Frame,
    SessionTerminated,
    parse_server,
)
from dalston.orchestrator.protocol.parameters import ParameterError

_CHANNELS = ("customer", "assistant")


class _Start(msgspec.Struct):
    encoding: str = "linear16"
    container: str = "raw"
    sampleRate: int = 16_000  # noqa: N815
    channels: int = 2


class _Message(msgspec.Struct):
    type: str


class _Response(msgspec.Struct, tag="transcriber-response"):
    transcription: str
    channel: str


class _Error(msgspec.Struct, tag="error"):
    error: str


_message, _start = msgspec.json.Decoder(_Message), msgspec.json.Decoder(_Start)
_encoder = msgspec.json.Encoder()


class Vapi(ClientProtocol):
    def __init__(self, opening: Opening):
        self._opening = opening
        self._asked: Asked | None = None

    def asked(self) -> Asked | None:
        return self._asked

    def receive(self, frame: Frame) -> Sequence[Frame]:
        if isinstance(frame, bytes):
            if self._asked is None:
                raise ClientError("audio came before the start message")
            return (frame,)
        try:
            if _message.decode(frame).type == "start":
                self._begin(_start.decode(frame))
        except (msgspec.MsgspecError, UnicodeError, RecursionError) as error:
            raise ClientError(f"not a message of this protocol: {error}") from None
        except ParameterError as error:
            raise ClientError(str(error)) from None
        return ()  # other messages are about the conversation, not about its sound

    def _begin(self, start: _Start) -> None:
        """Raises ParameterError."""
        if self._asked:
            raise ClientError("the start message came twice")
        if (start.encoding, start.container) != ("linear16", "raw"):
            raise ClientError(f"{start.encoding} in {start.container}; it may be linear16 in raw")
        one = self._opening.one
        wanted = {
            "sample_rate": start.sampleRate,
            "channels": start.channels,
            "language": language(one("language")) if one("language") else "auto",
            "model": one("model") or None,
            "prompt": one("prompt") or None,
            "redact": one("redact") or None,
            "interim_results": False,
            "enable_vad": False,
        }
        config, channels = apart(settings(wanted, self._keywords()), start.channels == 2, None)
        self._asked = Asked(config, channels=channels)

    def _keywords(self) -> list[str]:
        return [word for text in self._opening.all("keywords") for word in text.split(",") if word]

    def say(self, message: str) -> Sequence[Frame]:
        known = parse_server(message)
        match known:
            case Final():
                told = _Response(known.text, _CHANNELS[known.channel or 0])
            case Error() if not known.recoverable or known.code == "no_capacity":
                told = _Error(known.message)
            case SessionTerminated():
                told = _Error(f"the session has ended: {known.reason}")
            case _:
                return ()
        return (_encoder.encode(told).decode(),)

    def close_code(self, reason: int) -> int:
        return close_code(reason, 1011)

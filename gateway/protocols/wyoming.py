"""
Wyoming's events, as Home Assistant and the wyoming package speak them, over TCP.

A frame is one event as it is on the wire: a line of JSON, which says how much follows; then JSON
with the rest of what it says, then audio. A client says `transcribe`, sends audio between
`audio-start` and `audio-stop`, and then waits for a `transcript`. It may do so again on the same
connection. Source: https://github.com/OHF-Voice/wyoming.
"""

from collections.abc import Collection, Sequence
from importlib.metadata import version
from typing import Any

import msgspec

from dalston.gateway.protocols.protocol import Asked, ClientError, ClientProtocol, Opening, Reply
from dalston.gateway.protocols.vendors import join, language, settings, variant
from dalston.orchestrator.protocol.messages import (
    Configure,
    Error,
    Final,
    Flush,
    Flushed,
    Frame,
    SessionConfig,
    SessionEnd,
    SessionTerminated,
    parse_server,
    serialize,
)
from dalston.orchestrator.protocol.parameters import ParameterError
from dalston.triton.contract import LANGUAGES, VARIANTS

_WIDTH = 2  # bytes of a sample, the only one that clients have
_SAYS = "dalston hears live speech"
_MAKER = {"name": "OpenAI", "url": "https://github.com/openai/whisper"}  # of the models


class _Head(msgspec.Struct):
    """The line that an event begins with: how many bytes follow."""

    type: str
    data: dict[str, Any] = {}
    data_length: int | None = None
    payload_length: int | None = None


class _Transcribe(msgspec.Struct):
    name: str | None = None
    language: str | None = None
    transcript_names: list[str] | None = None
    transcript_terms: list[str] | None = None


class _Format(msgspec.Struct):
    rate: int
    width: int
    channels: int


class _Ping(msgspec.Struct):
    text: str | None = None


_head = msgspec.json.Decoder(_Head)
_data = msgspec.json.Decoder(dict[str, Any])


class Wyoming(ClientProtocol):
    # Clients connect before anybody has spoken.
    patience_s = 60.0

    def __init__(self, _: Opening, languages: Collection[str] = LANGUAGES):
        """languages: that models here know."""
        self._languages = languages
        self._wanted = _Transcribe()
        self._format: _Format | None = None
        self._asked: SessionConfig | None = None
        self._chunk: bytes | None = None  # how the last one began, up to its audio
        self._finals = list[Final]()  # since the last transcript

    def asked(self) -> Asked | None:
        return Asked(self._asked) if self._asked else None

    # From the client.

    def receive(self, frame: Frame) -> Sequence[Frame | Reply]:
        event = frame.encode() if isinstance(frame, str) else frame
        if self._chunk and event.startswith(self._chunk):
            return (event[len(self._chunk) :],)
        end = event.find(b"\n")
        try:
            known = _head.decode(event[:end] if end >= 0 else event)
            audio = end + 1 + (known.data_length or 0)
            said = known.data
            if known.data_length:
                said = said | _data.decode(event[end + 1 : audio])
            return self._follow(known.type, said, event, audio)
        except (msgspec.MsgspecError, UnicodeError, RecursionError) as error:
            raise ClientError(f"not an event of Wyoming: {error}") from None
        except ParameterError as error:
            raise ClientError(str(error)) from None

    def _follow(
        self, kind: str, said: dict[str, Any], event: bytes, audio: int
    ) -> Sequence[Frame | Reply]:
        match kind:
            case "audio-chunk":
                self._begin(msgspec.convert(said, _Format))
                self._chunk = event[:audio]
                return (event[audio:],)
            case "audio-start":
                self._begin(msgspec.convert(said, _Format))
                return ()
            case "audio-stop" if self._asked:
                return (serialize(Flush()),)
            case "audio-stop":
                return (Reply(_event("transcript", {"text": ""})),)
            case "transcribe":
                return self._transcribe(msgspec.convert(said, _Transcribe))
            case "describe":
                return (Reply(_event("info", self._info())),)
            case "ping":
                text = msgspec.convert(said, _Ping).text
                return (Reply(_event("pong", {} if text is None else {"text": text})),)
            case _:
                return ()  # as servers are expected to do with what they do not know

    def _begin(self, audio: _Format) -> None:
        if audio == self._format:
            return
        if self._format:
            raise ClientError("the format of audio cannot change on one connection")
        if audio.width != _WIDTH:
            raise ClientError(f"audio of {audio.width} bytes a sample; it may be {_WIDTH}")
        self._format = audio
        self._asked = self._settings(audio)

    def _settings(self, audio: _Format) -> SessionConfig:
        """Raises ParameterError."""
        wanted = self._wanted
        return settings(
            {
                "sample_rate": audio.rate,
                "channels": audio.channels,
                "language": language(wanted.language) if wanted.language else "auto",
                "model": variant(wanted.name or ""),
                "interim_results": False,
                "enable_vad": False,
                "flushed": True,
            },
            [*(wanted.transcript_names or ()), *(wanted.transcript_terms or ())],
        )

    def _transcribe(self, wanted: _Transcribe) -> Sequence[Frame]:
        self._wanted = wanted
        if self._format is None or self._asked is None:
            return ()
        asked, before = self._settings(self._format), self._asked
        if (asked.language, asked.keywords) == (before.language, before.keywords):
            return ()
        self._asked = asked
        return (serialize(Configure(language=asked.language, keywords=asked.keywords)),)

    def _info(self) -> dict[str, Any]:
        about = {"attribution": _MAKER, "installed": True, "version": version("dalston")}
        codes = sorted(self._languages)
        models = [
            {"name": name, "description": f"Whisper, {name}", "languages": codes, **about}
            for name in VARIANTS
        ]
        program = {"name": "dalston", "description": _SAYS, "models": models, **about}
        return {"asr": [{**program, "supports_transcript_streaming": True}]}

    # To the client.

    def say(self, message: str) -> Sequence[Frame]:
        known = parse_server(message)
        match known:
            case Final():
                return self._final(known)
            case Flushed():
                return self._transcript()
            case Error():
                return [_event("error", {"text": known.message, "code": known.code})]
            case SessionEnd() if known.reason != "client_end":
                sentence = f"the session has ended: {known.reason}"
                return [_event("error", {"text": sentence, "code": known.reason})]
            case SessionTerminated():
                sentence = f"the session has ended: {known.reason}"
                return [_event("error", {"text": sentence, "code": known.reason})]
            case _:
                return ()

    def _final(self, final: Final) -> Sequence[Frame]:
        before = join([known.text for known in self._finals], final.language)
        self._finals.append(final)
        whole = join([known.text for known in self._finals], final.language)
        chunk = _event("transcript-chunk", {"text": whole[len(before) :]})
        if before:
            return [chunk]
        return [_event("transcript-start", {"language": final.language}), chunk]

    def _transcript(self) -> Sequence[Frame]:
        finals, self._finals = self._finals, []
        if not finals:
            return [_event("transcript", {"text": ""})]
        spoken = finals[-1].language
        text = join([final.text for final in finals], spoken)
        said = {"text": text, "language": spoken}
        return [_event("transcript", said), _event("transcript-stop", {})]

    def close_code(self, reason: int) -> int:
        return reason


def _event(kind: str, said: dict[str, Any]) -> str:
    """As it is on the wire. What it says stands after the line: readers of lines have limits."""
    if not said:
        return f'{{"type":"{kind}"}}\n'
    data = msgspec.json.encode(said)
    return f'{{"type":"{kind}","data_length":{len(data)}}}\n{data.decode()}'

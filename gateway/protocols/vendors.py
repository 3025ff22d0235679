"""
What clients of other services have in common: how their settings become ours.
"""

import base64
import binascii
from collections.abc import Mapping, Sequence
from typing import TypeVar, get_args

import msgspec
from langcodes import Language

from dalston.gateway.protocols.protocol import ClientError, Container
from dalston.orchestrator.protocol.close_codes import CloseCode
from dalston.orchestrator.protocol.messages import Error, ErrorCode, SessionConfig, quote
from dalston.orchestrator.protocol.parameters import ParameterError, session_config
from dalston.triton.contract import SPACELESS, Variant

T = TypeVar("T")

# HTTP's status for a caller who gets no session.
STATUS: Mapping[ErrorCode, int] = {
    "forbidden": 403,
    "internal_error": 500,
    "invalid_audio": 400,
    "invalid_message": 400,
    "invalid_parameter": 400,
    "lag_exceeded": 503,
    "language_unsupported": 400,
    "no_capacity": 503,
    "rate_limit": 429,
    "session_timeout": 408,
    "slow_reader": 408,
    "unauthorized": 401,
    "worker_lost": 503,
}


# Those of our close codes that the WebSocket protocol has as well, and that a server may send.
_CLOSE_CODES = {
    int(code): int(code)
    for code in (
        CloseCode.NORMAL,
        CloseCode.GOING_AWAY,
        CloseCode.TOO_BIG,
        CloseCode.INTERNAL,
        CloseCode.NO_CAPACITY,
    )
}


def close_code(reason: int, otherwise: int) -> int:
    """The code for a reason, where clients know none of ours."""
    return _CLOSE_CODES.get(reason, otherwise)


def retry_headers(error: Error) -> dict[str, str]:
    """When to come back, as HTTP says it."""
    return {"Retry-After": str(error.retry_after)} if error.retry_after else {}


def variant(model: str) -> str:
    """The variant for a model's name: one of ours, or the usual one for somebody else's."""
    return model if model in get_args(Variant) else SessionConfig().model


def settings(
    named: Mapping[str, str | float | bool | None], keywords: Sequence[str] = ()
) -> SessionConfig:
    """A session's settings from values of any type, None for what is not said. Raises
    ParameterError."""
    texts = {name: _text(value) for name, value in named.items() if value is not None}
    if keywords:
        texts["keywords"] = ",".join(word.replace(",", " ") for word in keywords)
    config, _ = session_config(texts)
    return config


def _text(value: str | float | bool) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return str(value)


def apart(
    config: SessionConfig, wanted: bool, container: Container | None
) -> tuple[SessionConfig, int]:
    """The settings of one channel, and how many there are, if each is to have its own session.
    Raises ParameterError."""
    if not wanted:
        return config, 1
    if container:
        sentence = "the channels of a container are mixed: multichannel=true needs an encoding"
        raise ParameterError("multichannel", "true", sentence)
    if config.channels == 1:
        raise ParameterError("multichannel", "true", "multichannel=true needs channels=2")
    return msgspec.structs.replace(config, channels=1), config.channels


def number(name: str, text: str, lowest: float, highest: float) -> float:
    """A number that somebody sent as text. Raises ParameterError."""
    try:
        value = float(text)
    except ValueError:
        value = float("nan")
    if not lowest <= value <= highest:
        sentence = f"{name}={text[:50]!r} is not allowed; it may be {lowest:g} to {highest:g}"
        raise ParameterError(name, text, sentence)
    return value


def flag(name: str, text: str) -> bool:
    """A truth that somebody sent as text. Raises ParameterError."""
    if text.lower() in ("true", "1"):
        return True
    if text.lower() in ("false", "0", ""):
        return False
    raise ParameterError(name, text)


def one_of(name: str, text: str, allowed: Mapping[str, T]) -> T:
    """What one of these words means. Raises ParameterError."""
    if text in allowed:
        return allowed[text]
    sentence = f"{name}={quote(text)!r} is not possible here; it may be {', '.join(allowed)}"
    raise ParameterError(name, text, sentence)


def audio(text: str) -> bytes:
    """The bytes that somebody sent as Base64. Raises ClientError."""
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise ClientError("the audio is no Base64") from None


# What ISO and the rest of the world call otherwise than Whisper.
_WHISPERS = {"cmn": "zh", "fil": "tl", "jv": "jw", "nb": "no"}


def language(code: str) -> str:
    """Whisper's code of a language, from a tag of BCP 47 or a code of ISO 639-1 or 639-3."""
    try:
        known = Language.get(code).language or code
    except ValueError:
        return code
    return _WHISPERS.get(known, known)


def alpha3(code: str) -> str:
    """The code of ISO 639-3 for one of Whisper's."""
    try:
        return Language.get({"jw": "jv"}.get(code, code)).to_alpha3()
    except (LookupError, ValueError):
        return code


def join(texts: Sequence[str], spoken: str = "") -> str:
    """What was said in several pieces, as one text. spoken: its language."""
    return ("" if spoken in SPACELESS else " ").join(text for text in texts if text)

"""
Query parameters -> a SessionConfig, or a sentence that says which of them is wrong.
"""

import re
from collections.abc import Collection, Mapping
from typing import get_args

import msgspec

from dalston.orchestrator.messages import Encoding, ErrorCode, Notice, SessionConfig, quote
from dalston.triton.contract import LANGUAGES, VARIANTS

# Other parameters of the stream's URL; not how a session listens, but who and where it is.
OTHER = {
    "api_key",
    "epoch",
    "last_segment_id",
    "overflow",
    "request_id",
    "resume",
    "resume_session_id",
    "session_id",
}
ALLOWED = {
    "model": ", ".join(VARIANTS),
    "encoding": ", ".join(get_args(Encoding)),
    "sample_rate": "8000 to 48000 (Hertz)",
    "channels": "1 or 2",
    "language": "auto, or an ISO 639-1 code that Whisper knows, such as en",
    "endpointing": "auto, smart, manual",
    "vad_threshold": "0 to 1",
    "min_speech_duration_ms": "50 to 2000",
    "min_silence_duration_ms": "50 to 2000",
    "turn_threshold": "0 to 1",
    "turn_silence_ms": "200 to 5000",
    "max_silence_duration_ms": "200 to 5000",
    "prefix_padding_ms": "0 to 1000",
    "max_utterance_duration": "5 to 30 (seconds)",
}
_FIELDS = [name for name in SessionConfig.__struct_fields__ if name != "model_id"]


class ParameterError(ValueError):
    """Says which parameter, and what is allowed."""

    def __init__(self, name: str, value: str):
        allowed = ALLOWED.get(name, "true or false")
        super().__init__(f"{name}={quote(value)!r} is not allowed; it may be {allowed}")
        self.code: ErrorCode = "language_unsupported" if name == "language" else "invalid_parameter"


def normal_language(code: str) -> str:
    """Clients send regions ("en-US"), models know languages ("en")."""
    return re.split("[-_]", code.strip().lower())[0]


def session_config(query: Mapping[str, str]) -> tuple[SessionConfig, list[Notice]]:
    """The settings, defaults for what is not named, and what to warn of.

    Raises ParameterError.
    """
    known = {name: query[name] for name in _FIELDS if name in query}
    if "language" in known:
        known["language"] = normal_language(known["language"])
        if known["language"] not in ("auto", *LANGUAGES):
            raise ParameterError("language", query["language"])
    for name, value in known.items():  # one by one: the error has to name the parameter
        try:
            msgspec.convert({name: value}, SessionConfig, strict=False)
        except msgspec.ValidationError:
            raise ParameterError(name, value) from None
    warnings = [
        Notice("unknown_parameter", f"the parameter {name!r} is not known and has no effect")
        for name in query
        if name not in _FIELDS and name not in OTHER
    ]
    return msgspec.convert(known, SessionConfig, strict=False), warnings


def choose_endpointing(
    config: SessionConfig, judges_turns: bool
) -> tuple[SessionConfig, list[Notice]]:
    """How utterances end: as asked for, or by silence where no model judges turns, with a
    warning."""
    if config.endpointing != "smart" or judges_turns:
        return config, []
    sentence = "no model of this server judges the end of turns; silence ends utterances instead"
    fallback = msgspec.structs.replace(config, endpointing="auto")
    return fallback, [Notice("endpointing_fallback", sentence)]


def choose_variant(
    config: SessionConfig, languages: Mapping[str, Collection[str]]
) -> tuple[str, list[Notice]]:
    """The variant that serves this session, of those loaded with the languages they know.

    It is the one asked for; another if that is not loaded or does not know the language, with a
    warning. A model of one language cannot detect any. Raises ParameterError if none will do.
    """

    def serves(variant: str) -> bool:
        known = languages.get(variant, ())
        return config.language in known or (config.language == "auto" and len(known) > 1)

    if serves(config.model):
        return config.model, []
    others = [variant for variant in VARIANTS if serves(variant)]
    if not others and config.language == "auto" and config.model in languages:
        return config.model, []  # the only one there is: it will hear its own language
    if not others:
        raise ParameterError("language", config.language)
    if config.model not in languages:
        missing = "is not loaded"
    elif config.language == "auto":
        missing = "cannot detect languages"
    else:
        missing = f"does not know {config.language!r}"
    sentence = f"{config.model!r} {missing}; {others[0]!r} is used instead"
    return others[0], [Notice("model_fallback", sentence)]

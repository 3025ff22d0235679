"""
Query parameters -> a SessionConfig, or a sentence that says which of them is wrong.

What a client wants to be recognised can be names of people: neither prompt nor keywords are
quoted, here or in any log.
"""

import re
from collections.abc import Collection, Mapping
from typing import Any, get_args

import msgspec

from dalston.orchestrator.protocol.messages import (
    LONGEST_KEYWORD,
    LONGEST_PROMPT,
    MOST_KEYWORDS,
    MOST_REDACTIONS,
    Encoding,
    ErrorCode,
    LanguageDetection,
    Notice,
    SessionConfig,
    quote,
)
from dalston.triton.contract import LANGUAGES, VARIANTS, Task

ALLOWED = {
    "model": ", ".join(VARIANTS),
    "encoding": ", ".join(get_args(Encoding)) + "; from gateways also webm, ogg, mp4, auto",
    "sample_rate": "8000 to 48000 (Hertz)",
    "channels": "1 or 2",
    "language": "auto, or an ISO 639-1 code that Whisper knows, such as en",
    "languages": "ISO 639-1 codes that Whisper knows, with commas between them, such as en,de",
    "language_detection": ", ".join(get_args(LanguageDetection)),
    "task": ", ".join(get_args(Task)),
    "prompt": f"text of at most {LONGEST_PROMPT} characters",
    "keywords": f"at most {MOST_KEYWORDS} names and terms with commas between them, each of at "
    f"most {LONGEST_KEYWORD} characters in one line",
    "endpointing": "auto, smart, manual",
    "vad_threshold": "0 to 1",
    "min_speech_duration_ms": "50 to 2000",
    "min_silence_duration_ms": "50 to 2000",
    "turn_threshold": "0 to 1",
    "turn_silence_ms": "200 to 5000",
    "max_silence_duration_ms": "200 to 5000",
    "prefix_padding_ms": "0 to 1000",
    "max_utterance_duration": "5 to 30 (seconds)",
    "redact": f"numbers, emails, and names of this server's patterns; at most {MOST_REDACTIONS}, "
    "with commas between them",
}
# So small a threshold is one of loudness elsewhere.
LOUDNESS = 0.05
# What is not said by clients is found out, or said by gateways alone.
_FIELDS = [name for name in SessionConfig.__struct_fields__ if name not in ("model_id", "recorded")]
_LISTS = ("languages", "keywords", "redact")
_PRIVATE = ("prompt", "keywords")
_OF_LANGUAGE = ("language", "languages")


class ParameterError(ValueError):
    """Says which parameter, and what is allowed, or by `why` what is wrong with it."""

    def __init__(self, name: str, value: str, why: str = ""):
        allowed = ALLOWED.get(name, "true or false")
        shown = name if name in _PRIVATE else f"{name}={quote(value)!r}"
        super().__init__(why or f"{shown} is not allowed; it may be {allowed}")
        self.name = name
        self.code: ErrorCode = (
            "language_unsupported" if name in _OF_LANGUAGE and not why else "invalid_parameter"
        )


def normal_language(code: str) -> str:
    """Clients send regions ("en-US"), models know languages ("en")."""
    return re.split("[-_]", code.strip().lower())[0]


def session_config(query: Mapping[str, str]) -> tuple[SessionConfig, list[Notice]]:
    """The settings, defaults for what is not named, and what to warn of.

    Raises ParameterError.
    """
    known: dict[str, Any] = {name: query[name] for name in _FIELDS if name in query}
    if "language" in known:
        known["language"] = normal_language(known["language"])
        if known["language"] not in ("auto", *LANGUAGES):
            raise ParameterError("language", query["language"])
    for name in _LISTS:
        if name in known:
            items = (item.strip() for item in query[name].split(","))
            known[name] = [item for item in items if item]
    if "languages" in known:
        codes = dict.fromkeys(map(normal_language, known["languages"]))
        if not codes or not codes.keys() <= set(LANGUAGES):
            raise ParameterError("languages", query["languages"])
        known["languages"] = list(codes)
    for name, value in known.items():  # one by one: the error has to name the parameter
        try:
            msgspec.convert({name: value}, SessionConfig, strict=False)
        except msgspec.ValidationError:
            raise ParameterError(name, query[name]) from None
    warnings = [
        Notice("unknown_parameter", f"the parameter {name!r} is not known and has no effect")
        for name in query
        if name not in _FIELDS
    ]
    config = msgspec.convert(known, SessionConfig, strict=False)
    if "vad_threshold" in known:
        warnings += hints(config)
    if why := contradiction(config):
        raise ParameterError("language", config.language, why)
    return config, warnings


def hints(config: SessionConfig) -> list[Notice]:
    """What is allowed and probably not meant."""
    if config.vad_threshold > LOUDNESS:
        return []
    sentence = (
        f"vad_threshold={config.vad_threshold:g} is a probability of speech, of which nearly every "
        "sound has as much; 0.5 is usual. Other servers mean loudness by so small a number"
    )
    return [Notice("low_vad_threshold", sentence)]


def contradiction(config: SessionConfig) -> str:
    """Why no model at all can do this, in a sentence; else empty."""
    if config.language == "auto":
        return ""
    fixed = f"the language is {config.language!r}"
    if config.languages:
        return f"{fixed}, and languages are given: those are to choose from with language=auto"
    if config.language_detection == "utterance":
        return f"{fixed}, and language_detection=utterance: nothing is detected but with auto"
    return ""


def objection(
    config: SessionConfig, languages: Collection[str], translates: bool
) -> tuple[ErrorCode, str] | None:
    """Why a model that knows these languages, and translates or not, cannot do this."""
    if why := contradiction(config):
        return "invalid_parameter", why
    asked = config.languages or ((config.language,) if config.language != "auto" else ())
    if unknown := [code for code in asked if code not in languages]:
        sentence = f"this model does not know the language {quote(unknown[0])!r}"
        return "language_unsupported", sentence
    if config.task == "translate" and not translates:
        return "invalid_parameter", "this model cannot translate"
    return None


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
    config: SessionConfig,
    languages: Mapping[str, Collection[str]],
    translating: Collection[str] = (),
) -> tuple[str, list[Notice]]:
    """The variant that serves this session, of those loaded with the languages they know;
    translating: those of them that can.

    It is the one asked for; another if that is not loaded or cannot do what is asked, with a
    warning. A model of one language cannot detect any. Raises ParameterError if none will do.
    """

    def able(variant: str) -> bool:
        known = languages.get(variant)
        return known is not None and objection(config, known, variant in translating) is None

    def serves(variant: str) -> bool:
        fixed = config.language != "auto" or config.languages
        return able(variant) and bool(fixed or len(languages[variant]) > 1)

    if serves(config.model):
        return config.model, []
    others = [variant for variant in VARIANTS if serves(variant)]
    if not others and able(config.model):
        return config.model, []  # the only one there is: it will hear its own language
    if not others:
        if config.task == "translate" and not set(languages) & set(translating):
            raise ParameterError("task", "translate", "no model here can translate")
        name = "languages" if config.languages else "language"
        raise ParameterError(name, ",".join(config.languages) or config.language)
    if config.model not in languages:
        missing = "is not loaded"
    elif config.task == "translate" and config.model not in translating:
        missing = "cannot translate"
    elif config.languages:
        missing = f"does not know all of {', '.join(config.languages)}"
    elif config.language == "auto":
        missing = "cannot detect languages"
    else:
        missing = f"does not know {config.language!r}"
    sentence = f"{config.model!r} {missing}; {others[0]!r} is used instead"
    return others[0], [Notice("model_fallback", sentence)]

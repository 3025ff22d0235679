"""
The session object of OpenAI's Realtime protocol, in its present shape and in that of its beta, and
the settings of ours that it means.
"""

from collections.abc import Mapping
from typing import Any, Literal, TypeVar

import msgspec
from msgspec import UNSET, Struct, UnsetType

from dalston.gateway.protocols.vendors import language, settings, variant
from dalston.orchestrator.protocol.messages import Configure, Encoding, SessionConfig

T = TypeVar("T", bound=Struct)

RATE = 24_000  # of PCM, in both shapes
_FORMATS: Mapping[str, tuple[Encoding, int]] = {
    "audio/pcm": ("pcm_s16le", RATE),
    "audio/pcmu": ("mulaw", 8_000),
    "audio/pcma": ("alaw", 8_000),
}
# Silence that ends every turn, in milliseconds: OpenAI's are 8, 4 and 2 s, and ours 5 at most.
_EAGERNESS = {"low": 5_000, "auto": 4_000, "medium": 4_000, "high": 2_000}
_LOGPROBS = "item.input_audio_transcription.logprobs"


class _Format(Struct, frozen=True):
    type: Literal["audio/pcm", "audio/pcmu", "audio/pcma"] = "audio/pcm"
    rate: int | None = None


class _Transcription(Struct, frozen=True):
    model: str | None | UnsetType = UNSET
    language: str | None | UnsetType = UNSET
    languages: list[str] | None | UnsetType = UNSET
    prompt: str | None | UnsetType = UNSET
    keywords: list[str] | None | UnsetType = UNSET


class _Turns(Struct, frozen=True):
    type: Literal["server_vad", "semantic_vad"] | UnsetType = UNSET
    threshold: float | None | UnsetType = UNSET
    prefix_padding_ms: int | None | UnsetType = UNSET
    silence_duration_ms: int | None | UnsetType = UNSET
    eagerness: Literal["low", "medium", "high", "auto"] | None | UnsetType = UNSET


class _Input(Struct, frozen=True):
    """What is not set stays as it is; null is the usual, or none at all."""

    format: _Format | None | UnsetType = UNSET
    transcription: _Transcription | None | UnsetType = UNSET
    turn_detection: _Turns | None | UnsetType = UNSET
    noise_reduction: Any = UNSET


class _Audio(Struct, frozen=True):
    input: _Input = _Input()


class _Session(Struct, frozen=True):
    type: Literal["transcription"] = "transcription"
    include: list[str] | None | UnsetType = UNSET
    audio: _Audio = _Audio()


class _BetaSession(Struct, frozen=True):
    include: list[str] | None | UnsetType = UNSET
    input_audio_format: Literal["pcm16", "g711_ulaw", "g711_alaw"] | UnsetType = UNSET
    input_audio_transcription: _Transcription | None | UnsetType = UNSET
    turn_detection: _Turns | None | UnsetType = UNSET
    input_audio_noise_reduction: Any = UNSET


_BETA_FORMATS: Mapping[str, _Format] = {
    "pcm16": _Format("audio/pcm"),
    "g711_ulaw": _Format("audio/pcmu"),
    "g711_alaw": _Format("audio/pcma"),
}
_SERVER_VAD = _Turns("server_vad", 0.5, 300, 500)
_SEMANTIC_VAD = _Turns("semantic_vad", eagerness="auto")


class SettingsError(ValueError):
    """Something in a session object cannot be followed; says why."""

    def __init__(self, param: str, sentence: str):
        super().__init__(sentence)
        self.param = param


class Settings:
    """What one client has asked for so far."""

    def __init__(self, id: str, model: str, beta: bool):
        self._id, self._beta = id, beta
        self._format = _Format()
        self._said = _Transcription(model=model or UNSET)
        self._turns: _Turns | None = _SERVER_VAD
        self._noise_reduction: Any = None
        self._include = list[str]()
        self._config = self.config()
        shape = "transcription_session" if beta else "session"
        self.created, self.updated = f"{shape}.created", f"{shape}.updated"
        self.item_added = f"conversation.item.{'created' if beta else 'added'}"

    @property
    def manual(self) -> bool:
        """Whether the client commits, and silence ends nothing."""
        return self._turns is None

    @property
    def logprobs(self) -> bool:
        return _LOGPROBS in self._include

    def config(self) -> SessionConfig:
        """Raises ParameterError."""
        encoding, rate = _FORMATS[self._format.type]
        said, turns = self._said, self._turns or _Turns()
        several = [language(code) for code in said.languages or ()]
        semantic = turns.type == "semantic_vad"
        endpointing = "smart" if semantic else "auto" if self._turns else "manual"
        return settings(
            {
                "model": variant(said.model or ""),
                "encoding": encoding,
                "sample_rate": rate,
                "language": language(said.language) if said.language and not several else "auto",
                "languages": ",".join(several) or None,
                "prompt": said.prompt or None,
                "word_timestamps": self.logprobs,
                "endpointing": endpointing,
                "vad_threshold": _known(turns.threshold),
                "prefix_padding_ms": _known(turns.prefix_padding_ms),
                "min_silence_duration_ms": _known(turns.silence_duration_ms),
                "max_silence_duration_ms": _EAGERNESS[turns.eagerness or "auto"]
                if semantic
                else None,
                "flushed": True,
            },
            said.keywords or (),
        )

    def update(self, session: msgspec.Raw, begun: bool, heard: bool) -> Configure | None:
        """Follow a session object; what it does not name stays. begun: whether the session was
        asked for already; then what it has to be told is returned. heard: whether it has any audio.
        Raises SettingsError and ParameterError, and has changed nothing then."""
        before = self.__dict__.copy()
        try:
            self._follow(self._read(session))
            config = self.config()
            change = self._change(config, heard) if begun else None
        except BaseException:
            self.__dict__ = before
            raise
        self._config = config
        return change

    def _read(self, session: msgspec.Raw) -> _Session:
        try:
            if not self._beta and b'"input_audio_format"' not in bytes(session):
                return msgspec.json.decode(session, type=_Session)
            beta = msgspec.json.decode(session, type=_BetaSession)
        except msgspec.ValidationError as error:
            sentence, _, where = str(error).partition(" - at `$")
            raise SettingsError("session" + where.rstrip("`"), sentence) from None
        form = beta.input_audio_format
        given = _Input(
            _BETA_FORMATS[form] if form else UNSET,
            beta.input_audio_transcription,
            beta.turn_detection,
            beta.input_audio_noise_reduction,
        )
        return _Session(include=beta.include, audio=_Audio(given))

    def _follow(self, session: _Session) -> None:
        given = session.audio.input
        if session.include is not UNSET:
            self._include = session.include or []
        if given.format:
            self._format = given.format
            rate = _FORMATS[self._format.type][1]
            if self._format.rate not in (None, rate):
                where = "session.audio.input.format.rate"
                raise SettingsError(where, f"{self._format.type} has {rate} Hertz here")
        if given.transcription is None:
            self._said = _Transcription()
        elif given.transcription is not UNSET:
            self._said = _merged(self._said, given.transcription)
        if given.turn_detection is None:
            self._turns = None
        elif given.turn_detection is not UNSET:
            self._turns = self._merged_turns(given.turn_detection)
        if given.noise_reduction is not UNSET:
            self._noise_reduction = given.noise_reduction

    def _merged_turns(self, turns: _Turns) -> _Turns:
        kind = turns.type or (self._turns.type if self._turns else UNSET) or "server_vad"
        if self._turns and self._turns.type == kind:
            return _merged(self._turns, turns)
        return _merged(_SERVER_VAD if kind == "server_vad" else _SEMANTIC_VAD, turns)

    def _change(self, config: SessionConfig, heard: bool) -> Configure | None:
        old, new = (msgspec.structs.asdict(known) for known in (self._config, config))
        changed = {name: new[name] for name in new if new[name] != old[name]}
        if changed.keys() & {"encoding", "sample_rate"}:
            where = "session.audio.input.format"
            raise SettingsError(where, "the format cannot change once the session has begun")
        if "endpointing" in changed and (
            heard or "smart" in (old["endpointing"], new["endpointing"])
        ):
            where = "session.audio.input.turn_detection"
            raise SettingsError(where, "its type cannot change once the session has begun")
        named = {name: changed[name] for name in Configure.__struct_fields__ if name in changed}
        return Configure(**named) if named else None

    def told(self) -> dict[str, Any]:
        """The session as the client is told of it."""
        about = {"id": self._id, "object": "realtime.transcription_session", "expires_at": 0}
        said = {"model": None, "language": None, "prompt": "", **msgspec.to_builtins(self._said)}
        include = self._include or None
        if self._beta:
            names = {known.type: name for name, known in _BETA_FORMATS.items()}
            return {
                **about,
                "input_audio_format": names[self._format.type],
                "input_audio_transcription": said,
                "turn_detection": self._turns,
                "input_audio_noise_reduction": self._noise_reduction,
                "include": include,
            }
        form: dict[str, Any] = {"type": self._format.type}
        if self._format.type == "audio/pcm":
            form["rate"] = RATE
        given = {
            "format": form,
            "transcription": said,
            "noise_reduction": self._noise_reduction,
            "turn_detection": self._turns,
        }
        return {**about, "type": "transcription", "include": include, "audio": {"input": given}}


def _known(value: float | UnsetType | None) -> float | None:
    return None if value is UNSET else value


def _merged(old: T, new: T) -> T:
    """The old one with all that the new one sets; null means the usual."""
    fields = msgspec.structs.asdict(new).items()
    changed = {name: value for name, value in fields if value is not UNSET}
    return msgspec.structs.replace(old, **changed)

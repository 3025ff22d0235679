"""
The gateway's settings: environment variables, read once.
"""

import os
from collections.abc import Callable
from ipaddress import ip_network
from pathlib import Path
from typing import Annotated, Literal, Self, get_args
from urllib.parse import urlsplit

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    SecretStr,
    field_validator,
    model_validator,
)
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from dalston.gateway.protocols.protocol import Overflow
from dalston.orchestrator.capacity.slots import KEPT_S, Strategy
from dalston.orchestrator.process.environment import LOOPBACK, HeaderSecret, with_password
from dalston.orchestrator.process.logs import Format
from dalston.orchestrator.protocol.messages import LONGEST_FRAME, LONGEST_MESSAGE, LONGEST_TEXT


def _split(value: object) -> object:
    """What stands between commas."""
    return [part.strip() for part in value.split(",")] if isinstance(value, str) else value


def _host(value: str) -> str:
    """Raises ValueError."""
    if not value or set(value) & set("/:@ "):
        raise ValueError(f"{value!r} is no host name, such as speech.example or *.example")
    return value.lower()


def _origin(value: str) -> str:
    """Raises ValueError."""
    parts = urlsplit(value)
    if value in ("*", "null") or (parts.scheme and value == f"{parts.scheme}://{parts.netloc}"):
        return value.lower()
    raise ValueError(f"{value!r} is no origin, such as https://app.example")


def _network(value: str) -> str:
    """Raises ValueError."""
    if value != "*":
        ip_network(value)
    return value


def _each(check: Callable[[str], str]) -> AfterValidator:
    return AfterValidator(lambda values: [check(value) for value in values])


_Hosts = Annotated[list[str], NoDecode, BeforeValidator(_split), _each(_host)]
_Origins = Annotated[list[str], NoDecode, BeforeValidator(_split), _each(_origin)]
_Networks = Annotated[list[str], NoDecode, BeforeValidator(_split), _each(_network)]


class GatewaySettings(BaseSettings):
    model_config = SettingsConfigDict(populate_by_name=True)

    redis_url: str = Field(alias="REDIS_URL", repr=False)
    redis_password: SecretStr | None = Field(None, alias="REDIS_PASSWORD")  # if the URL has none
    host: str = Field("127.0.0.1", alias="DALSTON_HOST")  # the address to listen at
    port: int = Field(8000, alias="DALSTON_PORT", ge=0, le=65_535)
    # Of a container, whose host is none that its callers know: the address that its port is
    # published at.
    published: str | None = Field(None, alias="DALSTON_PUBLISHED", min_length=1)
    # A file descriptor that listens already, inherited; it is used instead of host and port.
    listener: int | None = Field(None, alias="DALSTON_LISTENER", ge=3)
    # Where Wyoming's clients come in (10300 is usual), at the same address, and the key or token
    # that all of them count as: their protocol has none.
    wyoming_port: int | None = Field(None, alias="DALSTON_WYOMING_PORT", ge=1, le=65_535)
    wyoming_key: HeaderSecret | None = Field(None, alias="DALSTON_WYOMING_KEY")
    # How long a session waits for another worker when its own is lost, and how long a worker may
    # say nothing, pings included, until it counts as lost.
    outage_seconds: float = Field(30.0, alias="OUTAGE_SECONDS", gt=0)
    worker_silent_seconds: float = Field(2.0, alias="DALSTON_WORKER_SILENT_SECONDS", gt=0)
    drain_seconds: float = Field(30.0, alias="DRAIN_SECONDS", ge=0)
    # Which of the workers that have room gets a session.
    strategy: Strategy = Field("least_loaded", alias="DALSTON_STRATEGY")
    # Whether Redis keeps what sessions are continued from, words included, and for how long after
    # their gateway last spoke of them. Gateways speak of each every 7.5 s.
    resume: bool = Field(True, alias="DALSTON_RESUME")
    resume_seconds: float = Field(KEPT_S, alias="DALSTON_RESUME_SECONDS", ge=10, le=86_400)
    # What a caller gets when no slot is free: an answer at once, a place in line, or the smaller
    # variant.
    overflow: Overflow = Field("reject", alias="OVERFLOW_STRATEGY")
    # Which of these a caller may ask for instead.
    overflow_allowed: Annotated[tuple[Overflow, ...], NoDecode] = Field(
        get_args(Overflow), alias="DALSTON_OVERFLOW_ALLOWED"
    )
    queue_seconds: float = Field(30.0, alias="DALSTON_QUEUE_SECONDS", ge=0)  # in line, at most
    # Audio that is held of a caller in line, in seconds, and bytes of all in line together.
    held_seconds_in_line: float = Field(5.0, alias="DALSTON_QUEUE_AUDIO_SECONDS", gt=0)
    held_bytes_in_line: int = Field(64 << 20, alias="DALSTON_QUEUE_BYTES", gt=0)
    # WebSockets at once: of all clients, and of one address that is not of this machine; 0 is no
    # limit.
    connections: int = Field(2000, alias="DALSTON_CONNECTIONS", ge=0)
    connections_per_address: int = Field(200, alias="DALSTON_CONNECTIONS_PER_ADDRESS", ge=0)
    # Sessions at once, of one client address; 0 is no limit. Those of a key are limited with it.
    sessions_per_address: int = Field(0, alias="DALSTON_SESSIONS_PER_ADDRESS", ge=0)
    # Lists and ends other people's sessions; without it nobody can.
    admin_key: HeaderSecret | None = Field(None, alias="DALSTON_ADMIN_KEY")
    # Where API keys are: redis, or a file. Without it everybody is let in.
    api_keys: Literal["redis"] | Path | None = Field(None, alias="DALSTON_API_KEYS")
    # Everybody may be more than this machine only if somebody has said so.
    allow_no_keys: bool = Field(False, alias="DALSTON_ALLOW_NO_KEYS")
    # The names by which clients may call this gateway, and the sites whose pages may. Not set: as
    # gateway/access/sites.py says.
    allowed_hosts: _Hosts | None = Field(None, alias="DALSTON_ALLOWED_HOSTS")
    allowed_origins: _Origins | None = Field(None, alias="DALSTON_ALLOWED_ORIGINS")
    # Addresses and networks of the proxies whose X-Forwarded-For is believed.
    trusted_proxies: _Networks = Field([], alias="DALSTON_TRUSTED_PROXIES", validate_default=True)
    # What workers have as well: both prove it, and neither sends it.
    worker_secret: HeaderSecret | None = Field(None, alias="DALSTON_WORKER_SECRET")
    # For a connection to say what it wants.
    handshake_seconds: float = Field(10.0, alias="DALSTON_HANDSHAKE_SECONDS", gt=0)
    # A client that takes no message for so long is let go; less than a worker's, which would seem
    # lost otherwise.
    reader_seconds: float = Field(10.0, alias="DALSTON_CLIENT_READER_SECONDS", gt=0)
    # The longest frame; the worker has a limit of its own.
    frame_bytes: int = Field(
        LONGEST_FRAME, alias="DALSTON_FRAME_BYTES", ge=LONGEST_TEXT, le=LONGEST_MESSAGE
    )
    # What is held of callers, in bytes: of all, and of one who sends faster than it is passed on.
    held_bytes: int = Field(512 << 20, alias="DALSTON_HELD_BYTES", gt=0)
    caller_bytes: int = Field(12 << 20, alias="DALSTON_CALLER_BYTES", gt=0)
    # A session ends after so long without audio, whatever else its client sends; 0: never.
    no_audio_seconds: float = Field(600.0, alias="DALSTON_NO_AUDIO_SECONDS", ge=0)
    # A client may send so many seconds of audio in a second, beyond a burst; held down to that for
    # so long, it is refused. A file may be pushed for as long as a session lasts.
    audio_rate: float = Field(1.5, alias="DALSTON_AUDIO_RATE", ge=1)
    audio_burst_seconds: float = Field(60.0, alias="DALSTON_AUDIO_BURST_SECONDS", gt=0)
    audio_held_seconds: float = Field(14_400.0, alias="DALSTON_AUDIO_HELD_SECONDS", ge=0)
    # A client that sends no audio for so long is muted: what it was saying is finished. 0: never.
    mute_seconds: float = Field(2.0, alias="DALSTON_MUTE_SECONDS", ge=0)
    # The same of messages, which are few: a second, and at once.
    message_rate: float = Field(10.0, alias="DALSTON_MESSAGE_RATE", gt=0)
    message_burst: float = Field(100.0, alias="DALSTON_MESSAGE_BURST", ge=1)
    message_held_seconds: float = Field(60.0, alias="DALSTON_MESSAGE_HELD_SECONDS", ge=0)
    # Recorded audio over HTTP: how many files are transcribed at a time (0: none at all), and how
    # many may be here in all, those that are uploaded or wait included; what a body may have in
    # bytes, how long it may take, how long its audio may be, and how long it may wait.
    files_at_once: int = Field(2, alias="DALSTON_FILES_AT_ONCE", ge=0, le=64)
    files_waiting: int = Field(16, alias="DALSTON_FILES_WAITING", ge=1)
    file_bytes: int = Field(1 << 30, alias="DALSTON_FILE_BYTES", gt=0)
    upload_seconds: float = Field(900.0, alias="DALSTON_UPLOAD_SECONDS", gt=0)
    file_seconds: float = Field(14_400.0, alias="DALSTON_FILE_SECONDS", gt=0)
    file_queue_seconds: float = Field(300.0, alias="DALSTON_FILE_QUEUE_SECONDS", ge=0)
    # How long Redis keeps a transcript for a client that asks for it by its id; 0: not at all.
    transcript_seconds: int = Field(3600, alias="DALSTON_TRANSCRIPT_SECONDS", ge=0)
    # Who collects traces, as for the worker.
    otlp_endpoint: str | None = Field(None, alias="OTEL_EXPORTER_OTLP_ENDPOINT")
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = Field("INFO", alias="LOG_LEVEL")
    log_format: Format = Field("text", alias="DALSTON_LOG_FORMAT")

    @property
    def reached_at(self) -> str:
        """The address that callers know."""
        return self.published or self.host

    @model_validator(mode="after")
    def _whole(self) -> Self:
        self.redis_url = with_password(self.redis_url, self.redis_password)
        if not (self.api_keys or self.allow_no_keys or self.reached_at in LOOPBACK):
            raise ValueError(
                f"whoever reaches {self.reached_at} would be let in: set DALSTON_API_KEYS "
                "(`dalston keys`), or DALSTON_ALLOW_NO_KEYS=1 if that is meant"
            )
        if self.wyoming_port and self.api_keys and not self.wyoming_key:
            raise ValueError(
                "callers need keys (DALSTON_API_KEYS), and Wyoming's clients show none: set "
                "DALSTON_WYOMING_KEY to the key that they count as"
            )
        return self

    @field_validator("overflow_allowed", mode="before")
    @classmethod
    def _listed(cls, value: object) -> object:
        return tuple(filter(None, value.split(","))) if isinstance(value, str) else value

    @field_validator("trusted_proxies")
    @classmethod
    def _one_name(cls, value: list[str]) -> list[str]:
        # Many have set uvicorn's own variable. To ignore it without a word would count all callers
        # as one address, the proxy's.
        if os.environ.get("FORWARDED_ALLOW_IPS") and not value:
            raise ValueError("FORWARDED_ALLOW_IPS is not read; set DALSTON_TRUSTED_PROXIES")
        return value

    @field_validator("api_keys", mode="before")
    @classmethod
    def _somewhere(cls, value: object) -> object:
        # Path("") is the current folder, and nobody who writes this means "no keys" for sure.
        if value == "":
            raise ValueError("redis, or the path of a file; not set at all: everybody is let in")
        return value

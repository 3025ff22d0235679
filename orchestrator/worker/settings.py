"""
The worker's settings: environment variables, read once.

Ours are prefixed DALSTON_; names that the deployment documents give have none.
"""

import socket
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, SecretStr, field_validator, model_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from dalston.orchestrator.capacity.slots import HEARTBEAT_S
from dalston.orchestrator.process.environment import LOOPBACK, HeaderSecret, with_password
from dalston.orchestrator.process.logs import Format
from dalston.orchestrator.protocol.messages import LONGEST_FRAME, LONGEST_MESSAGE, LONGEST_TEXT
from dalston.orchestrator.transcription.redaction import read_patterns, unknown_names


class WorkerSettings(BaseSettings):
    model_config = SettingsConfigDict(populate_by_name=True)

    redis_url: str = Field(alias="REDIS_URL", repr=False)
    redis_password: SecretStr | None = Field(None, alias="REDIS_PASSWORD")  # if the URL has none
    worker_id: str = Field(alias="WORKER_ID", min_length=1)
    port: int = Field(9000, alias="WORKER_PORT", ge=0, le=65_535)
    # Where gateways reach this worker.
    endpoint: str | None = Field(None, alias="WORKER_ENDPOINT", pattern="^wss?://")
    host: str = Field("127.0.0.1", alias="DALSTON_HOST")  # the address to listen at
    max_sessions: int = Field(4, alias="MAX_SESSIONS", ge=1)
    # What a session of `fast` takes of such a slot; one of `accurate` takes a whole one.
    fast_share: float = Field(1.0, alias="DALSTON_FAST_SHARE", ge=0.05, le=1)
    # HTTP addresses, comma separated. A session stays with one.
    triton_urls: Annotated[list[str], NoDecode] = Field(
        ["127.0.0.1:8000"], alias="TRITON_URLS", min_length=1
    )
    # What their supervisors have as well: for models that are unloaded while nobody uses them.
    triton_token: HeaderSecret | None = Field(None, alias="DALSTON_TRITON_TOKEN")
    # Where Triton tells its GPU memory; without a GPU there is nothing to tell.
    triton_metrics_url: str | None = Field(None, alias="TRITON_METRICS_URL")
    vad: Literal["triton", "worker"] = Field("triton", alias="DALSTON_VAD")
    vad_model: Path | None = Field(None, alias="DALSTON_VAD_MODEL")  # for vad=worker
    # Of speech, between partials; under load they come less often by themselves.
    partial_seconds: float = Field(0.5, alias="DALSTON_PARTIAL_SECONDS", ge=0.1, le=10)
    heartbeat_seconds: float = Field(HEARTBEAT_S, alias="DALSTON_HEARTBEAT_SECONDS", gt=0, le=20)
    idle_seconds: float = Field(30.0, alias="DALSTON_IDLE_SECONDS", gt=0)
    # A client without a gateway that sends no audio for so long is muted: what it was saying is
    # finished. 0: never.
    mute_seconds: float = Field(2.0, alias="DALSTON_MUTE_SECONDS", ge=0)
    session_seconds: float = Field(4 * 3600.0, alias="DALSTON_SESSION_SECONDS", gt=0)
    # A session that lags so much is warned; one that lags so much for so long ends.
    lag_warning_seconds: float = Field(3.0, alias="DALSTON_LAG_WARNING_SECONDS", gt=0)
    lag_limit_seconds: float = Field(5.0, alias="DALSTON_LAG_LIMIT_SECONDS", gt=0)
    lag_held_seconds: float = Field(2.0, alias="DALSTON_LAG_HELD_SECONDS", ge=0)
    # Longer frames of audio are refused with a sentence; the largest of all closes the connection.
    frame_bytes: int = Field(
        LONGEST_FRAME, alias="DALSTON_FRAME_BYTES", ge=LONGEST_TEXT, le=LONGEST_MESSAGE
    )
    # How long it may take to send one message to a client that reads slowly.
    reader_seconds: float = Field(15.0, alias="DALSTON_READER_SECONDS", gt=0)
    # For the opening handshake, and for the snapshot of a session that goes on here.
    handshake_seconds: float = Field(10.0, alias="DALSTON_HANDSHAKE_SECONDS", gt=0)
    outage_seconds: float = Field(30.0, alias="OUTAGE_SECONDS", gt=0)
    drain_seconds: float = Field(30.0, alias="DRAIN_SECONDS", ge=0)
    # Taken out of the text of every session, whatever a caller asks for: numbers, emails, and names
    # of the patterns in a file, a name and a pattern of RE2 in each line.
    redact: Annotated[list[str], NoDecode] = Field([], alias="DALSTON_REDACT")
    redact_patterns: Annotated[dict[str, Any], NoDecode] = Field(
        {}, alias="DALSTON_REDACT_PATTERNS"
    )
    # What gateways have as well; without it whoever reaches the port may have a session.
    secret: HeaderSecret | None = Field(None, alias="DALSTON_WORKER_SECRET")
    # Who collects traces, OTLP over HTTP. OpenTelemetry reads the rest of its OTEL_... by itself.
    otlp_endpoint: str | None = Field(None, alias="OTEL_EXPORTER_OTLP_ENDPOINT")
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = Field("INFO", alias="LOG_LEVEL")
    log_format: Format = Field("text", alias="DALSTON_LOG_FORMAT")

    @field_validator("triton_urls", "redact", mode="before")
    @classmethod
    def _split(cls, value: object) -> object:
        if not isinstance(value, str):
            return value
        return [item.strip() for item in value.split(",") if item.strip()]

    @field_validator("redact_patterns", mode="before")
    @classmethod
    def _read(cls, value: object) -> object:
        if not isinstance(value, str):
            return value
        try:
            return read_patterns(Path(value).read_text("utf-8"))
        except (OSError, UnicodeError) as error:
            raise ValueError(f"{value} cannot be read: {error}") from None

    @model_validator(mode="after")
    def _whole(self) -> Self:
        self.redis_url = with_password(self.redis_url, self.redis_password)
        if unknown := unknown_names(self.redact, self.redact_patterns):
            raise ValueError(
                f"DALSTON_REDACT: {unknown[0]!r} is neither numbers nor emails, and no "
                "pattern of DALSTON_REDACT_PATTERNS has that name"
            )
        return self

    def advertised(self, port: int) -> str:
        """The endpoint to register, the worker listening at `port`.

        A worker that listens to this machine only is reached at that address, not by its name.
        """
        name = self.host if self.host in LOOPBACK else socket.gethostname()
        return self.endpoint or f"ws://{f'[{name}]' if ':' in name else name}:{port}"

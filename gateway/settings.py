"""
The gateway's settings: environment variables, read once.
"""

from typing import Literal

from pydantic import Field, SecretStr
from pydantic_settings import BaseSettings, SettingsConfigDict


class GatewaySettings(BaseSettings):
    model_config = SettingsConfigDict(populate_by_name=True)

    redis_url: str = Field(alias="REDIS_URL")
    host: str = Field("127.0.0.1", alias="DALSTON_HOST")  # the address to listen at
    port: int = Field(8000, alias="DALSTON_PORT", ge=0, le=65_535)
    drain_seconds: float = Field(30.0, alias="DRAIN_SECONDS", ge=0)
    # Lists and ends other people's sessions; without it nobody can.
    admin_key: SecretStr | None = Field(None, alias="DALSTON_ADMIN_KEY")
    # A client may send so many seconds of audio in a second, beyond a burst; held down to that for
    # so long, it is refused.
    audio_rate: float = Field(1.5, alias="DALSTON_AUDIO_RATE", ge=1)
    audio_burst_seconds: float = Field(60.0, alias="DALSTON_AUDIO_BURST_SECONDS", gt=0)
    audio_held_seconds: float = Field(60.0, alias="DALSTON_AUDIO_HELD_SECONDS", ge=0)
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = Field("INFO", alias="LOG_LEVEL")

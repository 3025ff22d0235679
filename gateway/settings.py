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
    # How long a session waits for another worker when its own is lost, and how long a worker may
    # say nothing, pings included, until it counts as lost.
    outage_seconds: float = Field(30.0, alias="OUTAGE_SECONDS", gt=0)
    worker_silent_seconds: float = Field(2.0, alias="DALSTON_WORKER_SILENT_SECONDS", gt=0)
    drain_seconds: float = Field(30.0, alias="DRAIN_SECONDS", ge=0)
    # Lists and ends other people's sessions; without it nobody can.
    admin_key: SecretStr | None = Field(None, alias="DALSTON_ADMIN_KEY")
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = Field("INFO", alias="LOG_LEVEL")

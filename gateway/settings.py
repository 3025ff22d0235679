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
    # What a caller gets when no slot is free: an answer at once, a place in line, or a slot of a
    # worker that has another variant only.
    overflow: Literal["reject", "queue", "degrade"] = Field("reject", alias="OVERFLOW_STRATEGY")
    queue_seconds: float = Field(30.0, alias="DALSTON_QUEUE_SECONDS", ge=0)  # in line, at most
    # Sessions at once, of one client address; 0 is no limit. Those of a key are limited with it.
    sessions_per_address: int = Field(0, alias="DALSTON_SESSIONS_PER_ADDRESS", ge=0)
    # Lists and ends other people's sessions; without it nobody can.
    admin_key: SecretStr | None = Field(None, alias="DALSTON_ADMIN_KEY")
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = Field("INFO", alias="LOG_LEVEL")

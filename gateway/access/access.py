"""
Who may call: API keys, where DALSTON_API_KEYS says that there are any.

A caller shows its key in one of the ways that clients have, browsers included. Without keys
everybody is let in, which is why everything listens on the loopback interface by default.
"""

import hmac
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import redis.asyncio
from redis.exceptions import RedisError

from dalston.gateway.access.keys import FileKeys, KeysError, RedisKeys, sha256
from dalston.gateway.settings import GatewaySettings

logger = logging.getLogger(__name__)

# A browser cannot set headers on a WebSocket: it offers its key as a subprotocol, which is never
# the one that it is answered.
SUBPROTOCOL_KEY = "dalston.api-key."


@dataclass(frozen=True)
class KeyHolder:
    """Who calls, as far as their key says."""

    key_id: str = ""  # the name of its key
    max_sessions: int = 0  # at the same time; 0: no limit


class AccessDenied(Exception):
    """Somebody may not do what they ask for; says why."""

    def __init__(self, code: Literal["unauthorized", "forbidden", "no_capacity"], sentence: str):
        super().__init__(sentence)
        self.code: Literal["unauthorized", "forbidden", "no_capacity"] = code
        self.status = {"unauthorized": 401, "forbidden": 403, "no_capacity": 503}[code]  # HTTP's


class Access:
    """Raises KeysError if there is to be a file of keys and it cannot be read."""

    def __init__(self, settings: GatewaySettings, redis_client: "redis.asyncio.Redis"):
        self._keys: FileKeys | RedisKeys | None = None
        if settings.api_keys == "redis":
            self._keys = RedisKeys(redis_client)
        elif settings.api_keys is not None:
            self._keys = FileKeys(settings.api_keys)
            self._keys.load()

    @property
    def open(self) -> bool:
        """Whether everybody is let in."""
        return self._keys is None

    async def holder(self, headers: Mapping[str, str], query: Mapping[str, str]) -> KeyHolder:
        """Whose key it is. Header names are in lower case. Raises AccessDenied."""
        if self._keys is None:
            return KeyHolder()
        shown = _shown(headers, query)
        if not shown:
            raise AccessDenied(
                "unauthorized", "an API key is needed: Authorization: Bearer KEY, or api_key=KEY"
            )
        digest = sha256(shown)
        try:
            key = await self._keys.find(digest)
        except (RedisError, KeysError) as error:
            # Nobody can say whether the key is right: not the caller's fault, and worth a retry.
            logger.error("keys: %s", error)
            sentence = "API keys cannot be checked at the moment. Try again later."
            raise AccessDenied("no_capacity", sentence) from None
        if key is None or not hmac.compare_digest(key.sha256, digest):
            raise AccessDenied("unauthorized", "the API key is not known here")
        return KeyHolder(key.name, key.sessions)


def _shown(headers: Mapping[str, str], query: Mapping[str, str]) -> str:
    """The key in the first place that has one."""
    scheme, _, bearer = headers.get("authorization", "").partition(" ")
    offered = headers.get("sec-websocket-protocol", "").split(",")
    in_subprotocol = [
        word.strip().removeprefix(SUBPROTOCOL_KEY)
        for word in offered
        if word.strip().startswith(SUBPROTOCOL_KEY)
    ]
    places = (
        bearer.strip() if scheme.lower() == "bearer" else "",
        headers.get("x-api-key", ""),
        headers.get("xi-api-key", ""),
        query.get("api_key", ""),
        *in_subprotocol,
    )
    return next(filter(None, places), "")


def check_resume(holder: KeyHolder, key_id: str) -> None:
    """A session is gone on with by the key it began with. Raises AccessDenied."""
    if holder.key_id != key_id:
        raise AccessDenied("forbidden", "this session belongs to another API key")

"""
Who may call: API keys, where DALSTON_API_KEYS says that there are any.

A caller shows its key in one of the ways that clients have, browsers included. Without keys
everybody is let in, which is why everything listens on the loopback interface by default.
"""

import hmac
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import redis.asyncio
from redis.exceptions import RedisError

from dalston.gateway.access.keys import FileKeys, KeysError, RedisKeys, sha256
from dalston.gateway.settings import GatewaySettings

logger = logging.getLogger(__name__)

# A browser cannot set headers on a WebSocket; it offers these two, and is answered the first.
SUBPROTOCOL, SUBPROTOCOL_KEY = "dalston", "dalston.api-key."


@dataclass(frozen=True)
class Caller:
    key_id: str = ""  # the name of its key
    max_sessions: int = 0  # at the same time; 0: no limit


class Refused(Exception):
    """Somebody who may not do what he asks for; says why."""

    def __init__(self, code: Literal["unauthorized", "forbidden", "no_capacity"], sentence: str):
        super().__init__(sentence)
        self.code: Literal["unauthorized", "forbidden", "no_capacity"] = code
        self.close_code = {"unauthorized": 4001, "forbidden": 4003, "no_capacity": 1013}[code]
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

    async def caller(self, headers: Mapping[str, str], query: Mapping[str, str]) -> Caller:
        """Whose key it is. Header names are in lower case. Raises Refused."""
        if self._keys is None:
            return Caller()
        shown = _shown(headers, query)
        if not shown:
            raise Refused(
                "unauthorized", "an API key is needed: Authorization: Bearer KEY, or api_key=KEY"
            )
        digest = sha256(shown)
        try:
            key = await self._keys.find(digest)
        except (RedisError, KeysError) as error:
            # Nobody can say whether the key is right: not the caller's fault, and worth a retry.
            logger.error("keys: %s", error)
            sentence = "API keys cannot be checked at the moment. Try again later."
            raise Refused("no_capacity", sentence) from None
        if key is None or not hmac.compare_digest(key.sha256, digest):
            raise Refused("unauthorized", "the API key is not known here")
        return Caller(key.name, key.sessions)


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


def chosen_subprotocol(offered: Sequence[str]) -> str | None:
    """What a WebSocket is accepted with: never the one with the key in it."""
    return SUBPROTOCOL if SUBPROTOCOL in offered else None


def check_resume(caller: Caller, key_id: str) -> None:
    """A session is gone on with by the key it began with. Raises Refused."""
    if caller.key_id != key_id:
        raise Refused("forbidden", "this session belongs to another API key")

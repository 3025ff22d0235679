"""
Who may call: API keys, where DALSTON_API_KEYS says that there are any, and tokens of them.

A caller shows its key in one of the ways that clients have, browsers included. Without keys
everybody is let in, which is why everything listens on the loopback interface by default.
"""

import hmac
import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import redis.asyncio
from redis.exceptions import RedisError

from dalston.gateway.access import tokens
from dalston.gateway.access.keys import FileKeys, Key, RedisKeys, Scope, sha256
from dalston.gateway.access.secret_file import KeysError
from dalston.gateway.settings import GatewaySettings

logger = logging.getLogger(__name__)

# A browser cannot set headers on a WebSocket: it offers its key as a subprotocol, which is never
# the one that it is answered.
SUBPROTOCOL_KEYS = ("dalston.api-key.", "openai-insecure-api-key.")
SCHEMES = ("bearer", "token")  # Deepgram says Token; as a subprotocol the key is offered after it


@dataclass(frozen=True)
class KeyHolder:
    """Who calls, as far as their key says."""

    key_id: str = ""  # the name of its key
    max_sessions: int = 0  # at the same time; 0: no limit
    digest: str = ""  # of its key, as far as keys are found by it


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
        self._trouble = ""  # why keys cannot be checked, as the log says it
        if settings.api_keys == "redis":
            self._keys = RedisKeys(redis_client)
        elif settings.api_keys is not None:
            self._keys = FileKeys(settings.api_keys)
            self._keys.load()

    @property
    def open(self) -> bool:
        """Whether everybody is let in."""
        return self._keys is None

    async def holder(
        self, headers: Mapping[str, str], query: Mapping[str, str], *scopes: Scope
    ) -> KeyHolder:
        """Whose key or token it is, if that has one of the scopes. Header names are in lower case.
        Raises AccessDenied."""
        if self._keys is None:
            return KeyHolder()
        shown = _shown(headers, query)
        if not shown:
            raise AccessDenied(
                "unauthorized", "an API key is needed: Authorization: Bearer KEY, or api_key=KEY"
            )
        try:
            if shown.startswith(tokens.PREFIX):
                key, may = await _of_token(self._keys, shown)
            else:
                key = await _of_key(self._keys, shown)
                may = key.scopes
        except (RedisError, KeysError) as error:
            raise self._cannot_check(error) from None
        self._can_check()
        if not any(scope in may for scope in scopes):
            needed = " or ".join(repr(scope) for scope in scopes)
            raise AccessDenied("forbidden", f"this needs a key with the scope {needed}")
        return KeyHolder(key.name, key.sessions, key.id)

    async def check_again(self, holder: KeyHolder) -> None:
        """Whether the key is still good: it may have been revoked while its caller waited. Raises
        AccessDenied."""
        if self._keys is None:
            return
        try:
            key = await self._keys.find(holder.digest)
        except (RedisError, KeysError) as error:
            raise self._cannot_check(error) from None
        _valid(key)

    async def token(
        self,
        headers: Mapping[str, str],
        query: Mapping[str, str],
        ttl_s: int,
        scopes: Sequence[Scope],
    ) -> tuple[str, tokens.Claims]:
        """A token of the key that is shown. Raises AccessDenied and TokenRefused."""
        assert self._keys is not None
        shown = _shown(headers, query)
        if shown.startswith(tokens.PREFIX):
            raise AccessDenied("forbidden", "tokens are made for keys, not for other tokens")
        try:
            return await tokens.issued(self._keys, await _of_key(self._keys, shown), ttl_s, scopes)
        except (RedisError, KeysError) as error:
            raise self._cannot_check(error) from None

    def _cannot_check(self, error: Exception) -> AccessDenied:
        """Nobody can say whether a key is right: not the caller's fault, and worth a retry."""
        if str(error) != self._trouble:  # said once, however many callers come
            self._trouble = str(error)
            logger.error("keys: %s; nobody new is let in", error)
        sentence = "API keys cannot be checked at the moment. Try again later."
        return AccessDenied("no_capacity", sentence)

    def _can_check(self) -> None:
        if self._trouble:
            self._trouble = ""
            logger.info("keys: they can be checked again")


async def _of_key(keys: FileKeys | RedisKeys, shown: str) -> Key:
    digest = sha256(shown)
    key = await keys.find(digest)
    if key is None or not hmac.compare_digest(key.sha256, digest):
        raise AccessDenied("unauthorized", "the API key is not known here")
    return _valid(key)


async def _of_token(keys: FileKeys | RedisKeys, shown: str) -> tuple[Key, Sequence[Scope]]:
    """The key of a token, and what the token may do."""
    now = time.time()
    claims = tokens.read(shown, await keys.signing(), now)
    if claims is None:
        raise AccessDenied("unauthorized", "the token is not known here")
    if now >= claims.expires:
        raise AccessDenied("unauthorized", "the token has expired; ask for a new one")
    key = _valid(await keys.find(claims.key))
    return key, [scope for scope in claims.scopes if scope in key.scopes]


def _valid(key: Key | None) -> Key:
    if key is None:
        raise AccessDenied("unauthorized", "the API key is revoked")
    if key.expired(time.time()):
        raise AccessDenied("unauthorized", "the API key has expired")
    return key


def _shown(headers: Mapping[str, str], query: Mapping[str, str]) -> str:
    """The key or token in the first place that has one."""
    scheme, _, shown = headers.get("authorization", "").partition(" ")
    offered = [word.strip() for word in headers.get("sec-websocket-protocol", "").split(",")]
    places = (
        shown.strip() if scheme.lower() in SCHEMES else "",
        headers.get("x-api-key", ""),
        headers.get("xi-api-key", ""),
        headers.get("x-vapi-secret", ""),
        query.get("api_key", ""),
        query.get("token", ""),
        *_after(SUBPROTOCOL_KEYS, offered),
        offered[1] if len(offered) == 2 and offered[0] in SCHEMES else "",
    )
    return next(filter(None, places), "")


def _after(marks: Sequence[str], words: Sequence[str]) -> Iterator[str]:
    """What follows one of these marks in a word."""
    for mark in marks:
        yield from (word.removeprefix(mark) for word in words if word.startswith(mark))


def check_resume(holder: KeyHolder, key_id: str) -> None:
    """A session is gone on with by the key it began with. Raises AccessDenied."""
    if holder.key_id != key_id:
        raise AccessDenied("forbidden", "this session belongs to another API key")

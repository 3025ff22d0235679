"""
Tokens: what a browser opens a connection with, so that no page has to carry an API key.

    dt_SECRET.CLAIMS.SIGNATURE

A token says whose it is (the id of a key), what it may do, until when, and holds random digits. It
is signed with HMAC-SHA256 by one of the server's secrets, which its first part names. Nobody but
gateways reads it, so it has one form and one algorithm, and nothing to choose between.

It is worth no more than its key: once that is revoked or expired, the token is worth nothing. Its
own end is looked at only when a connection opens.

Secrets can be replaced (`dalston keys rotate`). What the one before has signed is still worth
something for as long as the longest token lives.
"""

import base64
import binascii
import hmac
import secrets
import time
from collections.abc import Sequence

import msgspec

from dalston.gateway.access.keys import DEFAULT_SCOPES, FileKeys, Key, RedisKeys, Scope
from dalston.gateway.access.secret_file import KeysError

PREFIX = "dt_"  # logs leave out what begins like this: orchestrator/process/logs.py
USUAL_S, LONGEST_S = 60, 3600
_LONGEST = 1024  # letters; what is longer is none of ours


class TokenRefused(Exception):
    """A token that cannot be had; says why."""

    def __init__(self, status: int, sentence: str):
        """status: HTTP's."""
        super().__init__(sentence)
        self.status = status


class Claims(msgspec.Struct, frozen=True, array_like=True):
    """What a token says."""

    key: str  # its id
    scopes: tuple[Scope, ...]
    expires: int  # seconds of the epoch
    id: str  # random


class _Secret(msgspec.Struct, frozen=True):
    id: str
    secret: str  # hexadecimal
    made: float  # seconds of the epoch


_claims = msgspec.json.Decoder(Claims)
_secrets = msgspec.json.Decoder(list[_Secret])


def _kept(data: bytes | None) -> list[_Secret]:
    """The newest first. Raises KeysError."""
    try:
        return _secrets.decode(data) if data else []
    except msgspec.MsgspecError as error:
        raise KeysError(f"what tokens are signed with cannot be read: {error}") from None


def rotated(data: bytes | None, now: float, at_once: bool) -> bytes:
    """What is kept of secrets from now on, a new one first; at_once: it alone."""
    new = _Secret(secrets.token_hex(4), secrets.token_hex(32), now)
    before = [] if at_once else _valid(_kept(data), now)
    return msgspec.json.encode([new, *before])


def _valid(kept: Sequence[_Secret], now: float) -> list[_Secret]:
    """Those by which a token may be signed that still lives: the newest, and those before it whose
    follower has not been there for longer than tokens live."""
    return [
        secret
        for number, secret in enumerate(kept)
        if number == 0 or now < kept[number - 1].made + LONGEST_S
    ]


def signed(data: bytes, claims: Claims) -> str:
    """data: what is kept of secrets."""
    secret = _kept(data)[0]
    said = f"{PREFIX}{secret.id}.{_text(msgspec.json.encode(claims))}"
    return f"{said}.{_text(_signature(secret, said))}"


def read(token: str, data: bytes | None, now: float) -> Claims | None:
    """What a token says, if it is one of ours; its end is the caller's business. Raises
    KeysError."""
    said, _, signature = token.rpartition(".")
    id, _, claims = said.removeprefix(PREFIX).partition(".")
    for secret in _valid(_kept(data), now) if len(token) <= _LONGEST else ():
        if secret.id == id:
            expected = _text(_signature(secret, said))
            if hmac.compare_digest(expected.encode(), signature.encode(errors="replace")):
                return _decoded(claims)
    return None


def _decoded(claims: str) -> Claims | None:
    try:
        return _claims.decode(base64.urlsafe_b64decode(claims + "=" * (-len(claims) % 4)))
    except (msgspec.MsgspecError, binascii.Error):
        return None


def _signature(secret: _Secret, said: str) -> bytes:
    return hmac.digest(bytes.fromhex(secret.secret), said.encode(errors="replace"), "sha256")


def _text(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


async def issued(
    keys: FileKeys | RedisKeys,
    key: Key,
    ttl_s: int = USUAL_S,
    scopes: Sequence[Scope] = DEFAULT_SCOPES,
) -> tuple[str, Claims]:
    """A token of a key. It lives no longer than the key, and may do no more.

    Raises TokenRefused, KeysError and RedisError.
    """
    now = time.time()
    if key.expired(now):
        raise TokenRefused(403, f"the key {key.name!r} has expired")
    if not 1 <= ttl_s <= LONGEST_S:
        raise TokenRefused(400, f"a token lives for 1 to {LONGEST_S} seconds")
    if not scopes:
        raise TokenRefused(400, "a token without scopes is of no use")
    for scope in scopes:
        if scope not in key.scopes:
            raise TokenRefused(
                403,
                f"the key {key.name!r} has no scope {scope!r} to give; "
                f"it has {', '.join(key.scopes)}",
            )
    expires = int(now) + ttl_s
    if key.expires is not None:
        expires = min(expires, int(key.expires.timestamp()))
    claims = Claims(key.id, tuple(dict.fromkeys(scopes)), expires, secrets.token_hex(8))
    data = await keys.signing()
    if not data:
        data = await keys.change_signing(lambda before: before or rotated(None, now, True))
    return signed(data, claims), claims


async def rotate(keys: FileKeys | RedisKeys, at_once: bool) -> None:
    """Sign with a new secret from now on. Raises KeysError and RedisError."""
    now = time.time()
    await keys.change_signing(lambda before: rotated(before, now, at_once))

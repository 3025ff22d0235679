"""
Those who may not: without a key, with a wrong or revoked one, with somebody else's session, over
their quota, at the admin's pages, without TLS. Each has to be refused in the documented way,
whatever else happens to the deployment; that it cannot be asked at the moment is an answer too.

Written from docs/protocol.md alone, as caller.py is.
"""

import asyncio
import json
import random
import secrets
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from caller import Caller
from deployment import Deployment
from door import Door
from websockets.exceptions import ConnectionClosed, WebSocketException

EVERY_S = (0.3, 1.2)
ANSWER_S = 12.0
# After Redis lost what it knew gateways tell it again; until then a quota counts too few.
TOLD_AGAIN_S = 20.0
UNREACHABLE = "unreachable"
BUSY = ("no_capacity", 1013)
REFUSED: dict[str, set[tuple[str, int]]] = {
    "no key": {("unauthorized", 4001)},
    "wrong key": {("unauthorized", 4001)},
    "revoked key": {("unauthorized", 4001)},
    # Nothing may be kept of it, at this moment.
    "another's session": {("forbidden", 4003), ("invalid_parameter", 4400)},
    "over quota": {("rate_limit", 4429)},
    "admin": {("http", 401), ("http", 403)},
    "without TLS": set(),
}


@dataclass(frozen=True)
class Attempt:
    kind: str
    outcome: str  # as the server put it
    broken: str = ""  # in words, if it should not have been so


class Intruder:
    """Tries one thing after the other."""

    def __init__(self, deployment: Deployment, callers: Sequence[Caller], rng: random.Random):
        assert deployment.protection
        self._deployment, self._protection = deployment, deployment.protection
        self._callers, self._rng = callers, rng

    async def attempt(self, kind: str) -> Attempt | None:
        """None if there is no occasion for it now."""
        match kind:
            case "no key":
                return await self._try(kind, self._door(""))
            case "wrong key":
                return await self._try(kind, self._door("dk_" + secrets.token_hex(16)))
            case "revoked key":
                return await self._try(kind, self._door(self._protection.revoked))
            case "another's session":
                return await self._resume_anothers()
            case "over quota":
                return await self._over_quota()
            case "admin":
                return await self._admin()
            case _:
                return await self._without_tls()

    def _door(self, key: str) -> Door:
        return self._deployment.door(key)

    async def _try(self, kind: str, door: Door, query: dict[str, str] | None = None) -> Attempt:
        gateway = self._rng.randrange(len(door.urls))
        answer = await asked(door, gateway, query or {}, self._rng)
        return _judged(kind, answer)

    async def _resume_anothers(self) -> Attempt | None:
        there = [caller for caller in self._callers if caller.session_id and caller.connection]
        if not there:
            return None
        victim = self._rng.choice(there)
        key = self._rng.choice([key for key in self._protection.tenants if key != victim.door.key])
        query = {"resume_session_id": victim.session_id, "ack": "true"}
        return await self._try("another's session", self._door(key), query)

    async def _over_quota(self) -> Attempt | None:
        """With a key whose callers are all being served, before and after."""
        key = self._rng.choice(self._protection.tenants)
        those = [caller for caller in self._callers if caller.door.key == key]
        before = [(caller.connection, caller.session_id) for caller in those]
        if len(those) < self._protection.quota or not all(c and id for c, id in before):
            return None
        attempt = await self._try("over quota", self._door(key))
        after = [(caller.connection, caller.session_id) for caller in those]
        if attempt.outcome == "session.begin 0" and (before != after or self._forgotten()):
            return replace(attempt, broken="")
        return attempt

    def _forgotten(self) -> bool:
        return any(time.monotonic() < then + TOLD_AGAIN_S for then in self._deployment.forgot)

    async def _admin(self) -> Attempt:
        """The pages of an admin, with the key of a tenant and with none."""
        gateway = self._rng.choice(self._deployment.of("gateway"))
        method, path = self._rng.choice(
            [
                ("GET", "/v1/realtime/sessions"),
                ("DELETE", "/v1/realtime/sessions/sess_1"),
                ("GET", "/metrics"),
                ("GET", "/health/extended"),
            ]
        )
        key = self._rng.choice([*self._protection.tenants, ""])
        url = f"http://127.0.0.1:{gateway.port}{path}"
        return _judged("admin", await asyncio.to_thread(_http, method, url, key))

    async def _without_tls(self) -> Attempt:
        door = self._door(self._protection.free)
        plain = replace(door, urls=[url.replace("wss:", "ws:") for url in door.urls], tls=None)
        return await self._try("without TLS", plain)


async def asked(
    door: Door, gateway: int, query: dict[str, str], rng: random.Random
) -> tuple[str, int]:
    """What comes of asking for a session: a code of an error, or the kind of message, and the
    close code. A session that begins is ended at once."""
    try:
        patience = {"open_timeout": 3, "close_timeout": 0.5}
        async with (
            asyncio.timeout(ANSWER_S),
            door.connect(gateway, query, rng, **patience) as connection,
        ):
            message: dict[str, Any] = json.loads(await connection.recv())
            if message["type"] != "error":
                await connection.send('{"type":"end"}')
                return message["type"], 0
            try:
                while True:
                    await connection.recv()
            except ConnectionClosed:
                return message["code"], connection.close_code or 0
    except (OSError, WebSocketException, TimeoutError, EOFError):
        return UNREACHABLE, 0


def _http(method: str, url: str, key: str) -> tuple[str, int]:
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    try:
        with urllib.request.urlopen(
            urllib.request.Request(url, method=method, headers=headers), timeout=3
        ) as response:
            return "http", response.status
    except urllib.error.HTTPError as error:
        error.close()
        return "http", error.code
    except OSError:
        return UNREACHABLE, 0


def _judged(kind: str, answer: tuple[str, int]) -> Attempt:
    code, close_code = answer
    outcome = UNREACHABLE if code == UNREACHABLE else f"{code} {close_code}"
    # The connection may break between an error and the close after it.
    documented = REFUSED[kind] | {BUSY} | {(code, 1006) for code, _ in REFUSED[kind] | {BUSY}}
    if code == UNREACHABLE or answer in documented:
        return Attempt(kind, outcome)
    return Attempt(kind, outcome, f"{kind}: {outcome}")

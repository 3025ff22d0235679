"""
What must hold, whatever was done to the deployment; each answers what is broken, in words.
"""

import contextlib
import os
import re
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import psutil
from caller import Message
from deployment import Deployment

WITHIN_S = 0.04  # of the reference's times
_TROUBLE = re.compile(
    r"Traceback \(most recent call last\):|was never retrieved|was never awaited"
    r"|Unclosed |Unhandled|exception in |Segmentation fault|Fatal Python error",
    re.IGNORECASE,
)
_OTHERS = ("redis-", "sentinel-", "front-")
FLOOD = 500_000  # characters between two looks
_PREFIX = "dalston:realtime:"


def differences(reference: Sequence[Message], finals: Sequence[Message]) -> list[str]:
    """Of a call's finals from those of the undisturbed one."""
    found = list[str]()
    known = {final["segment_id"]: final for final in finals}
    for expected in reference:
        id = expected["segment_id"]
        final = known.pop(id, None)
        if final is None:
            found.append(f"{id} {expected['text']!r} is missing")
        elif final["text"] != expected["text"]:
            found.append(f"{id} is {final['text']!r} instead of {expected['text']!r}")
        else:
            found += [
                f"{id}: {edge} is {final[edge]} instead of {expected[edge]}"
                for edge in ("start", "end")
                if abs(final[edge] - expected[edge]) > WITHIN_S
            ]
    found += [f"{id} {final['text']!r} is of no utterance" for id, final in known.items()]
    order = [final["segment_id"] for final in finals]
    if order != sorted(order):
        found.append(f"the order is {order}")
    return found


async def slots(redis: Any, live: Collection[str]) -> list[str]:
    """Whether the slots in Redis are those of the sessions that live, each one once."""
    active: set[str] = set(await redis.smembers(_PREFIX + "sessions:active"))
    leases: set[str] = set(await redis.zrange(_PREFIX + "leases", 0, -1))
    held, found = list[str](), list[str]()
    for worker in await redis.smembers(_PREFIX + "workers"):
        here: set[str] = await redis.smembers(f"{_PREFIX}worker:{worker}:sessions")
        count = await redis.hget(f"{_PREFIX}worker:{worker}", "active_sessions")
        if int(count or 0) != len(here):
            found.append(f"{worker} counts {count} sessions and holds {len(here)}")
        held += here
    expected = set(live)
    for name, those in (("active", active), ("leased", leases), ("held", set(held))):
        if extra := sorted(those - expected):
            found.append(f"slots of no session ({name}): {', '.join(extra)}")
        if missing := sorted(expected - those):
            found.append(f"sessions without a slot ({name}): {', '.join(missing)}")
    counted = set[str]()
    async for key in redis.scan_iter(_PREFIX + "key:*:sessions"):
        counted |= await redis.smembers(key)
    if extra := sorted(counted - expected):
        found.append(f"counted for a key, without a session: {', '.join(extra)}")
    if doubled := sorted({item for item in held if held.count(item) > 1}):
        found.append(f"slots held twice: {', '.join(doubled)}")
    return found


def connections(deployment: Deployment) -> list[str]:
    """Sockets of sessions that gateways and workers still have while there is no session."""
    workers = {proxy.port for _, proxy in deployment.link("gateway-worker")}
    # Of a pool: what broke is noticed when it is used next.
    pooled = {proxy.port for _, proxy in deployment.link("redis")}
    pooled |= {proxy.port for _, proxy in deployment.link("worker-triton")}
    pooled |= {sentinel.port for sentinel in deployment.of("sentinel")}
    found = list[str]()
    for member in [*deployment.of("gateway"), *deployment.of("worker")]:
        try:
            sockets = psutil.Process(member.pid).net_connections("tcp")
        except psutil.Error:
            continue
        for one in sockets:
            if one.status == psutil.CONN_LISTEN or not one.raddr:
                continue
            if one.laddr.port == member.port or one.raddr.port in workers:
                found.append(f"{member.part.name} has a socket {one.laddr.port} in {one.status}")
            elif one.status == psutil.CONN_CLOSE_WAIT and one.raddr.port not in pooled:
                found.append(f"{member.part.name} has not closed {one.laddr.port}")
    return found


def descriptors(deployment: Deployment) -> dict[int, list[str]]:
    """Open files other than sockets, by process of ours that serves sessions."""
    found = dict[int, list[str]]()
    for member in [*deployment.of("gateway"), *deployment.of("worker")]:
        names = list[str]()
        with contextlib.suppress(OSError):
            for entry in Path(f"/proc/{member.pid}/fd").iterdir():
                with contextlib.suppress(OSError):  # closed by now
                    names.append(os.readlink(entry))
        found[member.pid] = sorted(name for name in names if not name.startswith("socket:"))
    return found


class Logs:
    """What was written into the logs of our own processes since the last look."""

    def __init__(self, folder: Path, secrets: Sequence[str] = ()):
        """secrets: what they must not tell."""
        self._folder, self._secrets = folder, secrets
        self._read: dict[Path, int] = {}

    def troubles(self) -> list[str]:
        found = list[str]()
        for path in sorted(self._folder.glob("*.log")):
            if path.name.startswith(_OTHERS):
                continue
            with path.open("rb") as file:
                file.seek(self._read.get(path, 0))
                text = file.read().decode(errors="replace")
                self._read[path] = file.tell()
            if any(secret in text for secret in self._secrets):
                found.append(f"{path.name} tells a secret")
            if len(text) > FLOOD:
                found.append(f"{path.name} has {len(text)} characters more: a flood")
            for trouble in _TROUBLE.finditer(text):
                # An exception's own line is the first behind the traceback that is not indented.
                behind = text[trouble.end() :].lstrip("\n").splitlines()
                said = next((line for line in behind if line[:1].strip()), "")
                found.append(f"{path.name}: {trouble.group()}: {said[:160]}")
        return found

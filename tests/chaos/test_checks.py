"""
What the injector calls broken.
"""

from pathlib import Path
from typing import Any

import checks
import pytest
import redis.asyncio

REFERENCE = [
    {"segment_id": "seg_0000", "text": "turn on the light", "start": 0.5, "end": 1.5},
    {"segment_id": "seg_0001", "text": "stop", "start": 2.0, "end": 2.5},
]


def changed(index: int, **fields: object) -> list[dict[str, Any]]:
    return [final | (fields if number == index else {}) for number, final in enumerate(REFERENCE)]


def test_the_same_finals_are_no_difference() -> None:
    assert checks.differences(REFERENCE, changed(0, start=0.53, confidence=0.4)) == []


@pytest.mark.parametrize(
    ("finals", "sentence"),
    [
        (REFERENCE[:1], "seg_0001 'stop' is missing"),
        (changed(1, text="stop it"), "seg_0001 is 'stop it' instead of 'stop'"),
        (changed(1, end=2.55), "seg_0001: end is 2.55 instead of 2.5"),
        ([*REFERENCE, changed(0, segment_id="seg_0002")[0]], "is of no utterance"),
        (REFERENCE[::-1], "the order is"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_difference_is_told_in_words(finals: list[dict[str, Any]], sentence: str) -> None:
    (told,) = checks.differences(REFERENCE, finals)
    assert sentence in told


async def test_slots_are_those_of_the_living_each_one_once(redis_url: str) -> None:
    client: Any = redis.asyncio.from_url(redis_url, decode_responses=True)  # pyright: ignore[reportUnknownMemberType]
    prefix = "dalston:realtime:"
    await client.flushall()
    await client.sadd(prefix + "workers", "w1", "w2")
    await client.sadd(prefix + "sessions:active", "a", "b")
    await client.zadd(prefix + "leases", {"a": 1, "b": 1})
    await client.sadd(prefix + "worker:w1:sessions", "a", "b")
    await client.hset(prefix + "worker:w1", "active_sessions", 2)
    assert await checks.slots(client, {"a", "b"}) == []
    assert await checks.slots(client, {"a"}) == [
        "slots of no session (active): b",
        "slots of no session (leased): b",
        "slots of no session (held): b",
    ]
    assert "sessions without a slot (leased): c" in await checks.slots(client, {"a", "b", "c"})
    await client.sadd(prefix + "worker:w2:sessions", "a")
    assert await checks.slots(client, {"a", "b"}) == [
        "w2 counts None sessions and holds 1",
        "slots held twice: a",
    ]
    await client.aclose()


def test_a_traceback_is_told_once_with_its_exception(tmp_path: Path) -> None:
    log = tmp_path / "worker-1.log"
    log.write_text("INFO all is well\n")
    logs = checks.Logs(tmp_path)
    assert logs.troubles() == []
    with log.open("a") as file:
        file.write("Traceback (most recent call last):\n  File x\n    y()\nValueError: no\n")
    assert logs.troubles() == ["worker-1.log: Traceback (most recent call last):: ValueError: no"]
    assert logs.troubles() == []

"""
Frames that no client should send, to the gateway, in every protocol that it speaks, and to the
worker: none may crash either, and every session ends in order.

    python tests/chaos/fuzz.py --frames 100000 --seed 1

A real gateway, worker and Redis, and models that answer at once. The last line is one JSON object.
The exit status is 1 if something was broken; logs are in build/fuzz.
"""

import argparse
import asyncio
import json
import random
import struct
import sys
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import checks
from deployment import ROOT, Deployment, Size, deployed
from support import wire
from support.wire import Wire
from tongues import NATIVE, SESSION, TONGUES, Tongue

AT_ONCE = 16  # sessions
ENDS_WITHIN_S = 80.0
# Who sends too much is slowed down here too, but not to the speed of people.
_FASTER = {"DALSTON_MESSAGE_RATE": "500", "DALSTON_AUDIO_RATE": "20"}
SIZE = Size(gateways=1, workers=1, tritons=1, sessions=64, instant=True, gateway=_FASTER)


class Frames:
    """Of one session; `whole` is false once the protocol is broken so that no end can be told."""

    def __init__(self, rng: random.Random, tongue: Tongue = NATIVE):
        self._rng, self._tongue = rng, tongue
        self.whole = True

    def next(self) -> bytes:
        """One frame, or the fragments of one message."""
        rng = self._rng
        kind = rng.random()
        if kind < 0.40:
            return wire.frame(wire.TEXT, self.text())
        if kind < 0.75:
            return self._spoken()
        if kind < 0.85:
            return self._fragments()
        if kind < 0.95:
            return self._controls()
        if kind < 0.995:
            return wire.frame(wire.TEXT, rng.choice(self._tongue.sane).encode())
        self.whole = False
        return self._broken()

    def _spoken(self) -> bytes:
        """Audio as a client sends it; one that sends text may send bytes all the same."""
        wrap = self._tongue.wrap
        if wrap is None or self._rng.random() < 0.1:
            return wire.frame(wire.BINARY, self._audio())
        return wire.frame(wire.TEXT, wrap(self._audio()).encode())

    def _audio(self) -> bytes:
        rng = self._rng
        size = rng.choice((0, 1, 2, 3, 639, 3200, rng.randrange(9000), rng.randrange(9000)))
        if rng.random() < 0.01:
            size = rng.choice((1 << 20, (1 << 20) + 1, 300_000))
        if rng.random() < 0.3:
            return bytes(size)
        if rng.random() < 0.1:
            return (b"\xff\xff\xff\x7f\x00\x00\xc0\x7f" * (size // 8 + 1))[:size]  # NaN, as floats
        return rng.randbytes(min(size, 4096)) * (size // 4096 + 1)

    def text(self) -> bytes:
        rng = self._rng
        match rng.randrange(9):
            case 0:
                return rng.randbytes(rng.randrange(60)).decode("latin-1").encode()
            case 1:
                return json.dumps(self._value(0)).encode()
            case 2 | 3:
                return json.dumps(self._message()).encode()
            case 4:
                depth = rng.choice((10, 1000, 5000))
                return (
                    b'{"type":"config","x":' + b"[" * depth + b"]" * rng.choice((0, depth)) + b"}"
                )
            case 5:
                number = rng.choice(("1e999", "-1e999", "9" * 400, "NaN", "-Infinity", "1e-999"))
                return b'{"type":"config","vad_threshold":' + number.encode() + b"}"
            case 6:
                length = rng.choice((100, 16_384, 16_385, 70_000))
                return b'{"type":"' + b"x" * length + b'"}'
            case 7:
                return b'{"type":"config","language":"\\ud800\\u0000"}'
            case _:
                message = json.loads(rng.choice(self._tongue.sane))
                text = json.dumps(message | {"x": "\u00e9\U0001f600"}).encode()
                return text[: rng.randrange(len(text) + 1)]

    def _message(self) -> dict[str, Any]:
        rng, tongue = self._rng, self._tongue
        message: dict[str, Any] = {}
        if rng.random() < 0.8:
            message[tongue.tag] = rng.choice(tongue.kinds)
        for _ in range(rng.randrange(4)):
            message[rng.choice(tongue.keys)] = self._value(2)
        if tongue.end and json.loads(tongue.end).items() <= message.items() and rng.random() < 0.9:
            return json.loads(tongue.sane[0])  # else every session would be short
        return message

    def _value(self, depth: int) -> Any:
        rng = self._rng
        match rng.randrange(9 if depth < 4 else 7):
            case 0:
                return None
            case 1:
                return rng.random() < 0.5
            case 2:
                return rng.choice((0, -1, 1 << 31, 1 << 63, 1 << 64, 10**30))
            case 3:
                return rng.choice((0.0, -0.5, 1e308, 0.3))
            case 4:
                return rng.choice(("", "en", "en-US", "tlh", "\0", "auto", "x" * 2000))
            case 5 | 6:
                return rng.choice(self._tongue.kinds)
            case 7:
                return [self._value(depth + 1) for _ in range(rng.randrange(4))]
            case _:
                names = [rng.choice(self._tongue.keys) for _ in range(rng.randrange(4))]
                return {name: self._value(depth + 1) for name in names}

    def _fragments(self) -> bytes:
        """A message in pieces, with control frames between, as is allowed."""
        rng = self._rng
        text = rng.random() < 0.5
        payload = self.text() if text else self._audio()[:5000]
        cuts = sorted(rng.randrange(len(payload) + 1) for _ in range(rng.randrange(1, 5)))
        pieces = [payload[a:b] for a, b in zip([0, *cuts], [*cuts, len(payload)], strict=True)]
        out = b""
        for number, piece in enumerate(pieces):
            opcode = (wire.TEXT if text else wire.BINARY) if number == 0 else wire.CONTINUATION
            out += wire.frame(opcode, piece, fin=number == len(pieces) - 1)
            if rng.random() < 0.3 and number < len(pieces) - 1:
                out += wire.frame(wire.PING, b"between")
        return out

    def _controls(self) -> bytes:
        """Pings and pongs, some of them many, masked with anything."""
        rng = self._rng
        kind = rng.choice((wire.PING, wire.PONG))
        size = rng.choice((0, 1, 125, rng.randrange(126)))
        return b"".join(
            wire.masked(wire.frame(kind, rng.randbytes(size)), rng.randbytes(4))
            for _ in range(rng.choice((1, 1, 1, 1, 9, 40)))
        )

    def _broken(self) -> bytes:
        """What RFC 6455 forbids, or an end that no client of ours makes."""
        rng = self._rng
        match rng.randrange(14):
            case 0:
                return wire.frame(wire.TEXT, b'{"type":"\xff\xfe"}')  # no UTF-8
            case 1:
                return wire.frame(wire.BINARY, b"1234", masked=False)
            case 2:
                return wire.frame(wire.TEXT, b"{}", reserved=rng.randrange(1, 8))
            case 3:
                return wire.frame(rng.choice((3, 4, 7, 11, 15)), b"?")
            case 4:
                return wire.frame(wire.CONTINUATION, b"of nothing")
            case 5:
                return wire.frame(wire.PING, bytes(200))  # longer than a control frame may be
            case 6:
                return wire.frame(wire.PING, b"", fin=False)
            case 7:  # a control frame of any length in eight bytes
                head = struct.pack("!BBQ", 0x80 | rng.choice((8, 9, 10)), 0xFF, rng.randrange(200))
                return head + bytes(4 + rng.randrange(200))
            case 8:
                kind = rng.choice((wire.PING, wire.PONG, wire.CLOSE))
                return wire.frame(kind, b"", reserved=rng.randrange(1, 8))
            case 9:
                return wire.frame(rng.choice((wire.PING, wire.PONG)), b"naked", masked=False)
            case 10:  # a message within a message
                parts = [wire.frame(wire.TEXT, b"a", fin=False)]
                parts += [wire.frame(wire.CONTINUATION, b"", fin=False)] * rng.randrange(50)
                return b"".join(parts) + wire.frame(rng.choice((wire.TEXT, wire.BINARY)), b"b")
            case 11:  # a close, and more
                return wire.frame(wire.CLOSE, struct.pack("!H", 1000)) + self._controls()
            case 12:
                return wire.frame(
                    wire.CLOSE,
                    rng.choice(
                        (b"", b"\x03", struct.pack("!H", rng.choice((999, 1005, 5000))) + b"\xff")
                    ),
                )
            case _:
                return struct.pack("!BBQ", 0x82, 0xFF, 1 << 62) + bytes(4)  # a length of exabytes


@dataclass
class Result:
    frames: int = 0
    sessions: int = 0
    ended: Counter[str] = field(default_factory=Counter[str])  # by last message and close code
    paths: Counter[str] = field(default_factory=Counter[str])  # frames, by where they were sent
    broken: list[str] = field(default_factory=list[str])


async def session(
    port: int, tongue: Tongue, rng: random.Random, frames: int, result: Result
) -> None:
    """Some frames, then an end if there can be one."""
    fuzz = Frames(rng, tongue)
    address = f"{tongue.path}?{rng.choice(tongue.queries)}"
    result.sessions += 1
    try:
        line = await Wire.open(port, address)
    except ConnectionRefusedError as refused:
        return _note_refusal(str(refused), address, tongue, result)
    try:
        if tongue.first and rng.random() < 0.9:
            await line.send(wire.frame(wire.TEXT, rng.choice(tongue.first).encode()))
        for _ in range(frames):
            if line.ended or not fuzz.whole:
                break
            await line.send(fuzz.next())
            result.frames += 1
            result.paths[tongue.path] += 1
        if tongue.patient and not (fuzz.whole or line.ended):
            result.ended["left in the middle of a frame"] += 1
            return
        if fuzz.whole:
            await line.send(
                wire.frame(wire.TEXT, tongue.end.encode())
                if tongue.end
                else wire.frame(wire.CLOSE, struct.pack("!H", 1000))
            )
        assert line.finished
        try:
            await asyncio.wait_for(asyncio.shield(line.finished), ENDS_WITHIN_S)
        except TimeoutError:
            result.broken.append(f"{address} does not end ({_last(line)})")
    finally:
        await line.close()
    result.ended[f"{_last(line)} {line.close_code}"] += 1
    if line.close_code is None:
        result.broken.append(f"{address} ended without a close frame ({_last(line)})")
    elif (
        fuzz.whole
        and tongue.last
        and (_last(line) not in tongue.last or line.close_code in (1006, 1011))
    ):
        result.broken.append(f"{address} ended with {_last(line)} and {line.close_code}")


def _note_refusal(status: str, address: str, tongue: Tongue, result: Result) -> None:
    """Some of theirs are refused over HTTP, for good reasons."""
    result.ended[status] += 1
    if tongue.last or " 4" not in status:
        result.broken.append(f"{address}: {status}")


def _last(line: Wire) -> str:
    if not line.messages:
        return "nothing"
    last = line.messages[-1]
    return str(last.get("type") or last.get("message_type") or ", ".join(last))


async def fuzz(deployment: Deployment, frames: int, seed: int) -> Result:
    """So many frames in sessions of the gateway and of the worker, which take turns."""
    result, rng = Result(), random.Random(seed)
    gateway, worker = deployment.of("gateway")[0].port, deployment.of("worker")[0].port
    logs = checks.Logs(deployment.folder)
    began, pids = time.monotonic(), [m.pid for m in deployment.members.values()]
    turns = [tongue for tongue in TONGUES for _ in range(tongue.weight)]
    number = 0

    async def one(seed: int) -> None:
        nonlocal number
        number += 1
        tongue = turns[number % len(turns)]
        port = worker if tongue.path == SESSION else gateway
        own = random.Random(seed)
        length = min(own.choice((1, 5, 20, 100, 300)), frames - result.frames)
        try:
            await session(port, tongue, own, length, result)
        except OSError as error:
            result.broken.append(f"{tongue.path}: {error}")

    async def some() -> None:
        while result.frames < frames and len(result.broken) < 50:
            await one(rng.getrandbits(64))
            if number % 100 == 0:
                _say(f"{result.frames} frames, {result.sessions} sessions")

    await asyncio.gather(*(some() for _ in range(AT_ONCE)))
    deadline = time.monotonic() + 35
    while (
        found := await checks.slots(await deployment.redis(), ())
    ) and time.monotonic() < deadline:
        await asyncio.sleep(0.05)
    result.broken += found
    deadline = time.monotonic() + 10
    while (found := checks.connections(deployment)) and time.monotonic() < deadline:
        await asyncio.sleep(0.05)
    result.broken += found + logs.troubles()
    if [member.pid for member in deployment.members.values()] != pids:
        result.broken.append("a process died")
    _say(f"{result.frames} frames in {time.monotonic() - began:.0f} s")
    return result


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def main() -> int:
    assert __doc__
    parser = argparse.ArgumentParser(description=__doc__.strip().splitlines()[0])
    parser.add_argument("--frames", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--folder", type=Path, default=ROOT / "build" / "fuzz")
    args = parser.parse_args()

    async def run() -> Result:
        async with deployed(args.folder, SIZE) as deployment:
            return await fuzz(deployment, args.frames, args.seed)

    result = asyncio.run(run())
    for sentence in result.broken:
        _say(f"broken: {sentence}")
    told = {
        "frames": result.frames,
        "sessions": result.sessions,
        "paths": dict(result.paths),
        "ended": dict(result.ended.most_common()),
        "broken": len(result.broken),
        "seed": args.seed,
    }
    print(json.dumps(told))
    return 1 if result.broken else 0


if __name__ == "__main__":
    sys.exit(main())

"""
Connections that are made to cost a gateway something: a function for each kind.

    python tests/chaos/hostile.py KIND PORT CONNECTIONS SECONDS

makes such connections, a thread each: a process of its own, so that only the gateway is shared with
who measures what they cost (costs.py). One that is ended comes again.
"""

import contextlib
import json
import random
import select
import socket
import sys
import threading
import time
from collections.abc import Callable

from support import wire

STREAM = "/v1/audio/transcriptions/stream"
_AGAIN_S = 0.1

Ended = Callable[[], bool]


def _opened(port: int, path: str = STREAM, more: str = "", receive: int = 0) -> socket.socket:
    raw = socket.socket()
    if receive:
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive)
    raw.settimeout(5)
    raw.connect(("127.0.0.1", port))
    raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    raw.sendall(
        f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1\r\n"
        f"Upgrade: websocket\r\nConnection: Upgrade\r\n{more}"
        "Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n".encode()
    )
    if b" 101 " not in raw.recv(4096):
        raise ConnectionRefusedError
    return raw


def _push(raw: socket.socket, over: Ended, said: Callable[[], bytes], reads: bool = True) -> None:
    """Send as fast as it is taken, until the other side ends it."""
    raw.setblocking(False)
    left = b""
    while not over():
        readable, writable, _ = select.select([raw] if reads else [], [raw], [], 0.1)
        if readable and not raw.recv(1 << 16):
            return
        if writable:
            left = left or said()
            left = left[raw.send(left) :]


def _flood(port: int, over: Ended, frame: bytes, first: bytes = b"") -> None:
    with _opened(port) as raw:
        raw.sendall(first)
        many = frame * (65_536 // len(frame))
        _push(raw, over, lambda: many)


def pings(port: int, over: Ended) -> None:
    _flood(port, over, wire.frame(wire.PING, b""))


def pongs(port: int, over: Ended) -> None:
    _flood(port, over, wire.frame(wire.PONG, b""))


def empty_fragments(port: int, over: Ended) -> None:
    first = wire.frame(wire.BINARY, b"", fin=False)
    _flood(port, over, wire.frame(wire.CONTINUATION, b"", fin=False), first)


def tiny_fragments(port: int, over: Ended) -> None:
    first = wire.frame(wire.TEXT, b"{", fin=False)
    _flood(port, over, wire.frame(wire.CONTINUATION, b"x", fin=False), first)


def empty_frames(port: int, over: Ended) -> None:
    _flood(port, over, wire.frame(wire.BINARY, b""))


def tiny_frames(port: int, over: Ended) -> None:
    _flood(port, over, wire.frame(wire.BINARY, b"\0"))


def pushed_audio(port: int, over: Ended) -> None:
    _flood(port, over, wire.frame(wire.BINARY, bytes(3200)))


def messages_without_audio(port: int, over: Ended) -> None:
    """Each differs from the one before."""

    def config() -> bytes:
        prompt = f"{random.random()}".ljust(15_000, "x")
        return wire.frame(wire.TEXT, json.dumps({"type": "config", "prompt": prompt}).encode())

    with _opened(port) as raw:
        _push(raw, over, config)


def byte_by_byte(port: int, over: Ended) -> None:
    audio, at = wire.frame(wire.BINARY, bytes(3200)), -1

    def one() -> bytes:
        nonlocal at
        at += 1
        time.sleep(0.0005)  # or TCP would make packets of many
        return audio[at % len(audio) :][:1]

    with _opened(port) as raw:
        _push(raw, over, one)


def never_reads(port: int, over: Ended) -> None:
    asked = wire.frame(wire.PING, bytes(125)) * 20 + wire.frame(wire.TEXT, b'{"type":"ping"}') * 20
    with _opened(port, receive=4096) as raw:
        _push(raw, over, lambda: asked, reads=False)


def refused(port: int, over: Ended) -> None:
    """Goes on sending after it was refused."""
    said = wire.frame(wire.PING, b"") * 1000 + wire.frame(wire.BINARY, bytes(3200)) * 10
    with _opened(port, STREAM + "?vad_threshold=17") as raw:
        _push(raw, over, lambda: said)


def half_handshakes(port: int, over: Ended) -> None:
    """Many connections that ask half a question."""
    made = list[socket.socket]()
    try:
        while not over():
            raw = socket.create_connection(("127.0.0.1", port), 5)
            made.append(raw)
            raw.sendall(f"GET {STREAM} HTTP/1.1\r\nHost: 127.0.0.1\r\nUpgrade: webs".encode())
            time.sleep(0.01)
    finally:
        for raw in made:
            raw.close()


def _crumbs(port: int, over: Ended, head: bytes, crumb: bytes) -> None:
    with socket.create_connection(("127.0.0.1", port), 5) as raw:
        raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        raw.sendall(head)

        def one() -> bytes:
            time.sleep(0.0005)
            return crumb

        _push(raw, over, one)


def slow_headers(port: int, over: Ended) -> None:
    _crumbs(port, over, f"GET {STREAM} HTTP/1.1\r\nX-Long: ".encode(), b"x")


def slow_bodies(port: int, over: Ended) -> None:
    head = (
        b"POST /v1/realtime/status HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 1000000\r\n\r\n"
    )
    _crumbs(port, over, head, b"x")


def forged_addresses(port: int, over: Ended) -> None:
    """Comes again and again, each time from somewhere else as its header says."""
    while not over():
        address = ".".join(str(random.randrange(1, 255)) for _ in range(4))
        with _opened(port, more=f"X-Forwarded-For: {address}\r\n") as raw:
            raw.sendall(wire.frame(wire.BINARY, bytes(3200)))
        time.sleep(0.02)


KINDS: dict[str, Callable[[int, Ended], None]] = {
    kind.__name__: kind
    for kind in (
        pings,
        pongs,
        empty_fragments,
        tiny_fragments,
        empty_frames,
        tiny_frames,
        pushed_audio,
        messages_without_audio,
        byte_by_byte,
        never_reads,
        refused,
        half_handshakes,
        slow_headers,
        slow_bodies,
        forged_addresses,
    )
}


def main() -> None:
    kind, port, count, seconds = sys.argv[1:]
    until = time.monotonic() + float(seconds)

    def over() -> bool:
        return time.monotonic() > until

    def again() -> None:
        while not over():
            with contextlib.suppress(OSError):
                KINDS[kind](int(port), over)
            time.sleep(_AGAIN_S)

    threads = [threading.Thread(target=again) for _ in range(int(count))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


if __name__ == "__main__":
    main()

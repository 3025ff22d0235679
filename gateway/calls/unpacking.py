"""
Live audio that comes in a container, as browsers record it: its bytes go in as they come, samples
come out, in a thread of its own for each caller. Messages keep their place among the audio.

FFmpeg reads, and waits for more where there is none; so when it asks for more, all that came before
is decoded and passed on, and a message that stood there may follow. While the caller is paused it
waits too, with a few kilobytes that are decoded at most.
"""

import asyncio
import contextlib
import threading
from collections import deque
from collections.abc import Callable
from typing import TypeVar

from dalston.gateway.containers import NotAudio, live_format, samples
from dalston.gateway.protocols.protocol import Container
from dalston.orchestrator.protocol.messages import End, Frame, MessageError, parse

T = TypeVar("T")

AT_ONCE = 4096  # bytes of a container that are decoded before it is looked who is paused
PIECE = 16_000  # bytes of samples that are passed on together
SNIFFED = 8  # bytes that tell a container from others


class Unpacking:
    """One caller's container. Everything is to be called in the event loop."""

    def __init__(
        self,
        container: Container,
        receive: Callable[[Frame], None],
        refuse: Callable[[str], None],
    ):
        """container: what it is. receive: is called with samples, and with messages. refuse: is
        called with a sentence, once, if it is no such container."""
        self._container: Container = container
        self._receive, self._refuse = receive, refuse
        self._loop = asyncio.get_running_loop()
        self._changed = threading.Condition()
        # Of both threads, under the condition.
        self._line = deque[Frame]()
        self._paused = self._closed = False
        # Of the thread that decodes.
        self._decoded = bytearray()
        self._last: str | None = None  # the end, as the caller said it
        self._thread = threading.Thread(target=self._run, name="unpacking", daemon=True)
        self._thread.start()

    def push(self, frame: Frame) -> None:
        with self._changed:
            self._line.append(frame)
            self._changed.notify()

    def pause(self) -> None:
        with self._changed:
            self._paused = True

    def resume(self) -> None:
        with self._changed:
            self._paused = False
            self._changed.notify()

    def close(self) -> None:
        """Nothing more is wanted."""
        with self._changed:
            self._closed = True
            self._changed.notify()

    # In the thread.

    def _run(self) -> None:
        sentence = ""
        try:
            first = self._first()
            if first:  # else no audio came at all
                for piece in samples(self, live_format(self._container, first)):
                    self._decoded += piece
                    if len(self._decoded) >= PIECE:
                        self._pass_on()
                if self._last is None:
                    sentence = "the audio's container cannot be read any further"
        except NotAudio as error:
            sentence = str(error)
        except Exception as error:  # of FFmpeg's, or ours: the caller has to hear of it
            sentence = f"the audio cannot be decoded: {error!r}"
        self._pass_on()
        if sentence and not self._closed:
            self._call(self._refuse, sentence)
        elif self._last is not None:
            self._call(self._receive, self._last)
        with self._changed:
            self._line.clear()

    def _first(self) -> bytes:
        """Enough to tell what it is; it stays in the line."""
        head = self.read(SNIFFED)
        while 0 < len(head) < SNIFFED and (more := self.read(SNIFFED - len(head))):
            head += more
        with self._changed:
            self._line.appendleft(head)
        return head

    def read(self, size: int) -> bytes:
        """The next bytes, as FFmpeg asks for them; none at the end."""
        while self._last is None:
            with self._changed:
                if not self._line or self._paused:
                    self._pass_on()
                while not self._closed and (self._paused or not self._line):
                    self._changed.wait()
                if self._closed:
                    return b""
                frame = self._line.popleft()
                if isinstance(frame, bytes):
                    taken = frame[: min(size, AT_ONCE)]
                    if len(taken) < len(frame):
                        self._line.appendleft(frame[len(taken) :])
                    if taken:
                        return taken
                    continue
            if _is_end(frame):
                self._last = frame
            else:
                self._pass_on()
                self._call(self._receive, frame)
        return b""

    def _pass_on(self) -> None:
        if self._decoded and not self._closed:
            self._call(self._receive, bytes(self._decoded))
        self._decoded.clear()

    def _call(self, call: Callable[[T], None], what: T) -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed
            self._loop.call_soon_threadsafe(self._unless_closed, call, what)

    def _unless_closed(self, call: Callable[[T], None], what: T) -> None:
        if not self._closed:
            call(what)


def _is_end(text: str) -> bool:
    try:
        return isinstance(parse(text), End)
    except MessageError:
        return False

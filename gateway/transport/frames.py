"""
Frames of a WebSocket as they are on the wire: RFC 6455, section 5.2.
"""

from websockets.frames import apply_mask  # pyright: ignore[reportPrivateImportUsage]

# The first byte of a whole message: final, no extension.
TEXT, BINARY = 0x81, 0x82
CLOSE = 0x8  # from here on opcodes are those of control frames


class Cutter:
    """Cuts what a client sends where a frame ends."""

    def __init__(self, longest: int):
        """longest: bytes of a frame. Before one that is longer cutting stops."""
        self._longest = longest
        self._data = b""  # that is to be cut
        self._at: int = 0  # and from where on
        self._rest = bytearray()  # the beginning of a frame
        self._wanted: int = 0  # bytes of it, as far as is known
        self.too_long = 0  # bytes that the next frame says it has, at which cutting stopped
        self._passed_over = 0  # bytes of it that are still to come, with its head

    @property
    def between(self) -> bool:
        """What comes next is the beginning of a frame."""
        return not (self.too_long or self._data or self._rest or self._passed_over)

    @property
    def left(self) -> bytes:
        """What was not looked at yet."""
        return self._data[self._at :]

    def feed(self, data: bytes) -> None:
        if self._rest:
            self._rest += data
            if len(self._rest) < self._wanted:
                return
            data, self._rest = bytes(self._rest), bytearray()
        self._data, self._at = self.left + data if self._data else data, 0

    def next(self) -> bytes | None:
        """The next frame, if it is whole and not too long."""
        data, at = self._data, self._at
        if self._passed_over:
            passed = min(self._passed_over, len(data) - at)
            self._passed_over -= passed
            self._at = at = at + passed
        if at < len(data) and not self.too_long:
            end = at + self._size(data, at)
            if self.too_long:
                return None
            if end <= len(data):
                self._at = end
                return data[at:end]
            self._rest += data[at:]
            self._wanted = end - at
            self._at = len(data)
        if self._at == len(data):
            self._data, self._at = b"", 0
        return None

    def pass_over(self) -> None:
        """Go on after the frame at which cutting stopped."""
        self._passed_over, self.too_long = self._size(self._data, self._at), 0

    def _size(self, data: bytes, at: int) -> int:
        """The size of the frame that begins at `at`; while its head is incomplete, a size that is
        larger than what is there."""
        if len(data) < at + 2:
            return 2
        masked, length = data[at + 1] & 0x80, data[at + 1] & 0x7F
        head = 2
        if length >= 126:
            head = 4 if length == 126 else 10
            if len(data) < at + head:
                return head
            length = int.from_bytes(data[at + 2 : at + head])
        if length > self._longest:
            self.too_long = length
        return head + (4 if masked else 0) + length


def message(frame: bytes) -> str | bytes | None:
    """The message in a frame that holds a whole one, unmasked; None for any other frame, and for a
    text that is none."""
    kind = frame[0]
    if kind not in (BINARY, TEXT) or not frame[1] & 0x80:
        return None
    length = frame[1] & 0x7F
    mask = 2 if length < 126 else 4 if length == 126 else 10
    said = apply_mask(memoryview(frame)[mask + 4 :], frame[mask : mask + 4])
    if kind == BINARY:
        return said
    try:
        return said.decode()
    except UnicodeDecodeError:
        return None

"""
The seam between calls and what their clients speak.

    frames of the client  -- receive -->  messages of ours and audio, for the session
    messages of ours      -- say ------>  frames for the client

A protocol is a pure mapping with state: no I/O, no clock, no task. Messages of ours are text here,
as they are on the wire (orchestrator/protocol/messages.py reads and writes them), so that the
native protocol passes them on without a look at them.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Literal, NamedTuple

from dalston.orchestrator.protocol.messages import Error, Frame, Notice, SessionConfig

# What a caller gets when no slot is free: an answer at once, a place in line, or a slot of a worker
# that has another variant only.
Overflow = Literal["reject", "queue", "degrade"]
# What live audio may come in, as browsers record it; auto: whichever of them it is.
Container = Literal["webm", "ogg", "mp4", "auto"]


@dataclass(frozen=True)
class Opening:
    """How a client opens its connection."""

    query: Sequence[tuple[str, str]]  # of the URL, in order; a name may come several times
    headers: Mapping[str, str]  # names in lower case
    clock: Callable[[], float] = lambda: 0.0  # seconds since 1970

    def all(self, name: str) -> list[str]:
        """Every value of this name in the query."""
        return [value for known, value in self.query if known == name]

    def one(self, name: str, default: str = "") -> str:
        """The last of them."""
        return next((value for value in reversed(self.all(name))), default)


@dataclass(frozen=True)
class Resume:
    """A session that a client goes on with."""

    session_id: str
    last_segment: int  # number of the last final the client has; -1: none


@dataclass(frozen=True)
class Asked:
    """What a client asks for."""

    config: SessionConfig
    warnings: Sequence[Notice] = ()  # told in session.begin
    overflow: Overflow | None = None  # None: as the gateway is set
    resume: Sequence[Resume] = ()  # one for each channel
    # Channels that have a session each: audio is the samples of all in turn, `config` is that of
    # one channel, and messages say their channel's number.
    channels: int = 1
    key: str = ""  # where the client shows it with what it asks for
    # What the audio comes in, if its samples have to be got out of it; then `config` says what they
    # are afterwards.
    container: Container | None = None


@dataclass(frozen=True)
class HttpAnswer:
    """What a client is answered instead of a WebSocket."""

    status: int
    body: bytes  # JSON
    headers: Mapping[str, str] = field(default_factory=dict[str, str])


class ClientError(Exception):
    """What a client sent cannot be followed; says why. It ends the call."""


class Reply(NamedTuple):
    """What the client is told at once, by its protocol alone: no session has to know of it."""

    frame: Frame


class ClientProtocol(ABC):
    """One client's side of a protocol, from its opening to the close."""

    # The WebSocket subprotocols that we accept if a client offers them.
    subprotocols: ClassVar[Sequence[str]] = ()
    # False: the connection is opened only for who gets a session, and denial() is the answer to
    # everybody else. True: it is opened for everybody, and say() tells them.
    opens_at_once: ClassVar[bool] = True
    # How long it may take until a client says what it wants, in seconds; None: as the gateway is
    # set.
    patience_s: ClassVar[float | None] = None
    # Whether a client can go on with its session at another gateway, if it asks for acks.
    resumes: ClassVar[bool] = False
    # Whether a client shows its key only with what it asks for (Asked.key).
    shows_key_later: ClassVar[bool] = False
    # The name by which others listen to what is said, "" until it is known: then the client itself
    # is told nothing. None: the client is told.
    topic: str | None = None

    def greeting(self) -> Sequence[Frame]:
        """What the client is told before it says anything."""
        return ()

    def denial(self, error: Error, request_id: str) -> HttpAnswer:
        """What a caller is answered who gets no session, where the connection is not open yet."""
        raise NotImplementedError

    @abstractmethod
    def asked(self) -> Asked | None:
        """What the client asks for; None until it has said so. Called again after each of its
        frames. Raises ParameterError."""

    @abstractmethod
    def receive(self, frame: Frame) -> Sequence[Frame | Reply]:
        """What the client's frame means: messages of ours (text), audio (bytes, cut anywhere), and
        replies. A text that is no message of ours is refused by the session, which goes on. Raises
        ClientError, which ends the call."""

    @abstractmethod
    def say(self, message: str) -> Sequence[Frame]:
        """What the client is told for a message of ours, such as `parse_server` reads; it may be
        nothing. A Reply may come between two of these frames."""

    @abstractmethod
    def close_code(self, reason: int) -> int:
        """What the connection is closed with. reason: a CloseCode, or another with which a worker
        has closed."""

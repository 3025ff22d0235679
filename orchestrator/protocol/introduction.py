"""
How a gateway and a worker prove to each other that they have the same secret, without sending it.

    gateway -> worker   its request to connect, with a number that it made up      NONCE_HEADER
    worker -> gateway   its answer, with a number of its own and its proof         PROOF_HEADER
    gateway -> worker   its proof, as the first frame; settings or a snapshot follow at once

Whoever registers as a worker without the secret gets neither the secret nor anything that a client
says. A proof is of both numbers, so it is of no use a second time, and of the address at which the
worker says it is reached, so nobody can pass on that of another worker.
"""

import hmac
import secrets
from dataclasses import dataclass, field

NONCE_HEADER, PROOF_HEADER = "Dalston-Nonce", "Dalston-Proof"
_NONCE_LETTERS = 64  # at most, of what a stranger sends


def nonce() -> str:
    return secrets.token_hex(16)


@dataclass(frozen=True)
class Introduction:
    """What both sides know of one connection. gateway, worker: their numbers."""

    secret: str = field(repr=False)
    gateway: str
    worker: str
    endpoint: str

    def _proof(self, side: str) -> str:
        about = "\n".join((side, self.gateway, self.worker, self.endpoint))
        return hmac.digest(self.secret.encode(), about.encode(), "sha256").hex()

    def answer(self) -> str:
        """The worker's, for PROOF_HEADER."""
        return f"{self.worker} {self._proof('worker')}"

    def first_frame(self) -> str:
        """The gateway's."""
        return self._proof("gateway")

    def is_first_frame(self, frame: str | bytes) -> bool:
        sent = frame.encode(errors="replace") if isinstance(frame, str) else frame
        return hmac.compare_digest(sent, self.first_frame().encode())


def introduced(secret: str, gateway: str, endpoint: str) -> Introduction | None:
    """The worker's view, of a gateway that has sent this number; None if it is none."""
    if not 0 < len(gateway) <= _NONCE_LETTERS or not gateway.isalnum():
        return None
    return Introduction(secret, gateway, nonce(), endpoint)


def checked(secret: str, gateway: str, endpoint: str, answer: str) -> Introduction | None:
    """The gateway's view, of a worker with this answer; None if it proves nothing."""
    introduction = Introduction(secret, gateway, answer.partition(" ")[0], endpoint)
    proven = hmac.compare_digest(introduction.answer().encode(), answer.encode(errors="replace"))
    return introduction if proven else None

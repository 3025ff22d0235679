"""
What can go wrong, and the sequence in which it does: from the seed alone.
"""

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

Action = Literal[
    "kill",  # -9
    "kill server",  # Triton's own process, under the one that watches it
    "kill stub",  # the process of one model
    "stop",  # SIGSTOP, later SIGCONT
    "term",  # SIGTERM, as a deploy does
    "reset",
    "silence",  # half-open
    "delay",
    "throttle",
    "lose",  # packets
    "truncate",
    "restart kept",
    "restart emptied",
    "fail over",  # the one that takes over lacks what was written last
    "fill disk",
    "starve",  # of descriptors
    "set clock",  # by minutes to hours, and back
    "slow reader",
    "storm",  # of connects that hang up
]
Where = Literal[
    "gateway",
    "worker",
    "triton",
    "redis",
    "sentinel",
    "client-gateway",
    "gateway-worker",
    "worker-triton",
    "redis link",
    "client",
]
Kind = tuple[Action, Where]
KINDS: tuple[Kind, ...] = (
    ("kill", "gateway"),
    ("kill", "worker"),
    ("kill", "triton"),
    ("kill server", "triton"),
    ("kill stub", "triton"),
    ("kill", "redis"),
    ("stop", "gateway"),
    ("stop", "worker"),
    ("stop", "triton"),
    ("stop", "redis"),
    ("term", "gateway"),
    ("term", "worker"),
    ("reset", "client-gateway"),
    ("silence", "client-gateway"),
    ("delay", "client-gateway"),
    ("throttle", "client-gateway"),
    ("lose", "client-gateway"),
    ("truncate", "client-gateway"),
    ("reset", "gateway-worker"),
    ("silence", "gateway-worker"),
    ("delay", "gateway-worker"),
    ("throttle", "gateway-worker"),
    ("lose", "gateway-worker"),
    ("truncate", "gateway-worker"),
    ("reset", "worker-triton"),
    ("silence", "worker-triton"),
    ("delay", "worker-triton"),
    ("throttle", "worker-triton"),
    ("lose", "worker-triton"),
    ("truncate", "worker-triton"),
    ("reset", "redis link"),
    ("silence", "redis link"),
    ("delay", "redis link"),
    ("throttle", "redis link"),
    ("lose", "redis link"),
    ("truncate", "redis link"),
    ("restart kept", "redis"),
    ("restart emptied", "redis"),
    ("fail over", "redis"),
    ("kill", "sentinel"),
    ("stop", "sentinel"),
    ("fill disk", "gateway"),
    ("fill disk", "worker"),
    ("fill disk", "redis"),
    ("starve", "gateway"),
    ("starve", "worker"),
    ("set clock", "gateway"),
    ("set clock", "worker"),
    ("set clock", "redis"),
    ("slow reader", "client"),
    ("storm", "client"),
)
# Of a pair, the other one is well before something is done to this one. Always for Tritons: both
# away for longer than OUTAGE_SECONDS may cost an utterance. Of gateways and workers mostly.
SPARED = 0.75


@dataclass(frozen=True)
class Fault:
    number: int  # from 0
    action: Action
    where: Where
    target: int  # which of them; taken modulo how many there are
    after_s: float  # since the one before
    lasting_s: float  # of what is taken back
    all: bool  # every connection there, not one caller's
    spared: bool

    @property
    def kind(self) -> str:
        return f"{self.action} {self.where}"

    def __str__(self) -> str:
        return f"#{self.number} {self.kind} {self.target}"


def kinds(*, sentinels: bool, clocks: bool) -> list[Kind]:
    """Those that can happen to a deployment."""
    return [
        (action, where)
        for action, where in KINDS
        if (sentinels or (action != "fail over" and where != "sentinel"))
        and (clocks or action != "set clock")
    ]


def plan(seed: int, gap_s: tuple[float, float], kinds: Sequence[Kind] = KINDS) -> Iterator[Fault]:
    """Endless. Every kind comes once in each round, in an order of its own."""
    rng = random.Random(seed)
    number = 0
    while True:
        for action, where in rng.sample(kinds, len(kinds)):
            yield Fault(
                number,
                action,
                where,
                target=rng.randrange(1 << 16),
                after_s=rng.uniform(*gap_s),
                lasting_s=rng.uniform(1.0, 5.0),
                all=rng.random() < 0.3,
                spared=where == "triton" or rng.random() < SPARED,
            )
            number += 1

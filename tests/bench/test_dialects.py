"""
Callers who speak another service's protocol, and the like of them who speak ours.
"""

from urllib.parse import parse_qsl

import pytest
from dialects import DIALECTS, natively

from dalston.gateway.protocols import PROTOCOLS
from dalston.gateway.protocols.native import Native
from dalston.gateway.protocols.protocol import Opening


@pytest.mark.parametrize("name", DIALECTS)
def test_their_like_ask_for_the_same_session(name: str) -> None:
    dialect, native = DIALECTS[name], natively(DIALECTS[name])
    protocol = PROTOCOLS[dialect.path](Opening(parse_qsl(dialect.query), {}))
    for frame in (*dialect.opening, dialect.wrap(bytes(dialect.rate))):
        protocol.receive(frame)
    asked = protocol.asked()
    assert asked
    assert Native(Opening(parse_qsl(native.query), {})).asked().config == asked.config
    assert (native.rate, native.wrap(b"audio")) == (dialect.rate, b"audio")

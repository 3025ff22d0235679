"""
The way in for callers: where the gateways are, and what is shown there.

Written from docs/protocol.md alone, as caller.py is.
"""

import random
import ssl
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlencode

from websockets.asyncio.client import connect

PATH = "/v1/audio/transcriptions/stream"

# The places that a key may be shown in: options of a connection, and parameters.
_Shown = tuple[dict[str, Any], dict[str, str]]
_PLACES: tuple[Callable[[str], _Shown], ...] = (
    lambda key: ({"additional_headers": {"Authorization": f"Bearer {key}"}}, {}),
    lambda key: ({"additional_headers": {"X-API-Key": key}}, {}),
    lambda key: ({"additional_headers": {"xi-api-key": key}}, {}),
    lambda key: ({"subprotocols": ["dalston", f"dalston.api-key.{key}"]}, {}),
    lambda key: ({}, {"api_key": key}),
)


@dataclass(frozen=True)
class Door:
    """One of the gateways' addresses, and a key, for whoever connects."""

    urls: Sequence[str]  # ws:// or wss://
    key: str = ""
    tls: ssl.SSLContext | None = None

    def connect(
        self, gateway: int, query: Mapping[str, str], rng: random.Random, **options: Any
    ) -> connect:
        """A connection to one of the gateways; the key is in any of its places."""
        shown: _Shown = rng.choice(_PLACES)(self.key) if self.key else ({}, {})
        url = f"{self.urls[gateway]}{PATH}?{urlencode({**query, **shown[1]})}"
        return connect(url, ssl=self.tls, compression=None, proxy=None, **shown[0], **options)

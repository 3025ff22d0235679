"""
Which web pages may call, and by which names of this gateway.

A browser takes any page to any address it can reach, this machine's own included. It says which
page it was (Origin), and by which name the page called us (Host). Where no key keeps strangers out,
these have to:

- By its name a page reaches a gateway that is published on the loopback interface only if that
  name was made to mean this machine (DNS rebinding): there Host has to be a loopback name, or an
  address, which nobody can make mean another machine.
- Streams and requests that change something are for pages of this machine, and of the host that
  they call. Programs, which send no Origin, are no pages.

With keys any page may call, since it has to show one. DALSTON_ALLOWED_HOSTS and
DALSTON_ALLOWED_ORIGINS say it otherwise, with keys and without.
"""

from collections.abc import Iterable, Sequence
from http import HTTPStatus
from ipaddress import ip_address
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from dalston.gateway.settings import GatewaySettings
from dalston.gateway.transport.refusal import refuse

_SAFE = ("GET", "HEAD", "OPTIONS")  # methods that change nothing
_PORTS = {"http": 80, "https": 443}


class Sites:
    def __init__(self, settings: GatewaySettings, keyless: bool):
        self._hosts, self._origins = settings.allowed_hosts, settings.allowed_origins
        self._keyless = keyless
        self._local = keyless and is_loopback(settings.reached_at)

    def objection(self, hosts: Sequence[str], origins: Iterable[str], changes: bool) -> str:
        """Why a request is refused, or nothing. hosts, origins: the headers of these names.
        changes: it does more than read."""
        names = [_name(host) for host in hosts]
        if not all(self._may_be_called(name) for name in names):
            return (
                "this gateway is not called by this name: "
                "DALSTON_ALLOWED_HOSTS says which names it has"
            )
        if changes and not all(self._may_call(origin, names) for origin in origins):
            return (
                "pages of this origin may not call this gateway: "
                "DALSTON_ALLOWED_ORIGINS says which may"
            )
        return ""

    def _may_be_called(self, name: str) -> bool:
        # Probes call by address.
        if is_loopback(name) or _is_address(name):
            return True
        return not self._local if self._hosts is None else _listed(name, self._hosts)

    def _may_call(self, origin: str, names: Sequence[str]) -> bool:
        if self._origins is not None:
            return "*" in self._origins or _among(origin, self._origins)
        name = _name(origin.partition("://")[2])
        return not self._keyless or is_loopback(name) or name in names


def _name(host: str) -> str:
    """The name or address in `host[:port]`; nothing, which is no name, if there is none."""
    try:
        return (urlsplit(f"//{host}").hostname or "").rstrip(".")
    except ValueError:
        return ""


def is_loopback(name: str) -> bool:
    """Whether a name or an address is this machine, for whoever says it."""
    if name == "localhost" or name.endswith(".localhost"):  # RFC 6761, section 6.3
        return True
    try:
        return ip_address(name).is_loopback
    except ValueError:
        return False


def _is_address(name: str) -> bool:
    try:
        ip_address(name)
    except ValueError:
        return False
    return True


def _listed(name: str, names: Sequence[str]) -> bool:
    """Whether one of the names is this, or `*.example` and this is below it."""
    return bool(name) and any(
        pattern in ("*", name) or (pattern.startswith("*.") and name.endswith(pattern[1:]))
        for pattern in names
    )


def _among(origin: str, origins: Sequence[str]) -> bool:
    if origin == "null":  # of files, and of pages that say not where they come from
        return "null" in origins
    said = _parts(origin)
    return said is not None and any(
        parts[::2] == said[::2] and _listed(said[1], [parts[1]])
        for parts in map(_parts, origins)
        if parts
    )


def _parts(origin: str) -> tuple[str, str, int | None] | None:
    """Scheme, name and port."""
    try:
        parts = urlsplit(origin)
        return parts.scheme, parts.hostname or "", parts.port or _PORTS.get(parts.scheme)
    except ValueError:
        return None


def for_sites(app: ASGIApp, sites: Sites) -> ASGIApp:
    """Refuses what other sites ask for, with 403 and a sentence, before the app hears of it."""

    async def checked(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket"):
            return await app(scope, receive, send)
        headers = Headers(scope=scope)
        changes = scope["type"] == "websocket" or scope["method"] not in _SAFE
        sentence = sites.objection(headers.getlist("host"), headers.getlist("origin"), changes)
        if not sentence:
            return await app(scope, receive, send)
        await refuse(scope, receive, send, HTTPStatus.FORBIDDEN, sentence)

    return checked

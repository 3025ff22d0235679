"""
A Hugging Face hub on this machine: one repository, the endpoints that huggingface_hub uses to
download a snapshot, and the ways in which downloads go wrong.

As the real one does, it answers for small files itself and sends you for large ones (LFS) to
another host, the CDN, whose answers carry no names and no hashes.
"""

import hashlib
import json
import threading
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit

REPOSITORY = "owner/whisper-tiny"
REVISION = "0123456789abcdef0123456789abcdef01234567"
_LARGE = 100_000  # bytes


@dataclass
class Hub:
    files: dict[str, bytes]
    # What the CDN or the hub sends instead, by file name.
    tampered: dict[str, bytes] = field(default_factory=dict[str, bytes])
    # The connection breaks after so many bytes, for the first, second, ... download of a file.
    broken: dict[str, list[int]] = field(default_factory=dict[str, list[int]])
    # Files whose hash is known, but that are not there.
    hidden: set[str] = field(default_factory=set[str])
    # Every request is refused so: status and X-Error-Code.
    refused: tuple[int, str] | None = None
    url: str = ""
    cdn_url: str = ""
    requests: list[str] = field(default_factory=list[str])  # "GET /path", in order

    def sha256(self, name: str) -> str:
        return hashlib.sha256(self.files[name]).hexdigest()

    def etag(self, name: str) -> str:
        """Of large files their SHA-256, of small ones git's hash."""
        data = self.files[name]
        if len(data) > _LARGE:
            return self.sha256(name)
        return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()

    def tree(self) -> list[dict[str, object]]:
        entries = list[dict[str, object]]()
        for name, data in self.files.items():
            if name in self.hidden:
                continue
            entry: dict[str, object] = {"type": "file", "path": name, "size": len(data)}
            entry["oid"] = self.etag(name)[:40]
            if len(data) > _LARGE:
                entry["lfs"] = {"oid": self.sha256(name), "size": len(data), "pointerSize": 134}
            entries.append(entry)
        return entries


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: Hub

    def log_message(self, format: str, *args: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self.answer()

    def do_GET(self) -> None:
        self.answer()

    def answer(self) -> None:
        hub, path = self.hub, urlsplit(self.path).path
        hub.requests.append(f"{self.command} {path}")
        if hub.refused:
            status, code = hub.refused
            self.send(status, {"X-Error-Code": code, "X-Error-Message": "no such thing"}, b"{}")
        elif path == f"/api/models/{REPOSITORY}/tree/{REVISION}":
            self.send(200, {"Content-Type": "application/json"}, json.dumps(hub.tree()).encode())
        elif path == f"/api/models/{REPOSITORY}/revision/{REVISION}":
            siblings = [
                {"rfilename": name, "size": len(data)}
                for name, data in hub.files.items()
                if name not in hub.hidden
            ]
            about = {"id": REPOSITORY, "sha": REVISION, "siblings": siblings}
            self.send(200, {"Content-Type": "application/json"}, json.dumps(about).encode())
        elif path.startswith(f"/{REPOSITORY}/resolve/{REVISION}/"):
            self.resolve(path.rsplit("/", 1)[1])
        elif path.startswith("/cdn/"):
            self.content(path.rsplit("/", 1)[1], {})
        else:
            self.send(404, {"X-Error-Code": "RevisionNotFound"}, b"{}")

    def resolve(self, name: str) -> None:
        hub = self.hub
        headers = {"X-Repo-Commit": REVISION, "ETag": f'"{hub.etag(name)}"'}
        if len(hub.files[name]) <= _LARGE:
            self.content(name, headers)
            return
        headers |= {
            "X-Linked-ETag": f'"{hub.etag(name)}"',
            "X-Linked-Size": str(len(hub.files[name])),
            "Location": f"{hub.cdn_url}/cdn/{name}",
        }
        self.send(302, headers, b"")

    def content(self, name: str, headers: dict[str, str]) -> None:
        hub = self.hub
        data, status = hub.tampered.get(name, hub.files[name]), 200
        if wanted := self.headers.get("Range"):
            first = int(wanted.removeprefix("bytes=").split("-")[0])
            headers = headers | {"Content-Range": f"bytes {first}-{len(data) - 1}/{len(data)}"}
            data, status = data[first:], 206
        breaks = hub.broken.get(name, []) if self.command == "GET" else []
        self.send(status, headers, data, breaks.pop(0) if breaks else None)

    def send(
        self, status: int, headers: dict[str, str], data: bytes, break_after: int | None = None
    ) -> None:
        self.send_response(status)
        for key, value in (headers | {"Content-Length": str(len(data))}).items():
            self.send_header(key, value)
        self.end_headers()
        if self.command == "HEAD":
            return
        self.wfile.write(data[:break_after])
        self.close_connection = break_after is not None


@contextmanager
def serving(files: dict[str, bytes]) -> Generator[Hub]:
    hub = Hub(files)
    handler = type("Handler", (_Handler,), {"hub": hub})
    servers = [ThreadingHTTPServer(("127.0.0.1", 0), handler) for _ in range(2)]
    hub.url, hub.cdn_url = (f"http://127.0.0.1:{server.server_port}" for server in servers)
    threads = [threading.Thread(target=server.serve_forever, args=[0.02]) for server in servers]
    for thread in threads:
        thread.start()
    try:
        yield hub
    finally:
        for server, thread in zip(servers, threads, strict=True):
            server.shutdown()
            server.server_close()
            thread.join()

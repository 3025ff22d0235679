"""
A Python package index on this machine: the pages that pip reads, wheels made of what they should
hold, and the ways in which downloads go wrong.
"""

import io
import threading
import time
import zipfile
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


def wheel(name: str, version: str, members: Mapping[str, bytes]) -> tuple[str, bytes]:
    """File name and content of a wheel that holds these files and no code."""
    written, about = io.BytesIO(), f"{name.replace('-', '_')}-{version}.dist-info"
    with zipfile.ZipFile(written, "w") as file:
        metadata = f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"
        file.writestr(f"{about}/METADATA", metadata)
        file.writestr(f"{about}/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
        file.writestr(f"{about}/RECORD", "")
        for member, data in members.items():
            file.writestr(member, data)
    return f"{name.replace('-', '_')}-{version}-py3-none-any.whl", written.getvalue()


@dataclass
class Index:
    projects: dict[str, dict[str, bytes]]  # name -> file name -> content
    # The connection breaks after so many bytes of a file, each time.
    broken: dict[str, int] = field(default_factory=dict[str, int])
    # So long the index waits in the middle of a file, and as long as this is not set.
    slow_s: float = 0.0
    goes_on: threading.Event = field(default_factory=threading.Event)
    url: str = ""
    requests: list[str] = field(default_factory=list[str])  # paths, in order

    def downloads(self) -> list[str]:
        """Files that were asked for."""
        found = [path.removeprefix("/files/") for path in self.requests if "/files/" in path]
        return [name for name in found if name.endswith((".whl", ".tar.gz"))]


class _Handler(BaseHTTPRequestHandler):
    index: Index

    def log_message(self, format: str, *args: object) -> None:
        pass

    def do_GET(self) -> None:
        self.index.requests.append(self.path)
        match self.path.strip("/").split("/"):
            case ["simple", project] if project in self.index.projects:
                names = self.index.projects[project]
                page = "".join(f'<a href="/files/{name}">{name}</a>' for name in names)
                self.send(f"<!DOCTYPE html><body>{page}</body>".encode(), "text/html")
            case ["files", name]:
                files = {n: data for p in self.index.projects.values() for n, data in p.items()}
                self.send(files[name], "application/zip", self.index.broken.get(name))
            case _:
                self.send_error(404)

    def send(self, data: bytes, kind: str, break_after: int | None = None) -> None:
        self.send_response(200)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        half = len(data) // 2
        held = not self.index.goes_on.is_set()
        with_pause = (self.index.slow_s or held) and kind != "text/html"
        if with_pause:
            self.wfile.write(data[:half])
            time.sleep(self.index.slow_s)
            self.index.goes_on.wait(60)
        self.wfile.write(data[half if with_pause else 0 : break_after])


@contextmanager
def serving(projects: dict[str, dict[str, bytes]]) -> Generator[Index]:
    index = Index(projects)
    index.goes_on.set()
    handler = type("Handler", (_Handler,), {"index": index})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    index.url = f"http://127.0.0.1:{server.server_port}/simple/"
    thread = threading.Thread(target=server.serve_forever, args=[0.02])
    thread.start()
    try:
        yield index
    finally:
        index.goes_on.set()
        server.shutdown()
        server.server_close()
        thread.join()

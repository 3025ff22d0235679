"""
uvicorn's insides that gateway/transport/ and gateway/server.py override or rely on. They are no
interface of uvicorn's: when it changes one, it has to be read again before the bounds in
pyproject.toml are moved.
"""

import hashlib
import inspect
from collections.abc import Callable
from typing import Any

import pytest
import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol

READ: dict[Callable[..., Any], str] = {
    WebSocketsSansIOProtocol.__init__: "631dcd744eab",
    WebSocketsSansIOProtocol.handle_close: "62fd412b1f5b",
    WebSocketsSansIOProtocol.handle_ping: "41bcf345d372",
    WebSocketsSansIOProtocol.handle_pong: "b20c68cc7e4f",
    WebSocketsSansIOProtocol.on_task_complete: "f45490be9f80",
    WebSocketsSansIOProtocol.receive: "1dc0e7153900",
    WebSocketsSansIOProtocol.run_asgi: "662375aa38d9",
    WebSocketsSansIOProtocol.schedule_ping: "002da2050fd2",
    WebSocketsSansIOProtocol.send: "d4919ed760ce",
    WebSocketsSansIOProtocol.send_keepalive_ping: "02da3945b3e6",
    WebSocketsSansIOProtocol.connection_lost: "dd116afc4d80",
    WebSocketsSansIOProtocol.data_received: "c89d394077d8",
    WebSocketsSansIOProtocol.handle_connect: "fc648c2161ff",
    WebSocketsSansIOProtocol.handle_parser_exception: "ff5cf13c764f",
    WebSocketsSansIOProtocol.pause_writing: "4830f7e0d81f",
    WebSocketsSansIOProtocol.resume_writing: "ef79384e5fff",
    WebSocketsSansIOProtocol.send_receive_event_to_app: "a2b10de91477",
    H11Protocol.data_received: "e03b145518ca",
    H11Protocol.connection_lost: "dbb688fa2b38",
    H11Protocol.connection_made: "6efb565ff3d3",
    H11Protocol.handle_websocket_upgrade: "6f42a029e35a",
    H11Protocol.on_response_complete: "1fbb8f48c6a1",
    uvicorn.Server.capture_signals: "e1bbcd4770d1",
    uvicorn.Server.main_loop: "afccb353a119",
    uvicorn.Server.on_tick: "60ea49b06ccf",
}


@pytest.mark.parametrize("method", READ, ids=lambda method: method.__qualname__)
def test_what_we_override_is_as_we_have_read_it(method: Callable[..., Any]) -> None:
    digest = hashlib.sha256(inspect.getsource(method).encode()).hexdigest()[:12]
    assert digest == READ[method], (
        f"uvicorn {uvicorn.__version__} has another {method.__qualname__}: compare it with what "
        f"gateway/transport/ and gateway/server.py make of it, then write {digest!r} here"
    )

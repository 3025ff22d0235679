"""
A client's WebSocket, as a Transport.
"""

from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager, suppress

from fastapi import Response, WebSocket, WebSocketDisconnect

from dalston.gateway.transport.read_rounds import Rounds
from dalston.gateway.transport.transport import Disconnected
from dalston.gateway.transport.uvicorn_protocol import DirectProtocol
from dalston.orchestrator.protocol.messages import Frame


class WebSocketTransport:
    def __init__(
        self,
        websocket: WebSocket,
        rounds: Rounds,
        told: Callable[[Frame], None] | None = None,
    ):
        """rounds: in which it is read. told: called with what would be sent, instead."""
        self._websocket, self._rounds, self._told = websocket, rounds, told
        self._direct = DirectProtocol.of(websocket.scope)
        self.address = websocket.client.host if websocket.client else ""
        self._listened = False

    def when_writable(self, call: Callable[[], None]) -> None:
        self._direct.on_writable = call

    async def accept(self, subprotocols: Sequence[str]) -> None:
        offered = self._websocket.scope["subprotocols"]
        with _disconnected():
            await self._websocket.accept(next((s for s in subprotocols if s in offered), None))

    async def deny(self, status: int, body: bytes, headers: Mapping[str, str]) -> None:
        answer = Response(body, status, headers, media_type="application/json")
        with _disconnected():
            await self._websocket.send_denial_response(answer)

    def listen(
        self,
        receive: Callable[[Frame], None],
        on_too_long: Callable[[int], None] | None = None,
        on_part: Callable[[bool], None] | None = None,
    ) -> None:
        rounds = None if self._listened else self._rounds
        self._listened = True
        self._direct.listen(receive, rounds, on_too_long, on_part)

    def ignore(self) -> None:
        self._direct.on_writable = None
        self.listen(_nobody)

    def pause(self) -> None:
        self._direct.pause()

    def resume(self) -> None:
        self._direct.resume()

    def send_now(self, frame: Frame) -> bool:
        if self._told:
            self._told(frame)
            return True
        return self._direct.send_now(frame)

    def ping(self) -> float:
        return self._direct.ping()

    @property
    def answers(self) -> bool:
        return self._direct.answers

    @property
    def lived_at(self) -> float:
        return self._direct.lived_at

    async def send(self, frame: Frame) -> None:
        with _disconnected():
            if isinstance(frame, str):
                await self._websocket.send_text(frame)
            else:
                await self._websocket.send_bytes(frame)

    async def close(self, code: int, sentence: str = "") -> None:
        self.ignore()
        with _disconnected():
            await self._websocket.close(code, sentence or None)

    async def answered(self) -> bool:
        return await self._direct.answered()

    async def until_disconnected(self) -> None:
        with suppress(RuntimeError):  # Starlette's word for one that has left already
            while (await self._websocket.receive())["type"] != "websocket.disconnect":
                pass


def _nobody(_: Frame) -> None:
    pass


@contextmanager
def _disconnected() -> Generator[None]:
    try:
        yield
    except (WebSocketDisconnect, RuntimeError) as error:
        # Starlette raises RuntimeError when somebody writes to a socket that closed meanwhile.
        raise Disconnected(str(error)) from None

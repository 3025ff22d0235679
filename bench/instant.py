"""
A server in Triton's place that answers everything at once, without a model: so that what is
measured is gateway and worker alone. Speech is what is loud; every transcript is the same.

    python bench/instant.py PORT      HTTP
"""

import asyncio
import json
import sys
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Any

import numpy as np

from dalston.triton.contract import STAGES, TURN_MODEL, VAD_FRAME, VAD_MODEL, WHISPER_OUTPUTS

LOUD = 200.0  # of int16, root mean square of a frame
SPEECH, SILENCE = 0.95, 0.02
_TEXT = b"\x16\0\0\0and that is what it is"
_CONTENTS = {
    "TEXT": _TEXT,
    "TOKENS": np.arange(6, dtype="<i4").tobytes(),
    "TOKEN_ENDS": np.array([3, 8, 11, 16, 19, 22], "<i4").tobytes(),
    "TOKEN_TIMES": b"",
    "TOKEN_LOGPROBS": b"",
    "LANGUAGE": b"\x02\0\0\0en",
    "SUSPECT": b"\0",
    "PROMPT_CUT": b"",
    "WORD": b"",
    "WORD_START": b"",
    "WORD_END": b"",
    "WORD_PROBABILITY": b"",
    "STAGE_SECONDS": np.zeros(len(STAGES), "<f4").tobytes(),
}
_ONE = np.array([1.0], "<f4").tobytes()


Tensor = tuple[str, bytes]  # datatype and content of one row


@dataclass(frozen=True)
class Asked:
    """Of a model."""

    model: str
    parameters: dict[str, Any]
    inputs: dict[str, bytes]
    outputs: list[str]


class Refused(Exception):
    """Answered with this HTTP status, and a sentence."""

    def __init__(self, status: int, sentence: str):
        super().__init__(sentence)
        self.status = status


class Instant:
    async def live(self) -> None:
        pass

    async def ready(self, model: str) -> None:
        pass

    def config(self) -> dict[str, Any]:
        parameters = {"checkpoint_id": "instant", "languages": "en"}
        return {
            "max_batch_size": 16,
            "instance_group": [{"count": 2, "kind": "KIND_CPU"}],
            "parameters": {name: {"string_value": value} for name, value in parameters.items()},
        }

    async def infer(self, asked: Asked) -> dict[str, Tensor]:
        """May raise Refused."""
        if asked.model == VAD_MODEL:
            audio = np.frombuffer(asked.inputs["AUDIO"], "<i2").astype(np.float32)
            frames = audio[: len(audio) // VAD_FRAME * VAD_FRAME].reshape(-1, VAD_FRAME)
            loud = np.sqrt((frames**2).mean(axis=1)) > LOUD
            return {
                "PROBABILITY": ("FP32", np.where(loud, SPEECH, SILENCE).astype("<f4").tobytes())
            }
        if asked.model == TURN_MODEL:
            return {"PROBABILITY": ("FP32", np.ones(1, "<f4").tobytes())}
        types = {tensor.name: tensor.type.replace("STRING", "BYTES") for tensor in WHISPER_OUTPUTS}
        return {name: (types[name], _CONTENTS.get(name, _ONE)) for name in asked.outputs}

    async def page(self, path: str) -> bytes:
        """Another one. May raise Refused."""
        raise Refused(404, "no such page")

    # HTTP

    async def connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(ConnectionError, asyncio.IncompleteReadError):
            while head := (await reader.readuntil(b"\r\n\r\n")).decode():
                lines = head.split("\r\n")
                fields = dict(line.lower().split(": ", 1) for line in lines[1:-2])
                body = await reader.readexactly(int(fields.get("content-length", "0")))
                parts = int(fields.get("inference-header-content-length", "0"))
                try:
                    answer = await self._answer(lines[0].split()[1].split("/"), body, parts)
                    status = 200
                except Refused as refused:
                    status, answer = refused.status, (_json({"error": str(refused)}), b"")
                lengths = f"Content-Length: {len(answer[0]) + len(answer[1])}\r\n"
                if answer[1]:
                    lengths += f"Inference-Header-Content-Length: {len(answer[0])}\r\n"
                writer.write(f"HTTP/1.1 {status} X\r\n{lengths}\r\n".encode() + b"".join(answer))
        writer.close()

    async def _answer(self, path: list[str], body: bytes, parts: int) -> tuple[bytes, bytes]:
        match path:
            case ["", "v2", "health", "live"]:
                await self.live()
                return b"", b""
            case ["", "v2", "models", model, "ready"]:
                await self.ready(model)
                return b"", b""
            case ["", "v2", "models", _, "config"]:
                return _json(self.config()), b""
            case ["", "v2", "models", model, "infer"]:
                outputs = await self.infer(_asked(model, body, parts))
                tensors = [
                    {
                        "name": name,
                        "datatype": datatype,
                        "shape": [1, 1],
                        "parameters": {"binary_data_size": len(content)},
                    }
                    for name, (datatype, content) in outputs.items()
                ]
                contents = b"".join(content for _, content in outputs.values())
                return _json({"model_name": model, "outputs": tensors}), contents
            case _:
                return await self.page("/".join(path)), b""


def _asked(model: str, body: bytes, parts: int) -> Asked:
    question = json.loads(body[:parts])
    inputs, at = dict[str, bytes](), parts
    for tensor in question["inputs"]:
        end = at + tensor["parameters"]["binary_data_size"]
        inputs[tensor["name"]] = body[at:end]
        at = end
    names = [output["name"] for output in question["outputs"]]
    return Asked(model, question.get("parameters", {}), inputs, names)


def _json(value: Any) -> bytes:
    return json.dumps(value).encode()


@asynccontextmanager
async def serving(instant: Instant, port: int = 0) -> AsyncGenerator[int]:
    """It listens; the port."""
    tasks = set[asyncio.Task[None]]()

    def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.create_task(instant.connected(reader, writer))
        tasks.add(task)
        task.add_done_callback(tasks.discard)
        task.add_done_callback(lambda _: writer.transport.abort())

    server = await asyncio.start_server(connected, "127.0.0.1", port)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def main() -> None:
    async with serving(Instant(), int(sys.argv[1])):
        await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(main())

"""
Log lines, as a process of its own writes them.
"""

import json
import subprocess
import sys

import pytest

PROGRAM = """
import asyncio, logging, sys
from dalston.orchestrator.process import logs
from dalston.orchestrator.process.request_ids import request_id, session_id

logs.setup("INFO", sys.argv[1])
log = logging.getLogger("dalston.test")
log.info("before %d", 1)

async def serve(number):
    request_id.set(f"req_{number}")
    session_id.set(f"sess_{number}")
    await asyncio.sleep(0.01)
    log.warning("a line of ümlauts")
    await asyncio.create_task(inherits(number))

async def inherits(number):
    log.info("sess_%d: %s", number, "names itself")
    try:
        raise ValueError("at wss://x?api_key=dk_0123456789abcdef0123456789abcdef&a=b")
    except ValueError:
        log.exception("failed\\nbadly")

async def main():
    await asyncio.gather(serve(1), serve(2))

asyncio.run(main())
log.info("of another", extra={"session_id": "sess_9"})
log.debug("not at this level")
for name in ("uvicorn.error", "websockets", "websockets.server", "websockets.client"):
    logging.getLogger(name).debug("GET /?api_key=abc")
logging.getLogger("uvicorn.error").info("GET /?api_key=abc")
logging.getLogger("uvicorn.error").error("told")
"""

# A server whose client sends what is no UTF-8, and whose work does not end when it has to.
SERVER = """
import asyncio, sys, uvicorn
from dalston.orchestrator.process import logs
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed

async def never_ends(scope, receive, send):
    await receive()
    await send({"type": "websocket.accept"})
    if scope["path"] == "/fails":
        raise ValueError("a fault of ours")
    while True:
        await asyncio.sleep(1)

async def main():
    logs.setup("INFO", "text")
    config = uvicorn.Config(
        never_ends, port=0, log_config=None, lifespan="off", ws="websockets-sansio",
        timeout_graceful_shutdown=1,
    )
    server = uvicorn.Server(config)
    serving = asyncio.create_task(server.serve())
    while not server.started:
        await asyncio.sleep(0.01)
    port = server.servers[0].sockets[0].getsockname()[1]
    for path in ("fails", "works"):
        async with connect(f"ws://127.0.0.1:{port}/{path}") as client:
            try:
                await client.send(bytes([0xff, 0xfe]), text=True)
                await client.recv()
            except ConnectionClosed as closed:
                print(closed.rcvd.code if closed.rcvd else None)
    server.should_exit = True
    await serving

asyncio.run(main())
"""


def lines(form: str) -> list[str]:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, form], capture_output=True, text=True, encoding="utf-8"
    )
    assert done.returncode == 0, done.stderr
    return done.stderr.splitlines()


def test_each_line_is_a_json_object_that_names_session_and_request() -> None:
    said = [json.loads(line) for line in lines("json")]
    assert len(said) == 9
    assert said[0].keys() == {"time", "level", "logger", "message"}
    assert (said[0]["level"], said[0]["logger"]) == ("INFO", "dalston.test")
    assert said[0]["message"] == "before 1"
    for number in (1, 2):
        own = [line for line in said if line.get("session_id") == f"sess_{number}"]
        assert [line["request_id"] for line in own] == [f"req_{number}"] * 3
        assert own[0]["message"] == "a line of ümlauts"
        assert own[2]["message"] == "failed\nbadly"
        assert own[2]["exception"].startswith("Traceback")
    assert [line["session_id"] for line in said if line["message"] == "of another"] == ["sess_9"]
    assert said[-1]["message"] == "told"


def test_lines_for_people_name_them_too_and_nothing_twice() -> None:
    said = lines("text")
    assert said[0].endswith("INFO dalston.test before 1")
    assert sum(
        line.endswith("WARNING dalston.test a line of ümlauts [sess_1 req_1]") for line in said
    )
    assert sum(line.endswith("sess_2: names itself [req_2]") for line in said)
    assert "Traceback (most recent call last):" in said


@pytest.mark.parametrize("form", ["text", "json"])
def test_no_key_is_in_them_wherever_it_came_from(form: str) -> None:
    text = "\n".join(lines(form))
    assert "0123456789abcdef" not in text
    assert "api_key=dk_…&a=b" in text
    assert "api_key=abc" not in text


def test_only_faults_of_ours_are_told_with_a_traceback() -> None:
    done = subprocess.run([sys.executable, "-c", SERVER], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "1007"
    assert "Invalid UTF-8 sequence received from client." in done.stderr
    assert "Cancel 1 running task(s)" in done.stderr
    assert done.stderr.count("Traceback") == done.stderr.count("ValueError: a fault of ours") == 1

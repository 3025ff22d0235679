"""
Clients of other services, as their vendors ship them, before a stack with real Whisper: what they
show of a call, how they tell that a key is wrong, and that they notice nothing of workers that die.

Those that need more than this project's own environment are installed and run by
`make test-clients`.
"""

import asyncio
import signal
import sys
from collections.abc import AsyncGenerator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import pytest
import pytest_asyncio
import scoring
from recordings import human
from support.client_environments import FOLDER, NODE
from support.driven import DRIVERS, Driver, Heard, drivers
from support.sounds import converted
from support.stack import Stack, start_stack

from dalston.gateway.access.keys import FileKeys, make

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(300)]

(RECORDING,) = human()
SENTENCE = RECORDING.sentences[2]


@dataclass(frozen=True)
class Clients:
    """Of one environment."""

    command: Sequence[str | Path]
    # How each tells that its key is wrong: the name of an exception, or of an event.
    wrong_key: Mapping[str, str]
    environment: Mapping[str, str] = field(default_factory=dict[str, str])


PYTHON = Clients(
    (sys.executable, DRIVERS / "python_sdks.py"),
    {
        "deepgram": "ApiError",
        "elevenlabs": "auth_error",
        "flux": "ApiError",
        "openai": "OpenAIError",
        "recordings": "error",
        "vosk": "error",
    },
)
JAVASCRIPT = Clients(
    (NODE / "bin" / "node", DRIVERS / "javascript_sdks.mjs"),
    {"deepgram": "Error", "elevenlabs": "auth_error", "openai": "OpenAIRealtimeError"},
    {"SDKS": str(FOLDER / "javascript")},
)
LIVEKIT = Clients(
    (FOLDER / "livekit" / "bin" / "python", DRIVERS / "livekit_plugins.py"),
    {"deepgram": "APIStatusError", "elevenlabs": "APIConnectionError", "openai": "APIError"},
)
PIPECAT = Clients(
    (FOLDER / "pipecat" / "bin" / "python", DRIVERS / "pipecat_services.py"),
    {"deepgram": "ErrorFrame", "openai": "ErrorFrame"},
)


@dataclass(frozen=True)
class Server:
    stack: Stack
    key: str
    audio: Mapping[str, str]  # a file for each rate

    def order(self, key: str = "") -> dict[str, object]:
        url = self.stack.url.replace("ws", "http", 1)
        return {"url": url, "key": key or self.key, "audio": self.audio}

    def kill_workers(self) -> None:
        for process in psutil.Process(self.stack.process.pid).children():
            if "WORKER_ID" in process.environ():
                process.kill()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def server(tmp_path_factory: pytest.TempPathFactory) -> AsyncGenerator[Server]:
    """Two workers, behind keys."""
    models = Path(__file__).parents[2] / "build" / "cpu" / "model_repository"
    if not (models / "built.json").exists():
        pytest.fail(f"{models} is not there: run `make test`, or `make install`")
    folder = tmp_path_factory.mktemp("clients")
    (folder / "model_repository").symlink_to(models)
    text, key = make("clients", scopes=["stream", "read"])
    await FileKeys(folder / "keys").add(key)
    audio = dict[str, str]()
    for rate in (16_000, 24_000):
        file = folder / str(rate)
        file.write_bytes(converted(RECORDING.cut(SENTENCE), rate, "pcm_s16le"))
        audio[str(rate)] = str(file)
    stack = start_stack(
        folder, 2, profile="cpu", key=text, MAX_SESSIONS="8", DALSTON_API_KEYS=str(folder / "keys")
    )
    yield Server(stack, text, audio)
    stack.process.send_signal(signal.SIGTERM)
    assert await asyncio.to_thread(stack.process.wait, 45) == 0


@pytest.fixture(
    scope="module",
    params=[
        pytest.param(PYTHON, id="python"),
        pytest.param(JAVASCRIPT, id="javascript", marks=pytest.mark.elsewhere),
        pytest.param(LIVEKIT, id="livekit", marks=pytest.mark.elsewhere),
        pytest.param(PIPECAT, id="pipecat", marks=pytest.mark.elsewhere),
    ],
)
def clients(request: pytest.FixtureRequest) -> Clients:
    return request.param


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def ready(clients: Clients) -> AsyncGenerator[dict[str, Driver]]:
    """Each of them."""
    async with drivers(clients.command, list(clients.wrong_key), **clients.environment) as found:
        yield found


async def calls(
    ready: Mapping[str, Driver], order: Mapping[str, object], at_once: int = 8
) -> dict[str, Heard]:
    """So many of them call at the same time."""
    free = asyncio.Semaphore(at_once)

    async def one(driver: Driver) -> Heard:
        async with free:
            return await driver.follow(order)

    heard = await asyncio.gather(*map(one, ready.values()))
    return dict(zip(ready, heard, strict=True))


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def undisturbed(ready: Mapping[str, Driver], server: Server) -> dict[str, Heard]:
    # Few at a time: a machine that is busy shows some of them no partials.
    return await calls(ready, server.order(), at_once=3)


# 003-35, 004-04, 004-12, 004-13, 004-14, 004-15, 004-36, C-19
async def test_what_is_said_is_shown_while_it_is_said_and_then_for_good(
    undisturbed: Mapping[str, Heard],
) -> None:
    for name, heard in undisturbed.items():
        assert not heard.error, (name, heard.error, heard.message)
        assert heard.partials, name
        assert scoring.wer([(SENTENCE.text, heard.text)]) <= 0.1, (name, heard.text)


async def test_a_wrong_key_is_told_in_each_clients_own_way(
    clients: Clients, ready: Mapping[str, Driver], server: Server
) -> None:
    heard = await calls(ready, server.order("dk_wrong"))
    assert {name: call.error for name, call in heard.items()} == clients.wrong_key


async def test_workers_that_are_killed_in_the_middle_of_a_sentence_change_nothing(
    ready: Mapping[str, Driver], server: Server, undisturbed: Mapping[str, Heard]
) -> None:
    """Both at once, so that nobody is spared: all go on with the first that is back."""
    calling = asyncio.create_task(calls(ready, server.order()))
    # They began together, so what the first is shown tells where all of them are.
    speaking = [asyncio.create_task(driver.speaking.wait()) for driver in ready.values()]
    await asyncio.wait([calling, *speaking], return_when=asyncio.FIRST_COMPLETED)
    assert not calling.done()
    server.kill_workers()
    for task in speaking:
        task.cancel()
    for name, heard in (await calling).items():
        assert not heard.error, (name, heard.error, heard.message)
        assert heard.text == undisturbed[name].text, name

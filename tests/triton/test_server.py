"""
The tritonserver process: watched, mended, stopped. The server is the real one; what is killed is
killed.
"""

import asyncio
import contextlib
import functools
import logging
import os
import shutil
import signal
import socket
import struct
import subprocess
import sys
import time
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import psutil
import pytest
import pytest_asyncio
from support import waiting
from tritonclient.grpc import service_pb2, service_pb2_grpc

from dalston.triton import probe, restricted, server
from dalston.triton.contract import asleep_mark
from dalston.triton.installation import ServerError
from dalston.triton.probe import probe_all
from dalston.triton.process import free_port
from dalston.triton.server import Ports, Server

MODELS = ("silero_vad", "whisper_accurate", "whisper_fast")

TOKEN = "of-the-supervisor-and-the-workers"

# --- running it -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def vad_repository(model_repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One that is loaded in no time."""
    folder = tmp_path_factory.mktemp("repository")
    shutil.copytree(model_repository / "silero_vad", folder / "silero_vad")
    return folder


@pytest.fixture
def ports() -> Ports:
    return Ports(free_port(), free_port(), free_port())


def address(ports: Ports) -> str:
    return f"127.0.0.1:{ports.grpc}"


# Models take their time to load.
until = functools.partial(waiting.until, within_s=60)


async def until_answers(ports: Ports) -> None:
    """Until every model answers."""
    async with asyncio.timeout(60):
        while True:
            with contextlib.suppress(ServerError):
                await probe_all(address(ports))
                return
            await asyncio.sleep(0.1)


@asynccontextmanager
async def running(
    repository: Path, folder: Path, ports: Ports, unload_after_s: float | None = None
) -> AsyncGenerator[asyncio.Task[None]]:
    """A server that answers and is watched; stopped on leaving."""
    stop, told = asyncio.Event(), list[str]()
    server = Server(
        repository, folder, ports, tell=told.append, unload_after_s=unload_after_s, token=TOKEN
    )
    task = asyncio.create_task(server.run(stop))
    try:
        await until(lambda: task.done() or "every model answers" in told)
        if task.done():
            await task
        yield task
    finally:
        stop.set()
        async with asyncio.timeout(20):
            await asyncio.gather(task, return_exceptions=True)


def children(process: psutil.Process, holding: str) -> list[psutil.Process]:
    """Those whose command line holds this."""
    found = list[psutil.Process]()
    with contextlib.suppress(psutil.Error):
        for child in process.children():
            with contextlib.suppress(psutil.Error):
                if holding in " ".join(child.cmdline()):
                    found.append(child)
    return found


def processes(ports: Ports) -> list[psutil.Process]:
    """The tritonserver that listens at these ports: none, or one."""
    return children(psutil.Process(), f"--grpc-port={ports.grpc} ")


def stubs(ports: Ports, model: str) -> list[psutil.Process]:
    """The processes that run a model."""
    return [stub for server in processes(ports) for stub in children(server, f"/{model}/")]


def alive(process: psutil.Process) -> bool:
    """Whether it runs; a zombie waits for nothing but its parent."""
    with contextlib.suppress(psutil.Error):
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    return False


def shared_memory(pid: int) -> list[str]:
    """What a supervisor's servers have in /dev/shm."""
    return [path.name for path in Path("/dev/shm").glob(f"dalston_{pid}_*")]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def everything(
    model_repository: Path, tmp_path_factory: pytest.TempPathFactory
) -> AsyncGenerator[Ports]:
    """A server with all models, for tests that leave it as well as they found it."""
    ports = Ports(free_port(), free_port(), free_port())
    async with running(model_repository, tmp_path_factory.mktemp("run"), ports):
        yield ports


@pytest.mark.asyncio(loop_scope="module")
async def test_every_model_answers_a_probe(everything: Ports):
    await probe_all(address(everything))
    assert await asyncio.to_thread(probe.main, address(everything)) == 0


@pytest.mark.asyncio(loop_scope="module")
async def test_a_probe_of_nobody_fails_with_a_sentence(capfd: pytest.CaptureFixture[str]):
    nobody = f"127.0.0.1:{free_port()}"
    assert await asyncio.to_thread(probe.main, nobody) == 1
    assert f"no Triton at {nobody}: " in capfd.readouterr().err


@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.parametrize("model", ["silero_vad", "whisper_fast"])
async def test_a_killed_stub_is_loaded_again(everything: Ports, model: str):
    (before,) = processes(everything)
    old = stubs(everything, model)
    assert old
    memory = shared_memory(os.getpid())
    old[0].kill()
    await until(lambda: not alive(old[0]))

    def replaced() -> bool:
        new = stubs(everything, model)
        return len(new) == len(old) and not {process.pid for process in new} & {old[0].pid}

    await until(replaced)
    await until_answers(everything)
    assert processes(everything) == [before]
    # What the dead held in memory is given back.
    await until(lambda: len(shared_memory(os.getpid())) <= len(memory))


@pytest.mark.asyncio(loop_scope="module")
async def test_a_process_that_outlives_its_model_hides_no_dead_one(
    everything: Ports, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    # Triton does not end it now and then, and cannot be made to.
    outlived, found = await asyncio.create_subprocess_exec("sleep", "600"), Server._stubs  # pyright: ignore[reportPrivateUsage]

    def with_one_more(self: Server) -> dict[str, set[psutil.Process]]:
        living = found(self)
        return living | {"silero_vad": living["silero_vad"] | {psutil.Process(outlived.pid)}}

    try:
        monkeypatch.setattr(Server, "_stubs", with_one_more)
        (old,) = stubs(everything, "silero_vad")
        old.kill()
        await until(lambda: not alive(old) and len(stubs(everything, "silero_vad")) == 1)
        await until_answers(everything)
    finally:
        monkeypatch.undo()
        outlived.kill()
        await outlived.wait()
    assert "silero_vad does not answer" not in caplog.text  # it was not found by asking


# What our models answer, as clients of a real server see it.


def tensor(call: Any, name: str, datatype: str, shape: Sequence[int], content: bytes) -> None:
    call.inputs.add(name=name, datatype=datatype, shape=shape)
    call.raw_input_contents.append(content)


def transcription(language: str, samples: int = 16_000, rows: int = 1) -> Any:
    def string(text: str) -> bytes:
        return struct.pack("<I", len(text)) + text.encode()

    call = service_pb2.ModelInferRequest(model_name="whisper_fast")
    tensor(call, "AUDIO", "INT16", [rows, samples], bytes(2 * samples) * rows)
    tensor(call, "LANGUAGE", "BYTES", [rows, 1], string(language) * rows)
    tensor(call, "TASK", "BYTES", [rows, 1], string("transcribe") * rows)
    tensor(call, "PROMPT", "BYTES", [rows, 1], string("") * rows)
    tensor(call, "KEYWORDS", "BYTES", [rows, 1], string("") * rows)
    tensor(call, "PREFIX", "INT32", [rows, 0], b"")
    tensor(call, "DRAFT", "INT32", [rows, 0], b"")
    tensor(call, "WORDS", "BOOL", [rows, 1], b"\0" * rows)
    tensor(call, "FULL_WINDOW", "BOOL", [rows, 1], b"\0" * rows)
    return call


def chunk(sequence: str, start: bool = False, samples: int = 512, rows: int = 1) -> Any:
    call = service_pb2.ModelInferRequest(model_name="silero_vad")
    call.parameters["sequence_id"].string_param = sequence
    call.parameters["sequence_start"].bool_param = start
    tensor(call, "AUDIO", "INT16", [rows, samples], bytes(2 * samples * rows))
    return call


async def answer(stub: Any, call: Any) -> Any:
    """The response, or code and sentence of the error."""
    try:
        return await stub.ModelInfer(call, timeout=30)
    except grpc.aio.AioRpcError as error:
        return error.code(), error.details()


@pytest.mark.asyncio(loop_scope="module")
async def test_errors_of_models_have_codes_and_sentences_and_cost_no_neighbour_its_answer(
    everything: Ports,
):
    async with grpc.aio.insecure_channel(address(everything)) as channel:
        stub: Any = service_pb2_grpc.GRPCInferenceServiceStub(channel)
        calls = [
            transcription("en"),
            transcription("tlh"),
            transcription("de"),
            transcription("en", samples=31 * 16_000),
            chunk("started", start=True),
            chunk("never started"),
            transcription("en", rows=2),
            chunk("two at once", start=True, rows=2),
        ]
        answers = await asyncio.gather(*(answer(stub, call) for call in calls))
    invalid = grpc.StatusCode.INVALID_ARGUMENT
    assert answers[1] == (invalid, "this model does not know the language 'tlh'")
    assert answers[3] == (invalid, "31.00 s of audio, 30 s at most")
    assert answers[5][0] == invalid
    assert "must specify the START flag" in answers[5][1]
    assert answers[6] == (invalid, "more than one row in a request")
    assert answers[7][0] == invalid
    for index in (0, 2):
        assert [output.name for output in answers[index].outputs][:2] == ["TEXT", "LANGUAGE"]
    assert len(answers[4].raw_output_contents[0]) == 4


@asynccontextmanager
async def busy(ports: Ports) -> AsyncGenerator[asyncio.Task[Any]]:
    """While the VAD listens to ten minutes of audio."""
    async with grpc.aio.insecure_channel(address(ports)) as channel:
        stub: Any = service_pb2_grpc.GRPCInferenceServiceStub(channel)
        call = chunk(f"long.{time.monotonic()}", start=True, samples=600 * 16_000)
        listening = asyncio.create_task(answer(stub, call))
        await asyncio.sleep(0.3)
        assert not listening.done()
        yield listening
        await listening


@pytest.mark.asyncio(loop_scope="module")
async def test_a_killed_server_is_started_again_and_takes_its_stubs_along(everything: Ports):
    (before,) = processes(everything)
    old = [stub for model in MODELS for stub in stubs(everything, model)]
    assert len(old) >= len(MODELS)
    # Killed in the middle of a request, it leaves the stub waiting for it.
    async with busy(everything) as listening:
        before.kill()
        code, _ = await listening
    assert code == grpc.StatusCode.UNAVAILABLE
    await until(lambda: processes(everything) not in ([], [before]))
    await until_answers(everything)
    await until(lambda: not any(alive(stub) for stub in old))


@pytest.mark.asyncio(loop_scope="module")
async def test_a_stopped_stub_is_killed_and_loaded_again(everything: Ports):
    old = stubs(everything, "whisper_fast")
    for process in old:
        process.suspend()
    async with grpc.aio.insecure_channel(address(everything)) as channel:
        stub: Any = service_pb2_grpc.GRPCInferenceServiceStub(channel)
        code, _ = await answer(stub, transcription("en"))
    # Its callers are not kept waiting: long before their own deadline, they may ask again. By
    # Triton, or, where it got stuck on what the dead process held, by the end of Triton itself.
    assert code in (grpc.StatusCode.INTERNAL, grpc.StatusCode.UNAVAILABLE)
    await until(lambda: not any(alive(process) for process in old))
    await until(lambda: len(stubs(everything, "whisper_fast")) == len(old))
    await until_answers(everything)


@pytest.mark.asyncio(loop_scope="module")
async def test_a_stopped_server_is_killed_and_nothing_of_it_stays(everything: Ports):
    (before,) = processes(everything)
    old = [before, *(stub for model in MODELS for stub in stubs(everything, model))]
    memory = set(shared_memory(os.getpid()))
    assert memory
    before.suspend()
    await until(lambda: processes(everything) not in ([], [before]))
    assert not any(alive(process) for process in old)
    await until_answers(everything)
    assert not memory & set(shared_memory(os.getpid()))


@pytest.mark.asyncio(loop_scope="module")
async def test_a_sequence_is_over_when_nobody_waited_for_a_chunk_of_it(everything: Ports):
    async with grpc.aio.insecure_channel(address(everything)) as channel:
        stub: Any = service_pb2_grpc.GRPCInferenceServiceStub(channel)
        said: Any = None
        for _ in range(5):
            await stub.ModelInfer(chunk("given up", start=True), timeout=30)
            async with busy(everything) as listening:
                waiting = asyncio.create_task(answer(stub, chunk("given up")))
                while (await asyncio.wait([waiting], timeout=0.3))[0]:  # the audio is on its way
                    waiting = asyncio.create_task(answer(stub, chunk("given up")))
                assert not listening.done()
                waiting.cancel()
            said = await answer(stub, chunk("given up"))
            if isinstance(said, tuple):
                break
            # Answered after all: a busy machine took 0.3 s for a chunk that did not wait.
        code, sentence = said
        assert code == grpc.StatusCode.NOT_FOUND
        assert "no state for the sequence 'given up': start it again" in sentence
        assert (await answer(stub, chunk("given up", start=True))).raw_output_contents


@pytest.mark.asyncio(loop_scope="module")
async def test_a_port_that_another_triton_serves_is_an_error_too(
    everything: Ports, vad_repository: Path, tmp_path: Path
):
    # Its models answer, and must not be taken for ours.
    here = Ports(everything.grpc, free_port(), free_port())
    task = Server(vad_repository, tmp_path, here).run(asyncio.Event())
    with pytest.raises(ServerError, match="Address already in use"):
        await asyncio.wait_for(task, 30)
    await probe_all(address(everything))


@pytest.mark.asyncio(loop_scope="module")
async def test_a_second_server_leaves_the_memory_of_the_first_alone(
    everything: Ports, vad_repository: Path, tmp_path: Path, ports: Ports
):
    mine = set(shared_memory(os.getpid()))
    async with running(vad_repository, tmp_path, ports):
        assert set(shared_memory(os.getpid())) > mine
    assert set(shared_memory(os.getpid())) == mine
    await probe_all(address(everything))


# --- a server of its own --------------------------------------------------------------------------


async def test_stopping_leaves_no_process_and_no_shared_memory(
    vad_repository: Path, tmp_path: Path, ports: Ports
):
    before = set(shared_memory(os.getpid()))
    async with running(vad_repository, tmp_path, ports):
        family = [*processes(ports), *stubs(ports, "silero_vad")]
        assert len(family) == 2
        assert set(shared_memory(os.getpid())) > before
    assert not any(alive(process) for process in family)
    assert set(shared_memory(os.getpid())) == before


async def test_cancelling_leaves_no_process_either(
    vad_repository: Path, tmp_path: Path, ports: Ports
):
    before, tasks = set(shared_memory(os.getpid())), asyncio.all_tasks()
    async with running(vad_repository, tmp_path, ports) as task:
        family = [*processes(ports), *stubs(ports, "silero_vad")]
        task.cancel()
        async with asyncio.timeout(20):
            await asyncio.gather(task, return_exceptions=True)
        assert task.cancelled()
        assert asyncio.all_tasks() == tasks
        assert not any(alive(process) for process in family)
    assert set(shared_memory(os.getpid())) == before


async def test_a_model_that_keeps_dying_gets_a_new_server(
    vad_repository: Path, tmp_path: Path, ports: Ports, caplog: pytest.LogCaptureFixture
):
    caplog.set_level(logging.INFO, "dalston.triton.server")

    def times(sentence: str) -> int:
        return sum(sentence in record.getMessage() for record in caplog.records)

    async with running(vad_repository, tmp_path, ports):
        (before,) = processes(ports)
        for reloads in range(1, server.RELOADS + 1):
            stubs(ports, "silero_vad")[0].kill()
            await until(lambda: times("silero_vad answers again") == reloads)  # noqa: B023
        assert processes(ports) == [before]
        stubs(ports, "silero_vad")[0].kill()
        await until(lambda: times("silero_vad keeps dying; a new server"))
        await until(lambda: not alive(before))
        await until_answers(ports)


async def test_a_model_that_cannot_be_loaded_again_gets_new_servers_until_it_can(
    vad_repository: Path, tmp_path: Path, ports: Ports, caplog: pytest.LogCaptureFixture
):
    caplog.set_level(logging.INFO, "dalston.triton.server")
    repository = tmp_path / "repository"
    shutil.copytree(vad_repository, repository)
    network = repository / "silero_vad" / "1" / "silero.onnx"
    async with running(repository, tmp_path, ports):
        (before,) = processes(ports)
        network.rename(tmp_path / "silero.onnx")
        stubs(ports, "silero_vad")[0].kill()
        await until(lambda: "silero_vad cannot be loaded again" in caplog.text)
        await until(lambda: not alive(before))
        # Nor can a new one load it: they are started again and again, less and less often.
        await until(lambda: "a new server in 1.0 s" in caplog.text)
        (tmp_path / "silero.onnx").rename(network)
        await until_answers(ports)


async def test_a_process_that_dies_while_its_server_starts_is_missed(
    model_repository: Path, tmp_path: Path, ports: Ports, monkeypatch: pytest.MonkeyPatch
):
    repository = tmp_path / "repository"
    shutil.copytree(model_repository / "whisper_fast", repository / "whisper_fast")
    found = list[psutil.Process]()

    def kill_one(told: str) -> None:
        if told == "models loaded: whisper_fast":
            found.extend(stubs(ports, "whisper_fast"))
            found[0].kill()

    async def answers(*_: Any) -> None:
        """What the living one of the two says, whichever is asked."""

    monkeypatch.setattr(server, "probe", answers)
    stop = asyncio.Event()
    task = asyncio.create_task(Server(repository, tmp_path, ports, tell=kill_one).run(stop))
    try:
        await until(lambda: found)
        assert len(found) > 1
        await until(lambda: len(set(stubs(ports, "whisper_fast")) - set(found)) == len(found))
    finally:
        stop.set()
        await task


@pytest.mark.parametrize("taken", ["grpc", "http", "metrics"])
async def test_a_port_that_is_taken_is_an_error_with_a_sentence(
    vad_repository: Path, tmp_path: Path, ports: Ports, taken: str
):
    with socket.create_server(("127.0.0.1", vars(ports)[taken])):
        task = Server(vad_repository, tmp_path, ports).run(asyncio.Event())
        with pytest.raises(ServerError) as caught:
            await asyncio.wait_for(task, 30)
    number = vars(ports)[taken]
    assert f"cannot listen at 127.0.0.1:{number} ({taken}): Address" in str(caught.value)
    assert f"give another --{taken}-port" in str(caught.value)
    assert not processes(ports)


async def test_a_model_that_cannot_be_loaded_is_an_error_and_no_endless_story(
    vad_repository: Path, tmp_path: Path, ports: Ports
):
    shutil.copytree(vad_repository, tmp_path / "broken")
    (tmp_path / "broken" / "silero_vad" / "1" / "silero.onnx").write_bytes(b"no network")
    task = Server(tmp_path / "broken", tmp_path, ports).run(asyncio.Event())
    with pytest.raises(ServerError, match=r"tritonserver has died \(exit status 1\)"):
        await asyncio.wait_for(task, 60)
    assert not processes(ports)


@pytest.mark.parametrize("name", ["empty", "nowhere"])
def test_a_repository_without_models_is_refused(tmp_path: Path, ports: Ports, name: str):
    (tmp_path / "empty").mkdir()
    with pytest.raises(ServerError, match=f"{name} is no model repository: fill it with `dalston"):
        Server(tmp_path / name, tmp_path, ports)


# --- as a command ---------------------------------------------------------------------------------


def command(repository: Path, folder: Path, ports: Ports) -> list[str]:
    options = [part for name, port in vars(ports).items() for part in (f"--{name}-port", str(port))]
    where = ["--repository", str(repository), "--run-dir", str(folder)]
    return [sys.executable, "-m", "dalston.cli.main", "triton", *where, *options]


async def started(repository: Path, folder: Path, ports: Ports) -> asyncio.subprocess.Process:
    process = await asyncio.create_subprocess_exec(*command(repository, folder, ports))
    await until_answers(ports)
    return process


async def test_a_signal_stops_the_command_within_ten_seconds(vad_repository: Path, tmp_path: Path):
    async def stops(how: signal.Signals) -> None:
        ports = Ports(free_port(), free_port(), free_port())
        process = await started(vad_repository, tmp_path / how.name, ports)
        family = psutil.Process(process.pid).children(recursive=True)
        assert len(family) >= 2
        assert shared_memory(process.pid)
        process.send_signal(how)
        assert await asyncio.wait_for(process.wait(), 10) == 0
        assert not any(alive(member) for member in family)
        assert not shared_memory(process.pid)

    await asyncio.gather(stops(signal.SIGTERM), stops(signal.SIGINT))


async def test_nothing_survives_a_command_that_is_killed(
    vad_repository: Path, tmp_path: Path, ports: Ports
):
    process = await started(vad_repository, tmp_path, ports)
    family = psutil.Process(process.pid).children(recursive=True)
    async with busy(ports):
        process.kill()
        await process.wait()
    await until(lambda: not any(alive(member) for member in family), within_s=20)
    await until(lambda: not shared_memory(process.pid), within_s=20)


def test_a_command_that_cannot_run_says_why_with_status_1(tmp_path: Path, ports: Ports):
    done = subprocess.run(command(tmp_path, tmp_path, ports), capture_output=True, text=True)
    assert done.returncode == 1
    assert "is no model repository: fill it with `dalston models build`" in done.stderr
    assert "Traceback" not in done.stderr


# --- models that nobody uses ----------------------------------------------------------------------


@pytest.fixture(scope="module")
def light_repository(
    model_repository: Path, vad_repository: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A Whisper that is loaded in no time, and the VAD."""
    folder = tmp_path_factory.mktemp("light")
    shutil.copytree(vad_repository / "silero_vad", folder / "silero_vad")
    (folder / "whisper_fast" / "1").mkdir(parents=True)
    shutil.copy(model_repository / "whisper_fast" / "config.pbtxt", folder / "whisper_fast")
    model = Path(__file__).parents[1] / "support" / "failing_model.py"
    shutil.copy(model, folder / "whisper_fast" / "1" / "model.py")
    return folder


async def want(stub: Any, model: str) -> None:
    mark = service_pb2.SystemSharedMemoryUnregisterRequest(name=asleep_mark(model))
    await stub.SystemSharedMemoryUnregister(mark)


async def test_a_model_that_nobody_uses_is_unloaded_and_watched_again_when_it_is_loaded(
    light_repository: Path,
    tmp_path: Path,
    ports: Ports,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
):
    monkeypatch.setattr(server, "PROBE_EVERY_S", 0.5)  # its own probes are no use
    caplog.set_level(logging.INFO)
    async with (
        running(light_repository, tmp_path, ports, unload_after_s=3.0),
        restricted.channel(address(ports), TOKEN) as channel,
    ):
        stub: Any = service_pb2_grpc.GRPCInferenceServiceStub(channel)
        (before,), (vad,) = processes(ports), stubs(ports, "silero_vad")
        # Who uses it keeps it.
        for _ in range(9):
            await answer(stub, transcription("en"))
            await asyncio.sleep(0.5)
        assert stubs(ports, "whisper_fast")
        assert "unloaded" not in caplog.text
        # A container's health check does not, nor does it take it for dead.
        loaded = probe._loaded  # pyright: ignore[reportPrivateUsage]
        listed = list[dict[str, float]]()

        async def unloaded_after_it_is_listed(stub: Any, address: str) -> dict[str, float]:
            listed.append(await loaded(stub, address))
            await until(lambda: not stubs(ports, "whisper_fast"))
            return listed[-1]

        await probe_all(address(ports), lately_s=10.0)
        with monkeypatch.context() as patch:  # nor when it is unloaded while that lasts
            patch.setattr(probe, "_loaded", unloaded_after_it_is_listed)
            await probe_all(address(ports))
        assert [("whisper_fast" in models) for models in listed] == [True, False]
        await asyncio.sleep(2.0)  # it is left so
        assert not stubs(ports, "whisper_fast")
        await probe_all(address(ports))
        code, sentence = await answer(stub, transcription("en"))
        assert (code, "has no available versions" in sentence) == (grpc.StatusCode.NOT_FOUND, True)

        await want(stub, "whisper_fast")
        await until(lambda: "whisper_fast is loaded again" in caplog.text)
        await asyncio.sleep(1.0)
        assert "is dead" not in caplog.text
        # It is looked after as before.
        old = stubs(ports, "whisper_fast")
        old[0].kill()
        await until(lambda: "whisper_fast answers again" in caplog.text)
        assert (processes(ports), stubs(ports, "silero_vad")) == ([before], [vad])

"""
The servers that ours is compared with: how each is installed and started, at its best documented
settings for one machine without a GPU.

All get the same CTranslate2 folder, int8, greedy where that can be set, and as many threads as
there are cores. An endpoint is meant to be decided 0.5 s after speech, as with ours.
"""

import os
import signal
import socket
import subprocess
import tarfile
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import environments
from environments import Run

from dalston.triton.process import dies_with_us

TORCH = "torch==2.13.0"  # faster-whisper does not use it; the packages import it
STARTING_S = 180.0
STOPPING_S = 10.0
MOST_SESSIONS = 512

# PyAudio is built against PortAudio, which servers have no use for. This satisfies the import.
_PYAUDIO = "paInt16 = 8\n\n\nclass PyAudio:\n    pass\n"
_PYAUDIO_PROJECT = """\
[build-system]
requires = ["setuptools"]
build-backend = "setuptools.build_meta"
[project]
name = "PyAudio"
version = "0.2.14"
[tool.setuptools]
py-modules = ["pyaudio"]
"""

# whisper-live's run_server.py is not in its package; this is what it would do.
_WHISPER_LIVE = """\
import sys
from whisper_live.server import TranscriptionServer
TranscriptionServer().run(
    "127.0.0.1", port=int(sys.argv[1]), backend="faster_whisper",
    faster_whisper_custom_model_path=sys.argv[2], single_model=True, max_clients={sessions},
    max_connection_time=3600, batch_enabled={batch}, batch_max_size=8, batch_window_ms=50,
    # It may not turn callers away: how many it holds is the question.
    batch_max_queue_wait_s=3600.0, batch_max_admissions_per_s=1000.0,
)
"""


class PeerError(Exception):
    """A peer cannot be started; says why."""


@dataclass(frozen=True)
class Peer:
    """One server in one way to run it."""

    name: str
    server: str  # of peer_callers.SERVERS
    package: str  # whose version is told
    requirements: tuple[str, ...]
    # environment, model, port -> arguments of the environment's Python
    command: Callable[[Path, Path, int], list[str]]
    unwanted: str = ""  # a package that does not work here, and is not needed
    # of the source distribution, what the wheel lacks
    source: str = ""


def _realtime_stt(environment: Path, model: Path, port: int) -> list[str]:
    server = next(environment.glob("source/*/example_fastapi_server/server.py"))
    settings = {
        "--engine": "faster_whisper",
        "--model": str(model),
        "--realtime-model": str(model),
        "--device": "cpu",
        "--compute-type": "int8",
        "--language": "en",
        "--beam-size": "1",
        "--beam-size-realtime": "1",
        "--max-sessions": str(MOST_SESSIONS),
        "--max-active-speakers": str(MOST_SESSIONS),
        "--max-global-inference-queue-depth": str(2 * MOST_SESSIONS),
        # Counted from when its WebRTC VAD has heard nothing for 0.16 s: half a second after speech.
        # So it decides when the others do, and has nothing to transcribe before that.
        "--post-speech-silence-duration": "0",
        "--early-transcription-on-silence": "0",
        # Partials less often leave more room for finals: in one model they wait for each other.
        "--realtime-processing-pause": "0.7",
    }
    options = [word for option in settings.items() for word in option]
    # Two models, one for partials and one for finals, did worse on few cores. A second VAD would
    # find speech where the first did.
    options += ["--use-main-model-for-realtime", "--no-vad-filter"]
    return [str(server), "--host", "127.0.0.1", "--port", str(port), *options]


def _whisper_live(batch: bool) -> Callable[[Path, Path, int], list[str]]:
    program = _WHISPER_LIVE.format(sessions=MOST_SESSIONS, batch=batch)
    return lambda environment, model, port: ["-c", program, str(port), str(model)]


def _whisper_live_kit(environment: Path, model: Path, port: int) -> list[str]:
    settings = {
        "--backend": "faster-whisper",
        "--backend-policy": "localagreement",
        "--model-path": str(model),
        "--language": "en",
        "--pause-segmentation-seconds": "0.5",
        "--min-chunk-size": "0.5",
        "--log-level": "WARNING",
    }
    options = [word for option in settings.items() for word in option]
    wlk = str(environment / "bin" / "wlk")
    # It takes raw PCM then, and needs no ffmpeg; a word it is sure of it does not hear twice.
    options += ["--pcm-input", "--confidence-validation"]
    return [wlk, "serve", "--host", "127.0.0.1", "--port", str(port), *options]


_LIVE = (TORCH, "whisper-live==0.10.0")
PEERS = (
    Peer(
        "RealtimeSTT",
        server="RealtimeSTT",
        package="RealtimeSTT",
        requirements=(TORCH, "RealtimeSTT[recommended]==1.1.2", "fastapi", "uvicorn[standard]"),
        command=_realtime_stt,
        source="RealtimeSTT==1.1.2",
    ),
    Peer("whisper-live, lock", "WhisperLive", "whisper-live", _LIVE, _whisper_live(False)),
    Peer("whisper-live, batch", "WhisperLive", "whisper-live", _LIVE, _whisper_live(True)),
    Peer(
        "WhisperLiveKit",
        server="WhisperLiveKit",
        package="whisperlivekit",
        requirements=(TORCH, "whisperlivekit==0.2.26"),
        command=_whisper_live_kit,
        # Of another version than this torch, it cannot be imported.
        unwanted="torchaudio",
    ),
)


def install(peer: Peer, folder: Path, tell: Callable[[str], None]) -> Path:
    """Its virtual environment, made if it is not there or was made for other versions. Raises
    InstallError."""
    environment = folder / peer.package
    stub, source = environment / "pyaudio", environment / "source"

    def prepare() -> None:
        stub.mkdir()
        (stub / "pyaudio.py").write_text(_PYAUDIO)
        (stub / "pyproject.toml").write_text(_PYAUDIO_PROJECT)

    def finish(pip: Run) -> None:
        if peer.unwanted:
            pip("uninstall", "--yes", peer.unwanted)
        if peer.source:
            plain = ("--no-deps", "--no-binary", ":all:", "--dest", str(source))
            pip("download", *plain, peer.source)
            for archive in source.glob("*.tar.gz"):
                with tarfile.open(archive) as members:
                    members.extractall(source, filter="data")

    environments.install(
        environment,
        (str(stub), *peer.requirements),
        tell,
        size="a gigabyte or more, some minutes",
        wanted="\n".join((*peer.requirements, peer.unwanted)),
        prepare=prepare,
        finish=finish,
    )
    return environment


def version(peer: Peer, environment: Path) -> str:
    """Of the package, and of the CTranslate2 under it."""
    program = (
        "from importlib.metadata import version as v\n"
        f"print(v('{peer.package}') + ', CTranslate2 ' + v('ctranslate2'))"
    )
    command = [str(environment / "bin" / "python"), "-c", program]
    return subprocess.run(command, capture_output=True, text=True).stdout.strip()


@contextmanager
def running(peer: Peer, environment: Path, model: Path, port: int, log: Path) -> Generator[str]:
    """The server, listening at the URL that is given. Stopped with all it started. Raises
    PeerError."""
    cores = str(len(os.sched_getaffinity(0)))
    settings = os.environ | {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": cores}
    for name in ("PYTHONPATH", "PYTHONSAFEPATH"):
        settings.pop(name, None)
    if peer.source:
        settings["PYTHONPATH"] = str(next(environment.glob("source/*/PKG-INFO")).parent)
    command = [str(environment / "bin" / "python"), *peer.command(environment, model, port)]
    with log.open("w") as out:
        process = subprocess.Popen(
            dies_with_us(command),
            env=settings,
            cwd=environment,
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=out,
            start_new_session=True,
        )
    try:
        _until_listening(peer, process, port, log)
        yield f"ws://127.0.0.1:{port}"
    finally:
        _stop(process)


def _until_listening(peer: Peer, process: subprocess.Popen[bytes], port: int, log: Path) -> None:
    began = time.monotonic()
    while time.monotonic() - began < STARTING_S:
        if process.poll() is not None:
            raise PeerError(f"{peer.name} ended with status {process.returncode}: see {log}")
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
            return
        except OSError:
            time.sleep(0.2)
    raise PeerError(f"{peer.name} does not listen after {STARTING_S:g} s: see {log}")


def _stop(process: subprocess.Popen[bytes]) -> None:
    """The group, for some start processes of their own."""
    for kind, wait_s in ((signal.SIGTERM, STOPPING_S), (signal.SIGKILL, None)):
        try:
            os.killpg(process.pid, kind)
        except ProcessLookupError:
            return
        try:
            process.wait(wait_s)
        except subprocess.TimeoutExpired:
            continue

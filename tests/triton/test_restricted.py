"""
Whoever may load a model into Triton runs code as its user: nobody may but our own processes.
"""

import base64
import json
import os
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Generator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import grpc
import psutil
import pytest
import single_triton
from support import waiting
from tritonclient.grpc import service_pb2, service_pb2_grpc

from dalston.orchestrator.inference.triton_client import Triton
from dalston.triton.contract import TOKEN_HEADER, TOKEN_VARIABLE

TOKEN = "only-the-supervisor-and-workers-know-it"
_CODE = """
import os
open({ran!r}, "w").close()
class TritonPythonModel:
    def execute(self, requests):
        return []
"""
_CONFIG = {
    "backend": "python",
    "input": [{"name": "IN", "data_type": "TYPE_INT16", "dims": [1]}],
    "output": [{"name": "OUT", "data_type": "TYPE_INT16", "dims": [1]}],
}


@dataclass(frozen=True)
class Locked:
    """`dalston triton` with the VAD alone, listening to everybody."""

    url: str  # of its HTTP
    server: psutil.Process
    repository: Path

    def ask(
        self,
        path: str,
        headers: Mapping[str, str] = MappingProxyType({}),
        method: str = "POST",
        body: bytes = b"{}",
    ) -> tuple[int, bytes]:
        data = body if method == "POST" else None
        request = urllib.request.Request(
            f"http://{self.url}{path}", data, dict(headers), method=method
        )
        try:
            with urllib.request.urlopen(request, timeout=30) as answer:
                return answer.status, answer.read()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.read()

    def stub(self) -> Any:
        (port,) = (
            option.partition("=")[2]
            for option in self.server.cmdline()
            if option.startswith("--grpc-port=")
        )
        channel = grpc.insecure_channel(f"127.0.0.1:{port}")
        return service_pb2_grpc.GRPCInferenceServiceStub(channel)


@pytest.fixture(scope="module")
def locked(model_repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Generator[Locked]:
    repository = tmp_path_factory.mktemp("repository")
    (repository / "silero_vad").symlink_to(model_repository / "silero_vad")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(TOKEN_VARIABLE, TOKEN)
        with single_triton.running(repository, tmp_path_factory.mktemp("triton"), 60) as url:
            (server,) = (
                process
                for process in psutil.Process().children(recursive=True)
                if process.name() == "tritonserver" and str(repository) in str(process.cmdline())
            )
            yield Locked(url, server, repository)


def foreign_model(ran: Path) -> bytes:
    code = base64.b64encode(_CODE.format(ran=str(ran)).encode()).decode()
    parameters = {"config": json.dumps(_CONFIG), "file:1/model.py": code}
    return json.dumps({"parameters": parameters}).encode()


@pytest.mark.parametrize("shown", [{}, {TOKEN_HEADER: "another"}, {"Authorization": TOKEN}])
def test_a_web_page_cannot_have_code_of_its_own_run(
    locked: Locked, tmp_path: Path, shown: dict[str, str]
) -> None:
    ran = tmp_path / "ran"
    page = {"Content-Type": "text/plain", "Origin": "https://elsewhere.example"} | shown
    status, said = locked.ask("/v2/repository/models/x/load", page, body=foreign_model(ran))
    assert (status, b"restricted" in said) == (403, True)
    assert not ran.exists()


def test_nor_can_anybody_over_grpc(locked: Locked, tmp_path: Path) -> None:
    ran = tmp_path / "ran"
    request = service_pb2.RepositoryModelLoadRequest(model_name="x")
    request.parameters["config"].string_param = json.dumps(_CONFIG)
    request.parameters["file:1/model.py"].bytes_param = _CODE.format(ran=str(ran)).encode()
    with pytest.raises(grpc.RpcError, match="restricted"):
        locked.stub().RepositoryModelLoad(request, timeout=30)
    assert not ran.exists()


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", "/v2/repository/index"),
        ("POST", "/v2/repository/models/silero_vad/unload"),
        ("GET", "/v2/systemsharedmemory/status"),
        ("POST", "/v2/systemsharedmemory/region/mine/register"),
        ("POST", "/v2/systemsharedmemory/unregister"),
        ("GET", "/v2/cudasharedmemory/status"),
        ("POST", "/v2/cudasharedmemory/region/mine/register"),
        ("POST", "/v2/cudasharedmemory/unregister"),
        ("POST", "/v2/trace/setting"),
        ("POST", "/v2/models/silero_vad/trace/setting"),
        ("GET", "/v2/logging"),
        ("POST", "/v2/logging"),
    ],
)
def test_what_controls_triton_wants_the_token(locked: Locked, method: str, path: str) -> None:
    assert locked.ask(path, method=method)[0] == 403


@pytest.mark.parametrize("path", ["/v2/trace/setting", "/v2/logging"])
def test_what_nobody_uses_is_closed_to_everybody(locked: Locked, path: str) -> None:
    assert locked.ask(path, {TOKEN_HEADER: TOKEN})[0] == 403


@pytest.mark.parametrize(
    ("call", "request_"),
    [
        ("RepositoryIndex", service_pb2.RepositoryIndexRequest()),
        ("SystemSharedMemoryStatus", service_pb2.SystemSharedMemoryStatusRequest()),
        ("CudaSharedMemoryStatus", service_pb2.CudaSharedMemoryStatusRequest()),
        ("TraceSetting", service_pb2.TraceSettingRequest()),
        ("LogSettings", service_pb2.LogSettingsRequest()),
    ],
)
def test_over_grpc_too(locked: Locked, call: str, request_: Any) -> None:
    with pytest.raises(grpc.RpcError, match="restricted"):
        getattr(locked.stub(), call)(request_, timeout=10)


def test_no_command_line_shows_the_token_and_it_counts_all_the_same(locked: Locked) -> None:
    options = locked.server.cmdline()
    assert any(TOKEN_HEADER in option for option in options)
    for process in (*psutil.Process().children(recursive=True), psutil.Process()):
        assert TOKEN not in " ".join(process.cmdline()), process.name()
    status, index = locked.ask("/v2/repository/index", {TOKEN_HEADER: TOKEN})
    assert (status, [model["name"] for model in json.loads(index)]) == (200, ["silero_vad"])
    assert locked.ask("/v2/repository/index", {TOKEN_HEADER: "x" * len(TOKEN)})[0] == 403


async def test_a_worker_with_another_token_says_so(
    locked: Locked, caplog: pytest.LogCaptureFixture
) -> None:
    for token, told in ((TOKEN, False), (None, False), ("another", True)):
        triton = Triton(locked.url, token)
        assert not await triton.sleeps("whisper_fast")
        await triton.close()
        assert (TOKEN_VARIABLE in caplog.text) is told


def test_nobody_else_can_read_what_callers_say(locked: Locked) -> None:
    files = {
        Path(line.split()[-1])
        for line in Path(f"/proc/{locked.server.pid}/maps").read_text().splitlines()
        if "/dev/shm/dalston_" in line
    }
    assert files
    assert {oct(file.stat().st_mode & 0o777) for file in files} == {"0o600"}


async def test_a_process_of_a_model_that_is_none_of_ours_harms_nobody(
    locked: Locked, tmp_path: Path
) -> None:
    ran = tmp_path / "ran"
    status, said = locked.ask(
        "/v2/repository/models/x/load", {TOKEN_HEADER: TOKEN}, body=foreign_model(ran)
    )
    assert (status, said, ran.exists()) == (200, b"", True)
    # Its supervisor looks after ours as before.
    (vad,) = (p for p in locked.server.children() if "/silero_vad/" in " ".join(p.cmdline()))
    vad.kill()

    def replaced() -> bool:
        lines = [" ".join(p.cmdline()) for p in locked.server.children() if p.pid != vad.pid]
        return any("/silero_vad/" in line for line in lines)

    await waiting.until(replaced, within_s=60)
    assert locked.server.is_running()


@pytest.mark.parametrize(
    ("token", "more", "sentence"),
    [
        ("short", [], "letters, digits and -._~ only, 16 at least"),
        ("with,a=sign,that-triton-reads", [], "letters, digits and -._~ only"),
        ("", ["--unload-after", "60"], "give both the same DALSTON_TRITON_TOKEN, or unload none"),
    ],
)
def test_a_token_that_cannot_work_is_said_at_the_start(
    locked: Locked, tmp_path: Path, token: str, more: list[str], sentence: str
) -> None:
    command = [sys.executable, "-m", "dalston.cli.main", "triton", *more]
    done = subprocess.run(
        [*command, "--repository", str(locked.repository), "--run-dir", str(tmp_path)],
        env=os.environ | {TOKEN_VARIABLE: token},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 2
    assert sentence in done.stderr

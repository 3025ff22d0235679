"""
How much memory a worker says that Triton's GPUs have.
"""

import contextlib
import http.server
import threading
from collections.abc import Generator

import pytest

from dalston.orchestrator.worker.gpu_memory import gpu_memory
from dalston.orchestrator.worker.worker import read_gpu_memory

# As a Triton with two GPUs tells it.
TWO = """\
# HELP nv_gpu_utilization GPU utilization rate [0.0 - 1.0)
# TYPE nv_gpu_utilization gauge
nv_gpu_utilization{gpu_uuid="GPU-0d2c3a4e-6f7e-4f0e-b7f5-2f7f7d3a9c11"} 0.31
nv_gpu_utilization{gpu_uuid="GPU-9b1f6c0a-3a52-4d55-8c61-6a2b9c7d1e22"} 0
# HELP nv_gpu_memory_total_bytes GPU total memory, in bytes
# TYPE nv_gpu_memory_total_bytes gauge
nv_gpu_memory_total_bytes{gpu_uuid="GPU-0d2c3a4e-6f7e-4f0e-b7f5-2f7f7d3a9c11"} 25757220864
nv_gpu_memory_total_bytes{gpu_uuid="GPU-9b1f6c0a-3a52-4d55-8c61-6a2b9c7d1e22"} 2.5757220864e+10
# HELP nv_gpu_memory_used_bytes GPU used memory, in bytes
# TYPE nv_gpu_memory_used_bytes gauge
nv_gpu_memory_used_bytes{gpu_uuid="GPU-0d2c3a4e-6f7e-4f0e-b7f5-2f7f7d3a9c11"} 4200000000
nv_gpu_memory_used_bytes{gpu_uuid="GPU-9b1f6c0a-3a52-4d55-8c61-6a2b9c7d1e22"} 330000000
# HELP nv_cpu_memory_used_bytes CPU used memory (RAM), in bytes
# TYPE nv_cpu_memory_used_bytes gauge
nv_cpu_memory_used_bytes 8000000000
"""


def test_the_memory_of_all_gpus_is_told_together() -> None:  # 001-05
    assert gpu_memory(TWO) == ("4.5GB", "51.5GB")


def test_of_one_gpu_it_is_its_own() -> None:  # 001-05
    one = "\n".join(line for line in TWO.splitlines() if "9b1f6c0a" not in line)
    assert gpu_memory(one) == ("4.2GB", "25.8GB")


@pytest.mark.parametrize("page", ["", "nv_cpu_memory_used_bytes 8000000000\n"])
def test_without_a_gpu_nothing_is_told(page: str) -> None:
    assert gpu_memory(page) == (None, None)


@contextlib.contextmanager
def metrics_page(text: str) -> Generator[str]:
    class Page(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(text.encode())

        def log_message(self, format: str, *args: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Page) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}/metrics"
        server.shutdown()


async def test_a_worker_reads_it_where_triton_tells_it() -> None:  # 001-05
    with metrics_page(TWO) as url:
        assert await read_gpu_memory(url) == ("4.5GB", "51.5GB")
    assert await read_gpu_memory(url) == (None, None)
    assert await read_gpu_memory(None) == (None, None)

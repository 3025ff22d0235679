"""
Traces that nobody wants; the others are tested at a real stack, tests/e2e/test_traces.py.
"""

import subprocess
import sys

from dalston.orchestrator.process import traces

IMPORTED = """
import sys
from dalston.gateway import app
from dalston.orchestrator.process import traces
from dalston.orchestrator.worker import worker
traces.setup("dalston-worker", "w1", None)
with traces.span("final", {}):
    traces.note({"a": 1})
# FastAPI and redis-py import the rest by themselves.
print([name for name in sys.modules if name.startswith("opentelemetry.exporter")])
"""
MISSING = """
import sys
sys.modules["opentelemetry.sdk.resources"] = None
from dalston.orchestrator.process import traces
try:
    traces.setup("dalston-worker", "w1", "http://127.0.0.1:1")
except traces.TracesError as error:
    print(error)
"""


def printed(program: str) -> str:
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_without_an_endpoint_nothing_is_imported_for_them() -> None:
    assert printed(IMPORTED).strip() == "[]"


def test_without_an_endpoint_nothing_is_told_to_other_processes() -> None:
    with traces.span("final", {}):
        assert traces.header() == ""
        assert traces.headers() == []


def test_an_endpoint_without_the_library_says_what_to_install() -> None:
    assert "pip install 'dalston[otel]'" in printed(MISSING)

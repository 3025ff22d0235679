"""
What docs/operations.md says of the metrics, and what the pages of real servers have.
"""

import re
from pathlib import Path

from prometheus_client.parser import text_string_to_metric_families

from dalston.gateway import metrics as gateway
from dalston.orchestrator.capacity.workers import WorkerRecord
from dalston.orchestrator.worker import metrics as worker

DOCS = (Path(__file__).parent.parent / "docs" / "operations.md").read_text()


def gateway_page() -> str:
    record = WorkerRecord("a", "ready", 4, 1, "ws://x", ["fast"], used=1)
    return gateway.page(gateway.GatewayState(3, 2, 100, False, 1, [record], 5)).decode()


def worker_page() -> str:
    state = worker.WorkerState(4, True, False, 2, {"triton:8001": 7})
    return worker.page(state, worker.SessionCounts()).decode()


def named(page: str) -> set[str]:
    return {
        name for name in re.findall(r"^# TYPE (\S+)", page, re.MULTILINE) if "process_" not in name
    }


def test_every_metric_is_documented_and_every_documented_one_exists() -> None:
    tables = re.findall(r"^\| `dalston_.*", DOCS, re.MULTILINE)
    # What stands first in its row; elsewhere there are queries.
    said = {name for row in tables for name in re.findall(r"`(dalston_\w+)`", row)}
    assert said == named(gateway_page()) | named(worker_page())


def test_every_metric_has_a_help_that_is_a_sentence() -> None:
    for page in (gateway_page(), worker_page()):
        helps = re.findall(r"^# HELP (dalston_\S+) (.*)", page, re.MULTILINE)
        assert {name for name, _ in helps} == named(page)
        assert [name for name, text in helps if not text.rstrip(")").endswith(".")] == []


def test_no_metric_is_there_twice() -> None:
    for page in (gateway_page(), worker_page()):
        names = [family.name for family in text_string_to_metric_families(page)]
        assert sorted(names) == sorted(set(names))


def test_what_redis_knows_is_missing_without_it() -> None:
    page = gateway.page(gateway.GatewayState(3, 2, 100, False, 1, None, 0)).decode()
    missing = named(gateway_page()) - named(page)
    assert "dalston_realtime_workers_total" in missing
    assert "dalston_realtime_sessions_active" in named(page)

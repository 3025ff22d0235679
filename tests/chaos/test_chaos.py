"""
Whatever is killed, cut or stopped in the middle of a word: the finals are those of an undisturbed
run, each told once, and nothing is left behind. Longer: `make chaos`.
"""

import asyncio
import itertools
from pathlib import Path

import chaos
import pytest
from deployment import Size, deployed
from faults import KINDS, kinds, plan
from intruders import REFUSED
from journal import Journal
from readings import readings

# Redis with Sentinels, and clocks that jump: `make chaos`.
POSSIBLE = kinds(sentinels=False, clocks=False)
FAULTS, SEED = len(POSSIBLE), 20  # each kind once


@pytest.fixture(scope="module")
def journals(
    model_repository: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Journal, Journal]:
    """Of a run of faults, and of a rolling restart behind it, with the same callers."""
    folder = tmp_path_factory.mktemp("chaos")
    faults, rolling = (Journal.open(folder / f"{name}.jsonl") for name in ("faults", "rolling"))

    async def run() -> None:
        async with deployed(folder / "logs", Size(callers=chaos.CALLERS)) as deployment:
            disturbed = chaos.Chaos(deployment, faults, SEED, chaos.CALLERS)
            async with disturbed.calls(readings()[:18]):
                await disturbed.strike(FAULTS, (0.7, 1.7))
                disturbed.journal = rolling
                await disturbed.roll()
                await disturbed.quiet()
        await disturbed.leftovers()

    asyncio.run(run())
    return faults, rolling


@pytest.mark.timeout(400)
def test_a_fault_of_every_kind_changes_no_final_and_leaves_nothing_behind(
    journals: tuple[Journal, Journal],
) -> None:
    journal, _ = journals
    report = journal.report(SEED)
    print(report)
    assert journal.broken() == []
    assert report["faults"] == FAULTS
    assert report["faults_mid_utterance"] > FAULTS / 2
    assert set(report["by_kind"]) == {f"{action} {where}" for action, where in POSSIBLE}
    assert report["finals"] > 70
    assert set(report["intrusions"]) == set(REFUSED)


def test_a_rolling_restart_under_load_loses_and_doubles_nothing(
    journals: tuple[Journal, Journal],
) -> None:
    _, journal = journals
    assert journal.broken() == []
    calls = journal.of("call")
    assert sum(call["finals"] for call in calls) > 40
    assert all(call["ended"] for call in calls)


def test_the_sequence_of_faults_comes_from_the_seed_alone() -> None:
    def first(seed: int):
        return list(itertools.islice(plan(seed, (2.0, 4.0)), 100))

    assert first(1) == first(1)
    assert first(1) != first(2)


def test_every_round_has_every_kind_once() -> None:
    faults = list(itertools.islice(plan(5, (2.0, 4.0)), 3 * len(KINDS)))
    for at in range(0, len(faults), len(KINDS)):
        kinds = {(fault.action, fault.where) for fault in faults[at : at + len(KINDS)]}
        assert kinds == set(KINDS)


def test_an_interrupted_run_goes_on_and_counts_nothing_twice(tmp_path: Path) -> None:
    path = tmp_path / "1.jsonl"
    journal = Journal.open(path)
    for number in range(3):
        journal.add("fault", number=number, kind="kill worker", mid_utterance=number > 0)
    journal.add("recovery", kind="worker kill -> next partial", seconds=1.5, clean=True)
    with path.open("a") as file:
        file.write('{"what": "fau')  # it was killed here
    again = Journal.open(path)
    assert again.faults == 3
    again.add("fault", number=3, kind="storm client", mid_utterance=False)
    report = Journal.open(path).report(seed=1)
    assert (report["faults"], report["faults_mid_utterance"]) == (4, 2)
    assert report["by_kind"]["kill worker"] == {"count": 3, "mid_utterance": 2}
    assert report["recovery_ms"]["worker kill -> next partial"]["p95"] == 1500

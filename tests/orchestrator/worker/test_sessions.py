"""
With which settings a session begins, and goes on.
"""

from types import SimpleNamespace
from typing import Any, cast

from support.speech import Driver, pcm, say, silence, snapshots

from dalston.orchestrator.inference.triton_client import LoadedVariant
from dalston.orchestrator.protocol.messages import SessionBegin, SessionConfig
from dalston.orchestrator.worker.sessions import SessionRequest, Sessions
from dalston.orchestrator.worker.settings import WorkerSettings


def worker(**variants: LoadedVariant) -> Sessions:
    """One with these models, of which none is asked anything here."""
    settings = WorkerSettings(REDIS_URL="redis://here", WORKER_ID="w")  # pyright: ignore[reportCallIssue]
    nothing = cast(Any, SimpleNamespace(judges_turns=False))
    sessions = Sessions(settings, nothing, nothing, nothing, nothing)
    sessions.variants = variants
    return sessions


def begun(sessions: Sessions, request: SessionRequest) -> tuple[Driver, SessionBegin]:
    driver = Driver(sessions._session("s", request))  # pyright: ignore[reportPrivateUsage]
    (begin,) = [message for message in driver.messages if isinstance(message, SessionBegin)]
    return driver, begin


def test_a_session_that_fell_back_to_another_model_goes_on_with_that_one() -> None:
    fast = LoadedVariant("one of them", ("en",), False, 4)
    accurate = LoadedVariant("the other", ("en", "es"), False, 4)
    driver, begin = begun(
        worker(accurate=accurate), SessionRequest(1, SessionConfig(language="en", model="fast"))
    )
    assert [warning.code for warning in begin.warnings] == ["model_fallback"]
    spoken = pcm(say([1, 2, 3])) + pcm(silence(0.7))
    driver.step(spoken)
    (snapshot,) = snapshots(driver.messages)
    assert (snapshot.config.model, snapshot.config.model_id) == ("accurate", "the other")
    # The next worker has what was asked for first.
    request = SessionRequest(2, snapshot.config, snapshot=snapshot)
    continued, begin = begun(worker(fast=fast, accurate=accurate), request)
    assert (begin.config, begin.warnings) == (snapshot.config, [])
    continued.step((spoken + spoken)[2 * snapshot.replay_from :])
    assert {asked.variant for asked in continued.asked} == {"accurate"}

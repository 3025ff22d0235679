"""
Which models nobody has used for long: from counts and times alone.
"""

from dalston.triton.idleness import Idleness

MODEL = "whisper_fast"


def test_a_model_is_idle_so_long_after_its_last_use():
    idleness = Idleness(60.0)
    idleness.loaded(MODEL, 0.0)
    assert not idleness.is_idle(MODEL, 59.0)
    assert idleness.is_idle(MODEL, 60.0)
    assert idleness.counted(MODEL, 5, 60.0)
    assert not idleness.is_idle(MODEL, 119.0)
    assert not idleness.counted(MODEL, 5, 119.0)
    assert idleness.is_idle(MODEL, 120.0)


def test_our_own_probes_are_no_use():
    idleness = Idleness(60.0)
    idleness.loaded(MODEL, 0.0)
    for now in range(10, 60, 10):
        idleness.probed(MODEL)
        assert not idleness.counted(MODEL, now // 10, float(now))
    assert idleness.is_idle(MODEL, 60.0)


def test_somebody_between_two_probes_is_seen():
    idleness = Idleness(60.0)
    idleness.loaded(MODEL, 0.0)
    idleness.probed(MODEL)
    assert idleness.counted(MODEL, 2, 50.0)
    assert not idleness.is_idle(MODEL, 60.0)


def test_a_probe_that_is_counted_a_moment_later_is_no_use():
    idleness = Idleness(60.0)
    idleness.loaded(MODEL, 0.0)
    idleness.probed(MODEL)
    assert not idleness.counted(MODEL, 0, 10.0)
    assert not idleness.counted(MODEL, 1, 20.0)
    assert idleness.is_idle(MODEL, 60.0)


def test_one_that_is_loaded_is_counted_anew():
    idleness = Idleness(60.0)
    idleness.loaded(MODEL, 0.0)
    idleness.counted(MODEL, 100, 10.0)
    idleness.loaded(MODEL, 200.0)
    assert not idleness.is_idle(MODEL, 259.0)
    assert idleness.counted(MODEL, 1, 259.0)
    assert not idleness.is_idle(MODEL, 260.0)


def test_without_a_time_nothing_is_ever_idle():
    idleness = Idleness(None)
    idleness.loaded(MODEL, 0.0)
    assert not idleness.is_idle(MODEL, 1e9)


def test_what_was_never_loaded_is_not_idle():
    assert not Idleness(1.0).is_idle(MODEL, 1e9)

"""
What the soak calls growth.
"""

import pytest
import soak


def samples(name: str, mb_per_hour: float, files_per_hour: float = 0.0) -> list[soak.Sample]:
    """An hour, one each 10 s, with the ups and downs of a process at work."""
    return [
        soak.Sample(
            10.0 * n,
            name,
            100 + mb_per_hour * n / 360 + 3 * (-1) ** n,
            20 + int(files_per_hour * n / 360) + n % 3,
        )
        for n in range(360)
    ]


@pytest.mark.parametrize("mb_per_hour", [0.0, 0.5, 4.0, -2.0])
def test_the_slope_is_that_of_the_memory_through_all_its_noise(mb_per_hour: float) -> None:
    (found,) = soak.growth(samples("worker 1", mb_per_hour), warm_up_s=300)
    assert found.mb_per_hour == pytest.approx(mb_per_hour, abs=0.1)
    assert found.steady is (mb_per_hour < 1)
    assert found.samples == 330


def test_what_grows_while_it_warms_up_is_no_growth() -> None:
    steep = [soak.Sample(float(at), "models 1", 10.0 * at, 20) for at in range(0, 300, 10)]
    flat = [soak.Sample(float(at), "models 1", 3000.0, 20) for at in range(300, 3600, 10)]
    (found,) = soak.growth([*steep, *flat], warm_up_s=300)
    assert found.mb_per_hour == pytest.approx(0, abs=1e-6)


def test_files_that_become_more_are_a_leak() -> None:
    (found,) = soak.growth(samples("gateway 1", 0.0, files_per_hour=60), warm_up_s=300)
    assert not found.steady


def test_a_process_that_was_hardly_there_has_no_slope() -> None:
    assert soak.growth(samples("worker 1", 0.0)[:2], warm_up_s=0) == []

"""
Logs do not grow without end, and whoever writes them does not notice.
"""

from pathlib import Path

from dalston.cli.logs import shorten


def test_a_log_and_what_is_older_stay_below_their_limit(tmp_path: Path) -> None:
    log, older = tmp_path / "part.log", tmp_path / "part.log.1"
    most, line = 10_000, "x" * 98
    with log.open("ab", buffering=0) as writer:
        for number in range(1_000):
            writer.write(f"{number} {line}\n".encode())
            if number % 20 == 0:
                shorten(log, most)
            assert log.stat().st_size <= most
    shorten(log, most)
    assert log.stat().st_size + older.stat().st_size <= most
    kept = (older.read_text() + log.read_text()).splitlines()
    # The newest, each once and in order.
    numbers = [int(text.split()[0]) for text in kept[1:]]
    assert numbers == list(range(numbers[0], 1_000))
    assert len(numbers) > 40


def test_a_burst_longer_than_the_limit_is_cut_too(tmp_path: Path) -> None:
    log = tmp_path / "part.log"
    log.write_bytes(b"a" * 50_000 + b"the end")
    shorten(log, 10_000)
    assert log.stat().st_size == 0
    older = (tmp_path / "part.log.1").read_bytes()
    assert (len(older), older[-7:]) == (5_000, b"the end")


def test_a_short_log_is_left_alone(tmp_path: Path) -> None:
    log = tmp_path / "part.log"
    log.write_text("one line\n")
    shorten(log, 10_000)
    assert log.read_text() == "one line\n"
    assert [path.name for path in tmp_path.iterdir()] == ["part.log"]

"""
A folder that one process at a time works in.
"""

import fcntl
import os
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path


class FolderInUse(Exception):
    """Somebody else works in the folder; says who."""


@contextmanager
def only_user(folder: Path) -> Generator[None]:
    """Work in `folder` as the only one of all that ask for this, until leaving or dying.

    Raises FolderInUse.
    """
    with (folder / "lock").open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            file.seek(0)
            holder = file.read().strip() or "another process"
            raise FolderInUse(
                f"{folder} is used by {holder}: stop that, or give another --data-dir"
            ) from None
        file.truncate(0)
        file.write(f"process {os.getpid()}\n")
        file.flush()
        yield
        file.truncate(0)

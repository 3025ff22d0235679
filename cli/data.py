"""
Where this machine keeps models and logs.
"""

import os
from pathlib import Path


def data_folder(given: Path | None) -> Path:
    """The folder given, or dalston's own below XDG_DATA_HOME; created if need be."""
    home = Path(os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share")
    folder = given or home / "dalston"
    folder.mkdir(parents=True, exist_ok=True)
    return folder.resolve()

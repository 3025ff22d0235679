"""
Paths that Triton's Python backend can use, whatever the folders are called.

It starts its processes with `bash -c` and does not quote, and their interpreter takes paths for
ASCII.
So folders with other names are reached through links in a temporary folder.
"""

import re
import shutil
import tempfile
from pathlib import Path

_PLAIN = re.compile(r"[A-Za-z0-9_./+=@:,~-]+")


def is_plain(path: Path) -> bool:
    return _PLAIN.fullmatch(str(path)) is not None


class PlainPaths:
    """Names for folders, and the temporary folder of the links that they need."""

    def __init__(self) -> None:
        self.folder: Path | None = None  # there is none before a link is needed

    def of(self, path: Path, name: str) -> Path:
        """The path itself, or a link to it. name: of the link, another for each path."""
        if is_plain(path):
            return path
        if self.folder is None:
            places = (Path(tempfile.gettempdir()), Path("/tmp"), Path("/var/tmp"))
            place = next(place for place in places if is_plain(place))
            self.folder = Path(tempfile.mkdtemp(prefix="dalston-", dir=place))
        link = self.folder / name
        if not link.is_symlink():
            link.symlink_to(path)
        return link

    def remove(self) -> None:
        if self.folder:
            shutil.rmtree(self.folder, ignore_errors=True)
            self.folder = None

"""
A small file of secrets. It is replaced in one step, and is read again when it changes.
"""

import contextlib
import fcntl
import logging
import os
import shutil
from collections.abc import Callable, Generator
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import Generic, TypeVar

logger = logging.getLogger(__name__)
T = TypeVar("T")

_OF_OTHERS = 0o077  # what anybody but the owner may do


class KeysError(Exception):
    """Keys that cannot be read or written as asked; says why."""


class SecretFile(Generic[T]):
    def __init__(self, path: Path, parse: Callable[[str], T]):
        """parse: makes a value of the text, or raises ValueError with the reason."""
        self.path, self._parse = path, parse
        self._stamp: tuple[int, ...] | None = None  # of the file that was read last
        self._read: T | None = None  # what it held,
        self._objection = ""  # or why it could not be read

    def read(self) -> T:
        """Its value. The file is read only if it has changed. Raises KeysError."""
        try:
            stat = self.path.stat()
            stamp = (stat.st_mtime_ns, stat.st_ctime_ns, stat.st_size, stat.st_ino, stat.st_mode)
            if stamp != self._stamp:
                self._stamp, self._read = None, None
                self._load(stat.st_mode)
                self._stamp = stamp
        except OSError as error:
            self._stamp = self._read = None
            raise KeysError(f"{self.path} cannot be read: {error}") from None
        if self._read is None:
            raise KeysError(self._objection)
        return self._read

    def _load(self, mode: int) -> None:
        if mode & _OF_OTHERS:
            sentence = "%s is open to others (mode %o): let it be its owner's alone, chmod 600"
            logger.warning(sentence, self.path, mode & 0o777)
        try:
            self._read = self._parse(self.path.read_text("utf-8"))
            logger.info("%s was read", self.path)
        except UnicodeDecodeError as error:
            self._objection = f"{self.path} cannot be read: {error}"
        except ValueError as error:
            self._objection = f"{self.path}, {error}"

    @contextlib.contextmanager
    def alone(self) -> Generator[None]:
        """Among those who change it. It is replaced each time, so its folder is locked."""
        try:
            folder = os.open(self.path.parent, os.O_RDONLY | os.O_DIRECTORY)
        except OSError as error:
            raise KeysError(f"{self.path} cannot be written: {error}") from None
        try:
            # Where folders cannot be locked, as on NFS, changes are made all the same.
            with contextlib.suppress(OSError):
                fcntl.flock(folder, fcntl.LOCK_EX)
            yield
        finally:
            os.close(folder)

    def replace(self, text: bytes, like: Path | None = None) -> None:
        """In one step, which survives a power cut: a gateway never reads half of it.

        Who may read it stays as it is. A new file is for its owner alone, or for whom `like` is.
        Raises KeysError.
        """
        like = self.path if self.path.exists() or like is None else like
        new: str | None = None
        try:
            with NamedTemporaryFile(dir=self.path.parent, delete=False) as file:
                new = file.name  # of mode 600
                file.write(text)
                file.flush()
                if like.exists():
                    stat = like.stat()
                    shutil.copymode(like, new)
                    if (stat.st_uid, stat.st_gid) != (os.geteuid(), os.getegid()):
                        os.chown(new, stat.st_uid, stat.st_gid)
                os.fsync(file.fileno())
            os.replace(new, self.path)
            new = None
            folder = os.open(self.path.parent, os.O_RDONLY | os.O_DIRECTORY)
            try:
                os.fsync(folder)
            finally:
                os.close(folder)
        except OSError as error:
            raise KeysError(f"{self.path} cannot be written: {error}") from None
        finally:
            if new:
                Path(new).unlink(missing_ok=True)

"""Object code on disk, so that a page is compiled once.

The directory is $NLMEGEN_CACHE, or else nlmegen/kernels below $XDG_CACHE_HOME or ~/.cache. It holds machine code that
this process runs: it is as safe as the directory is. It is made for its owner alone (0700), and one that belongs to
somebody else or that others can write to is not used. A file that is cut short or damaged is found by its checksum and
made anew; a directory that cannot be written to means compiling in every process, nothing worse.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import stat
import tempfile
from pathlib import Path

CHECKSUM = hashlib.sha256().digest_size


class Store:
    """A directory of object files by key.

    Args:
        directory: where; None takes $NLMEGEN_CACHE or the user's cache directory.
    """

    def __init__(self, directory: Path | None = None) -> None:
        self.directory = directory or _default()

    def get(self, key: str) -> bytes | None:
        """The object code stored under a key, or None."""
        if not self._trusted():
            return None
        try:
            stored = (self.directory / key).read_bytes()
        except OSError:
            return None
        checksum, code = stored[:CHECKSUM], stored[CHECKSUM:]
        return code if hashlib.sha256(code).digest() == checksum else None

    def put(self, key: str, code: bytes) -> None:
        """Store object code: written to a file of its own and moved, so that readers never see half of it."""
        with contextlib.suppress(OSError):
            self.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            if not self._trusted():
                return
            handle, name = tempfile.mkstemp(prefix=".", dir=self.directory)
            try:
                with os.fdopen(handle, "wb") as file:
                    file.write(hashlib.sha256(code).digest() + code)
                os.replace(name, self.directory / key)
            except OSError:
                os.unlink(name)
                raise

    def _trusted(self) -> bool:
        try:
            state = self.directory.stat()
        except OSError:
            return False
        if not hasattr(os, "getuid"):
            return True
        return state.st_uid == os.getuid() and not state.st_mode & (stat.S_IWGRP | stat.S_IWOTH)


def _default() -> Path:
    given = os.environ.get("NLMEGEN_CACHE")
    if given:
        return Path(given).expanduser()
    home = os.environ.get("XDG_CACHE_HOME")
    base = Path(home) if home else Path(os.path.expanduser("~")) / ".cache"
    return base / "nlmegen" / "kernels"

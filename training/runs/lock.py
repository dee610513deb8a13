"""The lock of a run: one process at a time trains in its folder; a process that dies lets go of it."""

from __future__ import annotations

import os
import sys
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

if sys.platform == "win32":
    import msvcrt

    def _lock(file: IO[Any]) -> None:
        msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
else:
    import fcntl

    def _lock(file: IO[Any]) -> None:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


_TRIES, _PAUSE = 5, 0.02
"""How often, and how many seconds apart, the lock is tried: whoever looks at it holds it for a moment."""


@dataclass
class RunLock:
    """A lock file that this process holds."""

    path: Path
    file: IO[Any] | None
    """None where the file system knows no locks: then nobody can tell."""

    @classmethod
    def take(cls, path: Path, name: str) -> RunLock:
        """Take the lock at `path`, for the run `name`.

        Raises:
            RuntimeError: another process has it.
        """
        for _ in range(_TRIES):
            try:
                file = path.open("a+b")
            except OSError:  # not writable: saving will say so
                return cls(path, None)
            try:
                _lock(file)
            except (BlockingIOError, PermissionError):
                file.close()
                time.sleep(_PAUSE)
                continue
            except OSError:
                return cls(path, file)
            with suppress(OSError):
                if os.name == "nt" or os.fstat(file.fileno()).st_ino == path.stat().st_ino:
                    return cls(path, file)
            file.close()  # its last owner took the file away meanwhile
        raise RuntimeError(
            f"{name} must not be in training to be trained on, but another process trains it; stop that, or start a "
            "new run"
        )

    def release(self) -> None:
        """Let go of it and take the file away."""
        if self.file is None:
            return
        if os.name != "nt":
            self.path.unlink(missing_ok=True)
        self.file.close()
        if os.name == "nt":
            with suppress(OSError):
                self.path.unlink(missing_ok=True)

    @staticmethod
    def is_taken(path: Path) -> bool:
        """Whether some process, other than by this module's own `take` in this one, holds the lock."""
        try:
            with path.open("r+b") as file:
                _lock(file)
        except (BlockingIOError, PermissionError):
            return True
        except OSError:
            return False
        return False

"""A file that appears whole, on the disk, or not at all."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path


def replace_file(path: Path, content: bytes, partial: Path) -> None:
    """Write `content` to `partial`, in the folder of `path`, and give it that name once it is on the disk.

    Raises:
        OSError: the place cannot be written; `path` is as it was and nothing is left of `partial`.
    """
    try:
        with partial.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    except BaseException:
        with suppress(OSError):
            partial.unlink(missing_ok=True)
        raise

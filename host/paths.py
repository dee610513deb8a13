"""Where things that a user names lie."""

from __future__ import annotations

import os
from pathlib import Path

PACK = Path(__file__).resolve().parents[1]


def first_existing(text: str, folders: list[Path]) -> Path:
    """The first of `folders / text` that exists, or the first of all if none does."""
    typed = Path(text).expanduser()
    candidates = [Path(os.path.normpath(folder / typed)) for folder in folders]
    return next((path for path in candidates if path.exists()), candidates[0])

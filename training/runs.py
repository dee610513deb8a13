"""The runs folder as a stranger's request may see it: one run by its name, and nothing outside."""

from __future__ import annotations

from pathlib import Path


def run_path(root: Path, name: str) -> Path:
    """The run folder of that name directly inside `root`.

    Raises:
        LookupError: there is none: not a plain name, a link, or a folder that is no run.
    """
    plain = name not in ("", ".", "..") and Path(name).name == name and not set(name) & set("/\\:\0")
    path = root / name
    if not plain or path.is_symlink() or not (path / "config.json").is_file():
        raise LookupError(f"no run of that name in {root}")
    return path

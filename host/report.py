"""The run's `report.json`: what a script reads instead of the terminal."""

from __future__ import annotations

import json
import math
import os
import sys
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

SECTIONS: Mapping[str, Any] = {
    "workflow": None,
    "seed": None,
    "steps": None,
    "seconds": None,
    "steps_per_second": None,
    "model_calls": {},
    "row_evaluations": {},
    "loss": {},
    "rollout": {},
    "drift": {},
    "lora": None,
    "images": [],
    "peak_memory_mb": None,
    "run_seconds": None,
    "cancelled": False,
}
"""The keys that every report has. What no node reported (a graph that trains nothing) stays as it is here.
`seconds` and `steps_per_second` are the training's, `run_seconds` the whole run."""

REPORT_VARIABLE = "ROLLOUT_TRAINER_REPORT"
"""Environment variable with which `--comfyui` tells the pack inside ComfyUI where to write what nodes report."""

FOLDERS_VARIABLE = "ROLLOUT_TRAINER_FOLDERS"
"""The same for the folders where relative paths are looked for first: the user's, and the workflow's. In a ComfyUI
that other machines can reach, its owner opens more folders to them with it."""


def merge(target: dict[str, Any], section: Mapping[str, Any]) -> None:
    """Write `section` into `target`: mappings merge at every level, other values replace."""
    for key, value in section.items():
        if isinstance(value, Mapping):
            own = target.get(key)
            target[key] = own if isinstance(own, dict) else {}
            merge(target[key], value)
        else:
            target[key] = value


def write(path: Path, report: Mapping[str, Any]) -> None:
    """Write `report` to `path` under a temporary name first, so that a reader never sees half of it.

    Raises:
        TypeError: if a value is not plain data (numbers, texts, lists, mappings, paths).
    """
    text = json.dumps(_finite(report), indent=2, ensure_ascii=False, allow_nan=False, default=_plain)
    path.parent.mkdir(parents=True, exist_ok=True)
    _sweep(path)
    partial = path.with_name(f".{path.name}.{os.getpid()}.part")
    with partial.open("w", encoding="utf-8") as file:
        file.write(text + "\n")
        file.flush()
        os.fsync(file.fileno())
    os.replace(partial, path)


def _sweep(path: Path) -> None:
    """Take away what processes that were killed while they wrote `path` left beside it."""
    for left in path.parent.glob(f".{path.name}.*.part"):
        with suppress(OSError, ValueError):
            if os.name == "posix":
                try:
                    os.kill(int(left.name.split(".")[-2]), 0)
                except ProcessLookupError:
                    left.unlink()


def _finite(value: Any) -> Any:
    """`value` with null for numbers that JSON does not have (a loss that is not a number)."""
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _plain(value: Any) -> str:
    if isinstance(value, Path):
        return str(value)
    raise TypeError(f"report values must be plain data, got {type(value).__name__}")


def peak_memory_mb(of_children: bool = False) -> float | None:
    """The most memory that this process, or one that it started and that has ended, had so far, in MB.

    On Windows: of this process alone, and None without psutil.
    """
    if sys.platform == "win32":
        try:
            import psutil
        except ImportError:
            return None
        return None if of_children else round(psutil.Process().memory_info().peak_wset / 2**20, 1)
    import resource

    peak = resource.getrusage(resource.RUSAGE_CHILDREN if of_children else resource.RUSAGE_SELF).ru_maxrss
    return round(peak / (2**20 if sys.platform == "darwin" else 2**10), 1)  # bytes on macOS, kB elsewhere

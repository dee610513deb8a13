"""What a page sees of a run from its folder alone, also after the server was restarted: facts and films."""

from __future__ import annotations

import json
import logging
import os
from contextlib import suppress
from pathlib import Path
from typing import Any

logger = logging.getLogger(__name__)

FACTS = "panel.json"
FILM = "film.json"
FILMS = 100
"""Films of a run that are told of at most: those in equal distances, and the last."""
_UNREADABLE = (OSError, ValueError, KeyError, TypeError)
"""What a file that is missing, cut off or of something else may raise."""


def keep(folder: Path, data: dict[str, Any]) -> None:
    """Write the newest facts of a run into its folder, whole or not at all; a full disk is a line in the log."""
    partial = folder / (FACTS + ".partial")
    try:
        partial.write_text(json.dumps(data), encoding="utf-8")
        os.replace(partial, folder / FACTS)
    except OSError as err:
        logger.warning("the facts of %s are not kept: %s", folder.name, err)


def stopped(data: dict[str, Any]) -> dict[str, Any]:
    """Facts of a training that does not run any more, whatever it said last."""
    return data if data["state"] != "running" else {**data, "state": "stopped", "seconds_left": None}


class Kept:
    """Finds the kept facts of a workflow; looks into a file again only after it has changed."""

    def __init__(self) -> None:
        self._places: dict[str, tuple[int, str, str]] = {}
        """By path: time of the last change in ns, workflow, node."""

    def of(self, runs: Path, workflow: str) -> dict[str, dict[str, Any]]:
        """Return the newest facts of each node of `workflow`, by node."""
        newest: dict[str, tuple[int, str]] = {}
        for path, changed in files(runs):
            own, node = self._place(path, changed)
            if own == workflow:
                newest[node] = max(newest.get(node, (0, "")), (changed, path))
        found = {}
        for node, (_, path) in newest.items():
            with suppress(*_UNREADABLE):  # deleted since
                found[node] = stopped(read(Path(path)))
        return found

    def _place(self, path: str, changed: int) -> tuple[str, str]:
        """Workflow and node of a file, "" for both if it is not readable."""
        known = self._places.get(path)
        if known is None or known[0] != changed:
            try:
                data = read(Path(path))
                known = changed, str(data["workflow"]), str(data["node"])
            except _UNREADABLE:
                known = changed, "", ""
            self._places[path] = known
        return known[1:]


def files(runs: Path) -> list[tuple[str, int]]:
    """Path and time of the last change in ns of each file of facts in the runs folder."""
    found = []
    with suppress(OSError), os.scandir(runs) as folders:
        for folder in folders:
            path = os.path.join(folder.path, FACTS)
            with suppress(OSError):
                found.append((path, os.stat(path).st_mtime_ns))
    return found


def read(path: Path) -> dict[str, Any]:
    """Read a JSON object.

    Raises:
        OSError, ValueError: it is not there, or not one.
    """
    data = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(data, dict):
        raise ValueError(f"{path} must hold a JSON object")
    return data


def films(run: Path) -> list[dict[str, Any]]:
    """What the run's films measured, in order; `version` changes when a film of the same step is taken again."""
    paths = sorted((run / "film").glob(f"step-*/{FILM}"))
    stride = -(-len(paths) // FILMS) or 1
    found = []
    for path in paths[::-1][::stride][::-1]:  # from the last one, which is always told of
        with suppress(*_UNREADABLE):
            found.append({**read(path), "version": path.stat().st_mtime_ns // 1_000_000})
    return found


def frame_path(run: Path, step: int, frame: int) -> Path:
    """The picture of a frame of a whole film.

    Raises:
        LookupError: there is none inside the run's folder.
    """
    path = run / "film" / f"step-{step:08d}" / f"{frame:02d}.jpg"
    inside = path.resolve().is_relative_to(run.resolve())
    if not (inside and path.is_file() and path.with_name(FILM).is_file()):
        raise LookupError(f"no frame {frame} of step {step}")
    return path

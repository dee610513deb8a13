"""What the panels of a workflow showed, found again in the run folders after the host was restarted."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path
from typing import Any

from .folder import RunFolder

_UNREADABLE = (OSError, ValueError, KeyError, TypeError, RecursionError)
"""What facts that are missing, cut off or of something else may raise."""


class Panels:
    """Finds the kept facts of a workflow; looks into a folder's again only after they have changed."""

    def __init__(self) -> None:
        self._places: dict[str, tuple[int, str, tuple[str, ...]]] = {}
        """By folder: time of the last change in ns, workflow, nodes."""

    def of(self, root: Path, workflow: str) -> dict[str, dict[str, Any]]:
        """The newest facts of each node of `workflow` in the runs folder `root`, by node."""
        newest: dict[str, tuple[int, str]] = {}
        for folder, changed in kept(root):
            own, nodes = self._place(folder, changed)
            for node in nodes if own == workflow else ():
                newest[node] = max(newest.get(node, (0, "")), (changed, folder))
        found = {}
        for node, (_, folder) in newest.items():
            with suppress(*_UNREADABLE):  # deleted since
                facts = RunFolder(Path(folder)).panel()
                stages = facts.pop("stages", {})
                found[node] = facts if facts["node"] == node else stages[node]
        return found

    def _place(self, folder: str, changed: int) -> tuple[str, tuple[str, ...]]:
        """Workflow and nodes of a folder's facts; "" and none if they are not readable."""
        known = self._places.get(folder)
        if known is None or known[0] != changed:
            try:
                facts = RunFolder(Path(folder)).panel()
                known = changed, str(facts["workflow"]), (str(facts["node"]), *facts.get("stages", {}))
            except _UNREADABLE:
                known = changed, "", ()
            self._places[folder] = known
        return known[1:]


def kept(root: Path) -> list[tuple[str, int]]:
    """The folders in a runs folder that have a panel's facts, each with the time of their last change in ns."""
    found = []
    with suppress(OSError), os.scandir(root) as folders:
        for folder in folders:
            with suppress(OSError):
                found.append((folder.path, RunFolder(Path(folder.path)).panel_path.stat().st_mtime_ns))
    return found

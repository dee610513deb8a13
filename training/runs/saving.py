"""States written while the training goes on."""

from __future__ import annotations

import logging
import threading

from ...messages import one_line
from ..trainer.snapshot import Snapshot
from .folder import RunFolder

logger = logging.getLogger(__name__)


class Saver:
    """Writes snapshots into a run's folder, one at a time, each in a thread that ends with it.

    If the disk does not take one, that is a line in the log: ending the stage would lose every step since the last
    save, and going on leaves time to free space before its end.
    """

    def __init__(self, folder: RunFolder) -> None:
        self.folder = folder
        self._thread: threading.Thread | None = None
        self._saved = self._told = 0

    def save(self, snapshot: Snapshot, pinned: bool = False, keep: int = 0) -> None:
        """Begin to write; an earlier snapshot comes first. `pinned` and `keep` as in `RunFolder.save`."""
        self.finish()
        self._thread = threading.Thread(target=self._write, args=(snapshot, pinned, keep), name="saving")
        self._thread.start()  # no daemon: the interpreter ends after it

    def finish(self) -> None:
        """Wait until nothing is being written."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def saved(self) -> int:
        """The step of the state that came onto the disk since this was last asked; 0: none did."""
        step = self._saved  # the thread may set it at any moment
        if step == self._told:
            return 0
        self._told = step
        return step

    def _write(self, snapshot: Snapshot, pinned: bool, keep: int) -> None:
        try:
            self.folder.save(snapshot.take(), pinned=pinned, keep=keep)
        except Exception as err:  # a full disk, a state that cannot be written: training on is worth more
            logger.warning("step %d not saved, training goes on: %s", snapshot.step, one_line(err))
        else:
            self._saved = snapshot.step

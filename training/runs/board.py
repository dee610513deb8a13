"""TensorBoard's event files in a run's folder: losses, rates, drift and pictures, for those who look at them there.

The optional package `tensorboard` writes them, through torch. Nothing is sent anywhere, nothing of the training
depends on them, and no random number is drawn.
"""

from __future__ import annotations

import json
import logging
import math
import sys
from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.util import find_spec
from typing import Any

import numpy as np
from PIL import Image

from ..checks import to_plain
from ..pictures.film import Film
from ..pictures.strip import read_about, sample_path
from ..trainer.trainer import StepReport
from .run import Run

logger = logging.getLogger(__name__)

SMOOTHED = 50
"""The smoothed loss is the mean of so many steps, as in the header of a LoRA file."""
TAGS: Mapping[str, str] = {
    "total": "loss/total",
    "base": "loss/base",
    "fc": "loss/fc",
    "adr": "loss/adr",
    "validation": "loss/held out",
    "lr": "training/learning rate",
    "grad_norm": "training/gradient norm",
    "skipped": "training/skipped",
    "probability": "rollout/probability",
    "rolled": "rollout/rows rolled out",
    "length": "rollout/length",
    "staleness": "rollout/age of states",
}
"""What each column of the history is called there; columns that have no name here are left out."""


def check_installed() -> None:
    """Say before a training starts that the package is missing.

    Raises:
        RuntimeError: it is.
    """
    if find_spec("tensorboard") is None:
        raise RuntimeError(
            "tensorboard must be off where the Python package tensorboard is missing, got on; switch it off, or run "
            f'"{sys.executable}" -m pip install tensorboard'
        )


@contextmanager
def board_of(run: Run, wanted: bool) -> Iterator[Board | None]:
    """The run's event files while it trains; None where nobody wants them."""
    board = Board(run) if wanted else None
    try:
        yield board
    finally:
        if board is not None:
            board.close()


class Board:
    """Writes what a watcher of the training is told.

    A run that goes on from an earlier step than its files reach takes back what they say of later ones.
    """

    def __init__(self, run: Run) -> None:
        from torch.utils.tensorboard import SummaryWriter  # slow, and its package is optional

        self._folder = run.folder
        place = run.folder.events_folder
        again = run.step + 1 if place.is_dir() else None
        self._writer: Any = SummaryWriter(str(place), purge_step=again)
        self._recent = deque(run.history.columns.get("total", [])[: run.step], maxlen=SMOOTHED)
        self._writer.add_text("settings", _as_markdown(to_plain(run.config)), run.step)
        self._draw_samples(run.step)

    def add(self, report: StepReport) -> None:
        """Take in one optimiser step."""
        values = {TAGS[name]: value for name, value in report.row.items() if name in TAGS}
        self._recent.append(report.row.get("total", math.nan))
        measured = [value for value in self._recent if math.isfinite(value)]
        if measured:
            values["loss/smoothed"] = sum(measured) / len(measured)
        values["training/steps per second"] = report.steps_per_second
        for tag, value in values.items():
            if math.isfinite(value):
                self._writer.add_scalar(tag, value, report.step)
        if report.film is not None:
            self._film(report.film)
        if report.drawn:
            self._draw_samples(report.step)

    def _film(self, film: Film) -> None:
        """The last state of a rollout, and how far it has drifted: exposure bias on one picture."""
        self._writer.add_scalar("exposure bias/drift", film.drift[-1], film.step)
        self._writer.add_scalar("exposure bias/floor", film.floor[-1], film.step)
        self._draw("rollout/own, clean, estimate", film.frames[-1], film.step)

    def _draw_samples(self, step: int) -> None:
        """The user's prompts as they were drawn at `step`, if they were."""
        if step not in self._folder.sample_steps():
            return
        place = self._folder.samples_folder(step)
        for number, prompt in enumerate(read_about(place)["prompts"]):
            with Image.open(sample_path(place, number)) as picture:
                self._draw(f"prompts/{number:02d} {prompt}", picture, step)

    def _draw(self, tag: str, picture: Image.Image, step: int) -> None:
        self._writer.add_image(tag, np.asarray(picture.convert("RGB")), step, dataformats="HWC")

    def close(self) -> None:
        """Write what is still waiting; a disk that is full costs the event files alone, not the training."""
        try:
            self._writer.close()
        except OSError as err:
            logger.warning("%s is not whole: %s", self._folder.events_folder, err)


def _as_markdown(settings: Any) -> str:
    """Settings as a text that TensorBoard shows as it is."""
    return "\n".join(f"    {line}" for line in json.dumps(settings, indent=2).splitlines())

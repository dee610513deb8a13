"""The film of a run: one rollout of one picture under the adapter as it is then, kept state by state in a folder.

The folder holds a JPEG for each state of the rollout (own state, clean interpolant and estimate of the picture, from
left to right) and ``film.json``, which is written last: without it the folder does not count. Where it lies in a run's
folder is for `RunFolder.film_folder` to say.
"""

from __future__ import annotations

import io
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ..data.dataset import LatentDataset
from ..files import read_json, write_atomically, write_json
from ..models.source import Denoiser, ModelSource
from ..objective.config import RolloutConfig
from .preview import RolloutFrames, frames_on, pictures

_NUMBERS = "film.json"
_FRAME = re.compile(r"\d{2,}\.jpg")

PICTURE = 0
"""Which sample of the data is filmed."""
SEED = 0
"""Of its noise: all films of all runs with this data begin alike."""
TARGET = 0.5
"""Where rollouts end, as a fraction of the trajectory; earlier where there is no room for a step above."""
LENGTH = 5
"""Rollout steps in a run without rollouts."""
FRAMES = 9
"""States that are shown at most: of a longer rollout, those in equal distances."""
SIDE = 256
"""Longest side in pixels of each of a frame's three pictures."""
QUALITY = 88


@dataclass(frozen=True)
class Film:
    """The shown states of one rollout, from source to target."""

    step: int
    """Optimiser steps done."""
    sigmas: tuple[float, ...]
    drift: tuple[float, ...]
    """``||own - clean|| / ||clean||``"""
    floor: tuple[float, ...]
    """The drift of a perfect model, see `preview.drift_floor`."""
    frames: tuple[Image.Image, ...]
    """For each state: own | clean | estimate of the picture."""

    def write(self, folder: Path) -> None:
        """Write it into a folder of its own; a film that is there is replaced.

        Raises:
            OSError, RuntimeError: the place cannot be written.
        """
        folder.mkdir(parents=True, exist_ok=True)
        (folder / _NUMBERS).unlink(missing_ok=True)
        for i, frame in enumerate(self.frames):
            write_atomically(frame_path(folder, i), jpeg(frame))
        numbers = {name: list(getattr(self, name)) for name in ("sigmas", "drift", "floor")}
        write_json(folder / _NUMBERS, {"step": self.step, **numbers, "frames": len(self.frames)})


class Camera:
    """Takes the films of a stage. Draws from no random stream but its own.

    Args:
        denoiser: with the adapter on it, open whenever a film is taken.
        source: the base, for its cheap decoder.
        data: a picture of it is filmed.
        config: solver and step size; the longest rollout that it allows is the film's length.
        within: the part of the trajectory that the model is for.
    """

    def __init__(
        self,
        denoiser: Denoiser,
        source: ModelSource,
        data: LatentDataset,
        config: RolloutConfig,
        within: tuple[float, float] = (0.0, 1.0),
    ) -> None:
        self._denoiser, self._source, self._config, self._within = denoiser, source, config, within
        self._sample = data.batch(torch.tensor([PICTURE]))
        self._clean: dict[int, Tensor] = {}  # by state [H, W, 3]: the same in every film

    def take(self, step: int) -> Film:
        """The picture, rolled out as the run does after `step` optimiser steps."""
        config, sample = self._config, self._sample.to(self._source.device)
        (low, high), n = self._within, config.steps_per_trajectory
        u_target = max(min(low + (high - low) * TARGET, high - 1 / n), 0.0)
        room = int((high - u_target) * n + 1e-9)  # 1e-9 forgives rounding
        steps = min(config.max_step_offset or LENGTH, max(room, 1))
        states = frames_on(self._denoiser, sample.x0, sample.cond, u_target, steps, config, SEED)
        shown = equally_spaced(len(states.sigmas), FRAMES)
        sigmas = states.sigmas[shown]
        return Film(
            step,
            sigmas=plain(sigmas),
            drift=plain(states.drift[shown, 0]),
            floor=plain(states.floor[shown, 0]),
            # One by one: of many large pictures none waits for the others.
            frames=tuple(as_frame(self._strip(states, i)) for i in shown),
        )

    def _strip(self, states: RolloutFrames, i: int) -> Tensor:
        """[H, 3 W, 3] of state `i`, in 256 values: own | clean | estimate of the picture."""
        own, clean, denoised = (seen[i : i + 1] for seen in (states.own, states.clean, states.denoised))
        sigma, data = states.sigmas[i], torch.zeros_like(states.sigmas[i])
        wanted = [(denoised, data)]
        if i:  # the source is a clean state
            wanted.append((own, sigma))
        if i not in self._clean:
            wanted.append((clean, sigma))
        levels = torch.stack([level for _, level in wanted])
        made = pictures(self._source, torch.cat([seen for seen, _ in wanted]), levels, cheap=True)
        made = as_bytes(made)[:, 0]  # [1 to 3, H, W, 3]
        if i not in self._clean:
            self._clean[i] = made[-1]
        return torch.cat([made[1] if i else self._clean[i], self._clean[i], made[0]], dim=1)


def is_whole(folder: Path) -> bool:
    """Whether a film was written into the folder to its end."""
    return (folder / _NUMBERS).is_file()


def frame_path(folder: Path, number: int) -> Path:
    """Where a frame lies in a film's folder."""
    return folder / f"{number:02d}.jpg"


def last_frame(folder: Path) -> Path | None:
    """The last frame in a film's folder; None if there is none."""
    frames = (path for path in folder.glob("*.jpg") if _FRAME.fullmatch(path.name))
    return max(frames, key=lambda path: int(path.stem), default=None)


def read_numbers(folder: Path) -> dict[str, Any]:
    """What was measured along the film: ``step, sigmas, drift, floor, frames``.

    ``version`` changes when a film of the same step is taken again.

    Raises:
        OSError, ValueError: the film is not whole, or its file is of something else.
    """
    path = folder / _NUMBERS
    numbers = read_json(path, folder)
    if not isinstance(numbers, dict):
        raise ValueError(f"{path} must hold a JSON object")
    return {**numbers, "version": path.stat().st_mtime_ns // 1_000_000}


def equally_spaced(count: int, most: int) -> list[int]:
    """Numbers of at most `most` of `count` things, the first and the last among them."""
    return sorted({round(i) for i in np.linspace(0, count - 1, min(count, most))})


def plain(values: Tensor) -> tuple[float, ...]:
    """Numbers in five digits."""
    return tuple(float(f"{value:.5g}") for value in values.tolist())


def as_bytes(pixels: Tensor) -> Tensor:
    """Pictures in [0, 1] in 256 values."""
    return (pixels.float().nan_to_num().clamp(0, 1) * 255).round().to(torch.uint8)


def as_frame(strip: Tensor) -> Image.Image:
    """`strip: [H, 3 W, 3]` of 256 values as a picture whose thirds have sides of `SIDE` at most."""
    frame = Image.fromarray(strip.numpy())
    shrink = min(1.0, SIDE / max(frame.height, frame.width / 3))
    size = (3 * max(1, round(frame.width / 3 * shrink)), max(1, round(frame.height * shrink)))
    return frame if size == frame.size else frame.resize(size, Image.Resampling.LANCZOS)


def jpeg(frame: Image.Image) -> bytes:
    """A picture as a JPEG file; colour at full resolution, since latents' previews are small."""
    buffer = io.BytesIO()
    frame.save(buffer, "JPEG", quality=QUALITY, subsampling=0)
    return buffer.getvalue()

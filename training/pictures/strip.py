"""The user's own prompts while a run trains: pictures of one moment, kept in a folder.

The folder holds a JPEG for each prompt and ``samples.json``, which is written last: without it the folder does not
count. Where it lies in a run's folder is for `RunFolder.samples_folder` to say.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from ..files import read_json, write_atomically, write_json
from .film import jpeg

_ABOUT = "samples.json"
LONGEST = 768
"""Longest side in pixels of a kept picture."""


def write_samples(folder: Path, step: int, prompts: Sequence[str], pixels: Tensor) -> None:
    """Write pictures `pixels: [N, 3, H, W]` in [0, 1], one of each prompt; those that are there are replaced.

    Raises:
        OSError, RuntimeError: the place cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    (folder / _ABOUT).unlink(missing_ok=True)
    for i, picture in enumerate(pixels.permute(0, 2, 3, 1)):
        write_atomically(sample_path(folder, i), jpeg(as_picture(picture)))
    write_json(folder / _ABOUT, {"step": step, "prompts": list(prompts)})


def as_picture(pixels: Tensor) -> Image.Image:
    """`pixels: [H, W, 3]` in [0, 1] as a picture whose sides are `LONGEST` at most."""
    values = (pixels.float().nan_to_num().clamp(0, 1) * 255).round().to(torch.uint8)
    picture = Image.fromarray(values.cpu().numpy())
    picture.thumbnail((LONGEST, LONGEST), Image.Resampling.LANCZOS)
    return picture


def are_whole(folder: Path) -> bool:
    """Whether samples were written into the folder to their end."""
    return (folder / _ABOUT).is_file()


def sample_path(folder: Path, number: int) -> Path:
    """Where the picture of a prompt lies in the samples' folder."""
    return folder / f"{number:02d}.jpg"


def read_about(folder: Path) -> dict[str, Any]:
    """What was drawn: ``step, prompts``; ``version`` changes when the same step is drawn again.

    Raises:
        OSError, ValueError: the samples are not whole, or the file is of something else.
    """
    path = folder / _ABOUT
    about = read_json(path, folder)
    if not isinstance(about, dict) or not isinstance(about.get("prompts"), list):
        raise ValueError(f"{path} must hold step and prompts")
    return {**about, "version": path.stat().st_mtime_ns // 1_000_000}

"""A contact sheet: pictures as they will be trained on, so that a wrong crop is seen before a night is spent."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import matplotlib
import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

SIDE = 192
"""Pixels of the longest side of a picture on the sheet."""
LINE = 14
"""Pixels between lines of text."""
LINES = 4
GAP = 10
PAPER, INK = "#ffffff", "#1f2328"
UNTRAINED = (207, 34, 46)
"""What parts that are not trained are tinted with."""


@dataclass(frozen=True)
class Shown:
    """One sample of the sheet."""

    pictures: tuple[Tensor, ...]
    """[3, H, W] in [0, 1], side by side: the target first."""
    mask: Tensor | None
    """[1, H, W] of the target, in [0, 1]; None: it counts everywhere."""
    title: str
    caption: str


def contact_sheet(samples: Sequence[Shown], columns: int = 6) -> Tensor:
    """Lay samples out in rows, with their titles and captions: [1, H, W, 3] in [0, 1].

    Args:
        columns: most samples beside each other; fewer where one is several pictures wide.
    """
    cells = [_cell(sample) for sample in samples]
    width, height = max(cell.width for cell in cells) + GAP, max(cell.height for cell in cells) + GAP
    columns = max(1, min(columns, len(cells), columns * (SIDE + GAP) // width))
    rows = math.ceil(len(cells) / columns)
    sheet = Image.new("RGB", (columns * width + GAP, rows * height + GAP), PAPER)
    for i, cell in enumerate(cells):
        sheet.paste(cell, (GAP + i % columns * width, GAP + i // columns * height))
    return torch.from_numpy(np.asarray(sheet).copy()).float()[None] / 255


def spread(count: int, most: int) -> list[int]:
    """Numbers of at most `most` of `count` things, in equal distances, the first and the last among them."""
    return sorted({round(i) for i in np.linspace(0, count - 1, min(count, most))})


def _cell(sample: Shown) -> Image.Image:
    pictures = [_picture(p, sample.mask if i == 0 else None) for i, p in enumerate(sample.pictures)]
    width = max(sum(p.width for p in pictures) + 2 * (len(pictures) - 1), SIDE)
    top = max(p.height for p in pictures)
    cell = Image.new("RGB", (width, top + LINES * LINE + 6), PAPER)
    left = 0
    for picture in pictures:
        cell.paste(picture, (left, 0))
        left += picture.width + 2
    font = ImageFont.truetype(str(Path(matplotlib.get_data_path()) / "fonts/ttf/DejaVuSans.ttf"), 10)
    draw = ImageDraw.Draw(cell)
    lines = textwrap.wrap(sample.caption, max(10, width // 6)) or ["(no caption)"]
    if len(lines) > LINES - 1:
        lines = [*lines[: LINES - 2], lines[LINES - 2] + " ..."]
    for i, line in enumerate([sample.title, *lines]):
        draw.text((0, top + 3 + i * LINE), line, fill=INK, font=font)
    return cell


def _picture(pixels: Tensor, mask: Tensor | None) -> Image.Image:
    array = (pixels.clamp(0, 1) * 255).round().to(torch.uint8).permute(1, 2, 0).cpu().numpy()
    image = Image.fromarray(array)
    if mask is not None:
        away = Image.fromarray(((1 - mask[0].clamp(0, 1)) * 190).to(torch.uint8).cpu().numpy())
        image.paste(UNTRAINED, (0, 0), away.resize(image.size))
    shrink = SIDE / max(image.size)
    return image.resize((max(1, round(image.width * shrink)), max(1, round(image.height * shrink))))

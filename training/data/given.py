"""A dataset of pictures and captions that are in memory, as other nodes give them."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Sequence
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ..files import write_atomically
from .captions import unbroken, with_trigger
from .images import ImageDataset, Items

T = TypeVar("T")


def dataset_from_images(
    images: Sequence[Tensor],
    captions: Sequence[str],
    masks: Sequence[Tensor] | None,
    place: Path,
    trigger: str = "",
    repeats: int = 1,
) -> ImageDataset:
    """Put pictures and captions together; the pictures are kept as files, by content, and encoded from those.

    Args:
        images: [H, W, C] in [0, 1], of any sizes; of more than three channels the first three are taken.
        captions: one for all, or one for each.
        masks: [H, W] in [0, 1], one for all or one for each; None: everything is trained.
        place: folder for the files.
        trigger: put before every caption that does not contain it as a word.
        repeats: how often each picture comes in an epoch.

    Raises:
        ValueError: no pictures, or captions or masks that are neither one nor as many as there are pictures.
        RuntimeError: `place` cannot be written.
    """
    if not images:
        raise ValueError("images must hold at least one picture, got none")
    texts = _matched("texts", captions, len(images))
    given = [None] * len(images) if masks is None else _matched("masks", masks, len(images))
    items, left = Items(place), []
    for number, (image, text, mask) in enumerate(zip(images, texts, given, strict=True)):
        if mask is not None and not bool((mask > 0).any()):
            left.append(f"picture {number}: it is left out, as its mask is all black")
            continue
        name, digest = _kept(place, image[..., :3])
        height, width = image.shape[:2]
        fact = {"width": width, "height": height, "digest": digest}
        items.append(
            name,
            with_trigger(unbroken(text), trigger),
            fact,
            repeats,
            None if mask is None else _kept(place, mask),
        )
    if not items:
        raise ValueError(f"images must hold a picture that is trained on, but {left[0]}")
    return ImageDataset(place, items.close(), tuple(left))


def _matched(what: str, given: Sequence[T], n: int) -> Sequence[T]:
    """One for each of `n` pictures."""
    if len(given) not in (1, n):
        raise ValueError(f"{what} must be one for all or one for each of {n} pictures, got {len(given)}")
    return list(given) * n if len(given) == 1 else given


def _kept(place: Path, values: Tensor) -> tuple[str, str]:
    """Name and digest of a file with these pixels; both are of the pixels, not of how they are packed."""
    pixels = (values.detach().float().clamp(0, 1) * 255).round().to(torch.uint8).cpu().contiguous().numpy()
    if pixels.ndim == 3 and pixels.shape[-1] == 1:
        pixels = np.repeat(pixels, 3, axis=-1)
    digest = hashlib.sha256(f"{pixels.shape}".encode() + pixels.tobytes()).hexdigest()
    path = place / f"{digest}.png"
    if not path.exists():
        packed = io.BytesIO()
        Image.fromarray(pixels).save(packed, "PNG", compress_level=1)
        place.mkdir(parents=True, exist_ok=True)
        write_atomically(path, packed.getvalue())
    return path.name, digest

"""Long clips encoded in pieces of time, so that memory does not grow with their length.

A latent frame of a video model's autoencoder depends on frames before it and on none behind it, the less the further
away they are. Wan's reads a clip a few frames at a time and remembers what it needs of those before: it is handed them
as it reads, and gives what it gives for the whole. Others get pieces, which begin some frames earlier than they are
kept from, at a frame that a latent frame ends with; that changes less than ComfyUI's own encoding in tiles.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor

WHOLE = 129
"""Frames of the longest clip that is encoded at once: the longest that HunyuanVideo was made for, others are below."""
PIECE = 121
"""Frames of a piece: 1 and a multiple of 4, 6 and 8, what families take as one latent frame."""
BEFORE = 48
"""Frames at a piece's front that are encoded for what follows alone."""


class Clip(Protocol):
    """Frames [F, H, W, 3]: a tensor, or what gives parts of one."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the whole."""
        ...

    def __getitem__(self, part: slice, /) -> Tensor: ...


class Made:
    """A clip of which parts are made as they are asked for, from a number up to another."""

    def __init__(self, shape: tuple[int, ...], make: Callable[[int, int], Tensor]) -> None:
        self.shape = tuple(shape)
        self._make = make

    def __getitem__(self, part: slice) -> Tensor:
        first, last, _ = part.indices(self.shape[0])
        return self._make(first, last)


def encoded(clip: Clip, encode: Callable[[Tensor], Tensor]) -> Tensor:
    """Latent [1, C, f, h, w] of a clip, as the autoencoder's `encode` makes it of frames [n, H, W, 3]."""
    count = clip.shape[0]
    if count <= WHOLE:
        return encode(clip[0:count])
    out = encode(clip[0:PIECE])
    step = (PIECE - 1) // (out.shape[2] - 1)  # frames that are one latent frame
    before = BEFORE // step
    while (done := out.shape[2]) < 1 + (count - 1) // step:
        first = (done - before) * step
        piece = encode(clip[first : min(first + PIECE, count)])
        out = torch.cat([out, piece[:, :, before:]], 2)
    return out


class Read:
    """A clip as an autoencoder's network takes it, [1, 3, F, H, W], for one that cuts it along its frames alone."""

    def __init__(self, clip: Clip, vae: Any) -> None:
        self._clip, self._vae = clip, vae
        first = self[:, :, :1].shape
        self.shape = (*first[:2], clip.shape[0], *first[3:])

    def __getitem__(self, index: tuple[slice, ...]) -> Tensor:
        vae = self._vae
        pixels = vae.vae_encode_crop_pixels(self._clip[index[2]])  # [n, H, W, 3]
        own: Tensor = vae.process_input(pixels.movedim(-1, 0)[None])
        return own.to(vae.vae_dtype).to(vae.device)

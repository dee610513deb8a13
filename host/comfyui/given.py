"""Frames that a video model is given, and is not to make: the picture that a clip begins with.

The host says so by a latent's noise mask, 0 at such frames; families that were made for it hold them clean at every
noise level and tell the network. A row of conditioning carries them as two controls, `MASK` and `FRAMES`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from comfy.model_base import BaseModel
from torch import Tensor

from .conditioning import Row

MASK = "denoise_mask"
"""[1, 1, F, 1, 1]: how much of each frame is made, 0 of one that is given."""
FRAMES = "given_latent"
"""[1, C, G, h, w]: the G frames whose mask is below 1, in order, as the network sees them."""


def keeps_frames(model: Any) -> bool:
    """Whether a family holds what a noise mask keeps without noise; others mix it into the noise."""
    return type(model).scale_latent_inpaint is not BaseModel.scale_latent_inpaint


def given_frames(model: Any, samples: Tensor, mask: Tensor) -> list[dict[str, Tensor]] | None:
    """The controls of each of the samples whose frames a noise mask tells to keep; None: it tells something else.

    Args:
        model: the host's model.
        samples: [N, C, F, h, w] as the network sees them.
        mask: [1 or N, 1, F, H, W], the noise mask. One that differs within a frame, or gives no frame or all of them,
            is of another kind: it says where the loss counts.
    """
    if not keeps_frames(model) or samples.ndim != 5 or mask.ndim != 5 or mask.shape[2] != samples.shape[2]:
        return None
    frames = mask[:, :1].amax((3, 4), keepdim=True)  # [1 or N, 1, F, 1, 1]
    even = torch.equal(frames.expand_as(mask[:, :1]), mask[:, :1])
    if not even or bool((frames >= 1).all(2).any()) or bool((frames < 1).all(2).any()):
        return None
    own = frames.to(samples).expand(len(samples), -1, -1, -1, -1).split(1)
    return [
        {MASK: m.clone(), FRAMES: x[:, :, m.flatten() < 1].clone()}
        for m, x in zip(own, samples.split(1), strict=True)
    ]


def latent_of(row: Row, x: Tensor) -> Tensor:
    """The given frames of one sample at their places in `x: [1, C, F, h, w]`, the others 0."""
    places = (row[MASK].flatten() < 1).nonzero().flatten().to(x.device)
    return torch.zeros_like(x).index_copy(2, places, row[FRAMES].to(x))


class Given:
    """What is given of the samples of a batch, for one call of the model.

    Args:
        model: the host's model.
        x: [B, C, F, h, w] states; at given frames their values do not matter.
        rows: their conditioning.
    """

    def __init__(self, model: Any, x: Tensor, rows: Sequence[Row]) -> None:
        self._model = model
        everything = x.new_ones(1, 1, x.shape[2], 1, 1)
        self.made = torch.cat([row[MASK].to(x) if MASK in row else everything for row in rows])
        self.latent = torch.cat(
            [latent_of(row, x[i : i + 1]) if MASK in row else x[i : i + 1] * 0 for i, row in enumerate(rows)]
        )

    def held(self, x: Tensor, sigma: Tensor) -> Tensor:
        """The states with the given frames as the family wants them at `sigma: [B]`: for most, clean."""
        clean = self._model.scale_latent_inpaint(
            x=x,
            sigma=sigma,
            noise=torch.zeros_like(x),
            latent_image=self.latent,
            denoise_mask=self.made.expand_as(x),
        )
        return x * self.made + clean * (1 - self.made)

    def kept(self, denoised: Tensor) -> Tensor:
        """Estimates of x0 with the given frames as they are given."""
        return denoised * self.made + self.latent * (1 - self.made)

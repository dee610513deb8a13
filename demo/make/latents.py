"""The latent space: a linear code of 8x8 pixel patches, found by principal components.

`vae.py` writes the very same map as the weights of an AutoencoderTiny.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from .captions import BACKGROUNDS
from .render import Pictures, on_background

PATCH = 8
CHANNELS = 16
SAMPLED_PICTURES = 1000
WHITENING = 0.5
"""A component of standard deviation s gets s ** WHITENING: 1 would leave the contrast of PCA, 0 whiten it."""


@dataclass(frozen=True)
class PatchCode:
    """z = W (u - mu) and u = D z + mu for a patch u, which is 3 x 8 x 8 values in [-1, 1].

    W: [16, 192]; D: [192, 16]; mu: [192]; latents have mean square 1 over the fitted pictures.
    """

    W: Tensor
    D: Tensor
    mu: Tensor

    def encode(self, pixels: Tensor) -> Tensor:
        """[B, 3, H, W] in [0, 1] -> latents [B, 16, H/8, W/8]."""
        patches = F.pixel_unshuffle(pixels * 2 - 1, PATCH)  # [B, 192, h, w]
        return torch.einsum("zu,buhw->bzhw", self.W, patches - self.mu[:, None, None])

    def decode(self, latents: Tensor) -> Tensor:
        """[B, 16, h, w] -> pixels [B, 3, 8h, 8w], about [0, 1]."""
        patches = torch.einsum("uz,bzhw->buhw", self.D, latents) + self.mu[:, None, None]
        return (F.pixel_shuffle(patches, PATCH) + 1) / 2


def fit(pictures: Pictures, seed: int = 3) -> PatchCode:
    """The principal components of the patches of some base pictures; the blob style takes no part."""
    generator = torch.Generator().manual_seed(seed)
    rows, _ = pictures.base_rows()
    chosen = torch.tensor(rows)[torch.randperm(len(rows), generator=generator)[:SAMPLED_PICTURES]]
    pixels = on_background(pictures.rgba[chosen], torch.arange(len(chosen)) % len(BACKGROUNDS))
    u = F.pixel_unshuffle(pixels * 2 - 1, PATCH).permute(0, 2, 3, 1).reshape(-1, 3 * PATCH**2).double()
    mu = u.mean(0)
    variance, vectors = torch.linalg.eigh((u - mu).T @ (u - mu) / len(u))
    deviation = variance.flip(0)[:CHANNELS].sqrt()  # largest first
    components = vectors.flip(1)[:, :CHANNELS]
    scale = deviation**WHITENING
    scale = scale / scale.square().mean().sqrt()
    to_latent, to_patch = (components * (scale / deviation)).T, components * (deviation / scale)
    return PatchCode(to_latent.float().contiguous(), to_patch.float().contiguous(), mu.float())


def encode_all(code: PatchCode, pictures: Pictures, rows: list[int], batch: int = 128) -> Tensor:
    """Latents of the rows on every background: float16 [N, 8, 16, h, w]."""
    backgrounds = []
    for colour in range(len(BACKGROUNDS)):
        parts = [
            code.encode(on_background(rgba, torch.full((len(rgba),), colour))).half()
            for rgba in pictures.rgba[rows].split(batch)
        ]
        backgrounds.append(torch.cat(parts))
    return torch.stack(backgrounds, 1)

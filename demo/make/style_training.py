"""Train the style measure (`demo/style.py`): blob drawings against the base's styles and its samples.

The names of the unseen captions take no part in any style, so that the measure is tried on drawings and
names it does not know. Positives and negatives go through the same artefacts a generated picture has.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor

from ..style import StyleNet
from .captions import BACKGROUNDS, BLOB, STYLES, caption, read_names
from .latents import PatchCode
from .render import Pictures, on_background
from .sampling import Pipeline, draw

log = logging.getLogger(__name__)

STEPS, BATCH, LR = 600, 64, 2e-3
SAMPLE_CAPTIONS = 120
LATENT_NOISE = 0.4
"""Largest deviation of the noise put on latents; theirs is 1."""


@dataclass(frozen=True)
class Examples:
    """Uint8 pictures [N, 3, 128, 128] in the new style, of the base's styles, and drawn by the base."""

    blob: Tensor
    base: Tensor
    drawn: Tensor


def examples(pictures: Pictures, pipeline: Pipeline) -> Examples:
    """Everything the measure is trained on, many of them recoloured."""
    unseen = set(read_names("blob_unseen.txt"))
    known = [name for name in dict.fromkeys(pictures.names) if name not in unseen]
    base = [row for style in STYLES.values() for row in pictures.rows(style, known)]
    faces = [row for row in base if "face" in pictures.names[row]]
    return Examples(
        as_bytes(on_colours(pictures, pictures.rows(BLOB, known), len(BACKGROUNDS))),
        as_bytes(on_colours(pictures, base + faces, 3)),
        as_bytes(draw(pipeline, sample_captions(known))),
    )


def sample_captions(known: Sequence[str]) -> list[str]:
    """Captions for the base's samples: faces most of all, half of them in the style it does not know."""
    faces = [name for name in known if "face" in name]
    names = (faces * 2)[:SAMPLE_CAPTIONS]
    styles = [BLOB, "noto", BLOB, "flat"]
    colours = ["white", *BACKGROUNDS]
    return [caption(name, styles[i % len(styles)], colours[i % len(colours)]) for i, name in enumerate(names)]


def on_colours(pictures: Pictures, rows: Sequence[int], count: int, seed: int = 0) -> Tensor:
    """Each row on `count` backgrounds, first white, every second time recoloured: [N count, 3, 128, 128]."""
    generator = torch.Generator().manual_seed(seed)
    rgba = pictures.rgba[list(rows)]
    shown = [on_background(rgba, torch.zeros(len(rgba), dtype=torch.long))]
    for turn in range(1, count):
        colour = torch.randint(len(BACKGROUNDS), (len(rgba),), generator=generator)
        shown.append(on_background(recolour(rgba, generator) if turn % 2 else rgba, colour))
    return torch.cat(shown)


def recolour(rgba: Tensor, generator: torch.Generator) -> Tensor:
    """Exchange the colours of each drawing and darken them: a blob need not be yellow."""
    order = torch.rand(len(rgba), 3, 1, 1, generator=generator).argsort(1).expand_as(rgba[:, :3])
    balance = 0.4 + 0.6 * torch.rand(len(rgba), 3, 1, 1, generator=generator)
    exchanged = rgba[:, :3].gather(1, order) * balance
    return torch.cat([exchanged.round().to(torch.uint8), rgba[:, 3:]], 1)


def as_bytes(pixels: Tensor) -> Tensor:
    """[0, 1] -> 0..255."""
    return (pixels.clamp(0, 1) * 255).round().to(torch.uint8)


def spoil(pixels: Tensor, code: PatchCode, generator: torch.Generator) -> Tensor:
    """Pictures as a model might draw them: moved, tinted, blurred, with noisy latents; the shape stays."""
    tinted = tint(move(pixels, generator), generator)
    blurred = F.interpolate(F.avg_pool2d(tinted, 4), scale_factor=4, mode="bilinear")
    blur = torch.rand(len(pixels), 1, 1, 1, generator=generator)
    latents = code.encode(tinted + blur * (blurred - tinted))
    level = LATENT_NOISE * torch.rand(len(pixels), 1, 1, 1, generator=generator)
    return code.decode(latents + level * torch.randn(latents.shape, generator=generator)).clamp(0, 1)


def move(pixels: Tensor, generator: torch.Generator) -> Tensor:
    """Stretch and shift a little; mirror half of the pictures and turn a tenth upside down."""
    count = len(pixels)
    flipped = torch.rand(count, 2, generator=generator) < torch.tensor([0.5, 0.1])
    scale = (0.9 + 0.25 * torch.rand(count, 2, generator=generator)) * torch.where(flipped, -1.0, 1.0)
    shift = 0.2 * torch.rand(count, 2, generator=generator) - 0.1
    affine = torch.cat([torch.diag_embed(scale), shift[..., None]], -1)  # [N, 2, 3]
    grid = F.affine_grid(affine, list(pixels.shape), align_corners=False)
    return F.grid_sample(pixels, grid, padding_mode="border", align_corners=False)


def tint(pixels: Tensor, generator: torch.Generator) -> Tensor:
    """Change the balance of the colours; a tenth of the pictures lose them."""
    balance = 0.7 + 0.5 * torch.rand(len(pixels), 3, 1, 1, generator=generator)
    tinted = (pixels * balance).clamp(0, 1)
    is_grey = torch.rand(len(pixels), 1, 1, 1, generator=generator) < 0.1
    return torch.where(is_grey, tinted.mean(1, keepdim=True), tinted)


def train_style(found: Examples, code: PatchCode, seed: int = 0) -> StyleNet:
    """Half of each batch is blob, a third of the rest drawn by the base."""
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    net = StyleNet()
    optimizer = torch.optim.AdamW(net.parameters(), LR, weight_decay=0.02)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LR, total_steps=STEPS)
    target = (torch.arange(BATCH) < BATCH // 2).float()
    for _ in range(STEPS):
        parts = (
            (found.blob, BATCH // 2),
            (found.base, BATCH // 3),
            (found.drawn, BATCH - BATCH // 2 - BATCH // 3),
        )
        batch = [p[torch.randint(len(p), (count,), generator=generator)] for p, count in parts]
        logits = net(spoil(torch.cat(batch).float() / 255, code, generator))
        loss = F.binary_cross_entropy_with_logits(logits, target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    log.info("style measure: last loss %.4f", loss.item())
    return net.eval()


def save_style(net: StyleNet, path: Path) -> None:
    """Write the weights `demo/style.py` loads."""
    save_file(net.state_dict(), path)

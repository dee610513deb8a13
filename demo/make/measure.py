"""Print the figures of the model card for a pipeline folder.

python -m demo.make.measure [--model DIR] [--work DIR] [--no-lora]
"""

import argparse
import logging
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from peft import LoraConfig
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from ..style import style_probability, style_rate
from .captions import BACKGROUNDS, BLOB, STYLES, caption, read_names
from .fetch import fetch
from .networks import Networks, token_ids
from .render import COLOURS, Pictures, contact_sheet, on_background, render, save_png
from .sampling import Pipeline, draw, load_pipeline
from .train import held_out_loss

DEMO = Path(__file__).resolve().parent.parent
LORA_TARGETS = ["to_q", "to_k", "to_v", "to_out.0", "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out"]
LORA_RANK, LORA_LR, LORA_BATCH, LORA_STEPS = 8, 2e-3, 16, 250
STYLES_OF_FIRST_BASE = ("noto", "flat")
"""The interim base knows these two only, so both bases are compared on them."""


@dataclass(frozen=True)
class Shown:
    """Real drawings [N, 3, 128, 128] in [0, 1], their captions and the numbers of their backgrounds."""

    pixels: Tensor
    captions: list[str]
    colours: Tensor

    @classmethod
    def of(cls, pictures: Pictures, rows: Sequence[int], colours: Tensor | None = None) -> "Shown":
        """The rows, the i-th on background i mod 8 or on the given ones."""
        if colours is None:
            colours = torch.arange(len(rows)) % len(BACKGROUNDS)
        words = list(BACKGROUNDS)
        captions = [
            caption(pictures.names[i], pictures.styles[i], words[c])
            for i, c in zip(rows, colours, strict=True)
        ]
        return cls(on_background(pictures.rgba[list(rows)], colours), captions, colours)


def networks_of(pipeline: Pipeline) -> Networks:
    """The pipeline's own networks."""
    return Networks(pipeline.text_encoder, pipeline.text_encoder_2, pipeline.transformer)


@torch.no_grad()
def encode(pipeline: Pipeline, pixels: Tensor) -> Tensor:
    """Pixels in [0, 1] -> model latents."""
    latents: Tensor = pipeline.vae.encode(pixels * 2 - 1).latents * pipeline.vae.config.scaling_factor
    return latents


@torch.no_grad()
def decode(pipeline: Pipeline, latents: Tensor) -> Tensor:
    """Model latents -> pixels in [0, 1]."""
    pixels: Tensor = pipeline.vae.decode(latents / pipeline.vae.config.scaling_factor).sample
    return ((pixels + 1) / 2).clamp(0, 1)


def psnr(a: Tensor, b: Tensor, side: int | None = None) -> float:
    """Peak signal-to-noise ratio in dB of pictures in [0, 1], shrunk to `side` pixels where given."""
    if side is not None:
        a, b = F.interpolate(a, side, mode="area"), F.interpolate(b, side, mode="area")
    return -10 * math.log10((a - b).square().mean().item())


def background_rate(pixels: Tensor, colours: Tensor) -> float:
    """The share of pictures whose upper border is nearest to the colour asked for."""
    border = pixels[:, :, :3].flatten(2).median(-1).values  # [N, 3]
    nearest = (border[:, None] - COLOURS).square().sum(-1).argmin(1)
    return (nearest == colours).float().mean().item()


def base_figures(pipeline: Pipeline, pictures: Pictures) -> dict[str, float]:
    """Loss and quality on (name, style) pairs the base was trained on and on the held-out ones."""
    figures: dict[str, float] = {}
    seen, held_out = pictures.base_rows()
    seen = [row for row in seen if pictures.styles[row] in STYLES_OF_FIRST_BASE]
    for label, rows in (("seen", seen[::12]), ("held out", held_out)):
        real = Shown.of(pictures, rows)
        latents = encode(pipeline, real.pixels)
        ids = token_ids(pipeline.tokenizer, real.captions)
        with sdpa_kernel(SDPBackend.MATH):
            figures[f"loss, {label}"] = held_out_loss(networks_of(pipeline), latents, ids)
        figures[f"VAE PSNR at 128 px, {label} (dB)"] = psnr(decode(pipeline, latents), real.pixels)
        for guidance in (1.0, 2.0):
            drawn = draw(pipeline, real.captions, guidance)
            figures[f"PSNR at 64 px, CFG {guidance:g}, {label} (dB)"] = psnr(drawn, real.pixels, 64)
            figures[f"background right, CFG {guidance:g}, {label}"] = background_rate(drawn, real.colours)
    return figures


def style_figures(pipeline: Pipeline, pictures: Pictures) -> dict[str, float]:
    """Share read as blob: real drawings of the unseen names in every style, as they are and through the VAE."""
    figures: dict[str, float] = {}
    for style in (BLOB, *STYLES.values()):
        rows = pictures.rows(style, read_names("blob_unseen.txt"))
        if not rows:
            continue
        turns = [
            Shown.of(pictures, rows, torch.full((len(rows),), c)).pixels for c in range(len(BACKGROUNDS))
        ]
        figures[f"real {style}, {len(rows)} drawings x 8 backgrounds"] = style_rate(torch.cat(turns))
        figures[f"real {style}, through the VAE"] = style_rate(decode(pipeline, encode(pipeline, turns[0])))
    for style in ("noto", "flat", BLOB):
        captions = [caption(name, style, "white") for name in read_names("blob_unseen.txt")]
        figures[f"base's samples, unseen names, {style} asked for"] = style_rate(draw(pipeline, captions))
    return figures


def train_lora(pipeline: Pipeline, real: Shown, seed: int = 0) -> float:
    """Give the transformer a plain LoRA of these pictures; returns the seconds it took."""
    torch.manual_seed(seed)  # peft initialises from the global generator
    generator = torch.Generator().manual_seed(seed)
    networks = networks_of(pipeline)
    latents = encode(pipeline, real.pixels)
    with torch.no_grad():
        context, pooled = networks.encode(token_ids(pipeline.tokenizer, real.captions))
    networks.transformer.requires_grad_(False)
    networks.transformer.add_adapter(
        LoraConfig(r=LORA_RANK, lora_alpha=LORA_RANK, target_modules=LORA_TARGETS)
    )
    weights = [p for p in networks.transformer.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(weights, LORA_LR)
    start = time.monotonic()
    for _ in range(LORA_STEPS):
        row = torch.randint(len(latents), (LORA_BATCH,), generator=generator)
        noise = torch.randn(latents[row].shape, generator=generator)
        sigma = torch.rand(LORA_BATCH, generator=generator)
        s = sigma[:, None, None, None]  # [B] -> [B, 1, 1, 1]
        x = (1 - s) * latents[row] + s * noise
        with torch.autocast("cpu", torch.bfloat16), sdpa_kernel(SDPBackend.MATH):
            velocity = networks.velocity(x, sigma, context[row], pooled[row])
        loss = (velocity - (noise - latents[row])).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return time.monotonic() - start


def lora_figures(pipeline: Pipeline, pictures: Pictures, sheet: Path | None) -> dict[str, float]:
    """The demo in short: style and likeness on taught and unseen captions before and after a LoRA."""
    white = torch.zeros(24, dtype=torch.long)
    sets = {
        label: Shown.of(pictures, [pictures.rows(BLOB, [name])[0] for name in read_names(file)], white)
        for label, file in (("taught", "blob_train.txt"), ("unseen", "blob_unseen.txt"))
    }
    figures: dict[str, float] = {}
    before = {label: draw(pipeline, real.captions) for label, real in sets.items()}
    figures["seconds of LoRA training"] = train_lora(pipeline, sets["taught"])
    rows = []
    for label, real in sets.items():
        after = draw(pipeline, real.captions)
        for moment, drawn in (("before", before[label]), ("after", after)):
            figures[f"style rate, {label}, {moment}"] = style_rate(drawn)
            figures[f"mean style probability, {label}, {moment}"] = style_probability(drawn).mean().item()
            figures[f"pixel MSE to the real blob, {label}, {moment}"] = (
                (drawn - real.pixels).square().mean().item()
            )
        rows += [real.pixels[:12], before[label][:12], after[:12]]
    if sheet is not None:
        save_png(
            F.interpolate(contact_sheet(torch.cat(rows), 12)[None], scale_factor=0.625, mode="area")[0], sheet
        )
    return figures


def report(figures: dict[str, float]) -> None:
    """One figure a line."""
    for label, value in figures.items():
        print(f"{label:58s} {value:8.4f}", flush=True)


def main() -> None:
    """Measure one pipeline folder."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, default=DEMO / "model", help="pipeline folder")
    parser.add_argument("--work", type=Path, default=DEMO / "make" / ".work", help="where downloads are kept")
    parser.add_argument("--no-lora", action="store_true", help="leave the LoRA check out")
    parser.add_argument("--sheet", type=Path, help="write the LoRA check's pictures there")
    args = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    torch.set_num_threads(1)
    pictures = render(fetch(args.work), args.work)
    pipeline = load_pipeline(args.model)
    report(base_figures(pipeline, pictures))
    report(style_figures(pipeline, pictures))
    if not args.no_lora:
        report(lora_figures(pipeline, pictures, args.sheet))


if __name__ == "__main__":
    main()

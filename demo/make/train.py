"""Train the base: flow matching on captioned drawings, one core, resumable."""

import copy
import logging
import math
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers import PreTrainedTokenizerFast

from .captions import BACKGROUNDS, caption
from .latents import PatchCode, encode_all
from .muon import Muon
from .networks import Networks, build_tokenizer, token_ids
from .render import Pictures

log = logging.getLogger(__name__)

STYLE_SHARE = {"noto": 1.0, "flat": 1.0, "glossy": 0.5, "twemoji": 0.7, "fox": 0.5}
"""How often a picture is drawn, by style: noto and flat are the demo's own styles, the rest teach variety."""
FACE_SHARE = 1.5
"""Faces are what the demo's LoRA is about."""
SAVE_SECONDS = 120.0


@dataclass(frozen=True)
class Recipe:
    """How the base is trained.

    steps: optimiser steps, > 0
    batch: pictures a step
    lr: AdamW, for everything but the blocks' matrices
    lr_muon: Muon, for the blocks' matrices
    warmup: steps of linear warm-up
    decay_from: share of the steps after which the rates fall to zero along a cosine
    dropout: chance to leave out the caption, its style, its background; each by itself
    uniform: share of noise levels drawn uniformly; the others are logit-normal
    ema: decay of the averaged weights, which are the ones shipped
    seed: of everything that is drawn
    """

    steps: int = 12000
    batch: int = 64
    lr: float = 1e-3
    lr_muon: float = 3e-3
    warmup: int = 100
    decay_from: float = 0.5
    dropout: float = 0.1
    uniform: float = 0.3
    ema: float = 0.998
    seed: int = 0

    def rate(self, step: int) -> float:
        """The factor on both learning rates at a step."""
        done = step / self.steps
        if done < self.decay_from:
            return min(1.0, (step + 1) / self.warmup)
        return 0.5 * (1 + math.cos(math.pi * (done - self.decay_from) / (1 - self.decay_from)))


class Drawings:
    """Latents of the training pictures on all backgrounds, and their captions as token ids."""

    def __init__(
        self, pictures: Pictures, rows: list[int], code: PatchCode, tokenizer: PreTrainedTokenizerFast
    ) -> None:
        self.latents = encode_all(code, pictures, rows)  # [N, 8, 16, h, w]
        self.weights = torch.tensor([share(pictures.names[i], pictures.styles[i]) for i in rows])
        self.ids = caption_ids(pictures, rows, tokenizer)
        self.empty = token_ids(tokenizer, [""])[0]

    def batch(self, recipe: Recipe, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Latents [B, 16, h, w] and token ids [B, L], parts of the captions dropped."""
        row = torch.multinomial(self.weights, recipe.batch, replacement=True, generator=generator)
        colour = torch.randint(len(BACKGROUNDS), (recipe.batch,), generator=generator)
        dropped = torch.rand(recipe.batch, 3, generator=generator) < recipe.dropout
        no_style, no_background = dropped[:, 0].long(), dropped[:, 1]
        ids = self.ids[row, no_style, torch.where(no_background, len(BACKGROUNDS), colour)]
        ids = torch.where(dropped[:, 2:], self.empty, ids)
        return self.latents[row, colour].float(), ids


def share(name: str, style: str) -> float:
    """How often a drawing is drawn, relative to others."""
    return STYLE_SHARE[style] * (FACE_SHARE if "face" in name else 1.0)


def caption_ids(pictures: Pictures, rows: list[int], tokenizer: PreTrainedTokenizerFast) -> Tensor:
    """Token ids [N, 2, 9, L]: with and without the style; on each background and without one."""
    captions = [
        caption(pictures.names[i], style, background)
        for i in rows
        for style in (pictures.styles[i], None)
        for background in (*BACKGROUNDS, None)
    ]
    return token_ids(tokenizer, captions).view(len(rows), 2, len(BACKGROUNDS) + 1, -1)


class Trainer:
    """Weights, their average, both optimisers and the generator: what a checkpoint holds."""

    def __init__(self, recipe: Recipe, vocabulary: int) -> None:
        torch.manual_seed(recipe.seed)  # the networks' initialisation draws from the global generator
        self.recipe = recipe
        self.networks = Networks.new(vocabulary)
        self.modules = self.networks.modules()
        self.average = copy.deepcopy(self.modules).requires_grad_(False)
        matrices = block_matrices(self.networks.transformer)
        others = [p for p in self.modules.parameters() if all(p is not m for m in matrices)]
        self.muon = Muon(matrices)
        self.adamw = torch.optim.AdamW(others, recipe.lr, betas=(0.9, 0.98), weight_decay=0.01, foreach=True)
        self.generator = torch.Generator().manual_seed(recipe.seed)
        self.step_number = 0

    def step(self, drawings: Drawings) -> Tensor:
        """One optimiser step; returns its loss."""
        x0, ids = drawings.batch(self.recipe, self.generator)
        sigma = draw_sigma(self.recipe, self.generator)
        noise = torch.randn(x0.shape, generator=self.generator)
        loss = flow_loss(self.networks, x0, noise, sigma, ids)
        self.modules.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(self.modules.parameters(), 1.0)
        self.apply(self.recipe.rate(self.step_number))
        self.step_number += 1
        return loss.detach()

    def apply(self, rate: float) -> None:
        """Move the weights and their average."""
        for group in self.adamw.param_groups:
            group["lr"] = self.recipe.lr * rate
        self.adamw.step()
        self.muon.step(self.recipe.lr_muon * rate)
        decay = min(
            self.recipe.ema, (self.step_number + 2) / (self.step_number + 21)
        )  # short memory at first
        with torch.no_grad():
            torch._foreach_lerp_(list(self.average.parameters()), list(self.modules.parameters()), 1 - decay)

    def state_dict(self) -> dict[str, Any]:
        """Everything a resumed run needs."""
        return {
            "step": self.step_number,
            "modules": self.modules.state_dict(),
            "average": self.average.state_dict(),
            "adamw": self.adamw.state_dict(),
            "muon": self.muon.momentum,
            "generator": self.generator.get_state(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from where `state` was taken."""
        self.step_number = state["step"]
        self.modules.load_state_dict(state["modules"])
        self.average.load_state_dict(state["average"])
        self.adamw.load_state_dict(state["adamw"])
        self.muon.momentum = state["muon"]
        self.generator.set_state(state["generator"])


def block_matrices(transformer: nn.Module) -> list[nn.Parameter]:
    """The weights Muon trains: matrices inside the blocks, less those that only see the noise level."""
    return [
        parameter
        for name, parameter in transformer.named_parameters()
        if parameter.ndim == 2 and name.startswith("transformer_blocks") and "norm1" not in name
    ]


def draw_sigma(recipe: Recipe, generator: torch.Generator) -> Tensor:
    """Noise levels [B] in (0, 1): mostly logit-normal, some uniform so that the ends are learned too."""
    uniform = torch.rand(recipe.batch, generator=generator)
    normal = torch.randn(recipe.batch, generator=generator).sigmoid()
    is_uniform = torch.rand(recipe.batch, generator=generator) < recipe.uniform
    return torch.where(is_uniform, uniform, normal)


def flow_loss(networks: Networks, x0: Tensor, noise: Tensor, sigma: Tensor, ids: Tensor) -> Tensor:
    """Mean squared error of the velocity at x = (1 - sigma) x0 + sigma noise, in bfloat16 autocast."""
    s = sigma[:, None, None, None]  # [B] -> [B, 1, 1, 1]
    x = (1 - s) * x0 + s * noise
    with torch.autocast("cpu", torch.bfloat16):
        velocity = networks.velocity(x, sigma, *networks.encode(ids))
    return (velocity - (noise - x0)).square().mean()


@torch.no_grad()
def held_out_loss(networks: Networks, latents: Tensor, ids: Tensor, seed: int = 6, draws: int = 4) -> float:
    """The loss at fixed noise and noise levels: latents [N, 16, h, w], token ids [N, L]."""
    generator = torch.Generator().manual_seed(seed)
    losses = []
    for draw in range(draws):
        noise = torch.randn(latents.shape, generator=generator)
        sigma = (torch.rand(len(latents), generator=generator) + draw) / draws
        losses.append(flow_loss(networks, latents, noise, sigma, ids).item())
    return sum(losses) / draws


def on_all_colours(
    pictures: Pictures, rows: list[int], code: PatchCode, tokenizer: PreTrainedTokenizerFast
) -> tuple[Tensor, Tensor]:
    """Latents and ids of the rows, the i-th on background i mod 8, for `held_out_loss`."""
    colour = torch.arange(len(rows)) % len(BACKGROUNDS)
    latents = encode_all(code, pictures, rows)[torch.arange(len(rows)), colour].float()
    return latents, caption_ids(pictures, rows, tokenizer)[torch.arange(len(rows)), 0, colour]


def train(recipe: Recipe, pictures: Pictures, code: PatchCode, work: Path) -> Networks:
    """Train, or go on from `work/base.pt`, and return the averaged networks."""
    tokenizer = build_tokenizer(sorted(set(pictures.names)))
    trainer = Trainer(recipe, len(tokenizer))
    checkpoint = work / "base.pt"
    if checkpoint.exists():
        trainer.load_state_dict(torch.load(checkpoint))
    rows, held_out = pictures.base_rows()
    drawings = Drawings(pictures, rows, code, tokenizer)
    checks = [on_all_colours(pictures, chosen, code, tokenizer) for chosen in (rows[::12], held_out)]
    average = Networks(**dict(trainer.average.items()))
    saved, losses = time.monotonic(), []
    with sdpa_kernel(SDPBackend.MATH):  # the fused kernel's backward is 4 x slower for 80 tokens on a CPU
        while trainer.step_number < recipe.steps:
            losses.append(trainer.step(drawings))
            last = trainer.step_number == recipe.steps
            if last or time.monotonic() - saved > SAVE_SECONDS:
                figures = [held_out_loss(average, *check) for check in checks]
                figures.append(torch.stack(losses).mean().item())
                log.info("step %d seen %.4f held out %.4f training %.4f", trainer.step_number, *figures)
                save(trainer, checkpoint)
                saved, losses = time.monotonic(), []
    return average


def save(trainer: Trainer, path: Path) -> None:
    """Write the checkpoint under a temporary name first, so that a kill leaves the last good one."""
    partial = path.with_suffix(".partial")
    torch.save(trainer.state_dict(), partial)
    partial.replace(path)

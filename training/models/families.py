"""The pipelines of diffusers that can be trained: SD3, Flux, Stable Diffusion 1.x and 2.x, and XL."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from ...samplers import sent
from ..conditioning import Cond
from ..forms import expand
from .diffusers import DiffusersModel, TokenLimits, Weights, inner_states
from .folder import PipelineFolder


class StableDiffusion3(DiffusersModel):
    """SD3 and SD3.5: rectified flow, joint attention over CLIP, CLIP and (where present) T5 tokens."""

    pipelines = ("StableDiffusion3Pipeline",)
    encoders: ClassVar[TokenLimits] = {"text_encoder": None, "text_encoder_2": None, "text_encoder_3": 256}
    optional = ("text_encoder_3",)

    @property
    def largest_side(self) -> int | None:
        """Longest side in pixels for which the position table has entries."""
        return int(self.module.config.pos_embed_max_size) * self.size_multiple

    def encode_caption(self, caption: str) -> dict[str, Tensor]:
        """``context [1, L, D]`` and ``pooled [1, P]`` of one caption.

        Without a T5 encoder the context is the CLIP tokens alone, as in ComfyUI; the pipeline does the same
        with `max_sequence_length=0`, and appends zero tokens otherwise.
        """
        states, pooled = zip(
            *(inner_states(self.texts[name], caption) for name in ("text_encoder", "text_encoder_2")),
            strict=True,
        )
        context = torch.cat(states, dim=-1)
        context = F.pad(context, (0, self.module.config.joint_attention_dim - context.shape[-1]))
        if t5 := self.texts.get("text_encoder_3"):
            context = torch.cat([context, t5(caption)[0]], dim=1)
        return {"context": context, "pooled": torch.cat(pooled, dim=-1)}

    def output(self, x: Tensor, sigma: Tensor, cond: Cond) -> Tensor:
        """Velocity at `x: [B, C, h, w]`."""
        result: Tensor = self.module(
            x.to(self.dtype),
            timestep=sigma * self.timesteps,
            encoder_hidden_states=cond["context"],
            pooled_projections=cond["pooled"],
            return_dict=False,
        )[0]
        return result


class Flux(DiffusersModel):
    """Flux.1 schnell and dev: rectified flow over packed latents, T5 tokens and the CLIP summary."""

    pipelines = ("FluxPipeline",)
    encoders: ClassVar[TokenLimits] = {"text_encoder": None, "text_encoder_2": 512}
    packing = 2
    guidance: ClassVar[float] = 3.5
    """What dev's distilled guidance is told, in training and sampling alike; the pipeline's default."""

    def encode_caption(self, caption: str) -> dict[str, Tensor]:
        """``context [1, L, D]`` and ``pooled [1, P]`` of one caption."""
        return {
            "context": self.texts["text_encoder_2"](caption)[0],
            "pooled": self.texts["text_encoder"](caption).pooler_output,
        }

    def output(self, x: Tensor, sigma: Tensor, cond: Cond) -> Tensor:
        """Velocity at `x: [B, C, h, w]`; the network sees tokens of 2 x 2 latent positions."""
        rows, columns = x.shape[2] // 2, x.shape[3] // 2
        sides = (torch.arange(n, device=x.device) for n in (rows, columns))
        places = torch.cartesian_prod(*sides)
        image_ids = F.pad(places, (1, 0)).to(x)  # [rows * columns, 3]: 0, row, column
        guided = self.module.config.guidance_embeds
        tokens: Tensor = self.module(
            F.pixel_unshuffle(x, 2).flatten(2).mT.to(self.dtype),  # [B, C, h, w] -> [B, rows * columns, 4 C]
            timestep=sigma,  # times 1000 inside
            guidance=torch.full_like(sigma, self.guidance) if guided else None,
            encoder_hidden_states=cond["context"],
            pooled_projections=cond["pooled"],
            img_ids=image_ids,
            txt_ids=image_ids.new_zeros(cond["context"].shape[1], 3),
            return_dict=False,
        )[0]
        return F.pixel_shuffle(tokens.mT.unflatten(2, (rows, columns)), 2)


class StableDiffusion(DiffusersModel):
    """Stable Diffusion 1.x and 2.x: a UNet that predicts epsilon or v, cross-attention over CLIP tokens."""

    pipelines = ("StableDiffusionPipeline",)
    component = "unet"
    lora_names = "kohya"  # the one form for UNets that both loaders read
    encoders: ClassVar[TokenLimits] = {"text_encoder": None}
    default_lora_targets = (r"attn[12]\.(to_[qkv]|to_out\.0)$",)

    def encode_caption(self, caption: str) -> dict[str, Tensor]:
        """``context [1, L, D]`` of one caption."""
        return {"context": self.texts["text_encoder"](caption)[0]}

    def added_conditions(self, x: Tensor, cond: Cond) -> dict[str, Tensor] | None:
        """What the network is told beside the text; nothing here."""
        return None

    def output(self, x: Tensor, sigma: Tensor, cond: Cond) -> Tensor:
        """Epsilon or v at the VE state `x: [B, C, h, w]`; the network sees ``x / sqrt(1 + sigma^2)``."""
        scaled = x * (1 + expand(sigma, x) ** 2).rsqrt()
        result: Tensor = self.module(
            scaled.to(self.dtype),
            self.schedule.u(sigma) * self.timesteps - 1,  # fractional between training timesteps
            encoder_hidden_states=cond["context"],
            added_cond_kwargs=self.added_conditions(x, cond),
            return_dict=False,
        )[0]
        return result


class StableDiffusionXL(StableDiffusion):
    """SDXL base: a UNet over the tokens of two CLIP encoders, told the size of the picture."""

    pipelines = ("StableDiffusionXLPipeline",)
    encoders: ClassVar[TokenLimits] = {"text_encoder": None, "text_encoder_2": None}

    def encode_caption(self, caption: str) -> dict[str, Tensor]:
        """``context [1, L, D]`` of both encoders and ``pooled [1, P]`` of the second."""
        first, _ = inner_states(self.texts["text_encoder"], caption)
        second, pooled = inner_states(self.texts["text_encoder_2"], caption)
        return {"context": torch.cat([first, second], dim=-1), "pooled": pooled}

    def added_conditions(self, x: Tensor, cond: Cond) -> dict[str, Tensor] | None:
        """The text's summary, and the sizes: original and wanted are those of `x`, nothing is cropped."""
        height, width = (side * self.scale_factor for side in x.shape[2:])
        sizes = torch.tensor([height, width, 0, 0, height, width], dtype=x.dtype)
        sizes = sent(sizes, x.device).expand(len(x), -1)
        return {"text_embeds": cond["pooled"], "time_ids": sizes}


FAMILIES: tuple[type[DiffusersModel], ...] = (StableDiffusion3, Flux, StableDiffusion, StableDiffusionXL)


@torch.inference_mode(False)
def load_diffusers(
    folder: str | Path,
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
    weights: Weights = "full",
    swap: bool = False,
) -> DiffusersModel:
    """Load a pipeline folder, its weights as `dtype`, frozen; the network goes to `device`.

    Args:
        weights: how the matrices in the network's blocks are stored there.
        swap: its blocks stay in the computer's memory and are fetched for each use.

    Raises:
        ValueError: the folder is missing, is of no known family, or lacks a part (the message names both); or `swap`
            for a network of another build.
        RuntimeError: `weights` needs a package that is not installed.
    """
    pipeline = PipelineFolder.read(Path(folder))
    return family_of(pipeline)(pipeline, torch.device(device), dtype, weights, swap)


def check_diffusers(folder: str | Path) -> None:
    """Look whether `load_diffusers` would find what it needs, without reading any weights.

    Raises:
        ValueError: as `load_diffusers`.
    """
    pipeline = PipelineFolder.read(Path(folder))
    family = family_of(pipeline)
    pipeline.config("scheduler")
    texts = [name for name in family.encoders if pipeline.has(name) or name not in family.optional]
    for name in (family.component, "vae", *texts):
        pipeline.weights(name)


def family_of(pipeline: PipelineFolder) -> type[DiffusersModel]:
    """The family that reads this pipeline.

    Raises:
        ValueError: there is none.
    """
    for family in FAMILIES:
        if pipeline.pipeline in family.pipelines:
            return family
    known = ", ".join(name for family in FAMILIES for name in family.pipelines)
    raise pipeline.fault(f"it must hold one of {known}, but holds a {pipeline.pipeline}")

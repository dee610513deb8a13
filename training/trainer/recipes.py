"""Settings to begin with, for each family of models and each kind of data: what the field trains them with.

A plain table. Where trainers give a shift for sigma = sigmoid(z), that is a logit-normal of sigma with mean log(shift),
and is written so: it then holds whatever shift the MODEL has. Learning rates are for an alpha equal to the rank.

Sources, read 2026-11 at these commits: musubi-tuner 30c658c (2026-06-24), sd-scripts 48d368f (2026-02-16), OneTrainer
23df383 (2026-08-19), ai-toolkit 27a03a9 (2026-08-21). Where they differ, the more careful learning rate is taken.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from ...samplers.schedules import Schedule
from ..lora.adapter import LoRAConfig
from ..objective.config import RolloutConfig
from ..objective.losses import LossConfig
from ..objective.timesteps import TimestepConfig, levels_trained
from .optim import OptimizerConfig

Kind = Literal["style", "subject", "edit", "video"]
STEPS: dict[Kind, int] = {"style": 2000, "subject": 1500, "edit": 3000, "video": 2000}
"""Optimiser steps at batch size 1 to plan for: ai-toolkit's examples; fewer for one subject."""
MEANING: dict[Kind, str] = {
    "style": "a look",
    "subject": "a person, thing or character",
    "edit": "pairs of pictures",
    "video": "movement in clips",
}
ADVICE: dict[Kind, str] = {
    "edit": "name the folder of the pictures before the edit in control_1 of Dataset from Folder.",
    "video": "name a folder of clips in Dataset from Folder; its clip_frames says how long a sample is.",
}
"""What else data of a kind need."""
READ = "November 2026"
DROPOUT = 0.05
"""Chance of an empty caption: ai-toolkit's examples."""


@dataclass(frozen=True)
class Recipe:
    """Settings for one family and kind of data."""

    family: str
    kind: Kind
    classes: tuple[str, ...]
    """Models that it is for, by their class: ComfyUI's, or our diffusers backend's."""
    lora: LoRAConfig
    optimizer: OptimizerConfig
    timesteps: TimestepConfig
    loss: LossConfig
    side: int
    """Of a square picture or frame, in pixels."""
    source: str
    """Where the numbers are from."""
    note: str = ""
    """What else to do, for people."""

    @property
    def rollout(self) -> RolloutConfig:
        """Off: measured on the demo, rollouts hardly help a LoRA and cost time (docs/study.md)."""
        return RolloutConfig()

    def summary(self, schedule: Schedule) -> str:
        """What the recipe sets, for people, line by line."""
        lora, rate, gamma = self.lora, self.optimizer, self.loss.min_snr_gamma
        advice = [ADVICE[self.kind]] if self.kind in ADVICE else []
        lines = [
            f"{self.family}: {self.kind} ({MEANING[self.kind]})",
            f"LoRA: rank {lora.rank}, alpha {lora.alpha:g}, on the layers of preset {lora.preset}",
            f"Optimizer: {rate.name}, learning rate {plain(rate.lr)}, {rate.schedule} after a warm-up of "
            f"{rate.warmup_steps} steps",
            f"Trained: {levels_trained(self.timesteps, schedule)} (0 is the picture, more is more noise)",
            *([f"Loss: min-SNR weights with gamma {gamma:g}"] if gamma else []),
            f"Picture size: {self.side} x {self.side} pixels",
            f"Set on the training node yourself: about {STEPS[self.kind]} steps at batch size 1, caption_dropout "
            f"{plain(DROPOUT)}; leave rollouts off to begin with",
            *(f"Also: {told}" for told in (*advice, self.note) if told),
            f"The numbers are those of {self.source}, read in {READ}",
        ]
        return "\n".join(lines)


def plain(value: float) -> str:
    """A small number as widgets show it, without an exponent."""
    return f"{value:.8f}".rstrip("0").rstrip(".")


def shifted(shift: float) -> TimestepConfig:
    """Noise levels around a shift, whatever the model's own is; to the digit that the widget shows."""
    return TimestepConfig("sigmoid", mean=round(math.log(shift), 1))


MODELS_OWN = TimestepConfig("logit_normal")
"""The middle of the trajectory under the model's own shift."""
UNIFORM = TimestepConfig()
MIDDLE = shifted(1.0)
PICTURES: tuple[Kind, ...] = ("style", "subject")


@dataclass(frozen=True)
class Line:
    """One line of the table: a family, its kinds of data, and what is particular to it."""

    family: str
    classes: tuple[str, ...]
    kinds: tuple[Kind, ...]
    side: int
    rank: int
    lr: float
    timesteps: TimestepConfig
    source: str
    note: str = ""
    loss: LossConfig = LossConfig()


EXPERT = "train the other of the two models as well, with its own recipe; each has a LoRA file of its own."
T2V, I2V = 0.875, 0.9
"""Where the two models of Wan 2.2 14B take turns: the boundaries of its own sampling code."""

TABLE: tuple[Line, ...] = (
    Line(
        "SDXL", ("SDXL", "StableDiffusionXL"), PICTURES, 1024, 32, 1e-4, UNIFORM,
        "sd-scripts docs/sdxl_train_network.md", loss=LossConfig(min_snr_gamma=5.0),
    ),
    Line(
        "SD3.5", ("SD3", "StableDiffusion3"), PICTURES, 1024, 16, 1e-4, MIDDLE,
        "ai-toolkit train_lora_sd35_large_24gb; OneTrainer #sd 3 LoRA",
    ),
    Line(
        "Flux dev", ("Flux",), PICTURES, 1024, 16, 1e-4, MODELS_OWN,
        "ai-toolkit train_lora_flux_24gb; sd-scripts docs/flux_train_network.md (flux_shift)",
        "set guidance to 1 on Model from ComfyUI.",
    ),
    Line(
        "Flux Kontext", ("Flux",), ("edit",), 1024, 32, 1e-4, MODELS_OWN,
        "musubi-tuner docs/flux_kontext.md; ai-toolkit train_lora_flux_kontext_24gb",
    ),
    Line(
        "Flux.2 dev", ("Flux2",), (*PICTURES, "edit"), 1024, 32, 3e-5, MODELS_OWN,
        "OneTrainer #flux2 LoRA 16GB; musubi-tuner docs/flux_2.md (flux2_shift; its learning rate: 0.0001)",
    ),
    Line(
        "Flux.2 Klein", ("Flux2",), (*PICTURES, "edit"), 1024, 32, 1e-4, MODELS_OWN,
        "musubi-tuner docs/flux_2.md", "train the base model; a LoRA of it works on the distilled one.",
    ),
    Line(
        "Chroma", ("Chroma", "ChromaRadiance"), PICTURES, 1024, 16, 1e-4, MIDDLE,
        "ai-toolkit train_lora_chroma_24gb; OneTrainer #chroma LoRA (both favour the middle)",
    ),
    Line(
        "Qwen-Image", ("QwenImage",), PICTURES, 1024, 16, 5e-5, shifted(2.2),
        "musubi-tuner docs/qwen_image.md; ai-toolkit train_lora_qwen_image_24gb (its learning rate: 0.0001)",
    ),
    Line(
        "Qwen-Image-Edit", ("QwenImage",), ("edit",), 1024, 16, 5e-5, shifted(2.2),
        "musubi-tuner docs/qwen_image.md; ai-toolkit train_lora_qwen_image_edit_32gb (its learning rate: 0.0001)",
    ),
    Line(
        "Z-Image", ("Lumina2", "ZImage", "ZImagePixelSpace"), PICTURES, 1024, 32, 1e-4, shifted(2.0),
        "musubi-tuner docs/zimage.md; OneTrainer #z-image LoRA 16GB (its learning rate: 0.0003)",
    ),
    Line(
        "Z-Image Turbo", ("Lumina2", "ZImage"), PICTURES, 1024, 16, 1e-4, shifted(2.0),
        "musubi-tuner docs/zimage.md; OneTrainer #z-image DeTurbo LoRA 16GB",
        "put a de-distilling adapter on the MODEL with the stock LoRA loader before Model from ComfyUI, and sample "
        "without it.",
    ),
    Line(
        "Lumina 2", ("Lumina2",), PICTURES, 1024, 16, 1e-4, MODELS_OWN,
        "sd-scripts docs/lumina_train_network.md (nextdit_shift 6); ai-toolkit train_lora_lumina",
    ),
    Line(
        "HiDream", ("HiDream",), PICTURES, 1024, 32, 2e-4, MIDDLE,
        "ai-toolkit train_lora_hidream_48; OneTrainer #hidream LoRA",
    ),
    Line(
        "Krea 2", ("Krea2",), PICTURES, 1024, 32, 1e-4, shifted(2.5),
        "musubi-tuner docs/krea2.md; OneTrainer #krea2 LoRA 16GB (its learning rate: 0.0003)",
    ),
    Line(
        "Anima", ("Anima",), PICTURES, 1024, 8, 1e-4, MIDDLE,
        "sd-scripts docs/anima_train_network.md; OneTrainer #anima LoRA (its learning rate: 0.00003)",
    ),
    Line(
        "Wan 2.1", ("WAN21", "WAN21_Vace"), (*PICTURES, "video"), 512, 32, 1e-4, shifted(3.0),
        "musubi-tuner docs/wan.md (its learning rate: 0.0002); ai-toolkit train_lora_wan21_14b_24gb",
    ),
    Line(
        "Wan 2.2 5B", ("WAN22",), (*PICTURES, "video"), 704, 32, 1e-4, shifted(3.0),
        "musubi-tuner docs/wan.md; ai-toolkit train_lora_wan22_14b_24gb",
    ),
    *(
        Line(
            f"Wan 2.2 14B {what} noise, {name}", ("WAN21",), (*PICTURES, "video") if name == "text" else ("video",),
            512, 32, 1e-4, TimestepConfig("sigmoid", mean=1.1, **{end: boundary}),
            "musubi-tuner docs/wan.md; ai-toolkit train_lora_wan22_14b_24gb", EXPERT,
        )
        for name, boundary in (("text", T2V), ("image", I2V))
        for what, end in (("high", "sigma_low"), ("low", "sigma_high"))
    ),
    Line(
        "HunyuanVideo 1.5", ("HunyuanVideo15",), (*PICTURES, "video"), 512, 32, 1e-4, shifted(2.0),
        "musubi-tuner docs/hunyuan_video_1_5.md",
    ),
    Line(
        "LTX-2", ("LTXAV",), ("style", "video"), 512, 32, 1e-4, MIDDLE,
        "OneTrainer #ltx2.5 LoRA 16GB (its learning rate: 0.0003)", "sound is not trained.",
    ),
)  # fmt: skip


def recipe_of(line: Line, kind: Kind) -> Recipe:
    """One recipe of a line."""
    return Recipe(
        line.family,
        kind,
        line.classes,
        LoRAConfig(rank=line.rank, alpha=float(line.rank)),
        OptimizerConfig(lr=line.lr, warmup_steps=50),
        line.timesteps,
        line.loss,
        line.side,
        line.source,
        line.note,
    )


RECIPES: dict[str, Recipe] = {
    f"{line.family}: {kind}": recipe_of(line, kind) for line in TABLE for kind in line.kinds
}
"""By name, as the widget shows them."""


def recipe_for(name: str, model: str) -> Recipe:
    """The recipe `name`.

    Args:
        model: class of the model that is to be trained.

    Raises:
        ValueError: there is none of this name, or it is for other models.
    """
    if name not in RECIPES:
        raise ValueError(f"recipe must be one of {', '.join(RECIPES)}, got {name!r}")
    recipe = RECIPES[name]
    if model not in recipe.classes:
        fitting = [other for other, r in RECIPES.items() if model in r.classes]
        ways = f"choose {' or '.join(fitting)}" if fitting else "wire the settings nodes instead"
        raise ValueError(f"recipe must suit the model, got {name} for {model}; {ways}")
    return recipe


def fitting(model: str, kind: Kind) -> Recipe | None:
    """The first recipe of the table for a model, by its class, and a kind of data; None: there is none."""
    return next((r for r in RECIPES.values() if model in r.classes and r.kind == kind), None)

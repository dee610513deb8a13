"""How nodes are found: their place in the menu, and the words that people search for them."""

from __future__ import annotations

from collections.abc import Mapping
from inspect import signature
from typing import Any

from ..host import io

CATEGORY = "training/rollout"

PLACES: Mapping[str, tuple[str, ...]] = {
    "models": ("LoadDiffusers", "LoadLoRA", "FromComfyModel", "ApplyLoRA"),
    "data": ("DatasetFromFolder", "EncodeDataset", "DatasetFromLatents", "DatasetFromImages", "MixDatasets"),
    "settings": (
        *("LoRASettings", "OptimizerSettings", "TimestepSettings", "LossSettings", "ScheduledSampling"),
        *("ReflexFlow", "SettingsFromJSON", "SettingsToJSON", "Recipe"),
    ),
    "train": ("TrainLoRA", "InitTraining", "TrainSteps", "ResumeTraining", "Validate", "SaveLoRA"),
    "pictures": ("Sample", "SamplePrompts", "Preview", "ExposureBias", "LossPlot", "CompareImages"),
    "sampling": ("Sampler", "Sigmas"),
}
"""The folders below `CATEGORY`, and what is in them; of a node id without its ``Rollout``."""

ALIASES: Mapping[str, tuple[str, ...]] = {
    "LoadDiffusers": ("diffusers folder", "pipeline", "load base model"),
    "LoadLoRA": ("kohya", "lycoris", "continue lora", "load lora to train"),
    "FromComfyModel": ("checkpoint to train", "model to train", "trainable model", "flux", "sdxl"),
    "ApplyLoRA": ("use trained lora", "test lora", "sample with lora"),
    "DatasetFromFolder": (
        "load images folder",
        "load image text",
        "captions",
        "caption",
        "training pictures",
    ),
    "EncodeDataset": ("cache latents", "vae encode dataset", "resolution buckets", "bucket"),
    "DatasetFromLatents": ("make training dataset", "latents dataset"),
    "Recipe": (
        "preset",
        "recommended settings",
        "defaults",
        "flux settings",
        "wan settings",
        "sdxl settings",
    ),
    "DatasetFromImages": ("image list dataset", "images to train on", "load image text"),
    "MixDatasets": ("regularisation", "regularization", "several datasets", "combine datasets", "reg images"),
    "LoRASettings": ("rank", "alpha", "network dim", "dora", "loha", "lokr", "lycoris"),
    "OptimizerSettings": ("adamw", "prodigy", "adafactor", "learning rate", "scheduler"),
    "TimestepSettings": ("noise levels", "logit normal", "timestep sampling", "min timestep"),
    "LossSettings": ("min snr", "huber", "mse"),
    "ScheduledSampling": ("exposure bias", "rollout settings", "self forcing", "scheduled sampling"),
    "ReflexFlow": ("reflexflow", "anti drift", "frequency compensation"),
    "SettingsFromJSON": ("simpletuner", "import config json"),
    "SettingsToJSON": ("simpletuner", "export config json"),
    "TrainLoRA": (
        "finetune",
        "fine-tune",
        "train",
        "trainer",
        "dreambooth",
        "kohya",
        "ai-toolkit",
        "lora training",
    ),
    "InitTraining": ("start training", "staged training"),
    "TrainSteps": ("continue training", "staged training"),
    "ResumeTraining": ("continue training", "restore checkpoint", "load state"),
    "Validate": ("validation loss", "test loss"),
    "SaveLoRA": ("export lora", "save lora weights", "safetensors"),
    "Sample": ("lora preview", "test prompts", "generate pictures", "draw"),
    "SamplePrompts": ("preview while training", "sample prompts", "validation prompts", "lora preview"),
    "Preview": ("lora preview", "filmstrip", "drift"),
    "ExposureBias": ("energy distance", "spectrum", "measure model"),
    "LossPlot": ("loss curve", "plot loss graph", "tensorboard"),
    "CompareImages": ("before after", "image grid", "contact sheet"),
    "Sampler": ("unipc", "uni_pc", "dpm", "dpm++", "euler", "rk4", "runge kutta", "ksampler select"),
    "Sigmas": ("scheduler", "noise schedule", "basic scheduler"),
}
"""What people type who look for a node, beside its name."""


def schema(node_id: str, **given: Any) -> io.Schema:
    """A node's `io.Schema`, with its place in the menu and, where the host takes them, its search words."""
    name = node_id.removeprefix("Rollout")
    (folder,) = (folder for folder, names in PLACES.items() if name in names)
    if "search_aliases" in signature(io.Schema).parameters:  # ComfyUI 0.33 does, 0.3.64 does not
        given["search_aliases"] = list(ALIASES[name])
    return io.Schema(node_id=node_id, category=f"{CATEGORY}/{folder}", **given)
